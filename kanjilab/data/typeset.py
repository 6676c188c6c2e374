"""Typesetting: composes glyphs of two parts that no character combines, so that the true parts are known.

Each part comes from a real character that has it in that slot: from its strokes, or cut out of its glyph
in a font. Only the pair is new.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from kanjilab.core.images import SIZE_PX
from kanjilab.data.components import SLOTS, Box, Components, Decomposition, Part
from kanjilab.data.kanjivg import VIEW_BOX, KanjiVG, draw_line
from kanjilab.data.rendering import GlyphError, draw_font

SLOTS_OF_LAYOUT = {
    "⿰": ("left", "right"),
    "⿱": ("top", "bottom"),
    "⿸": ("outside", "inside"),
    "⿺": ("outside", "inside"),
    "⿴": ("outside", "inside"),
}
ATTESTED_MIN = {"inside": 2}  # characters that have the part in the slot; few parts are often inside
ATTESTED_MIN_ELSEWHERE = 5
TEST_ONE_IN = 5  # of the pairs
INK_DARK = 100  # of 255: a pixel of a stroke's body
SOFT_EDGE_PX = 2  # around it that belongs to it
ASTRAY = 0.2  # of a piece of ink, which may be on the other part's side
HOLE_MARGIN = 0.03  # of the side, around a part that is inside a frame
GAP = 0.04  # of the side, between two parts
STRETCH = (0.65, 1.5)
TRIES = 12
OVERSAMPLING = 3

Ink = NDArray[np.uint8]  # (H, W), 0 paper to 255 ink


@dataclass(frozen=True)
class Pair:
    """Two parts in a layout, in the order of its slots."""

    layout: str
    first: str
    second: str

    @property
    def for_tests(self) -> bool:
        """Whether the pair is kept for tests: by its parts alone, so in every layout and order alike."""
        digest = hashlib.sha256("+".join(sorted((self.first, self.second))).encode()).digest()
        return digest[0] % TEST_ONE_IN == 0


@dataclass(frozen=True)
class Typeset:
    """A composed glyph and the truth about it.

    Attributes:
        image: (128, 128) uint8, 0 ink to 255 paper.
        pair: what was composed.
        parts: the two parts, then what is nested in them; boxes in [0, 1] of the image.
        donors: the two characters that the parts were taken from.
    """

    image: NDArray[np.uint8]
    pair: Pair
    parts: tuple[Part, ...]
    donors: tuple[str, str]


@dataclass(frozen=True)
class _Piece:
    """One part cut out of a glyph: its ink box and its parts, in [0, 1] of the glyph's square.

    Drawn from `ink`, or from `strokes` (points in the same unit) where there are any. A frame has a hole.
    """

    box: Box
    parts: tuple[Part, ...]
    ink: Ink | None = None
    strokes: tuple[NDArray[np.float64], ...] = ()
    hole: Box | None = None


class Typesetter:
    """Composes pairs of parts from one source of glyphs.

    Args of the constructor:
        components: the list of decompositions.
        source: a font file, or KanjiVG's strokes.
        allowed: characters that parts may be taken from; None for all.
    """

    def __init__(self, components: Components, source: Path | KanjiVG, allowed: Collection[str] | None = None):
        """Sort the characters of two parts by what they can give; nothing is drawn yet."""
        self._source = source
        self._decompositions: dict[str, Decomposition] = {}
        self._donors: dict[tuple[str, str, str], list[str]] = {}
        self._pieces: dict[str, tuple[_Piece, _Piece] | None] = {}
        for character, listed in components.decompositions.items():
            slots = SLOTS_OF_LAYOUT.get(listed.layout)
            known = allowed is None or character in allowed
            if not known or slots != tuple(part.slot for part in _two_parts(listed)):
                continue
            self._decompositions[character] = listed
            for part in _two_parts(listed):
                self._donors.setdefault((listed.layout, part.element, part.slot), []).append(character)

    def compose(self, pair: Pair, rng: np.random.Generator, stroke_width: float = 5.0) -> Typeset | None:
        """Set a pair from two donors drawn at random.

        Args:
            pair: layout and parts.
            rng: which donors.
            stroke_width: for strokes, in units of KanjiVG's 109.
        Returns:
            None where `TRIES` tries found no two donors that can be cut cleanly and fit.
        """
        slots = SLOTS_OF_LAYOUT[pair.layout]
        choices = [
            self._donors.get((pair.layout, name, slot), ())
            for name, slot in zip((pair.first, pair.second), slots, strict=True)
        ]
        if not all(choices):
            return None
        for _ in range(TRIES):
            names = [found[rng.integers(len(found))] for found in choices]
            cut = [self._cut(name) for name in names]
            if cut[0] is None or cut[1] is None:
                continue
            pieces = cut[0][0], cut[1][1]
            if (boxes := _fit(pair.layout, pieces)) is not None:
                parts = [part for piece, box in zip(pieces, boxes, strict=True) for part in _moved(piece, box)]
                parts.sort(key=lambda part: part.nested)
                image = _paint(pieces, boxes, stroke_width)
                return Typeset(image, pair, tuple(parts), (names[0], names[1]))
        return None

    def _cut(self, character: str) -> tuple[_Piece, _Piece] | None:
        if character not in self._pieces:
            listed = self._decompositions[character]
            if isinstance(self._source, KanjiVG):
                self._pieces[character] = _cut_strokes(character, listed, self._source)
            else:
                self._pieces[character] = _cut_glyph(character, listed, self._source)
        return self._pieces[character]


def pair_of(listed: Decomposition | None) -> Pair | None:
    """The two parts that a character is exactly made of; None where it is not, or has a layout without slots."""
    slots = None if listed is None else SLOTS_OF_LAYOUT.get(listed.layout)
    if listed is None or slots is None:
        return None
    two = _two_parts(listed)
    return Pair(listed.layout, two[0].element, two[1].element) if tuple(part.slot for part in two) == slots else None


def novel_pairs(components: Components, parts: Collection[str] | None = None) -> list[Pair]:
    """Every pair of parts, each frequent in its slot, that no listed character combines, in a fixed order.

    A rarer character, which is not in the list, may still have the pair.

    Args:
        components: the list of decompositions.
        parts: that may be paired; None for the vocabulary.
    """
    taken = set()
    attested: Counter[tuple[str, str, str]] = Counter()
    for listed in components.decompositions.values():
        taken.add(frozenset(part.element for part in listed.outer))
        attested.update((listed.layout, part.element, part.slot) for part in _two_parts(listed))

    def fillers(layout: str, slot: str) -> list[str]:
        least = ATTESTED_MIN.get(slot, ATTESTED_MIN_ELSEWHERE)
        return [name for name in parts or components.parts if attested[layout, name, slot] >= least]

    return [
        Pair(layout, first, second)
        for layout, slots in SLOTS_OF_LAYOUT.items()
        for first in fillers(layout, slots[0])
        for second in fillers(layout, slots[1])
        if first != second and frozenset((first, second)) not in taken
    ]


def _two_parts(listed: Decomposition) -> tuple[Part, ...]:
    """The two parts in the order of the slots; empty where a character is not made of exactly two."""
    outer = sorted(listed.outer, key=lambda part: SLOTS.index(part.slot))
    strokes = sum(len(part.strokes) for part in outer)
    whole = max(len(part.strokes) for part in listed.parts)
    return tuple(outer) if len(outer) == 2 and strokes == whole else ()


def _pieces_of(part: Part, listed: Decomposition) -> tuple[Part, ...]:
    """A part and what is nested in it."""
    own = set(part.strokes)
    return part, *(other for other in listed.parts if other.nested and own > set(other.strokes))


def _cut_strokes(character: str, listed: Decomposition, kanjivg: KanjiVG) -> tuple[_Piece, _Piece] | None:
    try:
        strokes = [np.array(stroke) / VIEW_BOX for stroke in kanjivg.strokes(character)]
    except GlyphError:
        return None
    first, second = _two_parts(listed)
    own = [tuple(strokes[number] for number in part.strokes) for part in (first, second)]
    hole = second.box if second.slot == "inside" else None
    return (
        _Piece(first.box, _pieces_of(first, listed), strokes=own[0], hole=hole),
        _Piece(second.box, _pieces_of(second, listed), strokes=own[1]),
    )


def _cut_glyph(character: str, listed: Decomposition, font: Path) -> tuple[_Piece, _Piece] | None:
    """Both parts of a font's glyph; None where no line between them is empty."""
    try:
        ink = 255 - np.asarray(draw_font(character, font))
    except GlyphError:
        return None
    placed = _in_glyph(listed, ink)
    first, second = _two_parts(placed)
    if (masks := _cut_pieces(ink, first, second)) is None:
        return None
    inked = [np.where(mask, ink, 0) for mask in masks]
    if min(int((part > INK_DARK).sum()) for part in inked) < 12:
        return None
    boxes = [_ink_box(part) for part in inked]
    hole = boxes[1] if second.slot == "inside" else None
    return (
        _Piece(boxes[0], _clipped(_pieces_of(first, placed), boxes[0]), _crop(inked[0], boxes[0]), hole=hole),
        _Piece(boxes[1], _clipped(_pieces_of(second, placed), boxes[1]), _crop(inked[1], boxes[1])),
    )


