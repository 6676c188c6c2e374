"""Outlines: hand-worked squares and discs, directions of holes, sizes, and paths that say what was traced."""

import re
from xml.etree import ElementTree

import numpy as np
import pytest

from kanjilab.data.rendering import default_font, draw_font
from kanjilab.export.vectors import SVG_BYTES_MAX, glyph_outline, path_of, segments, signed_area, svg_of, trace

GLYPHS = "国龍木口一鬱鑿"


def picture(character):
    return np.asarray(draw_font(character, default_font()))


def square(hole=0):
    image = np.full((128, 128), 255, np.uint8)
    image[32:96, 32:96] = 0
    if hole:
        image[64 - hole // 2 : 64 + hole // 2, 64 - hole // 2 : 64 + hole // 2] = 255
    return image


def flattened(contour, steps=8):
    """The contour as a polygon (n, 2)."""
    start, rest = segments(contour)
    points = [np.array(start)]
    for found in rest:
        ends = [points[-1], *(np.array(point) for point in found)]
        for share in np.linspace(0, 1, steps + 1)[1:]:
            level = ends
            while len(level) > 1:
                level = [(1 - share) * a + share * b for a, b in zip(level, level[1:], strict=False)]
            points.append(level[0])
    return np.stack(points)


def area(outline):
    """Of the ink: holes run the other way and count as negative."""
    return sum(signed_area(flattened(contour)) for contour in outline)


def test_areas_are_signed_by_direction():
    unit = np.array([[0, 0], [1, 0], [1, 1], [0, 1]], float)  # to the right, then down: clockwise
    assert signed_area(unit) == 1 and signed_area(unit[::-1]) == -1


def test_a_square_is_its_four_corners():
    (contour,) = trace(square())
    x, y = flattened(contour).T
    assert np.allclose([x.min(), y.min(), x.max(), y.max()], [32, 32, 96, 96], atol=0.3)
    assert area(trace(square())) == pytest.approx(64 * 64, rel=0.01)


def test_a_hole_runs_the_other_way():
    outline = trace(square(hole=32))
    assert sorted(np.sign([signed_area(flattened(contour)) for contour in outline])) == [-1, 1]
    assert area(outline) == pytest.approx(64 * 64 - 32 * 32, rel=0.01)


def test_an_island_in_a_hole_runs_as_the_ink():
    image = square(hole=40)
    image[56:72, 56:72] = 0
    assert area(trace(image)) == pytest.approx(64 * 64 - 40 * 40 + 16 * 16, rel=0.01)


def test_a_disc_stays_round():
    down, across = np.mgrid[:128, :128] + 0.5
    distance = np.hypot(down - 64, across - 64)
    disc = np.clip(255 * (distance - 39.5), 0, 255).astype(np.uint8)
    (contour,) = trace(disc)
    radius = np.hypot(*(flattened(contour) - 64).T)
    assert radius.min() > 39.4 and radius.max() < 40.6


@pytest.mark.parametrize("character", GLYPHS)
def test_a_glyph_is_one_short_path(character):
    svg = svg_of(glyph_outline(picture(character)), character)
    assert len(svg.encode()) <= SVG_BYTES_MAX
    root = ElementTree.fromstring(svg)
    assert root.get("viewBox") == "0 0 128 128" and root[0].text == character
    (path,) = (node for node in root if node.tag.endswith("path"))
    assert path.get("fill-rule") == "evenodd" and set(re.findall("[A-Za-z]", path.get("d"))) <= set("Mlqz")


@pytest.mark.parametrize("character", GLYPHS[:5])
def test_the_ink_keeps_its_area(character):
    image = picture(character)
    ink = (255 - image.astype(float)).sum() / 255
    assert area(glyph_outline(image)) == pytest.approx(ink, rel=0.03)


def test_a_path_says_what_its_contour_is():
    corner, curve = (0.0, 0.0, True), (10.0, 0.0, False)
    contour = (corner, curve, (10.0, 10.0, True), (0.0, 10.5, True))
    assert path_of((contour,)) == "M0 0q10 0 10 10l-10 .5l0-10.5z"
    # Without a point on it, a contour of controls goes through the middles between them.
    circle = ((0.0, 0.0, False), (4.0, 0.0, False), (4.0, 4.0, False), (0.0, 4.0, False))
    assert path_of((circle,)) == "M0 2q0-2 2-2q2 0 2 2q0 2-2 2q-2 0-2-2z"


def test_titles_are_escaped():
    assert "<title>&lt;b&gt; &amp; c</title>" in svg_of(trace(square()), "<b> & c")


def test_a_blank_picture_has_no_outline():
    assert trace(np.full((128, 128), 255, np.uint8)) == ()


def test_what_is_no_glyph_is_refused():
    with pytest.raises(ValueError, match=r"expected one uint8 image \(H, W\), got float64 \(2, 2\)"):
        trace(np.zeros((2, 2)))
    noise = np.random.default_rng(0).integers(0, 256, (128, 128), dtype=np.uint8)
    with pytest.raises(ValueError, match="that can be drawn in 4096 bytes, got [0-9]+ contours"):
        glyph_outline(noise)
