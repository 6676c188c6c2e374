"""Withheld characters: which leave the training set, what is asked, and how answers are ranked, by hand."""

from collections import Counter

import numpy as np
import pandas as pd
import pytest

from kanjilab.data.build import build_dataset
from kanjilab.data.components import Components, Decomposition, Part, load_components
from kanjilab.data.dictionary import load_characters
from kanjilab.data.rendering import default_font, drawable_characters
from kanjilab.data.selection import EveryCharacter, Left16
from kanjilab.experiments.reinvention import (
    Item,
    Without,
    _Families,
    choose_items,
    choose_novel_items,
    part_glosses,
    rank_characters,
    reinvention_summary,
    score_items,
    two_parts,
    word_order_consistency,
)

LEFT, RIGHT = (0.0, 0.0, 0.5, 1.0), (0.5, 0.0, 1.0, 1.0)


def beside(character: str, first: str, second: str, nested: str = "") -> Decomposition:
    """A character of two parts side by side, one stroke each; a third part nested in the second."""
    parts = [Part(character, (0.0, 0.0, 1.0, 1.0), "whole", False, (0, 1)), Part(first, LEFT, "left", False, (0,))]
    parts += [Part(second, RIGHT, "right", False, (1,))]
    parts += [Part(nested, RIGHT, "", True, (1,))] if nested else []
    return Decomposition("⿰", tuple(parts))


def toy() -> tuple[pd.DataFrame, Components]:
    """休 and 沐 share a part each with six others; 烋 contains 休; 伏 is listed as its variant; 憩 means the same."""
    listed = {"休": beside("休", "人", "木"), "沐": beside("沐", "水", "木")}
    listed |= {c: beside(c, "人", other) for c, other in zip("他付代仕件位", "也寸弋士牛立", strict=True)}
    listed |= {c: beside(c, other, "木") for c, other in zip("林杣柚枡柏柿", "甲乙丙丁戊己", strict=True)}
    listed |= {c: beside(c, "水", other) for c, other in zip("江汁汗池注活", "工十干也主舌", strict=True)}
    listed |= {
        "烋": beside("烋", "火", "丙", nested="休"),
        "伏": beside("伏", "人", "犬"),
        "憩": beside("憩", "舌", "息"),
    }
    meanings = {"休": ("rest", "day off"), "憩": ("recess", "Rest"), "沐": ("wash",), "人": ("human",)}
    meanings |= {"水": ("water",), "木": ("wood",)}
    rows = [(c, meanings.get(c, (f"meaning {c}",)), ("伏",) if c == "休" else ()) for c in [*listed, *"人水木"]]
    table = pd.DataFrame(rows, columns=["character", "meanings", "variants"]).set_index("character")
    return table, Components(("人", "木", "水"), listed)


# ---------------------------------------------------------------- what is asked


def test_parts_have_the_names_of_the_left_forms_and_else_their_first_meaning():
    glosses = part_glosses(load_characters())
    assert [glosses[part] for part in "人水木手心日鳥"] == ["person", "water", "tree", "hand", "heart", "day", "bird"]
    assert "氵" not in glosses and max(len(gloss.split()) for gloss in glosses.values()) == 2


def test_two_parts_are_those_that_make_up_the_whole_in_the_order_of_their_slots():
    components = load_components()
    assert [part.element for part in two_parts("休", components)] == ["人", "木"]
    assert [part.element for part in two_parts("空", components)][1] == "工"
    assert two_parts("木", components) is None and two_parts("\u3042", components) is None


def test_a_prompt_names_the_parts_in_either_order():
    item = Item("休", "⿰", ("人", "木"), ("person", "tree"), "rest")
    assert (item.by_parts, item.by_parts_reversed) == ("person tree", "tree person")


# ---------------------------------------------------------------- what is withheld


def test_pair_variants_holders_and_containers_leave_together():
    table, components = toy()
    assert _Families(table, components).of("休") == ("休", *sorted("烋伏憩"))
    assert _Families(table, components).of("沐") == ("沐",)
    assert _Families(table, components).of("伏") == ("伏", "休", "烋")  # variants both ways, and what contains one


def test_the_same_pair_in_another_character_leaves_too():
    table, components = toy()
    doubled = Components(components.parts, {**components.decompositions, "杁": beside("杁", "木", "人")})
    assert "杁" in _Families(table, doubled).of("休")


