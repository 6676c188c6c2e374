"""The playground: requests, how glyphs are ranked and described, the history, and the panel itself."""

import dataclasses
import json
import os
import shutil
import threading
import time
from functools import partial
from pathlib import Path

import ipywidgets as widgets
import numpy as np
import pandas as pd
import pytest

from kanjilab.core.config import Arm
from kanjilab.core.run_folder import RunFolder
from kanjilab.data.dictionary import load_characters
from kanjilab.data.rendering import default_font, draw_font
from kanjilab.evaluation.judges.nearest_character import Neighbours
from kanjilab.evaluation.judges.part_judge import load_judge
from kanjilab.models.loading import load_base
from kanjilab.models.sampling import Sampling, sample
from kanjilab.training.loop import train
from kanjilab.widgets import Playground, generation, playground
from kanjilab.widgets.generation import (
    BASE_ALONE,
    FRAMES_SHOWN,
    PUBLIC,
    WRITER_ALONE,
    Limits,
    Models,
    Request,
    checkpoint_choices,
    describe,
    draw_glyphs,
    named_parts,
    placing,
    rank_glyphs,
    run_choices,
    short_caption,
    turn,
)
from kanjilab.widgets.saved_glyphs import HISTORY, Kept, kept_glyph, load_history, save_history
from tests.tiny import tiny_encoded

QUICK = Sampling(steps=3)
HOSTILE = "<img src=x onerror=alert(1)>"
PARTS = {"水": "water", "火": "fire", "魚": "fish", "王": "king", "鰐": "water dragon", "江": "water"}


@pytest.fixture(scope="module")
def neighbours():
    return Neighbours.fit(list("水火魚王休木人口"), default_font())


@pytest.fixture(autouse=True)
def small(monkeypatch, tmp_path, neighbours):
    """Small pictures, few characters to be compared with by outline, and a lock of this test alone."""
    monkeypatch.setattr(playground.Neighbours, "load_or_fit", lambda cache: neighbours)
    monkeypatch.setattr(playground, "LOCK", tmp_path / "lock")
    monkeypatch.setattr(generation, "sample", partial(sample, size_px=32))


@pytest.fixture(scope="module")
def runs(base, tmp_path_factory):
    """A folder with a run of two arms, and one of a study's pack."""
    folder = tmp_path_factory.mktemp("runs")
    arms = [Arm(targets="all", rank=2, peak_lr=0.02, images_seen=6, batch=2, seed=seed) for seed in range(2)]
    for _ in train(base, tiny_encoded(base), arms, folder / "mine" / "run", checkpoints=2):
        pass
    shutil.copytree(folder / "mine" / "run", folder / "studies" / "packs" / "0f")
    return folder


def ask(base, prompt="water", **options):
    return Request(prompt, **{"sampling": QUICK, "base": base.name} | options)


def drawn(base, *asked, **options):
    return draw_glyphs(ask(base, *asked, **options), Models(base))


def wait_for(condition, seconds=30):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it never came"
        time.sleep(0.02)


# Requests


@pytest.mark.parametrize("wrong", [dict(prompt="  "), dict(seeds=()), dict(seeds=(-1,)), dict(seeds=(1, 1))])
def test_a_request_that_asks_for_nothing_is_refused(wrong):
    with pytest.raises(ValueError, match="type a prompt|distinct seeds"):
        Request(**{"prompt": "fish"} | wrong)


