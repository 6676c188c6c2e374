"""A rectified flow over an MMDiT goes the same ways as a U-Net, and as diffusers' Stable Diffusion 3 goes them."""

import copy
import dataclasses
import weakref

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from diffusers import FlowMatchEulerDiscreteScheduler, StableDiffusion3Pipeline
from torch import nn
from torch.testing import assert_close

from kanjilab.core.config import Arm
from kanjilab.core.run_folder import RunFolder
from kanjilab.models import cpu_layers
from kanjilab.models import text_encoders as text_states
from kanjilab.models.adapters import StackedLora, target_layers
from kanjilab.models.hub import quiet_diffusers
from kanjilab.models.loading import load_base
from kanjilab.models.sampling import Sampling, default_sampling, fitting, initial_noise, sample
from kanjilab.models.text_encoders import T5_TOKENS
from kanjilab.models.tiny_sd3 import save_miniature_sd3
from kanjilab.training.checkpoints import load_checkpoints
from kanjilab.training.data_order import draw_example
from kanjilab.training.encoded import encode_dataset
from kanjilab.training.loop import train
from kanjilab.training.trainer import Trainer
from tests.tiny import tiny_encoded
from tests.training.test_encoded import CAPTIONS, image_folder
from tests.training.test_trainer import adapter, assert_same_adapter, peft_model, peft_state, run_to_end

SHAPE = (16, 8, 8)
QUICK = Sampling("flow-euler", steps=4, guidance=3.0)


@pytest.fixture(scope="module")
def data(sd3_base):
    return tiny_encoded(sd3_base)


@pytest.fixture(scope="module")
def pipeline(sd3_folder):
    with quiet_diffusers():
        pipeline = StableDiffusion3Pipeline.from_pretrained(sd3_folder)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def some_latents(count=4):
    generator = torch.Generator().manual_seed(0)
    latents, noise = torch.randn(2, count, *SHAPE, generator=generator)
    return latents, noise, torch.tensor([0, 250, 700, 999])[:count]


def draw(base, prompts=("water tree", "queen"), seeds=(0, 7), sampling=QUICK, **options):
    return sample(base, list(prompts), list(seeds), sampling, size_px=32, **options)


def gray_levels_apart(first, second):
    assert first.shape == second.shape
    return np.abs(first.astype(int) - second.astype(int)).max()


# ---------------------------------------------------------------------------------- the base


def test_noise_levels_and_noisy_latents_are_diffusers(sd3_base):
    latents, noise, timesteps = some_latents()
    reference = FlowMatchEulerDiscreteScheduler.from_config(sd3_base.scheduler_config)
    quantiles = (np.arange(1000) + 0.5) / 1000
    unshifted = 1 / (1 + np.exp(-torch.special.ndtri(torch.from_numpy(quantiles)).numpy()))
    reference.set_timesteps(sigmas=unshifted[::-1])  # which shifts them
    assert_close(sd3_base.model_timestep(torch.arange(1000)), reference.timesteps.flip(0), atol=1e-3, rtol=0)
    noisy, target = sd3_base.add_noise(latents, noise, timesteps)
    expected = reference.scale_noise(latents, reference.timesteps.flip(0)[timesteps], noise)
    assert_close(noisy, expected, atol=1e-5, rtol=0)
    assert torch.equal(target, noise - latents)
    # One Euler step with the true velocity, from any level to none, gives the latents back.
    sigma = (sd3_base.model_timestep(timesteps) / 1000).view(-1, 1, 1, 1)
    assert_close(noisy - sigma * target, latents, atol=1e-5, rtol=0)


def test_a_flow_is_what_it_says(sd3_base, base):
    assert (sd3_base.family, sd3_base.prediction, sd3_base.channels, sd3_base.timesteps) == ("mmdit", "flow", 3, 1000)
    assert (base.family, base.prediction) == ("unet", "epsilon")
    assert sd3_base.latent_shape(32) == SHAPE
    assert base.latent_shape(32) == (4, 8, 8)
    with pytest.raises(ValueError, match="expected a size that is a multiple of 8 px, got 36"):
        sd3_base.latent_shape(36)
    for part in (sd3_base.denoiser, sd3_base.vae):
        assert not part.training
        assert not any(value.requires_grad for value in part.parameters())


