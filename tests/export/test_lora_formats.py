"""LoRA files: every key is claimed by ComfyUI's rules and changes what it should; every form comes back as it went."""

import copy
import json
from dataclasses import replace

import pytest
import torch
from comfy import accepted_keys, original_state, patch, row_norms, rows_of, sd1_places, sd3_places, updates
from diffusers import SD3Transformer2DModel, StableDiffusion3Pipeline, StableDiffusionPipeline, UNet2DConditionModel
from diffusers.loaders.single_file_utils import (
    convert_ldm_unet_checkpoint,
    convert_sd3_transformer_checkpoint_to_diffusers,
)
from peft import LoraConfig, PeftModel, get_peft_model_state_dict
from safetensors.torch import load_file, save_file
from torch import nn
from torch.testing import assert_close
from transformers import CLIPTextConfig, CLIPTextModel

from kanjilab.export.lora_formats import (
    Lora,
    LowRank,
    comfyui_tensors,
    denoiser_part,
    diffusers_tensors,
    kohya_tensors,
    read_lora,
)
from kanjilab.export.lora_formats import _is_exchanged as is_exchanged
from kanjilab.models.adapters import target_layers
from tests.lora_stack import stack_of

SD14 = dict(
    sample_size=64,
    block_out_channels=(320, 640, 1280, 1280),
    layers_per_block=2,
    down_block_types=("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
    up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
    cross_attention_dim=768,
    attention_head_dim=8,
)
SD35_LARGE = dict(
    sample_size=128,
    patch_size=2,
    in_channels=16,
    out_channels=16,
    num_layers=38,
    num_attention_heads=38,
    attention_head_dim=64,
    joint_attention_dim=4096,
    caption_projection_dim=2432,
    pooled_projection_dim=2048,
    pos_embed_max_size=192,
    qk_norm="rms_norm",
)
# Of the same topology: four levels, two layers; the width of an MMDiT is 64 times its depth.
SMALL_SD1 = SD14 | dict(
    sample_size=8, block_out_channels=(8, 8, 16, 16), cross_attention_dim=12, attention_head_dim=2, norm_num_groups=4
)
SMALL_SD3 = SD35_LARGE | dict(
    sample_size=8,
    num_layers=2,
    num_attention_heads=2,
    joint_attention_dim=20,
    caption_projection_dim=128,
    pooled_projection_dim=12,
    pos_embed_max_size=8,
)
PLACES = {
    "unet": sd1_places(4, 2, (0, 1, 2)),
    "transformer": sd3_places(2),
}


def small_model(part: str) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        if part == "unet":
            return UNet2DConditionModel(**SMALL_SD1).requires_grad_(False)
        return SD3Transformer2DModel(**SMALL_SD3).requires_grad_(False)


@pytest.fixture(scope="module", params=["unet", "transformer"])
def model(request) -> nn.Module:
    return small_model(request.param)


def random_lora(model: nn.Module, targets: str, rank: int = 3, scale: float = 0.5, dora: bool = False) -> Lora:
    generator = torch.Generator().manual_seed(1)
    layers = target_layers(model, targets)
    part = denoiser_part(layers)

    def draw(*shape):
        return torch.randn(*shape, generator=generator)

    pairs = {
        f"{part}.{name}": LowRank(draw(rank, *layer.weight.shape[1:]), draw(layer.weight.shape[0], rank), scale)
        for name, layer in layers.items()
    }
    if dora:
        pairs = {name: replace(low, magnitude=draw(len(low.up)).abs()) for name, low in pairs.items()}
    return Lora(pairs, {})


def merged_state(model: nn.Module, lora: Lora) -> dict[str, torch.Tensor]:
    """The model's weights with scale · B · A added, layer by layer, and of a DoRA every row of its own length."""
    state = {name: value.clone() for name, value in model.state_dict().items()}
    for name, low in lora.layers.items():
        weight = state[name.partition(".")[2] + ".weight"]
        weight += (low.scale * low.up @ low.down.flatten(1)).view(weight.shape)
        if low.magnitude is not None:
            for row, length in zip(weight, low.magnitude, strict=True):
                row *= length / row.norm()
    return state


def back_to_diffusers(part: str, original: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """By diffusers' own conversion, which is what shows that the places are right."""
    if part == "unet":
        prefixed = {f"model.diffusion_model.{name}": value for name, value in original.items()}
        return convert_ldm_unet_checkpoint(prefixed, SMALL_SD1)
    return convert_sd3_transformer_checkpoint_to_diffusers(dict(original))


def assert_same_states(found, expected):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert_close(found[name], value, atol=1e-5, rtol=1e-5, msg=lambda text, name=name: f"{name}: {text}")


# ---------------------------------------------------------------------------------- ComfyUI's keys


def test_the_places_are_those_of_the_original(model):
    """The reference of the tests below is itself right: diffusers' conversion undoes it."""
    part = denoiser_part(dict(model.named_modules()))
    state = model.state_dict()
    assert_same_states(back_to_diffusers(part, original_state(state, PLACES[part])), state)


@pytest.mark.parametrize("dora", [False, True], ids=["LoRA", "DoRA"])
@pytest.mark.parametrize("targets", ["attention", "attention+feed-forward", "all"])
def test_comfyui_changes_exactly_what_was_trained(model, targets, dora):
    lora = random_lora(model, targets, dora=dora)
    part = denoiser_part(dict(model.named_modules()))
    keys = accepted_keys(PLACES[part], "sd1" if part == "unet" else "sd3")
    original = original_state(model.state_dict(), PLACES[part])
    if dora and (part, targets) == ("transformer", "all"):
        with pytest.raises(ValueError, match="rows of transformer.*norm.* each other's lengths: write the form 'diff"):
            comfyui_tensors(lora)
        return
    assert patch(original, comfyui_tensors(lora), keys) == set()
    found = back_to_diffusers(part, original)
    assert_same_states(found, merged_state(model, lora))
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, found[name])}
    assert changed == {name.partition(".")[2] + ".weight" for name in lora.layers}


