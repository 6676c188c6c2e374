"""The training step, as a generator over steps: K arms at once over one frozen base."""

import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from accelerate import Accelerator
from safetensors.torch import load_file
from torch import Tensor

from kanjilab import __version__
from kanjilab.core.config import Arm, settings_hash
from kanjilab.core.rng import counted_rng
from kanjilab.core.run_folder import RunFolder
from kanjilab.models.adapters import Trainable, make_trainable
from kanjilab.models.loading import Base
from kanjilab.training.encoded import Encoded
from kanjilab.training.schedules import checkpoint_steps, lr_factor

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


@dataclass(frozen=True)
class Draw:
    """One training example: image row, timestep, caption dropout's uniform draw, and two noises (C, h, w).

    The timestep is the index of a noise level, each as likely as any other; what it means is the base's.
    """

    row: int
    timestep: int
    dropout: float
    posterior_noise: np.ndarray
    noise: np.ndarray


@lru_cache(maxsize=8)
def epoch_order(seed: int, epoch: int, size: int) -> np.ndarray:
    """The order of the images in one epoch.

    Args:
        seed: the arm's.
        epoch: from 0.
        size: number of training images.
    Returns:
        (size,) int64, a permutation of the images.
    """
    return counted_rng(seed, "data order", epoch).permutation(size)


