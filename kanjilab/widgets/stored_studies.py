"""What an ablation panel shows, read from a study's folder without loading a base or training.

A planning job writes `panel/<hash of the study>.json` beside the study's own files: the arm of each variant in each
block, and the packs with their cost. With it, the stored results say how much of the study is done.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from kanjilab.core.images import grayscale
from kanjilab.core.run_folder import RunFolder, find_runs
from kanjilab.core.storage import write_json_atomic
from kanjilab.experiments.context import StudyContext
from kanjilab.experiments.designs import BUDGETS, STUDY_ARM
from kanjilab.experiments.packs import Pack
from kanjilab.experiments.study import Study, Variant
from kanjilab.training.cost import duration
from kanjilab.viz.strip import Strip

SAMPLES = re.compile(r"(?P<key>[0-9a-f]{16})-(?P<step>\d{6,})-[0-9a-f]{16}")
KEPT = (Path("figures/studies"), Path("../figures/studies"))  # of a clone, from its root and from its notebooks
AXES: dict[str, tuple[Any, ...]] = {  # the values offered; others can be added
    "rank": (1, 4, 16, 64, 256),
    "batch": (1, 4, 8, 16, 64),
    "peak_lr": (1.7e-4, 5e-4, 1.5e-3, 4.5e-3),
    "schedule": ("constant", "linear", "cosine", "constant-cooldown"),
    "images_seen": (600, 1_200, 2_400, 4_800),
    "targets": ("cross-attention", "attention", "attention+feed-forward", "all"),
    "caption_dropout": (0.0, 0.1, 0.3),
}


def free_study(axes: Mapping[str, Sequence[Any]], scale: str, seeds: Sequence[int], images_seen: int) -> Study:
    """A study of all combinations of the values of some settings.

    Args:
        axes: setting -> values; the first combination is the reference.
        scale: one of `BUDGETS`; it gives data, prompts and sampling.
        seeds: training seeds.
        images_seen: budget of each training, unless it is an axis.
    Raises:
        ValueError: fewer than two combinations, or a value that a setting does not allow.
    """
    combinations = [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]
    if len(combinations) < 2:
        raise ValueError(f"expected two or more combinations of values, got {len(combinations)}")
    variants = [Variant(", ".join(f"{name} {value}" for name, value in c.items()), c) for c in combinations]
    budget = BUDGETS[scale]
    asked = json.dumps([combinations, scale, list(seeds), images_seen], sort_keys=True)
    return Study(
        name=f"free-{hashlib.sha256(asked.encode()).hexdigest()[:8]}",
        claim=f"{' and '.join(axes)} change what is drawn",
        arm=dataclasses.replace(STUDY_ARM, images_seen=images_seen),
        variants=tuple(variants),
        seeds=tuple(seeds),
        data=budget.data,
        prompts_per_radical=budget.prompts_per_radical,
        sampling=budget.sampling,
        loss_images=budget.loss_images,
    )


def value_from_text(axis: str, text: str) -> Any:
    """A value of a setting from what a user typed.

    Raises:
        ValueError: not of the setting's type.
    """
    kind = type(AXES[axis][0])
    try:
        return kind(text.strip())
    except ValueError as error:
        raise ValueError(f"{axis}: expected {kind.__name__}, got {text!r}") from error


def numbers_from_text(text: str) -> tuple[int, ...]:
    """Seeds from what a user typed: "0, 1, 2" or "100-107"; () from an empty text.

    Raises:
        ValueError: anything else.
    """
    found: list[int] = []
    for part in filter(None, (part.strip() for part in text.split(","))):
        match = re.fullmatch(r"(\d+)(?:\s*-\s*(\d+))?", part)
        if match is None:
            raise ValueError(f"seeds: expected whole numbers as '0, 1, 2' or '100-107', got {part!r}")
        first, last = int(match[1]), int(match[2] or match[1])
        found += range(first, last + 1)
    return tuple(dict.fromkeys(found))


@dataclass(frozen=True)
class StudyPlan:
    """A study cut into packs, as a planning job stores it.

    Attributes:
        cells: (variant's label, seed, key of the arm) of every variant in every block.
        drawing: identity of what is drawn, see `StudyContext.drawing`.
        packs: with their cost.
        kept: keys of the arms that finished studies hold, which no pack trains.
    """

    cells: tuple[tuple[str, int, str], ...]
    drawing: str
    packs: tuple[Pack, ...]
    kept: tuple[str, ...] = ()

    @classmethod
    def of(cls, lab: StudyContext, packs: Sequence[Pack]) -> StudyPlan:
        """The plan of an open lab."""
        cells = tuple((variant.label, seed, lab.key(variant, seed)) for variant, seed in lab.study.cells())
        kept = sorted({key for _, _, key in cells} & lab.kept.keys())
        return cls(cells, lab.drawing, tuple(packs), tuple(kept))


def _plan_path(study: Study, folder: Path) -> Path:
    return folder / "panel" / f"{study.hash}.json"


def write_plan(study: Study, folder: Path, plan: StudyPlan) -> None:
    """Store a plan."""
    _plan_path(study, folder).parent.mkdir(parents=True, exist_ok=True)
    write_json_atomic(_plan_path(study, folder), dataclasses.asdict(plan))


def read_plan(study: Study, folder: Path) -> StudyPlan | None:
    """The stored plan, or None."""
    path = _plan_path(study, folder)
    if not path.exists():
        return None
    values = json.loads(path.read_text())
    packs = tuple(Pack(**pack | {"keys": tuple(pack["keys"])}) for pack in values["packs"])
    cells = tuple((label, seed, key) for label, seed, key in values["cells"])
    return StudyPlan(cells, values["drawing"], packs, tuple(values.get("kept", ())))


def stored_keys(folder: Path, drawing: str) -> set[str]:
    """Keys of the arms whose results are in a study's folder."""
    files = folder.rglob(f"results/{drawing}.json")
    return {moment["key"] for file in files for moment in json.loads(file.read_text())}


def writers(folder: Path) -> list[str]:
    """Processes that are training packs of a study."""
    return sorted({writer for run in find_runs(folder / "packs") if (writer := run.writer()) is not None})


@dataclass(frozen=True)
class StudyState:
    """How much of a study is done.

    Attributes:
        planned: whether its arms and cost are known.
        stored, arms: number of different trainings that are stored, and of all.
        seconds: measured cost of the rest.
        gigabytes: of memory that the rest needs.
        writers: processes that are training its packs.
        report: of the finished study, or None.
        source: folder of the report, or None.
    """

    planned: bool = False
    stored: int = 0
    arms: int = 0
    seconds: float = 0.0
    gigabytes: float = 0.0
    writers: tuple[str, ...] = ()
    report: Mapping[str, Any] | None = None
    source: Path | None = None

    @property
    def button(self) -> str:
        """Label of the panel's main button."""
        if self.report is not None:
            return "Load"
        return "Running" if self.writers else "Resume" if self.stored else "Run"


def find_kept() -> Path | None:
    """The folder of finished studies of the clone in which this process runs, or None."""
    return next((path for path in KEPT if path.is_dir()), None)


def read_study(study: Study, folder: Path, judge: str = "radicals", kept: Path | None = None) -> StudyState:
    """Read the present state of a study from its folder.

    Args:
        study: the question.
        folder: of the study; it need not exist.
        judge: name of the judge whose report counts.
        kept: holds the folders of finished studies; its report counts where `folder` has none.
    """
    report = source = None
    for place in [folder, *([kept / study.name] if kept else [])]:
        path = place / f"report-{judge}.json"
        if report is None and path.exists() and (found := json.loads(path.read_text()))["hash"] == study.hash:
            report, source = found, place
    arms, busy = len(study.cells()), tuple(writers(folder))
    if (plan := read_plan(study, folder)) is None:
        return StudyState(stored=arms if report else 0, arms=arms, writers=busy, report=report, source=source)
    keys, stored = {key for _, _, key in plan.cells}, stored_keys(folder, plan.drawing) | {*plan.kept}
    left = [pack for pack in plan.packs if not stored.issuperset(pack.keys)]
    seconds = sum(pack.seconds for pack in left)
    gigabytes = max((pack.gigabytes for pack in left), default=0.0)
    return StudyState(True, len(keys & stored), len(keys), seconds, gigabytes, busy, report, source)


def study_cost_text(state: StudyState) -> str:
    """What is stored, what is left and how long it takes, in a sentence."""
    if state.report is not None:
        return f"All {state.arms} trainings are stored; nothing will be trained."
    if not state.planned:
        return f"{state.arms} trainings. Press Plan to see how many are stored and what the rest costs."
    left = state.arms - state.stored
    cost = f"about {duration(state.seconds)} on this machine, {state.gigabytes:.1f} GB of memory (measured)"
    return f"{state.stored} of {state.arms} trainings stored; {left} to train: {cost}."


def table_of_cells(study: Study, folder: Path) -> list[tuple[str, list[str]]]:
    """Each variant with "stored" or "to train" for each seed; [] for a study without a plan."""
    if (plan := read_plan(study, folder)) is None:
        return []
    stored = stored_keys(folder, plan.drawing) | {*plan.kept}
    known = {(label, seed): "stored" if key in stored else "to train" for label, seed, key in plan.cells}
    return [(v.label, [known[v.label, seed] for seed in study.seeds]) for v in study.variants]


def rate_points(report: Mapping[str, Any], split: str | None = None) -> list[dict[str, Any]]:
    """The rates of the variants at the end of training, as points with intervals.

    Args:
        report: of a study.
        split: of the prompts; by default the first, which the verdict is about.
    Returns:
        One per variant, in the study's order: label, value, low, high, blocks.
    """
    split = split or next(iter(report["sentences"]))
    rows = [rate for rate in report["rates"] if rate["final"] and rate["split"] == split]
    names = {"variant": "label", "value": "value", "low": "low", "high": "high", "blocks": "blocks"}
    return [{new: row[old] for old, new in names.items()} for row in rows]


def variant_strip(report: Mapping[str, Any], folder: Path, label: str, split: str | None = None) -> Strip | None:
    """What a variant drew at the end of training: prompts in rows, training seeds in columns, one noise seed.

    Args:
        report: of the study.
        folder: of the study, in which the images of its packs may be stored.
        label: of the variant.
        split: of the prompts; the first by default.
    Returns:
        The strip; None where the images are not stored.
    """
    split = split or next(iter(report["sentences"]))
    columns, seeds, rows = [], [], []
    for seed in report["study"]["seeds"]:
        keys = {arm["arm"] for arm in report["arms"] if (arm["variant"], arm["seed"]) == (label, seed)}
        if (found := _final_images(folder, keys, report.get("drawing", "*"))) is None:
            continue
        images, facts = found
        rows = [number for number, asked in enumerate(facts["prompts"]) if asked["split"] == split]
        columns.append(images[rows, 0])
        seeds.append(seed)
        asked = [facts["prompts"][number] for number in rows]
    if not columns or not rows:
        return None
    return Strip(
        np.stack(columns, axis=1),
        tuple(f"{one['prompt']} → {''.join(one['expected'])}" for one in asked),
        tuple(f"seed {seed}" for seed in seeds),
        title=f"{label}: {split.replace('_', '-')} prompts → expected radical",
        facts={"study": report["hash"], "noise seed": facts["noise_seeds"][0]},
    )


def _final_images(folder: Path, keys: set[str], drawing: str) -> tuple[np.ndarray, dict[str, Any]] | None:
    """(P, S, H, W) uint8 of an arm's latest checkpoint, and its facts; drawing "*" for any."""
    paths = [path for key in sorted(keys) for path in folder.rglob(f"samples/{key}-*-{drawing}.safetensors")]
    steps = {path: int(match["step"]) for path in paths if (match := SAMPLES.fullmatch(path.stem))}
    if not steps:
        return None
    latest = max(steps, key=steps.__getitem__)
    images, facts = RunFolder.open(latest.parents[1]).read_samples(latest.stem)
    return (grayscale(images) if images.ndim == 5 else images), facts
