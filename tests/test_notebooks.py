"""The notebooks: as committed, one clean run each; and they run anew, in a folder of their own, at smoke scale or on
stored results."""

import ast
import importlib.util
import json
import re
import shutil
from pathlib import Path

import nbformat
import papermill
import pytest
from nbformat import NotebookNode

from tests.browser.conftest import chromium
from tests.silence import Silence

FOLDER = Path(__file__).parents[1] / "notebooks"
SMOKE_LIMIT_SECONDS = 300  # for one cell: several times what a whole notebook should take, for a busy machine
SILENT_LIMIT_SECONDS = 60  # of processor time: what takes so long must show how far it is
CELL_LIMIT_LINES = 20
FUNCTION_LIMIT_LINES = 10
WARNING = re.compile(r"\b[A-Z]\w*Warning\b|\bWARNING\b")
READABLE_ID = re.compile(r"(?![0-9a-f]{8}$)[a-z][a-z0-9]*(-[a-z0-9]+)*")
# Under test runners these stall some cells until their time-out, and swallow exceptions.
STALLING = re.compile(r"\bwith\s+(widgets\.)?Output\(|\binteract(ive|ive_output|_manual)?\(")


def load_build():
    specification = importlib.util.spec_from_file_location("build", FOLDER / "build.py")
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


build = load_build()
PATHS = build.notebook_paths()
# These read the stored results, as by default; 08 is the one of them that trains, at smoke scale.
READ_STORED = {
    "00_start_here",
    "05_train_one_lora",
    "06_read_checkpoint_strips",
    "13_compare_strips",
    "09_ablate_batch",
    "10_ablate_epochs",
    "11_ablate_scheduler",
    "12_ablate_layers",
}
READ_STORED |= {"14_fine_tune_every_weight", "16_ablate_the_data"}
WITH_FIGURES = READ_STORED | {"17_speak_japanese", "18_write_by_brush"}
IN_BROWSER = {"01_curate_kanji"}  # run by tests/browser where it can
every_notebook, every_other_notebook = (
    pytest.mark.parametrize("path", paths, ids=lambda path: path.stem)
    for paths in (PATHS, [path for path in PATHS if chromium() is None or path.stem not in IN_BROWSER])
)


