"""The training step, as a generator over steps: K arms at once over one frozen base."""

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from typing import Any, cast

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor

from kanjilab.core.config import QUANTISED, Arm
from kanjilab.models.adapters import TEXT
from kanjilab.models.diffusion import LatentDiffusion
from kanjilab.models.trainable import Trainable
from kanjilab.training.data_order import Draw, NoiseLevels, captions_of, draw_example
from kanjilab.training.encoded import Encoded
from kanjilab.training.schedules import lr_factor

NORM_WINDOW = 101  # gradient norms whose median an exploding arm is measured against
NORMS_NEEDED = 20


@dataclass(frozen=True)
class StepReport:
    """What one optimizer step did, a value per arm.

    Attributes:
        step: steps done, 1 after the first.
        images_seen, loss, gradient_norm, lr: per arm; NaN where the arm is no longer training.
        stopped: per arm, why it stopped early, or None.
        seconds: of training so far, resumed parts included.
        checkpoint: whether a checkpoint was written after this step.
    """

    step: int
    images_seen: tuple[int, ...]
    loss: tuple[float, ...]
    gradient_norm: tuple[float, ...]
    lr: tuple[float, ...]
    stopped: tuple[str | None, ...]
    seconds: float
    checkpoint: bool


def check_arm(base: LatentDiffusion, arm: Arm) -> None:
    """Refuses a setting that makes no sense for a base.

    Raises:
        ValueError: with the setting, what was expected and what came.
    """
    if arm.parts["denoiser"] == "full" and base.precision in QUANTISED:
        raise ValueError(f"{base.precision} weights are frozen: expected a LoRA, or fp32 or bf16, got targets 'full'")
    unweighted = {"min_snr_gamma": None, "velocity_weight": False}
    for name, off in unweighted.items() if base.prediction == "flow" else ():
        if getattr(arm, name) != off:
            raise ValueError(
                f"{base.name} is a rectified flow, weighted by how often each noise level is drawn: "
                f"expected {name} = {off}, got {getattr(arm, name)!r}"
            )


def denoising_errors(
    base: LatentDiffusion,
    data: Encoded,
    draws: Sequence[Draw],
    captions: np.ndarray,
    trainable: Trainable,
    pairs: Sequence[tuple[int, int]],
    dropped: np.ndarray | None = None,
) -> tuple[Tensor, Tensor]:
    """How far each arm's denoiser is from the target on some examples.

    Args:
        draws: N examples.
        captions: (N,) int, the caption of each, as a row of the data's captions.
        trainable: attached to the base with these pairs.
        pairs: (arm, count) for each stretch of the examples, in order.
        dropped: which arrays are dropped, as for `Encoded.prompts`.
    Returns:
        (N,) float32 squared errors, means over C, h and w; and (N,) int64 timesteps.
    """
    rows = np.array([draw.row for draw in draws])
    latents = data.latents(rows, np.stack([draw.posterior_noise for draw in draws])).to(base.device)
    noise = torch.from_numpy(np.stack([draw.noise for draw in draws])).to(base.device)
    timesteps = torch.tensor([draw.timestep for draw in draws], device=base.device)
    noisy, target = base.add_noise(latents, noise, timesteps)
    prompts, states = data.prompts(rows, captions, base.device, dropped), data.text(captions, base.device)
    conditioning = trainable.condition(base.text, prompts, states, pairs)
    predicted = base.denoise(noisy, base.model_timestep(timesteps), conditioning)
    return (predicted - target).square().mean(dim=(1, 2, 3)), timesteps


def _dropped_arrays(arm: Arm, draw: Draw, without_caption: bool) -> np.ndarray:
    """(A,) bool: which of an example's arrays are shown as zeros."""
    if arm.array_dropout is None:
        return np.full(len(draw.array_dropout), without_caption)
    return draw.array_dropout < arm.array_dropout


