"""The five criteria of a well-made new kanji, their AND, and the controls they must be read beside.

Two or more parts, each distinct, new, legal, and with the prompt's meaning: read off images by a judge (see
`kanjilab.judges`), measured without a network where that is possible, with thresholds frozen on real glyphs.
A judge's score is for choosing and reporting, never a loss.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from math import comb
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from kanjilab.adapters import Trainable
from kanjilab.bases import Base, cache_folder
from kanjilab.components import Box, Components, Decomposition, load_components
from kanjilab.counted import counted_rng
from kanjilab.dataset import HELD_OUT, Dataset
from kanjilab.glyphs import GlyphError, default_font, draw_font
from kanjilab.judges import Judge, is_held_out, load_judge
from kanjilab.legality import Bounds, measure, thin
from kanjilab.metrics import Estimate, nearest_training_images, two_way_bootstrap
from kanjilab.minilm import TOKENS, WEIGHTS_SHA256, minilm_folder
from kanjilab.neighbours import Neighbours
from kanjilab.runs import write_bytes_atomic, write_json_atomic
from kanjilab.sample import Sampling, sample
from kanjilab.score import grayscale
from kanjilab.settings import settings_hash
from kanjilab.typeset import SLOTS_OF_LAYOUT, Typesetter, novel_pairs

Images = NDArray[np.uint8]  # (N, H, W), 0 ink to 255 paper

CRITERIA = ("two_or_more", "distinct", "novel", "legal", "meaning")
ALL_FIVE = "all_five"
NOVELTY = ("exists", "copy", "one stroke off", "in the list", "new")
FROZEN_FILE = Path(__file__).parent / "weights" / "judges" / "criteria.json"

PASS_SHARE = 0.95  # of real held-out glyphs, that each threshold lets pass
SPAN_SLACK = 0.25  # of a slot's length, by which a part may be larger than listed characters have it there
CERTAIN = 1e-6  # probabilities this near 0 or 1 are not told apart
MARK_SHARE = 1 / 32  # of the side, of the dots that keep the frame of a glyph that is wiped in part
TOP_PARTS = 3  # of the parts that a prompt makes likely, one must show
ONE_STROKE = 0.5  # sides of the image: glyphs whose strokes differ by less than this are one stroke apart
TOLERANCE_PX = 5  # at 128 px; a stroke's middle line is shared where the other glyph has one this near

CAPTION_TEMPERATURE = 0.08  # of the votes of training captions, in cosine
UNSURE = 0.02  # share of the vote that the parts' overall frequency has
CAPTION_BATCH = 128
SHARPENING = 1.5  # of typeset glyphs: 2.7% of their pixels are gray then, of the font's 2.8%, without it 4.4%
CUTS = 16  # tried for every half-swapped glyph
PERMUTATIONS = 200
RESAMPLES = 2_000


# ---------------------------------------------------------------- parts in their slots


def main_parts(row: Any) -> tuple[tuple[str, Box, str], ...]:
    """The two parts of a reading that make up its layout: sure, and far apart as the layout has it.

    Args:
        row: of `Judge.read`, as from `itertuples`.
    Returns:
        (element, box, slot) of each, in the order of the slots; the slot is "" where the layout has none. Empty
        with fewer than two parts.
    """
    found = list(zip(row.parts, row.part_boxes, row.part_scores, strict=True))
    pairs = [(first, second) for index, first in enumerate(found) for second in found[index + 1 :]]
    if not pairs:
        return ()
    best = max(pairs, key=lambda pair: pair[0][2] * pair[1][2] * _apart(row.layout, pair[0][1], pair[1][1]))
    order = sorted(best, key=lambda part: _place(row.layout, part[1]))
    slots = SLOTS_OF_LAYOUT.get(row.layout, ("", ""))
    return tuple((element, box, slot) for (element, box, _), slot in zip(order, slots, strict=True))


def _place(layout: str, box: Box) -> float:
    """What orders parts by their slots: from the left, from above, or the outer, larger one first."""
    axis = {"⿰": 0, "⿱": 1}.get(layout)
    return -_area(box) if axis is None else box[axis] + box[axis + 2]


def _apart(layout: str, first: Box, second: Box) -> float:
    """How far two boxes differ in what orders them; without a layout, the share that they do not have in common."""
    if layout in SLOTS_OF_LAYOUT:
        return abs(_place(layout, first) - _place(layout, second))
    width = min(first[2], second[2]) - max(first[0], second[0])
    height = min(first[3], second[3]) - max(first[1], second[1])
    shared = max(0.0, width) * max(0.0, height)
    return 1 - shared / max(_area(first) + _area(second) - shared, 1e-9)


def _area(box: Box) -> float:
    return (box[2] - box[0]) * (box[3] - box[1])


def erasure_scores(judge: Judge, images: Images, readings: pd.DataFrame) -> NDArray[np.float64]:
    """Whether each of two parts stands by itself: wipe its region, and its score falls, the other's stays.

    A pixel belongs to the part in or nearest to whose box it lies; where boxes overlap, to the smaller one: what
    is inside a frame is not the frame's.

    Args:
        judge: whose readings these are.
        images: (N, H, W) uint8.
        readings: N rows of `Judge.read`.
    Returns:
        (N,) in nats: by how much more the log-odds of the wiped part fall than those of the other, for the worse
        of both ways. Near 0 for two names of one blob; NaN with fewer than two parts.
    """
    scores = np.full(len(images), np.nan)
    rows: Any = readings.itertuples()
    pairs = {index: pair for index, row in enumerate(rows) if (pair := main_parts(row))}
    if not pairs:
        return scores
    shown = images[list(pairs)]
    columns = np.array([[judge.parts.index(element) for element, _, _ in pair] for pair in pairs.values()])
    before = _log_odds(judge, shown, columns)
    worst = np.full(len(pairs), np.inf)
    for wiped, other in ((0, 1), (1, 0)):
        boxes = [(pair[wiped][1], pair[other][1]) for pair in pairs.values()]
        erased = np.stack([_wiped(image, *both) for image, both in zip(shown, boxes, strict=True)])
        change = _log_odds(judge, erased, columns) - before
        worst = np.minimum(worst, change[:, other] - change[:, wiped])
    scores[list(pairs)] = worst
    return scores


def _log_odds(judge: Judge, images: Images, columns: NDArray[np.intp]) -> NDArray[np.float64]:
    """(N, 2) of two parts of each image."""
    found = np.take_along_axis(judge.part_probabilities(images), columns, axis=1).astype(float)
    found = np.clip(found, CERTAIN, 1 - CERTAIN)
    return np.log(found / (1 - found))


def _wiped(image: NDArray[np.uint8], box: Box, other: Box) -> NDArray[np.uint8]:
    """The image with paper wherever it belongs to the first box, but for dots in the corners of the ink.

    A judge cuts glyphs out by their ink: without the dots it would see the other part larger, and elsewhere.
    """
    own, others = _distance_to(box, image.shape), _distance_to(other, image.shape)
    wiped = (own < others) | ((own == others) & (_area(box) <= _area(other)))
    erased = np.where(wiped, np.uint8(255), image)
    rows, columns = (np.flatnonzero((image < 128).any(axis=axis)) for axis in (1, 0))
    size = max(1, round(MARK_SHARE * max(image.shape)))
    for top in (rows[0], rows[-1] + 1 - size) if len(rows) else ():
        for left in (columns[0], columns[-1] + 1 - size):
            erased[top : top + size, left : left + size] = 0
    return erased


def _distance_to(box: Box, shape: tuple[int, ...]) -> NDArray[np.float64]:
    """(H, W) distance of each pixel's middle to a box, in sides; 0 inside."""
    down, across = ((np.arange(size) + 0.5) / size for size in shape)
    outside_x = np.maximum(np.maximum(box[0] - across, across - box[2]), 0)
    outside_y = np.maximum(np.maximum(box[1] - down, down - box[3]), 0)
    return np.hypot(outside_x, outside_y[:, None])


