"""Ctrl-C and SIGTERM end a command as shells expect it, with one line that says how to go on."""

import os
import signal
import subprocess
import sys
import time

import pytest

COMMAND = """
import signal, sys, time, typer
from kanjilab.cli.options import plain_errors

def wait():
    print("ready", flush=True)
    try:
        time.sleep(60)
    finally:
        print("put away", flush=True)

signal.signal(signal.SIGINT, signal.SIG_IGN if "background" in sys.argv.pop() else signal.default_int_handler)
app = typer.Typer(pretty_exceptions_enable=False)
app.command()(plain_errors(wait))
app()
"""


@pytest.mark.parametrize(
    ("number", "code", "name", "where"),
    [
        (signal.SIGINT, 130, "Ctrl-C", "foreground"),
        (signal.SIGTERM, 143, "SIGTERM", "foreground"),
        (signal.SIGTERM, 143, "SIGTERM", "background"),  # where shells let SIGINT be ignored
    ],
)
def test_a_signal_ends_a_command_with_its_own_code(number, code, name, where):
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    process = subprocess.Popen([sys.executable, "-c", COMMAND, where], env=dict(os.environ), **pipes)
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    time.sleep(0.05)
    process.send_signal(number)
    said, told = process.communicate(timeout=30)
    assert process.returncode == code and said == "put away\n"
    first, second, *_ = told.splitlines()
    assert first == f"kanjilab: stopped by {name}; what is stored is kept. To go on from there:"
    assert second.startswith("  ")
