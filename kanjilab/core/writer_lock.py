"""The lock that makes one process the only writer of a folder."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from kanjilab.core.run_errors import RunLocked


class WriterLock:
    """A lock on a file, which holds the number of the process that has it.

    The operating system frees the lock when the process ends, however it ends; the number then stays in the file.

    Args of the constructor:
        path: the lock file, made when it is first needed; its folder must exist.
    """

    def __init__(self, path: Path):
        self.path = path
        self.is_held = False

    @contextmanager
    def held(self) -> Iterator[None]:
        """Context manager: this object has the lock.

        Raises:
            RunLocked: another writer (or this very object) has it; names its process.
        """
        descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                holder = _process_in(descriptor) or "unknown"
                raise RunLocked(f"run {self.path.parent} is being written by process {holder}") from None
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
            self.is_held = True
            try:
                yield
            finally:
                self.is_held = False
                os.ftruncate(descriptor, 0)
                fcntl.flock(descriptor, fcntl.LOCK_UN)  # explicit: a forked child may still hold a copy
        finally:
            os.close(descriptor)

    def holder(self) -> str | None:
        """The number of the process that has the lock, as text; None where no process has it."""
        try:
            descriptor = os.open(self.path, os.O_RDONLY | os.O_NONBLOCK)  # nothing is waited for in a pipe
        except FileNotFoundError:
            return None
        try:
            # A free lock is tried only where a number was left behind: a try may refuse a writer that begins.
            if not (holder := _process_in(descriptor)):
                return None
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
            return None
        except BlockingIOError:
            return holder
        finally:
            os.close(descriptor)


def _process_in(descriptor: int) -> str:
    return os.read(descriptor, 100).decode(errors="replace").strip()
