"""A panel's trainings: where each is, how far it has come, what it will cost.

<folder>/data/<hash>/         image folders
<folder>/runs/<hash>/         run folders, by the name of their job
<folder>/runs/<hash>.json     that job
<folder>/last.json            which of them a panel showed last
<folder>/costs.json           seconds of a step and memory, as measured on this machine
"""

from __future__ import annotations

import dataclasses
import platform
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from kanjilab.core.config import Arm, settings_hash
from kanjilab.core.notices import notice_once
from kanjilab.core.outside_files import read_json_object
from kanjilab.core.run_folder import RunError, RunFolder
from kanjilab.core.storage import write_json_atomic
from kanjilab.data.prompts import DEMO
from kanjilab.experiments.context import open_data
from kanjilab.models.loading import LatentDiffusion, load_base
from kanjilab.models.sampling import Sampling
from kanjilab.training.cost import Cost, duration, measure_steps
from kanjilab.training.driver import run_training
from kanjilab.training.encoded import Encoded, encode_dataset
from kanjilab.training.history import sample_history, stored_history
from kanjilab.training.job import TrainingJob
from kanjilab.training.presets import DEMO_ARM, DEMO_SAMPLING, SCALES
from kanjilab.training.schedules import checkpoint_steps
from kanjilab.training.trainer import StepReport
from kanjilab.viz.charts import arm_values
from kanjilab.widgets.worker import POLL_SECONDS, Worker

NEW, GOING_ON, STOPPED, FINISHED = "new", "going on", "stopped", "finished"
BUTTONS = {NEW: "Start", GOING_ON: "Running", STOPPED: "Resume", FINISHED: "Load"}
RECORDS_OF_A_RATE = 5
PANEL_ARM = dataclasses.replace(DEMO_ARM, images_seen=SCALES["demo"].images_seen)
PANEL_JOB = TrainingJob(arms=(PANEL_ARM,), checkpoints=SCALES["demo"].checkpoints)


def panel_job(arm: Arm, **settings: Any) -> TrainingJob:
    """The job of a panel, with one arm.

    Args:
        arm: its budget given as `images_seen`, so that the steps are known before the data are there.
        settings: other than the panel's own, as for `TrainingJob`.
    Raises:
        ValueError: an arm without images_seen, or settings that `TrainingJob` refuses.
    """
    if arm.images_seen is None:
        raise ValueError("expected an arm whose budget is images_seen, got one counted in epochs")
    return dataclasses.replace(PANEL_JOB, arms=(arm,), **settings)


@dataclass(frozen=True)
class Drawing:
    """What the strip shows: every prompt in every noise, one column a checkpoint."""

    prompts: tuple[str, ...] = DEMO
    seeds: tuple[int, ...] = (0,)
    sampling: Sampling = DEMO_SAMPLING


@dataclass(frozen=True)
class RunState:
    """How far a training has come, read from its run folder.

    Attributes:
        kind: "new", "going on", "stopped" or "finished".
        step, images_seen, seconds: of the latest record where it is going on, else of the newest checkpoint.
        total_images: of the whole training; 0 where it is new.
        saved_step: of the newest checkpoint.
        writer: process that trains it now, or None.
        stopping: that process was asked to stop.
        reason: why the arm ended early, or None.
    """

    kind: str = NEW
    step: int = 0
    images_seen: int = 0
    seconds: float = 0.0
    total_images: int = 0
    saved_step: int = 0
    writer: str | None = None
    stopping: bool = False
    reason: str | None = None

    @property
    def button(self) -> str:
        """What the panel's button says."""
        return BUTTONS[self.kind]


