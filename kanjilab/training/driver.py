"""Runs a training to its end, with a progress bar and trackers."""

import math
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from pathlib import Path
from typing import cast

from accelerate import Accelerator

from kanjilab.core.config import Arm
from kanjilab.core.progress import begin_at, open_bar
from kanjilab.core.run_folder import RunFolder
from kanjilab.models.loading import LatentDiffusion
from kanjilab.training.encoded import Encoded
from kanjilab.training.loop import between_steps, is_finished, train
from kanjilab.training.trainer import StepReport


def run_training(
    base: LatentDiffusion,
    data: Encoded,
    arms: Sequence[Arm],
    folder: Path,
    checkpoints: int,
    accelerator: Accelerator | None = None,
    save_every_seconds: float = 120.0,
    progress: bool = True,
    on_step: Callable[[StepReport], None] | None = None,
) -> RunFolder:
    """Trains to the end, or goes on where an earlier call was stopped, with a progress bar.

    Args:
        base, data, arms, folder, checkpoints, save_every_seconds: as for `kanjilab.training.loop.train`.
        accelerator: of several processes; its trackers, if any, get loss, gradient norm and rate.
        progress: show the bar.
        on_step: called after every step; what it raises leaves a checkpoint behind, as an interrupt does.
    Returns:
        The run, finished unless a STOP file ended it.
    """
    total = max(arm.total_steps(len(data)) * arm.images_per_step for arm in arms)
    accelerator = accelerator or Accelerator(cpu=base.device.type == "cpu")
    hidden = not (progress and accelerator.is_main_process)
    steps = train(
        base,
        data,
        arms,
        folder,
        checkpoints=checkpoints,
        save_every_seconds=save_every_seconds,
        accelerator=accelerator,
    )
    shown = open_bar(total=total, unit="img", desc="train", smoothing=0.05, disable=hidden)
    # Closed at once when interrupted: a notebook keeps the exception's frames, and with them the run's lock. Until then
    # interrupts wait, for closing writes a checkpoint.
    with between_steps() as check, closing(cast(Generator[StepReport], steps)), shown:
        for number, report in enumerate(steps):
            if number == 0:  # only now is there a run folder, which may hold the trackers' files
                accelerator.init_trackers("kanjilab")
                before = zip(report.images_seen, arms, strict=True)
                begin_at(shown, max(seen - arm.images_per_step for seen, arm in before))
            shown.update(max(report.images_seen) - shown.n)
            shown.set_postfix_str(f"loss {report.loss[0]:.3f}", refresh=False)
            accelerator.log(_tracked(report), step=report.step)
            if on_step is not None:
                on_step(report)
            check()
    accelerator.end_training()
    return RunFolder.open(folder)


def finished_training(
    base: LatentDiffusion, data: Encoded, arms: Sequence[Arm], folder: Path, checkpoints: int
) -> RunFolder:
    """Trains to completion, as `run_training` does.

    Args:
        base, data, arms, folder, checkpoints: as there.
    Raises:
        InterruptedError: a STOP file ended the training.
    """
    run = run_training(base, data, arms, folder, checkpoints)
    if not is_finished(run):
        raise InterruptedError(f"{run.path} was stopped before its end; the same command goes on with it")
    return run


def _tracked(report: StepReport) -> dict[str, float]:
    values = {"loss": report.loss, "gradient_norm": report.gradient_norm, "lr": report.lr}
    return {
        f"{name}/arm_{k}": value
        for name, arms in values.items()
        for k, value in enumerate(arms)
        if math.isfinite(value)
    }
