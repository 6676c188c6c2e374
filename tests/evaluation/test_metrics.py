"""Scores against hand-worked numbers, limits and invariances."""

import itertools

import numpy as np
import pandas as pd
import pytest

from kanjilab.evaluation.caption_baseline import CaptionBayes, caption_words, text_only_ceiling
from kanjilab.evaluation.metrics import (
    answered_prompts,
    expected_part_hits,
    expected_radical_hits,
    expected_radical_rate,
    mean_pairwise_distance,
    nearest_training_images,
    paired_difference,
    shown_radicals,
    shuffled_prompt_rate,
    two_way_bootstrap,
    wilson_interval,
)


def readings_of(text: str) -> pd.DataFrame:
    """'水木-' -> water, tree, and a water that the judge abstained from."""
    return pd.DataFrame({"radical": [c.replace("-", "水") for c in text], "abstain": [c == "-" for c in text]})


# ---------------------------------------------------------------- rates


def test_wilson_at_hand_worked_points():
    # 8 of 10, z^2 = 3.8415: centre 0.992073 / 1.384146 = 0.71674, half 1.41601 * sqrt(0.016 + 0.009604) = 0.22658
    assert wilson_interval(8, 10) == pytest.approx((0.8, 0.4902, 0.9433), abs=1e-4)
    assert wilson_interval(81, 263) == pytest.approx((0.3080, 0.2553, 0.3662), abs=1e-4)  # Newcombe's table I
    assert wilson_interval(0, 20) == pytest.approx((0.0, 0.0, 0.1611), abs=1e-4)
    assert wilson_interval(20, 20) == pytest.approx((1.0, 0.8389, 1.0), abs=1e-4)


def test_wilson_narrows_with_trials_and_widens_with_confidence():
    few, many, sure = wilson_interval(5, 10), wilson_interval(500, 1000), wilson_interval(5, 10, 0.99)
    assert many.high - many.low < few.high - few.low < sure.high - sure.low


@pytest.mark.parametrize(("hits", "trials"), [(1, 0), (3, 2), (-1, 4)])
def test_wilson_refuses_impossible_counts(hits, trials):
    with pytest.raises(ValueError, match=f"{hits} hits of {trials}"):
        wilson_interval(hits, trials)


def test_an_abstained_reading_is_never_a_hit():
    readings = readings_of("水木-金")
    assert expected_radical_hits(readings, ["水", "水", "水", "金"]).tolist() == [True, False, False, True]
    assert expected_radical_rate(readings, ["水", "水", "水", "金"]).value == 0.5


def test_any_of_a_set_of_expected_radicals_is_a_hit():
    readings = readings_of("水木金")
    assert expected_radical_hits(readings, [{"水", "木"}, {"水", "木"}, ["水", "木"]]).tolist() == [True, True, False]


def test_readings_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="2 readings, 1 expected"):
        expected_radical_hits(readings_of("水木"), ["水"])
    with pytest.raises(ValueError, match="abstain"):
        expected_radical_hits(pd.DataFrame({"radical": ["水"]}), ["水"])


def test_shuffled_rate_is_the_mean_over_all_permutations():
    readings, expected = readings_of("水水木-"), ["水", "木", "木", {"水", "金"}]
    by_hand = [expected_radical_hits(readings, order).mean() for order in itertools.permutations(expected)]
    assert shuffled_prompt_rate(readings, expected) == pytest.approx(np.mean(by_hand))


def test_drawing_one_radical_for_all_gains_nothing_over_shuffled_prompts():
    readings, expected = readings_of("水" * 8), ["水", "水", *"木木金金人人"]
    assert expected_radical_rate(readings, expected).value == shuffled_prompt_rate(readings, expected) == 0.25


def test_an_image_answers_every_prompt_that_asks_for_one_of_its_parts():
    parts = pd.DataFrame({"parts": [("水", "木"), ("月",), ()]})
    assert answered_prompts(shown_radicals(parts), [{"水"}, {"木", "金"}, {"肉"}, {"人"}]).tolist() == [0.5, 0.25, 0]
    assert answered_prompts(shown_radicals(readings_of("水-")), ["水", "水", "木"]).tolist() == [2 / 3, 0]


