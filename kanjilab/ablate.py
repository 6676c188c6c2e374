"""The lab: a study's arms are packed into few trainings, trained, drawn, read, and end in one table.

A study's folder:

    study.json, plan.json        what was asked, and the packs that it was cut into
    data/<rule>/                 its image folders
    packs/<hash>/                run folders: one training of several arms, its samples, results/ and scores/
    table.parquet, report.json, figure.png     once every arm is there

Every file appears whole or not at all, and an arm is known by the hash of all that it is made of. So a study that was
killed goes on, packs may be done by any number of processes or machines, and folders of packs can simply be copied
together.
"""

from __future__ import annotations

import dataclasses
import io
import json
import math
import os
import resource
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, Self

import numpy as np
import pandas as pd
import torch
from accelerate import Accelerator
from matplotlib.figure import Figure
from safetensors.torch import load_file
from tqdm.auto import tqdm

from kanjilab.adapters import Trainable, make_trainable
from kanjilab.bases import Base, cache_folder, load_base
from kanjilab.counted import counted_rng
from kanjilab.dataset import Dataset, build_dataset, open_dataset
from kanjilab.demo import DEMO_SAMPLING, run_training
from kanjilab.encode import Encoded, encode_dataset
from kanjilab.inference import MARGIN, Contrast, compare, joint_sign_flips, sentence
from kanjilab.judge import RadicalJudge
from kanjilab.metrics import expected_radical_hits, mean_pairwise_distance, two_way_bootstrap
from kanjilab.plots import draw_study, save_figure
from kanjilab.radicals import rule_from_json
from kanjilab.runs import RunFolder, write_bytes_atomic, write_json_atomic
from kanjilab.sample import Sampling, sample
from kanjilab.schedules import checkpoint_steps
from kanjilab.score import PromptSet, caption_prompts, grayscale
from kanjilab.settings import Arm, settings_hash
from kanjilab.train import Trainer, denoising_errors, draw_example

PHASES = ("pilot", "confirm", "explore")
FEW_HELD_OUT, MANY_HELD_OUT = 20, 1_000  # characters per radical; many where several datasets must share some
LOSS_SEED = 0  # of timesteps and noise of the held-out loss: the same for all arms of all studies
GIGABYTE = 1e9
CHECKPOINT_COPIES = 10  # of the arms' weights: a checkpoint's five, as tensors and as bytes
DRAWN_TOGETHER = {"cpu": 32}  # images at a time; a larger stretch gains nothing there
DRAWN_TOGETHER_ELSEWHERE = 256
SAVE_EVERY_SECONDS = 600.0
ARM_COLUMNS = ("variant", "seed", "checkpoint", "arm", "run", "images_seen", "diversity", "held_out_loss")
ARM_COLUMNS += ("stopped", "seconds")
LAUNCHER = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")  # what torchrun and accelerate tell


class Judge(Protocol):
    """Whoever reads glyphs: (N, H, W) uint8 to a table of N rows with at least radical and abstain."""

    def read(self, images: np.ndarray) -> pd.DataFrame:
        """One row an image."""
        ...


Hits = Callable[[pd.DataFrame, Sequence[Any]], np.ndarray]


# ---------------------------------------------------------------------------------------------- what is asked


