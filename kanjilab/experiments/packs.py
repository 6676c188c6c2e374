"""Arms that are trained together: how a study's are cut into few packs, what a pack costs, and how it is done."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import os
import resource
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator

from kanjilab.core.config import Arm, settings_hash
from kanjilab.core.progress import open_bar
from kanjilab.core.run_errors import RunLocked
from kanjilab.core.run_folder import RunFolder
from kanjilab.core.storage import write_json_atomic
from kanjilab.evaluation.metrics import mean_pairwise_distance
from kanjilab.evaluation.scoring import glyphs_of
from kanjilab.experiments.context import Lab
from kanjilab.models.adapters import Trainable, make_trainable
from kanjilab.models.loading import LatentDiffusion
from kanjilab.models.memory import free_bytes
from kanjilab.models.sampling import sample
from kanjilab.training.checkpoints import load_checkpoints
from kanjilab.training.data_order import draw_example
from kanjilab.training.driver import run_training
from kanjilab.training.encoded import Encoded
from kanjilab.training.loop import is_finished
from kanjilab.training.schedules import checkpoint_steps
from kanjilab.training.trainer import Trainer, denoising_errors

LOSS_SEED = 0  # of timesteps and noise of the held-out loss: the same for all arms of all studies
GIGABYTE = 1e9
CHECKPOINT_COPIES = 10  # of the arms' weights: a checkpoint's five, as tensors and as bytes
SAVE_EVERY_SECONDS = 600.0
EMPTYING = "emptying"  # a file in the folder of a pack that is drawn and whose checkpoints are to go


# ---------------------------------------------------------------------------------------------- the plan


@dataclass(frozen=True)
class Pack:
    """Arms that are trained together, and what that takes.

    Attributes:
        keys: of the arms, see `Lab.key`.
        seconds: of training and drawing, measured on a few steps.
        gigabytes: of memory at the peak.
    """

    keys: tuple[str, ...]
    seconds: float
    gigabytes: float


def cut_into_packs(
    trainings: Mapping[str, tuple[Arm, Encoded]], most: Callable[[Arm, Encoded], int]
) -> list[tuple[str, ...]]:
    """Few packs of arms that go well together: one dataset, one batch, the same layers; alike in steps and rank.

    Args:
        trainings: key -> settings and data.
        most: how many arms like this one a pack may have, >= 1.
    Returns:
        Keys of each pack; whole fine-tunes stand alone, for they cannot be stacked.
    """
    groups: dict[tuple, list[str]] = {}
    for key, (arm, data) in trainings.items():
        alike = (data.identity, arm.batch, arm.accumulation, arm.targets, arm.train_text_encoder)
        groups.setdefault(alike, []).append(key)
    packs = []
    for group in groups.values():
        pack: list[str] = []
        room = math.inf
        # Smaller ranks are padded to the widest, which so decides how many find room.
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


def plan(lab: Lab, most_arms: int = 8, memory_gb: float | None = None, share: float = 0.8) -> list[Pack]:
    """The study's packs, the claim's own arms first; made once, then read, so that packs keep their numbers.

    Arms that are kept elsewhere (`Lab.kept`) are in none. Arms that another study or an earlier form of this one left
    here come last, in packs of their own.

    Args:
        most_arms: in one pack.
        memory_gb: that a training may take.
        share: of what memory is free now, in place of memory_gb.
    """
    trainings = {key: training for key, training in lab.trainings().items() if key not in lab.kept}
    asked = settings_hash([list(trainings), lab.drawing, most_arms, memory_gb])
    path = lab.folder / "plans" / f"{asked}.json"
    if not path.exists():
        first = next(iter(lab.study.contrasts), ())  # a single variant has none
        claimed = {lab.key(v, seed) for v, seed in lab.study.cells() if v.label in first}
        stored = stored_moments(lab)
        parts: tuple[dict[str, tuple[Arm, Encoded]], ...] = ({}, {}, {})
        for key, training in trainings.items():
            parts[2 if key in stored else 0 if key in claimed else 1][key] = training
        room = _room(lab.base, most_arms, memory_gb, share)
        packs = [_measured(lab, keys) for part in parts for keys in cut_into_packs(part, room)]
        path.parent.mkdir(exist_ok=True)
        _write_first(path, [dataclasses.asdict(pack) for pack in packs])
    return [Pack(**values | {"keys": tuple(values["keys"])}) for values in json.loads(path.read_text())]


def _write_first(path: Path, content: Any) -> None:
    """Writes a file unless another process was first; then its content stays."""
    temporary = write_json_atomic(path.with_name(f"{path.stem}-{os.getpid()}"), content)
    try:
        os.link(temporary, path)
    except FileExistsError:
        pass
    finally:
        temporary.unlink()


def _room(
    base: LatentDiffusion, most_arms: int, memory_gb: float | None, share: float
) -> Callable[[Arm, Encoded], int]:
    """How many arms like a given one fit; what is measured once for a shape is remembered."""
    idle = _peak_gigabytes(base.device, reset=True)
    limit = idle + share * free_bytes(base.device) / GIGABYTE if memory_gb is None else memory_gb
    known: dict[tuple, int] = {}

    def room(arm: Arm, data: Encoded) -> int:
        if (shape := arm.step_shape) not in known:
            two = [arm, dataclasses.replace(arm, seed=arm.seed + 1)]
            _, peak = measure_steps(base, data, two, steps=0)
            known[shape] = max(1, min(most_arms, int((limit - idle) / max(1e-9, (peak - idle) / 2))))
        return known[shape]

    return room


def _measured(lab: Lab, keys: tuple[str, ...]) -> Pack:
    """A pack with its cost, from a few of its own steps and one step of drawing."""
    trainings = lab.trainings()
    arms, data = [trainings[key][0] for key in keys], trainings[keys[0]][1]
    per_step, gigabytes = measure_steps(lab.base, data, arms)
    per_image = _seconds_per_image(lab, arms[-1])
    images = len(keys) * lab.study.checkpoints * len(lab.captions) * len(lab.study.noise_seeds)
    # The arms that end first leave the rest faster.
    seconds = per_step * float(np.mean([arm.total_steps(len(data)) for arm in arms])) + per_image * images
    return Pack(keys, round(seconds, 1), round(gigabytes, 2))


def plan_text(lab: Lab, packs: Sequence[Pack]) -> str:
    """What is to be done, pack by pack, and how long it takes."""
    trainings, stored = lab.trainings(), stored_moments(lab)
    lines, left = [], 0.0
    for number, pack in enumerate(packs):
        done = all(key in stored for key in pack.keys)
        left += 0.0 if done else pack.seconds
        arms = [trainings[key][0] for key in pack.keys]
        ranks = "/".join(str(rank) for rank in sorted({arm.rank for arm in arms}))
        what = "every weight" if arms[0].targets == "full" else f"{arms[0].targets}, rank {ranks}"
        cost = "stored" if done else f"about {pack.seconds / 60:.1f} min, {pack.gigabytes:.1f} GB"
        lines.append(f"  pack {number}: {len(arms)} x ({what}, batch {arms[0].batch}): {cost}")
    kept = sum(key in lab.kept for key in trainings)
    count = f"{len(trainings) - kept} arms" + (f" beside {kept} that are kept" if kept else "")
    head = f"{lab.study.name}: {count} in {len(packs)} packs, about {left / 60:.1f} min to go on this machine"
    return "\n".join([head, *lines])


# ---------------------------------------------------------------------------------------------- what a step costs


def measure_steps(base: LatentDiffusion, data: Encoded, arms: Sequence[Arm], steps: int = 2) -> tuple[float, float]:
    """Trains a few steps that nobody keeps, and looks at the clock and the memory.

    Args:
        data: the encoded training images.
        arms: of one pack.
        steps: after one to warm up.
    Returns:
        Seconds a step, and gigabytes at the peak, a checkpoint's being written included.
    """
    _peak_gigabytes(base.device, reset=True)
    trainer = Trainer(base, data, arms, Accelerator(cpu=base.device.type == "cpu"))
    seconds = []
    while len(seconds) <= steps and all(progress.active for progress in trainer.progress):
        started = time.perf_counter()
        trainer.advance()
        seconds.append(time.perf_counter() - started)
    peak = _peak_gigabytes(base.device)
    if base.device.type == "cpu":  # elsewhere the copies lie in the host's memory
        peak += CHECKPOINT_COPIES * trainer.rows.values.nbytes / GIGABYTE
    return float(np.median(seconds[1:] or seconds)), peak


def _seconds_per_image(lab: Lab, arm: Arm) -> float:
    trainable = make_trainable(lab.base.denoiser, [arm], lab.base.text_encoder)
    captions = lab.captions[: lab.drawn_together]
    one_step = dataclasses.replace(lab.study.sampling, steps=1)
    started = time.perf_counter()
    sample(lab.base, captions, [0], one_step, trainable=trainable, batch=lab.drawn_together)
    return (time.perf_counter() - started) / len(captions) * lab.study.sampling.steps


def _peak_gigabytes(device: torch.device, reset: bool = False) -> float:
    """Most memory that this process held since the last reset; a reset forgets all but what is held now."""
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


# ---------------------------------------------------------------------------------------------- training and drawing


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
        run, folder: hash and place of the training.
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


def stored_moments(lab: Lab) -> dict[str, list[Moment]]:
    """What lies in the study's folder already, by the arm's key: wherever it lies, whoever put it there."""
    found: dict[str, list[Moment]] = {}
    for path in sorted(lab.folder.rglob(f"results/{lab.drawing}.json")):
        folder = str(path.parents[1].relative_to(lab.folder))
        by_key: dict[str, list[Moment]] = {}
        for values in json.loads(path.read_text()):
            by_key.setdefault(values["key"], []).append(Moment(**values | {"folder": folder}))
        found = by_key | found
    return found


def missing(lab: Lab) -> int:
    """How many of the study's different arms are neither stored yet nor kept elsewhere."""
    there = stored_moments(lab).keys() | lab.kept.keys()
    return sum(key not in there for key in lab.trainings())


