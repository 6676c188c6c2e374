"""What panels over long jobs share: buttons, status, and a watch over one folder, whichever process works on it."""

from __future__ import annotations

import asyncio
import threading
import time
from abc import abstractmethod
from collections.abc import Callable
from pathlib import Path

import ipywidgets as widgets

from kanjilab.widgets.common import WRAP, CodeBox, Panel
from kanjilab.widgets.said import Said
from kanjilab.widgets.worker import POLL_SECONDS, Worker, find_worker, start_worker

REDRAW_SECONDS = 1.0


class WorkPanel(Panel):
    """A panel that starts a job in a folder, and shows its progress in this kernel or another.

    Subclasses call `_button_row` before `refresh`, and `_show_buttons` and `_watch_while` in it; `refresh` holds
    `_lock` while it works.

    Args:
        code_label: accessible name of the box with the code.
    """

    def __init__(self, code_label: str) -> None:
        self._lock = threading.RLock()
        self._watcher: threading.Thread | None = None
        self._problem = ""  # why the inputs cannot be used; "" where they can
        self.start_button = widgets.Button(description="Start", button_style="primary")
        self.stop_button = widgets.Button(description="Stop", tooltip="Keeps what is done; Resume continues from there")
        self.start_button.on_click(lambda _: self.start())
        self.stop_button.on_click(lambda _: self.stop())
        self.cost, self.status, self.progress = widgets.HTML(), Said(), widgets.HTML()
        self.code_box = CodeBox(label=code_label)

    @property
    @abstractmethod
    def folder(self) -> Path:
        """Where the shown job writes."""

    @property
    @abstractmethod
    def running_elsewhere(self) -> bool:
        """Whether any process is writing there, such as another kernel."""

    @abstractmethod
    def start(self) -> Worker:
        """Start the job, or resume it, in the background; raises `WorkerBusy` while one of this kernel runs."""

    @abstractmethod
    def refresh(self) -> None:
        """Show the present state of the folder."""

    @abstractmethod
    def _stop_elsewhere(self) -> None:
        """Ask the other process to stop."""

    @property
    def worker(self) -> Worker | None:
        """This kernel's latest job in the folder."""
        return find_worker(self.folder)

    def stop(self) -> None:
        """Ask the job to stop at its next step, in this kernel or another; what is done is kept."""
        if (worker := self.worker) is not None and worker.alive:
            worker.stop()
        elif self.running_elsewhere:
            self._stop_elsewhere()
        self.refresh()

    async def finished(self) -> None:
        """Wait for the end of the job, in this kernel or another, while the kernel stays free.

        An interrupt (■) stops a job of this kernel; it can be resumed.

        Raises:
            Exception: the one that ended the job.
        """
        try:
            if (worker := self.worker) is not None:
                await worker.finished()
            while self.running_elsewhere:
                await asyncio.sleep(POLL_SECONDS)
        finally:
            self.refresh()

    async def run_now(self) -> None:
        """Start or resume the job, and wait for its end: for notebooks that are run from top to bottom.

        Raises:
            Exception: the one that ended the job.
        """
        if (worker := self.worker) is None or not worker.alive:
            self.start()
        await self.finished()

    def _button_row(self, label: str, tooltip: str, action: Callable[[], Worker]) -> widgets.HBox:
        """Start, Stop, and a button for the job that measures the cost."""
        self.cost_button = widgets.Button(description=label, tooltip=tooltip)
        self.cost_button.on_click(lambda _: action())
        return widgets.HBox([self.start_button, self.stop_button, self.cost_button], layout=WRAP)

    def _show_buttons(self, ready: str, running: bool, cost_known: bool) -> None:
        """Label and enable the buttons; `ready` is the label of the first one while nothing runs."""
        self.start_button.description = "Running" if running else ready
        self.start_button.disabled = running or bool(self._problem)
        self.stop_button.disabled = not running
        self.cost_button.disabled = self.start_button.disabled or cost_known

    def _say(self, text: str) -> None:
        self.status.value = self._problem or text

    def _try(self, change: Callable[[], None]) -> None:
        """Take over what the inputs say; where that is impossible, say why."""
        try:
            change()
            self._problem = ""
        except ValueError as error:
            self._problem = f"Not possible: {error}"
        self.refresh()

    def _begin(self, job: Callable[[Worker], None]) -> Worker:
        worker = start_worker(self.folder, job)
        self.refresh()
        return worker

    def _watch_while(self, running: bool) -> None:
        """Refresh every second, until called with False."""
        if not running:
            self._watcher = None
        elif self._watcher is None or not self._watcher.is_alive():  # an exception in `refresh` ends its thread
            self._watcher = threading.Thread(target=self._watch, name="kanjilab panel", daemon=True)
            self._watcher.start()

    def _watch(self) -> None:
        """In a thread of its own, so that the panel is refreshed while a cell keeps the kernel busy."""
        while True:
            time.sleep(REDRAW_SECONDS)
            with self._lock:
                if self._watcher is not threading.current_thread():
                    return
                self.refresh()
