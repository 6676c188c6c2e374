"""The recipe of the pocket base: its numbers, its resumption, and that plain diffusers reads what comes out."""

import dataclasses
import json

import numpy as np
import pandas as pd
import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline
from torch.testing import assert_close

from kanjilab.models.loading import assemble_pipeline, load_base, packaged_folder
from kanjilab.models.minilm import minilm_folder
from kanjilab.models.sampling import Sampling, initial_noise, sample
from kanjilab.training import pocket_base as pocket
from kanjilab.training.pocket_base import EncodedCorpus, UnetRecipe, UnetTraining, VaeRecipe

TINY_UNET = dict(block_out_channels=(16, 32, 32), norm_num_groups=8, attention_head_dim=(1, 1, 1))
TINY_VAE = dict(block_out_channels=(8, 8, 8, 16), norm_num_groups=4)
RECIPE = UnetRecipe(steps=6, batch=4, warmup_steps=2, cooldown_steps=3)


@pytest.fixture
def tiny(monkeypatch):
    """The real shapes at the seams, few channels within."""
    monkeypatch.setattr(pocket, "UNET_CONFIG", pocket.UNET_CONFIG | TINY_UNET)
    monkeypatch.setattr(pocket, "VAE_CONFIG", pocket.VAE_CONFIG | TINY_VAE)


@pytest.fixture
def corpus():
    rng = np.random.default_rng(0)
    return EncodedCorpus(
        mean=torch.from_numpy(rng.standard_normal((8, 4, 16, 16), dtype=np.float32)),
        std=torch.full((8, 4, 16, 16), 0.1),
        text=rng.standard_normal((12, 5, 384)).astype(np.float16),
        caption=np.arange(1, 9),
        common_name=np.array([9, 9, 10, 10, 11, 11, 9, 10]),
        empty=0,
        weight=np.array([1.0, 3.0, 1.0, 0.75, 1.0, 1.0, 1.0, 1.0]),
        held_out=np.array([False] * 6 + [True] * 2),
    )


# ------------------------------------------------------------------------------------------ numbers


def test_rate_at_hand_worked_points():
    recipe = UnetRecipe(steps=100, peak_lr=8.0, warmup_steps=10, cooldown_steps=20)
    points = {0: 0.8, 4: 4.0, 9: 8.0, 10: 8.0, 80: 8.0, 90: 4.0, 99: 0.4}  # 1/10 ... then 20/20, 10/20, 1/20
    assert {step: recipe.lr(step) for step in points} == pytest.approx(points)


class NoNoise(torch.nn.Module):
    """Predicts no noise at all, so that the error of an image is the mean square of its noise."""

    def forward(self, noisy, timesteps, text):
        self.seen = noisy, timesteps
        return type("Output", (), {"sample": torch.zeros_like(noisy)})


def replayed(batch: int, steps: int) -> tuple[np.ndarray, np.ndarray]:
    """What `unet_errors` draws: one timestep in each stratum of the range, then the noise."""
    rng = np.random.default_rng(5)
    timesteps = ((np.arange(batch) + rng.random(batch)) / batch * steps).astype(int)
    return timesteps, rng.standard_normal((batch, 4, 16, 16), dtype=np.float32)


def test_errors_are_of_the_noise_at_each_timestep():
    alpha_bar = torch.tensor([0.9, 0.75, 0.5, 0.0])
    latents, text = torch.ones(4, 4, 16, 16), torch.zeros(4, 5, 384)
    model = NoNoise()
    errors, levels = pocket.unet_errors(model, alpha_bar, latents, text, np.random.default_rng(5))
    timesteps, noise = replayed(4, 4)
    noisy, seen = model.seen
    assert seen.tolist() == timesteps.tolist() == [0, 1, 2, 3]
    assert_close(errors, torch.from_numpy(noise).square().mean(dim=(1, 2, 3)))
    assert_close(levels, alpha_bar)
    signal = alpha_bar.sqrt().view(4, 1, 1, 1)
    assert_close(noisy, signal + (1 - alpha_bar).sqrt().view(4, 1, 1, 1) * torch.from_numpy(noise))


