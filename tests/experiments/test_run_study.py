"""A study from end to end: nothing done twice, and the same table however it came about."""

import dataclasses
import json
import multiprocessing
import os
import shutil
import signal
import time
from functools import partial

import pandas as pd
import pytest
import torch

from kanjilab.core.config import settings_hash
from kanjilab.core.run_folder import RunFolder, find_runs
from kanjilab.experiments import packs, run_study
from kanjilab.experiments.context import open_study
from kanjilab.experiments.packs import missing
from kanjilab.experiments.results import rates
from kanjilab.experiments.run_study import ablate, ablate_by_both, own_share
from kanjilab.experiments.study import Variant
from kanjilab.training import driver
from tests.tiny_study import RADICALS, DarknessJudge, assert_same_tables, forbid, make_small, run, table_of

pytestmark = pytest.mark.usefixtures("small_lab")


def test_what_is_stored_is_not_done_again(finished, study, monkeypatch):
    folder, report, _ = finished
    forbid(monkeypatch, "run_training", "sample", "measure_steps", "Trainable")
    judge = DarknessJudge()
    again, said = run(study, folder, judge=judge)
    assert again == report
    assert judge.read_images == 0  # its readings are stored too
    assert all(found.checkpoints() for found in find_runs(folder))  # which were to be kept
    assert "stored" in said and "about 0.0 min to go" in said


def test_both_judges_read_the_same_drawings(finished, study, tmp_path, monkeypatch):
    """The second finds every part in every glyph."""

    class Everything:
        def read(self, images):
            return pd.DataFrame({"parts": [tuple(RADICALS.values())] * len(images), "abstain": False})

    folder = shutil.copytree(finished[0], tmp_path / "both")
    forbid(monkeypatch, "run_training", "sample", "measure_steps", "Trainable")
    monkeypatch.setattr(run_study, "load_judge", lambda name: {"B": Everything()}[name])
    monkeypatch.setattr(run_study.RadicalJudge, "load_or_fit", lambda folder: DarknessJudge())
    found = ablate_by_both(study, folder)
    assert found["radicals"] == {part: finished[1][part] for part in ("rates", "contrasts")}
    assert [rate["value"] for rate in found["judge-b"]["rates"]] == [1.0] * len(found["radicals"]["rates"])


def test_further_blocks_train_only_their_own_arms(finished, study, tmp_path, monkeypatch):
    folder = shutil.copytree(finished[0], tmp_path / "more")
    trained = []

    def counting(base, data, arms, *rest, **options):
        trained.extend(arm.seed for arm in arms)
        return original(base, data, arms, *rest, **options)

    original = packs.run_training
    monkeypatch.setattr(packs, "run_training", counting)
    more = dataclasses.replace(study, seeds=(5, 6, 7))
    run(more, folder)
    assert trained == [7, 7, 7]
    assert len(table_of(folder)) == 3 * 3 * 8 * 2


def test_arms_that_are_kept_elsewhere_are_not_trained_again(finished, study, tmp_path, monkeypatch):
    forbid(monkeypatch, "run_training", "sample", "measure_steps", "Trainable")
    report, said = run(study, tmp_path / "new", kept=finished[0].parent)
    assert report == finished[1]
    assert said.startswith("tiny: 0 arms beside 6 that are kept in 0 packs, about 0.0 min to go")
    assert table_of(tmp_path / "new").equals(table_of(finished[0]))


def test_a_study_takes_what_others_have_and_trains_its_new_arms_alone(finished, study, tmp_path):
    kept, folder = tmp_path / "kept", tmp_path / "another"
    shutil.copytree(finished[0], kept / "one", ignore=shutil.ignore_patterns("packs"))
    variants = (*study.variants[:2], Variant("new", dict(rank=4)))
    more = dataclasses.replace(study, name="another", seeds=(5, 6, 7), variants=variants, contrasts=())
    _, said = run(more, folder, kept=kept)
    assert "5 arms beside 4 that are kept" in said  # three of seed 7, and rank 4 of seeds 5 and 6
    assert sum(len(found.settings["arms"]) for found in find_runs(folder / "packs")) == 5
    grown, before = table_of(folder), table_of(finished[0])
    counts = {(variant.label, seed): 16 for variant in variants for seed in (5, 6, 7)}
    assert grown.groupby(["variant", "seed"]).size().to_dict() == counts
    old = grown["arm"].isin(before["arm"])
    expected = before[before["variant"] != "the same"].assign(study="another")
    pd.testing.assert_frame_equal(grown[old].reset_index(drop=True), expected.reset_index(drop=True), check_exact=True)

    shutil.copytree(folder, kept / "two", ignore=shutil.ignore_patterns("packs"))
    seventh = dataclasses.replace(study, seeds=(5, 7), variants=study.variants[:2], contrasts=())
    _, said = run(seventh, tmp_path / "third", kept=kept)
    assert said.startswith("tiny: 0 arms beside 4 that are kept")  # of seed 5 from either, of seed 7 from the second