def test_items_are_the_pairs_whose_parts_remain_in_sight():
    table, components = toy()
    everyone = set(components.decompositions)
    chosen = choose_items(table, components, everyone, count=10)
    assert {item.character for item in chosen} == {"休", "沐"}
    item = next(item for item in chosen if item.character == "休")
    assert (item.by_parts, item.meaning, item.parts, item.layout) == ("person tree", "rest", ("人", "木"), "⿰")
    # 木 is on the right of these two and of six others. Both may leave while five remain, one of them while the
    # other is among the five, and none where that leaves four.
    assert len(choose_items(table, components, everyone - set("林"), count=10)) == 2
    assert len(choose_items(table, components, everyone - set("林杣"), count=10)) == 1
    assert choose_items(table, components, everyone - set("林杣柚"), count=10) == []
    # 休 and 伏 leave together, and of the eight with 人 on the left then six remain, of seven five, of six four.
    assert {i.character for i in choose_items(table, components, everyone - set("他付"), count=10)} == {"沐"}
    assert len(choose_items(table, components, everyone, count=1)) == 1


@pytest.fixture(scope="module")
def everything() -> tuple[pd.DataFrame, Components, set[str]]:
    table = load_characters()
    captioned = table[table["meanings"].map(bool) & (table["jis_order"] < 9000).fillna(False)]
    return table, load_components(), set(EveryCharacter().select(captioned, set(captioned.index)).index)


def test_real_items_leave_no_trace_and_every_part_in_sight(everything):
    table, components, training = everything
    items = choose_items(table, components, training, count=300)
    assert len(items) == 300
    withheld = {character for item in items for character in item.withheld}
    left = training - withheld
    pairs_left = {frozenset(p.element for p in two) for c in left if (two := two_parts(c, components))}
    shown = Counter(
        place for c in left for place in {(p.element, p.slot) for p in components.of(c).parts if not p.nested}
    )
    elements_left = {p.element for c in left for p in components.of(c).parts if p.slot != "whole"}
    glosses_left = {gloss.casefold() for character in left for gloss in table.at[character, "meanings"]}
    for item in items:
        assert frozenset(item.parts) not in pairs_left
        assert item.character not in elements_left
        assert item.meaning.casefold() not in glosses_left
        for part in two_parts(item.character, components):
            assert shown[part.element, part.slot] >= 5
    prompts = [prompt for item in items for prompt in (item.by_parts, item.by_parts_reversed, item.meaning)]
    assert len(set(prompts)) == len(prompts)


def test_items_are_those_of_the_seed(everything):
    table, components, training = everything
    first = choose_items(table, components, training, count=30)
    assert choose_items(table, components, training, count=30) == first
    assert choose_items(table, components, training, count=30, seed=1) != first
    assert choose_items(table, components, training, count=40)[:30] == first


def test_novel_pairs_are_in_no_listed_character(everything):
    table, components, training = everything
    items = choose_novel_items(table, components, training, count=80)
    assert len(items) == 80 and len({frozenset(item.glosses) for item in items}) == 80
    listed = {frozenset(p.element for p in two) for c in components.decompositions if (two := two_parts(c, components))}
    for item in items:
        assert item.character == "" and item.withheld == () and frozenset(item.parts) not in listed
        assert len({item.by_parts, item.by_parts_reversed}) == 2


# ---------------------------------------------------------------- the training set


def test_a_rule_without_them_chooses_as_if_they_did_not_exist(tmp_path):
    characters, components = load_characters(), load_components()
    drawable = drawable_characters(
        [c for c in characters.index if characters.at[c, "radical"] in (85, 75)], default_font()
    )
    rows = characters.loc[characters["radical"].isin([85, 75])]
    item = Item("沐", "⿰", ("水", "木"), ("water", "tree"), "wash", _Families(characters, components).of("沐"))
    rule = Without.known(EveryCharacter(), item.withheld, characters, components)
    selected = rule.select(rows, drawable)
    full = EveryCharacter().select(rows, drawable)
    gone = set(full.index) - set(selected.index)
    assert {"沐", "濯", "洗"} <= gone  # itself, and two whose captions hold "wash"
    assert all(c in item.withheld or components.of(c) is None for c in gone)
    assert not set(rule.pool(rows, drawable).index) & gone
    assert Without.from_json(rule.to_json()) == rule
    few = rows.loc[list(selected.index[:12]) + ["沐"]]
    dataset = build_dataset(rule, tmp_path / "data", characters=few, held_out_share=0.2)
    assert set(dataset.table["character"]) == set(selected.index[:12])
    assert set(dataset.table["split"]) == {"train", "held_out"}


def test_any_rule_can_be_wrapped():
    rule = Without(Left16(80), ("休", "沐"))
    assert rule.to_json() == {"name": "without", "rule": {"name": "left16", "per_radical": 80}, "withheld": "休沐"}
    assert Without.from_json(rule.to_json()) == rule