def test_a_request_reads_back_from_json():
    request = Request(HOSTILE, (3, 4), Sampling("ddim", 7, 2.5, "not", "ink, "), Path("runs/a"), "b", 1, 400, ("水",))
    assert Request.from_json(json.loads(json.dumps(request.to_json()))) == request
    assert Request.from_json(Request("a").to_json()) == Request("a")


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (Request("x" * 101), "at most 100 characters, got 101"),
        (Request("a", sampling=Sampling(prefix="x" * 101)), "characters"),
        (Request("a", sampling=Sampling(negative_prompt="x" * 101)), "characters"),
        (Request("a", sampling=Sampling(steps=31)), "at most 30 steps, got 31"),
        (Request("a", sampling=Sampling(guidance=16)), "guidance"),
        (Request("a", sampling=Sampling(guidance=float("nan"))), "guidance"),
        (Request("a", tuple(range(7))), "at most 6 glyphs, got 7"),
    ],
)
def test_public_requests_are_bounded(request_, message):
    with pytest.raises(ValueError, match=message):
        PUBLIC.check(request_)
    fitting = Request("x" * 100, tuple(range(6)), Sampling(steps=30, guidance=15))
    assert PUBLIC.check(fitting) is fitting and Limits().check(fitting) is fitting


# Drawing


def test_the_latents_of_every_step_are_given_and_the_last_is_the_picture(base):
    text = []
    images = sample(base, ["water", "fire"], [0], QUICK, size_px=32, on_latents=text.append)
    assert [len(latents) for latents in text] == [2, 2, 2]
    assert (base.decode(text[-1]) == images[0, :, 0]).all()
    assert (text[0] != text[1]).any()


def test_what_the_hook_raises_ends_the_drawing_and_leaves_the_base_as_it_was(base, runs):
    before = drawn(base).images
    text = []

    def stop(latents):
        text.append(latents)
        raise InterruptedError

    with pytest.raises(InterruptedError):
        draw_glyphs(ask(base, run=runs / "mine" / "run"), Models(base), stop)
    assert len(text) == 1
    assert (drawn(base).images == before).all()


def test_the_same_request_gives_the_same_glyphs_whatever_was_drawn_before(base, runs):
    models = Models(base)
    asked = [ask(base), ask(base, run=runs / "mine" / "run"), ask(base, run=runs / "mine" / "run", arm=1)]
    asked += [ask(base, run=runs / "mine" / "run", step=0), ask(base, seeds=(5,))]
    first = [draw_glyphs(request, models).images for request in asked]
    plain = sample(base, ["water"], (0,), QUICK, size_px=32)[0, 0]
    for request, images in reversed(list(zip(asked, first, strict=True))):
        assert (draw_glyphs(request, models).images == images).all()
    assert (np.abs(first[3].astype(int) - plain) <= 1).all()  # step 0 is the base at the run's size, bar rounding
    assert (first[1] != plain).any() and (first[2] != plain).any() and (first[4] != first[0]).any()
    assert (first[1] != first[2]).any()


def test_a_glyph_forms_up_to_its_picture(base):
    few, many = (drawn(base, seeds=(0, 1), sampling=Sampling(steps=steps)) for steps in (3, 30))
    frames, steps = few.forming(1)
    assert steps == [1, 2, 3] and (frames[-1] == few.images[1]).all()
    frames, steps = many.forming(0)
    assert (
        len(frames) == len(steps) == FRAMES_SHOWN and (steps[0], steps[-1]) == (1, 30) and steps == sorted(set(steps))
    )
    assert many.picture().width == few.picture().width and few.picture(1).mode == "P"


def test_the_judge_that_reports_reads_nothing_before_it_explains(base, monkeypatch):
    asked = []
    monkeypatch.setattr(generation, "load_judge", lambda name: asked.append(name) or load_judge(name))
    drawn(base)
    assert asked == [generation.CHOOSER]


# Ranking and describing


def test_the_prompt_names_its_parts():
    assert named_parts("Fire Fish", list(PARTS), PARTS) == ("火", "魚")
    assert named_parts("a king of water and a king", list(PARTS), PARTS) == ("王", "水")
    assert named_parts("water dragon king", list(PARTS), PARTS) == ("鰐", "王")  # the longer name first
    assert named_parts("water", ["江", "水"], PARTS) == ("江",)  # the first of two with that name
    assert named_parts("firefish", list(PARTS), PARTS) == ()


