"""What a judge looks at: pictures checked and drawn, and each glyph cut out of its picture by its ink."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from kanjilab.data.components import Box
from kanjilab.data.rendering import GlyphError, draw_font

SIZE_PX = 64  # a glyph is cut out by its ink and scaled to this
DARK_MIN = 96  # of 255: a pixel that counts as ink where the frame is sought
INK_SHARE_MIN = 0.002  # less of it is a blank picture
SPECK_SHARE = 0.002  # of the ink, left outside on each side, so that a stray dot does not move the frame
SHORT_SIDE_MIN = 0.6  # of the frame's longer side, so that 一 stays flat
MARGIN = 0.05  # of the frame, white around the ink

Images = NDArray[np.uint8]  # (N, H, W), 0 ink to 255 paper


def require_glyphs(images: Images) -> Images:
    """The same images, (N, H, W); refused if they are anything but that.

    Raises:
        ValueError: a wrong shape or type.
    """
    images = np.asarray(images)
    if images.ndim != 3 or images.dtype != np.uint8:
        raise ValueError(f"expected uint8 images (N, H, W), got {images.dtype} {images.shape}")
    return images


def draw_all(characters: Iterable[str], font: Path) -> Iterator[tuple[int, NDArray[np.uint8]]]:
    """Every character that the font draws: its index and its (128, 128) picture."""
    for index, character in enumerate(characters):
        try:
            image = np.asarray(draw_font(character, font))
        except GlyphError:
            continue
        yield index, image


def frame_of(ink_box: Box) -> Box:
    """The square that the judge looks at, for ink in a box: a margin wider, and never very flat.

    Args:
        ink_box: left, top, right, bottom, in any unit.
    Returns:
        A box in the same unit; it may reach beyond the picture.
    """
    width, height = ink_box[2] - ink_box[0], ink_box[3] - ink_box[1]
    longer = max(width, height)
    across, down = (max(size, SHORT_SIDE_MIN * longer) * (0.5 + MARGIN) for size in (width, height))
    middle = (ink_box[0] + ink_box[2]) / 2, (ink_box[1] + ink_box[3]) / 2
    return middle[0] - across, middle[1] - down, middle[0] + across, middle[1] + down


def frame_glyphs(images: Images) -> tuple[Images, NDArray[np.float64], NDArray[np.bool_]]:
    """Cut each glyph out by its ink and scale it to 64 px.

    Args:
        images: (N, H, W) uint8, 0 ink to 255 paper, any size.
    Returns:
        (N, 64, 64) uint8, 0 paper to 255 ink; (N, 4) frames in pixels of the picture (left, top, right,
        bottom); (N,) bool, whether there was ink at all.
    Raises:
        ValueError: a wrong shape or type.
    """
    images = require_glyphs(images)
    glyphs = np.zeros((len(images), SIZE_PX, SIZE_PX), np.uint8)
    frames = np.tile(np.array([0.0, 0.0, images.shape[2], images.shape[1]]), (len(images), 1))
    has_ink = np.zeros(len(images), dtype=bool)
    for index, image in enumerate(images):
        mask = image < 255 - DARK_MIN
        has_ink[index] = mask.sum() >= max(1, INK_SHARE_MIN * mask.size)
        if has_ink[index]:
            (left, right), (top, bottom) = _ink_span(mask.sum(axis=0)), _ink_span(mask.sum(axis=1))
            frames[index] = frame_of((left, top, right, bottom))
            glyphs[index] = _cut_out(image, frames[index])
    return glyphs, frames, has_ink


def _ink_span(profile: NDArray) -> tuple[float, float]:
    """Where the ink is along one axis, specks aside."""
    share = np.cumsum(profile) / profile.sum()
    return float(np.searchsorted(share, SPECK_SHARE, side="right")), float(np.searchsorted(share, 1 - SPECK_SHARE) + 1)


def _cut_out(image: NDArray[np.uint8], frame: NDArray[np.float64]) -> NDArray[np.uint8]:
    """(64, 64) ink within the frame; paper where that reaches beyond the picture."""
    left, top, right, bottom = frame
    height, width = image.shape
    pad = int(np.ceil(max(0, -left, -top, right - width, bottom - height)))
    ink = np.pad(255 - image, pad) if pad else 255 - image
    box = (left + pad, top + pad, right + pad, bottom + pad)
    return np.asarray(Image.fromarray(ink).resize((SIZE_PX, SIZE_PX), Image.Resampling.BILINEAR, box=box))
