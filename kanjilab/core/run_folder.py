"""Run folders: written atomically by one writer at a time, readable at any moment, also after a crash.

    runs/<name>/settings.json                        what was trained; its presence makes the folder a run
    runs/<name>/log.jsonl                            one JSON record a line, appended
    runs/<name>/checkpoints/step_000400/...          complete or absent, with manifest.json (bytes and SHA-256)
    runs/<name>/samples/<name>.safetensors           stored images, so that looking never retrains
    runs/<name>/.lock, STOP                          the writer's lock; a request to stop

A write goes to a name that starts with `.tmp_`, is flushed to the disk and then renamed. Readers ignore such names,
and the next writer removes those that a killed one left behind.
"""

from __future__ import annotations

import copy
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from kanjilab.core.checkpoint_folder import checkpoint_contents, is_complete, write_checkpoint_folder
from kanjilab.core.config import Arm
from kanjilab.core.manifest import MANIFEST, damage_of
from kanjilab.core.notices import notice_once
from kanjilab.core.outside_files import read_json_object
from kanjilab.core.run_errors import RunError, RunExists
from kanjilab.core.run_log import RunLog
from kanjilab.core.storage import (
    TEMPORARY_PREFIX,
    is_being_written,
    json_bytes,
    plain_json,
    sync_folder,
    temporary_name,
    write_bytes_atomic,
)
from kanjilab.core.tensor_files import TensorFileError, open_tensors
from kanjilab.core.writer_lock import WriterLock

STEP_FOLDER = re.compile(r"step_(\d{6,})")
SAMPLE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
RUN_ENTRIES = {"settings.json", "log.jsonl", "checkpoints", "samples", ".lock", "STOP"}


