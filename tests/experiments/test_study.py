"""What is asked: a study's trainings, its hash, and what it refuses."""

import dataclasses
import json
from pathlib import Path

import pytest

from kanjilab.experiments.study import Study, Variant
from kanjilab.models.sampling import Sampling
from tests.tiny_study import ARM


def test_a_study_expands_to_every_variant_in_every_block(study):
    cells = [(variant.label, seed) for variant, seed in study.cells()]
    assert cells == [(label, seed) for seed in (5, 6) for label in ("rank 2", "rank 3", "the same")]
    arms = [study.arm_of(variant, seed) for variant, seed in study.cells()]
    assert arms[1] == dataclasses.replace(ARM, rank=3, seed=5)
    assert arms[5] == dataclasses.replace(ARM, alpha=2.0, seed=6)
    assert study.contrasts == (("rank 3", "rank 2"), ("the same", "rank 2"))


def test_json_both_ways_and_a_hash_of_all_contents(study):
    contents = json.loads(json.dumps(study.to_json()))
    assert Study.from_json(contents) == study
    assert Study.from_json(contents).hash == study.hash
    assert dataclasses.replace(study, seeds=(5, 7)).hash != study.hash
    assert dataclasses.replace(study, sampling=Sampling(steps=2)).hash != study.hash


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        (dict(variants=()), "one or more different variants"),
        (dict(variants=(Variant("a"), Variant("a"))), "different variants"),
        (dict(seeds=(1, 1)), "different seeds"),
        (dict(seeds=()), "different seeds"),
        (dict(noise_seeds=()), "different noise"),
        (dict(phase="trial"), "phase must be one of"),
        (dict(checkpoints=0), "checkpoints must be >= 1"),
        (dict(prompts_per_radical=0), "prompts_per_radical must be >= 1"),
        (dict(contrasts=(("rank 2", "rank 9"),)), "'rank 9'"),
        (dict(variants=(Variant("a", dict(rank=0)),)), "rank must be a whole number"),
        (dict(variants=(Variant("a", dict(rnak=4)),)), "unknown settings"),
        (dict(variants=(Variant("a", dict(seed=4)),)), "the seed is the block's"),
        (dict(data={"name": "left17"}), "rule name must be one of"),
        (dict(variants=(Variant("a", data={"name": "left16", "ratio": 2}),)), "does not take"),
    ],
)
def test_wrong_settings_are_refused_before_anything_is_done(study, changes, complaint):
    with pytest.raises(ValueError, match=complaint):
        dataclasses.replace(study, **{"contrasts": ()} | changes)


def test_stored_studies_keep_their_hash():
    """It is how `figures/studies` and runs on disk are found again, whatever settings come to be."""
    reports = sorted((Path(__file__).parents[2] / "figures" / "studies").glob("*/report*.json"))
    assert len(reports) >= 8
    for path in reports:
        report = json.loads(path.read_text())
        assert Study.from_json(report["study"]).hash == report["hash"], path
    full = Study.from_json(json.loads((reports[0].parents[1] / "full-full" / "study.json").read_text()))
    assert full.variants[1].changes["targets"] == full.arm_of(full.variants[1], 0).targets == "full"