def run_pack(
    lab: Lab,
    pack: Pack,
    keep_adapters: bool = False,
    progress: bool = True,
    on_progress: Callable[[str, int, int], None] = lambda stage, done, total: None,
) -> None:
    """Trains what is not stored of a pack, draws and measures every arm of it, and drops what is large.

    Args:
        keep_adapters: leave the last checkpoint, for strips and exports.
        progress: show bars.
        on_progress: called with ("train", images seen, of all) after each step and ("draw", arms, of all) after each
            arm. What it raises ends the pack; the next call goes on.
    Raises:
        RunLocked: another process is at it.
        InterruptedError: a STOP file ended the training, or the drawing after the arm that was drawn.
    """
    stored = stored_moments(lab)
    if not (keys := [key for key in pack.keys if key not in stored]):
        for name in {stored[key][0].folder for key in pack.keys}:
            _finish_emptying(lab.folder / name)
        return
    trainings = lab.trainings()
    arms, data = [trainings[key][0] for key in keys], trainings[keys[0]][1]
    folder = lab.folder / "packs" / settings_hash([keys, lab.study.checkpoints])
    images = max(arm.total_steps(len(data)) * arm.images_per_step for arm in arms)
    # A checkpoint of eight wide arms is gigabytes, so it is written less often than by itself.
    run = run_training(
        lab.base,
        data,
        arms,
        folder,
        lab.study.checkpoints,
        save_every_seconds=SAVE_EVERY_SECONDS,
        progress=progress,
        on_step=lambda report: on_progress("train", max(report.images_seen), images),
    )
    with run.lock():
        moments = []
        for k, key in enumerate(open_bar(keys, desc="draw", unit="arm", disable=not progress)):
            if run.stop_requested() or not is_finished(run):
                raise InterruptedError(f"{folder} was stopped before its end; the same call goes on with it")
            moments += _arm_moments(lab, run, k, key, arms[k], data)
            on_progress("draw", k + 1, len(keys))
        (folder / "results").mkdir(exist_ok=True)
        if keep_adapters:
            (folder / EMPTYING).unlink(missing_ok=True)
        else:
            (folder / EMPTYING).touch()
        write_json_atomic(folder / "results" / f"{lab.drawing}.json", [dataclasses.asdict(m) for m in moments])
        if keep_adapters:
            run.rotate(1)
    _finish_emptying(folder)


