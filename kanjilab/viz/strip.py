"""Strips: checkpoints in columns, prompts or arms in rows; and one prompt's glyph as an animation.

Pure drawing over stored images: nothing here samples or trains. Every picture has a JSON of the same name beside it.
"""

from __future__ import annotations

import hashlib
import importlib.util
import io
import math
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.ft2font import FT2Font
from PIL import Image, ImageDraw, ImageFont

from kanjilab.core.run_folder import write_bytes_atomic, write_json_atomic
from kanjilab.data.rendering import default_font

MAX_BYTES = 500_000  # of a committed picture
PAGE, CELL, INK, SOFT, FAINT = 246, 255, 34, 102, 187  # gray levels of page, cell, labels, notes and rules
WHITE_POINT = 240  # shown as white: a decoder's blank paper is mottled just below 255
LABEL_SIZE, TITLE_SIZE, NOTE_SIZE = 0.16, 0.20, 0.13  # text heights as shares of a cell
LABEL_WIDTH = 2.35  # of row labels, at most, in cells
MAX_TEXT_CHARACTERS = 300
MAX_MARKS = 3  # combining marks on one letter
JOINERS = "\u200c\u200d"  # format characters that scripts need; all others may reorder or hide a label
ELLIPSIS = "…"


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
        for name, labels, count in (("row", self.row_labels, shape[0]), ("column", self.column_labels, shape[1])):
            if len(labels) != count:
                raise ValueError(f"expected {count} {name} labels, one per {name} of images, got {len(labels)}")
        for name, groups, count in (("row", self.row_groups, shape[0]), ("column", self.column_groups, shape[1])):
            if groups and (sum(size for _, size in groups) != count or any(size < 1 for _, size in groups)):
                raise ValueError(f"{name} groups must cover {count} {name}s, each at least one, got {groups}")


# ---------------------------------------------------------------------------------------------- text


def printable(text: str) -> str:
    """Text as it may stand on a picture: one line, nothing that hides, reorders or towers.

    Args:
        text: anything, from anybody.
    Returns:
        NFC text of at most 300 characters: white space and control characters become single spaces, direction
        overrides and the like vanish, unassigned, private and half characters become "�", and a letter keeps at
        most three combining marks.
    """
    kept: list[str] = []
    marks = 0
    for character in unicodedata.normalize("NFC", text[: 4 * MAX_TEXT_CHARACTERS]):
        category = unicodedata.category(character)
        marks = marks + 1 if category in ("Mn", "Me") else 0
        if category == "Cf" and character not in JOINERS or marks > MAX_MARKS:
            continue
        blank = category in ("Cc", "Zs", "Zl", "Zp")
        kept.append(" " if blank else "�" if category in ("Cs", "Co", "Cn") else character)
    line = " ".join("".join(kept).split())
    return line if len(line) <= MAX_TEXT_CHARACTERS else line[: MAX_TEXT_CHARACTERS - 1] + ELLIPSIS