def test_images_seen_are_kept_where_they_are_an_axis_too(finished, study, tmp_path):
    kept, plain = tmp_path / "kept", dataclasses.replace(study, variants=study.variants[:2], contrasts=())
    planned = [dataclasses.replace(v, axes={"images_seen": 1_000, "rank": 2}) for v in plain.variants]
    run(dataclasses.replace(plain, variants=tuple(planned)), kept / "planned", kept=finished[0].parent)
    assert list(table_of(kept / "planned").columns).index("images_seen") < 3  # before what is kept
    run(plain, tmp_path / "new", kept=kept)
    assert set(table_of(tmp_path / "new")["images_seen"]) == set(table_of(finished[0])["images_seen"])


def test_arms_that_were_drawn_otherwise_are_not_taken(finished, study, tmp_path):
    other = dataclasses.replace(study, noise_seeds=(0, 3))
    _, said = run(other, tmp_path, kept=finished[0].parent, dry_run=True)
    assert said.startswith("tiny: 6 arms in 2 packs")
    _, said = run(study, tmp_path, kept=finished[0].parent, name="another judge", dry_run=True)
    assert said.startswith("tiny: 6 arms in 2 packs")


def test_adapters_are_kept_only_where_asked_for(finished, study, tmp_path):
    assert {tuple(found.checkpoints()) for found in find_runs(finished[0])} == {(0, 4)}
    run(study, tmp_path)
    assert {tuple(found.checkpoints()) for found in find_runs(tmp_path)} == {()}
    assert_same_tables(table_of(tmp_path), table_of(finished[0]))


def test_packs_of_two_folders_merge_by_copying(finished, study, tmp_path, monkeypatch):
    here, there = tmp_path / "here", tmp_path / "there"
    report, said = run(study, here, only=[0])
    assert report is None and "2 of 6 arms are not there yet" in said
    assert run(study, there, only=[1])[0] is None
    for pack in (there / "packs").iterdir():
        shutil.copytree(pack, here / "packs" / pack.name)
    forbid(monkeypatch, "run_training", "sample")
    run(study, here)
    assert_same_tables(table_of(here), table_of(finished[0]))


def test_a_dry_run_trains_nothing(study, tmp_path, monkeypatch):
    forbid(monkeypatch, "run_training")
    report, said = run(study, tmp_path, dry_run=True)
    assert report is None
    assert said.startswith("tiny: 6 arms in 2 packs, about ")
    assert "pack 0: 4 x (attention, rank 2/3, batch 2): about" in said
    assert missing(open_study(study, tmp_path)) == 6


def test_progress_is_shown_unless_hidden(study, tmp_path, capfd):
    one = dataclasses.replace(study, variants=study.variants[:1], seeds=(5,), contrasts=(("rank 2", "rank 2"),))
    run(one, tmp_path / "shown")
    assert {line.split(":")[0].strip("\r") for line in capfd.readouterr().err.splitlines() if "arm" in line} == {"draw"}
    run(one, tmp_path / "hidden", progress=False)
    assert capfd.readouterr().err == ""


def test_a_progress_callback_can_end_it_and_the_next_call_goes_on(study, finished, tmp_path):
    seen = []

    def third_step(*progress):
        seen.append(progress)
        if len(seen) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(study, tmp_path, on_progress=third_step)
    run(study, tmp_path, on_progress=third_step)
    # A pack of four arms and one of two, four steps of two images each.
    steps = [("train", images, 8) for images in (2, 4, 6, 8)]
    packs_seen = [*steps, *(("draw", arm, 4) for arm in (1, 2, 3, 4)), *steps, *(("draw", arm, 2) for arm in (1, 2))]
    assert seen == packs_seen
    assert_same_tables(table_of(tmp_path), table_of(finished[0]))


@pytest.mark.parametrize("number", [-1, 2])
def test_numbers_of_no_pack_are_refused(study, tmp_path, number):
    with pytest.raises(ValueError, match="from 0 to 1, got"):
        run(study, tmp_path, only=[number])


def test_a_diverging_arm_is_in_the_table(study, tmp_path):
    wild = Variant("wild", dict(peak_lr=1e18, clip_norm=1e6))
    pair = dataclasses.replace(study, variants=(study.variants[0], wild), contrasts=(), checkpoints=2)
    report, _ = run(pair, tmp_path)
    table = table_of(tmp_path)
    ends = table[table["final"]].groupby("variant").agg({"stopped": "first", "images_seen": "max", "hit": "size"})
    assert "not both finite" in ends.loc["wild", "stopped"]
    assert ends.loc["wild", "images_seen"] < 8 == ends.loc["rank 2", "images_seen"]
    assert ends["hit"].tolist() == [32, 32]
    stopped = {(rate["variant"], rate["final"]): rate["stopped"] for rate in report["rates"]}
    assert stopped["wild", True] == 2 and stopped["rank 2", True] == 0


