"""LoRA files of other tools: their names are read or named for what they are; what is no LoRA is one sentence."""

import copy
import io
import json
import struct
import time
import zipfile

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import save, save_file
from transformers import CLIPTextConfig, CLIPTextModel

from kanjilab.core.tensor_files import TensorFileError, open_tensors, read_tensors
from kanjilab.export.lora_formats import read_lora
from kanjilab.models.loading import load_base

RANK = 3
LAYER = "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"  # of the tiny U-Net
BLOCK = "transformer_blocks.0.attn.to_q"  # of the tiny SD 3


@pytest.fixture(scope="module")
def unet(base):
    return {"unet": base.denoiser}


@pytest.fixture(scope="module")
def transformer(sd3_base):
    return {"transformer": sd3_base.denoiser}


@pytest.fixture(scope="module")
def clip():
    torch.manual_seed(0)
    config = CLIPTextConfig(hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2)
    return {"text_encoder": CLIPTextModel(config)}


def matrices(weight: torch.Tensor, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """A and B for a layer."""
    generator = torch.Generator().manual_seed(seed)
    wide = weight[0].numel()
    return torch.randn(RANK, wide, generator=generator), torch.randn(len(weight), RANK, generator=generator)


def pair(parts, part: str, layer: str, names: str) -> dict[str, torch.Tensor]:
    """The two tensors of a layer, under names in which * is down or A, up or B."""
    down, up = matrices(parts[part].get_submodule(layer).weight)
    words = ("A", "B") if "lora_*" in names else ("down", "up")
    return {names.replace("*", words[0]): down, names.replace("*", words[1]): up}


UNET_NAMES = {
    "PEFT's own state_dict": f"base_model.model.{LAYER}.lora_*.default.weight",
    "an adapter with a name": f"base_model.model.{LAYER}.lora_*.kanji_2.weight",
    "PEFT after diffusers": f"unet.base_model.model.{LAYER}.lora_*.weight",
    "both of these": f"unet.base_model.model.{LAYER}.lora_*.default.weight",
    "the original's prefix": f"diffusion_model.{LAYER}.lora_*.weight",
    "the bare name": f"{LAYER}.lora_*.weight",
    "diffusers": f"unet.{LAYER}.lora_*.weight",
    "diffusers before PEFT": f"unet.{LAYER.replace('.to_q', '.processor.to_q')}_lora.*.weight",
}
FLOW_NAMES = {
    "the original's prefix": f"diffusion_model.{BLOCK}.lora_*.weight",
    "PEFT after diffusers": f"transformer.base_model.model.{BLOCK}.lora_*.weight",
    "PEFT's own state_dict": f"base_model.model.{BLOCK}.lora_*.default.weight",
}


@pytest.mark.parametrize("name", UNET_NAMES)
def test_names_of_a_unet(name, unet, tmp_path):
    tensors = pair(unet, "unet", LAYER, UNET_NAMES[name])
    save_file(tensors, tmp_path / "lora.safetensors")
    ((layer, low),) = read_lora(tmp_path / "lora.safetensors", unet).layers.items()
    assert layer == f"unet.{LAYER}" and low.scale == 1
    assert all((a == b).all() for a, b in zip((low.down, low.up), tensors.values(), strict=True))


@pytest.mark.parametrize("name", FLOW_NAMES)
def test_names_of_sd3(name, transformer, tmp_path):
    tensors = pair(transformer, "transformer", BLOCK, FLOW_NAMES[name])
    save_file(tensors, tmp_path / "lora.safetensors")
    ((layer, low),) = read_lora(tmp_path / "lora.safetensors", transformer).layers.items()
    assert layer == f"transformer.{BLOCK}"
    assert all((a == b).all() for a, b in zip((low.down, low.up), tensors.values(), strict=True))


@pytest.mark.parametrize(
    "names", ["diffusion_model.joint_blocks.0.x_block.attn.qkv", "lora_unet_joint_blocks_0_x_block_attn_qkv"]
)
def test_sd3_by_the_names_of_its_original_has_q_k_and_v_in_one(names, transformer, tmp_path):
    weight = transformer["transformer"].get_submodule(BLOCK).weight
    down, up = matrices(torch.zeros(3 * len(weight), weight.shape[1]))
    kind = ("lora_A", "lora_B") if "." in names else ("lora_down", "lora_up")
    save_file({f"{names}.{kind[0]}.weight": down, f"{names}.{kind[1]}.weight": up}, tmp_path / "lora.safetensors")
    layers = read_lora(tmp_path / "lora.safetensors", transformer).layers
    assert [name.rpartition(".")[2] for name in layers] == ["to_q", "to_k", "to_v"]
    for low, third in zip(layers.values(), up.chunk(3), strict=True):
        assert (low.down == down).all() and (low.up == third).all()


@pytest.mark.parametrize(("old", "new"), [("q", "q_proj"), ("k", "k_proj"), ("v", "v_proj"), ("out", "out_proj")])
def test_old_names_of_a_text_encoder(old, new, clip, tmp_path):
    layer = f"encoder.layers.1.self_attn.{new}"
    tensors = pair(
        clip, "text_encoder", layer, f"text_encoder.text_model.encoder.layers.1.self_attn.to_{old}_lora.*.weight"
    )
    save_file(tensors, tmp_path / "lora.safetensors")
    ((found, low),) = read_lora(tmp_path / "lora.safetensors", clip).layers.items()
    assert found == f"text_encoder.{layer}" and (low.down == next(iter(tensors.values()))).all()


OTHERS = {
    "the original's layers": ("unet.input_blocks.1.1.proj_in.lora_*.weight", "names of the original Stable Diffusion"),
    "the same by kohya": ("lora_unet_output_blocks_3_1_proj_in.lora_*.weight", "names of the original Stable Diff"),
    "the original's middle": ("diffusion_model.middle_block.1.proj_in.lora_*.weight", "names of the original Stable"),
    "LoHa": (f"lora_unet_{LAYER.replace('.', '_')}.hada_w1_*", "LoHa, LoKr or another adapter"),
    "LoKr": (f"lycoris_{LAYER.replace('.', '_')}.lokr_w1_*", "LoHa, LoKr or another adapter"),
    "OFT": (f"lora_unet_{LAYER.replace('.', '_')}.oft_blocks_*", "LoHa, LoKr or another adapter"),
    "another model": ("double_blocks.0.img_attn.qkv.lora_*.weight", "1 layers that unet does not have"),
}


@pytest.mark.parametrize("name", OTHERS)
def test_what_is_not_read_is_named_for_what_it_is(name, unet, tmp_path):
    names, message = OTHERS[name]
    save_file(pair(unet, "unet", LAYER, names), tmp_path / "lora.safetensors")
    with pytest.raises(ValueError, match=message) as caught:
        read_lora(tmp_path / "lora.safetensors", unet)
    assert str(tmp_path / "lora.safetensors") in str(caught.value)


@pytest.mark.parametrize("kind", [torch.float8_e4m3fn, torch.float8_e5m2, torch.float16, torch.bfloat16])
def test_small_numbers_are_read_as_what_they_stand_for(kind, unet, tmp_path):
    tensors = {name: value.to(kind) for name, value in pair(unet, "unet", LAYER, f"{LAYER}.lora_*.weight").items()}
    save_file(tensors, tmp_path / "lora.safetensors")
    (low,) = read_lora(tmp_path / "lora.safetensors", unet).layers.values()
    assert low.down.dtype == torch.float32 and (low.down == tensors[f"{LAYER}.lora_A.weight"].float()).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"down": torch.ones(RANK, 8, dtype=torch.int8)}, "expected floating-point numbers, got torch.int8"),
        ({"down": torch.ones(RANK, 8, dtype=torch.complex64)}, "expected floating-point numbers, got torch.complex64"),
        ({"up": torch.ones(8, RANK, dtype=torch.uint8).view(torch.float8_e8m0fnu)}, "got torch.float8_e8m0fnu"),
        ({"up": torch.ones(8, 4, dtype=torch.uint8).view(torch.float4_e2m1fn_x2)}, "got torch.float4_e2m1fn_x2"),
        ({"down": torch.tensor(1.0)}, "expected two matrices"),
        ({"up": torch.ones(8)}, "expected two matrices"),
        ({"alpha": torch.ones(2)}, "expected two matrices .* and one alpha"),
        ({"down": torch.full((RANK, 16), torch.nan)}, "is not finite"),
        (None, "expected the tensors of a LoRA, got none"),
    ],
)
def test_tensors_of_another_kind(change, message, unet, tmp_path):
    down, up = matrices(unet["unet"].get_submodule(LAYER).weight)
    names = {"down": "lora_down.weight", "up": "lora_up.weight", "alpha": "alpha"}
    chosen = {"down": down, "up": up, **change} if change is not None else {}
    path = tmp_path / "lora.safetensors"
    save_file({f"lora_unet_{LAYER.replace('.', '_')}.{names[key]}": value for key, value in chosen.items()}, path)
    with pytest.raises(ValueError, match=message):
        read_lora(path, unet)


