"""Pairs of radicals: who asks for what, what counts as both, and a run on a tiny base."""

import itertools

import numpy as np
import pandas as pd
import pytest

from kanjilab.core.config import Arm
from kanjilab.data.components import load_components
from kanjilab.evaluation.judges.part_judge import load_judge
from kanjilab.experiments import run_reinvention as reinvent
from kanjilab.experiments.radical_pairs import (
    ALONE,
    DIFFERENT,
    SAME,
    SLOT_OF,
    PairScale,
    Question,
    questions,
    rates_table,
    read_pairs,
    read_real,
    report_of,
    report_text,
    run_pairs,
    shown_together,
)
from kanjilab.models.sampling import Sampling
from tests.tiny import save_tiny_pipeline

SCALE = PairScale(images_seen=8, per_radical=8, seeds=(5, 6), noises=2)
PARTS = "水金言糸艸竹"


class Fixed:
    """A judge that finds given parts in any image."""

    name = "fixed"

    def __init__(self, parts):
        self.parts = parts

    def read(self, images):
        assert len(images) == len(self.parts)
        return pd.DataFrame({"parts": [tuple(parts) for parts in self.parts]})


def judged(answer, seeds=(1, 2), noises=1):
    """The table of a judge that finds `answer(seed, question)` in any image."""
    asked = questions()
    answers = [answer(seed, question) for seed, question, _ in itertools.product(seeds, asked, range(noises))]
    blank = np.full((len(seeds), len(asked), noises, 8, 8), 255, np.uint8)
    return read_pairs(Fixed(answers), asked, seeds, blank)


def test_every_radical_is_asked_for_alone_and_with_every_other_in_either_order():
    asked = questions()
    by_kind = {kind: [question.prompt for question in asked if question.kind == kind] for kind in (ALONE, SAME)}
    assert by_kind[ALONE] == ["water", "metal", "speech", "thread", "grass", "bamboo"]
    lefts, tops = by_kind[ALONE][:4], by_kind[ALONE][4:]
    same = [*itertools.permutations(lefts, 2), *itertools.permutations(tops, 2)]
    assert sorted(by_kind[SAME]) == sorted(" ".join(pair) for pair in same)
    assert len(asked) == 6 + 6 * 5
    assert Question(DIFFERENT, ("艸", "水"), "grass water") in asked


def test_the_radicals_are_in_their_slots():
    """By KanjiVG: of the characters of two parts that have them, nine in ten have them in their slot."""
    counts = {part: [] for part in PARTS}
    for listed in load_components().decompositions.values():
        for part in listed.outer:
            if part.element in counts and len(listed.outer) == 2:
                counts[part.element].append(part.slot)
    for part, slot in zip(PARTS, SLOT_OF.values(), strict=True):
        assert np.mean([seen == slot for seen in counts[part]]) > 0.9, part


def test_characters_of_two_of_the_parts_are_found_however_deep_they_stand():
    together = shown_together(PARTS, load_components())
    assert together["淦"] == {"水", "金"}
    assert together["薄"] == {"艸", "水"}, "water is below the grass, beside another part"
    assert not {"花", "海", "銀", "林"} & together.keys()


def test_shares_follow_the_judge():
    """Both parts in different slots, the first word's alone in the same slot."""

    def answer(seed, question):
        return question.parts if question.kind == DIFFERENT else question.parts[:1]

    report = report_of(judged(answer))
    assert report["rates"][SAME] == {
        "any": [1, 1, 1],
        "both": [0, 0, 0],
        "first": [1, 1, 1],
        "second": [0, 0, 0],
        "another two": [0, 0, 0],
    }
    assert report["rates"][DIFFERENT]["both"] == [1, 1, 1]
    assert report["rates"][ALONE] == {"any": [1, 1, 1]}
    assert report["independent"] == {SAME: 1, DIFFERENT: 1}
    assert report["contrast"]["difference"] == [1, 1, 1] and report["contrast"]["rates"] == (1, 0)


