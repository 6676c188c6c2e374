"""The ablation panel as a person uses it: move sliders, pin and compare, train what is missing, stop and go on."""

import base64
import dataclasses
import hashlib
import json
import re

import pytest
from playwright.sync_api import expect

from kanjilab.widgets.ablation_catalogue import study_catalogue
from kanjilab.widgets.common import FOLDER
from tests.stored_study import rank_study, store_study
from tests.tiny_study import four_radicals, make_small, run, tiny_study

from .alone import show_alone
from .hostile import HOSTILE, obeyed

CLAIMS = ("rank", "batch", "epochs", "schedule", "targets")
ROOT = "import sys\nsys.path.insert(0, {root!r})"
LOOK = """
from kanjilab.widgets import AblationPanel
panel = AblationPanel({place!r}, kept={kept!r})
panel
"""
TRAIN = """
import pytest
from kanjilab.experiments.study import Study
from kanjilab.widgets import AblationPanel
from tests.tiny_study import DarknessJudge, make_small, tiny_study

make_small(pytest.MonkeyPatch())
panel = AblationPanel({place!r}, {study}, kept={kept!r}, judge=DarknessJudge())
panel
"""
# What the strip shows: the pixels of its pictures, or the marks that stand for them, and which of them are marked.
SHOWN = """cards => [...cards.querySelectorAll('.glyph > *')].slice(0, 60).map(shown =>
  (shown.getContext ? shown.toDataURL() : shown.textContent) + shown.parentElement.className).join('')"""
# Milliseconds from an event of a slider to the next painted frame, and of the handlers alone.
TIMED = """async input => {
  const times = [];
  for (let turn = 0; turn < 40; turn += 1) {
    const value = Number(input.value) < Number(input.max) ? Number(input.value) + 1 : 0;
    const start = performance.now();
    input.value = value;
    input.dispatchEvent(new Event('input', { bubbles: true }));
    const handled = performance.now() - start;
    await new Promise(done => requestAnimationFrame(() => setTimeout(done)));
    times.push([handled, performance.now() - start]);
  }
  return times;
}"""

