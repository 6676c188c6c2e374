"""Fits kept in files: a fit with the same inputs is read, any other is made and stored.

The package has the fit that is used most, the first judge's for the usual font: making it takes half a minute.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from kanjilab.core.config import settings_hash
from kanjilab.core.manifest import kept_where_it_can_be
from kanjilab.core.outside_files import json_object
from kanjilab.core.storage import PACKAGE_WEIGHTS, write_bytes_atomic

Fit = TypeVar("Fit")
SHA256 = "sha256"  # of arrays and facts, beside these
PACKAGED = PACKAGE_WEIGHTS / "judges"


def cached_fit(folder: Path, name: str, inputs: Mapping[str, Any], kind: type[Fit], fit: Callable[[], Fit]) -> Fit:
    """The fit stored for these inputs; makes and stores it where there is none that can be read.

    Args:
        folder: holds the files beside those of `PACKAGED`; made if need be.
        name: first part of the file's name; the hash of the inputs follows.
        inputs: everything that the fit depends on, in plain values.
        kind: a dataclass of arrays, numbers, tuples of strings and plain dictionaries.
        fit: makes one.
    """
    path = Path(folder) / f"{name}_{settings_hash(inputs)}.safetensors"
    if (found := _load(PACKAGED / path.name, kind) or _load(path, kind)) is None:
        found = fit()
        with kept_where_it_can_be(str(path)):
            path.parent.mkdir(parents=True, exist_ok=True)
            write_bytes_atomic(path, _to_bytes(found))
    return found


def _to_bytes(fitted: Any) -> bytes:
    values = {field.name: getattr(fitted, field.name) for field in fields(fitted)}
    arrays = {name: np.ascontiguousarray(value) for name, value in values.items() if isinstance(value, np.ndarray)}
    facts = {name: value for name, value in values.items() if name not in arrays}
    # In one entry: safetensors writes several in any order, and equal fits are equal files.
    return save(arrays, metadata={"fit": json.dumps(facts | {SHA256: _digest(arrays, facts)})})


def _digest(arrays: Mapping[str, np.ndarray], facts: Mapping[str, Any]) -> str:
    digest = hashlib.sha256(json.dumps(facts).encode())
    for name in sorted(arrays):
        digest.update(name.encode() + arrays[name].tobytes())
    return digest.hexdigest()


def _load(path: Path, kind: type[Fit]) -> Fit | None:
    """The fit in a file; None where there is none, or none that can be read."""
    try:
        with safe_open(path, framework="numpy") as file:
            (told,) = (file.metadata() or {}).values()  # older files have another key
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        facts = json_object(path, told)
        if facts.pop(SHA256, None) not in (None, _digest(arrays, facts)):  # older files have none
            return None
        values = arrays | facts
    except (OSError, SafetensorError, ValueError):
        return None
    # Characters are a string in older files.
    values = {name: tuple(value) if isinstance(value, list | str) else value for name, value in values.items()}
    return kind(**values) if values.keys() == {field.name for field in fields(kind)} else None  # type: ignore[arg-type]
