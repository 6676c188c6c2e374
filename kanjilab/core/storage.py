"""Atomic files and folders: a reader sees all of one or nothing. And where the cache is."""

import errno
import hashlib
import json
import os
import re
import secrets
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from typing import Any

PACKAGE_WEIGHTS = Path(str(files("kanjilab"))) / "weights"  # what the package carries
TEMPORARY_PREFIX = ".tmp_"


def cache_folder() -> Path:
    """Where downloads and results are kept: `KANJILAB_CACHE`, else `kanjilab` in `XDG_CACHE_HOME` or `~/.cache`."""
    if own := os.environ.get("KANJILAB_CACHE"):
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "kanjilab"


def package_file(package: str, name: str) -> Path | None:
    """A file that an installed package carries, found without importing it; None where it is missing."""
    spec = find_spec(package)
    paths = [Path(folder) / name for folder in (spec.submodule_search_locations or [])] if spec else []
    return next((path for path in paths if path.is_file()), None)


@contextmanager
def appearing_folder(target: Path) -> Iterator[Path]:
    """Context manager: a temporary folder to fill, which takes the target's name at the end if no error occurred.

    Where another process was first, its folder stays and this one is dropped. Its files become as readable for others
    as the user's are: safetensors makes its own for the user alone.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}-{secrets.token_hex(8)}")
    temporary.mkdir()  # unlike tempfile's folders, as readable for others as the user's are
    try:
        yield temporary
        readable = temporary.stat().st_mode & 0o444
        for file in temporary.rglob("*"):
            if file.is_file() and not file.is_symlink() and (mode := file.stat().st_mode) & readable != readable:
                file.chmod(mode | readable)
        try:
            temporary.rename(target)
        except OSError:
            if not (target.is_dir() and any(target.iterdir())):
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def require_place(path: Path) -> None:
    """Refuses, before any work, a place where nothing can be written.

    Args:
        path: of a file or folder that need not be there, nor need its parents.
    Raises:
        ValueError: it is a link that leads nowhere, or below something that is no folder.
    """
    if path.is_symlink() and not path.exists():
        raise ValueError(f"{path} cannot be written: it is a link that leads nowhere")
    there = next(parent for parent in path.absolute().parents if parent.exists())
    if not there.is_dir():
        raise ValueError(f"{path} cannot be written: {there} is no folder")


def require_new(folder: Path) -> None:
    """Refuses, before any work, a folder that is there: it would stay, and be taken for what was to be written.

    Raises:
        FileExistsError: there is something of this name, if only a link that leads nowhere.
    """
    if folder.exists() or folder.is_symlink():
        raise FileExistsError(f"{folder} exists already: expected a new folder")


def sha256_file(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_bytes_atomic(path: Path | str, data: bytes) -> Path:
    """Write a file so that a reader sees the old content or the new, never a part.

    Args:
        path: file to write; its folder must exist.
        data: the whole content.
    Returns:
        the path.
    Raises:
        OSError: the disk refuses; the old file is then untouched.
    """
    path = Path(path)
    temporary = path.with_name(temporary_name(path.name))
    try:
        write_synced(temporary, data)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)
    return path


def write_together(files: Mapping[Path, bytes]) -> list[Path]:
    """Write files that belong together: where the disk has no room for all of them, none is written.

    Args:
        files: path -> the whole content; their folders must exist.
    Returns:
        the paths.
    Raises:
        OSError: the disk refuses; the old files are then untouched.
    """
    temporary = {path: path.with_name(temporary_name(path.name)) for path in files}
    try:
        for path, data in files.items():
            write_synced(temporary[path], data)
        for path in files:
            os.replace(temporary[path], path)
    except BaseException:
        for path in temporary.values():
            path.unlink(missing_ok=True)
        raise
    for folder in {path.parent for path in files}:
        sync_folder(folder)
    return list(files)


def write_json_atomic(path: Path | str, content: Any) -> Path:
    """Write strict JSON (UTF-8, indented) atomically.

    Args:
        path: file to write; its folder must exist.
        content: JSON types, and numpy or torch scalars and arrays, tuples and paths, which become JSON types.
    Returns:
        the path.
    Raises:
        ValueError: a number is NaN or infinite, which JSON cannot hold.
        TypeError: a value of any other type, or a mapping key that is not a string.
    """
    return write_bytes_atomic(path, json_bytes(content, str(path)))


def json_bytes(content: Any, what: str) -> bytes:
    """Strict JSON (UTF-8, indented); `what` names the content in errors, which are those of `write_json_atomic`."""
    try:
        text = json.dumps(plain_json(content), indent=2, ensure_ascii=False, allow_nan=False)
    except ValueError as error:
        raise ValueError(f"{what}: JSON holds finite numbers only ({error})") from error
    return text.encode() + b"\n"


def plain_json(value: Any) -> Any:
    """JSON types only; numpy and torch values by their own `tolist`."""
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode()  # half a surrogate pair becomes "?"
    if value is None or isinstance(value, (bool, int, float)):
        return value
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                raise TypeError(f"a JSON key must be a string, got {key!r} ({type(key).__name__})")
        return {plain_json(key): plain_json(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain_json(entry) for entry in value]
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if hasattr(value, "tolist"):
        return plain_json(value.tolist())
    raise TypeError(f"expected a JSON value, got {type(value).__name__}: {value!r:.80}")


def reserve(path: Path, size: int) -> None:
    """Takes room on the disk for a file that is written through memory: without it a full disk ends the process.

    Args:
        path: a file that is there.
        size: in bytes.
    Raises:
        OSError: there is not so much room; the message says how much.
    """
    allocate = getattr(os, "posix_fallocate", None)
    if allocate is None:  # not on macOS
        return
    descriptor = os.open(path, os.O_RDWR)
    try:
        allocate(descriptor, 0, size)
    except OSError as error:
        free = shutil.disk_usage(path.parent).free
        raise OSError(
            error.errno, f"no room for {size / 1e6:,.0f} MB on the disk, {free / 1e6:,.0f} MB are free", str(path)
        ) from error
    finally:
        os.close(descriptor)


def temporary_name(name: str) -> str:
    """A name that no reader takes for a finished file, and no other writer uses."""
    return f"{TEMPORARY_PREFIX}{os.getpid()}_{secrets.token_hex(4)}_{name}"


def is_being_written(temporary: Path) -> bool:
    """Whether the process that a temporary file is named after is alive on this machine."""
    match = re.match(rf"{re.escape(TEMPORARY_PREFIX)}(\d+)_", temporary.name)
    if match is None or int(match.group(1)) == os.getpid():
        return match is not None
    try:
        os.kill(int(match.group(1)), 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True


def write_synced(path: Path, data: bytes) -> None:
    """Write a new file and flush it to the disk."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        write_all(descriptor, data)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_folder(folder: Path) -> None:
    """Make renames in the folder survive a power cut, where the file system can."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:  # some network file systems cannot sync a folder
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)


def tensor_bytes(tensors: Mapping[str, Any], metadata: Mapping[str, str] | None = None) -> bytes:
    """Tensors, copied to the processor, as the content of a safetensors file."""
    # torch takes seconds to import and strips, widgets and listings do without it
    import torch
    from safetensors.torch import save

    # a copy each: an arm's adapter is a slice of a stacked tensor, and safetensors refuses shared storage
    copies = {
        name: torch.as_tensor(value).detach().to("cpu", copy=True).contiguous() for name, value in tensors.items()
    }
    return save(copies, metadata=dict(metadata) if metadata else None)


def write_all(descriptor: int, data: bytes) -> None:
    """Write every byte, in as many calls as the system wants."""
    remaining = memoryview(data)
    while remaining:
        remaining = remaining[os.write(descriptor, remaining) :]