@lru_cache(maxsize=64)
def _font(path: Path, size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(str(path), size)


@lru_cache(maxsize=16)
def _character_map(path: Path) -> FT2Font:
    return FT2Font(str(path))


def has_character(path: Path, character: str) -> bool:
    """Whether a font file maps a character to a glyph of its own (which may be blank).

    Args:
        path: font file.
        character: one character.
    Returns:
        False where the font would draw its box for the unknown.
    """
    return _character_map(path).get_char_index(ord(character)) != 0


@lru_cache(maxsize=1024)
def _system_font(character: str) -> Path | None:
    """An installed font for what the carried ones lack, as Hangul; nothing is fetched."""
    from matplotlib.font_manager import fontManager  # scans the machine's fonts: only when one is missed

    plain_first = sorted((entry.weight != 400, entry.style != "normal", entry.fname) for entry in fontManager.ttflist)
    for path in (Path(name) for *_, name in plain_first):
        try:
            if has_character(path, character):
                _font(path, 16)
                return path
        except (OSError, RuntimeError):  # a bitmap font, or one removed since the scan
            continue
    return None


def _latin_font(bold: bool = False) -> Path:
    """DejaVu Sans as matplotlib carries it: Latin, Greek, Cyrillic, Arabic, Hebrew and many symbols."""
    spec = importlib.util.find_spec("matplotlib")
    for folder in (spec.submodule_search_locations or []) if spec else []:
        path = Path(folder) / "mpl-data" / "fonts" / "ttf" / ("DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf")
        if path.is_file():
            return path
    raise FileNotFoundError("matplotlib has no DejaVuSans.ttf: expected it in matplotlib/mpl-data/fonts/ttf")


@dataclass(frozen=True)
class Typeface:
    """Several fonts as one: each character by the first that has it, else by a font of this machine.

    Args:
        paths: font files, best first.
        size: height in px.
    """

    paths: tuple[Path, ...]
    size: int

    def pieces(self, text: str) -> list[tuple[ImageFont.FreeTypeFont, str]]:
        """Stretches of text with the font that draws each; a box stands for what no font has."""
        result: list[tuple[Path, str]] = []
        for character in text:
            path = next((path for path in self.paths if has_character(path, character)), None) or _system_font(
                character
            )
            attached = unicodedata.category(character) in ("Mn", "Me", "Mc", "Cf", "Zs")
            if result and attached:
                result[-1] = (result[-1][0], result[-1][1] + character)
                continue
            path, character = (path, character) if path else (self.paths[0], "□")
            if result and result[-1][0] == path:
                result[-1] = (path, result[-1][1] + character)
            else:
                result.append((path, character))
        return [(_font(path, self.size), piece) for path, piece in result]

    def width(self, text: str) -> float:
        """Advance of the line in px."""
        return sum(font.getlength(piece) for font, piece in self.pieces(text))

    def draw(self, canvas: ImageDraw.ImageDraw, x: float, baseline: float, text: str, level: int, anchor="l") -> None:
        """Draw one line.

        Args:
            canvas: to draw on.
            x: of the line's left end, middle or right end, as `anchor` says (l, m, r), in pixels.
            baseline: of the line, in pixels from above.
            text: in any script.
            level: gray, 0 black to 255 white.
            anchor: what x means.
        """
        x -= self.width(text) * {"l": 0, "m": 0.5, "r": 1}[anchor]
        fill = level if canvas.mode == "L" else (level, level, level)
        for font, piece in self.pieces(text):
            canvas.text((x, baseline), piece, font=font, fill=fill, anchor="ls")
            x += font.getlength(piece)


def typeface(size: int, bold: bool = False) -> Typeface:
    """The face of all labels: DejaVu Sans, and IPAexGothic for kanji and kana.

    Args:
        size: height in px, >= 1.
        bold: Latin letters in bold.
    Returns:
        the face.
    """
    return Typeface((_latin_font(bold), default_font()), max(1, size))


def fit_text(text: str, face: Typeface, width_px: float, max_lines: int = 2) -> tuple[list[str], Typeface]:
    """Lay text out in a given width: wrap it, else shrink it, else cut it with an ellipsis.

    Args:
        text: any text; made printable first.
        face: wished face.
        width_px: width of the place.
        max_lines: height of the place in lines.
    Returns:
        the lines, and the face in which each is no wider than the place (down to 3/4 of the wished size).
    """
    text = printable(text)
    for size in dict.fromkeys(round(face.size * share) for share in (1, 0.875, 0.75)):
        smaller = Typeface(face.paths, max(1, size))
        lines = _wrap(text, smaller, width_px)
        if len(lines) <= max_lines and all(smaller.width(line) <= width_px for line in lines):
            return _balanced(text, smaller, lines), smaller
    last = " ".join(lines[max_lines - 1 :])
    lines = [_cut(line, smaller, width_px) for line in [*lines[: max_lines - 1], last]]
    return lines, smaller


def _wrap(text: str, face: Typeface, width_px: float) -> list[str]:
    lines = [""]
    for word in _words(text):
        longer = lines[-1] + word
        if lines[-1] and face.width(longer.rstrip()) > width_px:
            lines.append(word)
        else:
            lines[-1] = longer
    return [line.strip() for line in lines]


def _balanced(text: str, face: Typeface, lines: list[str]) -> list[str]:
    """The same number of lines, of lengths as even as their words allow."""
    while len(lines) > 1:
        narrower = _wrap(text, face, max(map(face.width, lines)) - 1)
        if len(narrower) > len(lines) or max(map(face.width, narrower)) >= max(map(face.width, lines)):
            break
        lines = narrower
    return lines


def _words(text: str) -> list[str]:
    """What may not be broken: words with the space after them, and each ideograph or kana for itself."""
    words = [""]
    for character in text:
        wide = unicodedata.east_asian_width(character) in "WF"
        closing = wide and unicodedata.category(character) in ("Pe", "Pf", "Po")  # no 、or 」 at a line's beginning
        after_wide = words[-1] and unicodedata.east_asian_width(words[-1][-1]) in "WF"
        if words[-1] and (words[-1].endswith(" ") or wide or after_wide) and not closing and character != " ":
            words.append("")
        words[-1] += character
    return words


def _cut(line: str, face: Typeface, width_px: float) -> str:
    if face.width(line) <= width_px:
        return line
    while line and face.width(line.rstrip() + ELLIPSIS) > width_px:
        line = line[:-1]
    return line.rstrip() + ELLIPSIS


def facts_line(facts: Mapping[str, Any]) -> str:
    """The scalar facts as one line: "base pocket · images seen 12,800 · guidance 3".

    Args:
        facts: names with underscores, and values; nested and empty values are left to the JSON.
    Returns:
        the line; "" where there is none.
    """
    scalars = ((key, value) for key, value in facts.items() if isinstance(value, (str, bool, int, float)))
    return " · ".join(f"{key.replace('_', ' ')} {_fact(value)}".strip() for key, value in scalars if value != "")


def _fact(value: str | bool | int | float) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}" if abs(value) >= 10_000 else str(value)
    return f"{value:.4g}" if isinstance(value, float) else value


