"""Image folders with captions: read and checked file by file, and refused if anything is wrong."""

import csv
import hashlib
import io
import json
import re
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import numpy as np
import pandas as pd
from PIL import Image, ImageOps

from kanjilab.core.images import SIZE_PX

METADATA_NAMES = ("metadata.csv", "metadata.jsonl")
DESCRIPTION = "dataset.json"
TRAIN, HELD_OUT = "train", "held_out"
TEXT_COLUMNS = ("file_name", "text", "split", "character")
PIXELS_MAX = 64 * 1024 * 1024  # 8192 x 8192; a decompression bomb claims far more
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF")  # the others run programs or are rarely images
FILTERS = {
    name: Image.Resampling[name.upper()] for name in ("nearest", "box", "bilinear", "hamming", "bicubic", "lanczos")
}


class DatasetError(ValueError):
    """Everything that is wrong with a dataset, one problem a line; `problems` holds them one by one."""

    def __init__(self, folder: Path, problems: Sequence[str]):
        """Join the problems into one message."""
        self.problems = tuple(problems)
        count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        super().__init__("\n  ".join([f"{folder}: {count}", *problems]))


@dataclass(frozen=True, eq=False)
class Dataset:
    """A checked image folder.

    `table` has one row per image in file order, with at least file_name (relative to `folder`), text
    and split. `size_px` and `resample` say how `images` brings any size to a square.
    """

    folder: Path
    table: pd.DataFrame
    size_px: int
    resample: str
    digests: tuple[str, ...]

    def __len__(self) -> int:
        """Number of images."""
        return len(self.table)

    @property
    def content_hash(self) -> str:
        """SHA-256 over size, filter, and each row's caption and image bytes, in order; names do not count."""
        digest = hashlib.sha256(f"{self.size_px} {self.resample}".encode())
        for text, image in zip(self.table["text"], self.digests, strict=True):
            digest.update(hashlib.sha256(text.encode("utf-8")).digest() + bytes.fromhex(image))
        return digest.hexdigest()

    def split(self, name: str) -> "Dataset":
        """The rows of one split, such as "train" or "held_out".

        Raises:
            KeyError: there is no such split.
        """
        kept = np.flatnonzero((self.table["split"] == name).to_numpy())
        if not len(kept):
            raise KeyError(f"split {name!r}: expected one of {sorted(self.table['split'].unique())}")
        table, digests = self.table.iloc[kept].reset_index(drop=True), tuple(self.digests[i] for i in kept)
        return replace(self, table=table, digests=digests)

    def images(self, indices: Sequence[int] | np.ndarray | None = None, channels: Literal[1, 3] = 1) -> np.ndarray:
        """Decode images.

        Args:
            indices: rows of `table`, B of them; None for all.
            channels: 1 gray, 3 RGB.
        Returns:
            (B, H, W) or (B, H, W, 3) uint8, H = W = size_px, 0 black to 255 white.
        """
        rows = range(len(self)) if indices is None else [int(index) for index in indices]
        mode = {1: "L", 3: "RGB"}[channels]
        found = np.empty((len(rows), self.size_px, self.size_px, *((3,) if channels == 3 else ())), dtype=np.uint8)
        for position, row in enumerate(rows):
            with _opened(self.folder / self.table["file_name"].iloc[row]) as image:
                found[position] = np.asarray(_square(image, mode, self.size_px, FILTERS[self.resample]))
        return found


def _square(image: Image.Image, mode: str, size_px: int, resample: Image.Resampling) -> Image.Image:
    image = _flattened(image, mode)
    if image.size == (size_px, size_px):
        return image
    return ImageOps.pad(image, (size_px, size_px), method=resample, color="white")


def _flattened(image: Image.Image, mode: str) -> Image.Image:
    """Upright, in a mode of 8 bits, and white where it was transparent."""
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):  # 16 bits per pixel, which `convert` would cut off at 255
        image = Image.fromarray((np.asarray(image, dtype=np.int64).clip(0, 65535) >> 8).astype(np.uint8))
    if image.has_transparency_data:
        paper = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(paper, image.convert("RGBA"))
    return image.convert(mode)


def read_gray(path: Path, side_max_px: int) -> np.ndarray:
    """One picture of any kind and size, as it is seen.

    Args:
        path: of a file.
        side_max_px: a longer side is brought to this.
    Returns:
        (H, W) uint8, 0 black to 255 white.
    Raises:
        ValueError: there is none, or it cannot be read; the message says why.
    """
    _, wrong = _check_image(path)
    if wrong:
        raise ValueError(f"{path.name} {wrong}")
    with _opened(path) as image:
        image.draft("L", (side_max_px, side_max_px))
        gray = _flattened(image, "L")
    gray.thumbnail((side_max_px, side_max_px), Image.Resampling.LANCZOS, reducing_gap=3)
    return np.asarray(gray)


