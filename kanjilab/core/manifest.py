"""Hashes of a folder's files, written with them and compared when they are read: a flipped bit is named, not used."""

import contextlib
import errno
import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from kanjilab.core.notices import notice, notice_once
from kanjilab.core.storage import TEMPORARY_PREFIX, sha256_file, temporary_name, write_json_atomic

MANIFEST = "manifest.json"


def file_facts(path: Path) -> dict[str, Any]:
    """What a manifest says of a file: `bytes` and `sha256`."""
    return {"bytes": path.stat().st_size, "sha256": sha256_file(path)}


def damage_of(path: Path, expected: Mapping[str, Any]) -> str | None:
    """What is wrong with a file, or None.

    Args:
        path: the file.
        expected: of the manifest, as `file_facts` gives it.
    """
    try:
        if not path.is_file():
            return f"{path}: expected a file of {expected['bytes']:,} bytes, found none"
        if (size := path.stat().st_size) != expected["bytes"]:
            return f"{path}: expected {expected['bytes']:,} bytes, got {size:,}"
        if (found := sha256_file(path)) != expected["sha256"]:
            return f"{path}: expected SHA-256 {expected['sha256']}, got {found}; its content was changed or damaged"
    except OSError as error:
        return f"{path}: cannot be read ({error.strerror or error})"
    return None


def keep_sound(folder: Path, make: Callable[[], object]) -> None:
    """Sees to it that a cached folder is there as it was made: makes it where it is missing, again if it is damaged.

    A folder without a manifest is taken as it is, and gets one.

    Args:
        folder: of the cache; all that is in it can be made again.
        make: makes it appear whole.
    """
    if (folder / MANIFEST).exists() and (wrong := _first_damage(folder)):
        notice(f"{wrong}. It is made again")
        doomed = folder.with_name(temporary_name(folder.name))
        folder.rename(doomed)  # gone at once for others
        shutil.rmtree(doomed)
    if not folder.is_dir():
        make()
    if not (folder / MANIFEST).exists():
        # Another process may be writing its manifest at this moment.
        files = sorted(p for p in folder.rglob("*") if p.is_file() and not p.name.startswith(TEMPORARY_PREFIX))
        facts = {path.relative_to(folder).as_posix(): file_facts(path) for path in files}
        with kept_where_it_can_be(f"the manifest of {folder}"):
            write_json_atomic(folder / MANIFEST, facts)


@contextlib.contextmanager
def kept_where_it_can_be(what: str) -> Iterator[None]:
    """Context manager around storing what can be made again: where nothing may be written, it is told and passed over.

    Args:
        what: is stored and where, for the notice.
    Raises:
        OSError: another reason, as a full disk.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise
        notice_once(f"{what} is not kept: nothing can be written there ({error.strerror})")


def _first_damage(folder: Path) -> str | None:
    try:
        facts = json.loads((folder / MANIFEST).read_bytes())
        return next((wrong for name, expected in facts.items() if (wrong := damage_of(folder / name, expected))), None)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"{folder / MANIFEST}: cannot be read ({error})"
