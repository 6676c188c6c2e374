"""The font of coined glyphs, drawn by FreeType beside the pictures it was made from."""

import io

import numpy as np
import pytest
from fontTools.ttLib import TTFont
from PIL import Image, ImageDraw, ImageFont

from kanjilab.data.rendering import default_font, draw_font
from kanjilab.export.font import FAMILY, build_font, font_bytes
from kanjilab.export.vectors import glyph_outline, trace

GLYPHS = "国龍木口一"
DIFFERENCE_MOST = 4.0  # of 255, mean over all pixels: what tracing a gray picture costs


@pytest.fixture(scope="module")
def images():
    return [np.asarray(draw_font(character, default_font())) for character in GLYPHS]


@pytest.fixture(scope="module")
def truetype(images):
    return font_bytes(build_font([glyph_outline(image) for image in images]))


def typed(data, text):
    """(128, 128) uint8 of a sign typed at 128 px, its baseline 16 px above the bottom."""
    image = Image.new("L", (128, 128), 255)
    font = ImageFont.truetype(io.BytesIO(data), 128)
    ImageDraw.Draw(image).text((0, 112), text, font=font, fill=0, anchor="ls")
    return np.asarray(image)


def test_typed_glyphs_look_like_their_pictures(truetype, images):
    for number, image in enumerate(images):
        drawn = typed(truetype, chr(0xE000 + number))
        assert np.abs(drawn.astype(float) - image).mean() <= DIFFERENCE_MOST, GLYPHS[number]
        shifted = np.roll(drawn, 2, axis=1).astype(float)
        assert np.abs(shifted - image).mean() > np.abs(drawn.astype(float) - image).mean()


def test_codes_are_private_and_others_are_boxes(truetype):
    font = TTFont(io.BytesIO(truetype))
    assert font.getBestCmap() == {0x20: "space"} | {0xE000 + n: f"uni{0xE000 + n:04X}" for n in range(len(GLYPHS))}
    assert font["name"].getDebugName(1) == FAMILY
    assert (typed(truetype, " ") == 255).all()
    assert (typed(truetype, "水") == typed(truetype, "木")).all() and (typed(truetype, "水") < 128).any()


def test_the_web_font_holds_the_same_glyphs(images):
    font = build_font([trace(images[3])])
    web = font_bytes(font, "woff2")
    again = TTFont(io.BytesIO(web))
    assert web[:4] == b"wOF2" and again.flavor == "woff2"
    again.flavor = None
    plain = io.BytesIO()
    again.save(plain)
    assert (typed(plain.getvalue(), "\ue000") == typed(font_bytes(font), "\ue000")).all()


def test_the_same_glyphs_give_the_same_file(images, truetype):
    assert font_bytes(build_font([glyph_outline(image) for image in images])) == truetype


def test_a_font_of_nothing_is_refused():
    with pytest.raises(ValueError, match="expected 1 to 6400 glyphs, got 0"):
        build_font([])
