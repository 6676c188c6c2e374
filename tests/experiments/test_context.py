"""A study made ready: the keys of its trainings, and the prompts that its datasets share."""

import dataclasses

import pytest

from kanjilab.experiments.context import open_study
from kanjilab.experiments.study import Variant
from tests.tiny_study import RADICALS, write_images

pytestmark = pytest.mark.usefixtures("small_lab")


def test_variants_that_are_one_setting_share_a_training(study, tmp_path):
    lab = open_study(study, tmp_path)
    rank_2, rank_3, same = study.variants
    assert lab.key(same, 5) != lab.key(rank_2, 5)  # alpha 2 is written otherwise than alpha = rank
    twice = dataclasses.replace(study, variants=(rank_2, Variant("again", {}), rank_3), contrasts=())
    lab = open_study(twice, tmp_path)
    assert lab.key(twice.variants[1], 5) == lab.key(rank_2, 5)
    assert len(lab.trainings()) == 4


def test_keys_differ_by_settings_data_and_precision(study, tmp_path):
    lab = open_study(study, tmp_path)
    variant = study.variants[0]
    assert lab.key(variant, 5) != lab.key(variant, 6)
    assert lab.key(variant, 5) != open_study(dataclasses.replace(study, precision="bf16"), tmp_path).key(variant, 5)
    fewer = write_images(tmp_path / "fewer", [f"{word} castle" for word in RADICALS], ["water mountain"])
    other = open_study(dataclasses.replace(study, data={"folder": str(fewer)}), tmp_path)
    assert other.key(variant, 5) != lab.key(variant, 5)
    # What is drawn from an arm is no part of what it is.
    drawn = open_study(dataclasses.replace(study, noise_seeds=(7,), checkpoints=2), tmp_path)
    assert drawn.key(variant, 5) == lab.key(variant, 5)
    assert drawn.drawing != lab.drawing


def test_prompts_are_those_that_all_datasets_share(study, tmp_path):
    fewer = write_images(
        tmp_path / "fewer", ["water castle", "tree castle", "fire mountain"], ["water mountain", "tree mountain"]
    )
    variants = (study.variants[0], Variant("fewer", data={"folder": str(fewer)}))
    lab = open_study(dataclasses.replace(study, variants=variants, contrasts=(), prompts_per_radical=9), tmp_path)
    assert set(lab.prompts["train"].captions) == {"water castle", "tree castle"}
    assert set(lab.prompts["held_out"].captions) == {"water mountain", "tree mountain"}
    assert len(lab.held_out) == 2
    assert len(lab.data(variants[0])) == 8
    assert len(lab.data(variants[1])) == 3
    apart = write_images(tmp_path / "apart", ["water queen queen"], ["fire fire"])
    variants = (study.variants[0], Variant("apart", data={"folder": str(apart)}))
    with pytest.raises(ValueError, match="no caption"):
        open_study(dataclasses.replace(study, variants=variants, contrasts=()), tmp_path)
