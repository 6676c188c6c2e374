"""The training panel as a person uses it: start, stop, resume, and whatever befalls page and kernel in between."""

import os
import re
import signal
import time

import numpy as np
import pytest
from playwright.sync_api import expect

from kanjilab.widgets.training_job import read_state
from tests.tiny_study import four_radicals

from .hostile import HOSTILE, obeyed
from .lab import wait_until

LONG, SHORT = 40_000, 24  # images seen; the long one does not end before it is stopped
KILLS = 1  # at random moments of its own; ten are in the tests of the panel without a browser
SETUP = """
import time
from functools import partial
from kanjilab.training import history
from kanjilab.experiments import context as lab
from kanjilab.data.image_folder import open_dataset
from kanjilab.models.sampling import Sampling, sample
from kanjilab.core.config import Arm
from kanjilab.widgets import TrainingPanel
from kanjilab.widgets.worker import Worker

lab.open_dataset = partial(open_dataset, size_px=32)
history.sample = partial(sample, size_px=32)
Worker.told_at_once = getattr(Worker, "told_at_once", Worker.told_of_step)  # this cell may run again
Worker.told_of_step = lambda self, report: (self.told_at_once(report), time.sleep({pause}))
panel = TrainingPanel(
    {place!r}, arm=Arm(rank=2, batch=2, peak_lr=0.01, images_seen={images}), data={data!r}, base={base!r},
    precision="fp32", checkpoints=1000, prompts=["water", {hostile!r}], sampling=Sampling(steps=1),
    save_every_seconds=0.3,
)
panel
"""
PID = "import os\nprint(os.getpid())"
FREE = "6 * 7"
STRIP_BELOW_TOP = """place => place.querySelector("img[alt^='Strip: ']").getBoundingClientRect().top
  - place.getBoundingClientRect().top"""


@pytest.fixture
def images(tmp_path):
    return four_radicals(tmp_path / "images")


@pytest.fixture
def cells(images, folder, tmp_path):
    """Sources of a notebook with a panel, and where its runs lie."""

    def make(seen=LONG, pause=0.03, *further):
        words = dict(place=str(tmp_path / "panel"), images=seen, data=str(images), base=str(folder))
        return [SETUP.format(**words, pause=pause, hostile=HOSTILE), PID, FREE, *further]

    return make


def state_of(tmp_path):
    """What the one run of the panel's folder tells."""
    [path] = [path for path in (tmp_path / "panel" / "runs").iterdir() if path.is_dir()]
    return read_state(path)


def button(place, name):
    return place.get_by_role("button", name=name, exact=True)


def seen_so_far(place):
    """What the native progress bar says, in images."""
    return int(place.get_by_role("progressbar").first.evaluate("bar => bar.value"))


def wait_until_it_trains(place, beyond=0):
    expect(button(place, "Stop")).to_be_enabled()
    wait_until(lambda: seen_so_far(place) > beyond, "further images")


def run_again(notebook):
    """As after opening the notebook anew: all cells, and the panel's place."""
    notebook.run_all()
    return notebook.output(0)


def test_start_stop_resume_reload_and_restart(open_notebook, cells, tmp_path, record_property):
    notebook = open_notebook(cells())
    place = run_again(notebook)
    expect(button(place, "Start")).to_be_enabled()
    button(place, "Start").press("Enter")  # by keyboard
    wait_until_it_trains(place)

    # The kernel is free for other cells.
    started = time.monotonic()
    notebook.page.evaluate("jupyterapp.shell.currentWidget.content.activeCellIndex = 2")
    notebook.command("notebook:run-cell")
    assert notebook.text(2) == "42"
    milliseconds = 1000 * (time.monotonic() - started)
    record_property("measured", f"training panel, another cell run during a training: {milliseconds:.0f} ms")
    place = notebook.output(0)
    expect(place.get_by_role("img", name="Loss over images seen")).to_be_visible()
    strip = place.get_by_alt_text(re.compile("^Strip: water"))
    expect(strip).to_be_visible()
    expect(place.get_by_label("LoRA rank")).to_be_hidden()  # the settings are folded, so the strip is seen
    assert place.evaluate(STRIP_BELOW_TOP) < 250, "the strip is in the first screen"
    first = strip.get_attribute("src")
    expect(strip).not_to_have_attribute("src", first)  # it has grown by a column
    assert HOSTILE in strip.get_attribute("alt")
    assert not obeyed(notebook.page)
    notebook.screenshot("training-going-on")

    # Reloading the page loses nothing, and the panel is attached again.
    before = seen_so_far(place)
    notebook.page.reload()
    notebook.wait_idle()
    place = run_again(notebook)
    expect(button(place, "Running")).to_be_disabled()
    wait_until_it_trains(place, before)

    button(place, "Stop").click()
    expect(button(place, "Resume")).to_be_enabled()
    stopped = state_of(tmp_path)
    assert stopped.kind == "stopped" and stopped.images_seen >= before
    expect(place.get_by_text(re.compile("^Stopped after "))).to_be_visible()  # not "Failed"
    notebook.screenshot("training-stopped")

    # A restarted kernel ends the training at a checkpoint; the panel offers to go on.
    button(place, "Resume").click()
    wait_until_it_trains(place, stopped.images_seen)
    shown = seen_so_far(place)
    notebook.restart()
    left = state_of(tmp_path)
    assert left.kind == "stopped" and left.images_seen >= shown, "a restart leaves a checkpoint"
    place = run_again(notebook)
    expect(button(place, "Resume")).to_be_enabled()
    assert seen_so_far(place) == left.images_seen


