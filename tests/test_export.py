"""Exported files: diffusers and PEFT load them and draw the same pictures."""

import copy
import dataclasses
import json

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from peft import PeftModel
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch.testing import assert_close

from kanjilab.export import to_diffusers
from kanjilab.runs import RunError, RunFolder
from kanjilab.sample import Sampling, initial_noise, load_checkpoints, sample
from kanjilab.settings import Arm
from kanjilab.train import train
from tests.tiny import tiny_encoded

ARMS = {
    "attention": Arm(rank=3, alpha=6, peak_lr=0.05, images_seen=5),
    "all": Arm(rank=4, alpha=2, rslora=True, targets="all", peak_lr=0.02, images_seen=5),
}


@pytest.fixture(scope="module")
def run(base, tmp_path_factory):
    """Two arms, trained hard enough that their pictures are not the base's."""
    path = tmp_path_factory.mktemp("runs") / "run"
    for _ in train(base, tiny_encoded(base), list(ARMS.values()), path, checkpoints=1):
        pass
    return RunFolder.open(path)


@pytest.mark.parametrize("arm", [0, 1], ids=list(ARMS))
def test_diffusers_loads_the_file_and_draws_the_same(folder, base, run, tmp_path, monkeypatch, arm):
    file = to_diffusers(run, 5, arm, tmp_path / "export")
    assert file == tmp_path / "export" / "pytorch_lora_weights.safetensors"
    pipeline = StableDiffusionPipeline.from_pretrained(folder, safety_checker=None, requires_safety_checker=False)
    pipeline.set_progress_bar_config(disable=True)
    options = dict(height=32, width=32, num_inference_steps=4, guidance_scale=3.0, output_type="latent")
    noise = initial_noise([1], (4, 8, 8))
    without = pipeline("queen", latents=noise, **options).images
    pipeline.load_lora_weights(file.parent)
    found = pipeline("queen", latents=noise, **options).images
    decoded, decode = [], base.decode
    monkeypatch.setattr(base, "decode", lambda latents: decoded.append(latents) or decode(latents))
    trainable = load_checkpoints(base, run, [5], arm)
    images = sample(base, ["queen"], [1], Sampling(steps=4), trainable=trainable, size_px=32)
    assert_close(found, decoded[0], atol=1e-4, rtol=1e-4)
    assert (found - without).abs().max() > 0.05
    with torch.no_grad():
        grays = pipeline.vae.decode(found / pipeline.vae.config.scaling_factor).sample[:, 0]
    grays = ((grays / 2 + 0.5).clamp(0, 1) * 255).round().byte().numpy()
    assert np.abs(grays.astype(int) - images[0, 0].astype(int)).max() <= 1


@pytest.mark.parametrize("arm", [0, 1], ids=list(ARMS))
def test_peft_loads_the_checkpoint_folder(base, run, arm):
    model = PeftModel.from_pretrained(copy.deepcopy(base.denoiser), run.checkpoint_path(5) / f"arm_{arm}")
    generator = torch.Generator().manual_seed(0)
    noisy, text = torch.randn(2, 4, 8, 8, generator=generator), torch.randn(2, 8, 24, generator=generator)
    timesteps = torch.tensor([10, 800])
    trainable = load_checkpoints(base, run, [5], arm)
    with torch.no_grad():
        plain = base.denoiser(noisy, timesteps, text).sample
        expected = model(noisy, timesteps, text).sample
        with trainable.attached() as segments:
            segments.pairs = ((0, 2),)
            found = base.denoiser(noisy, timesteps, text).sample
    assert_close(found, expected, atol=1e-5, rtol=1e-5)
    assert (found - plain).abs().max() > 0.05


def test_the_scale_is_folded_into_b(run, tmp_path):
    for arm, settings in enumerate(ARMS.values()):
        stored = load_file(run.checkpoint_path(5) / f"arm_{arm}" / "adapter_model.safetensors")
        exported = load_file(to_diffusers(run, 5, arm, tmp_path))
        assert len(exported) == len(stored)
        assert settings.scale == [2, 1][arm]
        for name, value in exported.items():
            factor = settings.scale if "lora_B" in name else 1
            assert torch.equal(value, factor * stored[name.replace("unet.", "base_model.model.", 1)]), name


def test_the_header_says_what_it_is(run, tmp_path):
    with safe_open(to_diffusers(run, 5, 1, tmp_path), "pt") as file:
        header = file.metadata()
    assert header["base_identity"] == run.settings["base_identity"]
    assert (header["base"], header["data"]) == (run.settings["base"], run.settings["data"])
    assert (header["rank"], header["targets"], header["step"], header["images_seen"]) == ("4", "all", "5", "5")
    assert Arm.from_json(json.loads(header["settings"])) == ARMS["all"]
    assert "CC BY-SA 4.0" in header["licence"]


def test_what_cannot_be_written_is_refused(base, run, tmp_path):
    with pytest.raises(ValueError, match="has arms 0 to 1, got 2"):
        to_diffusers(run, 5, 2, tmp_path)
    with pytest.raises(RunError, match=r"no complete checkpoint of step 3, only \[0, 5\]"):
        to_diffusers(run, 3, 0, tmp_path)
    for _ in train(base, tiny_encoded(base), [Arm(targets="unet", images_seen=1)], tmp_path / "whole", checkpoints=1):
        pass
    with pytest.raises(ValueError, match="arm 0 of .*whole trained the whole denoiser: it has no LoRA"):
        to_diffusers(RunFolder.open(tmp_path / "whole"), 1, 0, tmp_path)
    assert not list(tmp_path.glob("*.safetensors"))


def test_a_ruined_arm_is_refused(base, tmp_path):
    arm = dataclasses.replace(ARMS["attention"], peak_lr=1e30)
    step = list(train(base, tiny_encoded(base), [arm], tmp_path / "run", checkpoints=1))[-1].step
    run = RunFolder.open(tmp_path / "run")
    file = run.checkpoint_path(step) / "arm_0" / "adapter_model.safetensors"
    tensors = {name: torch.full_like(value, torch.nan) for name, value in load_file(file).items()}
    save_file(tensors, file)
    with pytest.raises(ValueError, match=f"arm 0 of .* at step {step}: .*lora_.* is not finite"):
        to_diffusers(run, step, 0, tmp_path)
