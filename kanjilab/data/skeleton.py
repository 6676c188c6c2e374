"""Skeletons of glyphs: strokes thinned to lines of one pixel."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from kanjilab.core.images import SIZE_PX

PEN_PX = 3  # width at which strokes are drawn before they are thinned
PART = 64  # glyphs at a time: what a processor's cache holds
AROUND = ((-1, 0), (-1, 1), (0, 1), (1, 1), (1, 0), (1, -1), (0, -1), (-1, -1))  # clockwise from above


def thin(ink: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Strokes thinned from all sides to lines one pixel wide, connected as before.

    Args:
        ink: (N, H, W) bool.
    Returns:
        (N, H, W) bool, a subset of the ink.
    Source: Guo and Hall 1989, "Parallel thinning with two-subiteration algorithms", algorithm A1.
    """
    height, width = ink.shape[1:]
    parts = [thin_picture(stack_glyphs(ink[start : start + PART])) for start in range(0, len(ink), PART)]
    thinned = [part.reshape(-1, height + 2, width + 2)[:, 1:-1, 1:-1] for part in parts]
    return np.concatenate(thinned) if thinned else ink.copy()


def skeletons_of(images: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """The skeletons of glyphs as calligraphy is led by them.

    Args:
        images: (N, H, W) uint8, 0 ink to 255 paper.
    Returns:
        (N, H, W) bool.
    Source: Zhang and Suen 1984, "A fast parallel algorithm for thinning digital patterns", as in scikit-image.
    """
    from skimage.morphology import skeletonize  # a third of a second to import

    return np.stack([skeletonize(image < 128, method="zhang") for image in images])


def skeleton_of_strokes(strokes: Sequence[Sequence[tuple[float, float]]]) -> NDArray[np.bool_]:
    """The skeleton of what was drawn with a pen.

    Args:
        strokes: each the points (x, y) that the pen went through, in px of the skeleton; one point is a dot.
    Returns:
        (128, 128) bool; what is outside is left out.
    """
    paper = Image.new("L", (SIZE_PX, SIZE_PX), 255)
    canvas = ImageDraw.Draw(paper)
    for stroke in strokes:
        for x, y in stroke:  # round ends and corners
            canvas.ellipse((x - PEN_PX / 2, y - PEN_PX / 2, x + PEN_PX / 2, y + PEN_PX / 2), fill=0)
        for start, end in pairwise(stroke):
            canvas.line([tuple(start), tuple(end)], fill=0, width=PEN_PX)
    return skeletons_of(np.asarray(paper)[None])[0]


def pack_skeletons(skeletons: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """(..., H, W) bool -> (..., H, W / 8) uint8, eight pixels of a row in a byte, the leftmost highest."""
    return np.packbits(skeletons, axis=-1)


def unpack_skeletons(packed: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """(..., H, W / 8) uint8 -> (..., H, W) bool, the inverse of `pack_skeletons`."""
    return np.unpackbits(packed, axis=-1).astype(bool)


def neighbour_bits() -> NDArray[np.bool_]:
    """(256, 8): which neighbours are ink, clockwise from above, for every code of `neighbour_codes`."""
    return (np.arange(256)[:, None] >> np.arange(8) & 1).astype(bool)


def _removable(second: bool) -> NDArray[np.bool_]:
    """(256,) whether a pixel with these neighbours goes, in one of the two alternating passes."""
    above, above_right, right, below_right, below, below_left, left, above_left = neighbour_bits().T
    corners = ((above, above_right, right), (right, below_right, below))
    corners += ((below, below_left, left), (left, above_left, above))
    branches = np.sum([~side & (corner | following) for side, corner, following in corners], axis=0)
    one = np.sum([above_left | above, above_right | right, below_right | below, below_left | left], axis=0)
    two = np.sum([above | above_right, right | below_right, below | below_left, left | above_left], axis=0)
    kept = (above | above_right | ~below_right) & right if second else (below | below_left | ~above_left) & left
    least = np.minimum(one, two)
    return (branches == 1) & (least >= 2) & (least <= 3) & ~kept


REMOVABLE = (_removable(second=False), _removable(second=True))


def neighbour_codes(picture: NDArray[np.bool_], flat: NDArray[np.intp]) -> NDArray[np.uint8]:
    """(N,): which neighbours of N pixels are ink, as the sum of 2 ** position; the picture's rim must be paper.

    Args:
        picture: (H, W).
        flat: (N,) indices of the pixels in the flattened picture.
    """
    ink: NDArray = picture.ravel().view(np.uint8)
    width = picture.shape[1]
    codes = np.zeros(len(flat), np.uint8)
    for position, (down, across) in enumerate(AROUND):
        codes |= ink[flat + (down * width + across)] << position
    return codes


def stack_glyphs(ink: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """(N, H, W) -> (N (H + 2), W + 2): glyphs one below the other, each with a rim of paper."""
    padded = np.pad(ink, ((0, 0), (1, 1), (1, 1)))
    return padded.reshape(-1, padded.shape[2])


def thin_picture(picture: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """(H, W): the ink of one picture thinned; its rim must be paper."""
    picture = picture.copy()
    flat = np.flatnonzero(picture)
    changed = True
    while changed:
        changed = False
        for removable in REMOVABLE:
            gone = removable[neighbour_codes(picture, flat)]
            picture.ravel()[flat[gone]] = False
            flat = flat[~gone]
            changed |= bool(gone.any())
    return picture
