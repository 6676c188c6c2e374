"""A base speaks as diffusers does: noise, latents, text; and is known by its weights."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, DDPMScheduler, StableDiffusionPipeline
from safetensors.torch import load_file, save_file
from torch.testing import assert_close

from kanjilab.models import cpu_layers
from kanjilab.models import loading as bases
from kanjilab.models.conditioning import Conditioning
from kanjilab.models.hub import load_whole
from kanjilab.models.loading import assemble_pipeline, cache_folder, load_base
from tests.tiny import save_tiny_pipeline


@pytest.fixture(scope="module")
def velocity_base(tmp_path_factory):
    return load_base(save_tiny_pipeline(tmp_path_factory.mktemp("tiny") / "velocity", prediction="v_prediction"))


@pytest.fixture(scope="module")
def pipeline(folder):
    return StableDiffusionPipeline.from_pretrained(folder, safety_checker=None, requires_safety_checker=False)


def some_latents(count=4):
    generator = torch.Generator().manual_seed(0)
    latents, noise = torch.randn(2, count, 4, 8, 8, generator=generator)
    return latents, noise, torch.tensor([0, 250, 700, 999])[:count]


def test_noised_is_diffusers(base, velocity_base):
    latents, noise, timesteps = some_latents()
    for a_base in (base, velocity_base):
        reference = DDPMScheduler.from_config(a_base.scheduler_config)
        noisy, target = a_base.add_noise(latents, noise, timesteps)
        assert_close(noisy, reference.add_noise(latents, noise, timesteps), atol=1e-6, rtol=0)
        if a_base is velocity_base:
            assert_close(target, reference.get_velocity(latents, noise, timesteps), atol=1e-6, rtol=0)
        else:
            assert torch.equal(target, noise)


def test_loss_weight_at_hand_worked_points(base, velocity_base, monkeypatch):
    timesteps = torch.arange(3)
    for a_base in (base, velocity_base):
        monkeypatch.setattr(a_base, "alpha_bar", torch.tensor([0.9, 0.5, 0.75]))  # SNR 9, 1, 3
        assert_close(a_base.loss_weight(timesteps, None), torch.ones(3))
    # Noise: min(SNR, gamma) / SNR. Velocity: min(SNR, gamma) / (SNR + 1).
    assert_close(base.loss_weight(timesteps, 2.0), torch.tensor([2 / 9, 1, 2 / 3]))
    assert_close(velocity_base.loss_weight(timesteps, 2.0), torch.tensor([2 / 10, 1 / 2, 2 / 4]))
    # Where nothing of the signal is left, a velocity error is the velocity error, and min-SNR leaves none of it.
    monkeypatch.setattr(velocity_base, "alpha_bar", torch.tensor([0.0, 0.5, 0.75]))
    assert_close(velocity_base.loss_weight(timesteps, None, velocity=True), torch.ones(3))
    assert_close(velocity_base.loss_weight(timesteps, 2.0, velocity=True), torch.tensor([1, 2 / 2, 3 / 4]))
    assert_close(velocity_base.loss_weight(timesteps[:1], 2.0), torch.zeros(1))


def test_images_are_encoded_as_the_autoencoder_does(base, pipeline):
    pixels = np.random.default_rng(0).integers(0, 256, (3, 32, 32), dtype=np.uint8)
    mean, log_variance = base.encode_images(pixels)
    images = torch.from_numpy(pixels)[:, None].float() / 255 * 2 - 1  # black -1, white 1
    with torch.no_grad():
        posterior = pipeline.vae.encode(images).latent_dist
    factor = pipeline.vae.config.scaling_factor
    assert factor != 1
    assert_close(mean, posterior.mean * factor, atol=1e-5, rtol=0)
    assert_close((0.5 * log_variance).exp(), posterior.std * factor, atol=1e-6, rtol=1e-5)
    assert (base.channels, base.timesteps) == (1, 1000)


def test_latents_are_decoded_as_the_pipeline_does(base, pipeline):
    latents, _, _ = some_latents()
    with torch.no_grad():
        images = pipeline.vae.decode(latents / pipeline.vae.config.scaling_factor).sample
    grays = ((images[:, 0] / 2 + 0.5).clamp(0, 1) * 255).round().byte().numpy()
    assert grays.std() > 2
    np.testing.assert_array_equal(base.decode(latents), grays)


def test_colour_images_keep_their_order_of_channels(base, monkeypatch):
    seen = []

    class Posterior:
        mean = logvar = torch.zeros(1, 4, 8, 8)

    def encode(images):
        seen.append(images)
        return type("Output", (), {"latent_dist": Posterior})

    monkeypatch.setattr(base.vae, "encode", encode)
    monkeypatch.setattr(base.vae, "decode", lambda latents: type("Output", (), {"sample": seen[0]}))
    pixels = np.random.default_rng(0).integers(0, 256, (1, 32, 32, 3), dtype=np.uint8)
    base.encode_images(pixels)
    assert seen[0].shape == (1, 3, 32, 32)
    np.testing.assert_array_equal(base.decode(torch.zeros(1, 4, 8, 8)), pixels)


def test_text_is_encoded_as_the_pipeline_does(base, pipeline):
    captions = ["water", "", "queen ; tree fire castle mountain a b water water", "unheard-of"]
    states = base.encode_text(captions)
    empty = [""] * len(captions)
    expected, negative = pipeline.encode_prompt(captions, "cpu", 1, True, negative_prompt=empty)
    assert states.tokens.dtype == torch.float32
    assert states.pooled is None
    assert_close(states.tokens, expected, atol=1e-6, rtol=0)
    assert_close(base.encode_text([""]).tokens.expand_as(negative), negative, atol=1e-6, rtol=0)
    assert (states.tokens[0] - states.tokens[1]).abs().max() > 0.1  # captions do differ


def test_a_caption_does_not_depend_on_its_neighbours(base):
    alone = base.encode_text(["tree"]).tokens
    assert_close(base.encode_text(["water a b ; fire", "tree"]).tokens[1:], alone, atol=1e-6, rtol=0)


def test_text_states_select_rows():
    states = Conditioning(torch.arange(6).view(3, 2, 1), torch.arange(3)[:, None])
    chosen = states.select(torch.tensor([2, 0]))
    assert chosen.tokens.flatten().tolist() == [4, 5, 0, 1]
    assert chosen.pooled.flatten().tolist() == [2, 0]


def test_denoise_is_the_unet_in_its_own_precision(folder, base, pipeline):
    noisy, _, timesteps = some_latents()
    text = base.encode_text(["water", "tree", "", "a b"])
    with torch.no_grad():
        expected = pipeline.unet(noisy, timesteps, text.tokens).sample
        assert_close(base.denoise(noisy, timesteps, text), expected, atol=1e-5, rtol=0)
        half = load_base(folder, precision="bf16")
        found = half.denoise(noisy, timesteps, text)
    assert half.denoiser.dtype == (torch.bfloat16 if cpu_layers.computes_bf16() else torch.float32)
    assert half.vae.dtype == half.text_encoder.dtype == found.dtype == torch.float32
    error = (found - expected).square().mean().sqrt() / expected.std()
    assert 1e-5 < error < 0.05


def test_without_instructions_for_bf16_its_weights_are_computed_with_in_fp32(folder, base, monkeypatch):
    monkeypatch.setattr(cpu_layers, "computes_bf16", lambda: False)
    rounded = load_base(folder, precision="bf16")
    assert (rounded.precision, rounded.identity, rounded.denoiser.dtype) == ("bf16", base.identity, torch.float32)
    for name, value in rounded.denoiser.state_dict().items():
        assert torch.equal(value, base.denoiser.state_dict()[name].bfloat16().float()), name
    assert load_base(folder).denoiser.dtype == torch.float32
    noisy, _, timesteps = some_latents()
    text = base.encode_text(["water", "tree", "", "a b"])
    with torch.no_grad():
        found, expected = (one.denoise(noisy, timesteps, text) for one in (rounded, base))
    assert 1e-5 < (found - expected).square().mean().sqrt() / expected.std() < 0.05


def test_a_base_is_frozen_and_ready(base):
    for part in (base.denoiser, base.vae, base.text_encoder):
        assert not part.training
        assert not any(value.requires_grad for value in part.parameters())


def test_identity_is_that_of_the_weights(folder, base, velocity_base, tmp_path):
    assert load_base(folder).identity == base.identity
    assert base.identity != velocity_base.identity  # the same weights, another noise schedule
    other = save_tiny_pipeline(tmp_path / "other")
    assert load_base(other).identity == base.identity  # the same weights in another place
    weights = other / "unet" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(weights)
    tensors["conv_out.bias"][0] += 1e-3
    save_file(tensors, weights, metadata={"format": "pt"})
    assert load_base(other).identity != base.identity


def test_what_is_no_base_is_refused(folder, tmp_path):
    with pytest.raises(ValueError, match=r"precision must be one of \('fp32', 'bf16', '8bit', '4bit'\), got 'fp16'"):
        load_base(folder, precision="fp16")
    with pytest.raises(FileNotFoundError, match=re.escape(f"{tmp_path}: expected a folder with model_index.json")):
        load_base(tmp_path)
    with pytest.raises(FileNotFoundError, match="Hub id"):
        load_base("no-such-base")
    with pytest.raises(ValueError, match="epsilon or v_prediction, got 'sample'"):
        load_base(save_tiny_pipeline(tmp_path / "sample", prediction="sample"))


def edited(name, **changes):
    def change(path):
        file = path / name
        file.write_text(json.dumps(json.loads(file.read_text()) | changes))

    return change


def without(part, names=lambda names: names[:1]):
    """Lets some tensors be missing in a part's file."""

    def change(path):
        (file,) = (path / part).glob("*.safetensors")
        tensors = load_file(file)
        for name in names(sorted(tensors)):
            del tensors[name]
        save_file(tensors, file, metadata={"format": "pt"})

    return change


