"""Thresholds and calibration at hand-worked points."""

import numpy as np
import pytest

from kanjilab.evaluation.judges.calibration import _part_thresholds, calibration_error, temperature_of
from kanjilab.evaluation.judges.labelled_glyphs import taken
from tests.tiny_material import tiny_material


def test_temperature_undoes_overconfidence():
    rng = np.random.default_rng(0)
    logits = rng.normal(size=20_000) * 2
    truth = rng.random(20_000) < 1 / (1 + np.exp(-logits))
    assert temperature_of(2 * logits, truth) == pytest.approx(2, rel=0.1)
    assert temperature_of(logits, truth) == pytest.approx(1, rel=0.1)


def test_calibration_error_at_hand_worked_points():
    assert calibration_error(np.array([0.9, 0.9, 0.1, 0.1]), np.array([True, True, False, False])) == pytest.approx(0.1)
    assert calibration_error(np.full(10, 0.3), np.arange(10) < 3) == pytest.approx(0)


def test_thresholds_leave_five_per_cent_of_empty_pictures_with_a_part():
    material = tiny_material()
    rng = np.random.default_rng(0)
    count = 400
    glyphs = taken(material, np.concatenate([np.full(count, len(material) - 1), np.zeros(count, dtype=int)]))
    probability = rng.random((2 * count, 5)).astype(np.float32) ** 4
    present = np.zeros((2 * count, 5), dtype=bool)
    thresholds = _part_thresholds(probability, present, glyphs, np.arange(2 * count) >= count)
    assert (probability[:count] >= thresholds).any(axis=1).mean() <= 0.05
    assert (probability[count:] >= thresholds).mean(axis=0).max() <= 0.01
