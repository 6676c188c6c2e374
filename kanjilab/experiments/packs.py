"""Packs, which are arms trained together: how a study is cut into them, what each costs, and how it is run."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from kanjilab.core.config import Arm, settings_hash
from kanjilab.core.outside_files import JSON_BYTES_MAX, read_file
from kanjilab.core.progress import open_bar
from kanjilab.core.run_errors import RunLocked
from kanjilab.core.run_folder import RunFolder
from kanjilab.core.storage import temporary_name, write_json_atomic
from kanjilab.evaluation.metrics import mean_pairwise_distance
from kanjilab.evaluation.scoring import glyphs_of
from kanjilab.experiments.context import StudyContext
from kanjilab.models.loading import LatentDiffusion
from kanjilab.models.memory import GIGABYTE, free_bytes
from kanjilab.models.sampling import sample
from kanjilab.models.trainable import Trainable
from kanjilab.training.checkpoints import load_checkpoints
from kanjilab.training.cost import measure_steps, peak_gigabytes
from kanjilab.training.data_order import draw_example
from kanjilab.training.driver import run_training
from kanjilab.training.encoded import Encoded
from kanjilab.training.loop import is_finished
from kanjilab.training.schedules import checkpoint_steps
from kanjilab.training.trainer import denoising_errors

LOSS_SEED = 0  # of timesteps and noise of the held-out loss: the same for all arms of all studies
SAVE_EVERY_SECONDS = 600.0
EMPTYING = "emptying"  # a file in the folder of a drawn pack whose checkpoints are to be removed


@dataclass(frozen=True)
class Pack:
    """Arms that are trained together, and their cost.

    Attributes:
        keys: of the arms, see `StudyContext.key`.
        seconds: of training and drawing, measured on a few steps.
        gigabytes: of memory at the peak.
    """

    keys: tuple[str, ...]
    seconds: float
    gigabytes: float


def cut_into_packs(
    trainings: Mapping[str, tuple[Arm, Encoded]], most: Callable[[Arm, Encoded], int]
) -> list[tuple[str, ...]]:
    """Cuts arms into few packs: in each the same dataset, batch and layers, and similar steps and ranks.

    Args:
        trainings: key -> settings and data.
        most: how many arms like this one a pack may have, >= 1.
    Returns:
        Keys of each pack; an arm that trains every weight is a pack by itself, since it cannot be stacked.
    """
    groups: dict[tuple, list[str]] = {}
    for key, (arm, data) in trainings.items():
        alike = (data.identity, arm.batch, arm.accumulation, *arm.parts.values(), arm.targets)
        groups.setdefault(alike, []).append(key)
    packs = []
    for group in groups.values():
        pack: list[str] = []
        room = math.inf
        # Smaller ranks are padded to the widest, so the widest decides how many arms fit.
        for key in sorted(group, key=lambda key: _length_and_rank(*trainings[key])):
            own = 1 if trainings[key][0].targets == "full" else most(*trainings[key])
            room = min(room, own)
            if len(pack) >= room:
                packs.append(tuple(pack))
                pack, room = [], own
            pack.append(key)
        packs.append(tuple(pack))
    return packs


def _length_and_rank(arm: Arm, data: Encoded) -> tuple[int, int]:
    return arm.total_steps(len(data)), arm.rank


def plan(context: StudyContext, most_arms: int = 8, memory_gb: float | None = None, share: float = 0.8) -> list[Pack]:
    """The study's packs, the claim's own arms first. The first call stores them, so that they keep their numbers.

    Arms that are kept elsewhere (`StudyContext.kept`) are in none. Arms that are stored in the folder already, by
    another study or an earlier form of this one, come last, in packs of their own.

    Args:
        most_arms: in one pack.
        memory_gb: memory that a training may take.
        share: of the memory that is free now, if memory_gb is None.
    """
    trainings = {key: training for key, training in context.trainings().items() if key not in context.kept}
    asked = settings_hash([list(trainings), context.drawing, most_arms, memory_gb])
    path = context.folder / "plans" / f"{asked}.json"
    if not path.exists():
        first = next(iter(context.study.contrasts), ())  # a single variant has none
        claimed = {context.key(v, seed) for v, seed in context.study.cells() if v.label in first}
        stored = stored_moments(context)
        parts: tuple[dict[str, tuple[Arm, Encoded]], ...] = ({}, {}, {})
        for key, training in trainings.items():
            parts[2 if key in stored else 0 if key in claimed else 1][key] = training
        room = _room(context.base, most_arms, memory_gb, share)
        packs = [_measured(context, keys) for part in parts for keys in cut_into_packs(part, room)]
        path.parent.mkdir(exist_ok=True)
        _write_first(path, [dataclasses.asdict(pack) for pack in packs])
    try:
        stored = json.loads(read_file(path, "the packs of a study", JSON_BYTES_MAX))
        return [Pack(**values | {"keys": tuple(values["keys"])}) for values in stored]
    except (ValueError, LookupError, TypeError) as error:
        raise ValueError(
            f"{path}: expected the packs of a study, got a damaged file ({error!r:.200}); "
            "remove it, and it is made again"
        ) from error


def _write_first(path: Path, content: Any) -> None:
    """Writes a file unless it exists: of several processes the first one wins."""
    temporary = write_json_atomic(path.with_name(temporary_name(path.name)), content)
    try:
        os.link(temporary, path)
    except FileExistsError:
        pass
    except OSError:  # a file system without hard links
        if not path.exists():
            temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _room(
    base: LatentDiffusion, most_arms: int, memory_gb: float | None, share: float
) -> Callable[[Arm, Encoded], int]:
    """How many arms like a given one fit into memory; each shape of a step is measured once."""
    idle = peak_gigabytes(base.device, reset=True)
    limit = idle + share * free_bytes(base.device) / GIGABYTE if memory_gb is None else memory_gb
    known: dict[tuple, int] = {}

    def room(arm: Arm, data: Encoded) -> int:
        if (shape := arm.step_shape) not in known:
            peak = measure_steps(base, data, [arm, dataclasses.replace(arm, seed=arm.seed + 1)], steps=0).gigabytes
            known[shape] = max(1, min(most_arms, int((limit - idle) / max(1e-9, (peak - idle) / 2))))
        return known[shape]

    return room


def _measured(context: StudyContext, keys: tuple[str, ...]) -> Pack:
    """A pack with its cost, from a few of its own steps and one step of drawing."""
    trainings = context.trainings()
    arms, data = [trainings[key][0] for key in keys], trainings[keys[0]][1]
    cost = measure_steps(context.base, data, arms)
    per_image = _seconds_per_image(context, arms[-1])
    images = len(keys) * context.study.checkpoints * len(context.captions) * len(context.study.noise_seeds)
    # The arms that end first leave the rest faster.
    steps = float(np.mean([arm.total_steps(len(data)) for arm in arms]))
    return Pack(keys, round(cost.seconds_per_step * steps + per_image * images, 1), round(cost.gigabytes, 2))


def plan_text(context: StudyContext, packs: Sequence[Pack]) -> str:
    """The plan in words: a line for each pack, with what it trains and how long that takes."""
    trainings, stored = context.trainings(), stored_moments(context)
    lines, left = [], 0.0
    for number, pack in enumerate(packs):
        done = all(key in stored for key in pack.keys)
        left += 0.0 if done else pack.seconds
        arms = [trainings[key][0] for key in pack.keys]
        ranks = "/".join(str(rank) for rank in sorted({arm.rank for arm in arms}))
        what = "every weight" if arms[0].targets == "full" else f"{arms[0].targets}, rank {ranks}"
        cost = "stored" if done else f"about {pack.seconds / 60:.1f} min, {pack.gigabytes:.1f} GB"
        lines.append(f"  pack {number}: {len(arms)} x ({what}, batch {arms[0].batch}): {cost}")
    kept = sum(key in context.kept for key in trainings)
    count = f"{len(trainings) - kept} arms" + (f" beside {kept} that are kept" if kept else "")
    head = f"{context.study.name}: {count} in {len(packs)} packs, about {left / 60:.1f} min to go on this machine"
    return "\n".join([head, *lines])


def _seconds_per_image(context: StudyContext, arm: Arm) -> float:
    trainable = Trainable(context.base.denoiser, [arm], context.base.text_encoder)
    captions = context.captions[: context.drawn_together]
    one_step = dataclasses.replace(context.study.sampling, steps=1)
    started = time.perf_counter()
    sample(context.base, captions, [0], one_step, trainable=trainable, batch=context.drawn_together)
    return (time.perf_counter() - started) / len(captions) * context.study.sampling.steps


@dataclass(frozen=True)
class Moment:
    """One arm at one moment of its training, drawn and measured.

    Attributes:
        key: of the arm.
        number: 1 for the first moment scored, `final` for the last.
        step, images_seen: how far the arm had come.
        stopped: why it ended early, or None.
        diversity: mean distance between any two of the drawn images, see `mean_pairwise_distance`.
        held_out_loss: plain mean squared error on held-out images; None where there are none or it is not finite.
        samples: name of the drawn images in the run folder.
        run, folder: hash and folder of the training.
        seconds: of the training, shared evenly by its arms.
    """

    key: str
    number: int
    final: bool
    step: int
    images_seen: int
    stopped: str | None
    diversity: float
    held_out_loss: float | None
    samples: str
    run: str
    folder: str
    seconds: float


def stored_moments(context: StudyContext) -> dict[str, list[Moment]]:
    """What is stored anywhere below the study's folder, by the arm's key."""
    return moments_below(context.folder, context.drawing)


def moments_below(folder: Path, drawing: str) -> dict[str, list[Moment]]:
    """What is stored below a folder, by the arm's key.

    Args:
        folder: of the study.
        drawing: see `StudyContext.drawing`.
    """
    found: dict[str, list[Moment]] = {}
    for path in sorted(folder.rglob(f"results/{drawing}.json")):
        run = str(path.parents[1].relative_to(folder))
        by_key: dict[str, list[Moment]] = {}
        try:
            for values in json.loads(read_file(path, "what was measured of arms", JSON_BYTES_MAX)):
                by_key.setdefault(values["key"], []).append(Moment(**values | {"folder": run}))
        except (ValueError, LookupError, TypeError, RecursionError) as error:
            raise ValueError(
                f"{path}: expected what was measured of arms, got a damaged file ({error!r:.200}); "
                "remove it, and it is measured again"
            ) from error
        found = by_key | found
    return found


def missing(context: StudyContext) -> int:
    """How many of the study's different arms are neither stored nor kept elsewhere."""
    there = stored_moments(context).keys() | context.kept.keys()
    return sum(key not in there for key in context.trainings())