# ---------------------------------------------------------------- meaning


def caption_vectors(captions: Sequence[str]) -> NDArray[np.float32]:
    """MiniLM's sentence embeddings, (N, 384) unit vectors, kept in the user's cache.

    Source: Reimers and Gurevych 2019, arXiv:1908.10084: the mean of the token states.
    """
    key = settings_hash([WEIGHTS_SHA256, TOKENS, list(captions)])
    path = cache_folder() / "captions" / f"{key}.npy"
    try:
        return np.load(path, allow_pickle=False)
    except (OSError, ValueError):
        vectors = _embedded(captions)
    path.parent.mkdir(parents=True, exist_ok=True)
    buffer = io.BytesIO()
    np.save(buffer, vectors, allow_pickle=False)
    write_bytes_atomic(path, buffer.getvalue())
    return vectors


def _embedded(captions: Sequence[str]) -> NDArray[np.float32]:
    import torch
    from transformers import AutoModel, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(minilm_folder())
    model = AutoModel.from_pretrained(minilm_folder()).eval()
    vectors = np.zeros((len(captions), model.config.hidden_size), np.float32)
    order = sorted(range(len(captions)), key=lambda index: len(captions[index]))  # alike in length: little padding
    with torch.inference_mode():
        for start in range(0, len(order), CAPTION_BATCH):
            rows = order[start : start + CAPTION_BATCH]
            texts = [captions[row] for row in rows]
            tokens = tokenizer(texts, padding=True, truncation=True, max_length=TOKENS, return_tensors="pt")
            states = model(tokens.input_ids, attention_mask=tokens.attention_mask).last_hidden_state
            mask = tokens.attention_mask[..., None]
            vectors[rows] = torch.nn.functional.normalize((states * mask).sum(1) / mask.sum(1), dim=1).numpy()
    return vectors


