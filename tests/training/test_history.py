"""Checkpoint histories: the model's own pictures in every column, sampled once; and what the strip says."""

import shutil

import numpy as np
import pytest

from kanjilab.core.config import Arm
from kanjilab.core.run_folder import RunFolder
from kanjilab.models.sampling import Sampling, sample
from kanjilab.training import history
from kanjilab.training.checkpoints import load_checkpoints
from kanjilab.training.history import history_strip, sample_history
from kanjilab.training.loop import train
from tests.tiny import tiny_encoded

QUICK = Sampling(steps=2)
PROMPTS, SEEDS = ["water tree", "queen"], [0, 7]
ARMS = {
    "lora": [Arm(targets="all", rank=2, peak_lr=0.02, images_seen=6, batch=2, seed=seed) for seed in range(2)],
    "full": [Arm(targets="full", peak_lr=0.02, images_seen=6, batch=2)],
}


@pytest.fixture(scope="module")
def runs(base, tmp_path_factory):
    """A run of two LoRA arms and one of the whole denoiser, with images after 0, 4 and 6 seen."""
    folders = {name: tmp_path_factory.mktemp("runs") / name for name in ARMS}
    for name, arms in ARMS.items():
        for _ in train(base, tiny_encoded(base), arms, folders[name], checkpoints=2):
            pass
    return {name: RunFolder.open(folder) for name, folder in folders.items()}


def draw_history(base, run, prompts=PROMPTS, seeds=SEEDS, sampling=QUICK, **options):
    return sample_history(base, run, prompts, seeds, sampling, **options)


def gray_levels_apart(first, second):
    assert first.shape == second.shape
    return np.abs(first.astype(int) - second.astype(int)).max()


def forbid_sampling(monkeypatch):
    monkeypatch.setattr(history, "sample", lambda *_, **__: pytest.fail("sampled again"))


@pytest.mark.parametrize(("kind", "arm"), [("lora", 0), ("lora", 1), ("full", 0)])
def test_columns_are_the_pictures_of_each_checkpoint(base, runs, kind, arm):
    run, told = runs[kind], []
    images, facts = draw_history(base, run, arm=arm, on_progress=lambda *count: told.append(count))
    assert images.shape == (3, 2, 2, 32, 32), "as large as what was trained on"
    plain = sample(base, PROMPTS, SEEDS, QUICK, size_px=32)[0]
    assert gray_levels_apart(images[0], plain) <= 1  # the base alone, bar the rounding of a shared batch
    for column, step in enumerate(run.checkpoints()):
        trained = load_checkpoints(base, run, [step], arm)
        drawn = sample(base, PROMPTS, SEEDS, QUICK, trainable=trained, size_px=32)[0]
        assert gray_levels_apart(images[column], drawn) <= 1
    assert gray_levels_apart(images[2], plain) > 5
    assert gray_levels_apart(images[2], images[1]) > 1
    assert facts["images_seen"] == [0, *(2 * step for step in run.checkpoints()[1:])]
    assert (facts["steps"], facts["arm"]) == (run.checkpoints(), arm)
    done = [count for count, _ in told]
    assert done == sorted(set(done)) and done[-1] == 12
    assert {total for _, total in told} == {12}


def test_a_second_call_reads_and_another_question_samples(base, runs, monkeypatch):
    run = runs["lora"]
    first, facts = draw_history(base, run)
    forbid_sampling(monkeypatch)
    again, read_facts = draw_history(base, RunFolder.open(run.path))
    np.testing.assert_array_equal(again, first)
    assert read_facts == facts
    for other in (dict(seeds=[7, 0]), dict(prompts=["queen"]), dict(sampling=Sampling(steps=3))):
        with pytest.raises(pytest.fail.Exception, match="sampled again"):
            draw_history(base, run, **other)


def test_only_some_checkpoints_and_few_adapters_at_a_time(base, runs, monkeypatch):
    run, loaded = runs["lora"], []
    monkeypatch.setattr(history, "LOADED_BYTES", 1)

    def load(base, run, steps, arm):
        loaded.append(list(steps))
        return load_checkpoints(base, run, steps, arm)

    monkeypatch.setattr(history, "load_checkpoints", load)
    everything, _ = draw_history(base, run, seeds=[3])
    assert loaded == [[step] for step in run.checkpoints()]
    last, facts = draw_history(base, run, seeds=[3, 4], steps=run.checkpoints()[-1:], batch=1)
    assert gray_levels_apart(last[0, :, 0], everything[-1, :, 0]) <= 1
    assert (last.shape[0], facts["steps"], facts["images_seen"]) == (1, run.checkpoints()[-1:], [6])


def test_what_was_drawn_of_other_checkpoints_stays_stored(base, runs, monkeypatch):
    run = runs["lora"]
    everything, facts = draw_history(base, run, seeds=[5])
    forbid_sampling(monkeypatch)
    last, _ = draw_history(base, run, seeds=[5], steps=run.checkpoints()[-1:])
    again, _ = draw_history(base, run, seeds=[5])
    assert np.array_equal(last[0], everything[-1]) and np.array_equal(again, everything)