def _in_glyph(listed: Decomposition, ink: Ink) -> Decomposition:
    """The parts moved so that the strokes' frame fits the ink of a glyph."""
    source, target = listed.frame, _ink_box(ink)
    return replace(listed, parts=tuple(replace(part, box=_map_box(part.box, source, target)) for part in listed.parts))


def _cut_pieces(ink: Ink, first: Part, second: Part) -> tuple[NDArray[np.bool_], NDArray[np.bool_]] | None:
    """Masks of both parts: each connected piece of ink goes to the part on whose side it is.

    Returns:
        None where a piece is on both sides, so that no cut can be clean.
    """
    from scipy import ndimage

    labelled: Any = ndimage.label(ink > INK_DARK, structure=np.ones((3, 3)))
    pieces, count = labelled
    beyond = ndimage.mean(_side_of_second(ink.shape, first, second), pieces, np.arange(1, count + 1))
    belongs = np.concatenate([[0.5], np.atleast_1d(beyond)])
    if ((belongs[1:] > ASTRAY) & (belongs[1:] < 1 - ASTRAY)).any():
        return None
    masks = [belongs[pieces] <= ASTRAY, belongs[pieces] >= 1 - ASTRAY]
    soft: list[Any] = [ndimage.binary_dilation(mask, iterations=SOFT_EDGE_PX) for mask in masks]
    return soft[0] & ~masks[1], soft[1] & ~masks[0] & ~(soft[0] & ~masks[1])


