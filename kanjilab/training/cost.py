"""What a training costs on this machine: seconds and memory, measured on a few of its steps."""

import resource
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator

from kanjilab.core.config import Arm
from kanjilab.models.loading import LatentDiffusion
from kanjilab.models.memory import GIGABYTE
from kanjilab.training.encoded import Encoded
from kanjilab.training.trainer import Trainer

CHECKPOINT_COPIES = 10  # of the arms' weights: a checkpoint's five, as tensors and as bytes


@dataclass(frozen=True)
class Cost:
    """What was measured on a few steps.

    Attributes:
        seconds_per_step: median, of all arms together.
        gigabytes: of memory at the peak, of this process.
    """

    seconds_per_step: float
    gigabytes: float


def measure_steps(base: LatentDiffusion, data: Encoded, arms: Sequence[Arm], steps: int = 2) -> Cost:
    """Trains a few steps that are thrown away, and measures time and memory.

    Args:
        data: the encoded training images.
        arms: trained together.
        steps: after one to warm up.
    Returns:
        Its memory includes the writing of a checkpoint.
    """
    peak_gigabytes(base.device, reset=True)
    trainer = Trainer(base, data, arms, Accelerator(cpu=base.device.type == "cpu"))
    seconds = []
    while len(seconds) <= steps and all(progress.active for progress in trainer.progress):
        started = time.perf_counter()
        trainer.advance()
        seconds.append(time.perf_counter() - started)
    peak = peak_gigabytes(base.device)
    if base.device.type == "cpu":  # elsewhere the copies are in the host's memory
        peak += CHECKPOINT_COPIES * trainer.rows.values.nbytes / GIGABYTE
    return Cost(float(np.median(seconds[1:] or seconds)), peak)


def peak_gigabytes(device: torch.device, reset: bool = False) -> float:
    """The most memory that this process held since the last reset; a reset forgets all but what is held now."""
    if device.type == "cuda":
        if reset:
            torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.max_memory_allocated(device) / GIGABYTE
    status, forget = Path("/proc/self/status"), Path("/proc/self/clear_refs")
    if not forget.exists():  # no Linux: the peak of the process's whole life
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / GIGABYTE
    if reset:
        forget.write_text("5")
    fields = dict(line.split(":", 1) for line in status.read_text().splitlines())
    return int(fields["VmHWM"].split()[0]) * 1024 / GIGABYTE


def budget_text(arms: Sequence[Arm], training_images: int, cost: Cost | None = None) -> str:
    """How long a training is, and what it takes: "100 steps, 700 images; 2 h at the measured 72 s a step ...".

    Args:
        arms: trained together.
        training_images: of the data, for budgets in epochs.
        cost: measured; None for the counts alone.
    """
    steps = [arm.total_steps(training_images) for arm in arms]
    images = sum(count * arm.images_per_step for count, arm in zip(steps, arms, strict=True))
    text = f"{max(steps):,} steps, {images:,} images"
    if cost is None:
        return text
    time_text = f"{duration(max(steps) * cost.seconds_per_step)} at the measured {cost.seconds_per_step:.3g} s a step"
    return f"{text}; {time_text}; {cost.gigabytes:.1f} GB held"


def duration(seconds: float) -> str:
    """Time as people say it: "40 s", "6 min 10 s", "2 h 5 min"."""
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds} s"
    minutes, seconds = divmod(seconds, 60)
    if minutes < 60:
        return f"{minutes} min {seconds} s" if seconds else f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if minutes else f"{hours} h"
