"""The axes of a set of trainings: the settings in which they differ, each with its stops in order."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

NAMES = "setting"  # the one axis of trainings that differ in more than their axes say


@dataclass(frozen=True)
class Axis:
    """A setting that differs.

    Attributes:
        name: of the setting.
        values: its stops: numbers ascending, others as they first occur.
    """

    name: str
    values: tuple[Any, ...]

    @property
    def is_number(self) -> bool:
        """Whether all values are numbers, so that some are nearer to each other than others."""
        return all(isinstance(value, int | float) and not isinstance(value, bool) for value in self.values)

    @property
    def is_log(self) -> bool:
        """Whether the values cover so wide a range that their ratios count: a factor of five or more."""
        return self.is_number and 0 < 5 * min(self.values) <= max(self.values)

    def apart(self) -> np.ndarray:
        """How far the stops are from each other: (N, N) float in [0, 1].

        Two categories are 1 apart. Two numbers are 0.5 apart at least and 1 at most, the latter for the ends.
        """
        apart = 1 - np.eye(len(self.values))
        if self.is_number and len(self.values) > 1:
            at = np.array([math.log(value) if self.is_log else value for value in self.values], dtype=float)
            apart *= 0.5 + 0.5 * np.abs(at[:, None] - at) / np.ptp(at)
        return apart

    def with_value(self, value: Any) -> Axis:
        """The axis with a further stop, at its place; the same axis if it has it."""
        if value in self.values:
            return self
        further = Axis(self.name, (*self.values, value))
        return Axis(self.name, tuple(sorted(further.values))) if further.is_number else further


def find_axes(
    rows: Sequence[Mapping[str, Any]], labels: Sequence[str], settings: Collection[str] = ()
) -> tuple[list[Axis], list[dict[str, Any]]]:
    """The axes that distinguish some trainings, as few as will do, and the place of each training on them.

    Args:
        rows: what each training has on its possible axes; None where it has nothing.
        labels: of the trainings, which differ; they become the axis where the others do not distinguish all.
        settings: names that are settings of a training, which are kept rather than other names.
    Returns:
        The axes, and for each training {name: value}.
    """
    names = list(dict.fromkeys(name for row in rows for name in row))
    names = [name for name in names if len({repr(row.get(name)) for row in rows}) > 1]
    if not _distinguish(names, rows):
        names, rows = [NAMES], [{NAMES: label} for label in labels]
    for name in sorted(names[::-1], key=lambda name: name in settings):
        fewer = [other for other in names if other != name]
        names = fewer if _distinguish(fewer, rows) else names
    axes = [_axis(name, [row.get(name) for row in rows]) for name in names]
    return axes, [{name: row.get(name) for name in names} for row in rows]


def _distinguish(names: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> bool:
    return len({repr([row.get(name) for name in names]) for row in rows}) == len(rows)


def _axis(name: str, values: Sequence[Any]) -> Axis:
    axis = Axis(name, tuple(dict.fromkeys(values)))
    return Axis(name, tuple(sorted(axis.values))) if axis.is_number else axis


def nearest(axes: Sequence[Axis], places: Sequence[Mapping[str, Any]], wanted: Mapping[str, Any]) -> list[int]:
    """Which trainings are nearest to a combination of stops, the nearest first.

    Args:
        axes: with the wanted stops among theirs.
        places: of the trainings, as of `find_axes`.
        wanted: the combination.
    """
    apart = {axis.name: (axis.values.index, axis.apart()) for axis in axes}
    far = [sum(table[at(place[name]), at(wanted[name])] for name, (at, table) in apart.items()) for place in places]
    return sorted(range(len(places)), key=far.__getitem__)


def star_centre(places: Sequence[Mapping[str, Any]]) -> int | None:
    """The training around which the others were made, where one setting at a time was moved away from it.

    Args:
        places: of the trainings, as of `find_axes`.
    Returns:
        Number of the training that differs in a single axis from more than half of the others, and from more of them
        than any other training does; None where there is none, as in a grid, where all have as many neighbours.
    """
    apart = [[sum(one[name] != other[name] for name in one) for other in places] for one in places]
    counts = [row.count(1) for row in apart]
    most = max(counts, default=0)
    if counts.count(most) != 1 or 2 * most <= len(places) - 1:
        return None
    return counts.index(most)
