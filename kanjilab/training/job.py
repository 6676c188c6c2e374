"""A training as a description: base, data, arms and checkpoints, before anything is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

from kanjilab.core.config import DEFAULT_BASE, PRECISIONS, Arm, settings_hash
from kanjilab.data.selection import rule_from_json

CHECKPOINTS_MAX = 1_000


@dataclass(frozen=True)
class TrainingJob:
    """All that a training is made of.

    Args:
        base, precision, gradient_checkpointing: as for `load_base`.
        data: a selection rule as `rule_from_json` reads it, or {"folder": path} of an image folder.
        arms: trained together.
        checkpoints: after the one before training.
    Raises:
        ValueError: an unknown precision or rule, or no number of checkpoints.
    """

    base: str = DEFAULT_BASE
    precision: str = "bf16"
    data: Mapping[str, Any] = field(default_factory=lambda: {"name": "left16"})
    arms: tuple[Arm, ...] = (Arm(),)
    checkpoints: int = 8
    gradient_checkpointing: bool = False

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS:
            raise ValueError(f"precision must be one of {PRECISIONS}, got {self.precision!r}")
        if not 1 <= self.checkpoints <= CHECKPOINTS_MAX:
            raise ValueError(f"checkpoints must be from 1 to {CHECKPOINTS_MAX:,}, got {self.checkpoints}")
        if "folder" not in self.data:
            rule_from_json(self.data)

    @property
    def arm(self) -> Arm:
        """The first arm, which in most jobs is the only one."""
        return self.arms[0]

    def to_json(self) -> dict[str, Any]:
        """A plain dictionary, ready for JSON, of a job with one arm.

        Gradient checkpointing is left out: it changes how a training is computed, not what it is.
        """
        values = {"base": self.base, "precision": self.precision, "data": dict(self.data)}
        return values | {"arm": self.arm.to_json(), "checkpoints": self.checkpoints}

    @classmethod
    def from_json(cls, contents: Mapping[str, Any]) -> Self:
        """The inverse of `to_json`."""
        values: dict[str, Any] = dict(contents)
        return cls(arms=(Arm.from_json(values.pop("arm")),), **values)

    @property
    def name(self) -> str:
        """The hash of what `to_json` writes: the name of a panel's run folder."""
        return settings_hash(self.to_json())

    def title(self) -> str:
        """A short line for lists."""
        arm = self.arm
        what = "every weight" if arm.targets == "full" else f"rank {arm.rank} on {arm.targets}"
        budget = f"{arm.images_seen:,} images by {arm.batch}"
        return f"{what}, {budget}, rate {arm.peak_lr:g} {arm.schedule}, seed {arm.seed}, {self.base}"
