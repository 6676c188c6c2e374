"""Curate kanji, train LoRAs over a frozen text-to-image base, draw checkpoint strips, and measure what came out."""

import typer

from kanjilab.cli.coin_command import coin
from kanjilab.cli.experiment_commands import findings, pairs, reinvent, sweep
from kanjilab.cli.options import TableHelp, plain_errors
from kanjilab.cli.run_commands import criteria, diagnose, export, score, strip
from kanjilab.cli.start_commands import data, demo, filter_, train
from kanjilab.cli.write_command import write

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False, help=__doc__)
MAKING = (coin, write, demo, data, filter_, train)
MEASURING = (sweep, findings, strip, score, criteria, reinvent, pairs, diagnose, export)
for command in (*MAKING, *MEASURING):
    app.command(command.__name__.rstrip("_"), cls=TableHelp)(plain_errors(command))  # filter is a word of Python's
