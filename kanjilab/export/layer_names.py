"""The names that other tools give to layers, and which layer of a base each of them means."""

import re
from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor, nn

PEFT_PREFIX = "base_model.model."
TEXT_ENCODERS = ("text_encoder", "text_encoder_2", "text_encoder_3")
TEXT_PREFIXES = {
    "text_encoder": ("text_encoder.", PEFT_PREFIX + "text_encoder.", "lora_te_", "lora_te1_"),
    "text_encoder_2": ("text_encoder_2.", "lora_te2_"),
    "text_encoder_3": ("text_encoder_3.", "lora_te3_"),
}

# Before PEFT, diffusers named the layers of a text encoder's attention as a U-Net's.
OLD_TEXT_NAMES = {"q_proj": "to_q", "k_proj": "to_k", "v_proj": "to_v", "out_proj": "to_out"}
ORIGINAL_PREFIX = "diffusion_model."  # before names of the original model, and of tools that follow it
ORIGINAL_UNET = re.compile(r"(^|[._])(input_blocks|middle_block|output_blocks)[._]")

# kohya's names for SD 3 are those of the original model, in which q, k and v are one matrix.
ORIGINAL_BLOCK = {
    "x_block_attn_proj": "attn.to_out.0",
    "context_block_attn_proj": "attn.to_add_out",
    "x_block_attn2_proj": "attn2.to_out.0",
    "x_block_mlp_fc1": "ff.net.0.proj",
    "x_block_mlp_fc2": "ff.net.2",
    "context_block_mlp_fc1": "ff_context.net.0.proj",
    "context_block_mlp_fc2": "ff_context.net.2",
    "x_block_adaLN_modulation_1": "norm1.linear",
    "context_block_adaLN_modulation_1": "norm1_context.linear",
}
ORIGINAL_QKV = {
    "x_block_attn_qkv": ("attn.to_q", "attn.to_k", "attn.to_v"),
    "context_block_attn_qkv": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
    "x_block_attn2_qkv": ("attn2.to_q", "attn2.to_k", "attn2.to_v"),
}
ORIGINAL_ENDS = {
    "context_embedder": "context_embedder",
    "x_embedder_proj": "pos_embed.proj",
    "t_embedder_mlp_0": "time_text_embed.timestep_embedder.linear_1",
    "t_embedder_mlp_2": "time_text_embed.timestep_embedder.linear_2",
    "y_embedder_mlp_0": "time_text_embed.text_embedder.linear_1",
    "y_embedder_mlp_2": "time_text_embed.text_embedder.linear_2",
    "final_layer_linear": "proj_out",
}

ChangeOfRows = Callable[[Tensor], Tensor]
Alias = tuple[str, str, ChangeOfRows | None]  # part, layer, what to do to the rows of B and of DoRA's magnitude


def layer_aliases(parts: Mapping[str, nn.Module]) -> dict[str, list[Alias]]:
    """Every name that a file may give to a layer of these parts."""
    known: dict[str, list[Alias]] = {}
    for part, model in parts.items():
        layers = [name for name, module in model.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)]
        for layer in layers:
            for alias in _names_of(part, layer):
                known[alias] = [(part, layer, None)]
        if part == "transformer":
            known |= _original_names(set(layers))
    return known


def _names_of(part: str, layer: str) -> Iterator[str]:
    flat = layer.replace(".", "_")
    if part in TEXT_ENCODERS:
        for name in (layer, f"text_model.{layer}"):
            if part == "text_encoder":
                yield PEFT_PREFIX + name
            for prefix in TEXT_PREFIXES[part]:
                yield prefix + (name if prefix.endswith(".") else name.replace(".", "_"))
            above, _, last = name.rpartition(".")
            if last in OLD_TEXT_NAMES:
                yield f"{part}.{above}.{OLD_TEXT_NAMES[last]}"
        return
    yield layer
    yield f"{part}.{layer}"
    yield PEFT_PREFIX + layer
    yield f"{part}.{PEFT_PREFIX}{layer}"
    yield ORIGINAL_PREFIX + layer
    yield f"lora_{part}_{flat}"
    yield f"lycoris_{flat}"
    if part == "unet":  # diffusers before PEFT
        old = layer.replace(".to_", ".processor.to_").removesuffix(".0")
        yield old
        yield f"unet.{old}"


def usual_name(name: str) -> str:
    """A tensor's name in a file without what some tools put into it.

    PEFT's own `state_dict` has the adapter's name, most often `default`, before the last part; tools that follow SD 3's
    original have dots where kohya has underscores.
    """
    name = re.sub(r"\.(lora_[AB]|lora_magnitude_vector)\.\w+\.weight$", r".\1.weight", name)
    if not name.startswith(ORIGINAL_PREFIX + "joint_blocks."):
        return name
    layer, _, rest = name.removeprefix(ORIGINAL_PREFIX).partition(".lora_")
    return f"lora_unet_{layer.replace('.', '_')}.lora_{rest}"


def _third(index: int) -> ChangeOfRows:
    return lambda rows: rows.chunk(3)[index]


def _swapped_halves(rows: Tensor) -> Tensor:
    """diffusers has scale before shift where the original has shift before scale."""
    return torch.cat(rows.chunk(2)[::-1])


def _original_names(layers: set[str]) -> dict[str, list[Alias]]:
    """kohya's names for SD 3."""
    blocks = 1 + max(int(name.split(".")[1]) for name in layers if name.startswith("transformer_blocks."))
    names: dict[str, list[tuple[str, ChangeOfRows | None]]] = {
        original: [(ours, None)] for original, ours in ORIGINAL_ENDS.items()
    }
    names["final_layer_adaLN_modulation_1"] = [("norm_out.linear", _swapped_halves)]
    for i in range(blocks):
        here, there = f"transformer_blocks.{i}.", f"joint_blocks_{i}_"
        for original, ours in ORIGINAL_BLOCK.items():
            last_context = i == blocks - 1 and ours == "norm1_context.linear"
            names[there + original] = [(here + ours, _swapped_halves if last_context else None)]
        for original, three in ORIGINAL_QKV.items():
            names[there + original] = [(here + ours, _third(index)) for index, ours in enumerate(three)]
    return {
        f"lora_unet_{original}": [("transformer", ours, change) for ours, change in targets]
        for original, targets in names.items()
        if all(ours in layers for ours, _ in targets)
    }
