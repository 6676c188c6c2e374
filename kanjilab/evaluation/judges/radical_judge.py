"""The first judge: which of some left radicals does a glyph show on its left, if any?

It has no network: gradient orientations of the glyph's left part (a small HOG) and Gaussian classes with one shared
covariance, so fitting is a matrix product and one linear solve. Other classes are pictures without these radicals
(other left parts, stacked layouts, kana and letters, mirrored and upside-down kanji, scribbles, blobs): the judge
abstains from what looks more like those. Its score is for reporting, never a loss.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from scipy.special import softmax

from kanjilab.core.storage import sha256_file
from kanjilab.data.dictionary import load_characters
from kanjilab.data.radicals import RADICALS16, left_radical, radical_character
from kanjilab.data.rendering import default_font
from kanjilab.evaluation.judges.fit_cache import cached_fit
from kanjilab.evaluation.judges.framing import draw_all
from kanjilab.evaluation.judges.orientation import SIZE_PX, Ink, blur, normalise_glyphs, orientation_features, roughen

FORMAT = 1  # of a stored fit: one more whenever a change of code changes what a fit gives
HELD_OUT_SHARE = 0.2  # of the characters, for temperature and threshold
PASS_SHARE = 0.95  # of the held-out glyphs, roughened, that must not be abstained from
ROUGH_COPIES = 2
SHRINKAGE = 0.03  # of the covariance's mean variance
EXAMPLES_MIN = 5  # of a kind, to be a class
SCRIBBLES = 600
BLOBS = 300

# Classical radicals are ordered by strokes: the first of 1, 2, 3 ... 17 strokes.
FIRST_OF_STROKES = (1, 7, 30, 61, 95, 118, 147, 167, 176, 187, 195, 201, 205, 209, 211, 212, 214)
# Left forms with other strokes than the radical's own character: 犭 礻 衤 阝 飠.
SHORT_FORM_STROKES = {94: 3, 113: 4, 145: 5, 170: 3, 184: 8}
LOOKALIKES = {130: 74, 32: 33}  # 月 is flesh or moon, and 士 is nearly 土: no examples against each other
LETTER_RANGES = ("09", "AZ", "az", "ΑΩ", "Ая", "ぁん", "ァヺ")
LETTERS = tuple(chr(code) for first, last in LETTER_RANGES for code in range(ord(first), ord(last) + 1))


def _features_in_parts(ink: Ink, rng: np.random.Generator | None = None, part: int = 256) -> NDArray[np.float32]:
    """Features of the glyphs, roughened where a generator is given; in parts that fit a processor's cache."""
    parts = [ink[start : start + part] for start in range(0, len(ink), part)]
    features = [orientation_features(some if rng is None else roughen(some, rng)) for some in parts]
    return np.concatenate(features) if features else np.zeros((0, 704), np.float32)


def _draw_all(drawn: Sequence[tuple[str, str]], font: Path) -> tuple[Ink, list[str]]:
    """Ink and kinds of those (character, kind) pairs whose character the font has."""
    found = list(draw_all([character for character, _ in drawn], font))
    if not found:
        return np.zeros((0, SIZE_PX, SIZE_PX), np.float32), []
    return normalise_glyphs(np.stack([image for _, image in found]))[0], [drawn[index][1] for index, _ in found]


def _kanji_by_kind(characters: pd.DataFrame, radicals: Sequence[int]) -> tuple[list, list]:
    """(character, kind) of those with a wanted radical on the left, and of those surely without one."""
    wanted, other = [], []
    rows: Any = characters.itertuples()
    for row in rows:
        left = left_radical(row)
        if left is not None and left in radicals:
            wanted.append((row.Index, radical_character(left)))
        elif (kind := _other_kind(row, left, radicals)) is not None:
            other.append((row.Index, kind))
    stacked = [pair for pair in other if pair[1].startswith("stacked")]
    return wanted, [pair for pair in other if not pair[1].startswith("stacked")] + stacked[::2]


def _other_kind(row: Any, left: int | None, radicals: Sequence[int]) -> str | None:
    """What the character shows on its left instead of a wanted radical; None where that is not certain."""
    layout, _, rest = (row.skip or "").partition("-")
    first = rest.split("-")[0]
    if layout == "2":
        return f"stacked {first}"
    number = int(row.radical)
    if layout != "1" or number in radicals or number in {LOOKALIKES.get(radical) for radical in radicals}:
        return None
    strokes = (bisect_right(FIRST_OF_STROKES, number), SHORT_FORM_STROKES.get(number))
    return f"left {number}" if left is not None or int(first) in strokes else None


def _scribbles(count: int, rng: np.random.Generator) -> Ink:
    """Random lines and arcs as thick as strokes."""
    pictures = []
    for _ in range(count):
        picture = Image.new("L", (128, 128), 255)
        pen = ImageDraw.Draw(picture)
        for _ in range(rng.integers(3, 16)):
            (x, y), width = rng.uniform(5, 123, 2), int(rng.integers(4, 10))
            if rng.random() < 0.5:
                across, down = rng.normal(size=2) * rng.uniform(8, 40)
                pen.line((x, y, x + across, y + down), fill=0, width=width)
            else:
                start, (w, h) = rng.uniform(0, 360), rng.uniform(10, 60, 2)
                pen.arc((x - w, y - h, x + w, y + h), start, start + rng.uniform(40, 250), fill=0, width=width)
        pictures.append(np.asarray(picture))
    return normalise_glyphs(np.stack(pictures))[0]


