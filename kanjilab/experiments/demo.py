"""The main job from end to end: curate, encode, train a LoRA, draw the strip, score it."""

import dataclasses
import json
import math
import resource
import sys
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import pandas as pd
from accelerate import Accelerator

from kanjilab.core.config import Arm
from kanjilab.core.progress import bar, open_bar
from kanjilab.core.run_folder import RunFolder, write_json_atomic
from kanjilab.data.image_folder import Dataset, build_dataset
from kanjilab.data.prompts import DEMO
from kanjilab.data.radicals import RADICALS_WANTED, Left16, Rule
from kanjilab.evaluation.judges.radical_judge import RadicalJudge
from kanjilab.evaluation.scoring import caption_prompts, expected_radical_share, grayscale, score_prompts
from kanjilab.models.loading import Base, cache_folder, load_base
from kanjilab.models.sampling import Sampling, fitting, load_checkpoints
from kanjilab.training.encoded import Encoded, encode_dataset
from kanjilab.training.history import history_strip, sample_history
from kanjilab.training.trainer import StepReport, between_steps, is_finished, train
from kanjilab.viz.charts import draw_loss, save_figure
from kanjilab.viz.strip import save_animation, save_strip

# Of what was tried on pocket in a few minutes of two cores, this draws the clearest glyphs. What made
# the difference was the weight on high noise, where the prompt decides which parts there are.
DEMO_ARM = Arm(
    targets="all",
    rank=64,
    peak_lr=1.5e-3,
    schedule="linear",
    warmup_steps=100,
    batch=16,
    min_snr_gamma=5.0,
    velocity_weight=True,
    ema_decay=0.99,
    explosion_factor=1000.0,  # a batch near pure noise weighs two hundred times; clipping is enough for it
)
# The article's own setting, for comparison.
ARTICLE_ARM = Arm(targets="cross-attention", alpha=4.0)
DEMO_SAMPLING = Sampling("dpm-solver++", steps=15, guidance=5.0)


@dataclass(frozen=True)
class Scale:
    """How much of the main job is done.

    Args:
        images_seen: budget of the training.
        checkpoints: columns after "before training".
        captions_per_radical: in each of the two scored prompt sets.
        seeds: images per prompt of the strip; the first stands in every column.
    """

    images_seen: int
    checkpoints: int
    captions_per_radical: int
    seeds: int


SCALES = {
    "smoke": Scale(images_seen=64, checkpoints=2, captions_per_radical=1, seeds=2),
    "demo": Scale(images_seen=28_000, checkpoints=6, captions_per_radical=6, seeds=4),
    "full": Scale(images_seen=40_000, checkpoints=8, captions_per_radical=12, seeds=4),
}


class Clock:
    """Seconds spent in each named part."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Announces a part and adds up its time."""
        print(f"· {name}", flush=True)
        started = time.perf_counter()
        yield
        self.seconds[name] = round(self.seconds.get(name, 0) + time.perf_counter() - started, 1)


