"""Sampling: diffusers' pictures, the same noise everywhere, adapters from checkpoints."""

import json

import numpy as np
import pytest
import torch
from diffusers import DPMSolverMultistepScheduler, StableDiffusionPipeline
from torch.testing import assert_close

from kanjilab.core.config import Arm
from kanjilab.core.run_folder import RunFolder
from kanjilab.models.loading import load_base
from kanjilab.models.sampling import Sampling, initial_noise, sample
from kanjilab.models.trainable import Trainable
from kanjilab.training.checkpoints import checkpoint_images_seen, load_checkpoints
from kanjilab.training.loop import train
from tests.tiny import save_tiny_pipeline, tiny_encoded

QUICK = Sampling(steps=4)
PROMPTS, SEEDS = ["water tree", "queen", "a castle"], [0, 7]


def draw(base, prompts=PROMPTS, seeds=SEEDS, sampling=QUICK, **options):
    return sample(base, prompts, seeds, sampling, size_px=32, **options)


def gray_levels_apart(first, second):
    assert first.shape == second.shape
    return np.abs(first.astype(int) - second.astype(int)).max()


def random_adapters(base, arms, size=0.3):
    """Adapters far from nothing, so that the pictures tell whose they are."""
    trainable = Trainable(base.denoiser, arms)
    rng = np.random.default_rng(0)
    for k in range(len(arms)):
        state = trainable.state(k)
        trainable.load_state(
            k, {n: torch.from_numpy(rng.normal(0, size, v.shape).astype(np.float32)) for n, v in state.items()}
        )
    return trainable


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # diffusers' own, in its pipeline
@pytest.mark.parametrize("sampler", ["ddim", "dpm-solver++"])
@pytest.mark.parametrize("guidance", [1.0, 3.0])
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_pictures_are_diffusers(folder, tmp_path, monkeypatch, sampler, guidance, prediction):
    if prediction == "v_prediction":
        folder = save_tiny_pipeline(tmp_path / "velocity", prediction=prediction)
    base = load_base(folder)
    pipeline = StableDiffusionPipeline.from_pretrained(folder, safety_checker=None, requires_safety_checker=False)
    pipeline.set_progress_bar_config(disable=True)
    if sampler == "dpm-solver++":
        config = pipeline.scheduler.config
        pipeline.scheduler = DPMSolverMultistepScheduler.from_config(config, algorithm_type="dpmsolver++")
    latents = initial_noise(SEEDS, (4, 8, 8))
    expected = pipeline(
        ["a water tree"] * 2,
        height=32,
        width=32,
        num_inference_steps=6,
        guidance_scale=guidance,
        negative_prompt=["fire"] * 2,
        latents=latents,
        output_type="latent",
    ).images
    decoded, decode = [], base.decode
    monkeypatch.setattr(base, "decode", lambda latents: decoded.append(latents) or decode(latents))
    sampling = Sampling(sampler, 6, guidance, negative_prompt="fire", prefix="a ")
    images = draw(base, ["water tree"], sampling=sampling)
    assert_close(decoded[0], expected, atol=1e-4, rtol=1e-4)
    with torch.no_grad():
        grays = pipeline.vae.decode(expected / pipeline.vae.config.scaling_factor).sample[:, 0]
    grays = ((grays / 2 + 0.5).clamp(0, 1) * 255).round().byte().numpy()
    assert gray_levels_apart(images[0, 0], grays) <= 1
    assert images.std() > 2


def test_guidance_and_the_negative_prompt_count(base):
    plain, guided = draw(base, sampling=Sampling(steps=4, guidance=1)), draw(base)
    negative = draw(base, sampling=Sampling(steps=4, negative_prompt="fire"))
    assert gray_levels_apart(plain, guided) > 1
    assert gray_levels_apart(guided, negative) > 1


def test_batch_and_order_do_not_change_the_pictures(base):
    images = draw(base)
    assert images.shape == (1, 3, 2, 32, 32)
    assert gray_levels_apart(images[0, 0, 0], images[0, 0, 1]) > 1  # another seed
    assert gray_levels_apart(images[0, 0, 0], images[0, 1, 0]) > 1  # another prompt
    for batch in (1, 2, 5):
        assert gray_levels_apart(draw(base, batch=batch), images) <= 1
    assert gray_levels_apart(draw(base, PROMPTS[::-1], SEEDS[::-1])[:, ::-1, ::-1], images) <= 1
    assert gray_levels_apart(draw(base, ["queen"], [7])[0, 0, 0], images[0, 1, 1]) <= 1
    torch.manual_seed(3)  # no global generator has a part in it
    np.testing.assert_array_equal(draw(base), images)


def test_sampling_leaves_the_global_generators_alone(base):
    state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    draw(base)
    assert torch.equal(torch.get_rng_state(), state)
    np.testing.assert_array_equal(np.random.get_state()[1], numpy_state)  # noqa: NPY002


def test_noise_is_that_of_the_seed():
    noise = initial_noise([3, 5, 3], (4, 16, 16))
    assert torch.equal(noise[0], noise[2])
    assert not torch.equal(noise[0], noise[1])
    assert abs(noise[:2].mean()) < 0.06
    assert abs(noise[:2].std() - 1) < 0.05


