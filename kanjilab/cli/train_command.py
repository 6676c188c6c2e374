"""A training from the command line: its cost first, then the training, then what a preset ends with."""

from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path

from accelerate import Accelerator

from kanjilab.core.images import SIZE_PX
from kanjilab.core.notices import counted
from kanjilab.core.progress import bar
from kanjilab.core.run_folder import RunFolder
from kanjilab.data.image_folder import Dataset, open_dataset
from kanjilab.export.release import pictures_of, release_arm
from kanjilab.models.loading import LatentDiffusion, load_base, usual_device
from kanjilab.models.memory import Setting, require_memory
from kanjilab.training.cost import budget_text, measure_steps
from kanjilab.training.driver import run_training
from kanjilab.training.encoded import blank_encoded, encode_dataset
from kanjilab.training.job import TrainingJob
from kanjilab.training.loop import is_finished
from kanjilab.training.presets import Preset

TRACKERS = ("tensorboard", "wandb", "none")
SIZE_STEP_PX = 16  # a latent is 8 px, of which a denoiser takes two at once


def run_job(
    job: TrainingJob,
    folder: Path,
    *,
    preset: Preset | None = None,
    size_px: int = SIZE_PX,
    tracker: str = "none",
    dry_run: bool = False,
    say: Callable[[str], None] = print,
) -> RunFolder | None:
    """Says what a training takes, trains, and ends a preset with strips, LoRAs and workflows.

    Args:
        job: its data an image folder with images of the split `train`.
        folder: the run: new, or of an earlier call with the same settings.
        preset: where the job comes from, if from one.
        size_px: side of the square that images are brought to.
        tracker: one of `TRACKERS`.
        dry_run: whether to stop after the cost.
        say: takes each line of output.
    Returns:
        The run, or None after a dry run.
    Raises:
        ValueError: no training images, an unknown tracker or size, settings that do not fit the base or the memory, a
            run of other settings.
    """
    require_tracker(tracker)
    accelerator = Accelerator(
        cpu=usual_device().type == "cpu",
        log_with=None if tracker == "none" else tracker,
        project_dir=str(folder / "trackers"),
    )
    shown = accelerator.is_main_process
    tell = say if shown else lambda line: None  # of several processes one prints
    images = _training_images(Path(job.data["folder"]), size_px)
    begun = (folder / "settings.json").exists()
    _tell_budget(job, preset, images, accelerator, tell, dry_run)
    tell(f"{counted(len(images), 'image')} of {size_px} x {size_px} px")
    base = load_base(job.base, job.precision, accelerator.device, gradient_checkpointing=job.gradient_checkpointing)
    if dry_run or (preset and not begun):
        cost = measure_steps(base, blank_encoded(base, images.size_px, len(images)), job.arms)
        tell(f"measured: {budget_text(job.arms, len(images), cost)}")
    if dry_run:
        return None
    encoded = encode_dataset(base, images, on_progress=bar("encode", shown=shown, kept=True))
    before = RunFolder.open(folder).checkpoints() if begun else []
    run = run_training(base, encoded, job.arms, folder, job.checkpoints, accelerator=accelerator)
    _tell_how_it_ended(run, before, tell)
    if preset and shown and is_finished(run):
        _release(base, run, preset, tell)
    return run


def require_tracker(name: str) -> None:
    """Refuses a tracker that is unknown or not installed, which accelerate would pass over.

    Args:
        name: one of `TRACKERS`.
    """
    if name not in TRACKERS:
        raise ValueError(f"tracker must be one of {', '.join(TRACKERS)}, got {name!r}")
    if name != "none" and find_spec(name) is None:
        raise ValueError(f"tracker {name!r} needs a package that is not installed: pip install {name}")


def _training_images(folder: Path, size_px: int) -> Dataset:
    if size_px % SIZE_STEP_PX:
        raise ValueError(f"size_px must be a multiple of {SIZE_STEP_PX}, got {size_px}")
    images = open_dataset(folder, size_px=size_px)
    if "train" not in (splits := sorted(set(images.table["split"]))):
        raise ValueError(f"{folder}: expected images of the split 'train', got {splits}")
    return images.split("train")


def _tell_budget(
    job: TrainingJob,
    preset: Preset | None,
    images: Dataset,
    accelerator: Accelerator,
    say: Callable[[str], None],
    dry_run: bool,
) -> None:
    """Says what can be known before the base is loaded; refuses what does not fit into memory."""
    for line in preset.notes() if preset else ():
        say(line)
    setting = Setting(job.arms, job.precision, job.gradient_checkpointing)
    memory = require_memory(job.base, setting, accelerator.device, size_px=images.size_px)
    if preset or dry_run:
        arms = "1 arm" if len(job.arms) == 1 else f"{len(job.arms)} arms"
        say(f"{arms}: {budget_text(job.arms, len(images))}; estimated memory {memory}")
    if preset:
        pictures = pictures_of(job.checkpoints, preset.prompts)
        say(f"strip at the end: {pictures} pictures of {preset.sampling.steps} denoising steps for each arm")


def _tell_how_it_ended(run: RunFolder, before: Sequence[int], say: Callable[[str], None]) -> None:
    last = run.checkpoints()[-1]
    if not is_finished(run):
        say(f"{run.path} was stopped at step {last:,}; the same command goes on with it")
    elif run.checkpoints() == before:
        say(f"{run.path} was finished before; nothing was left to train")
    for number, arm in enumerate(run.read_state(last)["arms"]):
        if arm["stopped"]:
            say(f"arm {number} stopped early: {arm['stopped']}")


def _release(base: LatentDiffusion, run: RunFolder, preset: Preset, say: Callable[[str], None]) -> None:
    for arm in range(len(run.settings["arms"])):
        try:
            written = release_arm(base, run, arm, preset.prompts, preset.sampling, bar(f"draw arm {arm}", kept=True))
        except ValueError as error:  # a ruined arm must not keep the others from being written
            say(f"arm {arm}: {error}")
            continue
        for path in written:
            say(str(path))
