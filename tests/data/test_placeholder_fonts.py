"""Fonts that list characters of which they have no glyph: one picture for all of them is a placeholder."""

from pathlib import Path

import pytest
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from fontTools.ttLib import TTFont

from kanjilab.data.rendering import GlyphError, checked_font, default_font, draw_font, drawable_characters, draws

ASKED = "水火木金土"
BOXES = {
    ".notdef": (100, 0, 900, 900),
    "box": (200, 200, 800, 700),
    "other": (300, 0, 600, 900),
    "thin": (0, 0, 900, 90),
}


def font_of(path: Path, cmap: dict[str, str]) -> Path:
    """A font of 1000 units whose glyphs are boxes."""
    builder = FontBuilder(1000, isTTF=True)
    builder.setupGlyphOrder(list(BOXES))
    builder.setupCharacterMap({ord(character): glyph for character, glyph in cmap.items()})
    drawn = {}
    for name, (left, bottom, right, top) in BOXES.items():
        pen = TTGlyphPen(None)
        pen.moveTo((left, bottom))
        for corner in ((left, top), (right, top), (right, bottom)):
            pen.lineTo(corner)
        pen.closePath()
        drawn[name] = pen.glyph()
    builder.setupGlyf(drawn)
    builder.setupHorizontalMetrics({name: (1000, 0) for name in BOXES})
    builder.setupHorizontalHeader(ascent=900, descent=-100)
    builder.setupNameTable({"familyName": "Boxes", "styleName": "Regular"})
    builder.setupOS2()
    builder.setupPost()
    builder.save(path)
    return path


# What characters are mapped to -> which of those asked for are drawn
FONTS = {
    "all to the geta, which is listed": (dict.fromkeys(ASKED + "〓", "box"), ""),
    "all to a glyph of no other character": (dict.fromkeys(ASKED, "box") | {"一": "thin"}, ""),
    "all to one glyph, noncharacters to another": (dict.fromkeys(ASKED, "box") | {"\uffff": "other"}, ""),
    "all to .notdef": (dict.fromkeys(ASKED, ".notdef"), ""),
    "all to the replacement character": (dict.fromkeys(ASKED + "\ufffd", "other"), ""),
    "some to a placeholder": (dict.fromkeys("水火木", "box") | {"金": "other", "土": "thin"}, "金土"),
    "two to a placeholder": (dict.fromkeys("水火", "box") | {"金": "other"}, "金"),
    "one to the geta": (dict.fromkeys("水〓", "box") | {"火": "other"}, "火"),
}


@pytest.mark.parametrize("name", FONTS)
def test_what_a_font_shows_for_several_characters_is_no_drawing(name, tmp_path):
    cmap, drawn = FONTS[name]
    assert drawable_characters(ASKED, font_of(tmp_path / "boxes.ttf", cmap)) == set(drawn)


def test_a_placeholder_that_the_font_lists_is_refused_for_one_character_too(tmp_path):
    font = font_of(tmp_path / "boxes.ttf", dict.fromkeys("水〓", "box"))
    with pytest.raises(GlyphError, match="boxes.ttf has no glyph for 水"):
        draw_font("水", font)
    assert not draws("水", font) and draws("〓", font)


def test_characters_that_unicode_has_twice_are_kept(tmp_path):
    font = font_of(tmp_path / "boxes.ttf", {"金": "box", "\uf90a": "box", "水": "other", "氵": "thin"})
    assert drawable_characters("金\uf90a水氵", font) == set("金\uf90a水氵")


def test_half_of_a_good_font_given_over_to_the_geta(tmp_path):
    characters = [chr(code) for code in range(0x4E00, 0x4E40)]
    good = drawable_characters(characters, default_font())
    font = TTFont(default_font())
    geta = font.getBestCmap()[ord("〓")]
    for table in font["cmap"].tables:
        table.cmap |= {code: geta for code in table.cmap if 0x4E00 <= code < 0x4E40 and code % 2}
    font.save(tmp_path / "half_geta.ttf")
    assert drawable_characters(characters, tmp_path / "half_geta.ttf") == {c for c in good if ord(c) % 2 == 0}


@pytest.mark.parametrize(
    ("path", "came"),
    [("/dev/zero", "got a device"), ("/dev/null", "got a device"), ("/", "got a folder"), ("none.ttf", "found none")],
)
def test_a_font_is_a_file(path, came):
    with pytest.raises(GlyphError, match=f"expected a font file, {came}"):
        checked_font(Path(path))
