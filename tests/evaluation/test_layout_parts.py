"""Which parts make up a glyph, whether each stands by itself, and where listed characters have them."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from kanjilab.data.components import load_components
from kanjilab.data.rendering import default_font, draw_font
from kanjilab.evaluation.judges.framing import frame_glyphs
from kanjilab.evaluation.layout_parts import _wiped, attested_spans, erasure_scores, main_parts, slots_attested
from tests.toy_script import BLOB, BOTTOM, LEFT, RIGHT, TOP, WHOLE, ToyJudge, glyph


def reading(layout, parts, boxes):
    return SimpleNamespace(layout=layout, parts=parts, part_boxes=boxes, part_scores=(0.9,) * len(parts))


def test_main_parts_are_in_the_order_of_their_slots():
    inner = (0.3, 0.3, 0.7, 0.7)
    for layout, boxes, order in [
        ("⿰", (RIGHT, LEFT), [("木", "left"), ("人", "right")]),
        ("⿱", (TOP, BOTTOM), [("人", "top"), ("木", "bottom")]),
        ("⿴", (inner, WHOLE), [("木", "outside"), ("人", "inside")]),
        ("⿻", (inner, WHOLE), [("木", ""), ("人", "")]),
    ]:
        found = main_parts(reading(layout, ("人", "木", "口"), (*boxes, inner)))
        assert [(element, slot) for element, _, slot in found] == order
    assert main_parts(reading("⿰", ("人",), (LEFT,))) == ()


def test_main_parts_are_those_that_the_layout_sets_apart():
    upper, lower = (0.5, 0.0, 1.0, 0.5), (0.5, 0.5, 1.0, 1.0)
    found = main_parts(reading("⿰", ("口", "日", "水"), (upper, lower, LEFT)))
    assert [slot for _, _, slot in found] == ["left", "right"] and found[0][0] == "水"  # not the two on the right
    unsure = reading("⿰", ("口", "日", "水"), (upper, LEFT, LEFT))
    unsure.part_scores = (0.9, 0.5, 0.6)
    assert [element for element, _, _ in main_parts(unsure)] == ["水", "口"]


def test_in_a_frame_the_largest_part_is_outside():
    upper, lower = (0.4, 0.3, 0.8, 0.6), (0.4, 0.6, 0.8, 0.9)
    found = main_parts(reading("⿸", ("女", "禾", "疒"), (lower, upper, (0.0, 0.0, 0.9, 1.0))))
    assert found[0][0] == "疒" and [slot for _, _, slot in found] == ["outside", "inside"]


def test_parts_are_attested_where_they_or_what_holds_them_are():
    spans = attested_spans(load_components())
    assert spans["人", "left"] > 0.9 and spans["艸", "top"] > 0.9
    assert 0 < spans["艸", "left"] < 0.5  # only as a piece, as in 勤
    assert ("竹", "left") not in spans and spans["竹", "right"] < 0.5 < 0.9 < spans["竹", "top"]


def test_a_piece_may_be_where_the_whole_part_may_not():
    spans = {("人", "left"): 1.0, ("艸", "right"): 0.3}
    piece = reading("⿰", ("人", "艸"), (LEFT, (0.5, 0.0, 1.0, 0.5)))
    assert slots_attested(piece, spans)
    assert not slots_attested(reading("⿰", ("人", "艸"), (LEFT, RIGHT)), spans)
    assert not slots_attested(reading("⿰", ("人", "木"), (LEFT, RIGHT)), spans)
    assert slots_attested(reading("⿻", ("人", "木"), (LEFT, RIGHT)), spans)


def test_erasing_separates_two_parts_from_two_names():
    images = np.stack([glyph("⿰", "人", "木"), glyph("⿱", "火", "木"), BLOB, glyph("⿻", "水"), 255 - BLOB])
    scores = erasure_scores(ToyJudge(), images, ToyJudge().read(images))
    # Two parts apart: wiping one takes its odds from a million to one in a million, and leaves the other's. One blob:
    # both names go together. Fewer than two parts have no score.
    sure = 2 * np.log(1e6)
    np.testing.assert_allclose(scores, [sure, sure, 0, np.nan, np.nan], rtol=1e-5)


def test_what_is_left_keeps_its_size_and_place():
    image = np.asarray(draw_font("休", default_font()))
    wiped = _wiped(image, LEFT, RIGHT)
    assert (wiped[16:112, 14:58] == 255).all() and (wiped[:, 70:] <= image[:, 70:]).all()
    np.testing.assert_allclose(frame_glyphs(wiped[None])[1], frame_glyphs(image[None])[1], atol=3)


class FrameJudge:
    """囗 is ink along the rim, 木 is ink in the middle."""

    parts = ("囗", "木")

    def part_probabilities(self, images):
        ink = images < 128
        rim = ink.copy()
        rim[:, 30:98, 30:98] = False
        middle = ink[:, 30:98, 30:98].sum(axis=(1, 2))
        return np.stack([rim.sum(axis=(1, 2)) > 500, middle > 500], axis=1).astype(float)


def test_what_is_inside_a_frame_is_not_wiped_with_it():
    image = np.full((1, 128, 128), 255, np.uint8)
    image[:, 4:124, 4:124], image[:, 20:108, 20:108] = 0, 255
    image[:, 36:92, 36:92] = 0
    inner = (0.25, 0.25, 0.75, 0.75)
    table = pd.DataFrame([{"parts": ("囗", "木"), "part_boxes": (WHOLE, inner), "part_scores": (1, 1), "layout": "⿴"}])
    assert erasure_scores(FrameJudge(), image, table)[0] == pytest.approx(2 * np.log(1e6), rel=1e-5)
