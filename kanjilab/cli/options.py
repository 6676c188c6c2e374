"""What the commands share: help that lists tables, settings given as text, and errors as one plain line.

The commands import what they need when they run, so that `kanjilab --help` answers at once.
"""

import functools
import importlib
import json
import os
import re
import shlex
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from enum import StrEnum
from io import TextIOWrapper
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from kanjilab.core.rng import SEED_MAX

INTERRUPTED, TERMINATED = 130, 143  # exit codes of what Ctrl-C and SIGTERM ended, as shells have them
Settings = Annotated[list[str], typer.Option("--set", help="A setting of every arm, as rank=16; may be repeated.")]
ArmNumber = Annotated[int, typer.Option(help="Which arm of the run, from 0.", min=0)]
PYTHON_WORDS = {"None": "null", "True": "true", "False": "false"}
Run = Annotated[Path, typer.Argument(help="A run.")]
# Settings of an arm that count beside others alone: beside which, and whether an arm has them.
COUNTS_BESIDE: dict[str, tuple[str, Callable[[Any], bool]]] = {
    **dict.fromkeys(("rank", "alpha", "rslora", "dora"), ("a LoRA", lambda arm: "lora" in arm.parts.values())),
    "peak_lr": (
        "more to train than a text encoder of its own rate",
        lambda arm: arm.text_encoder_lr is None or {arm.parts["denoiser"], arm.condition_encoder} != {"frozen"},
    ),
    "text_encoder_lr": ("text_encoder=lora or full", lambda arm: arm.text_encoder != "frozen"),
    "cycles": ("schedule=cosine-restarts", lambda arm: arm.schedule == "cosine-restarts"),
    "cooldown_share": ("schedule=constant-cooldown", lambda arm: arm.schedule == "constant-cooldown"),
    "array_dropout": ("prompts that carry arrays, which no image folder has", lambda arm: False),
}


class JudgeName(StrEnum):
    """Which judge reads the images."""

    radicals = "radicals"
    A = "A"
    B = "B"
    outside = "outside"

    @property
    def files(self) -> str:
        """The judge's name in a study's files."""
        return f"judge-{self.value.lower()}" if self.value in "AB" else self.value


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


def _go_on() -> str:
    program = Path(sys.argv[0]).name
    command = ["python", "-m", "kanjilab"] if program == "__main__.py" else [program]
    command_line = shlex.join([*command, *sys.argv[1:]])
    return f"what is stored is kept. To go on from there:\n  {command_line}"


def count(text: str, most: int = 1_000) -> Any:
    """An option that is a whole number from 1 to so many: what takes longer than a life is refused at once.

    Args:
        text: its help.
        most: the largest number.
    """
    return typer.Option(help=text, min=1, max=most)


def seed_of(text: str) -> Any:
    """An option that is the seed of a random stream.

    Args:
        text: its help.
    """
    return typer.Option(help=text, min=0, max=SEED_MAX)


def require_effect(context: typer.Context, has_effect: bool, where: str, *names: str) -> None:
    """Refuses options that were given where they have no effect.

    Args:
        context: of the command.
        has_effect: whether they have one, as the command was called.
        where: they have one, as "with --format onnx".
        names: of the command's parameters.
    Raises:
        ValueError: one of them is on the command line, but not as a flag that says no, and has no effect.
    """
    spelled = {option.name: option.opts[0] for option in context.command.params}
    for name in names:
        source, option = context.get_parameter_source(name), spelled[name]
        given = source is not None and source.name == "COMMANDLINE" and context.params[name] is not False
        if given and not has_effect:
            raise ValueError(f"{option} has an effect only {where}: leave it out, or call the command {where}")


def require_counting(names: Iterable[str], arms: Sequence[Any]) -> None:
    """Refuses settings that were given and that no arm uses.

    Args:
        names: of settings, as --set and --vary give them.
        arms: that they are in.
    Raises:
        ValueError: one that counts beside others alone, which no arm has.
    """
    for name in names:
        beside, has = COUNTS_BESIDE.get(name, ("", lambda arm: True))
        if not any(has(arm) for arm in arms):
            raise ValueError(f"{name} has an effect only with {beside}: leave it out, or train with that")


