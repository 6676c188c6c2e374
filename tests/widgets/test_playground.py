"""The playground: requests, how glyphs are ranked and described, the history, and the panel itself."""

import base64
import contextlib
import dataclasses
import json
import os
import re
import shutil
import threading
import time
from functools import partial
from pathlib import Path

import ipywidgets as widgets
import numpy as np
import pandas as pd
import pytest
from traitlets import TraitError

from kanjilab.core.config import Arm
from kanjilab.core.run_folder import RunFolder, find_runs
from kanjilab.data.dictionary import load_characters
from kanjilab.data.part_names import part_names
from kanjilab.data.rendering import default_font, draw_font
from kanjilab.evaluation.judges.part_judge import load_judge
from kanjilab.evaluation.scoring import glyphs_of
from kanjilab.models.loading import load_base
from kanjilab.models.sampling import Sampling, sample
from kanjilab.training.loop import train
from kanjilab.training.presets import DEMO_SAMPLING
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
    draw_glyphs,
    glosses,
    named_parts,
    rank_glyphs,
    run_choices,
    turn,
)
from kanjilab.widgets.prompt_words import prompt_note, token_count, unknown_words
from kanjilab.widgets.saved_glyphs import HISTORY, Kept, kept_glyph, load_history, save_history
from kanjilab.widgets.share_link import query_of, request_of_query
from kanjilab.widgets.verdict import advice, caption_of, describe, made_of, verdict_html
from tests.tiny import tiny_encoded

QUICK = Sampling(steps=3)
HOSTILE = "<img src=x onerror=alert(1)>"
NAMES = [("水", "water"), ("火", "fire"), ("魚", "fish"), ("王", "king"), ("鰐", "water dragon"), ("江", "water")]
PARTS = {part: (name,) for part, name in NAMES}


@pytest.fixture(autouse=True)
def small(monkeypatch, tmp_path):
    """Small pictures, and a lock of this test alone."""
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
        (Request("a", tuple(range(9))), "at most 8 glyphs, got 9"),
    ],
)
def test_public_requests_are_bounded(request_, message):
    with pytest.raises(ValueError, match=message):
        PUBLIC.check(request_)
    fitting = Request("x" * 100, tuple(range(8)), Sampling(steps=30, guidance=15))
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
    assert named_parts("fire", [], PARTS) == ()


def test_every_name_that_the_writer_was_taught_means_its_part_whatever_the_dictionary_calls_others():
    parts = load_judge("B").parts
    assert glosses()["隹"] == "bird" and parts.index("隹") < parts.index("鳥")
    for part in set(parts) & part_names().keys():
        for name in part_names()[part]:
            assert named_parts(name, parts) == (part,), name


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


def drawn_character(character):
    return np.asarray(draw_font(character, default_font()))


def reading_of(image):
    return load_judge("B").read(image[None]).iloc[0]


def test_a_real_character_is_described_as_existing():
    reading = reading_of(drawn_character("休"))
    text = describe(reading, load_characters(), "B", ("人", "水"))
    assert re.match(r"Judge B reads 人 person \(.*\) and 木 tree \(.*\), left and right; well-formed \(", text)
    assert "It takes the glyph for U+4F11 休 (rest" in text
    assert text.endswith("Of the parts asked for (人 水) it reads 1 of 2.")
    assert caption_of(reading) == "✓ 人 木"


def test_noise_is_described_as_not_well_formed():
    noise = np.random.default_rng(0).integers(0, 256, (128, 128), dtype=np.uint8)
    text = describe(reading_of(noise), load_characters(), "B")
    assert text.startswith("Judge B reads ") and "; not well-formed (" in text and "asked for" not in text
    assert caption_of(reading_of(noise)).startswith("✗ ")


def test_a_verdict_is_one_judges_and_carries_its_certificate():
    image = drawn_character("休")
    text = describe(reading_of(image), load_characters(), "B")
    page = verdict_html(load_judge("B"), image, text, made_of(Request(HOSTILE, (7,)), "mine"))
    assert page.count("<rect") == 2 and HOSTILE not in page and page.count("Judge") == 1 + page.count('alt="')
    data = re.search(r'download="[^"]*-7\.json" href="data:application/json;base64,([^"]*)"', page)
    certificate = json.loads(base64.b64decode(data[1]))
    assert [part["part"] for part in certificate["parts"]] == ["人", "木"] and certificate["exists"]
    assert certificate["made"]["prompt"] == HOSTILE and certificate["nearest"][0]["character"] == "休"


def readings_with(*rows):
    return pd.DataFrame(rows, columns=("legal", "parts"))


