"""A small font of glyphs that no code has: they are in the private use area, from U+E000."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

from kanjilab.core.images import SIZE_PX
from kanjilab.export.vectors import Contour, Outline

FIRST_CODE = 0xE000
GLYPHS_MAX = 6400  # codes in the private use area
UNITS = 1024  # per em: 8 to a pixel
DESCENT_PX = 16  # of the picture, below the baseline
MADE = 3_786_912_000  # seconds from 1904 to 2024
FAMILY = "kanjilab coined"
SCALE = UNITS // SIZE_PX


def build_font(outlines: Sequence[Outline], family: str = FAMILY) -> Any:
    """A TrueType font with the glyphs at U+E000 and after, a space, and an empty box for all else.

    Args:
        outlines: of 128 px pictures.
        family: name of the font.
    Returns:
        A `fontTools.ttLib.TTFont`.
    Raises:
        ValueError: no outlines, or more than the private use area has codes for.
    """
    from fontTools.fontBuilder import FontBuilder

    if not 1 <= len(outlines) <= GLYPHS_MAX:
        raise ValueError(f"expected 1 to {GLYPHS_MAX} glyphs, got {len(outlines)}")
    names = [f"uni{FIRST_CODE + number:04X}" for number in range(len(outlines))]
    glyphs = {".notdef": _drawn(_box()), "space": _drawn(())}
    glyphs |= {name: _drawn(outline) for name, outline in zip(names, outlines, strict=True)}
    font = FontBuilder(UNITS, isTTF=True)
    font.setupGlyphOrder(list(glyphs))
    codes = {FIRST_CODE + number: name for number, name in enumerate(names)}
    font.setupCharacterMap({0x20: "space"} | codes)
    font.setupGlyf(glyphs)
    widths = dict.fromkeys(glyphs, UNITS) | {"space": UNITS // 4}
    font.setupHorizontalMetrics({name: (width, getattr(glyphs[name], "xMin", 0)) for name, width in widths.items()})
    descent = DESCENT_PX * SCALE
    font.setupHorizontalHeader(ascent=UNITS - descent, descent=-descent)
    font.setupNameTable({"familyName": family, "styleName": "Regular", "psName": family.replace(" ", "-")})
    font.setupOS2(sTypoAscender=UNITS - descent, sTypoDescender=-descent, usWinAscent=UNITS, usWinDescent=descent)
    font.setupPost()
    head: Any = font.font["head"]
    head.created = head.modified = MADE  # the same glyphs give the same file
    font.font.recalcTimestamp = False
    return font.font


def font_bytes(font: Any, flavor: str | None = None) -> bytes:
    """The font as a file: TrueType, or "woff2" for web pages."""
    font.flavor = flavor
    buffer = io.BytesIO()
    font.save(buffer)
    return buffer.getvalue()


def _drawn(outline: Outline) -> Any:
    from fontTools.pens.ttGlyphPen import TTGlyphPen

    pen = TTGlyphPen(None)
    for contour in outline:
        _draw(pen, [(SCALE * x, UNITS - SCALE * (y + DESCENT_PX), on) for x, y, on in contour])
    return pen.glyph()


def _draw(pen: Any, points: list[tuple[float, float, bool]]) -> None:
    start = next((index for index, point in enumerate(points) if point[2]), None)
    if start is None:
        pen.qCurveTo(*[_rounded(point) for point in points], None)
        pen.closePath()
        return
    pen.moveTo(_rounded(points[start]))
    controls: list[tuple[int, int]] = []
    for point in [*points[start + 1 :], *points[: start + 1]]:
        controls.append(_rounded(point))
        if point[2]:
            pen.qCurveTo(*controls)
            controls = []
    pen.closePath()


def _rounded(point: tuple[float, float, bool]) -> tuple[int, int]:
    return round(point[0]), round(point[1])


def _box() -> Outline:
    """The sign for what the font does not have."""
    outer: Contour = ((16, 16, True), (112, 16, True), (112, 112, True), (16, 112, True))
    inner: Contour = ((24, 24, True), (24, 104, True), (104, 104, True), (104, 24, True))
    return outer, inner
