"""Presets: the published numbers are there, what was not published is named, and costs are counted right."""

import dataclasses

import pytest

from kanjilab.core.config import Arm
from kanjilab.training.presets import ARTICLE_ARM, DEMO_ARM, PRESETS, SCALES, arms_of, lookup
from kanjilab.training.schedules import lr_factor


def test_the_article_and_its_code_differ_as_published():
    (article,), (repo,) = PRESETS["generative-kanji-article"].arms, PRESETS["generative-kanji-repo"].arms
    assert article == ARTICLE_ARM
    assert (article.targets, article.rank, article.scale, article.epochs) == ("cross-attention", 64, 4 / 64, 8)
    assert (repo.targets, repo.rank, repo.scale, repo.warmup_steps, repo.seed) == ("attention", 64, 1, 500, 42)
    assert (article.total_steps(1_600), repo.total_steps(1_600)) == (12_800, 80_000)
    for arm in (article, repo):
        assert (arm.batch, arm.peak_lr, arm.schedule, arm.min_snr_gamma) == (1, 1e-4, "cosine", None)


def test_the_repository_is_taken_as_its_code_and_log_are():
    preset, notes = PRESETS["generative-kanji-repo"], PRESETS["generative-kanji-repo"].notes()
    assert preset.prompts == ("water", "iPhone", "king", "tree", "queen", "fire", "one")
    assert (preset.sampling.steps, preset.sampling.guidance, preset.sampling.prefix) == (20, 7.5, "")
    assert preset.arms[0].total_steps(preset.training_images) / preset.checkpoints == 8_000
    assert preset.arms[0].clip_norm >= 1e9, "its clipper gets an exhausted filter"
    assert not any("not published" in note for note in notes)
    assert sum(note.startswith("differs on purpose: ") for note in notes) == len(preset.differences) == 3


@pytest.mark.parametrize("name", ["instantkanji-sd35-lora", "instantkanji-sd35-lora-periodic"])
def test_instantkanji_trains_two_rates_over_one_base(name):
    preset = PRESETS[name]
    assert (preset.base, preset.prompts, preset.training_images) == ("sd35-large", ("mountains",), 6_413)
    assert [arm.peak_lr for arm in preset.arms] == [1.05e-3, 9.5e-4]
    for arm in preset.arms:
        assert (arm.rank, arm.alpha, arm.batch, arm.total_steps(6_413)) == (768, 768, 6, 36_000)


def test_the_two_cosines():
    cosine, periodic = (PRESETS[f"instantkanji-sd35-lora{end}"].arms[0] for end in ("", "-periodic"))
    assert [round(lr_factor(cosine, step, 36_000), 6) for step in (0, 18_000, 36_000)] == [1, 0.5, 0]
    assert [round(lr_factor(periodic, step, 36_000), 6) for step in (0, 250, 500, 1_000, 36_000)] == [1, 0.5, 0, 1, 1]


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_says_what_was_not_published(name):
    preset = PRESETS[name]
    notes = preset.notes()
    assert notes[0] == preset.about
    assert "kanjilab data" in notes[1] and f"({preset.training_images:,} there)" in notes[1]
    for what in ("negative prompt", "style prefix", "steps and guidance"):
        told = any(note.startswith("not published") and what in note for note in notes)
        assert told == (name not in ("pocket-demo", "generative-kanji-repo")), what  # of which nothing is unknown
    for arm in preset.arms:
        assert Arm.from_json(arm.to_json()) == arm


def test_the_demos_preset_is_the_demo():
    scale = SCALES["demo"]
    assert PRESETS["pocket-demo"].arms == (dataclasses.replace(DEMO_ARM, images_seen=scale.images_seen),)
    assert PRESETS["pocket-demo"].checkpoints == scale.checkpoints


def test_an_unknown_preset_is_refused_with_those_there_are():
    with pytest.raises(ValueError, match="preset must be one of pocket-demo, generative-kanji-article, .*, got 'sd3'"):
        lookup(PRESETS, "sd3", "preset")


def test_options_change_every_arm_and_one_is_varied():
    start = PRESETS["instantkanji-sd35-lora"].arms
    arms = arms_of(start, {"rank": 8, "alpha": 8}, "schedule", ["cosine", "linear"])
    assert [(arm.peak_lr, arm.schedule) for arm in arms] == [
        (1.05e-3, "cosine"),
        (1.05e-3, "linear"),
        (9.5e-4, "cosine"),
        (9.5e-4, "linear"),
    ]
    assert {(arm.rank, arm.alpha, arm.batch) for arm in arms} == {(8, 8, 6)}
    with pytest.raises(ValueError, match=r"unknown settings \['rnak'\]"):
        arms_of(start, {"rnak": 8})


def test_a_budget_in_epochs_takes_the_place_of_one_in_images():
    (arm, _) = arms_of(PRESETS["instantkanji-sd35-lora"].arms, {"epochs": 30})
    assert arm.total_steps(6_413) == 32_065  # 6,413 × 30 / 6
    (arm,) = arms_of([Arm(epochs=2)], {"images_seen": 12})
    assert arm.total_steps(100) == 12