def test_a_killed_kernel_loses_the_steps_since_the_last_checkpoint_alone(open_notebook, cells, tmp_path):
    notebook, rng, saved = open_notebook(cells()), np.random.default_rng(1), 0
    for number in range(KILLS):
        place = run_again(notebook)
        button(place, "Resume" if number else "Start").click()
        wait_until_it_trains(place, 2 * saved)
        time.sleep(rng.uniform(0, 1.5))
        newest = state_of(tmp_path).saved_step
        os.kill(int(notebook.text(1)), signal.SIGKILL)
        notebook.page.get_by_role("button", name="Ok", exact=True).click()  # JupyterLab says that the kernel died
        state = state_of(tmp_path)
        assert state.kind == "stopped" and state.saved_step >= newest >= saved
        saved = state.saved_step
        notebook.wait_idle()
    place = run_again(notebook)
    expect(button(place, "Resume")).to_be_enabled()
    assert seen_so_far(place) == 2 * saved > 0


def test_interrupting_a_cell_that_waits_leaves_a_checkpoint(open_notebook, cells, tmp_path):
    notebook = open_notebook(cells(LONG, 0.03, "await panel.run_now()"))
    notebook.run_all(wait=False)
    notebook.page.wait_for_function("() => !!document.querySelector('progress')?.value")
    notebook.command("notebook:interrupt-kernel")
    with pytest.raises(AssertionError, match="Interrupt|Cancelled"):
        notebook.wait_done()
    wait_until(lambda: state_of(tmp_path).kind == "stopped", "the training's end at a safe moment")
    assert state_of(tmp_path).saved_step > 0


def test_the_whole_from_top_to_bottom(open_notebook, cells):
    notebook = open_notebook(cells(SHORT, 0, "await panel.run_now()", "panel.state.kind", "panel.picture()"))
    notebook.run_all()
    assert notebook.text(4) == "'finished'"
    assert "image/png" in notebook.cells()[5]["outputs"][0]["data"]
    place = notebook.output(0)
    expect(button(place, "Load")).to_be_enabled()
    expect(place.get_by_title("peak_lr: a field of Arm").first).to_be_attached()  # the field's own name is the hint
    place.get_by_role("button", name=re.compile("Settings$")).click()  # folded since the start
    images = place.get_by_label("Images seen, in all")
    images.fill("48")
    images.press("Tab")
    expect(button(place, "Start")).to_be_enabled()
    expect(place.get_by_text(re.compile("24 steps"))).to_be_visible()
    notebook.screenshot("training-finished")


CURVES = """
import pandas as pd
from kanjilab.widgets.common import panel_box
from kanjilab.widgets.training_curves import TrainingCurves, curve_of

def log(shift, count):
    seen = range(10, 10 * count + 10, 10)
    return pd.DataFrame({{"images_seen": seen, "loss": [shift + 100 / at for at in seen], "gradient_norm": 1.0}})

curves = TrainingCurves()
curves.runs = [curve_of("a", "first", log(1, {count})), curve_of("b", {hostile!r}, log(3, 200))]
panel_box([curves])
"""
# Curves are drawn before the panel has its place; then they take half of its width.
HAS_ROOM = "curves => 2.5 * curves.querySelector('canvas').clientWidth > curves.clientWidth"
INK = """canvas => {
  const { data } = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height);
  let hash = 0;
  for (let at = 0; at < data.length; at += 4) hash = (Math.imul(hash, 31) + data[at] + data[at + 3]) | 0;
  return hash;
}"""


def test_curves_are_smoothed_zoomed_overlaid_and_logarithmic(open_notebook):
    notebook = open_notebook([CURVES.format(count=200, hostile=HOSTILE)])
    notebook.run_all()
    page, place = notebook.page, notebook.output(0)
    loss = place.get_by_role("img", name="Loss over images seen")
    expect(loss).to_be_visible()
    wait_until(lambda: place.locator(".kanjilab-curves").evaluate(HAS_ROOM), "the curves' width")
    seen = [loss.evaluate(INK)]

    def changed(what):
        wait_until(lambda: loss.evaluate(INK) != seen[-1], what)
        seen.append(loss.evaluate(INK))

    place.get_by_label("Smoothing").press("Home")
    changed("smoothing, by keyboard")
    place.get_by_role("checkbox", name=HOSTILE).check()
    changed("a second run over the first")
    expect(place.locator(".said")).to_contain_text("first: loss 1.05 after 2,000 images; ")
    place.get_by_label("log scale").check()
    changed("log scale")
    place.get_by_role("button", name="Zoom in").click()
    changed("zoom by button")
    box = place.locator(".u-over").first.bounding_box()
    page.mouse.move(box["x"] + 50, box["y"] + 50)
    page.mouse.down()
    page.mouse.move(box["x"] + 150, box["y"] + 60, steps=4)
    page.mouse.up()
    changed("zoom by mouse")
    place.get_by_role("button", name="Whole").click()
    wait_until(lambda: loss.evaluate(INK) == seen[3], "the whole again")
    notebook.screenshot("training_curves")
    notebook.use_theme("Dark")
    wait_until(lambda: loss.evaluate(INK) != seen[3], "the dark theme's ink")
    notebook.screenshot("training_curves_dark")
    assert not obeyed(page)
