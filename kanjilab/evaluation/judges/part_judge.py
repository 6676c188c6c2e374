"""Judges A and B: two small networks that read a glyph's parts, layout and nearest character, and if it is well-formed.

They differ in architecture, fonts and seeds, so that what one chooses the other can report. Their scores are for
choosing and reporting, never a loss. `judges.training` makes them; the weights and the card with everything measured
are in `weights/judges`.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.torch import save
from torch.nn import functional as F

from kanjilab.core.storage import PACKAGE_WEIGHTS, write_bytes_atomic
from kanjilab.data.components import Box, load_components
from kanjilab.evaluation.judges.framing import MARGIN, SIZE_PX, Images, frame_glyphs
from kanjilab.evaluation.judges.network import ARCHITECTURES, Architecture, JudgeNetwork

WEIGHTS = PACKAGE_WEIGHTS / "judges"
GRID = 8  # cells on a side of a part map
BATCH = 128
LAYOUT_SURE = 0.5  # a less probable layout is abstained from
HALF_OF_PEAK = 0.5  # cells of a part map that belong to its box in full
SAME_PLACE = 0.75  # overlap (intersection over union) of two readings of one thing
INSIDE = 0.75  # share of a part's warm cells within another's box from which it is inside it
WHOLE = 0.8  # share of the frame from which a part is the whole glyph


@dataclass(frozen=True, eq=False)
class Judge:
    """Reads glyphs; get one with `load_judge`.

    Images are (N, H, W) uint8, 0 ink to 255 paper, of any size.

    Attributes:
        name: "A" or "B".
        network: frozen.
        parts: vocabulary of the part detector, normal forms such as 水 for 氵.
        part_thresholds: (P,) probability from which a part counts as seen.
        layouts: its classes of layouts.
        characters: classes of the recogniser.
        temperatures: of "parts", "layout" and "legality"; logits are divided by them.
        novel_distance: a glyph farther than this from every character is none of them.
        legal_threshold: probability from which a glyph counts as well-formed.
        report: everything measured when the judge was made.
    """

    name: str
    network: JudgeNetwork
    parts: tuple[str, ...]
    part_thresholds: NDArray[np.float32]
    layouts: tuple[str, ...]
    characters: tuple[str, ...]
    temperatures: dict[str, float]
    novel_distance: float
    legal_threshold: float
    report: dict[str, Any]

    def embed(self, images: Images) -> NDArray[np.float32]:
        """(N, D) float32 unit vectors; those of one character are near each other in all fonts."""
        return self._answer(images).embedding

    def part_probabilities(self, images: Images) -> NDArray[np.float32]:
        """(N, P) float32, how probably each part is there; zeros for a blank image."""
        return self._answer(images).presence

    def features(self, images: Images) -> NDArray[np.float32]:
        """(N, D + P) float32: the embeddings beside the parts' probabilities."""
        answer = self._answer(images)
        return np.concatenate([answer.embedding, answer.presence], axis=1)

    def part_maps(self, images: Images) -> NDArray[np.float32]:
        """(N, P, 8, 8) float32 in [0, 1], where each part is in the glyph's frame (see `frame_glyphs`)."""
        return self._answer(images, maps=True).maps

    def legal_probability(self, images: Images) -> NDArray[np.float32]:
        """(N,) float32, how probably this is a well-formed glyph rather than a negative; 0 for a blank image."""
        return self._answer(images).well_formed

    def nearest(self, images: Images, k: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """The characters nearest to each glyph.

        Args:
            images: as everywhere.
            k: how many.
        Returns:
            (N, k) indices into `characters` and (N, k) distances (1 - cosine), nearest first.
        """
        return self._nearest(self.embed(images), k)

    def read(self, images: Images) -> pd.DataFrame:
        """Everything that the judge sees in each image.

        Args:
            images: as everywhere.
        Returns:
            N rows: parts (tuple of str, best first; nested ones counted once), part_scores, part_boxes (left,
            top, right, bottom in [0, 1] of the picture), layout ("" where it abstains), layout_probability,
            nearest (a character), codepoint ("U+4F11"), distance (1 - cosine), exists (bool: near enough to be
            that character), legal_probability, legal (bool).
        Raises:
            ValueError: a wrong shape or type.
        """
        images = np.asarray(images)
        answer = self._answer(images)
        nearest, distances = self._nearest(answer.embedding, 1)
        names = [self.characters[index] for index in nearest[:, 0]]
        shares = answer.layout[:, : len(self.layouts)]
        best = shares.argmax(axis=1)
        sure = (answer.layout.argmax(axis=1) == best) & (shares.max(axis=1, initial=0) >= LAYOUT_SURE)
        seen = self._seen(images, answer.presence)
        return pd.DataFrame(
            {
                "parts": [tuple(part.element for part in found) for found in seen],
                "part_scores": [tuple(part.score for part in found) for found in seen],
                "part_boxes": [tuple(part.box for part in found) for found in seen],
                "layout": [self.layouts[index] if ok else "" for index, ok in zip(best, sure, strict=True)],
                "layout_probability": shares.max(axis=1, initial=0),
                "nearest": names,
                "codepoint": [f"U+{ord(name):04X}" for name in names],
                "distance": distances[:, 0],
                "exists": distances[:, 0] <= self.novel_distance,
                "legal_probability": answer.well_formed,
                "legal": answer.well_formed >= self.legal_threshold,
            }
        )

    def _nearest(self, embedding: NDArray[np.float32], k: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        distances = 1 - embedding @ self._prototypes.T
        order = np.argpartition(distances, min(k, distances.shape[1] - 1), axis=1)[:, :k]
        order = np.take_along_axis(order, np.take_along_axis(distances, order, 1).argsort(1, kind="stable"), 1)
        return order, np.take_along_axis(distances, order, 1)

    @cached_property
    def _prototypes(self) -> NDArray[np.float32]:
        return F.normalize(self.network.prototypes, dim=1).numpy()

    def _answer(self, images: Images, maps: bool = False) -> _Read:
        glyphs, _, has_ink = frame_glyphs(images)
        return self._answer_framed(glyphs, has_ink, maps)

    def _answer_framed(self, glyphs: Images, has_ink: NDArray[np.bool_], maps: bool) -> _Read:
        batches = [self._answer_batch(glyphs[start : start + BATCH], maps) for start in range(0, len(glyphs), BATCH)]
        if not batches:
            batches = [self._answer_batch(np.zeros((1, SIZE_PX, SIZE_PX), np.uint8), maps)]
        joined = _Read(*(np.concatenate(values)[: len(glyphs)] for values in zip(*batches, strict=True)))
        blank = ~has_ink
        joined.presence[blank], joined.well_formed[blank], joined.layout[blank] = 0, 0, 0
        return joined

    @torch.inference_mode()
    def _answer_batch(self, glyphs: Images, maps: bool) -> _Read:
        ink = torch.from_numpy(glyphs.astype(np.float32) / 255)[:, None].contiguous(memory_format=torch.channels_last)
        answers = self.network(ink)
        heat = torch.sigmoid(answers.maps) if maps else answers.maps[:, :0]
        return _Read(
            answers.embedding.numpy(),
            heat.numpy(),
            torch.sigmoid(answers.presence / self.temperatures["parts"]).numpy(),
            torch.softmax(answers.layout / self.temperatures["layout"], 1).numpy(),
            torch.sigmoid(answers.well_formed / self.temperatures["legality"]).numpy(),
        )

    def _seen(self, images: Images, probabilities: NDArray[np.float32]) -> list[list[_Seen]]:
        """Per image the parts over threshold, best first, each thing once."""
        rows = [np.flatnonzero(found) for found in probabilities >= self.part_thresholds]
        glyphs, frames, has_ink = frame_glyphs(images)
        frames = frames / ([images.shape[2], images.shape[1]] * 2)
        seen: list[list[_Seen]] = []
        for start in range(0, len(images), BATCH):
            part = slice(start, start + BATCH)
            maps = self._answer_framed(glyphs[part], has_ink[part], maps=True).maps
            for index, frame, heat in zip(rows[part], frames[part], maps, strict=True):
                scores = probabilities[start + len(seen) % BATCH]
                places = [(_box_of_map(heat[i], frame), _warm_cells(heat[i], frame)) for i in index]
                found = [_Seen(self.parts[i], float(scores[i]), *at) for i, at in zip(index, places, strict=True)]
                seen.append(_each_once(sorted(found, key=lambda one: -one.score), frame))
        return seen


class _Read(NamedTuple):
    """As `Answers`, in numpy and as probabilities."""

    embedding: NDArray[np.float32]
    maps: NDArray[np.float32]
    presence: NDArray[np.float32]
    layout: NDArray[np.float32]
    well_formed: NDArray[np.float32]


class _Seen(NamedTuple):
    """A part over threshold: its box, and the middles (n, 2) of the warm cells of its map, in [0, 1] of the picture."""

    element: str
    score: float
    box: Box
    cells: NDArray[np.float64]


def _box_of_map(heat: NDArray[np.float32], frame: NDArray[np.float64]) -> Box:
    """The box of the warm cells."""
    share = heat / max(float(heat.max()), 1e-9)
    (left, right), (top, bottom) = (_warm_span(share.max(axis=axis)) for axis in (0, 1))  # of columns, of rows
    width, height = frame[2] - frame[0], frame[3] - frame[1]
    corners = frame[0] + left * width, frame[1] + top * height, frame[0] + right * width, frame[1] + bottom * height
    a, b, c, d = (float(min(1.0, max(0.0, value))) for value in corners)
    return a, b, c, d


def _warm_span(profile: NDArray[np.float32]) -> tuple[float, float]:
    """First and last warm cell along a side, in [0, 1]; a lukewarm cell next to them is covered in part."""
    warm = np.flatnonzero(profile >= HALF_OF_PEAK)
    first, last = int(warm[0]), int(warm[-1])
    before = float(profile[first - 1]) if first > 0 else 0.0
    after = float(profile[last + 1]) if last + 1 < GRID else 0.0
    return (first - before) / GRID, (last + 1 + after) / GRID


def _warm_cells(heat: NDArray[np.float32], frame: NDArray[np.float64]) -> NDArray[np.float64]:
    rows_columns = np.argwhere(heat >= HALF_OF_PEAK * heat.max())
    return frame[:2] + (rows_columns[:, ::-1] + 0.5) / GRID * (frame[2:] - frame[:2])


def area(box: Box) -> float:
    """Of a box, in its unit squared; 0 where it is empty."""
    return max(0.0, box[2] - box[0]) * max(0.0, box[3] - box[1])


def overlap(first: Box, second: Box) -> float:
    """Intersection over union of two boxes, in [0, 1]."""
    left, top = max(first[0], second[0]), max(first[1], second[1])
    shared = area((left, top, min(first[2], second[2]), min(first[3], second[3])))
    return shared / max(1e-9, area(first) + area(second) - shared)


def _inside(part: _Seen, other: _Seen, frame: NDArray[np.float64]) -> bool:
    """Whether a part is within another, give or take half a cell; one that is also beside it is not."""
    slack = (frame[2:] - frame[:2]) / GRID / 2
    low, high = np.array(other.box[:2]) - slack, np.array(other.box[2:]) + slack
    within = ((part.cells >= low) & (part.cells <= high)).all(axis=1)
    return bool(within.mean() >= INSIDE)


def _each_once(found: list[_Seen], frame: NDArray[np.float64]) -> list[_Seen]:
    """Drops a whole that was seen in its parts, pieces of a part that was seen, and second readings of a place."""
    components = load_components()
    extent = (frame[2] - frame[0]) * (frame[3] - frame[1]) * (1 - 2 * MARGIN) ** 2

    def is_sum_of_others(part: _Seen) -> bool:
        others = [other for other in found if other is not part]
        listed = components.of(part.element)
        pieces = {piece.element for piece in listed.outer} if listed else set()
        whole = area(part.box) >= WHOLE * extent and all(_inside(other, part, frame) for other in others)
        return whole and len(pieces) >= 2 and pieces <= {other.element for other in others}

    found = [part for part in found if not is_sum_of_others(part)]
    kept: list[_Seen] = []
    for part in found:
        wholes = [other for other in found if components.contains(other.element, part.element)]
        nested = any(_inside(part, other, frame) or overlap(part.box, other.box) >= SAME_PLACE for other in wholes)
        if not nested and all(overlap(part.box, other.box) < SAME_PLACE for other in kept):
            kept.append(part)
    return kept


def judge_file(name: str) -> Path:
    """Where the package keeps a judge's weights."""
    return WEIGHTS / f"judge_{name.lower()}.safetensors"


@cache
def load_judge(name: str = "A", path: Path | None = None) -> Judge:
    """A judge that the package carries, or one from another file; read once per process.

    Args:
        name: "A" to choose by, "B" to report by.
        path: None for the packaged file.
    Raises:
        ValueError: a name other than these.
        FileNotFoundError: there is no such file.
    """
    if name not in ARCHITECTURES:
        raise ValueError(f"expected a judge of {sorted(ARCHITECTURES)}, got {name!r}")
    path = judge_file(name) if path is None else Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: expected a judge's weights")
    with safe_open(path, framework="pt") as file:
        facts = json.loads(file.metadata()["judge"])
        state = {key: file.get_tensor(key).float() for key in file.keys()}  # noqa: SIM118  (it is no mapping)
    shape = facts["architecture"]
    architecture = Architecture(shape["kind"], tuple(shape["widths"]), tuple(shape["blocks"]), shape["dimensions"])
    with torch.random.fork_rng():
        network = JudgeNetwork(architecture, len(facts["parts"]), len(facts["characters"]))
    network.load_state_dict(state, strict=False)
    return Judge(
        name,
        network.requires_grad_(False).eval().to(memory_format=torch.channels_last),  # type: ignore[call-overload]
        tuple(facts["parts"]),
        np.array(facts["part_thresholds"], np.float32),
        tuple(facts["layouts"]),
        tuple(facts["characters"]),
        facts["temperatures"],
        facts["novel_distance"],
        facts["legal_threshold"],
        facts["report"],
    )


def save_judge(judge: Judge, path: Path) -> None:
    """Write a judge as one file: weights in half precision, everything else in the header."""
    state = {
        name: value.to(torch.float16 if value.ndim >= 2 else value.dtype).contiguous()
        for name, value in judge.network.state_dict().items()
        if not name.endswith("num_batches_tracked")
    }
    write_bytes_atomic(path, save(state, metadata={"judge": json.dumps(judge_facts(judge), ensure_ascii=False)}))


def judge_facts(judge: Judge) -> dict[str, Any]:
    """What a judge's file says beside the weights, in plain values."""
    return {
        "name": judge.name,
        "architecture": asdict(ARCHITECTURES[judge.name]),
        "parts": list(judge.parts),
        "part_thresholds": [round(float(value), 6) for value in judge.part_thresholds],
        "layouts": "".join(judge.layouts),
        "characters": "".join(judge.characters),
        "temperatures": judge.temperatures,
        "novel_distance": judge.novel_distance,
        "legal_threshold": judge.legal_threshold,
        "report": judge.report,
    }
