"""The playground as a person uses it: type, draw, choose, follow a glyph as it forms, save, and restart."""

import hashlib
import re

import numpy as np
import pytest
from playwright.sync_api import Locator, expect

from kanjilab.core.config import Arm
from kanjilab.training.loop import train
from tests.tiny import tiny_encoded

from .hostile import obeyed
from .pixels import pixels

HOSTILE = """<img src=x onerror="window.obeyed=1"> water"""
STEPS, GLYPHS = 5, 3
SETUP = """
import sys
sys.path.insert(0, {root!r})
from functools import partial
from hashlib import sha256
from pathlib import Path
from kanjilab.models.sampling import Sampling, sample
from kanjilab.widgets import Playground, generation
from kanjilab.widgets.generation import Request

generation.sample = partial(sample, size_px=32)
request = Request({prompt!r}, tuple(range({glyphs})), Sampling(steps={steps}), Path({run!r}))
panel = Playground({runs!r}, request, history={history!r})
panel
"""
NAMELESS = """place => [...place.querySelectorAll('button, input, select, textarea')].filter(e => e.checkVisibility()
  && !(e.labels?.length || e.getAttribute('aria-label') || e.title || e.textContent.trim())).map(e => e.outerHTML)"""
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
    expect(place.get_by_text(f"{GLYPHS} drawn; ")).to_be_visible()
    expect(button(place, "Draw")).to_be_enabled()


def wait_until_laid_out(place: Locator) -> None:
    """Wait until all parts of the panel are on the page, folded or not: each comes by itself."""
    for name in ("Draw", "Other noises", "Advanced", "Load gallery"):
        expect(place.get_by_role("button", name=name).first).to_be_visible()
    for name in ("Steps", "Expected parts", "These glyphs as code", "Phrase", "Line", "Folder"):
        expect(place.get_by_label(name, exact=True).first).to_be_attached()


def test_type_draw_choose_and_step_through(open_notebook, cells):
    notebook = open_notebook(cells)
    page = notebook.page
    page.evaluate("void jupyterapp.commands.execute('notebook:run-cell')")
    place = notebook.output(0)
    expect(button(place, "Draw")).to_be_visible()
    prompt = place.get_by_label("Prompt", exact=True)
    prompt.fill("fire water")
    prompt.press("Enter")  # by keyboard
    draw(place)
    candidates, forming = group(place, "Glyphs, best first"), group(place, "How it formed, step by step")
    expect(candidates).to_have_count(GLYPHS)
    page.evaluate("jupyterapp.shell.currentWidget.content.activeCellIndex = 1")
    notebook.command("notebook:run-cell")
    shown = [digest(candidates.nth(at)) for at in range(GLYPHS)]
    assert shown == notebook.text(1).split(), "each picture is the glyph of its place"
    place = notebook.output(0)

    expect(forming).to_have_count(STEPS)
    large = place.locator(".verdict img")
    expect(large).to_have_attribute("alt", re.compile("^fire water: Judge B reads "))
    assert np.array_equal(pixels(large), pixels(candidates.first))
    assert np.array_equal(pixels(forming.last), pixels(candidates.first)), "the last step is the glyph"
    place.get_by_role("radio", name="step 2").click()
    expect(place.get_by_alt_text("step 2")).to_have_count(2)  # small and large
    large = place.get_by_alt_text("step 2").last
    assert np.array_equal(pixels(large), pixels(forming.nth(1)))
    page.keyboard.press("ArrowRight")
    expect(place.get_by_alt_text("step 3")).to_have_count(2)
    large = place.get_by_alt_text("step 3").last
    assert np.array_equal(pixels(large), pixels(forming.nth(2)))
    assert not np.array_equal(pixels(forming.nth(0)), pixels(forming.nth(STEPS - 1)))

    first = forming.last.get_attribute("src")
    radio(place, "Glyphs, best first", 1).click()  # another glyph, and how that one formed
    expect(forming.last).not_to_have_attribute("src", first)
    expect(forming).to_have_count(STEPS)
    assert digest(forming.last) == shown[1]
    for key in ("b", "d", "d", "x"):
        page.keyboard.press(key)
    assert notebook.selection() == (0, 3), "keys reached JupyterLab"
    notebook.screenshot("playground")