# Sheets are decoded after the strip is built; some studies have numbers alone.
DRAWN = """() => !document.querySelector('.kanjilab-ablation.pictured')
  || [...document.querySelectorAll('.glyph canvas')].some(canvas => canvas.getContext('2d')
    .getImageData(0, 0, canvas.width, canvas.height).data.some(value => value))"""


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder of one made-up study with images, one of whose settings has a hostile name."""
    study = rank_study()
    variants = [dataclasses.replace(v, label=HOSTILE) if v.label == "rank 1, rsLoRA" else v for v in study.variants]
    folder = tmp_path_factory.mktemp("kept")
    store_study(folder / "made", dataclasses.replace(study, variants=tuple(variants), contrasts=()))
    return folder


@pytest.fixture(scope="module")
def small(folder, tmp_path_factory):
    """A study of two tiny trainings, and the folder in which it is finished."""
    place = tmp_path_factory.mktemp("small")
    study = tiny_study(folder, four_radicals(place / "images"))
    study = dataclasses.replace(study, variants=study.variants[:2], contrasts=(), seeds=(5,))
    with pytest.MonkeyPatch.context() as patch:
        make_small(patch)
        run(study, place / "kept" / "tiny", progress=False)
    return study, place / "kept"


@pytest.fixture
def cells(tmp_path, pytestconfig):
    """Sources of a notebook with a panel."""

    def make(source, **words):
        root = ROOT.format(root=str(pytestconfig.rootpath))
        words = {"place": tmp_path / "studies"} | words
        return [root, source.format(**{name: str(value) for name, value in words.items()})]

    return make


def button(place, name):
    return place.get_by_role("button", name=name, exact=True)


def shown(place):
    return hashlib.sha256(place.locator(".cards").evaluate(SHOWN).encode()).hexdigest()


def score(place):
    return place.locator(".score").inner_text()


def test_every_slider_moves_the_picture_and_the_score(open_notebook, cells, made, pytestconfig, record_property):
    clone = pytestconfig.rootpath / "figures" / "studies"
    notebook = open_notebook(cells(LOOK, kept=made, place=clone))
    notebook.run_all()
    place = notebook.output(1)
    expect(place.get_by_role("heading", name="A higher rank draws better")).to_be_visible()
    expect(place.locator(".score")).to_contain_text("rank 1, alpha = r")
    place.get_by_role("slider", name="Images seen").wait_for()
    notebook.page.wait_for_function(DRAWN)
    notebook.screenshot("ablation-light")
    for name in ("Rank", "Scaling", "Images seen", "Training seed"):
        slider = place.get_by_role("slider", name=name)
        last = int(slider.get_attribute("max"))
        key, end = ("ArrowLeft", 0) if name == "Images seen" else ("ArrowRight", last)
        seen = [(shown(place), score(place), slider.get_attribute("aria-valuetext"))]
        slider.press(key)
        seen.append((shown(place), score(place), slider.get_attribute("aria-valuetext")))
        assert all(new != old for old, new in zip(*seen, strict=True)), f"{name} by keyboard"
        slider.press("ArrowRight" if end == 0 else "ArrowLeft")
        assert shown(place) == seen[0][0], f"{name} back"
        box = slider.bounding_box()
        slider.click(position={"x": 3 if end == 0 else box["width"] - 3, "y": box["height"] / 2})
        assert int(slider.input_value()) == end, f"{name} by mouse"
        assert shown(place) != seen[0][0] and score(place) != seen[0][1], f"{name} by mouse"
    times = place.get_by_role("slider", name="Rank").evaluate(TIMED)
    handled, painted = (sorted(column) for column in zip(*times, strict=True))
    p95 = [values[int(0.95 * len(values))] for values in (handled, painted)]
    record_property("measured", f"ablation slider: p95 {p95[0]:.0f} ms handled, {p95[1]:.0f} ms painted")

    # The studies of the clone, chosen from the menu.
    menu = place.get_by_label("Study", exact=True)
    paths = menu.locator("option").evaluate_all("options => options.map(option => option.value)")
    for claim in CLAIMS:
        path = next(path for path in paths if path.rpartition("/")[2].startswith(f"{claim}-"))
        menu.select_option(path)
        expect(place.locator(f".kanjilab-ablation[data-study='{path}']")).to_be_visible()
        expect(place.locator(".verdict")).to_contain_text("In ")
        sliders = place.locator(".slider input[type=range]")
        expect(sliders.first).to_be_visible()
        notebook.page.wait_for_function(DRAWN)
        for at in range(sliders.count()):
            before = score(place) + shown(place)
            sliders.nth(at).press("ArrowLeft" if sliders.nth(at).input_value() != "0" else "ArrowRight")
            assert score(place) + shown(place) != before, (path, at)
    expect(place.locator(".score b").first).not_to_have_text("0.0%")
    notebook.screenshot("ablation-clone")
    assert notebook.selection() == (1, 2), "JupyterLab took no key"
    assert not obeyed(notebook.page)


def test_pin_compare_and_reach_what_is_near(open_notebook, cells, made):
    notebook = open_notebook(cells(LOOK, kept=made))
    notebook.run_all()
    place = notebook.output(1)
    rank = place.get_by_role("slider", name="Rank")
    button(place, "Pin this as A, and move B").press("Enter")
    rank.press("ArrowRight")
    expect(place.locator(".difference")).to_contain_text("A against B: ")
    expect(place.locator(".difference")).to_contain_text("undecided")
    rank.press("ArrowRight")
    expect(place.locator(".difference")).to_contain_text("this pair was not tested")
    place.get_by_text(re.compile("What differs between A and B")).click()
    expect(place.get_by_role("row", name=re.compile("^Rank 1 16$"))).to_be_visible()
    notebook.use_theme("Dark")
    notebook.screenshot("ablation-pinned-dark")
    notebook.use_theme("Light")
    button(place, "Unpin A").click()

    # A point of the curve moves the slider; the radical and the judge change the score alone.
    point = place.get_by_role("button", name=re.compile("^Rank 256: "))
    point.focus()
    notebook.page.keyboard.press("Enter")
    assert rank.input_value() == "4"
    before = score(place), shown(place)
    place.get_by_label("judge B").check()
    assert score(place) != before[0]
    place.get_by_label("水").check()
    expect(place.locator("figure")).to_have_count(4)
    place.get_by_label("training captions").check()
    expect(place.locator("figure").first).to_contain_text("water castle old")

    # Rank 4 with rsLoRA is not stored.
    rank.press("Home")
    rank.press("ArrowRight")
    place.get_by_role("slider", name="Scaling").press("End")
    hole = place.get_by_role("group", name="A setting that is not trained")
    expect(hole).to_contain_text("Not trained: rank 4, rsLoRA")
    near = hole.locator(".link")
    expect(near).to_have_text([HOSTILE, "rank 16, rsLoRA", "rank 64, rsLoRA"])
    expect(hole).to_contain_text("took 3 min for 3 seeds where it was trained")
    notebook.screenshot("ablation-not-trained")
    near.nth(1).click()
    assert rank.get_attribute("aria-valuetext") == "16" and hole.is_hidden()
    assert not obeyed(notebook.page)


def test_a_page_without_a_kernel_moves_too(page, made):
    catalogue, images = study_catalogue(made / "made")
    addresses = [f"data:image/webp;base64,{base64.b64encode(image).decode()}" for image in images]
    values = {"catalogue": catalogue, "images": addresses, "menu": [], "chosen": "", "state": {}, "work": {}}
    style, script = ((FOLDER / f"ablation.{ending}").read_text(encoding="utf-8") for ending in ("css", "js"))
    traits = json.dumps(values | {"alone": True}).replace("<", "\\u003c")
    panel = show_alone(page, script, traits, style)
    expect(panel.get_by_role("heading", name="A higher rank draws better")).to_be_visible()
    page.wait_for_function(DRAWN)
    before = shown(panel), score(panel)
    panel.get_by_role("slider", name="Rank").press("End")
    assert shown(panel) != before[0] and score(panel) != before[1]
    panel.get_by_role("slider", name="Scaling").press("End")
    panel.get_by_role("slider", name="Rank").press("Home")
    panel.get_by_role("slider", name="Rank").press("ArrowRight")
    expect(panel.locator(".hole")).to_contain_text("Not trained: rank 4, rsLoRA")
    assert panel.get_by_role("button", name=re.compile("Train|Measure|Another value")).count() == 0

    # Where only stored settings are reached, the other sliders go along.
    panel.get_by_role("slider", name="Scaling").press("Home")
    panel.get_by_label("stored settings").check()
    assert panel.get_by_role("slider", name="Rank").get_attribute("aria-valuetext") == "4"
    panel.get_by_role("slider", name="Scaling").press("End")
    assert panel.get_by_role("slider", name="Rank").get_attribute("aria-valuetext") in ("1", "16")
    expect(panel.locator(".hole")).to_be_hidden()
    expect(panel.get_by_label("Scaling", exact=True).last).to_be_checked()  # of the curve

    page.set_viewport_size({"width": 390, "height": 420})
    panel.get_by_role("slider", name="Rank").scroll_into_view_if_needed()
    expect(panel.locator(".score")).to_be_in_viewport(ratio=1)  # on a phone too, while a slider is moved


def test_a_new_value_is_trained_and_becomes_a_stop(open_notebook, cells, small):
    notebook = open_notebook(cells(TRAIN, kept=small[1], study="None"))
    notebook.run_all()
    place = notebook.output(1)
    rank = place.get_by_role("slider", name="Rank")
    expect(rank).to_have_attribute("max", "1")
    place.get_by_role("button", name="Another value of Rank").press("Enter")
    value = place.get_by_label("New value of Rank")
    value.fill("none")
    value.press("Enter")
    expect(place.get_by_role("alert")).to_contain_text("expected a whole number, got 'none'")
    value.fill("4")
    value.press("Enter")
    expect(rank).to_have_attribute("max", "2")
    expect(rank).to_have_attribute("aria-valuetext", "4, not trained")
    button(place, "Measure the cost here").click()
    expect(place.locator(".hole")).to_contain_text(
        re.compile("2 of 3 trainings stored; 1 to train: about .* on this machine")
    )
    button(place, "Train it").click()
    expect(rank).to_have_attribute("aria-valuetext", "4")
    expect(rank).to_have_attribute("max", "2")
    expect(place.locator(".hole")).to_be_hidden()
    expect(place.locator(".score")).to_contain_text("rank 4")
    notebook.screenshot("ablation-added")
    expect(place.locator(".ticks").first.locator("i.stored")).to_have_count(3)

    # A new kernel has the added setting in the menu.
    notebook.restart()
    notebook.run_all()
    place = notebook.output(1)
    menu = place.get_by_label("Study", exact=True)
    menu.select_option(label="A higher rank draws better (tiny-more)")
    expect(place.get_by_role("slider", name="Rank")).to_have_attribute("max", "2")


def test_stop_and_go_on_after_a_restart(open_notebook, cells, small, tmp_path):
    study, kept = small
    longer = dataclasses.replace(study, name="longer", arm=dataclasses.replace(study.arm, images_seen=40_000))
    given = f"Study.from_json({longer.to_json()!r})"
    notebook = open_notebook(cells(TRAIN, kept=kept, study=given))
    notebook.run_all()
    place = notebook.output(1)
    expect(place.get_by_role("slider", name="Rank")).to_be_visible()
    button(place, "Run").click()
    place.locator(".jupyter-widgets progress").first.wait_for()
    button(place, "Stop").click()
    expect(place.get_by_text("Stopped; Resume continues.")).to_be_visible()
    notebook.restart()
    notebook.run_all()
    place = notebook.output(1)
    button(place, "Run").click()
    bar = place.locator(".jupyter-widgets progress").first
    bar.wait_for()
    assert bar.evaluate("bar => bar.value") > 2, "it goes on where it was stopped"
