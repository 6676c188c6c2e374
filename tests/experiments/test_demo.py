"""The main job on a tiny base: all files, true numbers, and no work done twice."""

import dataclasses
import json
import signal
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from kanjilab.core.config import Arm
from kanjilab.core.run_folder import RunFolder
from kanjilab.data import build, prompts
from kanjilab.data.dictionary import load_characters
from kanjilab.data.image_folder import open_dataset
from kanjilab.data.radicals import RADICALS16, left_radical
from kanjilab.data.selection import Left16
from kanjilab.evaluation.scoring import caption_prompts
from kanjilab.experiments import demo
from kanjilab.experiments.demo import report_table, run_demo
from kanjilab.models.sampling import Sampling
from kanjilab.training import driver, loop
from kanjilab.training.driver import run_training
from kanjilab.training.loop import train
from kanjilab.training.presets import DEMO_ARM, SCALES, Scale
from kanjilab.training.trainer import Trainer
from tests.tiny import save_tiny_pipeline, tiny_encoded

FILES = ["strip.png", "strip.json", "queen.gif", "queen.json", "loss.png", "loss.json", "report.json"]
ARM = Arm(targets="attention", rank=2, batch=4, peak_lr=0.01)
SCALE = Scale(images_seen=24, checkpoints=2, captions_per_radical=1, seeds=2)


class WaterJudge:
    """Sees water everywhere."""

    def read(self, images):
        return pd.DataFrame({"radical": ["水"] * len(images), "probability": 0.9, "abstain": False})


def few_characters() -> pd.DataFrame:
    """Six everyday characters of each of the sixteen radicals, so that drawing them takes no time."""
    table = load_characters()
    table = table[table["jis_order"].notna() & table["meanings"].map(bool)].sort_values("jis_order")
    table = table[[left_radical(row) in RADICALS16 for row in table.itertuples()]]
    return table.groupby("radical").head(6)


@pytest.fixture(scope="module")
def base_folder(tmp_path_factory):
    return save_tiny_pipeline(tmp_path_factory.mktemp("tiny") / "base")


@pytest.fixture(scope="module")
def doubles():
    """Few characters and a judge that needs no fitting."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(build, "load_characters", few_characters)
        patch.setattr(demo.RadicalJudge, "load_or_fit", lambda cache: WaterJudge())
        yield patch


def contents(folder: Path) -> dict[str, tuple[int, bytes]]:
    """When each file was written, and what it holds; the lock apart, which says who was last."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != ".lock"]
    return {str(path.relative_to(folder)): (path.stat().st_mtime_ns, path.read_bytes()) for path in files}


@dataclasses.dataclass
class Calls:
    """Three calls into one folder: interrupted, to the end, and once more."""

    folder: Path
    interruption: BaseException
    steps: list[list[int]]
    reports: list[dict]
    left: list[dict[str, tuple[int, bytes]]]

    @property
    def run(self):
        return RunFolder.open(self.folder / "run")