def readings_of(*rows):
    columns = ("parts", "legal", "legal_probability", "exists", "nearest", "codepoint")
    return pd.DataFrame([(*row, "休", "U+4F11") for row in rows], columns=columns)


def test_rejected_come_last_and_the_rest_by_parts_novelty_and_form():
    table = rank_glyphs(
        readings_of(
            (("水", "魚"), False, 0.30, False),  # rejected, although it has both parts
            (("水",), True, 0.99, False),
            (("魚", "水"), True, 0.60, True),
            (("水", "魚"), True, 0.55, False),
            ((), False, 0.40, True),
            (("水",), True, 0.70, False),
        ),
        ("水", "魚"),
    )
    assert list(table["rank"]) == [0, 3, 2, 1, 0, 4]
    assert list(table["order"]) == [5, 2, 1, 0, 4, 3]  # among the rejected, the most nearly well-formed first
    assert list(table["found"]) == [("水", "魚"), ("水",), ("水", "魚"), ("水", "魚"), (), ("水",)]
    assert list(table["rejected"]) == ["not well-formed (0.30)", "", "", "", "not well-formed (0.40)", ""]
    assert placing(table.iloc[0], 7, ("水", "魚")) == "seed 7: rejected by judge A, not well-formed (0.30)"
    assert placing(table.iloc[2], 9, ("水", "魚")) == (
        "seed 9: rank 2, 2 of 2 expected parts (水魚), exists as U+4F11 休, well-formed 0.60"
    )
    assert [short_caption(table.iloc[row], row) for row in (0, 3)] == ["rejected: seed 0", "1. seed 3"]


def test_a_real_character_is_described_as_existing():
    image = np.asarray(draw_font("休", default_font()))
    text = describe(load_judge("B").read(image[None]).iloc[0], {"人": "person", "木": "tree"}, load_characters())
    assert text.startswith("Well-formed (") and "left and right" in text
    assert "人 person (" in text and "木 tree (" in text
    assert "Already exists as U+4F11 休 (rest" in text


def test_noise_is_described_as_not_well_formed():
    noise = np.random.default_rng(0).integers(0, 256, (128, 128), dtype=np.uint8)
    text = describe(load_judge("B").read(noise[None]).iloc[0], {}, load_characters())
    assert text.startswith("Not well-formed (")


# One at a time


def test_turns_are_taken_one_after_the_other(tmp_path):
    order, inside, leave = [], threading.Event(), threading.Event()

    def first():
        with turn(tmp_path / "lock", lambda: None, lambda: order.append("first waits")):
            order.append("first")
            inside.set()
            leave.wait(10)
            order.append("first leaves")

    other = threading.Thread(target=first)
    other.start()
    inside.wait(10)
    with turn(tmp_path / "lock", lambda: None, lambda: (order.append("waits"), leave.set())):
        order.append("second")
    other.join()
    assert order == ["first", "waits", "first leaves", "second"]


def test_a_wait_can_be_ended(tmp_path):
    def stop():
        raise InterruptedError

    with turn(tmp_path / "lock", stop, stop):
        with pytest.raises(InterruptedError), turn(tmp_path / "lock", stop, lambda: None):
            pytest.fail("two at once")


def test_the_lock_of_another_user_can_be_taken(tmp_path, monkeypatch):
    lock, own_files = tmp_path / "lock", os.umask(0o077)
    try:
        with turn(lock, pytest.fail, pytest.fail):
            assert lock.stat().st_mode & 0o777 == 0o644, "for others to read"
    finally:
        os.umask(own_files)
    written_to, taken = [], generation._taken
    monkeypatch.setattr(generation, "_taken", lambda file: written_to.append(file.writable()) or taken(file))
    with turn(lock, pytest.fail, pytest.fail):
        assert written_to == [False], "which others' files do not allow"


# What can draw


