"""Long work in a thread of the kernel: one job a folder, found again by it, and stopped only at safe moments."""

from __future__ import annotations

import asyncio
import atexit
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path

from kanjilab.training.trainer import StepReport

POLL_SECONDS = 0.1
SECONDS_TO_STOP = 4.0  # JupyterLab kills a kernel five seconds after it was asked to end
STEPS_OF_A_RATE = 50
WORKERS: dict[Path, Worker] = {}  # of this process; a panel that is built again finds its job here


class Stopped(Exception):
    """Raised within a job at the first safe moment after a stop was asked for."""


class WorkerBusy(RuntimeError):
    """The folder's job is still going on."""


class Worker:
    """One job and how far it has come. Make one with `start_worker`.

    Attributes:
        folder: that the job works on.
        stage: what it does now, in words.
        done, total: of the stage, in any unit; total 0 where that is not known.
        report: of the latest optimizer step, where there was one.
        stopped: the job ended because it was asked to.
        error: what ended the job too early, or None.
    """

    def __init__(self, folder: Path, job: Callable[[Worker], None]):
        self.folder = folder
        self.stage, self.done, self.total = "begin", 0.0, 0.0
        self.report: StepReport | None = None
        self.stopped = False
        self.error: Exception | None = None
        self.pace: deque[tuple[float, float]] = deque(maxlen=STEPS_OF_A_RATE)  # images seen, seconds
        self._stop = threading.Event()
        # A daemon: a kernel that is asked to end does not wait for the training's end.
        self._thread = threading.Thread(target=self._run, args=(job,), name=f"kanjilab {folder.name}", daemon=True)

    def _run(self, job: Callable[[Worker], None]) -> None:
        try:
            job(self)
        except Stopped:
            self.stopped = True
        except Exception as error:  # whatever it was: the panel shows it, and `finished` raises it
            self.error = error

    def start(self) -> None:
        """Begin; once."""
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether the job is going on."""
        return self._thread.is_alive()

    @property
    def stopping(self) -> bool:
        """Whether it was asked to stop and has not yet."""
        return self._stop.is_set() and self.alive

    # ------------------------------------------------------------------------------------------ called by the job

    def check(self) -> None:
        """A safe moment: raises `Stopped` where a stop was asked for."""
        if self._stop.is_set():
            raise Stopped

    def tell(self, stage: str, done: float = 0, total: float = 0) -> None:
        """Say what is done now; a safe moment.

        Args:
            stage: in words.
            done: how far it has come, in any unit.
            total: of all, in the same; 0 where that is not known.
        """
        self.stage, self.done, self.total = stage, done, total
        self.check()

    def told_of_step(self, report: StepReport) -> None:
        """Take note of an optimizer step."""
        self.report = report
        self.pace.append((max(report.images_seen), report.seconds))

    # ------------------------------------------------------------------------------------------ called by panels

    def stop(self) -> None:
        """Ask the job to end at its next safe moment."""
        self._stop.set()

    def join(self, seconds: float) -> bool:
        """Wait for the job's end; whether it has come."""
        self._thread.join(seconds)
        return not self.alive

    async def finished(self) -> None:
        """Wait without holding up the kernel; an interrupt (■) stops the job at its next safe moment first.

        Raises:
            Exception: what ended the job too early.
        """
        try:
            while self.alive:
                await asyncio.sleep(POLL_SECONDS)
        except (asyncio.CancelledError, KeyboardInterrupt):
            self.stop()
            self.join(SECONDS_TO_STOP)
            raise
        if self.error is not None:
            raise self.error


def start_worker(folder: Path, job: Callable[[Worker], None]) -> Worker:
    """Begin a folder's job.

    Args:
        folder: that the job works on.
        job: called with the worker, in a thread; it should call `check` or `tell` at every safe moment.
    Raises:
        WorkerBusy: this process does a job on that folder already.
    """
    folder = folder.resolve()
    if (known := WORKERS.get(folder)) is not None and known.alive:
        raise WorkerBusy(f"{folder}: a job is going on already ({known.stage})")
    WORKERS[folder] = worker = Worker(folder, job)
    worker.start()
    return worker


def find_worker(folder: Path) -> Worker | None:
    """The folder's latest job in this process."""
    return WORKERS.get(folder.resolve())


@atexit.register
def _stop_all() -> None:
    """Leaves a checkpoint of every job when the kernel is shut down or restarted in the usual way."""
    going_on = [worker for worker in WORKERS.values() if worker.alive]
    for worker in going_on:
        worker.stop()
    end = time.monotonic() + SECONDS_TO_STOP
    for worker in going_on:
        worker.join(max(0.0, end - time.monotonic()))
