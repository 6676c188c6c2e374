"""A person's own hand: photos or scans of what they wrote, cleaned to glyphs like those of a font.

A file that is named after one character (`永.jpg`) shows it; one that is named after several (`春夏秋冬.jpg`) shows a
sheet of boxes, one character in each, row by row from the left.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from kanjilab.data.framing import frame_glyphs, ink_box
from kanjilab.data.image_files import read_gray
from kanjilab.data.skeleton import skeletons_of

PHOTO_MAX_PX = 1400  # longer side at which photos are read
BOX_PX = 256  # of a sheet, once it is cut out and straight
BOX_MARGIN = 0.06  # of its side, where its frame may still show
PAPER_REACH = 1 / 6  # of a photo's side: wider than any stroke
CONTRAST_MIN = 0.25  # between paper and ink, of the paper's light
PIECES_MAX = 60  # of one glyph; more are the grain of something else
DRAWING_MAX_PX = 700  # longer side at which drawn skeletons are read
SPECK_SHARE = 0.004  # of all ink: a smaller piece is dirt
BORDER_SHARE = 0.4  # of all ink: what touches the photo's border is no glyph if so much is left without it
FRAME_DARK = 0.82  # of the paper's light: a box's frame may be printed pale
BOX_SHARE_MIN = 0.15  # of the largest box's area
SOFT_EDGE_PX = 2  # around ink that belongs to it

Light = NDArray[np.float32]  # (H, W), 0 dark to 1 the paper's light


@dataclass(frozen=True)
class Hand:
    """What was read from a folder.

    Attributes:
        characters: N, with repetitions if one was written several times.
        images: (N, 128, 128) uint8, framed as fonts are.
        files: N names, of where each was found.
        unread: (file, why) of what could not be read.
    """

    characters: tuple[str, ...]
    images: NDArray[np.uint8]
    files: tuple[str, ...]
    unread: tuple[tuple[str, str], ...]


def read_hand(folder: Path) -> Hand:
    """Reads every file of a folder.

    Args:
        folder: of photos or scans, see the module.
    Raises:
        ValueError: there is no folder, or nothing in it could be read; the message lists every file.
    """
    if not folder.is_dir():
        raise ValueError(f"{folder}: expected a folder of photos, such as 永.jpg")
    found: list[tuple[str, NDArray[np.uint8], str]] = []
    unread: list[tuple[str, str]] = []
    for path in sorted(path for path in folder.iterdir() if not path.name.startswith(".")):
        glyphs, problems = read_photo(path)
        found += [(character, image, path.name) for character, image in glyphs]
        unread += [(path.name, problem) for problem in problems]
    if not found:
        listed = "".join(f"\n  {name}: {why}" for name, why in unread)
        raise ValueError(f"{folder}: expected photos of characters, got none that can be read{listed}")
    characters, images, files = zip(*found, strict=True)
    return Hand(characters, np.stack(images), files, tuple(unread))


def read_photo(path: Path) -> tuple[list[tuple[str, NDArray[np.uint8]]], list[str]]:
    """The characters that a file's name lists, with their glyphs, framed; and what could not be read of it.

    Args:
        path: of a photo of one character, or of a sheet of boxes.
    """
    characters = [sign for sign in unicodedata.normalize("NFC", path.stem) if unicodedata.category(sign)[0] in "LS"]
    if not characters:
        return [], ["its name lists no characters, as 永.jpg does"]
    try:
        light = even_light(read_gray(path, PHOTO_MAX_PX))
    except ValueError as error:
        return [], [str(error).removeprefix(path.name).strip()]
    boxes = cut_boxes(light) if len(characters) > 1 else [light]
    if len(boxes) != len(characters):
        return [], [f"its name lists {len(characters)} characters, but {len(boxes)} boxes are to be seen"]
    glyphs, problems = {}, []
    for number, box in enumerate(boxes):
        try:
            glyphs[number] = clean_glyph(box)
        except ValueError as error:
            problems.append(f"{characters[number]}: {error}")
    framed = frame_glyphs(list(glyphs.values())) if glyphs else ()
    return [(characters[number], image) for number, image in zip(glyphs, framed, strict=True)], problems


def even_light(gray: NDArray[np.uint8]) -> Light:
    """A photo divided by the light of its paper, so that shadows go.

    Args:
        gray: (H, W) uint8.
    """
    step = max(1, max(gray.shape) // 200)
    soft = ndimage.uniform_filter(gray.astype(np.float32), step)[::step, ::step]
    reach = max(3, round(max(soft.shape) * PAPER_REACH))
    paper = ndimage.gaussian_filter(ndimage.grey_closing(soft, reach, mode="nearest"), reach / 4, mode="nearest")
    grid = np.meshgrid(*(np.arange(side) / step for side in gray.shape), indexing="ij")
    paper = ndimage.map_coordinates(paper, grid, order=1, mode="nearest")
    return (gray / np.maximum(paper, 1)).clip(0, 1).astype(np.float32)


def clean_glyph(light: Light) -> NDArray[np.uint8]:
    """One glyph without its background: paper 255, ink 0, soft edges kept.

    Args:
        light: (H, W) of `even_light`.
    Raises:
        ValueError: there is no ink, or more than a glyph has, or it is scattered, as in a photo of something else.
    """
    from skimage.filters import threshold_otsu

    threshold = float(threshold_otsu(light)) if np.ptp(light) else 0.0
    ink = light < threshold
    if not ink.any() or np.median(light[~ink]) - np.median(light[ink]) < CONTRAST_MIN:
        raise ValueError("no ink is to be seen")
    if ink.mean() > 0.5:
        raise ValueError("more is dark than light: expected dark ink on light paper")
    kept = _without_dirt(ink)
    paper, darkest = float(np.median(light[~ink])), float(np.median(light[ink]))
    tone = ((light - darkest) / (paper - darkest)).clip(0, 1)
    near = ndimage.binary_dilation(kept, iterations=SOFT_EDGE_PX)
    return np.where(near, tone * 255, 255).round().astype(np.uint8)


def labelled(mask: NDArray[np.bool_], structure: NDArray | None = None) -> tuple[NDArray[np.int32], int]:
    """Connected pieces of a mask by number from 1, (H, W), and how many there are; see `scipy.ndimage.label`."""
    pieces: Any = ndimage.label(mask, structure)
    return pieces


def _without_dirt(ink: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Ink without specks, and without what comes in from the border: rules of the paper, the table, a neighbour."""
    pieces, count = labelled(ink, np.ones((3, 3)))
    area = np.bincount(pieces.ravel(), minlength=count + 1).astype(float)
    area[0] = 0
    at_border = np.zeros(count + 1, bool)
    at_border[np.concatenate([pieces[0], pieces[-1], pieces[:, 0], pieces[:, -1]])] = True
    if area[~at_border].sum() > BORDER_SHARE * area.sum():
        area[at_border] = 0
    kept = area >= max(4, SPECK_SHARE * area.sum())
    holes = labelled(~kept[pieces])[1]
    if kept.sum() > PIECES_MAX or holes > PIECES_MAX or not kept.any():
        raise ValueError("what is dark lies scattered: expected one character on paper")
    return kept[pieces]