def _opened(path: Path) -> Image.Image:
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        return Image.open(path, formats=FORMATS)


@dataclass(frozen=True)
class _Line:
    """One entry of a metadata file: its place, its values, and what is wrong with it so far."""

    place: str
    values: dict[str, Any]
    problems: tuple[str, ...] = ()


def open_dataset(folder: Path | str, *, size_px: int = SIZE_PX, resample: str = "lanczos") -> Dataset:
    """Read an image folder with `metadata.csv` or `metadata.jsonl`, and check every file in it.

    The metadata is in the folder, or in each of its subfolders, which then name the splits. It has
    the columns file_name and text; without a column `split` everything is "train". Images are
    PNG, JPEG, WebP, BMP, GIF or TIFF, gray or colour, of any size; transparency becomes white, and
    an image that is not square is padded with white.

    Args:
        folder: the image folder.
        size_px: side of the square that images are brought to.
        resample: nearest, box, bilinear, hamming, bicubic or lanczos.
    Returns:
        The checked dataset; rows in the order of the metadata.
    Raises:
        DatasetError: anything is wrong; all problems are named together, by line and file.
        ValueError: a size or filter that does not exist.
    """
    folder = Path(folder)
    if resample not in FILTERS:
        raise ValueError(f"resample must be one of {', '.join(FILTERS)}, got {resample!r}")
    if size_px < 1:
        raise ValueError(f"size_px must be >= 1, got {size_px}")
    lines = [line for path in _metadata_files(folder) for line in _read_metadata(folder, path)]
    problems, digests = _check_lines(folder, lines)
    if not problems and not digests:
        problems = ["expected at least one image in the metadata, got none"]
    if problems:
        raise DatasetError(folder, problems)
    return Dataset(folder, _table_of([line.values for line in lines]), size_px, resample, tuple(digests))


