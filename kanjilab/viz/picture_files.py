"""Pictures as files: few tones, under 500 kB, each with a JSON of the same name that says what it shows."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from kanjilab.core.outside_files import read_json_object
from kanjilab.core.storage import write_bytes_atomic, write_json_atomic

MAX_BYTES = 500_000  # of a committed picture
PAGE = 246  # gray level around the cells of a strip


def checked_path(path: Path | str, endings: tuple[str, ...]) -> Path:
    """The path of a picture.

    Raises:
        ValueError: another ending.
    """
    path = Path(path)
    if path.suffix not in endings:
        raise ValueError(f"expected a path ending in {' or '.join(endings)}, got {str(path)!r}")
    return path


def write_picture(path: Path, data: bytes, facts: Mapping[str, Any]) -> Path:
    """Write a picture, and a JSON of the same name beside it; returns the picture's path.

    Args:
        path: of the picture; its folder must exist.
        data: the encoded picture.
        facts: what it shows.
    Raises:
        ValueError: it has 500 kB or more.
        FileExistsError: the JSON's place is taken by a file that describes no picture.
    """
    if len(data) >= MAX_BYTES:
        raise ValueError(f"{path.name} would have {len(data):,} bytes, {MAX_BYTES:,} allowed: draw it smaller")
    beside = path.with_suffix(".json")
    if beside.exists() and not path.exists() and "kind" not in read_json_object(beside):
        raise FileExistsError(f"{beside} is not about a picture and would be replaced: expected another name")
    write_bytes_atomic(path, data)
    write_json_atomic(beside, facts)
    return path


def image_facts(images: np.ndarray) -> dict[str, Any]:
    """Shape and hash of the images that a picture shows."""
    return {"shape": images.shape, "sha256": hashlib.sha256(np.ascontiguousarray(images).tobytes()).hexdigest()}


def encode_png(image: Image.Image, levels: int = 16) -> bytes:
    """Compress a picture to few tones.

    Args:
        image: mode L or RGB.
        levels: gray levels (evenly spaced, and the page's own) or, for RGB, colours; 4 to 256.
    Returns:
        PNG with a palette.
    """
    if image.mode == "L":
        packed = few_grays(image, levels)
    else:
        packed = image.quantize(levels, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
    buffer = io.BytesIO()
    packed.save(buffer, "PNG", optimize=True, bits={4: 2, 16: 4}.get(levels, 8))
    return buffer.getvalue()


def few_grays(image: Image.Image, levels: int) -> Image.Image:
    """A gray image with a palette: evenly spaced levels and the page's own."""
    grays = np.array(sorted({*np.linspace(0, 255, levels - 1).round().astype(int).tolist(), PAGE}))
    nearest = np.abs(np.arange(256)[:, None] - grays).argmin(axis=1).astype(np.uint8)
    packed = Image.fromarray(nearest[np.asarray(image)])
    packed.putpalette(np.repeat(grays.astype(np.uint8), 3).tobytes())
    return packed
