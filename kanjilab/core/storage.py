"""Folders that are there whole or not at all, and where the cache is."""

import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path

PACKAGE_WEIGHTS = Path(str(files("kanjilab"))) / "weights"  # what the package carries


def cache_folder() -> Path:
    """Where downloads and results are kept: `KANJILAB_CACHE`, else `kanjilab` in `XDG_CACHE_HOME` or `~/.cache`."""
    if own := os.environ.get("KANJILAB_CACHE"):
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "kanjilab"


@contextmanager
def appearing_folder(target: Path) -> Iterator[Path]:
    """A temporary folder to fill, which takes the target's name at the end: whole, or not at all.

    Where another process was first, its folder stays and this one is dropped.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        yield temporary
        try:
            temporary.rename(target)
        except OSError:
            if not target.is_dir():
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def sha256_file(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