def run_pack(
    context: StudyContext,
    pack: Pack,
    keep_adapters: bool = False,
    progress: bool = True,
    on_progress: Callable[[str, int, int], None] = lambda stage, done, total: None,
) -> None:
    """Trains the arms of a pack that are not stored, draws and measures them, and removes the checkpoints.

    Args:
        keep_adapters: keep the last checkpoint, for strips and exports.
        progress: show bars.
        on_progress: called with ("train", images seen, of all) after each step and ("draw", arms, of all) after each
            arm. What it raises ends the pack; the next call goes on.
    Raises:
        RunLocked: another process trains it.
        InterruptedError: a STOP file ended the training, or the drawing after the arm that was drawn.
    """
    stored = stored_moments(context)
    if not (keys := [key for key in pack.keys if key not in stored]):
        for name in {stored[key][0].folder for key in pack.keys}:
            _finish_emptying(context.folder / name)
        return
    trainings = context.trainings()
    arms, data = [trainings[key][0] for key in keys], trainings[keys[0]][1]
    folder = context.folder / "packs" / settings_hash([keys, context.study.checkpoints])
    images = max(arm.total_steps(len(data)) * arm.images_per_step for arm in arms)
    # A checkpoint of eight wide arms takes gigabytes, so it is written less often than one of a single arm.
    run = run_training(
        context.base,
        data,
        arms,
        folder,
        context.study.checkpoints,
        save_every_seconds=SAVE_EVERY_SECONDS,
        progress=progress,
        on_step=lambda report: on_progress("train", max(report.images_seen), images),
    )
    with run.lock():
        _draw_pack(context, run, keys, arms, data, keep_adapters, progress, on_progress)
    _finish_emptying(folder)


