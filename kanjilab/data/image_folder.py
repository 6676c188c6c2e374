"""Image folders with captions: read and checked file by file, and refused if anything is wrong."""

import csv
import hashlib
import io
import json
import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import numpy as np
import pandas as pd

from kanjilab.core.images import SIZE_MAX_PX, SIZE_PX
from kanjilab.core.notices import LISTED, counted, notice, some_of
from kanjilab.core.outside_files import read_file
from kanjilab.data.image_files import FILTERS, ImageError, image_bytes, longer_side, read_image
from kanjilab.data.other_folders import captions_beside, has_captions_beside, meant, other_form

METADATA_NAMES = ("metadata.csv", "metadata.jsonl")
DESCRIPTION = "dataset.json"
TRAIN, HELD_OUT = "train", "held_out"
TEXT_COLUMNS = ("file_name", "text", "split", "character")
IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff"}
METADATA_BYTES_MAX = 1024**3  # a million rows have some 100 MB
WORDS = ("character", "radical_character", "position", "group")  # columns of ours that hold a word or a number
NUMBERS = ("strokes",)
LIST_OF_CAPTIONS = "of a list of captions keep one, or join them"
OUTSIDE = (
    "leads out of the folder through a link: expected the file itself; of a copy in the Hub's cache, which holds links "
    "alone, make a folder with `hf download --local-dir` or `cp -rL`"
)


class DatasetError(ValueError):
    """What is wrong with a dataset, the first problems one a line; `problems` holds them all."""

    def __init__(self, folder: Path, problems: Sequence[str]):
        """Join the problems into one message."""
        self.problems = tuple(problems)
        further = [f"and {len(problems) - LISTED:,} more"] if len(problems) > LISTED else []
        super().__init__("\n  ".join([f"{folder}: {counted(len(problems), 'problem')}", *problems[:LISTED], *further]))


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
        return self.take(kept)

    def take(self, rows: Sequence[int] | np.ndarray) -> "Dataset":
        """Some of the images, by their rows in `table`."""
        table, digests = self.table.iloc[rows].reset_index(drop=True), tuple(self.digests[row] for row in rows)
        return replace(self, table=table, digests=digests)

    def images(self, indices: Sequence[int] | np.ndarray | None = None, channels: Literal[1, 3] = 1) -> np.ndarray:
        """Decode images.

        Args:
            indices: rows of `table`, B of them; None for all.
            channels: 1 gray, 3 RGB.
        Returns:
            (B, H, W) or (B, H, W, 3) uint8, H = W = size_px, 0 black to 255 white.
        Raises:
            DatasetError: a file is not what it was when the dataset was opened.
        """
        rows = range(len(self)) if indices is None else [int(index) for index in indices]
        found = np.empty((len(rows), self.size_px, self.size_px, *((3,) if channels == 3 else ())), dtype=np.uint8)
        for position, row in enumerate(rows):
            data = self.content(row)
            found[position] = read_image(data, self.size_px, self.resample, channels)
        return found

    def content(self, row: int) -> bytes:
        """The bytes of an image's file.

        Raises:
            DatasetError: it is not what it was when the dataset was opened.
        """
        name = self.table["file_name"].iloc[row]
        try:
            data = image_bytes(self.folder / name)
        except ImageError as error:
            raise DatasetError(self.folder, [f"file {name!r} {error}"]) from error
        if hashlib.sha256(data).hexdigest() != self.digests[row]:
            raise DatasetError(self.folder, [f"file {name!r} was changed after the dataset was opened; open it again"])
        return data


@dataclass(frozen=True)
class _Line:
    """One entry of a metadata file: its place, its values, and what is wrong with it so far."""

    place: str
    values: dict[str, Any]
    problems: tuple[str, ...] = ()