# ---------------------------------------------------------------- resampling


def test_bootstrap_of_constant_outcomes_has_no_width():
    assert two_way_bootstrap(np.ones((3, 5)), np.random.default_rng(0)) == (1.0, 1.0, 1.0)


def test_bootstrap_of_one_column_agrees_with_the_normal_interval():
    outcomes = np.random.default_rng(1).normal(size=(400, 1))
    found = two_way_bootstrap(outcomes, np.random.default_rng(2))
    half = 1.96 * outcomes.std() / 20
    assert found == pytest.approx((outcomes.mean(), outcomes.mean() - half, outcomes.mean() + half), abs=0.008)


def test_bootstrap_widens_when_seeds_agree_within_themselves():
    # same cells, once independent and once with whole seeds that hit or miss: only the second depends on the seed
    rng = np.random.default_rng(3)
    scattered = rng.random((8, 40)) < 0.5
    by_seed = np.repeat(np.arange(8)[:, None] % 2 == 0, 40, axis=1)
    narrow = two_way_bootstrap(scattered, np.random.default_rng(4))
    wide = two_way_bootstrap(by_seed, np.random.default_rng(4))
    assert wide.high - wide.low > 3 * (narrow.high - narrow.low)
    # a mean of 8 coins has standard deviation sqrt(1/32) = 0.177; its 2.5% and 97.5% points are 1/8 and 7/8
    assert wide[1:] == pytest.approx((0.125, 0.875), abs=1e-9)


def test_bootstrap_repeats_with_its_generator():
    outcomes = np.random.default_rng(5).random((4, 6))
    assert two_way_bootstrap(outcomes, np.random.default_rng(6)) == two_way_bootstrap(
        outcomes, np.random.default_rng(6)
    )


def test_pairing_removes_the_spread_that_runs_share():
    rng = np.random.default_rng(7)
    shared = rng.normal(size=(5, 30)) + rng.normal(size=(5, 1)) * 3
    difference = paired_difference(shared + 0.5, shared, np.random.default_rng(8))
    assert difference == pytest.approx((0.5, 0.5, 0.5))
    alone = two_way_bootstrap(shared, np.random.default_rng(8))
    assert alone.high - alone.low > 1


def test_paired_difference_turns_its_sign_with_the_order():
    rng = np.random.default_rng(9)
    first, second = rng.random((4, 9)), rng.random((4, 9))
    forward = paired_difference(first, second, np.random.default_rng(10))
    backward = paired_difference(second, first, np.random.default_rng(10))
    assert forward == pytest.approx((-backward.value, -backward.high, -backward.low))


def test_tables_that_do_not_fit_are_refused():
    rng = np.random.default_rng(0)
    with pytest.raises(ValueError, match=r"\(2, 3\) and \(3, 2\)"):
        paired_difference(np.zeros((2, 3)), np.zeros((3, 2)), rng)
    with pytest.raises(ValueError, match="finite"):
        two_way_bootstrap(np.array([[0.0, np.nan]]), rng)
    with pytest.raises(ValueError, match=r"\(3,\)"):
        two_way_bootstrap(np.zeros(3), rng)


# ---------------------------------------------------------------- the text-only ceiling


def test_caption_words_ignore_case_repeats_and_digits():
    assert caption_words("River; to cross a RIVER, 3 times 水") == ("river", "to", "cross", "a", "times")


def test_bayes_posterior_by_hand():
    model = CaptionBayes.fit(["river", "lake", "pine", "oak tree"], ["水", "水", "木", "木"], smoothing=1.0)
    # vocabulary of 5; water: 2 words + 5, tree: 3 words + 5. p(river | water) = 2/7, p(river | tree) = 1/8
    posterior = model.probabilities(["a river", "unheard of"])
    assert model.radicals == ("水", "木")
    assert posterior[0, 0] == pytest.approx((2 / 7) / (2 / 7 + 1 / 8))
    assert posterior[1].tolist() == pytest.approx([0.5, 0.5])  # only the prior is left