def _side_of_second(shape: tuple[int, ...], first: Part, second: Part) -> NDArray[np.float64]:
    """1 where the second part should be, 0 elsewhere: beyond the border, or within the second one's box."""
    down, across = ((np.arange(size) + 0.5) / size for size in shape)
    if second.slot != "inside":
        axis = 0 if second.slot == "right" else 1
        border = (first.box[axis + 2] + second.box[axis]) / 2
        beyond = (across > border)[None] if axis == 0 else (down > border)[:, None]
        return np.broadcast_to(beyond, shape).astype(float)
    left, top, right, bottom = second.box
    within = (across > left - HOLE_MARGIN) & (across < right + HOLE_MARGIN)
    return np.outer((down > top - HOLE_MARGIN) & (down < bottom + HOLE_MARGIN), within).astype(float)


def _ink_box(ink: Ink) -> Box:
    rows, columns = (np.flatnonzero((ink > INK_DARK).any(axis=axis)) for axis in (1, 0))
    side = len(ink)
    return columns[0] / side, rows[0] / side, (columns[-1] + 1) / side, (rows[-1] + 1) / side


def _crop(ink: Ink, box: Box) -> Ink:
    left, top, right, bottom = (round(value * len(ink)) for value in box)
    return ink[top:bottom, left:right]


