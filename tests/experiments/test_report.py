"""Stored studies read again: their numbers against the tables, their words against the verdicts."""

import dataclasses
import json

import numpy as np
import pandas as pd
import pytest

from kanjilab.core.run_folder import find_runs
from kanjilab.evaluation.statistics import compare
from kanjilab.experiments import designs as studies
from kanjilab.experiments.context import open_study
from kanjilab.experiments.designs import STUDY_ARM, TUNED_SUFFIX, make_study
from kanjilab.experiments.drawn import last_images, measure_images, prompt_table, read_logs, variants_strip
from kanjilab.experiments.packs import stored_moments
from kanjilab.experiments.report import StoredStudy, variant_settings
from kanjilab.experiments.results import outcomes
from kanjilab.experiments.stored_numbers import DIVERSITY, HITS, LOSS
from kanjilab.experiments.study import Study, Variant
from tests.tiny_study import RADICALS, forbid

pytestmark = pytest.mark.usefixtures("small_lab")
SPLITS = ("held_out", "train")


@pytest.fixture
def stored(finished):
    return StoredStudy.read(finished[0])


@pytest.fixture
def lab(finished, study):
    return open_study(study, finished[0])


# ---------------------------------------------------------------------------------- a study made by hand


def written(folder, shares, stopped=(), study=None, judge="radicals", abstain=False):
    """A stored study of eight blocks and ten prompts a split; a variant hits so many of ten, one more in odd blocks.

    Args:
        shares: label -> hits of ten in even blocks, not always on the same prompts.
        stopped: (label, seed) of trainings that ended early.
    """
    labels = list(shares)
    variants, seeds = tuple(map(Variant, labels)), tuple(range(8))
    study = study or Study("batch-full", "<b> draws better", STUDY_ARM, variants, seeds, phase="confirm")
    rows = [
        dict(variant=label, seed=seed, split=split, prompt=str(prompt), final=True)
        | dict(hit=(prompt + 3 * seed) % 10 < hits + seed % 2)
        | dict(stopped="step 3: too steep" if (label, seed) in stopped else None, images_seen=24, run="r")
        | dict(abstain=abstain, radical="水", expected="水" if prompt < 5 else "火", legal=True, exists=False)
        | dict(diversity=0.1 * (1 + labels.index(label)), held_out_loss=0.2 + 0.01 * seed + 0.1 * labels.index(label))
        for label, hits in shares.items()
        for seed in study.seeds
        for split in SPLITS
        for prompt in range(10)
    ]
    table = pd.DataFrame(rows)
    found = {
        split: [compare(*(outcomes(table, label, split) for label in pair), pair) for pair in study.contrasts]
        for split in SPLITS
    }
    rates = [
        dict(split=split, variant=label, value=cells.mean(), low=0.0, high=1.0, blocks=cells.mean(axis=1).tolist())
        | dict(final=True, images_seen=24)
        for split in SPLITS
        for label in labels
        for cells in [outcomes(table, label, split)]
    ]
    report = {
        "study": study.to_json(),
        "hash": study.hash,
        "judge": judge,
        "prompts": dict.fromkeys(SPLITS, 10),
        "contrasts": {split: [contrast.to_json() for contrast in some] for split, some in found.items()},
        "sentences": {split: ["a < b: held"] for split in SPLITS},
        "rates": rates,
        "arms": [{"run": "r2"}, {"run": "r1"}, {"run": "r2"}],
    }
    folder = folder / study.name
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"report-{judge}.json").write_text(json.dumps(report))
    table.to_parquet(folder / f"table-{judge}.parquet")
    return StoredStudy.read(folder, judge)


# ---------------------------------------------------------------------------------- reading


def test_a_stored_study_is_what_was_written(stored, finished, study):
    folder, report, _ = finished
    assert stored.study == study and stored.report["hash"] == study.hash
    assert stored.labels == ["rank 2", "rank 3", "the same"] and stored.splits == list(SPLITS)
    assert stored.source["study"] == study.hash
    assert set(stored.source["runs"]) == {run.settings["hash"] for run in find_runs(folder)}
    assert stored.note == "in base: 2 training seeds, 4 held-out prompts"
    contrasts = [contrast.to_json() for contrast in stored.contrasts("train")]
    assert json.dumps(contrasts) == json.dumps(report["contrasts"]["train"])
    with pytest.raises(FileNotFoundError):
        StoredStudy.read(folder, "nobody")


