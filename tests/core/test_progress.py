"""Progress bars: when they appear, and what they say."""

import io
import time

import pytest

from kanjilab.core import progress as bars
from kanjilab.core.progress import bar, begin_at, open_bar


def test_a_kept_bar_is_shown_at_once_and_stays(capfd):
    show = bar("draw", kept=True)
    show(1, 4)
    assert "draw:   0%" in capfd.readouterr().err
    show(4, 4)
    assert "draw: 100%" in capfd.readouterr().err


def test_a_bar_for_a_moment_is_never_seen(capfd):
    show = bar("draw")
    for done in range(5):
        show(done, 4)
    assert capfd.readouterr().err == ""


def test_a_bar_begins_again_after_the_end(capfd, monkeypatch):
    monkeypatch.setattr(bars, "DELAY_SECONDS", 0.01)
    show = bar("draw")
    for total in (3, 50):
        show(0, total)
        time.sleep(0.15)  # tqdm shows no more than ten states a second
        show(1, total)
        assert f"1/{total}" in capfd.readouterr().err
        show(total, total)
        assert capfd.readouterr().err.endswith("\r"), "wiped away"


@pytest.mark.parametrize("kept", [False, True])
def test_a_bar_that_is_not_shown_says_nothing(capfd, kept):
    show = bar("draw", shown=False, kept=kept)
    show(1, 2)
    show(2, 2)
    assert capfd.readouterr().err == ""


def test_rate_and_time_left_are_of_what_is_done_now_not_of_what_was_done_before():
    shown = open_bar(total=1000, file=io.StringIO(), mininterval=0, miniters=1)
    begin_at(shown, 600)
    shown.start_t = shown.last_print_t = time.time() - 2
    shown.update(40)
    assert shown.format_dict["rate"] == pytest.approx(20, rel=0.1)  # 40 in two seconds; counted from 0 it is 320
    assert "64%" in str(shown) and "640/1000 [00:02<00:1" in str(shown)
