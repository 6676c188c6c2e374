"""What a denoiser is conditioned on: prompts, which may carry arrays, and what encoders make of them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

TEXT_MAX = 10_000  # characters of a prompt


class Conditioning(NamedTuple):
    """What the denoiser attends to.

    Attributes:
        tokens: (N, L, D) token states.
        pooled: (N, P) pooled states, as SD 3 has them, or None.
        mask: (N, L) bool, which tokens may be attended to; None for all.
        hint: (N, C, h, w), added to what the denoiser's first layer makes of the latents; None for nothing.
    """

    tokens: Tensor
    pooled: Tensor | None = None
    mask: Tensor | None = None
    hint: Tensor | None = None

    def select(self, rows: Tensor) -> "Conditioning":
        """The states of some prompts, by index."""
        return Conditioning(*(None if states is None else states[rows] for states in self))  # type: ignore[arg-type]

    def to(self, device: torch.device) -> "Conditioning":
        """The same states on a device."""
        return Conditioning(*(None if states is None else states.to(device) for states in self))  # type: ignore[arg-type]

    def mixed(self, others: "Conditioning", share: Tensor) -> "Conditioning":
        """On the straight way from these states to others; a token that either may attend to may be attended to.

        Args:
            others: N rows of the same shapes, without a hint, as these.
            share: (N,) of the way, 0 for these states to 1 for the others.
        """
        tokens = torch.lerp(self.tokens, others.tokens, share.view(-1, 1, 1).to(self.tokens))
        pooled, mask = self.pooled, self.mask
        if pooled is not None and others.pooled is not None:
            pooled = torch.lerp(pooled, others.pooled, share.view(-1, 1).to(pooled))
        if mask is not None and others.mask is not None:
            mask = mask | others.mask
        return Conditioning(tokens, pooled, mask)

    @classmethod
    def cat(cls, parts: "Sequence[Conditioning]") -> "Conditioning":
        """The states of several batches as one."""
        columns = zip(*parts, strict=True)
        return cls(*(None if states[0] is None else torch.cat(states) for states in columns))  # type: ignore[arg-type]


@dataclass(frozen=True)
class Prompt:
    """What an image is asked for by: text, and arrays for the base's condition encoder (a skeleton, say).

    Attributes:
        text: the caption.
        arrays: by name, of any shape, the same for all prompts that are drawn together.
        toward: a second caption, as of another style.
        share: how far the states of the text go towards those of the second caption, 0 to 1.
    Raises:
        ValueError: a share outside its range, text that is longer than any text encoder reads, or no text at all, as
            bytes that are no UTF-8.
    """

    text: str
    arrays: Mapping[str, np.ndarray] = field(default_factory=dict)
    toward: str = ""
    share: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.share <= 1:
            raise ValueError(f"share must be from 0 to 1, got {self.share}")
        check_texts(self.text, self.toward)


def check_texts(*texts: str) -> None:
    """Refuses what no text encoder reads.

    Args:
        texts: prompts, or parts of them.
    Raises:
        ValueError: one is longer than any encoder reads, or no text at all, as bytes that are no UTF-8.
    """
    for text in texts:
        if len(text) > TEXT_MAX:
            raise ValueError(f"expected a prompt of at most {TEXT_MAX:,} characters, got {len(text):,}")
        if text.encode(errors="ignore").decode() != text:
            raise ValueError(f"expected a prompt in UTF-8, got {text[:80]!r}")


class Prompts(NamedTuple):
    """A batch of prompts: captions, and arrays (N, ...) by name."""

    captions: Sequence[str]
    arrays: Mapping[str, Tensor]

    @classmethod
    def of(cls, prompts: Sequence[Prompt], device: torch.device) -> "Prompts":
        """Stacks prompts; one without arrays gets zeros, as the empty prompt of guidance.

        Raises:
            ValueError: prompts of different arrays.
        """
        shapes = [{name: np.shape(array) for name, array in prompt.arrays.items()} for prompt in prompts]
        expected = next((shape for shape in shapes if shape), {})
        for prompt, shape in zip(prompts, shapes, strict=True):
            if shape and shape != expected:
                raise ValueError(f"prompt {prompt.text!r}: expected arrays {expected}, as others have, got {shape}")
        arrays = {
            name: np.stack([prompt.arrays.get(name, np.zeros(shape, np.float32)) for prompt in prompts])
            for name, shape in expected.items()
        }
        return cls([p.text for p in prompts], {n: torch.from_numpy(a).float().to(device) for n, a in arrays.items()})

    def select(self, rows: Sequence[int]) -> "Prompts":
        """Some of the prompts, by index."""
        return Prompts([self.captions[row] for row in rows], {name: a[list(rows)] for name, a in self.arrays.items()})
