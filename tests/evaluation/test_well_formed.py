"""Measures of glyphs against shapes worked out by hand, and bounds against real glyphs and negatives."""

import json

import numpy as np
import pandas as pd
import pytest
from scipy import ndimage

from kanjilab.core.rng import counted_rng
from kanjilab.data.rendering import default_font, draw_font, draws
from kanjilab.data.skeleton import thin
from kanjilab.evaluation.well_formed import MEASURES, Bounds, measure

BAR = ["........."] + [".#######."] * 3 + ["........."]
BAR_LINE = [".........", ".........", "..#####..", ".........", "........."]
CROSS = ["..........."] + ["....###...."] * 3 + [".#########."] * 3 + ["....###...."] * 3 + ["..........."]
CROSS_LINE = ["..........."] * 2 + [".....#....."] * 3 + ["..#######.."] + [".....#....."] * 3 + ["..........."] * 2
SQUARE = ["........."] + [".#######."] * 7 + ["........."]
SQUARE_LINE = ["........."] * 4 + ["....#...."] + ["........."] * 4
DIAGONAL = ["#....", ".#...", "..#..", "...#.", "....#"]  # thin already: nothing goes
TEE = ["..........."] + [".#########."] * 3 + ["....###...."] * 5
TEE_LINE = ["..........."] * 2 + ["..###.###.."] + [".....#....."] * 5 + ["..........."]


def picture(rows: list[str]) -> np.ndarray:
    """(1, H, W) bool."""
    return np.array([[sign == "#" for sign in row] for row in rows])[None]


def image(rows: list[str]) -> np.ndarray:
    """(1, H, W) uint8, black on white."""
    return np.where(picture(rows), 0, 255).astype(np.uint8)


def glyphs(characters: str) -> np.ndarray:
    return np.stack([np.asarray(draw_font(character, default_font())) for character in characters])


@pytest.fixture(scope="module")
def real() -> np.ndarray:
    """Every 15th kanji of 一 to 龠: some 640 glyphs that the default font draws."""
    return glyphs("".join(chr(code) for code in range(0x4E00, 0x9FA0, 15) if draws(chr(code), default_font())))


# ---------------------------------------------------------------- thinning


@pytest.mark.parametrize(
    ("shape", "line"),
    [(BAR, BAR_LINE), (CROSS, CROSS_LINE), (SQUARE, SQUARE_LINE), (DIAGONAL, DIAGONAL), (TEE, TEE_LINE)],
    ids=["bar", "cross", "square", "diagonal", "tee"],
)
def test_shapes_thin_to_the_lines_expected(shape, line):
    np.testing.assert_array_equal(thin(picture(shape)), picture(line))


def test_lines_are_within_the_ink_keep_its_pieces_and_holes_and_thin_no_further(real):
    ink = real[:200] < 128
    lines = thin(ink)
    assert not (lines & ~ink).any()
    np.testing.assert_array_equal(thin(lines), lines)
    for before, after in zip(ink[::20], lines[::20], strict=True):
        assert ndimage.label(before, np.ones((3, 3)))[1] == ndimage.label(after, np.ones((3, 3)))[1]
        assert ndimage.label(np.pad(~before, 1))[1] == ndimage.label(np.pad(~after, 1))[1]
    # Guo and Hall's lines are one pixel wide but for single corners: no block of 2 x 2 outside crossings.
    blocks = lines[:, :-1, :-1] & lines[:, 1:, :-1] & lines[:, :-1, 1:] & lines[:, 1:, 1:]
    assert blocks.sum() / lines.sum() < 0.01


def test_a_glyph_thins_alike_alone_and_among_others(real):
    together = thin(real[:70] < 128)
    np.testing.assert_array_equal(thin(real[66:67] < 128)[0], together[66])


# ---------------------------------------------------------------- measures


def test_measures_of_a_bar():
    found = measure(image(BAR)).iloc[0]
    # 9 x 5 px, 21 of 45 inked; the middle line has 5 pixels, so 4 steps; margins 1 px; width 3 px.
    expected = {"complexity": 4 / 9, "ink": 21 / 45, "margin_least": 1 / 9, "margin_most": 1 / 9, "gray": 0}
    expected |= {"width": 3 / 9, "width_spread": 0, "ends": 2, "spurs": 0, "junctions": 0, "pieces": 1}
    assert found.to_dict() == pytest.approx(expected, abs=1e-6)


def test_ends_junctions_and_length_of_a_cross():
    found = measure(image(CROSS)).iloc[0]
    # Arms of 3 steps up, down, left and right of one crossing, on 11 px.
    assert (found["ends"], found["junctions"], found["spurs"], found["pieces"]) == (4, 1, 0, 1)
    assert found["complexity"] == pytest.approx(12 / 11)


def test_a_step_over_a_corner_counts_the_root_of_two():
    assert measure(image(DIAGONAL))["complexity"][0] == pytest.approx(4 * 2**0.5 / 5)


def test_a_ring_has_no_end_and_a_dot_no_length():
    ring = ["#########"] * 3 + ["###...###"] * 3 + ["#########"] * 3
    found = measure(image(ring)).iloc[0]
    assert (found["ends"], found["junctions"], found["pieces"]) == (0, 0, 1)
    assert measure(image(SQUARE))["complexity"][0] == 0