def read_state(path: Path) -> RunState:
    """How far a training has come: never begun, going on in some process, killed, stopped or finished.

    Args:
        path: of the run, which need not exist.
    Raises:
        RunError: settings or log are not what a training leaves, whenever it is killed.
    """
    if not (path / "settings.json").exists():
        return RunState()
    run = RunFolder.open(path)
    writer = run.writer()  # before the rest, which may only be newer
    settings, saved = run.settings, _newest_state(run)
    arm = run.arm(0)
    total = arm.total_steps(settings["training_images"])
    progress = saved["arms"][0]
    finished = progress["steps"] >= total or progress["stopped"] is not None
    state = RunState(
        kind=FINISHED if finished else STOPPED,
        step=saved["step"],
        images_seen=progress["images_seen"],
        seconds=saved["seconds"],
        total_images=total * arm.images_per_step,
        saved_step=saved["step"],
        reason=progress["stopped"],
    )
    if writer is None or finished:
        return state
    log, further = run.read_log(), {}
    if len(log) and log["step"].iloc[-1] > state.step:  # an old log of a run that resumes is cut before its first step
        last = log.iloc[-1]
        further = dict(step=int(last["step"]), images_seen=last["images_seen"][0], seconds=float(last["seconds"]))
    return dataclasses.replace(state, kind=GOING_ON, writer=writer, stopping=run.stop_requested(), **further)


def _newest_state(run: RunFolder) -> dict[str, Any]:
    """state.json of the newest checkpoint; of a run without one, its beginning."""
    while steps := run.checkpoints():
        try:
            return run.read_state(steps[-1])
        except (RunError, FileNotFoundError):  # a newer one has taken its place meanwhile
            if run.checkpoints() == steps:
                raise
    return {"step": 0, "seconds": 0.0, "arms": [{"steps": 0, "images_seen": 0, "stopped": None}]}


def images_per_second(pace: Sequence[tuple[float, float]]) -> float | None:
    """Speed over some (images seen, seconds of training), in order; None where they are too few."""
    if len(pace) < 2 or pace[-1][1] <= pace[0][1]:
        return None
    return (pace[-1][0] - pace[0][0]) / (pace[-1][1] - pace[0][1])


def pace_of_log(log: pd.DataFrame) -> list[tuple[float, float]]:
    """(images seen, seconds) of the latest records."""
    if not len(log):
        return []
    seen = arm_values(log, "images_seen")[:, 0]
    return list(zip(seen.tolist(), log["seconds"].tolist(), strict=True))[-RECORDS_OF_A_RATE:]


def progress_text(state: RunState, pace: Sequence[tuple[float, float]]) -> str:
    """How fast a training goes and how long it still takes."""
    rate = images_per_second(pace)
    if rate is None or rate <= 0:
        return ""
    left = max(0, state.total_images - state.images_seen) / rate
    return f"{rate:.1f} images/s, about {duration(left)} left"


def state_text(state: RunState, worker: Worker | None) -> str:
    """How far the training has come, in a sentence."""
    of_all = f"{state.images_seen:,} of {state.total_images:,} images"
    if worker is not None and worker.alive:
        count = f" ({worker.done:,.0f} of {worker.total:,.0f})" if worker.total else ""
        stopping = "; it stops at the next safe moment and leaves a checkpoint" if worker.stopping else ""
        return f"In this kernel: {worker.stage}{count}{stopping}."
    if worker is not None and worker.error is not None:
        return f"Failed: {type(worker.error).__name__}: {worker.error}"
    if state.kind == NEW:
        return "Stopped before its first step." if worker and worker.stopped else "Not begun."
    if state.kind == GOING_ON:
        stopping = "; it was asked to stop" if state.stopping else ""
        return f"Going on in process {state.writer}{stopping}."
    if state.kind == STOPPED:
        return f"Stopped after {of_all}; Resume goes on from the checkpoint of step {state.saved_step:,}."
    rate = f" at {state.images_seen / state.seconds:.1f} images/s" if state.seconds else ""
    early = f"; it ended early: {state.reason}" if state.reason else ""
    return f"Finished: {of_all}{rate}{early}."


