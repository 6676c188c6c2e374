"""The certificate of a coined glyph: what was asked, what two judges and a check without a network found."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from kanjilab.data.components import Box
from kanjilab.data.part_names import name_of_part
from kanjilab.evaluation.criteria import CRITERIA, ONE_STROKE, Context, Thresholds, judge_images
from kanjilab.evaluation.judges.framing import Images
from kanjilab.evaluation.judges.part_judge import Judge

NEAREST_SHOWN = 3
PARTS_MIN = 2
OUTLINE = "outline"  # the check without a network
LABELS = {  # of the criteria, for readers
    "two_or_more": "Two or more parts",
    "distinct": "Parts are distinct",
    "novel": "New",
    "legal": "Well-formed",
    "meaning": "Meaning",
}
UNITS = {
    "two_or_more": "parts found",
    "distinct": "nats by which wiping a part hurts it more than the other",
    "novel": "distance to the nearest character",
    "legal": "probability",
    "meaning": "expected parts found",
}


@dataclass(frozen=True)
class FoundPart:
    """A part that a judge sees.

    Attributes:
        part: its normal form, such as "水".
        name: in English; "" where it has none.
        box: left, top, right, bottom in [0, 1] of the picture.
        score: probability, in [0, 1].
    """

    part: str
    name: str
    box: Box
    score: float


@dataclass(frozen=True)
class Nearest:
    """A real character near the glyph: its codepoint such as "U+4F11", and its distance (1 - cosine)."""

    character: str
    codepoint: str
    distance: float


@dataclass(frozen=True)
class Criterion:
    """One of the five criteria, as one judge has it.

    Attributes:
        name: one of `criteria.CRITERIA`.
        value: what was measured; None where nothing could be.
        threshold: the least value that passes.
        passed: whether the whole criterion is met; it may ask for more than this value.
        note: the rest of it, in words.
    """

    name: str
    value: float | None
    threshold: float
    passed: bool
    note: str


@dataclass(frozen=True)
class Verdict:
    """What one judge reads in a glyph.

    Attributes:
        judge: "A", which chose, or "B", which reports.
        parts: found ones, best first.
        layout: such as "⿰"; "" where the judge abstains.
        layout_probability: in [0, 1].
        criteria: all five, in the order of `criteria.CRITERIA`.
        nearest: real characters, nearest first.
        exists: whether the judge takes the glyph for the first of these.
    """

    judge: str
    parts: tuple[FoundPart, ...]
    layout: str
    layout_probability: float
    criteria: tuple[Criterion, ...]
    nearest: tuple[Nearest, ...]
    exists: bool

    @property
    def passes(self) -> bool:
        """Whether all five criteria are met."""
        return all(criterion.passed for criterion in self.criteria)

    @property
    def lacking(self) -> tuple[str, ...]:
        """Names of the criteria that are not met."""
        return tuple(criterion.name for criterion in self.criteria if not criterion.passed)


@dataclass(frozen=True)
class Certificate:
    """All that is known of one coined glyph.

    Attributes:
        phrase: as it was given.
        translation: its English, for a phrase in Japanese; else "".
        prompt: the reading of the phrase that was drawn.
        reason: why this reading, in words; "" for the phrase itself.
        seed: of the noise.
        asked: parts that the prompt names, in the order of their slots; () for the phrase itself.
        layout: that the prompt asks for; "" for the phrase itself.
        verdicts: of judge A, which chose, and of judge B, which reports.
        outline: the nearest real characters by the outlines of their strokes, without a network.
        novelty: in a sentence: whether it is in the list of characters.
        rejected: why judge A rejects it; "" for a glyph that is kept.
        writer: name of the model that drew it.
        identity: hash of that model.
        sampling: how it drew.
        version: of kanjilab.
        picture: SHA-256 of the glyph's pixels.
    """

    phrase: str
    translation: str
    prompt: str
    reason: str
    seed: int
    asked: tuple[str, ...]
    layout: str
    verdicts: tuple[Verdict, ...]
    outline: tuple[Nearest, ...]
    novelty: str
    rejected: str
    writer: str
    identity: str
    sampling: Mapping[str, Any]
    version: str
    picture: str

    @property
    def report(self) -> Verdict:
        """What judge B found, which did not choose."""
        return self.verdicts[-1]

    def to_json(self) -> dict[str, Any]:
        """Plain values for a JSON file."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Certificate:
        """The inverse of `to_json`.

        Raises:
            ValueError: fields are missing, or there are others.
        """
        if values.keys() != (names := {field.name for field in fields(cls)}):
            raise ValueError(f"expected a certificate of {', '.join(sorted(names))}, got {', '.join(sorted(values))}")
        verdicts = tuple(_verdict(one) for one in values["verdicts"])
        outline = tuple(Nearest(**one) for one in values["outline"])
        return cls(**{**values, "asked": tuple(values["asked"]), "verdicts": verdicts, "outline": outline})


def _verdict(values: Mapping[str, Any]) -> Verdict:
    parts = tuple(FoundPart(**{**one, "box": tuple(one["box"])}) for one in values["parts"])
    criteria = tuple(Criterion(**one) for one in values["criteria"])
    return Verdict(
        **{
            **values,
            "parts": parts,
            "criteria": criteria,
            "nearest": tuple(Nearest(**one) for one in values["nearest"]),
        }
    )


