"""Calibration of a judge on fonts that it was not trained on, and its card: what it gets right on further fonts."""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from scipy.special import expit, softmax
from torch.nn import functional as F

from kanjilab.core.rng import counted_rng
from kanjilab.core.storage import write_json_atomic
from kanjilab.data.components import LAYOUTS, is_held_out, load_components
from kanjilab.data.kanjivg import KanjiVG
from kanjilab.data.rendering import draw_font, draws
from kanjilab.data.typeset import Typesetter, novel_pairs
from kanjilab.evaluation.judges.labelled_glyphs import (
    FONTS_FOLDER,
    HANGUL_FONT,
    NEGATIVES,
    NONE,
    TEST_FONTS,
    WITHOUT_PARTS,
    Glyphs,
    locate,
    negative_pictures,
    recogniser_characters,
)
from kanjilab.evaluation.judges.negatives import through_pocket
from kanjilab.evaluation.judges.network import JudgeNetwork
from kanjilab.evaluation.judges.part_judge import LAYOUT_SURE, Judge

FALSE_POSITIVES = 0.05  # of pictures without any part, that may show one
# Beyond 95% in both, so that 95% still pass in other unseen fonts, which may differ a little more.
KNOWN_QUANTILE = 0.97  # of the distances between a glyph and its own character
LEGAL_QUANTILE = 0.03
CONFUSED_MAX = 0.005  # of the real glyphs without a part, that may show it
SAMPLE_NAME = "sample.png"
SAMPLE_PX = 96
SAMPLE_COLUMNS = 16
SAMPLE_PER_FONT = 16
SAMPLE_PER_NEGATIVE = 6


class Logits(NamedTuple):
    """A network's outputs for N glyphs: embedding (N, D), presence (N, P), layout (N, L + 1), well_formed (N,)."""

    embedding: NDArray[np.float32]
    presence: NDArray[np.float32]
    layout: NDArray[np.float32]
    well_formed: NDArray[np.float32]


@torch.inference_mode()
def all_logits(network: JudgeNetwork, ink: NDArray[np.uint8], batch: int = 128) -> Logits:
    """Run a network on framed glyphs.

    Args:
        network: the judge's; left in evaluation mode.
        ink: (N, 64, 64) uint8, 0 paper to 255 ink.
        batch: glyphs at a time.
    """
    network.eval()
    found: list[tuple[NDArray, ...]] = []
    for start in range(0, len(ink), batch):
        glyphs = torch.from_numpy(ink[start : start + batch].astype(np.float32) / 255)[:, None]
        answers = network(glyphs.contiguous(memory_format=torch.channels_last))
        found.append(
            tuple(value.numpy() for value in (answers.embedding, answers.presence, answers.layout, answers.well_formed))
        )
    return Logits(*(np.concatenate(values) for values in zip(*found, strict=True)))


def present_parts(glyphs: Glyphs, vocabulary: int) -> NDArray[np.bool_]:
    """(N, P) which parts each glyph has, as far as that is known."""
    present = np.zeros((len(glyphs), vocabulary), dtype=bool)
    present[glyphs.parts[:, 0].astype(int), glyphs.parts[:, 1].astype(int)] = True
    return present


def temperature_of(logits: NDArray[np.float32], truth: NDArray[np.bool_]) -> float:
    """The temperature at which probabilities hold best: least cross-entropy.

    Args:
        logits: any shape.
        truth: the same shape.
    """
    signs = np.where(truth, -logits, logits).astype(np.float64)
    return float(min(np.geomspace(0.3, 3, 60), key=lambda t: np.logaddexp(0, signs / t).mean()))


def calibration_error(probability: NDArray, truth: NDArray[np.bool_], bins: int = 15) -> float:
    """Expected calibration error: mean gap between probability and frequency, over equal bins of probability.

    Args:
        probability: any shape, in [0, 1].
        truth: the same shape.
        bins: how many.
    Source: Guo et al. 2017, arXiv:1706.04599, equation 3.
    """
    place = np.minimum((probability.ravel() * bins).astype(int), bins - 1)
    count = np.bincount(place, minlength=bins)
    gaps = np.abs(np.bincount(place, probability.ravel(), bins) - np.bincount(place, truth.ravel(), bins))
    return float(gaps.sum() / count.sum())


@dataclass(frozen=True)
class Calibration:
    """What turns a network's logits into verdicts; see `part_judge.Judge` for the meaning of each."""

    temperatures: dict[str, float]
    part_thresholds: NDArray[np.float32]
    novel_distance: float
    legal_threshold: float