def test_comfyui_as_released_makes_a_doras_rows_as_much_too_long_as_they_have_grown():
    model = small_model("unet")
    lora = random_lora(model, "all", dora=True)
    original = original_state(model.state_dict(), PLACES["unet"])
    assert patch(original, comfyui_tensors(lora), accepted_keys(PLACES["unet"], "sd1"), released=True) == set()
    found, expected = back_to_diffusers("unet", original), merged_state(model, lora)
    for name, low in lora.layers.items():
        layer = name.partition(".")[2]
        weight = model.get_submodule(layer).weight
        grown = row_norms(replace(low, magnitude=None).added_to(weight)) / row_norms(weight)
        assert (grown - 1).abs().max() > 0.1
        assert_close(found[f"{layer}.weight"], grown * expected[f"{layer}.weight"], atol=1e-5, rtol=1e-4)


def test_the_exchanged_layers_are_those_of_the_original():
    layers = random_lora(small_model("transformer"), "all").layers
    exchanged = {name.partition(".")[2] for name, low in layers.items() if is_exchanged(name, low)}
    assert exchanged == {name for name, place in PLACES["transformer"].items() if place.swap}


def test_comfyui_passes_over_what_diffusers_writes_for_sd1():
    """Why there is a form of its own."""
    tensors = diffusers_tensors(random_lora(small_model("unet"), "attention"))
    assert updates(tensors, accepted_keys(PLACES["unet"], "sd1")) == ([], set(tensors))


