"""Costs: peak memory is measured, and steps, images and time are counted right."""

import gc

import pytest
import torch

from kanjilab.core.config import Arm
from kanjilab.training.cost import Cost, budget_text, peak_gigabytes


def test_memory_is_measured_at_its_peak():
    gc.collect()  # what earlier tests left must not go in between
    peak_gigabytes(torch.device("cpu"), reset=True)
    before = peak_gigabytes(torch.device("cpu"))
    block = torch.ones(100_000_000 // 4)
    assert peak_gigabytes(torch.device("cpu")) - before == pytest.approx(0.1, abs=0.03)
    del block
    assert peak_gigabytes(torch.device("cpu")) - before == pytest.approx(0.1, abs=0.03)
    assert peak_gigabytes(torch.device("cpu"), reset=True) > 0
    assert peak_gigabytes(torch.device("cpu")) - before < 0.05


def test_the_cost_in_steps_images_and_hours():
    arms = [Arm(batch=4, images_seen=100), Arm(batch=2, accumulation=3, images_seen=600)]
    assert budget_text(arms, 50) == "100 steps, 700 images"
    measured = budget_text(arms, 50, Cost(seconds_per_step=72.0, gigabytes=3.14))
    assert measured == "100 steps, 700 images; 2 h at the measured 72 s a step; 3.1 GB held"
    quick = budget_text(arms, 50, Cost(seconds_per_step=0.3, gigabytes=0.96))
    assert quick == "100 steps, 700 images; 30 s at the measured 0.3 s a step; 1.0 GB held"