def test_several_moments_of_arms_of_several_lengths(study, tmp_path):
    longer = Variant("longer", dict(images_seen=24))
    pair = dataclasses.replace(study, variants=(study.variants[0], longer), contrasts=(), checkpoints=2)
    run(pair, tmp_path)
    table = table_of(tmp_path)
    seen = table.groupby(["variant", "checkpoint"])["images_seen"].unique().explode()
    assert seen.to_dict() == {("longer", 1): 8, ("longer", 2): 24, ("rank 2", 1): 2, ("rank 2", 2): 8}
    assert (table["final"] == (table["checkpoint"] == 2)).all()
    shown = rates(pair, table)
    assert len(shown) == 2 * 2 * 2
    # At their common step the two have come as far as each other.
    at_eight = [table[(table["variant"] == name) & (table["images_seen"] == 8)] for name in ("longer", "rank 2")]
    assert len(at_eight[0]) == len(at_eight[1]) == 32


def test_a_single_variant_is_trained_and_read_though_nothing_is_compared(study, tmp_path):
    report, _ = run(dataclasses.replace(study, variants=study.variants[:1], contrasts=(), seeds=(5,)), tmp_path)
    assert report["contrasts"] == {"held_out": [], "train": []}
    assert {rate["variant"] for rate in report["rates"]} == {"rank 2"}


def test_every_weight_is_a_pack_of_its_own(study, tmp_path):
    whole = Variant("every weight", dict(targets="full", peak_lr=1e-3))
    pair = dataclasses.replace(study, variants=(study.variants[0], whole), contrasts=())
    _, said = run(pair, tmp_path)
    assert said.count("1 x (every weight, batch 2)") == 2
    assert sorted(len(found.settings["arms"]) for found in find_runs(tmp_path)) == [1, 1, 2]
    assert len(table_of(tmp_path)) == 2 * 2 * 16


def test_a_stop_file_ends_a_pack_and_the_next_call_goes_on(study, finished, tmp_path, monkeypatch):
    def stopping(*arguments, **options):
        for report in original(*arguments, **options):
            if report.step == 2:
                RunFolder.open(arguments[3]).request_stop()
            yield report

    original = driver.train
    with monkeypatch.context() as patch:
        patch.setattr(driver, "train", stopping)
        with pytest.raises(InterruptedError, match="stopped before its end"):
            run(study, tmp_path)
    run(study, tmp_path)
    assert_same_tables(table_of(tmp_path), table_of(finished[0]))


def test_a_stop_file_ends_the_drawing_too(study, finished, tmp_path, monkeypatch):
    def stopping(*arguments, **options):
        drawn.append(original(*arguments, **options))
        for found in find_runs(tmp_path):
            found.request_stop()
        return drawn[-1]

    original, drawn = packs.sample, []
    with monkeypatch.context() as patch:
        patch.setattr(packs, "sample", stopping)
        with pytest.raises(InterruptedError, match="stopped before its end"):
            run(study, tmp_path)
    assert len(drawn) == 1
    run(study, tmp_path)
    assert_same_tables(table_of(tmp_path), table_of(finished[0]))


def test_an_arm_that_ends_early_stands_as_it_was_at_every_moment(study, tmp_path):
    wild = Variant("wild", dict(targets="full", peak_lr=1e30))  # alone in its pack
    several = dataclasses.replace(study, variants=(*study.variants, wild), contrasts=(), checkpoints=3)
    run(several, tmp_path)
    table = table_of(tmp_path).query("variant == 'wild'").drop_duplicates(["seed", "checkpoint"])
    for _, part in table.groupby("seed"):  # stopped at the second of four steps
        assert list(part["checkpoint"]) == [1, 2, 3] and list(part["final"]) == [False, False, True]
        assert list(part["stopped"].notna()) == [False, True, True]
        assert part["images_seen"].iloc[1] == part["images_seen"].iloc[2]


def test_what_was_drawn_before_an_interruption_is_not_drawn_again(study, finished, tmp_path, monkeypatch):
    drawn = []

    def third_time_unlucky(*arguments, **options):
        drawn.append(options["trainable"].arms)
        if len(drawn) == 3:
            raise KeyboardInterrupt
        return original(*arguments, **options)

    original = packs.sample
    monkeypatch.setattr(packs, "sample", third_time_unlucky)
    with pytest.raises(KeyboardInterrupt):
        run(study, tmp_path)
    run(study, tmp_path)
    assert len(drawn) == 6 + 1  # every arm once, and once more the one that was interrupted
    assert_same_tables(table_of(tmp_path), table_of(finished[0]))


