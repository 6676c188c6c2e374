"""Training a whole denoiser: its numbers, its resumption, and what it draws of a corpus."""

import dataclasses

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from kanjilab.training import denoiser
from kanjilab.training.denoiser import (
    EncodedCorpus,
    UnetRecipe,
    UnetTraining,
    averaged_unet,
    finished_denoiser,
    train_unet,
    unet_errors,
)
from tests.tiny import TINY_UNET

RECIPE = UnetRecipe(steps=6, batch=4, warmup_steps=2, cooldown_steps=3)


@pytest.fixture
def tiny(monkeypatch):
    """The real shapes at the seams, few channels within."""
    monkeypatch.setattr(denoiser, "UNET_CONFIG", denoiser.UNET_CONFIG | TINY_UNET)


@pytest.fixture
def corpus():
    rng = np.random.default_rng(0)
    return EncodedCorpus(
        latents=torch.from_numpy(rng.standard_normal((8, 4, 16, 16), dtype=np.float32)),
        text=rng.standard_normal((12, 5, 384)).astype(np.float16),
        captions=np.stack([[9, 9, 10, 10, 11, 11, 9, 10], *[np.arange(1, 9)] * 3], axis=1),
        empty=0,
        weight=np.array([1.0, 3.0, 1.0, 0.75, 1.0, 1.0, 1.0, 1.0]),
        held_out=np.array([False] * 6 + [True] * 2),
    )


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
    errors, levels = unet_errors(model, alpha_bar, latents, text, np.random.default_rng(5))
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
    unet_errors(model, alpha_bar, latents, text, np.random.default_rng(0))
    assert (model.seen[1] // 125).tolist() == list(range(8))


def test_one_of_an_images_captions_is_drawn_and_some_are_dropped(corpus):
    rows = np.arange(6)
    for dropout, column, expected in ((0, 1, corpus.captions[:, 1]), (1, 0, np.zeros(8, int))):
        alone = dataclasses.replace(corpus, captions=corpus.captions[:, [column]])
        latents, text = alone.batch(np.random.default_rng(0), rows, dropout)
        assert torch.equal(latents, corpus.latents[rows])
        np.testing.assert_array_equal(text.numpy(), corpus.text[expected[rows]].astype(np.float32))
    _, text = corpus.batch(np.random.default_rng(0), np.zeros(4000, int), 0.1)
    first = text[:, 0, 0].numpy().astype(np.float16)
    shares = [(first == corpus.text[row, 0, 0]).mean() for row in (0, corpus.captions[0, 0], corpus.captions[0, 1])]
    assert shares == pytest.approx([0.1, 0.9 * 0.25, 0.9 * 0.75], abs=0.025)  # three of its four captions are one


def test_denoiser_resumes_bit_for_bit(tiny, corpus, tmp_path):
    whole = UnetTraining(RECIPE)
    losses = dict(train_unet(corpus, whole))
    assert list(losses) == list(range(6)) and whole.step == 6
    part = UnetTraining(RECIPE)
    steps = train_unet(corpus, part)
    early = [next(steps) for _ in range(3)]
    part.save(tmp_path / "unet.safetensors")
    resumed = UnetTraining(dataclasses.replace(RECIPE, seed=0))
    resumed.load(tmp_path / "unet.safetensors")
    assert resumed.step == 3
    assert dict(early) | dict(train_unet(corpus, resumed)) == losses
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
    averaged = dict(averaged_unet(training).named_parameters())
    for name, value in training.average.items():
        assert_close(value, average[name], atol=1e-6, rtol=1e-5)
        assert torch.equal(averaged[name], value)


def test_held_out_glyphs_are_not_trained_on(tiny, corpus):
    seen = []
    batch = EncodedCorpus.batch

    class Watched(EncodedCorpus):
        def batch(self, rng, rows, caption_dropout):
            seen.extend(rows.tolist())
            return batch(self, rng, rows, caption_dropout)

    watched = Watched(**vars(corpus))
    training = UnetTraining(dataclasses.replace(RECIPE, batch=64, steps=3))
    assert len(list(train_unet(watched, training))) == 3
    counts = np.bincount(seen, minlength=8)
    assert counts[6:].tolist() == [0, 0]
    assert counts[1] == pytest.approx(192 * 3 / 7.75, rel=0.25)  # its weight is 3 of 7.75
    seen.clear()
    first = training.held_out_loss(watched)
    assert set(seen) == {6, 7}
    assert first == training.held_out_loss(watched)


def test_a_second_training_begins_with_the_weights_of_the_first(tiny, corpus, tmp_path):
    first = finished_denoiser(corpus, RECIPE, tmp_path / "first.safetensors")
    recipe = dataclasses.replace(RECIPE, steps=1, peak_lr=0.0)  # a step that changes nothing
    second = finished_denoiser(corpus, recipe, tmp_path / "second.safetensors", first.average)
    for name, value in second.parameters.items():
        assert torch.equal(value, first.average[name]), name


def test_a_finished_training_is_only_read(tiny, corpus, tmp_path, monkeypatch):
    saved = []
    first = finished_denoiser(
        corpus, RECIPE, tmp_path / "unet.safetensors", save_every_steps=4, on_saved=lambda one: saved.append(one.step)
    )
    assert saved == [4, 6]
    monkeypatch.setattr(UnetTraining, "advance", None)
    again = finished_denoiser(corpus, RECIPE, tmp_path / "unet.safetensors")
    assert all(torch.equal(again.average[name], value) for name, value in first.average.items())
