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
from kanjilab.experiments.study import Study
from kanjilab.widgets import AblationPanel, work_panel
from kanjilab.widgets.ablation import FREE, study_code
from kanjilab.widgets.stored_studies import (
    StudyState,
    free_study,
    numbers_from_text,
    rate_points,
    read_study,
    stored_keys,
    study_cost_text,
    table_of_cells,
    value_from_text,
    variant_strip,
)
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
    for asked, named in ((study, None), (make_study("batch", "smoke"), ("batch", "smoke"))):
        words = {"ablate": None}
        code = study_code(asked, tmp_path, named).replace("report = ", "answered = lambda: ")
        exec(code, words)
        assert words["study"] == asked
    seeded = make_study("rank", "smoke", (7, 8))
    assert 'make_study("rank", "smoke", seeds=(7, 8))' in study_code(seeded, tmp_path, ("rank", "smoke"))
    assert Study.from_json(seeded.to_json()) == seeded


def test_the_code_names_who_reads(study, tmp_path, monkeypatch):
    reading = {"judge": load_judge("B"), "name": "judge-b", "hits": expected_part_hits}
    monkeypatch.setattr("kanjilab.experiments.run_study.ablate", lambda *given, **named: (given, named))
    words = {}
    exec(study_code(study, tmp_path, None, **reading), words)
    assert words["report"] == ((study, tmp_path), reading)
    own = study_code(study, tmp_path, None, DarknessJudge(), hits=lambda *_: None)
    with pytest.raises(NameError, match="'judge'"):
        exec(own, {})
    given = {"judge": DarknessJudge(), "hits": list}
    exec(own, words := dict(given))
    assert words["report"] == ((study, tmp_path), given)


# ---------------------------------------------------------------------------------- stored studies


def test_a_finished_study_is_shown_at_once_and_nothing_is_done_again(make_panel, stored, finished, study, monkeypatch):
    for name in ("run_training", "sample", "measure_steps"):
        monkeypatch.setattr(packs, name, lambda *_, **__: pytest.fail("done again"))
    panel, report = make_panel(), finished[1]
    assert panel.start_button.description == "Load" and "nothing will be trained" in panel.cost.value
    assert all(sentence.replace("<", "&lt;") in panel.sentences.value for sentence in report["sentences"]["held_out"])
    final = {r["variant"]: r for r in report["rates"] if r["final"] and r["split"] == "held_out"}
    assert [(p["label"], p["value"]) for p in panel.points.points] == [(v, final[v]["value"]) for v in final]
    assert panel.points.selected == "rank 2" and "What rank 2 drew" in panel.strip.value
    first = panel.strip.value
    panel.points.selected = "rank 3"  # as a click does
    assert "What rank 3 drew" in panel.strip.value and panel.strip.value != first
    asyncio.run(panel.run_now())
    assert panel.state.report == as_stored(report)


def test_a_study_that_the_clone_keeps_is_shown_and_not_trained_again(study, stored, finished, tmp_path, monkeypatch):
    for name in ("run_training", "sample"):
        monkeypatch.setattr(packs, name, lambda *_, **__: pytest.fail("done again"))
    panel = AblationPanel(tmp_path / "elsewhere", study, judge=DarknessJudge(), kept=stored)
    assert panel.start_button.description == "Load" and panel.state.source == stored / study.name
    assert panel.status.value.count("Finished.") and panel.figure.value and "What rank 2 drew" in panel.strip.value
    assert f"kept=Path({str(stored)!r})".replace("'", '"') in panel.code
    asyncio.run(panel.run_now())
    assert panel.state.source == panel.folder and panel.state.report["rates"] == as_stored(finished[1])["rates"]
    assert {cell for _, cells in table_of_cells(study, panel.folder) for cell in cells} == {"stored"}


def test_the_studies_of_this_clone_are_found(monkeypatch):
    monkeypatch.chdir(Path(__file__).parents[2])
    panel = AblationPanel("runs/studies", design="rank", scale="full")
    assert panel.state.source == Path("figures/studies/rank-full") and panel.points.points
    assert "not stored in figures/studies/rank-full" in panel.strip.value