def _metadata_files(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise DatasetError(folder, ["expected a folder of images, got none"])
    at_root = [path for name in METADATA_NAMES if (path := folder / name).is_file()]
    found = at_root or sorted(path for name in METADATA_NAMES for path in folder.glob(f"*/{name}") if path.is_file())
    found.sort(key=lambda path: path.parent.name != TRAIN)  # what is trained on comes first
    if not found:
        raise DatasetError(folder, ["expected metadata.csv or metadata.jsonl, got neither"])
    twice = [str(parent) for parent, count in Counter(path.parent for path in found).items() if count > 1]
    if twice:
        raise DatasetError(folder, [f"expected one metadata file, got both .csv and .jsonl in {p}" for p in twice])
    return found


def _read_metadata(folder: Path, path: Path) -> list[_Line]:
    """Entries with file_name relative to the dataset's folder; a problem with no entry makes an empty one."""
    label = path.relative_to(folder).as_posix()
    prefix = path.parent.relative_to(folder).as_posix()
    data = path.read_bytes().removeprefix(b"\xef\xbb\xbf")
    lines_of_bytes = enumerate(data.split(b"\n"), start=1)
    garbled = {number for number, line in lines_of_bytes if line.decode("utf-8", "ignore").encode() != line}
    text = data.decode("utf-8", errors="replace")
    read = _read_jsonl if path.suffix == ".jsonl" else _read_csv
    lines = []
    for first, last, values, wrong in read(text):
        place = f"{label} line {first}"
        problems = [*wrong, *("expected UTF-8, got other bytes" for n in range(first, last + 1) if n in garbled)]
        if values and prefix != ".":
            values = {"split": prefix, **values, "file_name": f"{prefix}/{values['file_name']}"}
        lines.append(_Line(place, values, tuple(problems)))
    return lines


Entry = tuple[int, int, dict[str, Any], list[str]]  # first line, last line, values, problems


def _read_csv(text: str) -> Iterator[Entry]:
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    header: list[str] | None = None
    first = 1
    try:
        for fields in reader:
            if header is None:
                header = [name.strip() for name in fields]
                if wrong := _header_problems(header):
                    yield 1, reader.line_num, {}, wrong
                    return
            elif fields:
                wrong = [] if len(fields) == len(header) else [f"expected {len(header)} fields, got {len(fields)}"]
                yield first, reader.line_num, {} if wrong else dict(zip(header, fields, strict=True)), wrong
            first = reader.line_num + 1
        if header is None:
            yield 1, 1, {}, _header_problems([])
    except csv.Error as error:
        yield first, reader.line_num, {}, [f"expected comma-separated values ({error})"]


def _header_problems(header: list[str]) -> list[str]:
    if missing := [name for name in ("file_name", "text") if name not in header]:
        got = ", ".join(header) or "nothing"
        return [f"expected the columns file_name and text, got {got} (missing: {', '.join(missing)})"]
    repeated = [name for name, count in Counter(header).items() if count > 1]
    return [f"expected each column once, got {', '.join(repeated)} repeatedly"] if repeated else []


def _read_jsonl(text: str) -> Iterator[Entry]:
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            values = json.loads(line)
        except (ValueError, RecursionError) as error:
            yield number, number, {}, [f"expected one JSON object per line ({error})"]
            continue
        wrong: list[str] = [] if isinstance(values, dict) else [f"expected a JSON object, got {type(values).__name__}"]
        if not wrong:
            absent = [name for name in ("file_name", "text") if not isinstance(values.get(name), str)]
            wrong = [f"expected file_name and text as strings, got none for {', '.join(absent)}"] if absent else []
        # JSON can spell a lone surrogate, but no file name or caption can hold it.
        if not wrong and re.search("[\ud800-\udfff]", values["file_name"] + values["text"]):
            wrong = ["expected characters, got half of a surrogate pair"]
        yield number, number, {} if wrong else values, wrong


def _check_lines(folder: Path, lines: Sequence[_Line]) -> tuple[list[str], list[str]]:
    """Every problem of every entry, in file order; and the SHA-256 of each sound image."""
    problems, digests = [], []
    first_at: dict[str, str] = {}
    for line in lines:
        problems += [f"{line.place}: {problem}" for problem in line.problems]
        if not line.values:
            continue
        name = line.values["file_name"]
        label = f"{line.place}: file {name!r}"
        if not line.values["text"].strip():
            problems.append(f"{label} has an empty caption")
        if wrong := _name_problem(folder, name):
            problems.append(f"{label} {wrong}")
            continue
        if (plain := PurePosixPath(name).as_posix()) in first_at:
            problems.append(f"{label} is listed already in {first_at[plain]}")
            continue
        first_at[plain] = line.place
        digest, wrong = _check_image(folder / name)
        problems += [f"{label} {wrong}"] if wrong else []
        digests.append(digest)
    return problems, digests


def _name_problem(folder: Path, name: str) -> str | None:
    if not name.strip():
        return "has no name"
    if "\0" in name or "\\" in name or PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
        return "leads out of the folder: expected a relative path with '/' and without '..'"
    try:
        inside = (folder / name).resolve().is_relative_to(folder.resolve())
    except (OSError, RuntimeError) as error:  # too long, or a link to itself
        return f"cannot be followed ({error})"
    if not inside:
        return "leads out of the folder through a link"
    return None


def _check_image(path: Path) -> tuple[str, str | None]:
    """SHA-256 of the bytes; and what is wrong with the image, or None."""
    try:
        if not path.is_file():
            return "", "is missing"
        data = path.read_bytes()
    except OSError as error:
        return "", f"cannot be read ({error.strerror or error})"
    if not data:
        return "", "is 0 bytes"
    digest = hashlib.sha256(data).hexdigest()
    try:
        with _opened(path) as image:
            if image.width * image.height > PIXELS_MAX:
                return digest, f"is too large: {image.width} x {image.height} px, at most {PIXELS_MAX} pixels"
            image.load()
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        return digest, f"is too large: expected at most {PIXELS_MAX} pixels"
    except Image.UnidentifiedImageError:
        return digest, f"is not an image of a known format ({', '.join(FORMATS)})"
    except Exception as error:  # decoders raise whatever their parsers trip over
        return digest, f"is damaged ({error})"
    return digest, None


def _table_of(rows: Sequence[dict[str, Any]]) -> pd.DataFrame:
    table = pd.DataFrame(list(rows))
    given = table["split"] if "split" in table else pd.Series(TRAIN, index=table.index)
    table["split"] = [str(name) if pd.notna(name) and name != "" else TRAIN for name in given]
    for column in table.columns.difference(TEXT_COLUMNS):
        filled = table[column].replace("", np.nan)
        try:
            table[column] = pd.to_numeric(filled)
        except (ValueError, TypeError, OverflowError):
            pass  # words stay words
    leading = ["file_name", "text", "split"]
    return table.loc[:, [*leading, *(column for column in table.columns if column not in leading)]]


# --- Building ------------------------------------------------------------------------------------
