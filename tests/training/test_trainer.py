"""Training: PEFT's and torch's numbers, arms as if alone, resumed as if never stopped."""

import copy
import dataclasses
import json
import math
import multiprocessing
import os
import signal
import socket

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from diffusers import DDPMScheduler
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from torch.testing import assert_close

from kanjilab.core.config import Arm
from kanjilab.core.run_errors import RunLocked
from kanjilab.core.run_folder import RunFolder
from kanjilab.models.adapters import StackedLora
from kanjilab.models.loading import load_base
from kanjilab.models.sampling import Sampling, sample
from kanjilab.training.calligraphy import RECIPE
from kanjilab.training.data_order import NoiseLevels, captions_of, draw_example, epoch_order
from kanjilab.training.encoded import Encoded
from kanjilab.training.few_shot import HAND_RECIPE
from kanjilab.training.loop import train
from kanjilab.training.trainer import Trainer
from tests.tiny import save_tiny_calligraphy, save_tiny_pipeline, tiny_encoded

SHAPE = (4, 8, 8)


@pytest.fixture(scope="module")
def data(base):
    return tiny_encoded(base)


def run_to_end(base, data, arms, path, **options):
    """All reports of a training, and its folder."""
    reports = list(train(base, data, arms, path, **options))
    return reports, RunFolder.open(path)


def adapter(run, arm=0, step=None):
    folder = run.checkpoint_path(run.checkpoints()[-1] if step is None else step)
    return load_file(folder / f"arm_{arm}" / "adapter_model.safetensors")


def assert_same_adapter(first, second, tolerance):
    assert first.keys() == second.keys()
    for name, value in first.items():
        assert_close(value, second[name], atol=tolerance, rtol=0, msg=lambda text, name=name: f"{name}: {text}")


def bits(module):
    return {name: value.clone() for name, value in module.state_dict().items()}


def same_bits(module, before):
    after = module.state_dict()
    return after.keys() == before.keys() and all(torch.equal(after[name], value) for name, value in before.items())


# ---------------------------------------------------------------------------------- independent references


def reference_loss(denoise, base, data, arm, step):
    """The loss of one optimizer step, from the drawn examples, by diffusers' scheduler."""
    scheduler = DDPMScheduler.from_config(base.scheduler_config)
    images = range(step * arm.images_per_step, (step + 1) * arm.images_per_step)
    draws = [draw_example(arm.seed, index, len(data), SHAPE, 1000) for index in images]
    rows = [draw.row for draw in draws]
    posterior_noise = torch.from_numpy(np.stack([draw.posterior_noise for draw in draws]))
    spread = torch.from_numpy(data.log_variance[rows]).exp().sqrt()
    latents = torch.from_numpy(data.mean[rows]) + spread * posterior_noise
    noise = torch.from_numpy(np.stack([draw.noise for draw in draws]))
    velocity = base.scheduler_config["prediction_type"] == "v_prediction"
    snr = scheduler.alphas_cumprod / (1 - scheduler.alphas_cumprod)
    weights = torch.ones(1000)
    if arm.min_snr_gamma is not None:
        weights = snr.clamp(max=arm.min_snr_gamma) / (snr + 1 if velocity else snr)
    timesteps = torch.tensor([draw.timestep for draw in draws])
    if arm.timesteps == "importance":
        levels = NoiseLevels(weights.double().numpy(), arm.seed, arm.images_per_step)
        timesteps = torch.tensor([levels.level(*each) for each in zip(images, timesteps.tolist(), strict=True)])
        weights = weights.sqrt() * weights.sqrt().mean()  # what is drawn oftener weighs as much less
    captions = [0 if draw.dropout < arm.caption_dropout else data.caption[draw.row] for draw in draws]
    text = torch.from_numpy(data.tokens[captions].astype(np.float32))
    predicted = denoise(scheduler.add_noise(latents, noise, timesteps), timesteps, text).sample
    target = scheduler.get_velocity(latents, noise, timesteps) if velocity else noise
    return ((predicted - target).square().flatten(1).mean(1) * weights[timesteps]).mean()


def reference_steps(denoise, parameters, base, data, arm, steps, total_steps):
    """Some steps of torch's AdamW with clipping and a cosine; losses and gradient norms."""
    optimizer = torch.optim.AdamW(
        parameters, betas=(arm.beta1, arm.beta2), eps=arm.epsilon, weight_decay=arm.weight_decay
    )
    losses, norms = [], []
    for step in range(steps):
        loss = reference_loss(denoise, base, data, arm, step)
        optimizer.zero_grad()
        loss.backward()
        norms.append(torch.nn.utils.clip_grad_norm_(parameters, arm.clip_norm).item())
        optimizer.param_groups[0]["lr"] = arm.peak_lr * 0.5 * (1 + math.cos(math.pi * step / total_steps))
        optimizer.step()
        losses.append(loss.item())
    return losses, norms


