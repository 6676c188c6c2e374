"""The main job from end to end: curate, encode, train a LoRA, draw the strip, score it."""

import dataclasses
import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from kanjilab.core.config import DEFAULT_BASE, Arm
from kanjilab.core.images import grayscale
from kanjilab.core.outside_files import read_json_object
from kanjilab.core.progress import bar
from kanjilab.core.run_folder import RunFolder
from kanjilab.core.storage import write_json_atomic
from kanjilab.data.build import build_dataset
from kanjilab.data.image_folder import Dataset
from kanjilab.data.prompts import DEMO
from kanjilab.data.radicals import RADICALS_WANTED
from kanjilab.data.selection import Left16, Rule
from kanjilab.evaluation.judges.radical_judge import RadicalJudge
from kanjilab.evaluation.scoring import caption_prompts, expected_radical_share, score_prompts
from kanjilab.models.loading import LatentDiffusion, cache_folder, load_base
from kanjilab.models.sampling import Sampling, fitting
from kanjilab.training.checkpoints import load_checkpoints
from kanjilab.training.driver import finished_training
from kanjilab.training.encoded import encode_dataset
from kanjilab.training.history import history_strip, sample_history
from kanjilab.training.presets import DEMO_ARM, DEMO_SAMPLING, SCALES, Scale
from kanjilab.viz.animation import save_animation
from kanjilab.viz.charts import draw_loss, save_figure
from kanjilab.viz.strip import save_strip


class Stopwatch:
    """Seconds spent in each named part."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Prints the name of a part and adds up its time."""
        print(f"· {name}", flush=True)
        started = time.perf_counter()
        yield
        self.seconds[name] = round(self.seconds.get(name, 0) + time.perf_counter() - started, 1)


