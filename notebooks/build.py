"""Renew the notebooks: contents, links between neighbours, and one clean run of each from top to bottom.

python notebooks/build.py                 all of them, and the app's page
python notebooks/build.py --links         contents and links only, nothing is run
python notebooks/build.py --strip FILE    only remove what a run leaves behind (the pre-commit hook)
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbformat import NotebookNode

FOLDER = Path(__file__).parent
PAGE = FOLDER.parent / "app" / "playground.ipynb"  # not one of the numbered, but run like them
LONGEST_CELL_SECONDS = 4 * 3600  # a full-scale training
# Outputs, counts and ids are what readers see; widget state and timings differ with every run.
STRIP = (
    *("--keep-output", "--keep-count", "--keep-id", "--extra-keys"),
    "metadata.widgets metadata.papermill cell.metadata.papermill cell.metadata.execution",
)

# What each notebook is about, for the contents.
ABOUT = {
    "01_curate_kanji": "the dictionary, the choice of characters, their images; the dataset browser",
    "02_balance_radicals": "how many kanji each radical has, and where it is in them",
    "03_caption_and_split": "captions, held-out characters, and what the text alone predicts",
    "04_look_at_latents": "what the autoencoder keeps of a glyph, and what noise does to it",
    "05_train_one_lora": "the training loop, step by step; the training panel",
    "06_read_checkpoint_strips": "what a training learns and when; the comparator",
    "07_judge_a_glyph": "which parts a glyph has, whether it is new; how to read a study; the playground",
    "08_ablate_rank": "does a higher rank draw better? A study from question to verdict; the ablation panel",
    "09_ablate_batch": "does batch 1 keep the strokes?",
    "10_ablate_epochs": "are many epochs needed, and do they copy?",
    "11_ablate_scheduler": "is a cosine better than a constant rate?",
    "12_ablate_layers": "which layers need a LoRA?",
    "13_compare_strips": "what captions teach: a run with its own captions beside one with shuffled ones",
    "14_fine_tune_every_weight": "every weight or a LoRA: cost and result",
    "15_sd35_and_comfyui": "a LoRA on SD 3.5, from one command to a picture in ComfyUI",
    "16_ablate_the_data": "which kanji to train on: balance, place, two radicals at once",
    "17_speak_japanese": "a tokenizer and a text encoder for Japanese, in two stages",
    "18_write_by_brush": "characters by brush, led by a skeleton; a new hand from five samples; the brush panel",
    "19_coin_a_kanji": "a new kanji for a phrase, and its certificate; the page that coins",
    "90_build_pocket_base": "how the base model was built without a single kanji",
    "91_build_writer": "how the writer was taught to draw kanji from the names of their parts",
}


def notebook_paths(folder: Path = FOLDER) -> list[Path]:
    """The numbered notebooks of a folder, in reading order."""
    return sorted(folder.glob("[0-9][0-9]_*.ipynb"))


def markdown_link(path: Path, text: str = "{}") -> str:
    """A link to a neighbour, named by its file: '01_curate_kanji.ipynb' reads '01 curate kanji'."""
    return f"[{text.format(path.stem.replace('_', ' '))}]({path.name})"


def navigation(paths: Sequence[Path], index: int) -> str:
    """The line that ends notebook `index` (into paths): previous, contents, next, as far as there are any."""
    links = [markdown_link(paths[index - 1], "← {}")] if index > 0 else []
    links += [markdown_link(paths[0], "contents")] if index > 0 else []
    links += [markdown_link(paths[index + 1], "{} →")] if index + 1 < len(paths) else []
    return " · ".join(links)


def contents(paths: Sequence[Path]) -> str:
    """The list of all later notebooks, each with its half line, for the first one."""
    lines = [f"- {markdown_link(path)}: {ABOUT[path.stem]}" for path in paths[1:]]
    return "\n".join(["## Contents", "", *lines])


def linked(notebook: NotebookNode, paths: Sequence[Path], index: int) -> NotebookNode:
    """A copy of notebook `index` with its generated cells, `contents` and `navigation`, up to date.

    Both are rewritten where they stand; a missing one is put at the end.
    """
    notebook = nbformat.from_dict(notebook)
    generated = ({"contents": contents(paths)} if index == 0 else {}) | {"navigation": navigation(paths, index)}
    cells = {cell.get("id"): cell for cell in notebook.cells}
    for name, source in generated.items():
        if name not in cells:
            cells[name] = nbformat.v4.new_markdown_cell(id=name)
            notebook.cells.append(cells[name])
        cells[name].source = source
    return notebook


def executed(notebook: NotebookNode, folder: Path) -> NotebookNode:
    """A copy of a notebook with the outputs of a run in a fresh kernel, started in `folder`.

    Raises:
        nbclient.exceptions.CellExecutionError: a cell failed.
    """
    notebook = nbformat.from_dict(notebook)
    client = NotebookClient(
        notebook,
        timeout=LONGEST_CELL_SECONDS,
        kernel_name="python3",
        coalesce_streams=True,
        record_timing=False,
        resources={"metadata": {"path": str(folder)}},
    )
    return without_bars(without_temporary_folders(client.execute()))


def without_temporary_folders(notebook: NotebookNode) -> NotebookNode:
    """A copy whose outputs name temporary folders "…": their names differ with every run."""
    notebook = nbformat.from_dict(notebook)
    folder = re.compile(re.escape(tempfile.gettempdir()) + r"/[\w-]+")
    for cell in notebook.cells:
        if cell.cell_type == "code":
            outputs = folder.sub("…", json.dumps(cell.outputs, ensure_ascii=False))
            cell.outputs = [nbformat.from_dict(output) for output in json.loads(outputs)]
    return notebook


def without_bars(notebook: NotebookNode) -> NotebookNode:
    """A copy without the empty line that a progress bar leaves when it vanishes."""
    notebook = nbformat.from_dict(notebook)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if output.get("data") != {"text/plain": ""}]
    return notebook


def write(notebook: NotebookNode, path: Path) -> None:
    """Write a notebook whole or not at all, without what differs from run to run."""
    unfinished = path.with_name(f".{path.name}")
    nbformat.write(notebook, unfinished)
    strip([unfinished])
    os.replace(unfinished, path)


def strip(paths: Sequence[Path]) -> None:
    """Remove widget state and timings from notebook files, in place."""
    subprocess.run([sys.executable, "-m", "nbstripout", *STRIP, *map(str, paths)], check=True)


def main() -> None:
    """Read the command line and do what it says."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("files", nargs="*", type=Path, help="notebooks (default: all)")
    parser.add_argument("--links", action="store_true", help="renew contents and links, run nothing")
    parser.add_argument("--strip", action="store_true", help="only remove widget state and timings")
    options = parser.parse_args()
    if options.strip:
        return strip(options.files or notebook_paths())
    paths = notebook_paths()
    chosen = {path.resolve() for path in options.files or paths}
    for index, path in enumerate(paths):
        if path.resolve() in chosen:
            print(path.name, flush=True)
            notebook = linked(nbformat.read(path, as_version=4), paths, index)
            write(notebook if options.links else executed(notebook, FOLDER), path)
    if not options.links and (not options.files or PAGE.resolve() in chosen):
        print(PAGE.name, flush=True)
        write(executed(nbformat.read(PAGE, as_version=4), PAGE.parent), PAGE)


if __name__ == "__main__":
    main()
