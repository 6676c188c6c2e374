"""What panels that draw on demand share: one drawing at a time in a thread, and turns where the page is public."""

from __future__ import annotations

import threading
from abc import abstractmethod
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import ipywidgets as widgets

from kanjilab.widgets.common import Panel
from kanjilab.widgets.generation import turn
from kanjilab.widgets.said import Said
from kanjilab.widgets.worker import POLL_SECONDS, Stopped, Worker

Job = Callable[[Worker], None]


class DrawPanel(Panel):
    """A panel with a button that draws; it works in a thread, so the kernel stays free.

    Subclasses make the buttons, `status`, and `progress`, and define `_job`.

    Attributes:
        _lock: over models and figures.
        _queue: file that processes of a public page wait for; None for a page that is not public.
    """

    button: widgets.Button
    stop_button: widgets.Button
    status: Said
    progress: widgets.HTML
    _lock: threading.Lock
    _queue: Path | None
    _worker: Worker | None = None
    _beginning = threading.RLock()  # inputs change in the kernel's thread, and in that of a job that changes them

    @abstractmethod
    def _job(self) -> Job:
        """What the present inputs ask for; raises ValueError where they are wrong."""

    def start(self) -> None:
        """Start to draw what the inputs describe, in a thread; the panel says what is wrong with them."""
        if self._worker is None or not self._worker.alive:
            self._begin(self._job)

    def _begin(self, make: Callable[[], Job]) -> None:
        """Start the job that `make` gives, in a thread; the one before it is given up."""
        with self._beginning:
            if self._worker is not None:
                self._worker.stop()
            try:
                job = make()
            except ValueError as error:
                self._worker = None
                return self._say(str(error))
            self._show_working(True)
            self._worker = Worker(Path(type(self).__name__.lower()), lambda worker: self._run(job, worker))
            self._worker.start()

    def stop(self) -> None:
        """Stop at the next safe moment."""
        if self._worker is not None:
            self._worker.stop()

    def _wait(self) -> None:
        """Draw, and wait for the end; raises what ended the work, and ValueError for wrong inputs."""
        self.start()
        if self._worker is None:
            raise ValueError(self.status.value)
        while not self._worker.join(POLL_SECONDS):
            pass
        if self._worker.error is not None:
            raise self._worker.error

    def _run(self, job: Job, worker: Worker) -> None:
        waiting = nullcontext()
        if self._queue:
            waiting = turn(self._queue, worker.check, lambda: self._say("Another drawing is running; yours is next."))
        try:
            with waiting, self._lock:
                job(worker)
        except Exception as error:
            if worker is self._worker:  # else another has taken its place
                self._say_failed(error)
            raise
        finally:
            if worker is self._worker:
                self.progress.value = ""
                self._show_working(False)

    def _show_working(self, working: bool) -> None:
        self.button.disabled, self.stop_button.disabled = working, not working

    def _say(self, text: str) -> None:
        self.status.value = text

    def _say_failed(self, error: Exception) -> None:
        if isinstance(error, Stopped):
            self._say("Stopped.")
        elif self._queue:
            self._say("The drawing failed. Please try again.")
        else:
            self._say(f"{type(error).__name__}: {error}")
