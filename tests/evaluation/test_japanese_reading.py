"""Measures of reading Japanese: hand-worked ranks, and the two ends of the gap."""

import numpy as np
import pytest
import torch

from kanjilab.evaluation.japanese import prediction_gap, retrieval_ranks, retrieval_table
from kanjilab.models.loading import load_base
from tests.tiny import save_tiny_pipeline

ENGLISH = np.eye(3)


def test_ranks_count_what_is_nearer():
    words = np.array([[1.0, 0, 0], [0.8, 0.6, 0], [0.6, 0.5, 0.4]])
    assert retrieval_ranks(words, ENGLISH).tolist() == [0, 1, 2]


def test_synonyms_are_not_nearer():
    english = np.array([[1.0, 0], [1.0, 0], [0, 1.0]])
    assert retrieval_ranks(english, english).tolist() == [0, 0, 0]


def test_the_table_is_by_class():
    words = np.array([[1.0, 0, 0], [0.8, 0.6, 0], [0.6, 0.8, 0]])
    found = retrieval_table(words, ENGLISH, {"all": np.ones(3, bool), "last": np.array([False, False, True])})
    assert found["first"].tolist() == [pytest.approx(1 / 3), 0.0]
    assert found["tenth"].tolist() == [1.0, 1.0]
    assert found["cosine"].tolist() == [pytest.approx((1 + 0.6 + 0) / 3), 0.0]


def test_the_gap_is_none_for_the_wanted_states_and_one_for_the_empty_caption(tmp_path):
    base = load_base(save_tiny_pipeline(tmp_path))
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(2, *base.latent_shape(32), generator=generator)
    wanted, empty = torch.randn(2, 8, 24, generator=generator), torch.randn(1, 8, 24, generator=generator)
    assert prediction_gap(base, latents, wanted, wanted, empty).tolist() == [0, 0]
    assert prediction_gap(base, latents, empty.expand(2, -1, -1), wanted, empty) == pytest.approx([1, 1])
