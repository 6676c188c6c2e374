"""The studies by name: what each varies and what it must not."""

import dataclasses
import json

import pandas as pd
import pytest

from kanjilab.core.config import DEFAULT_BASE
from kanjilab.evaluation.statistics import compare
from kanjilab.experiments import designs as studies
from kanjilab.experiments.designs import (
    BUDGETS,
    CLAIMS,
    CONFIRM_SEEDS,
    DESIGNS,
    RATES,
    STUDY_ARM,
    TUNED_SUFFIX,
    Design,
    at_every_rate,
    best_rates,
    make_study,
    with_tuned_rates,
)
from kanjilab.experiments.findings import claims_table, findings, is_tuned
from kanjilab.experiments.study import Study, Variant

KANJI = 1_408  # of left16
FEW = (85, 142, 149, 167)


def arms_of(study):
    """The first block's arms, by label."""
    return {variant.label: study.arm_of(variant, study.seeds[0]) for variant in study.variants}


def differing(study):
    """Settings in which at least two of a study's arms differ."""
    rows = [arm.to_json() for arm in arms_of(study).values()]
    return {name for name in rows[0] if len({row[name] for row in rows}) > 1}


# ---------------------------------------------------------------------------------- all of them


@pytest.mark.parametrize("scale", BUDGETS)
@pytest.mark.parametrize("name", DESIGNS)
def test_every_study_can_be_made_and_stored(name, scale):
    study = make_study(name, scale)
    assert Study.from_json(json.loads(json.dumps(study.to_json()))) == study
    assert study.name == f"{name}-{scale}"
    assert study.seeds == BUDGETS[scale].seeds
    assert study.contrasts and len(study.variants) > 1
    assert study.arm.images_seen == BUDGETS[scale].images_seen


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("rank", {"rank", "alpha", "rslora"}),
        ("batch", {"batch", "beta2", "images_seen", "warmup_steps", "ema_decay"}),
        ("epochs", {"images_seen"}),
        ("schedule", {"schedule", "ema_decay", "peak_lr"}),
        ("balance", set()),
        ("position", set()),
        ("targets", {"targets"}),
        ("full", {"targets", "peak_lr"}),
        ("settings", {"rank", "batch", "warmup_steps", "ema_decay", "peak_lr", "schedule", "targets"}),
    ],
)
def test_a_study_varies_what_it_is_about_and_nothing_else(name, settings):
    assert differing(make_study(name, "wide")) == settings


def test_pilots_and_confirmations_share_no_seed():
    assert not set(BUDGETS["pilot"].seeds) & set(BUDGETS["full"].seeds)
    assert BUDGETS["full"].seeds == tuple(range(100, 108))
    assert len(BUDGETS["pilot"].seeds) == 3
    assert {make_study(name).phase for name in CLAIMS} == {"confirm"}
    assert {make_study(name).phase for name in DESIGNS if name not in (*CLAIMS, "claims")} == {"explore"}
    assert make_study("rank", "pilot").phase == "pilot"


def test_seeds_can_be_chosen():
    assert make_study("rank", "full", [5, 6]).seeds == (5, 6)


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [(("colour",), "study must be one of rank,"), (("rank", "huge"), "scale must be one of")],
)
def test_unknown_names_are_refused(arguments, complaint):
    with pytest.raises(ValueError, match=complaint):
        make_study(*arguments)


# ---------------------------------------------------------------------------------- each of them


def test_ranks_and_scalings_meet_at_rank_4():
    arms = arms_of(make_study("rank", "wide"))
    assert {arm.rank for arm in arms.values()} == {1, 4, 16, 64, 256}
    assert arms["rank 4"].scale == 1
    scales = {label: arm.scale for label, arm in arms.items()}
    assert {scales[f"rank {rank}"] for rank in (1, 16, 64, 256)} == {1}
    assert [scales[f"rank {rank}, alpha 4"] for rank in (1, 16, 64, 256)] == [4, 1 / 4, 1 / 16, 1 / 64]
    assert [scales[f"rank {rank}, rsLoRA"] for rank in (1, 16, 64, 256)] == [2, 1 / 2, 1 / 4, 1 / 8]
    assert make_study("rank").contrasts[0] == ("rank 64", "rank 4")


