"""Scores with intervals: rates of radicals, paired differences, diversity and copying.

A judge reads the images into a table, and this module counts its readings. Every interval is an ``Estimate``; every
resampling takes its generator.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from kanjilab.data.components import normal_form

COPY_RATIO = 1 / 3  # d1/d2 below it counts as a copy
COMPARE_PX = 32  # glyphs are compared at this size: a one-pixel shift at 128 px hardly moves them


class Estimate(NamedTuple):
    """A value and the ends of its interval, all in the value's unit."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


def wilson_interval(hits: int, trials: int, confidence: float = 0.95) -> Estimate:
    """Share of hits with Wilson's score interval; sensible at 0, at 1 and for few trials.

    Args:
        hits: number of successes, 0..trials.
        trials: number of independent trials, > 0.
        confidence: coverage in (0, 1).
    Returns:
        Estimate in [0, 1].
    Raises:
        ValueError: trials < 1, hits outside 0..trials, or confidence outside (0, 1).
    Source: Wilson 1927, Journal of the American Statistical Association 22:209.
    """
    if trials < 1 or not 0 <= hits <= trials:
        raise ValueError(f"expected 0 <= hits <= trials and trials >= 1, got {hits} hits of {trials}")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must lie in (0, 1), got {confidence}")
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    rate = hits / trials
    shrink = 1 + z**2 / trials
    centre = (rate + z**2 / (2 * trials)) / shrink
    half = z / shrink * (rate * (1 - rate) / trials + z**2 / (4 * trials**2)) ** 0.5
    return Estimate(rate, max(0.0, min(centre - half, rate)), min(1.0, max(centre + half, rate)))


def expected_radical_hits(readings: pd.DataFrame, expected: Sequence[str | Collection[str]]) -> NDArray[np.bool_]:
    """Which images show an expected radical: the judge reads it and does not abstain.

    Args:
        readings: one row per image with the judge's columns ``radical`` (str) and ``abstain`` (bool).
        expected: one radical per image, or a set of radicals of which any will do
            (characters that share a gloss may sit under several).
    Returns:
        (N,) bool.
    Raises:
        ValueError: a column is missing, or the lengths differ.
    """
    _require_readings(readings, expected)
    sets = [[wanted] if isinstance(wanted, str) else wanted for wanted in expected]
    pairs = zip(readings["radical"], readings["abstain"], sets, strict=True)
    return np.array([bool(not abstain and radical in wanted) for radical, abstain, wanted in pairs])


def expected_part_hits(readings: pd.DataFrame, expected: Sequence[Collection[str]]) -> NDArray[np.bool_]:
    """Which images show an expected radical among their parts, wherever in the glyph.

    Args:
        readings: one row per image with a column ``parts`` (tuples of str), as judges A and B read.
        expected: one set of radicals per image, of which any will do; one that is listed under another form among
            the parts (月 for 肉) counts as that.
    Returns:
        (N,) bool.
    Raises:
        ValueError: the lengths differ.
    """
    if len(readings) != len(expected):
        raise ValueError(f"expected one set of radicals per reading: {len(readings)} readings, {len(expected)} sets")
    return np.array(
        [bool(shown & _parts(wanted)) for shown, wanted in zip(shown_radicals(readings), expected, strict=True)]
    )


def expected_radical_rate(
    readings: pd.DataFrame, expected: Sequence[str | Collection[str]], confidence: float = 0.95
) -> Estimate:
    """Share of images that show an expected radical, with Wilson's interval.

    A blind judge that never abstains hits one of R radicals at rate 1/R; every abstention lowers that.
    The interval treats images as independent: where prompts repeat over seeds, prefer
    ``two_way_bootstrap`` over ``expected_radical_hits`` reshaped to (seeds, prompts).

    Args:
        readings: as in ``expected_radical_hits``, at least one row.
        expected: as in ``expected_radical_hits``.
        confidence: coverage in (0, 1).
    Returns:
        Estimate in [0, 1].
    Raises:
        ValueError: as in ``expected_radical_hits``, or no rows.
    """
    hits = expected_radical_hits(readings, expected)
    return wilson_interval(int(hits.sum()), len(hits), confidence)