def _blobs(count: int, rng: np.random.Generator) -> Ink:
    """Smooth noise cut at a random level."""
    field = blur(rng.normal(size=(count, SIZE_PX, SIZE_PX)).astype(np.float32), 12)
    field /= field.std(axis=(1, 2), keepdims=True)
    return np.clip((field - rng.uniform(-0.2, 0.8, (count, 1, 1)).astype(np.float32)) * 3, 0, 1)


@dataclass(frozen=True)
class _Examples:
    """Glyphs with the kind that each is; `real` marks those with a wanted radical."""

    ink: Ink
    kinds: NDArray[np.str_]
    real: NDArray[np.bool_]


def _gather(characters: pd.DataFrame, font: Path, radicals: Sequence[int], rng: np.random.Generator) -> _Examples:
    wanted, other = _kanji_by_kind(characters, radicals)
    real_ink, real_kinds = _draw_all(wanted, font)
    counts = {radical_character(number): real_kinds.count(radical_character(number)) for number in radicals}
    if too_few := {name: count for name, count in counts.items() if count < EXAMPLES_MIN}:
        raise ValueError(f"expected at least {EXAMPLES_MIN} characters that {font.name} draws per radical: {too_few}")
    other_ink, other_kinds = _draw_all(other + [(letter, "letter") for letter in LETTERS], font)
    made = {
        "mirrored": real_ink[::3, :, ::-1],
        "upside down": real_ink[1::3, ::-1],
        "scribble": _scribbles(SCRIBBLES, rng),
        "blob": _blobs(BLOBS, rng),
    }
    kinds = np.array(real_kinds + other_kinds + [kind for kind, ink in made.items() for _ in ink])
    ink = np.concatenate([real_ink, other_ink, *made.values()])
    names, counted = np.unique(kinds, return_counts=True)
    kept = np.isin(kinds, names[counted >= EXAMPLES_MIN])
    return _Examples(ink[kept], kinds[kept], np.arange(len(kinds))[kept] < len(real_kinds))


def _discriminants(features: NDArray[np.float32], classes: NDArray[np.int_], count: int) -> tuple[NDArray, NDArray]:
    """Linear scores of Gaussian classes with one covariance: weights (F, classes), bias (classes,)."""
    means = np.stack([features[classes == label].mean(axis=0) for label in range(count)])
    centred = features - means[classes]
    covariance = (centred.T @ centred / len(centred)).astype(np.float64)
    covariance[np.diag_indices_from(covariance)] += SHRINKAGE * np.trace(covariance) / len(covariance)
    weights = np.linalg.solve(covariance, means.T.astype(np.float64))
    return weights.astype(np.float32), (-0.5 * (means.T * weights).sum(axis=0)).astype(np.float32)