# --- PEFT's folders --------------------------------------------------------------------------------


def peft_folder(parts, path, **config):
    path.mkdir()
    tensors = pair(parts, "unet", LAYER, f"base_model.model.{LAYER}.lora_*.weight")
    save_file(tensors, path / "adapter_model.safetensors")
    usual = {"peft_type": "LORA", "r": RANK, "lora_alpha": 6, "init_lora_weights": True, "bias": "none"}
    contents = config.pop("contents", None) or json.dumps(usual | config)
    (path / "adapter_config.json").write_text(contents)
    return path


REFUSED = {
    "pissa": (dict(init_lora_weights="pissa"), "'pissa' changes the base's own weights"),
    "pissa, quickly": (dict(init_lora_weights="pissa_niter_4"), "changes the base's own weights"),
    "olora": (dict(init_lora_weights="olora"), "'olora' changes the base's own weights"),
    "corda": (dict(init_lora_weights="corda"), "changes the base's own weights"),
    "loftq": (dict(init_lora_weights="loftq", loftq_config={"bits": 4}), "changes the base's own weights"),
    "one that is not known yet": (dict(init_lora_weights="next_year"), "changes the base's own weights"),
    "LoKr": (dict(peft_type="LOKR"), "expected a LoRA, got peft_type 'LOKR'"),
    "trained biases": (dict(bias="lora_only"), "expected bias 'none'"),
    "biases of B": (dict(lora_bias=True), "this asks for lora_bias True"),
    "whole modules": (dict(modules_to_save=["conv_out"]), "this asks for modules_to_save"),
    "a key that is not known yet": (dict(use_next_year=True), "this asks for use_next_year True"),
    "an alpha in words": (dict(lora_alpha="x"), "lora_alpha: expected a number, got 'x'"),
    "patterns in a list": (dict(alpha_pattern=["to_q"]), "alpha_pattern: expected names and alphas"),
    "a pattern that is none": (dict(alpha_pattern={"to_q(": 2}), "alpha_pattern: expected names of layers"),
    "a pattern without end": (dict(alpha_pattern={"(a|aa)+" * 9 + "$": 2}), "alpha_pattern: expected names of layers"),
    "stars without end": (dict(alpha_pattern={".*" * 40 + "z": 2}), "alpha_pattern: expected names of layers"),
    "a list": (dict(contents="[1]"), "expected a JSON object, got list"),
    "cut": (dict(contents='{"r": '), "expected a JSON object"),
    "brackets": (dict(contents="[" * 100_000), "expected a JSON object"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_configuration_that_is_not_understood_is_refused(name, unet, tmp_path):
    changes, message = REFUSED[name]
    path, started = peft_folder(unet, tmp_path / "peft", **changes), time.monotonic()
    with pytest.raises(ValueError, match=message) as caught:
        read_lora(path, unet)
    assert str(path) in str(caught.value) and time.monotonic() - started < 60


READ = [dict(), dict(init_lora_weights="gaussian"), dict(init_lora_weights=False), dict(rank_pattern={"(((": 2})]


@pytest.mark.parametrize("changes", READ)
def test_a_configuration_that_changes_nothing_is_read(changes, unet, tmp_path):
    (low,) = read_lora(peft_folder(unet, tmp_path / "peft", **changes), unet).layers.values()
    assert low.scale == 2


@pytest.mark.parametrize("start", ["pissa", "olora", "gaussian"])
def test_folders_that_peft_itself_writes(start, tmp_path):
    """PEFT changes the base's weights for the first two, so that B · A alone is not what was trained."""
    model = torch.nn.Sequential(torch.nn.Linear(8, 8))
    before = model[0].weight.detach().clone()
    adapted = get_peft_model(copy.deepcopy(model), LoraConfig(r=RANK, target_modules=["0"], init_lora_weights=start))
    changed = (adapted.base_model.model[0].base_layer.weight - before).abs().max() > 0.01
    adapted.save_pretrained(tmp_path)
    if not changed:
        assert read_lora(tmp_path, {"unet": model}).layers["unet.0"].rank == RANK
        return
    with pytest.raises(ValueError, match=f"'{start}' changes the base's own weights"):
        read_lora(tmp_path, {"unet": model})


def test_a_header_that_is_no_table(unet, tmp_path):
    tensors = pair(unet, "unet", LAYER, f"{LAYER}.lora_*.weight")
    save_file(tensors, tmp_path / "lora.safetensors", {"lora_adapter_metadata": "[]"})
    with pytest.raises(ValueError, match=r"lora\.safetensors: expected a JSON object, got list"):
        read_lora(tmp_path / "lora.safetensors", unet)


# --- What is no safetensors file -------------------------------------------------------------------


def torch_zip() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        file.writestr("archive/data.pkl", b"")
    return buffer.getvalue()


def header(text: str, data: bytes = b"", length: int | None = None) -> bytes:
    coded = text.encode()
    return struct.pack("<Q", len(coded) if length is None else length) + coded + data


def entry(**changes: object) -> str:
    return json.dumps({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4], **changes}})