def peft_model(base, arm, state):
    config = LoraConfig(
        r=arm.rank,
        lora_alpha=arm.alpha or arm.rank,
        use_rslora=arm.rslora,
        use_dora=arm.dora,
        target_modules=[name.removeprefix("base_model.model.").split(".lora_")[0] for name in state],
    )
    model = get_peft_model(copy.deepcopy(base.denoiser), config)
    named = dict(model.named_parameters())
    with torch.no_grad():
        for name, value in state.items():
            named[name.removesuffix(".weight") + ".default.weight"].copy_(value)
    return model


def peft_state(model):
    return {
        name.replace(".default.weight", "" if "magnitude" in name else ".weight"): value.detach()
        for name, value in model.named_parameters()
        if ".lora_" in name
    }


# A large epsilon, for Adam's first steps divide rounding errors by the gradient's own size.
PARITY = dict(alpha=6, batch=2, caption_dropout=0.4, clip_norm=0.01, peak_lr=1e-3, min_snr_gamma=5, weight_decay=0.1)
PARITY["epsilon"] = 1e-4


@pytest.mark.parametrize(
    ("targets", "rank", "batch", "merged"),
    [
        ("attention", 1, 2, False),
        ("attention", 16, 8, True),
        ("all", 1, 2, False),
        ("all", 16, 8, True),
    ],
)
def test_a_step_is_pefts_and_torchs(base, data, tmp_path, monkeypatch, targets, rank, batch, merged):
    arm = Arm(**{**PARITY, "targets": targets, "rank": rank, "batch": batch, "rslora": targets == "all"})
    choices = []
    original = StackedLora._merging_pays
    monkeypatch.setattr(StackedLora, "_merging_pays", lambda self, x: choices.append(original(self, x)) or choices[-1])
    trainer = Trainer(base, data, [arm], Accelerator(cpu=True))
    rng = np.random.default_rng(0)
    state = {
        name: torch.from_numpy(rng.normal(0, 0.2, value.shape).astype(np.float32))
        for name, value in trainer.trainable.state(0).items()
    }
    trainer.trainable.load_state(0, state)  # B is not zero, so that A has a gradient from the first step
    model = peft_model(base, arm, state)
    parameters = [value for name, value in model.named_parameters() if value.requires_grad]
    losses, norms = reference_steps(model, parameters, base, data, arm, 1, trainer.progress[0].total_steps)
    found_losses, found_norms, rates = trainer.advance()
    assert found_losses == pytest.approx(losses, rel=1e-5)
    assert found_norms == pytest.approx(norms, rel=1e-4)
    assert norms[0] > arm.clip_norm  # clipping did happen
    assert rates == [arm.peak_lr]
    assert_same_adapter(trainer.trainable.state(0), peft_state(model), 1e-5)
    change = max(float((value - state[name]).abs().max()) for name, value in peft_state(model).items())
    assert change > 2e-4
    assert np.mean(choices) > 0.5 if merged else choices and not any(choices)


@pytest.mark.parametrize(
    ("prediction", "targets", "further"),
    [
        ("epsilon", "attention", {}),
        ("epsilon", "attention", dict(timesteps="importance")),
        ("v_prediction", "attention", {}),
        ("epsilon", "all", dict(dora=True)),
    ],
)
def test_a_training_is_pefts_and_torchs(tmp_path, data, prediction, targets, further):
    base = load_base(save_tiny_pipeline(tmp_path / "base", prediction=prediction))
    arm = Arm(**PARITY, **further, targets=targets, rank=3, images_seen=10)
    reports, run = run_to_end(base, data, [arm], tmp_path / "run")
    model = peft_model(base, arm, adapter(run, step=0))
    parameters = [value for value in model.parameters() if value.requires_grad]
    losses, norms = reference_steps(model, parameters, base, data, arm, 5, 5)
    assert [report.loss[0] for report in reports] == pytest.approx(losses, rel=1e-5)
    assert [report.gradient_norm[0] for report in reports] == pytest.approx(norms, rel=1e-3)
    assert [report.lr[0] for report in reports][::2] == pytest.approx([1e-3, 6.545085e-4, 9.54915e-5])
    assert_same_adapter(adapter(run), peft_state(model), 1e-5)


def test_full_fine_tuning_is_torchs(base, data, tmp_path):
    arm = Arm(targets="full", **PARITY, images_seen=6)
    reports, run = run_to_end(base, data, [arm], tmp_path / "run")
    model = copy.deepcopy(base.denoiser).requires_grad_(True)
    losses, _ = reference_steps(model, list(model.parameters()), base, data, arm, 3, 3)
    assert [report.loss[0] for report in reports] == pytest.approx(losses, rel=1e-5)
    assert_same_adapter(adapter(run), dict(model.named_parameters()), 1e-5)