@dataclass(frozen=True)
class Variant:
    """One value of what a study varies.

    Args:
        label: its name in tables and sentences, as "rank 64".
        changes: settings of the study's arm that differ.
        data: the rule or folder that it is trained on; None for the study's.
        axes: columns for tables; the changes by default.
    """

    label: str
    changes: Mapping[str, Any] = field(default_factory=dict)
    data: Mapping[str, Any] | None = None
    axes: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Study:
    """A question, and all that is done to answer it.

    Args:
        name: of the study and its folder.
        claim: what is tested, in words.
        arm: the settings that all variants share; its `images_seen` or `epochs` is the budget of a run.
        variants: what is compared, the first of them the reference.
        seeds: blocks; each variant is trained with each.
        contrasts: pairs of labels (one, against which) to test; the first is the claim's own. By default every
            variant against the first.
        data: a selection rule as `rule_from_json` reads it, or {"folder": path} of anybody's image folder.
        base, precision: as for `load_base`.
        prompts_per_radical: captions per radical drawn from each split.
        splits: of the captions; the first is the one that verdicts are about.
        noise_seeds: images per prompt.
        sampling: how images are drawn.
        checkpoints: moments of each training that are scored, the last of them its end.
        loss_images: held-out images whose loss is measured.
        phase: "pilot", "confirm" or "explore".
    Raises:
        ValueError: an impossible setting, with what was expected and what came.
    """

    name: str
    claim: str
    arm: Arm
    variants: tuple[Variant, ...]
    seeds: tuple[int, ...]
    contrasts: tuple[tuple[str, str], ...] = ()
    data: Mapping[str, Any] = field(default_factory=lambda: {"name": "left16"})
    base: str = "pocket"
    precision: str = "bf16"
    prompts_per_radical: int = 6
    splits: tuple[str, ...] = ("held_out", "train")
    noise_seeds: tuple[int, ...] = (0,)
    sampling: Sampling = DEMO_SAMPLING
    checkpoints: int = 1
    loss_images: int = 256
    phase: str = "explore"

    def __post_init__(self) -> None:
        labels = [variant.label for variant in self.variants]
        for name, values in dict(variants=labels, seeds=self.seeds, splits=self.splits, noise=self.noise_seeds).items():
            if not values or len(set(values)) != len(values):
                raise ValueError(f"study {self.name!r}: expected one or more different {name}, got {list(values)}")
        if self.phase not in PHASES:
            raise ValueError(f"phase must be one of {PHASES}, got {self.phase!r}")
        for name in ("prompts_per_radical", "checkpoints", "loss_images"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be >= 1, got {getattr(self, name)}")
        if not self.contrasts:
            object.__setattr__(self, "contrasts", tuple((label, labels[0]) for label in labels[1:]))
        if unknown := sorted({label for pair in self.contrasts for label in pair} - set(labels)):
            raise ValueError(f"contrasts name {unknown}, which are no variants; expected some of {labels}")
        for variant in self.variants:
            if "seed" in variant.changes:
                raise ValueError(f"variant {variant.label!r}: the seed is the block's, expected other changes")
            self.arm_of(variant, self.seeds[0])
        for data in self.datasets():
            if "folder" not in data:
                rule_from_json(data)

    def arm_of(self, variant: Variant, seed: int) -> Arm:
        """The settings of one training."""
        return Arm.from_json(self.arm.to_json() | dict(variant.changes) | {"seed": seed})

    def data_of(self, variant: Variant) -> Mapping[str, Any]:
        """The rule or folder that a variant is trained on."""
        return self.data if variant.data is None else variant.data

    def datasets(self) -> list[Mapping[str, Any]]:
        """The different ones of all variants, the reference's first."""
        return list({settings_hash(dict(d)): d for d in map(self.data_of, self.variants)}.values())

    def cells(self) -> list[tuple[Variant, int]]:
        """Every variant in every block, block by block."""
        return [(variant, seed) for seed in self.seeds for variant in self.variants]

    def to_json(self) -> dict[str, Any]:
        """A plain dictionary, ready for JSON."""
        return json.loads(json.dumps(dataclasses.asdict(self)))

    @classmethod
    def from_json(cls, contents: Mapping[str, Any]) -> Self:
        """The inverse of `to_json`."""
        values: dict[str, Any] = dict(contents)
        values["arm"] = Arm.from_json(values["arm"])
        values["variants"] = tuple(Variant(**variant) for variant in values["variants"])
        values["sampling"] = Sampling(**values["sampling"])
        values["contrasts"] = tuple((one, other) for one, other in values["contrasts"])
        for name in ("seeds", "splits", "noise_seeds"):
            values[name] = tuple(values[name])
        return cls(**values)

    @property
    def hash(self) -> str:
        """Identity: the hash of all of its contents."""
        return settings_hash(self.to_json())


# ---------------------------------------------------------------------------------------------- what it needs


@dataclass(frozen=True)
class Lab:
    """A study with all that its trainings and drawings need, loaded.

    Attributes:
        study, folder, base: the question, where everything goes, and the model.
        encoded: training images by the hash of their rule.
        prompts: captions of each split that mean the same in all of the study's datasets.
        held_out: images for the held-out loss; None where there are none.
    """

    study: Study
    folder: Path
    base: Base
    encoded: dict[str, Encoded]
    prompts: dict[str, PromptSet]
    held_out: Encoded | None

    def data(self, variant: Variant) -> Encoded:
        """What a variant is trained on."""
        return self.encoded[settings_hash(dict(self.study.data_of(variant)))]

    def key(self, variant: Variant, seed: int) -> str:
        """Identity of one training: its settings, its data as this base sees it, and the precision."""
        return settings_hash(
            [self.study.arm_of(variant, seed).to_json(), self.data(variant).identity, self.base.precision]
        )

    @property
    def drawing(self) -> str:
        """Identity of what is drawn from an arm, and measured on it."""
        study, held_out = self.study, self.held_out.identity if self.held_out else None
        prompts = {name: asked.captions for name, asked in self.prompts.items()}
        drawn = [prompts, study.noise_seeds, study.sampling.to_json(), study.checkpoints, study.loss_images, held_out]
        return settings_hash(drawn)

    @property
    def captions(self) -> list[str]:
        """The prompts of all splits, one after the other."""
        return [caption for asked in self.prompts.values() for caption in asked.captions]

    @property
    def drawn_together(self) -> int:
        """Images at a time; it changes them by rounding alone."""
        return DRAWN_TOGETHER.get(self.base.device.type, DRAWN_TOGETHER_ELSEWHERE)

    def trainings(self) -> dict[str, tuple[Arm, Encoded]]:
        """The different trainings by key; variants that are the same in a block share one."""
        found = {}
        for variant, seed in self.study.cells():
            found[self.key(variant, seed)] = (self.study.arm_of(variant, seed), self.data(variant))
        return found


def open_lab(study: Study, folder: Path, device: str | torch.device = "cpu") -> Lab:
    """Builds and encodes the study's datasets, or opens what an earlier call left, and loads the base.

    Args:
        folder: of the study: new, or of an earlier call.
        device: where the base goes.
    Raises:
        ValueError: a dataset without training images, or no caption that all datasets share.
    """
    folder.mkdir(parents=True, exist_ok=True)
    many = MANY_HELD_OUT if len(study.datasets()) > 1 else FEW_HELD_OUT
    datasets = {settings_hash(dict(data)): _dataset(data, folder, many) for data in study.datasets()}
    base = load_base(study.base, study.precision, device)
    encoded = {name: encode_dataset(base, dataset.split("train")) for name, dataset in datasets.items()}
    shared = {split: _shared_rows(list(datasets.values()), split) for split in ("held_out", *study.splits)}
    prompts = {}
    for split in study.splits:
        if (rows := shared[split]) is not None:
            prompts[split] = caption_prompts(rows, split, study.prompts_per_radical)
    if not prompts:
        raise ValueError(f"study {study.name!r}: no caption of {study.splits} is in all of its datasets")
    held_out = shared["held_out"]
    return Lab(study, folder, base, encoded, prompts, encode_dataset(base, held_out) if held_out else None)


def _dataset(data: Mapping[str, Any], folder: Path, held_out_per_radical: int) -> Dataset:
    if "folder" in data:
        return open_dataset(Path(data["folder"]))
    target = folder / "data" / settings_hash([dict(data), held_out_per_radical])
    return build_dataset(rule_from_json(data), target, held_out_per_radical=held_out_per_radical)


def _shared_rows(datasets: Sequence[Dataset], split: str) -> Dataset | None:
    """The first dataset's rows of one split whose captions the others have in the same split; None for none."""
    for dataset in datasets:
        if split not in set(dataset.table["split"]):
            return None
    texts = set.intersection(*(set(dataset.split(split).table["text"]) for dataset in datasets))
    first = datasets[0].split(split)
    kept = np.flatnonzero(first.table["text"].isin(list(texts)).to_numpy())
    table = first.table.iloc[kept].reset_index(drop=True)
    return dataclasses.replace(first, table=table, digests=tuple(first.digests[i] for i in kept)) if len(kept) else None


# ---------------------------------------------------------------------------------------------- packs


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
        groups.setdefault((data.identity, arm.batch, arm.accumulation, arm.targets), []).append(key)
    packs = []
    for group in groups.values():
        pack: list[str] = []
        # Smaller ranks are padded to the widest, which so decides how many find room.
        for key in sorted(group, key=lambda key: _length_and_rank(*trainings[key])):
            room = 1 if trainings[key][0].targets == "unet" else most(*trainings[key])
            if len(pack) >= room:
                packs.append(tuple(pack))
                pack = []
            pack.append(key)
        packs.append(tuple(pack))
    return packs


def _length_and_rank(arm: Arm, data: Encoded) -> tuple[int, int]:
    return arm.total_steps(len(data)), arm.rank


def plan(lab: Lab, most_arms: int = 8, memory_gb: float | None = None, share: float = 0.8) -> list[Pack]:
    """The study's packs, the claim's own arms first; made once, then read, so that packs keep their numbers.

    Args:
        most_arms: in one pack.
        memory_gb: that a training may take.
        share: of what memory is free now, in place of memory_gb.
    """
    trainings = lab.trainings()
    asked = settings_hash([list(trainings), lab.drawing, most_arms, memory_gb])
    path = lab.folder / "plans" / f"{asked}.json"
    if not path.exists():
        claimed = {lab.key(v, seed) for v, seed in lab.study.cells() if v.label in lab.study.contrasts[0]}
        first = {key: training for key, training in trainings.items() if key in claimed}
        others = {key: training for key, training in trainings.items() if key not in claimed}
        room = _room(lab.base, most_arms, memory_gb, share)
        packs = [_measured(lab, keys) for part in (first, others) for keys in cut_into_packs(part, room)]
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


def _room(base: Base, most_arms: int, memory_gb: float | None, share: float) -> Callable[[Arm, Encoded], int]:
    """How many arms like a given one fit; what is measured once for a shape is remembered."""
    idle = _peak_gigabytes(base.device, reset=True)
    limit = memory_gb or idle + share * _free_gigabytes(base.device)
    known: dict[tuple, int] = {}

    def room(arm: Arm, data: Encoded) -> int:
        # What the memory of a step depends on.
        shape = (arm.targets, arm.rank, arm.batch, arm.ema_decay is None)
        if shape not in known:
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


def measure_steps(base: Base, data: Encoded, arms: Sequence[Arm], steps: int = 2) -> tuple[float, float]:
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
    trainable = make_trainable(lab.base.denoiser, [arm])
    captions = lab.captions[: lab.drawn_together]
    one_step = dataclasses.replace(lab.study.sampling, steps=1)
    started = time.perf_counter()
    sample(lab.base, captions, [0], one_step, trainable=trainable, batch=lab.drawn_together)
    return (time.perf_counter() - started) / len(captions) * lab.study.sampling.steps


def _free_gigabytes(device: torch.device) -> float:
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0] / GIGABYTE
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():
        fields = dict(line.split(":") for line in meminfo.read_text().splitlines())
        return int(fields["MemAvailable"].split()[0]) * 1024 / GIGABYTE
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / GIGABYTE


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