@pytest.mark.parametrize(
    ("family", "targets", "layers"),
    [
        ("sd1", "cross-attention", 64),
        ("sd1", "attention", 128),
        ("sd1", "all", 282),
        ("sd3", "attention", 303),
        ("sd3", "all", 303 + 38 * 6 - 2 + 8),
    ],
)
def test_every_key_of_a_full_size_lora_is_claimed(family, targets, layers):
    with torch.device("meta"):
        full = UNet2DConditionModel(**SD14) if family == "sd1" else SD3Transformer2DModel(**SD35_LARGE)
        places = sd1_places(4, 2, (0, 1, 2)) if family == "sd1" else sd3_places(38)
        rank = 64 if family == "sd1" else 768
        part = "unet" if family == "sd1" else "transformer"
        wanted = target_layers(full, targets)
        pairs = {
            f"{part}.{name}": LowRank(
                torch.empty(rank, *layer.weight.shape[1:]), torch.empty(layer.weight.shape[0], rank)
            )
            for name, layer in wanted.items()
        }
    assert len(wanted) == layers
    weights = original_state(full.state_dict(), places)
    with torch.device("cpu"):
        found, left = updates(comfyui_tensors(Lora(pairs, {})), accepted_keys(places, family))
    assert (left, len(found)) == (set(), layers)
    assert len({(place.name, place.third) for place, *_ in found}) == layers
    for place, up, down, scale, _ in found:
        weight = rows_of(weights[place.name + ".weight"], place)
        assert (scale, up.shape[0], up.flatten(1).shape[1]) == (1, weight.shape[0], rank)
        assert (down.shape[0], down[0].numel(), down.ndim) == (rank, weight[0].numel(), weight.ndim)
    if (family, targets) == ("sd3", "attention"):
        assert sum(up.numel() + down.numel() for _, up, down, *_ in found) == 303 * 2 * 2432 * 768  # 1.13 billion


# ---------------------------------------------------------------------------------- back from every form


def assert_same_updates(found: Lora, expected: Lora):
    assert found.layers.keys() == expected.layers.keys()
    for name, low in expected.layers.items():
        assert_close(
            found.layers[name].scale * found.layers[name].up @ found.layers[name].down.flatten(1),
            low.scale * low.up @ low.down.flatten(1),
            msg=lambda text, name=name: f"{name}: {text}",
        )
        if low.magnitude is None:
            assert found.layers[name].magnitude is None
        else:
            assert torch.equal(found.layers[name].magnitude, low.magnitude), name


def renamed(lora: Lora, name_of, up=".lora_up.weight", down=".lora_down.weight", alpha=True):
    """A file by other names, with alpha as its trainer would write it."""
    tensors = {}
    for name, low in lora.layers.items():
        key = name_of(name.partition(".")[2])
        tensors |= {key + down: low.down.clone(), key + up: low.up.clone()}
        if low.down.ndim == 4:
            tensors[key + up] = low.up[:, :, None, None].clone()
        if alpha:
            tensors[f"{key}.alpha"] = torch.tensor(low.scale * low.rank)
    return tensors


def written(path, tensors, metadata=None):
    save_file(tensors, path, metadata)
    return path


@pytest.mark.parametrize(
    ("targets", "dora"), [("attention", False), ("all", False), ("attention", True), ("all", True)]
)
def test_round_trip_through_the_forms_that_are_written(model, targets, dora, tmp_path):
    lora = random_lora(model, targets, dora=dora)
    part = denoiser_part(dict(model.named_modules()))
    forms = [diffusers_tensors] + [kohya_tensors] * (part == "unet")
    forms += [comfyui_tensors] * (part == "unet" or not dora or targets != "all")
    for number, form in enumerate(forms):
        path = written(tmp_path / f"{number}.safetensors", form(lora), {"base": "sd14"})
        found = read_lora(path, {part: model})
        assert_same_updates(found, lora)
        assert found.metadata["base"] == "sd14"
        again = form(found)
        assert all(torch.equal(value, again[name]) for name, value in form(lora).items())


def test_the_forms_of_other_trainers_are_read(model, tmp_path):
    lora = random_lora(model, "attention", scale=0.25)
    part = denoiser_part(dict(model.named_modules()))
    forms = {
        "LyCORIS": renamed(lora, lambda name: "lycoris_" + name.replace(".", "_")),
        "bare": renamed(lora, str),
        "PEFT's names with alpha": renamed(
            lora, lambda name: f"base_model.model.{name}", ".lora_B.weight", ".lora_A.weight"
        ),
    }
    if part == "unet":
        forms["kohya"] = renamed(lora, lambda name: "lora_unet_" + name.replace(".", "_"))
        forms["old diffusers"] = renamed(
            lora,
            lambda name: "unet." + name.replace(".to_", ".processor.to_").replace("to_out.0", "to_out"),
            "_lora.up.weight",
            "_lora.down.weight",
        )
    else:
        forms["OneTrainer"] = renamed(lora, lambda name: "lora_transformer_" + name.replace(".", "_"))
    for name, tensors in forms.items():
        assert_same_updates(read_lora(written(tmp_path / f"{name}.safetensors", tensors), {part: model}), lora)


