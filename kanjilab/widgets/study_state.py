"""What an ablation panel shows, read from a study's folder: no base is loaded, and nothing is trained.

A job writes `panel/<hash of the study>.json` beside the study's own files: which arm each variant is in each block, and
the packs with their cost. From then on anybody sees by the stored results how far the study has come.
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
AXES: dict[str, tuple[Any, ...]] = {  # what is offered; any other value can be added
    "rank": (1, 4, 16, 64, 256),
    "batch": (1, 4, 8, 16, 64),
    "peak_lr": (1.7e-4, 5e-4, 1.5e-3, 4.5e-3),
    "schedule": ("constant", "linear", "cosine", "constant-cooldown"),
    "images_seen": (600, 1_200, 2_400, 4_800),
    "targets": ("cross-attention", "attention", "attention+feed-forward", "all"),
    "caption_dropout": (0.0, 0.1, 0.3),
}


# ---------------------------------------------------------------------------------------------- free axes


def free_study(axes: Mapping[str, Sequence[Any]], scale: str, seeds: Sequence[int], images_seen: int) -> Study:
    """A study of all combinations of some settings' values.

    Args:
        axes: setting -> values, of which the first combination is the reference.
        scale: one of `BUDGETS`: gives data, prompts and sampling.
        seeds: blocks.
        images_seen: budget of each training, unless it is an axis.
    Raises:
        ValueError: fewer than two combinations, or a value that the setting does not take.
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
    """A value of a setting, as somebody wrote it.

    Raises:
        ValueError: not of the setting's kind.
    """
    kind = type(AXES[axis][0])
    try:
        return kind(text.strip())
    except ValueError as error:
        raise ValueError(f"{axis}: expected {kind.__name__}, got {text!r}") from error


