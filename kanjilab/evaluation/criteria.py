"""The five criteria of a new kanji and their AND; read them beside the controls (`kanjilab.evaluation.controls`).

A new kanji has two or more parts, these are distinct, it is novel, it is well-formed, and it has the prompt's meaning.
A judge reads the images (`kanjilab.evaluation.judges.part_judge`); what can be measured without a network is. All
thresholds were frozen on real glyphs. A judge's score is for choosing and reporting, never a loss.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property, lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from kanjilab.core.config import settings_hash
from kanjilab.core.storage import PACKAGE_WEIGHTS, sha256_file, write_json_atomic
from kanjilab.data.components import Components, Decomposition, is_held_out, load_components
from kanjilab.data.dictionary import has_clean_meaning, load_characters, rows_of
from kanjilab.data.image_folder import Dataset
from kanjilab.data.part_names import part_names
from kanjilab.data.rendering import GlyphError, default_font, draw_font
from kanjilab.data.skeleton import thin
from kanjilab.evaluation.judges.fit_cache import cached_fit
from kanjilab.evaluation.judges.framing import Images
from kanjilab.evaluation.judges.nearest_character import Neighbours
from kanjilab.evaluation.judges.part_judge import Judge, load_judge
from kanjilab.evaluation.layout_parts import attested_spans, erasure_scores, main_parts, slots_attested
from kanjilab.evaluation.metrics import COMPARE_PX, nearest_training_images
from kanjilab.evaluation.prompt_parts import AskedMeaning, PartMeaning
from kanjilab.evaluation.well_formed import Bounds, measure
from kanjilab.models.loading import cache_folder
from kanjilab.models.minilm import caption_vectors

CRITERIA = ("two_or_more", "distinct", "novel", "legal", "meaning")
ALL_FIVE = "all_five"
NOVELTY = ("exists", "copy", "one stroke off", "in the list", "new")
FROZEN_FILE = PACKAGE_WEIGHTS / "judges" / "criteria.json"
PASS_SHARE = 0.95  # of real held-out glyphs, that each threshold lets pass
ONE_STROKE = 0.5  # sides of the image: glyphs whose strokes differ by less than this are one stroke apart
TOLERANCE_PX = 5  # at 128 px; a stroke's middle line is shared where the other glyph has one this near


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


@dataclass(frozen=True)
class SmallGlyphs:
    """Characters in the default font, as small as glyphs are compared.

    Attributes:
        images: (N, h, w) uint8, with h = w = `COMPARE_PX`.
    """

    images: Images

    @classmethod
    def load_or_draw(cls, cache: Path, characters: Sequence[str], side_px: int) -> SmallGlyphs:
        """Draws them at a side of so many pixels and makes them small, or reads from the cache what was drawn.

        Args:
            cache: folder for the file, made if need be.
            characters: N single characters; what the font does not draw is left white.
            side_px: at which they are drawn.
        """
        inputs = {"characters": list(characters), "font": sha256_file(default_font()), "sides": [side_px, COMPARE_PX]}
        return cached_fit(cache, "small_glyphs", inputs, cls, partial(cls._draw, characters, side_px))

    @classmethod
    def _draw(cls, characters: Sequence[str], side_px: int) -> SmallGlyphs:
        return cls(np.stack([_at_side(_drawn(one, side_px)[None], COMPARE_PX)[0] for one in characters]))


@dataclass(frozen=True)
class Thresholds:
    """Thresholds of one judge, frozen on real held-out glyphs before any generator was scored.

    Attributes:
        judge_hash: of the judge that they belong to.
        distinct: least erasure score, in nats.
        legal_probability, layout_probability: least of the judge; below the second it counts as abstaining.
        slack: widths of a range by which a measure may be outside the bounds.
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

    @cached_property
    def spans(self) -> dict[tuple[str, str], float]:
        """Where each part is in listed characters, and how large: see `attested_spans`."""
        return attested_spans(self.components)


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


def dictionary_context(
    judge: Judge,
    *,
    asked: Mapping[str, Sequence[str]] | None = None,
    cache: Path | None = None,
    frozen: Path = FROZEN_FILE,
    embed: Callable[[Sequence[str]], NDArray[np.float32]] = caption_vectors,
) -> Context:
    """The context of a model that was trained on all characters of the dictionary: no image folder is needed.

    What a prompt asks for is learned from names of parts and from first meanings of frequent characters. Copies are
    looked for among all characters that the judge knows, in the default font.

    Args:
        judge: the one that will read.
        asked: parts of prompts that name theirs, so that nothing has to be learned about these.
        cache, frozen: as for `make_context`.
        embed: captions to unit vectors (N, D).
    Raises:
        ValueError: nothing was frozen for this judge.
    """
    bounds, thresholds = load_frozen(judge, frozen)
    components, neighbours = load_components(), Neighbours.load_or_fit(cache or cache_folder() / "judges")
    named = [(name, (part,)) for part in judge.parts for name in part_names().get(part, ())]
    characters = load_characters()
    frequent = rows_of(characters.loc[characters["frequency"].notna() & has_clean_meaning(characters)])
    glossed = [(row.meanings[0], outer_parts(row.Index, components, judge.parts)) for row in frequent]
    captions, parts = zip(*named, *glossed, strict=True)
    meaning = replace(AskedMeaning.fit(captions, parts, embed), asked=asked or {})
    drawn = SmallGlyphs.load_or_draw(cache or cache_folder() / "judges", judge.characters, bounds.side_px)
    return Context(components, neighbours, bounds, thresholds, meaning, drawn.images, tuple(judge.characters))