@pytest.mark.parametrize("flat", [False, True], ids=["as LyCORIS has them", "as diffusers converts them"])
def test_lengths_of_rows_are_read_in_every_shape(tmp_path, flat):
    model = small_model("unet")
    lora = random_lora(model, "all", dora=True)
    tensors = renamed(lora, lambda name: "lora_unet_" + name.replace(".", "_"))
    for name, low in lora.layers.items():
        key = "lora_unet_" + name.partition(".")[2].replace(".", "_")
        tensors[f"{key}.dora_scale"] = low.magnitude.reshape(-1, *[1] * (0 if flat else low.down.ndim - 1)).clone()
    assert_same_updates(read_lora(written(tmp_path / "x.safetensors", tensors), {"unet": model}), lora)


def test_a_dora_without_its_lengths_is_refused(tmp_path):
    model = small_model("unet")
    peft_model(model, use_dora=True).save_pretrained(tmp_path)
    file = tmp_path / "adapter_model.safetensors"
    save_file({name: value for name, value in load_file(file).items() if "magnitude" not in name}, file)
    with pytest.raises(ValueError, match="is of a DoRA and has no lora_magnitude_vector"):
        read_lora(tmp_path, {"unet": model})


def test_without_an_alpha_the_scale_is_one(tmp_path):
    model = small_model("unet")
    lora = random_lora(model, "attention", scale=1)
    tensors = renamed(lora, lambda name: "lora_unet_" + name.replace(".", "_"), alpha=False)
    assert_same_updates(read_lora(written(tmp_path / "x.safetensors", tensors), {"unet": model}), lora)


def peft_model(model: nn.Module, **settings) -> PeftModel:
    """PEFT's own adapter, with random B."""
    config = LoraConfig(r=4, target_modules=["to_q", "to_v", "add_k_proj"], **settings)
    adapted = PeftModel(copy.deepcopy(model), config)
    generator = torch.Generator().manual_seed(2)
    for name, value in adapted.named_parameters():
        if "lora_B" in name or "magnitude" in name:
            value.data = torch.randn(value.shape, generator=generator)
    return adapted


PEFT_SETTINGS = {
    "alpha": dict(lora_alpha=2),
    "rslora": dict(lora_alpha=3, use_rslora=True),
    "patterns": dict(lora_alpha=2, rank_pattern={r"attn1?\.to_q": 6}, alpha_pattern={"to_v": 5}),
    "DoRA": dict(lora_alpha=2, use_dora=True),
}


@pytest.mark.parametrize("settings", PEFT_SETTINGS.values(), ids=list(PEFT_SETTINGS))
def test_pefts_own_folder_is_read_as_peft_merges_it(model, settings, tmp_path):
    adapted = peft_model(model, **settings)
    adapted.save_pretrained(tmp_path)
    part = denoiser_part(dict(model.named_modules()))
    found = read_lora(tmp_path, {part: model})
    assert_same_states(merged_state(model, found), adapted.merge_and_unload().state_dict())


@pytest.mark.parametrize("settings", PEFT_SETTINGS.values(), ids=list(PEFT_SETTINGS))
def test_what_diffusers_writes_is_read_with_the_alpha_of_its_header(model, settings, tmp_path):
    """So does SimpleTuner, which saves through diffusers."""
    part = denoiser_part(dict(model.named_modules()))
    adapted = peft_model(model, **settings)
    state = get_peft_model_state_dict(adapted)
    state = {name.removeprefix("base_model.model."): value for name, value in state.items()}
    config = {k: v for k, v in adapted.peft_config["default"].to_dict().items() if v is not None}
    config |= {k: sorted(v) for k, v in config.items() if isinstance(v, set)}
    config = {k: v for k, v in config.items() if isinstance(v, (int, float, str, dict, list))}
    pipeline = StableDiffusionPipeline if part == "unet" else StableDiffusion3Pipeline
    pipeline.save_lora_weights(tmp_path, **{f"{part}_lora_layers": state, f"{part}_lora_adapter_metadata": config})
    found = read_lora(tmp_path / "pytorch_lora_weights.safetensors", {part: model})
    assert json.loads(found.metadata["lora_adapter_metadata"])[f"{part}.lora_alpha"] == settings["lora_alpha"]
    assert_same_states(merged_state(model, found), adapted.merge_and_unload().state_dict())


