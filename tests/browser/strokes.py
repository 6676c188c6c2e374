"""Strokes of a pointer on a drawing surface, and whether what was written follows them."""

import numpy as np
from playwright.sync_api import Locator
from scipy.ndimage import distance_transform_edt

from kanjilab.core.images import SIZE_PX

NEAR_PX, INKED_LEAST = 3, 0.8  # in the four styles all of the lines, of one stroke alone about 0.3
TREE = [[(22, 44), (106, 42)], [(64, 16), (65, 114)], [(62, 46), (44, 78), (20, 98)], [(67, 46), (84, 76), (110, 98)]]


def draw(canvas: Locator, strokes: list) -> None:
    """Real pointer events: down, moves, up."""
    canvas.hover()  # when it no longer moves
    box, mouse = canvas.bounding_box(), canvas.page.mouse
    assert box
    for stroke in strokes:
        points = [(box["x"] + x / SIZE_PX * box["width"], box["y"] + y / SIZE_PX * box["height"]) for x, y in stroke]
        mouse.move(*points[0])
        mouse.down()
        for point in points[1:]:
            mouse.move(*point, steps=4)
        mouse.up()


def inked(glyphs: list[np.ndarray], lines: np.ndarray) -> list[float]:
    """The share of the lines' pixels that have ink nearby, of each glyph."""
    return [float((distance_transform_edt(image >= 128)[lines] <= NEAR_PX).mean()) for image in glyphs]
