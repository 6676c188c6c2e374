"""What a denoiser is conditioned on."""

from typing import NamedTuple

from torch import Tensor


class Conditioning(NamedTuple):
    """What the denoiser reads of captions: token states (N, L, D), and pooled states (N, P) or None."""

    tokens: Tensor
    pooled: Tensor | None = None

    def select(self, rows: Tensor) -> "Conditioning":
        """The states of some captions, by index."""
        return Conditioning(self.tokens[rows], None if self.pooled is None else self.pooled[rows])
