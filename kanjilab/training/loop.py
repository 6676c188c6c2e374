"""The training as a generator over steps: it resumes, checkpoints and stops cleanly."""

import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from kanjilab import __version__
from kanjilab.core.config import Arm, settings_hash
from kanjilab.core.run_folder import RunError, RunFolder
from kanjilab.core.tensor_files import read_tensors
from kanjilab.models.loading import LatentDiffusion
from kanjilab.training.encoded import Encoded
from kanjilab.training.schedules import checkpoint_steps
from kanjilab.training.trainer import StepReport, Trainer

SAME_INTERRUPT_SECONDS = 1.0
NOT_HASHED = ("family", "prediction", "size_px", "versions")  # the first three follow from base_identity and data


def run_settings(base: LatentDiffusion, data: Encoded, arms: Sequence[Arm], checkpoints: int) -> dict[str, Any]:
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
    versions = {"kanjilab": __version__, "torch": torch.__version__}
    values = base.family, base.prediction, data.mean.shape[-1] * base.latent_px, versions
    return settings | dict(zip(NOT_HASHED, values, strict=True))


def train(
    base: LatentDiffusion,
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
        RunError: its newest checkpoint is damaged, or another training's.
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
    """An interrupt (Ctrl-C) waits until the step is done, so that a checkpoint can be left; a later one acts at once.

    Those that follow within a second are the same one: shells and launchers pass it on once more.

    Yields:
        To be called between two steps: raises KeyboardInterrupt where one waits. It does nothing beside the main
        thread, which alone hears of interrupts, and where they have another meaning than Python's.
    """
    usual, first = signal.getsignal(signal.SIGINT), []  # when the first came
    if threading.current_thread() is not threading.main_thread() or usual is not signal.default_int_handler:
        yield lambda: None
        return

    def wait(number: int, frame: Any) -> None:
        if first and time.monotonic() - first[0] > SAME_INTERRUPT_SECONDS:
            signal.default_int_handler(number, frame)
        first.append(time.monotonic())

    def check() -> None:
        if first:
            raise KeyboardInterrupt

    signal.signal(signal.SIGINT, wait)
    try:
        yield check
    finally:
        signal.signal(signal.SIGINT, usual)


def _differences(stored: Any, asked: Any, name: str = "") -> Iterator[str]:
    """Each setting in which a stored run and the one asked for differ, with both values."""
    if isinstance(stored, dict) and isinstance(asked, dict):
        for key in sorted((stored.keys() | asked.keys()) - {"hash", *NOT_HASHED}):
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
        run.verify_checkpoint(stored[-1])
        state, tensors = run.read_state(stored[-1]), run.checkpoint_path(stored[-1]) / "state.safetensors"
        _check_state(trainer, run, stored[-1], state)
        trainer.restore(state, read_tensors(tensors, device=str(trainer.base.device)))
    if accelerator.is_main_process:
        run.truncate_log(trainer.step)
        if not stored:
            run.write_checkpoint(0, _files(trainer, run))
    accelerator.wait_for_everyone()


def _files(trainer: Trainer, run: RunFolder) -> dict[str, Any]:
    """A checkpoint's files, bound to the run's settings."""
    files = trainer.checkpoint_files()
    return files | {"state.json": files["state.json"] | {"run": run.settings["hash"]}}


def _check_state(trainer: Trainer, run: RunFolder, step: int, state: dict[str, Any]) -> None:
    """Refuses a checkpoint that is another training's, or of steps that this one cannot have done."""
    file = run.checkpoint_path(step) / "state.json"
    if state.get("run", run.settings["hash"]) != run.settings["hash"]:  # older ones do not say
        raise RunError(f"{file}: expected a checkpoint of {run.settings['hash']}, got one of {state['run']}")
    done = [arm["steps"] for arm in state["arms"]]
    most = [min(progress.total_steps, step) for progress in trainer.progress]
    fits = len(done) == len(most) and all(0 <= count <= limit for count, limit in zip(done, most, strict=False))
    if state["step"] != step or not fits:
        raise RunError(f"{file}: expected step {step} and arms of at most {most} steps, got {state['step']} and {done}")


def _steps(
    trainer: Trainer, run: RunFolder, checkpoints: int, save_every_seconds: float, log_every: int
) -> Iterator[StepReport]:
    columns = {s for p in trainer.progress for s in checkpoint_steps(p.total_steps, checkpoints)}
    writes = trainer.accelerator.is_main_process
    last_saved = time.monotonic()

    def save() -> None:
        if writes and trainer.step not in run.checkpoints():
            run.write_checkpoint(trainer.step, _files(trainer, run))
            run.rotate(1, also=sorted(columns))

    while any(progress.active for progress in trainer.progress):
        started, stopped_before = time.perf_counter(), trainer.stopped
        losses, norms, rates = map(tuple, trainer.advance())
        trainer.seconds += time.perf_counter() - started
        finished = not any(progress.active for progress in trainer.progress)
        due = time.monotonic() - last_saved > save_every_seconds
        stopping = trainer.any_process(run.stop_requested())
        column = trainer.step in columns or finished
        saved = column or due or stopping
        seen = tuple(progress.images_seen for progress in trainer.progress)
        report = StepReport(trainer.step, seen, losses, norms, rates, trainer.stopped, trainer.seconds, saved)
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


def _record(report: StepReport, trainer: Trainer) -> dict[str, Any]:
    return {
        "step": report.step,
        **{name: list(getattr(report, name)) for name in ("images_seen", "loss", "gradient_norm", "lr")},
        "update_norm": trainer.trainable.update_norm().tolist(),
        "stopped": list(report.stopped),
        "seconds": round(report.seconds, 3),
    }
