"""The ablation panel without a browser: what it reads from a study's folder, and what its buttons do."""

import asyncio
import dataclasses
import json
import shutil
import time
from pathlib import Path

import pytest

from kanjilab.core.config import Arm
from kanjilab.core.run_folder import RunFolder, find_runs
from kanjilab.evaluation.judges.part_judge import load_judge
from kanjilab.evaluation.metrics import expected_part_hits
from kanjilab.experiments import packs
from kanjilab.experiments.designs import BUDGETS, make_study
from kanjilab.experiments.run_study import ablate
from kanjilab.experiments.study import Study, Variant
from kanjilab.widgets import AblationPanel, work_panel
from kanjilab.widgets.ablation_catalogue import StudySettings, menu, study_catalogue
from kanjilab.widgets.stored_studies import (
    StudyState,
    free_study,
    numbers_from_text,
    read_study,
    setting_strip,
    stored_keys,
    study_cost_text,
    study_with,
    value_from_text,
)
from kanjilab.widgets.study_inputs import FREE
from kanjilab.widgets.study_job import study_code
from tests.stored_study import rank_study, store_study
from tests.tiny_study import DarknessJudge, assert_same_tables, table_of

pytestmark = pytest.mark.usefixtures("small_lab")
HOSTILE = "<img src=x onerror=alert(1)>"


@pytest.fixture
def make_panel(study, tmp_path):
    """Builds the panel of one folder, as running its cell again does."""

    def make(asked=study, **options):
        return AblationPanel(tmp_path / "studies", asked, judge=DarknessJudge(), **options)

    return make


@pytest.fixture
def stored(finished, study, tmp_path):
    """The folder of studies, with the study finished."""
    shutil.copytree(finished[0], tmp_path / "studies" / study.name)
    return tmp_path / "studies"


def as_stored(report):
    """As JSON gives it back: tuples are lists."""
    return json.loads(json.dumps(report))


# ---------------------------------------------------------------------------------- pure functions


def test_free_axes_make_all_combinations_with_the_first_as_reference():
    made = free_study({"rank": [4, 16], "peak_lr": [1e-3]}, "smoke", (3, 4), 100)
    assert [variant.label for variant in made.variants] == ["rank 4, peak_lr 0.001", "rank 16, peak_lr 0.001"]
    arms = [made.arm_of(variant, 3) for variant in made.variants]
    assert [(arm.rank, arm.peak_lr, arm.images_seen, arm.seed) for arm in arms] == [
        (4, 1e-3, 100, 3),
        (16, 1e-3, 100, 3),
    ]
    assert made.contrasts == (("rank 16, peak_lr 0.001", "rank 4, peak_lr 0.001"),)
    assert made.data == BUDGETS["smoke"].data
    assert free_study({"rank": [4, 16]}, "smoke", (3, 4), 100).name != made.name
    assert len(free_study({"rank": [1, 4], "batch": [1, 8, 64]}, "smoke", (0,), 100).variants) == 6


def test_free_axes_are_trained_on_the_base_of_their_scale():
    for scale, budget in BUDGETS.items():
        made = free_study({"rank": [1, 4]}, scale, (0,), 100)
        assert (made.base, made.checkpoints) == (budget.base, budget.checkpoints)
    names = [free_study({"rank": [1, 4]}, scale, (0,), 100).name for scale in ("smoke", "broad", "steps")]
    assert names[:2] == ["free-661d0f0d", "free-ef57b1a0"], "as they were always called"
    assert names[2] != "free-9c945609", "as it was called when it was trained on another base"


def test_too_few_or_wrong_values_are_refused():
    with pytest.raises(ValueError, match="two or more combinations"):
        free_study({"rank": [4]}, "smoke", (0,), 100)
    with pytest.raises(ValueError, match="rank must be"):
        made = free_study({"rank": [0, 4]}, "smoke", (0,), 100)
        made.arm_of(made.variants[0], 0)


@pytest.mark.parametrize(
    ("text", "seeds"), [("", ()), ("0, 1,2", (0, 1, 2)), ("100-103", (100, 101, 102, 103)), ("5, 4-6", (5, 4, 6))]
)
def test_seeds_from_text(text, seeds):
    assert numbers_from_text(text) == seeds


@pytest.mark.parametrize("text", ["a", "1 2", "1.5", "-3"])
def test_what_are_no_seeds_is_refused(text):
    with pytest.raises(ValueError, match="whole numbers"):
        numbers_from_text(text)


