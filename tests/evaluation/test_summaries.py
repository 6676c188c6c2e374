"""Scores of a prompt set at tables made by hand."""

import numpy as np
import pandas as pd
import pytest

from kanjilab.evaluation.criteria import CRITERIA
from kanjilab.evaluation.summaries import prompt_information, summary, yield_at


def test_yield_at_hand_worked_counts():
    passes = np.array([[1, 0, 1], [0, 0, 1], [0, 0, 1], [0, 0, 1]], bool)
    np.testing.assert_allclose(yield_at(passes, 1), [1 / 4, 0, 1])
    np.testing.assert_allclose(yield_at(passes, 2), [1 / 2, 0, 1])  # 1 - C(3, 2) / C(4, 2)
    np.testing.assert_allclose(yield_at(passes, 4), [1, 0, 1])
    with pytest.raises(ValueError, match="n must lie in 1 to 4, got 5"):
        yield_at(passes, 5)


def rows_of(expected, parts, **columns) -> pd.DataFrame:
    """A table of (prompts, images) of parts, every verdict true unless given."""
    rows = [
        {"prompt": f"p{p}", "image": i, "expected": expected[p], "parts": shown, "layout": "⿰", "novelty": "new"}
        for p, line in enumerate(parts)
        for i, shown in enumerate(line)
    ]
    table = pd.DataFrame(rows).assign(
        complexity=2.0, neighbour_exists=False, **dict.fromkeys([*CRITERIA, "all_five"], True)
    )
    table["meaning"] = [
        bool(set(s.split()) & set(e.split())) for s, e in zip(table["parts"], table["expected"], strict=True)
    ]
    return table.assign(**columns)


def test_summary_at_a_hand_worked_table():
    table = rows_of(["水 木", "水 人", "火 土"], [["水 口", "口 水"], ["水 口", "土 口"], ["口 目", "土 日"]])
    table["all_five"] = [True, True, True, False, False, False]
    scores = summary(table)
    value = scores["value"]
    assert value["all_five"] == 0.5 and value["two_or_more"] == 1 and value["complexity"] == 2
    assert value["yield@2"] == pytest.approx(2 / 3) and "yield@1" not in value
    assert value["distinct_passes"] == pytest.approx((1 + 1 + 0) / 3)  # 水 and 口 in either order are one
    # Rates 1, 1/2 (both of likeliest part 水) and 1/2 (火): 3/4 and 1/2.
    assert value["meaning"] == pytest.approx(2 / 3) and value["meaning_balanced"] == pytest.approx(0.625)
    # 水 suits the first two prompts, 土 the last, 口 with 目 none: (3 x 2 + 2 x 1) of 18 pairings.
    assert value["meaning_permuted"] == pytest.approx(8 / 18)
    assert value["novelty: new"] == 1 and value["novelty: exists"] == 0
    interval = scores.loc["all_five"]
    assert 0 <= interval["low"] < 0.5 < interval["high"] <= 1


def test_spamming_a_frequent_part_is_seen_through():
    prompts = ["口 木"] * 8 + ["水 人", "火 土"]
    spam = summary(rows_of(prompts, [["口 日"]] * 10))["value"]
    assert spam["meaning"] == 0.8 and spam["meaning_permuted"] == pytest.approx(0.8)
    assert spam["meaning_balanced"] == pytest.approx(1 / 3)
    assert spam["information_bits"] == pytest.approx(0, abs=1e-12) and spam["information_p"] == 1


def test_information_between_prompts_and_parts():
    labels = ["水 木", "火 土"] * 8
    rng = np.random.default_rng(0)
    bits, p = prompt_information(rows_of(labels, [[label.split()[0]] * 3 for label in labels]), rng)
    assert 0.85 < bits <= 1 and p == pytest.approx(1 / 201)  # one bit, less a little that chance gives
    random = [[str(rng.choice(["水", "火"])) for _ in range(3)] for _ in labels]
    bits, p = prompt_information(rows_of(labels, random), rng)
    assert abs(bits) < 0.2 and p > 0.01
    assert prompt_information(rows_of(labels, [[""]] * 16), rng)[0] == pytest.approx(0, abs=1e-12)