# ---------------------------------------------------------------------------------------------- layout


@dataclass(frozen=True)
class _Layout:
    """Where the parts of a strip stand, in px."""

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
    return _Layout(cell_px, margin, label_width, x, y, x[-1] + cell_px + margin, baseline, top, footer_top, height)


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


def _column_label(strip: Strip, index: int, cell_px: int) -> tuple[list[str], Typeface]:
    return fit_text(strip.column_labels[index], typeface(round(cell_px * LABEL_SIZE * 0.9)), cell_px)


def _header_lines(strip: Strip, cell_px: int) -> int:
    return max(len(_column_label(strip, index, cell_px)[0]) for index in range(len(strip.column_labels)))


# ---------------------------------------------------------------------------------------------- drawing


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
            image.paste(_cell(strip.images[row, column], cell_px), (left, top))
    for number, line in enumerate(footer):
        baseline = layout.footer_top + round(note.size * (1.1 + 1.5 * number))
        note.draw(canvas, layout.margin, baseline, line, SOFT)
    return image


def _level(mode: str, level: int) -> int | tuple[int, int, int]:
    return level if mode == "L" else (level, level, level)


_PAPER = np.minimum(np.arange(256) * 255 / WHITE_POINT, 255).round().astype(np.uint8)


def _cell(image: np.ndarray, cell_px: int) -> Image.Image:
    if image.ndim == 2:
        image = _PAPER[image]
    return _resized(Image.fromarray(image), cell_px)


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


# ---------------------------------------------------------------------------------------------- files


def encode_png(image: Image.Image, levels: int = 16) -> bytes:
    """Compress a picture to few tones.

    Args:
        image: mode L or RGB.
        levels: gray levels (evenly spaced, and the page's own) or, for RGB, colours; 4 to 256.
    Returns:
        PNG with a palette.
    """
    if image.mode == "L":
        packed = _few_grays(image, levels)
    else:
        packed = image.quantize(levels, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
    buffer = io.BytesIO()
    bits = {4: 2, 16: 4}.get(levels, 8)
    packed.save(buffer, "PNG", optimize=True, bits=bits)
    return buffer.getvalue()


def _few_grays(image: Image.Image, levels: int) -> Image.Image:
    """The gray image with a palette: evenly spaced levels and the page's own."""
    grays = np.array(sorted({*np.linspace(0, 255, levels - 1).round().astype(int).tolist(), PAGE}))
    nearest = np.abs(np.arange(256)[:, None] - grays).argmin(axis=1).astype(np.uint8)
    packed = Image.fromarray(nearest[np.asarray(image)])
    packed.putpalette(np.repeat(grays.astype(np.uint8), 3).tobytes())
    return packed


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
    path = _checked_path(path, (".png",))
    tones = (16, 8) if strip.images.ndim == 4 else (64, 16)
    while cell_px >= 16:
        image = draw_strip(strip, cell_px)
        for levels in tones:
            if len(data := encode_png(image, levels)) < MAX_BYTES:
                _write_with_json(path, data, _strip_facts(strip, cell_px, levels, image.size))
                return path
        cell_px = int(cell_px * 0.8)
    raise ValueError(f"strip of {strip.images.shape[:2]} cells does not fit in {MAX_BYTES:,} bytes: show fewer")


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
        "images": {"shape": strip.images.shape, "sha256": _image_hash(strip.images)},
    }


def _image_hash(images: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(images).tobytes()).hexdigest()