def run_pack(lab: Lab, pack: Pack, keep_adapters: bool = False) -> None:
    """Trains what is not stored of a pack, draws and measures every arm of it, and drops what is large.

    Args:
        keep_adapters: leave the last checkpoint, for strips and exports.
    Raises:
        RunLocked: another process is at it.
        InterruptedError: a STOP file ended the training.
    """
    stored = stored_moments(lab)
    if not (keys := [key for key in pack.keys if key not in stored]):
        return
    trainings = lab.trainings()
    arms, data = [trainings[key][0] for key in keys], trainings[keys[0]][1]
    folder = lab.folder / "packs" / settings_hash([keys, lab.study.checkpoints])
    # A checkpoint of eight wide arms is gigabytes, so it is written less often than by itself.
    run = run_training(lab.base, data, arms, folder, lab.study.checkpoints, save_every_seconds=SAVE_EVERY_SECONDS)
    with run.lock():
        last = _state(run, run.checkpoints()[-1])["arms"]
        if any(a["steps"] < arm.total_steps(len(data)) and not a["stopped"] for a, arm in zip(last, arms, strict=True)):
            raise InterruptedError(f"{folder} was stopped before its end; the same call goes on with it")
        moments = []
        for k, key in enumerate(tqdm(keys, desc="draw", unit="arm")):
            moments += _arm_moments(lab, run, k, key, arms[k], data)
        (folder / "results").mkdir(exist_ok=True)
        write_json_atomic(folder / "results" / f"{lab.drawing}.json", [dataclasses.asdict(m) for m in moments])
        # Optimizers and adapters are many times larger than all that was drawn.
        if keep_adapters:
            run.rotate(1)
        else:
            run.truncate_checkpoints(-1)