def test_checkpoints_go_with_the_next_call_where_the_first_was_killed(study, tmp_path, monkeypatch):
    def killed(*arguments):
        raise KeyboardInterrupt

    one = dataclasses.replace(study, variants=study.variants[:1], contrasts=(), seeds=(5,))
    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "truncate_checkpoints", killed)
        with pytest.raises(KeyboardInterrupt):
            run(one, tmp_path)
    (trained,) = find_runs(tmp_path)
    assert trained.checkpoints() == [0, 4] and missing(open_study(one, tmp_path)) == 0
    forbid(monkeypatch, "run_training", "sample")
    with trained.lock():
        run(one, tmp_path)  # another process is at it
    assert trained.checkpoints() == [0, 4]
    run(one, tmp_path)
    assert trained.checkpoints() == []


# ---------------------------------------------------------------------------------- killed, and in several processes


def test_a_share_hides_the_launcher_and_gives_it_back(monkeypatch):
    launched = dict(RANK="1", WORLD_SIZE="3", LOCAL_RANK="1", LOCAL_WORLD_SIZE="2")
    for name, value in launched.items():
        monkeypatch.setenv(name, value)
    with own_share() as share:
        assert (share.index, share.processes, share.on_this_machine) == (1, 3, 2)
        assert not launched.keys() & os.environ.keys()
    assert {name: os.environ[name] for name in launched} == launched
    for name in launched:
        monkeypatch.delenv(name)
    with own_share() as share:
        assert (share.index, share.processes, share.on_this_machine) == (0, 1, 1)
        assert share.device == "cpu"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    monkeypatch.setenv("LOCAL_RANK", "1")
    with own_share() as share:
        assert share.device == "cuda:1"


@pytest.fixture(scope="module")
def processes():
    """Processes that start from a server which has imported everything: torch does not survive a plain fork."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["kanjilab.experiments.run_study", "tests.tiny", __name__])
    return context


def followed_by_pause(method, pause):
    def slow(*arguments):
        method(*arguments)
        time.sleep(pause)

    return slow


def ablate_elsewhere(study, folder, environment, pause):
    """In another process; with a pause after each file is written, so that there is time to kill it there."""
    torch.set_num_threads(1)
    os.environ.update(environment)
    make_small(pytest.MonkeyPatch())
    packs.SAVE_EVERY_SECONDS = 0.0
    for name in ("write_samples", "write_checkpoint"):
        setattr(RunFolder, name, followed_by_pause(getattr(RunFolder, name), pause))
    ablate(study, folder, judge=DarknessJudge(), most_arms=3)


def start(processes, study, folder, environment=None, pause=0.0):
    process = processes.Process(target=ablate_elsewhere, args=(study, folder, environment or {}, pause))
    process.start()
    return process


def wait_for(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.002)


@pytest.fixture(scope="module")
def in_threes(study, tmp_path_factory):
    """The study in packs of three arms, done in one go by one process."""
    folder = tmp_path_factory.mktemp("studies") / "threes"
    run(study, folder, most_arms=3)
    return folder


@pytest.mark.parametrize("when", ["training", "drawing"])
def test_a_killed_study_goes_on_to_the_same_table(processes, study, in_threes, tmp_path, when):
    def come_to(number):
        if when == "training":  # step 1, then step 3
            return bool(list(tmp_path.glob(f"packs/*/checkpoints/step_00000{2 * number - 1}")))
        return len(list(tmp_path.glob("packs/*/samples/[!.]*.safetensors"))) >= number

    for kills in (1, 2):
        process = start(processes, study, tmp_path, pause=0.1)
        wait_for(partial(come_to, kills))
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL
    assert not (tmp_path / "table-radicals.parquet").exists()
    last = start(processes, study, tmp_path)
    last.join()
    assert last.exitcode == 0
    assert_same_tables(table_of(tmp_path), table_of(in_threes))
    runs = [{settings_hash(found.settings["arms"]) for found in find_runs(folder)} for folder in (tmp_path, in_threes)]
    assert runs[0] == runs[1]  # nothing was trained in other company than before


def test_two_processes_make_the_table_of_one(processes, study, in_threes, tmp_path):
    common = dict(WORLD_SIZE="2", LOCAL_WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT="1")
    started = [start(processes, study, tmp_path, common | dict(RANK=rank, LOCAL_RANK=rank)) for rank in ("0", "1")]
    for process in started:
        process.join()
        assert process.exitcode == 0
    assert_same_tables(table_of(tmp_path), table_of(in_threes))
    seen = [json.loads((folder / "report-radicals.json").read_text())["contrasts"] for folder in (tmp_path, in_threes)]
    assert seen[0] == seen[1]