def calibrate(network: JudgeNetwork, validation: Glyphs, characters: Sequence[str]) -> Calibration:
    """Set temperatures and thresholds on fonts that were not trained on, with characters held out.

    Args:
        network: trained.
        validation: material made with `tests=True`.
        characters: the recogniser's classes.
    """
    said = all_logits(network, validation.ink)
    held = _held_out_rows(validation, characters)
    labelled = held & validation.parts_known
    present = present_parts(validation, said.presence.shape[1])
    parts_temperature = temperature_of(said.presence[labelled], present[labelled])
    probability = expit(said.presence / parts_temperature)
    layouts = said.layout[labelled]
    hit = np.eye(layouts.shape[1], dtype=bool)[validation.layout[labelled]]
    layout_temperature = min(
        np.geomspace(0.3, 3, 60), key=lambda t: -np.log(softmax(layouts / t, axis=1)[hit] + 1e-12).mean()
    )
    asked = held | (validation.legal == 0)
    legal_temperature = temperature_of(said.well_formed[asked], validation.legal[asked] == 1)
    well_formed = expit(said.well_formed[held] / legal_temperature)
    return Calibration(
        {"parts": parts_temperature, "layout": float(layout_temperature), "legality": legal_temperature},
        _part_thresholds(probability, present, validation, labelled),
        float(np.quantile(_own_distance(network, said, validation), KNOWN_QUANTILE)),
        float(np.quantile(well_formed, LEGAL_QUANTILE)),
    )


def _part_thresholds(
    probability: NDArray[np.float32], present: NDArray[np.bool_], validation: Glyphs, labelled: NDArray[np.bool_]
) -> NDArray[np.float32]:
    """(P,) the higher of two: of the pictures without any part 5% show one; and few real glyphs show a wrong one."""
    floor = np.quantile(probability[validation.is_kind(*WITHOUT_PARTS)].max(axis=1), 1 - FALSE_POSITIVES)
    without = np.where(present[labelled], 0.0, probability[labelled])
    return np.maximum(floor, np.quantile(without, 1 - CONFUSED_MAX, axis=0)).astype(np.float32)


def _held_out_rows(glyphs: Glyphs, characters: Sequence[str]) -> NDArray[np.bool_]:
    held = np.array([is_held_out(character) for character in characters])
    return (glyphs.character >= 0) & held[glyphs.character] & (glyphs.is_kind("real"))


def _own_distance(network: JudgeNetwork, said: Logits, glyphs: Glyphs) -> NDArray[np.float32]:
    """Distance (1 - cosine) of every real glyph to its own character's prototype."""
    real = glyphs.character >= 0
    prototypes = F.normalize(network.prototypes.detach(), dim=1).numpy()
    return 1 - (said.embedding[real] * prototypes[glyphs.character[real]]).sum(axis=1)


def measure(judge: Judge, glyphs: Glyphs) -> dict[str, Any]:
    """All measurements of a judge's card, on material made with `tests=True`.

    Args:
        judge: with its thresholds.
        glyphs: in fonts that neither training nor thresholds have seen.
    Returns:
        Shares in [0, 1], counts, and tables of shares by kind of negative and by layout.
    """
    said = all_logits(judge.network, glyphs.ink)
    held = _held_out_rows(glyphs, judge.characters)
    probability = expit(said.presence / judge.temperatures["parts"])
    seen, present = probability >= judge.part_thresholds, present_parts(glyphs, len(judge.parts))
    legal = expit(said.well_formed / judge.temperatures["legality"]) >= judge.legal_threshold
    labelled = held & glyphs.parts_known
    report: dict[str, Any] = {
        **_measure_recogniser(judge, said, glyphs),
        "held_out_glyphs": int(held.sum()),
        "legal_pass_rate": float(legal[held].mean()),
        "legal_pass_rate_through_vae": float(legal[glyphs.is_kind("nearly clean")].mean()),
        "part_recall": float(seen[labelled][present[labelled]].mean()),
        "part_precision": float(present[labelled][seen[labelled]].mean()),
        "part_calibration_error": calibration_error(probability[labelled], present[labelled]),
        **_measure_layout(judge, said, glyphs, labelled),
        **_measure_typeset(seen, present, glyphs),
        **_measure_reading(judge, glyphs),
    }
    kinds = {kind: rows for kind in NEGATIVES if (rows := glyphs.is_kind(kind)).any()}
    report["junk_called_illegal"] = {kind: float(1 - legal[rows].mean()) for kind, rows in kinds.items()}
    report["empty_pictures_showing_a_part"] = float(seen[glyphs.is_kind(*WITHOUT_PARTS)].any(axis=1).mean())
    report["junk_showing_a_part"] = {kind: float(seen[rows].any(axis=1).mean()) for kind, rows in kinds.items()}
    return report


