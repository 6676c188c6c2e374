"""The training panel without a browser: what it reads from a run folder at any moment, and that nothing is lost."""

import asyncio
import dataclasses
import json
import multiprocessing
import os
import shutil
import signal
import threading
import time
from functools import partial

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from kanjilab.core.config import Arm
from kanjilab.core.run_folder import RunError, RunFolder
from kanjilab.data.image_folder import open_dataset
from kanjilab.data.selection import Left16
from kanjilab.experiments import context as lab
from kanjilab.models.loading import load_base
from kanjilab.models.sampling import Sampling, sample
from kanjilab.training import history
from kanjilab.training.cost import Cost, duration
from kanjilab.training.driver import run_training
from kanjilab.training.encoded import encode_dataset
from kanjilab.training.job import TrainingJob
from kanjilab.widgets import TrainingPanel, training, training_job
from kanjilab.widgets.training import as_data, data_from_text, text_from_data
from kanjilab.widgets.training_curves import POINTS_MOST, curve_of
from kanjilab.widgets.training_job import (
    RunState,
    cost_text,
    images_per_second,
    panel_job,
    progress_text,
    read_state,
)
from kanjilab.widgets.worker import Worker, WorkerBusy, find_worker, start_worker
from tests.tiny_study import four_radicals

ARM = Arm(targets="attention", rank=2, batch=2, peak_lr=0.01, images_seen=24)
HOSTILE = "<img src=x onerror=alert(1)>"
KILLS = int(os.environ.get("KANJILAB_KILLS", "2"))  # `make faults` wants more


def make_small(patch):
    patch.setattr(lab, "open_dataset", partial(open_dataset, size_px=32))
    patch.setattr(history, "sample", partial(sample, size_px=32))


@pytest.fixture(autouse=True)
def small(monkeypatch):
    make_small(monkeypatch)


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return four_radicals(tmp_path_factory.mktemp("images") / "four")


@pytest.fixture
def make_panel(folder, images, tmp_path):
    """Builds the panel of one folder, as running its cell again does."""

    def make(place="panel", **changes):
        options = dict(arm=ARM, data=images, base=folder, precision="fp32", checkpoints=2, save_every_seconds=1e9)
        options |= dict(prompts=("water", HOSTILE), sampling=Sampling(steps=1))
        return TrainingPanel(tmp_path / place, **options | changes)

    return make


@pytest.fixture(scope="module")
def finished_folder(folder, images, tmp_path_factory):
    """A panel's folder whose one training is finished."""
    place = tmp_path_factory.mktemp("finished") / "panel"
    with pytest.MonkeyPatch.context() as patch:
        make_small(patch)
        options = dict(arm=ARM, data=images, base=folder, precision="fp32", checkpoints=2, save_every_seconds=1e9)
        panel = TrainingPanel(place, **options, prompts=("water", HOSTILE), sampling=Sampling(steps=1))
        asyncio.run(panel.run_now())
    return place


@pytest.fixture
def make_finished(make_panel, finished_folder, tmp_path):
    """Builds a panel on a copy of that folder."""

    def make():
        if not (tmp_path / "finished").exists():
            shutil.copytree(finished_folder, tmp_path / "finished")
        return make_panel("finished")

    return make


def run_of(panel):
    return RunFolder.open(panel.workshop.run_path(panel.recipe))


def final_weights(run):
    return load_file(run.checkpoint_path(run.checkpoints()[-1]) / "arm_0" / "adapter_model.safetensors")


def assert_same_training(one, other):
    """Bit for bit, except for the seconds."""
    first, second = final_weights(one), final_weights(other)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    logs = [run.read_log().drop(columns="seconds").to_dict("records") for run in (one, other)]
    assert logs[0] == logs[1]


def hold_at(monkeypatch, step):
    """Makes the first worker that has done so many steps wait: an event that it has, and one that lets it go on."""
    reached, leave = threading.Event(), threading.Event()

    def record(self, report):
        original(self, report)
        if report.step == step and not reached.is_set():
            reached.set()
            assert leave.wait(60)

    original = Worker.told_of_step
    monkeypatch.setattr(Worker, "told_of_step", record)
    return reached, leave


def stop_after(monkeypatch, step):
    """Asks the panel's own worker to stop once it has done so many steps."""

    def record(self, report):
        original(self, report)
        if report.step == step:
            self.stop()

    original = Worker.told_of_step
    monkeypatch.setattr(Worker, "told_of_step", record)


