"""A page of glyphs: a grid, horizontal or vertical, as pixels and as SVG."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from kanjilab.core.images import SIZE_PX
from kanjilab.export.vectors import path_of, trace, xml_text

ENLARGED = 4  # a PNG's pixels for one of the glyph's
TOLERANCE_PX = 0.3
Place = tuple[int, int]  # row and column


def places_of(lines: Sequence[int], vertical: bool) -> list[Place]:
    """Where each glyph goes.

    Args:
        lines: how many glyphs each line has.
        vertical: lines run down, the first at the right, as in Japanese and Chinese books.
    """
    places = [(line, position) for line, count in enumerate(lines) for position in range(count)]
    return [(position, len(lines) - 1 - line) for line, position in places] if vertical else places


def page_picture(images: NDArray[np.uint8], places: Sequence[Place], enlarged: int = ENLARGED) -> Image.Image:
    """The page as an image of mode L.

    Args:
        images: (N, 128, 128) uint8, 0 ink to 255 paper.
        places: N of `places_of`.
        enlarged: pixels for one of a glyph's.
    """
    rows, columns = _extent(places)
    page = np.full((rows * SIZE_PX, columns * SIZE_PX), 255, np.uint8)
    for image, (row, column) in zip(images, places, strict=True):
        page[row * SIZE_PX : (row + 1) * SIZE_PX, column * SIZE_PX : (column + 1) * SIZE_PX] = image
    size = columns * SIZE_PX * enlarged, rows * SIZE_PX * enlarged
    return Image.fromarray(page).resize(size, Image.Resampling.LANCZOS)


def page_svg(images: NDArray[np.uint8], places: Sequence[Place], title: str) -> str:
    """The page as outlines, a path for each glyph.

    Args:
        images, places: as for `page_picture`.
        title: what is written, for who cannot see it.
    """
    rows, columns = _extent(places)
    drawn: Mapping[Place, str] = {
        place: path_of(trace(image, TOLERANCE_PX)) for image, place in zip(images, places, strict=True)
    }
    paths = "".join(
        f'<path fill-rule="evenodd" transform="translate({column * SIZE_PX} {row * SIZE_PX})" d="{path}"/>'
        for (row, column), path in drawn.items()
    )
    box = f"0 0 {columns * SIZE_PX} {rows * SIZE_PX}"
    return f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="{box}"><title>{xml_text(title)}</title>{paths}</svg>\n'


def _extent(places: Sequence[Place]) -> Place:
    return max(row for row, _ in places) + 1, max(column for _, column in places) + 1