def _checked_path(path: Path | str, endings: tuple[str, ...]) -> Path:
    path = Path(path)
    if path.suffix not in endings:
        raise ValueError(f"expected a path ending in {' or '.join(endings)}, got {str(path)!r}")
    return path


def _write_with_json(path: Path, data: bytes, facts: Mapping[str, Any]) -> None:
    write_bytes_atomic(path, data)
    write_json_atomic(path.with_suffix(".json"), facts)


def save_animation(
    frames: np.ndarray,
    labels: Sequence[str],
    path: Path | str,
    seconds_per_frame: float = 0.5,
    *,
    title: str = "",
    facts: Mapping[str, Any] | None = None,
    size_px: int = 256,
    last_frame_seconds: float = 2.5,
) -> Path:
    """Write one prompt's glyph over training as an endless animation, and a JSON beside it.

    Args:
        frames: (F, H, W) uint8, 0 = black.
        labels: one a frame, written under the glyph, as "before", "1,600 images".
        path: ends in .gif or .webp; its folder must exist.
        seconds_per_frame: how long each frame stands.
        title: written above, usually the prompt.
        facts: goes into the JSON.
        size_px: edge of the glyph.
        last_frame_seconds: how long the last one stands.
    Returns:
        the path.
    Raises:
        ValueError: an argument is not as described, or the file would reach 500 kB.
    """
    path = _checked_path(path, (".gif", ".webp"))
    if frames.ndim != 3 or frames.dtype != np.uint8 or 0 in frames.shape:
        raise ValueError(f"frames must be (F, H, W) uint8, got {frames.shape} {frames.dtype}")
    if len(labels) != len(frames):
        raise ValueError(f"expected {len(frames)} labels, one per frame, got {len(labels)}")
    if seconds_per_frame < 0.02 or last_frame_seconds < 0.02:
        raise ValueError(f"a frame must stand at least 0.02 s, got {seconds_per_frame} and {last_frame_seconds}")
    done = np.linspace(0, 1, len(frames)) if len(frames) > 1 else [1.0]
    pictures = [_draw_frame(*parts, title, size_px) for parts in zip(frames, labels, done, strict=True)]
    durations = [round(1000 * seconds_per_frame)] * (len(frames) - 1) + [round(1000 * last_frame_seconds)]
    data = _encode_animation(pictures, durations, path.suffix)
    if len(data) >= MAX_BYTES:
        raise ValueError(f"{path.name} would have {len(data):,} bytes, {MAX_BYTES:,} allowed: fewer or smaller frames")
    description = {"kind": "animation", "title": title, "labels": list(labels), "durations_ms": durations}
    images = {"shape": frames.shape, "sha256": _image_hash(frames)}
    _write_with_json(path, data, description | {"facts": dict(facts or {}), "images": images})
    return path


def _draw_frame(frame: np.ndarray, label: str, done: float, title: str, size_px: int) -> Image.Image:
    margin, line = round(size_px * 0.07), round(size_px * 0.13)
    top = margin + (line if title else 0)
    image = Image.new("L", (size_px + 2 * margin, top + size_px + line + margin), PAGE)
    canvas = ImageDraw.Draw(image)
    image.paste(_cell(frame, size_px), (margin, top))
    middle = margin + size_px / 2
    if title:
        (text,), face = fit_text(title, typeface(round(size_px * 0.075), bold=True), size_px, max_lines=1)
        face.draw(canvas, middle, margin + round(line * 0.45), text, INK, "m")
    rule = top + size_px + max(2, round(size_px * 0.012))
    thick = max(2, round(size_px * 0.012))
    canvas.line((margin, rule, margin + size_px - 1, rule), 221, thick)
    canvas.line((margin, rule, margin + round(done * (size_px - 1)), rule), SOFT, thick)
    (text,), face = fit_text(label, typeface(round(size_px * 0.068)), size_px, max_lines=1)
    face.draw(canvas, middle, top + size_px + round(line * 0.9), text, SOFT, "m")
    return image


def _encode_animation(pictures: Sequence[Image.Image], durations: Sequence[int], ending: str) -> bytes:
    buffer = io.BytesIO()
    options: dict[str, Any] = {"save_all": True, "duration": list(durations), "loop": 0}
    if ending == ".gif":
        reduced = [_few_grays(picture, 16) for picture in pictures]
        reduced[0].save(buffer, "GIF", append_images=reduced[1:], optimize=True, **options)
    else:
        pictures = [picture.convert("RGB") for picture in pictures]
        pictures[0].save(buffer, "WEBP", append_images=pictures[1:], quality=80, method=4, **options)
    return buffer.getvalue()
