"""Encoding: what the base's parts give, stored once per base and data."""

import os

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from torch.testing import assert_close

from kanjilab.data.image_folder import open_dataset
from kanjilab.models.loading import load_base
from kanjilab.training import encoded as encode
from kanjilab.training.encoded import encode_dataset
from tests.tiny import save_tiny_pipeline

CAPTIONS = ["water", "tree", "water", "person ; fire", "tree", "a castle", "queen"]


@pytest.fixture
def images(tmp_path):
    return image_folder(tmp_path / "images")


def image_folder(folder, captions=CAPTIONS, changed_pixel=None):
    folder.mkdir()
    rng = np.random.default_rng(0)
    for index in range(len(captions)):
        pixels = rng.integers(0, 256, (32, 32), dtype=np.uint8)
        if index == changed_pixel:
            pixels[3, 4] ^= 1
        Image.fromarray(pixels).save(folder / f"{index}.png")
    names = [f"{index}.png" for index in range(len(captions))]
    pd.DataFrame({"file_name": names, "text": captions}).to_csv(folder / "metadata.csv", index=False)
    return open_dataset(folder, size_px=32)


def test_latents_and_text_are_the_bases(base, images, tmp_path):
    seen = []
    encoded = encode_dataset(base, images, tmp_path / "cache", batch=3, on_progress=lambda *count: seen.append(count))
    mean, log_variance = base.encode_images(images.images(np.arange(7)))
    assert len(encoded) == 7
    assert_close(torch.from_numpy(np.array(encoded.mean)), mean, atol=1e-5, rtol=0)
    assert_close(torch.from_numpy(np.array(encoded.log_variance)), log_variance, atol=1e-5, rtol=0)
    text = encoded.text(encoded.caption, torch.device("cpu"))
    assert_close(text.tokens, base.encode_text(CAPTIONS).tokens, atol=2e-3, rtol=0)  # stored in half precision
    empty = encoded.text(np.array([0]), torch.device("cpu"))
    assert_close(empty.tokens, base.encode_text([""]).tokens, atol=2e-3, rtol=0)
    assert len(encoded.tokens) == 1 + 5  # the empty caption, and each distinct one
    assert seen == [(3, 13), (6, 13), (7, 13), (10, 13), (13, 13)]


def test_latents_are_samples_of_the_posterior(base, images, tmp_path):
    encoded = encode_dataset(base, images, tmp_path)
    rows, noise = np.array([4, 1]), np.random.default_rng(0).standard_normal((2, 4, 8, 8), dtype=np.float32)
    expected = encoded.mean[rows] + noise * np.sqrt(np.exp(encoded.log_variance[rows]))
    np.testing.assert_allclose(encoded.latents(rows, noise).numpy(), expected, atol=1e-6)


def test_the_second_call_opens_what_is_stored(base, images, tmp_path, monkeypatch):
    first = encode_dataset(base, images, tmp_path / "cache")

    def refuse(*_):
        raise AssertionError("encoded again")

    monkeypatch.setattr(base.vae, "encode", refuse)
    monkeypatch.setattr(base.text_encoder, "forward", refuse)
    second = encode_dataset(base, images, tmp_path / "cache")
    assert second.identity == first.identity
    for name in ("mean", "log_variance", "tokens", "caption"):
        assert isinstance(getattr(second, name), np.memmap), name
        np.testing.assert_array_equal(getattr(second, name), getattr(first, name))
    assert len(os.listdir(tmp_path / "cache")) == 1 and second.captions == first.captions
    with pytest.raises(AssertionError, match="encoded again"):
        encode_dataset(base, images, tmp_path / "elsewhere")


def test_the_users_cache_is_the_default(base, images, tmp_path, monkeypatch):
    monkeypatch.setenv("KANJILAB_CACHE", str(tmp_path / "cache"))
    encoded = encode_dataset(base, images)
    (stored,) = (tmp_path / "cache" / "encoded").iterdir()
    assert encoded.mean.filename == stored / "mean.npy"


def test_identity_changes_with_a_pixel_a_caption_and_the_base(base, images, tmp_path):
    other_caption = [*CAPTIONS[:-1], "king"]
    velocity = load_base(save_tiny_pipeline(tmp_path / "velocity", prediction="v_prediction"))
    identities = [
        encode_dataset(base, images, tmp_path / "cache").identity,
        encode_dataset(base, image_folder(tmp_path / "pixel", changed_pixel=6), tmp_path / "cache").identity,
        encode_dataset(base, image_folder(tmp_path / "caption", other_caption), tmp_path / "cache").identity,
        encode_dataset(velocity, images, tmp_path / "cache").identity,
    ]
    assert len(set(identities)) == 4
    same = encode_dataset(base, image_folder(tmp_path / "again"), tmp_path / "cache")
    assert same.identity == identities[0]
    assert len(os.listdir(tmp_path / "cache")) == 4


def test_nothing_half_written_stays(base, images, tmp_path, monkeypatch):
    def fail(captions, batch):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(base.text, "parts", fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        encode_dataset(base, images, tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


def test_another_process_may_be_first(base, images, tmp_path, monkeypatch):
    first = encode_dataset(base, images, tmp_path / "first")
    write = encode._write

    def write_too_late(*arguments):
        write(*arguments)
        (stored,) = (tmp_path / "first").iterdir()
        stored.rename(tmp_path / "second" / stored.name)

    monkeypatch.setattr(encode, "_write", write_too_late)
    second = encode_dataset(base, images, tmp_path / "second")
    np.testing.assert_array_equal(second.mean, first.mean)
    assert second.identity == first.identity and len(os.listdir(tmp_path / "second")) == 1


def test_bases_of_the_same_weights_may_differ_in_scale_and_length(folder, base, images, tmp_path):
    first = encode_dataset(base, images, tmp_path / "cache")
    rescaled = load_base(folder)
    rescaled.vae.register_to_config(scaling_factor=2 * base.latent_scale[0])
    assert rescaled.identity == base.identity
    doubled = encode_dataset(rescaled, images, tmp_path / "cache")
    np.testing.assert_allclose(doubled.mean, 2 * first.mean, rtol=1e-5)
    np.testing.assert_allclose(np.exp(0.5 * doubled.log_variance), 2 * np.exp(0.5 * first.log_variance), rtol=1e-4)
    shorter = load_base(folder)
    shorter.text.tokenizer.model_max_length = base.text.shape[0] - 2
    assert encode_dataset(shorter, images, tmp_path / "cache").tokens.shape[1:] == shorter.text.shape