def read_skeleton(path: Path) -> NDArray[np.bool_]:
    """A drawn skeleton: a picture of any size and colours, of lines of any width, dark on light or light on dark.

    Args:
        path: of the picture.
    Returns:
        (128, 128) bool, framed as those of glyphs.
    Raises:
        ValueError: the picture cannot be read, or shows no lines; the message says why.
    """
    gray = read_gray(path, DRAWING_MAX_PX)
    if np.median(gray) < 128:
        gray = 255 - gray
    try:
        glyph = clean_glyph(even_light(gray))
    except ValueError as error:
        raise ValueError(f"{path.name}: {error}") from error
    lines = skeletons_of(glyph[None])[0]
    left, top, right, bottom = ink_box(glyph)
    thick = ndimage.binary_dilation(lines, iterations=max(1, max(right - left, bottom - top) // 40))
    return skeletons_of(frame_glyphs([np.where(thick, 0, 255).astype(np.uint8)]))[0]


def cut_boxes(light: Light) -> list[Light]:
    """The boxes of a sheet, straightened, row by row from the left.

    Args:
        light: (H, W) of `even_light`.
    Returns:
        (BOX_PX, BOX_PX) each, without the frame.
    """
    found = [corners for corners in _box_corners(light) if corners is not None]
    return [_straightened(light, corners) for corners in _in_reading_order(found)]


def _box_corners(light: Light) -> Iterator[NDArray[np.float64]]:
    """Four corners (x, y) of each region of paper that a frame closes: top left, top right, bottom right, bottom left.

    A box is what a frame encloses and no ink does: the counter of 口 is closed too, but inside a box.
    """
    gaps: Any = ndimage.binary_closing(np.pad(light < FRAME_DARK, 2), iterations=2)[2:-2, 2:-2]
    pieces, _ = labelled(~gaps)
    outside = np.unique(np.concatenate([pieces[0], pieces[-1], pieces[:, 0], pieces[:, -1]]))
    closed: Any = ndimage.binary_fill_holes(~np.isin(pieces, outside) & (pieces > 0))
    regions, count = labelled(closed)
    area = np.bincount(regions.ravel(), minlength=count + 1)[1:]
    for number, place in enumerate(ndimage.find_objects(regions), start=1):
        if area[number - 1] >= BOX_SHARE_MIN * area.max():
            y, x = np.nonzero(regions[place] == number)
            x, y = x + place[1].start, y + place[0].start
            ends = [np.argmin(x + y), np.argmax(x - y), np.argmax(x + y), np.argmin(x - y)]
            yield np.stack([x[ends], y[ends]], axis=1).astype(float)


def _in_reading_order(boxes: list[NDArray[np.float64]]) -> list[NDArray[np.float64]]:
    """Rows from above, in each from the left; a tilted row stays together."""
    waiting, ordered = sorted(boxes, key=lambda corners: corners[:, 1].mean()), []
    while waiting:
        row = [waiting.pop(0)]
        while True:  # the nearest box whose middle is at the height of one that is in the row
            beside = [box for box in waiting if any(_beside(box, other) for other in row)]
            if not beside:
                break
            row += beside
            waiting = [box for box in waiting if not any(box is other for other in beside)]
        ordered += sorted(row, key=lambda corners: corners[:, 0].mean())
    return ordered


def _beside(box: NDArray[np.float64], other: NDArray[np.float64]) -> bool:
    """Whether two boxes are neighbours in a row."""
    across, down = np.abs(box.mean(axis=0) - other.mean(axis=0))
    size = np.ptp(other, axis=0)
    return bool(down < size[1] / 3 and across < 2 * size[0])


def _straightened(light: Light, corners: NDArray[np.float64]) -> Light:
    from skimage.transform import ProjectiveTransform, warp

    low, high = -BOX_MARGIN * BOX_PX, (1 + BOX_MARGIN) * BOX_PX
    square = np.array([(low, low), (high, low), (high, high), (low, high)])
    transform = ProjectiveTransform.from_estimate(square, corners)
    return warp(light, transform, output_shape=(BOX_PX, BOX_PX), order=1, mode="edge").astype(np.float32)