def shown_radicals(readings: pd.DataFrame) -> list[frozenset[str]]:
    """What a judge read in each image.

    Args:
        readings: with ``parts``, as judges A and B read, or the first judge's ``radical`` and ``abstain``.
    Returns:
        N sets of normal forms: the parts; of the first judge its one radical, or nothing where it abstains.
    """
    if "parts" in readings:
        return [_parts(parts) for parts in readings["parts"]]
    pairs = zip(readings["radical"], readings["abstain"], strict=True)
    return [_parts(() if abstain else (radical,)) for radical, abstain in pairs]


def answered_prompts(shown: Sequence[frozenset[str]], expected: Sequence[str | Collection[str]]) -> NDArray[np.float64]:
    """For each image the share of these prompts that it would answer: its chance with prompts in random order.

    Args:
        shown: as ``shown_radicals`` returns it.
        expected: one radical per prompt, or a set of which any will do; not empty.
    Returns:
        (N,) float in [0, 1].
    """
    asked = Counter(_parts([wanted] if isinstance(wanted, str) else wanted) for wanted in expected)
    chances = {parts: sum(n for wanted, n in asked.items() if parts & wanted) / len(expected) for parts in set(shown)}
    return np.array([chances[parts] for parts in shown], dtype=np.float64)


def shuffled_prompt_rate(readings: pd.DataFrame, expected: Sequence[str | Collection[str]]) -> float:
    """Rate that these images would reach with the prompts in random order.

    It is exact: the mean over every pairing of an image with a prompt. A generator that always draws one radical
    gets the same here as in ``expected_radical_rate``.

    Args:
        readings, expected: as in ``expected_radical_hits``.
    Returns:
        float in [0, 1].
    Raises:
        ValueError: as in ``expected_radical_hits``, or no rows.
    """
    _require_readings(readings, expected)
    if len(readings) == 0:
        raise ValueError("expected at least one reading, got none")
    return float(answered_prompts(shown_radicals(readings), expected).mean())


def _require_readings(readings: pd.DataFrame, expected: Sequence[str | Collection[str]]) -> None:
    if missing := {"radical", "abstain"} - set(readings.columns):
        raise ValueError(f"expected the columns radical and abstain, missing {sorted(missing)}")
    if len(readings) != len(expected):
        raise ValueError(f"expected one radical per reading: {len(readings)} readings, {len(expected)} expected")


def _parts(names: Iterable[str]) -> frozenset[str]:
    return frozenset(normal_form(name) for name in names)


def two_way_bootstrap(
    outcomes: NDArray, rng: np.random.Generator, resamples: int = 10_000, confidence: float = 0.95
) -> Estimate:
    """Mean of a seed-by-prompt table; seeds and prompts are both resampled.

    With a single seed (or prompt) that axis adds no spread: the interval is then for this seed only.

    Args:
        outcomes: (S, P) bool or float, S seeds by P prompts.
        rng: generator of the resampling.
        resamples: number of bootstrap tables, >= 1.
        confidence: coverage in (0, 1) of the percentile interval.
    Returns:
        Estimate in the outcomes' unit.
    Raises:
        ValueError: not two axes, an empty axis, a value that is not finite, or resamples < 1.
    Source: Owen 2007, "The pigeonhole bootstrap", doi:10.1214/07-AOAS122.
    """
    table = _require_table(outcomes)
    if resamples < 1 or not 0 < confidence < 1:
        raise ValueError(f"expected resamples >= 1 and confidence in (0, 1), got {resamples} and {confidence}")
    seeds, prompts = table.shape
    seed_counts = rng.multinomial(seeds, np.full(seeds, 1 / seeds), size=resamples)  # (resamples, S)
    prompt_counts = rng.multinomial(prompts, np.full(prompts, 1 / prompts), size=resamples)  # (resamples, P)
    means = ((seed_counts @ table) * prompt_counts).sum(axis=1) / table.size
    low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Estimate(float(table.mean()), float(low), float(high))


def paired_difference(
    first: NDArray, second: NDArray, rng: np.random.Generator, resamples: int = 10_000, confidence: float = 0.95
) -> Estimate:
    """Mean of first - second on the same seeds and prompts, each pair kept together.

    Args:
        first: (S, P) bool or float, one run's outcomes.
        second: (S, P) the other's, cell for cell on the same seed and prompt.
        rng, resamples, confidence: as in ``two_way_bootstrap``.
    Returns:
        Estimate in the outcomes' unit; the two runs differ where the interval is clear of 0.
    Raises:
        ValueError: the shapes differ, or as in ``two_way_bootstrap``.
    """
    first, second = _require_table(first), _require_table(second)
    if first.shape != second.shape:
        raise ValueError(f"expected two tables of one shape, got {first.shape} and {second.shape}")
    return two_way_bootstrap(first - second, rng, resamples, confidence)