def test_where_nothing_passed_it_says_what_to_try():
    formed, broken = (True, ("水",)), (False, ("水", "魚"))
    assert advice(readings_with(formed, broken), (), True, False) == "2 drawn; judge B reads 1 as well-formed."
    assert advice(readings_with(formed, broken), ("水",), True, False).endswith("well-formed.")
    none = advice(readings_with(broken, broken), (), True, False)
    assert none.endswith("None passed. Try Other noises or parts by name, such as “water + bird”.")
    earlier = advice(readings_with(formed), ("水", "魚"), False, True)
    assert "None shows all of 水 魚. Try Other noises, a later checkpoint, fewer words or another guidance" in earlier


# What is read of a prompt


def test_unknown_words_are_named():
    assert unknown_words("Blorpt king of the left: water") == ("blorpt",)
    assert unknown_words("blorpt 火の玉, zzyx blorpt") == ("blorpt", "zzyx")
    assert prompt_note("king", (3, 32), True) == "3 of 32 tokens."
    assert prompt_note("水", (3, 32), True) == "Read as Japanese. 3 of 32 tokens."
    assert "Latin letters too." in prompt_note("blorpt 水", None, True)
    assert prompt_note("blorpt", None, False) == "", "a large base knows words that no caption has"


def test_tokens_are_those_of_the_base(base):
    count, most = token_count("water", base)
    assert most == base.text.shape[0] == len(base.text.tokenizer("", padding="max_length").input_ids)
    assert token_count("water water", base)[0] > count
    assert token_count("water " * 200, base)[0] > most
    assert "only the first 32 are read" in prompt_note("x", (40, 32), True)


# Links


def test_a_link_opens_what_it_was_made_from(tmp_path):
    choices = [("mine", (tmp_path / "mine", 1)), (BASE_ALONE, None)]
    sampling = Sampling("ddim", 7, 2.5, "no dots", "ink, ")
    request = Request(f"{HOSTILE} & 水=1", (40, 41), sampling, tmp_path / "mine", "b", 1, 400, ("水", "木"))
    query = query_of(request, "mine")
    assert str(tmp_path) not in query and "<" not in query
    assert request_of_query(query, choices, Request("other", base="b")) == request
    assert request_of_query("seed=5", choices, Request("a", (1, 2))).seeds == (5, 6)
    assert len(request_of_query("glyphs=999999999", choices, Request("a")).seeds) <= 1000


@pytest.mark.parametrize(
    "query",
    ["model=other", "seed=x", "sampler=none", "prompt=+", "seed=-1", "a=1&" * 30]
    + ["prompt=fire&seed=3000000000", "prompt=fire&step=777"],
)
def test_a_wrong_link_is_refused(base, query):
    panel = make_panel(base, query=query)
    assert panel._worker is None and "This link cannot be opened" in panel.status.value
    assert panel.prompt.value == "water fish"


def test_a_link_is_drawn_at_once_and_within_the_bounds(base):
    panel = make_panel(base, query="prompt=fire&seed=7&glyphs=1&steps=2", public=True)
    panel._worker.join(60)
    assert panel.glyphs.request.prompt == "fire" and panel.glyphs.request.seeds == (7,)
    assert "at most 30 steps" in make_panel(base, query="steps=31", public=True).status.value


def test_a_link_to_a_run_opens_its_checkpoint_or_nothing(base, runs):
    steps = RunFolder.open(runs / "mine" / "run").checkpoints()
    for asked, step in (("", steps[-1]), (f"&step={steps[0]}", steps[0])):
        panel = make_panel(base, runs, query=f"model=mine, arm 1&glyphs=1&steps=2&parts=水 木{asked}")
        panel._worker.join(60)
        assert (panel.glyphs.request.arm, panel.glyphs.request.step) == (1, step)
    for wrong in ("step=777", "sampler=flow-euler"):
        panel = make_panel(base, runs, query=f"model=mine, arm 1&{wrong}")
        assert panel._worker is None and "seed, checkpoint or sampler" in panel.status.value
        assert panel.request == make_panel(base, runs).request


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


def test_a_pipe_in_place_of_the_lock_is_no_wait(tmp_path):
    os.mkfifo(tmp_path / "lock")
    with pytest.raises(OSError, match="lock"), turn(tmp_path / "lock", lambda: None, lambda: None):
        pytest.fail("a turn of a pipe")


def test_a_wait_can_be_ended(tmp_path):
    def stop():
        raise InterruptedError

    with turn(tmp_path / "lock", stop, stop):
        with pytest.raises(InterruptedError), turn(tmp_path / "lock", stop, lambda: None):
            pytest.fail("two at once")


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
    assert "2 drawn; judge B reads" in panel.status.value
    assert "Judge B reads" in panel.verdict.value and len(panel.history) == 1
    assert not panel.button.disabled and panel.stop_button.disabled
    assert not re.search("[Jj]udge A|rejected", "\n".join(texts(panel.widget))), "one judge speaks, so none contradicts"
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
    wait_for(lambda: "From the gallery" in panel.status.value)
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
    shown = [panel.verdict, panel.enlarged]
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