def _draw_pack(
    context: StudyContext,
    run: RunFolder,
    keys: Sequence[str],
    arms: Sequence[Arm],
    data: Encoded,
    keep_adapters: bool,
    progress: bool,
    on_progress: Callable[[str, int, int], None],
) -> None:
    """Draws, measures and stores the arms of a finished training, and marks its checkpoints for removal."""
    moments: list[Moment] = []
    for k, key in enumerate(open_bar(keys, desc="draw", unit="arm", disable=not progress)):
        if run.stop_requested() or not is_finished(run):
            raise InterruptedError(f"{run.path} was stopped before its end; the same call goes on with it")
        moments += _arm_moments(context, run, k, key, arms[k], data)
        on_progress("draw", k + 1, len(keys))
    (run.path / "results").mkdir(exist_ok=True)
    if keep_adapters:
        (run.path / EMPTYING).unlink(missing_ok=True)
    else:
        (run.path / EMPTYING).touch()
    contents = [dataclasses.asdict(moment) for moment in moments]
    write_json_atomic(run.path / "results" / f"{context.drawing}.json", contents)
    if keep_adapters:
        run.rotate(1)


def _finish_emptying(folder: Path) -> None:
    """Removes a pack's checkpoints: optimizers and adapters are many times larger than the drawn images."""
    if (folder / EMPTYING).exists():
        run = RunFolder.open(folder)
        with contextlib.suppress(RunLocked), run.lock():
            run.truncate_checkpoints(-1)
            (folder / EMPTYING).unlink(missing_ok=True)  # another process may have been first


