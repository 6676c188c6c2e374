"""Composed signs: what they are called, where they stand, and how often each kind is drawn."""

import unicodedata
from pathlib import Path

import matplotlib
import numpy as np
import pytest

from kanjilab.data.captioned import load_captioned
from kanjilab.data.composed_signs import (
    SHARES,
    build_pocket_corpus,
    compose_signs,
    composed_pairs,
    named_signs,
    sign_name,
    syllable_captions,
    weights_of_kinds,
)
from kanjilab.data.pocket_corpus import CorpusGlyph, unicode_caption

DEJAVU = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"


def glyph(character: str) -> CorpusGlyph:
    return CorpusGlyph(ord(character), DEJAVU, str(unicode_caption(ord(character))))


@pytest.mark.parametrize(
    ("character", "named"),
    [
        ("♔", ("symbols", "chess king")),  # white chess king
        ("☁", ("symbols", "cloud")),
        ("Ω", ("letters", "omega")),
        ("ω", ("letters", "omega")),
        ("א", ("letters", "alef")),
        ("\U00018810", ("components", "tangut 17")),
        ("\U0001f40b", ("pictographs", "whale")),
        ("\U0001f714", ("symbols", "salt")),  # alchemical symbol for salt
        ("\U0001f703", ("symbols", "earth")),
        ("\U00010080", ("symbols", "man")),  # linear b ideogram b100 man
        (unicodedata.lookup("LINEAR B IDEOGRAM B132"), None),  # nobody knows of what
        ("a", None),
        ("★", None),
    ],
)
def test_names_of_signs(character, named):
    assert sign_name(glyph(character)) == named


def test_signs_of_one_name_are_one_and_slender_ones_are_left_out():
    signs = named_signs(map(glyph, "Ωω☁♔Ι"))  # iota is a bar
    assert {kind: list(named) for kind, named in signs.items()} == {
        "symbols": ["chess king", "cloud"],
        "letters": ["omega"],
        "components": [],
        "pictographs": [],
    }
    assert [one.codepoint for one in signs["letters"]["omega"]] == [0x3A9, 0x3C9]


@pytest.mark.parametrize(("layout", "axis"), [("⿰", 0), ("⿱", 1)])
def test_each_sign_has_its_share_of_the_square(layout, axis):
    """Between the two, and only there, a gap goes across from edge to edge."""
    for seed in range(10):
        image = compose_signs(glyph("☁"), glyph("Ω"), layout, np.random.default_rng(seed))
        inked = np.flatnonzero((image < 128).any(axis=axis))
        assert image.shape == (128, 128) and inked[0] >= 7 and inked[-1] <= 120
        gaps = np.flatnonzero(np.diff(inked) > 2)
        assert len(gaps) == 1
        assert 40 <= inked[gaps[0]] + 1 <= 72  # 8 and 0.36 to 0.55 of 112


def test_the_first_sign_is_on_the_left_or_on_top():
    def halves(layout):
        dark = compose_signs(glyph("☁"), glyph("."), layout, np.random.default_rng(0)) < 128
        return dark[:, :64].sum() - dark[:, 64:].sum(), dark[:64].sum() - dark[64:].sum()

    # A full stop fills its box with ink, a cloud hardly.
    assert halves("⿰")[0] < 0 < abs(halves("⿱")[1]) and halves("⿱")[1] < 0


def test_blank_signs_are_refused():
    with pytest.raises(ValueError, match="two signs with ink"):
        compose_signs(glyph("Ω"), CorpusGlyph(0x2003, DEJAVU, "em space"), "⿰", np.random.default_rng(0))


@pytest.mark.parametrize(
    ("syllable", "captions"),
    [
        ("가", ["kiyeok + a", "left: kiyeok, right: a"]),
        ("각", ["kiyeok + a + kiyeok", "left: kiyeok, right: a, bottom: kiyeok"]),
        ("오", ["ieung + o", "top: ieung, bottom: o"]),
        ("온", ["ieung + o + nieun", "top: ieung, middle: o, bottom: nieun"]),
        ("과", ["kiyeok + wa"]),  # below and on the right
        ("힣", ["hieuh + i + hieuh", "left: hieuh, right: i, bottom: hieuh"]),
    ],
)
def test_syllables_are_captioned_by_their_letters(syllable, captions):
    assert syllable_captions(ord(syllable)) == captions


@pytest.fixture(scope="module")
def glyphs():
    pictographs = [chr(code) for code in range(0x2600, 0x2680)]
    return [
        glyph(character) for character in ["A", "b", *"ΑΒΓΔαβγδΩωאבגד", *pictographs] if unicode_caption(ord(character))
    ]


def test_pairs_are_of_different_signs_and_half_of_them_of_one_kind(glyphs):
    signs = named_signs(glyphs)
    kind = {name: kind for kind, named in signs.items() for name in named}
    pairs = list(composed_pairs(signs, 300, 0))
    assert all(pair.first != pair.second for pair in pairs)
    alike = np.mean([kind[pair.first] == kind[pair.second] for pair in pairs])
    assert alike == pytest.approx(0.5 + 0.5 / 2, abs=0.08)  # of two kinds, half of the others are alike by chance
    assert np.mean([pair.layout == "⿰" for pair in pairs]) == pytest.approx(0.65, abs=0.08)
    again = next(iter(composed_pairs(signs, 1, 0)))
    np.testing.assert_array_equal(again.image, pairs[0].image)


def test_the_corpus_has_each_picture_once_and_each_kind_its_share(glyphs, tmp_path):
    words = {name: [f"like {name}", f"near {name}"] for name in list(named_signs(glyphs)["symbols"])[::2]}
    table = build_pocket_corpus(tmp_path, glyphs, words, {"frequent pairs": 60, "pairs": 120})
    stored, images = load_captioned(tmp_path)
    assert len(stored) == len(table) and set(table["image"]) == set(range(len(images)))
    kinds = table.groupby("kind")["image"].agg(["size", "nunique"])
    assert (kinds["size"] == kinds["nunique"]).all()
    meaning = table[table["kind"] == "meaning"]
    assert len(meaning) and set(meaning["first"]) <= words.keys()
    for row in meaning.itertuples():
        said = {word for caption in row.captions.split("|") for word in caption.split(", ")}
        assert said <= set(words[row.first])
    weight = weights_of_kinds(SHARES, table)
    assert (weight[table["held_out"]] == 0).all()
    shares = table.assign(weight=weight).groupby("kind")["weight"].sum()
    assert shares.to_dict() == pytest.approx({kind: SHARES[kind] for kind in shares.index})