@dataclass(frozen=True, eq=False)
class PartMeaning:
    """p(part | prompt) as the training captions alone teach it: captions near the prompt vote for their parts.

    Attributes:
        parts: R names, in order of first appearance.
        vectors: (M, D) unit vectors of the training captions.
        votes: (M, R) float, each caption's parts with equal shares.
        embed: captions to unit vectors.
    """

    parts: tuple[str, ...]
    vectors: NDArray[np.float32]
    votes: NDArray[np.float32]
    embed: Callable[[Sequence[str]], NDArray[np.float32]]

    @classmethod
    def fit(
        cls,
        captions: Sequence[str],
        parts: Sequence[Collection[str]],
        embed: Callable[[Sequence[str]], NDArray[np.float32]] = caption_vectors,
    ) -> PartMeaning:
        """Learn from captions and the parts of their characters.

        Args:
            captions: M training captions.
            parts: of each caption's character; without any, a caption has no vote.
            embed: captions to unit vectors (N, D).
        Raises:
            ValueError: the lengths differ, or no caption has a part.
        """
        if len(captions) != len(parts):
            raise ValueError(f"expected the parts of every caption, got {len(captions)} captions, {len(parts)} parts")
        names = tuple(dict.fromkeys(name for own in parts for name in own))
        if not names:
            raise ValueError(f"expected captions of characters with known parts, got none among {len(captions)}")
        column = {name: index for index, name in enumerate(names)}
        votes = np.zeros((len(captions), len(names)), np.float32)
        for row, own in enumerate(parts):
            votes[row, [column[name] for name in own]] = 1 / max(1, len(set(own)))
        return cls(names, embed(list(captions)), votes, embed)

    def probabilities(self, prompts: Sequence[str]) -> NDArray[np.float64]:
        """p(part | prompt), (N, R) float, rows sum to 1."""
        cosine = self.embed(list(prompts)) @ self.vectors.T
        voted = np.exp((cosine - cosine.max(axis=1, keepdims=True)) / CAPTION_TEMPERATURE) @ self.votes.astype(float)
        overall = self.votes.sum(axis=0) / self.votes.sum()
        return (1 - UNSURE) * voted / voted.sum(axis=1, keepdims=True) + UNSURE * overall

    def expected(self, prompts: Sequence[str], top: int = TOP_PARTS) -> list[tuple[str, ...]]:
        """The most probable parts of each prompt, best first."""
        order = np.argsort(-self.probabilities(prompts), axis=1, kind="stable")[:, :top]
        return [tuple(self.parts[column] for column in row) for row in order]


# ---------------------------------------------------------------- novelty


def line_difference(images: Images, others: Images) -> NDArray[np.float64]:
    """Length of the strokes that one glyph has and the other has not, both ways; glyphs are not moved.

    Args:
        images, others: (N, H, W) uint8 each, compared one to one.
    Returns:
        (N,) in sides of the image.
    """
    lines = [thin(some < 128) for some in (images, others)]
    reach = TOLERANCE_PX * images.shape[1] / 128
    unmatched = np.zeros(len(images))
    for own, other in (lines, lines[::-1]):
        for index, (line, beside) in enumerate(zip(own, other, strict=True)):
            away: Any = ndimage.distance_transform_edt(~beside) if beside.any() else np.full(line.shape, np.inf)
            unmatched[index] += (line & (away > reach)).sum()
    return unmatched / max(images.shape[1:])


@lru_cache(maxsize=10_000)
def _drawn(character: str, size_px: int) -> NDArray[np.uint8]:
    """The character in the default font; paper where that does not draw it."""
    try:
        return np.asarray(draw_font(character, default_font(), size_px))
    except GlyphError:
        return np.full((size_px, size_px), 255, np.uint8)


# ---------------------------------------------------------------- what is measured, and with what


@dataclass(frozen=True)
class Thresholds:
    """What was frozen on real held-out glyphs, for one judge, before any generator was scored.

    Attributes:
        judge_hash: of the judge that they belong to.
        distinct: least erasure score, in nats.
        legal_probability, layout_probability: least of the judge; below the second it counts as abstaining.
        slack: widths of a range by which a measure may lie outside the bounds.
        glyphs: real held-out ones that they were set on.
        passed: share of these glyphs that each criterion lets pass; for "novel", that it calls not novel.
    """

    judge_hash: str
    distinct: float
    legal_probability: float
    layout_probability: float
    slack: float
    glyphs: int
    passed: Mapping[str, float]


@dataclass(frozen=True, eq=False)
class Context:
    """All that images are compared with.

    Attributes:
        components: the list of decompositions.
        neighbours: the third check.
        bounds, thresholds: frozen.
        meaning: learned from the training captions, one for each training image.
        training: (M, H, W) uint8; the sides are multiples of 32.
        characters: of the training images.
    """

    components: Components
    neighbours: Neighbours
    bounds: Bounds
    thresholds: Thresholds
    meaning: PartMeaning
    training: Images
    characters: tuple[str, ...]


def judge_hash(judge: Judge) -> str:
    """Identity of a judge: of what it reads, and of its calibrated thresholds, which follow from its weights."""
    facts = [judge.name, judge.parts, judge.layouts, judge.characters, judge.novel_distance, judge.legal_threshold]
    return settings_hash([*facts, [round(float(value), 6) for value in judge.part_thresholds]])


