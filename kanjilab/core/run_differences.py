"""What differs between trainings: their settings side by side, only those that are not the same for all."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from kanjilab.core.run_folder import RunFolder

OWN_TO_A_RUN = ("hash", "arms")  # the hash follows from the rest, and an arm's settings are shown by themselves


def arm_settings(run: RunFolder, arm: int = 0) -> dict[str, Any]:
    """All settings of one training: those of its run and, where the run names its arms, those of its arm, by name.

    Args:
        arm: which of the arms that were trained together.
    Raises:
        ValueError: the run names its arms and has no such one.
    """
    settings = run.settings
    shared = {name: value for name, value in settings.items() if name not in OWN_TO_A_RUN}
    return flat_settings(shared) | (dataclasses.asdict(run.arm(arm)) if settings.get("arms") else {})


def flat_settings(settings: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    """Settings without nesting: {"sampling": {"steps": 2}} is {"sampling.steps": 2}.

    Args:
        settings: by name; mappings in it are taken apart.
        before: what every name begins with.
    """
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        flat |= flat_settings(value, f"{before}{name}.") if isinstance(value, Mapping) else {f"{before}{name}": value}
    return flat


def setting_differences(trainings: Mapping[str, Mapping[str, Any]]) -> pd.DataFrame:
    """The settings that are not the same for all trainings.

    Args:
        trainings: the settings of each, by name; one that is missing counts as None.
    Returns:
        One row a setting, in the order in which they first occur; one column a training.
    """
    names = dict.fromkeys(name for settings in trainings.values() for name in settings)
    rows = {name: [settings.get(name) for settings in trainings.values()] for name in names}
    differing = {name: values for name, values in rows.items() if any(value != values[0] for value in values)}
    return pd.DataFrame.from_dict(differing, orient="index", columns=list(trainings), dtype=object)


def run_differences(first: Path | str, second: Path | str, arms: tuple[int, int] = (0, 0)) -> pd.DataFrame:
    """What differs between two stored trainings.

    Args:
        first, second: run folders.
        arms: which arm of each.
    Returns:
        One row a setting that differs; the columns are the paths of the two, with the arm's number where it is not 0.
    Raises:
        RunError: a folder is not a run.
        ValueError: a run has no such arm, or both are the same training.
    """
    named = {
        f"{path}, arm {arm}" if arm else str(path): arm_settings(RunFolder.open(path), arm)
        for path, arm in zip((first, second), arms, strict=True)
    }
    if len(named) < 2:
        raise ValueError(f"expected two different trainings, got {first} twice")
    return setting_differences(named)
