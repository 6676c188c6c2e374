"""Progress bars: when they appear, and what they say."""

import time

import pytest

from kanjilab.core import progress as bars
from kanjilab.core.progress import bar


def test_a_kept_bar_is_shown_at_once_and_stays(capfd):
    told = bar("draw", kept=True)
    told(1, 4)
    assert "draw:   0%" in capfd.readouterr().err
    told(4, 4)
    assert "draw: 100%" in capfd.readouterr().err


def test_a_bar_for_a_moment_is_never_seen(capfd):
    told = bar("draw")
    for done in range(5):
        told(done, 4)
    assert capfd.readouterr().err == ""


def test_a_bar_begins_anew_after_the_end(capfd, monkeypatch):
    monkeypatch.setattr(bars, "DELAY_SECONDS", 0.01)
    told = bar("draw")
    for total in (3, 50):
        told(0, total)
        time.sleep(0.15)  # tqdm shows no more than ten states a second
        told(1, total)
        assert f"1/{total}" in capfd.readouterr().err
        told(total, total)
        assert capfd.readouterr().err.endswith("\r"), "wiped away"


@pytest.mark.parametrize("kept", [False, True])
def test_a_bar_that_is_not_shown_says_nothing(capfd, kept):
    told = bar("draw", shown=False, kept=kept)
    told(1, 2)
    told(2, 2)
    assert capfd.readouterr().err == ""