@dataclass(frozen=True)
class RadicalJudge:
    """Reads the left radical of glyphs; make one with `fit` or `load_or_fit`.

    Attributes:
        radicals: names such as 水, in the order of the probabilities' columns.
        weights: (F, C) float32, one column per class; the first R classes are the radicals, the
            others are kinds of pictures without any of them.
        bias: (C,) float32.
        temperature: scores are divided by it; set so that probabilities hold on held-out characters.
        threshold: a best radical less probable than this is abstained from.
        report: what was measured on held-out characters when the judge was fitted.
    """

    radicals: tuple[str, ...]
    weights: NDArray[np.float32]
    bias: NDArray[np.float32]
    temperature: float
    threshold: float
    report: dict[str, float]

    @classmethod
    def fit(
        cls, characters: pd.DataFrame, font: Path, radicals: Sequence[int] = RADICALS16, seed: int = 0
    ) -> RadicalJudge:
        """Fit on every character that has one of the radicals on its left, drawn in one font.

        A fifth of the examples is set aside to choose temperature and threshold and to measure the
        report; then the scores are fitted once more on all of them.

        Args:
            characters: a table of `load_characters`, or rows of it.
            font: the font file to draw with.
            radicals: classical numbers of the radicals that are its classes.
            seed: of the split and of everything drawn at random.
        Raises:
            ValueError: a radical that is on the left of fewer than 5 characters that the font draws.
        """
        rng = np.random.default_rng(seed)
        examples = _gather(characters, Path(font), radicals, rng)
        names = [radical_character(number) for number in radicals]
        kinds = names + sorted(set(examples.kinds) - set(names))
        clean_classes = np.array([kinds.index(kind) for kind in examples.kinds])
        held = rng.random(len(clean_classes)) < HELD_OUT_SHARE
        rough = [_features_in_parts(examples.ink, rng) for _ in range(ROUGH_COPIES)]
        features = np.concatenate([*rough, _features_in_parts(examples.ink[examples.real])])
        classes = np.concatenate([*[clean_classes] * ROUGH_COPIES, clean_classes[examples.real]])
        held_rows = np.concatenate([*[held] * ROUGH_COPIES, held[examples.real]])
        rough_rows = np.arange(len(classes)) < ROUGH_COPIES * len(clean_classes)
        weights, bias = _discriminants(features[~held_rows], classes[~held_rows], len(kinds))
        scores = features[held_rows] @ weights + bias
        settings = _calibrate(scores, classes[held_rows], rough_rows[held_rows], len(names))
        return cls(tuple(names), *_discriminants(features, classes, len(kinds)), *settings)

    @classmethod
    def load_or_fit(
        cls,
        cache: Path,
        characters: pd.DataFrame | None = None,
        font: Path | None = None,
        radicals: Sequence[int] = RADICALS16,
        seed: int = 0,
    ) -> RadicalJudge:
        """The judge from the cache, fitted first where the cache has none for these very inputs.

        Args:
            cache: folder for the judge's file, made if need be; a file there that cannot be read is replaced.
            characters: as in `fit`; None for `load_characters()`.
            font: as in `fit`; None for `default_font()`.
            radicals, seed: as in `fit`.
        Raises:
            ValueError: as in `fit`.
        """
        characters = load_characters() if characters is None else characters
        font = default_font() if font is None else Path(font)
        rows: Any = characters.itertuples()
        inputs = {
            "format": FORMAT,
            "characters": [[str(row.Index), int(row.radical), row.skip] for row in rows],
            "font": sha256_file(font),
            "radicals": list(radicals),
            "seed": seed,
        }
        fit = partial(cls.fit, characters, font, radicals, seed)
        return cached_fit(cache, "radical_judge", inputs, cls, fit)

    def probabilities(self, images: NDArray[np.uint8]) -> NDArray[np.float64]:
        """Probability of each radical; what is left to 1 is the probability of none of them.

        Args:
            images: (N, H, W) uint8 grayscale, 0 ink to 255 paper.
        Returns:
            (N, R) float, columns in the order of `radicals`; zeros for a blank image.
        Raises:
            ValueError: a wrong shape or type.
        """
        ink, has_ink = normalise_glyphs(images)
        scores = (_features_in_parts(ink) @ self.weights + self.bias) / self.temperature
        return softmax(scores.astype(np.float64), axis=1)[:, : len(self.radicals)] * has_ink[:, None]

    def read(self, images: NDArray[np.uint8]) -> pd.DataFrame:
        """What the judge sees in each image.

        Args:
            images: (N, H, W) uint8 grayscale, 0 ink to 255 paper.
        Returns:
            N rows: radical (best, str), probability, runner_up (str), runner_up_probability,
            none_probability, abstain (bool: the best is less probable than the threshold).
        Raises:
            ValueError: a wrong shape or type.
        """
        shares = self.probabilities(images)
        rows = np.arange(len(shares))
        order = np.argsort(-shares, axis=1, kind="stable")
        names = np.array([*self.radicals, ""])  # the last is for no runner-up, where there is one radical
        second = order[:, 1] if shares.shape[1] > 1 else np.full(len(shares), -1)
        best_shares = shares[rows, order[:, 0]]
        return pd.DataFrame(
            {
                "radical": names[order[:, 0]],
                "probability": best_shares,
                "runner_up": names[second],
                "runner_up_probability": np.where(second >= 0, shares[rows, second], 0.0),
                "none_probability": np.clip(1 - shares.sum(axis=1), 0, 1),
                "abstain": best_shares < self.threshold,
            }
        )


def _calibrate(
    scores: NDArray, classes: NDArray[np.int_], rough: NDArray[np.bool_], radicals: int
) -> tuple[float, float, dict[str, float]]:
    """Temperature, threshold and report from held-out examples; classes from `radicals` on are none of them."""
    real = classes < radicals
    target = np.minimum(classes, radicals)

    def joint(temperature: float) -> NDArray:
        shares = softmax((scores / temperature).astype(np.float64), axis=1)
        return np.column_stack([shares[:, :radicals], shares[:, radicals:].sum(axis=1)])  # (N, R + 1)

    def surprise(temperature: float) -> float:
        return float(-np.log(joint(temperature)[np.arange(len(target)), target] + 1e-12).mean())

    temperature = float(min(np.geomspace(1, 50, 60), key=surprise))
    shares = joint(temperature)[:, :radicals]
    best, right = shares.max(axis=1), shares.argmax(axis=1) == classes
    threshold = float(np.quantile(best[real & rough], 1 - PASS_SHARE))
    passes = best >= threshold
    report = {
        "held_out_glyphs": float((real & ~rough).sum()),
        "accuracy": float(right[real & ~rough].mean()),
        "accuracy_rough": float(right[real & rough].mean()),
        "pass_share": float(passes[real & ~rough].mean()),
        "pass_share_rough": float(passes[real & rough].mean()),
        "pass_share_other": float(passes[~real].mean()),
        "surprise_nats": surprise(temperature),
    }
    return temperature, threshold, report