@dataclass
class ArmProgress:
    """How far one arm has come, and whether it stopped early."""

    arm: Arm
    total_steps: int
    steps: int = 0
    stopped: str | None = None
    norms: list[float] = field(default_factory=list)

    @property
    def active(self) -> bool:
        """Whether the arm still trains."""
        return self.stopped is None and self.steps < self.total_steps

    @property
    def images_seen(self) -> int:
        """Images that the arm was trained on, repeats counted."""
        return self.steps * self.arm.images_per_step

    def fault(self, loss: float, norm: float) -> str | None:
        """Why this step must not be taken, or None."""
        if not (np.isfinite(loss) and np.isfinite(norm)):
            return f"step {self.steps + 1}: loss {loss} and gradient norm {norm} are not both finite"
        if len(self.norms) >= NORMS_NEEDED:
            median = float(np.median(self.norms))
            if norm > self.arm.explosion_factor * median:
                return (
                    f"step {self.steps + 1}: gradient norm {norm:.3g} is over {self.arm.explosion_factor:g} times "
                    f"its running median {median:.3g}; a lower learning rate may help"
                )
        return None


class Trainer:
    """The state of a training: parameters, optimizer, averages and progress of all arms."""

    def __init__(self, base: LatentDiffusion, data: Encoded, arms: Sequence[Arm], accelerator: Accelerator):
        self.base, self.data, self.accelerator = base, data, accelerator
        for arm in arms:
            check_arm(base, arm)
        self.trainable = Trainable(base.denoiser, arms, base.text_encoder, base.condition_encoder)
        self.rows = self.trainable.rows
        self.progress = [ArmProgress(arm, arm.total_steps(len(data))) for arm in arms]
        self.step, self.seconds = 0, 0.0
        self.vectors = [torch.nn.Parameter(row) for row in self.rows.values]  # share memory with the rows
        groups = [
            dict(params=[v], lr=a.peak_lr, betas=(a.beta1, a.beta2), eps=a.epsilon, weight_decay=a.weight_decay)
            for v, a in zip(self.vectors, arms, strict=True)
        ]
        self.optimizer = torch.optim.AdamW(groups, fused=True)
        self.average = self.rows.values.clone() if any(arm.ema_decay for arm in arms) else None
        self.rate_factors = self._rate_factors()
        self.captions = [captions_of(arm, data) for arm in arms]
        self.levels = [self._noise_levels(arm) for arm in arms]
        self.shares = [torch.from_numpy(one.share).float().to(base.device) if one else None for one in self.levels]
        # Whole weights are kept in fp32, so that only their use is in bf16.
        self.autocast = bool(self.trainable.arms_that("full", "denoiser")) and base.denoiser.dtype == torch.bfloat16

    def _noise_levels(self, arm: Arm) -> NoiseLevels | None:
        """Where it is not every level alike, which of them an arm is shown."""
        if arm.timesteps == "uniform":
            return None
        every = torch.arange(self.base.timesteps, device=self.base.device)
        weight = self.base.loss_weight(every, arm.min_snr_gamma, arm.velocity_weight)
        return NoiseLevels(weight.double().cpu().numpy(), arm.seed, arm.images_per_step)

    def _rate_factors(self) -> Tensor | None:
        """(K, P) what each number's learning rate is of its arm's; None where all are 1."""
        arms = self.trainable.arms
        if all(arm.text_encoder_lr is None for arm in arms):
            return None
        factors = torch.ones_like(self.rows.values)
        for name, view in self.rows.views(factors).items():
            if name.startswith(TEXT):
                for k, arm in enumerate(arms):
                    view[k] = (arm.text_encoder_lr or arm.peak_lr) / arm.peak_lr
        return factors

    @property
    def stopped(self) -> tuple[str | None, ...]:
        """Per arm, why it stopped early, or None."""
        return tuple(progress.stopped for progress in self.progress)

    def any_process(self, flag: bool) -> bool:
        """Whether the flag is set in any process: all must take such a turn at the same step."""
        if self.accelerator.num_processes == 1:
            return flag
        return bool(self._sum_over_processes(torch.tensor(float(flag), device=self.base.device)))

    def _sum_over_processes(self, values: Tensor) -> Tensor:
        return cast(Tensor, self.accelerator.reduce(values, "sum"))

    def advance(self) -> tuple[list[float], list[float], list[float]]:
        """One optimizer step of every active arm.

        Returns:
            Loss, gradient norm and learning rate per arm; NaN where an arm does not train.
        """
        active = [k for k, progress in enumerate(self.progress) if progress.active]
        losses = torch.zeros(len(self.progress), device=self.base.device)
        for micro in range(max(self.progress[k].arm.accumulation for k in active)):
            self._accumulate([k for k in active if micro < self.progress[k].arm.accumulation], micro, losses)
        if self.accelerator.num_processes > 1:
            self.rows.gradients.copy_(self._sum_over_processes(self.rows.gradients))
            losses = self._sum_over_processes(losses)
        norms = self.rows.gradients.norm(dim=1)
        measured = torch.stack([losses, norms]).cpu().tolist()  # the step's one wait for the device
        return self._update(active, *measured)

    def _accumulate(self, arms: list[int], micro: int, losses: Tensor) -> None:
        """Adds the gradients of one micro-batch of some arms; `losses` (K,) is added to in place."""
        batch = self._share_of_this_process(arms, micro)
        if not batch:
            if micro == 0:
                self.rows.gradients.zero_()
            return
        pairs = [(k, len(draws)) for k, draws in batch]
        draws = [draw for _, drawn in batch for draw in drawn]
        owners = [k for k, drawn in batch for _ in drawn]
        weights = torch.tensor([1 / self.progress[k].arm.images_per_step for k in owners], device=self.base.device)
        with self.trainable.attached(pairs):  # no longer than this: between two steps the caller may sample
            errors = self._errors(pairs, draws) * weights
            self.rows.take_gradients(self.trainable.leaves, errors.sum(), add=micro > 0)
        losses.index_add_(0, torch.tensor(owners, device=self.base.device), errors.detach())

    def _share_of_this_process(self, arms: list[int], micro: int) -> list[tuple[int, list[Draw]]]:
        """The micro-batch's (arm, examples), of which several processes take equal stretches."""
        items = []
        for k in arms:
            batch = self.progress[k].arm.batch
            first = self.progress[k].images_seen + micro * batch
            items += [(k, index) for index in range(first, first + batch)]
        rank, processes = self.accelerator.process_index, self.accelerator.num_processes
        mine = items[rank * len(items) // processes : (rank + 1) * len(items) // processes]
        shape, memory = self.data.mean.shape[1:], {}
        share: dict[int, list[Draw]] = {}
        for k, index in mine:
            seed = self.progress[k].arm.seed
            if (seed, index) not in memory:  # arms of one seed share their draws
                memory[seed, index] = draw_example(
                    seed, index, len(self.data), shape, self.base.timesteps, len(self.data.arrays)
                )
            draw, levels = memory[seed, index], self.levels[k]
            share.setdefault(k, []).append(
                replace(draw, timestep=levels.level(index, draw.timestep)) if levels else draw
            )
        return list(share.items())

    def _errors(self, pairs: list[tuple[int, int]], draws: list[Draw]) -> Tensor:
        """(N,) weighted squared error of each example, the arms side by side."""
        owners = [k for k, count in pairs for _ in range(count)]
        arms = [self.progress[k].arm for k in owners]
        dropped = np.array([draw.dropout < arm.caption_dropout for draw, arm in zip(draws, arms, strict=True)])
        captions = np.array([self.captions[k][draw.row] for k, draw in zip(owners, draws, strict=True)])
        captions = np.where(dropped, self.data.empty, captions)
        zeros = np.stack(
            [_dropped_arrays(*each) for each in zip(arms, draws, captions == self.data.empty, strict=True)]
        )
        with torch.autocast(self.base.device.type, torch.bfloat16) if self.autocast else nullcontext():
            errors, timesteps = denoising_errors(self.base, self.data, draws, captions, self.trainable, pairs, zeros)
        weights = []
        for (k, _), mine in zip(pairs, timesteps.split([count for _, count in pairs]), strict=True):
            arm, share = self.progress[k].arm, self.shares[k]
            weight = self.base.loss_weight(mine, arm.min_snr_gamma, arm.velocity_weight)
            weights.append(weight if share is None else weight / share[mine])
        return errors * torch.cat(weights)

    def _update(
        self, active: list[int], losses: list[float], norms: list[float]
    ) -> tuple[list[float], list[float], list[float]]:
        rates = [float("nan")] * len(self.progress)
        for k, progress in enumerate(self.progress):
            self.vectors[k].grad = None
            if k not in active:
                losses[k] = norms[k] = float("nan")
                continue
            if reason := progress.fault(losses[k], norms[k]):
                progress.stopped = reason
                continue
            rates[k] = progress.arm.peak_lr * lr_factor(progress.arm, progress.steps, progress.total_steps)
            self.optimizer.param_groups[k]["lr"] = rates[k]
            if norms[k] > progress.arm.clip_norm:
                self.rows.gradients[k].mul_(progress.arm.clip_norm / (norms[k] + 1e-6))
            self.vectors[k].grad = self.rows.gradients[k]
            progress.norms = [*progress.norms[1 - NORM_WINDOW :], norms[k]]
            progress.steps += 1
        before = None if self.rate_factors is None else self.rows.values.clone()
        self.optimizer.step()
        if before is not None:  # AdamW's step is proportional to the rate
            self.rows.values.copy_(torch.lerp(before, self.rows.values, cast(Tensor, self.rate_factors)))
        self._update_average(active)
        self.step += 1
        return losses, norms, rates

    def _update_average(self, active: list[int]) -> None:
        if self.average is None:
            return
        for k in active:
            if not (progress := self.progress[k]).stopped:
                # The usual warm-up: a long memory is of no use before there is something to remember.
                decay = min(progress.arm.ema_decay or 0.0, (1 + progress.steps) / (10 + progress.steps))
                self.average[k].lerp_(self.rows.values[k], 1 - decay)

    def checkpoint_files(self) -> dict[str, Any]:
        """Everything a checkpoint holds: each arm's adapter, and what is needed to go on."""
        files: dict[str, Any] = {}
        for k in range(len(self.progress)):
            files[f"arm_{k}/adapter_model.safetensors"] = self.trainable.state(k, self.average)
            files[f"arm_{k}/adapter_config.json"] = self.trainable.config(k)
        tensors = {"values": self.rows.values}
        if self.average is not None:
            tensors["average"] = self.average
        for k, vector in enumerate(self.vectors):
            for name, value in self.optimizer.state[vector].items():
                tensors[f"optimizer.{k}.{name}"] = value
        files["state.safetensors"] = tensors
        arms = [
            {"steps": p.steps, "images_seen": p.images_seen, "stopped": p.stopped, "norms": p.norms}
            for p in self.progress
        ]
        files["state.json"] = {"step": self.step, "seconds": self.seconds, "arms": arms}
        return files

    @torch.no_grad()
    def restore(self, state: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        """Takes up what `checkpoint_files` gave.

        Raises:
            ValueError: a stored number is not finite: an arm stops before it takes one up.
        """
        for name, value in tensors.items():
            if not torch.isfinite(value).all():
                raise ValueError(f"step {state['step']}: the stored {name} is not finite; go on from an earlier one")
        self.step, self.seconds = state["step"], state["seconds"]
        self.rows.values.copy_(tensors["values"])
        if self.average is not None:
            self.average.copy_(tensors["average"])
        for k, (progress, stored) in enumerate(zip(self.progress, state["arms"], strict=True)):
            progress.steps, progress.stopped, progress.norms = stored["steps"], stored["stopped"], stored["norms"]
            prefix = f"optimizer.{k}."
            for name, value in tensors.items():
                if name.startswith(prefix):
                    self.optimizer.state[self.vectors[k]][name.removeprefix(prefix)] = value.to(self.base.device)