def test_numbers_are_the_tables(stored):
    final = stored.table[stored.table["final"]]
    blocks = stored.blocks()
    for name, column in ((LOSS, "held_out_loss"), (DIVERSITY, "diversity")):
        assert list(blocks[name].columns) == stored.labels and list(blocks[name].index) == [5, 6]
        row = final[(final["variant"] == "rank 3") & (final["seed"] == 6)]
        assert blocks[name].loc[6, "rank 3"] == pytest.approx(row[column].iloc[0])
    hits = final[final["split"] == "held_out"].groupby(["seed", "variant"])["hit"].mean().unstack()
    assert np.allclose(blocks[HITS], hits[stored.labels])
    beside = stored.beside()
    assert beside.loc["rank 3", "hits, held-out"] == pytest.approx(hits["rank 3"].mean())
    assert stored.rates()["value"].tolist() == pytest.approx(hits[stored.labels].mean().tolist())
    assert stored.differences()["label"].tolist() == ["rank 3 – rank 2", "the same – rank 2"]


def test_beside_a_rate_is_what_luck_would_reach(tmp_path):
    beside = written(tmp_path, {"a": 4, "b": 2}).beside()
    # Every image shows water, and half of the prompts ask for it.
    assert beside.loc["a"].tolist() == pytest.approx([0.45, 0.45, 0.5, 0.0, 0.1, 0.235])
    assert list(beside.columns[:3]) == ["hits, held-out", "hits, train", "dealt at random"]


def test_a_model_that_draws_one_radical_for_all_gains_nothing_above_chance(tmp_path):
    def answering(share):  # b draws fire for so many of the prompts that ask for it; all else is water
        stored = written(tmp_path, {"a": 5, "b": 5})
        table = stored.table.copy()
        right = (table["variant"] == "b") & (table["prompt"].astype(int) >= 10 - share)
        table["radical"] = table["expected"].where(right, "水")
        return dataclasses.replace(stored, table=table.assign(hit=table["radical"] == table["expected"]))

    (none,), (two,) = answering(0).above_chance(), answering(2).above_chance()
    assert none.difference == (0, 0, 0) and none.rates == (0, 0)
    # Two of ten images show fire, and half of the prompts ask for it: each is still one of two by chance.
    assert (two.difference.value, two.rates, two.p) == (pytest.approx(0.2), (pytest.approx(0.2), 0), 2 / 256)
    assert "b against a: +20.0 points" in answering(2).above_chance_text()


def test_each_radical_is_counted_where_it_was_asked_for_and_where_not(tmp_path):
    stored = written(tmp_path, {"a": 5, "b": 5})
    shown = [("水", "月") if prompt in "01" else ("月",) for prompt in stored.table["prompt"]]
    table = stored.table.drop(columns=["radical", "abstain"]).assign(parts=shown)
    table["expected"] = np.where(table["prompt"].isin(["0", "2"]), "水肉", table["expected"])  # 肉 is listed as 月
    shares = dataclasses.replace(stored, table=table).by_radical()
    assert shares.loc["b"].to_dict() == {
        **{("asked for", "水"): 2 / 5, ("asked for", "火"): 0, ("asked for", "肉"): 1},
        **{("not asked for", "水"): 0, ("not asked for", "火"): 0, ("not asked for", "肉"): 1},
    }


def test_prompts_that_a_pilot_asked_can_be_left_out(tmp_path):
    stored = written(tmp_path, {"a": 2, "b": 4})
    table = stored.table.copy()
    table["hit"] = (table["variant"] == "b") & (table["prompt"].astype(int) < 6)
    stored = dataclasses.replace(stored, table=table)
    text = stored.other_prompts_text(pd.DataFrame({"prompt": list("01234")}))
    assert text.startswith("On the 5 prompts") and "b against a: +20.0 points" in text  # one of 5, not 6 of 10


