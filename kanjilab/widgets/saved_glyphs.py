"""The playground's history on disk: a folder of glyphs, and a JSON that says how each was made."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from kanjilab.core.outside_files import read_file, read_json_object
from kanjilab.core.storage import write_bytes_atomic, write_json_atomic
from kanjilab.experiments.certificate import Certificate
from kanjilab.widgets.common import png_bytes
from kanjilab.widgets.generation import Glyphs, Request

HISTORY = "history.json"
HISTORY_KIND = "playground history"
PICTURE_BYTES_MAX = 4 * 1024 * 1024


@dataclass(frozen=True, eq=False)
class Kept:
    """One glyph of the history.

    Args:
        request: what it was drawn from, with its seed alone.
        image: (H, W) uint8, 0 = ink.
        verdict: what the judge read in it.
        certificate: of a coined glyph.
    """

    request: Request
    image: NDArray[np.uint8]
    verdict: str
    certificate: Certificate | None = None


def kept_glyph(glyphs: Glyphs, index: int, verdict: str) -> Kept:
    """One of the drawn glyphs, with a request that draws it alone."""
    return Kept(replace(glyphs.request, seeds=(glyphs.request.seeds[index],)), glyphs.images[index], verdict)


def save_history(kept: Sequence[Kept], folder: Path) -> Path:
    """Write glyphs as PNG, and `history.json`, which says how each was made.

    Args:
        kept: the glyphs, in order.
        folder: created if missing; what an earlier `history.json` there lists stays, before the new glyphs.
    Returns:
        Path of the JSON.
    Raises:
        ValueError: the earlier `history.json` is damaged.
    """
    earlier = _earlier_entries(folder)
    folder.mkdir(parents=True, exist_ok=True)
    entries = []
    for one in kept:
        data = png_bytes(one.image)
        digest = hashlib.sha256(data).hexdigest()
        name = f"{digest[:16]}.png"
        write_bytes_atomic(folder / name, data)
        entry = {"file": name, "sha256": digest, "verdict": one.verdict, "request": one.request.to_json()}
        entries.append(entry | ({"certificate": one.certificate.to_json()} if one.certificate else {}))
    new = {entry["file"] for entry in entries}
    glyphs = [entry for entry in earlier if entry["file"] not in new] + entries
    return write_json_atomic(folder / HISTORY, {"kind": HISTORY_KIND, "glyphs": glyphs})


def _earlier_entries(folder: Path) -> list[dict[str, Any]]:
    """What the `history.json` of a folder lists; nothing where there is none."""
    path = folder / HISTORY
    if not path.exists():
        return []
    try:
        load_history(folder)
    except ValueError as error:
        raise ValueError(f"{error}; save in another folder, or move that file away") from error
    return read_json_object(path)["glyphs"]


def load_history(folder: Path) -> list[Kept]:
    """Read what `save_history` wrote.

    Raises:
        ValueError: no history, a damaged one, or one that names files outside its folder.
    """
    path = folder / HISTORY
    try:
        content = read_json_object(path)
        if content["kind"] != HISTORY_KIND:
            raise ValueError(f"kind {content['kind']!r}")
        return [_kept_of(folder, entry) for entry in content["glyphs"]]
    except (OSError, LookupError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"{path}: expected a saved history, got {type(error).__name__}: {error}") from error


def _kept_of(folder: Path, entry: Mapping[str, Any]) -> Kept:
    name = str(entry["file"])
    if name != f"{entry['sha256'][:16]}.png" or not name.removesuffix(".png").isalnum():
        raise ValueError(f"file {name!r}")
    data = read_file(folder / name, "a picture", PICTURE_BYTES_MAX)
    if hashlib.sha256(data).hexdigest() != entry["sha256"]:
        raise ValueError(f"{name} has changed since it was saved")
    with Image.open(io.BytesIO(data), formats=["PNG"]) as image:
        pixels = np.asarray(image.convert("L"))
    certificate = Certificate.from_json(entry["certificate"]) if "certificate" in entry else None
    return Kept(Request.from_json(entry["request"]), pixels, str(entry["verdict"]), certificate)