def test_the_average_is_the_warmed_up_one(base, data, tmp_path):
    arm = Arm(rank=2, images_seen=4, ema_decay=0.3, peak_lr=1e-2)
    _, plain = run_to_end(base, data, [dataclasses.replace(arm, ema_decay=None)], tmp_path / "plain", checkpoints=100)
    _, averaged = run_to_end(base, data, [arm], tmp_path / "averaged", checkpoints=100)
    expected = adapter(plain, step=0)
    for step in range(1, 5):
        decay = min(0.3, (1 + step) / (10 + step))
        weights = adapter(plain, step=step)
        expected = {name: decay * value + (1 - decay) * weights[name] for name, value in expected.items()}
        assert_same_adapter(adapter(averaged, step=step), expected, 1e-6)
    assert not torch.equal(*(next(iter(adapter(run).values())) for run in (plain, averaged)))


# ---------------------------------------------------------------------------------- arms


def test_arms_are_trained_together_as_alone(base, data, tmp_path):
    arms = [
        Arm(targets="cross-attention", rank=2, peak_lr=1e-2, batch=1, images_seen=6, seed=1),
        Arm(targets="all", rank=5, alpha=2, peak_lr=3e-3, schedule="linear", batch=3, images_seen=12, weight_decay=0.2),
        Arm(
            rank=3, rslora=True, schedule="constant", batch=2, accumulation=2, images_seen=12, ema_decay=0.5, beta1=0.5
        ),
        Arm(targets="all", rank=2, dora=True, peak_lr=1e-2, images_seen=6, seed=1),
    ]
    together, run = run_to_end(base, data, arms, tmp_path / "together")
    assert len(together) == 6
    for k, arm in enumerate(arms):
        alone, solo = run_to_end(base, data, [arm], tmp_path / f"alone_{k}")
        assert_same_adapter(adapter(run, k), adapter(solo), 1e-4)
        assert [report.loss[k] for report in together[: len(alone)]] == pytest.approx(
            [report.loss[0] for report in alone], rel=1e-4
        )
        assert [report.lr[k] for report in together[: len(alone)]] == [report.lr[0] for report in alone]
        assert all(math.isnan(report.loss[k]) for report in together[len(alone) :])
        assert together[-1].images_seen[k] == alone[-1].images_seen[0] == arm.images_seen
        moved = [float((value - adapter(run, k, 0)[name]).abs().max()) for name, value in adapter(run, k).items()]
        assert min(moved) > 1e-4


