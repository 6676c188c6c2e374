"""What a file can be in place of what it should be."""

import os
import pickle
import random
import zipfile
from collections.abc import Callable
from pathlib import Path

SPARSE_BYTES = 2**40  # takes no room on the disk
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 3428\n"
PAGE = b"<!DOCTYPE html><html><head><title>404</title></head><body>Not found</body></html>"
NO_JSON = {"number": b"7", "list": b"[1, 2]", "text": b'"a"', "null": b"null", "not a number": b'{"a": NaN'}


def sparse(path: Path) -> None:
    """A file that claims to be far larger than any memory."""
    with path.open("wb") as file:
        os.truncate(file.fileno(), SPARSE_BYTES)


def archive(path: Path) -> None:
    """What torch.save writes, but for the weights."""
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("archive/data.pkl", pickle.dumps({"a": 1}))


def written(data: bytes) -> Callable[[Path], object]:
    """Makes a file of these bytes."""
    return lambda path: path.write_bytes(data)


# Each gets the path, where nothing is any more.
REPLACED: dict[str, Callable[[Path], object]] = {
    "missing": lambda path: None,
    "empty": written(b""),
    "one byte": written(b"\0"),
    "a line of text": written(b"hello\n"),
    "an LFS pointer": written(POINTER),
    "an HTML page": written(PAGE),
    "a zip archive": archive,
    "a pickle": written(pickle.dumps({"a": [1, 2]})),
    "random bytes": written(random.Random(0).randbytes(5_000)),
    "zeros": written(bytes(5_000)),
    "UTF-16": written("file_name,text\n".encode("utf-16")),
    "brackets without end": written(b"[" * 200_000),
    "braces without end": written(b'{"a":' * 200_000),
    "tags without end": written(b"<a>" * 200_000),
    "a long line": written(b"a" * 3_000_000),
    "far too large": sparse,
    "a folder": Path.mkdir,
    "a pipe": os.mkfifo,
    "a device without end": lambda path: path.symlink_to("/dev/zero"),
    "a device without content": lambda path: path.symlink_to("/dev/null"),
    "a file of the system without end": lambda path: path.symlink_to("/proc/kmsg"),
    "a link to itself": lambda path: path.symlink_to(path.name),
    "a link to nowhere": lambda path: path.symlink_to("nowhere"),
} | {f"JSON: {name}": written(data) for name, data in NO_JSON.items()}

# Each gets the sound file's bytes.
CHANGED: dict[str, Callable[[bytes], bytes]] = {
    "the first half": lambda data: data[: len(data) // 2],
    "two thirds": lambda data: data[: len(data) * 2 // 3],
    "the second half": lambda data: data[len(data) // 2 :],
    "zeros in the middle": lambda data: data[: len(data) // 3] + bytes(len(data) // 3) + data[2 * (len(data) // 3) :],
}