def test_every_batch_sees_the_whole_range_of_noise():
    model, alpha_bar = NoNoise(), torch.linspace(1, 0, 1000)
    latents, text = torch.zeros(8, 4, 16, 16), torch.zeros(8, 5, 384)
    pocket.unet_errors(model, alpha_bar, latents, text, np.random.default_rng(0))
    assert (model.seen[1] // 125).tolist() == list(range(8))


def test_captions_are_dropped_and_shortened_by_their_shares(corpus):
    rows = np.arange(6)
    for dropout, common, expected in ((0, 0, corpus.caption), (0, 1, corpus.common_name), (1, 1, np.zeros(8, int))):
        recipe = UnetRecipe(caption_dropout=dropout, common_name_share=common)
        _, text = corpus.batch(np.random.default_rng(0), rows, recipe)
        np.testing.assert_array_equal(text.numpy(), corpus.text[expected[rows]].astype(np.float32))
    rows = np.zeros(4000, int)
    _, text = corpus.batch(np.random.default_rng(0), rows, UnetRecipe())
    first = text[:, 0, 0].numpy().astype(np.float16)
    shares = [(first == corpus.text[row, 0, 0]).mean() for row in (0, corpus.common_name[0], corpus.caption[0])]
    assert shares == pytest.approx([0.1, 0.9 * 0.25, 0.9 * 0.75], abs=0.025)


def test_latents_are_samples_of_the_posterior(corpus):
    latents, _ = corpus.batch(np.random.default_rng(0), np.full(400, 2), RECIPE)
    assert_close(latents.mean(dim=0), corpus.mean[2], atol=0.1 * 5 / 20, rtol=0)  # five standard errors
    assert latents.std(dim=0).mean() == pytest.approx(0.1, rel=0.01)


def test_crops_are_of_the_images_and_nearly_all_hold_ink():
    images = np.full((3, 128, 128), 255, np.uint8)
    images[:, :20, :20] = np.array([10, 60, 110], np.uint8)[:, None, None]
    crops = pocket.random_crops(images, np.random.default_rng(0), 200, 64)
    assert crops.shape == (200, 64, 64)
    assert set(np.unique(crops)) == {10, 60, 110, 255}
    assert (crops.min(axis=(1, 2)) < 128).mean() > 0.6  # one place in eleven has ink: without the rule, a tenth


def test_model_range_is_minus_one_for_ink():
    assert pocket.to_model_range(np.array([[[0, 255]]], np.uint8)).tolist() == [[[[-1.0, 1.0]]]]


# ------------------------------------------------------------------------------------------ training


def test_autoencoder_learns_and_repeats_itself(tiny):
    images = np.full((4, 128, 128), 255, np.uint8)
    images[:, 40:90, 30:100] = 0
    recipe = VaeRecipe(steps=25, batch=4, warmup_steps=2, peak_lr=5e-3)
    losses = [[loss for _, loss in pocket.train_vae(images, pocket.new_vae(recipe), recipe)] for _ in range(2)]
    assert losses[0] == losses[1]
    assert np.mean(losses[0][-5:]) < 0.8 * np.mean(losses[0][:5])


def test_denoiser_resumes_bit_for_bit(tiny, corpus, tmp_path):
    whole = UnetTraining(RECIPE)
    losses = dict(pocket.train_unet(corpus, whole))
    assert list(losses) == list(range(6)) and whole.step == 6
    part = UnetTraining(RECIPE)
    steps = pocket.train_unet(corpus, part)
    early = [next(steps) for _ in range(3)]
    part.save(tmp_path / "unet.safetensors")
    resumed = UnetTraining(dataclasses.replace(RECIPE, seed=0))
    resumed.load(tmp_path / "unet.safetensors")
    assert resumed.step == 3
    assert dict(early) | dict(pocket.train_unet(corpus, resumed)) == losses
    for name, value in whole.parameters.items():
        assert torch.equal(resumed.parameters[name], value), name
        assert torch.equal(resumed.average[name], whole.average[name]), name
        for key, moment in whole.optimizer.state[value].items():
            assert torch.equal(resumed.optimizer.state[resumed.parameters[name]][key], moment), (name, key)
    assert [path.name for path in tmp_path.iterdir()] == ["unet.safetensors"]


def test_averaged_weights_follow_the_rule(tiny, corpus):
    training = UnetTraining(dataclasses.replace(RECIPE, ema_decay=0.15))
    average = {name: value.clone() for name, value in training.average.items()}
    for _, decay in zip(range(3), (0.1, 0.15, 0.15), strict=True):  # min(0.15, 1/10), min(0.15, 2/11) ...
        training.advance(corpus, np.arange(1.0, 9))
        for name, value in training.parameters.items():
            average[name] = decay * average[name] + (1 - decay) * value.detach()
    averaged = dict(pocket.averaged_unet(training).named_parameters())
    for name, value in training.average.items():
        assert_close(value, average[name], atol=1e-6, rtol=1e-5)
        assert torch.equal(averaged[name], value)


def test_held_out_glyphs_are_not_trained_on(tiny, corpus):
    seen = []
    batch = EncodedCorpus.batch

    class Watched(EncodedCorpus):
        def batch(self, rng, rows, recipe):
            seen.extend(rows.tolist())
            return batch(self, rng, rows, recipe)

    watched = Watched(**vars(corpus))
    training = UnetTraining(dataclasses.replace(RECIPE, batch=64, steps=3))
    assert len(list(pocket.train_unet(watched, training))) == 3
    counts = np.bincount(seen, minlength=8)
    assert counts[6:].tolist() == [0, 0]
    assert counts[1] == pytest.approx(192 * 3 / 7.75, rel=0.25)  # its weight is 3 of 7.75
    seen.clear()
    first = training.held_out_loss(watched)
    assert set(seen) == {6, 7}
    assert first == training.held_out_loss(watched)


# ------------------------------------------------------------------------------------------ the pipeline


@pytest.fixture
def built(tiny, tmp_path):
    """A pipeline folder of tiny random parts with the real MiniLM."""
    vae = pocket.new_vae(VaeRecipe()).eval()
    vae.register_to_config(scaling_factor=2.5)
    pocket.save_pocket(vae, UnetTraining(RECIPE).unet, tmp_path / "weights")
    assemble_pipeline([tmp_path / "weights"], minilm_folder(), tmp_path / "pipeline")
    return tmp_path / "pipeline"


def plain_diffusers(folder, prompt, noise, sampling):
    """One image by diffusers' own pipeline, (H, W) uint8."""
    pipeline = StableDiffusionPipeline.from_pretrained(folder, dtype=torch.float32)
    assert isinstance(pipeline.scheduler, DDIMScheduler)
    pipeline.set_progress_bar_config(disable=True)
    # Not as PIL images: its own conversion expects colour.
    options = dict(num_inference_steps=sampling.steps, guidance_scale=sampling.guidance, output_type="np")
    image = pipeline(prompt, height=128, width=128, latents=noise, **options).images[0, ..., 0]
    return (image * 255).round().astype(np.uint8)


def check_both_ways(folder, base):
    sampling = Sampling(steps=4)
    ours = sample(base, ["castle"], [3], sampling)[0, 0, 0]
    theirs = plain_diffusers(folder, "castle", initial_noise([3], (4, 16, 16)), sampling)
    assert np.abs(ours.astype(int) - theirs).max() <= 1
    assert ours.std() > 0.5  # not a blank page, which any two ways would agree on
    other = sample(base, ["queen"], [3], sampling)[0, 0, 0]
    assert (other != ours).any()


def test_a_built_pipeline_draws_the_same_in_plain_diffusers(built):
    index = json.loads((built / "model_index.json").read_text())
    assert index["_class_name"] == "StableDiffusionPipeline"
    base = load_base(built)
    assert base.vae.config.scaling_factor == 2.5
    assert {value.dtype for value in base.denoiser.state_dict().values()} == {torch.float32}
    check_both_ways(built, base)


def test_the_packaged_base_draws_the_same_in_plain_diffusers():
    check_both_ways(packaged_folder(), load_base("pocket"))


def test_a_stage_that_was_cut_short_is_done_again(tiny, tmp_path, monkeypatch):
    def cut_short(self, folder):
        (folder / "config.json").write_text("{}")
        raise KeyboardInterrupt

    images = np.full((2, 128, 128), 255, np.uint8)
    recipe = VaeRecipe(steps=1, batch=2)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(AutoencoderKL, "save_pretrained", cut_short)
        pocket._trained_vae(images, tmp_path / "vae", recipe)
    vae = pocket._trained_vae(images, tmp_path / "vae", recipe)
    table = pd.DataFrame(dict(caption=["a", "b"], common_name=["a", "b"], weight=1.0, held_out=False))
    monkeypatch.setattr(pocket, "encode_captions", lambda captions, path: np.zeros((len(captions), 5, 384)))
    with monkeypatch.context() as patch, pytest.raises(OSError, match="no space"):
        patch.setattr("kanjilab.core.storage.os.fsync", full_disk)
        pocket.encode_glyphs(vae, table, images, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["vae"]
    encoded = pocket.encode_glyphs(vae, table, images, tmp_path)
    assert torch.equal(encoded.mean, pocket.encode_glyphs(vae, table, images, tmp_path).mean)


def full_disk(descriptor):
    raise OSError("no space left")


def test_the_whole_recipe_goes_on_from_what_is_there(tiny, tmp_path, monkeypatch):
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    images = np.full((8, 128, 128), 255, np.uint8)
    images[:, 30:90, 40:80] = np.arange(8, dtype=np.uint8)[:, None, None] * 12
    np.save(corpus / "images.npy", images)
    names = [f"letter {letter}" for letter in "abcdefgh"]
    columns = dict(codepoint=range(97, 105), font="a.ttf", caption=names, common_name=list("abcdefgh"), weight=1.0)
    pd.DataFrame(columns | {"held_out": [False] * 6 + [True] * 2}).to_csv(corpus / "glyphs.csv", index=False)
    recipes = dict(vae_recipe=VaeRecipe(steps=2, batch=2), unet_recipe=dataclasses.replace(RECIPE, steps=2))
    pipeline = pocket.build_pocket([], tmp_path, **recipes)
    facts = json.loads((tmp_path / "weights" / "facts.json").read_text())
    assert facts["glyphs"] == 8 and facts["unet_steps"] == 2 and 0 < facts["held_out_loss"] < 10
    before = load_base(pipeline).identity

    def refuse(*_):
        raise AssertionError("a finished stage was run again")

    for stage in ("train_vae", "build_corpus", "encode_corpus"):
        monkeypatch.setattr(pocket, stage, refuse)
    monkeypatch.setattr(UnetTraining, "advance", refuse)
    assert load_base(pocket.build_pocket([], tmp_path, **recipes)).identity == before