# ---------------------------------------------------------------------------------- pure functions


def test_durations_in_words():
    assert [duration(s) for s in (0.4, 59.4, 60, 370, 3600, 7500)] == [
        "0 s",
        "59 s",
        "1 min",
        "6 min 10 s",
        "1 h",
        "2 h 5 min",
    ]


def test_speed_and_time_left_by_hand():
    pace = [(100, 10.0), (150, 11.0), (200, 12.0)]
    assert images_per_second(pace) == 50
    assert progress_text(RunState(images_seen=200, total_images=700), pace) == "50.0 images/s, about 10 s left"
    assert images_per_second(pace[:1]) is None and progress_text(RunState(), []) == ""


def test_cost_counts_what_is_left():
    asked = panel_job(dataclasses.replace(ARM, images_seen=1000, batch=10))
    cost = Cost(seconds_per_step=0.5, gigabytes=1.92)
    assert cost_text(asked, cost, RunState()).startswith("100 steps ≈ 50 s of training, 1.9 GB of memory")
    stopped = RunState(kind="stopped", saved_step=40)
    assert cost_text(asked, cost, stopped).startswith("60 steps ≈ 30 s")
    assert "resumable at step 40" in cost_text(asked, cost, stopped)
    assert "stored" in cost_text(asked, cost, RunState(kind="finished", saved_step=100))
    assert "not measured" in cost_text(asked, None, RunState())


@pytest.mark.parametrize(
    ("given", "held", "text"),
    [
        ("left16", {"name": "left16"}, "left16"),
        ("my images", {"folder": "my images"}, "my images"),
        (Left16(per_radical=4), json.loads(json.dumps(Left16(per_radical=4).to_json())), None),
        ({"name": "seed16"}, {"name": "seed16"}, "seed16"),
    ],
)
def test_data_go_to_text_and_back(given, held, text):
    assert as_data(given) == held
    assert data_from_text(text_from_data(held)) == held
    assert text is None or text_from_data(held) == text


@pytest.mark.parametrize("text", ["", "  ", "{name: left16}"])
def test_text_that_names_no_data_is_refused(text):
    with pytest.raises(ValueError):
        data_from_text(text)


def test_a_recipe_survives_json_and_refuses_epochs():
    made = panel_job(ARM, data={"folder": "x"}, checkpoints=3)
    again = TrainingJob.from_json(json.loads(json.dumps(made.to_json())))
    assert again == made and again.name == made.name
    assert dataclasses.replace(made, checkpoints=4).name != made.name
    with pytest.raises(ValueError, match="images_seen"):
        panel_job(Arm())
    with pytest.raises(ValueError, match="rule name must be one of"):
        TrainingJob(data={"name": "left17"})


# ---------------------------------------------------------------------------------- the writer of a run


def test_a_run_names_the_process_that_writes_it(tmp_path):
    run = RunFolder.create(tmp_path / "run", {})
    assert run.writer() is None
    with run.lock():
        assert run.writer() == str(os.getpid())
        (tmp_path / "run" / ".lock").read_text()
    assert run.writer() is None
    (tmp_path / "run" / ".lock").write_text("4242\n")  # as a killed process leaves it
    assert run.writer() is None
    with run.lock():
        assert run.writer() == str(os.getpid())


# ---------------------------------------------------------------------------------- workers


def test_one_job_a_folder_and_a_stop_at_the_next_safe_moment(tmp_path):
    began = threading.Event()

    def job(worker):
        while True:
            worker.tell("count", 1, 2)
            began.set()
            time.sleep(0.001)

    worker = start_worker(tmp_path, job)
    assert began.wait(10) and find_worker(tmp_path / "." / "") is worker
    with pytest.raises(WorkerBusy, match="count"):
        start_worker(tmp_path, job)
    worker.stop()
    assert worker.join(10) and worker.stopped and worker.error is None
    assert start_worker(tmp_path, lambda worker: None) is not worker


def test_a_failed_job_raises_for_its_waiter(tmp_path):
    def job(worker):
        raise KeyError("lost")

    with pytest.raises(KeyError, match="lost"):
        asyncio.run(start_worker(tmp_path, job).finished())


