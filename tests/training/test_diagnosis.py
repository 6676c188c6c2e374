"""Exploding phases are found where they were put, and nowhere else."""

import numpy as np
import pandas as pd
import pytest

from kanjilab.core.config import Arm
from kanjilab.core.run_folder import RunFolder
from kanjilab.training.diagnosis import (
    diagnose,
    diagnose_log,
    draw_diagnosis,
    explain,
    find_spikes,
    rising_phases,
    running_median,
    stored_samples,
)
from kanjilab.training.loop import train
from kanjilab.training.schedules import lr_factor
from kanjilab.viz.charts import figure_png
from tests.tiny import tiny_encoded

PERIODIC = Arm(schedule="periodic", warmup_steps=100, peak_lr=1e-3, rank=256)
COSINE = Arm(schedule="cosine", peak_lr=1e-3, warmup_steps=50)


def synthetic_log(arm: Arm, spikes=(), total=1_000, stopped=None, others=0):
    """A record every tenth step; the gradient norm is 0.5 but ten times that at the spikes."""
    rng, rows = np.random.default_rng(0), []
    for step in range(10, total + 1, 10):
        norm = (5.0 if step in spikes else 0.5) * rng.uniform(0.9, 1.1)
        rate = arm.peak_lr * lr_factor(arm, step - 1, total)
        values = dict(lr=rate, gradient_norm=norm, update_norm=np.sqrt(step), loss=0.1, stopped=None)
        if stopped and step == total:
            values |= dict(lr=np.nan, gradient_norm=np.nan, loss=np.nan, stopped=stopped)
        rows.append({"step": step} | {name: [value] * (1 + others) for name, value in values.items()})
    return pd.DataFrame(rows)


def test_the_median_looks_back_only():
    values = np.array([1, 2, 3, 4, 5, 100, np.nan, 7.0])
    np.testing.assert_array_equal(running_median(values)[:5], np.full(5, np.nan))
    np.testing.assert_array_equal(running_median(values)[5:], [3, 3.5, 3.5])
    np.testing.assert_array_equal(find_spikes(values, factor=4), [5, 6])  # no number at all is a spike too


def test_a_rise_after_a_fall_is_a_phase_and_a_warm_up_is_none():
    steps = np.arange(10, 100, 10)
    rate = np.array([1, 2, 3, 2, 1, 2, 2.5, 1, 1])
    assert rising_phases(steps, rate) == ((50, 70),)
    for schedule in ("constant", "linear", "cosine", "constant-cooldown"):
        arm = Arm(schedule=schedule, warmup_steps=30)
        factors = np.array([lr_factor(arm, step, 300) for step in range(300)])
        assert rising_phases(np.arange(300), factors) == ()


def test_the_phases_of_periodic_are_its_second_halves():
    found = diagnose_log(synthetic_log(PERIODIC), PERIODIC)
    assert len(found.rising) == 5
    for number, (first, last) in enumerate(found.rising):
        assert abs(first - (200 * number + 100)) <= 10
        assert abs(last - (200 * number + 200)) <= 10
    assert explain(found) == (["Nothing here looks like an explosion."], [])


def test_spikes_while_the_rate_rises_are_laid_to_the_schedule():
    found = diagnose_log(synthetic_log(PERIODIC, spikes=(350, 370, 590)), PERIODIC)
    assert found.steps[found.spikes].tolist() == [350, 370, 590]
    assert found.spikes_while_rising == 3
    happened, advice = explain(found)
    assert "over 4 times its running median 3 times, first at step 350" in happened[0]
    assert "rose again in 5 phases" in happened[1] and "3 of the spikes are in them" in happened[1]
    assert advice[0].startswith("Take a schedule that does not rise again: schedule=cosine in place of periodic")
    assert "warmup_steps = 100" in advice[0]
    assert any("peak_lr=0.00033" in line for line in advice)
    assert any("alpha=64 at rank 256" in line for line in advice)
    assert any("checkpoint before step 350" in line for line in advice)