def make_context(training: Dataset, judge: Judge, *, cache: Path | None = None, frozen: Path = FROZEN_FILE) -> Context:
    """The context of a run: its training data, and what was frozen for the judge.

    Args:
        training: the split that was trained on, with a column `character`.
        judge: the one that will read.
        cache: where the neighbours are kept; the user's cache by default.
        frozen: of `freeze`.
    Raises:
        ValueError: the dataset has no characters, or nothing was frozen for this judge.
    """
    if "character" not in training.table:
        raise ValueError(f"{training.folder}: expected a column character, got {list(training.table.columns)}")
    bounds, thresholds = load_frozen(judge, frozen)
    components = load_components()
    characters = tuple(str(character) for character in training.table["character"])
    captions = tuple(str(text) for text in training.table["text"])
    parts = [outer_parts(character, components, judge.parts) for character in characters]
    neighbours = Neighbours.load_or_fit(cache or cache_folder() / "judges")
    meaning = PartMeaning.fit(captions, parts)
    return Context(components, neighbours, bounds, thresholds, meaning, training.images(), characters)


def outer_parts(character: str, components: Components, vocabulary: Collection[str]) -> tuple[str, ...]:
    """The parts that make up a character's layout, as far as a judge knows them; nested ones left out."""
    listed = components.of(character)
    names = [part.element for part in listed.outer] if listed else []
    return tuple(dict.fromkeys(name for name in names if name in vocabulary))


# ---------------------------------------------------------------- judging


def judge_images(judge: Judge, images: Images, prompts: Sequence[str], context: Context) -> pd.DataFrame:
    """Everything about each image, the five verdicts and their AND.

    Args:
        judge: A to choose by, B to report by.
        images: (N, H, W) uint8, brought to the side that the bounds were measured at.
        prompts: N, one an image, in any order.
        context: of the run that drew the images.
    Returns:
        N rows: prompt, image (number among the prompt's images), expected and parts (names joined by spaces),
        layout, what was measured, the five criteria and all_five (bool).
    Raises:
        ValueError: the lengths differ, or the thresholds are another judge's.
    """
    if len(images) != len(prompts):
        raise ValueError(f"expected one prompt per image, got {len(images)} images and {len(prompts)} prompts")
    if context.thresholds.judge_hash != judge_hash(judge):
        raise ValueError(f"expected thresholds frozen for judge {judge.name}, got another judge's")
    images = _at_side(images, context.bounds.side_px)
    readings = judge.read(images)
    structure = _structure(judge, images, readings, context.components, context.bounds)
    novelty = _novelty(readings, images, context)
    different = list(dict.fromkeys(prompts))
    expected = dict(zip(different, context.meaning.expected(different), strict=True))
    wanted = [expected[prompt] for prompt in prompts]
    table = pd.DataFrame({"prompt": list(prompts)})
    table["image"] = table.groupby("prompt").cumcount()
    table["expected"] = [" ".join(names) for names in wanted]
    table["parts"] = [" ".join(names) for names in readings["parts"]]
    kept = ["layout", "layout_probability", "nearest", "codepoint", "distance", "exists", "legal_probability"]
    table = pd.concat([table, readings[kept], structure, novelty], axis=1)
    return _with_verdicts(table, context.thresholds)


def _at_side(images: Images, side_px: int) -> Images:
    """Square images brought to the size that the bounds were measured at."""
    if images.shape[1:] == (side_px, side_px):
        return images
    scaled = [Image.fromarray(image).resize((side_px, side_px), Image.Resampling.BOX) for image in images]
    return np.stack([np.asarray(image) for image in scaled])


def _structure(
    judge: Judge, images: Images, readings: pd.DataFrame, components: Components, bounds: Bounds
) -> pd.DataFrame:
    """What a threshold is set on: erasure, distance from the bounds; and whether the slots are attested."""
    measures = measure(images)
    excess = bounds.excess(measures)
    spans = attested_spans(components)
    rows: Any = readings.itertuples()
    return pd.DataFrame(
        {
            "erasure": erasure_scores(judge, images, readings),
            "complexity": measures["complexity"],
            "excess": excess.max(axis=1),
            "worst_measure": excess.idxmax(axis=1).where(excess.max(axis=1) > 0, ""),
            "slots_attested": [_slots_attested(row, spans) for row in rows],
        }
    )


def _slots_attested(row: Any, spans: Mapping[tuple[str, str], float]) -> bool:
    """Whether both main parts stand where, and about as large as, a listed character has them.

    True where the layout has no slots.
    """
    parts = [part for part in main_parts(row) if part[2]]
    return all(_span(box, slot) <= spans.get((element, slot), -1) + SPAN_SLACK for element, box, slot in parts)


def _span(box: Box, slot: str) -> float:
    """How much of its slot's length a part takes: of the height on either side, of the width above and below."""
    if slot in ("left", "right"):
        return box[3] - box[1]
    return box[2] - box[0] if slot in ("top", "bottom") else 0.0


def attested_spans(components: Components) -> dict[tuple[str, str], float]:
    """Where each part stands in listed characters, by itself or as a piece of what fills the slot, and how large.

    A piece may stand where the part by itself never does, but there it is small: 艸 in 勤.

    Returns:
        (part, slot) -> the largest share of the slot's length that it takes; 0 outside and inside a frame.
    """
    spans: dict[tuple[str, str], float] = {}
    for listed in components.decompositions.values():
        left, top, right, bottom = listed.frame
        width, height = max(right - left, 1e-6), max(bottom - top, 1e-6)
        for outer in listed.outer:
            for part in listed.parts:
                if part.slot != "whole" and set(part.strokes) <= set(outer.strokes):
                    box = part.box[0] / width, part.box[1] / height, part.box[2] / width, part.box[3] / height
                    key = part.element, outer.slot
                    spans[key] = max(spans.get(key, 0.0), _span(box, outer.slot))
    return spans