def outer_parts(character: str, components: Components, vocabulary: Collection[str]) -> tuple[str, ...]:
    """The parts that make up a character's layout, as far as a judge knows them; nested ones left out."""
    listed = components.of(character)
    names = [part.element for part in listed.outer] if listed else []
    return tuple(dict.fromkeys(name for name in names if name in vocabulary))


def judge_images(judge: Judge, images: Images, prompts: Sequence[str], context: Context) -> pd.DataFrame:
    """Measure each image; the five verdicts and their AND.

    Args:
        judge: A to choose by, B to report by.
        images: (N, H, W) uint8, brought to the side that the bounds were measured at.
        prompts: N, one an image, in any order.
        context: of the run that drew the images.
    Returns:
        N rows: prompt, image (number among the prompt's images), expected and parts (names joined by spaces), needed
        (how many of the expected parts must show), layout, what was measured, the five criteria and all_five (bool).
    Raises:
        ValueError: the lengths differ, or the thresholds are another judge's.
    """
    if len(images) != len(prompts):
        raise ValueError(f"expected one prompt per image, got {len(images)} images and {len(prompts)} prompts")
    if context.thresholds.judge_hash != judge_hash(judge):
        raise ValueError(f"expected thresholds frozen for judge {judge.name}, got another judge's")
    images = _at_side(images, context.bounds.side_px)
    readings = judge.read(images)
    structure = _structure(judge, images, readings, context.spans, context.bounds)
    novelty = _novelty(readings, images, context)
    different = list(dict.fromkeys(prompts))
    expected = dict(zip(different, context.meaning.expected(different), strict=True))
    wanted = [expected[prompt] for prompt in prompts]
    table = pd.DataFrame({"prompt": list(prompts)})
    table["image"] = table.groupby("prompt").cumcount()
    table["expected"] = [" ".join(names) for names in wanted]
    table["needed"] = [context.meaning.needed(prompt) for prompt in prompts]
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
    judge: Judge, images: Images, readings: pd.DataFrame, spans: Mapping[tuple[str, str], float], bounds: Bounds
) -> pd.DataFrame:
    """What a threshold is set on: erasure, distance from the bounds; and whether the slots are attested."""
    measures = measure(images)
    excess = bounds.excess(measures)
    rows: Any = readings.itertuples()
    return pd.DataFrame(
        {
            "erasure": erasure_scores(judge, images, readings),
            "complexity": measures["complexity"],
            "excess": excess.max(axis=1),
            "worst_measure": excess.idxmax(axis=1).where(excess.max(axis=1) > 0, ""),
            "slots_attested": [slots_attested(row, spans) for row in rows],
        }
    )


def _novelty(readings: pd.DataFrame, images: Images, context: Context) -> pd.DataFrame:
    """The class of novelty of each image by the judge, and the nearest character by the third check."""
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
    found, expected = table["parts"].str.split(), table["expected"].str.split()
    shown = [len(set(own) & set(wanted)) for own, wanted in zip(found, expected, strict=True)]
    verdicts = {
        "two_or_more": found.str.len() >= 2,
        "distinct": table["erasure"] >= thresholds.distinct,
        "novel": table["novelty"] == "new",
        "legal": _legal(table, thresholds.legal_probability, thresholds.layout_probability, thresholds.slack),
        "meaning": table["needed"] <= shown,
    }
    return table.assign(**verdicts, **{ALL_FIVE: np.logical_and.reduce([np.asarray(v) for v in verdicts.values()])})


def _legal(table: pd.DataFrame, legal: float, layout: float, slack: float) -> NDArray[np.bool_]:
    sure = (table["legal_probability"] >= legal) & (table["layout_probability"] >= layout)
    return (sure & (table["excess"] <= slack) & table["slots_attested"]).to_numpy()


def held_out_characters(judge: Judge, components: Components) -> list[str]:
    """Characters of two parts, in each of which the judge knows something, but which it was not trained on."""
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
    second by how far the fonts' glyphs of one character differ; so real glyphs are *not* novel. Meaning has none:
    captions say only so much about parts, and real held-out glyphs show that limit as a control.

    Args:
        judge: to set them for.
        images: (N, H, W) uint8, real held-out glyphs of two parts.
        bounds: of other real glyphs.
        components: the list of decompositions.
    """
    readings = judge.read(images)
    table = pd.concat([readings, _structure(judge, images, readings, attested_spans(components), bounds)], axis=1)
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
    """Freeze all for the packaged judges; to be done whenever they are trained again, and never after scoring."""
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
