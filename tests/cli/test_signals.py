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


SAYING = """
import sys, typer
from kanjilab.cli.options import plain_errors

def say():
    print("\u00b7 curate \u6c34", flush=True)

sys.argv = ["kanjilab"]
app = typer.Typer(pretty_exceptions_enable=False)
app.command()(plain_errors(say))
app()
"""


def test_a_terminal_that_knows_ascii_alone_shows_the_rest_as_question_marks():
    environment = os.environ | {"PYTHONIOENCODING": "ascii"}
    done = subprocess.run([sys.executable, "-c", SAYING], env=environment, capture_output=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"? curate ?\n", b"")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="Linux's disk that is always full")
def test_an_output_that_takes_nothing_is_one_line():
    with open("/dev/full", "wb") as full:
        done = subprocess.run([sys.executable, "-c", SAYING], stdout=full, stderr=subprocess.PIPE, timeout=60)
    assert done.returncode == 1 and done.stderr == b"kanjilab: [Errno 28] No space left on device\n"
