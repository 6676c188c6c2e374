"""One setting of a stored study, step by step."""

import json

import numpy as np
import pandas as pd
import pytest

from kanjilab.experiments.designs import make_study
from kanjilab.experiments.image_sheets import ImageSheets
from kanjilab.experiments.ladder import _step_texts, ladder_strip, ladder_table, steps_of
from tests.stored_study import rank_study, store_study

LADDER = ["rank 1", "rank 4", "rank 16", "rank 64", "rank 256"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return store_study(tmp_path_factory.mktemp("studies") / "made", rank_study())


def test_steps_hold_all_other_axes_where_the_reference_has_them():
    assert list(steps_of(rank_study(), "rank").items()) == list(zip((1, 4, 16, 64, 256), LADDER, strict=True))
    moved = make_study("settings", "steps")
    assert list(steps_of(moved, "batch")) == [1, 4, 8, 16, 64]
    assert list(steps_of(moved, "targets")) == ["all", "cross-attention", "attention", "attention+feed-forward"]
    assert steps_of(moved, "peak_lr")[1.5e-3] == "the studies' arm"
    with pytest.raises(ValueError, match="one of .*rank.*got 'colour'"):
        steps_of(moved, "colour")


def test_rows_are_values_and_columns_are_prompts_radical_by_radical(folder):
    sheets, report = ImageSheets.read(folder), json.loads((folder / "report-radicals.json").read_text())
    strip = ladder_strip(folder, "rank", seed=2, per_radical=2)
    assert strip.row_labels == tuple(LADDER) and strip.column_groups == (("held-out", 8), ("train", 8))
    expected = {shown["prompt"]: shown["expected"] for shown in sheets.prompts}
    radicals = [expected[prompt] for prompt in strip.column_labels[:8]]
    assert radicals == sorted(radicals) and all(radicals.count(one) == 2 for one in radicals)
    for row, label in enumerate(LADDER):
        (key,) = {a["arm"] for a in report["arms"] if (a["variant"], a["seed"]) == (label, 2)}
        for column, prompt in enumerate(strip.column_labels):
            (at,) = [number for number, shown in enumerate(sheets.prompts) if shown["prompt"] == prompt]
            assert np.array_equal(strip.images[row, column], sheets.images(key)[at, -1, 0])
    with pytest.raises(KeyError):
        ladder_strip(folder, "rank", seed=9)


def test_values_that_look_alike_keep_their_digits():
    assert _step_texts("peak_lr", [0.0015, 0.0045]) == ["rate 0.0015", "rate 0.0045"]
    assert _step_texts("beta2", [0.99, 0.999, 0.9999]) == ["beta2 0.99", "beta2 0.999", "beta2 0.9999"]
    assert _step_texts("targets", ["all", "attention"]) == ["all layers", "attention"]


def test_rates_are_those_of_the_tables_at_the_end_of_training(folder):
    table = ladder_table(folder, "rank")
    assert list(table.index) == LADDER
    for judge, name in (("radicals", "first judge"), ("judge-b", "judge B")):
        hits = pd.read_parquet(folder / f"table-{judge}.parquet").query("final and split == 'held_out'")
        for label in LADDER:
            share = 100 * hits[hits["variant"] == label]["hit"].mean()
            assert table.loc[label, f"held-out, {name}"].startswith(f"{share:.1f} [")