# ---------------------------------------------------------------- scores


class FakeJudge:
    """Knows six characters; the first pixel of an image says in which order it finds them, and what it reads."""

    name = "A"
    characters = tuple("休沐他林江活")
    orders = {0: "休沐他林江活", 1: "沐他林江活休", 2: "他活江休林沐"}
    parts_read = {0: ("人", "木"), 1: ("水", "木"), 2: ("人",)}

    def nearest(self, images, k):
        order = [[self.characters.index(c) for c in self.orders[int(image[0, 0])]][:k] for image in images]
        return np.array(order).reshape(-1, k), np.zeros((len(images), k))

    def read(self, images):
        kinds = [int(image[0, 0]) for image in images]
        nearest = [self.orders[kind][0] for kind in kinds]
        parts = [self.parts_read[kind] for kind in kinds]
        return pd.DataFrame({"parts": parts, "nearest": nearest, "layout": ["⿰" if k < 2 else "" for k in kinds]})


def pictures(kinds) -> np.ndarray:
    """Images whose first pixel is their kind, in the shape of the kinds."""
    kinds = np.array(kinds)
    images = np.full((*kinds.shape, 8, 8), 255, np.uint8)
    images[..., 0, 0] = kinds
    return images


def test_ranks_counted_by_hand():
    _, components = toy()
    ranks = rank_characters(FakeJudge(), components, ["休", "休", "沐", ""], pictures([0, 2, 2, 1]))
    # 休 shares a part with 沐 (木), 他 (人) and 林 (木). In the third order 他 alone of these comes before it.
    # 沐 shares with 休 and 林 (木), 江 and 活 (水): all four come before it.
    np.testing.assert_array_equal(ranks, [[1, 1], [4, 2], [6, 5], [np.nan, np.nan]])


ITEMS = [Item("休", "⿰", ("人", "木"), ("person", "tree")), Item("沐", "⿰", ("水", "木"), ("water", "tree"))]


def test_scores_counted_by_hand():
    _, components = toy()
    table = score_items(FakeJudge(), components, ITEMS, pictures([[0, 2], [1, 0]]))
    assert table["rank"].tolist() == [1, 4, 1, 2] and table["nearest"].tolist() == ["休", "他", "沐", "休"]
    assert table["recall"].tolist() == [1, 0.5, 1, 0.5]
    assert table[["item", "image"]].to_numpy().tolist() == [[0, 0], [0, 1], [1, 0], [1, 1]]
    scores = reinvention_summary(table)["value"]
    assert scores["top-1, among all"] == 0.5 and scores["top-10, among all"] == 1
    assert scores["mean reciprocal rank, among all"] == pytest.approx((1 + 1 / 4 + 1 + 1 / 2) / 4)
    assert scores["mean reciprocal rank, sharing a part"] == pytest.approx((1 + 1 / 2 + 1 + 1 / 2) / 4)
    assert scores[["part-set recall", "both parts", "layout"]].tolist() == [0.75, 0.5, 0.75]
    bounds = reinvention_summary(table)
    assert (bounds["low"] <= bounds["value"]).all() and (bounds["value"] <= bounds["high"]).all()


def test_pairs_without_a_character_have_no_rank():
    _, components = toy()
    items = [Item("", "⿰", ("人", "木"), ("person", "tree"))]
    table = score_items(FakeJudge(), components, items, pictures([[0, 2]]))
    assert table["rank"].isna().all()
    assert list(reinvention_summary(table).index) == ["part-set recall", "both parts", "layout"]


def test_order_of_words_is_consistent_where_the_same_character_comes_out():
    _, components = toy()
    first = score_items(FakeJudge(), components, ITEMS, pictures([[0, 2], [1, 0]]))
    second = score_items(FakeJudge(), components, ITEMS, pictures([[0, 0], [1, 1]]))
    assert word_order_consistency(first, first).value == 1
    assert word_order_consistency(first, second).value == 0.5
    with pytest.raises(ValueError, match="same items and images"):
        word_order_consistency(first, second.iloc[:2])


def test_bad_questions_are_refused():
    _, components = toy()
    with pytest.raises(ValueError, match="of 2 items"):
        score_items(FakeJudge(), components, ITEMS, pictures([[0, 2]]))
    with pytest.raises(ValueError, match="judge A knows, got 付"):
        score_items(FakeJudge(), components, [Item("付", "⿰", ("人", "寸"), ("a", "b"))], pictures([[0]]))
