"""The writer's corpus: which pairs are held out, that none of them is shown, and how often each kind is drawn."""

import numpy as np
import pytest

from kanjilab.data.captioned import SEPARATOR
from kanjilab.data.components import is_held_out, load_components
from kanjilab.data.typeset import Pair, novel_pairs, pair_of
from kanjilab.data.writer_corpus import (
    FREQUENT,
    SHARES,
    build_writer_corpus,
    captions_by_parts,
    is_held_out_pair,
    places,
    slot_counts,
)

KANJI = "休林海明時語話鯨鮭蛙蚊花草国木水日月人口好姉妹持指校村板枝"


@pytest.fixture(scope="module")
def components():
    return load_components()


@pytest.fixture(scope="module")
def corpus(tmp_path_factory, module_patch):
    """Of a few characters; pairs of few parts are typeset."""
    pairs = [pair for pair in novel_pairs(load_components()) if {pair.first, pair.second} <= set("木水日口人女青")]
    module_patch.setattr("kanjilab.data.writer_corpus.novel_pairs", lambda *_: pairs)
    folder = tmp_path_factory.mktemp("writer")
    return build_writer_corpus(folder, characters=KANJI), np.load(folder / "images.npy")


@pytest.fixture(scope="module")
def module_patch():
    with pytest.MonkeyPatch.context() as patch:
        yield patch


def test_slots_are_counted_in_characters_of_exactly_two_parts(components):
    counts = slot_counts(components, "休体林森")  # 休 = 人 + 木, 体 = 人 + 本, 林 = 木 + 木; 森 is of three
    assert counts["⿰", "人", "left"] == 2
    assert counts["⿰", "木", "right"] == 2
    assert counts["⿰", "木", "left"] == 1


def test_a_pair_is_held_out_by_its_parts_alone_and_only_if_both_are_frequent(components):
    pairs = [pair for pair in map(pair_of, components.decompositions.values()) if pair]
    many = {place: FREQUENT for pair in pairs for place in places(pair)}
    held = [pair for pair in pairs if is_held_out_pair(pair, many)]
    assert len(held) / len(pairs) == pytest.approx(1 / 4, abs=0.03)
    for pair in held[:20]:
        turned = Pair(pair.layout, pair.second, pair.first)
        assert is_held_out_pair(turned, many | {place: FREQUENT for place in places(turned)})
        assert not is_held_out_pair(pair, many | {places(pair)[1]: FREQUENT - 1})


def test_captions_by_parts_name_the_slots_and_every_name_once(components):
    sea = pair_of(components.of("鮭"))  # fish and two soils
    assert captions_by_parts("鮭", sea)[:2] == ["fish + square jewel", "left: fish, right: square jewel"]
    assert captions_by_parts("木", None) == ["tree", "wood"]
    assert captions_by_parts("𠀋", None) == []


def test_no_held_out_pair_is_shown(corpus):
    table, _ = corpus
    components = load_components()
    counts = slot_counts(components, table["character"].loc[table["character"] != ""].unique())
    shown = table.loc[~table["held_out"]]
    pairs = [Pair(*row) for row in shown[["layout", "first", "second"]].itertuples(index=False) if row[0]]
    assert pairs
    assert not any(is_held_out_pair(pair, counts) for pair in pairs)
    assert not any(is_held_out(character) for character in shown["character"] if character)
    assert (table.loc[table["held_out"], "weight"] == 0).all()


def test_each_kind_has_its_share_of_the_images_drawn(corpus):
    table, images = corpus
    shares = table.groupby("kind")["weight"].sum()
    assert shares.to_dict() == pytest.approx({kind: SHARES[kind] for kind in shares.index})
    assert images.shape[1:] == (128, 128) and table["image"].max() == len(images) - 1


def test_a_real_kanji_has_both_kinds_of_captions_for_one_picture(corpus):
    table, _ = corpus
    rows = table.loc[table["character"] == "鯨"].set_index("kind")
    assert rows["image"].nunique() == 1
    assert "fish + capital" in rows.loc["parts", "captions"].split(SEPARATOR)
    assert "whale" in rows.loc["meaning", "captions"].split(SEPARATOR)


def test_the_corpus_is_the_same_each_time(corpus, tmp_path, module_patch):
    table, images = corpus
    again = build_writer_corpus(tmp_path, characters=KANJI)
    assert again.equals(table)
    assert np.array_equal(np.load(tmp_path / "images.npy"), images)
