"""Files that others made or chose: what is no regular file, or far too large, is refused before it is read."""

import json
import os
import sqlite3
import stat
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

ARRAY_BYTES_MAX = 2**38
DATABASE_BYTES_MAX = 2**34
JSON_BYTES_MAX = 64 * 1024 * 1024  # the largest tokenizers have some 30 MB
KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a pipe",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFSOCK: "a socket",
}


def checked_file(path: Path, what: str, bytes_max: int) -> None:
    """Refuses what a reader could wait for without end, or what would fill the memory.

    Args:
        path: of any origin; links are followed.
        what: is expected, for messages: `a font`.
        bytes_max: the largest size.
    Raises:
        FileNotFoundError: there is none, or its link leads nowhere.
        ValueError: no regular file, an empty or a larger one.
    """
    if not _size_of_regular(path, what, bytes_max):  # a file of the system that never ends says that it is empty, too
        raise ValueError(f"{path}: expected {what}, got 0 bytes")


def _size_of_regular(path: Path, what: str, bytes_max: int) -> int:
    try:
        facts = os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        raise FileNotFoundError(f"{path}: expected {what}, found none") from None
    except (OSError, ValueError) as error:  # a link to itself, a name that is too long or holds a NUL
        raise ValueError(f"{path}: expected {what}, got a path that cannot be followed ({error})") from error
    if not stat.S_ISREG(facts.st_mode):
        raise ValueError(f"{path}: expected {what}, got {KINDS.get(stat.S_IFMT(facts.st_mode), 'no regular file')}")
    if facts.st_size > bytes_max:
        raise ValueError(f"{path}: expected {what} of at most {bytes_max:,} bytes, got {facts.st_size:,}")
    return facts.st_size


def read_file(path: Path, what: str, bytes_max: int) -> bytes:
    """The content of a file, which may be empty, and no more than its size: some files of the system never end.

    Args:
        path, what, bytes_max: as for `checked_file`.
    Raises:
        FileNotFoundError: there is none.
        ValueError: no regular file, or a larger one.
        OSError: it cannot be read.
    """
    size = _size_of_regular(path, what, bytes_max)
    with path.open("rb") as file:
        return file.read(size)


def read_json_object(path: Path, what: str = "a JSON object") -> dict[str, Any]:
    """A file that holds one JSON object.

    Args:
        path: of any origin.
        what: is expected, for messages.
    Raises:
        FileNotFoundError: there is none.
        ValueError: no regular file, too large, or of other content.
    """
    return json_object(path, read_file(path, what, JSON_BYTES_MAX), what)


def json_object(source: Path, data: bytes | str, what: str = "a JSON object") -> dict[str, Any]:
    """The JSON object that a text is.

    Args:
        source: where it comes from, for messages.
        data: the text.
        what: is expected, for messages.
    Raises:
        ValueError: it is none.
    """
    try:
        found = json.loads(data)
    except (ValueError, RecursionError) as error:  # a UnicodeDecodeError too
        raise ValueError(f"{source}: expected {what}, got {error}") from error
    if not isinstance(found, dict):
        raise ValueError(f"{source}: expected {what}, got {type(found).__name__}")
    return found


def read_array(path: Path, what: str) -> Any:
    """An array as numpy stores it, of which memory holds what is used.

    Args:
        path: of any origin.
        what: is expected, for messages.
    Raises:
        FileNotFoundError: there is none.
        ValueError: no regular file, cut off, a pickle, or of other content.
    """
    import numpy as np  # for the few who read arrays

    checked_file(path, what, ARRAY_BYTES_MAX)
    try:
        found = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError, SyntaxError, RecursionError, MemoryError, OverflowError) as error:
        raise ValueError(f"{path}: expected {what} as numpy stores it, got something else or half of it") from error
    if not isinstance(found, np.ndarray):
        raise ValueError(f"{path}: expected {what} as numpy stores it, got a zip archive of arrays")
    return found


@contextmanager
def reading_database(path: Path, what: str) -> Iterator[sqlite3.Connection]:
    """Context manager: a database of SQLite, for reading alone, in a folder that may be so too.

    Args:
        path: of any origin.
        what: is expected, for messages.
    Raises:
        FileNotFoundError: there is none.
        ValueError: no regular file, no database, a damaged one, or one of other tables.
    """
    checked_file(path, what, DATABASE_BYTES_MAX)
    try:
        # immutable: else SQLite would want a lock file beside it
        with closing(sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro&immutable=1", uri=True)) as connection:
            yield connection
    except sqlite3.Error as error:
        raise ValueError(
            f"{path}: expected {what}, got another or a damaged file ({error}); install it again"
        ) from error


@contextmanager
def reading_zip(source: Path | str, what: str = "a zip file") -> Iterator[None]:
    """Context manager around reading a zip file: what zipfile raises of a damaged one becomes one sentence.

    Args:
        source: where it comes from, for messages.
        what: is expected, for messages.
    Raises:
        ValueError: it is damaged, needs a password, or is compressed in a way that Python does not know.
    """
    try:
        yield
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, ValueError) as error:
        raise ValueError(f"{source}: expected {what} ({error})") from error