@pytest.mark.parametrize("dora", [False, True], ids=["LoRA", "DoRA"])
def test_kohyas_sd3_is_read_as_comfyui_applies_it(tmp_path, dora):
    """q, k and v in one matrix, halves exchanged in the last layers: against the original's weights."""
    model, places, generator = small_model("transformer"), PLACES["transformer"], torch.Generator().manual_seed(3)
    original = original_state(model.state_dict(), places)
    tensors = {}
    for place in {place.name: place for place in places.values() if "ln_" not in place.name}.values():
        if (weight := original.get(place.name + ".weight")) is None:  # the last block's text stream ends early
            continue
        key = "lora_unet_" + place.name.replace(".", "_")
        ends = [1, 1] if weight.ndim == 4 else []
        tensors[f"{key}.lora_down.weight"] = torch.randn(2, *weight.shape[1:], generator=generator)
        tensors[f"{key}.lora_up.weight"] = torch.randn(weight.shape[0], 2, *ends, generator=generator)
        tensors[f"{key}.alpha"] = torch.tensor(0.5)
        if dora:
            lengths = torch.rand(weight.shape[0], generator=generator)
            tensors[f"{key}.dora_scale"] = lengths.reshape(-1, *[1] * (weight.ndim - 1))
    found = read_lora(written(tmp_path / "kohya.safetensors", tensors), {"transformer": model})
    assert len(found.layers) == len([name for name in target_layers(model, "all")])
    assert patch(original, tensors, accepted_keys(places, "sd3")) == set()
    expected = back_to_diffusers("transformer", original)
    assert_same_states(merged_state(model, found), expected)


# ---------------------------------------------------------------------------------- text encoders


@pytest.fixture(scope="module")
def text_encoder() -> CLIPTextModel:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = CLIPTextConfig(
            vocab_size=20, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2
        )
        return CLIPTextModel(config).requires_grad_(False)


def text_lora(text_encoder, unet) -> Lora:
    generator, layers = torch.Generator().manual_seed(4), dict(random_lora(unet, "attention").layers)
    for name, module in text_encoder.named_modules():
        if name.endswith(("q_proj", "fc1")):
            down = torch.randn(2, module.in_features, generator=generator)
            layers[f"text_encoder.{name}"] = LowRank(down, torch.randn(module.out_features, 2, generator=generator))
    return Lora(layers, {})


def test_text_encoder_layers_have_the_names_that_comfyui_wants(text_encoder, tmp_path):
    unet = small_model("unet")
    lora = text_lora(text_encoder, unet)
    tensors = comfyui_tensors(lora)
    clip = {name for name in tensors if name.startswith("lora_te_")}
    stems = {
        f"lora_te_text_model_encoder_layers_{n}_{part}" for n in (0, 1) for part in ("self_attn_q_proj", "mlp_fc1")
    }
    assert {name.partition(".")[0] for name in clip} == stems
    assert {name for name in diffusers_tensors(lora) if name.startswith("text_encoder.") and "lora_A" in name} == {
        f"text_encoder.text_model.encoder.layers.{n}.{part}.lora_A.weight"
        for n in (0, 1)
        for part in ("self_attn.q_proj", "mlp.fc1")
    }
    for number, form in enumerate((kohya_tensors, diffusers_tensors)):
        path = written(tmp_path / f"{number}.safetensors", form(lora))
        assert_same_updates(read_lora(path, {"unet": unet, "text_encoder": text_encoder}), lora)
        with pytest.raises(
            ValueError, match=r"4 layers of the text encoder \(.*q_proj.*\): give it as parts\['text_enc"
        ):
            read_lora(path, {"unet": unet})