def _require_table(outcomes: NDArray) -> NDArray[np.float64]:
    table = np.asarray(outcomes, dtype=np.float64)
    if table.ndim != 2 or table.size == 0 or not np.isfinite(table).all():
        raise ValueError(f"expected a finite, non-empty (seeds, prompts) table, got shape {table.shape}")
    return table


def mean_pairwise_distance(images: NDArray[np.uint8]) -> float:
    """How much the outputs of one prompt differ from each other.

    Args:
        images: (N, H, W) uint8 grayscale, N >= 2; H = W a multiple of 32.
    Returns:
        Mean over pairs of the root-mean-square ink difference at 32 px, in [0, 1]; 0 when all are equal.
    Raises:
        ValueError: fewer than two images, or a wrong shape or type.
    """
    ink = _compare_ink(images)
    if len(ink) < 2:
        raise ValueError(f"expected at least two images to compare, got {len(ink)}")
    return float(_distances(ink, ink)[np.triu_indices(len(ink), k=1)].mean())


def nearest_training_images(images: NDArray[np.uint8], training: NDArray[np.uint8]) -> pd.DataFrame:
    """Nearest training image of each image, and whether it is suspiciously closer than the next.

    Training images with the same bits at the compared size count once: otherwise a copy of a doubled image
    would have d1 = d2 and look original. Near-duplicates (未/末) can still hide a copy: look at d1 too.

    Args:
        images: (N, H, W) uint8 grayscale.
        training: (M, H', W') uint8 grayscale, at least two of them different.
    Returns:
        N rows: nearest (int, index into training), d1, d2 (root-mean-square ink difference in [0, 1] to the
        nearest and second nearest), ratio (d1 / d2 in [0, 1]) and copy (bool, ratio < 1/3).
    Raises:
        ValueError: a wrong shape or type, or fewer than two different training images.
    Source: the d1/d2 < 1/3 criterion of Yoon et al. 2023 and Gu et al. 2023, arXiv:2310.02664.
    """
    pool = _compare_ink(training)
    first: dict[bytes, int] = {}
    for index, ink in enumerate(pool):
        first.setdefault(ink.tobytes(), index)
    if len(first) < 2:
        raise ValueError(f"expected at least two different training images, got {len(first)}")
    kept = np.array(list(first.values()))
    distances = _distances(_compare_ink(images), pool[kept])  # (N, distinct)
    order = np.argpartition(distances, 1, axis=1)[:, :2]
    pair = np.take_along_axis(distances, order, axis=1)  # nearest, second nearest
    ratio = pair[:, 0] / pair[:, 1]
    return pd.DataFrame(
        {"nearest": kept[order[:, 0]], "d1": pair[:, 0], "d2": pair[:, 1], "ratio": ratio, "copy": ratio < COPY_RATIO}
    )


def _compare_ink(images: NDArray[np.uint8]) -> NDArray[np.float64]:
    """(N, H, W) uint8, black on white -> (N, 32 * 32) ink in [0, 1] by area average."""
    images = np.asarray(images)
    if images.ndim != 3 or images.dtype != np.uint8 or any(side % COMPARE_PX or not side for side in images.shape[1:]):
        raise ValueError(
            f"expected uint8 (N, H, W) with sides a multiple of {COMPARE_PX}, got {images.dtype} {images.shape}"
        )
    count, height, width = images.shape
    blocks = images.reshape(count, COMPARE_PX, height // COMPARE_PX, COMPARE_PX, width // COMPARE_PX)
    return 1 - blocks.mean(axis=(2, 4)).reshape(count, -1) / 255


def _distances(first: NDArray[np.float64], second: NDArray[np.float64]) -> NDArray[np.float64]:
    """Root-mean-square difference of every row of first (N, P) to every row of second (M, P): (N, M)."""
    squares = (first**2).sum(axis=1)[:, None] + (second**2).sum(axis=1) - 2 * first @ second.T
    return np.sqrt(np.maximum(squares, 0) / first.shape[1])
