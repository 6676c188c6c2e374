"""Paired statistics: hand-worked p values, scipy's where it has them, and sentences made from numbers."""

import dataclasses
import math

import numpy as np
import pytest
import scipy.stats

from kanjilab.evaluation.metrics import Estimate
from kanjilab.evaluation.statistics import (
    Contrast,
    compare,
    effect_size,
    holm,
    is_equivalent,
    joint_sign_flips,
    sentence,
    sign_flip_test,
    superiority,
)

CONTRAST = Contrast(
    first="rank 64",
    second="rank 4",
    difference=Estimate(0.031, 0.004, 0.059),
    blocks=(0.03,) * 8,
    p=0.01,
    p_corrected=0.02,
    effect=1.5,
    superiority=1.0,
    rates=(0.5, 0.469),
)


def with_values(value, low, high, p, **changes):
    return dataclasses.replace(CONTRAST, difference=Estimate(value, low, high), p_corrected=p, **changes)


# ---------------------------------------------------------------------------------- the test of blocks


@pytest.mark.parametrize(
    ("differences", "p"),
    [
        ([1, 2, 3, 4, 5, 6, 7, 8], 2 / 256),  # all positive: only all flipped is as far from 0
        ([-1, -2, -3, -4, -5, -6, -7, -8], 2 / 256),
        ([0.1, 0.2, 0.3, 0.4, 0.5], 2 / 32),  # five blocks cannot go under .0625
        ([1, 2, 4, -1], 6 / 16),  # sums of 6 or more: 8, twice 6 and their opposites
        ([3], 1.0),
        ([0, 0, 0, 0], 1.0),
        ([1, -1], 1.0),
        ([1, 1, 1, 0], 4 / 16),  # a block without a difference counts on both sides
    ],
)
def test_p_of_hand_worked_blocks(differences, p):
    assert sign_flip_test(np.array(differences)) == pytest.approx(p, abs=1e-15)


def test_p_agrees_with_scipy_on_random_blocks():
    rng = np.random.default_rng(0)
    for blocks in range(2, 13):
        differences = rng.normal(0.5, 1, blocks).round(2)
        theirs = scipy.stats.permutation_test(
            (differences,),
            lambda x, axis: x.mean(axis),
            permutation_type="samples",
            n_resamples=np.inf,
            vectorized=True,
        )
        assert sign_flip_test(differences) == pytest.approx(theirs.pvalue, abs=1e-12)


def test_equal_sums_count_however_they_are_rounded():
    differences = np.array([0.1, 0.2, 0.3, 0.3, 0.2, 0.1])  # their order of summation matters in the last bit
    assert sign_flip_test(differences * 3) == sign_flip_test(np.array([1, 2, 3, 3, 2, 1])) == 2 / 64


def test_random_flips_come_near_the_exact_p_and_never_reach_zero():
    differences = np.random.default_rng(1).normal(0.3, 1, 12)
    exact = sign_flip_test(differences)
    doubled = np.concatenate([differences, np.zeros(1)])  # a block of 0 changes nothing, but makes thirteen
    assert sign_flip_test(doubled, np.random.default_rng(2)) == pytest.approx(exact, abs=0.01)
    assert sign_flip_test(np.ones(40), np.random.default_rng(3), resamples=100) == 1 / 100


@pytest.mark.parametrize("differences", [[], [[1.0]], [math.nan, 1], [math.inf]])
def test_no_blocks_are_refused(differences):
    with pytest.raises(ValueError, match="one finite difference per block"):
        sign_flip_test(np.array(differences))


def test_many_blocks_need_a_generator():
    with pytest.raises(ValueError, match="13 > 12 blocks"):
        sign_flip_test(np.ones(13))


# ---------------------------------------------------------------------------------- corrections and sizes


@pytest.mark.parametrize(
    ("p_values", "corrected"),
    [
        (
            [0.01, 0.04, 0.03, 0.005],
            [0.03, 0.06, 0.06, 0.02],
        ),  # 3 x .01; 2 x .03; then 1 x .04 may not be less; 4 x .005
        ([0.5, 0.9], [1.0, 1.0]),
        ([2 / 256] * 4, [8 / 256] * 4),  # four claims of eight blocks can still be told: .03125
        ([0.02], [0.02]),
        ([], []),
    ],
)
def test_holm_at_hand_worked_points(p_values, corrected):
    assert holm(p_values) == pytest.approx(corrected)