def _finish_emptying(folder: Path) -> None:
    """Drops a pack's checkpoints: optimizers and adapters are many times larger than all that was drawn."""
    if (folder / EMPTYING).exists():
        run = RunFolder.open(folder)
        with contextlib.suppress(RunLocked), run.lock():
            run.truncate_checkpoints(-1)
            (folder / EMPTYING).unlink(missing_ok=True)  # another process may have been first


def _arm_moments(lab: Lab, run: RunFolder, k: int, key: str, arm: Arm, data: Encoded) -> Iterator[Moment]:
    """Draws and measures one arm at each moment that is scored; one that ended early stays as it was then."""
    last = run.checkpoints()[-1]
    wanted = checkpoint_steps(arm.total_steps(len(data)), lab.study.checkpoints)[1:]
    moment: Moment | None = None
    for number, step in enumerate((min(step, last) for step in wanted), start=1):
        if moment is None or moment.step != step:
            moment = _moment(lab, run, k, key, arm, step)
        yield dataclasses.replace(moment, number=number, final=number == len(wanted))


def _moment(lab: Lab, run: RunFolder, k: int, key: str, arm: Arm, step: int) -> Moment:
    """One arm at one checkpoint, drawn if it is not yet, and measured."""
    state = run.read_state(step)
    trainable = load_checkpoints(lab.base, run, [step], k)
    name = f"{key}-{step:06d}-{lab.drawing}"
    facts = {"arm": arm.to_json(), "key": key, "images_seen": state["arms"][k]["images_seen"]}
    if name not in run.samples():
        run.write_samples(name, _draw(lab, trainable), facts | _drawn_facts(lab))
    images, _ = run.read_samples(name)
    return Moment(
        key=key,
        number=1,
        final=True,
        step=step,
        images_seen=state["arms"][k]["images_seen"],
        stopped=state["arms"][k]["stopped"],
        diversity=mean_pairwise_distance(glyphs_of(images)),
        held_out_loss=_held_out_loss(lab, trainable),
        samples=name,
        run=run.settings["hash"],
        folder="",
        seconds=round(state["seconds"] / len(state["arms"]), 1),
    )