def test_ceiling_counts_top_k_and_misses_radicals_never_trained_on():
    captions, radicals = ["river lake", "pine oak", "gold iron"], ["水", "木", "金"]
    held_out = ["lake", "oak", "iron", "herring"]
    ceiling = text_only_ceiling(captions, radicals, held_out, ["水", "木", "水", "魚"], top=(1, 3))
    assert ceiling[1].value == 0.5 and ceiling[3].value == 0.75


def test_ceiling_of_shuffled_captions_falls_to_chance():
    rng = np.random.default_rng(11)
    radicals = np.repeat(list("水木金人"), 60)
    captions = [f"{radical}word{chr(97 + rng.integers(6))}" for radical in radicals]
    named = [caption.replace("水", "water ").replace("木", "tree ").replace("金", "gold ") for caption in captions]
    assert text_only_ceiling(named, radicals, named, radicals)[1].value > 0.95
    assert text_only_ceiling(named, rng.permutation(radicals), named, radicals)[1].low < 0.25 + 0.1


# ---------------------------------------------------------------- diversity and copying


def noise(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, 32, 32), dtype=np.uint8).repeat(2, 1).repeat(2, 2)


def test_diversity_by_hand():
    black, white = np.zeros((64, 64), np.uint8), np.full((64, 64), 255, np.uint8)
    half = white.copy()
    half[:, :32] = 0
    assert mean_pairwise_distance(np.stack([half, half, half])) == 0
    assert mean_pairwise_distance(np.stack([black, white])) == pytest.approx(1.0)
    # pairs: black-white 1, black-half and white-half each sqrt(1/2)
    assert mean_pairwise_distance(np.stack([black, white, half])) == pytest.approx((1 + 2 * 0.5**0.5) / 3)


def test_a_copy_is_found_and_a_stranger_is_not():
    training = noise(20)
    found = nearest_training_images(np.concatenate([training[[3]], noise(1, seed=1)]), training)
    assert found["nearest"][0] == 3 and found["d1"][0] == pytest.approx(0, abs=1e-6)
    assert found["copy"].tolist() == [True, False]
    assert found["ratio"][1] > 0.9


def test_a_copy_of_a_doubled_training_image_is_still_a_copy():
    training = noise(6)
    found = nearest_training_images(training[[4]], np.concatenate([training, training[[4]]]))
    assert found["copy"].tolist() == [True] and found["nearest"][0] in (4, 6)


def test_size_of_the_training_images_does_not_matter():
    training = noise(8)
    enlarged = training.repeat(2, axis=1).repeat(2, axis=2)
    small, large = nearest_training_images(noise(3, 2), training), nearest_training_images(noise(3, 2), enlarged)
    pd.testing.assert_frame_equal(small, large)


def test_images_that_cannot_be_compared_are_refused():
    with pytest.raises(ValueError, match="float64"):
        mean_pairwise_distance(np.zeros((2, 64, 64)))
    with pytest.raises(ValueError, match="multiple of 32"):
        mean_pairwise_distance(np.zeros((2, 60, 60), np.uint8))
    with pytest.raises(ValueError, match="two different"):
        nearest_training_images(noise(1), noise(1).repeat(3, axis=0))


def test_an_expected_part_counts_wherever_it_is():
    readings = pd.DataFrame({"parts": [("水", "木"), ("木",), (), ("火", "木")]})
    hits = expected_part_hits(readings, [{"木"}, {"水", "火"}, {"木"}, {"水", "火"}])
    assert hits.tolist() == [True, False, False, True]
    assert expected_part_hits(pd.DataFrame({"parts": [("月",), ("肉",), ("水",)]}), [{"肉"}] * 3).tolist() == [1, 1, 0]
    with pytest.raises(ValueError, match="4 readings, 1 sets"):
        expected_part_hits(readings, [{"木"}])