def test_runs_and_checkpoints_to_choose_from(runs, tmp_path):
    mine, pack = runs / "mine" / "run", runs / "studies" / "packs" / "0f"
    expected = [("mine, arm 0", (mine, 0)), ("mine, arm 1", (mine, 1))]
    expected += [("studies/packs/0f, arm 0", (pack, 0)), ("studies/packs/0f, arm 1", (pack, 1)), (BASE_ALONE, None)]
    assert run_choices(runs) == expected
    assert run_choices(tmp_path) == run_choices(None) == [(BASE_ALONE, None)]
    steps = RunFolder.open(mine).checkpoints()
    labels = [f"{2 * step} images seen" for step in reversed(steps[1:])] + ["before training"]
    assert checkpoint_choices(mine) == list(zip(labels, reversed(steps), strict=True))


# History


def test_a_history_comes_back_as_it_was(base, tmp_path):
    glyphs = drawn(base, HOSTILE, seeds=(4, 9))
    kept = [kept_glyph(glyphs, 1, "good"), kept_glyph(glyphs, 0, HOSTILE)]
    save_history(kept, tmp_path / "history")
    again = load_history(tmp_path / "history")
    assert [one.request.seeds for one in again] == [(9,), (4,)]
    for before, after in zip(kept, again, strict=True):
        assert after.request == before.request and after.verdict == before.verdict
        assert (after.image == before.image).all()
    assert (draw_glyphs(again[0].request, Models(base)).images[0].astype(int) - kept[0].image <= 1).all()


def damage_picture(folder, entry):
    (folder / entry["file"]).write_bytes(b"no picture")


def remove_picture(folder, entry):
    (folder / entry["file"]).unlink()


def leave_the_folder(folder, entry):
    shutil.move(folder / entry["file"], folder.parent / entry["file"])
    entry["file"] = f"../{entry['file']}"


def blank_the_prompt(folder, entry):
    entry["request"]["prompt"] = " "


def add_a_field(folder, entry):
    entry["request"]["device"] = "x"


@pytest.mark.parametrize(
    "damage",
    [damage_picture, remove_picture, leave_the_folder, blank_the_prompt, add_a_field],
    ids=lambda f: f.__name__,
)
def test_a_damaged_history_is_refused(base, tmp_path, damage):
    path = save_history([kept_glyph(drawn(base), 0, "")], tmp_path / "history")
    content = json.loads(path.read_text())
    damage(tmp_path / "history", content["glyphs"][0])
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=f"{HISTORY}: expected a saved history"):
        load_history(tmp_path / "history")


# The panel


def make_panel(base, runs=None, prompt="water fish", seeds=(0, 1), **options):
    return Playground(runs, ask(base, prompt, seeds=seeds), base=base, **options)


def texts(widget):
    """Every value that a widget and those within it show."""
    own = [
        str(getattr(widget, name))
        for name in ("value", "options", "code", "names", "captions")
        if hasattr(widget, name)
    ]
    return own + [text for child in getattr(widget, "children", ()) for text in texts(child)]


def all_widgets(widget):
    """A widget and all within it."""
    yield widget
    for child in getattr(widget, "children", ()):
        yield from all_widgets(child)


def test_drawing_fills_the_panel(base):
    panel = make_panel(base)
    assert "no trained run" in panel.about.value and "never seen a kanji" not in panel.about.value
    panel.draw()
    assert len(panel.candidates.pictures) == 2 and panel.candidates.choice == 0
    assert len(panel.forming.pictures) == QUICK.steps and panel.forming.choice == QUICK.steps - 1
    assert "2 drawn" in panel.status.value and "rejected" in panel.reasons.value + panel.status.value
    assert "ell-formed" in panel.verdict.value and len(panel.history) == 1
    assert not panel.button.disabled and panel.stop_button.disabled
    wait_for(lambda: "counts as the same character" in panel.verdict.value)
    assert panel.picture().size[0] > 500


