"""The input of an image folder: its path, or files from the reader's own machine, and what is wrong with them."""

from __future__ import annotations

import atexit
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import ipywidgets as widgets

from kanjilab.data.image_folder import Dataset, open_dataset
from kanjilab.data.sent_files import write_sent
from kanjilab.widgets.common import WRAP, escape, labelled, wide

PROBLEMS_SHOWN = 20
UPLOADED = (
    "One zip file of an image folder, or its images with metadata.csv. More than 10 MB arrive in `make lab` alone; "
    "elsewhere open such a folder by its path"
)


class FolderInput:
    """A field for a path and a button for an upload; below them, problem by problem, what is wrong.

    Args:
        show: called with each sound folder. What is wrong with another is listed, and nothing else happens.
    Attributes:
        widget: shows all of it.
    """

    def __init__(self, show: Callable[[Dataset], None]):
        self._show = show
        self.path = wide(labelled(widgets.Text(), "Image folder"))
        self.open_button = widgets.Button(description="Open")
        self.open_button.on_click(lambda _: self.open(self.path.value))
        self.path.on_msg(
            lambda _, content, __: self.open(self.path.value) if content.get("event") == "submit" else None
        )
        self.upload = widgets.FileUpload(multiple=True, description="Upload", tooltip=UPLOADED)
        self.upload.observe(lambda change: self._receive(change["new"]), "value")
        self.said = widgets.HTML()
        row = widgets.HBox([self.path, self.open_button, self.upload], layout=WRAP)
        self.widget = widgets.VBox([row, self.said])

    def open(self, folder: Path | str) -> None:
        """Open the image folder at a path."""
        self._open(lambda: open_dataset(str(folder).strip()))

    def open_files(self, files: Sequence[tuple[str, bytes]]) -> None:
        """Open files that are in no folder here: they are put into one, which is kept until this process ends.

        Args:
            files: name and content of each, as for `write_sent`.
        """
        folder = Path(tempfile.mkdtemp(prefix="kanjilab-"))
        if opened := self._open(lambda: open_dataset(write_sent(files, folder))):
            atexit.register(shutil.rmtree, folder, ignore_errors=True)
            where = f"Unpacked into {opened.folder}, where it is until this kernel ends."
            self.said.value = f'<p role="alert">{escape(where)}</p>'
        else:
            shutil.rmtree(folder)

    def _open(self, read: Callable[[], Dataset]) -> Dataset | None:
        try:
            dataset = read()
        except (ValueError, OSError) as error:
            self.said.value = problems_html(error if isinstance(error, ValueError) else ValueError(str(error)))
            return None
        self.said.value = ""
        self._show(dataset)
        return dataset

    def _receive(self, sent: Sequence[Mapping[str, Any]]) -> None:
        """Open what the page has sent, and keep no second copy of it."""
        if sent:
            self.open_files([(str(file["name"]), bytes(file["content"])) for file in sent])
            self.upload.value = ()


def problems_html(error: ValueError) -> str:
    """What is wrong with a folder, problem by problem, for `widgets.HTML`."""
    problems = getattr(error, "problems", (str(error),))
    lines = "".join(f"<li>{escape(problem)}</li>" for problem in problems[:PROBLEMS_SHOWN])
    more = len(problems) - PROBLEMS_SHOWN
    rest = f"<p>and {more:,} more</p>" if more > 0 else ""
    count = "1 problem" if len(problems) == 1 else f"{len(problems):,} problems"
    return f'<div role="alert"><h2>Not opened: {count}</h2><ul>{lines}</ul>{rest}</div>'
