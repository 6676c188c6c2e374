"""The trained numbers of K arms as flat rows, and which stretch of a batch is whose."""

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


class FlatParameters:
    """One vector of parameters per arm, (K, P) float32, with a named view for each tensor in it.

    The model computes with `leaves`: views of the rows themselves, or of a copy in the model's
    precision that `refresh` brings up to date in one pass.

    Args:
        shapes: name -> shape of one arm's tensor.
        arms: K.
        device: where the rows live.
        dtype: of the leaves.
        exact: names whose leaves stay float32: views of the rows themselves, whatever the dtype.
    """

    def __init__(
        self,
        shapes: Mapping[str, tuple[int, ...]],
        arms: int,
        device: torch.device,
        dtype: torch.dtype = torch.float32,
        exact: Collection[str] = (),
    ):
        self.shapes = dict(shapes)
        size = sum(math.prod(shape) for shape in self.shapes.values())
        self.values = torch.zeros(arms, size, device=device)
        self.gradients = torch.zeros(arms, size, device=device)
        self._used = self.values if dtype == torch.float32 else self.values.to(dtype)
        used, own = self.views(self._used), self.views(self.values)
        self.leaves = {name: nn.Parameter(own[name] if name in exact else view) for name, view in used.items()}

    def refresh(self) -> None:
        """Brings the leaves up to date with `values`."""
        if self._used is not self.values:
            self._used.copy_(self.values)

    def take_gradients(self, leaves: Sequence[Tensor], loss: Tensor, add: bool) -> None:
        """Puts the gradient of a loss into `gradients`, or adds it to what is there.

        Args:
            leaves: what the loss depends on, in the order of `shapes`, each the size of its view.
            loss: scalar.
            add: whether to add.
        """
        # Not through .grad: autograd wants a gradient's strides to be those of its parameter alone.
        found = torch.autograd.grad(loss, leaves, allow_unused=True)
        for view, gradient in zip(self.views(self.gradients).values(), found, strict=True):
            if gradient is not None and add:
                view.add_(gradient.view_as(view))
            elif gradient is not None:
                view.copy_(gradient.view_as(view))
            elif not add:
                view.zero_()

    def views(self, rows: Tensor) -> dict[str, Tensor]:
        """Cuts a (..., P) tensor into (..., *shape) views by name."""
        views, start = {}, 0
        for name, shape in self.shapes.items():
            end = start + math.prod(shape)
            views[name] = rows[..., start:end].unflatten(-1, shape)
            start = end
        return views


@dataclass
class ArmSlices:
    """Which arm each stretch of the batch belongs to: (arm, count) pairs in order."""

    pairs: tuple[tuple[int, int], ...] = ()

    @contextmanager
    def set_to(self, pairs: Sequence[tuple[int, int]]) -> Iterator[None]:
        """Within it the stretches are these; those of before come back after."""
        before, self.pairs = self.pairs, tuple(pairs)
        try:
            yield
        finally:
            self.pairs = before


Slot = tuple[dict[str, Any], str, Any]  # a module's dictionary, a key in it, and what takes that entry's place


@contextmanager
def swapped_entries(slots: Sequence[Slot]) -> Iterator[None]:
    """Within it each dictionary holds the new entry under its key; what was there comes back after."""
    before = [(entries, key, entries[key]) for entries, key, _ in slots]
    try:
        for entries, key, new in slots:
            entries[key] = new
        yield
    finally:
        for entries, key, old in before:
            entries[key] = old
