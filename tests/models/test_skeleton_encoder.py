"""What skeletons and indices say to the denoiser, in every family of bases."""

import dataclasses

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from kanjilab.data.skeleton import pack_skeletons
from kanjilab.models.conditioning import Conditioning, Prompt, Prompts
from kanjilab.models.loading import load_base
from kanjilab.models.sampling import Sampling, sample
from kanjilab.models.skeleton_encoder import (
    INDEX_TOKENS,
    SkeletonEncoder,
    knowing,
    load_encoder,
    save_encoder,
    unpack_bits,
    with_skeletons,
)

LINES = np.random.default_rng(0).random((3, 128, 128)) < 0.1
PACKED = torch.from_numpy(pack_skeletons(LINES).astype(np.float32))


@pytest.fixture(scope="module", params=["base", "sd3_base"])
def led(request):
    """A tiny U-Net and a tiny rectified flow, with an untrained hint."""
    return with_skeletons(request.getfixturevalue(request.param), "hint", "永国")


def denoised(base, conditioning):
    latents = torch.randn(1, *base.latent_shape(128), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return base.denoise(latents, base.model_timestep(torch.tensor([500])), conditioning)


def test_bits_are_unpacked_in_the_order_they_were_packed():
    assert np.array_equal(unpack_bits(PACKED)[:, 0].numpy(), LINES)


def test_an_untrained_hint_changes_nothing(led):
    states = led.encode_text(["queen"])
    read = led.condition_encoder(states, {"skeleton": PACKED[:1]})
    assert read.hint.abs().max() == 0
    assert torch.equal(denoised(led, read), denoised(led, read._replace(hint=None)))


def test_a_hint_is_added_to_what_the_first_layer_makes_of_the_latents(led):
    """A hint that is the same everywhere is a bias: the first layer's, moved by it, gives the same."""
    states, layer = led.encode_text(["queen"]), led.first_layer
    shift = torch.linspace(-1, 1, layer.out_channels)
    side = led.latent_shape(128)[1] // layer.stride[0]
    hinted = denoised(led, states._replace(hint=shift[None, :, None, None].expand(1, -1, side, side)))
    before = layer.bias.detach().clone()
    with torch.no_grad():
        layer.bias += shift
        moved = denoised(led, states)
        layer.bias.copy_(before)
    assert_close(hinted, moved, atol=1e-5, rtol=0)
    assert not torch.allclose(hinted, denoised(led, states), atol=1e-4)


def test_each_place_of_the_hint_sees_the_lines_around_it():
    encoder = SkeletonEncoder("hint", "", 24, 8, 5)
    torch.nn.init.ones_(encoder.skeleton.last.weight)
    blank, dot = torch.zeros(1, 128, 16), torch.zeros(1, 128, 16)
    dot[0, 64, 8] = 128  # the pixel at 64, 64: of the patch at row 8 and column 8
    hints = [encoder(Conditioning(torch.zeros(1, 2, 24)), {"skeleton": lines}).hint for lines in (blank, dot)]
    changed = (hints[0] != hints[1]).any(dim=1)[0].nonzero()
    assert changed.min() == 6 and changed.max() == 10  # two convolutions of 3 x 3


@pytest.mark.parametrize("enters", ["hint", "tokens"])
def test_the_glyphs_own_skeleton_and_a_typed_one_are_told_apart(base, enters):
    """Each has a channel of its own: it moves what is read by as much whatever the other is, before the first bend."""
    encoder = with_skeletons(base, enters, "永").condition_encoder
    first = encoder.skeleton.first if enters == "hint" else encoder.skeleton.patches
    seen = []
    first.register_forward_hook(lambda module, inputs, output: seen.append(output[0].detach()))
    states = base.encode_text(["queen"])
    own, typed = {"skeleton": PACKED[:1]}, {"typed": PACKED[:1]}
    for arrays in ({}, own, typed, own | typed):
        encoder(states, arrays)
    neither, by_own, by_typed, both = seen
    assert not torch.allclose(by_own, by_typed, atol=1e-3)
    assert_close(by_own - neither + by_typed, both)


def test_tokens_of_the_papers_transformer_stand_beside_the_text(base):
    base = with_skeletons(base, "tokens", "永国")
    states = base.encode_text(["queen", "water"])
    mask = torch.ones(states.tokens.shape[:2], dtype=torch.bool)
    read = base.condition_encoder(states._replace(mask=mask), {"skeleton": PACKED[:2], "index": torch.tensor([0, 2])})
    length = states.tokens.shape[1]
    assert (
        read.hint is None
        and read.tokens.shape[1] == length + INDEX_TOKENS + 64
        and read.mask.shape == read.tokens.shape[:2]
    )
    assert torch.equal(read.tokens[:, :length], states.tokens) and read.mask.all()
    assert read.tokens[0, length : length + INDEX_TOKENS].abs().max() == 0  # no index
    of_index = read.tokens[1, length : length + INDEX_TOKENS]
    assert torch.equal(of_index.flatten(), base.condition_encoder.index.weight[2])
    assert not torch.allclose(read.tokens[0, -64:], read.tokens[1, -64:])


def test_an_index_starts_from_the_states_of_a_caption(base):
    """Even runs of the caption's own tokens, its start and end among them, averaged; padding counts for nothing."""
    captions = ["left: water, right: blue", "queen"]
    states = base.encode_text(captions).tokens
    led = with_skeletons(base, "hint", "清后", captions=captions).condition_encoder
    expected = []
    for row, caption in zip(states, captions, strict=True):
        own = row[: len(base.text.tokenizer(caption).input_ids)]
        short, long = divmod(len(own), INDEX_TOKENS)
        lengths = [short + (run < long) for run in range(INDEX_TOKENS)]
        expected.append(torch.cat([run.mean(dim=0) for run in own.split(lengths)]))
    assert_close(led.index.weight[1:].detach(), torch.stack(expected))
    assert led.index.weight[0].abs().max() == 0


def test_an_encoder_that_knows_fewer_characters_says_the_same_of_these(base):
    whole = with_skeletons(base, "hint", "永国水火", seed=1).condition_encoder
    fewer, states = knowing(whole, "火永"), base.encode_text(["queen", "", "water"])
    arrays = {"skeleton": PACKED}
    found = fewer(states, arrays | {"index": torch.tensor([0, 1, 2])})
    expected = whole(states, arrays | {"index": torch.tensor([0, 4, 1])})
    assert torch.equal(found.tokens, expected.tokens) and torch.equal(found.hint, expected.hint)
    assert fewer.characters == "火永" and len(fewer.index.weight) == 3 and whole.characters == "永国水火"
    with pytest.raises(ValueError, match="expected characters that have an index, got '木'"):
        knowing(whole, "永木")


def test_what_is_stored_beside_a_base_is_loaded_with_it_and_diffusers_ignores_it(folder, tmp_path):
    import shutil

    from diffusers import DiffusionPipeline

    shutil.copytree(folder, tmp_path / "base")
    plain = load_base(tmp_path / "base")
    assert plain.condition_encoder is None
    encoder = with_skeletons(plain, "hint", "永国", seed=4).condition_encoder
    torch.nn.init.normal_(encoder.skeleton.last.weight, generator=torch.Generator().manual_seed(0))
    encoder.half().float()
    save_encoder(encoder, tmp_path / "base")
    loaded = load_base(tmp_path / "base")
    assert loaded.condition_encoder.characters == "永国" and loaded.identity != plain.identity
    states = plain.encode_text(["queen"])
    for one, other in zip(
        encoder(states, {"skeleton": PACKED[:1]}),
        loaded.condition_encoder(states, {"skeleton": PACKED[:1]}),
        strict=True,
    ):
        assert (one is None and other is None) or torch.equal(one, other)
    assert DiffusionPipeline.from_pretrained(tmp_path / "base", safety_checker=None).unet is not None
    assert load_encoder(folder) is None


def test_what_does_not_fit_is_refused_with_what_exists(led):
    encoder, states = led.condition_encoder, led.encode_text(["queen"])
    with pytest.raises(ValueError, match=r"index: expected 0 \(none\) to 2 .*got \[3\]"):
        encoder(states, {"index": torch.tensor([3])})
    for name in ("skeleton", "typed"):
        with pytest.raises(ValueError, match=rf"{name}: expected packed bits \(128, 16\), got \(64, 8\)"):
            encoder(states, {name: torch.zeros(1, 64, 8)})
    with pytest.raises(ValueError, match="enters must be one of"):
        SkeletonEncoder("side door", "永", 24, 8, 5)
    with pytest.raises(ValueError, match="each character once"):
        SkeletonEncoder("hint", "永永", 24, 8, 5)


def test_guidance_with_a_scale_of_its_own_for_the_arrays():
    predicted = torch.tensor([1.0, 3.0, 4.0]).view(3, 1, 1, 1)  # empty, arrays alone, everything
    assert Sampling(guidance=2, array_guidance=5).guided(predicted).item() == 1 + 5 * 2 + 2 * 1
    assert Sampling(guidance=1, array_guidance=1).guided(predicted).item() == 4
    assert Sampling(guidance=3).guided(predicted[[0, 2]]).item() == 1 + 3 * 3
    assert Sampling(guidance=1).guided(predicted[[2]]).item() == 4
    with pytest.raises(ValueError, match="array_guidance must be None or from 0 to 1,000"):
        Sampling(array_guidance=-1)
    assert "array_guidance" not in Sampling().to_json() and Sampling(array_guidance=2).to_json()["array_guidance"] == 2


def test_images_under_equal_scales_are_those_under_one(led):
    torch.nn.init.normal_(led.condition_encoder.skeleton.last.weight, generator=torch.Generator().manual_seed(0))
    blank = np.zeros((128, 16), np.float32)
    prompts = [Prompt("queen", {"skeleton": PACKED[0].numpy()}), Prompt("water", {"skeleton": blank})]
    one = Sampling(led.samplers[0], steps=2, guidance=2.0)
    first = sample(led, prompts, [1], one).astype(int)
    second = sample(led, prompts, [1], dataclasses.replace(one, array_guidance=2.0))
    third = sample(led, prompts, [1], dataclasses.replace(one, array_guidance=0.0))
    torch.nn.init.zeros_(led.condition_encoder.skeleton.last.weight)
    assert np.abs(first - second).max() <= 1
    assert np.abs(first[0, 0] - third[0, 0]).max() > 1  # without guidance by the skeleton
    assert Prompts.of(prompts, led.device).arrays["skeleton"].shape == (2, 128, 16)


def test_a_share_of_a_second_caption_is_on_the_way_between_their_states(led, monkeypatch):
    seen = []
    monkeypatch.setattr(type(led), "denoise", lambda base, noisy, at, text: seen.append(text) or noisy)
    sampling = Sampling(led.samplers[0], steps=1, guidance=1)
    prompts = [Prompt("queen", toward="water", share=share) for share in (0.0, 0.25, 1.0)] + [Prompt("water")]
    sample(led, prompts, [0], sampling, size_px=32)
    ends = led.encode_text(["queen", "water"])
    for name in ("tokens", "pooled"):
        if (states := getattr(ends, name)) is not None:
            found = getattr(seen[0], name)[:, : states.shape[1]]
            first, second = states
            assert_close(found, torch.stack([first, 0.75 * first + 0.25 * second, second, second]))


def test_the_share_is_kept_out_of_what_guidance_compares_with(led):
    """Of three copies only the last is asked by the caption."""
    sampling = Sampling(led.samplers[0], steps=2, guidance=1, array_guidance=0)
    arrays = {"skeleton": PACKED[0].numpy()}
    full = sample(led, [Prompt("water", arrays)], [0], sampling, size_px=128)
    mixed = sample(led, [Prompt("queen", arrays, "water", 1.0)], [0], sampling, size_px=128)
    assert np.abs(full.astype(int) - mixed).max() <= 1
    with pytest.raises(ValueError, match="share must be from 0 to 1, got 1.5"):
        Prompt("queen", share=1.5)
