"""Packs at hand-worked studies, what they cost, and what is stored of a trained arm."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler
from safetensors.torch import load_file

from kanjilab.core.config import Arm
from kanjilab.core.run_folder import RunFolder
from kanjilab.experiments import packs
from kanjilab.experiments.context import open_study
from kanjilab.experiments.packs import cut_into_packs, plan, stored_moments
from kanjilab.experiments.study import Variant
from kanjilab.models.sampling import sample
from kanjilab.models.trainable import Trainable
from kanjilab.training.cost import Cost
from kanjilab.training.data_order import draw_example
from tests.tiny_study import Forbidden, forbid

measure_steps, seconds_per_image = packs.measure_steps, packs._seconds_per_image

pytestmark = pytest.mark.usefixtures("small_lab")


@pytest.fixture
def measured(monkeypatch):
    monkeypatch.setattr(packs, "measure_steps", measure_steps)
    monkeypatch.setattr(packs, "_seconds_per_image", seconds_per_image)


class Data:
    """Stands for an encoded dataset."""

    def __init__(self, identity, size=100):
        self.identity, self.size = identity, size

    def __len__(self):
        return self.size


ONE, OTHER = Data("one"), Data("other")


@pytest.mark.parametrize(
    ("arms", "most", "packs"),
    [
        # As many as fit, in order.
        ([(dict(seed=k), ONE) for k in range(5)], 2, ["01", "23", "4"]),
        ([(dict(seed=k), ONE) for k in range(5)], 8, ["01234"]),
        # Never two datasets, two batches, or two choices of layers.
        ([({}, ONE), ({}, OTHER), (dict(seed=1), ONE)], 8, ["02", "1"]),
        ([(dict(batch=1), ONE), (dict(batch=4), ONE), (dict(batch=1, seed=1), ONE)], 8, ["02", "1"]),
        ([(dict(accumulation=2), ONE), ({}, ONE)], 8, ["0", "1"]),
        ([(dict(targets="all"), ONE), (dict(targets="attention"), ONE)], 8, ["0", "1"]),
        # Every weight: one at a time.
        ([(dict(targets="full", seed=k), ONE) for k in range(3)], 8, ["0", "1", "2"]),
        # Equal lengths together, then equal ranks.
        ([(dict(images_seen=n, seed=n), ONE) for n in (100, 400, 101, 401)], 2, ["02", "13"]),
        ([(dict(rank=r, seed=r), ONE) for r in (64, 1, 65, 2)], 2, ["13", "02"]),
    ],
)
def test_packs_at_hand_worked_studies(arms, most, packs):
    trainings = {str(k): (Arm(**changes), data) for k, (changes, data) in enumerate(arms)}
    assert ["".join(pack) for pack in cut_into_packs(trainings, lambda arm, data: most)] == packs


def test_the_widest_arm_decides_how_many_fit():
    trainings = {f"{rank}{k}": (Arm(rank=rank, seed=k), ONE) for rank in (1, 8) for k in range(3)}
    packs = cut_into_packs(trainings, lambda arm, data: {1: 4, 8: 2}[arm.rank])
    assert packs == [("10", "11", "12"), ("80", "81"), ("82",)]


def test_a_wide_arm_keeps_its_room_when_longer_narrow_ones_join_it():
    settings = [Arm(rank=rank, images_seen=100 + 300 * (k > 0), seed=k) for k, rank in enumerate((8, 1, 1, 1, 1))]
    trainings = {str(k): (arm, ONE) for k, arm in enumerate(settings)}
    packs = cut_into_packs(trainings, lambda arm, data: {1: 4, 8: 2}[arm.rank])
    assert packs == [("0", "1"), ("2", "3", "4")]


def test_a_plan_is_made_once_and_has_the_claims_arms_first(study, tmp_path, monkeypatch):
    longer = Variant("longer", dict(images_seen=16))
    four = dataclasses.replace(study, variants=(*study.variants, longer), contrasts=(("longer", "rank 3"),))
    lab = open_study(four, tmp_path)
    packs = plan(lab, most_arms=3)
    by_key = {lab.key(variant, seed): variant.label for variant, seed in four.cells()}
    labels = [[by_key[key] for key in pack.keys] for pack in packs]
    assert labels == [["rank 3", "rank 3", "longer"], ["longer"], ["rank 2", "the same", "rank 2"], ["the same"]]
    assert all(pack.seconds > 0 and pack.gigabytes > 0 for pack in packs)
    forbid(monkeypatch, "measure_steps")
    assert plan(lab, most_arms=3) == packs
    with pytest.raises(Forbidden):
        plan(lab, most_arms=2)


def test_a_damaged_plan_is_named(study, tmp_path):
    context = open_study(study, tmp_path)
    plan(context)
    (path,) = (tmp_path / "plans").iterdir()
    path.write_text('{"keys": 3}')
    with pytest.raises(ValueError, match=f"{path.name}: expected the packs of a study"):
        plan(context)


def test_of_two_plans_the_first_stays_also_without_hard_links(tmp_path, monkeypatch):
    def link(source, target):
        raise PermissionError("no hard links here")

    monkeypatch.setattr(packs.os, "link", link)
    for content in (["first"], ["second"]):
        packs._write_first(tmp_path / "plan.json", content)
    assert json.loads((tmp_path / "plan.json").read_text()) == ["first"]
    assert [path.name for path in tmp_path.iterdir()] == ["plan.json"]


def test_a_plan_leaves_what_is_stored_to_the_end(study, finished, tmp_path):
    folder, *_ = finished
    shutil.copytree(folder / "packs", tmp_path / "packs")
    longer = dataclasses.replace(study, variants=(Variant("longer", dict(images_seen=16)), *study.variants))
    lab = open_study(longer, tmp_path)
    stored = stored_moments(lab)
    packs = plan(lab, most_arms=8)
    assert [[key in stored for key in pack.keys] for pack in packs] == [[False] * 2, [True] * len(stored)]


def test_little_memory_makes_small_packs(study, tmp_path, measured):
    one = dataclasses.replace(study, variants=study.variants[:1], contrasts=(("rank 2", "rank 2"),))
    lab = open_study(one, tmp_path)
    assert [len(pack.keys) for pack in plan(lab, memory_gb=1e-6)] == [1, 1]
    assert [len(pack.keys) for pack in plan(lab, memory_gb=1e6)] == [2]


def test_no_pack_is_larger_than_what_is_free(study, tmp_path, measured, monkeypatch):
    one = dataclasses.replace(study, variants=study.variants[:1], contrasts=())
    monkeypatch.setattr(packs, "free_bytes", lambda device: 1_000)
    assert [len(pack.keys) for pack in plan(open_study(one, tmp_path))] == [1, 1]


def test_a_pack_is_measured_by_its_own_steps(study, tmp_path, monkeypatch):
    lab = open_study(study, tmp_path)
    arms = [study.arm_of(study.variants[0], seed) for seed in (5, 6)]
    cost = measure_steps(lab.base, lab.data(study.variants[0]), arms)
    assert 0 < cost.seconds_per_step < 5 and 0.1 < cost.gigabytes < 20
    monkeypatch.setattr(packs, "measure_steps", lambda base, data, arms, steps=2: Cost(0.5 * len(arms), 2.0))
    monkeypatch.setattr(packs, "_seconds_per_image", lambda lab, arm: 0.25)
    (first, second) = plan(lab)
    # Four arms of four steps at 2 s, and 8 prompts x 2 noises of each at a quarter of a second; then two arms.
    assert (first.seconds, first.gigabytes) == (4 * 2.0 + 4 * 16 * 0.25, 2.0)
    assert second.seconds == 4 * 1.0 + 2 * 16 * 0.25


def test_each_arms_images_are_those_of_its_last_checkpoint(finished, study):
    folder, _, _ = finished
    lab = open_study(study, folder)
    moments = stored_moments(lab)
    assert {len(found) for found in moments.values()} == {1}
    for variant, seed in study.cells():
        (moment,) = moments[lab.key(variant, seed)]
        trained = RunFolder.open(folder / moment.folder)
        assert moment.run == trained.settings["hash"]
        index = trained.settings["arms"].index(study.arm_of(variant, seed).to_json())
        path = trained.checkpoint_path(4) / f"arm_{index}" / "adapter_model.safetensors"
        trainable = Trainable(lab.base.denoiser, [study.arm_of(variant, seed)])
        trainable.load_state(0, load_file(path))
        drawn = sample(lab.base, lab.captions, (0, 1), study.sampling, trainable=trainable, size_px=32)[0]
        stored, facts = trained.read_samples(moment.samples)
        assert (drawn == stored).all()
        assert [asked["prompt"] for asked in facts["prompts"]] == lab.captions


def test_held_out_loss_is_the_plain_error_at_shared_noise(finished, study):
    folder, report, _ = finished
    lab = open_study(study, folder)
    variant, data = study.variants[1], lab.held_out
    (moment,) = stored_moments(lab)[lab.key(variant, 6)]
    trained = RunFolder.open(folder / moment.folder)
    index = trained.settings["arms"].index(study.arm_of(variant, 6).to_json())
    trainable = Trainable(lab.base.denoiser, [study.arm_of(variant, 6)])
    trainable.load_state(0, load_file(trained.checkpoint_path(4) / f"arm_{index}" / "adapter_model.safetensors"))
    scheduler = DDPMScheduler.from_config(lab.base.scheduler_config)
    errors = []
    for number in range(6):
        draw = draw_example(0, number, 4, data.mean.shape[1:], lab.base.timesteps)
        latents = data.mean[draw.row] + np.exp(0.5 * data.log_variance[draw.row]) * draw.posterior_noise
        latents, noise = torch.from_numpy(latents)[None], torch.from_numpy(draw.noise)[None]
        timestep = torch.tensor([draw.timestep])
        text = data.text(data.caption[[draw.row]], lab.base.device)
        with torch.no_grad(), trainable.attached(((0, 1),)):
            predicted = lab.base.denoise(scheduler.add_noise(latents, noise, timestep), timestep, text)
        errors.append((predicted - noise).square().mean().item())
    assert moment.held_out_loss == pytest.approx(np.mean(errors), rel=1e-5)
    losses = {(arm["variant"], arm["seed"]): arm["held_out_loss"] for arm in report["arms"]}
    assert losses["rank 3", 6] == moment.held_out_loss
    (found,) = [loss for loss in report["losses"] if loss["first"] == "rank 3"]
    expected = np.mean([losses["rank 3", seed] - losses["rank 2", seed] for seed in (5, 6)])
    assert found["difference"][0] == pytest.approx(expected)
