"""Notebooks with panels, at smoke scale, as a reader runs them: all cells, and then a panel that answers.

Only those of `IN_BROWSER`, which take half a minute each: the panels of the others have tests of their own here, and
the other notebooks are run without a browser.
"""

from pathlib import Path

import nbformat
import numpy as np
import pytest
from playwright.sync_api import Locator, expect

from tests.test_notebooks import IN_BROWSER, WARNING, code_cells

FOLDER = Path(__file__).parents[2] / "notebooks"
SLOW_MS, LONGEST_SECONDS = 60_000, 600


@pytest.fixture
def run_notebook(open_notebook, tmp_path):
    """Runs one at smoke scale; gives its page, and the place of the panel which the cell of that name shows."""

    def run(name: str, panel: str):
        assert Path(name).stem in IN_BROWSER
        notebook = nbformat.read(FOLDER / name, as_version=4)
        code_cells(notebook)[0].source = 'SCALE = "smoke"'
        nbformat.write(notebook, tmp_path / name)
        shown = open_notebook(tmp_path / name)
        shown.run_all(LONGEST_SECONDS)
        told = [output.get("text", "") for cell in shown.cells() for output in cell["outputs"]]
        assert not [text for text in map("".join, told) if WARNING.search(text)]
        return shown, shown.output([cell.id for cell in notebook.cells].index(panel))

    return run


def canvas(place: Locator) -> np.ndarray:
    """Gray levels of the enlarged glyph, row by row."""
    script = "at => [...at.getContext('2d').getImageData(0, 0, at.width, at.height).data.filter((_, i) => i % 4 == 0)]"
    return np.array(place.locator("figure:not([hidden]) canvas").last.evaluate(script), np.uint8)


def test_the_dataset_browser_of_notebook_01(run_notebook):
    notebook, place = run_notebook("01_curate_kanji.ipynb", "browser")
    status = place.get_by_role("status").filter(has_text="of 1,702 glyphs")
    before = status.text_content()
    place.get_by_label("Caption contains").fill("fish")
    expect(status).not_to_have_text(before, timeout=SLOW_MS)
    notebook.screenshot("notebook-01")


def test_the_training_panel_of_notebook_05(run_notebook):
    notebook, place = run_notebook("05_train_one_lora.ipynb", "panel")
    expect(place.get_by_role("button", name="Load", exact=True)).to_be_enabled(timeout=SLOW_MS)
    progress = place.get_by_role("progressbar").first
    assert progress.evaluate("bar => bar.value") == 32
    notebook.screenshot("notebook-05")


def test_the_comparator_of_notebook_13(run_notebook):
    notebook, place = run_notebook("13_compare_strips.ipynb", "comparator")
    slider = place.get_by_label("Checkpoint", exact=True)
    last = canvas(place)
    slider.focus()
    notebook.page.keyboard.press("Home")
    expect(place.locator("output")).to_contain_text("before training")
    first = canvas(place)
    assert (first != last).any(), "the slider changes the enlarged glyph"
    notebook.page.keyboard.press("End")
    assert (canvas(place) == last).all()
    notebook.screenshot("notebook-13")
