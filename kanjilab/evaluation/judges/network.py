"""The networks of judges A and B: one trunk; part maps on it; and one summary for all that concerns the whole glyph."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kanjilab.data.components import LAYOUTS


@dataclass(frozen=True)
class Architecture:
    """Shape of a judge's network.

    Attributes:
        kind: "separable" (residual blocks of depthwise and pointwise convolutions) or "plain"
            (residual blocks of full convolutions).
        widths: channels at 32, 16 and 8 px.
        blocks: residual blocks at each of these.
        dimensions: of the embedding.
    """

    kind: str
    widths: tuple[int, int, int]
    blocks: tuple[int, int, int]
    dimensions: int = 96


ARCHITECTURES = {
    "A": Architecture("separable", (32, 64, 160), (0, 2, 4)),
    "B": Architecture("plain", (24, 48, 128), (1, 1, 2)),
}

SUMMARY_WIDTH = 96  # channels at 4 px, from which embedding, layout and well-formedness are read
VERDICT_WIDTH = 64


class Answers(NamedTuple):
    """A network's outputs for B glyphs: embedding (B, D) of unit length; logits of the part maps
    (B, P, 8, 8), of the parts' presence (B, P), of layouts and "none" (B, L + 1), of being well-formed (B,)."""

    embedding: Tensor
    maps: Tensor
    presence: Tensor
    layout: Tensor
    well_formed: Tensor


class _Separable(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.across = nn.Conv2d(width, width, 3, padding=1, groups=width, bias=False)
        self.norm = nn.BatchNorm2d(width)
        self.mix = nn.Conv2d(width, width, 1, bias=False)
        self.mix_norm = nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.mix_norm(self.mix(F.relu(self.norm(self.across(x)))))


class _Plain(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        return x + F.relu(self.norm(self.conv(x)))


def _halve(inner: int, outer: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inner, outer, 3, 2, 1, bias=False), nn.BatchNorm2d(outer), nn.ReLU())


class JudgeNetwork(nn.Module):
    """Trunk to 8 x 8 cells, part maps on it; a summary of 4 x 4 cells for all that concerns the whole."""

    def __init__(self, architecture: Architecture, parts: int, characters: int):
        """New weights from torch's generator; `characters` prototypes are the recogniser's classes."""
        super().__init__()
        block = {"separable": _Separable, "plain": _Plain}[architecture.kind]
        stages, inner = [], 1
        for width, blocks in zip(architecture.widths, architecture.blocks, strict=True):
            stages += [_halve(inner, width), *(block(width) for _ in range(blocks))]
            inner = width
        self.trunk = nn.Sequential(*stages)
        self.maps = nn.Conv2d(inner, parts, 1)
        self.presence_scale = nn.Parameter(torch.ones(parts))
        self.presence_bias = nn.Parameter(torch.full((parts,), -2.0))
        self.summary = _halve(inner, SUMMARY_WIDTH)
        self.embedding = nn.Linear(SUMMARY_WIDTH * 16, architecture.dimensions)
        self.verdict = nn.Linear(SUMMARY_WIDTH * 16 + inner, VERDICT_WIDTH)
        self.layout = nn.Linear(VERDICT_WIDTH, len(LAYOUTS) + 1)
        self.legality = nn.Linear(VERDICT_WIDTH, 1)  # the name is in stored weights
        self.prototypes = nn.Parameter(torch.randn(characters, architecture.dimensions) * 0.1)
        nn.init.constant_(self.maps.bias, -4.0)  # type: ignore[arg-type]

    def forward(self, ink: Tensor) -> Answers:
        """Read glyphs.

        Args:
            ink: (B, 1, 64, 64) in [0, 1], 0 paper to 1 ink.
        """
        cells = self.trunk(ink)  # (B, C, 8, 8)
        maps = self.maps(cells).float()
        presence = maps.flatten(2).logsumexp(2) * self.presence_scale + self.presence_bias
        summary = self.summary(cells).flatten(1)
        verdict = F.relu(self.verdict(torch.cat([summary, cells.mean((2, 3))], dim=1)))
        embedding = F.normalize(self.embedding(summary).float(), dim=1)
        return Answers(embedding, maps, presence, self.layout(verdict).float(), self.legality(verdict).float()[:, 0])