def test_values_have_the_type_of_their_setting():
    assert value_from_text("rank", " 8 ") == 8 and value_from_text("peak_lr", "1e-3") == 0.001
    assert value_from_text("schedule", "cosine") == "cosine"
    with pytest.raises(ValueError, match="rank: expected int, got 'many'"):
        value_from_text("rank", "many")


def test_the_cost_is_that_of_the_packs_which_are_left():
    state = StudyState(True, stored=4, arms=6, seconds=370, gigabytes=1.42)
    text = "4 of 6 trainings stored; 2 to train: about 6 min 10 s on this machine, 1.4 GB of memory (measured)."
    assert study_cost_text(state) == text
    assert "Press Plan" in study_cost_text(StudyState(arms=6))
    assert "nothing will be trained" in study_cost_text(StudyState(arms=6, report={}))


def test_the_code_makes_the_same_study(study, tmp_path):
    for asked in (study, make_study("batch", "smoke")):
        words = {"ablate": None}
        code = study_code(asked, tmp_path).replace("report = ", "answered = lambda: ")
        exec(code, words)
        assert words["study"] == asked
    seeded = make_study("rank", "smoke", (7, 8))
    assert 'make_study("rank", "smoke", seeds=(7, 8))' in study_code(seeded, tmp_path)
    assert Study.from_json(seeded.to_json()) == seeded


def test_the_code_names_who_reads(study, tmp_path, monkeypatch):
    reading = {"judge": load_judge("B"), "name": "judge-b", "hits": expected_part_hits}
    monkeypatch.setattr("kanjilab.experiments.run_study.ablate", lambda *given, **named: (given, named))
    words = {}
    exec(study_code(study, tmp_path, **reading), words)
    assert words["report"] == ((study, tmp_path), reading)
    own = study_code(study, tmp_path, DarknessJudge(), hits=lambda *_: None)
    with pytest.raises(NameError, match="'judge'"):
        exec(own, {})
    given = {"judge": DarknessJudge(), "hits": list}
    exec(own, words := dict(given))
    assert words["report"] == ((study, tmp_path), given)


