"""The playground as a person uses it: type, draw, choose, follow a glyph as it forms, save, and restart."""

import hashlib
import re

import numpy as np
import pytest
from playwright.sync_api import Locator, expect

from kanjilab.core.config import Arm
from kanjilab.training.loop import train
from tests.tiny import tiny_encoded

from .pixels import pixels

HOSTILE = """<img src=x onerror="window.obeyed=1"> water"""
SLOW_MS = 120_000
STEPS, GLYPHS = 5, 3
SETUP = """
import sys
sys.path.insert(0, {root!r})
from functools import partial
from hashlib import sha256
from pathlib import Path
from kanjilab.data.rendering import default_font
from kanjilab.evaluation.judges.nearest_character import Neighbours
from kanjilab.models.sampling import Sampling, sample
from kanjilab.widgets import Playground, generation
from kanjilab.widgets.generation import Request

few = Neighbours.fit(list("水火魚王休木人口"), default_font())
Neighbours.load_or_fit = lambda cache: few
generation.sample = partial(sample, size_px=32)
request = Request({prompt!r}, tuple(range({glyphs})), Sampling(steps={steps}), Path({run!r}))
panel = Playground({runs!r}, request, history={history!r})
panel
"""
HASHES = "print(*(sha256(panel.glyphs.images[one].tobytes()).hexdigest() for one in panel._order))"


@pytest.fixture
def cells(base, tmp_path, pytestconfig):
    """Sources of a notebook with a panel, over one tiny run of two checkpoints."""
    run, arm = tmp_path / "runs" / "mine" / "run", Arm(targets="all", rank=2, peak_lr=0.02, images_seen=6, batch=2)
    for _ in train(base, tiny_encoded(base), [arm], run, checkpoints=2):
        pass
    words = dict(root=str(pytestconfig.rootpath), runs=str(tmp_path / "runs"), run=str(run), prompt="water castle")
    words |= dict(history=str(tmp_path / "kept"), steps=STEPS, glyphs=GLYPHS)
    return [SETUP.format(**words), HASHES, "1"]


def group(place: Locator, name: str) -> Locator:
    """The glyphs of one grid."""
    return place.get_by_role("group", name=name, exact=True).locator("img")


def radio(place: Locator, name: str, index: int) -> Locator:
    """What chooses one of a grid's glyphs."""
    return place.get_by_role("group", name=name, exact=True).get_by_role("radio").nth(index)


def button(place: Locator, name: str) -> Locator:
    return place.get_by_role("button", name=name, exact=True)


def digest(image: Locator) -> str:
    return hashlib.sha256(pixels(image).tobytes()).hexdigest()


def draw(place: Locator) -> None:
    """Wait until all is drawn and explained."""
    expect(place.get_by_text(f"{GLYPHS} drawn, ")).to_be_visible(timeout=SLOW_MS)
    expect(button(place, "Draw")).to_be_enabled(timeout=SLOW_MS)


def test_type_draw_choose_and_step_through(open_notebook, cells):
    notebook = open_notebook(cells)
    page = notebook.page
    page.evaluate("void jupyterapp.commands.execute('notebook:run-cell')")
    place = notebook.output(0)
    expect(button(place, "Draw")).to_be_visible(timeout=SLOW_MS)
    prompt = place.get_by_label("Prompt", exact=True)
    prompt.fill("fire water")
    prompt.press("Enter")  # by keyboard
    draw(place)
    candidates, forming = group(place, "Glyphs, best first"), group(place, "How it formed, step by step")
    assert candidates.count() == GLYPHS
    page.evaluate("jupyterapp.shell.currentWidget.content.activeCellIndex = 1")
    notebook.command("notebook:run-cell")
    shown = [digest(candidates.nth(at)) for at in range(GLYPHS)]
    assert shown == notebook.text(1).split(), "each picture is the glyph of its place"
    place = notebook.output(0)

    expect(forming).to_have_count(STEPS)
    large = place.get_by_alt_text(re.compile(f"^step {STEPS}$")).last
    assert np.array_equal(pixels(large), pixels(candidates.first)), "the last step is the glyph"
    place.get_by_role("radio", name="step 2").click()
    large = place.get_by_alt_text("step 2").last
    assert np.array_equal(pixels(large), pixels(forming.nth(1)))
    page.keyboard.press("ArrowRight")
    large = place.get_by_alt_text("step 3").last
    expect(place.get_by_alt_text("step 3")).to_have_count(2)
    assert np.array_equal(pixels(large), pixels(forming.nth(2)))
    assert not np.array_equal(pixels(forming.nth(0)), pixels(forming.nth(STEPS - 1)))

    first = forming.last.get_attribute("src")
    radio(place, "Glyphs, best first", 1).click()  # another glyph, and how that one formed
    expect(forming.last).not_to_have_attribute("src", first, timeout=SLOW_MS)
    expect(forming).to_have_count(STEPS)
    assert digest(forming.last) == shown[1]
    for key in ("b", "d", "d", "x"):
        page.keyboard.press(key)
    assert (notebook.active_cell, len(notebook.cells())) == (0, 3), "keys reached JupyterLab"
    notebook.screenshot("playground")


def test_a_hostile_prompt_stays_text_and_the_history_is_kept(open_notebook, cells):
    notebook = open_notebook(cells)
    page = notebook.page
    page.evaluate("void jupyterapp.commands.execute('notebook:run-cell')")
    place = notebook.output(0)
    place.get_by_label("Prompt", exact=True).fill(HOSTILE, timeout=SLOW_MS)
    place.get_by_label("Checkpoint", exact=True).select_option("before training")
    button(place, "Draw").click()
    draw(place)
    assert HOSTILE in group(place, "History").first.get_attribute("alt")
    explained = place.get_by_alt_text(re.compile("^<img src=x"))
    expect(explained.first).to_be_visible()
    expect(place.get_by_text("Nearest by outline alone, without a network: ")).to_contain_text("(", timeout=SLOW_MS)
    code = place.get_by_label("These glyphs as code").input_value()
    assert repr(HOSTILE) in code and "step=0" in code
    kept = digest(group(place, "History").first)
    button(place, "Save history").click()
    expect(place.get_by_text(re.compile("^1 glyphs saved in"))).to_be_visible(timeout=SLOW_MS)

    notebook.restart()
    notebook.command("notebook:clear-all-cell-outputs")
    page.evaluate("jupyterapp.shell.currentWidget.content.activeCellIndex = 0")
    page.evaluate("void jupyterapp.commands.execute('notebook:run-cell')")
    place = notebook.output(0)
    button(place, "Load history").click(timeout=SLOW_MS)
    expect(group(place, "History")).to_have_count(1, timeout=SLOW_MS)
    assert digest(group(place, "History").first) == kept
    radio(place, "History", 0).click()
    expect(place.get_by_label("Prompt", exact=True)).to_have_value(HOSTILE, timeout=SLOW_MS)
    expect(place.get_by_alt_text(re.compile("^<img src=x")).first).to_be_visible(timeout=SLOW_MS)
    assert page.evaluate("window.obeyed") is None