def run_training(
    base: Base,
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
        base, data, arms, folder, checkpoints, save_every_seconds: as for `kanjilab.training.trainer.train`.
        accelerator: of several processes; its trackers, if any, get loss, gradient norm and rate.
        progress: show the bar.
        on_step: told of every step; what it raises leaves a checkpoint behind, as an interrupt does.
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
    # Closed at once when interrupted: a notebook keeps the exception's frames, and with them the run's lock.
    with closing(cast(Generator[StepReport], steps)), shown, between_steps() as check:
        for number, report in enumerate(steps):
            if number == 0:  # only now is there a run folder, which may hold the trackers' files
                accelerator.init_trackers("kanjilab")
            shown.update(max(report.images_seen) - shown.n)
            shown.set_postfix_str(f"loss {report.loss[0]:.3f}", refresh=False)
            accelerator.log(_tracked(report), step=report.step)
            if on_step is not None:
                on_step(report)
            check()
    accelerator.end_training()
    return RunFolder.open(folder)


def finished_training(base: Base, data: Encoded, arms: Sequence[Arm], folder: Path, checkpoints: int) -> RunFolder:
    """`run_training` for those who can do nothing with half of one.

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


def run_demo(
    folder: Path,
    *,
    rule: Rule | None = None,
    base_name: str = "pocket",
    arm: Arm = DEMO_ARM,
    scale: Scale = SCALES["demo"],
    precision: str = "bf16",
    sampling: Sampling = DEMO_SAMPLING,
) -> dict[str, Any]:
    """Everything into one folder: data/, run/, strip.png, queen.gif, loss.png, report.json.

    Called again it goes on where it was, and what is finished is read, not repeated.

    Args:
        folder: new, or of an earlier call with the same settings.
        rule: which characters; left16 by default.
        base_name: as for `load_base`.
        arm: what is trained; its budget is the scale's.
        scale: how much of everything.
        precision: of the frozen denoiser.
        sampling: of strip and scores; its sampler is changed where it does not fit the base.
    Returns:
        The report that was written: seconds of each part, images/s, peak memory, scores.
    Raises:
        InterruptedError: a STOP file ended the training.
    """
    folder.mkdir(parents=True, exist_ok=True)
    clock = Clock()
    arm = dataclasses.replace(arm, images_seen=scale.images_seen)
    with clock.part("curate"):
        dataset = build_dataset(rule or Left16(), folder / "data", on_progress=bar("curate", kept=True))
    with clock.part("load the base"):
        base = load_base(base_name, precision)
    sampling = fitting(sampling, base)
    with clock.part("encode"):
        data = encode_dataset(base, dataset.split("train"), on_progress=bar("encode", kept=True))
    with clock.part("train"):
        run = finished_training(base, data, [arm], folder / "run", scale.checkpoints)
    recipe = {"scale": dataclasses.asdict(scale), "sampling": sampling.to_json()}
    if report := _finished_report(folder, run, dataset, recipe):
        return report
    with clock.part("draw the strip"):
        draw_pictures(base, run, folder, scale, sampling)
    with clock.part("score"):
        scores = score_run(base, run, dataset, scale.captions_per_radical, sampling)
    report = describe(run, dataset, scores, clock) | recipe
    write_json_atomic(folder / "report.json", report)
    return report


def _finished_report(folder: Path, run: RunFolder, dataset: Dataset, recipe: dict[str, Any]) -> dict[str, Any] | None:
    """The report of an earlier call, where it tells of this very run as far as it has come."""
    if not (folder / "report.json").is_file():
        return None
    report, seen = read_report(folder), run.read_log()["images_seen"].iloc[-1][0]
    wanted = recipe | {"run": run.settings["hash"], "images_seen": seen}
    same = all(report.get(name) == value for name, value in wanted.items())
    return report if same and report["data"]["hash"] == dataset.content_hash else None


def draw_pictures(base: Base, run: RunFolder, folder: Path, scale: Scale, sampling: Sampling) -> None:
    """Writes strip.png, queen.gif and loss.png, each with its JSON."""
    told = bar("sample", kept=True)
    images, facts = sample_history(base, run, DEMO, list(range(scale.seeds)), sampling, on_progress=told)
    save_strip(history_strip(images, facts, _title(run)), folder / "strip.png")
    labels = ["before training", *(f"{seen:,} images" for seen in facts["images_seen"][1:])]
    frames = images[:, DEMO.index("queen"), 0]
    frames = grayscale(frames) if base.channels == 3 else frames
    save_animation(frames, labels, folder / "queen.gif", title="queen", facts=facts)
    facts = {"run": run.settings["hash"], "settings": run.settings}
    save_figure(draw_loss(run.read_log()), folder / "loss.png", facts)


def _title(run: RunFolder) -> str:
    arm = run.arm(0)
    layers = "all layers" if arm.targets == "all" else arm.targets
    trained = "every weight" if arm.targets == "unet" else f"LoRA of rank {arm.rank} on {layers}"
    return f"{run.settings['base']}, {trained}" + (", shuffled captions" if arm.shuffled_captions else "")


def score_run(
    base: Base, run: RunFolder, dataset: Dataset, captions_per_radical: int, sampling: Sampling, arm: int = 0
) -> pd.DataFrame:
    """Expected radical found, before and after training, on training and on held-out captions, where there are any.

    Args:
        captions_per_radical: prompts drawn from each split, for each radical.
        arm: which arm of the run.
    Returns:
        One row a prompt set and checkpoint: prompts, images, rate, low, high (95% interval).
    """
    judge = RadicalJudge.load_or_fit(cache_folder() / "judges")
    steps = run.checkpoints()
    rows = []
    for split, name in (("train", "training captions"), ("held_out", "held-out characters")):
        if split not in set(dataset.table["split"]):
            continue
        prompts = caption_prompts(dataset.split(split), name, captions_per_radical)
        for when, step in (("before", steps[0]), ("after", steps[-1])):
            trained = load_checkpoints(base, run, [step], arm)
            readings, _ = score_prompts(base, judge, prompts, [0], sampling, trained)
            share = expected_radical_share(readings)
            rows.append((name, when, len(prompts.captions), len(readings), *share))
    return pd.DataFrame(rows, columns=["captions", "training", "prompts", "images", "rate", "low", "high"])


def describe(run: RunFolder, dataset: Dataset, scores: pd.DataFrame, clock: Clock) -> dict[str, Any]:
    """The report's contents."""
    log = run.read_log()
    seen, seconds = log["images_seen"].iloc[-1][0], log["seconds"].iloc[-1]
    # Linux counts in KiB, macOS in bytes.
    unit = 1 if sys.platform == "darwin" else 1024
    losses = log["loss"].map(lambda values: values[0])
    radicals = set(dataset.split("train").table["radical_character"])
    return {
        "run": run.settings["hash"],
        "settings": run.settings,
        "data": {"images": len(dataset.split("train")), "hash": dataset.content_hash},
        "images_seen": seen,
        "images_per_second": round(seen / seconds, 1),
        "loss_first_tenth": float(losses.iloc[: max(1, len(losses) // 10)].mean()),
        "loss_last_tenth": float(losses.iloc[-max(1, len(losses) // 10) :].mean()),
        "scores": scores.to_dict("records"),
        "chance": "one radical in sixteen, 6%" if len(radicals) == RADICALS_WANTED else None,
        "seconds": clock.seconds,
        "peak_memory_gb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9, 2),
    }


def report_table(report: dict[str, Any]) -> str:
    """The report as a few lines of text."""
    chance = "chance 6%, " if report["chance"] else ""
    lines = [
        f"{report['images_seen']:,} images seen at {report['images_per_second']:g} images/s; "
        f"loss {report['loss_first_tenth']:.3f} -> {report['loss_last_tenth']:.3f}; "
        f"peak memory {report['peak_memory_gb']:g} GB",
        f"expected radical found ({chance}95% interval over prompts and seeds):",
    ]
    for row in report["scores"]:
        lines.append(
            f"  {row['captions']:20s} {row['training']:7s} {row['rate']:6.1%}  "
            f"[{row['low']:.1%}, {row['high']:.1%}]  {row['images']} images"
        )
    lines.append("seconds: " + ", ".join(f"{name} {value:g}" for name, value in report["seconds"].items()))
    return "\n".join(lines)


def read_report(folder: Path) -> dict[str, Any]:
    """The report of a finished demo."""
    return json.loads((folder / "report.json").read_text())