def cost_text(job: TrainingJob, cost: Cost | None, state: RunState) -> str:
    """What remains to be done and how long it takes, before it is started."""
    steps = job.arm.total_steps(0)  # its budget is images_seen, so the number of training images plays no part
    left = max(0, steps - state.saved_step) if state.kind != NEW else steps
    known = {
        NEW: "new",
        STOPPED: f"resumable at step {state.saved_step:,}",
        FINISHED: "stored: nothing is trained again",
        GOING_ON: "going on",
    }[state.kind]
    if state.kind == FINISHED:
        return f"{steps:,} steps · {known}"
    if cost is None:
        return f"{left:,} steps · {known} · cost not measured on this machine yet (Start measures it first)"
    time_left = duration(left * cost.seconds_per_step)
    return f"{left:,} steps ≈ {time_left} of training, {cost.gigabytes:.1f} GB of memory (measured) · {known}"


class Workshop:
    """A panel's folder, and the base and data that it loaded last.

    Args:
        folder: new, or of an earlier panel.
        device: where bases go.
        save_every_seconds: between checkpoints, at most.
    """

    def __init__(self, folder: Path, device: str = "cpu", save_every_seconds: float = 60.0):
        self.folder, self.device, self.save_every_seconds = folder, device, save_every_seconds
        self._loaded: tuple[tuple, LatentDiffusion, Encoded] | None = None
        self._turn = threading.RLock()

    def run_path(self, job: TrainingJob) -> Path:
        """The folder of a job's run, which need not exist."""
        return self.folder / "runs" / job.name

    def jobs(self) -> list[TrainingJob]:
        """Of all trainings that were begun here, the latest first."""
        paths = sorted(self.folder.glob("runs/[!.]*.json"), key=lambda path: path.stat().st_mtime, reverse=True)
        return [job for path in paths if (job := _stored_job(path))]

    def last(self, asked: TrainingJob) -> TrainingJob:
        """The job that a panel of these settings showed last; the settings themselves at first."""
        path = self.folder / "last.json"
        last = _made_again(path)
        shown = _job_of(last.get("shown"), path) if last.get("asked") == asked.name else None
        return shown or asked

    def keep(self, job: TrainingJob, asked: TrainingJob) -> None:
        """Store a training that begins now."""
        (self.folder / "runs").mkdir(parents=True, exist_ok=True)
        write_json_atomic(self.folder / "runs" / f"{job.name}.json", job.to_json())
        write_json_atomic(self.folder / "last.json", {"asked": asked.name, "shown": job.to_json()})

    def cost(self, job: TrainingJob) -> Cost | None:
        """What was measured for such steps on this machine, or None."""
        known = self._costs().get(_step_shape(job))
        try:
            return Cost(**known) if known else None
        except (TypeError, ValueError):  # of another version: it is measured again
            return None

    def _costs(self) -> dict[str, Any]:
        return _made_again(self.folder / "costs.json")

    def open(self, job: TrainingJob, worker: Worker) -> tuple[LatentDiffusion, Encoded]:
        """Load the base, draw and encode the data, or take what is there already."""
        wanted = (job.base, job.precision, settings_hash(dict(job.data)))
        if self._loaded is None or self._loaded[0] != wanted:
            worker.tell("load the base")
            base = load_base(job.base, job.precision, self.device)
            worker.tell("draw the data")
            dataset = open_data(job.data, self.folder)
            told: Callable[[int, int], None] = lambda done, total: worker.tell("encode the data", done, total)  # noqa: E731
            self._loaded = (wanted, base, encode_dataset(base, dataset.split("train"), on_progress=told))
        return self._loaded[1], self._loaded[2]

    @contextmanager
    def _alone(self, worker: Worker) -> Iterator[None]:
        """One job at a time: each attaches adapters of its own to the one base."""
        while not self._turn.acquire(timeout=POLL_SECONDS):
            worker.tell("wait for this panel's other job")
        try:
            yield
        finally:
            self._turn.release()

    def measure(self, job: TrainingJob, worker: Worker) -> None:
        """A job: measure and store what a step costs, where that is not known."""
        if self.cost(job) is not None:
            return
        with self._alone(worker):
            base, data = self.open(job, worker)
            worker.tell("measure a few steps")
            cost = measure_steps(base, data, job.arms)
            cost = Cost(round(cost.seconds_per_step, 5), round(cost.gigabytes, 3))
            self.folder.mkdir(parents=True, exist_ok=True)
            write_json_atomic(self.folder / "costs.json", self._costs() | {_step_shape(job): dataclasses.asdict(cost)})

    def train(self, job: TrainingJob, drawing: Drawing, worker: Worker) -> None:
        """A job: measure, train to the end or to a stop, and draw a column at every checkpoint of the strip.

        The columns are drawn between two steps, in the training's own thread: its adapters are not attached then, and
        what is drawn at random is a function of the seed, so the training is the same with and without them.
        """
        with self._alone(worker):
            self._train(job, drawing, worker)

    def _train(self, job: TrainingJob, drawing: Drawing, worker: Worker) -> None:
        self.measure(job, worker)
        base, data = self.open(job, worker)
        path = self.run_path(job)
        columns = set(checkpoint_steps(job.arm.total_steps(len(data)), job.checkpoints))
        begun = self.strip(job, drawing) is not None

        def on_step(report: StepReport) -> None:
            nonlocal begun
            worker.told_of_step(report)
            worker.tell("train")
            if report.step in columns or not begun:
                self.draw(base, path, drawing, worker)
                begun = True

        worker.tell("train")
        run_training(
            base,
            data,
            job.arms,
            path,
            job.checkpoints,
            save_every_seconds=self.save_every_seconds,
            progress=False,
            on_step=on_step,
        )
        self.draw(base, path, drawing, worker)

    def draw(self, base: LatentDiffusion, path: Path, drawing: Drawing, worker: Worker) -> None:
        """Draw what the strip lacks."""
        told: Callable[[int, int], None] = lambda done, total: worker.tell("draw the strip", done, total)  # noqa: E731
        run = RunFolder.open(path)
        sample_history(base, run, drawing.prompts, drawing.seeds, drawing.sampling, on_progress=told)

    def strip(self, job: TrainingJob, drawing: Drawing) -> tuple[np.ndarray, dict[str, Any]] | None:
        """What is drawn of the strip so far, as `sample_history` gives it.

        Args:
            job: of the run.
            drawing: prompts, seeds and sampling of the strip.
        Returns:
            (C, P, S, H, W) uint8 images and their facts; None where nothing is drawn.
        """
        path = self.run_path(job)
        if not (path / "settings.json").exists():
            return None
        return stored_history(RunFolder.open(path), drawing.prompts, drawing.seeds, drawing.sampling)


def _made_again(path: Path) -> dict[str, Any]:
    """What a file of the panel holds; nothing where it is missing, or, with a notice, damaged: it is made again."""
    try:
        return read_json_object(path)
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        notice_once(f"{error}; it is made again")
        return {}


def _stored_job(path: Path) -> TrainingJob | None:
    """A training that was begun; None, with a notice, where its file is damaged: its run can be opened all the same."""
    try:
        return _job_of(read_json_object(path, "the settings of a training"), path)
    except (OSError, ValueError) as error:
        notice_once(f"{error}; the training is not listed")
        return None


def _job_of(content: Any, path: Path) -> TrainingJob | None:
    try:
        return TrainingJob.from_json(content)
    except (LookupError, TypeError, AttributeError, ValueError) as error:
        notice_once(f"{path}: expected the settings of a training, got {error!r:.200}; they are passed over")
        return None


def _step_shape(job: TrainingJob) -> str:
    """The hash of what a step's time and memory depend on."""
    return settings_hash([job.base, job.precision, *job.arm.step_shape, platform.node()])