def test_images_are_encoded_and_decoded_with_shift_and_scale(sd3_base, pipeline):
    pixels = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)
    mean, log_variance = sd3_base.encode_images(pixels)
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255 * 2 - 1
    config = pipeline.vae.config
    assert (config.shift_factor, config.scaling_factor) == (0.0609, 1.5305)
    with torch.no_grad():
        posterior = pipeline.vae.encode(images).latent_dist
        decoded = pipeline.vae.decode(mean / config.scaling_factor + config.shift_factor).sample
    assert_close(mean, (posterior.mean - config.shift_factor) * config.scaling_factor, atol=1e-5, rtol=0)
    assert_close((0.5 * log_variance).exp(), posterior.std * config.scaling_factor, atol=1e-6, rtol=1e-5)
    colours = ((decoded / 2 + 0.5).clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).numpy()
    np.testing.assert_array_equal(sd3_base.decode(mean), colours)


@pytest.mark.parametrize("t5", [True, False], ids=["with T5", "without T5"])
def test_text_is_encoded_as_the_pipeline_does(sd3_folder, tmp_path, t5):
    folder = sd3_folder if t5 else save_miniature_sd3(tmp_path / "two", t5=False)
    base = load_base(folder)
    absent = {} if t5 else dict(text_encoder_3=None, tokenizer_3=None)
    with quiet_diffusers():
        pipeline = StableDiffusion3Pipeline.from_pretrained(folder, **absent)
    captions = ["water", "queen ; tree fire castle mountain a b water", ""]
    with torch.no_grad(), quiet_diffusers():
        expected, _, pooled, _ = pipeline.encode_prompt(
            captions, None, None, do_classifier_free_guidance=False, max_sequence_length=T5_TOKENS
        )
    states = base.encode_text(captions)
    assert states.tokens.shape == (3, 16 + 77, 32)
    assert_close(states.tokens, expected, atol=1e-5, rtol=0)
    assert_close(states.pooled, pooled, atol=1e-5, rtol=0)
    assert bool(states.tokens[:, 16:].any()) is t5
    assert states.tokens[:, :16, 12 + 16 :].count_nonzero() == 0  # two CLIPs are narrower than T5
    alone = base.encode_text(["water"])
    assert_close(alone.tokens, states.tokens[:1], atol=1e-5, rtol=0)


def test_encoders_are_loaded_one_at_a_time_and_freed(sd3_folder, monkeypatch):
    base = load_base(sd3_folder)
    loaded, alive = [], []
    original = text_states.ThreeEncoders._class

    def watched(self, name):
        kind = original(self, name)
        if "tokenizer" in name:
            return kind

        class Loader:
            @staticmethod
            def from_pretrained(*arguments, **options):
                assert [watch for watch in alive if watch() is not None] == []  # the one before is gone
                encoder, found = kind.from_pretrained(*arguments, **options)
                loaded.append(name)
                alive.append(weakref.ref(encoder))
                return encoder, found

        return Loader

    monkeypatch.setattr(text_states.ThreeEncoders, "_class", watched)
    first = base.encode_text(["water", "tree"])
    assert loaded == ["text_encoder", "text_encoder_2", "text_encoder_3"]
    assert [watch for watch in alive if watch() is not None] == []
    again = base.encode_text(["tree", "water"])
    assert len(loaded) == 3  # these are remembered
    assert torch.equal(again.tokens, first.tokens.flip(0))
    base.encode_text(["tree", "queen"])
    assert len(loaded) == 6
    monkeypatch.setattr(text_states, "REMEMBERED", 1)
    base.encode_text(["fire", "castle"])
    base.encode_text(["castle"])
    assert len(loaded) == 9
    base.encode_text(["fire"])
    assert len(loaded) == 12  # only the last caption was kept


def test_a_data_set_is_encoded_with_pooled_states(sd3_base, sd3_folder, tmp_path):
    images = image_folder(tmp_path / "images")
    seen = []
    encoded = encode_dataset(
        sd3_base, images, tmp_path / "cache", batch=4, on_progress=lambda *count: seen.append(count)
    )
    mean, _ = sd3_base.encode_images(images.images(np.arange(7), channels=3))
    assert_close(torch.from_numpy(np.array(encoded.mean)), mean, atol=1e-5, rtol=0)
    text, expected = encoded.text(encoded.caption, torch.device("cpu")), sd3_base.encode_text(CAPTIONS)
    assert_close(text.tokens, expected.tokens, atol=4e-3, rtol=1e-3)  # stored in half precision
    assert_close(text.pooled, expected.pooled, atol=4e-3, rtol=1e-3)
    empty, expected = encoded.text(np.array([0]), torch.device("cpu")), sd3_base.encode_text([""])
    assert_close(empty.pooled, expected.pooled, atol=4e-3, rtol=1e-3)
    assert isinstance(encoded.tokens, np.memmap)
    assert isinstance(encoded.pooled, np.memmap)
    assert seen == [(done, 7 + 3 * 6) for done in (4, 7, 11, 13, 17, 19, 23, 25)]
    half = load_base(sd3_folder, precision="bf16")  # whose encoders round otherwise
    assert half.identity == sd3_base.identity
    assert encode_dataset(half, images, tmp_path / "cache").identity != encoded.identity


