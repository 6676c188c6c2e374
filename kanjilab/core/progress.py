"""Progress bars: a line of text, in a terminal as in a notebook."""

import io
import sys
import time
from collections.abc import Callable
from typing import Any

from tqdm.std import tqdm

DELAY_SECONDS = 0.5  # what is done sooner shows no bar that would vanish at once
NOTEBOOK_CHARACTERS = 80


def bar(what: str, *, shown: bool = True, kept: bool = False) -> Callable[[int, int], None]:
    """A bar for an `on_progress`; it appears when there is something to wait for.

    Args:
        what: the name of the work, in a word or two.
        shown: False for a bar that shows nothing, as in all but one of several processes.
        kept: whether it stays on a terminal when the work is done; else it vanishes, as it always does in a notebook.
    Returns:
        a function to call with (done, total), in any unit; after the end it begins again.
    """
    running: list[tqdm] = []

    def show(done: int, total: int) -> None:
        if not running:
            delay = 0 if kept else DELAY_SECONDS
            # miniters: else it waits for as many as it saw in a quick stretch, and looks frozen in a slow one
            running.append(open_bar(total=total, desc=what, delay=delay, miniters=1, leave=kept, disable=not shown))
        running[0].update(done - running[0].n)
        if done >= total:
            running.pop().close()

    return show


def open_bar(*arguments: Any, **options: Any) -> tqdm:
    """tqdm's bar, with its arguments, for a terminal or for a notebook."""
    return (NotebookBar if _in_kernel() else tqdm)(*arguments, **options)


def begin_at(running: tqdm, done: int) -> None:
    """Count from what an earlier call had done, so that rate and time left are of this one's work.

    Args:
        running: a bar that nothing was counted on yet.
        done: in its unit.
    """
    running.initial = running.n = running.last_print_n = done
    running.start_t = running.last_print_t = time.time()


def _in_kernel() -> bool:
    jupyter = sys.modules.get("IPython")  # a kernel has it; elsewhere it need not be imported for this
    return jupyter is not None and hasattr(jupyter.get_ipython(), "kernel")


class NotebookBar(tqdm):
    """tqdm's line as an output of the cell; its own widget would show an error when the page is opened again."""

    def __init__(self, *arguments: Any, **options: Any):
        self._output: Any = None
        here = dict(file=io.StringIO(), ascii=False, ncols=NOTEBOOK_CHARACTERS, leave=False)
        super().__init__(*arguments, **(options | here))

    def display(self, msg: str | None = None, pos: int | None = None) -> None:
        """Show a text in place of the last; None for how far it is."""
        from IPython.display import display

        text = {"text/plain": str(self) if msg is None else msg}
        if self._output is None:
            self._output = display(text, raw=True, display_id=True)
        else:
            self._output.update(text, raw=True)
