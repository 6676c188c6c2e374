"""A network in training with its averaged weights and optimizer, that can be stored and taken up again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save
from torch import nn

from kanjilab.core.storage import write_bytes_atomic

GRADIENT_NORM_MOST = 1.0
OPTIMIZER_STATE = ("step", "exp_avg", "exp_avg_sq")


class AveragedTraining:
    """One network, AdamW, and the moving average of the weights.

    Args of the constructor:
        network: what is trained.
        name: under which the network's weights are stored.
        recipe: it says peak_lr, ema_decay and lr(step), the rate at a step (0-based).
        beta2: of AdamW.
    """

    def __init__(self, network: nn.Module, name: str, recipe: Any, beta2: float):
        """Nothing is trained yet."""
        self._network, self._name, self.recipe, self.step = network, name, recipe, 0
        self.parameters = dict(network.named_parameters())
        self.average = {name: value.detach().clone() for name, value in self.parameters.items()}
        self.optimizer = torch.optim.AdamW(
            network.parameters(), lr=recipe.peak_lr, betas=(0.9, beta2), weight_decay=0.01, fused=True
        )

    def apply_gradients(self) -> None:
        """One step of the optimizer and of the average."""
        nn.utils.clip_grad_norm_(self._network.parameters(), GRADIENT_NORM_MOST)
        self.optimizer.param_groups[0]["lr"] = self.recipe.lr(self.step)
        self.optimizer.step()
        self.optimizer.zero_grad()
        decay = min(self.recipe.ema_decay, (self.step + 1) / (self.step + 10))
        torch._foreach_lerp_(list(self.average.values()), [p.detach() for p in self.parameters.values()], 1 - decay)
        self.step += 1

    def save(self, path: Path) -> None:
        """Everything needed to go on, in one safetensors file, replaced atomically."""
        state = {f"{self._name}.{name}": value.detach() for name, value in self.parameters.items()}
        state |= {f"average.{name}": value for name, value in self.average.items()}
        for name, parameter in self.parameters.items():
            for key, value in self.optimizer.state[parameter].items():
                state[f"optimizer.{key}.{name}"] = value
        write_bytes_atomic(path, save(state, metadata={"step": str(self.step)}))

    def load(self, path: Path) -> None:
        """Takes up what `save` stored."""
        state = load_file(path)
        self._network.load_state_dict({name: state[f"{self._name}.{name}"] for name in self.parameters})
        for name, parameter in self.parameters.items():
            self.average[name].copy_(state[f"average.{name}"])
            self.optimizer.state[parameter] = {key: state[f"optimizer.{key}.{name}"] for key in OPTIMIZER_STATE}
            self.step = int(state[f"optimizer.step.{name}"].item())