def test_arms_are_drawn_side_by_side_as_alone(base):
    arms = [Arm(rank=2, targets="attention"), Arm(rank=3, targets="all", alpha=1), Arm(rank=1, targets="attention")]
    trainable = random_adapters(base, arms)
    together = draw(base, trainable=trainable)
    assert together.shape == (3, 3, 2, 32, 32)
    for batch in (4, 5):  # stretches of 2 + 2 and of 1 + 4
        assert gray_levels_apart(draw(base, trainable=trainable, batch=batch), together) <= 1
    for k, arm in enumerate(arms):
        alone = Trainable(base.denoiser, [arm])
        alone.load_state(0, trainable.state(k))
        assert gray_levels_apart(draw(base, trainable=alone)[0], together[k]) <= 1
        assert gray_levels_apart(draw(base)[0], together[k]) > 5


def test_progress_is_told(base):
    seen = []
    draw(base, batch=4, on_progress=lambda *count: seen.append(count))
    done = [count for count, _ in seen]
    assert done == sorted(done) and {total for _, total in seen} == {6}
    assert {4, 6} <= set(done) and done.count(6) == 1, "a batch is done when it is decoded"
    assert any(0 < count < 4 for count in done), "and grows with the denoising steps until then"


@pytest.mark.parametrize("targets", ["all", "full"])
def test_a_checkpoint_draws_what_the_trained_model_drew(base, tmp_path, targets):
    arms = [Arm(targets=targets, rank=3, peak_lr=0.02, epochs=0.5, seed=seed) for seed in range(2)]
    arms = arms[:1] if targets == "full" else arms
    for _ in train(base, tiny_encoded(base), arms, tmp_path / "run", checkpoints=1):
        pass
    run = RunFolder.open(tmp_path / "run")
    assert run.checkpoints() == [0, 6]
    before = load_checkpoints(base, run, [0])
    np.testing.assert_array_equal(draw(base, trainable=before), draw(base))
    for arm in range(len(arms)):
        after = load_checkpoints(base, run, [6], arm)
        images = draw(base, trainable=after)
        assert gray_levels_apart(images, draw(base)) > 5
        again = Trainable(base.denoiser, [arms[arm]])
        again.load_state(0, after.state(0))
        np.testing.assert_array_equal(draw(base, trainable=again), images)
        assert checkpoint_images_seen(run, 6, arm) == 6
    if targets == "all":
        columns = draw(base, trainable=load_checkpoints(base, run, [0, 6], 1))
        assert gray_levels_apart(columns[0], draw(base)[0]) <= 1
        assert gray_levels_apart(columns[1], images[0]) <= 1


def test_a_run_of_another_base_is_refused(base, tmp_path):
    for _ in train(base, tiny_encoded(base), [Arm(rank=2, images_seen=1)], tmp_path / "run"):
        pass
    other = load_base(save_tiny_pipeline(tmp_path / "other", prediction="v_prediction"))
    with pytest.raises(ValueError, match="trained on base .*tiny.*, which differs from .*other"):
        load_checkpoints(other, RunFolder.open(tmp_path / "run"), [0])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(sampler="euler"), "sampler must be one of .*, got 'euler'"),
        (dict(steps=0), "steps must be from 1 to 1,000, got 0"),
        (dict(steps=10**9), "steps must be from 1 to 1,000, got 1000000000"),
        (dict(guidance=0.5), "guidance must be from 1 to 1,000, got 0.5"),
        (dict(guidance=1e38), "guidance must be from 1 to 1,000"),
        (dict(guidance=float("nan")), "guidance must be from 1 to 1,000, got nan"),
    ],
)
def test_sampling_out_of_range_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Sampling(**options)


def test_nothing_to_draw_is_refused(base):
    with pytest.raises(ValueError, match="one prompt and one seed, got 0 and 1"):
        draw(base, [], [0])
    assert json.loads(json.dumps(Sampling().to_json()))["guidance"] == 3


def test_latents_are_never_clipped_whatever_scheduler_the_base_came_with(base, monkeypatch):
    from diffusers import EulerDiscreteScheduler

    kept = {name: base.scheduler_config[name] for name in ("beta_start", "beta_end", "beta_schedule")}
    euler = dict(EulerDiscreteScheduler(**kept, num_train_timesteps=base.timesteps).config)
    assert "clip_sample" not in euler
    asked, own, others = (base, ["water"], [0], Sampling("ddim", steps=2, guidance=1)), [], []
    sample(*asked, size_px=32, on_latents=own.append)
    assert own[-1].abs().max() > 5, "there would be something to clip"
    spaced = {name: base.scheduler_config[name] for name in ("timestep_spacing", "steps_offset", "set_alpha_to_one")}
    monkeypatch.setattr(base, "scheduler_config", euler | spaced)
    sample(*asked, size_px=32, on_latents=others.append)
    assert_close(others[-1], own[-1], atol=0.05 * own[-1].abs().max().item(), rtol=0)


@pytest.mark.parametrize("arm", [-1, 1])
def test_an_arm_that_a_run_has_not_is_refused(base, tmp_path, arm):
    settings = {"arms": [Arm().to_json()], "hash": "0", "base_identity": base.identity}
    with pytest.raises(ValueError, match=f"has arms 0 to 0, got {arm}"):
        load_checkpoints(base, RunFolder.create(tmp_path / "run", settings), [0], arm)