def test_batches_at_equal_images_and_at_equal_steps():
    study = make_study("batch", "wide")
    arms = arms_of(study)
    steps = {label: arm.total_steps(KANJI) for label, arm in arms.items()}
    reference = steps["batch 8"]
    assert [steps[f"batch {b}"] for b in (1, 4, 64)] == [8 * reference, 2 * reference, reference / 8]
    assert {arms[f"batch {b}"].images_seen for b in (1, 4, 64)} == {study.arm.images_seen}
    assert {steps[f"batch {b}, equal steps"] for b in (1, 4, 64)} == {reference}
    # Warm-up and average reach over as many images for all; beta2 does where it is meant to.
    for label, arm in arms.items():
        assert arm.warmup_steps == max(1, 120 // arm.batch)
        assert arm.ema_decay ** (8 / arm.batch) == pytest.approx(STUDY_ARM.ema_decay)
        kept_over_8_images = arm.beta2 ** (8 / arm.batch)
        assert (kept_over_8_images == pytest.approx(STUDY_ARM.beta2)) == (arm.batch == 8 or "per image" in label)
    assert study.contrasts[0] == ("batch 1", "batch 8")


def test_settings_are_moved_one_at_a_time_and_every_variant_has_its_place_on_every_axis():
    study = make_study("settings", "steps")
    assert (study.base, study.checkpoints, study.seeds) == ("pocket2", 4, (0, 1))
    usual = dict(study.variants[0].axes)
    assert usual == dict(rank=64, batch=8, peak_lr=1.5e-3, schedule="linear", targets="all")
    for variant in study.variants[1:]:
        (axis,) = [name for name, value in variant.axes.items() if value != usual[name]]
        assert getattr(study.arm_of(variant, 0), axis) == variant.axes[axis]
    assert study.contrasts == tuple((v.label, "the studies' arm") for v in study.variants[1:])


def test_epochs_spend_budgets_and_kanji():
    study = make_study("epochs", "wide")
    arms, budget = arms_of(study), BUDGETS["wide"].images_seen
    seen = sorted({arm.images_seen for arm in arms.values()})
    assert seen == [budget * factor for factor in (0.25, 0.5, 1, 2, 4)]
    assert {arm.schedule for arm in arms.values()} == {"constant-cooldown"}
    assert study.contrasts[0] == (f"{4 * budget:,} images seen", f"{budget:,} images seen")
    assert [dict(data) for data in study.datasets()] == [
        {"name": "left16", "per_radical": 88},
        {"name": "left16", "per_radical": 22},
        {"name": "left16", "per_radical": 44},
    ]
    assert [dict(data) for data in make_study("epochs").datasets()] == [
        {"name": "only", "rule": {"name": "left16", "per_radical": 88}, "radicals": list(FEW)}
    ]


def test_schedules_have_one_peak_and_a_constant_of_their_mean():
    arms = arms_of(make_study("schedule", "wide"))
    assert [label for label, arm in arms.items() if arm.peak_lr != STUDY_ARM.peak_lr] == ["constant, half the rate"]
    assert arms["constant, half the rate"].peak_lr == STUDY_ARM.peak_lr / 2
    assert [label for label, arm in arms.items() if arm.ema_decay] == ["constant + EMA"]
    assert arms["periodic"].schedule == "periodic" and arms["periodic"].warmup_steps == 15
    assert make_study("schedule").contrasts[0] == ("cosine", "constant")


def test_balance_and_position_differ_in_data_alone():
    balance = make_study("balance", "wide")
    assert [dict(data).get("ratio", 1.0) for data in balance.datasets()] == [1.0, 3.0, 10.0, 30.0]
    position = make_study("position")
    assert [(data["rule"], tuple(data["radicals"])) for data in position.datasets()] == [
        ({"name": "left16", "per_radical": 88}, FEW),
        ({"name": "seed16", "per_radical": 88}, FEW),
    ]


def test_the_article_and_its_code():
    arms = arms_of(make_study("article", "wide"))
    assert (arms["article"].targets, arms["article"].alpha) == ("cross-attention", 4)
    assert (arms["its code"].targets, arms["its code"].scale) == ("attention", 1)
    for label in ("article", "its code"):
        assert (arms[label].batch, arms[label].peak_lr, arms[label].schedule) == (1, 1e-4, "cosine")
        assert arms[f"{label}, faster"] == dataclasses.replace(arms[label], peak_lr=STUDY_ARM.peak_lr)
    assert len({arm.images_seen for arm in arms.values()}) == 1


# ---------------------------------------------------------------------------------- rates


def test_the_grid_has_six_rates_in_steps_of_three_around_the_studies():
    assert len(RATES) == 6
    assert RATES[2] == STUDY_ARM.peak_lr
    assert [later / earlier for earlier, later in zip(RATES, RATES[1:], strict=False)] == pytest.approx([3] * 5)


def test_a_pilot_tries_every_rate_and_compares_within_it():
    study = make_study("rank", "pilot")
    assert len(study.variants) == 2 * 6
    assert {arm.peak_lr for arm in arms_of(study).values()} == set(RATES)
    arms = arms_of(study)
    for first, second in study.contrasts:
        assert arms[first].peak_lr == arms[second].peak_lr
        assert (arms[first].rank, arms[second].rank) == (64, 4)


def test_the_claims_are_four_changes_of_one_reference_on_the_base_that_draws(monkeypatch):
    monkeypatch.setattr(studies, "TUNED", {})
    study, pilot = make_study("claims", "legible"), make_study("claims", "legible-pilot")
    assert (study.base, study.phase, study.seeds) == (DEFAULT_BASE, "confirm", CONFIRM_SEEDS)
    assert (pilot.base, pilot.phase) == (DEFAULT_BASE, "pilot") and not set(pilot.seeds) & set(study.seeds)
    arms = arms_of(study)
    reference = arms[studies.REFERENCE]
    assert (reference.schedule, reference.ema_decay, reference.images_seen) == ("cosine", None, 3_600)
    changed = {
        label: {name for name, value in vars(arm).items() if value != getattr(reference, name)}
        for label, arm in arms.items()
    }
    assert changed == {
        studies.REFERENCE: set(),
        "rank 4": {"rank"},
        "batch 1": {"batch", "warmup_steps"},
        "half the images seen": {"images_seen", "warmup_steps"},
        "constant rate": {"schedule"},
    }
    # The warm-up is as many images, and as large a part of half the images.
    assert arms["batch 1"].warmup_steps == reference.batch * reference.warmup_steps
    assert study.contrasts == tuple(studies.CLAIM_OF)


def test_a_pilot_tries_a_variant_s_own_rates_where_it_has_some():
    design = Design("", [Variant("a"), Variant("b")], (("a", "b"),), rates={"b": (2.0, 3.0)})
    pilot = at_every_rate(design, (1.0, 2.0))
    assert [v.label for v in pilot.variants] == ["a, rate 1", "a, rate 2", "b, rate 2", "b, rate 3"]
    assert pilot.contrasts == (("a, rate 2", "b, rate 2"),)


def test_claims_are_compared_at_their_tuned_rates_alone(monkeypatch):
    rates = dict.fromkeys((studies.REFERENCE, "half the images seen", "constant rate"), 1e-3)
    tuned = rates | {"rank 4": 9e-3, "batch 1": 5e-4}
    monkeypatch.setitem(studies.TUNED, "claims-legible", tuned)
    arms = arms_of(make_study("claims", "legible"))
    assert {label: arm.peak_lr for label, arm in arms.items()} == tuned


def test_tuned_variants_are_beside_the_fixed_ones():
    design = Design("", [Variant("a", dict(rank=2)), Variant("b", dict(rank=3)), Variant("c", dict(rank=5))])
    tuned = with_tuned_rates(design, {"a": 1e-3, "b": 3e-3})
    assert [variant.label for variant in tuned.variants] == ["a", "b", "c", "a, tuned", "b, tuned"]
    assert tuned.variants[4].changes == {"rank": 3, "peak_lr": 3e-3}
    assert tuned.contrasts == (("b", "a"), ("c", "a"), ("b, tuned", "a, tuned"))


def test_tuned_rates_enter_the_full_study(monkeypatch):
    monkeypatch.setitem(studies.TUNED, "rank-full", {"rank 4": 4.5e-3, "rank 64": 1.5e-3})
    study = make_study("rank", "full")
    arms = arms_of(study)
    assert arms["rank 4, tuned"] == dataclasses.replace(arms["rank 4"], peak_lr=4.5e-3)
    assert arms["rank 64, tuned"] == arms["rank 64"]  # one training serves both
    assert ("rank 64, tuned", "rank 4, tuned") in study.contrasts
    assert not any(TUNED_SUFFIX in variant.label for variant in make_study("rank", "smoke").variants)


def test_rates_that_were_tuned_anyway_add_nothing_and_count_as_tuned(tmp_path, monkeypatch):
    monkeypatch.delitem(studies.TUNED, "schedule-full")
    plain = make_study("schedule", "full")
    assert not is_tuned(plain)
    monkeypatch.setitem(studies.TUNED, "schedule-full", dict.fromkeys(["constant", "cosine"], STUDY_ARM.peak_lr))
    assert make_study("schedule", "full") == plain and is_tuned(plain)
    write_report(tmp_path, plain, 0.1)
    assert findings(tmp_path, suffix=TUNED_SUFFIX) == findings(tmp_path) != []
    monkeypatch.setitem(studies.TUNED, "schedule-full", {"constant": STUDY_ARM.peak_lr, "cosine": 1.0})
    assert not is_tuned(plain) and findings(tmp_path, suffix=TUNED_SUFFIX) == []


def test_a_single_variant_is_tuned_if_it_has_its_pilots_rate_and_makes_no_claim(tmp_path, monkeypatch):
    monkeypatch.delitem(studies.TUNED, "schedule-full")
    plain = make_study("schedule", "full")
    single = dataclasses.replace(plain, variants=plain.variants[:1], contrasts=())
    assert not is_tuned(single)
    monkeypatch.setitem(studies.TUNED, "schedule-full", {single.variants[0].label: STUDY_ARM.peak_lr})
    assert is_tuned(single)
    write_report(tmp_path, single, 0.1)
    assert findings(tmp_path) == []


def test_best_rates_are_those_with_most_hits_at_the_end():
    rows = [("a", 1e-3, hit, True) for hit in (1, 0)] + [("a", 3e-3, 1, True), ("a", 9e-3, 0, True)]
    rows += [("a", 9e-3, 1, False)] * 5  # on the way there
    rows += [("b", 1e-3, 1, True), ("b", 3e-3, 0, True)]
    table = pd.DataFrame(rows, columns=["setting", "peak_lr", "hit", "final"])
    assert best_rates(table).to_dict("records") == [
        {"setting": "a", "peak_lr": 3e-3, "hits": 1.0, "inside": True},
        {"setting": "b", "peak_lr": 1e-3, "hits": 1.0, "inside": False},
    ]


def test_of_rates_that_chance_cannot_tell_apart_the_lowest_is_chosen():
    """60 of 100 hits, give or take 4.9: 56 are as many, 55 are not."""
    hits = {1e-3: 55, 2e-3: 56, 3e-3: 60, 4e-3: 0}
    rows = [("a", rate, n < count, True) for rate, count in hits.items() for n in range(100)]
    table = pd.DataFrame(rows, columns=["setting", "peak_lr", "hit", "final"])
    assert best_rates(table).to_dict("records") == [{"setting": "a", "peak_lr": 2e-3, "hits": 0.56, "inside": True}]


def test_a_design_s_claim_alone_keeps_its_contrasts_and_their_variants():
    design = Design("", [Variant(label) for label in "abcd"], (("c", "a"), ("d", "b")))
    assert [variant.label for variant in design.claim_alone().variants] == ["a", "c"]
    assert dataclasses.replace(design, claims=2).claim_alone() == dataclasses.replace(design, claims=2)
    assert at_every_rate(design).contrasts[0] == ("c, rate 0.00017", "a, rate 0.00017")


# ---------------------------------------------------------------------------------- findings


def write_report(folder, study, better, judge="radicals"):
    """A judge's report whose first variant of each contrast is better by so much in every block."""
    second = 0.3 + 0.01 * (pd.Series(range(160)) % 7).to_numpy().reshape(8, 20)
    found = [compare(second + better, second, pair) for pair in study.contrasts]
    (folder / study.name).mkdir(parents=True, exist_ok=True)
    report = {"study": study.to_json(), "contrasts": {"held_out": [contrast.to_json() for contrast in found]}}
    report |= {"hash": study.hash, "judge": judge, "arms": [{}], "rates": [{}]}
    report |= {"prompts": {"held_out": 20}, "sentences": {"held_out": []}}
    (folder / study.name / f"report-{judge}.json").write_text(json.dumps(report))


def test_findings_correct_the_claims_together(tmp_path, monkeypatch):
    monkeypatch.setattr(studies, "TUNED", {})
    monkeypatch.setattr("kanjilab.experiments.findings.TUNED", {})
    assert findings(tmp_path) == []
    for name, better in (("rank", 0.1), ("batch", -0.05), ("schedule", 0.0)):
        write_report(tmp_path, make_study(name), better)
    rank, batch, schedule = findings(tmp_path)
    assert rank == (
        "a higher rank draws better: in pocket, rank 64 against rank 4: +10.0 points [10.0, 10.0], "
        "p = .0234, 8 blocks: held"  # 3 x 2/256
    )
    assert batch.endswith("-5.0 points [-5.0, -5.0], p = .0234, 8 blocks: refuted")
    assert schedule.endswith("0.0 points [0.0, 0.0], p = 1, 8 blocks: equivalent within 3 points")
    write_report(tmp_path, make_study("epochs"), 0.1)
    assert "p = .0312, 8 blocks: held" in findings(tmp_path)[0]  # of four
    assert findings(tmp_path, suffix=TUNED_SUFFIX) == []
    assert findings(tmp_path, scale="legible") == []
    write_report(tmp_path, make_study("claims", "legible"), 0.1)
    legible = findings(tmp_path, scale="legible")
    assert [line.partition(":")[0] for line in legible] == list(studies.CLAIM_OF.values())
    assert legible[0].startswith("a higher rank draws better: in pocket2, the reference against rank 4: +10.0 points")
    write_report(tmp_path, make_study("claims", "legible"), -0.1, judge="outside")
    table = claims_table(tmp_path)
    assert list(table.columns) == ["first judge", "outside reader"]  # those that have read it, by their names
    assert list(table.index) == list(studies.CLAIM_OF.values())
    assert set(table["first judge"]) == {"+10.0 points [10.0, 10.0], p = .0312, 8 blocks: held"}
    assert set(table["outside reader"]) == {"-10.0 points [-10.0, -10.0], p = .0312, 8 blocks: refuted"}