def test_a_run_kept_without_its_checkpoints_shows_what_it_drew(base, runs, tmp_path, monkeypatch):
    run = runs["lora"]
    everything, facts = draw_history(base, run, seeds=[8])
    for name in ("settings.json", "log.jsonl"):
        shutil.copy(run.path / name, tmp_path)
    shutil.copytree(run.path / "samples", tmp_path / "samples")
    kept = RunFolder.open(tmp_path)
    forbid_sampling(monkeypatch)
    images, read_facts = draw_history(base, kept, seeds=[8])
    assert np.array_equal(images, everything) and read_facts == facts
    last, _ = draw_history(base, kept, seeds=[8], steps=facts["steps"][-1:])
    assert np.array_equal(last, everything[-1:])
    with pytest.raises(ValueError, match="no checkpoint"):
        draw_history(base, kept, seeds=[9])


def test_a_strip_survives_a_kill_between_its_columns(base, runs, monkeypatch):
    run, drawn = runs["lora"], []
    monkeypatch.setattr(history, "LOADED_BYTES", 1)

    def once(*arguments, **options):
        if drawn:
            raise KeyboardInterrupt
        drawn.append(sample(*arguments, **options))
        return drawn[0]

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(history, "sample", once)
        draw_history(base, run, seeds=[6])
    told = []
    images, _ = draw_history(base, run, seeds=[6], on_progress=lambda *count: told.append(count))
    assert told[-1] == (4, 4), "two columns of two pictures were left"
    assert np.array_equal(images[0], drawn[0][0])


def test_a_checkpoint_that_its_training_removes_meanwhile_is_left_out(base, tmp_path):
    arm = Arm(targets="full", images_seen=12, batch=2, peak_lr=0.01)
    steps = train(base, tiny_encoded(base), [arm], tmp_path / "run", checkpoints=1, save_every_seconds=0)
    for _ in range(3):
        next(steps)
    run = RunFolder.open(tmp_path / "run")
    assert run.checkpoints() == [0, 3]

    def go_on(done, total):
        if done == 1 and run.checkpoints() == [0, 3]:
            next(steps)

    images, facts = draw_history(base, run, prompts=["queen"], seeds=[0], on_progress=go_on)
    assert (len(images), facts["steps"], facts["images_seen"]) == (1, [0], [0])
    for _ in steps:
        pass
    images, facts = draw_history(base, run, prompts=["queen"], seeds=[0])
    assert (len(images), facts["steps"], facts["images_seen"]) == (2, [0, 6], [0, 12])


@pytest.mark.parametrize("arm", [-1, 2])
def test_an_arm_that_the_run_has_not_is_refused(base, runs, arm):
    with pytest.raises(ValueError, match=f"has arms 0 to 1, got {arm}"):
        draw_history(base, runs["lora"], arm=arm)


def test_a_run_without_checkpoints_is_refused(base, tmp_path):
    settings = {"arms": [Arm().to_json()], "hash": "0", "base_identity": base.identity}
    with pytest.raises(ValueError, match="run has no checkpoint yet"):
        draw_history(base, RunFolder.create(tmp_path / "run", settings))


# ---------------------------------------------------------------------------------- the strip


def numbered(columns, prompts, seeds):
    """(columns, prompts, seeds, 4, 4) images, each of one gray that tells its place: 100 c + 10 p + s."""
    grays = np.add.outer(np.add.outer(100 * np.arange(columns), 10 * np.arange(prompts)), np.arange(seeds))
    return np.broadcast_to(grays[..., None, None], (*grays.shape, 4, 4)).astype(np.uint8)


FACTS = {"base": "tiny", "arm": 0, "steps": [0, 5, 9], "images_seen": [0, 800, 1600], "prompts": ["water", "fire"]}


def test_the_strip_shows_checkpoints_then_other_noises():
    strip = history_strip(numbered(3, 2, 5), FACTS | {"seeds": [3, 4, 6, 8, 9]}, title="tiny")
    assert strip.images[:, :, 0, 0].tolist() == [[0, 100, 200, 201, 202, 203], [10, 110, 210, 211, 212, 213]]
    assert strip.row_labels == ("water", "fire")
    assert strip.column_labels == ("before", "800", "1,600", "seed 4", "seed 6", "seed 8")
    assert strip.column_groups == (("images seen", 3), ("final, other noises", 3))
    assert strip.title == "tiny"
    assert strip.facts == {"base": "tiny", "arm": 0, "seeds": [3, 4, 6, 8, 9], "images seen": 1600}


def test_only_a_checkpoint_from_before_training_is_called_so():
    facts = FACTS | {"seeds": [3], "steps": [5, 9], "images_seen": [800, 1600]}
    assert history_strip(numbered(2, 2, 1), facts).column_labels == ("800", "1,600")


def test_other_noises_may_be_drawn_apart():
    facts = FACTS | {"seeds": [3, 7, 8]}
    strip = history_strip(numbered(3, 2, 1), facts, others=numbered(1, 2, 2)[0] + 50)
    assert strip.images[:, :, 0, 0].tolist() == [[0, 100, 200, 50, 51], [10, 110, 210, 60, 61]]
    assert strip.column_labels[3:] == ("seed 7", "seed 8")


def test_fewer_other_noises_where_fewer_were_asked_for():
    strip = history_strip(numbered(3, 2, 5), FACTS | {"seeds": [3, 4, 6, 8, 9]}, further=1)
    assert strip.column_labels[3:] == ("seed 4",)
    assert strip.column_groups[1] == ("final, other noises", 1)


def test_one_seed_has_no_further_columns():
    strip = history_strip(numbered(3, 2, 1), FACTS | {"seeds": [3]})
    assert strip.images[:, :, 0, 0].tolist() == [[0, 100, 200], [10, 110, 210]]
    assert strip.column_labels == ("before", "800", "1,600")
    assert strip.column_groups == (("images seen", 3),)
