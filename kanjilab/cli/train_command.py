"""A training from the command line: a preset or plain settings, its cost told first, and what follows it."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from kanjilab.core.config import PRECISIONS, Arm
from kanjilab.core.progress import bar
from kanjilab.core.run_folder import RunFolder
from kanjilab.data.image_folder import Dataset, open_dataset
from kanjilab.experiments.packs import measure_steps
from kanjilab.export.release import pictures_of, release_arm
from kanjilab.models.loading import LatentDiffusion, load_base, usual_device
from kanjilab.models.memory import Setting, require_memory
from kanjilab.training.cost import Cost
from kanjilab.training.driver import run_training
from kanjilab.training.encoded import blank_encoded, encode_dataset
from kanjilab.training.loop import is_finished
from kanjilab.training.presets import Preset, arms_of, find_preset


@dataclass(frozen=True)
class Recipe:
    """What is trained on which base.

    Attributes:
        base, precision, gradient_checkpointing: as for `load_base`.
        arms: trained together.
        checkpoints: after the one before training.
        preset: where it comes from, or None.
    Raises:
        ValueError: an unknown precision, or no checkpoints.
    """

    base: str
    precision: str
    arms: tuple[Arm, ...]
    checkpoints: int
    gradient_checkpointing: bool = False
    preset: Preset | None = None

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS:
            raise ValueError(f"precision must be one of {PRECISIONS}, got {self.precision!r}")
        if self.checkpoints < 1:
            raise ValueError(f"checkpoints must be >= 1, got {self.checkpoints}")

    @classmethod
    def of(
        cls,
        preset: str,
        changes: Mapping[str, Any],
        axis: str = "",
        values: Sequence[Any] = (),
        *,
        base: str | None = None,
        precision: str | None = None,
        checkpoints: int | None = None,
    ) -> "Recipe":
        """A preset's settings, or the defaults, with changes.

        Args:
            preset: a key of `PRESETS`, or '' for none.
            changes: setting -> value, in every arm.
            axis: a setting to vary, or ''.
            values: of the axis, one arm each.
            base, precision, checkpoints: in place of the preset's.
        Raises:
            ValueError: an unknown preset or setting, or a value outside its range.
        """
        found = find_preset(preset) if preset else None
        arms = arms_of(found.arms if found else (Arm(),), changes, axis, values)
        return cls(
            base=base or (found.base if found else "pocket"),
            precision=precision or (found.precision if found else "bf16"),
            arms=tuple(arms),
            checkpoints=checkpoints if checkpoints is not None else found.checkpoints if found else 8,
            preset=found,
        )


def run_recipe(
    recipe: Recipe,
    data: Path,
    folder: Path,
    *,
    tracker: str = "none",
    dry_run: bool = False,
    say: Callable[[str], None] = print,
) -> RunFolder | None:
    """Tells what a training takes, trains, and of a preset hands over strips, LoRAs and workflows.

    Args:
        data: an image folder with images of the split `train`.
        folder: the run: new, or of an earlier call with the same settings.
        tracker: `tensorboard`, `wandb` or `none`.
        dry_run: whether to stop after the cost.
        say: takes each line of what is going on.
    Returns:
        The run, or None after a dry run.
    Raises:
        ValueError: no training images, settings that do not fit the base or the memory, a run of other settings.
    """
    accelerator = Accelerator(
        cpu=usual_device().type == "cpu",
        log_with=None if tracker == "none" else tracker,
        project_dir=str(folder / "trackers"),
    )
    tell = say if accelerator.is_main_process else _say_nothing
    images = _training_images(data)
    for line in recipe.preset.notes() if recipe.preset else ():
        tell(line)
    shown = accelerator.is_main_process
    setting = Setting(recipe.arms, recipe.precision, recipe.gradient_checkpointing)
    memory = require_memory(recipe.base, setting, accelerator.device, size_px=images.size_px)
    begun = (folder / "settings.json").exists()
    if recipe.preset or dry_run:
        arms = "1 arm" if len(recipe.arms) == 1 else f"{len(recipe.arms)} arms"
        tell(f"{arms}: {Cost.of(recipe.arms, len(images))}; estimated memory {memory}")
    if recipe.preset:
        tell(f"strip at the end: {_strip_cost(recipe.preset, recipe)}")
    base = load_base(
        recipe.base, recipe.precision, accelerator.device, gradient_checkpointing=recipe.gradient_checkpointing
    )
    if dry_run or (recipe.preset and not begun):
        tell(f"measured: {_measured_cost(base, images, recipe.arms)}")
    if dry_run:
        return None
    encoded = encode_dataset(base, images, on_progress=bar("encode", shown=shown, kept=True))
    before = RunFolder.open(folder).checkpoints() if begun else []
    run = run_training(base, encoded, recipe.arms, folder, recipe.checkpoints, accelerator=accelerator)
    _tell_how_it_ended(run, before, tell)
    if recipe.preset and shown and is_finished(run):
        _release(base, run, recipe.preset, tell)
    return run


def _say_nothing(line: str) -> None:
    """Of several processes one speaks."""


def _training_images(folder: Path) -> Dataset:
    images = open_dataset(folder)
    if "train" not in (splits := sorted(set(images.table["split"]))):
        raise ValueError(f"{folder}: expected images of the split 'train', got {splits}")
    return images.split("train")


def _measured_cost(base: LatentDiffusion, images: Dataset, arms: Sequence[Arm]) -> Cost:
    seconds, gigabytes = measure_steps(base, blank_encoded(base, images.size_px, len(images)), arms)
    return dataclasses.replace(Cost.of(arms, len(images)), seconds_per_step=seconds, peak_gb=gigabytes)


def _strip_cost(preset: Preset, recipe: Recipe) -> str:
    pictures = pictures_of(recipe.checkpoints, preset.prompts)
    return f"{pictures} pictures of {preset.sampling.steps} denoising steps for each arm"


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
