"""`python -m kanjilab` is the command line."""

from kanjilab.cli import app

app()