def test_holm_refuses_what_is_no_p():
    with pytest.raises(ValueError, match=r"\[0, 1\]"):
        holm([0.5, 1.2])


def test_joint_flips_at_hand_worked_blocks():
    ones = np.ones(8)
    assert joint_sign_flips(np.array([ones] * 11)) == [2 / 256] * 11  # Holm would say 22/256
    assert joint_sign_flips(np.array([[1.0, 2, 4, -1]])) == [sign_flip_test(np.array([1.0, 2, 4, -1]))]
    assert joint_sign_flips(np.zeros((2, 4))) == [1, 1]
    assert joint_sign_flips(np.zeros((0, 4))) == []
    # All of a kind in b, of two kinds in c: of eight patterns, two make b's p 2/8 and two others c's.
    assert joint_sign_flips(np.array([[1.0, 1, 1], [1, 1, -1]])) == [4 / 8, 1]


def test_joint_flips_are_between_no_correction_and_holms():
    rng = np.random.default_rng(0)
    for _ in range(50):
        differences = rng.normal(0.4, 1, (5, 8)) * rng.uniform(0.1, 10, (5, 1))  # whatever their units
        alone = [sign_flip_test(row) for row in differences]
        for low, corrected, high in zip(alone, joint_sign_flips(differences), holm(alone), strict=True):
            assert low - 1e-12 <= corrected <= high + 1e-12
    assert joint_sign_flips(differences[::-1]) == joint_sign_flips(differences)[::-1]


def test_joint_flips_seldom_find_what_is_not_there():
    """Of many families of five contrasts without any difference, one in twenty may show one."""
    rng = np.random.default_rng(0)
    found = [min(joint_sign_flips(rng.normal(0, 1, (5, 7)))) < 0.05 for _ in range(600)]
    assert np.mean(found) < 0.05 + 2 * math.sqrt(0.05 * 0.95 / 600)


def test_effect_size_is_scipys_t_over_the_root_of_the_blocks():
    differences = np.array([1.0, 2.0, 3.0])
    assert effect_size(differences) == pytest.approx(2.0)  # mean 2, standard deviation 1
    first, second = np.random.default_rng(0).normal(size=(2, 9))
    t = scipy.stats.ttest_rel(first, second).statistic
    assert effect_size(first - second) == pytest.approx(t / 3)


def test_effect_sizes_without_spread():
    assert effect_size(np.array([0.1, 0.1, 0.1])) == math.inf
    assert effect_size(np.array([-2.0, -2.0])) == -math.inf
    assert effect_size(np.zeros(3)) == 0
    with pytest.raises(ValueError, match="two blocks"):
        effect_size(np.ones(1))


def test_superiority_counts_ties_half():
    assert superiority(np.array([1.0, -1.0, 0.0, 2.0])) == 2.5 / 4


@pytest.mark.parametrize(
    ("low", "high", "same"),
    [(-0.02, 0.029, True), (-0.03, 0.01, False), (-0.01, 0.03, False), (0.01, 0.02, True), (-0.2, 0.2, False)],
)
def test_equivalent_only_where_the_whole_interval_is_inside(low, high, same):
    assert is_equivalent(Estimate((low + high) / 2, low, high), 0.03) == same


# ---------------------------------------------------------------------------------- comparing