def _arm_moments(context: StudyContext, run: RunFolder, k: int, key: str, arm: Arm, data: Encoded) -> Iterator[Moment]:
    """Draws and measures one arm at each scored moment; an arm that ended early counts as it was then."""
    last = run.checkpoints()[-1]
    wanted = checkpoint_steps(arm.total_steps(len(data)), context.study.checkpoints)[1:]
    moment: Moment | None = None
    for number, step in enumerate((min(step, last) for step in wanted), start=1):
        if moment is None or moment.step != step:
            moment = _moment(context, run, k, key, arm, step)
        yield dataclasses.replace(moment, number=number, final=number == len(wanted))


def _moment(context: StudyContext, run: RunFolder, k: int, key: str, arm: Arm, step: int) -> Moment:
    """One arm at one checkpoint, measured, and drawn unless its images are stored."""
    state = run.read_state(step)
    trainable = load_checkpoints(context.base, run, [step], k)
    name = f"{key}-{step:06d}-{context.drawing}"
    facts = {"arm": arm.to_json(), "key": key, "images_seen": state["arms"][k]["images_seen"]}
    if name not in run.samples():
        run.write_samples(name, _draw(context, trainable), facts | _drawn_facts(context))
    glyphs = glyphs_of(run.read_samples(name)[0])
    return Moment(
        key=key,
        number=1,
        final=True,
        step=step,
        images_seen=state["arms"][k]["images_seen"],
        stopped=state["arms"][k]["stopped"],
        diversity=mean_pairwise_distance(glyphs) if len(glyphs) > 1 else 0.0,
        held_out_loss=_held_out_loss(context, trainable),
        samples=name,
        run=run.settings["hash"],
        folder="",
        seconds=round(state["seconds"] / len(state["arms"]), 1),
    )


def _drawn_facts(context: StudyContext) -> dict[str, Any]:
    """What a judge needs to read the images without the study."""
    study = context.study
    prompts = [
        {"split": split, "prompt": caption, "expected": sorted(wanted)}
        for split, asked in context.prompts.items()
        for caption, wanted in zip(asked.captions, asked.expected, strict=True)
    ]
    return {"prompts": prompts, "noise_seeds": list(study.noise_seeds), "sampling": study.sampling.to_json()}


def _draw(context: StudyContext, trainable: Trainable) -> np.ndarray:
    """(P, S, H, W[, 3]) uint8; one arm at a time, as merged weights cost less and a kill loses one arm's images."""
    seeds, sampling = context.study.noise_seeds, context.study.sampling
    return sample(context.base, context.captions, seeds, sampling, trainable=trainable, batch=context.drawn_together)[0]


@torch.no_grad()
def _held_out_loss(context: StudyContext, trainable: Trainable) -> float | None:
    """Plain mean squared error on held-out images, at timesteps and noises that all arms share."""
    base, data = context.base, context.held_out
    if data is None:
        return None
    errors: list[float] = []
    shape = data.mean.shape[1:]
    draws = [draw_example(LOSS_SEED, i, len(data), shape, base.timesteps) for i in range(context.study.loss_images)]
    for start in range(0, len(draws), context.drawn_together):
        chunk = draws[start : start + context.drawn_together]
        captions = data.caption[[draw.row for draw in chunk]]
        pairs = [(0, len(chunk))]
        with trainable.attached(pairs):
            errors += denoising_errors(base, data, chunk, captions, trainable, pairs)[0].tolist()
    loss = float(np.mean(errors))
    return loss if math.isfinite(loss) else None
