"""Text in pictures: made printable, drawn by a font that has each character, and wrapped to a width."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from matplotlib.ft2font import FT2Font
from PIL import ImageDraw, ImageFont

from kanjilab.core.storage import package_file
from kanjilab.data.rendering import default_font

MAX_TEXT_CHARACTERS = 300
MAX_MARKS = 3  # combining marks on one letter
JOINERS = "\u200c\u200d"  # format characters that scripts need; all others may reorder or hide a label
ELLIPSIS = "…"


def printable(text: str) -> str:
    """Text made fit for a picture: one line, nothing that hides, reorders or towers.

    Args:
        text: of any origin.
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
    """Whether a font file has a glyph for a character (which may be blank), other than its box for the unknown."""
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
    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    if (font := package_file("matplotlib", f"mpl-data/fonts/ttf/{name}")) is None:
        raise FileNotFoundError(f"matplotlib has no {name}: expected it in matplotlib/mpl-data/fonts/ttf")
    return font


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
        """Stretches of text with the font that draws each; a box replaces what no font has."""
        result: list[tuple[Path, str]] = []
        for character in text:
            carried = (path for path in self.paths if has_character(path, character))
            path = next(carried, None) or _system_font(character)
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
    """The face of all labels, `size` px high: DejaVu Sans, bold if wished, and IPAexGothic for kanji and kana."""
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
    """What may not be broken: words with the space or semicolon after them, and each ideograph or kana for itself."""
    words = [""]
    for character in text:
        wide = unicodedata.east_asian_width(character) in "WF"
        closing = wide and unicodedata.category(character) in ("Pe", "Pf", "Po")  # no 、or 」 at a line's beginning
        after_wide = words[-1] and unicodedata.east_asian_width(words[-1][-1]) in "WF"
        if words[-1] and (words[-1].endswith((" ", ";")) or wide or after_wide) and not closing and character != " ":
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