def test_the_strip_shows_what_each_seed_drew(stored, finished, study):
    folder, report = stored / study.name, finished[1]
    strip = variant_strip(report, folder, "rank 3")
    assert strip.images.shape == (4, 2, 32, 32)
    assert strip.column_labels == ("seed 5", "seed 6") and "water mountain → 水" in strip.row_labels
    key = next(arm["arm"] for arm in report["arms"] if (arm["variant"], arm["seed"]) == ("rank 3", 6))
    [run] = [run for run in find_runs(folder) if any(name.startswith(key) for name in run.samples())]
    images, facts = run.read_samples(next(name for name in run.samples() if name.startswith(key)))
    rows = [number for number, asked in enumerate(facts["prompts"]) if asked["split"] == "held_out"]
    assert (strip.images[:, 1] == images[rows, 0]).all()
    assert variant_strip(report, folder / "nowhere", "rank 3") is None


def test_images_of_another_drawing_are_not_shown(stored, finished, study):
    folder, report = stored / study.name, finished[1]
    before = variant_strip(report, folder, "rank 3").images
    for run in find_runs(folder):
        for name in run.samples():
            images, facts = run.read_samples(name)
            run.write_samples(f"{name[:16]}-999999-{'0' * 16}", 255 - images, facts)
    assert (variant_strip(report, folder, "rank 3").images == before).all()
    undated = {name: value for name, value in report.items() if name != "drawing"}
    assert (variant_strip(undated, folder, "rank 3").images == 255 - before).all(), "the latest of any"


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
    assert table_of_cells(study, panel.folder)[0] == ("rank 2", ["to train", "to train"])
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
    assert all(cell == "stored" for _, cells in table_of_cells(study, again.folder) for cell in cells)


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
            patch.setattr(panel, "_show_cells", failing)
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
    assert "Failed: OSError" in panel.status.value and HOSTILE not in panel.status.value


def test_inputs_make_the_study(make_panel):
    panel = make_panel(None, design="rank", scale="smoke")
    assert panel.study == make_study("rank", "smoke") and panel.free.layout.display == "none"
    panel.design.value = "batch"
    panel.seeds.value = "3-5"
    assert panel.study == make_study("batch", "smoke", (3, 4, 5))
    panel.design.value = FREE
    assert panel.free.layout.display == "flex"
    assert [variant.label for variant in panel.study.variants] == ["rank 1", "rank 4"]
    panel.chips[0].children[4].value = True  # the chip of rank 256
    panel.further[0].value = "8"
    panel.axes[1].value = "schedule"
    panel.images.value = 320
    ranks, schedules = [1, 4, 256, 8], ["constant", "linear"]
    wanted = [f"rank {rank}, schedule {schedule}" for rank in ranks for schedule in schedules]
    assert [variant.label for variant in panel.study.variants] == wanted
    assert panel.study.arm.images_seen == 320 and panel.study.seeds == (3, 4, 5)
    panel.seeds.value = "many"
    assert panel.start_button.disabled and "Not possible" in panel.status.value
    panel.seeds.value = ""
    assert not panel.start_button.disabled


def test_hostile_names_stay_text(make_panel, study, stored):
    folder = stored / study.name
    variants = (dataclasses.replace(study.variants[0], label=HOSTILE), *study.variants[1:])
    hostile = dataclasses.replace(study, claim=HOSTILE, variants=variants, contrasts=())
    text = (folder / "report-radicals.json").read_text()
    report = json.loads(text.replace('"rank 2"', json.dumps(HOSTILE)))
    report |= {"hash": hostile.hash, "study": hostile.to_json()}
    report["sentences"] = {"held_out": [f"in pocket, {HOSTILE}"]}
    (folder / "report-radicals.json").write_text(json.dumps(report))
    panel = make_panel(hostile)
    assert panel.points.selected == HOSTILE and "&lt;img" in panel.strip.value
    boxes = (panel.claim, panel.cost, panel.status, panel.sentences, panel.strip, panel.figure, panel.cells)
    assert all(HOSTILE not in box.value for box in boxes)
    assert HOSTILE in [point["label"] for point in panel.points.points]


def test_a_study_done_elsewhere_is_known_by_its_results(make_panel, study, tmp_path):
    panel = make_panel()
    asyncio.run(panel.plan().finished())
    report = ablate(study, panel.folder, judge=DarknessJudge(), say=lambda line: None, progress=False)
    assert panel.state.stored == 6 and panel.state.report == as_stored(report)
    drawing = next(panel.folder.rglob("results/*.json")).stem
    assert len(stored_keys(panel.folder, drawing)) == 6
    assert rate_points(report, "train")[0]["label"] == "rank 2"
    assert Arm.from_json(report["study"]["arm"]) == study.arm