def _novelty(readings: pd.DataFrame, images: Images, context: Context) -> pd.DataFrame:
    """To which class of novelty each image belongs, and what the neighbours say, beside the judge."""
    third = context.neighbours.read(images)
    size = images.shape[1]
    near = [np.stack([_drawn(name, size) for name in names]) for names in (readings["nearest"], third["nearest"])]
    lines = np.minimum(*(line_difference(images, others) for others in near)) if len(images) else np.zeros(0)
    copies = nearest_training_images(images, context.training)
    rows: Any = readings.itertuples()
    listed = [_is_listed(row, context.components) for row in rows]
    kinds = [readings["exists"].to_numpy(), copies["copy"].to_numpy(), lines < ONE_STROKE, np.array(listed, bool)]
    return pd.DataFrame(
        {
            "novelty": np.select(kinds, NOVELTY[:-1], NOVELTY[-1]),
            "copy_ratio": copies["ratio"],
            "line_difference": lines,
            "neighbour": third["nearest"],
            "neighbour_distance": third["distance"],
            "neighbour_exists": third["exists"],
        }
    )


def _is_listed(row: Any, components: Components) -> bool:
    parts = main_parts(row)
    return len(parts) == 2 and bool(components.exists(row.layout, (parts[0][0], parts[1][0])))


def _with_verdicts(table: pd.DataFrame, thresholds: Thresholds) -> pd.DataFrame:
    found = table["parts"].str.split()
    verdicts = {
        "two_or_more": found.str.len() >= 2,
        "distinct": table["erasure"] >= thresholds.distinct,
        "novel": table["novelty"] == "new",
        "legal": _legal(table, thresholds.legal_probability, thresholds.layout_probability, thresholds.slack),
        "meaning": [bool(set(own) & set(wanted.split())) for own, wanted in zip(found, table["expected"], strict=True)],
    }
    return table.assign(**verdicts, **{ALL_FIVE: np.logical_and.reduce([np.asarray(v) for v in verdicts.values()])})


def _legal(table: pd.DataFrame, legal: float, layout: float, slack: float) -> NDArray[np.bool_]:
    sure = (table["legal_probability"] >= legal) & (table["layout_probability"] >= layout)
    return (sure & (table["excess"] <= slack) & table["slots_attested"]).to_numpy()


# ---------------------------------------------------------------- freezing


def held_out_characters(judge: Judge, components: Components) -> list[str]:
    """Characters of two parts, in each of which the judge knows something, but whose parts it was not taught."""
    held = [character for character in judge.characters if is_held_out(character)]
    return [character for character in held if _shows_two(components.of(character), set(judge.parts))]


def _shows_two(listed: Decomposition | None, vocabulary: Collection[str]) -> bool:
    """Whether a character has two outer parts, and each is of the vocabulary or holds one that is."""
    if listed is None or len(listed.outer) != 2:
        return False
    known = [set(part.strokes) for part in listed.parts if part.element in vocabulary and part.slot != "whole"]
    return all(any(strokes <= set(outer.strokes) for strokes in known) for outer in listed.outer)


def fit_bounds(characters: Iterable[str], size_px: int = 128) -> Bounds:
    """The bounds of characters in the default font; held-out ones are left out.

    Args:
        characters: to measure, such as `Judge.characters`.
        size_px: side of the images.
    """
    kept = [_drawn(character, size_px) for character in characters if not is_held_out(character)]
    return Bounds.fit(measure(np.stack(kept)), size_px)


def fit_thresholds(judge: Judge, images: Images, bounds: Bounds, components: Components) -> Thresholds:
    """Set thresholds so that 95% of real held-out glyphs of two parts pass each criterion.

    The judge's own thresholds of parts and of novelty stay: the first is set by its false positives, the
    second by how far fonts draw a character from itself; so real glyphs are *not* novel. Meaning has none:
    what captions tell of the parts is limited, and real held-out glyphs show that limit as a control.

    Args:
        judge: to set them for.
        images: (N, H, W) uint8, real held-out glyphs of two parts.
        bounds: of other real glyphs.
        components: the list of decompositions.
    """
    readings = judge.read(images)
    table = pd.concat([readings, _structure(judge, images, readings, components, bounds)], axis=1)
    two = (readings["parts"].str.len() >= 2).to_numpy()
    distinct = float(np.quantile(table["erasure"][two], 1 - PASS_SHARE))
    scores = np.column_stack([table["legal_probability"], table["layout_probability"], -table["excess"]])
    standing = float(table["slots_attested"].to_numpy().mean())
    goal = PASS_SHARE if standing >= PASS_SHARE else PASS_SHARE * standing  # no threshold mends a slot
    for miss in np.linspace(1 - PASS_SHARE, 0, 51):
        bars = np.quantile(scores, miss, axis=0, method="lower") * (1, 1, -1)
        legal_bar, layout_bar, slack = (float(bar) for bar in bars)
        legal = _legal(table, legal_bar, layout_bar, slack)
        if legal.mean() >= goal:
            break
    passed = {
        "two_or_more": two.mean(),
        "distinct": (table["erasure"] >= distinct).mean(),
        "novel": readings["exists"].mean(),
        "legal": legal.mean(),
    }
    shares = {name: round(float(share), 4) for name, share in passed.items()}
    return Thresholds(judge_hash(judge), distinct, legal_bar, layout_bar, slack, len(images), shares)


