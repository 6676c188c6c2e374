"""The writer's recipe: what its two trainings see, that it goes on from what is there, and what the package loads."""

import dataclasses

import pandas as pd
import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel

from kanjilab.core.storage import PACKAGE_WEIGHTS
from kanjilab.models.loading import load_base
from kanjilab.training import stages, writer
from kanjilab.training.denoiser import UnetTraining
from kanjilab.training.writer import WriterRecipe, build_writer, frequent_weights

ROWS = [
    # image, kind, captions, frequent, weight, held_out
    (0, "frequent pairs", "water + tree|left: water, right: tree", True, 0.3, False),
    (1, "frequent pairs", "one + two|left: one, right: two", False, 0.2, False),
    (2, "parts", "person + tree", True, 0.2, False),
    (2, "meaning", "rest|repose|day off", True, 0.2, False),
    (3, "parts", "mouth + tree", True, 0.1, True),
]


@pytest.fixture
def table():
    return pd.DataFrame(ROWS, columns=["image", "kind", "captions", "frequent", "weight", "held_out"])


def test_the_first_training_sees_frequent_parts_by_name_alone(table):
    assert frequent_weights(table) == pytest.approx([0.7, 0, 0.3, 0, 0])


def test_the_whole_recipe_goes_on_from_what_is_there(tmp_path, monkeypatch):
    short = {name: dataclasses.replace(part, steps=2, batch=2) for name, part in vars(WriterRecipe()).items()}
    monkeypatch.setattr(stages, "KEPT_EVERY_STEPS", 1)
    small = dict(characters="休林海明時語話", save_every_steps=1)
    monkeypatch.setattr("kanjilab.data.writer_corpus.novel_pairs", lambda *_: [])
    monkeypatch.setattr(writer, "frequent_weights", lambda table: table["weight"].to_numpy())
    weights = build_writer(tmp_path, WriterRecipe(**short), **small)
    assert sorted(path.name for path in (tmp_path / "history").iterdir()) == [
        "0000002",
        "0000004",
        "0000006",
        "0000008",
    ]
    before = UNet2DConditionModel.from_pretrained(weights / "unet").state_dict()
    pocket = UNet2DConditionModel.from_pretrained(PACKAGE_WEIGHTS / "pocket" / "unet").state_dict()
    assert any(not torch.equal(before[name], pocket[name]) for name in pocket)

    def refuse(*_):
        raise AssertionError("a finished stage was run again")

    monkeypatch.setattr(writer, "build_writer_corpus", refuse)
    monkeypatch.setattr(stages, "encode_images", refuse)
    monkeypatch.setattr(UnetTraining, "advance", refuse)
    after = UNet2DConditionModel.from_pretrained(build_writer(tmp_path, WriterRecipe(**short), **small) / "unet")
    assert all(torch.equal(value, before[name]) for name, value in after.state_dict().items())


def test_the_packaged_writer_is_pocket_but_for_its_denoiser():
    pocket, packaged = load_base("pocket"), load_base("writer")
    assert isinstance(packaged.vae, AutoencoderKL)
    for name, value in pocket.vae.state_dict().items():
        assert torch.equal(packaged.vae.state_dict()[name], value), name
    assert packaged.identity != pocket.identity
    assert packaged.scheduler_config["prediction_type"] == pocket.scheduler_config["prediction_type"] == "epsilon"
