"""A base's files: from folders, the Hub's cache and single files; what cannot be had is told plainly."""

import json
import re
import shutil
from pathlib import Path

import httpx
import huggingface_hub
import pytest
import torch
from diffusers import SD3Transformer2DModel
from huggingface_hub import constants
from huggingface_hub.errors import GatedRepoError, LocalEntryNotFoundError, RepositoryNotFoundError
from safetensors.torch import load_file, save_file
from torch.testing import assert_close
from transformers.utils import logging as transformers_logging

from kanjilab.models import hub as sources
from kanjilab.models.hub import HUB_BASES, family_of, file_digest, folder_digest, model_folder
from kanjilab.models.loading import load_base
from kanjilab.models.minilm import load_minilm
from kanjilab.models.tiny_sd3 import save_miniature_sd3


@pytest.fixture(autouse=True)
def own_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("KANJILAB_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def hub_cache(monkeypatch, tmp_path):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


# ---------------------------------------------------------------------------------- the Hub


@pytest.mark.parametrize("name", ["sd14", "sd35-medium", "someone/their-model"])
def test_a_hub_base_is_read_from_the_cache_without_a_network(folder, sd3_folder, hub_cache, name):
    repository, revision = HUB_BASES.get(name, (name, None))
    commit = revision or "a" * 40
    storage = hub_cache / f"models--{repository.replace('/', '--')}"
    source = sd3_folder if name == "sd35-medium" else folder
    shutil.copytree(source, storage / "snapshots" / commit)
    if revision is None:
        (storage / "refs").mkdir()
        (storage / "refs" / "main").write_text(commit)
    base = load_base(name)
    assert base.name == name
    assert base.identity == load_base(source).identity  # the same weights in another place


def test_pinned_revisions_are_whole_commits():
    assert HUB_BASES["sd14"] == ("CompVis/stable-diffusion-v1-4", "133a221b8aa7292a167afc5127cb63fb5005638b")
    for _, revision in HUB_BASES.values():
        assert revision is None or re.fullmatch("[0-9a-f]{40}", revision)


def test_what_is_not_in_the_cache_is_told_with_the_way_to_get_it(hub_cache):
    with pytest.raises(FileNotFoundError, match="sd35-large: the Hub cannot be reached.*hf download stabilityai/"):
        model_folder("sd35-large")


@pytest.mark.parametrize(
    ("error", "kind", "message"),
    [
        (GatedRepoError, PermissionError, "gated.*https://huggingface.co/stabilityai/.*accept its licence.*HF_TOKEN"),
        (RepositoryNotFoundError, FileNotFoundError, "no repository https://huggingface.co/stabilityai/"),
        (LocalEntryNotFoundError, FileNotFoundError, "does not hold the whole of stabilityai/"),
    ],
)
def test_errors_of_the_hub_say_what_to_do(monkeypatch, error, kind, message):
    asked = []

    def fail(repository, **options):
        asked.append((repository, options["revision"]))
        if error is LocalEntryNotFoundError:
            raise error("not there")
        raise error("no", response=httpx.Response(403, request=httpx.Request("GET", "https://huggingface.co")))

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    with pytest.raises(kind, match=message):
        load_base("sd35-large")
    assert asked == [("stabilityai/stable-diffusion-3.5-large", None)]


def test_only_what_is_used_is_fetched(monkeypatch, sd3_folder):
    asked = {}

    def fetch(repository, **options):
        asked.update(options)
        return str(sd3_folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetch)
    model_folder("sd14")
    assert asked["revision"] == HUB_BASES["sd14"][1]
    files = {
        "unet/diffusion_pytorch_model.safetensors": True,
        "unet/diffusion_pytorch_model.fp16.safetensors": False,
        "unet/diffusion_pytorch_model.bin": False,
        "text_encoder_3/model-00001-of-00002.safetensors": True,
        "text_encoder_3/model.safetensors.index.json": True,
        "tokenizer/merges.txt": True,
        "tokenizer_3/spiece.model": True,
        "safety_checker/model.safetensors": False,
        "sd-v1-4.ckpt": False,
        "sd3.5_large.safetensors": False,
        "model_index.json": True,
    }
    chosen = huggingface_hub.utils.filter_repo_objects(
        files, allow_patterns=asked["allow_patterns"], ignore_patterns=asked["ignore_patterns"]
    )
    assert set(chosen) == {name for name, wanted in files.items() if wanted}


# ---------------------------------------------------------------------------------- pickles, precisions, other models


def test_pickles_are_refused_with_how_to_convert_them(folder, tmp_path):
    for name in ("model.ckpt", "pytorch_model.bin"):
        (tmp_path / name).write_bytes(b"")
        with pytest.raises(ValueError, match=rf"expected safetensors, got a \.{name[-4:].strip('.')}.*save_file"):
            load_base(tmp_path / name)
    pickled = tmp_path / "pickled"
    shutil.copytree(folder, pickled)
    weights = pickled / "unet" / "diffusion_pytorch_model.safetensors"
    weights.rename(weights.with_suffix(".bin"))
    with pytest.raises(ValueError, match=r"safetensors in unet/, got only \['diffusion_pytorch_model.bin'\].*save_pre"):
        load_base(pickled)


@pytest.mark.parametrize("precision", ["8bit", "4bit"])
def test_quantised_weights_need_cuda_and_bitsandbytes(sd3_folder, precision):
    with pytest.raises(ValueError, match=f"'{precision}' needs a CUDA device and the package bitsandbytes; got .*cpu"):
        load_base(sd3_folder, precision=precision)


def test_other_pipelines_are_refused(sd3_folder, folder, tmp_path):
    assert (family_of("x", sd3_folder), family_of("x", folder)) == ("mmdit", "unet")
    for name, index in {
        "StableDiffusionXLPipeline": {"unet": ["diffusers", "UNet"], "text_encoder_2": ["transformers", "CLIP"]},
        "FluxPipeline": {"transformer": ["diffusers", "FluxTransformer2DModel"]},
    }.items():
        (tmp_path / "model_index.json").write_text(json.dumps(index | {"_class_name": name}))
        with pytest.raises(ValueError, match=f"U-Net and one text encoder, or SD 3's, got {name}"):
            load_base(tmp_path)


# ---------------------------------------------------------------------------------- hashes


def test_a_flows_identity_is_that_of_its_files(sd3_folder, sd3_base, tmp_path):
    moved = tmp_path / "moved"
    shutil.copytree(sd3_folder, moved)
    assert load_base(moved).identity == sd3_base.identity
    for part, name in (("transformer", "proj_out.bias"), ("text_encoder_3", "encoder.final_layer_norm.weight")):
        (weights,) = (moved / part).glob("*.safetensors")
        tensors = load_file(weights)
        tensors[name][0] += 1e-3
        save_file(tensors, weights, metadata={"format": "pt"})
        assert load_base(moved).identity != sd3_base.identity
        shutil.copyfile(sd3_folder / part / weights.name, weights)
    assert load_base(moved).identity == sd3_base.identity
    scheduler = moved / "scheduler" / "scheduler_config.json"
    scheduler.write_text(scheduler.read_text().replace('"shift": 3.0', '"shift": 1.0'))
    assert load_base(moved).identity != sd3_base.identity


def test_a_file_is_hashed_once(tmp_path, monkeypatch):
    file, counted, original = tmp_path / "weights.safetensors", [], sources.sha256_file
    monkeypatch.setattr(sources, "sha256_file", lambda path: counted.append(path) or original(path))
    file.write_bytes(b"abc")
    digest = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # FIPS 180-2, appendix B.1
    assert [file_digest(file), file_digest(file)] == [digest, digest]
    assert len(counted) == 1
    (note,) = (sources.cache_folder() / "digests").iterdir()
    for left in (b"", digest[:20].encode(), b"\xff" * 64):  # by a crash
        note.write_bytes(left)
        assert file_digest(file) == digest
    file.write_bytes(b"abcd")
    assert file_digest(file) != digest
    blob = tmp_path / "blobs" / ("0" * 64)  # as the Hub's cache names a file by its hash
    blob.parent.mkdir()
    blob.write_bytes(b"abc")
    file.unlink()
    file.symlink_to(blob)
    assert file_digest(file) == "0" * 64
    assert folder_digest(tmp_path, ["."]) != folder_digest(tmp_path, [])


# ---------------------------------------------------------------------------------- single files

SD3_NAMES = {  # Stability's own names of an MMDiT's tensors, and diffusers'
    "pos_embed.pos_embed": "pos_embed",
    "pos_embed.proj": "x_embedder.proj",
    "time_text_embed.timestep_embedder.linear_1": "t_embedder.mlp.0",
    "time_text_embed.timestep_embedder.linear_2": "t_embedder.mlp.2",
    "time_text_embed.text_embedder.linear_1": "y_embedder.mlp.0",
    "time_text_embed.text_embedder.linear_2": "y_embedder.mlp.2",
    "norm_out.linear": "final_layer.adaLN_modulation.1",
    "proj_out": "final_layer.linear",
    "transformer_blocks.": "joint_blocks.",
    ".attn.to_out.0": ".x_block.attn.proj",
    ".attn2.to_out.0": ".x_block.attn2.proj",
    ".attn.to_add_out": ".context_block.attn.proj",
    ".attn.norm_added_q": ".context_block.attn.ln_q",
    ".attn.norm_added_k": ".context_block.attn.ln_k",
    ".attn.norm_q": ".x_block.attn.ln_q",
    ".attn.norm_k": ".x_block.attn.ln_k",
    ".attn2.norm_q": ".x_block.attn2.ln_q",
    ".attn2.norm_k": ".x_block.attn2.ln_k",
    ".norm1.linear": ".x_block.adaLN_modulation.1",
    ".norm1_context.linear": ".context_block.adaLN_modulation.1",
    ".ff.net.0.proj": ".x_block.mlp.fc1",
    ".ff.net.2": ".x_block.mlp.fc2",
    ".ff_context.net.0.proj": ".context_block.mlp.fc1",
    ".ff_context.net.2": ".context_block.mlp.fc2",
}
STREAMS = {"attn.to_": "x_block.attn", "attn2.to_": "x_block.attn2", "attn.add_": "context_block.attn"}


def original_transformer(folder):
    """A transformer's tensors by Stability's names: q, k and v in one, and shift before scale at the end."""
    model = SD3Transformer2DModel.from_pretrained(folder / "transformer", use_safetensors=True)
    stored, tensors = model.state_dict(), {}
    for name, value in stored.items():
        if "to_q." in name or "add_q" in name:
            part = next(part for part in STREAMS if part in name)
            kind = name.rsplit(".", 1)[1]
            joined = torch.cat([stored[name.replace("to_q", f"to_{x}").replace("add_q", f"add_{x}")] for x in "qkv"])
            tensors[f"{name.split('.attn')[0]}.{STREAMS[part]}.qkv.{kind}"] = joined
        elif not any(part in name for part in ("to_k", "to_v", "add_k_", "add_v_")):
            last = name.startswith(("norm_out", "transformer_blocks.2.norm1_context"))
            tensors[name] = torch.cat(value.chunk(2)[::-1]) if last else value
    for old, new in SD3_NAMES.items():
        tensors = {name.replace(old, new): value for name, value in tensors.items()}
    return {f"model.diffusion_model.{name}": value.clone() for name, value in tensors.items()}


def original_autoencoder(folder):
    """An autoencoder's tensors by the names of CompVis' latent-diffusion."""
    (weights,) = (folder / "vae").glob("*.safetensors")
    tensors = {}
    for name, value in load_file(weights).items():
        name = re.sub(r"up_blocks\.(\d)", lambda found: f"up.{2 - int(found[1])}", name)
        name = re.sub(r"mid_block\.resnets\.(\d)", lambda found: f"mid.block_{int(found[1]) + 1}", name)
        name = name.replace("down_blocks", "down").replace("resnets", "block").replace("conv_shortcut", "nin_shortcut")
        name = re.sub(r"(up|down)samplers\.0", r"\1sample", name).replace("conv_norm_out", "norm_out")
        tensors[f"first_stage_model.{name}"] = value
    return tensors


@pytest.fixture
def single_file(sd3_folder, tmp_path):
    file = tmp_path / "single.safetensors"
    save_file(original_transformer(sd3_folder) | original_autoencoder(sd3_folder), file)
    return file


def test_a_single_file_is_the_same_base(single_file, sd3_folder, sd3_base):
    """Its text encoders and tokenizers come from the folder beside it."""
    shutil.copytree(sd3_folder, single_file.with_suffix(""), ignore=shutil.ignore_patterns("diffusion_pytorch_model*"))
    base = load_base(single_file)
    for found, expected in ((base.denoiser, sd3_base.denoiser), (base.vae, sd3_base.vae)):
        assert found.state_dict().keys() == expected.state_dict().keys()
        for name, value in expected.state_dict().items():
            assert_close(found.state_dict()[name], value, atol=0, rtol=0, msg=name)
    states, expected = base.encode_text(["water"]), sd3_base.encode_text(["water"])
    assert torch.equal(states.tokens, expected.tokens)
    assert load_base(single_file).identity == base.identity  # from the folder made before
    assert len(list((sources.cache_folder() / "single-files").iterdir())) == 1


def test_a_damaged_conversion_is_made_again(single_file, sd3_folder, sd3_base):
    shutil.copytree(sd3_folder, single_file.with_suffix(""), ignore=shutil.ignore_patterns("diffusion_pytorch_model*"))
    identity = load_base(single_file).identity
    (weights,) = sources.cache_folder().glob("single-files/*/transformer/*.safetensors")
    good = weights.read_bytes()
    weights.write_bytes(good[:-7] + bytes([good[-7] ^ 1]) + good[-6:])
    assert load_base(single_file).identity == identity and weights.read_bytes() == good


def test_an_encoder_of_a_flow_that_is_not_whole_is_refused(sd3_folder, tmp_path):
    folder = Path(shutil.copytree(sd3_folder, tmp_path / "base"))
    for part in ("text_encoder", "text_encoder_2", "text_encoder_3", "transformer", "vae"):
        (file,) = (folder / part).glob("*.safetensors")
        tensors, good = load_file(file), file.read_bytes()
        del tensors[next(name for name in tensors if name.endswith("weight") and ".0." in name)]
        save_file(tensors, file, metadata={"format": "pt"})
        with pytest.raises(ValueError, match=rf"{part}: expected the weights of \w+, got none for"):
            load_base(folder).encode_text(["water"])
        file.write_bytes(good)
    load_base(folder).encode_text(["water"])


def test_a_single_file_alone_is_told_what_it_lacks(single_file, sd3_folder, hub_cache):
    beside = single_file.with_suffix("")
    with pytest.raises(FileNotFoundError, match=f"neither configurations nor tokenizers.*{beside}"):
        load_base(single_file)
    assert not list(sources.cache_folder().rglob("model_index.json"))
    with pytest.raises(FileNotFoundError, match=r"other.safetensors: expected a safetensors file, found none"):
        load_base(single_file.with_name("other.safetensors"))
    shutil.copytree(sd3_folder, beside, ignore=shutil.ignore_patterns("*.safetensors"))
    with pytest.raises(ValueError, match=f"Weights for this component appear to be missing.*has the part at {beside}"):
        load_base(single_file)


def test_two_encoders_are_the_least(tmp_path):
    folder = save_miniature_sd3(tmp_path / "one")
    index = json.loads((folder / "model_index.json").read_text()) | {"text_encoder_2": [None, None]}
    (folder / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match=r"two CLIP text encoders, found \['text_encoder'\]; only T5 may be absent"):
        load_base(folder)


def test_minilm_is_loaded_in_silence_and_other_models_as_before(capfd):
    transformers_logging.enable_progress_bar()
    for wanted in (True, False):
        tokenizer, model = load_minilm()
        assert transformers_logging.is_progress_bar_enabled() == wanted
        transformers_logging.disable_progress_bar()
    transformers_logging.enable_progress_bar()
    assert model(**tokenizer("a fish", return_tensors="pt")).last_hidden_state.shape == (1, 4, 384)
    assert not model.training and capfd.readouterr() == ("", "")
