"""The browser tests' own helpers: they wait for the end, see errors, and start from a clean copy."""

import pytest

from .hostile import HOSTILE, obeyed


def test_cells_run_to_the_end_and_are_read_from_the_model(open_notebook):
    notebook = open_notebook(["import time\ntime.sleep(1)\nprint('slept')", "2 + 2"])
    notebook.run_all()
    assert (notebook.text(0), notebook.text(1)) == ("slept\n", "4")
    assert [cell["count"] for cell in notebook.cells()] == [1, 2]
    notebook.restart()
    notebook.run_all()
    assert [cell["count"] for cell in notebook.cells()] == [1, 2], "a restarted kernel counts from 1"
    assert notebook.screenshot("lab").stat().st_size > 10_000


def test_what_tests_deny_is_noticed_where_it_happens(open_notebook):
    notebook = open_notebook(["1"])
    notebook.command("notebook:enter-command-mode")
    notebook.page.keyboard.press("b")
    assert notebook.selection() == (1, 2), "a cell below"
    for key in ("d", "d"):
        notebook.page.keyboard.press(key)
    assert notebook.selection() == (0, 1)
    assert not obeyed(notebook.page)
    notebook.page.evaluate("text => document.body.insertAdjacentHTML('beforeend', text)", HOSTILE)
    assert obeyed(notebook.page)


def test_an_error_is_told(open_notebook):
    notebook = open_notebook(["1 / 0", "print('never')"])
    with pytest.raises(AssertionError, match="ZeroDivisionError"):
        notebook.run_all()


def test_a_kernel_is_off_line(open_notebook):
    notebook = open_notebook(["import socket\nsocket.create_connection(('192.0.2.1', 80), 1)"])
    with pytest.raises(AssertionError, match="NetworkForbidden"):
        notebook.run_all()
