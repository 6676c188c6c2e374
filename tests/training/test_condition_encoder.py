"""A condition encoder beside the text: a toy one, which makes tokens of a small picture that each prompt carries."""

import dataclasses

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.testing import assert_close

from kanjilab.core.config import Arm
from kanjilab.core.run_folder import RunFolder
from kanjilab.models.conditioning import Conditioning, Prompt, Prompts
from kanjilab.models.diffusion import with_condition_encoder
from kanjilab.models.sampling import Sampling, sample
from kanjilab.models.trainable import Trainable
from kanjilab.training.checkpoints import load_checkpoints
from kanjilab.training.data_order import draw_example
from kanjilab.training.loop import train
from tests.tiny import tiny_encoded

TRAINED = dict(peak_lr=0.02, images_seen=6, epsilon=1e-4, rank=2)
ARMS = {
    "whole encoder, denoiser frozen": Arm(targets="none", condition_encoder="full", **TRAINED),
    "LoRA on both": Arm(condition_encoder="lora", **TRAINED),
    "whole encoders of text and picture, LoRA": Arm(condition_encoder="full", text_encoder="full", **TRAINED),
    "denoiser alone": Arm(**TRAINED),
}
EACH = pytest.mark.parametrize("arm", range(len(ARMS)), ids=list(ARMS))
SAMPLING = Sampling("ddim", steps=2, guidance=2.0)


class PictureTokens(nn.Module):
    """(N, 8, 8) pictures to one token each, put after those of the text."""

    def __init__(self, width: int):
        super().__init__()
        self.first, self.second = nn.Linear(64, 16), nn.Linear(16, width)

    def forward(self, states: Conditioning, arrays) -> Conditioning:
        token = self.second(torch.relu(self.first(arrays["picture"].flatten(1))))
        return states._replace(tokens=torch.cat([states.tokens, token[:, None]], dim=1))


@pytest.fixture(scope="module")
def seeing(base):
    with torch.random.fork_rng():
        torch.manual_seed(3)
        encoder = PictureTokens(base.text.shape[1])
        with torch.no_grad():
            encoder.second.weight.mul_(20)  # so that pictures matter to a denoiser of small random weights
        return with_condition_encoder(base, encoder)


@pytest.fixture(scope="module")
def data(base):
    encoded = tiny_encoded(base)
    encoded = dataclasses.replace(encoded, tokens=base.encode_text(encoded.captions).tokens.half().numpy())
    return encoded.with_arrays(picture=np.random.default_rng(1).random((len(encoded), 8, 8), dtype=np.float32))


def trained(base, data, arms, path) -> RunFolder:
    for _ in train(base, data, arms, path, checkpoints=1):
        pass
    return RunFolder.open(path)


def tensors(run, arm=0):
    return load_file(run.checkpoint_path(run.checkpoints()[-1]) / f"arm_{arm}" / "adapter_model.safetensors")


@pytest.fixture(scope="module")
def run(seeing, data, tmp_path_factory):
    return trained(seeing, data, list(ARMS.values()), tmp_path_factory.mktemp("runs") / "together")


@EACH
def test_arms_that_train_different_parts_train_together_as_alone(seeing, data, run, tmp_path, arm):
    alone = tensors(trained(seeing, data, [list(ARMS.values())[arm]], tmp_path / "alone"))
    together = tensors(run, arm)
    assert alone.keys() == together.keys()
    for name, value in alone.items():
        assert_close(together[name], value, atol=1e-4, rtol=0, msg=lambda text, name=name: f"{name}: {text}")


def test_each_arm_stores_what_it_trains_and_that_has_moved(seeing, run):
    layers = dict(seeing.condition_encoder.named_parameters())
    first = tensors(run, 0)
    assert first.keys() == {f"condition_encoder.{name}" for name in layers}
    assert all(not torch.equal(first[f"condition_encoder.{name}"], value) for name, value in layers.items())
    names = [
        "base_model.model.condition_encoder.first.lora_A.weight",
        "base_model.model.condition_encoder.second.lora_B.weight",
    ]
    assert tensors(run, 1).keys() >= set(names) and tensors(run, 1)[names[1]].abs().max() > 0
    text = {f"text_encoder.{name}" for name, _ in seeing.text_encoder.named_parameters()}
    assert tensors(run, 2).keys() > text | first.keys()
    assert not [name for name in tensors(run, 3) if "encoder" in name]


