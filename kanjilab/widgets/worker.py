"""Long jobs in a thread of the kernel: one per folder, found again by its folder, stopped only at safe moments."""

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
SECONDS_TO_STOP = 4.0  # JupyterLab kills a kernel five seconds after it has asked it to end
STEPS_OF_A_RATE = 50
WORKERS: dict[Path, Worker] = {}  # of this process; a panel that is rebuilt finds its job here


class Stopped(Exception):
    """Raised in a job at the first safe moment after `stop`."""


class WorkerBusy(RuntimeError):
    """The folder's job is still running."""


class Worker:
    """One job and its progress. Make one with `start_worker`.

    Attributes:
        folder: where the job writes.
        stage: what it does now, in words.
        done, total: progress of the stage, in any unit; total is 0 where it is unknown.
        report: of the latest optimizer step, or None.
        stopped: whether `stop` ended the job.
        error: the exception that ended the job, or None.
    """

    def __init__(self, folder: Path, job: Callable[[Worker], None]):
        self.folder = folder
        self.stage, self.done, self.total = "start", 0.0, 0.0
        self.report: StepReport | None = None
        self.stopped = False
        self.error: Exception | None = None
        self.pace: deque[tuple[float, float]] = deque(maxlen=STEPS_OF_A_RATE)  # images seen, seconds
        self._stop = threading.Event()
        # A daemon, so that a kernel that is shut down does not wait for the end of a training.
        self._thread = threading.Thread(target=self._run, args=(job,), name=f"kanjilab {folder.name}", daemon=True)

    def _run(self, job: Callable[[Worker], None]) -> None:
        try:
            job(self)
        except Stopped:
            self.stopped = True
        except Exception as error:  # of any kind: the panel shows it, and `finished` raises it
            self.error = error

    def start(self) -> None:
        """Start the job; call it once."""
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether the job is running."""
        return self._thread.is_alive()

    @property
    def stopping(self) -> bool:
        """Whether `stop` was called and the job still runs."""
        return self._stop.is_set() and self.alive

    def check(self) -> None:
        """For the job, at a safe moment: raises `Stopped` after `stop`."""
        if self._stop.is_set():
            raise Stopped

    def tell(self, stage: str, done: float = 0, total: float = 0) -> None:
        """For the job, at a safe moment: report progress.

        Args:
            stage: what is done now, in words.
            done: in any unit.
            total: in the same unit; 0 where it is unknown.
        """
        self.stage, self.done, self.total = stage, done, total
        self.check()

    def told_of_step(self, report: StepReport) -> None:
        """For the job: report an optimizer step."""
        self.report = report
        self.pace.append((max(report.images_seen), report.seconds))

    def stop(self) -> None:
        """End the job at its next safe moment."""
        self._stop.set()

    def join(self, seconds: float) -> bool:
        """Wait for the end of the job, at most so long; True where it has ended."""
        self._thread.join(seconds)
        return not self.alive

    async def finished(self) -> None:
        """Wait while the kernel stays free; an interrupt (■) stops the job at its next safe moment.

        Raises:
            Exception: the one that ended the job.
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
    """Start a folder's job.

    Args:
        folder: where the job writes.
        job: called with the worker, in a thread; it should call `check` or `tell` at every safe moment.
    Raises:
        WorkerBusy: a job of this process is running on that folder.
    """
    folder = folder.resolve()
    if (known := WORKERS.get(folder)) is not None and known.alive:
        raise WorkerBusy(f"{folder}: a job is already running ({known.stage})")
    WORKERS[folder] = worker = Worker(folder, job)
    worker.start()
    return worker


def find_worker(folder: Path) -> Worker | None:
    """The folder's latest job in this process."""
    return WORKERS.get(folder.resolve())


@atexit.register
def _stop_all() -> None:
    """Leave a checkpoint of every job when the kernel is shut down or restarted normally."""
    running = [worker for worker in WORKERS.values() if worker.alive]
    for worker in running:
        worker.stop()
    end = time.monotonic() + SECONDS_TO_STOP
    for worker in running:
        worker.join(max(0.0, end - time.monotonic()))