def open_dataset(folder: Path | str, *, size_px: int = SIZE_PX, resample: str = "lanczos") -> Dataset:
    """Read an image folder with `metadata.csv` or `metadata.jsonl`, and check every file in it.

    The metadata is in the folder, or in each of its subfolders, which then name the splits; where there is none, the
    captions are in .txt files beside the images. It has
    the columns file_name and text; without a column `split` everything is "train". Images are
    PNG, JPEG, WebP, BMP, GIF or TIFF, gray or colour, of any size; transparency becomes white, and
    an image that is not square is padded with white. Each is decoded as it will be for training.

    A notice tells what is passed over or looks like a mistake: images that the metadata does not list, images of one
    gray alone, equal images of different characters, columns named like ours that hold something else.

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
    if not 1 <= size_px <= SIZE_MAX_PX:
        raise ValueError(f"size_px must be from 1 to {SIZE_MAX_PX:,}, got {size_px}")
    files = _metadata_files(folder)
    lines = [line for path in files for line in _read_metadata(folder, path)] if files else _caption_lines(folder)
    problems, digests, pixels, sides = _check_lines(folder, lines, size_px, resample)
    if not problems and not digests:
        problems = ["expected at least one image in the metadata, got none"]
    if problems:
        raise DatasetError(folder, problems)
    table = _table_of([line.values for line in lines])
    for remark in (*_passed_over(folder, table), *_scaled_down(sides, size_px), *_doubtful(table, pixels)):
        notice(f"{folder}: {remark}")
    return Dataset(folder, table, size_px, resample, tuple(digests))


def _passed_over(folder: Path, table: pd.DataFrame) -> Iterator[str]:
    """What is in the folder and is not read: images that no metadata lists, metadata below that of the root."""
    at_root = any((folder / name).is_file() for name in METADATA_NAMES)
    listed = {PurePosixPath(name).as_posix() for name in table["file_name"]}
    images, metadata = [], []
    for place, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        below = Path(place).relative_to(folder)
        for name in sorted(files):
            path = (below / name).as_posix()
            if name in METADATA_NAMES and at_root and place != str(folder):
                metadata.append(path)
            elif Path(name).suffix.lower() in IMAGE_SUFFIXES and not name.startswith(".") and path not in listed:
                images.append(path)
    if metadata:
        yield f"not read: {some_of(metadata)}; where there is metadata at the root, it alone counts"
    if images:
        yield f"{counted(len(images), 'image')} left out, not in the metadata: {some_of(images)}"


def _scaled_down(sides: Sequence[int], size_px: int) -> Iterator[str]:
    if larger := [side for side in sides if side > size_px]:
        yield (
            f"{counted(len(larger), 'image')} of up to {max(larger):,} px brought to {size_px} x {size_px} px "
            "(open_dataset's size_px, kanjilab train --size-px)"
        )


def _doubtful(table: pd.DataFrame, pixels: Sequence[bytes | None]) -> Iterator[str]:
    """Images from which nothing can be learned.

    Args:
        table: of the dataset.
        pixels: of each image a hash of what training sees, None of an image of one value.
    """
    blank = [name for name, found in zip(table["file_name"], pixels, strict=True) if found is None]
    if blank:
        yield (
            f"{counted(len(blank), 'image')} of one gray alone at this size, nothing to see: {some_of(blank)} (white "
            "ink on transparency becomes white on white; a thin line can vanish when it is scaled down)"
        )
    if "character" not in table:
        return
    drawn: dict[bytes, dict[str, None]] = {}
    for character, found in zip(table["character"], pixels, strict=True):
        if found is not None:
            drawn.setdefault(found, {})[str(character)] = None
    alike = [character for characters in drawn.values() if len(characters) > 1 for character in characters]
    if alike:
        yield f"{len(alike):,} characters with the same image as another one; a font's placeholder? {some_of(alike)}"


def _metadata_files(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise DatasetError(folder, ["expected a folder of images, got none"])
    at_root = [path for name in METADATA_NAMES if (path := folder / name).is_file()]
    found = at_root or sorted(path for name in METADATA_NAMES for path in folder.glob(f"*/{name}") if path.is_file())
    found.sort(key=lambda path: path.parent.name != TRAIN)  # what is trained on comes first
    if not found and not has_captions_beside(folder, _images_in(folder)):
        raise DatasetError(folder, [f"expected metadata.csv or metadata.jsonl, got neither{other_form(folder)}"])
    if outside := [path.name for path in found if not path.resolve().is_relative_to(folder.resolve())]:
        raise DatasetError(folder, [f"{outside[0]} {OUTSIDE}"])
    twice = [str(parent) for parent, count in Counter(path.parent for path in found).items() if count > 1]
    if twice:
        raise DatasetError(folder, [f"expected one metadata file, got both .csv and .jsonl in {p}" for p in twice])
    return found


def _images_in(folder: Path) -> list[str]:
    paths = sorted(path for pattern in ("*", "*/*") for path in folder.glob(pattern) if not path.name.startswith("."))
    return [path.relative_to(folder).as_posix() for path in paths if path.suffix.lower() in IMAGE_SUFFIXES]


def _caption_lines(folder: Path) -> list[_Line]:
    """An entry of each image in a folder without metadata, with the caption from the file beside it."""
    images = _images_in(folder)
    if repeats := sorted({name.partition("/")[0] for name in images if re.match(r"[0-9]+_[^/]*/", name)}):
        notice(f"{folder}: each image counts once, whatever number its folder has for kohya: {some_of(repeats)}")
    return [
        _Line(name, {} if wrong else {"file_name": name, "text": caption}, (wrong,) if wrong else ())
        for name, caption, wrong in captions_beside(folder, images)
    ]


def _read_metadata(folder: Path, path: Path) -> list[_Line]:
    """Entries with file_name relative to the dataset's folder; a problem with no entry makes an empty one."""
    label = path.relative_to(folder).as_posix()
    prefix = path.parent.relative_to(folder).as_posix()
    try:
        data = read_file(path, "metadata", METADATA_BYTES_MAX).removeprefix(b"\xef\xbb\xbf")
    except (OSError, ValueError) as error:
        raise DatasetError(folder, [str(error)]) from error
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
        got = ", ".join(header)[:200] or "nothing"
        renamed = meant(missing, header)
        return [f"expected the columns file_name and text, got {got} (missing: {', '.join(missing)}){renamed}"]
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
            if absent:
                renamed = meant([name for name in absent if name not in values], list(values))
                wrong = [f"expected file_name and text as strings, got none for {', '.join(absent)}{renamed}"]
                wrong += [LIST_OF_CAPTIONS] if isinstance(values.get("text"), list) else []
        # JSON can spell a lone surrogate, but no file name, caption or other column can hold it.
        if not wrong and re.search("[\ud800-\udfff]", json.dumps(values, ensure_ascii=False)):
            wrong = ["expected characters, got half of a surrogate pair"]
        yield number, number, {} if wrong else values, wrong


