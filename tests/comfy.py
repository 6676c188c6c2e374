"""What ComfyUI does with a LoRA file, written from its documented rules alone: nothing of kanjilab is used here.

ComfyUI holds a model by the names of its original release. It makes a table of all keys that it would accept, each
with the weight that it changes, looks each up in the file, and passes over what is left.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
ATTENTION = ("norm", "proj_in", "proj_out")
BLOCK = ("norm1", "norm2", "norm3", "ff.net.0.proj", "ff.net.2")
BLOCK += tuple(f"attn{n}.to_{part}" for n in (1, 2) for part in ("q", "k", "v", "out.0"))


@dataclass(frozen=True)
class Place:
    """Which weight of the original a key changes: all rows or one third of them; whether its halves change places."""

    name: str
    third: int | None = None
    swap: bool = False


def sd1_places(levels: int, layers: int, with_attention: tuple[int, ...]) -> dict[str, Place]:
    """diffusers' layers of a U-Net as SD 1.x has it, and where the original has them.

    Args:
        levels: resolutions. layers: residual blocks of each. with_attention: down levels that have it.
    """
    names: dict[str, str] = {
        "conv_in": "input_blocks.0.0",
        "time_embedding.linear_1": "time_embed.0",
        "time_embedding.linear_2": "time_embed.2",
        "conv_norm_out": "out.0",
        "conv_out": "out.2",
        "mid_block.attentions.0": "middle_block.1",
        "mid_block.resnets.0": "middle_block.0",
        "mid_block.resnets.1": "middle_block.2",
    }
    for level in range(levels):
        above, first = f"down_blocks.{level}", 1 + level * (layers + 1)
        for i in range(layers):
            names[f"{above}.resnets.{i}"] = f"input_blocks.{first + i}.0"
            if level in with_attention:
                names[f"{above}.attentions.{i}"] = f"input_blocks.{first + i}.1"
        if level < levels - 1:
            names[f"{above}.downsamplers.0.conv"] = f"input_blocks.{first + layers}.0.op"
        below, first, attends = f"up_blocks.{level}", level * (layers + 1), levels - 1 - level in with_attention
        for i in range(layers + 1):
            names[f"{below}.resnets.{i}"] = f"output_blocks.{first + i}.0"
            if attends:
                names[f"{below}.attentions.{i}"] = f"output_blocks.{first + i}.1"
        if level < levels - 1:
            names[f"{below}.upsamplers.0.conv"] = f"output_blocks.{first + layers}.{2 if attends else 1}.conv"
    return {ours: Place(theirs) for ours, theirs in _with_insides(names)}


def _with_insides(names: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    for ours, theirs in names.items():
        if ".resnets." in ours:
            yield from ((f"{ours}.{a}", f"{theirs}.{b}") for a, b in RESNET.items())
        elif ".attentions." in ours:
            yield from ((f"{ours}.{name}", f"{theirs}.{name}") for name in ATTENTION)
            inner = "transformer_blocks.0."
            yield from ((f"{ours}.{inner}{name}", f"{theirs}.{inner}{name}") for name in BLOCK)
        else:
            yield ours, theirs


def sd3_places(depth: int) -> dict[str, Place]:
    """diffusers' layers of SD 3's MMDiT, and where the original has them, q, k and v in one matrix."""
    places = {
        "context_embedder": Place("context_embedder"),
        "pos_embed.proj": Place("x_embedder.proj"),
        "proj_out": Place("final_layer.linear"),
        "norm_out.linear": Place("final_layer.adaLN_modulation.1", swap=True),
    }
    for ours, theirs in (("timestep", "t"), ("text", "y")):
        for n, m in ((1, 0), (2, 2)):
            places[f"time_text_embed.{ours}_embedder.linear_{n}"] = Place(f"{theirs}_embedder.mlp.{m}")
    for i in range(depth):
        ours, image, text = f"transformer_blocks.{i}", f"joint_blocks.{i}.x_block", f"joint_blocks.{i}.context_block"
        for third, letter in enumerate("qkv"):
            places[f"{ours}.attn.to_{letter}"] = Place(f"{image}.attn.qkv", third)
            places[f"{ours}.attn.add_{letter}_proj"] = Place(f"{text}.attn.qkv", third)
        for stream, a, b, mlp in (
            (image, "to_out.0", "norm1", "ff"),
            (text, "to_add_out", "norm1_context", "ff_context"),
        ):
            places[f"{ours}.attn.{a}"] = Place(f"{stream}.attn.proj")
            # The last block ends with its text stream unused: diffusers has another layer there, halves exchanged.
            swap = stream == text and i == depth - 1
            places[f"{ours}.{b}.linear"] = Place(f"{stream}.adaLN_modulation.1", swap=swap)
            places[f"{ours}.{mlp}.net.0.proj"] = Place(f"{stream}.mlp.fc1")
            places[f"{ours}.{mlp}.net.2"] = Place(f"{stream}.mlp.fc2")
        for name, stream, part in (("norm_", image, "attn"), ("norm_added_", text, "attn")):
            for letter in "qk":
                places[f"{ours}.{part}.{name}{letter}"] = Place(f"{stream}.{part}.ln_{letter}")
    return places


def accepted_keys(places: Mapping[str, Place], family: str) -> dict[str, Place]:
    """Every key that ComfyUI looks for in a file, less the ending, and what it changes.

    Args:
        family: `sd1` or `sd3`.
    """
    keys = {}
    for place in places.values():  # any model, by its original names
        keys["lora_unet_" + place.name.replace(".", "_")] = Place(place.name)
        keys["diffusion_model." + place.name] = Place(place.name)
    for layer, place in places.items():
        flat = layer.replace(".", "_")
        keys["lycoris_" + flat] = place
        if family == "sd1":
            keys["lora_unet_" + flat] = place
            old = layer.replace(".to_", ".processor.to_").removesuffix(".0" if layer.endswith("to_out.0") else "\0")
            keys[old] = keys["unet." + old] = place
        else:
            for prefix in ("transformer.", "base_model.model."):
                keys[prefix + layer] = place
            keys["lora_transformer_" + flat] = place
    return keys


ENDINGS = ((".lora_up.weight", ".lora_down.weight"), (".lora_B.weight", ".lora_A.weight"))
ENDINGS += (("_lora.up.weight", "_lora.down.weight"), (".lora.up.weight", ".lora.down.weight"))


def updates(
    lora: Mapping[str, Tensor], keys: Mapping[str, Place]
) -> tuple[list[tuple[Place, Tensor, Tensor, float, Tensor | None]], set]:
    """What a file changes, as (place, up, down, scale, dora_scale); and the keys that nobody asked for."""
    found, used = [], set()
    for key, place in keys.items():
        for up, down in ENDINGS:
            if key + up in lora:
                used |= {key + up, key + down} | ({f"{key}.alpha", f"{key}.dora_scale"} & lora.keys())
                rank = lora[key + down].shape[0]
                alpha = lora.get(f"{key}.alpha")
                scale = 1.0 if alpha is None else float(alpha) / rank
                found.append((place, lora[key + up], lora[key + down], scale, lora.get(f"{key}.dora_scale")))
                break
    return found, lora.keys() - used


def rows_of(weight: Tensor, place: Place) -> Tensor:
    """The part of a weight that a place means."""
    if place.third is None:
        return weight
    third = weight.shape[0] // 3
    return weight[place.third * third : (place.third + 1) * third]


def patch(
    state: dict[str, Tensor], lora: Mapping[str, Tensor], keys: Mapping[str, Place], released: bool = False
) -> set[str]:
    """Adds a LoRA to a model by its original names, in place; the keys that were passed over.

    Args:
        released: a DoRA as ComfyUI applied it up to August 2026 at least, not as its pull request 15458 does.
    """
    found, left = updates(lora, keys)
    for place, up, down, scale, dora_scale in found:
        weight = rows_of(state[place.name + ".weight"], place)
        delta = (scale * up.flatten(1) @ down.flatten(1)).reshape(weight.shape)
        changed = weight + (torch.cat(delta.chunk(2)[::-1]) if place.swap else delta)
        if dora_scale is not None:
            changed *= dora_scale / row_norms(weight if released else changed)
        weight[:] = changed
    return left


def row_norms(weight: Tensor) -> Tensor:
    """(out, 1) or (out, 1, 1, 1) length of each output's weights."""
    return weight.reshape(weight.shape[0], -1).norm(dim=1).reshape(-1, *[1] * (weight.dim() - 1))


def original_state(state: Mapping[str, Tensor], places: Mapping[str, Place]) -> dict[str, Tensor]:
    """A diffusers model's weights by the original's names."""
    original: dict[str, Tensor] = {}
    thirds: dict[str, list[Tensor]] = {}
    for name, value in state.items():
        if name == "pos_embed.pos_embed":
            original["pos_embed"] = value.clone()
            continue
        layer, _, kind = name.rpartition(".")
        place = places[layer]
        if place.third is not None:
            thirds.setdefault(f"{place.name}.{kind}", [value] * 3)[place.third] = value
        else:
            original[f"{place.name}.{kind}"] = torch.cat(value.chunk(2)[::-1]) if place.swap else value.clone()
    return original | {name: torch.cat(parts) for name, parts in thirds.items()}
