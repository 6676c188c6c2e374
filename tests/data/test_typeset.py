"""Typesetter: pairs that the list lacks, cuts that lose no ink, boxes that hold their parts."""

from collections import Counter

import numpy as np
import pytest

from kanjilab.core.rng import counted_rng
from kanjilab.data.components import load_components
from kanjilab.data.kanjivg import KanjiVG, local_kanjivg
from kanjilab.data.rendering import default_font, draw_font
from kanjilab.data.typeset import SLOTS_OF_LAYOUT, Pair, Typesetter, _cut_glyph, novel_pairs

components = load_components()
needs_kanjivg = pytest.mark.skipif(local_kanjivg() is None, reason="KanjiVG is not on this machine")


@pytest.fixture(scope="module")
def pairs() -> list[Pair]:
    return novel_pairs(components)


@pytest.fixture(scope="module")
def typesetter() -> Typesetter:
    return Typesetter(components, default_font())


def test_no_novel_pair_is_in_the_list(pairs):
    listed = {
        frozenset(part.element for part in found.outer)
        for found in components.decompositions.values()
        if len(found.outer) == 2
    }
    assert len(pairs) > 2000
    assert not [pair for pair in pairs if frozenset((pair.first, pair.second)) in listed]
    assert Pair("⿰", "人", "木") not in pairs


def test_every_part_of_a_pair_is_attested_in_its_slot(pairs):
    outer = [{(part.element, part.slot) for part in listed.outer} for listed in components.decompositions.values()]
    attested = Counter(place for places in outer for place in places)
    for pair in pairs:
        first_slot, second_slot = SLOTS_OF_LAYOUT[pair.layout]
        assert attested[pair.first, first_slot] >= 5
        assert attested[pair.second, second_slot] >= 2


def test_a_pair_of_parts_is_on_one_side_whatever_its_order_and_layout(pairs):
    sides: dict[frozenset[str], set[bool]] = {}
    for pair in pairs:
        sides.setdefault(frozenset((pair.first, pair.second)), set()).add(pair.for_tests)
    assert all(len(found) == 1 for found in sides.values())
    share = np.mean([pair.for_tests for pair in pairs])
    assert 0.15 < share < 0.25


@pytest.mark.parametrize(
    ("character", "pair"),
    [("相", Pair("⿰", "木", "目")), ("花", Pair("⿱", "艸", "化")), ("国", Pair("⿴", "囗", "玉"))],
)
def test_a_real_pair_set_from_its_only_donor_is_that_character(character, pair):
    made = Typesetter(components, default_font(), allowed={character}).compose(pair, counted_rng(0, "typeset"))
    assert made is not None and made.donors == (character, character)
    real = np.asarray(draw_font(character, default_font()), np.float64)
    assert np.corrcoef(real.ravel(), made.image.ravel())[0, 1] > 0.9


@pytest.mark.parametrize("character", ["休", "花", "国", "病", "道"])
def test_a_cut_loses_and_invents_no_ink(character):
    listed = components.of(character)
    cut = _cut_glyph(character, listed, default_font())
    assert cut is not None
    whole = (255 - np.asarray(draw_font(character, default_font()))) > 100
    assert sum(int((piece.ink > 100).sum()) for piece in cut) == whole.sum()


def test_parts_that_touch_are_not_cut():
    assert components.of("杏").layout == "⿱"
    assert _cut_glyph("杏", components.of("杏"), default_font()) is None  # the tree touches the mouth


def test_boxes_hold_the_ink_and_do_not_meet(typesetter, pairs):
    rng = counted_rng(1, "typeset")
    side_by_side = [pair for pair in pairs if pair.layout == "⿰"]
    made = [typesetter.compose(side_by_side[rng.integers(len(side_by_side))], rng) for _ in range(20)]
    found = [one for one in made if one is not None]
    assert len(found) >= 5
    for one in found:
        first, second = one.parts[:2]
        assert (first.element, second.element) == (one.pair.first, one.pair.second)
        assert first.box[2] < second.box[0]
        outside = one.image < 100
        for part in (first, second):
            left, top, right, bottom = (round(value * 128) for value in part.box)
            outside[max(0, top - 1) : bottom + 1, max(0, left - 1) : right + 1] = False
        assert not outside.any()
        assert min(first.box[:2]) >= 0 and max(second.box[2:]) <= 1


def test_nested_parts_travel_with_theirs():
    pair = Pair("⿰", "言", "木")
    only = Typesetter(components, default_font(), allowed={"休", "訓"})
    made = only.compose(pair, counted_rng(0, "typeset"))
    assert made is not None
    mouth = next(part for part in made.parts if part.element == "口")
    speech = made.parts[0]
    assert mouth.nested and speech.box[0] <= mouth.box[0] and mouth.box[2] <= speech.box[2] + 1e-9
    assert mouth.box[1] > (speech.box[1] + speech.box[3]) / 2  # 口 is the lower half of 言


def test_no_donor_no_glyph(typesetter):
    assert (
        Typesetter(components, default_font(), allowed=set()).compose(Pair("⿰", "人", "木"), counted_rng(0, "typeset"))
        is None
    )
    assert typesetter.compose(Pair("⿰", "艸", "木"), counted_rng(0, "typeset")) is None  # grass is never on the left


def test_same_draw_same_glyph(typesetter):
    pair = Pair("⿰", "魚", "白")
    first, second = (typesetter.compose(pair, counted_rng(3, "typeset")) for _ in range(2))
    assert first is not None and second is not None
    assert np.array_equal(first.image, second.image) and first.donors == second.donors


@needs_kanjivg
def test_strokes_of_a_pair_from_one_donor_are_its_strokes():
    kanjivg = KanjiVG.open()
    made = Typesetter(components, kanjivg, allowed={"国"}).compose(Pair("⿴", "囗", "玉"), counted_rng(0, "typeset"))
    assert made is not None
    assert made.parts[0].box == pytest.approx(components.of("国").outer[0].box, abs=2e-3)
    assert (made.image < 128).mean() == pytest.approx(0.2, abs=0.1)


@needs_kanjivg
def test_wider_strokes_leave_more_ink():
    typesetter = Typesetter(components, KanjiVG.open())
    pair = Pair("⿱", "竹", "金")
    thin, wide = (typesetter.compose(pair, counted_rng(0, "typeset"), width) for width in (3.0, 8.0))
    assert thin is not None and wide is not None
    assert (wide.image < 128).sum() > 1.6 * (thin.image < 128).sum()
