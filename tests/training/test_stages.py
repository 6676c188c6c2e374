"""Stages over one corpus: what its table becomes, and that each begins with the weights of the one before."""

import dataclasses

import numpy as np
import pandas as pd
import pytest
import torch
from diffusers import UNet2DConditionModel

from kanjilab.training import denoiser, stages
from kanjilab.training.denoiser import UnetRecipe, UnetTraining
from kanjilab.training.stages import Stage, encode_table, to_model_range, train_stages
from tests.tiny import TINY_UNET

ROWS = [
    # image, captions, weight, held_out
    (0, "water + tree|left: water, right: tree", 0.3, False),
    (1, "one + two|left: one, right: two", 0.2, False),
    (2, "person + tree", 0.2, False),
    (2, "rest|repose|day off", 0.2, False),
    (3, "mouth + tree", 0.1, True),
]
RECIPE = UnetRecipe(steps=2, batch=4, warmup_steps=1, cooldown_steps=1)


class Vae:
    """As much of an autoencoder as the encoding asks for."""

    def __init__(self, scaling_factor):
        self.config = {"scaling_factor": scaling_factor}

    def register_to_config(self, **settings):
        self.config |= settings


@pytest.fixture
def table():
    return pd.DataFrame(ROWS, columns=["image", "captions", "weight", "held_out"])


@pytest.fixture
def encoders(monkeypatch):
    mean = torch.arange(4.0).view(4, 1, 1, 1).expand(4, 4, 16, 16)
    monkeypatch.setattr(stages, "encode_images", lambda vae, images: mean)
    monkeypatch.setattr(stages, "encode_captions", lambda captions, path: np.array(captions))


def test_model_range_is_minus_one_for_ink():
    assert to_model_range(np.array([[[0, 255]]], np.uint8)).tolist() == [[[[-1.0, 1.0]]]]


def test_captions_and_latents_follow_their_images(table, encoders, tmp_path):
    corpus = encode_table(Vae(2.0), table, np.zeros((4, 128, 128), np.uint8), tmp_path)
    assert corpus.latents[:, 0, 0, 0].tolist() == [0, 2, 4, 4, 6]  # in unit scale
    drawn = [sorted(set(corpus.text[row])) for row in corpus.captions]
    assert drawn == [sorted(row[1].split("|")) for row in ROWS]
    counts = [np.unique(row, return_counts=True)[1].tolist() for row in corpus.captions]
    assert counts == [[6, 6], [6, 6], [12], [4, 4, 4], [12]]  # each caption of an image as often as the others
    assert corpus.text[corpus.empty] == ""


def test_unit_scale_is_measured_where_the_autoencoder_has_none_on_what_is_not_held_out(table, encoders, tmp_path):
    vae = Vae(1.0)
    corpus = encode_table(vae, table, np.zeros((4, 128, 128), np.uint8), tmp_path)
    assert corpus.latents[:4].std().item() == pytest.approx(1)
    # Of 0, 1, 2, 2, each 1,024 times: squares about 1.25 sum to 2.75, by n - 1.
    assert vae.config["scaling_factor"] == pytest.approx((1024 * 2.75 / 4095) ** -0.5)


def test_each_stage_begins_with_the_weights_of_the_one_before(table, tmp_path, monkeypatch):
    monkeypatch.setattr(denoiser, "UNET_CONFIG", denoiser.UNET_CONFIG | TINY_UNET)
    monkeypatch.setattr(stages, "KEPT_EVERY_STEPS", 1)
    rng = np.random.default_rng(0)
    corpus = denoiser.EncodedCorpus(
        latents=torch.from_numpy(rng.standard_normal((5, 4, 16, 16), dtype=np.float32)),
        text=rng.standard_normal((3, 5, 384)).astype(np.float16),
        captions=np.ones((5, 12), int),
        empty=0,
        weight=np.ones(5),
        held_out=table["held_out"].to_numpy(),
    )
    still = dataclasses.replace(RECIPE, steps=1, peak_lr=0.0)  # a step that changes nothing
    drawn = []
    batch = denoiser.EncodedCorpus.batch

    def watched(self, rng, rows, dropout):
        drawn.extend(rows)
        return batch(self, rng, rows, dropout)

    monkeypatch.setattr(denoiser.EncodedCorpus, "batch", watched)
    plan = {
        "first": Stage(RECIPE, lambda table: np.array([0.0, 1, 0, 0, 1])),
        "second": Stage(still, lambda table: table["weight"].to_numpy()),
    }
    last, seen = train_stages(corpus, table, plan, tmp_path, save_every_steps=1)
    assert seen == 3 * 4 and set(drawn[:8]) == {1} and set(drawn[8:]) <= {0, 1, 2, 3}  # what is held out never
    first = UnetTraining(RECIPE)
    first.load(tmp_path / "first.safetensors")
    assert all(torch.equal(value, first.average[name]) for name, value in last.average.items())
    history = tmp_path / "history"
    assert sorted(path.name for path in history.iterdir()) == ["0000004", "0000008", "0000012"]
    kept = UNet2DConditionModel.from_pretrained(history / "0000012").state_dict()
    assert all(torch.equal(kept[name], value.half()) for name, value in last.average.items())
    with pytest.raises(ValueError, match="one stage or more"):
        train_stages(corpus, table, {}, tmp_path)
