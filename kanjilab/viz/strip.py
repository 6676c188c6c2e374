"""Strips: checkpoints in columns, prompts or arms in rows, drawn from stored images."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from kanjilab.viz.picture_files import MAX_BYTES, PAGE, checked_path, encode_png, image_facts, write_picture
from kanjilab.viz.text import Typeface, facts_line, fit_text, printable, typeface

CELL, INK, SOFT, FAINT = 255, 34, 102, 187  # gray levels of cell, labels, notes and rules
WHITE_POINT = 240  # shown as white: a decoder's blank paper is mottled just below 255
WHITENED = np.minimum(np.arange(256) * 255 / WHITE_POINT, 255).round().astype(np.uint8)
LABEL_SIZE, TITLE_SIZE, NOTE_SIZE = 0.16, 0.20, 0.13  # text heights as shares of a cell
LABEL_WIDTH = 2.35  # of row labels, at most, in cells
TITLE_WIDTH = 5.0  # to which a title widens a narrow strip, at most, in cells
COLUMN_LINES = 5  # of a column label, at most


@dataclass(frozen=True)
class Strip:
    """Images by row and column with what is written around them.

    Args:
        images: (rows, columns, H, W) or (rows, columns, H, W, 3) uint8, 0 = black.
        row_labels: one a row, usually the prompt, in any script.
        column_labels: one a column, as ("before", "400", "1,600 images", "final").
        title: one line above; "" for none.
        facts: what made the images; scalar facts are printed below, all go into the JSON.
        row_groups: (heading, number of rows) from the top; () for none. The numbers add up to the rows.
        column_groups: (heading, number of columns) from the left; () for none.
    Raises:
        ValueError: an argument is not as described; says what was expected and what came.
    """

    images: np.ndarray
    row_labels: tuple[str, ...]
    column_labels: tuple[str, ...]
    title: str = ""
    facts: Mapping[str, Any] = field(default_factory=dict)
    row_groups: tuple[tuple[str, int], ...] = ()
    column_groups: tuple[tuple[str, int], ...] = ()

    def __post_init__(self) -> None:
        shape = self.images.shape
        if self.images.dtype != np.uint8 or 0 in shape or not (len(shape) == 4 or len(shape) == 5 and shape[4] == 3):
            raise ValueError(f"images must be (rows, columns, H, W[, 3]) uint8, got {shape} {self.images.dtype}")
        rows = "row", self.row_labels, self.row_groups, shape[0]
        for name, labels, groups, count in (rows, ("column", self.column_labels, self.column_groups, shape[1])):
            if len(labels) != count:
                raise ValueError(f"expected {count} {name} labels, one per {name} of images, got {len(labels)}")
            if groups and (sum(size for _, size in groups) != count or any(size < 1 for _, size in groups)):
                raise ValueError(f"{name} groups must cover {count} {name}s, each at least one, got {groups}")


@dataclass(frozen=True)
class _Layout:
    """Where the parts of a strip are, in px."""

    cell_px: int
    margin: int
    label_width: int
    x: tuple[int, ...]  # left edge of each column
    y: tuple[int, ...]  # upper edge of each row
    width: int
    title_baseline: int
    header_bottom: int
    footer_top: int
    height: int


def _lay_out(strip: Strip, cell_px: int, footer_lines: int) -> _Layout:
    rows, columns = strip.images.shape[:2]
    gap, margin = max(2, round(cell_px * 0.045)), round(cell_px * 0.24)
    line = round(cell_px * LABEL_SIZE * 1.3)
    label_width = _label_width(strip, cell_px)
    left = margin + label_width + (round(cell_px * 0.16) if label_width else 0)
    x = _edges(left, columns, cell_px + gap, strip.column_groups, round(cell_px * 0.22))
    title_height = round(cell_px * TITLE_SIZE * 1.9) if strip.title else 0
    header = _header_lines(strip, cell_px) * line + round(cell_px * 0.06)
    header += round(line * 1.25) if strip.column_groups else 0
    top = margin + title_height + header
    heading = round(line * 1.7)
    first = top + (heading if strip.row_groups and strip.row_groups[0][0] else 0)
    y = _edges(first, rows, cell_px + gap, strip.row_groups, heading + round(cell_px * 0.06))
    footer_top = y[-1] + cell_px + round(cell_px * 0.2)
    footer = footer_lines * round(cell_px * NOTE_SIZE * 1.5)
    height = footer_top + footer + round(margin * 0.7) if footer else y[-1] + cell_px + margin
    baseline = margin + round(cell_px * TITLE_SIZE)
    width = max(x[-1] + cell_px, margin + _title_width(strip, cell_px)) + margin
    return _Layout(cell_px, margin, label_width, x, y, width, baseline, top, footer_top, height)


def _edges(start: int, count: int, pitch: int, groups: Sequence[tuple[str, int]], gap: int) -> tuple[int, ...]:
    firsts = set(accumulate(size for _, size in groups[:-1]))  # a wider gap before each group but the first
    edges, position = [], start
    for index in range(count):
        position += gap if index in firsts else 0
        edges.append(position)
        position += pitch
    return tuple(edges)


def _label_width(strip: Strip, cell_px: int) -> int:
    """As wide as the longest row label, within LABEL_WIDTH cells: longer ones wrap."""
    face = typeface(round(cell_px * LABEL_SIZE))
    widest = max(face.width(printable(label)) for label in strip.row_labels)
    return min(math.ceil(widest), round(cell_px * LABEL_WIDTH))


def _title_width(strip: Strip, cell_px: int) -> int:
    title = typeface(round(cell_px * TITLE_SIZE), bold=True).width(printable(strip.title))
    return min(math.ceil(title), round(cell_px * TITLE_WIDTH))


def _column_label(strip: Strip, index: int, cell_px: int) -> tuple[list[str], Typeface]:
    return fit_text(strip.column_labels[index], typeface(round(cell_px * LABEL_SIZE * 0.9)), cell_px, COLUMN_LINES)


def _header_lines(strip: Strip, cell_px: int) -> int:
    return max(len(_column_label(strip, index, cell_px)[0]) for index in range(len(strip.column_labels)))


def draw_strip(strip: Strip, cell_px: int = 96) -> Image.Image:
    """Draw a strip.

    Args:
        strip: what to draw.
        cell_px: edge of a cell; images of another size are resized (Lanczos; nearest for whole-number enlargement).
            Text scales with it.
    Returns:
        PIL image, mode L for gray images and RGB for colour.
    Raises:
        ValueError: cell_px under 16.
    """
    if cell_px < 16:
        raise ValueError(f"cell_px must be >= 16, got {cell_px}")
    note = typeface(round(cell_px * NOTE_SIZE))
    width = _lay_out(strip, cell_px, 0).width
    margin = round(cell_px * 0.24)
    footer, note = fit_text(facts_line(strip.facts), note, width - 2 * margin) if strip.facts else ([], note)
    layout = _lay_out(strip, cell_px, len(footer) if any(footer) else 0)
    mode = "L" if strip.images.ndim == 4 else "RGB"
    image = Image.new(mode, (layout.width, layout.height), _level(mode, PAGE))
    canvas = ImageDraw.Draw(image)
    _draw_title(canvas, strip, layout)
    _draw_column_labels(canvas, strip, layout)
    _draw_row_labels(canvas, strip, layout)
    for row, top in enumerate(layout.y):
        for column, left in enumerate(layout.x):
            image.paste(draw_cell(strip.images[row, column], cell_px), (left, top))
    for number, line in enumerate(footer):
        baseline = layout.footer_top + round(note.size * (1.1 + 1.5 * number))
        note.draw(canvas, layout.margin, baseline, line, SOFT)
    return image


def _level(mode: str, level: int) -> int | tuple[int, int, int]:
    return level if mode == "L" else (level, level, level)


def draw_cell(image: np.ndarray, cell_px: int) -> Image.Image:
    """One image, (H, W) or (H, W, 3) uint8, at the size of a cell; nearly white paper of a gray one becomes white."""
    return _resized(Image.fromarray(WHITENED[image] if image.ndim == 2 else image), cell_px)


def _resized(picture: Image.Image, size_px: int) -> Image.Image:
    if picture.size == (size_px, size_px):
        return picture
    longest = max(picture.size)
    exact = size_px % longest == 0 and size_px // longest >= 4  # tiny images: show their pixels as they are
    width, height = (max(1, round(edge * size_px / longest)) for edge in picture.size)
    picture = picture.resize((width, height), Image.Resampling.NEAREST if exact else Image.Resampling.LANCZOS)
    if picture.size == (size_px, size_px):
        return picture
    square = Image.new(picture.mode, (size_px, size_px), _level(picture.mode, CELL))
    square.paste(picture, ((size_px - width) // 2, (size_px - height) // 2))
    return square


def _draw_title(canvas: ImageDraw.ImageDraw, strip: Strip, layout: _Layout) -> None:
    if strip.title:
        face = typeface(round(layout.cell_px * TITLE_SIZE), bold=True)
        (line,), face = fit_text(strip.title, face, layout.width - 2 * layout.margin, max_lines=1)
        face.draw(canvas, layout.margin, layout.title_baseline, line, INK)


def _draw_column_labels(canvas: ImageDraw.ImageDraw, strip: Strip, layout: _Layout) -> None:
    line = round(layout.cell_px * LABEL_SIZE * 1.3)
    bottom = layout.header_bottom - round(layout.cell_px * 0.09)
    for index, left in enumerate(layout.x):
        lines, face = _column_label(strip, index, layout.cell_px)
        for number, text in enumerate(reversed(lines)):
            face.draw(canvas, left + layout.cell_px / 2, bottom - number * line, text, INK, "m")
    if not strip.column_groups:
        return
    y = layout.header_bottom - round(layout.cell_px * 0.06) - _header_lines(strip, layout.cell_px) * line
    note = typeface(round(layout.cell_px * NOTE_SIZE))
    starts = [0, *accumulate(size for _, size in strip.column_groups)]
    for (heading, size), start in zip(strip.column_groups, starts, strict=False):
        left, right = layout.x[start], layout.x[start + size - 1] + layout.cell_px
        canvas.line((left, y, right - 1, y), _level(canvas.mode, FAINT), 1)
        lines, face = fit_text(heading, note, right - left, max_lines=1)
        face.draw(canvas, left, y - round(layout.cell_px * 0.05), lines[0], SOFT)


def _draw_row_labels(canvas: ImageDraw.ImageDraw, strip: Strip, layout: _Layout) -> None:
    right = layout.margin + layout.label_width
    for label, top in zip(strip.row_labels, layout.y, strict=True):
        face = typeface(round(layout.cell_px * LABEL_SIZE))
        lines, face = fit_text(label, face, layout.label_width)
        pitch = face.size * 1.3
        first = top + layout.cell_px / 2 - pitch * (len(lines) - 1) / 2 + face.size * 0.36  # centre of x-height letters
        for number, text in enumerate(lines):
            face.draw(canvas, right, round(first + pitch * number), text, INK, "r")
    note = typeface(round(layout.cell_px * NOTE_SIZE))
    starts = [0, *accumulate(size for _, size in strip.row_groups)]
    for (heading, _), start in zip(strip.row_groups, starts, strict=False):
        baseline = layout.y[start] - round(layout.cell_px * 0.1)
        if printable(heading):
            (line,), face = fit_text(heading, note, layout.width - layout.x[0] - layout.margin, max_lines=1)
            face.draw(canvas, layout.x[0], baseline, line, SOFT)


def seen_label(images_seen: int) -> str:
    """Label of a checkpoint: "before" or "1,600"."""
    return f"{images_seen:,}" if images_seen else "before"


def save_strip(strip: Strip, path: Path | str, cell_px: int = 96) -> Path:
    """Write a strip as PNG, and its labels and facts as JSON of the same name beside it.

    Args:
        strip: what to draw.
        path: ends in .png; its folder must exist.
        cell_px: edge of a cell; made smaller, after the number of tones, until the file is under 500 kB.
    Returns:
        the PNG's path.
    Raises:
        ValueError: another ending, or a strip so large that 16 px cells do not fit in 500 kB.
    """
    path = checked_path(path, (".png",))
    tones = (16, 8) if strip.images.ndim == 4 else (64, 16)
    while cell_px >= 16:
        image = draw_strip(strip, cell_px)
        for levels in tones:
            if len(data := encode_png(image, levels)) < MAX_BYTES:
                return write_picture(path, data, _strip_facts(strip, cell_px, levels, image.size))
        cell_px = int(cell_px * 0.8)
    raise ValueError(f"strip of {strip.images.shape[:2]} cells does not fit in {MAX_BYTES:,} bytes: show fewer")


def strip_cells(picture: np.ndarray, facts: Mapping[str, Any]) -> np.ndarray:
    """Cuts a saved strip into its images.

    Args:
        picture: (H, W) or (H, W, 3) uint8, as `save_strip` wrote it.
        facts: the JSON beside it.
    Returns:
        (rows, columns, edge, edge) or (rows, columns, edge, edge, 3) uint8, the cells as they were drawn.
    Raises:
        ValueError: the picture is not of the size that the facts name.
    """
    width, height = facts["picture"]["size_px"]
    if picture.shape[:2] != (height, width):
        raise ValueError(f"expected a picture of {width} x {height} px, got {picture.shape[1]} x {picture.shape[0]}")
    rows, columns = tuple(facts["row_labels"]), tuple(facts["column_labels"])
    row_groups, column_groups = (
        tuple((text, size) for text, size in facts[name]) for name in ("row_groups", "column_groups")
    )
    blank = np.zeros((len(rows), len(columns), 1, 1), np.uint8)
    edge = facts["picture"]["cell_px"]
    strip = Strip(blank, rows, columns, facts["title"], row_groups=row_groups, column_groups=column_groups)
    layout = _lay_out(strip, edge, 0)
    return np.stack(
        [np.stack([picture[top : top + edge, left : left + edge] for left in layout.x]) for top in layout.y]
    )


def _strip_facts(strip: Strip, cell_px: int, levels: int, size: tuple[int, int]) -> dict[str, Any]:
    return {
        "kind": "strip",
        "title": strip.title,
        "row_labels": strip.row_labels,
        "column_labels": strip.column_labels,
        "row_groups": strip.row_groups,
        "column_groups": strip.column_groups,
        "facts": strip.facts,
        "picture": {"size_px": size, "cell_px": cell_px, "tones": levels, "white_point": WHITE_POINT},
        "images": image_facts(strip.images),
    }