def test_waiting_leaves_the_loop_free_and_an_interrupt_stops_the_job(tmp_path):
    ticks = []

    def job(worker):
        while True:
            worker.check()
            time.sleep(0.001)

    async def interrupted():
        task = asyncio.ensure_future(start_worker(tmp_path, job).finished())
        for _ in range(3):
            await asyncio.sleep(0.02)
            ticks.append(time.monotonic())
        task.cancel()
        await task

    with pytest.raises(asyncio.CancelledError):
        asyncio.run(interrupted())
    assert len(ticks) == 3
    worker = find_worker(tmp_path)
    assert worker.stopped and not worker.alive


# ---------------------------------------------------------------------------------- the panel


def test_a_panel_trains_as_the_plain_call_does(make_panel, folder, images, tmp_path):
    panel = make_panel()
    assert (panel.start_button.description, panel.state.kind) == ("Start", "new")
    assert panel.stop_button.disabled and "not measured" in panel.cost.value
    asyncio.run(panel.run_now())
    assert (panel.start_button.description, panel.state.kind) == ("Load", "finished")
    base = load_base(folder, "fp32")
    data = encode_dataset(base, open_dataset(images, size_px=32).split("train"))
    plain = run_training(base, data, [ARM], tmp_path / "plain", 2, progress=False)
    assert_same_training(run_of(panel), plain)  # so the strip that was drawn meanwhile changed nothing
    assert panel.state.images_seen == 24
    assert "24 of 24 images" in panel.status.value and 'value="24" max="24"' in panel.progress.value


def test_the_strip_has_a_column_for_each_checkpoint_and_grows(make_panel, monkeypatch):
    widths = []
    write = RunFolder.write_samples

    def record(run, name, pixels, facts):
        widths.append((len(pixels), facts["steps"]))
        return write(run, name, pixels, facts)

    monkeypatch.setattr(RunFolder, "write_samples", record)
    panel = make_panel()
    asyncio.run(panel.run_now())
    columns = run_of(panel).checkpoints()
    assert columns[0] == 0 and columns[-1] == 12 and len(columns) == 3
    assert widths == [(1, columns[:1]), (2, columns[:2]), (3, columns)]
    images, facts = panel.workshop.strip(panel.recipe, panel.drawing)
    assert images.shape[:3] == (3, 2, 1) and facts["prompts"] == ["water", HOSTILE]
    assert (images[0] != images[-1]).any()


def test_hostile_names_stay_text(make_finished):
    panel = make_finished()
    shown = panel.strip.value + panel.cost.value + panel.progress.value
    assert HOSTILE not in shown and "&lt;img src=x onerror=alert(1)&gt;" in panel.strip.value
    panel.inputs["data"].value = HOSTILE
    panel.inputs["base"].value = HOSTILE
    with pytest.raises(Exception, match="onerror"):
        asyncio.run(panel.run_now())
    assert "Failed" in panel.status.value and "onerror" in panel.status.value, "which is shown as text"


def test_stop_leaves_a_checkpoint_and_a_new_panel_goes_on(make_panel, make_finished, monkeypatch):
    whole = make_finished()
    panel = make_panel()
    with monkeypatch.context() as patch:
        stop_after(patch, 5)
        asyncio.run(panel.run_now())
    assert (panel.state.kind, panel.state.saved_step, panel.start_button.description) == ("stopped", 5, "Resume")
    assert "10 of 24 images" in panel.status.value
    again = make_panel()
    assert again.start_button.description == "Resume" and "resumable at step 5" in again.cost.value
    asyncio.run(again.run_now())
    assert again.state.kind == "finished"
    assert_same_training(run_of(again), run_of(whole))


def test_what_is_finished_is_loaded_not_trained(make_finished, monkeypatch):
    monkeypatch.setattr(training_job, "measure_steps", lambda *_: pytest.fail("measured again"))
    monkeypatch.setattr(history, "sample", lambda *_, **__: pytest.fail("drawn again"))
    panel = make_finished()
    assert panel.strip.value and panel.curves.runs  # shown before anything is pressed
    before = {path: path.stat().st_mtime_ns for path in run_of(panel).path.rglob("*") if path.suffix}
    asyncio.run(panel.run_now())
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_a_panel_built_again_finds_the_training_of_this_kernel(make_panel, monkeypatch):
    reached, leave = hold_at(monkeypatch, 3)
    panel = make_panel()
    worker = panel.start()
    assert reached.wait(60)
    again = make_panel()
    assert again.worker is worker
    assert (again.start_button.description, again.start_button.disabled) == ("Running", True)
    assert not again.stop_button.disabled and "In this kernel: train" in again.status.value
    assert 'value="6" max="24"' in again.progress.value
    with pytest.raises(WorkerBusy):
        again.start()
    again.stop()
    assert "it stops at the next safe moment" in again.status.value
    leave.set()
    asyncio.run(panel.finished())
    assert panel.state.saved_step == 3