def test_a_flow_with_a_moving_shift_is_refused(sd3_folder, tmp_path):
    folder = save_miniature_sd3(tmp_path / "moving")
    FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True).save_pretrained(folder / "scheduler")
    with pytest.raises(ValueError, match="one fixed shift, got use_dynamic_shifting"):
        load_base(folder)


# ---------------------------------------------------------------------------------- adapters


def test_targets_name_the_layers_of_both_streams(sd3_base):
    image = ["to_q", "to_k", "to_v", "to_out.0"]
    text = ["add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"]
    names = {f"transformer_blocks.{block}.attn.{part}" for block in range(3) for part in image + text}
    names |= {f"transformer_blocks.0.attn2.{part}" for part in image}
    names.remove("transformer_blocks.2.attn.to_add_out")  # the last block's text goes nowhere
    assert set(target_layers(sd3_base.denoiser, "attention")) == names
    feed = {f"transformer_blocks.{block}.{stream}.net.{part}" for block, stream, part in FEED_FORWARD}
    assert set(target_layers(sd3_base.denoiser, "attention+feed-forward")) == names | feed
    every = {n for n, m in sd3_base.denoiser.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)}
    assert set(target_layers(sd3_base.denoiser, "all")) == every
    with pytest.raises(ValueError, match="SD3Transformer2DModel attends to image and text jointly.*'attention'"):
        target_layers(sd3_base.denoiser, "cross-attention")


LAST_QUERIES = "transformer_blocks.2.attn.add_q_proj"
FEED_FORWARD = [
    (block, stream, part)
    for block in range(3)
    for stream in ("ff", "ff_context")
    for part in ("0.proj", "2")
    if (block, stream) != (2, "ff_context")
]


def flow_reference_loss(denoise, data, arm):
    """The loss of the first step, with diffusers' scheduler."""
    draws = [draw_example(arm.seed, index, len(data), SHAPE, 1000) for index in range(arm.batch)]
    rows = [draw.row for draw in draws]
    posterior_noise = torch.from_numpy(np.stack([draw.posterior_noise for draw in draws]))
    latents = (
        torch.from_numpy(data.mean[rows]) + torch.from_numpy(np.exp(data.log_variance[rows] / 2)) * posterior_noise
    )
    noise = torch.from_numpy(np.stack([draw.noise for draw in draws]))
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    quantiles = torch.tensor([(draw.timestep + 0.5) / 1000 for draw in draws])
    sigma = torch.sigmoid(torch.special.ndtri(quantiles))
    sigma = scheduler.shift * sigma / (1 + (scheduler.shift - 1) * sigma)
    noisy = (1 - sigma.view(-1, 1, 1, 1)) * latents + sigma.view(-1, 1, 1, 1) * noise
    captions = [0 if draw.dropout < arm.caption_dropout else data.caption[draw.row] for draw in draws]
    text = [torch.from_numpy(values[captions].astype(np.float32)) for values in (data.tokens, data.pooled)]
    predicted = denoise(
        hidden_states=noisy, timestep=1000 * sigma, encoder_hidden_states=text[0], pooled_projections=text[1]
    ).sample
    return (predicted - (noise - latents)).square().mean()


@pytest.mark.parametrize(
    ("targets", "rank", "batch", "merged"),
    [("attention", 2, 2, False), ("all", 16, 8, True)],
)
def test_a_step_is_pefts_and_torchs(sd3_base, data, monkeypatch, targets, rank, batch, merged):
    arm = Arm(targets=targets, rank=rank, alpha=6, batch=batch, caption_dropout=0.4, peak_lr=1e-3, epsilon=1e-4)
    arm = dataclasses.replace(arm, clip_norm=0.01, weight_decay=0.1)
    choices, original = [], StackedLora._merging_pays
    monkeypatch.setattr(StackedLora, "_merging_pays", lambda self, x: choices.append(original(self, x)) or choices[-1])
    trainer = Trainer(sd3_base, data, [arm], Accelerator(cpu=True))
    rng = np.random.default_rng(0)
    state = {
        name: torch.from_numpy(rng.normal(0, 0.2, value.shape).astype(np.float32))
        for name, value in trainer.trainable.state(0).items()
    }
    trainer.trainable.load_state(0, state)
    model = peft_model(sd3_base, arm, state)
    parameters = [value for value in model.parameters() if value.requires_grad]
    loss = flow_reference_loss(model, data, arm)
    loss.backward()
    norm = torch.nn.utils.clip_grad_norm_(parameters, arm.clip_norm).item()
    torch.optim.AdamW(parameters, lr=arm.peak_lr, eps=arm.epsilon, weight_decay=arm.weight_decay).step()
    losses, norms, _ = trainer.advance()
    assert losses[0] == pytest.approx(loss.item(), rel=1e-5)
    assert norms[0] == pytest.approx(norm, rel=1e-4)
    assert_same_adapter(trainer.trainable.state(0), peft_state(model), 1e-5)
    assert norm > arm.clip_norm
    assert np.mean(choices) > 0.5 if merged else not all(choices)