def renamed(path):
    (file,) = (path / "unet").glob("*.safetensors")
    save_file({f"a\0{name}": value for name, value in load_file(file).items()}, file, metadata={"format": "pt"})


UNET, VAE, TEXT = "unet/config.json", "vae/config.json", "text_encoder/config.json"
SCHEDULER, TOKENIZER = "scheduler/scheduler_config.json", "tokenizer/tokenizer_config.json"
DAMAGED = {
    "a tensor of the U-Net missing": (without("unet"), "unet: expected the weights of UNet2DConditionModel, got none"),
    "the U-Net's last block missing": (
        without("unet", lambda names: [name for name in names if name.startswith("up_blocks.1")]),
        "unet: expected the weights of UNet2DConditionModel, got none for up_blocks.1",
    ),
    "a tensor of the autoencoder missing": (without("vae"), "vae: expected the weights of AutoencoderKL, got none"),
    "a tensor of the encoder missing": (without("text_encoder"), "text_encoder: expected the weights of BertModel"),
    "other names": (renamed, "unet: expected the weights of UNet2DConditionModel, got none"),
    "a wider U-Net": (edited(UNET, block_out_channels=[16, 64]), "unet: expected the weights of its config.json"),
    "a wider autoencoder": (edited(VAE, latent_channels=8), "vae: expected the weights of its config.json"),
    "more layers": (edited(UNET, layers_per_block=2), "unet: expected the weights of its config.json, got others"),
    "layers without end": (edited(UNET, layers_per_block=10**9), "unet/config.json: layers_per_block: expected"),
    "no layers": (edited(UNET, layers_per_block=0), "unet/config.json: layers_per_block: expected"),
    "channels without end": (edited(UNET, block_out_channels=[10**9]), "unet/config.json: block_out_channels: exp"),
    "a width without end": (edited(TEXT, hidden_size=10**9), "text_encoder/config.json: hidden_size: expected"),
    "a length without end": (edited(TOKENIZER, model_max_length=10**30), "config.json: model_max_length: expected"),
    "a length without end, said to be T5's": (
        edited(TOKENIZER, model_max_length=10**30, tokenizer_class="T5Tokenizer"),
        "config.json: model_max_length: expected",
    ),
    "positions without end": (edited(TEXT, max_position_embeddings=10**9), "config.json: max_position_embeddings: exp"),
    "a length in words": (edited(TOKENIZER, model_max_length="x"), "config.json: model_max_length: expected"),
    "no timesteps": (edited(SCHEDULER, num_train_timesteps=0), "config.json: num_train_timesteps: expected"),
    "a scale in words": (edited(VAE, scaling_factor="x"), "vae/config.json: scaling_factor: expected a number"),
    "a scale of nothing": (edited(VAE, scaling_factor=0), "vae/config.json: scaling_factor: expected a number"),
    "a scale that is no number": (edited(VAE, scaling_factor=np.nan), "vae/config.json: scaling_factor: expected a"),
    "a shift in words": (edited(VAE, shift_factor="x"), "vae/config.json: shift_factor: expected a number"),
    "noise in words": (edited(SCHEDULER, beta_start="x"), "scheduler_config.json: beta_start: expected a number"),
    "an unknown schedule": (edited(SCHEDULER, beta_schedule="nobody"), "expected configurations of a base, got some"),
    "an unknown activation": (edited(TEXT, hidden_act="nobody"), "expected configurations of a base, got some"),
    "an unknown block": (edited(UNET, down_block_types=["A", "B"]), "unet: expected the weights of its"),
    "a list as the kind of the U-Net": (edited("model_index.json", unet=["diffusers", ["eval"]]), "unet: expected a"),
    "an unknown kind of autoencoder": (edited("model_index.json", vae=["x", "Nobody"]), "vae: expected a class of"),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_a_base_that_is_not_whole_is_refused_by_name(name, folder, tmp_path):
    damage, said = DAMAGED[name]
    damage(Path(shutil.copytree(folder, tmp_path / "base")))
    with pytest.raises(ValueError, match=re.escape(said)) as caught:
        load_base(tmp_path / "base")
    assert str(tmp_path / "base") in str(caught.value)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_base_is_loaded_without_remarks_of_its_libraries(folder, precision, capfd, caplog):
    load_base(folder, precision)
    assert caplog.records == [] and capfd.readouterr().err == ""


def test_names_in_a_text_encoders_configuration_run_nothing(folder, base, tmp_path):
    edited(TEXT, architectures=["eval"], auto_map={"AutoModel": "evil.Model"})(
        Path(shutil.copytree(folder, tmp_path / "base"))
    )
    assert load_base(tmp_path / "base").identity == base.identity


def test_an_autoencoder_by_the_old_names_of_its_attention_is_whole(tmp_path):
    """As Stable Diffusion 1.4's is."""
    sizes = dict(block_out_channels=(8,), norm_num_groups=4, down_block_types=("DownEncoderBlock2D",))
    whole = AutoencoderKL(in_channels=1, out_channels=1, up_block_types=("UpDecoderBlock2D",), **sizes)
    whole.save_pretrained(tmp_path)
    (file,) = tmp_path.glob("*.safetensors")
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    pattern = re.compile(r"(?<=attentions\.0\.)(to_[qkv]|to_out\.0)")
    tensors = {pattern.sub(lambda found: old[found[0]], name): value for name, value in load_file(file).items()}
    assert any(".query." in name for name in tensors)
    save_file(tensors, file, metadata={"format": "pt"})
    found = load_whole(AutoencoderKL, tmp_path).state_dict()
    assert all(torch.equal(found[name], value) for name, value in whole.state_dict().items())


def test_caches_go_where_they_are_told(monkeypatch, tmp_path):
    monkeypatch.setenv("KANJILAB_CACHE", str(tmp_path))
    assert cache_folder() == tmp_path
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path
    monkeypatch.delenv("KANJILAB_CACHE")
    assert cache_folder() == tmp_path / "xdg" / "kanjilab"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "kanjilab"


def test_assembled_pipeline_appears_whole_and_loads(folder, base, tmp_path, monkeypatch):
    monkeypatch.setattr(bases, "TOKENS", 6)
    source, text_model = tmp_path / "source", tmp_path / "text"
    for name in ("unet", "vae", "scheduler", "model_index.json"):
        source.mkdir(exist_ok=True)
        (source / name).symlink_to(folder / name)
    text_model.mkdir()
    for name in ("model.safetensors", "config.json"):
        (text_model / name).symlink_to(folder / "text_encoder" / name)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (text_model / name).symlink_to(folder / "tokenizer" / name)
    with pytest.raises(FileNotFoundError):
        assemble_pipeline([source], text_model, tmp_path / "built" / "pocket")  # two files of the tokenizer lack
    assert list((tmp_path / "built").iterdir()) == []
    for name in ("vocab.txt", "special_tokens_map.json"):
        (text_model / name).write_text("{}")
    assemble_pipeline([source], text_model, tmp_path / "built" / "pocket")
    assert [path.name for path in (tmp_path / "built").iterdir()] == ["pocket"]
    built = load_base(tmp_path / "built" / "pocket")
    assert built.identity == base.identity
    assert built.text_encoder.config.use_attention_mask
    assert built.encode_text(["water tree"]).tokens.shape == (1, 6, 24)
