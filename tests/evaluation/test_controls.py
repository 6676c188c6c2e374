"""The controls with tiny models, and real glyphs, read by the packaged judges, beside them."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from kanjilab.core.config import Arm
from kanjilab.core.run_folder import RunFolder
from kanjilab.data.components import load_components
from kanjilab.data.rendering import default_font
from kanjilab.evaluation.controls import (
    control_table,
    controls,
    criteria_text,
    half_swapped,
    held_out_glyphs,
    retrieved,
    score_criteria,
    typeset_answers,
)
from kanjilab.evaluation.criteria import CRITERIA, Context, Thresholds, judge_images, load_frozen, outer_parts
from kanjilab.evaluation.judges.nearest_character import Neighbours
from kanjilab.evaluation.judges.part_judge import load_judge
from kanjilab.evaluation.prompt_parts import PartMeaning
from kanjilab.evaluation.well_formed import MEASURES, Bounds
from kanjilab.models.loading import LatentDiffusion, load_base
from kanjilab.models.sampling import Sampling
from kanjilab.models.trainable import Trainable
from kanjilab.training.encoded import encode_dataset
from kanjilab.training.loop import train
from tests.tiny import save_tiny_pipeline
from tests.toy_script import BLOB, ToyJudge, glyph, toy_context


@pytest.fixture(scope="module")
def real_context(some_kanji) -> Context:
    """As `make_context` makes it, but with captions embedded by their words, which takes no time."""
    training, components = some_kanji.split("train"), load_components()
    characters = tuple(training.table["character"])
    parts = [outer_parts(c, components, components.parts) for c in characters]
    wide = dict.fromkeys(MEASURES, (-1e9,)), dict.fromkeys(MEASURES, (1e9,))
    return Context(
        components,
        Neighbours.fit(list(characters), default_font()),
        Bounds(128, (1.0,), *wide, glyphs=0),
        Thresholds("", 0.5, 0.5, 0.5, 0.0, 0, {}),
        PartMeaning.fit(tuple(training.table["text"]), parts, hashed_words),
        training.images(),
        characters,
    )


def hashed_words(captions) -> np.ndarray:
    """Unit vectors that count words, by the sum of their letters."""
    counts = np.full((len(captions), 512), 1e-3, np.float32)
    for row, text in enumerate(captions):
        for word in text.lower().split():
            counts[row, sum(map(ord, word)) % 512] += 1
    return counts / np.linalg.norm(counts, axis=1, keepdims=True)


@pytest.fixture(scope="module")
def made(some_kanji, real_context, tmp_path_factory):
    """Prompts and controls, the models being tiny."""
    base = load_base(save_tiny_pipeline(tmp_path_factory.mktemp("tiny") / "base"))
    prompts = list(some_kanji.split("held_out").table["text"][:3])
    run = Trainable(base.denoiser, [Arm(rank=1)])
    quick = Sampling(steps=1, guidance=1.0)
    return prompts, controls(real_context, some_kanji, base, prompts, [0, 1], quick, trained=run, shuffled=run)


def test_controls_have_the_same_prompts_and_counts(made):
    _, images = made
    assert list(images) == [
        "real held-out",
        "through the VAE",
        "typeset",
        "retrieval",
        "shuffled captions",
        "base alone",
        "empty prompt",
        "half-swapped",
        "noise",
    ]
    assert {(some.shape, some.dtype) for some in images.values()} == {((6, 128, 128), np.dtype(np.uint8))}


def test_controls_are_what_they_are_called(made, some_kanji, real_context):
    prompts, images = made
    held_out = some_kanji.split("held_out")
    shown = held_out.images([list(held_out.table["text"]).index(prompt) for prompt in prompts for _ in range(2)])
    np.testing.assert_array_equal(images["real held-out"], shown)
    training = {image.tobytes() for image in real_context.training}
    assert all(image.tobytes() in training for image in images["retrieval"])
    assert images["retrieval"][0].tobytes() != images["retrieval"][1].tobytes()
    left = {image[:, :44].tobytes() for image in real_context.training}
    right = {image[:, 84:].tobytes() for image in real_context.training}
    for image in images["half-swapped"]:
        assert image[:, :44].tobytes() in left and image[:, 84:].tobytes() in right
        assert image.tobytes() not in training
    assert images["empty prompt"][0].tobytes() == images["empty prompt"][2].tobytes()  # whatever was asked
    assert images["typeset"][0].tobytes() not in training and (images["typeset"] < 128).mean() > 0.05


def test_retrieval_finds_the_training_caption_itself(some_kanji, real_context):
    captions = list(some_kanji.split("train").table["text"][:4])
    np.testing.assert_array_equal(retrieved(real_context, captions, 1), real_context.training[:4])


def test_prompts_without_a_real_answer_are_refused(some_kanji, real_context):
    with pytest.raises(ValueError, match="captions of held-out characters, got \\['robot'\\]"):
        controls(real_context, some_kanji, None, ["robot"], [0])


def test_one_table_for_all_controls():
    images = {"good": np.stack([glyph("⿰", "人", "土")] * 4), "blob": np.stack([BLOB] * 4)}
    table = control_table(ToyJudge(), images, ["person tree", "earth"], toy_context())
    assert table.index.names == ["control", "score"]
    assert table.loc[("good", "all_five"), "value"] == 1 and table.loc[("blob", "all_five"), "value"] == 0


@pytest.fixture(scope="module")
def run(some_kanji, tmp_path_factory) -> tuple[LatentDiffusion, RunFolder]:
    """A tiny base and a training on it, of two images."""
    base = load_base(save_tiny_pipeline(tmp_path_factory.mktemp("tiny") / "base"))
    folder = tmp_path_factory.mktemp("run") / "run"
    for _ in train(base, encode_dataset(base, some_kanji.split("train")), [Arm(rank=1, images_seen=2)], folder):
        pass
    return base, RunFolder.open(folder)


def test_a_runs_criteria_stand_first_and_beside_every_control(run, some_kanji, real_context, monkeypatch):
    judge = load_judge("B")
    bounds, thresholds = load_frozen(judge)
    context = replace(real_context, bounds=bounds, thresholds=thresholds)
    monkeypatch.setattr("kanjilab.evaluation.controls.make_context", lambda training, judge: context)
    quick = dict(captions_per_radical=1, images=2, sampling=Sampling(steps=1, guidance=1.0))
    table = score_criteria(*run, some_kanji, judge, shuffled=run[1], **quick)
    names = list(table.index.unique("control"))
    assert names[0] == "run" and {"real held-out", "shuffled captions", "empty prompt", "noise"} < set(names)
    assert table.loc["run", "value"].equals(table.loc["shuffled captions", "value"]), "one run in both places"
    rows = criteria_text(table).splitlines()
    assert [row.split("  ")[0] for row in rows[1:]] == ["run", "95% interval", *names[1:]]
    exact = 100 * table.loc[("real held-out", "two_or_more"), "value"]
    assert exact > 50 and f" {exact:.1f} " in rows[names.index("real held-out") + 2]


def test_a_run_without_held_out_characters_has_no_criteria(run, some_kanji):
    with pytest.raises(ValueError, match="expected held-out characters"):
        score_criteria(*run, some_kanji.split("train"), load_judge("B"))


# ---------------------------------------------------------------- real glyphs, real judges


@pytest.fixture(scope="module", params=["A", "B"])
def real_scores(request, some_kanji, real_context) -> pd.Series:
    """Scores of the controls that need no model, by a packaged judge with what was frozen for it."""
    judge = load_judge(request.param)
    bounds, thresholds = load_frozen(judge)
    packaged = replace(real_context, bounds=bounds, thresholds=thresholds)
    prompts, rng = sorted(set(some_kanji.split("held_out").table["text"]))[:40], np.random.default_rng(0)
    images = {
        "real": held_out_glyphs(some_kanji.split("held_out"), prompts, 1),
        "typeset": typeset_answers(packaged, prompts, 1),
        "retrieval": retrieved(packaged, prompts, 1),
        "half-swapped": half_swapped(packaged.training, len(prompts), rng),
        "noise": rng.integers(0, 256, (len(prompts), 128, 128), dtype=np.uint8),
    }
    tables = {name: judge_images(judge, some, prompts, packaged) for name, some in images.items()}
    columns = [*CRITERIA, "all_five", "distance"]
    return pd.DataFrame({name: table[columns].mean() for name, table in tables.items()}).T.stack()


def test_legality_puts_the_controls_in_order(real_scores):
    legal = real_scores[:, "legal"]
    assert legal["real"] > legal["half-swapped"] + 0.2 and legal["half-swapped"] > legal["noise"] == 0
    assert legal["real"] >= 0.85 and legal["retrieval"] >= 0.85


def test_what_exists_is_never_novel_and_noise_is_novel_but_worth_nothing(real_scores):
    assert real_scores["real", "novel"] <= 0.05 and real_scores["retrieval", "novel"] <= 0.05
    assert real_scores["typeset", "novel"] >= 0.7
    assert real_scores["noise", "distance"] > real_scores["real", "distance"]
    assert real_scores["noise", "novel"] >= 0.8 and real_scores["noise", "all_five"] == 0
    assert real_scores["half-swapped", "all_five"] <= 0.25 and real_scores["retrieval", "all_five"] == 0


def test_parts_are_found_where_there_are_parts(real_scores):
    for name in ("two_or_more", "distinct"):
        found = real_scores[:, name]
        assert min(found["real"], found["typeset"], found["retrieval"]) >= 0.85 and found["noise"] == 0
    assert real_scores["typeset", "all_five"] > real_scores["half-swapped", "all_five"] + 0.2


def test_noise_answers_no_prompt(real_scores):
    assert real_scores["noise", "meaning"] == 0 and real_scores["retrieval", "meaning"] > 0.8
