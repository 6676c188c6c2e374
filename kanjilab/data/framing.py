"""Framing: glyphs of fonts, photos and drawings brought to one size, so that a model sees them alike."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from kanjilab.core.images import SIZE_PX

INK_MAX = 128  # a pixel darker than this is ink
MEDIAN_PX = 100  # the median, over a style, of a glyph's longer side
LIMIT_PX = 120  # of any glyph's longer side

Gray = NDArray[np.uint8]  # (H, W), 0 ink to 255 paper


def ink_box(image: Gray) -> tuple[int, int, int, int]:
    """Left, top, right and bottom of the ink, in px; all zero without ink."""
    rows, columns = np.flatnonzero((image < INK_MAX).any(axis=1)), np.flatnonzero((image < INK_MAX).any(axis=0))
    if not len(rows):
        return 0, 0, 0, 0
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def frame_scale(images: Sequence[Gray]) -> float:
    """The one scale at which the longer sides of a style's glyphs have the median `MEDIAN_PX`.

    Args:
        images: glyphs of one style, all in the same scale; those without ink do not count.
    """
    boxes = [ink_box(image) for image in images]
    sides = [max(right - left, bottom - top) for left, top, right, bottom in boxes if right]
    return MEDIAN_PX / float(np.median(sides)) if sides else 1.0


def frame_glyphs(images: Sequence[Gray], scale: float | None = None) -> Gray:
    """Glyphs of one style, centred by their ink, in a scale that they share.

    A small sign stays small beside a large one, and a bold hand bold. A glyph that would be larger than `LIMIT_PX`
    is made smaller by itself.

    Args:
        images: of any size.
        scale: of the style; that of these images by default.
    Returns:
        (N, 128, 128) uint8.
    """
    scale = frame_scale(images) if scale is None else scale
    return np.stack([_framed(image, scale) for image in images])


def _framed(image: Gray, scale: float) -> Gray:
    left, top, right, bottom = ink_box(image)
    framed = np.full((SIZE_PX, SIZE_PX), 255, np.uint8)
    if not right:
        return framed
    scale = min(scale, LIMIT_PX / max(right - left, bottom - top))
    reach = SIZE_PX / 2 / scale
    center = (left + right) / 2, (top + bottom) / 2
    box = (center[0] - reach, center[1] - reach, center[0] + reach, center[1] + reach)
    margin = int(np.ceil(max(0, -min(box), box[2] - image.shape[1], box[3] - image.shape[0]))) + 1
    padded = Image.fromarray(np.pad(image, margin, constant_values=255))
    shifted: Any = tuple(side + margin for side in box)
    found = padded.resize((SIZE_PX, SIZE_PX), Image.Resampling.BICUBIC, shifted)
    return np.asarray(found)
