"""Stage 1b: the Japanese token states make a denoiser's cross-attention say what MiniLM's make it say.

Pooled states alone leave open what the denoiser reads: it attends to all positions, those after the text too.
Source: the loss of IAP, Hu et al. 2023, arXiv:2305.11540.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from kanjilab.core.rng import counted_rng
from kanjilab.models.cpu_layers import autocast_bf16
from kanjilab.models.diffusion import LatentDiffusion
from kanjilab.models.minilm import TOKENS
from kanjilab.models.text_encoders import OneEncoder
from kanjilab.training.distillation import Distillation, DistilRecipe, WordPairs, distil_loss, padded, pooled

QUERIES = 48  # kept of each layer


@dataclass(frozen=True)
class AttentionProbe:
    """One cross-attention layer with some queries that it has asked.

    Attributes:
        layer: diffusers' attention.
        queries: (Q, D), what came into the layer beside the token states.
    """

    layer: Any
    queries: Tensor

    def outputs(self, states: Tensor) -> Tensor:
        """(B, Q, D) what the layer answers to its queries.

        Args:
            states: (B, L, D) token states.
        """
        layer = self.layer

        def split(values: Tensor) -> Tensor:
            return values.unflatten(-1, (layer.heads, -1)).transpose(-3, -2)

        query, keys, values = split(layer.to_q(self.queries)), split(layer.to_k(states)), split(layer.to_v(states))
        # Not torch's fused attention, which takes several times as long backwards on a processor.
        found = (query @ keys.transpose(-1, -2) * layer.scale).softmax(dim=-1) @ values  # (B, heads, Q, d)
        return layer.to_out[0](found.transpose(1, 2).flatten(2))


@torch.no_grad()
def attention_probes(
    base: LatentDiffusion, latents: Tensor, captions: Sequence[str], seed: int = 0, queries: int = QUERIES
) -> list[AttentionProbe]:
    """Every cross-attention layer of a U-Net, with queries that it asks while it denoises.

    Args:
        base: in fp32.
        latents: (N, C, h, w) of images, in unit scale.
        captions: N, of these.
        seed: of noise levels, noise, and the choice of queries.
        queries: kept of each layer.
    """
    rng = counted_rng(seed, "distillation", 0)
    timesteps = torch.from_numpy(rng.integers(base.timesteps, size=len(latents)))
    noise = torch.from_numpy(rng.standard_normal(latents.shape, dtype=np.float32))
    noisy, _ = base.add_noise(latents, noise, timesteps)
    seen: dict[Any, Tensor] = {}
    layers = [module for name, module in base.denoiser.named_modules() if name.endswith("attn2")]
    with _recording(layers, seen):
        base.denoise(noisy, base.model_timestep(timesteps), base.encode_text(captions))
    probes = []
    for layer in layers:
        asked = seen[layer].flatten(0, 1)
        probes.append(AttentionProbe(layer, asked[rng.choice(len(asked), min(queries, len(asked)), replace=False)]))
    return probes


@contextmanager
def _recording(layers: Sequence[nn.Module], seen: dict[Any, Tensor]) -> Any:
    def keep(layer: nn.Module, given: Any) -> None:
        seen[layer] = given[0]

    handles = [layer.register_forward_pre_hook(keep) for layer in layers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def attention_gap(probes: Sequence[AttentionProbe], states: Tensor, wanted: Tensor, empty: Tensor) -> Tensor:
    """How far the answers are from the wanted ones, a mean over layers; 1 for those of the empty caption. A scalar.

    Args:
        probes: of `attention_probes`.
        states, wanted: (B, L, D) token states.
        empty: (1, L, D), those of the empty caption.
    """
    gaps = []
    for probe in probes:
        with torch.no_grad():
            target, nothing = probe.outputs(wanted), probe.outputs(empty)
            scale = (target - nothing).square().mean()
        gaps.append((probe.outputs(states) - target).square().mean() / scale)
    return torch.stack(gaps).mean()


class AttentionMatching(Distillation):
    """`Distillation` on whole token states: the gap of the answers is added to the loss of the pooled states.

    Args of the constructor:
        recipe, pieces, initial: as for `Distillation`; `initial` comes from stage 1a.
        teacher: the text encoder that is matched.
        probes: of the denoisers that are to read the states.
        weight: of the gap.
    """

    def __init__(
        self,
        recipe: DistilRecipe,
        pieces: Any,
        initial: dict[str, Tensor] | None,
        teacher: OneEncoder,
        probes: Sequence[AttentionProbe],
        weight: float = 10.0,
    ):
        """Nothing is trained yet."""
        super().__init__(recipe, pieces, initial)
        self.teacher, self.probes, self.weight = teacher, probes, weight
        with torch.no_grad():
            self.empty = teacher.encode([""])

    def advance(self, pairs: WordPairs, targets: np.ndarray, cumulative: np.ndarray) -> float:
        """One step; returns the loss.

        Args:
            pairs, targets, cumulative: as for `Distillation.advance`.
        """
        recipe = self.recipe
        rng = counted_rng(recipe.seed, "distillation", self.step)
        rows = np.searchsorted(cumulative, rng.random(recipe.batch) * cumulative[-1])
        ids, mask = padded([self.pieces.encode(pairs.texts[row]) for row in rows], width=TOKENS)
        with autocast_bf16():
            states = self.encoder(ids, attention_mask=mask).last_hidden_state.float()
            with torch.no_grad():
                wanted = self.teacher.encode([pairs.english[row] for row in pairs.target[rows]])
            gap = attention_gap(self.probes, states, wanted, self.empty)
        teacher = torch.from_numpy(targets[pairs.target[rows]].astype(np.float32))
        loss = distil_loss(pooled(states, mask), teacher, recipe.temperature, recipe.alignment)
        (loss + self.weight * gap).backward()
        self.apply_gradients()
        return gap.item()