def freeze(judges: Sequence[Judge], components: Components) -> dict[str, Any]:
    """Bounds and thresholds of all judges, in plain values for `FROZEN_FILE`; takes about a minute a judge."""
    bounds = fit_bounds(judges[0].characters)
    thresholds = {}
    for judge in judges:
        images = np.stack([_drawn(character, bounds.side_px) for character in held_out_characters(judge, components)])
        thresholds[judge.name] = asdict(fit_thresholds(judge, images, bounds, components))
    return {"bounds": bounds.to_json(), "thresholds": thresholds}


def write_frozen(path: Path = FROZEN_FILE) -> Path:
    """Freeze everything for the packaged judges; to be done whenever they are made anew, and never after scoring."""
    return write_json_atomic(path, freeze([load_judge("A"), load_judge("B")], load_components()))


def load_frozen(judge: Judge, path: Path = FROZEN_FILE) -> tuple[Bounds, Thresholds]:
    """What was frozen for a judge.

    Raises:
        ValueError: the file has nothing for this very judge.
        FileNotFoundError: there is no such file.
    """
    content = json.loads(Path(path).read_text("utf-8"))
    found = content["thresholds"].get(judge.name)
    if found is None or found["judge_hash"] != judge_hash(judge):
        raise ValueError(f"{path}: expected thresholds of judge {judge.name} with hash {judge_hash(judge)}")
    return Bounds.from_json(content["bounds"]), Thresholds(**found)


# ---------------------------------------------------------------- summaries


def yield_at(passes: NDArray[np.bool_], n: int) -> NDArray[np.float64]:
    """Chance that at least one of n images of a prompt passes, for each prompt.

    Args:
        passes: (S, P) bool, S images of each of P prompts.
        n: 1 to S.
    Returns:
        (P,) in [0, 1], without bias: over all choices of n of the S images.
    Raises:
        ValueError: an n outside its range.
    Source: the estimator pass@k of Chen et al. 2021, arXiv:2107.03374.
    """
    count = len(passes)
    if not 1 <= n <= count:
        raise ValueError(f"n must lie in 1 to {count}, got {n}")
    return np.array([1 - comb(count - int(hits), n) / comb(count, n) for hits in np.asarray(passes).sum(axis=0)])


def summary(table: pd.DataFrame, seed: int = 0) -> pd.DataFrame:
    """Scores of one prompt set, with 95% intervals over images and prompts.

    Args:
        table: of `judge_images`, as many images of every prompt.
        seed: of the resampling.
    Returns:
        Rows by `score`: the criteria, all_five, yield@n (n = 2, 4 ... and all images), distinct_passes (different
        combinations of parts and layout among a prompt's passing images), meaning_balanced (mean over the
        prompts' likeliest parts, so that a part asked for often counts once), meaning_permuted (images dealt to
        the prompts at random), information_bits (between prompt and parts, less what permuted prompts give) and
        its p-value, complexity, neighbour_exists (the third check's word on novelty), and the share of each class of
        novelty. Columns value, low, high; the ends are
        NaN where there is no interval.
    """
    rng = counted_rng(seed, "resampling")
    grid = {name: _grid(table, name) for name in (*CRITERIA, ALL_FIVE, "complexity", "neighbour_exists")}
    rows = {name: two_way_bootstrap(values, rng, RESAMPLES) for name, values in grid.items()}
    passes = grid[ALL_FIVE].astype(bool)
    counts = sorted({2**power for power in range(1, 10) if 2**power < len(passes)} | {len(passes)})
    rows |= {f"yield@{n}": two_way_bootstrap(yield_at(passes, n)[None], rng, RESAMPLES) for n in counts}
    rows["distinct_passes"] = two_way_bootstrap(_distinct_passes(table)[None], rng, RESAMPLES)
    rows["meaning_balanced"] = _balanced(table, rng)
    bits, p = prompt_information(table, rng)
    exact = {"meaning_permuted": _permuted_rate(table), "information_bits": bits, "information_p": p}
    rows |= {name: Estimate(value, np.nan, np.nan) for name, value in exact.items()}
    for kind in NOVELTY:
        share = table.assign(is_kind=table["novelty"] == kind)
        rows[f"novelty: {kind}"] = two_way_bootstrap(_grid(share, "is_kind"), rng, RESAMPLES)
    return pd.DataFrame(rows.values(), columns=["value", "low", "high"], index=pd.Index(rows, name="score"))


def _grid(table: pd.DataFrame, column: str) -> NDArray[np.float64]:
    """(images, prompts) values of a column."""
    return table.pivot(index="image", columns="prompt", values=column).to_numpy(dtype=float)


def _distinct_passes(table: pd.DataFrame) -> NDArray[np.float64]:
    kinds = pd.Series(
        [
            f"{layout} {' '.join(sorted(parts.split()))}"
            for layout, parts in zip(table["layout"], table["parts"], strict=True)
        ]
    )
    passed = kinds.where(table[ALL_FIVE].to_numpy())
    return passed.groupby(table["prompt"].to_numpy()).nunique().to_numpy(dtype=float)