def plain_errors(command: Callable[..., None]) -> Callable[..., None]:
    """Turns the errors of a command into one line on stderr and exit code 1, without a traceback.

    Ctrl-C ends it with 130 and SIGTERM with 143, as shells expect it, and with a line that says how to go on.
    """

    @functools.wraps(command)
    def run(*arguments: Any, **options: Any) -> None:
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, TextIOWrapper):
                stream.reconfigure(errors="replace")  # a terminal that knows ASCII alone shows ? for the rest
        with _terminated_like_interrupted() as terminated:
            try:
                command(*arguments, **options)
            except (ValueError, OSError, RuntimeError, EOFError) as error:
                _let_go_of_output()
                typer.echo(f"kanjilab: {error}", err=True)
                raise typer.Exit(1) from error
            except KeyboardInterrupt:
                typer.echo(f"kanjilab: stopped by {'SIGTERM' if terminated else 'Ctrl-C'}; {_go_on()}", err=True)
                raise typer.Exit(TERMINATED if terminated else INTERRUPTED) from None

    return run


def _let_go_of_output() -> None:
    """What cannot be written, as to a full disk, is not tried again when Python ends."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


@contextmanager
def _terminated_like_interrupted() -> Iterator[list[str]]:
    """SIGTERM does what Ctrl-C does, so that a training leaves its checkpoint.

    Yields:
        A list that is empty until SIGTERM has come.
    """
    terminated: list[str] = []
    if threading.current_thread() is not threading.main_thread():  # signals reach the main thread alone
        yield terminated
        return

    def handle(number: int, frame: Any) -> None:
        terminated.append("SIGTERM")
        interrupt = signal.getsignal(signal.SIGINT)
        if callable(interrupt):
            interrupt(number, frame)
        else:  # of a command in the background, where shells let Ctrl-C be ignored
            raise KeyboardInterrupt

    usual = signal.signal(signal.SIGTERM, handle)
    try:
        yield terminated
    finally:
        signal.signal(signal.SIGTERM, usual)


def parse_settings(pairs: list[str]) -> dict[str, Any]:
    """`name=value` pairs as settings of an arm; values are JSON, or else text.

    Raises:
        typer.BadParameter: a pair without a name or without "=", or one setting twice.
    """
    settings: dict[str, Any] = {}
    for pair in pairs:
        name, value = name_and_value(pair)
        if name in settings:
            raise typer.BadParameter(f"expected each setting once, got {name} twice")
        settings[name] = setting_value(name, value)
    return settings


def name_and_value(pair: str) -> tuple[str, str]:
    """The two sides of `name=value`.

    Raises:
        typer.BadParameter: one of them, or "=", is missing.
    """
    name, _, value = pair.partition("=")
    if not (name.strip() and value.strip()):
        raise typer.BadParameter(f"expected name=value, got {pair[:80]!r}")
    return name, value


def setting_value(name: str, text: str) -> Any:
    """A value as JSON has it, or else the text itself.

    Raises:
        typer.BadParameter: one of Python's words that JSON spells otherwise, or brackets too deep to read.
    """
    if text in PYTHON_WORDS:
        raise typer.BadParameter(f"{name}: expected {PYTHON_WORDS[text]}, as JSON has it, got {text}")
    try:
        return json.loads(text)
    except RecursionError:
        raise typer.BadParameter(f"{name}: expected one value, got brackets within brackets {text[:20]}...") from None
    except ValueError:
        return text


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
    if damaged := run.damaged_checkpoints():
        raise ValueError(
            f"{folder}: the checkpoint of step {damaged[-1]} is not whole. Copy it again, or delete it: "
            f"those of steps {run.checkpoints()} are whole"
        )
    if not run.checkpoints():
        raise ValueError(f"{folder} has no checkpoint yet: its training never began")
    return run


def base_of(run: Any) -> Any:
    """The base that a run was trained on, on the device of a training: 4-bit weights need an accelerator."""
    from kanjilab.models.loading import load_base, usual_device

    return load_base(run.settings["base"], run.settings["precision"], usual_device())