def test_a_gallery_that_is_saved_again_keeps_what_is_there(base, tmp_path):
    glyphs = drawn(base, seeds=(0, 1, 2, 3, 4, 5))
    kept = [kept_glyph(glyphs, index, "") for index in range(6)]
    for some in (kept[:5], kept[5:], kept[1:2]):
        save_history(some, tmp_path / "kept")
    again = load_history(tmp_path / "kept")
    assert [one.request.seeds for one in again] == [(0,), (2,), (3,), (4,), (5,), (1,)], "the latest last, each once"
    (tmp_path / "kept" / HISTORY).write_text("{}")
    panel = make_panel(base, history=tmp_path / "kept")
    panel.save_button.click()
    assert "save in another folder" in panel.status.value
    assert (tmp_path / "kept" / HISTORY).read_text() == "{}"


def test_a_public_page_shows_no_code_no_paths_and_no_studies(base, runs):
    panel = make_panel(base, runs, public=True)
    panel.model.index = 0
    panel.draw()
    everything = "\n".join(texts(panel.widget)) + json.dumps(panel._repr_mimebundle_(), default=str)
    assert str(runs) not in everything and "Request(" not in everything and "packs" not in everything
    assert panel.model.options == ("mine, arm 0", "mine, arm 1", BASE_ALONE)
    inside = list(all_widgets(panel.widget))
    assert not {panel.box, panel.coining.box, panel.brush.box} & set(inside)
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
    assert "Draw" in names and not names & {"Folder", "Save gallery", "Load gallery"}, "a page reaches hidden ones too"


def test_a_public_page_cannot_lift_the_bounds(base):
    panel = make_panel(base, public=True)
    panel.count.max = panel.steps.max = 10**9  # a page can set any trait of a widget
    panel.count.value = 10**9
    panel.start()
    assert "at most 8 glyphs" in panel.status.value
    panel.count.value, panel.steps.value = 1, 1_000
    panel.start()
    assert "at most 30 steps" in panel.status.value and panel.glyphs is None


MADE_UP = {  # what a page may send of a menu
    "more choices": {"_options_labels": ["a", "b", "c", "d"], "index": 3},
    "choices without end": {"_options_labels": ["a"] * 100_000, "index": 99_999},
    "one choice": {"_options_labels": ["a"], "index": 0},
    "no choices": {"_options_labels": []},
    "none chosen": {"index": None},
    "one beyond the last": {"index": 77},
    "one before the first": {"index": -5},
    "one by a word": {"index": "first"},
}


@pytest.mark.parametrize("name", MADE_UP)
def test_models_and_checkpoints_that_a_page_made_up_are_held_within_those_that_are_here(base, runs, name):
    panel = make_panel(base, runs, public=True)
    for choice in (panel.model, panel.checkpoint):
        with contextlib.suppress(TraitError, IndexError):  # of ipywidgets, which logs them
            choice.set_state(dict(MADE_UP[name]))
    assert panel.request.run in (None, *(run.path for run in find_runs(runs)))
    assert panel.request.step in (None, *(step for run in find_runs(runs) for step in run.checkpoints()))


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


def test_the_first_screen_asks_for_a_prompt_alone(base):
    panel = Playground(None)
    assert len(panel.request.seeds) == 8
    assert [chip.description for chip in panel.examples.children[1:]] == list(playground.WRITER_EXAMPLES)
    hidden = [widget for widget in all_widgets(panel.widget) if widget.layout.display == "none"]
    folded_away = {child for widget in hidden for child in all_widgets(widget)}
    inputs = {widget for widget in all_widgets(panel.widget.children[1].children[0]) if hasattr(widget, "value")}
    asked = [widget.description for widget in inputs - folded_away if getattr(widget, "description", "")]
    assert asked == ["Prompt"]


def test_examples_that_name_parts_are_drawn_with_them():
    asked = {"water + bird": {"水", "鳥"}, "woman + eye": {"女", "目"}, "top: bamboo, bottom: eye": {"竹", "目"}}
    assert set(asked) == {text for text in playground.WRITER_EXAMPLES if "+" in text or ":" in text}
    drawn = sample(load_base("writer", "bf16"), list(asked), [0, 1, 2], DEMO_SAMPLING)[0]
    seen = load_judge("B").read(glyphs_of(drawn))["parts"].tolist()
    for number, parts in enumerate(asked.values()):
        assert sum(parts <= set(found) for found in seen[3 * number : 3 * number + 3]) >= 2


def test_an_example_is_drawn_and_other_noises_change_the_seed(base):
    panel = make_panel(base, seeds=(0,))
    panel.examples.children[1].click()
    panel._worker.join(60)
    assert panel.glyphs.request.prompt == playground.EXAMPLES[0] and panel.glyphs.request.seeds == (0,)
    wait_for(lambda: "tokens" in panel.note.value)
    panel.random_button.click()
    panel._worker.join(60)
    assert panel.glyphs.request.seeds == (panel.seed.value,) != (0,)