def _drawn_facts(lab: Lab) -> dict[str, Any]:
    """What was asked of the model: enough to read the images by, without the study."""
    study = lab.study
    prompts = [
        {"split": split, "prompt": caption, "expected": sorted(wanted)}
        for split, asked in lab.prompts.items()
        for caption, wanted in zip(asked.captions, asked.expected, strict=True)
    ]
    return {"prompts": prompts, "noise_seeds": list(study.noise_seeds), "sampling": study.sampling.to_json()}


def _draw(lab: Lab, trainable: Trainable) -> np.ndarray:
    """(P, S, H, W) or (P, S, H, W, 3) uint8: every prompt in every noise.

    One arm at a time: its merged weights cost less than stacked adapters, and a kill loses one arm's images at most.
    """
    seeds, sampling = lab.study.noise_seeds, lab.study.sampling
    return sample(lab.base, lab.captions, seeds, sampling, trainable=trainable, batch=lab.drawn_together)[0]


@torch.no_grad()
def _held_out_loss(lab: Lab, trainable: Trainable) -> float | None:
    """Plain mean squared error on held-out images, each at a timestep and in a noise that all arms share."""
    base, data = lab.base, lab.held_out
    if data is None:
        return None
    errors: list[float] = []
    shape = data.mean.shape[1:]
    draws = [draw_example(LOSS_SEED, i, len(data), shape, base.timesteps) for i in range(lab.study.loss_images)]
    with trainable.attached() as segments:
        for start in range(0, len(draws), lab.drawn_together):
            chunk = draws[start : start + lab.drawn_together]
            segments.pairs = ((0, len(chunk)),)
            captions = data.caption[[draw.row for draw in chunk]]
            errors += denoising_errors(base, data, chunk, captions, trainable)[0].tolist()
    loss = float(np.mean(errors))
    return loss if math.isfinite(loss) else None
