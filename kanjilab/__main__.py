"""`python -m kanjilab` is the command line."""

from kanjilab.cli.main import app

app()
