"""Distances of written glyphs, on cases worked out by hand."""

import numpy as np
from numpy.testing import assert_allclose

from kanjilab.evaluation.script_style import (
    fitted_radius,
    inked,
    mean_absolute_difference,
    root_mean_square_difference,
    structural_similarity,
)

LINE = np.zeros((1, 40, 40), bool)
LINE[0, 20, 8:32] = True


def bar(half):
    """A horizontal stroke of 2 half + 1 px."""
    image = np.full((1, 40, 40), 255, np.uint8)
    image[0, 20 - half : 21 + half, 8:32] = 0
    return image


def test_the_share_of_pixels_that_differ():
    blank = np.full((1, 40, 40), 255, np.uint8)
    assert_allclose(mean_absolute_difference(bar(2), blank), 5 * 24 / 1600)
    assert mean_absolute_difference(bar(2), bar(2)).item() == 0
    assert_allclose(root_mean_square_difference(bar(2), blank), (5 * 24 / 1600) ** 0.5)


def test_similarity_is_one_for_the_same_and_that_of_the_formula_for_even_grays():
    assert_allclose(structural_similarity(bar(2), bar(2)), 1)
    gray, black = np.full((1, 20, 20), 100, np.uint8), np.zeros((1, 20, 20), np.uint8)
    constant = (0.01 * 255) ** 2  # means 100 and 0, no variance: C1 / (100 ** 2 + C1)
    assert_allclose(structural_similarity(gray, black), constant / (100**2 + constant), rtol=1e-6)


def test_an_inked_line_is_a_stroke_of_that_width():
    image = inked(LINE, 3.0)[0]
    assert [int(value) for value in image[14:27, 20]] == [255] * 3 + [128] + [0] * 5 + [128] + [255] * 3
    assert fitted_radius(LINE, bar(2)) == 2.5 and fitted_radius(LINE, bar(4)) == 4.5
