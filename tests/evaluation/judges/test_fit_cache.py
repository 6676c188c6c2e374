"""Fits that are kept: a damaged one is made again, and where nothing can be kept it is made each time."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from kanjilab.evaluation.judges import fit_cache
from kanjilab.evaluation.judges.fit_cache import cached_fit


@dataclass(frozen=True)
class Line:
    slope: np.ndarray
    names: tuple[str, ...]
    facts: dict[str, Any]


MADE = Line(np.linspace(0, 1, 50, dtype=np.float32), ("水", "木"), {"share": 0.1, "seeds": [1, 2]})


def flipped(at):
    def damage(path):
        data = bytearray(path.read_bytes())
        data[at if isinstance(at, int) else data.index(at) + 2] ^= 1
        path.write_bytes(bytes(data))

    return damage


DAMAGE = {
    "a flipped bit in an array": flipped(-7),
    "a flipped bit in a number": flipped(b"0.1"),
    "a flipped bit in a list": flipped(b"1, 2"),
    "cut": lambda path: path.write_bytes(path.read_bytes()[:100]),
    "emptied": lambda path: path.write_bytes(b""),
    "all zeros": lambda path: path.write_bytes(bytes(path.stat().st_size)),
    "another array": lambda path: save_file({"slope": load_file(path)["slope"]}, path, {"fit": "{}"}),
    "a list in place of facts": lambda path: save_file(load_file(path), path, {"fit": "[]"}),
    "brackets without end": lambda path: save_file(load_file(path), path, {"fit": "[" * 100_000}),
    "no facts": lambda path: save_file(load_file(path), path),
}


@pytest.fixture
def fits():
    """How often it was fitted, and the call that keeps it."""
    made = []
    return made, lambda folder: cached_fit(folder, "line", {"a": 1}, Line, lambda: made.append(1) or MADE)


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_fit_is_made_again(name, fits, tmp_path):
    made, fit = fits
    fit(tmp_path)
    (path,) = tmp_path.iterdir()
    good = path.read_bytes()
    assert (fit(tmp_path).slope == MADE.slope).all() and fit(tmp_path).facts == MADE.facts and made == [1]
    DAMAGE[name](path)
    assert (fit(tmp_path).slope == MADE.slope).all() and made == [1, 1]
    assert path.read_bytes() == good


def test_a_fit_of_an_older_version_is_read(fits, tmp_path):
    made, fit = fits
    fit(tmp_path)
    (path,) = tmp_path.iterdir()
    save_file(load_file(path), path, {"judge": '{"names": "水木", "facts": {"share": 0.2}}'})
    assert fit(tmp_path).facts == {"share": 0.2} and fit(tmp_path).names == ("水", "木") and made == [1]


def test_a_fit_is_made_where_nothing_can_be_kept(fits, tmp_path, monkeypatch, caplog):
    def refuse(path, data):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(fit_cache, "write_bytes_atomic", refuse)
    made, fit = fits
    assert fit(tmp_path) is MADE and fit(tmp_path) is MADE and made == [1, 1]
    assert len(caplog.messages) == 1 and "is not kept: nothing can be written there" in caplog.messages[0]