def test_changed_settings_are_another_training_and_both_are_found_again(make_panel, make_finished):
    make_panel = partial(make_panel, "finished")
    panel = make_finished()
    panel.inputs["rank"].value = 3
    assert (panel.recipe.arm, panel.start_button.description) == (dataclasses.replace(ARM, rank=3), "Start")
    panel.inputs["alpha"].value = "many"
    assert panel.start_button.disabled and "Not possible" in panel.status.value
    panel.inputs["alpha"].value = ""
    asyncio.run(panel.run_now())
    again = make_panel()  # the same cell, run again: what was shown last
    assert again.recipe.arm.rank == 3 and again.inputs["rank"].value == 3
    assert len(again.runs.options) == 2
    again.runs.value = again.asked.name
    assert again.recipe.arm.rank == 2 and again.state.kind == "finished"
    other = make_panel(arm=dataclasses.replace(ARM, rank=1))  # the cell itself was changed
    assert other.recipe.arm.rank == 1


@pytest.mark.parametrize("rule", ['{"name":"only","rule":"left16","radicals":[85]}', '{"name":["x"]}'])
def test_a_rule_that_is_none_cannot_be_started(make_panel, rule):
    panel = make_panel()
    panel.inputs["data"].value = rule
    assert panel.start_button.disabled and "expected a rule as {'name': ...}" in panel.status.value
    panel.inputs["data"].value = "left16"
    assert not panel.start_button.disabled and panel.recipe.data == {"name": "left16"}


def test_settings_that_the_inputs_cannot_show_are_kept(make_panel):
    arm = Arm(seed=2**40, rank=8192, alpha=1.23456789, images_seen=100)
    panel = make_panel(arm=arm)
    panel.inputs["batch"].value = 4
    assert panel.recipe.arm == dataclasses.replace(arm, batch=4)
    panel.inputs["rank"].value = 8
    assert panel.recipe.arm == dataclasses.replace(arm, batch=4, rank=8)
    panel.inputs["batch"].value = 1
    assert panel.recipe.arm == dataclasses.replace(arm, rank=8), "back to what it was"


def test_a_text_encoder_alone_can_be_trained(make_panel):
    panel = make_panel(arm=Arm(targets="none", text_encoder="full", images_seen=24))
    assert panel.inputs["targets"].value == "none"
    panel.inputs["targets"].value = "all"
    assert (panel.recipe.arm.targets, panel.recipe.arm.text_encoder) == ("all", "full")


def test_a_folder_that_cannot_be_written_is_said(make_panel, tmp_path):
    (tmp_path / "file").touch()
    panel = make_panel("file/panel")
    panel.start()
    with pytest.raises(NotADirectoryError):
        asyncio.run(panel.finished())
    assert panel.status.value.startswith("Failed: NotADirectoryError")


def test_a_job_that_is_being_written_is_not_listed(make_panel, tmp_path):
    panel = make_panel()
    panel.workshop.keep(panel.recipe, panel.asked)
    (tmp_path / "panel" / "runs" / ".tmp_1_2_x.json").symlink_to("gone")  # as a file that goes while it is looked at
    assert panel.workshop.jobs() == [panel.recipe]


def test_of_two_trainings_of_a_panel_one_waits_for_the_other(make_panel, folder, images, tmp_path, monkeypatch):
    reached, leave = hold_at(monkeypatch, 1)
    panel = make_panel()
    first = panel.start()
    assert reached.wait(60)
    panel.inputs["seed"].value = 1
    second = panel.start()
    end = time.monotonic() + 30
    while "wait for" not in second.stage and time.monotonic() < end:
        time.sleep(0.02)
    assert "wait for this panel's other job" in second.stage
    leave.set()
    assert first.join(60) and second.join(60) and (first.error, second.error) == (None, None)
    base = load_base(folder, "fp32")
    data = encode_dataset(base, open_dataset(images, size_px=32).split("train"))
    for seed in (0, 1):
        arm = dataclasses.replace(ARM, seed=seed)
        plain = run_training(base, data, [arm], tmp_path / f"plain {seed}", 2, progress=False)
        job = dataclasses.replace(panel.asked, arms=(arm,))
        assert_same_training(RunFolder.open(panel.workshop.run_path(job)), plain)


