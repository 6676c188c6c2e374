"""A study as settings: its variants, blocks and contrasts, as frozen objects identified by a hash."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from kanjilab.core.config import READ_FROM_JSON, SPELLED_IN_JSON, Arm, respelled, settings_hash
from kanjilab.core.outside_files import read_json_object
from kanjilab.data.selection import rule_from_json
from kanjilab.models.sampling import Sampling
from kanjilab.training.presets import DEMO_SAMPLING

REPORT_FIELDS: dict[str, Any] = dict(hash=str, judge=str, study=dict, arms=list, contrasts=dict, rates=list)
REPORT_FIELDS |= dict(prompts=dict, sentences=dict)
PHASES = ("pilot", "confirm", "explore")


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

    def respelled(self, spelling: Mapping[str, str]) -> Variant:
        """The same variant with its settings as they are spelled in JSON, or as they are read from it."""
        axes = None if self.axes is None else respelled(self.axes, spelling)
        return dataclasses.replace(self, changes=respelled(self.changes, spelling), axes=axes)


@dataclass(frozen=True)
class Study:
    """A question, and the settings of all that answers it.

    Args:
        name: of the study and its folder.
        claim: what is tested, in words.
        arm: the settings that all variants share; its `images_seen` or `epochs` is the budget of a run.
        variants: what is compared, the first of them the reference.
        seeds: blocks; each variant is trained with each.
        contrasts: pairs of labels (one, against which) to test; the first is the claim's own. By default every
            variant against the first.
        data: a selection rule as `rule_from_json` reads it, or {"folder": path} of an image folder.
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
            object.__setattr__(self, "contrasts", self.usual_contrasts)
        if unknown := sorted({label for pair in self.contrasts for label in pair} - set(labels)):
            raise ValueError(f"contrasts name {unknown}, which are no variants; expected some of {labels}")
        for variant in self.variants:
            if "seed" in variant.changes:
                raise ValueError(f"variant {variant.label!r}: the seed is the block's, expected other changes")
            self.arm_of(variant, self.seeds[0])
        for data in self.datasets():
            if "folder" not in data:
                rule_from_json(data)

    @property
    def usual_contrasts(self) -> tuple[tuple[str, str], ...]:
        """Every variant against the first, in their order: none of them is put first as the claim's own."""
        return tuple((variant.label, self.variants[0].label) for variant in self.variants[1:])

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
        variants = [dataclasses.asdict(variant.respelled(SPELLED_IN_JSON)) for variant in self.variants]
        parts = {"arm": self.arm.to_json(), "sampling": self.sampling.to_json(), "variants": variants}
        contents = dataclasses.asdict(self) | parts
        return json.loads(json.dumps(contents))

    @classmethod
    def from_json(cls, contents: Mapping[str, Any]) -> Self:
        """The inverse of `to_json`."""
        values: dict[str, Any] = dict(contents)
        values["arm"] = Arm.from_json(values["arm"])
        values["variants"] = tuple(Variant(**variant).respelled(READ_FROM_JSON) for variant in values["variants"])
        values["sampling"] = Sampling(**values["sampling"])
        values["contrasts"] = tuple((one, other) for one, other in values["contrasts"])
        for name in ("seeds", "splits", "noise_seeds"):
            values[name] = tuple(values[name])
        return cls(**values)

    @property
    def hash(self) -> str:
        """Identity: the hash of all of its contents."""
        return settings_hash(self.to_json())

    @property
    def scale(self) -> str:
        """What its name says of it: `full` of "rank-full"; "" for nothing."""
        return self.name.partition("-")[2]


def read_report(path: Path) -> tuple[dict[str, Any], Study]:
    """A finished study's report, and the study that it is about.

    Args:
        path: of report-<judge>.json.
    Raises:
        FileNotFoundError: there is none.
        ValueError: a damaged report, or another file.
    """
    report = read_json_object(path, "a study's report")
    for name, kind in REPORT_FIELDS.items():
        if not isinstance(report.get(name), kind) or not report[name]:
            raise ValueError(f"{path}: {name}: expected that of a study's report, got {report.get(name)!r:.80}")
    try:
        return report, Study.from_json(report["study"])
    except (LookupError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(f"{path}: expected a study's report, got one that cannot be read ({error!r:.300})") from error


def place(study: Study) -> str:
    """On which base its sentences are true: "in pocket"."""
    return f"in {Path(study.base).name}"


def spelled(split: str) -> str:
    """A split as a reader knows it: "held-out"."""
    return split.replace("_", "-")


def note(study: Study, prompts: int, split: str) -> str:
    """A line for figures: "in pocket: 8 training seeds, 40 held-out prompts".

    Args:
        prompts: how many of the split.
        split: of the captions.
    """
    seeds = f"{len(study.seeds)} training seed" + "s" * (len(study.seeds) > 1)
    return f"{place(study)}: {seeds}, {prompts} {spelled(split)} prompts"