# ---------------------------------------------------------------------------------- what the browser gets


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A made-up study, and its folder."""
    study = rank_study()
    return study, store_study(tmp_path_factory.mktemp("kept") / "made", study)


def settings_of(study, folder, added=None):
    return StudySettings.of(study, json.loads((folder / "report-radicals.json").read_text()), added or {})


def test_a_study_becomes_a_catalogue(made):
    study, folder = made
    catalogue, images = study_catalogue(folder)
    assert json.loads(json.dumps(catalogue)) == catalogue and len(images) == 9 * 3
    assert [(axis["name"], axis["values"]) for axis in catalogue["axes"]] == [
        ("rank", [1, 4, 16, 64, 256]),
        ("scaling", ["alpha = r", "rsLoRA"]),
    ]
    assert catalogue["verdict"].startswith("In pocket2, rank 1 against rank 4: ")
    labels = [setting["label"] for setting in catalogue["settings"]]
    assert labels == [variant.label for variant in study.variants]
    assert catalogue["settings"][0]["at"] == {"rank": 4, "scaling": "alpha = r"}
    assert catalogue["settings"][0]["seconds"] == 3 * 60
    assert [name for name, _ in catalogue["judges"]] == ["radicals", "judge-b"]
    assert sorted(row[1] for row in catalogue["differences"]) == ["alpha", "rank", "rslora"]


def test_rates_are_those_of_the_report_and_of_the_hits(made):
    study, folder = made
    catalogue, _ = study_catalogue(folder)
    report = json.loads((folder / "report-judge-b.json").read_text())
    for rate in report["rates"]:
        setting = [variant.label for variant in study.variants].index(rate["variant"])
        moments = catalogue["rates"]["judge-b"][rate["split"]][""][setting]
        found = moments[rate["checkpoint"] - 1]
        assert found[:3] == [round(rate[name], 4) for name in ("value", "low", "high")]
    table = table_of(folder, "judge-b").query("split == 'train' and variant == 'rank 64' and checkpoint == 2")
    asked = catalogue["prompts"]
    for at, seed in enumerate(study.seeds):
        marks = catalogue["arms"][3][at]["hits"]["judge-b"][1]
        hits = dict(zip(table["prompt"][table["seed"] == seed], table["hit"][table["seed"] == seed], strict=True))
        for number, prompt in enumerate(asked):
            assert prompt["split"] != "train" or marks[number] == str(int(hits[prompt["text"]]))
    water = table.loc[table["expected"] == "水"]
    value, low, high, blocks = catalogue["rates"]["judge-b"]["train"]["水"][3][1]
    assert value == round(water["hit"].mean(), 4) and low <= value <= high
    assert blocks == water.groupby("seed")["hit"].mean().round(4).tolist()


def test_variants_that_are_the_same_trainings_are_one_setting(tmp_path):
    study = rank_study((1,), seeds=(0,), checkpoints=1)
    twin = dataclasses.replace(study.variants[0], label="rank 4, tuned", axes=dict(rank=4, scaling="tuned"))
    study = dataclasses.replace(study, variants=(*study.variants[:2], twin), contrasts=())
    folder = store_study(tmp_path / "twins", study, images=False)
    catalogue, images = study_catalogue(folder)
    assert [setting["label"] for setting in catalogue["settings"]] == ["rank 4", "rank 1"] and images == []
    assert [axis["name"] for axis in catalogue["axes"]] == ["rank"]
    tested = catalogue["contrasts"]["radicals"]["held_out"]
    assert [(contrast["first"], contrast["second"]) for contrast in tested] == [(1, 0), (0, 0)]
    assert catalogue["arms"][0][0]["sheet"] == -1


def test_an_added_stop_is_on_its_axis(made):
    study, folder = made
    [rank, scaling] = study_catalogue(folder, {"rank": [8]})[0]["axes"]
    assert rank["values"] == [1, 4, 8, 16, 64, 256] and len(rank["apart"]) == 6
    assert rank["typed"] and not scaling["typed"] and scaling["choices"] == []


def test_the_menu_has_studies_with_images_first(made, tmp_path):
    store_study(tmp_path / "a", rank_study((1,), name="a", seeds=(0,)), judges=("radicals",), images=False)
    shutil.copytree(made[1], tmp_path / "b")
    [group] = menu({"Stored": tmp_path, "Yours": None, "Nowhere": tmp_path / "nowhere"})
    assert group["heading"] == "Stored"
    assert [(Path(entry["path"]).name, entry["images"]) for entry in group["studies"]] == [("b", True), ("a", False)]


def test_every_study_of_the_clone_can_be_shown():
    for folder in sorted((Path(__file__).parents[2] / "figures" / "studies").iterdir()):
        catalogue, images = study_catalogue(folder)
        places = {json.dumps(setting["at"]) for setting in catalogue["settings"]}
        assert len(places) == len(catalogue["settings"]) >= 2 and catalogue["axes"], folder
        sheets = {arm["sheet"] for some in catalogue["arms"] for arm in some}
        assert sheets == ({-1} if not images else set(range(len(images)))), folder
        judge, split = catalogue["judges"][0][0], catalogue["splits"][0][0]
        opened = catalogue["contrasts"][judge][split][0]["first"]
        if folder.name == "settings-steps":
            opened = labels_of(catalogue).index("the studies' arm")
        assert catalogue["first"] == opened, folder


def labels_of(catalogue):
    return [setting["label"] for setting in catalogue["settings"]]


def star_study(**changes):
    """Two ranks and two batches, each by itself, around a reference."""
    usual = dict(rank=4, batch=8)
    places = [usual, *(usual | change for change in (dict(rank=1), dict(rank=64), dict(batch=1), dict(batch=64)))]
    variants = [Variant(f"rank {at['rank']}, batch {at['batch']}", at) for at in places]
    return rank_study(**dict(name="star", variants=tuple(variants), seeds=(0,), checkpoints=1) | changes)


@pytest.mark.parametrize(
    ("contrasts", "first"),
    [((), "rank 4, batch 8"), ((("rank 64, batch 8", "rank 4, batch 8"),), "rank 64, batch 8")],
)
def test_a_star_opens_on_its_reference_unless_it_puts_a_claim_first(tmp_path, contrasts, first):
    folder = store_study(tmp_path / "kept" / "star", star_study(contrasts=contrasts))
    catalogue, _ = study_catalogue(folder)
    assert labels_of(catalogue)[catalogue["first"]] == first
    panel = AblationPanel(tmp_path / "own", kept=tmp_path / "kept")
    strip, expected = panel.strip(), setting_strip(folder, first)
    assert strip is not None and expected is not None and (strip.images == expected.images).all()
    assert panel.view.catalogue["first"] == catalogue["first"]


# ---------------------------------------------------------------------------------- a further variant


def test_a_combination_becomes_a_variant_like_the_nearest(made):
    study, folder = made
    settings = settings_of(study, folder, {"rank": [8]})
    more = study_with(study, settings, {"rank": 8, "scaling": "rsLoRA"})
    assert more.name == "made-more" and more.variants[:-1] == study.variants
    assert more.contrasts[-1] == ("rank 8, rsLoRA", "rank 4")
    arm = more.arm_of(more.variants[-1], 1)
    assert (arm.rank, arm.rslora, arm.alpha, arm.seed) == (8, True, 2.0, 1)
    again = study_with(more, settings, {"rank": 4, "scaling": "rsLoRA"})
    assert again.name == "made-more" and len(again.variants) == len(study.variants) + 2


def test_what_no_training_can_be_is_refused(made):
    study, folder = made
    settings = settings_of(study, folder, {"rank": [0], "scaling": ["none"]})
    with pytest.raises(ValueError, match="rank must be a whole number from 1 to"):
        study_with(study, settings, {"rank": 0, "scaling": "rsLoRA"})
    with pytest.raises(ValueError, match="as in one of the study's variants"):
        study_with(study, settings, {"rank": 4, "scaling": "none"})


def test_a_schedule_that_no_variant_has_can_be_added(tmp_path):
    study = dataclasses.replace(make_study("schedule", "smoke"), seeds=(0,))
    folder = store_study(tmp_path / "schedules", study, images=False)
    axis = study_catalogue(folder)[0]["axes"][0]
    assert "periodic" in axis["choices"] and "cosine" not in axis["choices"]
    more = study_with(study, settings_of(study, folder, {"schedule": ["periodic"]}), {"schedule": "periodic"})
    assert more.arm_of(more.variants[-1], 0).schedule == "periodic"


# ---------------------------------------------------------------------------------- stored studies


def test_a_finished_study_is_shown_at_once_and_nothing_is_done_again(make_panel, stored, finished, study, monkeypatch):
    for name in ("run_training", "sample", "measure_steps"):
        monkeypatch.setattr(packs, name, lambda *_, **__: pytest.fail("done again"))
    panel, report = make_panel(), finished[1]
    assert panel.start_button.description == "Load" and "nothing will be trained" in panel.cost.value
    assert panel.shown == stored / study.name and panel.own.layout.display == "none"
    catalogue = panel.view.catalogue
    assert report["sentences"]["held_out"][0][1:] in catalogue["verdict"]
    final = [rate["value"] for rate in report["rates"] if rate["final"] and rate["split"] == "held_out"]
    assert [some[0][0] for some in catalogue["rates"]["radicals"]["held_out"][""]] == final
    asyncio.run(panel.run_now())
    assert panel.state.report == as_stored(report)


def test_a_study_that_the_clone_keeps_is_shown_and_not_trained_again(study, stored, finished, tmp_path, monkeypatch):
    for name in ("run_training", "sample"):
        monkeypatch.setattr(packs, name, lambda *_, **__: pytest.fail("done again"))
    panel = AblationPanel(tmp_path / "elsewhere", study, judge=DarknessJudge(), kept=stored)
    assert panel.start_button.description == "Load" and panel.state.source == panel.shown == stored / study.name
    assert panel.status.value.count("Finished.") and panel.strip() is not None
    assert f"kept=Path({str(stored)!r})".replace("'", '"') in panel.code
    asyncio.run(panel.run_now())
    assert panel.state.source == panel.folder and panel.state.report["rates"] == as_stored(finished[1])["rates"]
    assert panel.shown == panel.folder and len(panel.view.images) == 6


def test_the_panel_opens_on_a_study_of_this_clone(monkeypatch, tmp_path):
    monkeypatch.chdir(Path(__file__).parents[2])
    panel = AblationPanel(tmp_path)
    assert panel.shown and panel.shown.parent == Path("figures/studies") and panel.own.layout.display == "none"
    panel = AblationPanel(tmp_path, design="rank", scale="full")
    assert panel.shown == Path("figures/studies/rank-full") == panel.state.source
    panel = AblationPanel(tmp_path, design="rank", scale="smoke")
    assert panel.shown and panel.shown.name.startswith("rank-") and panel.study.name == "rank-smoke"
    assert panel.own.layout.display == "flex" and panel.start_button.description == "Run"


def test_sheets_are_made_of_a_study_that_was_finished_before_there_were_any(make_panel, stored, study):
    shutil.rmtree(stored / study.name / "images")
    assert len(make_panel().view.images) == 6


def test_the_strip_shows_what_a_training_drew(stored, finished, study):
    folder, report = stored / study.name, finished[1]
    strip = setting_strip(folder, "rank 3", seed=6)
    assert strip.images.shape == (4, 1, 64, 64)
    assert strip.column_labels == ("8",) and "water mountain → 水" in strip.row_labels
    key = next(arm["arm"] for arm in report["arms"] if (arm["variant"], arm["seed"]) == ("rank 3", 6))
    [run] = [run for run in find_runs(folder) if any(name.startswith(key) for name in run.samples())]
    images, facts = run.read_samples(next(name for name in run.samples() if name.startswith(key)))
    for label, glyph in zip(strip.row_labels, strip.images[:, 0], strict=True):
        row = [asked["prompt"] for asked in facts["prompts"]].index(label.partition(" → ")[0])
        large = images[row, 0].repeat(2, axis=0).repeat(2, axis=1)
        assert abs(glyph.astype(int) - large).max() <= 26
    shutil.rmtree(folder / "images")
    assert setting_strip(folder, "rank 3") is None


def test_a_sheet_that_is_missing_is_no_picture_of_that_training(made, tmp_path):
    study, folder = made[0], shutil.copytree(made[1], tmp_path / "kept" / "made")
    key = json.loads((folder / "report-radicals.json").read_text())["arms"][0]["arm"]
    (folder / "images" / f"{key}.webp").unlink()
    panel = AblationPanel(tmp_path / "own", kept=tmp_path / "kept")
    assert panel.shown == folder and len(panel.view.images) == 9 * 3 - 1
    assert [arm["sheet"] for arm in panel.view.catalogue["arms"][0]] == [-1, 0, 1]
    assert setting_strip(folder, study.variants[0].label) is None


@pytest.mark.parametrize(
    ("file", "damage"),
    [
        ("table-radicals.parquet", Path.unlink),
        ("table-judge-b.parquet", lambda path: path.write_bytes(b"PAR1")),
        ("images/sheets.json", lambda path: path.write_text("{}")),
    ],
)
def test_an_incomplete_study_hides_no_other(made, tmp_path, monkeypatch, file, damage):
    study = dataclasses.replace(made[0], name="broken")
    broken = store_study(tmp_path / "kept" / "broken", study)
    whole = shutil.copytree(made[1], tmp_path / "kept" / "whole")
    damage(broken / file)
    for asked in (None, study):
        panel = AblationPanel(tmp_path / "own", asked, kept=tmp_path / "kept")
        assert panel.shown == whole and panel.strip() is not None
    sent = []
    monkeypatch.setattr(panel.view, "send", sent.append)
    panel.view.chosen = str(broken)
    assert sent[0]["kind"] == "refused" and file in sent[0]["reason"] and "is not shown" in sent[0]["reason"]
    assert (panel.shown, panel.view.chosen) == (whole, str(whole))


def test_choosing_from_the_menu_shows_another_study(made, make_panel, stored, study):
    shutil.copytree(made[1], stored / "made")
    panel = make_panel(None)
    other = next(path for path in (stored / "made", stored / study.name) if path != panel.shown)
    panel.view.chosen = str(other)
    assert panel.shown == other and panel.study.hash == panel.state.report["hash"]
    assert panel.view.catalogue["name"] == panel.study.name
    panel.view.chosen = "/etc"  # no entry of the menu
    assert panel.shown == other


def test_another_studys_report_is_not_shown(stored, study):
    other = dataclasses.replace(study, seeds=(5, 6, 7))
    assert read_study(study, stored / study.name).report is not None
    assert read_study(other, stored / study.name).report is None


def test_the_picture_is_the_figure_above_what_was_drawn(make_panel, stored, study):
    picture = make_panel().picture()
    assert picture.height > 600 and picture.width > 600


def test_an_unfinished_study_has_no_picture(make_panel):
    with pytest.raises(ValueError, match="not finished; 0 of 6"):
        make_panel().picture()


# ---------------------------------------------------------------------------------- at work


def test_plan_run_stop_and_go_on(make_panel, finished, study, tmp_path, monkeypatch):
    panel = make_panel()
    assert (panel.start_button.description, panel.state.planned) == ("Run", False)
    asyncio.run(panel.plan().finished())
    panel.refresh()
    assert (panel.state.planned, panel.state.stored, panel.state.arms) == (True, 0, 6)
    assert "0 of 6 trainings stored; 6 to train: about" in panel.cost.value
    assert not list(panel.folder.glob("packs/*"))

    def stopping(*arguments, **options):
        panel.worker.stop()
        return original(*arguments, **options)

    original = packs.run_training
    with monkeypatch.context() as patch:
        patch.setattr(packs, "run_training", stopping)
        asyncio.run(panel.run_now())
    assert panel.worker.stopped and panel.state.report is None
    assert [run.checkpoints() for run in find_runs(panel.folder)] == [[0, 1]], "one step was done, and is kept"
    again = make_panel()
    asyncio.run(again.run_now())
    assert again.start_button.description == "Load" and "Finished" in again.status.value
    assert again.state.stored == again.state.arms == 6
    assert_same_tables(table_of(again.folder), table_of(finished[0]))
    assert again.shown == again.folder and len(again.view.images) == 6


def test_what_another_process_does_is_shown(make_panel, stored, study):
    (stored / study.name / "report-radicals.json").unlink()
    panel = make_panel()
    assert not panel.start_button.disabled
    run = find_runs(stored)[0]
    with RunFolder.open(run.path).lock():
        panel.refresh()
        assert panel.start_button.disabled and "Running in process" in panel.status.value
        panel.stop()
        assert run.stop_requested()
    panel.refresh()
    assert not panel.start_button.disabled


def wait_for(condition, seconds=10):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it never happened"
        time.sleep(0.01)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_panel_that_could_not_be_shown_once_goes_on_being_shown(make_panel, stored, monkeypatch):
    def failing():
        raise OSError("a file went away")

    monkeypatch.setattr(work_panel, "REDRAW_SECONDS", 0.01)
    panel = make_panel()
    with find_runs(stored)[0].lock():
        panel.refresh()
        with monkeypatch.context() as patch:
            patch.setattr(panel, "_work", failing)
            wait_for(lambda: not panel._watcher.is_alive())
        panel.refresh()
        panel.claim.value = ""
        wait_for(lambda: panel.claim.value)
    wait_for(lambda: panel._watcher is None)


def test_judges_of_parts_read_with_their_own_hits(stored, study, monkeypatch):
    for name in ("run_training", "sample"):
        monkeypatch.setattr(packs, name, lambda *_, **__: pytest.fail("done again"))
    judge = {"judge": load_judge("B"), "name": "judge-b"}
    panel = AblationPanel(stored, study, **judge, hits=expected_part_hits)
    asyncio.run(panel.run_now())
    assert panel.start_button.description == "Load" and panel.state.report["judge"] == "judge-b"
    table = table_of(panel.folder, "judge-b")
    assert (table["hit"] == expected_part_hits(table, list(map(set, table["expected"])))).all()


def test_hits_that_do_not_fit_the_judge_are_refused_at_once(study, tmp_path):
    with pytest.raises(ValueError, match="expected hits that fit the judge.*radical and abstain"):
        AblationPanel(tmp_path, study, judge=load_judge("B"), name="judge-b")
    with pytest.raises(ValueError, match="expected hits that fit the judge"):
        AblationPanel(tmp_path, study, judge=DarknessJudge(), hits=lambda readings, expected: readings["parts"])


def test_a_failure_is_shown_and_raised(make_panel, monkeypatch):
    def failing(*_, **__):
        raise OSError(f"no room for {HOSTILE}")

    monkeypatch.setattr(packs, "run_training", failing)
    panel = make_panel()
    with pytest.raises(OSError, match="no room"):
        asyncio.run(panel.run_now())
    assert "Failed: OSError" in panel.status.value


def test_inputs_make_the_study(make_panel):
    panel = make_panel(None, design="rank", scale="smoke")
    assert panel.study == make_study("rank", "smoke") and panel.inputs.free.layout.display == "none"
    panel.inputs.design.value = "batch"
    panel.inputs.seeds.value = "3-5"
    assert panel.study == make_study("batch", "smoke", (3, 4, 5))
    panel.inputs.design.value = FREE
    assert panel.inputs.free.layout.display == "flex"
    assert [variant.label for variant in panel.study.variants] == ["rank 1", "rank 4"]
    panel.inputs.chips[0].children[4].value = True  # the chip of rank 256
    panel.inputs.further[0].value = "8"
    panel.inputs.axes[1].value = "schedule"
    panel.inputs.images.value = 320
    ranks, schedules = [1, 4, 256, 8], ["constant", "linear"]
    wanted = [f"rank {rank}, schedule {schedule}" for rank in ranks for schedule in schedules]
    assert [variant.label for variant in panel.study.variants] == wanted
    assert panel.study.arm.images_seen == 320 and panel.study.seeds == (3, 4, 5)
    panel.inputs.seeds.value = "many"
    assert panel.start_button.disabled and "Not possible" in panel.status.value
    panel.inputs.seeds.value = ""
    assert not panel.start_button.disabled


def test_hostile_names_stay_text(tmp_path):
    study = rank_study((1,), claim=HOSTILE, seeds=(0,), checkpoints=1)
    variants = (dataclasses.replace(study.variants[0], label=HOSTILE), *study.variants[1:])
    study = dataclasses.replace(study, variants=variants, contrasts=())
    store_study(tmp_path / "made", study, images=False)
    panel = AblationPanel(tmp_path, study)
    boxes = (panel.claim, panel.cost, panel.progress)
    assert all(HOSTILE not in box.value for box in boxes) and "&lt;img" in panel.claim.value
    assert HOSTILE in [setting["label"] for setting in panel.view.catalogue["settings"]]


def test_a_study_done_elsewhere_is_known_by_its_results(make_panel, study, tmp_path):
    panel = make_panel()
    asyncio.run(panel.plan().finished())
    report = ablate(study, panel.folder, judge=DarknessJudge(), say=lambda line: None, progress=False)
    assert panel.state.stored == 6 and panel.state.report == as_stored(report)
    drawing = next(panel.folder.rglob("results/*.json")).stem
    assert len(stored_keys(panel.folder, drawing)) == 6
    assert Arm.from_json(report["study"]["arm"]) == study.arm


def test_a_value_that_is_not_stored_is_trained_beside_its_neighbours(study, finished, tmp_path):
    few = dataclasses.replace(study, name="few", variants=study.variants[:2], contrasts=())
    kept, root = tmp_path / "kept", tmp_path / "own"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packs, "run_training", lambda *_, **__: pytest.fail("trained again"))
        shutil.copytree(finished[0], kept / study.name)
        ablate(few, kept / "few", judge=DarknessJudge(), kept=kept, say=lambda line: None, progress=False)
    shutil.rmtree(kept / study.name)
    panel = AblationPanel(root, few, judge=DarknessJudge(), kept=kept)
    with pytest.raises(ValueError, match="rank: expected a whole number, got 'x'"):
        panel.add_stop("rank", "x")
    panel.add_stop("rank", "5")
    assert panel.view.catalogue["axes"][0]["values"] == [2, 3, 5] and panel.view.state["at"] == {"rank": 5}
    panel.ask({"rank": 5})
    asyncio.run(panel.plan().finished())
    panel.refresh()
    assert panel.view.work["cost"].startswith("4 of 6 trainings stored; 2 to train: about")
    asyncio.run(panel.run_now())
    assert panel.shown == root / "few-more" and panel.view.state["at"] == {"rank": 5}
    assert [setting["at"]["rank"] for setting in panel.view.catalogue["settings"]] == [2, 3, 5]
    assert len(panel.view.images) == 6 and not panel.view.work["running"]
    assert_same_tables(
        table_of(panel.shown).query("rank != 5").drop(columns="study").reset_index(drop=True),
        table_of(kept / "few").drop(columns="study"),
    )
    with pytest.raises(ValueError, match="expected stops of the study's axes, got {'rank': 4}"):
        panel.ask({"rank": 4})
    panel.add_stop("rank", "4")  # beside the added one
    panel.ask({"rank": 4})
    assert [variant.label for variant in panel.study.variants] == ["rank 2", "rank 3", "rank 5", "rank 4"]
    assert panel.folder == root / "few-more"


def test_messages_of_the_browser_that_cannot_be_followed_are_answered(make_panel, stored, monkeypatch):
    panel, said = make_panel(), []
    monkeypatch.setattr(panel.view, "send", said.append)
    panel._answer(None, {"kind": "add", "axis": "colour", "value": "1"}, [])
    assert said[0]["kind"] == "refused" and "expected one of the axes" in said[0]["reason"]
