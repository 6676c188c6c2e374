"""One case: what somebody brought or a machine did, what is asked of kanjilab, and how that must end."""

import hashlib
import os
import re
import shutil
import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from typer.testing import CliRunner

from kanjilab.cli.main import app
from tests.faults.bounds import bounded

SECONDS = 300  # a case draws or trains a few steps: far more than that takes on a busy machine, and less than for ever
LENGTH_MAX = 2_000  # of a sentence
PLAIN = (ValueError, OSError, RuntimeError, EOFError)  # what commands and panels show as a sentence
TORCHS_WORDS = re.compile(r"size mismatch for|Error\(s\) in loading|Expected \d-dimensional|indices should be")


class Plain(ValueError):
    """A command ended with one sentence."""


@dataclass(frozen=True)
class Here:
    """Where a case happens.

    Attributes:
        folder: its own, the working folder.
        sound: gives a folder of sound things by its name; it must not be changed.
    """

    folder: Path
    sound: Callable[[str], Path]

    def take(self, name: str) -> Path:
        """A copy of sound things, to be damaged."""
        return Path(shutil.copytree(self.sound(name), self.folder / name, symlinks=True))

    def call(self, *arguments: Any) -> str:
        """What a command said.

        Raises:
            Plain: it ended with a sentence, and without a traceback.
        """
        result = CliRunner().invoke(app, [str(argument) for argument in arguments])
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise AssertionError(f"a traceback: {result.exception!r}") from result.exception
        if result.exit_code:
            words = " ".join(result.stderr.replace("│", " ").split())
            assert result.exit_code in (1, 2) and words and "Traceback" not in result.output, result.output
            raise Plain(words)
        return result.output


@dataclass(frozen=True)
class Case:
    """One case.

    Attributes:
        name: what was brought or done, in words.
        act: what is asked for; gets what `lay` returned.
        lay: makes the fault in the case's folder; what is there then must be kept.
        says: pattern of the sentence that refuses it; "" where nothing is wrong with it.
        writes: pattern of the files that may be new or changed at the end, relative to the folder.
    """

    name: str
    act: Callable[[Here, Any], object]
    lay: Callable[[Here], Any] = lambda here: None
    says: str = ""
    writes: str = ""


def contents(folder: Path) -> dict[str, str]:
    """Every file and folder below one, with a hash of what it is."""
    found = {}
    for path in sorted(folder.rglob("*")):
        mode = path.lstat().st_mode
        if stat.S_ISLNK(mode):
            what = os.readlink(path)
        elif stat.S_ISREG(mode):
            what = hashlib.sha256(path.read_bytes()).hexdigest() if path.stat().st_size < 2**30 else "large"
        else:
            what = str(stat.S_IFMT(mode))
        found[path.relative_to(folder).as_posix()] = what
    return found


def end_of(case: Case, here: Here) -> tuple[str, str]:
    """How a case ended: `survived` or `refused`, or what is wrong; and the sentence that refused it."""
    brought = case.lay(here)
    before = contents(here.folder)
    said = ""
    try:
        with bounded(SECONDS):
            case.act(here, brought)
    except PLAIN as error:
        said = str(error)
        if isinstance(error, RecursionError) or not 8 <= len(said) <= LENGTH_MAX or TORCHS_WORDS.search(said):
            return f"{type(error).__name__}: {said[:300]!r}", said
    except BaseException as error:  # what a command would show as a traceback
        return f"{type(error).__name__}: {str(error)[:300]!r}", ""
    after = contents(here.folder)
    may = re.compile(case.writes) if case.writes else None
    changed = [
        name
        for name in sorted(before.keys() | after.keys())
        if before.get(name) != after.get(name) and not (may and may.fullmatch(name))
    ]
    if changed:
        return f"these files are new, gone or others: {changed[:5]}", said
    return ("refused" if said else "survived"), said
