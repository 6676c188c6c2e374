"""What a user should hear of although the work goes on: one plain line each, on stderr.

Python's logging shows a line as it is where nobody set it up, in a notebook and on the command line alike.
"""

import logging
from collections.abc import Sequence
from functools import cache

LISTED = 20  # of a long list of problems, so many are written out
_log = logging.getLogger("kanjilab")


def notice(text: str) -> None:
    """Say something that is worth knowing and no error."""
    _log.warning(text)


@cache
def notice_once(text: str) -> None:
    """The same, but once in a process: for what is looked at again and again, as panels do."""
    notice(text)


def counted(number: int, noun: str) -> str:
    """`1 image`, `2,000 images`.

    Args:
        number, noun: how many of what, in the singular.
    """
    return f"{number:,} {noun}" + ("" if number == 1 else "s")


def some_of(names: Sequence[str], most: int = 5) -> str:
    """The first of some names, and how many more there are.

    Args:
        names: at least one.
        most: so many are named.
    """
    return ", ".join(names[:most]) + (f" and {len(names) - most:,} more" if len(names) > most else "")