def test_spikes_under_a_falling_rate_are_not():
    found = diagnose_log(synthetic_log(COSINE, spikes=(300,)), COSINE)
    happened, advice = explain(found)
    assert len(happened) == 1 and "1 time, first at step 300" in happened[0]
    assert advice[0].startswith("Lower the rate")


def test_clipping_growth_and_a_lost_loss_are_told():
    log = synthetic_log(COSINE, spikes=(300,))
    log["gradient_norm"] = [[10 * entry[0]] for entry in log["gradient_norm"]]
    log["update_norm"] = [[1.0 if step < 600 else 3.0] for step in log["step"]]
    log["loss"] = [[0.1 if step < 600 else 0.3] for step in log["step"]]
    happened, _ = explain(diagnose_log(log, COSINE))
    assert any("Clipping at 1 was at work in 100%" in line for line in happened)
    assert any("The update grew 3.0-fold" in line for line in happened)
    assert any("The loss ended at 0.3, over its best level of 0.1" in line for line in happened)


def test_an_arm_that_stopped_and_one_that_merely_ended():
    reason = "step 1000: loss nan and gradient norm nan are not both finite"
    found = diagnose_log(synthetic_log(COSINE, stopped=reason, others=1), COSINE, 1)
    assert found.steps[found.spikes].tolist() == [1_000]
    assert explain(found)[0][0] == f"It stopped early: {reason}."
    log = synthetic_log(COSINE, others=1)
    for column in ("lr", "gradient_norm", "loss"):  # arm 1 had fewer steps than arm 0
        log[column] = [[a, b if step < 500 else np.nan] for (a, b), step in zip(log[column], log["step"], strict=True)]
    found = diagnose_log(log, COSINE, 1)
    assert (len(found.spikes), found.steps[-1]) == (0, 490)


def test_the_picture_marks_what_was_found():
    found = diagnose_log(synthetic_log(PERIODIC, spikes=(350, 590)), PERIODIC)
    figure = draw_diagnosis(found, ([0, 400, 1_000], np.zeros((3, 8, 8), np.uint8)))
    samples, rate, norm, size = figure.axes
    assert len(samples.images) == 3
    assert [text.get_text() for text in samples.texts] == ["0", "400", "1,000"]
    (spikes,) = [line for line in norm.lines if line.get_label() == "spike"]
    np.testing.assert_array_equal(spikes.get_xdata(), [350, 590])
    assert all(len(ax.patches) == 5 for ax in (rate, norm, size))
    assert figure_png(figure).startswith(b"\x89PNG")
    assert len(draw_diagnosis(found).axes) == 3


def test_a_run_is_diagnosed_from_its_folder(base, tmp_path):
    arm = Arm(schedule="periodic", warmup_steps=4, peak_lr=0.01, rank=2, images_seen=24)
    for _ in train(base, tiny_encoded(base), [arm], tmp_path / "run", checkpoints=2, log_every=1):
        pass
    run = RunFolder.open(tmp_path / "run")
    found = diagnose(run)
    assert found.steps.tolist() == list(range(1, 25))
    assert found.rising == ((5, 9), (13, 17), (21, 24))
    assert (found.update_norm > 0).all()
    assert stored_samples(run) is None
    images = np.arange(3 * 4, dtype=np.uint8).reshape(3, 1, 1, 2, 2)
    run.write_samples("history_1", images, {"arm": 1, "steps": [0, 1, 2]})
    run.write_samples("history_2", images + 50, {"arm": 0, "steps": [0, 8, 24]})
    run.write_samples("history_0", images[2:], {"arm": 0, "steps": [24]})  # further noises of the last alone
    steps, drawn = stored_samples(run, 0)
    assert (steps, drawn[0, 0, 0]) == ([0, 8, 24], 50)
    assert figure_png(draw_diagnosis(found, (steps, drawn)))
    with pytest.raises(ValueError, match="has arms 0 to 0, got 1"):
        diagnose(run, 1)
    empty = RunFolder.create(tmp_path / "empty", {"arms": [arm.to_json()]})
    with pytest.raises(ValueError, match="has logged nothing yet"):
        diagnose(empty)