def run_demo(
    folder: Path,
    *,
    rule: Rule | None = None,
    base_name: str = DEFAULT_BASE,
    arm: Arm = DEMO_ARM,
    scale: Scale = SCALES["demo"],
    precision: str = "bf16",
    sampling: Sampling = DEMO_SAMPLING,
) -> dict[str, Any]:
    """Runs the main job in one folder: data/, run/, strip.png, queen.gif, loss.png, report.json.

    Called again, it resumes; what is finished is read, not repeated.

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
    stopwatch = Stopwatch()
    arm = dataclasses.replace(arm, images_seen=scale.images_seen)
    with stopwatch.part("curate"):
        dataset = build_dataset(rule or Left16(), folder / "data", on_progress=bar("curate", kept=True))
    with stopwatch.part("load the base"):
        base = load_base(base_name, precision)
    sampling = fitting(sampling, base)
    with stopwatch.part("encode"):
        data = encode_dataset(base, dataset.split("train"), on_progress=bar("encode", kept=True))
    with stopwatch.part("train"):
        run = finished_training(base, data, [arm], folder / "run", scale.checkpoints)
    recipe = {"scale": dataclasses.asdict(scale), "sampling": sampling.to_json()}
    if report := _finished_report(folder, run, dataset, recipe):
        return report
    with stopwatch.part("draw the strip"):
        draw_pictures(base, run, folder, scale, sampling)
    with stopwatch.part("score"):
        scores = score_run(base, run, dataset, scale.captions_per_radical, sampling)
    report = describe(run, dataset, scores, stopwatch) | recipe
    write_json_atomic(folder / "report.json", report)
    return report


def _finished_report(folder: Path, run: RunFolder, dataset: Dataset, recipe: dict[str, Any]) -> dict[str, Any] | None:
    """The report of an earlier call, if it describes this run at its present step; else None."""
    if not (folder / "report.json").is_file():
        return None
    report, seen = read_report(folder), run.read_log()["images_seen"].iloc[-1][0]
    wanted = recipe | {"run": run.settings["hash"], "images_seen": seen}
    same = all(report.get(name) == value for name, value in wanted.items())
    return report if same and report["data"]["hash"] == dataset.content_hash else None


def draw_pictures(base: LatentDiffusion, run: RunFolder, folder: Path, scale: Scale, sampling: Sampling) -> None:
    """Writes strip.png, queen.gif and loss.png, each with its JSON."""
    seeds = list(range(scale.seeds))
    images, facts = sample_history(base, run, DEMO, seeds, sampling, on_progress=bar("sample", kept=True))
    save_strip(history_strip(images, facts, _title(run)), folder / "strip.png")
    labels = [f"{seen:,} images" if seen else "before training" for seen in facts["images_seen"]]
    frames = images[:, DEMO.index("queen"), 0]
    frames = grayscale(frames) if base.channels == 3 else frames
    save_animation(frames, labels, folder / "queen.gif", title="queen", facts=facts)
    facts = {"run": run.settings["hash"], "settings": run.settings}
    save_figure(draw_loss(run.read_log()), folder / "loss.png", facts)


def _title(run: RunFolder) -> str:
    arm = run.arm(0)
    layers = "all layers" if arm.targets == "all" else arm.targets
    trained = "every weight" if arm.targets == "full" else f"LoRA of rank {arm.rank} on {layers}"
    return f"{run.settings['base']}, {trained}" + (", shuffled captions" if arm.shuffled_captions else "")


def score_run(
    base: LatentDiffusion, run: RunFolder, dataset: Dataset, captions_per_radical: int, sampling: Sampling, arm: int = 0
) -> pd.DataFrame:
    """How often the expected radical is found before and after training, for training and held-out captions.

    Args:
        captions_per_radical: prompts drawn from each split, for each radical.
        arm: which arm of the run.
    Raises:
        ValueError: the run has no checkpoint from before training.
    Returns:
        One row a prompt set and checkpoint: prompts, images, rate, low, high (95% interval).
    """
    if (steps := run.checkpoints())[0]:
        raise ValueError(f"{run.path}: expected a checkpoint from before training, step 0, got {steps[0]:,} and later")
    judge = RadicalJudge.load_or_fit(cache_folder() / "judges")
    rows = []
    for split, name in (("train", "training captions"), ("held_out", "held-out characters")):
        if split not in set(dataset.table["split"]):
            continue
        prompts = caption_prompts(dataset.split(split), name, captions_per_radical)
        for when, step in (("before", steps[0]), ("after", steps[-1])):
            trained = load_checkpoints(base, run, [step], arm)
            readings, _ = score_prompts(base, judge, prompts, [0], sampling, trained)
            rows.append((name, when, len(prompts.captions), len(readings), *expected_radical_share(readings)))
    return pd.DataFrame(rows, columns=["captions", "training", "prompts", "images", "rate", "low", "high"])


def run_facts(run: RunFolder, dataset: Dataset) -> dict[str, Any]:
    """What a report says of its training: the run's hash and settings, the data's size and hash."""
    data = {"images": len(dataset.split("train")), "hash": dataset.content_hash}
    return {"run": run.settings["hash"], "settings": run.settings, "data": data}


def describe(run: RunFolder, dataset: Dataset, scores: pd.DataFrame, stopwatch: Stopwatch) -> dict[str, Any]:
    """The contents of report.json."""
    log = run.read_log()
    seen, seconds = log["images_seen"].iloc[-1][0], log["seconds"].iloc[-1]
    # Linux counts in KiB, macOS in bytes.
    unit = 1 if sys.platform == "darwin" else 1024
    losses = np.array([values[0] for values in log["loss"]])
    losses = losses[np.isfinite(losses)]  # none of the step at which an arm is stopped
    tenth = max(1, len(losses) // 10)
    radicals = set(dataset.split("train").table["radical_character"])
    return run_facts(run, dataset) | {
        "images_seen": seen,
        "images_per_second": round(seen / seconds, 1),
        "loss_first_tenth": float(losses[:tenth].mean()) if len(losses) else None,
        "loss_last_tenth": float(losses[-tenth:].mean()) if len(losses) else None,
        "stopped": log["stopped"].iloc[-1][0],
        "scores": scores.to_dict("records"),
        "chance": "one radical in sixteen, 6%" if len(radicals) == RADICALS_WANTED else None,
        "seconds": stopwatch.seconds,
        "peak_memory_gb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9, 2),
    }


def report_table(report: dict[str, Any]) -> str:
    """The report as a few lines of text."""
    chance = "chance 6%, " if report["chance"] else ""
    losses = [report[name] for name in ("loss_first_tenth", "loss_last_tenth")]
    loss = "no loss" if None in losses else "loss {:.3f} -> {:.3f}".format(*losses)
    lines = [
        f"{report['images_seen']:,} images seen at {report['images_per_second']:g} images/s; "
        f"{loss}; peak memory {report['peak_memory_gb']:g} GB",
        *([f"stopped early at {report['stopped']}"] if report.get("stopped") else []),
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
    """The report of a finished demo.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is damaged.
    """
    return read_json_object(folder / "report.json", "a demo's report")