def test_parts_that_were_not_in_the_prompt_are_counted_apart():
    report = report_of(judged(lambda seed, question: ("木", "金", "竹")))
    assert report["alone"] == {"水": 0, "金": 1, "言": 0, "糸": 0, "艸": 0, "竹": 1}
    # Both are asked for in "metal bamboo" and "bamboo metal", 2 of the 16 of different slots.
    assert report["rates"][DIFFERENT]["both"][0] == 2 / 16 and report["rates"][DIFFERENT]["another two"][0] == 14 / 16
    assert report["rates"][SAME]["another two"][0] == 1 and report["rates"][SAME]["both"][0] == 0
    assert report["independent"] == {SAME: 0, DIFFERENT: 2 / 16}


def test_the_contrast_pairs_each_radical_with_itself():
    """Only pairs with water are drawn, in one of two trainings: 3 same-slot partners there, 2 in another slot."""

    def answer(seed, question):
        return question.parts if seed == 1 and "水" in question.parts else ()

    contrast = report_of(judged(answer, noises=2))["contrast"]
    # In training 1, each left radical has 3 partners of its slot, one of them water; water itself has all three.
    same = np.mean([1, 1 / 3, 1 / 3, 1 / 3, 0, 0])
    # In the other slot a left radical has 2 partners, a top one 4, one of them water.
    different = np.mean([1, 0, 0, 0, 1 / 4, 1 / 4])
    assert contrast["blocks"] == pytest.approx([different - same, 0])
    assert contrast["rates"] == pytest.approx([different / 2, same / 2])


def test_the_judge_finds_both_in_real_characters_of_either_kind():
    together = shown_together(PARTS, load_components())
    real = read_real(load_judge("B"), questions(), together)
    assert "淦" in real[SAME]["characters"] and "薄" in real[DIFFERENT]["characters"]
    assert not set(real[SAME]["characters"]) & set(real[DIFFERENT]["characters"])
    assert min(kind["both"][0] for kind in real.values()) > 0.8


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    base = save_tiny_pipeline(tmp_path_factory.mktemp("tiny") / "base")
    folder = tmp_path_factory.mktemp("pairs")

    def call():
        arm, sampling = Arm(targets="attention", rank=2, batch=4, peak_lr=0.01), Sampling("ddim", 1, 1.0)
        return run_pairs(folder, base_name=str(base), arm=arm, scale=SCALE, precision="fp32", sampling=sampling)

    return folder, call(), call


def test_no_training_kanji_shows_two_of_the_radicals(done):
    folder, report, _ = done
    table = pd.read_csv(folder / "data" / "train" / "metadata.csv")
    assert table["radical_character"].value_counts().to_dict() == dict.fromkeys(PARTS, 8)
    assert report["data"]["images"] == 48
    assert not set(table["character"]) & shown_together(PARTS, load_components()).keys()


def test_a_run_reads_every_image_of_every_training(done):
    folder, report, _ = done
    table = pd.read_parquet(folder / "table.parquet")
    assert table.groupby("judge").size().to_dict() == {"A": 2 * 36 * 2, "B": 2 * 36 * 2}
    assert [arm["seed"] for arm in report["settings"]["arms"]] == [5, 6] and set(table["seed"]) == {5, 6}
    assert (folder / "strip.png").exists()
    answers = report["judges"]["B"]
    assert len(answers["contrast"]["blocks"]) == 2 and rates_table(answers).loc["both", ALONE] == ""
    text = report_text(report)
    assert "2 trainings, 2 images a prompt" in text
    assert text.count("in base, different slots against same slot") == 2


def test_half_a_training_is_asked_nothing(done, monkeypatch):
    _, _, call = done
    monkeypatch.setattr("kanjilab.training.driver.is_finished", lambda run: False)
    with pytest.raises(InterruptedError, match="was stopped before its end"):
        call()


def test_the_trainings_differ_and_a_second_call_draws_nothing(done, monkeypatch):
    folder, report, call = done
    run = reinvent.RunFolder.open(folder / "run")
    first, second = (run.read_samples(name)[0] for name in run.samples())
    assert (first != second).any()

    def refuse(*arguments, **options):
        raise AssertionError("drawn again")

    monkeypatch.setattr(reinvent, "sample", refuse)
    assert call() == report