def numbers_from_text(text: str) -> tuple[int, ...]:
    """Seeds as somebody wrote them: "0, 1, 2" or "100-107"; nothing for none.

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


# ---------------------------------------------------------------------------------------------- how far it has come


@dataclass(frozen=True)
class StudyPlan:
    """A study cut into packs, as its panel remembers it.

    Attributes:
        cells: (variant's label, seed, key of the arm) of every variant in every block.
        drawing: identity of what is drawn, see `StudyContext.drawing`.
        packs: with their cost.
    """

    cells: tuple[tuple[str, int, str], ...]
    drawing: str
    packs: tuple[Pack, ...]

    @classmethod
    def of(cls, lab: StudyContext, packs: Sequence[Pack]) -> StudyPlan:
        """The plan of an open lab."""
        cells = tuple((variant.label, seed, lab.key(variant, seed)) for variant, seed in lab.study.cells())
        return cls(cells, lab.drawing, tuple(packs))


def plan_path(study: Study, folder: Path) -> Path:
    """Where the panel keeps a study's plan."""
    return folder / "panel" / f"{study.hash}.json"


def write_plan(study: Study, folder: Path, plan: StudyPlan) -> None:
    """Store a plan."""
    path = plan_path(study, folder)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json_atomic(path, dataclasses.asdict(plan))


def read_plan(study: Study, folder: Path) -> StudyPlan | None:
    """The plan that an earlier job stored, or None."""
    path = plan_path(study, folder)
    if not path.exists():
        return None
    values = json.loads(path.read_text())
    packs = tuple(Pack(**pack | {"keys": tuple(pack["keys"])}) for pack in values["packs"])
    return StudyPlan(tuple((label, seed, key) for label, seed, key in values["cells"]), values["drawing"], packs)


def stored_keys(folder: Path, drawing: str) -> set[str]:
    """Keys of the arms whose results lie in a study's folder."""
    files = folder.rglob(f"results/{drawing}.json")
    return {moment["key"] for file in files for moment in json.loads(file.read_text())}


def writers(folder: Path) -> list[str]:
    """Processes that train packs of a study at this moment."""
    return sorted({writer for run in find_runs(folder / "packs") if (writer := run.writer()) is not None})


@dataclass(frozen=True)
class StudyState:
    """How far a study has come.

    Attributes:
        planned: whether its arms and cost are known.
        stored, arms: different trainings that are stored, and all of them.
        seconds: that the rest will take, as measured.
        gigabytes: of memory that it will take.
        writers: processes that are at it.
        report: of the finished study, or None.
    """

    planned: bool = False
    stored: int = 0
    arms: int = 0
    seconds: float = 0.0
    gigabytes: float = 0.0
    writers: tuple[str, ...] = ()
    report: Mapping[str, Any] | None = None

    @property
    def button(self) -> str:
        """What the panel's button says."""
        if self.report is not None:
            return "Load"
        return "Running" if self.writers else "Resume" if self.stored else "Run"


def read_study(study: Study, folder: Path, judge: str = "radicals") -> StudyState:
    """What a study's folder tells, at any moment.

    Args:
        folder: of the study; it need not exist.
        judge: name of whose readings count.
    """
    path = folder / f"report-{judge}.json"
    report = json.loads(path.read_text()) if path.exists() else None
    if report is not None and report["hash"] != study.hash:
        report = None
    arms, at_it = len(study.cells()), tuple(writers(folder))
    if (plan := read_plan(study, folder)) is None:
        return StudyState(stored=arms if report else 0, arms=arms, writers=at_it, report=report)
    keys, stored = {key for _, _, key in plan.cells}, stored_keys(folder, plan.drawing)
    left = [pack for pack in plan.packs if not stored.issuperset(pack.keys)]
    seconds = sum(pack.seconds for pack in left)
    gigabytes = max((pack.gigabytes for pack in left), default=0.0)
    return StudyState(True, len(keys & stored), len(keys), seconds, gigabytes, at_it, report)


def study_cost_text(state: StudyState) -> str:
    """What is stored, what is left and how long it takes, in a sentence."""
    if state.report is not None:
        return f"All {state.arms} trainings are stored: nothing is trained again."
    if not state.planned:
        return (
            f"{state.arms} trainings; what of them is stored and what the rest costs: press Plan (Run does it first)."
        )
    left = state.arms - state.stored
    cost = f"about {duration(state.seconds)} on this machine, {state.gigabytes:.1f} GB of memory (measured)"
    return f"{state.stored} of {state.arms} trainings stored; {left} to train: {cost}."


def table_of_cells(study: Study, folder: Path) -> list[tuple[str, list[str]]]:
    """Each variant with "stored" or "to train" for each block; empty where the study is not planned yet."""
    if (plan := read_plan(study, folder)) is None:
        return []
    stored = stored_keys(folder, plan.drawing)
    known = {(label, seed): "stored" if key in stored else "to train" for label, seed, key in plan.cells}
    return [(v.label, [known[v.label, seed] for seed in study.seeds]) for v in study.variants]


# ---------------------------------------------------------------------------------------------- what came out


def rate_points(report: Mapping[str, Any], split: str | None = None) -> list[dict[str, Any]]:
    """The variants at the end of training, as points with intervals.

    Args:
        report: of a study.
        split: of the prompts; by default the first, which verdicts are about.
    Returns:
        One a variant, in the study's order: label, value, low, high, blocks.
    """
    split = split or next(iter(report["sentences"]))
    rows = [rate for rate in report["rates"] if rate["final"] and rate["split"] == split]
    names = {"variant": "label", "value": "value", "low": "low", "high": "high", "blocks": "blocks"}
    return [{new: row[old] for old, new in names.items()} for row in rows]


def variant_strip(report: Mapping[str, Any], folder: Path, label: str, split: str | None = None) -> Strip | None:
    """What a variant drew at the end: prompts in rows, training seeds in columns, all in one noise.

    Args:
        report: of the study.
        folder: of the study, where its packs' images may lie.
        label: of the variant.
        split: of the prompts; the first by default.
    Returns:
        None where its images are not stored there.
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
    """(P, S, H, W) uint8 of an arm's latest moment, and its facts; drawing "*" for whatever was drawn."""
    paths = [path for key in sorted(keys) for path in folder.rglob(f"samples/{key}-*-{drawing}.safetensors")]
    steps = {path: int(match["step"]) for path in paths if (match := SAMPLES.fullmatch(path.stem))}
    if not steps:
        return None
    latest = max(steps, key=steps.__getitem__)
    images, facts = RunFolder.open(latest.parents[1]).read_samples(latest.stem)
    return (grayscale(images) if images.ndim == 5 else images), facts
