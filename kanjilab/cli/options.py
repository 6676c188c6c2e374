"""What the commands share: help that lists tables, settings given as text, and errors as one plain line.

The commands import what they need when they run, so that `kanjilab --help` answers at once.
"""

import functools
import importlib
import json
import re
import shlex
import sys
from collections.abc import Callable, Mapping
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

INTERRUPTED = 130  # exit code of what Ctrl-C ended, as shells have it
Settings = Annotated[list[str], typer.Option("--set", help="A setting of every arm, as rank=16; may be repeated.")]
ArmNumber = Annotated[int, typer.Option(help="Which arm of the run, from 0.")]
Run = Annotated[Path, typer.Argument(help="A run.")]


class JudgeName(StrEnum):
    """Which judge reads the images."""

    radicals = "radicals"
    A = "A"
    B = "B"

    @property
    def files(self) -> str:
        """The judge's name in a study's files."""
        return self.value if self == JudgeName.radicals else f"judge-{self.value.lower()}"


class TableHelp(TyperCommand):
    """A command whose help lists the keys of tables: `{module.TABLE}` in a text names one.

    The tables' modules import torch. They are imported only when the help of this one command is shown.
    """

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Fills in the keys, then does as any command."""
        described: list[Any] = [self, *self.params]
        for one in described:
            one.help = re.sub(r"\{([\w.]+)\}", lambda found: ", ".join(_table(found[1])), one.help or "")
        super().format_help(ctx, formatter)


def _table(path: str) -> Mapping[str, Any]:
    module, _, name = path.rpartition(".")
    return getattr(importlib.import_module(module), name)


def plain_errors(command: Callable[..., None]) -> Callable[..., None]:
    """Turns the errors of a command into one line on stderr, and Ctrl-C into what to do next, without a traceback."""

    @functools.wraps(command)
    def run(*arguments: Any, **options: Any) -> None:
        try:
            command(*arguments, **options)
        except (ValueError, OSError, RuntimeError) as error:
            typer.echo(f"kanjilab: {error}", err=True)
            raise typer.Exit(1) from error
        except KeyboardInterrupt as error:
            command_line = shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])
            typer.echo(f"\nStopped; what is stored is kept. To go on from there:\n  {command_line}", err=True)
            raise typer.Exit(INTERRUPTED) from error

    return run


def parse_settings(pairs: list[str]) -> dict[str, Any]:
    """`name=value` pairs as settings of an arm; values are JSON, or else text.

    Raises:
        typer.BadParameter: a pair without "=".
    """
    settings = {}
    for pair in pairs:
        name, separator, value = pair.partition("=")
        if not separator:
            raise typer.BadParameter(f"expected name=value, got {pair!r}")
        try:
            settings[name] = json.loads(value)
        except ValueError:
            settings[name] = value
    return settings


def open_training(folder: Path) -> Any:
    """The run of a training in a folder.

    Raises:
        RunError: the folder holds no run.
        ValueError: its settings are not those of a training, or it has no checkpoint yet.
    """
    from kanjilab.core.run_folder import RunFolder

    run = RunFolder.open(folder)
    if missing := [name for name in ("base", "precision", "arms") if name not in run.settings]:
        raise ValueError(f"{folder}: expected the run of a training, got settings without {', '.join(missing)}")
    if not run.checkpoints():
        raise ValueError(f"{folder} has no checkpoint yet: its training never began")
    return run


def base_of(run: Any) -> Any:
    """The base that a run was trained on, on the device of a training: 4-bit weights need an accelerator."""
    from kanjilab.models.loading import load_base, usual_device

    return load_base(run.settings["base"], run.settings["precision"], usual_device())
