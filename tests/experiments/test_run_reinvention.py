"""The re-invention run on a tiny base: nothing withheld is trained on, what is stored is not drawn again."""

import dataclasses
import json

import numpy as np
import pandas as pd
import pytest

from kanjilab.core.config import Arm
from kanjilab.core.run_folder import RunFolder
from kanjilab.data.components import load_components
from kanjilab.data.selection import Left16
from kanjilab.evaluation.judges.part_judge import load_judge
from kanjilab.experiments import run_reinvention as reinvent
from kanjilab.experiments.reinvention import Item
from kanjilab.experiments.run_reinvention import (
    BY_MEANING,
    BY_PARTS,
    FLOOR,
    NEW_PAIRS,
    REVERSED,
    ReinventionScale,
    report_table,
    run_reinvention,
    tasks,
    withhold,
)
from kanjilab.models.sampling import Sampling
from tests.tiny import save_tiny_pipeline

ARM = Arm(targets="attention", rank=2, batch=4, peak_lr=0.01)
SCALE = ReinventionScale(images_seen=8, items=3, seeds=2)


@pytest.fixture(scope="module")
def judge():
    return load_judge("B")


@pytest.fixture(scope="module")
def done(tmp_path_factory, judge):
    base = save_tiny_pipeline(tmp_path_factory.mktemp("tiny") / "base")
    folder = tmp_path_factory.mktemp("reinvention")

    def call():
        sampling = Sampling("ddim", steps=1, guidance=1.0)
        rule = Left16(per_radical=8)
        return run_reinvention(
            folder,
            rule=rule,
            base_name=str(base),
            arm=ARM,
            scale=SCALE,
            judge=judge,
            precision="fp32",
            sampling=sampling,
        )

    return folder, call(), call


def test_tasks_ask_the_same_items_in_three_ways():
    rest = Item("休", "⿰", ("人", "木"), ("person", "tree"), "rest")
    new = Item("", "⿰", ("虫", "言"), ("insect", "speech"))
    asked = tasks([rest], [new])
    assert {name: task.prompts for name, task in asked.items()} == {
        BY_PARTS: ("person tree",),
        REVERSED: ("tree person",),
        BY_MEANING: ("rest",),
        NEW_PAIRS: ("insect speech",),
    }
    assert tasks([rest], []).keys() == {BY_PARTS, REVERSED, BY_MEANING}


def test_nothing_withheld_or_made_of_it_is_trained_on(done):
    folder, report, _ = done
    items = json.loads((folder / "items.json").read_text())
    shown = set(pd.read_csv(folder / "data" / "train" / "metadata.csv")["character"])
    withheld = {character for item in items for character in item["withheld"]}
    assert len(items) == 3 and len(shown) == 16 * 8 == report["data"]["images"]
    assert not withheld & shown
    components = load_components()
    pairs = {frozenset(item["parts"]) for item in items}
    assert not [c for c in shown if frozenset(part.element for part in components.of(c).outer) in pairs]


def test_every_task_is_scored_beside_its_floor(done):
    folder, report, _ = done
    table = pd.read_parquet(folder / "table.parquet")
    assert table.groupby("task").size()[[BY_PARTS, REVERSED, BY_MEANING]].tolist() == [3 * 2] * 3
    assert report["scores"].keys() == {name + end for name in report["items"] for end in ("", FLOOR)}
    recall = table.loc[table["task"] == BY_PARTS, "recall"].mean()
    assert report["scores"][BY_PARTS]["part-set recall"]["value"] == pytest.approx(recall)
    text = report_table(report)
    assert "3 characters withheld, 2 images a prompt, judge B" in text and "another item" in text
    assert "2 images a prompt, judge A" in report_table(report | {"judge": report["judge"] | {"name": "A"}})


def test_the_second_call_draws_and_trains_nothing(done, monkeypatch):
    _, report, call = done

    def refuse(*arguments, **options):
        raise AssertionError("drawn again")

    monkeypatch.setattr(reinvent, "sample", refuse)
    assert call() == report


def test_what_was_drawn_is_stored_while_another_holds_the_run(done, monkeypatch):
    folder, *_ = done
    run = RunFolder.open(folder / "run")
    base = reinvent.load_base(run.settings["base"])
    with run.lock():
        images = reinvent.draw(base, RunFolder.open(run.path), ["rest"], [0], Sampling("ddim", steps=1, guidance=1.0))
    assert images.shape == (1, 1, 128, 128)


def test_half_a_training_is_asked_nothing(done, monkeypatch):
    _, _, call = done
    monkeypatch.setattr("kanjilab.training.driver.is_finished", lambda run: False)
    with pytest.raises(InterruptedError, match="was stopped before its end"):
        call()


def test_perfect_answers_come_first_and_the_floor_sees_that_others_were_asked(judge):
    """Real glyphs of the items as answers: what a run that re-invents perfectly would score."""
    items, _ = withhold(Left16(per_radical=8), 12)
    asked = tasks(items, [])
    real = np.stack([np.asarray(reinvent.draw_font(item.character, reinvent.default_font())) for item in items])
    images = {name: real[:, None] for name in asked}
    right = reinvent.score_items(judge, load_components(), asked[BY_PARTS].items, images[BY_PARTS])
    floor = reinvent.floors(judge, asked, images)[BY_PARTS + FLOOR]
    assert (right["rank"] == 1).mean() > 0.9 and right["recall"].mean() > 0.8
    assert (floor["rank"] == 1).mean() == 0 and floor["recall"].mean() < 0.3


def test_a_rule_without_two_part_characters_is_refused():
    @dataclasses.dataclass(frozen=True)
    class Nothing(Left16):
        def pool(self, characters, drawable):
            return super().pool(characters, drawable).iloc[:3]

    with pytest.raises(ValueError, match="two-part characters to withhold from left16, got none"):
        withhold(Nothing(), 5)