def test_full_fine_tuning_is_torchs(sd3_base, data, tmp_path):
    arm = Arm(targets="full", batch=2, images_seen=2, peak_lr=1e-3, epsilon=1e-4, clip_norm=0.01)
    _, run = run_to_end(sd3_base, data, [arm], tmp_path / "run")
    model = copy.deepcopy(sd3_base.denoiser).requires_grad_(True)
    flow_reference_loss(model, data, arm).backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), arm.clip_norm)
    torch.optim.AdamW(model.parameters(), lr=arm.peak_lr, eps=arm.epsilon, weight_decay=arm.weight_decay).step()
    assert_same_adapter(adapter(run), dict(model.named_parameters()), 1e-5)


# ---------------------------------------------------------------------------------- training


def test_two_arms_are_trained_as_alone(sd3_base, data, tmp_path):
    arms = [
        Arm(rank=2, peak_lr=1e-2, images_seen=12, seed=1),
        Arm(targets="all", rank=5, alpha=2, peak_lr=3e-3, schedule="periodic", warmup_steps=3, batch=2, images_seen=24),
    ]
    together, run = run_to_end(sd3_base, data, arms, tmp_path / "together")
    for k, arm in enumerate(arms):
        alone, solo = run_to_end(sd3_base, data, [arm], tmp_path / f"alone_{k}")
        assert_same_adapter(adapter(run, k), adapter(solo), 1e-4)
        assert [r.loss[k] for r in together] == pytest.approx([r.loss[0] for r in alone], rel=1e-4)
        before = adapter(run, k, 0)
        still = {name for name, value in adapter(run, k).items() if (value - before[name]).abs().max() < 1e-4}
        # What the last block's text asks for is thrown away in SD 3, so its queries have no gradient.
        assert {name.split(".lora_")[0].removeprefix("base_model.model.") for name in still} == {LAST_QUERIES}
    assert (run.settings["family"], run.settings["prediction"]) == ("mmdit", "flow")


def test_a_flow_learns_its_images(sd3_base, data, tmp_path):
    """All latents are one: then the velocity can be told from the noisy latents, and to guess nothing costs 2."""
    ones = dataclasses.replace(
        data, mean=np.ones_like(data.mean), log_variance=np.full_like(data.log_variance, -20), identity="ones"
    )
    arm = Arm(targets="full", peak_lr=5e-3, batch=8, images_seen=960, schedule="linear", caption_dropout=0.0)
    reports, _ = run_to_end(sd3_base, ones, [arm], tmp_path / "run", checkpoints=1)
    assert np.mean([report.loss[0] for report in reports[-10:]]) < 0.9


def test_bf16_stays_near_fp32(sd3_folder, sd3_base, data, tmp_path):
    half = load_base(sd3_folder, precision="bf16")
    assert half.denoiser.dtype == (torch.bfloat16 if cpu_layers.computes_bf16() else torch.float32)
    assert half.vae.dtype == torch.float32
    for targets in ("attention", "all", "full"):
        arm = Arm(targets=targets, rank=4, peak_lr=1e-3, images_seen=6, batch=2)
        full, _ = run_to_end(sd3_base, data, [arm], tmp_path / f"fp32_{targets}")
        reports, run = run_to_end(half, data, [arm], tmp_path / f"bf16_{targets}")
        expected, found = (np.array([report.loss[0] for report in steps]) for steps in (full, reports))
        np.testing.assert_allclose(found, expected, rtol=0.05)
        assert not np.array_equal(found, expected)
        assert {value.dtype for value in adapter(run).values()} == {torch.float32}