def _clipped(parts: tuple[Part, ...], box: Box) -> tuple[Part, ...]:
    """The first part fills the box, by definition; what is nested in it stays within."""
    kept = [replace(parts[0], box=box)]
    for part in parts[1:]:
        left, top = max(part.box[0], box[0]), max(part.box[1], box[1])
        right, bottom = min(part.box[2], box[2]), min(part.box[3], box[3])
        if left < right and top < bottom:
            kept.append(replace(part, box=(left, top, right, bottom)))
    return tuple(kept)


def _fit(layout: str, pieces: tuple[_Piece, _Piece]) -> tuple[Box, Box] | None:
    """Where both pieces go: each in its own donor's place, stretched along the layout until they meet."""
    first, second = pieces
    if first.hole is not None:
        return first.box, _within(second.box, first.hole)
    axis = 0 if layout == "⿰" else 1
    start, stop = first.box[axis], second.box[axis + 2]
    sizes = [piece.box[axis + 2] - piece.box[axis] for piece in pieces]
    stretch = (stop - start - GAP) / sum(sizes)
    if not STRETCH[0] <= stretch <= STRETCH[1]:
        return None
    spans = (start, start + sizes[0] * stretch), (stop - sizes[1] * stretch, stop)
    boxes = []
    for piece, (low, high) in zip(pieces, spans, strict=True):
        left, top, right, bottom = piece.box
        boxes.append((low, top, high, bottom) if axis == 0 else (left, low, right, high))
    return boxes[0], boxes[1]


def _within(box: Box, hole: Box) -> Box:
    """A box's shape, made as large as the hole lets it be in each direction, but not distorted beyond 1.5."""
    width, height = (hole[2] - hole[0]), (hole[3] - hole[1])
    shape = (box[2] - box[0]) / max(box[3] - box[1], 1e-6)
    if width / height > shape * STRETCH[1]:
        width = height * shape * STRETCH[1]
    elif width / height < shape / STRETCH[1]:
        height = width / shape * STRETCH[1]
    middle = (hole[0] + hole[2]) / 2, (hole[1] + hole[3]) / 2
    return middle[0] - width / 2, middle[1] - height / 2, middle[0] + width / 2, middle[1] + height / 2


def _map_box(box: Box, source: Box, target: Box) -> Box:
    scale = [(target[a + 2] - target[a]) / max(source[a + 2] - source[a], 1e-6) for a in (0, 1)]
    left, top, right, bottom = (target[i % 2] + (box[i] - source[i % 2]) * scale[i % 2] for i in range(4))
    return left, top, right, bottom


def _moved(piece: _Piece, box: Box) -> list[Part]:
    return [replace(part, box=_map_box(part.box, piece.box, box), strokes=()) for part in piece.parts]


def _paint(pieces: tuple[_Piece, _Piece], boxes: tuple[Box, Box], stroke_width: float) -> NDArray[np.uint8]:
    side = SIZE_PX * OVERSAMPLING
    canvas, width = Image.new("L", (side, side), 0), stroke_width / VIEW_BOX * side
    for piece, box in zip(pieces, boxes, strict=True):
        if piece.ink is None:
            for stroke in piece.strokes:
                points = [tuple(point) for point in _map_points(stroke, piece.box, box) * side]
                draw_line(ImageDraw.Draw(canvas), points, round(width), width / 2, ink=255)
            continue
        left, top, right, bottom = (round(value * side) for value in box)
        scaled = Image.fromarray(piece.ink).resize(
            (max(1, right - left), max(1, bottom - top)), Image.Resampling.BILINEAR
        )
        canvas.paste(255, (left, top), scaled)
    return 255 - np.asarray(canvas.reduce(OVERSAMPLING))


def _map_points(points: NDArray[np.float64], source: Box, target: Box) -> NDArray[np.float64]:
    low, size = np.array(source[:2]), np.array(source[2:]) - source[:2]
    return np.array(target[:2]) + (points - low) / np.maximum(size, 1e-6) * (np.array(target[2:]) - target[:2])