def test_a_hostile_prompt_stays_text_and_the_history_is_kept(open_notebook, cells):
    notebook = open_notebook(cells)
    page = notebook.page
    page.evaluate("void jupyterapp.commands.execute('notebook:run-cell')")
    place = notebook.output(0)
    place.get_by_label("Prompt", exact=True).fill(HOSTILE)
    place.get_by_role("button", name="Advanced").first.click()
    place.get_by_label("Checkpoint", exact=True).select_option("before training")
    button(place, "Draw").click()
    draw(place)
    assert HOSTILE in group(place, "Gallery").first.get_attribute("alt")
    explained = re.compile(f"^{re.escape(HOSTILE)}: Judge B reads ")
    expect(place.locator(".verdict img")).to_have_attribute("alt", explained)
    code = place.get_by_role("textbox", name="These glyphs as code").input_value()
    assert repr(HOSTILE) in code and "step=0" in code
    kept = digest(group(place, "Gallery").first)
    button(place, "Save gallery").click()
    expect(place.get_by_text(re.compile("^1 glyphs saved in"))).to_be_visible()

    notebook.restart()
    notebook.command("notebook:clear-all-cell-outputs")
    page.evaluate("jupyterapp.shell.currentWidget.content.activeCellIndex = 0")
    page.evaluate("void jupyterapp.commands.execute('notebook:run-cell')")
    place = notebook.output(0)
    button(place, "Load gallery").click()
    expect(group(place, "Gallery")).to_have_count(1)
    assert digest(group(place, "Gallery").first) == kept
    radio(place, "Gallery", 0).click()
    expect(place.get_by_label("Prompt", exact=True)).to_have_value(HOSTILE)
    expect(place.locator(".verdict img")).to_have_attribute("alt", explained)
    assert not obeyed(page)


ALL_TEXT = "element => element.innerText"


def test_the_first_screen_and_one_verdict(open_notebook, cells):
    taught = "import kanjilab.widgets.playground as module\nmodule.PACKAGED = [panel._base_name]"
    notebook = open_notebook([cells[0].removesuffix("panel\n") + taught + "\npanel"])
    notebook.run_all()
    place = notebook.output(0)
    wait_until_laid_out(place)
    fields = place.get_by_role("textbox").or_(place.get_by_role("spinbutton")).or_(place.get_by_role("combobox"))
    visible = [field.evaluate("e => e.labels[0]?.textContent") for field in fields.all() if field.is_visible()]
    assert visible == ["Prompt", "Folder"], "all other inputs are folded away"
    expect(place.get_by_role("button", name="Advanced").first).to_have_attribute("aria-expanded", "false")

    prompt = place.get_by_label("Prompt", exact=True)
    prompt.fill("blorpt king")
    expect(place.get_by_text("tokens. No caption of a kanji has “blorpt”")).to_be_visible()
    button(place, "iron tree").click()
    draw(place)
    expect(prompt).to_have_value("iron tree")
    verdict = place.locator(".verdict")
    for index in range(GLYPHS - 1, -1, -1):  # each glyph has one verdict, and the mark below it is the same
        radio(place, "Glyphs, best first", index).click()
        name = group(place, "Glyphs, best first").nth(index).get_attribute("alt").partition(". ")[2]
        expect(verdict).to_contain_text(name)
        mark = place.get_by_role("group", name="Glyphs, best first").locator("span").nth(index).inner_text()
        assert mark.startswith("✗") == ("not well-formed" in name)
    said = place.evaluate(ALL_TEXT)
    assert said.count("Judge B reads") == 1 and "judge A" not in said and "rejected" not in said
    assert "None passed. Try Other noises" in said, "noise is not well-formed, and it says what to try"
    notebook.screenshot("playground_light")
    notebook.use_theme("Dark")
    notebook.screenshot("playground_dark")


def test_every_control_has_a_name_and_the_keyboard_reaches_it(open_notebook, cells):
    notebook = open_notebook(cells[:1])
    page = notebook.page
    notebook.run_all()
    place = notebook.output(0)
    wait_until_laid_out(place)
    place.get_by_label("Prompt", exact=True).focus()
    reached = []
    for _ in range(12):
        page.keyboard.press("Tab")
        reached.append(page.evaluate("document.activeElement.textContent.trim()"))
    assert reached[:2] == ["Draw", "Other noises"] and "Advanced" in reached
    place.get_by_role("button", name="Advanced").first.press("Enter")
    expect(place.get_by_label("First seed").first).to_be_visible()
    assert place.evaluate(NAMELESS) == []
