"""Coined glyphs in Chromium: the SVG beside the PNG, the card in both themes, and its font."""

import base64
import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Page, expect

from kanjilab.cli.coin_card import card_html
from kanjilab.data.rendering import default_font, draw_font
from kanjilab.experiments.coining import Coinage, Coined
from kanjilab.export.font import build_font, font_bytes
from kanjilab.export.vectors import glyph_outline, svg_of
from tests.certificates import certificate

from .hostile import obeyed

GLYPHS = "国龍木口一"
DIFFERENCE_MOST = 4.0  # of 255, mean over all pixels


def picture(character: str) -> np.ndarray:
    return np.asarray(draw_font(character, default_font()))


@pytest.mark.parametrize("character", GLYPHS)
def test_the_svg_looks_like_the_png(character: str, page: Page):
    image = picture(character)
    data = base64.b64encode(svg_of(glyph_outline(image), character).encode()).decode()
    page.set_content(f'<img style="width: 128px; background: white" src="data:image/svg+xml;base64,{data}">')
    page.locator("img").evaluate("image => image.decode()")
    shot = Image.open(io.BytesIO(page.locator("img").screenshot())).convert("L")
    assert shot.size == (128, 128)
    assert np.abs(np.asarray(shot, float) - image).mean() <= DIFFERENCE_MOST


def card(phrase: str = "queen of dragons") -> str:
    """A card of three glyphs that are characters: only their looks count here."""
    images = [picture(character) for character in GLYPHS[:3]]
    outlines = [glyph_outline(image) for image in images]
    glyphs = tuple(Coined(image, certificate()) for image in images)
    coinage = Coinage(phrase, "", (), 24, {"not well-formed": 2}, glyphs)
    return card_html(coinage, outlines, font_bytes(build_font(outlines), "woff2"))


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1200, 390])
def test_the_card_is_readable_in_both_themes(scheme, width: int, page: Page, screenshots: Path):
    page.emulate_media(color_scheme=scheme)
    page.set_viewport_size({"width": width, "height": 900})
    page.set_content(card())
    expect(page.get_by_role("heading", name="queen of dragons")).to_be_visible()
    colours = page.evaluate(
        "() => ['color', 'background-color'].map(name => getComputedStyle(document.body).getPropertyValue(name))"
    )
    ink, paper = (sum(map(int, colour.strip("rgb()").split(","))) for colour in colours)
    assert (ink < paper) == (scheme == "light") and abs(ink - paper) > 500
    page.evaluate("async () => { await document.fonts.ready }")
    assert page.evaluate("() => document.documentElement.scrollWidth <= innerWidth"), "wider than the window"
    page.screenshot(path=screenshots / f"coin_card_{scheme}_{width}.png", full_page=True)


def test_the_card_types_its_glyphs_in_its_own_font(page: Page):
    page.set_content(card())
    assert page.evaluate(
        "() => document.fonts.ready.then(() => document.fonts.check('20px \"kanjilab coined\"', '\\ue000'))"
    )
    wide = page.locator(".typed").evaluate(
        "node => { const range = document.createRange(); range.setStart(node.firstChild, 0); "
        "range.setEnd(node.firstChild, 1); return [range.getBoundingClientRect().width, "
        "parseFloat(getComputedStyle(node).fontSize)]; }"
    )
    assert wide[0] == pytest.approx(wide[1], abs=0.5)  # one em, as the font says


def test_markup_in_a_phrase_is_shown(page: Page):
    hostile = '<img src=x onerror="window.obeyed=1">'
    page.set_content(card(hostile))
    expect(page.get_by_role("heading", name=hostile)).to_be_visible()
    assert not obeyed(page)