def code_cells(notebook: NotebookNode) -> list[NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code" and cell.source.strip()]


def python(cell: NotebookNode) -> str:
    """A cell's Python, without IPython's magic and shell lines."""
    return "\n".join("pass" if re.match(r"\s*[%!]", row) else row for row in cell.source.splitlines())


def form_faults(notebook: NotebookNode) -> list[str]:
    """Where a notebook departs from the form that all share."""
    nbformat.validate(notebook)
    faults = [] if (notebook.nbformat, notebook.nbformat_minor) == (4, 5) else ["is not nbformat 4.5"]
    faults += ["keeps metadata.widgets"] if "widgets" in notebook.metadata else []
    cells = code_cells(notebook)
    counts = [cell.execution_count for cell in cells]
    faults += [f"counts {counts}: not one run"] if counts != list(range(1, len(cells) + 1)) else []
    faults += [f"id {cell.id!r} says nothing" for cell in notebook.cells if not READABLE_ID.fullmatch(cell.id)]
    tagged = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", [])]
    if tagged != cells[:1] or "SCALE" not in "".join(cell.source for cell in tagged):
        faults.append("the first code cell, and no other, must be tagged 'parameters' and set SCALE")
    return faults + [f"{cell.id}: {fault}" for cell in cells for fault in cell_faults(cell)]


def cell_faults(cell: NotebookNode) -> list[str]:
    lines = [row for row in cell.source.splitlines() if row.strip()]
    faults = [f"{len(lines)} lines"] if len(lines) > CELL_LIMIT_LINES else []
    faults += ["an error output"] if any(output.output_type == "error" for output in cell.outputs) else []
    faults += ["uses Output or interact"] if STALLING.search(cell.source) else []
    for node in ast.walk(ast.parse(python(cell))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = node.end_lineno - node.lineno + 1
            faults += [f"{node.name} has {length} lines"] if length > FUNCTION_LIMIT_LINES else []
    return faults


@every_notebook
def test_committed_form(path):
    notebook = nbformat.read(path, as_version=4)
    assert form_faults(notebook) + outcome_faults(notebook) == []
    assert re.fullmatch(r"[0-9]{2}(_[a-z0-9]+)+", path.stem)


@every_notebook
def test_contents_and_links_are_up_to_date(path):
    notebook = nbformat.read(path, as_version=4)
    assert build.linked(notebook, PATHS, PATHS.index(path)) == notebook, "run: python notebooks/build.py --links"


def test_the_apps_page_is_one_clean_run():
    page = nbformat.read(build.PAGE, as_version=4)
    assert [cell.execution_count for cell in code_cells(page)] == [1]
    assert outcome_faults(page) == [] and [fault for cell in code_cells(page) for fault in cell_faults(cell)] == []


@pytest.mark.parametrize(
    ("number", "study"),
    [("08", "rank-full"), ("09", "batch-full"), ("10", "epochs-full"), ("11", "schedule-full")]
    + [("12", "targets-full"), ("14", "full-full"), ("16", "balance-broad"), ("16", "position-full")],
)
def test_an_ablation_opens_with_the_stored_result(number, study):
    path = next(path for path in PATHS if path.name.startswith(number))
    opening = nbformat.read(path, as_version=4).cells[0].source
    report = json.loads((FOLDER.parent / "figures" / "studies" / study / "report-radicals.json").read_text())
    value, low, high = (100 * value for value in report["contrasts"]["held_out"][0]["difference"])
    assert f"{abs(value):.1f} points" in opening and f"[{low:.1f}, {high:.1f}]" in opening
    assert all((FOLDER / picture).is_file() for picture in re.findall(r"!\[.+\]\((.+)\)", opening))


def test_numbers_are_distinct():
    numbers = [path.name[:2] for path in PATHS]
    assert len(set(numbers)) == len(numbers)


@pytest.mark.notebook
@every_other_notebook
def test_runs_from_top_to_bottom(path, tmp_path, monkeypatch, record_property):
    if path.stem in WITH_FIGURES:
        shutil.copytree(FOLDER.parent / "figures", tmp_path / "figures")
    silence = Silence()
    silence.listen(monkeypatch)
    start = tmp_path / "notebooks"  # so that '../figures' lies in the temporary folder too
    start.mkdir()
    notebook = papermill.execute_notebook(
        str(path),
        str(tmp_path / path.name),
        parameters={"SCALE": "stored" if path.stem in READ_STORED else "smoke"},
        kernel_name="python3",
        cwd=str(start),
        execution_timeout=SMOKE_LIMIT_SECONDS,
        progress_bar=False,
    )
    assert outcome_faults(notebook) == []
    longest, cell = max((seconds, cell) for cell, seconds in silence.longest.items())
    record_property("measured", f"{path.stem}: at most {longest:.1f} s of work without a sign, in {cell}")
    assert longest < SILENT_LIMIT_SECONDS, cell


def outcome_faults(notebook: NotebookNode) -> list[str]:
    """Errors, also those that a widget swallowed, and warnings that a reader would see."""
    faults = []
    for cell in code_cells(notebook):
        streams = "".join(output.text for output in cell.outputs if output.get("name") == "stderr")
        faults += [f"{cell.id}: {row}" for row in streams.splitlines() if WARNING.search(row)]
        faults += [f"{cell.id}: {output.evalue}" for output in cell.outputs if output.output_type == "error"]
    swallowed = json.dumps(notebook.metadata.get("widgets", {}))
    return faults + (["a widget holds an error"] if re.search(r'"output_type": ?"error"', swallowed) else [])


# The rules themselves, on notebooks made here


def small_notebook(*sources: str, **changes) -> NotebookNode:
    """A well-formed, executed notebook: parameters, then the sources; `changes` go to its last cell."""
    cells = [nbformat.v4.new_code_cell('SCALE = "smoke"', id="settings", metadata={"tags": ["parameters"]})]
    cells += [nbformat.v4.new_code_cell(source, id=f"cell-{index}") for index, source in enumerate(sources)]
    for count, cell in enumerate(cells, start=1):
        cell.execution_count = count
    cells[-1].update(changes)
    notebook = nbformat.v4.new_notebook(cells=cells)
    notebook.nbformat_minor = 5
    return notebook


ERROR = nbformat.v4.new_output("error", ename="ValueError", evalue="no", traceback=[])


@pytest.mark.parametrize(
    ("notebook", "faults"),
    [
        (small_notebook("%time\nprint(1)"), []),
        (small_notebook("x = 1\n" * 21), ["cell-0: 21 lines"]),
        (small_notebook("def f():\n" + "    x = 1\n" * 10), ["cell-0: f has 11 lines"]),
        (small_notebook("with Output():\n    train()"), ["cell-0: uses Output or interact"]),
        (small_notebook("x = 1", execution_count=7), ["counts [1, 7]: not one run"]),
        (small_notebook("x = 1", id="1f0c9a3e"), ["id '1f0c9a3e' says nothing"]),
        (small_notebook("x = 1", outputs=[ERROR]), ["cell-0: an error output"]),
    ],
)
def test_form_rule_on_known_cases(notebook, faults):
    assert form_faults(notebook) == faults


def test_form_rule_wants_parameters_first():
    notebook = small_notebook("x = 1")
    notebook.cells[0].metadata = {}
    assert len(form_faults(notebook)) == 1
    notebook.metadata["widgets"] = {}
    assert "keeps metadata.widgets" in form_faults(notebook)


def test_outcome_rule_sees_warnings_and_swallowed_errors():
    warned = nbformat.v4.new_output("stream", name="stderr", text="a.py:1: UserWarning: slow\n")
    progress = nbformat.v4.new_output("stream", name="stderr", text="100%|####| 8/8\n")
    assert outcome_faults(small_notebook("x = 1", outputs=[progress])) == []
    assert outcome_faults(small_notebook("x = 1", outputs=[warned])) == ["cell-0: a.py:1: UserWarning: slow"]
    assert outcome_faults(small_notebook("x = 1", outputs=[ERROR])) == ["cell-0: no"]
    swallowed = small_notebook("x = 1")
    swallowed.metadata["widgets"] = {"state": {"a": {"outputs": [dict(ERROR)]}}}
    assert outcome_faults(swallowed) == ["a widget holds an error"]


def test_links_name_the_neighbours():
    paths = [Path("00_start_here.ipynb"), Path("01_curate_kanji.ipynb"), Path("02_balance_radicals.ipynb")]
    first, middle, last = (build.linked(small_notebook(), paths, index) for index in range(3))
    assert first.cells[-1].source == "[01 curate kanji →](01_curate_kanji.ipynb)"
    assert first.cells[-2].source.splitlines()[2:] == [
        f"- [01 curate kanji](01_curate_kanji.ipynb): {build.ABOUT['01_curate_kanji']}",
        f"- [02 balance radicals](02_balance_radicals.ipynb): {build.ABOUT['02_balance_radicals']}",
    ]
    start, curate, balance = (f"({path.name})" for path in paths)
    assert re.findall(r"\(\S+\)", middle.cells[-1].source) == [start, start, balance]
    assert re.findall(r"\(\S+\)", last.cells[-1].source) == [curate, start]
    assert build.linked(middle, paths, 1) == middle


@pytest.mark.notebook
def test_a_built_notebook_keeps_outputs_and_loses_traces(tmp_path):
    source = small_notebook("import sys\nprint(6 * 7)", execution_count=None, id="answer")
    source.metadata["widgets"] = {"state": {}}
    build.write(build.executed(source, tmp_path), tmp_path / "00_answer.ipynb")
    built = nbformat.read(tmp_path / "00_answer.ipynb", as_version=4)
    assert form_faults(built) == []
    assert built.cells[1].outputs[0].text == "42\n"
    assert [path.name for path in tmp_path.iterdir()] == ["00_answer.ipynb"]


@pytest.mark.notebook
def test_kernels_are_offline_and_their_home_is_temporary(tmp_path):
    source = small_notebook(
        "import socket\nfrom pathlib import Path\nprint(Path.home().name)",
        "try:\n    socket.create_connection(('192.0.2.1', 80))\nexcept RuntimeError as refusal:\n    print(refusal)",
    )
    done = build.executed(source, tmp_path)
    assert "kanjilab-home-" in done.cells[1].outputs[0].text
    assert "tests are offline" in done.cells[2].outputs[0].text


@pytest.mark.notebook
def test_a_run_leaves_no_bar_and_a_bar_is_a_sign(tmp_path, monkeypatch):
    silence = Silence()
    silence.listen(monkeypatch)
    work = "from time import process_time\nfrom kanjilab.core.progress import bar\n"
    work += "{}\nwhile (now := process_time()) < 2:\n    {}"
    source = small_notebook(
        work.format("show = bar('work')", "show(int(100 * now), 200)") + "\nshow(200, 200)\nprint('done')",
        work.replace("2:", "4:").format("", "pass"),
    )
    done = build.executed(source, tmp_path)
    assert [output.output_type for output in done.cells[1].outputs] == ["stream"]
    assert silence.longest["cell-0"] < 1.5 < 1.8 < silence.longest["cell-1"]


def test_a_run_leaves_no_temporary_folders_name(tmp_path):
    source = small_notebook("import tempfile\nfolder = tempfile.mkdtemp(prefix='kanjilab-')\nprint(folder)\nfolder")
    cell = build.executed(source, tmp_path).cells[-1]
    assert (cell.outputs[0].text, cell.outputs[1].data["text/plain"]) == ("…\n", "'…'")
