"""A part of a base whose every weight is trained: the denoiser, or an encoder."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from kanjilab.models.parameters import FlatParameters, Slot


class WholePart:
    """Every weight of one module, trained by some of K arms; see `trainable.TrainedPart`.

    Of a single arm the weights take the place of the module's own within `Trainable.attached`. Of several, each arm's
    are handed to `torch.func.functional_call`: see `caller`.

    Args:
        module: frozen here.
        prefix: before the names of its weights.
        trains: (K,) which arms train it.
    """

    def __init__(self, module: nn.Module, prefix: str, trains: Sequence[bool]):
        self.module, self.prefix, self.trains = module.requires_grad_(False), prefix, tuple(trains)
        self.shapes = {prefix + name: tuple(value.shape) for name, value in module.named_parameters()}
        self.exact = set(self.shapes)  # kept in float32, so that only their use is in bf16

    def initialise(self, rows: FlatParameters) -> None:
        """Every arm begins with the module's own weights."""
        self.start = {self.prefix + name: value.detach() for name, value in self.module.named_parameters()}
        views = rows.views(rows.values)
        for name, value in self.start.items():
            views[name][:] = value

    def attach(self, rows: FlatParameters) -> list[Slot]:
        """Where the module holds each weight, and what takes its place; nothing where several arms train."""
        self.rows = rows
        if len(self.trains) > 1:
            return []
        slots: list[Slot] = []
        views = rows.views(rows.values)
        for name in self.shapes:
            rows.leaves[name] = nn.Parameter(views[name][0])
            owner, _, leaf = name.removeprefix(self.prefix).rpartition(".")
            slots.append((self.module.get_submodule(owner)._parameters, leaf, rows.leaves[name]))
        return slots

    def caller(self, k: int) -> Callable[..., Any]:
        """The module with one arm's weights, through which gradients flow; within `Trainable.attached`."""
        if len(self.trains) == 1:
            return self.module
        weights = {name.removeprefix(self.prefix): self.rows.leaves[name][k] for name in self.shapes}
        return lambda *arguments, **named: functional_call(self.module, weights, arguments, named)

    def state(self, k: int, views: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """A copy of one arm's weights by name."""
        return {name: views[name][k].detach().to("cpu", copy=True) for name in self.shapes} if self.trains[k] else {}

    def load_state(self, k: int, tensors: Mapping[str, Tensor], views: Mapping[str, Tensor]) -> None:
        """Sets one arm's weights from those that `state` gave."""
        for name in self.shapes if self.trains[k] else ():
            views[name][k] = tensors[name]

    def config(self, k: int) -> dict[str, Any]:
        """What is stored beside the weights."""
        return {"class": type(self.module).__name__}

    def squared_update(self, views: Mapping[str, Tensor]) -> Tensor:
        """(K,) squared Euclidean distance from the weights that training began with."""
        far = [(views[name] - value).square().flatten(1).sum(dim=1) for name, value in self.start.items()]
        return torch.stack(far).sum(dim=0)