def draw_example(seed: int, index: int, size: int, shape: tuple[int, ...], timesteps: int) -> Draw:
    """The `index`-th image that a training with this seed sees, whatever its batch size.

    Args:
        index: images seen before it.
        size: number of training images.
        shape: (C, h, w) of the latents.
        timesteps: T.
    """
    rng = counted_rng(seed, "training image", index)
    dropout, timestep = rng.random(2)
    noise = rng.standard_normal((2, *shape), dtype=np.float32)
    row = int(epoch_order(seed, index // size, size)[index % size])
    return Draw(row, int(timestep * timesteps), float(dropout), noise[0], noise[1])


def captions_of(arm: Arm, data: Encoded) -> np.ndarray:
    """(N,) the caption of each image as this arm is told it; if shuffled, another image's."""
    if not arm.shuffled_captions:
        return np.asarray(data.caption)
    order = counted_rng(arm.seed, "caption shuffle").permutation(len(data))
    shuffled = np.empty(len(data), dtype=np.int64)
    shuffled[order] = data.caption[np.roll(order, 1)]  # one cycle through all images
    return shuffled


def denoising_errors(
    base: Base, data: Encoded, draws: Sequence[Draw], captions: np.ndarray, trainable: Trainable
) -> tuple[Tensor, Tensor]:
    """How far each arm's denoiser is from the target on some examples.

    Args:
        draws: N examples.
        captions: (N,) int, the caption each is told, as a row of the data's captions.
        trainable: attached to the base; its segments say whose examples stand where among the N.
    Returns:
        (N,) float32 squared errors, means over C, h and w; and (N,) int64 timesteps.
    """
    rows = np.array([draw.row for draw in draws])
    latents = data.latents(rows, np.stack([draw.posterior_noise for draw in draws])).to(base.device)
    noise = torch.from_numpy(np.stack([draw.noise for draw in draws])).to(base.device)
    timesteps = torch.tensor([draw.timestep for draw in draws], device=base.device)
    noisy, target = base.noised(latents, noise, timesteps)
    told = [data.captions[caption] for caption in captions]
    text = base.trained_text(trainable, told, data.text(captions, base.device))
    predicted = base.denoise(noisy, base.clock(timesteps), text)
    return (predicted - target).square().mean(dim=(1, 2, 3)), timesteps


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

    def __init__(self, base: Base, data: Encoded, arms: Sequence[Arm], accelerator: Accelerator):
        self.base, self.data, self.accelerator = base, data, accelerator
        for arm in arms:
            base.check_arm(arm)
        self.trainable: Trainable = make_trainable(base.denoiser, arms, base.text_encoder)
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
        self.captions = [captions_of(arm, data) for arm in arms]
        # Whole weights are kept in fp32, so that only their use is in bf16.
        whole = any(arm.targets == "unet" for arm in arms)
        self.autocast = whole and base.precision == "bf16"

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
        # Attached within the step alone: between two steps the caller may sample from the base.
        with self.trainable.attached():
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
        weights = np.concatenate(
            [np.full(n, 1 / self.progress[k].arm.images_per_step, dtype=np.float32) for k, n in pairs]
        )
        errors = self._errors(pairs, draws) * torch.from_numpy(weights).to(self.base.device)
        self.rows.take_gradients(self.trainable.leaves, errors.sum(), add=micro > 0)
        owner = torch.tensor([k for k, n in pairs for _ in range(n)], device=self.base.device)
        losses.index_add_(0, owner, errors.detach())

    def _share_of_this_process(self, arms: list[int], micro: int) -> list[tuple[int, list[Draw]]]:
        """The micro-batch's (arm, examples), of which several processes take equal stretches."""
        items = []
        for k in arms:
            arm = self.progress[k].arm
            first = self.progress[k].steps * arm.images_per_step + micro * arm.batch
            items += [(k, index) for index in range(first, first + arm.batch)]
        rank, processes = self.accelerator.process_index, self.accelerator.num_processes
        mine = items[rank * len(items) // processes : (rank + 1) * len(items) // processes]
        shape, memory = self.data.mean.shape[1:], {}
        batch: dict[int, list[Draw]] = {}
        for k, index in mine:
            seed = self.progress[k].arm.seed
            if (seed, index) not in memory:  # arms of one seed share their draws
                memory[seed, index] = draw_example(seed, index, len(self.data), shape, self.base.timesteps)
            batch.setdefault(k, []).append(memory[seed, index])
        return list(batch.items())

    def _errors(self, pairs: list[tuple[int, int]], draws: list[Draw]) -> Tensor:
        """(N,) weighted squared error of each example, the arms side by side."""
        owners = [k for k, count in pairs for _ in range(count)]
        arms = [self.progress[k].arm for k in owners]
        dropped = np.array([draw.dropout < arm.caption_dropout for draw, arm in zip(draws, arms, strict=True)])
        captions = np.array([self.captions[k][draw.row] for k, draw in zip(owners, draws, strict=True)])
        self.trainable.segments.pairs = tuple(pairs)
        told = np.where(dropped, 0, captions)
        mixed = torch.autocast(self.base.device.type, torch.bfloat16) if self.autocast else nullcontext()
        with mixed:
            errors, timesteps = denoising_errors(self.base, self.data, draws, told, self.trainable)
        start, weights = 0, []
        for k, count in pairs:
            arm = self.progress[k].arm
            mine = timesteps[start : start + count]
            weights.append(self.base.loss_weight(mine, arm.min_snr_gamma, arm.velocity_weight))
            start += count
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
            progress.stopped = progress.fault(losses[k], norms[k])
            if progress.stopped:
                continue
            rates[k] = progress.arm.peak_lr * lr_factor(progress.arm, progress.steps, progress.total_steps)
            self.optimizer.param_groups[k]["lr"] = rates[k]
            if norms[k] > progress.arm.clip_norm:
                self.rows.gradients[k].mul_(progress.arm.clip_norm / (norms[k] + 1e-6))
            self.vectors[k].grad = self.rows.gradients[k]
            progress.norms = [*progress.norms[1 - NORM_WINDOW :], norms[k]]
            progress.steps += 1
        self.optimizer.step()
        self._update_average(active)
        self.step += 1
        return losses, norms, rates

    def _update_average(self, active: list[int]) -> None:
        if self.average is None:
            return
        for k in active:
            progress = self.progress[k]
            if not progress.stopped:
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
        files["state.json"] = {
            "step": self.step,
            "seconds": self.seconds,
            "arms": [
                {
                    "steps": p.steps,
                    "images_seen": p.steps * p.arm.images_per_step,
                    "stopped": p.stopped,
                    "norms": p.norms,
                }
                for p in self.progress
            ],
        }
        return files

    @torch.no_grad()
    def restore(self, state: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        """Takes up what `checkpoint_files` gave."""
        self.step, self.seconds = state["step"], state["seconds"]
        self.rows.values.copy_(tensors["values"])
        if self.average is not None:
            self.average.copy_(tensors["average"])
        for k, (progress, stored) in enumerate(zip(self.progress, state["arms"], strict=True)):
            progress.steps, progress.stopped = stored["steps"], stored["stopped"]
            progress.norms = stored["norms"]
            prefix = f"optimizer.{k}."
            for name, value in tensors.items():
                if name.startswith(prefix):
                    self.optimizer.state[self.vectors[k]][name.removeprefix(prefix)] = value.to(self.base.device)


def run_settings(base: Base, data: Encoded, arms: Sequence[Arm], checkpoints: int) -> dict[str, Any]:
    """What `settings.json` of a run holds; `hash` identifies the training."""
    settings: dict[str, Any] = {
        "base": base.name,
        "base_identity": base.identity,
        "precision": base.precision,
        "data": data.identity,
        "training_images": len(data),
        "arms": [arm.to_json() for arm in arms],
        "checkpoints": checkpoints,
    }
    settings["hash"] = settings_hash(settings)
    # Told by base_identity and data; for those who draw and export.
    size_px = data.mean.shape[-1] * base.latent_px
    settings |= {"family": base.family, "prediction": base.prediction, "size_px": size_px}
    settings["versions"] = {"kanjilab": __version__, "torch": torch.__version__}
    return settings


def train(
    base: Base,
    data: Encoded,
    arms: Sequence[Arm],
    folder: Path,
    *,
    checkpoints: int = 8,
    save_every_seconds: float = 120.0,
    log_every: int = 10,
    accelerator: Accelerator | None = None,
) -> Iterator[StepReport]:
    """Trains K arms over one base; yields after every optimizer step. Called again, it goes on.

    The folder is a run folder (`kanjilab.core.run_folder`). If it holds a run of the same settings, training
    goes on from the newest checkpoint, bit for bit as if it had never stopped on the same machine.
    Closing the generator, or a STOP file in the folder, writes a checkpoint first.

    Args:
        base: frozen; its weights are the same bits afterwards.
        data: the encoded training images.
        arms: K >= 1 settings; a single run is one arm.
        folder: new, or of an interrupted run.
        checkpoints: columns of the strip after "before training", for each arm.
        save_every_seconds: a resume point between them at least this often; older ones are removed.
        log_every: steps between records of log.jsonl.
        accelerator: for several processes, each taking an equal stretch of every batch.
    Yields:
        StepReport.
    Raises:
        ValueError: the folder holds a run of other settings, or no checkpoint is wanted.
        RunLocked: another process writes there.
    """
    if checkpoints < 1:
        raise ValueError(f"checkpoints must be >= 1, got {checkpoints}")
    accelerator = accelerator or Accelerator(cpu=base.device.type == "cpu")
    settings = run_settings(base, data, arms, checkpoints)
    trainer = Trainer(base, data, arms, accelerator)
    if accelerator.is_main_process and not (folder / "settings.json").exists():
        RunFolder.create(folder, settings)
    accelerator.wait_for_everyone()
    run = RunFolder.open(folder)
    if run.settings["hash"] != settings["hash"]:
        differences = "; ".join(_differences(run.settings, settings))
        raise ValueError(f"{folder} holds a run of other settings; choose another folder. {differences}")
    with run.lock() if accelerator.is_main_process else nullcontext():
        _resume(trainer, run, accelerator)
        yield from _steps(trainer, run, checkpoints, save_every_seconds, log_every)


def is_finished(run: RunFolder) -> bool:
    """Whether every arm came to its end, or was stopped for good: nothing is left to train."""
    if not (steps := run.checkpoints()):
        return False
    size, states = run.settings["training_images"], run.read_state(steps[-1])["arms"]
    return all(state["steps"] >= run.arm(k).total_steps(size) or state["stopped"] for k, state in enumerate(states))


@contextmanager
def between_steps() -> Iterator[Callable[[], None]]:
    """An interrupt (Ctrl-C) waits until the step is done, so that a checkpoint can be left; a second one acts at once.

    Yields:
        To be called between two steps: raises KeyboardInterrupt where one waits. It does nothing beside the main
        thread, which alone hears of interrupts, and where they have another meaning than Python's.
    """
    usual, waiting = signal.getsignal(signal.SIGINT), threading.Event()
    if threading.current_thread() is not threading.main_thread() or usual is not signal.default_int_handler:
        yield lambda: None
        return

    def wait(_number: int, _frame: Any) -> None:
        waiting.set()
        signal.signal(signal.SIGINT, usual)

    def check() -> None:
        if waiting.is_set():
            raise KeyboardInterrupt

    signal.signal(signal.SIGINT, wait)
    try:
        yield check
    finally:
        signal.signal(signal.SIGINT, usual)


def _differences(stored: Any, asked: Any, name: str = "") -> Iterator[str]:
    """Each setting in which a stored run and the one asked for differ, with both values."""
    if isinstance(stored, dict) and isinstance(asked, dict):
        for key in sorted((stored.keys() | asked.keys()) - {"hash", "versions", "family", "prediction", "size_px"}):
            yield from _differences(stored.get(key), asked.get(key), f"{name}.{key}".lstrip("."))
    elif isinstance(stored, list) and isinstance(asked, list) and len(stored) == len(asked):
        for index, pair in enumerate(zip(stored, asked, strict=True)):
            yield from _differences(*pair, f"{name}[{index}]")
    elif isinstance(stored, list) and isinstance(asked, list):
        yield f"{name}: stored {len(stored)}, asked for {len(asked)}"
    elif stored != asked:
        yield f"{name}: stored {stored!r}, asked for {asked!r}"


def _resume(trainer: Trainer, run: RunFolder, accelerator: Accelerator) -> None:
    if stored := run.checkpoints():
        tensors = run.checkpoint_path(stored[-1]) / "state.safetensors"
        trainer.restore(run.read_state(stored[-1]), load_file(tensors, device=str(trainer.base.device)))
    if accelerator.is_main_process:
        run.truncate_log(trainer.step)
        if not stored:
            run.write_checkpoint(0, trainer.checkpoint_files())
    accelerator.wait_for_everyone()


def _steps(
    trainer: Trainer, run: RunFolder, checkpoints: int, save_every_seconds: float, log_every: int
) -> Iterator[StepReport]:
    columns = {s for p in trainer.progress for s in checkpoint_steps(p.total_steps, checkpoints)}
    writes = trainer.accelerator.is_main_process
    last_saved = time.monotonic()

    def save() -> None:
        if writes and trainer.step not in run.checkpoints():
            run.write_checkpoint(trainer.step, trainer.checkpoint_files())
            run.rotate(1, also=sorted(columns))

    while any(progress.active for progress in trainer.progress):
        started, stopped_before = time.perf_counter(), trainer.stopped
        losses, norms, rates = trainer.advance()
        trainer.seconds += time.perf_counter() - started
        finished = not any(progress.active for progress in trainer.progress)
        due = time.monotonic() - last_saved > save_every_seconds
        stopping = trainer.any_process(run.stop_requested())
        column = trainer.step in columns or finished
        saved = column or due or stopping
        report = _report(trainer, losses, norms, rates, saved)
        # What is logged depends on the step alone, so that an interrupted run leaves the same log.
        if writes and (trainer.step % log_every == 0 or column or report.stopped != stopped_before):
            run.log(_record(report, trainer))
        if saved:
            save()
            last_saved = time.monotonic()
        try:
            yield report
        except GeneratorExit:
            save()
            raise
        if stopping:
            return


def _report(trainer: Trainer, losses: list[float], norms: list[float], rates: list[float], saved: bool) -> StepReport:
    return StepReport(
        step=trainer.step,
        images_seen=tuple(p.steps * p.arm.images_per_step for p in trainer.progress),
        loss=tuple(losses),
        gradient_norm=tuple(norms),
        lr=tuple(rates),
        stopped=trainer.stopped,
        seconds=trainer.seconds,
        checkpoint=saved,
    )


def _record(report: StepReport, trainer: Trainer) -> dict[str, Any]:
    return {
        "step": report.step,
        "images_seen": list(report.images_seen),
        "loss": list(report.loss),
        "gradient_norm": list(report.gradient_norm),
        "lr": list(report.lr),
        "update_norm": trainer.trainable.update_norm().tolist(),
        "stopped": list(report.stopped),
        "seconds": round(report.seconds, 3),
    }