def test_the_code_does_the_same_training(make_panel):
    panel = make_panel()
    words = {}
    exec(panel.code, words)
    assert words["run"].path == panel.workshop.run_path(panel.recipe)
    assert make_panel().state.kind == "finished"


def test_measuring_trains_nothing_and_is_remembered(make_panel):
    panel = make_panel()
    asyncio.run(panel.measure().finished())
    panel.refresh()
    assert panel.state.kind == "new" and "12 steps ≈" in panel.cost.value and "GB" in panel.cost.value
    assert panel.cost_button.disabled
    panel.inputs["images_seen"].value = 48
    assert "24 steps ≈" in panel.cost.value, "a longer training has the same steps"
    panel.inputs["rank"].value = 3
    assert "not measured" in panel.cost.value
    assert "12 steps ≈" in make_panel().cost.value


def test_the_picture_shows_curves_and_strip(make_panel, make_finished):
    with pytest.raises(ValueError, match="nothing is logged yet"):
        make_panel().picture()
    panel = make_finished()
    picture, curves = panel.picture(), training.draw_curves(run_of(panel).read_log())
    assert picture.width == round(curves.get_figwidth() * curves.dpi)
    assert picture.height > curves.get_figheight() * curves.dpi + 2 * 96, "two rows of the strip below the curves"
    assert len(set(np.asarray(picture.convert("RGB")).reshape(-1, 3).sum(axis=1))) > 20


# ---------------------------------------------------------------------------------- killed at any moment


@pytest.fixture(scope="module")
def processes():
    """Processes that start from a server which has imported everything: torch does not survive a plain fork."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["kanjilab.widgets.training", "tests.tiny_study", __name__])
    return context


LONG = dataclasses.replace(ARM, images_seen=240)
MOST_STEPS_OF_A_LIFE = 9
STEP_SECONDS = 0.05  # at least: some lives reach the first save, and steps lie between two, on a fast machine too


def live(place, base, images, diary):
    """A kernel's life: the panel is built, and trains. Each step is written to the diary."""
    torch.set_num_threads(1)
    make_small(pytest.MonkeyPatch())
    record = Worker.told_of_step

    def telling(self, report):
        record(self, report)
        with open(diary, "a") as file:
            file.write(f"{report.step} {int(report.checkpoint)}\n")
        time.sleep(STEP_SECONDS)

    Worker.told_of_step = telling
    panel = TrainingPanel(
        place, arm=LONG, data=images, base=base, precision="fp32", checkpoints=3, prompts=["water"],
        sampling=Sampling(steps=1), save_every_seconds=0.2,
    )  # fmt: skip
    asyncio.run(panel.run_now())


def read_diary(path):
    """(step, whether it was saved) of each step that a life did."""
    lines = path.read_text().split("\n")[:-1] if path.exists() else []
    return [(int(step), saved == "1") for step, saved in (line.split() for line in lines)]


