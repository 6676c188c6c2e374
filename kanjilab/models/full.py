"""Training every weight of a denoiser."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from kanjilab.core.config import Arm
from kanjilab.models.parameters import ArmSlices, FlatParameters, swapped_entries


class WholeDenoiser:
    """Every weight of the denoiser, trained as one arm; the same interface as `LoraStack`.

    Args:
        denoiser: its own parameters are replaced only within `attached()`.
        arms: exactly one, with targets `full`.
    Raises:
        ValueError: more than one arm.
    """

    def __init__(self, denoiser: nn.Module, arms: Sequence[Arm]):
        if len(arms) != 1:
            raise ValueError(f"full fine-tuning trains one arm at a time, got {len(arms)}")
        self.denoiser = denoiser
        self.arms = tuple(arms)
        self.segments = ArmSlices()
        self.size_px: int | None = None  # of the images that were trained on, where that is known
        original = dict(denoiser.named_parameters())
        device = next(denoiser.parameters()).device
        self.rows = FlatParameters({name: tuple(value.shape) for name, value in original.items()}, 1, device)
        views = self.rows.views(self.rows.values)
        for name, value in original.items():
            views[name][0] = value.detach()
        self.text_arms: list[int] = []  # see `LoraStack`
        self.trained = {name: nn.Parameter(view[0]) for name, view in views.items()}
        self.leaves = list(self.trained.values())
        self.slots = [self._slot(name, parameter) for name, parameter in self.trained.items()]
        self.start = self.rows.values.clone()

    @contextmanager
    def attached(self) -> Iterator[ArmSlices]:
        """Within it the denoiser computes with the trained weights; the base's own come back after."""
        with swapped_entries(self.slots):
            yield self.segments

    def _slot(self, name: str, parameter: nn.Parameter) -> tuple[dict[str, Any], str, Any]:
        module, _, leaf = name.rpartition(".")
        return self.denoiser.get_submodule(module)._parameters, leaf, parameter

    def state(self, k: int, rows: Tensor | None = None) -> dict[str, Tensor]:
        """A copy of all weights by the denoiser's own names."""
        views = self.rows.views(self.rows.values if rows is None else rows)
        return {name: view[k].detach().to("cpu", copy=True) for name, view in views.items()}

    def load_state(self, k: int, tensors: Mapping[str, Tensor]) -> None:
        """Sets all weights from the denoiser's own names.

        Raises:
            ValueError: a missing, unknown or misshapen tensor.
        """
        if {name: tuple(value.shape) for name, value in tensors.items()} != self.rows.shapes:
            raise ValueError(f"the stored weights are not those of this {type(self.denoiser).__name__}")
        views = self.rows.views(self.rows.values)
        for name, value in tensors.items():
            views[name][k] = value

    def config(self, k: int) -> dict:
        """What is stored beside the weights."""
        return {"trained": "unet", "class": type(self.denoiser).__name__}

    def update_norm(self) -> Tensor:
        """(1,) Euclidean distance from the base's weights."""
        return (self.rows.values - self.start).norm(dim=1)