# ---------------------------------------------------------------------------------- what is refused


def test_unknown_keys_are_named(tmp_path):
    unet = small_model("unet")
    good = diffusers_tensors(random_lora(unet, "attention"))

    def refused(extra, match, less=()):
        tensors = {name: value for name, value in (good | extra).items() if name not in less}
        with pytest.raises(ValueError, match=match):
            read_lora(written(tmp_path / "x.safetensors", tensors), {"unet": unet})

    first = next(iter(good))
    nowhere = {f"unet.nowhere.lora_{letter}.weight": torch.ones(2, 2) for letter in "AB"}
    refused(nowhere, "1 layers that unet does not have: unet.nowhere$")
    refused({"unet.mid_block.hada_w1_a": torch.ones(2, 2)}, "1 keys of a LoHa, .*unet.mid_block.hada_w1_a")
    refused({"lora_unet_x.lora_mid.weight": torch.ones(2, 2)}, "none of a LoRA: lora_unet_x.lora_mid.weight")
    refused({}, f"{first.removesuffix('.lora_A.weight')} has no down matrix", less=[first])
    refused({first: good[first] * torch.nan}, "is not finite")
    refused({first: torch.ones(3, 5)}, r"has A \(3, 5\) and B .* which do not fit the weight \(.*another base")
    lengths = first.replace("lora_A.weight", "lora_magnitude_vector")
    refused({lengths: torch.ones(2, 2)}, r"lengths of shape \(2, 2\), expected one for each of 8 outputs")
    by_input = {first.replace("lora_A.weight", "dora_scale"): torch.ones(1, 8)}  # as LyCORIS once had it
    refused(by_input, r"lengths of shape \(1, 8\), .* decomposes by input is not read: merge it first")
    refused({lengths: torch.full((8,), torch.nan)}, "is not finite")
    joint = {"lora_unet_joint_blocks_0_x_block_mlp_fc1.lora_down.weight": torch.ones(2, 2)}
    joint |= {"lora_unet_joint_blocks_0_x_block_mlp_fc1.lora_up.weight": torch.ones(2, 2)}
    refused(joint, "1 layers that unet does not have: lora_unet_joint_blocks_0")


def test_what_is_no_file_of_tensors_is_refused(tmp_path):
    unet = small_model("unet")
    with pytest.raises(ValueError, match="expected safetensors; a pickle can run anything"):
        read_lora(tmp_path / "lora.ckpt", {"unet": unet})
    with pytest.raises(FileNotFoundError, match=r"expected one .safetensors file, got \[\]"):
        read_lora(tmp_path, {"unet": unet})
    with pytest.raises(ValueError, match="kohya's names for SD 3"):
        kohya_tensors(
            Lora({"transformer.transformer_blocks.0.attn.to_q": LowRank(torch.ones(1, 2), torch.ones(2, 1))}, {})
        )


# ---------------------------------------------------------------------------------- use


@pytest.mark.parametrize("dora", [False, True], ids=["LoRA", "DoRA"])
def test_a_lora_that_was_read_draws_as_a_stack(model, dora):
    """Of three layers and unequal ranks, one no DoRA: what the stack leaves out or fills up changes nothing."""
    lora = random_lora(model, "attention", dora=dora)
    chosen = dict(list(lora.layers.items())[:3])
    name = list(chosen)[1]
    chosen[name] = LowRank(chosen[name].down[:1], chosen[name].up[:, :1], 2.0)
    small = Lora(chosen, {})
    found = stack_of(model, small).state(0)
    expected = merged_state(model, small)
    for layer in target_layers(model, "attention"):
        down, up = found[f"base_model.model.{layer}.lora_A.weight"], found[f"base_model.model.{layer}.lora_B.weight"]
        changed = model.get_submodule(layer).weight + up @ down
        if dora:
            changed *= found[f"base_model.model.{layer}.lora_magnitude_vector"][:, None] / row_norms(changed)
        assert_close(changed, expected[f"{layer}.weight"])
    with pytest.raises(ValueError, match=r"expected layers of (unet|transformer) alone, got text_encoder.x"):
        stack_of(model, Lora({"text_encoder.x": chosen[name]}, {}))
