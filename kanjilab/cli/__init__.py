"""The command line: `kanjilab`, or `python -m kanjilab`. Each command is a thin shell over the package."""