def _measure_recogniser(judge: Judge, said: Logits, glyphs: Glyphs) -> dict[str, Any]:
    real, composed = (np.flatnonzero(glyphs.is_kind(kind)) for kind in ("real", "typeset"))
    prototypes = F.normalize(judge.network.prototypes, dim=1).numpy().T
    blocks = np.array_split(real, 1 + len(real) // 1000)
    cosine = np.concatenate([said.embedding[rows] @ prototypes for rows in blocks])
    order = np.argpartition(-cosine, 10, axis=1)[:, :10]
    right = glyphs.character[real]
    novel = 1 - (said.embedding[composed] @ prototypes).max(axis=1) > judge.novel_distance
    return {
        "real_glyphs": len(real),
        "top1": float((cosine.argmax(axis=1) == right).mean()),
        "top10": float((order == right[:, None]).any(axis=1).mean()),
        "not_novel_rate": float((1 - cosine.max(axis=1) <= judge.novel_distance).mean()),
        "typeset_called_novel": float(novel.mean()),
    }


def _measure_layout(judge: Judge, said: Logits, glyphs: Glyphs, labelled: NDArray[np.bool_]) -> dict[str, Any]:
    shares = softmax(said.layout[labelled] / judge.temperatures["layout"], axis=1)
    best = shares.argmax(axis=1)
    sure = (best != NONE) & (shares.max(axis=1) >= LAYOUT_SURE)
    right = best == glyphs.layout[labelled]
    return {"layout_accuracy_when_sure": float(right[sure].mean()), "layout_abstained": float(1 - sure.mean())}


def _measure_typeset(seen: NDArray[np.bool_], present: NDArray[np.bool_], glyphs: Glyphs) -> dict[str, Any]:
    """How often both parts of a novel pair are found; the pair comes first among each glyph's parts."""
    rows = np.flatnonzero(glyphs.is_kind("typeset"))
    starts = glyphs.rows_of_parts()[rows]
    pair = glyphs.parts[np.stack([starts, starts + 1]), 1].astype(int)  # (2, N)
    both = seen[rows, pair[0]] & seen[rows, pair[1]]
    layouts = {name: glyphs.layout[rows] == index for index, name in enumerate(LAYOUTS)}
    extra = (seen[rows] & ~present[rows]).sum(axis=1)
    return {
        "typeset_pairs": len(rows),
        "typeset_both_found": float(both.mean()),
        "typeset_both_found_by_layout": {name: float(both[at].mean()) for name, at in layouts.items() if at.any()},
        "typeset_wrong_parts_each": float(extra.mean()),
    }


def _measure_reading(judge: Judge, glyphs: Glyphs, count: int = 1000) -> dict[str, Any]:
    """How often `read` finds both parts of novel pairs, nested parts counted once, and how long it takes."""
    rows = np.flatnonzero(glyphs.is_kind("typeset"))[:count]
    starts = glyphs.rows_of_parts()[rows]
    started = time.perf_counter()
    table = judge.read(255 - glyphs.ink[rows])
    seconds = time.perf_counter() - started
    pairs = [{judge.parts[int(index)] for index in glyphs.parts[at : at + 2, 1]} for at in starts]
    both = [pair <= set(parts) for pair, parts in zip(pairs, table.parts, strict=True)]
    return {
        "typeset_both_read": float(np.mean(both)),
        "typeset_parts_read_each": float(np.mean([len(parts) for parts in table.parts])),
        "read_seconds_per_1000": round(1000 * seconds / len(rows), 1),
    }


def make_sample(path: Path, fonts_folder: Path = FONTS_FOLDER, kanjivg: Path | None = None, seed: int = 55) -> None:
    """Draw real held-out characters, novel pairs and negatives from the test fonts; store pictures and truth.

    Args:
        path: a PNG, glyphs in rows of 16; its truth is stored beside it as JSON.
        fonts_folder: laid out as Debian's.
        kanjivg: its file of strokes; the installed one by default.
        seed: of what is drawn.
    """
    components, rng = load_components(), counted_rng(seed, "judge training")
    fonts = [locate(font, fonts_folder) for font in TEST_FONTS]
    held = [character for character in recogniser_characters() if is_held_out(character)]
    pairs = [pair for pair in novel_pairs(components) if pair.for_tests]
    images, truth = [], []
    for font in fonts:
        chosen = [held[int(index)] for index in rng.permutation(len(held))[: 4 * SAMPLE_PER_FONT]]
        drawable = [character for character in chosen if draws(character, font)][:SAMPLE_PER_FONT]
        images += [np.asarray(draw_font(character, font)) for character in drawable]
        truth += [{"kind": "real", "character": character} for character in drawable]
        typesetter = Typesetter(components, font)
        made = (typesetter.compose(pairs[int(index)], rng) for index in rng.permutation(len(pairs)))
        composed = list(itertools.islice((one for one in made if one is not None), SAMPLE_PER_FONT))
        images += [one.image for one in composed]
        truth += [{"kind": "typeset", "parts": [one.pair.first, one.pair.second]} for one in composed]
    full = max(fonts, key=lambda font: sum(draws(character, font) for character in held))
    whole = np.stack([np.asarray(draw_font(held[int(i)], full)) for i in rng.permutation(len(held))[:64]])
    negatives = negative_pictures(whole, 64, fonts, locate(HANGUL_FONT, fonts_folder), KanjiVG.open(kanjivg), rng)
    negatives["half denoised"] = through_pocket(whole[:SAMPLE_PER_NEGATIVE], rng).half
    for kind in NEGATIVES:
        images += list(negatives[kind][:SAMPLE_PER_NEGATIVE])
        truth += [{"kind": kind}] * len(negatives[kind][:SAMPLE_PER_NEGATIVE])
    _write_sample(path, images, truth)


def _write_sample(path: Path, images: Sequence[NDArray[np.uint8]], truth: list[dict[str, Any]]) -> None:
    small = [Image.fromarray(image).resize((SAMPLE_PX, SAMPLE_PX), Image.Resampling.BOX) for image in images]
    rows = -(-len(small) // SAMPLE_COLUMNS)
    sheet = Image.new("L", (SAMPLE_COLUMNS * SAMPLE_PX, rows * SAMPLE_PX), 255)
    for index, image in enumerate(small):
        coarse = image.point([round(value / 17) * 17 for value in range(256)])  # 16 greys make a third of the file
        sheet.paste(coarse, (index % SAMPLE_COLUMNS * SAMPLE_PX, index // SAMPLE_COLUMNS * SAMPLE_PX))
    sheet.save(path, optimize=True)
    write_json_atomic(path.with_suffix(".json"), {"glyphs": truth})


def read_sample(path: Path) -> tuple[NDArray[np.uint8], list[dict[str, Any]]]:
    """A stored sample.

    Returns:
        (N, 96, 96) uint8, 0 ink to 255 paper, and what is known of each: kind, and character or parts.
    """
    truth = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))["glyphs"]
    with Image.open(path) as image:
        sheet = np.asarray(image)
    cells = sheet.reshape(-1, SAMPLE_PX, SAMPLE_COLUMNS, SAMPLE_PX).swapaxes(1, 2)
    return cells.reshape(-1, SAMPLE_PX, SAMPLE_PX)[: len(truth)], truth


def measure_sample(judge: Judge, images: NDArray[np.uint8], truth: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Measure a judge on the sample.

    Args:
        judge: A or B.
        images: (N, H, W) uint8.
        truth: of each, as `read_sample` gives it.
    Returns:
        Shares in [0, 1].
    """
    table, kinds = judge.read(images), np.array([one["kind"] for one in truth])
    over = judge.part_probabilities(images) >= judge.part_thresholds
    column = {part: index for index, part in enumerate(judge.parts)}
    both = [over[i, [column[part] for part in one["parts"]]].all() for i, one in enumerate(truth) if "parts" in one]
    real = kinds == "real"
    names = np.array([one.get("character", "") for one in truth])
    measured = {
        "top1": (table.nearest.to_numpy() == names)[real].mean(),
        "not_novel_rate": table.exists.to_numpy()[real].mean(),
        "legal_pass_rate": table.legal.to_numpy()[real].mean(),
        "typeset_both_found": np.mean(both),
    }
    for kind in NEGATIVES:
        measured[f"called illegal: {kind}"] = 1 - table.legal.to_numpy()[kinds == kind].mean()
    return {name: round(float(value), 4) for name, value in measured.items()}