def _balanced(table: pd.DataFrame, rng: np.random.Generator) -> Estimate:
    """Mean over likeliest parts of the rate at which their prompts are answered; interval over prompts."""
    prompts = table.groupby("prompt").agg(hits=("meaning", "mean"), expected=("expected", "first"))
    names, group = np.unique([text.split()[0] for text in prompts["expected"]], return_inverse=True)
    member = np.eye(len(names))[group]  # (P, parts)
    hits = prompts["hits"].to_numpy(dtype=float)

    def rate(counts: NDArray) -> NDArray:
        asked = counts @ member
        shares = (counts * hits) @ member / np.maximum(asked, 1e-9)
        return (shares * (asked > 0)).sum(axis=-1) / (asked > 0).sum(axis=-1)

    drawn = rng.multinomial(len(hits), np.full(len(hits), 1 / len(hits)), size=RESAMPLES)
    low, high = np.quantile(rate(drawn), [0.025, 0.975])
    return Estimate(float(rate(np.ones(len(hits)))), float(low), float(high))


def _permuted_rate(table: pd.DataFrame) -> float:
    """The rate of meaning over every pairing of an image with a prompt."""
    prompts = table.groupby("prompt")["expected"].first()
    wanted = [set(text.split()) for text in prompts]
    shown = table["parts"].value_counts()
    hits = sum(
        int(count) * sum(bool(own & set(str(parts).split())) for own in wanted) for parts, count in shown.items()
    )
    return hits / (len(table) * len(wanted))


def prompt_information(table: pd.DataFrame, rng: np.random.Generator) -> tuple[float, float]:
    """How much the parts shown tell of the prompt: mutual information, against permuted prompts.

    Args:
        table: of `judge_images`.
        rng: of the permutations.
    Returns:
        Bits between the prompts' likeliest part and the parts that the images show, less the mean under
        permutation (few images make any table look informative); and the share of permutations, the given order
        counted among them, that tell as much.
    """
    wanted = table.groupby("prompt")["expected"].first().str.split().str[0]
    shown = table.assign(part=table["parts"].str.split()).explode("part")
    shown["part"] = shown["part"].fillna("")
    weight = 1 / shown.groupby(level=0)["part"].transform("size").to_numpy()
    grid = shown.assign(weight=weight).pivot_table(index="prompt", columns="part", values="weight", aggfunc="sum")
    counts = grid.reindex(wanted.index).fillna(0).to_numpy()  # (P, parts)
    member = np.eye(wanted.nunique())[pd.factorize(wanted)[0]]  # (P, labels)
    found = _information(member.T @ counts)
    permuted = np.array([_information(member[rng.permutation(len(member))].T @ counts) for _ in range(PERMUTATIONS)])
    return found - float(permuted.mean()), float((1 + (permuted >= found - 1e-12).sum()) / (1 + PERMUTATIONS))


def _information(counts: NDArray[np.float64]) -> float:
    """Mutual information in bits of a table of counts."""
    joint = counts / counts.sum()
    alone = joint.sum(axis=1, keepdims=True) * joint.sum(axis=0, keepdims=True)
    there = joint > 0
    return float((joint[there] * np.log2(joint[there] / alone[there])).sum())


# ---------------------------------------------------------------- controls


def controls(
    context: Context,
    dataset: Dataset,
    base: Base,
    prompts: Sequence[str],
    seeds: Sequence[int],
    sampling: Sampling | None = None,
    *,
    trained: Trainable | None = None,
    shuffled: Trainable | None = None,
) -> dict[str, Images]:
    """Ceilings, baselines and floors for the same prompts and counts.

    Args:
        context: of the run.
        dataset: all of its data, training and held out.
        base: what it was trained on.
        prompts: P captions of held-out characters.
        seeds: S of them: images a prompt.
        sampling: how models draw.
        trained: the run, to be asked with the empty prompt.
        shuffled: a run trained with shuffled captions at the same budget.
    Returns:
        name -> (P S, H, W) uint8, a prompt's images side by side: "real held-out", "through the VAE", "typeset",
        "retrieval", "base alone", "half-swapped", "noise"; "empty prompt" and "shuffled captions" where their
        models are given.
    Raises:
        ValueError: a prompt that no held-out character has for its caption.
    """
    count = len(seeds)
    real = _real_glyphs(dataset.split(HELD_OUT), prompts, count)
    found = {"real held-out": real, "through the VAE": through_vae(base, real)}
    found["typeset"] = typeset_answers(context, prompts, count)
    found["retrieval"] = retrieved(context, prompts, count)
    if shuffled is not None:
        found["shuffled captions"] = _sampled(base, prompts, seeds, sampling, shuffled)
    found["base alone"] = _sampled(base, prompts, seeds, sampling, None)
    if trained is not None:
        found["empty prompt"] = np.concatenate([_sampled(base, [""], seeds, sampling, trained)] * len(prompts))
    rng = counted_rng(0, "resampling")
    found["half-swapped"] = half_swapped(context.training, len(real), rng)
    found["noise"] = rng.integers(0, 256, real.shape, dtype=np.uint8)
    return found


