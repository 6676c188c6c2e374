"""Image folders in the forms of other tools: captions in files beside the images are read, of other forms it is said
how to make an image folder of them."""

from collections.abc import Iterator
from pathlib import Path

from kanjilab.core.outside_files import read_file

CAPTION_SUFFIXES = (".txt", ".caption")  # kohya's scripts take either
CAPTION_BYTES_MAX = 1024 * 1024
LFS_POINTER = "version https://git-lfs"
OTHER_NAMES = {  # columns of other tools, by the one that is meant
    "text": ("caption", "captions", "prompt", "prompts", "description", "label"),
    "file_name": ("image", "image_path", "file", "filename", "path"),
}
SAVED = (
    "a folder of datasets' save_to_disk: for each row of load_from_disk(folder), save row['image'] as a PNG and write "
    "its name and caption into metadata.csv"
)
PARQUET = "a dataset in Parquet: load it with datasets.load_dataset, save its images, and write metadata.csv"
OTHER_FORMS = {  # files by which a folder is known for what it is
    "dataset_dict.json": SAVED,
    "state.json": SAVED,
    "*.parquet": PARQUET,
    "data/*.parquet": PARQUET,
    "*.tar": "WebDataset's archives: unpack them; captions in .txt files beside the images are read",
    "snapshots": "a repository in the Hub's cache: make a folder of it with `hf download --local-dir`",
}


def _captions_of(folder: Path, image: str) -> list[Path]:
    return [path for suffix in CAPTION_SUFFIXES if (path := (folder / image).with_suffix(suffix)).exists()]


def has_captions_beside(folder: Path, images: list[str]) -> bool:
    """Whether any of the images has its caption in a file beside it.

    Args:
        folder, images: as for `captions_beside`.
    """
    return any(_captions_of(folder, name) for name in images)


def captions_beside(folder: Path, images: list[str]) -> Iterator[tuple[str, str, str | None]]:
    """The caption of each image from the file of the same name beside it, as kohya's scripts have it: its first line.

    Args:
        folder: of the images.
        images: paths relative to it.
    Yields:
        The image, its caption, and what is wrong, if anything.
    """
    for name in images:
        if not (found := _captions_of(folder, name)):
            yield name, "", f"has no caption: expected {Path(name).with_suffix('.txt').name} beside it"
            continue
        try:
            lines = read_file(found[0], "a caption", CAPTION_BYTES_MAX).decode("utf-8-sig").splitlines()
        except (OSError, ValueError) as error:  # a UnicodeDecodeError too
            yield name, "", f"has a caption that cannot be read ({error})"
            continue
        caption = next((line.strip() for line in lines if line.strip()), "")
        yield name, caption, _wrong_caption(caption, found[0].name)


def _wrong_caption(caption: str, file: str) -> str | None:
    if not caption:
        return f"has an empty caption in {file}"
    if caption.startswith(LFS_POINTER):
        return f"has a Git LFS pointer in {file}: fetch the captions with `git lfs pull`"
    return f"has no text in {file}, but zero bytes" if "\0" in caption else None


def other_form(folder: Path) -> str:
    """What a folder without metadata is, and what to do with it; "" where it is nothing known."""
    return next((f"; it is {what}" for pattern, what in OTHER_FORMS.items() if any(folder.glob(pattern))), "")


def meant(missing: list[str], given: list[str]) -> str:
    """Which columns another tool may have named otherwise, as a request to rename them; "" where none looks like it.

    Args:
        missing: columns of ours.
        given: those that are there.
    """
    pairs = [(other, ours) for ours in missing for other in given if other.strip().lower() in OTHER_NAMES[ours]]
    return "".join(f"; rename {other!r} to {ours!r}" for other, ours in pairs)
