"""Learning-rate curves, loss weights, and which checkpoints to keep: pure functions of a step."""

import math

import numpy as np

from kanjilab.core.config import Arm


def lr_factor(arm: Arm, step: int, total_steps: int) -> float:
    """Share of the peak learning rate at an optimizer step.

    After the warm-up, with p in [0, 1] the share of the remaining steps that is done:
    `constant` 1; `linear` 1 - p; `cosine` (1 + cos(pi p)) / 2; `cosine-restarts` the same, run
    `cycles` times; `constant-cooldown` 1, then linearly to 0 over the last `cooldown_share`.
    `periodic` has no warm-up: it falls as a cosine over `warmup_steps`, climbs back over as many, and
    so on to the end, as SimpleTuner's "cosine" does.
    Past the end the value of the last step is kept: nothing rises again.

    Args:
        step: 0-based.
        total_steps: steps of the whole training, warm-up included.
    Returns:
        A number in [0, 1].
    """
    step = min(step, total_steps)
    if arm.schedule == "periodic":
        return 0.5 * (1 + math.cos(math.pi * step / arm.warmup_steps))
    if step < arm.warmup_steps:
        return (step + 1) / arm.warmup_steps
    progress = (step - arm.warmup_steps) / max(1, total_steps - arm.warmup_steps)
    if arm.schedule == "linear":
        return 1 - progress
    if arm.schedule == "cosine":
        return 0.5 * (1 + math.cos(math.pi * progress))
    if arm.schedule == "cosine-restarts":
        within = 1.0 if progress == 1 else (progress * arm.cycles) % 1
        return 0.5 * (1 + math.cos(math.pi * within))
    if arm.schedule == "constant-cooldown":
        return min(1.0, (1 - progress) / arm.cooldown_share)
    return 1.0


def checkpoint_steps(total_steps: int, count: int) -> tuple[int, ...]:
    """Steps to keep a checkpoint at: 0, then ever further apart, then the last.

    Early training changes more per step than late, so the spacing grows as a power of 1.5.

    Args:
        count: number of checkpoints after the one at step 0, >= 1.
    Returns:
        Ascending steps without repeats, from 0 to total_steps.
    """
    if count < 1:
        raise ValueError(f"count must be >= 1, got {count}")
    shares = (np.arange(count + 1) / count) ** 1.5
    return tuple(sorted({round(total_steps * share) for share in shares}))