def test_a_short_branch_is_a_spur_and_a_long_one_is_not():
    lines = np.full((2, 64, 64), 255, np.uint8)
    lines[:, 45:60, 4:60] = 0  # a thick stroke, so that half of the mean width is more than 2 px
    lines[:, 32, 4:60] = 0
    lines[0, 30:32, 30] = 0  # 2 px off a line of 1 px
    lines[1, 10:32, 30] = 0  # 22 px
    found = measure(lines)
    assert found["junctions"].tolist() == [1, 1]
    assert found["spurs"].tolist() == [1, 0]


def test_gray_counts_what_is_neither_paper_nor_stroke():
    levels = np.full((1, 10, 10), 255, np.uint8)
    levels[0, 0, :4] = [0, 40, 128, 215]  # ink 1, 0.84, 0.5 and 0.16: one of a hundred lies between
    assert measure(levels)["gray"][0] == pytest.approx(0.01)


def test_pieces_hold_together_over_corners_and_not_over_gaps():
    assert measure(image(["##....", "..##..", "......", "....##", "......", "......"]))["pieces"][0] == 2


def test_blank_and_black_pictures_are_measured_too():
    found = measure(np.stack([np.full((16, 16), 255, np.uint8), np.zeros((16, 16), np.uint8)]))
    assert found["ink"].tolist() == [0, 1] and found["margin_most"].tolist() == [1, 0]
    assert found.loc[0, ["complexity", "width", "ends", "pieces"]].tolist() == [0, 0, 0, 0]
    assert np.isfinite(found.to_numpy()).all()
    assert len(measure(np.zeros((0, 16, 16), np.uint8))) == 0


def test_measures_do_not_depend_on_the_company(real):
    pd.testing.assert_frame_equal(measure(real[:70]).iloc[[66]].reset_index(drop=True), measure(real[66:67]))


def test_turned_glyphs_have_the_same_ink_pieces_and_nearly_the_same_length(real):
    upright, turned = measure(real[:50]), measure(np.ascontiguousarray(real[:50].transpose(0, 2, 1)))
    for name in ("ink", "gray", "pieces", "margin_least", "margin_most"):
        np.testing.assert_allclose(upright[name], turned[name], atol=1e-6)
    assert np.abs(upright["complexity"] / turned["complexity"] - 1).max() < 0.15


def test_more_strokes_are_more_complex():
    assert measure(glyphs("一十木林森鬱"))["complexity"].is_monotonic_increasing


@pytest.mark.parametrize("images", [np.zeros((128, 128), np.uint8), np.zeros((1, 128, 128), np.float32)])
def test_images_of_another_kind_are_refused(images):
    with pytest.raises(ValueError, match=r"expected uint8 images \(N, H, W\)"):
        measure(images)


# ---------------------------------------------------------------- bounds


@pytest.fixture(scope="module")
def bounds(real) -> Bounds:
    return Bounds.fit(measure(real[np.arange(len(real)) % 3 > 0]), real.shape[1], bins=4)


def test_bounds_are_the_quantiles_of_the_glyphs_of_like_complexity():
    # Two groups of 100: ink 0 ... 99 at complexity 1, and 1000 ... 1099 at complexity 2.
    table = pd.DataFrame({name: np.zeros(200) for name in MEASURES})
    table["complexity"] = np.repeat([1.0, 2.0], 100)
    table["ink"] = np.concatenate([np.arange(100), np.arange(1000, 1100)])
    fitted = Bounds.fit(table, 128, bins=2)
    assert fitted.complexity == (1, 2) and fitted.glyphs == 200
    assert fitted.low["ink"] == pytest.approx((0.99, 1000.99)) and fitted.high["ink"] == pytest.approx((98.01, 1098.01))
    asked = pd.DataFrame({name: np.zeros(4) for name in MEASURES}).assign(complexity=[1, 1, 1.5, 9])
    asked["ink"] = [50, 98.01 + 97.02 / 2, 520, 1050]  # inside; half a range above; in between; beyond the last knot
    assert fitted.within(asked)["ink"].tolist() == [True, False, True, True]
    assert fitted.excess(asked)["ink"].tolist() == pytest.approx([0, 0.5, 0, 0])
    assert fitted.within(asked, slack=0.51)["ink"].all()
    assert not fitted.within(asked)["complexity"][3]


def test_real_glyphs_never_measured_are_within(bounds, real):
    held_out = measure(real[::3])
    inside = bounds.within(held_out)
    assert list(inside) == list(MEASURES)
    assert inside.mean().min() > 0.93  # a group has but 106 glyphs: its 1% is its second lowest
    assert bounds.within(held_out, slack=0.25).all(axis=1).mean() > 0.95


def test_negatives_are_outside(bounds, real):
    rng = counted_rng(0, "resampling")
    noise = rng.integers(0, 256, (40, 128, 128), dtype=np.uint8)
    blurred = np.stack([ndimage.gaussian_filter(glyph.astype(float), 3).astype(np.uint8) for glyph in real[:40]])
    mixed = (real[:40] // 2 + noise // 2).astype(np.uint8)
    blank = np.full((1, 128, 128), 255, np.uint8)
    for negatives in (noise, blurred, mixed, blank, 0 * blank):
        assert bounds.within(measure(negatives), slack=0.25).all(axis=1).mean() <= 0.05


def test_bounds_survive_the_way_through_json(bounds, real):
    restored = Bounds.from_json(json.loads(json.dumps(bounds.to_json())))
    assert restored == bounds
    pd.testing.assert_frame_equal(restored.excess(measure(real[:9])), bounds.excess(measure(real[:9])))


def test_too_few_glyphs_are_refused(real):
    with pytest.raises(ValueError, match="at least 240 glyphs for 12 groups, got 30"):
        Bounds.fit(measure(real[:30]), 128)
