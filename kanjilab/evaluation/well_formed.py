"""Measures of a glyph that need no network: ink, margins, stroke width, ends, spurs, junctions, pieces.

Glyphs are stacked into one tall picture with paper between them, so that thinning, distances and connected
pieces are found for many at once. `Bounds` holds what real glyphs of the same complexity show.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import ndimage

from kanjilab.data.skeleton import PART, neighbour_bits, neighbour_codes, stack_glyphs, thin_picture
from kanjilab.evaluation.judges.framing import require_glyphs

INK = 0.5  # a pixel with more ink than this belongs to a stroke
GRAY_LOW, GRAY_HIGH = 0.2, 0.8  # between them a pixel is neither paper nor stroke
EIGHT = np.ones((3, 3), int)  # pieces hold together over corners too
SHARES = (0.01, 0.99)  # of real glyphs, below and above the bounds
BINS = 12

MEASURES = (
    "complexity", "ink", "margin_least", "margin_most", "gray", "width", "width_spread", "ends", "spurs", "junctions",
    "pieces",
)  # fmt: skip
_BITS = neighbour_bits()
# (256,) how often the ring of neighbours turns from paper to ink: the branches that meet here.
CROSSINGS = (~_BITS & np.roll(_BITS, -1, axis=1)).sum(axis=1).astype(np.uint8)


def measure(images: NDArray[np.uint8]) -> pd.DataFrame:
    """Measure glyphs without knowing any character.

    Args:
        images: (N, H, W) uint8 grayscale, 0 ink to 255 paper.
    Returns:
        N rows of float; lengths in shares of the image's longer side (a side of 128 px is 1):
        complexity (length of all strokes' middle lines), ink (mean, 0 to 1), margin_least and margin_most
        (smallest and largest of the four distances from the ink to the edges; 1 where there is no ink),
        gray (share of pixels with 0.2 to 0.8 of ink), width (mean stroke width along the middle lines),
        width_spread (standard deviation over mean), ends (open ends of middle lines), spurs (branches that
        end within half a stroke's width of where they set out), junctions, pieces (of connected ink).
    Raises:
        ValueError: a wrong shape or type.
    """
    images = require_glyphs(images)
    parts = [_measure_part(images[start : start + PART]) for start in range(0, len(images), PART)]
    empty = {name: np.zeros(0) for name in MEASURES}
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(empty)


def _measure_part(images: NDArray[np.uint8]) -> pd.DataFrame:
    count, height, width = images.shape
    side = max(height, width)
    dark = 1 - images / np.float32(255)
    strokes = dark > INK
    picture = stack_glyphs(strokes)
    lines = thin_picture(picture)
    least, most = _margins(strokes)
    gray = ((dark > GRAY_LOW) & (dark < GRAY_HIGH)).mean(axis=(1, 2))
    columns = {"complexity": _lengths(lines, count) / side, "ink": dark.mean(axis=(1, 2))}
    columns |= {"margin_least": least / side, "margin_most": most / side, "gray": gray}
    mean, spread = _stroke_widths(picture, lines, count)
    columns |= {"width": mean / side, "width_spread": spread} | _branches(lines, mean, count)
    columns["pieces"] = _count_pieces(picture, count)
    return pd.DataFrame({name: np.asarray(columns[name], float) for name in MEASURES})


def _margins(strokes: NDArray[np.bool_]) -> tuple[NDArray, NDArray]:
    """Smallest and largest distance in px from the ink to an edge; the longer side where there is no ink."""
    rows: Any = strokes.any(axis=2)
    columns: Any = strokes.any(axis=1)
    sides = [profile.argmax(axis=1) for profile in (rows, rows[:, ::-1], columns, columns[:, ::-1])]
    margins = np.where(rows.any(axis=1)[:, None], np.stack(sides, axis=1), max(strokes.shape[1:]))
    return margins.min(axis=1), margins.max(axis=1)


def _per_image(picture: NDArray, count: int, values: NDArray | None = None) -> NDArray:
    """Sums over each glyph's pixels that are set; of ones, or of values in the order of `flatnonzero`."""
    owner = np.flatnonzero(picture) // (picture.size // count)
    return np.bincount(owner, weights=values, minlength=count)


def _lengths(lines: NDArray[np.bool_], count: int) -> NDArray:
    """Length in px: 1 a step to the side, the square root of 2 a step over a corner that has no way round."""
    below, right = lines[:-1] & lines[1:], lines[:, :-1] & lines[:, 1:]
    falling = lines[:-1, :-1] & lines[1:, 1:] & ~lines[:-1, 1:] & ~lines[1:, :-1]
    rising = lines[:-1, 1:] & lines[1:, :-1] & ~lines[:-1, :-1] & ~lines[1:, 1:]
    steps = np.zeros(lines.shape, np.float32)
    steps[:-1] += below
    steps[:, :-1] += right
    steps[:-1, :-1] += np.float32(np.sqrt(2)) * falling
    steps[:-1, 1:] += np.float32(np.sqrt(2)) * rising
    return _per_image(lines, count, steps[lines])


def _stroke_widths(picture: NDArray[np.bool_], lines: NDArray[np.bool_], count: int) -> tuple[NDArray, NDArray]:
    """Mean width in px along the middle lines, and its standard deviation over its mean; 0 without ink."""
    # A stroke of 2 n + 1 pixels has its middle n + 1 away from the nearest paper.
    widths = 2 * np.asarray(ndimage.distance_transform_edt(picture))[lines] - 1
    pixels = np.maximum(_per_image(lines, count), 1)
    mean = _per_image(lines, count, widths) / pixels
    variance = np.maximum(_per_image(lines, count, widths**2) / pixels - mean**2, 0)
    return mean, np.sqrt(variance) / np.maximum(mean, 1)


def _branches(lines: NDArray[np.bool_], mean_width: NDArray, count: int) -> dict[str, NDArray]:
    """Ends, junctions and spurs of the middle lines."""
    flat = np.flatnonzero(lines)
    crossings = np.zeros(lines.shape, np.uint8)
    crossings.ravel()[flat] = CROSSINGS[neighbour_codes(lines, flat)]
    ends, junctions = crossings == 1, crossings >= 3
    near: Any = ndimage.binary_dilation(junctions, EIGHT)
    beside: Any = ndimage.binary_dilation(near, EIGHT)
    labels, found = _label(lines & ~near)
    length = np.bincount(labels.ravel(), minlength=found + 1)
    at_junction = np.zeros(found + 1, bool)
    at_junction[labels[beside]] = True
    tips = np.zeros(found + 1, bool)
    tips[labels[ends]] = True
    owner = _owner_of_labels(labels, found, count)
    short = at_junction & tips & (length + 2 <= mean_width[owner] / 2)
    spurs = owner[1:][short[1:]]
    # A branch so short that the junction's own surroundings hold all of it counts as well.
    return {
        "ends": _per_image(ends, count),
        "spurs": np.bincount(spurs, minlength=count) + _per_image(ends & near, count),
        "junctions": _count_pieces(junctions, count),
    }


def _label(picture: NDArray[np.bool_]) -> tuple[NDArray[np.int32], int]:
    """Connected pieces, numbered from 1, and how many there are."""
    labels = np.zeros(picture.shape, np.int32)
    found: Any = ndimage.label(picture, EIGHT, output=labels)
    return labels, found


def _owner_of_labels(labels: NDArray[np.int32], found: int, count: int) -> NDArray[np.intp]:
    """(found + 1,) the glyph that each piece is in."""
    owner = np.zeros(found + 1, np.intp)
    flat = np.flatnonzero(labels)
    owner[labels.ravel()[flat]] = flat // (labels.size // count)
    return owner


def _count_pieces(picture: NDArray[np.bool_], count: int) -> NDArray:
    labels, found = _label(picture)
    return np.bincount(_owner_of_labels(labels, found, count)[1:], minlength=count)


@dataclass(frozen=True)
class Bounds:
    """What real glyphs of each complexity show: the range of every measure that nearly all are in.

    Attributes:
        side_px: of the images that they were measured on; ends and gray depend on it.
        complexity: (K,) medians of the groups that the glyphs were divided into, ascending.
        low, high: for each measure (K,) ends of the range, between them linear in complexity; for the
            complexity itself one range.
        glyphs: how many were measured.
    """

    side_px: int
    complexity: tuple[float, ...]
    low: Mapping[str, tuple[float, ...]]
    high: Mapping[str, tuple[float, ...]]
    glyphs: int

    @classmethod
    def fit(cls, measures: pd.DataFrame, side_px: int, bins: int = BINS) -> Bounds:
        """Take the 1% and 99% quantiles of real glyphs, in groups of equal size by complexity.

        Args:
            measures: of `measure`, of real glyphs only.
            side_px: side of the images they were drawn in.
            bins: number of groups.
        Raises:
            ValueError: fewer than 20 glyphs a group.
        """
        if len(measures) < 20 * bins:
            raise ValueError(f"expected at least {20 * bins} glyphs for {bins} groups, got {len(measures)}")
        values = measures[list(MEASURES)].to_numpy()  # (N, measures), complexity first
        groups = np.array_split(values[np.argsort(values[:, 0], kind="stable")], bins)
        knots = tuple(float(np.median(group[:, 0])) for group in groups)
        low, high = ([np.quantile(group, share, axis=0) for group in groups] for share in SHARES)
        for ends, share in ((low, SHARES[0]), (high, SHARES[1])):
            for end in ends:
                end[0] = np.quantile(values[:, 0], share)
        return cls(side_px, knots, _by_measure(low), _by_measure(high), len(values))

    def excess(self, measures: pd.DataFrame) -> pd.DataFrame:
        """How far each measure is outside its range, in widths of the range; 0 inside.

        Args:
            measures: of `measure`, N rows.
        Returns:
            N rows of float >= 0, a column per measure.
        """
        place = measures["complexity"].to_numpy()
        columns = {}
        for name in MEASURES:
            value = measures[name].to_numpy()
            low = np.interp(place, self.complexity, self.low[name])
            high = np.interp(place, self.complexity, self.high[name])
            columns[name] = np.maximum(np.maximum(low - value, value - high), 0) / np.maximum(high - low, 1e-6)
        return pd.DataFrame(columns, index=measures.index)

    def within(self, measures: pd.DataFrame, slack: float = 0.0) -> pd.DataFrame:
        """Which measures are inside the range of real glyphs.

        Args:
            measures: of `measure`, N rows.
            slack: widths of the range that it is widened by on either side.
        Returns:
            N rows of bool, a column per measure.
        """
        return self.excess(measures) <= slack

    def to_json(self) -> dict[str, Any]:
        """Plain values for a JSON file."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Bounds:
        """The inverse of `to_json`."""
        low, high = ({name: tuple(values[end][name]) for name in MEASURES} for end in ("low", "high"))
        return cls(int(values["side_px"]), tuple(values["complexity"]), low, high, int(values["glyphs"]))


def _by_measure(ends: list[NDArray]) -> dict[str, tuple[float, ...]]:
    return {name: tuple(float(end[column]) for end in ends) for column, name in enumerate(MEASURES)}