@pytest.fixture(scope="module")
def calls(base_folder, doubles, tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo") / "demo"
    steps, reports, left = [[], [], []], [], []

    def call(number):
        def watched(*arguments, **options):
            for report in train(*arguments, **options):
                steps[number].append(report.step)
                yield report

        doubles.setattr(driver, "train", watched)
        options = dict(rule=Left16(per_radical=2), base_name=str(base_folder), precision="fp32")
        reports.append(run_demo(folder, arm=ARM, scale=SCALE, sampling=Sampling(steps=1, guidance=1.0), **options))
        left.append(contents(folder))

    with pytest.MonkeyPatch.context() as patch:
        tracked = driver._tracked

        def interrupt(report):
            if report.step == 2:
                raise KeyboardInterrupt
            return tracked(report)

        patch.setattr(driver, "_tracked", interrupt)
        # A notebook keeps the exception, and with it every frame that it went through.
        with pytest.raises(KeyboardInterrupt) as caught:
            call(0)
    call(1)
    call(2)
    return Calls(folder, caught.value, steps, reports, left)


def test_an_interrupted_training_goes_on_and_a_finished_one_is_left_alone(calls):
    assert calls.steps == [[1, 2], [3, 4, 5, 6], []]
    assert calls.run.checkpoints()[-1] == 6
    assert calls.run.read_log()["step"].iloc[-1] == 6


def test_a_second_call_changes_no_file(calls):
    assert calls.left[1].keys() == calls.left[0].keys()
    assert [name for name, file in calls.left[0].items() if calls.left[1][name] != file] == []
    assert calls.reports[1] == calls.reports[0]


def test_all_files_are_there(calls):
    assert {path.name for path in calls.folder.iterdir()} == {"data", "run", *FILES}
    assert [name for name in FILES if not (calls.folder / name).stat().st_size] == []
    with Image.open(calls.folder / "queen.gif") as animation:
        assert animation.n_frames == 3


def test_the_report_agrees_with_log_settings_and_data(calls):
    report, log = calls.reports[0], calls.run.read_log()
    assert report == json.loads((calls.folder / "report.json").read_text()) == demo.read_report(calls.folder)
    assert report["settings"] == calls.run.settings
    assert report["run"] == calls.run.settings["hash"]
    assert report["settings"]["arms"] == [dataclasses.replace(ARM, images_seen=24).to_json()]
    assert report["images_seen"] == log["images_seen"].iloc[-1][0] == 24
    assert report["images_per_second"] == pytest.approx(24 / log["seconds"].iloc[-1], abs=0.06)
    losses = [record[0] for record in log["loss"]]
    assert (report["loss_first_tenth"], report["loss_last_tenth"]) == (losses[0], losses[-1])
    dataset = open_dataset(calls.folder / "data")
    assert report["data"] == {"images": 32, "hash": dataset.content_hash}
    assert set(report["seconds"]) == {"curate", "load the base", "encode", "train", "draw the strip", "score"}
    assert report["peak_memory_gb"] > 0.1


def test_scores_are_those_of_a_judge_who_always_sees_water(calls):
    dataset = open_dataset(calls.folder / "data")
    found = [(row["captions"], row["training"], row["prompts"], row["rate"]) for row in calls.reports[0]["scores"]]
    expected = []
    for split, name in (("train", "training captions"), ("held_out", "held-out characters")):
        asked = caption_prompts(dataset.split(split), name, 1)
        rate = sum("水" in wanted for wanted in asked.expected) / len(asked.captions)
        expected += [(name, when, len(asked.captions), rate) for when in ("before", "after")]
    assert found == expected
    assert found[0][2:] == (16, 1 / 16)


def test_the_strip_is_of_the_run(calls):
    facts = json.loads((calls.folder / "strip.json").read_text())
    assert facts["row_labels"] == list(prompts.DEMO)
    assert facts["column_labels"] == ["before", *(f"{4 * step}" for step in calls.run.checkpoints()[1:]), "seed 1"]
    assert facts["facts"]["run"] == calls.run.settings["hash"]
    assert facts["facts"]["images seen"] == 24
    assert json.loads((calls.folder / "queen.json").read_text())["labels"][0] == "before training"


def test_the_table_says_what_the_report_holds(calls):
    text = report_table(calls.reports[0])
    assert text.startswith("24 images seen at ")
    lines = [line for line in text.splitlines() if line.startswith("  ")]
    assert len(lines) == 4
    assert lines[0].split()[:4] == ["training", "captions", "before", "6.2%"]


def test_chance_is_stated_for_sixteen_radicals_alone(calls, some_kanji):
    report = calls.reports[0]
    assert report["chance"] == "one radical in sixteen, 6%"
    assert "(chance 6%, 95% interval over prompts and seeds)" in report_table(report)
    three = demo.describe(calls.run, some_kanji, pd.DataFrame(report["scores"]), demo.Stopwatch())
    assert three["chance"] is None
    assert "(95% interval over prompts and seeds)" in report_table(three)


def test_a_run_without_its_first_checkpoint_is_not_scored_as_if_it_had_it(calls, some_kanji, monkeypatch):
    monkeypatch.setattr(type(calls.run), "checkpoints", lambda run: [4, 8])
    with pytest.raises(ValueError, match="expected a checkpoint from before training, step 0, got 4 and later"):
        demo.score_run(None, calls.run, some_kanji, 1, Sampling(steps=1))


def test_an_arm_that_is_stopped_before_any_loss_has_a_report(calls, some_kanji, monkeypatch):
    log = calls.run.read_log().iloc[:1].copy()
    log["loss"], log["stopped"] = [(float("nan"),)], [("step 1: too steep",)]
    monkeypatch.setattr(type(calls.run), "read_log", lambda run: log)
    report = demo.describe(calls.run, some_kanji, pd.DataFrame(calls.reports[0]["scores"]), demo.Stopwatch())
    assert json.loads(json.dumps(report, allow_nan=False))["loss_first_tenth"] is None
    assert "no loss" in report_table(report) and "stopped early at step 1: too steep" in report_table(report)


def test_a_damaged_report_is_named(tmp_path):
    (tmp_path / "report.json").write_text("")
    with pytest.raises(ValueError, match="report.json"):
        demo.read_report(tmp_path)


def test_further_training_makes_the_report_anew(calls, doubles, base_folder):
    """A report of a run that was stopped early, by a STOP file say, is not taken for the finished one's."""
    path = calls.folder / "report.json"
    before = path.read_bytes()
    path.write_text(json.dumps(json.loads(before) | {"images_seen": 8}))
    doubles.setattr(driver, "train", train)
    options = dict(rule=Left16(per_radical=2), base_name=str(base_folder), precision="fp32")
    report = run_demo(calls.folder, arm=ARM, scale=SCALE, sampling=Sampling(steps=1, guidance=1.0), **options)
    path.write_bytes(before)
    assert report["images_seen"] == 24


def test_training_pictures_alone_can_be_scored(calls, doubles, base_folder):
    """A set without held-out rows, as `--rule all` makes it."""
    base = demo.load_base(str(base_folder))
    dataset = open_dataset(calls.folder / "data").split("train")
    scores = demo.score_run(base, calls.run, dataset, 1, Sampling(steps=1, guidance=1.0))
    assert scores["captions"].tolist() == ["training captions"] * 2


def test_training_from_python_counts_its_images(base_folder, tmp_path, capsys):
    base = demo.load_base(str(base_folder))
    run = run_training(base, tiny_encoded(base), [Arm(rank=2, images_seen=4)] * 2, tmp_path / "run", 1)
    assert run.checkpoints() == [0, 4]
    assert "4/4" in capsys.readouterr().err


@pytest.fixture
def interruptible():
    """Interrupts are Python's own, which test runners may have turned off."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_an_interrupt_waits_for_the_steps_end_and_a_second_does_not(base_folder, tmp_path, monkeypatch, interruptible):
    def advance(self):
        for _ in range(interrupts.get(self.step + 1, 0)):
            signal.raise_signal(signal.SIGINT)
        return original(self)

    original, interrupts = Trainer.advance, {3: 1}
    monkeypatch.setattr(Trainer, "advance", advance)
    base = demo.load_base(str(base_folder))
    arguments = base, tiny_encoded(base), [Arm(rank=2, images_seen=9)], tmp_path / "run", 1
    with pytest.raises(KeyboardInterrupt):
        run_training(*arguments, progress=False)
    run = RunFolder.open(tmp_path / "run")
    assert run.checkpoints() == [0, 3]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    interrupts.update({3: 0, 5: 3})
    with pytest.raises(KeyboardInterrupt):
        run_training(*arguments, progress=False)
    assert run.checkpoints() == [0, 5], "several within a second are one"
    interrupts.update({5: 0, 7: 2})
    monkeypatch.setattr(loop, "SAME_INTERRUPT_SECONDS", -1.0)
    with pytest.raises(KeyboardInterrupt):
        run_training(*arguments, progress=False)
    assert run.checkpoints() == [0, 5], "it was not waited for the seventh step"


def test_a_demo_that_was_stopped_says_so_and_draws_nothing(base_folder, doubles, tmp_path, monkeypatch):
    def stopped(*arguments, **options):
        for report in train(*arguments, **options):
            RunFolder.open(arguments[3]).request_stop()
            yield report

    monkeypatch.setattr(driver, "train", stopped)
    options = dict(rule=Left16(per_radical=2), base_name=str(base_folder), precision="fp32")
    with pytest.raises(InterruptedError, match="stopped before its end; the same command goes on"):
        run_demo(tmp_path / "demo", arm=ARM, scale=SCALE, sampling=Sampling(steps=1, guidance=1.0), **options)
    assert sorted(path.name for path in (tmp_path / "demo").iterdir()) == ["data", "run"]


def test_what_the_demo_draws():
    assert "queen" in prompts.DEMO  # the animation's
    for name, captions in prompts.PROMPT_SETS.items():
        assert len(set(captions)) == len(captions), name
        assert all(caption == caption.strip() != "" for caption in captions), name
    assert [len(prompts.RADICALS), prompts.RADICALS[0]] == [16, "water"]
    words = set(" ".join(prompts.RADICALS).split()) | {"fire", "stone"}
    assert all(word in words for pair in prompts.PART_PAIRS for word in pair.split())
    seen = [scale.images_seen for scale in SCALES.values()]
    assert seen == sorted(seen)
    assert np.isfinite(DEMO_ARM.scale)