def test_compare_pairs_blocks_and_prompts():
    rng = np.random.default_rng(0)
    blocks, prompts = rng.normal(0, 0.2, (8, 1)), rng.normal(0, 0.2, (1, 20))
    second = 0.5 + blocks + prompts  # what blocks and prompts do to both cancels out
    first = second + 0.1 + rng.normal(0, 0.01, (8, 20))
    contrast = compare(first, second, ("a", "b"))
    assert contrast.difference.value == pytest.approx((first - second).mean())
    assert contrast.blocks == pytest.approx((first - second).mean(axis=1))
    assert contrast.p == contrast.p_corrected == 2 / 256
    assert 0.09 < contrast.difference.low < 0.1 < contrast.difference.high < 0.11
    assert contrast.rates == pytest.approx((first.mean(), second.mean()))
    assert (contrast.verdict, contrast.superiority) == ("held", 1.0)
    back = compare(second, first, ("b", "a"))
    assert back.verdict == "refuted"
    assert back.difference.value == pytest.approx(-contrast.difference.value)


def test_compare_of_one_variant_with_itself():
    table = np.random.default_rng(0).random((8, 10)) < 0.5
    contrast = compare(table, table, ("a", "a"))
    assert contrast.difference == (0, 0, 0)
    assert (contrast.p, contrast.effect, contrast.superiority, contrast.verdict) == (1, 0, 0.5, "equivalent")


def test_compare_keeps_its_seed():
    tables = np.random.default_rng(0).random((2, 6, 5))
    assert compare(*tables, ("a", "b"), seed=3) == compare(*tables, ("a", "b"), seed=3)
    assert compare(*tables, ("a", "b"), seed=3) != compare(*tables, ("a", "b"), seed=4)


@pytest.mark.parametrize("contrast", [CONTRAST, dataclasses.replace(CONTRAST, effect=math.inf, blocks=(0.1,))])
def test_json_both_ways(contrast):
    contents = contrast.to_json()
    assert contents["verdict"] == contrast.verdict
    again = Contrast.from_json(contents)
    assert dataclasses.replace(again, effect=contrast.effect) == contrast
    assert again.effect == contrast.effect or math.isnan(again.effect)


# ---------------------------------------------------------------------------------- verdicts and sentences


@pytest.mark.parametrize(
    ("contrast", "verdict"),
    [
        (with_values(0.05, 0.01, 0.09, 0.04), "held"),
        (with_values(-0.05, -0.09, -0.01, 0.04), "refuted"),
        (with_values(0.05, 0.01, 0.09, 0.06), "undecided"),  # an interval clear of 0, but no longer after correction
        (with_values(-0.07, -0.17, 0.02, 0.02), "undecided"),  # so with these prompts; with others, who knows
        (with_values(0.00, -0.02, 0.02, 0.8), "equivalent"),
        (with_values(0.00, -0.04, 0.04, 0.8), "undecided"),
        (with_values(0.00, 0.0, 0.0, 1.0, rates=(0.0, 0.0)), "undecided"),  # nothing drawn is no equality
        (with_values(0.00, -0.01, 0.01, 1.0, blocks=(0.0,) * 4), "undecided"),
    ],
)
def test_verdicts(contrast, verdict):
    assert contrast.verdict == verdict


@pytest.mark.parametrize(
    ("contrast", "text"),
    [
        (CONTRAST, "in pocket, rank 64 against rank 4: +3.1 points [0.4, 5.9], p = .02, 8 blocks: held"),
        (
            with_values(-0.0151, -0.02, -0.01, 8 / 256),
            "in pocket, rank 64 against rank 4: -1.5 points [-2.0, -1.0], p = .0312, 8 blocks: "
            "refuted, by less than 3 points",
        ),
        (
            with_values(0.0001, -0.02, 0.02, 1.0),
            "in pocket, rank 64 against rank 4: 0.0 points [-2.0, 2.0], p = 1, 8 blocks: equivalent within 3 points",
        ),
        (
            with_values(0.2, -0.1, 0.5, 1.0, blocks=(0.2,)),
            "in pocket, rank 64 against rank 4: +20.0 points [-10.0, 50.0], p = 1, 1 block: undecided",
        ),
        (
            with_values(0.2, 0.1, 0.3, 0.0002),
            "in pocket, rank 64 against rank 4: +20.0 points [10.0, 30.0], p < .001, 8 blocks: held",
        ),
    ],
)
def test_sentences(contrast, text):
    assert sentence(contrast) == text


def test_a_sentence_names_its_place():
    assert sentence(CONTRAST, "in sd15").startswith("in sd15, rank 64 against")
