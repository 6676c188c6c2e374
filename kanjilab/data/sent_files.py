"""Files that a browser sends: a zip file of an image folder, or its images with their captions, put into a folder."""

import os
import zipfile
from collections.abc import Iterator, Sequence
from io import BytesIO
from pathlib import Path, PurePosixPath

from kanjilab.core.outside_files import reading_zip
from kanjilab.data.image_folder import IMAGE_SUFFIXES, METADATA_NAMES, name_problem
from kanjilab.data.other_folders import CAPTION_SUFFIXES

FILES_MOST = 20_000
BYTES_MOST = 512 * 1024 * 1024  # unpacked
EXPECTED = "expected one zip file, or images with metadata.csv or with captions beside them"


def write_sent(files: Sequence[tuple[str, bytes]], folder: Path) -> Path:
    """Write what was sent into a folder, and nothing outside it.

    Args:
        files: name and content of each file: one zip file, or images and what holds their captions.
        folder: an empty one. What was written before a refusal stays there.
    Returns:
        The image folder: that folder, or the only one in it, as a zip file of a folder has it.
    Raises:
        ValueError: no such files, a damaged zip file, a name that leads out of the folder or comes twice, more than
            `FILES_MOST` files, or more than `BYTES_MOST` bytes.
    """
    if len(files) == 1 and _is_zip(files[0][0]):
        source, members = files[0][0], _zip_members(*files[0])
    else:
        if wrong := [name for name, _ in files if not _is_part(name)] or ([] if files else ["no file"]):
            raise ValueError(f"{EXPECTED}, got {wrong[0]}")
        source, members = "what was sent", iter(files)
        _check_size(source, len(files), sum(len(content) for _, content in files))
    for name, content in members:
        if wrong := name_problem(folder, name):
            raise ValueError(f"{source}: file {name!r} {wrong}")
        try:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            with (folder / name).open("xb") as file:
                file.write(content)
        except OSError as error:  # one name twice, a file that is also a folder, a name that is too long
            raise ValueError(f"{source}: file {name!r} cannot be written ({os.strerror(error.errno or 0)})") from error
    shown = [path for path in folder.iterdir() if not path.name.startswith((".", "__MACOSX"))]
    return shown[0] if len(shown) == 1 and shown[0].is_dir() else folder


def _is_zip(name: str) -> bool:
    return name.lower().endswith(".zip")


def _is_part(name: str) -> bool:
    return name in METADATA_NAMES or PurePosixPath(name).suffix.lower() in IMAGE_SUFFIXES | {*CAPTION_SUFFIXES}


def _check_size(source: str, count: int, size: int) -> None:
    if count > FILES_MOST or size > BYTES_MOST:
        raise ValueError(
            f"{source}: expected at most {FILES_MOST:,} files of {BYTES_MOST:,} bytes together, got {count:,} files of "
            f"{size:,} bytes; open a larger folder by its path"
        )


def _zip_members(source: str, data: bytes) -> Iterator[tuple[str, bytes]]:
    """Name and content of each file in a zip file; no more is unpacked than it says that it holds."""
    with reading_zip(source):
        archive = zipfile.ZipFile(BytesIO(data))
    members = [member for member in archive.infolist() if not member.filename.endswith("/")]
    _check_size(source, len(members), sum(member.file_size for member in members))
    for member in members:
        with reading_zip(source):
            if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise NotImplementedError("compressed in a way that zip files of folders rarely are")
            content = archive.read(member)
        yield member.filename, content
