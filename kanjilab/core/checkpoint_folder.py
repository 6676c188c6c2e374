"""Checkpoint folders: complete or absent, with a manifest of bytes and SHA-256."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from kanjilab.core.manifest import MANIFEST
from kanjilab.core.storage import json_bytes, sync_folder, tensor_bytes, write_synced


def checkpoint_contents(step: int, files: Mapping[str, Any]) -> dict[str, bytes]:
    """Every file of a checkpoint by its name in the folder, the manifest included.

    Raises:
        ValueError: a negative step, no file, or a name that leads out of the folder.
    """
    if step < 0:
        raise ValueError(f"step must be >= 0, got {step}")
    if not files:
        raise ValueError(f"checkpoint of step {step} needs at least one file")
    contents = {_checked_name(name): _file_bytes(name, content) for name, content in files.items()}
    manifest = {
        name: {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        for name, data in sorted(contents.items())
    }
    return contents | {MANIFEST: json_bytes(manifest, MANIFEST)}


def _checked_name(name: str) -> str:
    parts = PurePosixPath(name).parts
    inside = bool(parts) and ".." not in parts and not name.startswith("/") and "\\" not in name and "\0" not in name
    if not inside or PurePosixPath(name) == PurePosixPath(MANIFEST) or str(PurePosixPath(name)) != name:
        raise ValueError(f"a checkpoint file needs a plain relative path other than {MANIFEST!r}, got {name!r}")
    return name


def _file_bytes(name: str, content: Any) -> bytes:
    if isinstance(content, (bytes, bytearray, memoryview)):
        return bytes(content)
    if isinstance(content, Mapping) and name.endswith(".json"):
        return json_bytes(content, name)
    if isinstance(content, Mapping) and name.endswith(".safetensors"):
        return tensor_bytes(content)
    raise TypeError(
        f"{name}: expected bytes, a JSON object for *.json or tensors for *.safetensors, got {type(content).__name__}"
    )


def write_checkpoint_folder(folder: Path, contents: Mapping[str, bytes]) -> None:
    """Write a new folder and flush all of it to the disk."""
    folder.mkdir()
    for name, data in contents.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        write_synced(folder / name, data)
    for subfolder in {(folder / name).parent for name in contents}:
        sync_folder(subfolder)
    sync_folder(folder)


def is_complete(folder: Path) -> bool:
    """Whether a folder has every file of its manifest, in full length."""
    try:
        manifest = json.loads((folder / MANIFEST).read_bytes())
        return all((folder / name).stat().st_size == entry["bytes"] for name, entry in manifest.items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False
