"""The ablation panel over any folder of runs."""

import dataclasses
import json

import numpy as np
import pytest

from kanjilab.core.config import Arm
from kanjilab.core.run_folder import RunFolder
from kanjilab.widgets import AblationPanel
from kanjilab.widgets.run_ablation import read_trainings, runs_catalogue


def write_run(path, arm, ink=None, loss=1.0, prompts=("water",)):
    """A run of one arm that logged ten records, the last with half the loss, and drew glyphs of one gray."""
    run = RunFolder.create(path, {"base": "pocket2", "data": "left", "arms": [arm.to_json()], "hash": path.name})
    with run.lock():
        for step in range(1, 11):
            value = loss if step < 10 else loss / 2
            run.log({"step": step, "images_seen": [100 * step], "loss": [value]})
    if ink is not None:
        images = np.full((2, len(prompts), 1, 64, 64), ink, dtype=np.uint8)
        facts = dict(arm=0, steps=[0, 10], images_seen=[0, 1000], prompts=prompts, seeds=[7], sampling={})
        run.write_samples("history_a", images, facts)
    return run


@pytest.fixture
def runs(tmp_path):
    """Two ranks, one of them with two seeds, and one of them at another rate."""
    arm = Arm(rank=4, images_seen=1000)
    write_run(tmp_path / "a", arm, 0)
    write_run(tmp_path / "b", dataclasses.replace(arm, seed=1), 51, loss=2.0)
    write_run(tmp_path / "c", dataclasses.replace(arm, rank=64), 102, prompts=("tree", "water"))
    write_run(tmp_path / "d", dataclasses.replace(arm, rank=64, peak_lr=1e-3), loss=4.0)
    return tmp_path


def test_settings_that_differ_are_the_axes_and_seeds_are_blocks(runs):
    catalogue, images = runs_catalogue(runs, read_trainings(runs))
    assert json.loads(json.dumps(catalogue)) == catalogue
    assert [(axis["name"], axis["values"]) for axis in catalogue["axes"]] == [
        ("rank", [4, 64]),
        ("peak_lr", [1e-4, 1e-3]),
    ]
    assert [setting["at"] for setting in catalogue["settings"]] == [
        {"rank": 4, "peak_lr": 1e-4},
        {"rank": 64, "peak_lr": 1e-4},
        {"rank": 64, "peak_lr": 1e-3},
    ]
    assert catalogue["first"] == 1, "from which each other one differs in one setting"
    assert catalogue["seeds"] == [0, 1] and catalogue["arms"][1][1] is None
    assert [[arm and arm["sheet"] for arm in some] for some in catalogue["arms"]] == [[0, 1], [2, None], [-1, None]]
    assert len(images) == 3 and [asked["text"] for asked in catalogue["prompts"]] == ["water", "tree"]
    assert [(row[1], row[2:]) for row in catalogue["differences"]] == [
        ("rank", ["4", "64", "64"]),
        ("peak_lr", ["0.0001", "0.0001", "0.001"]),
    ]


def test_the_score_is_the_loss_of_the_last_tenth(runs):
    rates = runs_catalogue(runs, read_trainings(runs))[0]["rates"]["loss"]["all"][""]
    assert rates[0] == [None, [0.75, 0.5, 1.0, [0.5, 1.0]]]  # before training nothing is logged
    assert rates[1][-1] == [0.5, 0.5, 0.5, [0.5, None]]
    assert [rate[0] for rate in rates[2]] == [4.0, 4.0, 4.0, 2.0]  # without images: quarters of the log


def test_the_panel_and_its_picture(runs):
    panel = AblationPanel.of_runs(runs)
    assert "".join(panel.code.split()) in (f'AblationPanel.of_runs(Path("{runs}"){end}' for end in (")", ",)"))
    assert panel.widget.catalogue["title"] == f"Runs in {runs}"
    assert panel.picture().width > 300


def test_one_training_is_refused(tmp_path):
    write_run(tmp_path / "a", Arm())
    with pytest.raises(ValueError, match="expected two or more trainings to compare, found 1"):
        AblationPanel.of_runs(tmp_path)