def test_the_code_draws_what_is_shown(base):
    panel = make_panel(base)
    panel.draw()
    made = []
    names = {"draw_glyphs": lambda request: made.append(request) or panel, "Request": Request, "Sampling": Sampling}
    eval(panel.code, names | {"Path": Path})
    assert made == [panel.glyphs.request] == [panel.request]


def test_another_candidate_is_explained_when_chosen(base):
    panel = make_panel(base)
    panel.draw()
    last = panel.forming.pictures[-1]
    panel.candidates.selected = 1
    wait_for(lambda: panel.forming.pictures[-1:] not in ([], [last]))
    assert panel.forming.pictures[-1] == panel.candidates.pictures[1]
    panel.forming.selected = 0
    assert "step 1" in panel.enlarged.value


def test_a_run_draws_and_the_checkpoint_counts(base, runs):
    panel = make_panel(base, runs)
    assert panel.request.run is None  # as was asked
    panel.model.index = 0
    panel.checkpoint.index = 0
    assert panel.about.value == ""
    panel.draw()
    trained = panel.glyphs.images
    panel.checkpoint.index = len(panel.checkpoint.options) - 1
    panel.draw()
    assert panel.glyphs.request.step == 0 and (panel.glyphs.images != trained).any()
    assert len(panel.history) == 2
    panel.past.selected = 1  # the older one
    wait_for(lambda: "From the history" in panel.status.value)
    assert panel.request.step == RunFolder.open(runs / "mine" / "run").checkpoints()[-1]
    assert panel.past.choice == 1 and panel.candidates.pictures == []


def test_stop_ends_the_drawing(base, monkeypatch):
    panel = make_panel(base, seeds=tuple(range(8)))
    panel.steps.value = 200
    drawing_began = threading.Event()
    shown = panel._fill
    monkeypatch.setattr(panel, "_fill", lambda *content, **options: (shown(*content, **options), drawing_began.set()))
    panel.start()
    drawing_began.wait(30)
    assert panel.button.disabled and not panel.stop_button.disabled
    panel.stop()
    wait_for(lambda: not panel.button.disabled)
    assert "Stopped" in panel.status.value and panel.glyphs is None and panel.history == []
    panel.steps.value = 2
    panel.draw()
    assert panel.glyphs is not None


def test_a_hostile_prompt_stays_text(base):
    panel = make_panel(base, prompt=HOSTILE)
    panel.draw()
    shown = [panel.verdict, panel.reasons, panel.status, panel.enlarged, panel.about]
    assert "&lt;img" in panel.verdict.value
    assert not any("<img src=x" in widget.value for widget in shown)


def test_what_is_wrong_with_a_request_is_said(base):
    panel = make_panel(base)
    panel.prompt.value = "  "
    panel.start()
    assert "type a prompt first" in panel.status.value and panel.box.code == ""
    with pytest.raises(ValueError, match="type a prompt"):
        panel.draw()


def test_a_wrong_request_after_a_drawing_is_said_too(base):
    panel = make_panel(base)
    panel.draw()
    panel.prompt.value = ""
    with pytest.raises(ValueError, match="type a prompt"):
        panel.draw()


def test_a_kept_glyph_of_a_run_that_is_not_here_says_so(base, runs, tmp_path):
    mine = runs / "mine" / "run"
    here = ask(base, "fish", run=mine, step=RunFolder.open(mine).checkpoints()[-1])
    away = dataclasses.replace(here, run=tmp_path / "elsewhere", step=7)
    save_history([Kept(request, np.zeros((32, 32), np.uint8), "") for request in (here, away)], tmp_path / "kept")
    panel = make_panel(base, runs, history=tmp_path / "kept")
    panel.load()
    for place, hint in enumerate(("is not among the choices here", "Draw draws it again")):  # the latest first
        panel.past.selected = place
        wait_for(lambda hint=hint: hint in panel.status.value)


