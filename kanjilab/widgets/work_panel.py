"""What panels over long work share: one folder's job, followed from wherever it goes on, stopped, and waited for."""

from __future__ import annotations

import asyncio
import threading
import time
from abc import abstractmethod
from collections.abc import Callable
from pathlib import Path

from kanjilab.widgets.common import Panel
from kanjilab.widgets.worker import POLL_SECONDS, Worker, find_worker, start_worker

REDRAW_SECONDS = 1.0


class WorkPanel(Panel):
    """A panel that starts work in a folder, and shows what goes on there in this kernel or another.

    Subclasses call `_watch_while` at the end of `refresh`, which holds `_lock` while it works.
    """

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._watcher: threading.Thread | None = None

    @property
    @abstractmethod
    def folder(self) -> Path:
        """That the shown work writes into."""

    @property
    @abstractmethod
    def going_on_elsewhere(self) -> bool:
        """Whether another process, or an earlier kernel, is at it."""

    @abstractmethod
    def start(self) -> Worker:
        """Begin the work, or go on with it, in the background."""

    @abstractmethod
    def refresh(self) -> None:
        """Show what the folder tells now."""

    @abstractmethod
    def _stop_elsewhere(self) -> None:
        """Ask another process to stop."""

    @property
    def worker(self) -> Worker | None:
        """This kernel's latest job on what is shown."""
        return find_worker(self.folder)

    def stop(self) -> None:
        """Ask the work to stop at its next step, wherever it goes on; what is done stays."""
        if (worker := self.worker) is not None and worker.alive:
            worker.stop()
        elif self.going_on_elsewhere:
            self._stop_elsewhere()
        self.refresh()

    async def finished(self) -> None:
        """Wait for the end of what goes on, in this kernel or another, while the kernel stays free.

        An interrupt (■) stops what goes on in this kernel; it can be gone on with.

        Raises:
            Exception: what ended the work too early.
        """
        try:
            if (worker := self.worker) is not None:
                await worker.finished()
            while self.going_on_elsewhere:
                await asyncio.sleep(POLL_SECONDS)
        finally:
            self.refresh()

    async def run_now(self) -> None:
        """Start, or go on, and wait for the end: for notebooks that are run from top to bottom.

        Raises:
            Exception: what ended the work too early.
        """
        if (worker := self.worker) is None or not worker.alive:
            self.start()
        await self.finished()

    def _begin(self, job: Callable[[Worker], None]) -> Worker:
        worker = start_worker(self.folder, job)
        self.refresh()
        return worker

    def _watch_while(self, going_on: bool) -> None:
        """Refreshes every second until it is called with False."""
        if not going_on:
            self._watcher = None
        elif self._watcher is None or not self._watcher.is_alive():  # what a refresh raises ends its thread
            self._watcher = threading.Thread(target=self._watch, name="kanjilab panel", daemon=True)
            self._watcher.start()

    def _watch(self) -> None:
        """In a thread of its own, so that the panel lives while a cell keeps the kernel busy."""
        while True:
            time.sleep(REDRAW_SECONDS)
            with self._lock:
                if self._watcher is not threading.current_thread():
                    return
                self.refresh()