def verdicts_of(judge: Judge, images: Images, prompts: Sequence[str], context: Context) -> list[Verdict]:
    """What one judge reads in each glyph, with its five criteria.

    Args:
        judge: A or B.
        images: (N, H, W) uint8.
        prompts: N, one an image.
        context: the judge's own.
    """
    measured, readings = judge_images(judge, images, prompts, context), judge.read(images)
    order, distances = judge.nearest(images, NEAREST_SHOWN)
    found = []
    for index, (row, read) in enumerate(zip(_rows(measured), _rows(readings), strict=True)):
        seen = zip(read.parts, read.part_boxes, read.part_scores, strict=True)
        parts = tuple(FoundPart(part, _name(part), _plain(box), float(score)) for part, box, score in seen)
        criteria = criteria_of(row, context.thresholds, judge)
        nearest = _nearest(judge.characters, order[index], distances[index])
        found.append(
            Verdict(judge.name, parts, row.layout, float(row.layout_probability), criteria, nearest, bool(row.exists))
        )
    return found


def criteria_of(row: Any, thresholds: Thresholds, judge: Judge) -> tuple[Criterion, ...]:
    """The five criteria of one image, each with its number, its threshold and the rest in words.

    Args:
        row: of `judge_images`, as from `itertuples`.
        thresholds, judge: that it was measured with.
    """
    found, expected = row.parts.split(), row.expected.split()
    sure = f"layout {row.layout_probability:.2f} (least {thresholds.layout_probability:.2f})"
    shape = f"measures outside real glyphs' range by {row.excess:.2f} (most {thresholds.slack:.2f})"
    worst = f", worst {row.worst_measure}" if row.worst_measure else ""
    slots = "parts in slots where listed characters have them" if row.slots_attested else "a part in no slot of its own"
    strokes = f"strokes differ by {row.line_difference:.2f} sides (least {ONE_STROKE})"
    values: dict[str, tuple[float, float, str]] = {
        "two_or_more": (len(found), PARTS_MIN, f"parts {' '.join(found) or 'none'}"),
        "distinct": (row.erasure, thresholds.distinct, "nats by which a part's own region matters more than the other"),
        "novel": (
            row.distance,
            judge.novel_distance,
            f"{row.novelty}; {strokes}; nearest {row.codepoint} {row.nearest}",
        ),
        "legal": (row.legal_probability, thresholds.legal_probability, f"{sure}; {shape}{worst}; {slots}"),
        "meaning": (len(set(found) & set(expected)), row.needed, f"of the expected {' '.join(expected)}"),
    }
    return tuple(
        Criterion(name, _finite(values[name][0]), float(values[name][1]), bool(getattr(row, name)), values[name][2])
        for name in CRITERIA
    )


def novelty_sentence(verdicts: Sequence[Verdict], count: int) -> str:
    """Whether a glyph is in the list of characters that the judges know.

    Args:
        verdicts: of all judges.
        count: of characters in the list.
    Returns:
        Such as "not in the list of 8,788 characters"; what is not in the list may still exist.
    """
    for verdict in verdicts:
        if verdict.exists:
            near = verdict.nearest[0]
            return f"judge {verdict.judge} takes it for {near.codepoint} {near.character}, of {count:,} characters"
    return f"not in the list of {count:,} characters"


def outlines_near(context: Context, images: Images) -> list[tuple[Nearest, ...]]:
    """For each glyph the real characters whose strokes run most alike, without a network.

    Args:
        context: of either judge.
        images: (N, H, W) uint8.
    """
    neighbours = context.neighbours
    order, distances = neighbours.nearest(images, min(NEAREST_SHOWN, len(neighbours.characters)))
    return [_nearest(neighbours.characters, *one) for one in zip(order, distances, strict=True)]


def _nearest(characters: tuple[str, ...], order: NDArray, distances: NDArray) -> tuple[Nearest, ...]:
    found = [(characters[int(index)], float(distance)) for index, distance in zip(order, distances, strict=True)]
    return tuple(Nearest(name, f"U+{ord(name):04X}", distance) for name, distance in found)


def _plain(box: Box) -> Box:
    left, top, right, bottom = (round(float(end), 4) for end in box)
    return left, top, right, bottom


def _rows(table: pd.DataFrame) -> Any:
    return table.itertuples()


def _name(part: str) -> str:
    try:
        return name_of_part(part)
    except ValueError:
        return ""


def _finite(value: float) -> float | None:
    return float(value) if not (isinstance(value, float | np.floating) and math.isnan(value)) else None


def certificate_rows(certificates: Sequence[Certificate]) -> pd.DataFrame:
    """Certificates as a table: the parts that judge B finds, its five criteria, the nearest character, the reading.

    Args:
        certificates: the best first; they are numbered from 1.
    Returns:
        One row each: parts, one bool column for each of `CRITERIA`, nearest, asked; where any is rejected, the reasons.
    """
    rows = []
    for one in certificates:
        near = one.report.nearest[0]
        row: dict[str, Any] = {"parts": " ".join(f"{part.part} {part.name}" for part in one.report.parts) or "none"}
        row |= {criterion.name: criterion.passed for criterion in one.report.criteria}
        row |= {"nearest": f"{near.character} {near.codepoint} {near.distance:.2f}", "asked": one.prompt}
        rows.append(row | ({"rejected": one.rejected} if one.rejected else {}))
    return pd.DataFrame(rows, index=pd.RangeIndex(1, 1 + len(rows)))
