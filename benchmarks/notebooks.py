"""How long does each notebook take with its defaults, and which of its cells takes longest?

    python benchmarks/notebooks.py [notebooks/08_ablate_rank.ipynb ...]

Runs copies in fresh kernels, one after the other, in the folder of the notebooks; the notebooks stay as they are.
What they write to figures/ is written again. Prints a line for each: seconds in all, the longest cell and its seconds.
"""

import argparse
import time
from datetime import datetime
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbformat import NotebookNode

FOLDER = Path(__file__).parents[1] / "notebooks"


def run(path: Path) -> NotebookNode:
    """The notebook after a run, with the times of its cells."""
    notebook = nbformat.read(path, as_version=4)
    resources = {"metadata": {"path": str(path.parent)}}
    return NotebookClient(notebook, timeout=3600, kernel_name="python3", resources=resources).execute()


def seconds_by_cell(notebook: NotebookNode) -> dict[str, float]:
    """Seconds from the start of each code cell to its end, by the cell's id."""
    found = {}
    for cell in notebook.cells:
        if times := cell.metadata.get("execution"):
            first, last = times["iopub.execute_input"], times["shell.execute_reply"]
            found[cell.id] = (datetime.fromisoformat(last) - datetime.fromisoformat(first)).total_seconds()
    return found


def main() -> None:
    """Runs the named notebooks, or all, and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", nargs="*", type=Path, help="notebooks (default: all)")
    paths = parser.parse_args().files or sorted(FOLDER.glob("[0-9][0-9]_*.ipynb"))
    print("| notebook | seconds | longest cell | its seconds |\n|---|---|---|---|")
    for path in paths:
        started = time.perf_counter()
        cells = seconds_by_cell(run(path.resolve()))
        longest = max(cells, key=cells.__getitem__)
        total = time.perf_counter() - started
        print(f"| {path.stem} | {total:.0f} | {longest} | {cells[longest]:.1f} |", flush=True)


if __name__ == "__main__":
    main()