WHOLE = save({"a": torch.arange(4000.0)})
NO_TENSORS = {
    "a Git LFS pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "git lfs pull"),
    "an HTML page": (b"<!doctype html><html>404</html>", "an HTML page"),
    "an HTML page with a blank line": (b"\n\n<html>404</html>", "an HTML page"),
    "0 bytes": (b"", "got 0 bytes"),
    "seven bytes": (b"\0" * 7, "7 bytes of something else"),
    "half a download": (WHOLE[: len(WHOLE) // 2], "cannot be read"),
    "half a header": (WHOLE[:20], "cannot be read"),
    "a torch zip": (torch_zip(), "a zip archive"),
    "a pickle": (b"\x80\x04\x95", "a pickle"),
    "zeros": (bytes(1000), "1,000 bytes of something else"),
    "a header of 2^60 bytes": (header("{}", length=2**60), "cannot be read"),
    "a header that is not there": (header("{}", length=99_000_000), "cannot be read"),
    "a header that is no JSON": (header("{nothing"), "cannot be read"),
    "a header without end": (header("{" * 100_000), "cannot be read"),
    "offsets beyond the end": (header(entry(data_offsets=[0, 400]), bytes(4)), "cannot be read"),
    "offsets that overlap": (
        header(
            json.dumps(
                {n: {"dtype": "F32", "shape": [2], "data_offsets": [4 * k, 4 * k + 8]} for k, n in enumerate("ab")}
            ),
            bytes(12),
        ),
        "cannot be read",
    ),
    "negative offsets": (header(entry(data_offsets=[-4, 0]), bytes(4)), "cannot be read"),
    "a shape of 2^62": (header(entry(shape=[2**62, 4]), bytes(4)), "cannot be read"),
    "an unknown type": (header(entry(dtype="F1"), bytes(4)), "cannot be read"),
}


@pytest.mark.parametrize("name", NO_TENSORS)
def test_what_is_no_tensor_file_is_one_sentence(name, unet, tmp_path):
    data, message = NO_TENSORS[name]
    path = tmp_path / "lora.safetensors"
    path.write_bytes(data)
    for call in (lambda: read_lora(path, unet), lambda: load_base(path), lambda: read_tensors(path)):
        with pytest.raises(TensorFileError, match=message) as caught:
            call()
        assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_a_folder_and_a_missing_file(tmp_path):
    (tmp_path / "a.safetensors").mkdir()
    with pytest.raises(TensorFileError, match="got a folder"), open_tensors(tmp_path / "a.safetensors"):
        pass
    for call in (lambda: load_base(tmp_path / "b.safetensors"), lambda: read_tensors(tmp_path / "b.safetensors")):
        with pytest.raises(FileNotFoundError, match=r"b\.safetensors: expected a safetensors file, found none"):
            call()


def test_a_whole_file_is_read(tmp_path):
    (tmp_path / "a.safetensors").write_bytes(WHOLE)
    assert (read_tensors(tmp_path / "a.safetensors")["a"] == torch.arange(4000.0)).all()


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder"])
@pytest.mark.parametrize("name", ["a Git LFS pointer", "half a download"])
def test_a_base_with_a_part_that_is_none_is_refused_before_it_is_loaded(part, name, folder, tmp_path):
    broken = tmp_path / "base"
    broken.mkdir()
    for source in folder.iterdir():
        (broken / source.name).symlink_to(source)
    (broken / part).unlink()
    (broken / part).mkdir()
    for source in (folder / part).iterdir():
        data = NO_TENSORS[name][0] if source.suffix == ".safetensors" else source.read_bytes()
        (broken / part / source.name).write_bytes(data)
    with pytest.raises(TensorFileError, match=rf"{part}/\w+\.safetensors: expected a"):
        load_base(broken)
