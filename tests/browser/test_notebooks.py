"""A notebook with a panel, at smoke scale, as a reader runs it: all cells, and then a panel that answers.

One for all (`IN_BROWSER`), since it takes half a minute: the panels of the others have tests of their own here, and
their notebooks are run without a browser.
"""

from pathlib import Path

import nbformat
import pytest
from playwright.sync_api import expect

from tests.test_notebooks import IN_BROWSER, WARNING, code_cells

FOLDER = Path(__file__).parents[2] / "notebooks"


@pytest.fixture
def run_notebook(open_notebook, tmp_path):
    """Runs one at smoke scale; gives its page, and the place of the panel which the cell of that name shows."""

    def run(name: str, panel: str):
        assert Path(name).stem in IN_BROWSER
        notebook = nbformat.read(FOLDER / name, as_version=4)
        code_cells(notebook)[0].source = 'SCALE = "smoke"'
        nbformat.write(notebook, tmp_path / name)
        shown = open_notebook(tmp_path / name)
        shown.run_all()
        told = [output.get("text", "") for cell in shown.cells() for output in cell["outputs"]]
        assert not [text for text in map("".join, told) if WARNING.search(text)]
        return shown, shown.output([cell.id for cell in notebook.cells].index(panel))

    return run


def test_the_dataset_browser_of_notebook_01(run_notebook):
    notebook, place = run_notebook("01_curate_kanji.ipynb", "browser")
    status = place.get_by_role("status").filter(has_text="of 1,702 glyphs")
    before = status.text_content()
    place.get_by_label("Caption contains").fill("fish")
    expect(status).not_to_have_text(before)
    notebook.screenshot("notebook-01")
