"""Scores: which captions are asked, what they should show, and hits counted by hand."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch

from kanjilab.core.config import Arm
from kanjilab.data.image_folder import Dataset
from kanjilab.evaluation import scoring as score
from kanjilab.evaluation.scoring import PromptSet, caption_prompts, expected_radical_share, score_prompts
from kanjilab.models.sampling import Sampling, sample
from kanjilab.models.trainable import Trainable

QUICK = Sampling(steps=1, guidance=1.0)
PROMPTS = PromptSet("two", ("water tree", "fire"), (frozenset("水木"), frozenset("火")))


class FakeJudge:
    """Reads what it is told to, image by image, and remembers what it was shown."""

    def __init__(self, radicals, abstain):
        self.radicals, self.abstain = radicals, abstain

    def read(self, images):
        self.shown = images
        return pd.DataFrame({"radical": list(self.radicals), "probability": 0.9, "abstain": self.abstain})


def dataset_of(rows):
    """A dataset of (caption, radical) rows without any image."""
    table = pd.DataFrame(rows, columns=["text", "radical_character"])
    return Dataset(Path("nowhere"), table, 128, "lanczos", ("",) * len(table))


WATERS, TREES = [(f"water {i}", "水") for i in range(9)], [(f"tree {i}", "木") for i in range(6)]
SHARED = [("wet tree", "水"), ("wet tree", "木"), ("two waters", "水"), ("two waters", "水"), ("fire", "火")]


# ---------------------------------------------------------------------------------- captions to ask


def test_every_radical_is_asked_equally_often_and_no_caption_twice():
    prompts = caption_prompts(dataset_of(WATERS + TREES), "some", 4)
    assert prompts.name == "some"
    assert sorted(radical for wanted in prompts.expected for radical in wanted) == ["木"] * 4 + ["水"] * 4
    assert len(set(prompts.captions)) == 8
    for caption, wanted in zip(prompts.captions, prompts.expected, strict=True):
        assert wanted == {"水" if caption.startswith("water") else "木"}


def test_whoever_shares_a_caption_answers_for_it():
    prompts = caption_prompts(dataset_of(WATERS + TREES + SHARED), "all", 100)
    assert sorted(prompts.captions) == sorted({text for text, _ in WATERS + TREES + SHARED})
    expected = dict(zip(prompts.captions, prompts.expected, strict=True))
    assert expected["wet tree"] == {"水", "木"}
    assert expected["two waters"] == {"水"}
    assert expected["tree 3"] == {"木"}
    assert expected["fire"] == {"火"}


def test_the_choice_is_that_of_the_seed_whatever_the_row_order():
    rows = WATERS + TREES + SHARED
    chosen = caption_prompts(dataset_of(rows), "some", 3)
    assert caption_prompts(dataset_of(rows[::-1]), "some", 3) == chosen
    assert caption_prompts(dataset_of(rows), "some", 3, seed=1).captions != chosen.captions
    more = caption_prompts(dataset_of(WATERS + TREES), "some", 5).captions
    assert set(caption_prompts(dataset_of(WATERS + TREES), "some", 3).captions) < set(more)


def test_a_set_without_radicals_is_refused():
    dataset = Dataset(Path("nowhere"), pd.DataFrame({"text": ["cat"]}), 128, "lanczos", ("",))
    with pytest.raises(ValueError, match=r"nowhere: expected a column radical_character, got \['text'\]"):
        caption_prompts(dataset, "cats", 1)


# ---------------------------------------------------------------------------------- hits


def test_hits_are_those_counted_by_hand(base):
    judge = FakeJudge("木火火火", abstain=[False, False, True, False])
    readings, images = score_prompts(base, judge, PROMPTS, [0, 7], QUICK)
    assert readings["prompt"].tolist() == ["water tree", "water tree", "fire", "fire"]
    assert readings["seed"].tolist() == [0, 7, 0, 7]
    assert readings["expected"].tolist() == ["木水", "木水", "火", "火"]
    # One of the two expected; another radical; the right one, but abstained from; the right one.
    assert readings["hit"].tolist() == [True, False, False, True]
    drawn = sample(base, PROMPTS.captions, [0, 7], QUICK)[0]
    np.testing.assert_array_equal(images, drawn)
    np.testing.assert_array_equal(judge.shown, drawn.reshape(4, 128, 128))
    assert expected_radical_share(readings).value == 0.5


def test_the_trained_model_is_what_is_scored(base):
    trainable = Trainable(base.denoiser, [Arm(targets="all", rank=2)])
    rng = np.random.default_rng(0)
    state = {n: rng.normal(0, 0.5, v.shape) for n, v in trainable.state(0).items()}
    trainable.load_state(0, {n: torch.from_numpy(v.astype(np.float32)) for n, v in state.items()})
    judge = FakeJudge("木火火火", abstain=False)
    _, images = score_prompts(base, judge, PROMPTS, [0, 7], QUICK, trainable)
    np.testing.assert_array_equal(images, sample(base, PROMPTS.captions, [0, 7], QUICK, trainable=trainable)[0])
    assert np.abs(images.astype(int) - sample(base, PROMPTS.captions, [0, 7], QUICK)[0]).max() > 5


def test_colour_is_read_as_gray(monkeypatch):
    colours = np.array([[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 255]], np.uint8)
    drawn = np.broadcast_to(colours.reshape(1, 2, 2, 1, 1, 3), (1, 2, 2, 128, 128, 3))
    monkeypatch.setattr(score, "sample", lambda *_, **__: drawn)
    base = SimpleNamespace(channels=3)
    judge = FakeJudge("水水水水", abstain=False)
    _, images = score_prompts(base, judge, PROMPTS, [0, 7])
    assert judge.shown.dtype == np.uint8
    # 0.299, 0.587 and 0.114 of 255: the luma of ITU-R BT.601
    grays = np.array([76, 150, 29, 255])
    np.testing.assert_array_equal(judge.shown, np.broadcast_to(grays[:, None, None], (4, 128, 128)))
    np.testing.assert_array_equal(images, drawn[0])


# ---------------------------------------------------------------------------------- shares


def readings_of(hits):
    """Readings of a (seeds, prompts) table of hits."""
    rows = [(f"prompt {p}", s, hit) for s, line in enumerate(hits) for p, hit in enumerate(line)]
    return pd.DataFrame(rows, columns=["prompt", "seed", "hit"])


def test_shares_at_hand_worked_tables():
    assert expected_radical_share(readings_of([[True] * 3] * 2)) == (1, 1, 1)
    assert expected_radical_share(readings_of([[False] * 3] * 2)) == (0, 0, 0)
    # Two prompts drawn with replacement from a hit and a miss: 0, 1/2, 1 at 1/4, 1/2, 1/4.
    assert expected_radical_share(readings_of([[True, False]])) == (0.5, 0, 1)
    share = expected_radical_share(readings_of([[True, True, False], [True, False, False]]))
    assert share.value == pytest.approx(0.5)
    assert 0 <= share.low < 0.5 < share.high <= 1


def test_shares_do_not_depend_on_row_order():
    rng = np.random.default_rng(0)
    readings = readings_of(rng.random((3, 10)) < 0.4)
    mixed = readings.iloc[rng.permutation(len(readings))]
    assert expected_radical_share(mixed) == expected_radical_share(readings)