def test_blocks_are_under_their_seeds_in_any_order_of_these(tmp_path):
    given = Study("batch-full", "b", STUDY_ARM, (Variant("a"), Variant("b")), tuple(range(7, -1, -1)))
    hits = written(tmp_path, {"a": 2, "b": 4}, study=given).blocks()[HITS]
    assert hits["a"].to_dict() == pytest.approx({seed: 0.2 + 0.1 * (seed % 2) for seed in range(8)})


def test_p_values_say_what_they_are_corrected_for(tmp_path):
    assert written(tmp_path, {"a": 2, "b": 4}).sentences_text().endswith("by itself.*")
    assert written(tmp_path, {"a": 2, "b": 4, "c": 3}).sentences_text().endswith("corrected among themselves.*")


def test_measured_compares_the_means_of_arms(tmp_path):
    stored = written(tmp_path, {"a": 4, "b": 2})
    losses = stored.measured("held_out_loss")
    row = losses.loc["b – a"]
    assert row[["first", "second", "difference"]].tolist() == pytest.approx([0.335, 0.235, 0.1])
    assert (row["low"], row["high"]) == pytest.approx((0.1, 0.1)) and row["p"] == 2 / 256
    images = pd.DataFrame(
        [(v, s, s + n) for v in "ab" for s in range(8) for n in (0, 2)], columns=["variant", "seed", "x"]
    )
    assert stored.measured("x", images).loc["b – a", ["first", "difference", "p"]].tolist() == [4.5, 0, 1]
    text = stored.measured_text("loss", losses, "worse", "better")
    assert text == "- b – a: loss 0.335 against 0.235, +0.1 [0.1, 0.1], p = 0.00781: the first is worse"
    assert stored.measured_text("x", stored.measured("x", images), "worse", "better").endswith("p = 1: not told apart")


def test_settings_that_differ_are_separated_from_those_that_do_not(stored):
    assert list(variant_settings(stored.study).columns) == ["rank", "alpha"]
    wide = variant_settings(make_study("epochs", "wide"))
    assert list(wide.columns) == ["images_seen", "data"]
    assert set(wide["data"]) == {f"left16, per_radical {count}" for count in (22, 44, 88)}
    uneven = variant_settings(make_study("balance", "broad"))["data"]
    assert uneven["imbalance 10"] == "imbalanced left16, ratio 10, per_radical 88"
    alphas = variant_settings(make_study("article"))["alpha"]
    assert alphas.to_dict() == {"article, faster": 4.0, "its code, faster": "the rank"}
    pair = (Variant("plain", {}), Variant("DoRA", dict(dora=True)))
    assert variant_settings(Study("pair", "", STUDY_ARM, pair, (0,)))["dora"].tolist() == [False, True]
    text = StoredStudy(stored.folder, make_study("batch"), stored.report, stored.table).settings_text()
    assert "rank 64" in text and "images_seen 2,400" in text and "beta2 0.999" in text
    assert "ema_decay" not in text and "batch 8;" not in text.split("The same for all")[1]
    assert "水 虫 言 金" in text
    recipes = StoredStudy(stored.folder, make_study("article"), stored.report, stored.table).settings_text()
    assert "batch 1," in recipes and "schedule cosine" in recipes and "ema_decay none" in recipes


# ---------------------------------------------------------------------------------- words


@pytest.mark.parametrize(
    ("shares", "words"),
    [
        ({"a": 2, "b": 4}, "the claim **holds** here."),
        ({"a": 4, "b": 2}, "the claim **fails** here: b draws worse than a."),
        ({"a": 4, "b": 4}, "the claim **fails** here: b and a draw equally well, within the margin."),
        ({"a": 0, "b": 0}, "the claim is **undecided**"),
    ],
)
def test_the_answer_says_the_verdict(tmp_path, shares, words):
    if shares == {"a": 0, "b": 0}:
        shares = {"a": -1, "b": -1}  # no image hits: nothing can be decided
    answer = written(tmp_path, shares).answer_text()
    assert answer.startswith(f"At one learning rate for all, {words}")
    assert "8 blocks" in answer and "(claims corrected together: 1)" in answer


