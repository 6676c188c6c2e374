"""Bounds of time and memory around what reads a fault."""

import resource
import signal
from contextlib import contextmanager
from pathlib import Path

SECONDS, MEMORY_BYTES = 10, 4 * 1024**3  # a content should take milliseconds and megabytes


def _address_space():
    """Bytes that this process has reserved by now."""
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()


@contextmanager
def bounded(seconds=SECONDS):
    """Bounds time and memory, by an assertion and a MemoryError: no reader takes them for a fault of the file."""

    def ring(*_):
        raise AssertionError(f"it waits for more than {seconds} s")

    before, limits = signal.signal(signal.SIGALRM, ring), resource.getrlimit(resource.RLIMIT_AS)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    resource.setrlimit(resource.RLIMIT_AS, (_address_space() + MEMORY_BYTES, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