def test_one_step_of_a_whole_encoder_is_torchs(seeing, data, tmp_path):
    """Against AdamW of torch on the encoder itself, with the denoiser called by hand."""
    arm = Arm(
        targets="none", condition_encoder="full", peak_lr=0.01, schedule="constant", images_seen=1, caption_dropout=0
    )
    found = tensors(trained(seeing, data, [arm], tmp_path / "one"))

    draw = draw_example(arm.seed, 0, len(data), data.mean.shape[1:], seeing.timesteps)
    encoder = PictureTokens(seeing.text.shape[1])
    encoder.load_state_dict(seeing.condition_encoder.state_dict())
    optimizer = torch.optim.AdamW(encoder.parameters(), lr=arm.peak_lr, weight_decay=arm.weight_decay)
    latents = data.latents(np.array([draw.row]), draw.posterior_noise[None])
    noisy, target = seeing.add_noise(latents, torch.from_numpy(draw.noise[None]), torch.tensor([draw.timestep]))
    states = data.text(data.caption[[draw.row]], seeing.device)
    picture = torch.from_numpy(data.arrays["picture"][[draw.row]])
    predicted = seeing.denoise(noisy, torch.tensor([draw.timestep]), encoder(states, {"picture": picture}))
    (predicted - target).square().mean().backward()
    torch.nn.utils.clip_grad_norm_(encoder.parameters(), arm.clip_norm)
    optimizer.step()
    for name, value in encoder.named_parameters():
        assert_close(found[f"condition_encoder.{name}"], value.detach(), atol=1e-5, rtol=0)


def test_it_goes_on_bit_for_bit(seeing, data, run, tmp_path):
    steps = train(seeing, data, list(ARMS.values()), tmp_path / "twice", checkpoints=1)
    next(steps), next(steps)
    steps.close()
    again = trained(seeing, data, list(ARMS.values()), tmp_path / "twice")
    for arm in range(len(ARMS)):
        assert all(torch.equal(value, tensors(run, arm)[name]) for name, value in tensors(again, arm).items())


def test_images_follow_the_picture_and_the_trained_encoder(seeing, data, run):
    dark, light = (Prompt("queen", {"picture": np.full((8, 8), level, np.float32)}) for level in (0.0, 4.0))
    plain = sample(seeing, [dark, light, "queen"], [1], SAMPLING, size_px=32)
    assert not np.array_equal(plain[0, 0], plain[0, 1])
    assert np.array_equal(plain[0, 0], plain[0, 2])  # a prompt without arrays has zeros for them
    trainable = load_checkpoints(seeing, run, [run.checkpoints()[-1]], 0)
    shown = sample(seeing, [dark, light], [1], SAMPLING, trainable=trainable, size_px=32)
    assert not np.array_equal(shown[0, 1], plain[0, 1])
    assert np.array_equal(sample(seeing, [dark, light], [1], SAMPLING, size_px=32), plain[:, :2])


def test_a_dropped_caption_drops_the_arrays(data):
    rows, captions = np.array([0, 1]), np.array([data.empty, data.caption[1]])
    prompts = data.prompts(rows, captions, torch.device("cpu"))
    assert list(prompts.captions) == ["", data.captions[data.caption[1]]]
    assert_close(
        prompts.arrays["picture"], torch.from_numpy(data.arrays["picture"][:2]) * torch.tensor([0.0, 1.0]).view(2, 1, 1)
    )


def test_the_empty_caption_may_be_in_any_row(base, data, tmp_path):
    """Dropout finds it by its text: the same captions in reverse order train the same."""
    last = len(data.captions) - 1
    turned = dataclasses.replace(
        data,
        captions=data.captions[::-1],
        tokens=np.asarray(data.tokens)[::-1],
        caption=last - np.asarray(data.caption),
        arrays={},
    )
    arm = dataclasses.replace(ARMS["denoiser alone"], caption_dropout=0.5)
    first = tensors(trained(base, dataclasses.replace(data, arrays={}), [arm], tmp_path / "first"))
    second = tensors(trained(base, turned, [arm], tmp_path / "second"))
    assert all(torch.equal(value, second[name]) for name, value in first.items())


def test_arrays_are_part_of_the_datas_identity(data):
    other = data.with_arrays(picture=data.arrays["picture"] + 1)
    assert len({data.identity, other.identity, data.with_arrays(index=np.arange(len(data))).identity}) == 3
    with pytest.raises(ValueError, match="expected one entry for each"):
        data.with_arrays(picture=np.zeros((1, 8, 8)))


def test_refusals(base, seeing):
    with pytest.raises(ValueError, match="no condition encoder.*expected condition_encoder 'frozen', got 'full'"):
        Trainable(base.denoiser, [ARMS["whole encoder, denoiser frozen"]], base.text_encoder)
    with pytest.raises(ValueError, match="an arm must train something"):
        Arm(targets="none")
    with pytest.raises(ValueError, match="condition_encoder must be one of"):
        Arm(condition_encoder="yes")
    small, large = (Prompt(text, {"picture": np.zeros(size)}) for text, size in (("a", (8, 8)), ("b", (4, 4))))
    with pytest.raises(ValueError, match=r"prompt 'b': expected arrays .*\(8, 8\).*got .*\(4, 4\)"):
        Prompts.of([small, large], seeing.device)


def test_a_mask_hides_tokens_from_the_denoiser(base):
    noisy, timesteps = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([500])
    states = base.encode_text(["queen"])
    shorter = Conditioning(states.tokens[:, :2])
    mask = torch.zeros(states.tokens.shape[:2], dtype=torch.bool)
    mask[:, :2] = True
    with torch.no_grad():
        found = base.denoise(noisy, timesteps, states._replace(mask=mask))
        assert_close(found, base.denoise(noisy, timesteps, shorter), atol=1e-5, rtol=0)
        assert not torch.allclose(found, base.denoise(noisy, timesteps, states), atol=1e-5)
