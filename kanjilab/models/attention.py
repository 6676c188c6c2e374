"""How sharp a denoiser's attention is.

Attention's logits can grow in training until each query reads one key alone. Then no gradient comes through the
softmax, except where two keys are about to change places: there it is hundreds of times as large as elsewhere, and such
an image decides its whole step.
"""

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from kanjilab.core.rng import counted_rng
from kanjilab.models.diffusion import LatentDiffusion


def attention_spreads(base: LatentDiffusion, captions: Sequence[str], size_px: int = 128) -> dict[str, float]:
    """The spreads of a base's attention where drawing begins: on noise, at the highest noise level.

    Args:
        base: with a U-Net as its denoiser.
        captions: one for each noise.
        size_px: height and width of the images.
    Returns:
        As `logit_spreads`.
    """
    shape = (len(captions), *base.latent_shape(size_px))
    noise = torch.from_numpy(counted_rng(0, "sampling noise").standard_normal(shape, dtype=np.float32))
    text, timesteps = base.encode_text(list(captions)), torch.full((len(captions),), base.timesteps - 1)
    return logit_spreads(base.denoiser, lambda: base.denoise(noise, base.model_timestep(timesteps), text))


@torch.no_grad()
def logit_spreads(denoiser: nn.Module, draw: Callable[[], object]) -> dict[str, float]:
    """How widely the logits q·k/√d of each attention layer are spread over the keys.

    Args:
        denoiser: a U-Net of diffusers.
        draw: runs it.
    Returns:
        By layer, the standard deviation over keys, as a mean over images, heads, and queries of all runs. From about 5
        on, one key has nearly all the weight.
    """
    from diffusers.models.attention_processor import Attention

    queries: dict[str, Tensor] = {}
    spreads: dict[str, list[float]] = {}

    def keep(name: str, module: nn.Module, inputs: object, output: Tensor) -> None:
        queries[name] = output

    def measure(name: str, layer: Attention, module: nn.Module, inputs: object, output: Tensor) -> None:
        q, k = (each.float().unflatten(-1, (layer.heads, -1)).transpose(1, 2) for each in (queries.pop(name), output))
        spreads.setdefault(name, []).append((layer.scale * q @ k.mT).std(-1, correction=0).mean().item())

    hooks = []
    for name, layer in denoiser.named_modules():
        if isinstance(layer, Attention) and layer.to_k is not None:
            hooks.append(layer.to_q.register_forward_hook(partial(keep, name)))
            hooks.append(layer.to_k.register_forward_hook(partial(measure, name, layer)))
    try:
        draw()
    finally:
        for hook in hooks:
            hook.remove()
    return {name: sum(found) / len(found) for name, found in spreads.items()}
