"""A training's description: its JSON and its name, by which stored runs of panels are found."""

import dataclasses
import json

import pytest

from kanjilab.training.job import TrainingJob
from kanjilab.training.presets import PLAIN_ARM


def test_the_name_of_a_stored_job_stays():
    arm = dataclasses.replace(PLAIN_ARM, images_seen=28_000)
    job = TrainingJob("pocket", arms=(arm,), checkpoints=6)
    assert job.name == "5593d51174131745"  # a run folder's name
    assert list(job.to_json()) == ["base", "precision", "data", "arm", "checkpoints"]
    assert TrainingJob.from_json(json.loads(json.dumps(job.to_json()))) == job
    assert dataclasses.replace(job, data={"folder": "x"}).name != job.name


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"precision": "fp8"}, "precision must be one of"),
        ({"checkpoints": 0}, "checkpoints must be from 1 to 1,000, got 0"),
        ({"data": {"name": "left17"}}, "rule name must be one of"),
    ],
)
def test_impossible_settings_are_refused(settings, complaint):
    with pytest.raises(ValueError, match=complaint):
        TrainingJob(**settings)
