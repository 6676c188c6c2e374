"""The log of a run: one JSON record a line, appended."""

import json
import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from kanjilab.core.outside_files import read_file
from kanjilab.core.run_errors import RunError
from kanjilab.core.storage import plain_json, write_all, write_bytes_atomic

LOG_BYTES_MAX = 4 * 1024**3  # a million steps have some 300 MB
NON_FINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}  # which JSON holds as text only


class RunLog:
    """A file of records. Any process may read it at any moment, and one may write it.

    A writer that is killed can leave a torn last line: readers ignore it, and `cut_torn_line` removes it.

    Args of the constructor:
        path: the file, made by the first `append`.
    """

    def __init__(self, path: Path):
        self.path = path
        self._descriptor: int | None = None

    def append(self, record: Mapping[str, Any]) -> None:
        """Add a record; it survives the process from the moment this returns."""
        text = json.dumps(_converted(plain_json(record), _spelled), allow_nan=False)  # ASCII: any text, one line
        if self._descriptor is None:
            self._descriptor = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
        try:
            write_all(self._descriptor, text.encode() + b"\n")
        except OSError:  # a full disk: the next record must not be glued to half of this one
            self.cut_torn_line()
            raise

    def sync(self) -> None:
        """Flush what was appended to the disk."""
        if self._descriptor is not None:
            os.fsync(self._descriptor)

    def close(self) -> None:
        """Close the file; the next `append` opens it again."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def records(self) -> list[dict[str, Any]]:
        """Every complete record, in order of writing; a line that is not a JSON object is a `RunError`."""
        return [self._record(number, line) for number, line in enumerate(self._lines(), start=1)]

    def truncate(self, step: int) -> int:
        """Drop the records after a step, and return how many; one without `step` belongs to the one before it."""
        kept: list[bytes] = []
        beyond = False
        lines = self._lines()
        for number, (line, record) in enumerate(zip(lines, self.records(), strict=True), start=1):
            if not isinstance(record.get("step", 0), int):
                raise RunError(f"{self.path} line {number}: expected a whole number as step, got {record['step']!r}")
            beyond = record["step"] > step if "step" in record else beyond
            if not beyond:
                kept.append(line + b"\n")
        if len(kept) < len(lines):
            self.close()  # it points to the file that is replaced now
            write_bytes_atomic(self.path, b"".join(kept))
        return len(lines) - len(kept)

    def cut_torn_line(self) -> None:
        """Remove the part of a record that a killed writer or a full disk left at the end."""
        data = self._bytes()
        complete = data.rfind(b"\n") + 1
        if complete < len(data):
            os.truncate(self.path, complete)

    def _bytes(self) -> bytes:
        if not os.path.lexists(self.path):
            return b""
        try:
            return read_file(self.path, "a log", LOG_BYTES_MAX)
        except (OSError, ValueError) as error:
            raise RunError(str(error)) from error

    def _lines(self) -> list[bytes]:
        return self._bytes().split(b"\n")[:-1]  # after the last line end: nothing, or a torn line

    def _record(self, number: int, line: bytes) -> dict[str, Any]:
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise RunError(f"{self.path} line {number}: expected JSON, got {error}") from error
        if not isinstance(record, dict):
            raise RunError(f"{self.path} line {number}: expected a JSON object, got {type(record).__name__}")
        return _converted(record, _read)


def _converted(value: Any, convert: Callable[[Any], Any]) -> Any:
    """A JSON value with every number and text in it converted."""
    if isinstance(value, dict):
        return {key: _converted(entry, convert) for key, entry in value.items()}
    if isinstance(value, list):
        return [_converted(entry, convert) for entry in value]
    return convert(value)


def _spelled(value: Any) -> Any:
    return json.dumps(value) if isinstance(value, float) and not math.isfinite(value) else value


def _read(value: Any) -> Any:
    return NON_FINITE.get(value, value) if isinstance(value, str) else value