def test_killed_again_and_again_nothing_but_the_last_steps_is_lost(processes, make_panel, folder, images, tmp_path):
    rng = np.random.default_rng(0)
    there = dict(arm=LONG, checkpoints=3, prompts=["water"], save_every_seconds=0.2)
    saved_before, lost = 0, []
    for number in range(KILLS):
        diary = tmp_path / f"diary-{number}"
        life = processes.Process(target=live, args=(tmp_path / "panel", folder, images, diary))
        life.start()
        end = time.monotonic() + 60
        wanted = rng.integers(1, MOST_STEPS_OF_A_LIFE) if number % 3 else 0  # every third dies while it begins
        while len(read_diary(diary)) < wanted and time.monotonic() < end:
            time.sleep(0.002)
        time.sleep(rng.uniform(0, 0.05 if wanted else 0.6))
        life.kill()
        life.join()
        assert life.exitcode == -signal.SIGKILL, "the training was over before it could be killed"
        panel = make_panel(**there)  # it opens, whatever was being written
        state, steps = panel.state, read_diary(diary)
        assert panel.start_button.description == ("Start" if state.kind == "new" else "Resume")
        assert panel.strip.value or state.saved_step == 0 or number == 0
        if steps:
            assert steps[0][0] == saved_before + 1, "it went on where the last checkpoint was"
        assert state.saved_step >= max([saved_before, *(step for step, saved in steps if saved)])
        lost.append(max([0, *(step for step, _ in steps)]) - state.saved_step)
        saved_before = state.saved_step
    assert 0 < saved_before < LONG.images_seen / LONG.batch
    asyncio.run(panel.run_now())
    whole = make_panel("whole", **there)
    asyncio.run(whole.run_now())
    assert panel.state.kind == "finished"
    assert_same_training(run_of(panel), run_of(whole))
    print(f"lost after each of {KILLS} kills, in steps: {lost}")


def test_a_run_that_goes_on_in_another_process_is_shown_and_stopped(processes, make_panel, folder, images, tmp_path):
    diary = tmp_path / "diary"
    life = processes.Process(target=live, args=(tmp_path / "panel", folder, images, diary))
    life.start()
    while len(read_diary(diary)) < 12:
        time.sleep(0.005)
    panel = make_panel(arm=LONG, checkpoints=3, prompts=["water"])
    assert panel.start_button.disabled and panel.worker is None
    assert f"Going on in process {life.pid}" in panel.status.value
    assert panel.state.step >= 10, "the log tells more than the checkpoints"
    panel.stop()
    asyncio.run(panel.finished())
    life.join(30)
    assert life.exitcode == 0
    assert panel.state.kind == "stopped" and panel.start_button.description == "Resume"
    assert panel.state.saved_step >= read_diary(diary)[-1][0]


@pytest.mark.parametrize("left", ["nothing", "an empty folder", "a lock alone", "no checkpoint", "half a checkpoint"])
def test_whatever_a_killed_beginning_leaves_can_be_opened_and_gone_on_with(make_panel, make_finished, left):
    panel = make_panel()
    path = panel.workshop.run_path(panel.recipe)
    if left != "nothing":
        path.mkdir(parents=True)
    if left == "a lock alone":
        (path / ".lock").write_text("1\n")
    if left in ("no checkpoint", "half a checkpoint"):
        RunFolder.create(path, run_of(make_finished()).settings)
        if left == "half a checkpoint":
            half = path / "checkpoints" / ".tmp_1_step_000000"
            half.mkdir()
            (half / "state.json").write_text("{")
            (path / "log.jsonl").write_text('{"step": 1, "ima')
    again = make_panel()
    assert again.state.kind in ("new", "stopped") and again.state.saved_step == 0
    asyncio.run(again.run_now())
    assert again.state.kind == "finished"


def test_damaged_settings_are_named(make_finished):
    path = run_of(make_finished()).path
    (path / "settings.json").write_text("{")
    with pytest.raises(RunError, match="settings.json"):
        read_state(path)


def test_a_curve_is_thinned_and_says_nothing_of_what_is_not_finite():
    log = pd.DataFrame({"images_seen": [[8], [16], [None], [24]], "loss": [[1.0], [float("nan")], [None], [0.5]]})
    curve = curve_of("a", "first", log)
    assert curve == {"name": "a", "label": "first", "seen": [8, 16, 24], "loss": [1.0, None, 0.5]}
    assert curve_of("a", "first", log.iloc[:0]) is None and curve_of("a", "first", log.iloc[2:3]) is None
    long = pd.DataFrame({"images_seen": range(1, 5001), "loss": 1.0})
    assert len(curve_of("a", "first", long)["seen"]) == 1667 <= POINTS_MOST  # every third


def test_the_settings_are_folded_once_something_has_begun(make_panel, make_finished):
    panel = make_panel()
    assert panel._settings_button.opened and panel.inputs["rank"].description == "LoRA rank"
    assert (
        panel.inputs["peak_lr"].tooltip.startswith("peak_lr") and panel.inputs["checkpoints"].tooltip == "checkpoints"
    )
    finished = make_finished()
    assert not finished._settings_button.opened
    assert [curve["name"] for curve in finished.curves.runs] == [finished.recipe.name]