@pytest.mark.parametrize("name", ["folder", "sd3_folder"])
@pytest.mark.parametrize("targets", ["all", "full"])
def test_checkpointed_gradients_are_the_same(request, tmp_path, name, targets):
    folder = request.getfixturevalue(name)
    arms = [Arm(targets=targets, rank=2, peak_lr=1e-3, images_seen=4, batch=2, seed=seed) for seed in range(2)]
    arms = arms[:1] if targets == "full" else arms
    runs, kept = [], []
    for checkpointing in (False, True):
        base, saved = load_base(folder, gradient_checkpointing=checkpointing), []
        with torch.autograd.graph.saved_tensors_hooks(lambda value, saved=saved: saved.append(1) or value, lambda v: v):
            _, run = run_to_end(base, tiny_encoded(base), arms, tmp_path / str(checkpointing))
        runs.append(run)
        kept.append(len(saved))
    for k in range(len(arms)):
        assert_same_adapter(adapter(runs[1], k), adapter(runs[0], k), 1e-6)
    assert kept[1] < 0.6 * kept[0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(min_snr_gamma=5.0), "rectified flow.*expected min_snr_gamma = None, got 5.0"),
        (dict(velocity_weight=True), "rectified flow.*expected velocity_weight = False, got True"),
        (dict(targets="cross-attention"), "attends to image and text jointly"),
    ],
)
def test_settings_made_for_a_unet_are_refused(sd3_base, data, tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        next(train(sd3_base, data, [Arm(rank=2, **options)], tmp_path / "run"))
    assert not (tmp_path / "run").exists()


# ---------------------------------------------------------------------------------- sampling


@pytest.mark.parametrize("guidance", [1.0, 4.5])
def test_pictures_are_diffusers(sd3_base, pipeline, monkeypatch, guidance):
    expected = pipeline(
        ["a water tree"] * 2,
        height=32,
        width=32,
        num_inference_steps=6,
        guidance_scale=guidance,
        negative_prompt=["fire"] * 2,
        latents=initial_noise([0, 7], SHAPE),
        output_type="latent",
        max_sequence_length=T5_TOKENS,
    ).images
    decoded, decode = [], sd3_base.decode
    monkeypatch.setattr(sd3_base, "decode", lambda latents: decoded.append(latents) or decode(latents))
    sampling = Sampling("flow-euler", 6, guidance, negative_prompt="fire", prefix="a ")
    images = draw(sd3_base, ["water tree"], sampling=sampling)
    assert_close(decoded[0], expected, atol=1e-4, rtol=1e-4)
    assert (expected - initial_noise([0, 7], SHAPE)).abs().max() > 0.5
    config = pipeline.vae.config
    with torch.no_grad():
        colours = pipeline.vae.decode(expected / config.scaling_factor + config.shift_factor).sample
    colours = ((colours / 2 + 0.5).clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).numpy()
    assert gray_levels_apart(images[0, 0], colours) <= 1
    assert gray_levels_apart(draw(sd3_base, ["a castle"], sampling=sampling), images) > 1


def test_a_sampler_fits_its_base(sd3_base, base):
    for sampler in ("ddim", "dpm-solver++"):
        with pytest.raises(ValueError, match=r"predicts 'flow': expected a sampler of \('flow-euler',\), got"):
            draw(sd3_base, sampling=Sampling(sampler))
    with pytest.raises(ValueError, match=r"predicts 'epsilon': expected a sampler of \('ddim', 'dpm-solver\+\+'\)"):
        draw(base, sampling=Sampling("flow-euler"))
    assert default_sampling("mmdit") == Sampling("flow-euler")
    assert default_sampling("unet") == Sampling()
    assert fitting(Sampling("dpm-solver++", 7), sd3_base) == Sampling("flow-euler", 7)
    assert fitting(Sampling("dpm-solver++", 7), base) == Sampling("dpm-solver++", 7)


@pytest.mark.parametrize("targets", ["all", "full"])
def test_a_checkpoint_draws_what_was_trained(sd3_base, data, tmp_path, targets):
    arm = Arm(targets=targets, rank=3, peak_lr=0.02, images_seen=6)
    _, run = run_to_end(sd3_base, data, [arm], tmp_path / "run", checkpoints=1)
    before, after = (load_checkpoints(sd3_base, RunFolder.open(run.path), [step]) for step in (0, 6))
    np.testing.assert_array_equal(draw(sd3_base, trainable=before), draw(sd3_base))
    images = draw(sd3_base, trainable=after)
    assert gray_levels_apart(images, draw(sd3_base)) > 5
    for batch in (1, 3):
        assert gray_levels_apart(draw(sd3_base, trainable=after, batch=batch), images) <= 1