def test_eight_arms_equal_their_solo_runs_after_fifty_steps(base, data, tmp_path):
    ranks, rates = (1, 2, 3, 4, 5, 6, 7, 8), (1e-3, 3e-3)
    arms = [Arm(rank=r, peak_lr=rates[r % 2], images_seen=50, seed=r // 2) for r in ranks]
    together, run = run_to_end(base, data, arms, tmp_path / "together")
    assert len(together) == 50
    for k in (0, 3, 7):
        _, solo = run_to_end(base, data, [arms[k]], tmp_path / f"alone_{k}")
        assert_same_adapter(adapter(run, k), adapter(solo), 1e-4)


@pytest.mark.parametrize("bad", [0, 1])
def test_a_ruined_arm_stops_alone(base, data, tmp_path, bad):
    good = Arm(rank=2, images_seen=6, peak_lr=1e-3)
    arms = [good, dataclasses.replace(good, seed=5)]
    arms[bad] = dataclasses.replace(arms[bad], peak_lr=1e30)
    reports, run = run_to_end(base, data, arms, tmp_path / "run", checkpoints=3)
    assert reports[-1].stopped[1 - bad] is None
    stopped = [report.stopped[bad] for report in reports]
    assert stopped[0] is None
    assert stopped[1].startswith("step 2: loss nan")
    assert stopped[1].endswith("are not both finite")
    assert stopped[1:] == [stopped[1]] * 5
    assert reports[-1].images_seen[bad] == 1  # the step that could not be taken does not count
    _, solo = run_to_end(base, data, [arms[1 - bad]], tmp_path / "solo")
    assert_same_adapter(adapter(run, 1 - bad), adapter(solo), 1e-4)
    assert all(value.isfinite().all() for value in adapter(run, bad, 0).values())  # the last good one
    log = run.read_log()
    assert log["stopped"].iloc[-1][bad] == stopped[1]
    assert math.isnan(log["loss"].iloc[-1][bad])


def test_an_exploding_arm_stops_alone(base, data, tmp_path):
    good = Arm(targets="cross-attention", rank=2, images_seen=26, peak_lr=1e-3)
    jumpy = dataclasses.replace(good, explosion_factor=1.05, seed=3)
    reports, run = run_to_end(base, data, [jumpy, good], tmp_path / "run", checkpoints=100)
    stop = next(report for report in reports if report.stopped[0])
    assert stop.step > 20  # a median needs its 20 norms
    norms = [report.gradient_norm[0] for report in reports[: stop.step - 1]]
    assert stop.gradient_norm[0] > 1.05 * np.median(norms)
    assert stop.stopped[0] == (
        f"step {stop.step}: gradient norm {stop.gradient_norm[0]:.3g} is over 1.05 times its running median "
        f"{np.median(norms):.3g}; a lower learning rate may help"
    )
    assert_same_adapter(adapter(run, 0), adapter(run, 0, stop.step - 1), 0)  # as before the step not taken
    assert reports[-1].stopped[1] is None
    _, solo = run_to_end(base, data, [good], tmp_path / "solo")
    assert_same_adapter(adapter(run, 1), adapter(solo), 1e-4)


def test_a_training_ends_when_every_arm_has_stopped(base, data, tmp_path):
    arms = [Arm(rank=2, peak_lr=1e30, seed=seed) for seed in range(2)]
    reports, run = run_to_end(base, data, arms, tmp_path / "run")
    assert len(reports) == 2
    assert all(reports[-1].stopped)
    assert run.checkpoints()[-1] == 2
    assert list(train(base, data, arms, run.path)) == []


# ---------------------------------------------------------------------------------- the frozen base


@pytest.mark.parametrize("targets", ["all", "full"])
def test_the_base_keeps_its_bits(base, data, tmp_path, targets):
    before, modules = bits(base.denoiser), list(base.denoiser.modules())
    others = bits(base.vae), bits(base.text_encoder)
    arm = Arm(targets=targets, rank=2, peak_lr=0.1, images_seen=3)

    def unchanged():
        return same_bits(base.denoiser, before) and list(base.denoiser.modules()) == modules

    for _ in train(base, data, [arm], tmp_path / "whole"):
        assert unchanged()  # also between two steps
    assert unchanged()
    steps = train(base, data, [arm], tmp_path / "closed")
    next(steps)
    steps.close()
    assert unchanged()
    with pytest.raises(KeyError, match="mine"):
        for _ in train(base, data, [arm], tmp_path / "raised"):
            raise KeyError("mine")
    assert unchanged()
    assert same_bits(base.vae, others[0])
    assert same_bits(base.text_encoder, others[1])


def test_a_failing_step_gives_the_base_back(base, data, tmp_path, monkeypatch):
    before, modules = bits(base.denoiser), list(base.denoiser.modules())

    def fail(*_):
        raise MemoryError("no memory left")

    monkeypatch.setattr(StackedLora, "forward", fail)
    with pytest.raises(MemoryError):
        list(train(base, data, [Arm(rank=2)], tmp_path / "run"))
    assert same_bits(base.denoiser, before)
    assert list(base.denoiser.modules()) == modules
    with RunFolder.open(tmp_path / "run").lock():  # and frees the folder
        pass


def test_sampling_between_steps_neither_sees_nor_disturbs_the_training(base, data, tmp_path):
    arm = Arm(rank=2, peak_lr=0.05, images_seen=4)

    def picture():
        return sample(base, ["queen"], [0], Sampling(steps=2), size_px=32)

    before = picture()
    for _ in train(base, data, [arm], tmp_path / "looked"):
        np.testing.assert_array_equal(picture(), before)
        torch.manual_seed(0)
    _, plain = run_to_end(base, data, [arm], tmp_path / "plain")
    assert_same_adapter(adapter(RunFolder.open(tmp_path / "looked")), adapter(plain), 0)


# ---------------------------------------------------------------------------------- counted randomness


def watch_draws(base, monkeypatch):
    """What each call of the noising step got: (latents, noise, timesteps)."""
    seen, add_noise = [], base.add_noise
    monkeypatch.setattr(base, "add_noise", lambda *arguments: seen.append(arguments) or add_noise(*arguments))
    return seen


def test_every_batch_size_sees_the_same_images(base, data, tmp_path, monkeypatch):
    seen = watch_draws(base, monkeypatch)
    sequences = []
    for batch, accumulation in ((1, 1), (4, 1), (2, 2)):
        seen.clear()
        arm = Arm(rank=1, batch=batch, accumulation=accumulation, images_seen=16)
        run_to_end(base, data, [arm], tmp_path / f"{batch}_{accumulation}")
        sequences.append([torch.cat(parts) for parts in zip(*seen, strict=True)])
    assert len(sequences[0][2]) == 16
    for other in sequences[1:]:
        for first, second in zip(sequences[0], other, strict=True):
            assert torch.equal(first, second)


def test_arms_of_one_seed_share_their_noise(base, data, tmp_path, monkeypatch):
    seen = watch_draws(base, monkeypatch)
    arms = [Arm(rank=1, images_seen=3), Arm(rank=2, images_seen=3), Arm(rank=1, seed=1, images_seen=3)]
    run_to_end(base, data, arms, tmp_path / "run")
    for latents, noise, timesteps in seen:
        assert torch.equal(latents[0], latents[1])
        assert torch.equal(noise[0], noise[1])
        assert timesteps[0] == timesteps[1]
        assert not torch.equal(noise[0], noise[2])


def test_each_epoch_is_a_permutation():
    rows = [draw_example(3, index, 12, (1, 1, 1), 1000).row for index in range(36)]
    epochs = [rows[:12], rows[12:24], rows[24:]]
    assert all(sorted(epoch) == list(range(12)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]
    assert epochs[1] == epoch_order(3, 1, 12).tolist()
    assert epoch_order(4, 1, 12).tolist() != epochs[1]


def test_timesteps_and_dropout_are_uniform_and_noise_is_normal():
    draws = [draw_example(0, index, 100, (1, 2, 2), 1000) for index in range(4000)]
    timesteps = np.array([draw.timestep for draw in draws])
    dropout = np.array([draw.dropout for draw in draws])
    assert (timesteps.min(), timesteps.max()) == pytest.approx((0, 999), abs=5)
    for values in (timesteps / 1000, dropout):
        counts = np.histogram(values, bins=10, range=(0, 1))[0]
        assert ((counts - 400) ** 2 / 400).sum() < 28  # chi-square, 9 degrees of freedom, p = 0.001
    assert abs(np.corrcoef(timesteps, dropout)[0, 1]) < 0.05
    noise = np.stack([np.stack([draw.noise, draw.posterior_noise]) for draw in draws])
    assert abs(noise.mean()) < 0.02
    assert abs(noise.std() - 1) < 0.02
    assert abs(np.corrcoef(noise[:, 0].ravel(), noise[:, 1].ravel())[0, 1]) < 0.03


def test_every_step_has_its_share_of_each_noise_level():
    levels = NoiseLevels(np.array([1.0, 4.0, 9.0]), seed=0, images_per_step=6)  # roots 1, 2, 3
    assert levels.share == pytest.approx([0.5, 1.0, 1.5])
    rng = np.random.default_rng(0)
    drawn = np.array([levels.level(index, rng.integers(3)) for index in range(60)]).reshape(10, 6)
    assert [np.bincount(row).tolist() for row in drawn] == [[1, 2, 3]] * 10
    assert len({tuple(row) for row in drawn}) > 1, "in no fixed order"


def test_noise_levels_that_weigh_alike_are_spread_evenly():
    levels = NoiseLevels(np.full(1000, 0.3), seed=5, images_per_step=1000)
    assert sorted(levels.level(index, 500) for index in range(3000, 4000)) == list(range(1000))
    alone = NoiseLevels(np.full(1000, 0.3), seed=5, images_per_step=1)
    assert [alone.level(index, 7 * index) for index in range(100)] == [7 * index for index in range(100)]


def test_accumulation_is_a_larger_batch(base, data, tmp_path):
    arm = Arm(rank=3, peak_lr=1e-2, images_seen=16, batch=4, epsilon=1e-3, min_snr_gamma=5)
    halves = dataclasses.replace(arm, batch=2, accumulation=2)
    first, whole = run_to_end(base, data, [arm], tmp_path / "whole")
    second, run = run_to_end(base, data, [halves], tmp_path / "halves")
    assert_same_adapter(adapter(run), adapter(whole), 1e-6)
    assert [r.loss[0] for r in first] == pytest.approx([r.loss[0] for r in second], rel=1e-6)
    assert [r.images_seen for r in first] == [r.images_seen for r in second] == [(4,), (8,), (12,), (16,)]


def test_bf16_stays_near_fp32(folder, base, data, tmp_path):
    half = load_base(folder, precision="bf16")
    for targets, dora in (("attention", False), ("all", False), ("all", True), ("full", False)):
        arm = Arm(targets=targets, rank=4, dora=dora, peak_lr=1e-3, images_seen=6, batch=2)
        full, _ = run_to_end(base, data, [arm], tmp_path / f"fp32_{targets}_{dora}")
        reports, run = run_to_end(half, data, [arm], tmp_path / f"bf16_{targets}_{dora}")
        expected, found = (np.array([report.loss[0] for report in steps]) for steps in (full, reports))
        np.testing.assert_allclose(found, expected, rtol=0.05)
        assert not np.array_equal(found, expected)
        assert {value.dtype for value in adapter(run).values()} == {torch.float32}
    several = [Arm(targets="all", rank=2, images_seen=2), Arm(targets="all", rank=3, dora=True, images_seen=2)]
    reports, _ = run_to_end(half, data, several, tmp_path / "several")
    assert reports[-1].stopped == (None, None)


def test_shuffled_captions_are_those_of_other_images(base):
    data = dataclasses.replace(tiny_encoded(base), caption=np.arange(12))
    assert captions_of(Arm(), data).tolist() == list(range(12))
    shuffled = captions_of(Arm(shuffled_captions=True), data)
    assert sorted(shuffled) == list(range(12))
    assert all(shuffled != data.caption)
    assert shuffled.tolist() == captions_of(Arm(shuffled_captions=True, rank=2), data).tolist()
    assert shuffled.tolist() != captions_of(Arm(shuffled_captions=True, seed=1), data).tolist()


def test_an_arm_is_trained_on_its_own_captions(base, data, tmp_path, monkeypatch):
    shown, text = [], Encoded.text
    monkeypatch.setattr(Encoded, "text", lambda self, rows, device: shown.append(rows) or text(self, rows, device))
    arms = [
        Arm(rank=1, images_seen=12, caption_dropout=0.0),
        Arm(rank=1, images_seen=12, shuffled_captions=True, caption_dropout=0.3),
    ]
    run_to_end(base, data, arms, tmp_path / "run")
    draws = [draw_example(0, index, 12, SHAPE, 1000) for index in range(12)]
    rows = [draw.row for draw in draws]
    plain, shuffled = np.stack(shown).T
    assert plain.tolist() == data.caption[rows].tolist()
    dropped = np.array([draw.dropout < 0.3 for draw in draws])
    assert 0 < dropped.sum() < 12
    assert shuffled.tolist() == np.where(dropped, 0, captions_of(arms[1], data)[rows]).tolist()


# ---------------------------------------------------------------------------------- the run folder


def test_the_folder_and_the_log_say_what_was_done(base, data, tmp_path):
    arms = [Arm(rank=2, batch=2, epochs=2), Arm(rank=3, batch=1, epochs=1, alpha=6)]
    reports, run = run_to_end(base, data, arms, tmp_path / "run", checkpoints=2, log_every=5)
    assert run.checkpoints() == [0, 4, 12]
    assert [report.step for report in reports if report.checkpoint] == [4, 12]
    log = run.read_log()
    assert log["step"].tolist() == [4, 5, 10, 12]
    assert log["images_seen"].tolist() == [[8, 4], [10, 5], [20, 10], [24, 12]]
    for _, record in log.iterrows():
        report = reports[record["step"] - 1]
        assert (record["loss"], record["gradient_norm"]) == (list(report.loss), list(report.gradient_norm))
    state = {name.rsplit(".lora_", 1)[0]: [] for name in adapter(run, 1)}
    for name, value in adapter(run, 1).items():
        state[name.rsplit(".lora_", 1)[0]].append(value)
    norm = math.sqrt(sum(float((2 * up @ down).square().sum()) for down, up in state.values()))
    assert log["update_norm"].iloc[-1][1] == pytest.approx(norm, rel=1e-4)
    seconds = [report.seconds for report in reports]
    assert seconds == sorted(seconds)
    assert run.settings["arms"] == [arm.to_json() for arm in arms]
    assert run.settings["training_images"] == 12


def test_a_folder_of_other_settings_is_refused_with_both(base, data, tmp_path):
    run_to_end(base, data, [Arm(rank=2, images_seen=1)], tmp_path / "run")
    for arms, message in (
        ([Arm(rank=3, images_seen=1)], r"arms\[0\].rank: stored 2, asked for 3"),
        ([Arm(rank=2, images_seen=1, alpha=2)], r"arms\[0\].alpha: stored None, asked for 2.0"),
        ([Arm(rank=2, images_seen=1)] * 2, "arms: stored 1, asked for 2"),
    ):
        with pytest.raises(ValueError, match=f"run holds a run of other settings.*{message}"):
            next(train(base, data, arms, tmp_path / "run"))
    other = tiny_encoded(base, seed=1)
    with pytest.raises(ValueError, match="data: stored 'tiny-12-0', asked for 'tiny-12-1'"):
        next(train(base, other, [Arm(rank=2, images_seen=1)], tmp_path / "run"))


def test_two_trainings_never_write_one_folder(base, data, tmp_path):
    arms = [Arm(rank=2)]
    steps = train(base, data, arms, tmp_path / "run")
    next(steps)
    with pytest.raises(RunLocked, match=str(os.getpid())):
        next(train(base, data, arms, tmp_path / "run"))
    steps.close()
    assert next(train(base, data, arms, tmp_path / "run")).step == 2


# ---------------------------------------------------------------------------------- resuming

RESUMED = {
    "arms": [
        Arm(rank=2, accumulation=2, ema_decay=0.9, peak_lr=1e-2, images_seen=24, seed=1),
        Arm(targets="all", rank=3, batch=2, peak_lr=3e-3, schedule="linear", images_seen=16, min_snr_gamma=5),
        Arm(rank=2, peak_lr=1e30, images_seen=16),  # and one that stops early
    ],
    "DoRA": [
        Arm(rank=2, dora=True, accumulation=2, ema_decay=0.9, peak_lr=1e-2, images_seen=24, seed=1),
        Arm(targets="all", rank=3, dora=True, batch=2, peak_lr=3e-3, images_seen=16),
        Arm(targets="all", rank=2, peak_lr=1e-2, images_seen=8),
    ],
    "text encoder": [
        Arm(rank=2, text_encoder="lora", accumulation=2, ema_decay=0.9, peak_lr=1e-2, images_seen=24, seed=1),
        Arm(targets="all", rank=3, text_encoder="lora", batch=2, peak_lr=3e-3, images_seen=16),
        Arm(targets="all", rank=2, peak_lr=1e-2, images_seen=8),
    ],
    "unet": [Arm(targets="full", peak_lr=1e-3, images_seen=24, batch=2, ema_decay=0.99)],
    "flow arms": [
        Arm(rank=2, accumulation=2, ema_decay=0.9, peak_lr=1e-2, images_seen=24, seed=1),
        Arm(targets="all", rank=3, batch=2, peak_lr=3e-3, schedule="linear", images_seen=16),
    ],
    "flow whole": [Arm(targets="full", peak_lr=1e-3, images_seen=24, batch=2, ema_decay=0.99)],
    "calligraphy": [  # the recipe's settings, on a tiny base
        dataclasses.replace(RECIPE, images_seen=24, batch=2, warmup_steps=3, peak_lr=1e-3)
    ],
    "calligraphy arms": [
        Arm(rank=2, condition_encoder="full", array_dropout=0.25, accumulation=2, ema_decay=0.9, images_seen=24),
        Arm(targets="all", rank=3, condition_encoder="lora", array_dropout=0.0, batch=2, peak_lr=3e-3, images_seen=16),
        dataclasses.replace(HAND_RECIPE, rank=2, batch=2, images_seen=24, warmup_steps=2),  # of a hand
    ],
}
KILLS = int(os.environ.get("KANJILAB_KILLS", "2"))  # of each kind; `make faults` wants more
KINDS = [kind for kind in RESUMED if KILLS > 2 or kind != "calligraphy arms"]  # the normal run has the recipe's alone
KILLED = KINDS if KILLS > 2 else ["arms", "unet"]  # of adapters, and of whole weights
FLOW, CALLIGRAPHY = ("sd3_base", "sd3_folder"), ("calligraphy_base", "calligraphy_folder")


@pytest.fixture(scope="module")
def calligraphy_folder(tmp_path_factory):
    """A tiny base that reads skeletons."""
    return save_tiny_calligraphy(tmp_path_factory.mktemp("calligraphy") / "base")


@pytest.fixture(scope="module")
def calligraphy_base(calligraphy_folder):
    """The same, loaded."""
    return load_base(calligraphy_folder)


@pytest.fixture
def resumed_base(request, kind):
    """The base of a kind of training, and its folder."""
    names = {"flow": FLOW, "calligraphy": CALLIGRAPHY}.get(kind.partition(" ")[0], ("base", "folder"))
    return [request.getfixturevalue(name) for name in names]


def contents(run):
    """Everything that a finished run left, timings apart."""
    log = [json.loads(line) for line in (run.path / "log.jsonl").read_text().splitlines()]
    found = {"log": [{key: value for key, value in record.items() if key != "seconds"} for record in log]}
    for step in run.checkpoints():
        for path in sorted(run.checkpoint_path(step).rglob("*")):
            if path.name == "state.json":
                found[f"{step} state"] = {**json.loads(path.read_text()), "seconds": None}
            elif path.is_file() and path.name != "manifest.json":
                found[f"{step} {path.relative_to(run.checkpoint_path(step))}"] = path.read_bytes()
    return found


def assert_same_contents(found, expected):
    assert found.keys() == expected.keys()
    assert [name for name in expected if found[name] != expected[name]] == []


@pytest.mark.parametrize("kind", KINDS)
def test_closed_and_stopped_trainings_go_on_bit_for_bit(resumed_base, tmp_path, kind):
    base, data = resumed_base[0], tiny_encoded(resumed_base[0])
    arms, options = RESUMED[kind], dict(checkpoints=3, log_every=3)
    _, whole = run_to_end(base, data, arms, tmp_path / "whole", **options)
    path, steps_seen = tmp_path / "parts", []
    steps = train(base, data, arms, path, **options)
    steps_seen += [next(steps).step for _ in range(2)]
    steps.close()
    for report in train(base, data, arms, path, **options):
        steps_seen.append(report.step)
        if report.step == 4:
            (path / "STOP").touch()
    assert steps_seen == [1, 2, 3, 4, 5]  # the request is seen at the next step's end
    assert report.checkpoint
    with pytest.raises(KeyError):
        for report in train(base, data, arms, path, **options):
            steps_seen.append(report.step)
            if report.step == 7:
                raise KeyError("in the caller's loop")
    steps_seen += [report.step for report in train(base, data, arms, path, **options)]
    assert steps_seen == list(range(1, steps_seen[-1] + 1))
    assert_same_contents(contents(RunFolder.open(path)), contents(whole))
    assert list(train(base, data, arms, path, **options)) == []  # nothing is left to do


def test_seconds_count_all_parts(base, data, tmp_path):
    arms = [Arm(rank=2, images_seen=4)]
    steps = train(base, data, arms, tmp_path / "run")
    first = [next(steps).seconds for _ in range(2)]
    steps.close()
    second = [report.seconds for report in train(base, data, arms, tmp_path / "run")]
    assert 0 < first[0] < first[1] < second[0] < second[1]


@pytest.fixture(scope="module")
def processes():
    """Processes that start from a server which has imported everything: torch does not survive a plain fork."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["kanjilab.training.trainer", "tests.tiny", __name__])
    return context


def train_elsewhere(folder, arms, path, options, environment, paced, connection):
    """Trains in another process and tells each step done; if paced, waits for leave to do the next."""
    torch.set_num_threads(1)
    os.environ.update(environment)
    base = load_base(folder)
    try:
        for report in train(base, tiny_encoded(base), arms, path, accelerator=Accelerator(cpu=True), **options):
            connection.send(report.step)
            if paced:
                connection.recv()
        connection.send("done")
    finally:
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()


def start(processes, *arguments, environment=None, paced=False):
    here, there = processes.Pipe()
    process = processes.Process(target=train_elsewhere, args=(*arguments, environment or {}, paced, there))
    process.start()
    there.close()
    return process, here


def told(connection, timeout=60):
    """The next message of a process; None where it has ended."""
    assert connection.poll(timeout), f"nothing heard for {timeout} s"
    try:
        return connection.recv()
    except EOFError:
        return None


def end_of(started):
    """Last step of each process; all must end well."""
    last = [0] * len(started)
    for k, (process, connection) in enumerate(started):
        while isinstance(message := told(connection), int):
            last[k] = message
        process.join()
        assert process.exitcode == 0
    return last


def kill_later(process, connection, steps, seconds):
    """Kills a paced training so many steps on and a moment later; False where it ended by itself before."""
    for _ in range(steps):
        if not isinstance(told(connection), int):
            break
        connection.send("go on")
    process.join(seconds)
    process.kill()
    process.join()
    assert process.exitcode in (0, -signal.SIGKILL)
    return process.exitcode != 0


@pytest.mark.parametrize("kind", KILLED)
def test_a_killed_training_goes_on_bit_for_bit(processes, resumed_base, tmp_path, kind):
    folder = resumed_base[1]
    rng = np.random.default_rng(list(RESUMED).index(kind))
    arms, options = RESUMED[kind], dict(checkpoints=3, log_every=3)
    # A resume point every step: much of the time goes into writing, where a kill hurts the most.
    frequent = options | dict(save_every_seconds=0.0)
    uninterrupted = start(processes, folder, arms, tmp_path / "whole", options)
    assert end_of([uninterrupted]) == [12]
    kills, trainings = 0, 0
    while kills < KILLS:  # a training is over after some ten kills, and another begins
        path, going_on = tmp_path / f"killed-{trainings}", True
        while going_on and kills < KILLS:
            started = start(processes, folder, arms, path, frequent, paced=True)
            going_on = kill_later(*started, steps=rng.integers(1, 3), seconds=rng.uniform(0, 0.06))
            kills += going_on
        end_of([start(processes, folder, arms, path, options)])
        assert_same_contents(contents(RunFolder.open(path)), contents(RunFolder.open(tmp_path / "whole")))
        trainings += 1


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def start_two(processes, *arguments):
    """Two processes of one training, as torchrun or accelerate's launcher would start them."""
    port = str(free_port())
    common = dict(MASTER_ADDR="127.0.0.1", MASTER_PORT=port, WORLD_SIZE="2", GLOO_SOCKET_IFNAME="lo")
    return [start(processes, *arguments, environment=common | dict(RANK=r, LOCAL_RANK=r)) for r in ("0", "1")]


def test_two_processes_train_as_one(processes, base, folder, data, tmp_path):
    arms = [
        Arm(rank=2, batch=3, images_seen=12, epsilon=1e-3),
        Arm(targets="all", rank=3, images_seen=4, epsilon=1e-3, seed=1),
        Arm(targets="cross-attention", rank=1, batch=2, accumulation=2, images_seen=8, epsilon=1e-3),
    ]
    assert end_of(start_two(processes, folder, arms, tmp_path / "two", {})) == [4, 4]
    reports, one = run_to_end(base, data, arms, tmp_path / "one")
    two = RunFolder.open(tmp_path / "two")
    for k in range(3):
        assert_same_adapter(adapter(two, k), adapter(one, k), 1e-5)
    assert two.read_log()["loss"].iloc[-1] == pytest.approx(list(reports[-1].loss), rel=1e-5, nan_ok=True)


def test_two_processes_stop_together_and_go_on(processes, folder, tmp_path):
    arms = [Arm(rank=2, batch=2, images_seen=400)]
    (tmp_path / "two").mkdir()
    started = start_two(processes, folder, arms, tmp_path / "two", {})
    assert told(started[0][1]) == 1
    (tmp_path / "two" / "STOP").touch()
    last = end_of(started)
    assert last[0] == last[1] < 200
    assert RunFolder.open(tmp_path / "two").checkpoints()[-1] == last[0]


def test_the_text_encoder_learns_at_its_own_rate(data, tmp_path):
    base = load_base(save_tiny_pipeline(tmp_path / "base"))
    arm = Arm(text_encoder="lora", rank=2, peak_lr=1e-2, schedule="constant", batch=2, images_seen=2, clip_norm=1e9)
    own = dataclasses.replace(arm, text_encoder_lr=1e-3)
    trainer = Trainer(base, data, [arm, own], Accelerator(cpu=True))
    before = trainer.rows.values.clone()
    trainer.advance()
    moved = trainer.rows.views(trainer.rows.values - before)
    for name, change in moved.items():
        ratio = 0.1 if name.startswith("text_encoder.") else 1.0
        assert_close(change[1], ratio * change[0], rtol=1e-3, atol=1e-7, msg=name)
    assert "text_encoder_lr" not in arm.to_json() and own.to_json()["text_encoder_lr"] == 1e-3