def _check_lines(
    folder: Path, lines: Sequence[_Line], size_px: int, resample: str
) -> tuple[list[str], list[str], list[bytes | None], list[int]]:
    """Every problem of every entry, in file order; and of each image the SHA-256 of its file and of its pixels, and the
    longer side as it is stored."""
    problems, digests, pixels, sides = [], [], [], []
    first_at: dict[str, str] = {}
    for line in lines:
        problems += [f"{line.place}: {problem}" for problem in line.problems]
        if not line.values:
            continue
        name = line.values["file_name"]
        label = f"{line.place}: file {name!r}"
        if not line.values["text"].strip():
            problems.append(f"{label} has an empty caption")
        if isinstance(line.values.get("split"), list | dict):
            problems.append(f"{label} is of the split {line.values['split']!r}: expected one name")
        if wrong := name_problem(folder, name):
            problems.append(f"{label} {wrong}")
            continue
        if (plain := PurePosixPath(name).as_posix()) in first_at:
            problems.append(f"{label} is listed already in {first_at[plain]}")
            continue
        first_at[plain] = line.place
        try:
            data = image_bytes(folder / name)
            digests.append(hashlib.sha256(data).hexdigest())
            pixels.append(_pixel_hash(read_image(data, size_px, resample)))
            sides.append(longer_side(data))
        except ImageError as error:
            problems.append(f"{label} {error}")
    return problems, digests, pixels, sides


def name_problem(folder: Path, name: str) -> str | None:
    """What is wrong with the name of a file that must be in a folder: it has none, or leads out of the folder.

    Args:
        folder: of the file.
        name: of any origin, relative to the folder.
    """
    if not name.strip():
        return "has no name"
    if "\0" in name or "\\" in name or PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
        return "leads out of the folder: expected a relative path with '/' and without '..'"
    try:
        inside = (folder / name).resolve().is_relative_to(folder.resolve())
    except (OSError, RuntimeError) as error:  # too long, or a link to itself
        return f"cannot be followed ({error})"
    if not inside:
        return OUTSIDE
    return None


def _pixel_hash(image: np.ndarray) -> bytes | None:
    """SHA-256 of (H, W) pixels, or None where all are of one value."""
    return None if image.min() == image.max() else hashlib.sha256(image.tobytes()).digest()


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
    for column in [name for name in (*WORDS, *NUMBERS) if name in table]:
        if wrong := _unfit_value(table[column], column in NUMBERS):
            notice(f"the column {column!r} is left out: expected {wrong}")
            table = table.drop(columns=column)
    leading = ["file_name", "text", "split"]
    return table.loc[:, [*leading, *(column for column in table.columns if column not in leading)]]


def _unfit_value(values: Any, numbers: bool) -> str | None:
    """What was expected of a column of ours and what came, or None where it fits: other tools may use the name."""
    if numbers:
        return None if pd.api.types.is_numeric_dtype(values) else f"numbers, got {values.iloc[0]!r}"
    odd = next((value for value in values if isinstance(value, list | dict)), None)
    return None if odd is None else f"words, got {odd!r}"