def _state(run: RunFolder, step: int) -> dict[str, Any]:
    return json.loads((run.checkpoint_path(step) / "state.json").read_text())


def _arm_moments(lab: Lab, run: RunFolder, k: int, key: str, arm: Arm, data: Encoded) -> Iterator[Moment]:
    """Draws and measures one arm at each moment that is scored."""
    there = run.checkpoints()
    wanted = checkpoint_steps(arm.total_steps(len(data)), lab.study.checkpoints)[1:]
    steps = sorted({min(step, there[-1]) for step in wanted})  # where all arms stopped early, the end is earlier
    for number, step in enumerate(steps, start=1):
        state = _state(run, step)
        trainable = make_trainable(lab.base.denoiser, [arm])
        trainable.load_state(0, load_file(run.checkpoint_path(step) / f"arm_{k}" / "adapter_model.safetensors"))
        name = f"{key}-{step:06d}-{lab.drawing}"
        facts = {"arm": arm.to_json(), "key": key, "images_seen": state["arms"][k]["images_seen"]}
        if name not in run.samples():
            run.write_samples(name, _draw(lab, trainable), facts | _drawn_facts(lab))
        images, _ = run.read_samples(name)
        yield Moment(
            key=key,
            number=number,
            final=step == steps[-1],
            step=step,
            images_seen=state["arms"][k]["images_seen"],
            stopped=state["arms"][k]["stopped"],
            diversity=mean_pairwise_distance(_glyphs(images)),
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
            errors += denoising_errors(base, data, chunk, captions)[0].tolist()
    loss = float(np.mean(errors))
    return loss if math.isfinite(loss) else None


# ---------------------------------------------------------------------------------------------- reading


def read_images(run: RunFolder, samples: str, judge: Judge, hits: Hits = expected_radical_hits) -> pd.DataFrame:
    """What a judge reads in an arm's stored images.

    Args:
        run: the training's folder.
        samples: a name of `run.samples()`, stored by `run_pack`.
        judge: see `Judge`.
        hits: which readings show what was expected.
    Returns:
        One row an image: split, prompt, noise_seed, expected, hit, and the judge's own columns.
    """
    images, facts = run.read_samples(samples)
    readings = judge.read(_glyphs(images))
    asked = [(p, seed) for p in facts["prompts"] for seed in facts["noise_seeds"]]
    readings["hit"] = hits(readings, [frozenset(p["expected"]) for p, _ in asked])
    readings.insert(0, "split", [p["split"] for p, _ in asked])
    readings.insert(1, "prompt", [p["prompt"] for p, _ in asked])
    readings.insert(2, "noise_seed", [seed for _, seed in asked])
    readings.insert(3, "expected", ["".join(p["expected"]) for p, _ in asked])
    return readings


def _glyphs(images: np.ndarray) -> np.ndarray:
    """(P, S, H, W) or (P, S, H, W, 3) as (P·S, H, W) uint8, ink 0."""
    glyphs = grayscale(images) if images.ndim == 5 else images
    return glyphs.reshape(-1, *glyphs.shape[2:])


def study_table(lab: Lab, judge: Judge, name: str = "radicals", hits: Hits = expected_radical_hits) -> pd.DataFrame:
    """The study's one table, of what is stored so far; nothing is trained or drawn.

    Args:
        judge: see `Judge`; what it read before, under the same name, is not read again.
        name: of the judge, for its files.
        hits: which readings show what was expected.
    Returns:
        One row an image: study, variant, the axes' values, arm, run, seed, checkpoint, final, images_seen, split,
        prompt, noise_seed, expected, the judge's columns, hit, diversity, held_out_loss, stopped, seconds.
    """
    stored, parts = stored_moments(lab), []
    for variant, seed in lab.study.cells():
        key = lab.key(variant, seed)
        axes = dict(variant.changes if variant.axes is None else variant.axes)
        for moment in stored.get(key, []):
            readings = _readings(lab.folder / moment.folder, moment.samples, judge, name, hits)
            before = {"study": lab.study.name, "variant": variant.label, **axes, "arm": key, "run": moment.run}
            before |= {"seed": seed, "checkpoint": moment.number, "final": moment.final}
            before |= {"images_seen": moment.images_seen}
            after = {"diversity": moment.diversity, "held_out_loss": moment.held_out_loss}
            after |= {"stopped": moment.stopped, "seconds": moment.seconds}
            parts.append(pd.DataFrame({**before, **readings, **after}))
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()


def _readings(folder: Path, samples: str, judge: Judge, name: str, hits: Hits) -> pd.DataFrame:
    path = folder / "scores" / name / f"{samples}.parquet"
    if not path.exists():
        readings = read_images(RunFolder.open(folder), samples, judge, hits)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_table(readings, path)
    return pd.read_parquet(path)


def write_table(table: pd.DataFrame, path: Path) -> None:
    """Writes Parquet, whole or not at all."""
    buffer = io.BytesIO()
    table.to_parquet(buffer, index=False)
    write_bytes_atomic(path, buffer.getvalue())


# ---------------------------------------------------------------------------------------------- answers


def outcomes(table: pd.DataFrame, variant: str, split: str, outcome: str = "hit") -> np.ndarray:
    """What came out at the end of training.

    Args:
        table: of `study_table`.
        variant: its label.
        split: of the prompts.
        outcome: a column of the table, bool or number.
    Returns:
        (S, P) float, blocks by prompts, the mean where a prompt was drawn in several noises.
    """
    rows = (table["variant"] == variant) & (table["split"] == split) & table["final"]
    return _cells(table.loc[rows], outcome)


def _cells(rows: pd.DataFrame, outcome: str) -> np.ndarray:
    """(S, P) float, blocks by prompts, both in order."""
    values = rows.assign(outcome=rows[outcome].astype(float))
    return values.pivot_table(index="seed", columns="prompt", values="outcome").to_numpy(float)


def contrasts(study: Study, table: pd.DataFrame, split: str, outcome: str = "hit") -> list[Contrast]:
    """The study's contrasts on one split of prompts.

    The first, the claim's own, keeps its p: it is corrected with the other studies' claims. The others are corrected
    among themselves (`joint_sign_flips`).

    Args:
        table: of `study_table`.
        split: of the prompts.
        outcome: a column of the table, in which more is better.
    """
    found = [
        compare(outcomes(table, one, split, outcome), outcomes(table, other, split, outcome), (one, other), seed=index)
        for index, (one, other) in enumerate(study.contrasts)
    ]
    rng = counted_rng(0, "resampling", 1)
    corrected = joint_sign_flips(np.array([contrast.blocks for contrast in found[1:]]), rng)
    return found[:1] + [dataclasses.replace(c, p_corrected=p) for c, p in zip(found[1:], corrected, strict=True)]


def rates(study: Study, table: pd.DataFrame, outcome: str = "hit") -> pd.DataFrame:
    """How often each variant draws what was asked, at each moment that was scored.

    Args:
        table: of `study_table`.
        outcome: a column of the table.
    Returns:
        One row a split, variant and moment: value, low, high (95% interval over blocks and prompts), blocks (their own
        rates), images_seen, diversity and held_out_loss (means of the blocks), stopped (number of blocks), final.
    """
    rows: list[dict[str, Any]] = []
    split: Any
    for split in table["split"].unique():
        for variant in study.variants:
            of_variant = table.loc[(table["split"] == split) & (table["variant"] == variant.label)]
            for number in sorted(of_variant["checkpoint"].unique()):
                moment = of_variant.loc[of_variant["checkpoint"] == number]
                cells = _cells(moment, outcome)
                estimate = two_way_bootstrap(cells, counted_rng(len(rows), "resampling", 2))
                rows.append(
                    {"split": split, "variant": variant.label, "checkpoint": int(number)}
                    | estimate._asdict()
                    | {"blocks": cells.mean(axis=1).tolist()}
                    | _means(moment.drop_duplicates("seed"))
                )
    return pd.DataFrame(rows)


def _means(arms: pd.DataFrame) -> dict[str, Any]:
    means = {name: arms[name].to_numpy(float).mean() for name in ("images_seen", "diversity", "held_out_loss")}
    return means | {"stopped": int(arms["stopped"].notna().to_numpy().sum()), "final": bool(arms["final"].all())}


def loss_contrasts(study: Study, table: pd.DataFrame) -> list[dict[str, Any]]:
    """The study's contrasts in held-out loss: less noisy than hits, and below 0 where the first is better.

    Args:
        table: of `study_table`.
    Returns:
        first, second, difference (value, low, high), p; without those where a loss is not finite.
    """
    arms = table.loc[table["final"]].drop_duplicates(["variant", "seed"]).sort_values(by="seed")
    losses = {v.label: arms.loc[arms["variant"] == v.label, "held_out_loss"].to_numpy(float) for v in study.variants}
    found = []
    for index, (one, other) in enumerate(study.contrasts):
        if np.isfinite(losses[one] - losses[other]).all():
            contrast = compare(losses[one][:, None], losses[other][:, None], (one, other), seed=index)
            found.append({"first": one, "second": other, "difference": list(contrast.difference), "p": contrast.p})
    return found


def missing(lab: Lab) -> int:
    """How many of the study's different arms are not stored yet."""
    stored = stored_moments(lab)
    return sum(key not in stored for key in lab.trainings())


def write_report(
    lab: Lab,
    judge: Judge,
    name: str = "radicals",
    hits: Hits = expected_radical_hits,
    outcome: str = "hit",
) -> dict[str, Any]:
    """Reads the stored images and writes table-<name>.parquet, report-<name>.json and figure-<name>.png.

    Args:
        judge: see `Judge`.
        name: of the judge.
        hits: which readings show what was expected.
        outcome: the column of the table that is compared.
    Returns:
        What report-<name>.json holds.
    Raises:
        ValueError: arms are missing.
    """
    if left := missing(lab):
        raise ValueError(f"{lab.folder}: {left} of {len(lab.trainings())} arms are not there yet")
    study, table = lab.study, study_table(lab, judge, name, hits)
    write_table(table, lab.folder / f"table-{name}.parquet")
    found = {split: contrasts(study, table, split, outcome) for split in lab.prompts}
    share = rates(study, table, outcome)
    arms = table.drop_duplicates(["variant", "seed", "checkpoint"]).loc[:, list(ARM_COLUMNS)]
    report = {
        "study": study.to_json(),
        "hash": study.hash,
        "judge": name,
        "outcome": outcome,
        "prompts": {split: len(asked.captions) for split, asked in lab.prompts.items()},
        "sentences": {split: [sentence(c, place(study)) for c in some] for split, some in found.items()},
        "contrasts": {split: [c.to_json() for c in some] for split, some in found.items()},
        "rates": _records(share),
        "losses": loss_contrasts(study, table),
        "arms": _records(arms),
    }
    write_json_atomic(lab.folder / f"report-{name}.json", report)
    facts = {"study": study.hash, "runs": sorted(set(table["run"])), "report": f"report-{name}.json"}
    save_figure(_figure(lab, share, found), lab.folder / f"figure-{name}.png", facts)
    return report


def place(study: Study) -> str:
    """Where its sentences are true: "in pocket"."""
    return f"in {Path(study.base).name}"


def _records(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Rows as JSON can hold them: what is not finite becomes None."""
    rows = zip(*(table[name] for name in table.columns), strict=True)
    return [{str(c): _plain(value) for c, value in zip(table.columns, row, strict=True)} for row in rows]


def _plain(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _figure(lab: Lab, share: pd.DataFrame, found: Mapping[str, list[Contrast]]) -> Figure:
    study, split = lab.study, next(iter(lab.prompts))
    differences = [
        {"label": f"{c.first} – {c.second}", **c.difference._asdict(), "blocks": c.blocks, "verdict": c.verdict}
        for c in found[split]
    ]
    seeds = f"{len(study.seeds)} training seed" + ("s" if len(study.seeds) > 1 else "")
    prompts = f"{len(lab.prompts[split].captions)} {split.replace('_', '-')} prompts"
    note = f"{study.name}, {place(study)}: {seeds}, {prompts}; 95% intervals"
    shown = share.loc[share["split"] == split]
    return draw_study(shown, pd.DataFrame(differences), title=study.claim, note=note, margin=MARGIN)


# ---------------------------------------------------------------------------------------------- all of it


@dataclass(frozen=True)
class Share:
    """Which of how many processes this is, how many of them are on this machine, and its device."""

    index: int
    processes: int
    on_this_machine: int
    device: str


@contextmanager
def own_share() -> Iterator[Share]:
    """What torchrun or `accelerate launch` told this process.

    Within it nothing else sees the others: each process does whole packs by itself, and none waits for another.
    """
    told = {name: os.environ.pop(name) for name in LAUNCHER if name in os.environ}
    try:
        local, device = told.get("LOCAL_RANK", "0"), Accelerator().device.type
        if device == "cuda":
            torch.cuda.set_device(int(local))
            device = f"cuda:{local}"
        index, processes = int(told.get("RANK", 0)), int(told.get("WORLD_SIZE", 1))
        yield Share(index, processes, int(told.get("LOCAL_WORLD_SIZE", 1)), device)
    finally:
        os.environ.update(told)


def plan_text(lab: Lab, packs: Sequence[Pack]) -> str:
    """What is to be done, pack by pack, and how long it takes."""
    trainings, stored = lab.trainings(), stored_moments(lab)
    lines, left = [], 0.0
    for number, pack in enumerate(packs):
        done = all(key in stored for key in pack.keys)
        left += 0.0 if done else pack.seconds
        arms = [trainings[key][0] for key in pack.keys]
        ranks = "/".join(str(rank) for rank in sorted({arm.rank for arm in arms}))
        what = "every weight" if arms[0].targets == "unet" else f"{arms[0].targets}, rank {ranks}"
        cost = "stored" if done else f"about {pack.seconds / 60:.1f} min, {pack.gigabytes:.1f} GB"
        lines.append(f"  pack {number}: {len(arms)} x ({what}, batch {arms[0].batch}): {cost}")
    count = len(trainings)
    head = f"{lab.study.name}: {count} arms in {len(packs)} packs, about {left / 60:.1f} min to go on this machine"
    return "\n".join([head, *lines])


def ablate(
    study: Study,
    folder: Path,
    *,
    judge: Judge | None = None,
    name: str = "radicals",
    hits: Hits = expected_radical_hits,
    only: Sequence[int] | None = None,
    most_arms: int = 8,
    memory_gb: float | None = None,
    keep_adapters: bool = False,
    dry_run: bool = False,
    say: Callable[[str], None] = print,
) -> dict[str, Any] | None:
    """Answers a study, or does its share of it. Called again it goes on, and what is stored is not done again.

    Under torchrun or `accelerate launch` every process takes its share of the packs; whoever finds all of them stored
    at its end writes table, report and figure.

    Args:
        folder: of the study.
        judge: who reads the images; the first judge by default.
        name: of the judge, for its files.
        hits: which of its readings show what was expected.
        only: numbers of packs, as an array job does one each; all by default.
        most_arms: arms in one training.
        memory_gb: memory that a training may take; by default most of what is free.
        keep_adapters: leave each pack's last checkpoint.
        dry_run: tell the packs and their cost, and do no more.
        say: told what goes on.
    Returns:
        The report, or None while arms are missing.
    Raises:
        ValueError: a number of no pack.
    """
    with own_share() as share:
        lab = open_lab(study, folder, share.device)
        packs = plan(lab, most_arms, memory_gb, 0.8 if share.device != "cpu" else 0.8 / share.on_this_machine)
        say(plan_text(lab, packs))
        if dry_run:
            return None
        numbers = list(range(len(packs)))[share.index :: share.processes] if only is None else list(only)
        if unknown := [number for number in numbers if not 0 <= number < len(packs)]:
            raise ValueError(f"expected numbers of packs from 0 to {len(packs) - 1}, got {unknown}")
        write_json_atomic(folder / "study.json", study.to_json())
        for number in numbers:
            run_pack(lab, packs[number], keep_adapters)
        if left := missing(lab):
            say(f"{folder}: {left} of {len(lab.trainings())} arms are not there yet")
            return None
        judge = judge or RadicalJudge.load_or_fit(cache_folder() / "judges")
        return write_report(lab, judge, name, hits)
