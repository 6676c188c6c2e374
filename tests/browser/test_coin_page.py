"""The page that coins, in Chromium: a hostile phrase, cards by keyboard, the dark theme, downloads, gallery."""

import io

import numpy as np
from PIL import Image
from playwright.sync_api import expect

from .hostile import obeyed
from .pixels import pixels

HOSTILE = """<img src=x onerror="window.obeyed=1"> fire jewel"""
SETUP = """
import sys
sys.path.insert(0, {root!r})
from functools import partial
from kanjilab.evaluation import criteria
from kanjilab.evaluation.judges.nearest_character import Neighbours
from kanjilab.data.rendering import default_font
from kanjilab.experiments.coining import coin
from kanjilab.widgets import Playground, coin_page, generation
from tests.typeset_writer import COMPARED, draw, word_vectors

few = Neighbours.fit(COMPARED, default_font())
criteria.Neighbours.load_or_fit = lambda cache: few
coin_page.coin = partial(coin, draw=draw, embed=word_vectors)
generation.Models.load = lambda self, request: (None, None)
panel = Playground(None, history={history!r})
panel.coining.noises.value, panel.coining.keep.value = 2, 3
panel
"""


def test_coin_choose_download_and_keep(open_notebook, pytestconfig, tmp_path):
    notebook = open_notebook([SETUP.format(root=str(pytestconfig.rootpath), history=str(tmp_path / "kept")), "1"])
    page = notebook.page
    notebook.use_theme("Dark")
    page.evaluate("void jupyterapp.commands.execute('notebook:run-cell')")
    place = notebook.output(0)
    place.get_by_role("tab", name="Coin a kanji").click()
    expect(place.get_by_text("about ")).to_contain_text("up to 10 candidates")
    phrase = place.get_by_label("Phrase", exact=True)
    phrase.fill(HOSTILE)
    phrase.press("Enter")
    cards = place.get_by_role("group", name="Coined, best first", exact=True)
    expect(cards.get_by_role("radio").first).to_be_checked()
    expect(place.get_by_role("group", name="Candidates, as they are drawn").locator("img")).to_have_count(10)
    expect(cards.locator("label").first).to_contain_text("5 of 5 criteria")
    cards.get_by_role("radio").first.focus()
    for key in ("ArrowRight", "b", "d", "d", "x"):
        page.keyboard.press(key)
    expect(cards.get_by_role("radio").nth(1)).to_be_checked()
    assert notebook.selection() == (0, 2), "keys reached JupyterLab"
    expect(place.get_by_role("heading", name="2. not in the list of 8,788 characters")).to_be_visible()
    with page.expect_download() as download:
        place.get_by_role("link", name="PNG", exact=True).click()
    assert download.value.suggested_filename.endswith("-2.png")
    saved = np.asarray(Image.open(io.BytesIO(download.value.path().read_bytes())).convert("L"))
    assert np.array_equal(saved, pixels(cards.locator("img").nth(1)))
    place.get_by_role("button", name="Keep this glyph").click()
    expect(place.get_by_role("group", name="Gallery", exact=True).locator("img")).to_have_count(1)
    ink, paper = cards.locator("label").first.evaluate(
        "card => [getComputedStyle(card).color, getComputedStyle(card.closest('.jp-Notebook')).backgroundColor]"
        ".map(colour => colour.match(/[0-9.]+/g).slice(0, 3).map(Number).reduce((sum, value) => sum + value))"
    )
    assert abs(ink - paper) > 400, "text is legible in this theme"
    assert not obeyed(page)
    notebook.screenshot("coin_page_dark")