def test_a_run_is_drawn_by_its_base_in_its_precision(folder, tmp_path, monkeypatch):
    base = load_base(folder, "bf16")
    for _ in train(base, tiny_encoded(base), [Arm(rank=2, images_seen=2)], tmp_path / "run", checkpoints=1):
        pass
    request = ask(base, run=tmp_path / "run")
    models = Models()
    assert models.load(request)[0].precision == "bf16"
    assert models.load(dataclasses.replace(request, run=None, base=str(folder)))[0].precision == "fp32"
    given = load_base(folder)
    assert Models(given).load(request)[0] is given
    assert draw_glyphs(request, models).images.shape == (1, 32, 32), "as large as what was trained on"


def test_the_history_is_saved_and_loaded(base, tmp_path):
    panel = make_panel(base, history=tmp_path / "kept")
    panel.draw()
    panel.save_button.click()
    assert "1 glyphs saved" in panel.status.value
    other = make_panel(base, history=tmp_path / "kept")
    other.load_button.click()
    assert [one.verdict for one in other.history] == [one.verdict for one in panel.history]
    assert other.past.captions == ["water fish"]
    (tmp_path / "kept" / HISTORY).write_text("{}")
    other.load_button.click()
    assert "expected a saved history" in other.status.value


def test_a_public_page_shows_no_code_no_paths_and_no_studies(base, runs):
    panel = make_panel(base, runs, public=True)
    panel.model.index = 0
    panel.draw()
    everything = "\n".join(texts(panel.widget)) + json.dumps(panel._repr_mimebundle_(), default=str)
    assert str(runs) not in everything and "Request(" not in everything and "packs" not in everything
    assert panel.model.options == ("mine, arm 0", "mine, arm 1", BASE_ALONE)
    inside = list(all_widgets(panel.widget))
    assert panel.box not in inside and panel.coining.box not in inside
    assert not any(isinstance(child, widgets.Text) and child.description == "Folder" for child in inside)


def test_a_public_page_neither_saves_nor_loads(base, tmp_path):
    panel = make_panel(base, public=True, history=tmp_path / "kept")
    panel.draw()
    for action in (panel.save, panel.load):
        with pytest.raises(PermissionError, match="neither saves nor loads"):
            action()
    assert not (tmp_path / "kept").exists() and len(panel.history) == 1
    made = [value for value in vars(panel).values() if isinstance(value, widgets.DOMWidget)]
    names = {widget.description for widget in made if hasattr(widget, "description")}
    assert "Draw" in names and not names & {"Folder", "Save history", "Load history"}, "a page reaches hidden ones too"


def test_a_public_page_cannot_lift_the_bounds(base):
    panel = make_panel(base, public=True)
    panel.count.max = panel.steps.max = 10**9  # a page can set any trait of a widget
    panel.count.value = 10**9
    panel.start()
    assert "at most 6 glyphs" in panel.status.value
    panel.count.value, panel.steps.value = 1, 10**6
    panel.start()
    assert "at most 30 steps" in panel.status.value and panel.glyphs is None


def test_a_public_page_does_not_show_what_went_wrong(base, monkeypatch):
    panel = make_panel(base, public=True)
    monkeypatch.setattr(playground, "draw_glyphs", lambda *_: (_ for _ in ()).throw(RuntimeError("/srv/secret")))
    with pytest.raises(RuntimeError):
        panel.draw()
    assert "secret" not in "\n".join(texts(panel.widget)) and "The drawing failed" in panel.status.value
    assert not panel.button.disabled


def test_without_a_request_the_first_run_draws(base, runs):
    assert Playground(runs, base=base).request.run == runs / "mine" / "run"
    alone = Playground(None)  # the writer, which is not loaded before it has to draw
    assert alone.request.run is None and alone.request.base == "writer" and "knows real kanji" in alone.about.value
    assert alone.model.options == (WRITER_ALONE,)
    pocket = Playground(None, base="pocket")
    assert pocket.model.options == (BASE_ALONE,) and "has never seen a kanji" in pocket.about.value
