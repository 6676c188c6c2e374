"""A run that an earlier version stored: it reads, and draws the images that it drew then."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file
from torch.testing import assert_close

from kanjilab.core.config import Arm, settings_hash
from kanjilab.core.run_folder import RunFolder
from kanjilab.models.loading import load_base
from kanjilab.models.sampling import Sampling, sample
from kanjilab.training.checkpoints import load_checkpoints
from tests.tiny import save_tiny_pipeline

STORED = Path(__file__).parents[1] / "stored"
HASHED = ("base", "base_identity", "precision", "data", "training_images", "arms", "checkpoints")


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> RunFolder:
    return RunFolder.open(shutil.copytree(STORED / "run", tmp_path_factory.mktemp("stored") / "run"))


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """The base that the run was trained on; its weights are the same bits wherever they are made."""
    return load_base(save_tiny_pipeline(tmp_path_factory.mktemp("tiny") / "tiny"))


def test_its_settings_give_the_hash_that_it_was_stored_under(run):
    arms = [Arm.from_json(arm) for arm in run.settings["arms"]]
    assert [(arm.targets, arm.text_encoder, arm.dora) for arm in arms] == [
        ("attention", "frozen", False),
        ("cross-attention", "lora", True),
    ]
    assert [arm.to_json() for arm in arms] == run.settings["arms"]
    assert settings_hash({name: run.settings[name] for name in HASHED}) == run.settings["hash"]


@pytest.mark.parametrize("arm", [0, 1])
def test_it_draws_what_it_drew_then(run, tiny, arm):
    trainable = load_checkpoints(tiny, run, [5], arm)
    images = sample(tiny, ["queen", "water"], [1], Sampling("ddim", 2, 2.0), trainable=trainable, size_px=32)
    with np.load(STORED / "images.npz", allow_pickle=False) as stored:
        expected = stored[f"adapters_{arm}"]
    assert np.abs(images[0, :, 0].astype(int) - expected.astype(int)).max() <= 1


@pytest.mark.parametrize("arm", [0, 1])
def test_its_checkpoint_holds_the_same_tensors_when_written_again(run, tiny, arm):
    stored = load_file(run.checkpoint_path(5) / f"arm_{arm}" / "adapter_model.safetensors")
    state = load_checkpoints(tiny, run, [5], arm).state(0)
    assert state.keys() == stored.keys()
    for name, value in stored.items():
        assert_close(state[name], value, atol=0, rtol=0)
    run.verify_checkpoint(5)
