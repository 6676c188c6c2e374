"""safetensors files of any origin: what is none is named for what it is, in one sentence."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

HEADER_START = 8  # bytes before the header, which say how long it is
OTHER_CONTENTS: tuple[tuple[bytes, str], ...] = (  # how it begins, what it is and what to do
    (b"version https://git-lfs", "a Git LFS pointer: fetch the file itself with `git lfs pull`"),
    (b"PK\x03\x04", "a zip archive, as torch.save writes: a pickle can run anything when it is opened"),
    (b"\x80", "a pickle, which can run anything when it is opened"),
    (b"<", "an HTML page, as a server sends in place of a file: fetch it again"),
    (b"\x89HDF", "an HDF5 file"),
    (b"GGUF", "a GGUF file, whose weights are quantised"),
)


class TensorFileError(ValueError):
    """A file that holds no tensors in safetensors' form; the message names it, what came and what to do."""


@contextmanager
def open_tensors(path: Path, framework: str = "pt") -> Iterator[Any]:
    """Context manager: safetensors' `safe_open`, whose own errors become a `TensorFileError`.

    Args:
        path: the file.
        framework: `pt` or `numpy`.
    Raises:
        FileNotFoundError: no such file.
        TensorFileError: the file is damaged or none of safetensors.
    """
    from safetensors import SafetensorError, safe_open

    if wrong := _wrong_content(path):
        raise TensorFileError(f"{path}: expected a safetensors file, got {wrong}")
    try:
        with safe_open(path, framework=framework) as file:
            yield file
    except SafetensorError as error:
        raise TensorFileError(
            f"{path}: expected a whole safetensors file, got {path.stat().st_size:,} bytes that cannot be read "
            f"({error}); if it was fetched or copied, do so again"
        ) from error


def read_tensors(path: Path, device: str = "cpu") -> dict[str, Any]:
    """Every tensor of a file, by name.

    Args:
        path: the file.
        device: where the tensors go.
    Raises:
        FileNotFoundError, TensorFileError: as `open_tensors`.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    with open_tensors(path):
        try:
            return load_file(path, device=device)
        except (SafetensorError, KeyError) as error:  # KeyError of a type that torch lacks
            raise TensorFileError(f"{path}: expected tensors that torch reads, got others ({error})") from error


def check_tensor_file(path: Path) -> None:
    """Refuses what `open_tensors` refuses; reads the header alone."""
    with open_tensors(path):
        pass


def _wrong_content(path: Path) -> str | None:
    """What a file is that has no header of safetensors, or None."""
    if not path.exists():
        raise FileNotFoundError(f"{path}: expected a safetensors file, found none")
    if not path.is_file():
        return "a folder" if path.is_dir() else "no regular file"
    if not path.stat().st_size:  # so says a file of the system that never ends, too
        return "0 bytes"
    with path.open("rb") as file:
        start = file.read(64)
    if start[HEADER_START : HEADER_START + 1] == b"{":
        return None
    known = (what for beginning, what in OTHER_CONTENTS if start.lstrip().startswith(beginning))
    return next(known, f"{path.stat().st_size:,} bytes of something else")
