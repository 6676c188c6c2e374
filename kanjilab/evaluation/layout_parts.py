"""The parts that make up a glyph's layout: which they are, whether they are two, and where each is attested."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from kanjilab.data.components import Box, Components
from kanjilab.data.typeset import SLOTS_OF_LAYOUT
from kanjilab.evaluation.judges.framing import Images
from kanjilab.evaluation.judges.part_judge import Judge, area, overlap

SPAN_SLACK = 0.25  # of a slot's length, by which a part may be larger than listed characters have it there
CERTAIN = 1e-6  # probabilities this near 0 or 1 count as equal
MARK_SHARE = 1 / 32  # of the side, of the dots that keep the frame of a glyph that is wiped in part


def main_parts(row: Any) -> tuple[tuple[str, Box, str], ...]:
    """The two parts of a reading that make up its layout: sure, and far apart as the layout has it.

    Args:
        row: of `Judge.read`, as from `itertuples`.
    Returns:
        (element, box, slot) of each, in the order of the slots; the slot is "" where the layout has none. Empty
        with fewer than two parts.
    """
    found = list(zip(row.parts, row.part_boxes, row.part_scores, strict=True))
    pairs = [(first, second) for index, first in enumerate(found) for second in found[index + 1 :]]
    if not pairs:
        return ()
    best = max(pairs, key=lambda pair: pair[0][2] * pair[1][2] * _apart(row.layout, pair[0][1], pair[1][1]))
    order = sorted(best, key=lambda part: _place(row.layout, part[1]))
    slots = SLOTS_OF_LAYOUT.get(row.layout, ("", ""))
    return tuple((element, box, slot) for (element, box, _), slot in zip(order, slots, strict=True))


def _place(layout: str, box: Box) -> float:
    """What orders parts by their slots: from the left, from above, or the outer, larger one first."""
    axis = {"⿰": 0, "⿱": 1}.get(layout)
    return -area(box) if axis is None else box[axis] + box[axis + 2]


def _apart(layout: str, first: Box, second: Box) -> float:
    """How far two boxes differ in what orders them; without a layout, the share that they do not have in common."""
    if layout in SLOTS_OF_LAYOUT:
        return abs(_place(layout, first) - _place(layout, second))
    return 1 - overlap(first, second)


def erasure_scores(judge: Judge, images: Images, readings: pd.DataFrame) -> NDArray[np.float64]:
    """Whether two parts are distinct: if the region of one is wiped, its score falls and the other's stays.

    A pixel belongs to the part whose box it is in or nearest to; where boxes overlap, to the smaller one: what is
    inside a frame is not the frame's.

    Args:
        judge: whose readings these are.
        images: (N, H, W) uint8.
        readings: N rows of `Judge.read`.
    Returns:
        (N,) in nats: by how much more the log-odds of the wiped part fall than those of the other, for the worse
        of both ways. Near 0 for two names of one blob; NaN with fewer than two parts.
    """
    scores = np.full(len(images), np.nan)
    rows: Any = readings.itertuples()
    pairs = {index: pair for index, row in enumerate(rows) if (pair := main_parts(row))}
    if not pairs:
        return scores
    shown = images[list(pairs)]
    columns = np.array([[judge.parts.index(element) for element, _, _ in pair] for pair in pairs.values()])
    before = _log_odds(judge, shown, columns)
    worst = np.full(len(pairs), np.inf)
    for wiped, other in ((0, 1), (1, 0)):
        boxes = [(pair[wiped][1], pair[other][1]) for pair in pairs.values()]
        erased = np.stack([_wiped(image, *both) for image, both in zip(shown, boxes, strict=True)])
        change = _log_odds(judge, erased, columns) - before
        worst = np.minimum(worst, change[:, other] - change[:, wiped])
    scores[list(pairs)] = worst
    return scores


def _log_odds(judge: Judge, images: Images, columns: NDArray[np.intp]) -> NDArray[np.float64]:
    """(N, 2) of two parts of each image."""
    found = np.take_along_axis(judge.part_probabilities(images), columns, axis=1).astype(float)
    found = np.clip(found, CERTAIN, 1 - CERTAIN)
    return np.log(found / (1 - found))


def _wiped(image: NDArray[np.uint8], box: Box, other: Box) -> NDArray[np.uint8]:
    """The image with paper wherever it belongs to the first box, but for dots in the corners of the ink.

    A judge cuts glyphs out by their ink: without the dots it would see the other part larger, and elsewhere.
    """
    own, others = _distance_to(box, image.shape), _distance_to(other, image.shape)
    wiped = (own < others) | ((own == others) & (area(box) <= area(other)))
    erased = np.where(wiped, np.uint8(255), image)
    rows, columns = (np.flatnonzero((image < 128).any(axis=axis)) for axis in (1, 0))
    size = max(1, round(MARK_SHARE * max(image.shape)))
    for top in (rows[0], rows[-1] + 1 - size) if len(rows) else ():
        for left in (columns[0], columns[-1] + 1 - size):
            erased[top : top + size, left : left + size] = 0
    return erased


def _distance_to(box: Box, shape: tuple[int, ...]) -> NDArray[np.float64]:
    """(H, W) distance of each pixel's middle to a box, in sides; 0 inside."""
    down, across = ((np.arange(size) + 0.5) / size for size in shape)
    outside_x = np.maximum(np.maximum(box[0] - across, across - box[2]), 0)
    outside_y = np.maximum(np.maximum(box[1] - down, down - box[3]), 0)
    return np.hypot(outside_x, outside_y[:, None])


def attested_spans(components: Components) -> dict[tuple[str, str], float]:
    """Where each part is in listed characters, by itself or as a piece of what fills the slot, and how large.

    A piece may be where the part by itself never is, but there it is small: 艸 in 勤.

    Returns:
        (part, slot) -> the largest share of the slot's length that it takes; 0 outside and inside a frame.
    """
    spans: dict[tuple[str, str], float] = {}
    for listed in components.decompositions.values():
        left, top, right, bottom = listed.frame
        width, height = max(right - left, 1e-6), max(bottom - top, 1e-6)
        for outer in listed.outer:
            for part in listed.parts:
                if part.slot != "whole" and set(part.strokes) <= set(outer.strokes):
                    box = part.box[0] / width, part.box[1] / height, part.box[2] / width, part.box[3] / height
                    key = part.element, outer.slot
                    spans[key] = max(spans.get(key, 0.0), _span(box, outer.slot))
    return spans


def _span(box: Box, slot: str) -> float:
    """How much of its slot's length a part takes: of the height on either side, of the width above and below."""
    if slot in ("left", "right"):
        return box[3] - box[1]
    return box[2] - box[0] if slot in ("top", "bottom") else 0.0


def slots_attested(row: Any, spans: Mapping[tuple[str, str], float]) -> bool:
    """Whether both main parts are where a listed character has them, and about as large.

    Args:
        row: of `Judge.read`, as from `itertuples`.
        spans: of `attested_spans`.
    Returns:
        True also where the layout has no slots.
    """
    parts = [part for part in main_parts(row) if part[2]]
    return all(_span(box, slot) <= spans.get((element, slot), -1) + SPAN_SLACK for element, box, slot in parts)
