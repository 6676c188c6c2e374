"""The ablation panel as a person uses it: ask, plan, run, stop, and look at what a variant drew."""

import re

import pytest
from playwright.sync_api import expect

from tests.tiny_study import four_radicals

HOSTILE = """<img src=x onerror="window.obeyed=1">"""
SLOW_MS = 120_000
SETUP = """
from pathlib import Path
import pytest
from kanjilab.experiments.study import Variant
from kanjilab.widgets import AblationPanel
from tests.tiny_study import DarknessJudge, make_small, tiny_study
import dataclasses

make_small(pytest.MonkeyPatch())
study = tiny_study({base!r}, {data!r})
variants = (Variant("rank 2", dict(rank=2)), Variant({hostile!r}, dict(rank=3)))
arm = dataclasses.replace(study.arm, images_seen={seen})
study = dataclasses.replace(study, variants=variants, contrasts=(), arm=arm)
panel = AblationPanel({place!r}, study, judge=DarknessJudge())
panel
"""
ROOT = "import sys\nsys.path.insert(0, {root!r})"


@pytest.fixture
def cells(folder, tmp_path, pytestconfig):
    """Sources of a notebook with a panel."""
    images = four_radicals(tmp_path / "images")

    def make(seen):
        words = dict(base=str(folder), data=str(images), place=str(tmp_path / "studies"), hostile=HOSTILE, seen=seen)
        return [ROOT.format(root=str(pytestconfig.rootpath)), SETUP.format(**words)]

    return make


def button(place, name):
    return place.get_by_role("button", name=name, exact=True)


def test_plan_run_and_choose_a_variant(open_notebook, cells):
    notebook = open_notebook(cells(8))
    notebook.run_all()
    place = notebook.output(1)
    button(place, "Plan").click()
    expect(place.get_by_text(re.compile("0 of 4 trainings stored; 4 to train: about"))).to_be_visible(timeout=SLOW_MS)
    expect(button(place, "Run")).to_be_enabled(timeout=SLOW_MS)
    button(place, "Run").press("Enter")
    expect(button(place, "Load")).to_be_enabled(timeout=SLOW_MS)
    points = place.get_by_role("group", name=re.compile("expected radical"))
    expect(points.get_by_role("button")).to_have_count(2)
    drawn = place.get_by_alt_text(re.compile("^What rank 2 drew"))
    expect(drawn).to_be_visible()
    first = drawn.get_attribute("src")

    points.get_by_role("button").nth(1).click()
    hostile = place.get_by_alt_text(re.compile("^What <img"))
    expect(hostile).to_be_visible()
    assert hostile.get_attribute("src") != first
    points.get_by_role("button").nth(1).press("ArrowUp")
    notebook.page.keyboard.press("Enter")
    expect(drawn).to_have_attribute("src", first)
    expect(points.get_by_role("button", pressed=True)).to_have_text(re.compile("^rank 2"))
    assert notebook.page.evaluate("window.obeyed") is None
    assert notebook.active_cell == 1, "JupyterLab took no key"
    notebook.screenshot("ablation-finished")

    # A new kernel shows the same without doing anything.
    notebook.restart()
    notebook.run_all()
    place = notebook.output(1)
    expect(button(place, "Load")).to_be_enabled()
    expect(place.get_by_alt_text(re.compile("^What rank 2 drew"))).to_have_attribute("src", first)


def test_stop_and_go_on_after_a_restart(open_notebook, cells):
    notebook = open_notebook(cells(400))
    notebook.run_all()
    place = notebook.output(1)
    button(place, "Run").click()
    place.get_by_role("progressbar").first.wait_for(timeout=SLOW_MS)
    button(place, "Stop").click()
    expect(place.get_by_text("Stopped; Resume continues.")).to_be_visible(timeout=SLOW_MS)
    notebook.restart()
    notebook.run_all()
    place = notebook.output(1)
    button(place, "Run").click()
    place.get_by_role("progressbar").first.wait_for(timeout=SLOW_MS)
    shown = place.get_by_role("progressbar").first.evaluate("bar => bar.value")
    assert shown > 2, "it goes on where it was stopped"
