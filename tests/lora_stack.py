"""A LoRA that was read from a file, attached to a model, so that what it draws can be compared."""

import torch
from torch import Tensor, nn

from kanjilab.core.config import Arm
from kanjilab.core.notices import some_of
from kanjilab.export.layer_names import PEFT_PREFIX
from kanjilab.export.lora_formats import Lora, LowRank, _up_like, denoiser_part
from kanjilab.models.adapters import MAGNITUDE, TEXT, peft_magnitude, row_norms, target_layers, text_layers
from kanjilab.models.trainable import Trainable


def stack_of(denoiser: nn.Module, lora: Lora, text_encoder: nn.Module | None = None, seed: int = 0) -> Trainable:
    """A LoRA that was read, as an adapter to sample with or to look at.

    The targets are the narrowest choice that has all its layers; layers that it leaves out get zeros, and smaller
    ranks are filled with zeros. Where one layer is a DoRA's, all get lengths of rows: those that they have anyway.

    Args:
        denoiser: the model that it is for.
        lora: of this denoiser, and perhaps of the text encoder.
        text_encoder: the base's, where it has one that stays loaded.
        seed: of the arm; nothing is drawn with it.
    Raises:
        ValueError: it has layers of another part.
    """
    part, reads = denoiser_part(target_layers(denoiser, "all")), any(name.startswith(TEXT) for name in lora.layers)
    given = {part} | ({TEXT.rstrip(".")} if text_encoder is not None else set())
    if others := [name for name in lora.layers if name.partition(".")[0] not in given]:
        raise ValueError(f"expected layers of {' and '.join(sorted(given))} alone, got {some_of(others)}")
    layers = {name.removeprefix(f"{part}."): low for name, low in lora.layers.items()}
    choices = ("cross-attention", "attention", "attention+feed-forward", "all")
    found = {choice: _layers_of(denoiser, choice, text_encoder if reads else None) for choice in choices}
    targets = next(choice for choice in choices if layers.keys() <= found[choice])
    rank = max(low.rank for low in layers.values())
    dora = any(low.magnitude is not None for low in layers.values())
    arm = Arm(targets=targets, rank=rank, dora=dora, text_encoder="lora" if reads else "frozen", seed=seed)
    stack = Trainable(denoiser, [arm], text_encoder)
    state = {
        name: value if name.endswith(MAGNITUDE) else torch.zeros_like(value) for name, value in stack.state(0).items()
    }
    for name, low in layers.items():
        state[f"{PEFT_PREFIX}{name}.lora_A.weight"][: low.rank] = low.down
        up = state[f"{PEFT_PREFIX}{name}.lora_B.weight"]
        up[:, : low.rank] = _up_like(low.folded())
        if dora:
            lengths = _lengths(low, stack.layers[name])
            state[f"{PEFT_PREFIX}{name}.{MAGNITUDE}"] = peft_magnitude(lengths, low.down.ndim)
    with torch.no_grad():
        stack.load_state(0, state)
    return stack


def _lengths(low: LowRank, layer: nn.Module) -> Tensor:
    """(out,) of a layer's rows as they become: what a DoRA says, or what a LoRA makes of them."""
    assert isinstance(layer.weight, Tensor)
    return row_norms(low.added_to(layer.weight)) if low.magnitude is None else low.magnitude


def _layers_of(denoiser: nn.Module, targets: str, text_encoder: nn.Module | None) -> set[str]:
    try:
        layers = set(target_layers(denoiser, targets))
    except ValueError:  # an MMDiT has no layer for cross-attention alone
        return set()
    return layers if text_encoder is None else layers | {TEXT + name for name in text_layers(text_encoder, targets)}