def control_table(judge: Judge, images: Mapping[str, Images], prompts: Sequence[str], context: Context) -> pd.DataFrame:
    """Every control's summary.

    Args:
        judge: the one that reports.
        images: of `controls`, and more of the same count (the runs themselves).
        prompts: P, as given to `controls`.
        context: of the run.
    Returns:
        Rows by control and score; columns value, low, high.
    """
    tables = {}
    for name, some in images.items():
        asked = [prompt for prompt in prompts for _ in range(len(some) // len(prompts))]
        tables[name] = summary(judge_images(judge, some, asked, context))
    return pd.concat(tables, names=["control"])


def _real_glyphs(held_out: Dataset, prompts: Sequence[str], count: int) -> Images:
    """For each prompt the glyphs of the held-out characters with this caption, in turn."""
    rows = {str(text): list(group) for text, group in held_out.table.groupby("text").indices.items()}
    if missing := [prompt for prompt in prompts if prompt not in rows]:
        raise ValueError(f"expected captions of held-out characters, got {missing[:3]} ({len(missing)} unknown)")
    return held_out.images([rows[prompt][number % len(rows[prompt])] for prompt in prompts for number in range(count)])


def through_vae(base: Base, images: Images, batch: int = 32) -> Images:
    """Glyphs encoded and decoded, (N, H, W) uint8: what no model on this base can be better than."""
    decoded = []
    for start in range(0, len(images), batch):
        some = images[start : start + batch]
        pixels = base.decode(base.encode_images(np.stack([some] * 3, axis=-1) if base.channels == 3 else some)[0])
        decoded.append(grayscale(pixels) if base.channels == 3 else pixels)
    return np.concatenate(decoded)


def typeset_answers(context: Context, prompts: Sequence[str], count: int) -> Images:
    """The strong baseline: text to two parts, set side by side from training glyphs in a pair not in the list.

    Args:
        context: its meaning chooses the parts; its training characters give them.
        prompts: P.
        count: images a prompt: its best pairs, of those that can be set.
    Returns:
        (P count, 128, 128) uint8.
    Raises:
        ValueError: no pair can be set at all.
    """
    typesetter = Typesetter(context.components, default_font(), allowed=set(context.characters))
    column = {name: index for index, name in enumerate(context.meaning.parts)}
    pairs = [pair for pair in novel_pairs(context.components) if pair.first in column and pair.second in column]
    if not pairs:
        raise ValueError("expected pairs of parts that are not in the list, got none from these characters")
    parts = np.array([(column[pair.first], column[pair.second]) for pair in pairs])
    images = []
    for number, shares in enumerate(np.log(context.meaning.probabilities(prompts))):
        rng = counted_rng(0, "typeset", number)
        set_ones: list[Images] = []
        for index in np.argsort(-shares[parts].sum(axis=1), kind="stable"):
            if len(set_ones) == count:
                break
            if (composed := typesetter.compose(pairs[index], rng)) is not None:
                set_ones.append(_sharpened(composed.image))
        if not set_ones:
            raise ValueError("expected training characters that parts can be cut from, got none")
        images += [set_ones[index % len(set_ones)] for index in range(count)]
    return np.stack(images)


def _sharpened(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Setting a part in another size softens its edges; this makes them as sharp as the font's again."""
    return np.clip((image.astype(float) - 127.5) * SHARPENING + 127.5, 0, 255).round().astype(np.uint8)


def retrieved(context: Context, prompts: Sequence[str], count: int) -> Images:
    """For each prompt the training glyphs with the nearest captions, (P count, H, W) uint8."""
    cosine = context.meaning.embed(list(prompts)) @ context.meaning.vectors.T
    order = np.argsort(-cosine, axis=1, kind="stable")[:, np.arange(count) % cosine.shape[1]]
    return context.training[order.ravel()]


def half_swapped(training: Images, count: int, rng: np.random.Generator) -> Images:
    """Left parts of training glyphs with right parts of others, cut through strokes that do not go on.

    Halves that happen to fit make a well-formed glyph; so of some random cuts the one is taken that tears most.

    Args:
        training: (M, H, W) uint8, two or more.
        count: how many to make.
        rng: which glyphs, and where they are cut.
    Returns:
        (count, H, W) uint8.
    """
    width = training.shape[2]
    mixed = []
    for _ in range(count):
        first = rng.integers(len(training), size=CUTS)
        second = (first + rng.integers(1, len(training), size=CUTS)) % len(training)
        cut = rng.integers(round(0.35 * width), round(0.65 * width), size=CUTS)
        edges = training[first, :, cut - 1] < 128, training[second, :, cut] < 128  # (CUTS, H) each
        torn = np.minimum((edges[0] & ~edges[1]).sum(axis=1), (edges[1] & ~edges[0]).sum(axis=1))
        best = int(torn.argmax())
        columns = np.arange(width) < cut[best]
        mixed.append(np.where(columns, training[first[best]], training[second[best]]))
    return np.stack(mixed)


def _sampled(
    base: Base, prompts: Sequence[str], seeds: Sequence[int], sampling: Sampling | None, trainable: Trainable | None
) -> Images:
    images = sample(base, prompts, seeds, sampling, trainable=trainable)[0]
    images = grayscale(images) if base.channels == 3 else images
    return images.reshape(-1, *images.shape[2:])
