"""The table, the report and the contrasts of a study, against its stored images and against numbers by hand."""

import dataclasses
import json
import shutil

import numpy as np
import pandas as pd
import pytest

from kanjilab.core.run_folder import find_runs
from kanjilab.experiments.context import open_study
from kanjilab.experiments.designs import make_study
from kanjilab.experiments.results import contrasts, outcomes, write_report
from kanjilab.experiments.study import Study
from tests.tiny_study import RADICALS, DarknessJudge, forbid, table_of

pytestmark = pytest.mark.usefixtures("small_lab")


def test_the_table_has_a_row_for_every_image(finished, study):
    folder, report, _ = finished
    table = table_of(folder)
    assert len(table) == 3 * 2 * 8 * 2  # variants, blocks, prompts of both splits, noises
    assert list(table.columns[:9]) == "study variant rank arm run seed checkpoint final images_seen".split()
    assert list(table.columns[9:13]) == ["split", "prompt", "noise_seed", "expected"]
    assert list(table.columns[-5:]) == ["hit", "diversity", "held_out_loss", "stopped", "seconds"]
    counts = table.groupby(["variant", "seed", "split"]).size()
    assert set(counts) == {8}
    assert set(table.loc[table["split"] == "held_out", "prompt"]) == {f"{word} mountain" for word in RADICALS}
    assert (table["images_seen"] == 8).all() and table["final"].all() and table["stopped"].isna().all()
    assert table["expected"].tolist() == [RADICALS[prompt.split()[0]] for prompt in table["prompt"]]
    assert set(table["noise_seed"]) == {0, 1}
    assert table.groupby("variant")["rank"].first().to_dict() == {"rank 2": 2, "rank 3": 3, "the same": 2}


def test_hits_are_the_judges_readings(finished):
    folder, _, _ = finished
    table = table_of(folder)
    expected = (table["radical"] == table["expected"]) & ~table["abstain"]
    assert table["hit"].tolist() == expected.tolist()
    assert 0 < table["hit"].mean() < 1


def test_the_report_says_what_the_table_holds(finished, study):
    folder, report, _ = finished
    table = table_of(folder)
    assert json.loads((folder / "report-radicals.json").read_text()) == json.loads(json.dumps(report))
    assert Study.from_json(report["study"]) == Study.from_json(json.loads((folder / "study.json").read_text())) == study
    assert report["prompts"] == {"held_out": 4, "train": 4}
    for rate in report["rates"]:
        rows = (table["variant"] == rate["variant"]) & (table["split"] == rate["split"])
        assert rate["value"] == pytest.approx(table.loc[rows, "hit"].mean())
        assert rate["low"] <= rate["value"] <= rate["high"]
    assert len(report["sentences"]["held_out"]) == 2
    assert report["sentences"]["held_out"][0].startswith("in base, rank 3 against rank 2: ")
    figure = json.loads((folder / "figure-radicals.json").read_text())
    assert figure["facts"]["study"] == study.hash
    assert set(figure["facts"]["runs"]) == {found.settings["hash"] for found in find_runs(folder)}


def test_only_the_contrasts_beside_the_claim_are_corrected_together(study):
    """Three variants, of which two beat the first in every one of eight blocks."""
    three = dataclasses.replace(study, seeds=tuple(range(8)))
    rng = np.random.default_rng(0)
    rows = [
        dict(variant=variant.label, seed=seed, split="train", prompt=f"{p}", final=True, hit=rng.random() < better)
        for variant, better in zip(three.variants, (0.1, 0.9, 0.9), strict=True)
        for seed in range(8)
        for p in range(20)
    ]
    first, second = contrasts(three, pd.DataFrame(rows), "train")
    assert (first.p, first.p_corrected) == (2 / 256, 2 / 256)
    assert (second.p, second.p_corrected) == (2 / 256, 2 / 256)
    # With four more contrasts Holm would have to say 8/256; flipped together, the clear one keeps its 2/256.
    labels = [variant.label for variant in study.variants]
    pairs = (*three.contrasts, ("the same", "rank 3"), ("rank 3", "the same"), *((label, label) for label in labels))
    found = contrasts(dataclasses.replace(three, contrasts=pairs), pd.DataFrame(rows), "train")
    assert [contrast.p_corrected for contrast in found[:2]] == [2 / 256, 2 / 256]
    assert found[2].p < 1 and found[2].p_corrected >= found[2].p
    assert [contrast.p_corrected for contrast in found[4:]] == [1, 1, 1]


def test_the_claims_of_one_study_are_corrected_together_by_holm():
    """Two of four arms lose in every one of eight blocks to the reference, two are the reference again."""
    four = make_study("claims", "legible")
    worse = ("rank 4", "constant rate")
    rows = [
        dict(variant=v.label, seed=seed, split="train", prompt=f"{p}", final=True, hit=v.label not in worse)
        for v in four.variants
        for seed in four.seeds
        for p in range(3)
    ]
    found = contrasts(four, pd.DataFrame(rows), "train")
    assert [contrast.p for contrast in found] == [2 / 256, 1, 1, 2 / 256]
    assert [contrast.p_corrected for contrast in found] == [8 / 256, 1, 1, 8 / 256]  # 4 of 2/256, then 3, not less


def test_outcomes_are_blocks_by_prompts(study):
    rows = pd.DataFrame(
        [("a", 6, "q", 0, True), ("a", 5, "q", 0, False), ("a", 5, "p", 0, True), ("a", 6, "p", 0, True)]
        + [("a", 6, "q", 1, False), ("a", 5, "q", 1, False), ("a", 5, "p", 1, True), ("a", 6, "p", 1, False)],
        columns=["variant", "seed", "prompt", "noise_seed", "hit"],
    ).assign(split="train", final=True)
    assert outcomes(rows, "a", "train").tolist() == [[1, 0], [0.5, 0.5]]
    assert outcomes(rows.assign(other=3), "a", "train", "other").tolist() == [[3, 3], [3, 3]]


def test_another_judge_reads_without_sampling(finished, study, monkeypatch, tmp_path):
    folder = shutil.copytree(finished[0], tmp_path / "copy")
    forbid(monkeypatch, "run_training", "sample", "Trainable")
    judge = DarknessJudge(threshold=0)  # sees fire everywhere
    report = write_report(open_study(study, folder), judge, "fire")
    assert judge.read_images == 3 * 2 * 8 * 2
    table = table_of(folder, "fire")
    assert set(table["radical"]) == {"火"}
    columns = ["variant", "seed", "prompt", "noise_seed", "held_out_loss"]
    pd.testing.assert_frame_equal(table[columns], table_of(folder)[columns])
    assert report["judge"] == "fire"
    assert (folder / "figure-fire.png").exists() and (folder / "figure-radicals.png").exists()
    # A judge that reads other things brings its own hits.
    alike = write_report(
        open_study(study, folder), judge, "any", hits=lambda readings, expected: np.ones(len(readings))
    )
    assert all(rate["value"] == 1 for rate in alike["rates"])
    by_light = write_report(open_study(study, folder), DarknessJudge(), "light", outcome="probability")
    assert by_light["rates"][0]["value"] == pytest.approx(
        table_of(folder, "light").query("variant == 'rank 2' and split == 'held_out'")["probability"].mean()
    )


def test_a_report_of_an_unfinished_study_is_refused(study, tmp_path):
    with pytest.raises(ValueError, match="6 of 6 arms are not there yet"):
        write_report(open_study(study, tmp_path), DarknessJudge())