class RunFolder:
    """The folder of one training, from `RunFolder.create` or `RunFolder.open`.

    Any process may read it. Methods that write, samples apart, are for use within `with run.lock():`, and raise
    `RunError` elsewhere.
    """

    def __init__(self, path: Path, settings: dict[str, Any]):
        self.path = path
        self._settings = settings
        self._lock = WriterLock(path / ".lock")
        self._log = RunLog(path / "log.jsonl")

    def __repr__(self) -> str:
        return f"RunFolder({str(self.path)!r})"

    @property
    def name(self) -> str:
        """The folder's own name."""
        return self.path.name

    @property
    def settings(self) -> dict[str, Any]:
        """A copy of what settings.json holds."""
        return copy.deepcopy(self._settings)

    def arm(self, number: int) -> Arm:
        """Settings of one of the arms that were trained together, counted from 0.

        Raises:
            ValueError: the run has no such arm, or none at all.
        """
        arms = self._settings.get("arms")
        if not isinstance(arms, list) or not all(isinstance(arm, dict) for arm in arms):
            raise ValueError(f"{self.path / 'settings.json'}: arms: expected settings of arms, got {arms!r:.80}")
        if not 0 <= number < len(arms):
            raise ValueError(f"{self.path} has arms 0 to {len(arms) - 1}, got {number}")
        try:
            return Arm.from_json(arms[number])
        except ValueError as error:
            raise ValueError(f"{self.path / 'settings.json'}: arm {number}: {error}") from error

    @property
    def size_px(self) -> int:
        """Height and width of the training images; older runs, which do not say, had 128."""
        return self._settings.get("size_px", 128)

    @classmethod
    def create(cls, path: Path | str, settings: Mapping[str, Any]) -> RunFolder:
        """Make a new run folder.

        Args:
            path: new or empty folder (what a killed `create` left counts as empty); parents are made.
            settings: JSON-able settings of the run; never changed afterwards.
        Returns:
            the run, not locked.
        Raises:
            RunExists: a run, or other files, are there already.
            RunLocked: another process is creating the same run.
            ValueError, TypeError: the settings are not JSON (see `write_json_atomic`).
        """
        path = Path(path)
        content = json_bytes(settings, f"settings of run {path.name!r}")
        _refuse_occupied(path)
        path.mkdir(parents=True, exist_ok=True)
        run = cls(path, json.loads(content))
        with run.lock():
            _refuse_occupied(path)
            (path / "checkpoints").mkdir(exist_ok=True)
            (path / "samples").mkdir(exist_ok=True)
            write_bytes_atomic(path / "settings.json", content)  # last: from here on it is a run
        sync_folder(path.parent)
        return run

    @classmethod
    def open(cls, path: Path | str) -> RunFolder:
        """Open an existing run folder, for reading or for going on; it is not locked.

        Raises:
            RunError: no settings.json there, or one that is not a JSON object or cannot be read.
        """
        path = Path(path)
        file = path / "settings.json"
        try:
            return cls(path, read_json_object(file))
        except FileNotFoundError:
            raise RunError(f"{path} is not a run folder: it has no settings.json") from None
        except (ValueError, OSError) as error:
            raise RunError(str(error)) from error

    @contextmanager
    def lock(self) -> Iterator[RunFolder]:
        """Context manager: become the one writer of this run, and tidy up after one that was killed.

        Temporary files, a torn last log line and an old request to stop are removed first. The operating system
        frees the lock when the process ends, however it ends.

        Raises:
            RunLocked: another writer (or this very object) holds the lock; names its process.
        """
        with self._lock.held():
            self._clean_up()
            try:
                yield self
            finally:
                self._log.close()

    def writer(self) -> str | None:
        """The number of the process that writes this run now, as text; None where no process does."""
        return self._lock.holder()

    def _clean_up(self) -> None:
        for leftover in [*self.path.glob(f"{TEMPORARY_PREFIX}*"), *self.path.glob(f"samples/{TEMPORARY_PREFIX}*")]:
            if not is_being_written(leftover):  # samples may be stored by others while this run trains
                leftover.unlink(missing_ok=True)
        for leftover in self.path.glob(f"checkpoints/{TEMPORARY_PREFIX}*"):
            shutil.rmtree(leftover)
        self._log.cut_torn_line()
        self._stop_file.unlink(missing_ok=True)

    def _need_lock(self) -> None:
        if not self._lock.is_held:
            raise RunError(f"run {self.path} must be locked to be written: use `with run.lock():`")

    def log(self, record: Mapping[str, Any]) -> None:
        """Append one record to the log; it survives the process from the moment this returns.

        Args:
            record: JSON-able values and numpy or torch scalars and arrays; `step` (int) orders it. NaN and infinite
                numbers are kept: the file holds them as "NaN", "Infinity", "-Infinity".
        Raises:
            TypeError: a value has no JSON form.
        """
        self._need_lock()
        self._log.append(record)

    def read_log(self) -> pd.DataFrame:
        """The log as a table, at any moment, also while the run is being written.

        Returns:
            one row per record in order of writing, one column per key; a torn last line is not shown. No rows and
            no columns where nothing was logged yet.
        Raises:
            RunError: a line before the last is not a JSON object.
        """
        return pd.DataFrame(self._log.records())

    def truncate_log(self, step: int) -> int:
        """Drop what was logged after a step, so that a resumed run writes it again.

        Args:
            step: last step to keep. A record without `step` belongs to the one before it.
        Returns:
            number of records dropped.
        """
        self._need_lock()
        return self._log.truncate(step)

    def write_checkpoint(self, step: int, files: Mapping[str, Any]) -> Path:
        """Write one checkpoint: it appears whole, or not at all.

        Args:
            step: optimizer steps done, >= 0.
            files: relative path -> bytes as they are, a JSON object for `*.json`, or {name: tensor} for
                `*.safetensors`.
        Returns:
            its folder, `checkpoints/step_000400`.
        Raises:
            RunExists: that step has its complete checkpoint already (`truncate_checkpoints` drops later ones).
            ValueError, TypeError: a path leaves the folder, or a content does not fit the file's name.
        """
        self._need_lock()
        contents = checkpoint_contents(step, files)
        target = self._step_folder(step)
        if is_complete(target):
            raise RunExists(f"{target} exists already; drop it first to write step {step} again")
        if target.exists():  # half copied from another machine
            self._delete_checkpoint(step)
        temporary = target.with_name(temporary_name(target.name))
        try:
            write_checkpoint_folder(temporary, contents)
            self._log.sync()  # the log reaches at least as far as the newest checkpoint
            os.rename(temporary, target)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        sync_folder(target.parent)
        return target

    def checkpoints(self) -> list[int]:
        """Steps of the complete checkpoints, ascending.

        A folder is left out if a file is missing or has another size than its manifest says, as half of a copy has.
        """
        folder = self.path / "checkpoints"
        if not folder.is_dir():
            return []
        matches = [STEP_FOLDER.fullmatch(entry.name) for entry in folder.iterdir()]
        steps = [int(match.group(1)) for match in matches if match]
        return sorted(step for step in steps if is_complete(self._step_folder(step)))

    def checkpoint_path(self, step: int) -> Path:
        """Folder of a complete checkpoint, as `checkpoints/step_000400`.

        Raises:
            RunError: there is no complete checkpoint of that step; names those there are.
        """
        folder = self._step_folder(step)
        if not is_complete(folder):
            raise RunError(f"run {self.path} has no complete checkpoint of step {step}, only {self.checkpoints()}")
        return folder

    def damaged_checkpoints(self) -> list[int]:
        """Steps whose checkpoint is there and not complete, ascending."""
        complete = set(self.checkpoints())
        found = [STEP_FOLDER.fullmatch(path.name) for path in self.path.glob("checkpoints/step_*")]
        return sorted({int(match.group(1)) for match in found if match} - complete)

    def verify_checkpoint(self, step: int) -> None:
        """Compare every file of a checkpoint with the SHA-256 in its manifest.

        Raises:
            RunError: a file's content is not what was written; names it.
        """
        for name in json.loads((self.checkpoint_path(step) / MANIFEST).read_bytes()):
            self.sound_file(step, name)

    def sound_file(self, step: int, name: str) -> Path:
        """A file of a complete checkpoint, compared with the SHA-256 in its manifest.

        Args:
            step: of the checkpoint.
            name: in its folder.
        Raises:
            RunError: no such checkpoint or file, or its content is not what was written; names the last one before it.
        """
        folder = self.checkpoint_path(step)
        expected = json.loads((folder / MANIFEST).read_bytes()).get(name)
        if expected is None:
            raise RunError(f"{folder} has no {name}")
        if wrong := damage_of(folder / name, expected):
            earlier = [other for other in self.checkpoints() if other < step]
            go_on = f"delete {folder} to go on from step {earlier[-1]}" if earlier else "there is none before it"
            raise RunError(f"{wrong}. The checkpoint of step {step} is damaged; {go_on}")
        return folder / name

    def read_state(self, step: int) -> dict[str, Any]:
        """The state of the training at a complete checkpoint: `step`, `seconds`, and of each arm `steps`, `images_seen`
        and `stopped`.

        Raises:
            RunError: there is no such checkpoint, or its state is not what was written.
        """
        file = self.sound_file(step, "state.json")
        try:
            return read_json_object(file)
        except ValueError as error:
            raise RunError(str(error)) from error

    def rotate(self, keep: int, also: Sequence[int] = ()) -> list[int]:
        """Delete old checkpoints.

        Args:
            keep: how many of the newest to keep, >= 1.
            also: further steps to keep; step 0 (before training) always stays.
        Returns:
            steps deleted.
        Raises:
            ValueError: keep < 1.
        """
        self._need_lock()
        if keep < 1:
            raise ValueError(f"keep must be >= 1, got {keep}")
        steps = self.checkpoints()
        removed = [step for step in steps[:-keep] if step != 0 and step not in also]
        for step in removed:
            self._delete_checkpoint(step)
        return removed

    def truncate_checkpoints(self, step: int) -> list[int]:
        """Delete the checkpoints after a step, to go on from there; returns the steps deleted."""
        self._need_lock()
        removed = [later for later in self.checkpoints() if later > step]
        for later in reversed(removed):  # newest first: a crash in between leaves a run that simply ends earlier
            self._delete_checkpoint(later)
        return removed

    def _step_folder(self, step: int) -> Path:
        return self.path / "checkpoints" / f"step_{step:06d}"

    def _delete_checkpoint(self, step: int) -> None:
        folder = self._step_folder(step)
        doomed = folder.with_name(temporary_name(folder.name))
        os.rename(folder, doomed)  # gone at once for readers, however long the removal takes
        shutil.rmtree(doomed)

    def write_samples(self, name: str, images: np.ndarray, facts: Mapping[str, Any]) -> Path:
        """Store sampled images with what made them; needs no lock, the last writer of a name wins.

        Args:
            name: letters, digits, `.`, `_`, `-`.
            images: uint8 of any shape, as (columns, prompts, seeds, H, W).
            facts: JSON-able: prompts, seeds, guidance, checkpoints ...
        Returns:
            `samples/<name>.safetensors`, one tensor "images", the facts in its header.
        Raises:
            ValueError: the name or the dtype does not fit.
        """
        from safetensors.numpy import save

        if images.dtype != np.uint8:
            raise ValueError(f"samples must be uint8, got {images.dtype}")
        path = self._sample_file(name)
        images = np.ascontiguousarray(images)
        header = {"facts": json.dumps(plain_json(facts), allow_nan=False)}
        header["sha256"] = hashlib.sha256(header["facts"].encode() + images.tobytes()).hexdigest()
        path.parent.mkdir(exist_ok=True)
        return write_bytes_atomic(path, save({"images": images}, metadata=header))

    def read_samples(self, name: str) -> tuple[np.ndarray, dict[str, Any]]:
        """What `write_samples` stored under a name.

        Returns:
            the uint8 images in their shape, and the facts.
        Raises:
            RunError: nothing is stored by that name, and it names what is; or the file is damaged.
        """
        path = self._sample_file(name)
        if not path.is_file():
            raise RunError(f"run {self.path} has no samples {name!r}, only {self.samples()}")
        try:
            with open_tensors(path, "numpy") as file:
                images, header = file.get_tensor("images"), file.metadata()
            facts = json.loads(header["facts"])
        except (TensorFileError, ValueError, KeyError, TypeError) as error:
            raise RunError(f"{path}: expected stored samples, got a damaged file ({error})") from error
        found = hashlib.sha256(header["facts"].encode() + images.tobytes()).hexdigest()
        if header.get("sha256", found) != found:  # older files have none
            raise RunError(f"{path}: expected samples of SHA-256 {header['sha256']}, got {found}; the file is damaged")
        return images, facts

    def sound_samples(self, names: Sequence[str]) -> Iterator[tuple[str, np.ndarray, dict[str, Any]]]:
        """Name, images and facts of stored samples; a damaged file is left out, and a notice names it.

        Args:
            names: some of `samples`.
        """
        for name in names:
            try:
                yield name, *self.read_samples(name)
            except RunError as error:
                notice_once(f"left out: {error}")

    def samples(self) -> list[str]:
        """Names of the stored samples, sorted."""
        return sorted(path.stem for path in self.path.glob("samples/*.safetensors") if SAMPLE_NAME.match(path.name))

    def _sample_file(self, name: str) -> Path:
        if not SAMPLE_NAME.fullmatch(name):
            raise ValueError(f"a sample name has letters, digits, '.', '_' and '-' only, got {name!r}")
        return self.path / "samples" / f"{name}.safetensors"

    @property
    def _stop_file(self) -> Path:
        return self.path / "STOP"

    def request_stop(self) -> None:
        """Ask the writer, from any process, to stop at its next step; `touch STOP` does the same."""
        self._stop_file.touch()

    def stop_requested(self) -> bool:
        """True after `request_stop`, until the next writer takes the lock."""
        return self._stop_file.exists()


