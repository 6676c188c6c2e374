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

from kanjilab.core.notices import notice_once
from kanjilab.core.outside_files import read_json_object
from kanjilab.core.run_folder import find_runs
from kanjilab.core.storage import write_json_atomic
from kanjilab.experiments.context import StudyContext
from kanjilab.experiments.designs import BUDGETS, STUDY_ARM
from kanjilab.experiments.image_sheets import ImageSheets
from kanjilab.experiments.packs import Pack, moments_below
from kanjilab.experiments.setting_axes import Axis, nearest
from kanjilab.experiments.study import Study, Variant, read_report
from kanjilab.training.cost import duration
from kanjilab.viz.strip import Strip
from kanjilab.widgets.ablation_catalogue import CHOICES, SETTINGS, StudySettings, value_text

MORE = "-more"  # ends the name of a study to which variants were added
STRIP_ROWS = 12
SEEDS_MOST = 1_000  # of a study
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
        scale: one of `BUDGETS`; it gives base, data, prompts, checkpoints and sampling.
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
    scaled: dict[str, Any] = {"base": budget.base, "checkpoints": budget.checkpoints}
    asked = [combinations, scale, list(seeds), images_seen]
    if unusual := {name: value for name, value in scaled.items() if value != getattr(Study, name)}:
        asked.append(unusual)  # where there is nothing unusual, stored studies keep their name
    digest = hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()
    return Study(
        name=f"free-{digest[:8]}",
        claim=f"{' and '.join(axes)} change what is drawn",
        arm=dataclasses.replace(STUDY_ARM, images_seen=images_seen),
        variants=tuple(variants),
        seeds=tuple(seeds),
        data=budget.data,
        prompts_per_radical=budget.prompts_per_radical,
        sampling=budget.sampling,
        **scaled,
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
        ValueError: anything else, or more than `SEEDS_MOST`.
    """
    found: list[int] = []
    for part in filter(None, (part.strip() for part in text.split(","))):
        match = re.fullmatch(r"(\d+)(?:\s*-\s*(\d+))?", part)
        if match is None:
            raise ValueError(f"seeds: expected whole numbers as '0, 1, 2' or '100-107', got {part!r:.80}")
        first, last = int(match[1]), int(match[2] or match[1])
        if not first <= last < first + SEEDS_MOST - len(found):
            raise ValueError(f"seeds: expected at most {SEEDS_MOST:,}, from a lower one to a higher, got {part!r:.80}")
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
    """The stored plan; None where there is none, or, with a notice, a damaged one: it can be made again."""
    path = _plan_path(study, folder)
    if not path.exists():
        return None
    try:
        values = read_json_object(path, "the plan of a study")
    except (OSError, ValueError) as error:
        notice_once(f"{error}; Plan makes it again")
        return None
    try:
        packs = tuple(Pack(**pack | {"keys": tuple(pack["keys"])}) for pack in values["packs"])
        cells = tuple((label, seed, key) for label, seed, key in values["cells"])
        return StudyPlan(cells, values["drawing"], packs, tuple(values.get("kept", ())))
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        notice_once(f"{path}: expected the plan of a study, got {error!r:.200}; Plan makes it again")
        return None


def stored_keys(folder: Path, drawing: str) -> set[str]:
    """Keys of the arms whose results are in a study's folder."""
    return set(moments_below(folder, drawing))


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
        if report is None and path.exists() and (found := read_report(path)[0])["hash"] == study.hash:
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


def setting_strip(folder: Path, label: str, seed: int | None = None, split: str | None = None) -> Strip | None:
    """What a variant of a finished study drew: prompts in rows, the moments of one training in columns, one noise.

    Args:
        folder: of the study, with its sheets of images.
        label: of the variant.
        seed: of the training; the study's first by default.
        split: of the prompts; the first, which the verdict is about, by default.
    Returns:
        The strip, with twelve prompts at most; None where the images are not stored.
    """
    if (sheets := ImageSheets.read(folder)) is None:
        return None
    report, _ = read_report(min(folder.glob("report-*.json")))
    seed, split = report["study"]["seeds"][0] if seed is None else seed, split or next(iter(report["sentences"]))
    keys = [arm["arm"] for arm in report["arms"] if (arm["variant"], arm["seed"]) == (label, seed)]
    rows = [row for row, asked in enumerate(sheets.prompts) if asked["split"] == split][:STRIP_ROWS]
    if not rows or not keys or keys[0] not in sheets.arms or not sheets.path(keys[0]).exists():
        return None
    asked = [sheets.prompts[row] for row in rows]
    return Strip(
        sheets.images(keys[0])[rows, :, 0],
        tuple(f"{one['prompt']} → {''.join(one['expected'])}" for one in asked),
        tuple(f"{seen:,}" for seen in sheets.arms[keys[0]]),
        title=f"{label}: {split.replace('_', '-')} prompts, by images seen",
        facts={"study": report["hash"], "training seed": seed, "noise seed": sheets.noise_seeds[0]},
    )


def value_of_axis(axis: Axis, text: str) -> Any:
    """A value of a study's axis from what a user typed or chose.

    Raises:
        ValueError: a number was expected.
    """
    if not axis.is_number:
        return text
    whole = all(isinstance(value, int) for value in axis.values)
    try:
        return int(text.replace(",", "")) if whole else float(text)
    except ValueError as error:
        raise ValueError(f"{axis.name}: expected a {'whole ' * whole}number, got {text!r}") from error


def study_with(study: Study, settings: StudySettings, at: Mapping[str, Any]) -> Study:
    """A study with one more variant, which is at a combination of stops that none has.

    All other settings are those of the nearest variant that agrees on the axes which are no settings of a training.

    Args:
        study: a finished one; its seeds, prompts and sampling stay, so that its arms can be taken over.
        settings: of the study.
        at: axis -> value, for every axis.
    Returns:
        The study, its name ending in -more; the new variant is the last.
    Raises:
        ValueError: no variant agrees, or a value that a setting does not allow.
    """
    if unknown := {axis.name: at.get(axis.name) for axis in settings.axes if at.get(axis.name) not in axis.values}:
        raise ValueError(f"expected stops of the study's axes, got {unknown}; add them first")
    free = {axis.name for axis in settings.axes if is_free(axis, at[axis.name])}
    fixed = {name: value for name, value in at.items() if name not in free}
    order = nearest(settings.axes, settings.places, at)
    alike = [number for number in order if fixed.items() <= settings.places[number].items()]
    if not alike:
        raise ValueError(f"expected {fixed} as in one of the study's variants; none is like that")
    near = next(variant for variant in study.variants if variant.label == settings.labels[alike[0]])
    changes = {name: at[name] for name in free if at[name] != settings.places[alike[0]][name]}
    label = ", ".join(place_texts(settings.axes, at))
    label += " again" * (label in {variant.label for variant in study.variants})
    own = dict(near.changes if near.axes is None else near.axes)
    further = Variant(label, {**near.changes, **changes}, near.data, {**own, **at})
    more = dataclasses.replace(
        study,
        name=study.name.removesuffix(MORE) + MORE,
        variants=(*study.variants, further),
        contrasts=(*study.contrasts, (label, study.variants[0].label)),
        phase="explore",
    )
    more.arm_of(further, study.seeds[0])  # refuses what a setting does not allow
    return more


def is_free(axis: Axis, value: Any) -> bool:
    """Whether a value of an axis can be set by itself: it is one of a training's settings, and no name of several."""
    return axis.name in SETTINGS and (axis.is_number or value in CHOICES.get(axis.name, ()))


def place_texts(axes: Sequence[Axis], at: Mapping[str, Any]) -> list[str]:
    """A combination of stops in words, a text an axis: "rank 64", "rsLoRA"."""
    texts = {axis.name: value_text(at[axis.name]) for axis in axes}
    return [
        f"{axis.name.replace('_', ' ')} {texts[axis.name]}" if axis.is_number else texts[axis.name] for axis in axes
    ]