def test_both_ways_to_choose_a_rate_are_answered(tmp_path):
    labels = ("a", "b", "a" + TUNED_SUFFIX, "b" + TUNED_SUFFIX)
    pairs = (("b", "a"), ("b" + TUNED_SUFFIX, "a" + TUNED_SUFFIX))
    variants = tuple(Variant(label, dict(peak_lr=0.1 * (1 + i))) for i, label in enumerate(labels))
    study = Study("batch-full", "b draws better", STUDY_ARM, variants, tuple(range(8)), pairs, phase="confirm")
    stored = written(tmp_path, dict(zip(labels, (2, 4, 4, 2), strict=True)), study=study)
    shared, tuned = stored.answer_text().split("At the rate that a pilot chose for each")
    assert "**holds**" in shared and "**fails**" in tuned
    assert (
        "Two ways to choose the learning rate: 0.0015 for all, and a, tuned 0.3; b, tuned 0.4." in stored.limits_text()
    )
    assert not written(tmp_path / "other", {"a": 2, "b": 4}).has_tuned
    assert "tuned for none" in written(tmp_path / "other", {"a": 2, "b": 4}).limits_text()


def test_a_rate_for_all_that_a_pilot_chose_for_each_is_answered_once(tmp_path, monkeypatch):
    monkeypatch.setitem(studies.TUNED, "batch-full", dict.fromkeys("ab", STUDY_ARM.peak_lr))
    answer = written(tmp_path, {"a": 2, "b": 4}).answer_text()
    assert answer.startswith("At one learning rate, the one that a pilot chose for every variant, the claim **holds**")
    assert answer.count("b against a") == 1


def test_claims_are_corrected_together(tmp_path):
    stored = written(tmp_path, {"a": 2, "b": 4})
    study = dataclasses.replace(stored.study, name="rank-full", claim="another")
    written(tmp_path, {"a": 2, "b": 4}, study=study)
    assert "p = .0156" in stored.answer_text() and "(claims corrected together: 2)" in stored.answer_text()
    other = dataclasses.replace(stored.study, name="rank-legible", claim="at another scale")
    written(tmp_path, {"a": 2, "b": 4}, study=other)
    assert "(claims corrected together: 2)" in stored.answer_text()
    explored = dataclasses.replace(stored.study, name="epochs-full", phase="explore")
    assert written(tmp_path, {"a": 2, "b": 4}, study=explored).answer_text() == ""
    assert "(claims corrected together: 2)" in stored.answer_text()
    legible = dataclasses.replace(stored.study, name="batch-legible")
    assert "(claims corrected together: 2)" in written(tmp_path, {"a": 2, "b": 4}, study=legible).answer_text()


def test_what_was_stopped_is_named_and_left_out(tmp_path):
    assert written(tmp_path, {"a": 2, "b": 4}).stopped_text() == "All 8 trainings came to their end."  # a and b are one
    apart = tuple(Variant(label, dict(rank=rank)) for rank, label in enumerate("ab", 1))
    study = Study("rank-full", "", STUDY_ARM, apart, tuple(range(8)))
    assert written(tmp_path / "apart", {"a": 2, "b": 4}, study=study).stopped_text().startswith("All 16 trainings")
    stored = written(tmp_path / "stopped", {"a": 2, "b": 4}, stopped=[("b", 3)])
    text = stored.stopped_text()
    assert "- b, seed 3: 24 images seen of 8 epochs. " in text and "step 3: too steep" in text
    assert "b against a: +20.0 points" in text and text.endswith("p = .0156, 7 blocks: held")  # 2/128


def test_judges_agree_or_not(tmp_path):
    first = written(tmp_path, {"a": 2, "b": 4})
    same, other = (written(tmp_path, shares, judge="judge-b") for shares in ({"a": 1, "b": 3}, {"a": 4, "b": 2}))
    assert first.judges_text(same).endswith("held: the same verdict")
    assert first.judges_text(other).endswith("refuted: where the first judge says held, with the opposite sign")
    beside = first.beside_another(other)
    assert beside.loc["a"].tolist() == pytest.approx([0.25, 0.45, 0.5, 1, 0])
    stranger = dataclasses.replace(other, report={**other.report, "hash": "0"})
    with pytest.raises(ValueError, match="expected readings of study"):
        first.beside_another(stranger)