def find_runs(root: Path | str) -> list[RunFolder]:
    """All runs below a folder.

    Args:
        root: folder, searched to any depth; hidden folders and symbolic links are not followed.
    Returns:
        trainings sorted by path; none where the folder does not exist. One that cannot be read is left out, and a
        notice names it.
    """
    found = []
    for folder, subfolders, files in os.walk(root):
        # A run that a clone holds may have only what was drawn: git keeps no empty folder.
        if "settings.json" in files and {"checkpoints", "samples"} & set(subfolders):
            subfolders.clear()
            try:
                found.append(_readable_training(Path(folder)))
            except RunError as error:
                notice_once(f"{folder} is left out: {error}")
        subfolders[:] = [name for name in subfolders if not name.startswith(".")]
    return sorted(found, key=lambda run: run.path)


def _readable_training(path: Path) -> RunFolder:
    run = RunFolder.open(path)
    if not isinstance(arms := run.settings.get("arms"), list) or not arms:
        raise RunError(f"{path / 'settings.json'}: expected the settings of a training, got none of an arm")
    try:
        for number in range(len(arms)):
            run.arm(number)
    except ValueError as error:
        raise RunError(str(error)) from error
    steps = run.checkpoints()
    try:
        if steps:
            run.read_state(steps[-1])
    except RunError:
        if run.checkpoints() == steps:  # else a newer one has taken its place meanwhile
            raise
    return run


def _refuse_occupied(path: Path) -> None:
    if (path / "settings.json").exists():
        raise RunExists(f"{path} is a run already; open it to go on, or choose another name")
    if stored := sorted(entry.name for entry in path.glob("checkpoints/step_*")):
        raise RunExists(
            f"{path} holds checkpoints ({stored[-1]}) of a training whose settings.json is missing: expected a new or "
            "empty folder. Put its settings.json back to go on with it, or choose another folder"
        )
    entries = {entry.name for entry in path.iterdir()} if path.is_dir() else set()
    foreign = sorted(name for name in entries - RUN_ENTRIES if not name.startswith(TEMPORARY_PREFIX))
    if foreign:
        raise RunExists(f"{path} is not empty: expected a new or empty folder, found {foreign[:5]}")