def test_a_variant_that_has_hardly_begun_is_named(tmp_path):
    assert "hardly begun" not in written(tmp_path, {"a": 2, "b": 4}).limits_text()
    assert written(tmp_path, {"a": 2, "b": 4}, abstain=True).limits_text().count("had hardly begun to draw") == 2
    second = written(tmp_path, {"a": 2, "b": 4}, judge="judge-b")
    second = dataclasses.replace(second, table=second.table.drop(columns="abstain").assign(parts=[()] * 320))
    assert "hardly begun" not in second.limits_text()  # judges A and B do not abstain


def test_markup_in_a_study_is_only_text(tmp_path):
    stored = written(tmp_path, {"<img onerror=1>": 4, "<i>b": 2})
    texts = [stored.settings_text(), stored.sentences_text(), stored.answer_text(), stored.limits_text()]
    texts += [stored.measured_text("x", stored.measured("diversity"), "more", "less"), stored.stopped_text()]
    assert not any("<" in text for text in texts)
    assert "a &lt; b: held" in texts[1]


# ---------------------------------------------------------------------------------- drawn images


def test_images_and_prompts_are_in_the_same_order(lab, monkeypatch):
    forbid(monkeypatch, "run_training", "sample", "Trainable")
    asked = prompt_table(lab)
    assert asked["split"].tolist() == ["held_out"] * 4 + ["train"] * 4
    assert asked["radical"].tolist() == [RADICALS[prompt.split()[0]] for prompt in asked["prompt"]]

    def light(images):
        return pd.DataFrame({"light": images.mean(axis=(1, 2))})

    measured = measure_images(lab, light)
    assert len(measured) == 3 * 2 * 8 * 2
    variant = lab.study.variants[1]
    images = last_images(lab, variant, 6)  # (P, S, H, W)
    rows = measured[(measured["variant"] == "rank 3") & (measured["seed"] == 6)].reset_index(drop=True)
    assert rows["light"].tolist() == pytest.approx(images.mean(axis=(2, 3)).ravel().tolist())
    assert rows["prompt"].tolist() == [prompt for prompt in asked["prompt"] for _ in range(2)]
    assert rows["noise_seed"].tolist() == [0, 1] * 8
    alone = measure_images(lab, light, [variant])
    assert alone[alone["seed"] == 6].reset_index(drop=True).equals(rows) and set(alone["variant"]) == {"rank 3"}


def test_a_strip_has_the_base_above_and_a_row_for_each_variant(lab, monkeypatch):
    monkeypatch.setattr(
        "kanjilab.experiments.drawn.sample",
        lambda base, captions, *_, size_px: np.zeros((1, len(captions), 1, size_px, size_px), "u1"),
    )
    order = lab.study.variants[::-1]
    strip = variants_strip(lab, order, seed=6, title="one seed")
    assert strip.row_labels == ("before training", "the same", "rank 3", "rank 2")
    assert strip.column_groups == (("held-out", 4), ("train", 4)) and strip.title == "one seed"
    assert not strip.images[0].any()
    np.testing.assert_array_equal(strip.images[2], last_images(lab, order[1], 6)[:, 0])


def test_logs_are_those_of_each_arm(lab, finished):
    logs = read_logs(lab)
    key = lab.key(lab.study.variants[1], 6)
    run = next(run for run in find_runs(finished[0]) if key in str(run.samples()))
    k = [arm["rank"] == 3 and arm["seed"] == 6 for arm in run.settings["arms"]].index(True)
    found = logs[(logs["variant"] == "rank 3") & (logs["seed"] == 6)]
    assert found["loss"].tolist() == pytest.approx([losses[k] for losses in run.read_log()["loss"]])
    assert found["images_seen"].iloc[-1] == stored_moments(lab)[key][-1].images_seen == 8
    assert set(logs["variant"]) == {variant.label for variant in lab.study.variants} and logs["stopped"].isna().all()


def test_logs_name_the_arms_that_stopped(lab, monkeypatch):
    moments, key = stored_moments(lab), lab.key(lab.study.variants[1], 6)
    moments[key] = [dataclasses.replace(moment, stopped="too steep") for moment in moments[key]]
    monkeypatch.setattr("kanjilab.experiments.drawn.stored_moments", lambda lab: moments)
    logs = read_logs(lab).dropna(subset="stopped")
    assert set(zip(logs["variant"], logs["seed"], logs["stopped"], strict=True)) == {("rank 3", 6, "too steep")}
