"""Paired statistics over blocks: is one variant better than another, worse, equivalent, or is it undecided?

A block is one training seed: its initial weights, data order and noise. Every variant is trained in every block, and
variants are compared within blocks.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from itertools import product
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from kanjilab.core.rng import counted_rng
from kanjilab.evaluation.metrics import Estimate, paired_difference

EXACT_BLOCKS = 12  # up to so many, all 2^n patterns of signs are counted
SIGNIFICANCE = 0.05
MARGIN = 0.03  # a share that differs by less counts as the same: 3 points
FEWEST_BLOCKS = 5  # below it an interval over blocks says too little to call two variants the same


def sign_flip_test(differences: NDArray, rng: np.random.Generator | None = None, resamples: int = 100_000) -> float:
    """Two-sided p of "the mean difference is 0", by flipping the sign of whole blocks.

    Exact for at most 12 blocks. The least that n blocks can reach is 2 / 2^n: .0625 for 5, .0078 for 8.

    Args:
        differences: (S,) float, one mean difference per block.
        rng: of the random flips, needed beyond 12 blocks.
        resamples: number of these.
    Returns:
        p in (0, 1].
    Raises:
        ValueError: not one axis, no block, a value that is not finite, or more than 12 blocks and no generator.
    Source: Fisher 1935, The Design of Experiments, section 21.
    """
    values = _require_blocks(differences)
    sums = np.abs(_sign_patterns(len(values), rng, resamples) @ values)
    # Sums that are equal on paper differ in the last bits.
    return float((sums >= abs(values.sum()) - 1e-9 * np.abs(values).sum()).mean())


def _sign_patterns(blocks: int, rng: np.random.Generator | None, resamples: int) -> NDArray[np.float64]:
    """(patterns, blocks) of 1 and -1: all of them, or so many at random, the first of them without a flip."""
    if blocks <= EXACT_BLOCKS:
        return np.array(list(product((1.0, -1.0), repeat=blocks)))
    if rng is None:
        raise ValueError(f"expected a generator for the random flips of {blocks} > {EXACT_BLOCKS} blocks")
    signs = rng.choice((1.0, -1.0), size=(resamples, blocks))
    signs[0] = 1.0  # what was seen is one of the possibilities
    return signs


def holm(p_values: Sequence[float]) -> list[float]:
    """p values corrected for asking several questions; each may be read by itself at the usual level.

    Args:
        p_values: one per question, in [0, 1].
    Returns:
        Corrected ones in the same order, in [0, 1].
    Raises:
        ValueError: a value outside [0, 1].
    Source: Holm 1979, Scandinavian Journal of Statistics 6:65.
    """
    if not all(0 <= p <= 1 for p in p_values):
        raise ValueError(f"p values must lie in [0, 1], got {list(p_values)}")
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    corrected, highest = [0.0] * len(p_values), 0.0
    for rank, i in enumerate(order):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[i]))
        corrected[i] = highest
    return corrected


def joint_sign_flips(
    differences: NDArray, rng: np.random.Generator | None = None, resamples: int = 100_000
) -> list[float]:
    """p values of several contrasts in the same blocks, corrected for all of them by flipping all at once.

    Never more than Holm's, and less where contrasts agree: eleven that are each one-sided in all of eight blocks keep
    2 / 256, where Holm says 22 / 256 and so could find nothing.

    Args:
        differences: (Q, S) float, a row of block differences per contrast.
        rng, resamples: as in `sign_flip_test`.
    Returns:
        Q corrected p values in (0, 1], in the order of the rows.
    Raises:
        ValueError: as in `sign_flip_test`.
    Source: Westfall and Young 1993, Resampling-Based Multiple Testing, algorithm 2.8 (step-down min-P).
    """
    if len(differences) == 0:
        return []
    values = np.stack([_require_blocks(row) for row in differences])  # (Q, S)
    sizes = np.abs(values).sum(axis=1)
    values = values / np.where(sizes > 0, sizes, 1)[:, None]
    sums = np.abs(_sign_patterns(values.shape[1], rng, resamples) @ values.T).round(9)  # (patterns, Q)
    ranked = np.sort(sums, axis=0)
    below = np.stack([np.searchsorted(ranked[:, q], sums[:, q]) for q in range(len(values))], axis=1)
    p_values = 1 - below / len(sums)  # (patterns, Q), had a pattern been the truth; the first is
    order = np.argsort(p_values[0], kind="stable")
    corrected, highest = [0.0] * len(values), 0.0
    for rank, i in enumerate(order):
        least = p_values[:, order[rank:]].min(axis=1)
        highest = max(highest, float((least <= p_values[0, i] + 1e-12).mean()))
        corrected[i] = highest
    return corrected


def effect_size(differences: NDArray) -> float:
    """Cohen's d of paired blocks: the mean difference in units of its spread from block to block.

    Args:
        differences: (S,) float, S >= 2.
    Returns:
        Mean over standard deviation (S - 1); 0 where all are 0, infinite where all are equal.
    Raises:
        ValueError: fewer than two blocks, or as in `sign_flip_test`.
    Source: Cohen 1988, Statistical Power Analysis, section 2.3.5 (d_z).
    """
    values = _require_blocks(differences)
    if len(values) < 2:
        raise ValueError("expected at least two blocks, got one: it has no spread")
    mean, spread = float(values.mean()), float(values.std(ddof=1))
    if spread <= 1e-12 * abs(mean):
        return math.copysign(math.inf, mean) if mean else 0.0
    return mean / spread


def superiority(differences: NDArray) -> float:
    """Share of the blocks in which the first is better; a tie counts half.

    Args:
        differences: (S,) float, first minus second in each block.
    """
    values = _require_blocks(differences)
    return float(((values > 0) + 0.5 * (values == 0)).mean())


def is_equivalent(difference: Estimate, margin: float = MARGIN) -> bool:
    """Whether the whole interval is inside ± margin, which "p > .05" does not show.

    Args:
        difference: with its 95% interval.
        margin: > 0, in the difference's unit.
    Source: Schuirmann 1987, Journal of Pharmacokinetics and Biopharmaceutics 15:657.
    """
    return -margin < difference.low and difference.high < margin


def _require_blocks(differences: NDArray) -> NDArray[np.float64]:
    values = np.asarray(differences, dtype=np.float64)
    if values.ndim != 1 or values.size == 0 or not np.isfinite(values).all():
        raise ValueError(f"expected one finite difference per block, got shape {values.shape}")
    return values


@dataclass(frozen=True)
class Contrast:
    """One variant against another, block by block.

    Attributes:
        first, second: their names.
        difference: first - second, as a share of images, with its 95% interval over blocks and prompts.
        blocks: the mean difference in each block.
        p: of the sign-flip test, two-sided.
        p_corrected: after the correction for all that was asked together; p where nothing else was.
        effect: Cohen's d of paired blocks; NaN for a single block.
        superiority: share of blocks in which the first is better.
        rates: mean of each, as a share.
        margin: less than this counts as no difference.
    """

    first: str
    second: str
    difference: Estimate
    blocks: tuple[float, ...]
    p: float
    p_corrected: float
    effect: float
    superiority: float
    rates: tuple[float, float]
    margin: float = MARGIN

    @property
    def equivalent(self) -> bool:
        """Whether the interval is wholly inside the margin, and informative.

        It is not informative with few blocks, nor where both rates are so near 0 that they could hardly differ by more.
        """
        informative = len(self.blocks) >= FEWEST_BLOCKS and max(self.rates) > 2 * self.margin
        return informative and is_equivalent(self.difference, self.margin)

    @property
    def verdict(self) -> str:
        """On the claim that the first is better: held, refuted (it is worse), equivalent, or undecided.

        Held or refuted needs both: the test is for these prompts, only the interval for others like them.
        """
        clear_of_zero = not self.difference.low <= 0 <= self.difference.high
        if self.p_corrected < SIGNIFICANCE and clear_of_zero:
            return "held" if self.difference.value > 0 else "refuted"
        return "equivalent" if self.equivalent else "undecided"

    def to_json(self) -> dict[str, Any]:
        """A plain dictionary, ready for JSON; an effect that is not finite becomes None."""
        values = asdict(self) | {"difference": list(self.difference), "verdict": self.verdict}
        return values | {"effect": self.effect if math.isfinite(self.effect) else None, "equivalent": self.equivalent}

    @classmethod
    def from_json(cls, contents: Mapping[str, Any]) -> Self:
        """The inverse of `to_json`."""
        values = {field.name: contents[field.name] for field in fields(cls)}
        values |= {"difference": Estimate(*values["difference"]), "rates": tuple(values["rates"])}
        effect = math.nan if values["effect"] is None else values["effect"]
        return cls(**values | {"blocks": tuple(values["blocks"]), "effect": effect})


def compare(first: NDArray, second: NDArray, names: tuple[str, str], seed: int = 0, margin: float = MARGIN) -> Contrast:
    """Compares two variants that were trained in the same blocks and drew the same prompts.

    Args:
        first, second: (S, P) bool or float, blocks by prompts; where a prompt was drawn several times, the mean.
        names: of the two.
        seed: of the resampling.
        margin: of equivalence, as a share.
    Raises:
        ValueError: the shapes differ, or a table is empty or not finite.
    """
    difference = paired_difference(first, second, counted_rng(seed, "resampling"))
    means = [np.asarray(table, dtype=float).mean(axis=1) for table in (first, second)]  # (S,) each
    blocks = means[0] - means[1]
    p = sign_flip_test(blocks, counted_rng(seed, "resampling", 1))
    effect = effect_size(blocks) if len(blocks) > 1 else math.nan
    rates = (float(means[0].mean()), float(means[1].mean()))
    return Contrast(*names, difference, tuple(blocks.tolist()), p, p, effect, superiority(blocks), rates, margin)


def sentence(contrast: Contrast, place: str = "in pocket") -> str:
    """The finding in words, all of them from the numbers.

    Such as "in pocket, rank 64 against rank 4: +3.1 points [0.4, 5.9], p = .02, 8 blocks: held".
    """
    points = ", ".join(_signless_zero(f"{100 * value:.1f}") for value in contrast.difference[1:])
    value = _signless_zero(f"{100 * contrast.difference.value:+.1f}")
    count = f"{len(contrast.blocks)} block" + ("s" if len(contrast.blocks) > 1 else "")
    verdict = contrast.verdict
    if contrast.equivalent and verdict != "equivalent":
        verdict += f", by less than {100 * contrast.margin:g} points"
    elif verdict == "equivalent":
        verdict += f" within {100 * contrast.margin:g} points"
    numbers = f"{value} points [{points}], {_p_text(contrast.p_corrected)}, {count}"
    return f"{place}, {contrast.first} against {contrast.second}: {numbers}: {verdict}"


def _signless_zero(text: str) -> str:
    return "0.0" if text in ("-0.0", "+0.0") else text


def _p_text(p: float) -> str:
    """Three digits that count, without the zero before the point."""
    return "p < .001" if p < 0.001 else f"p = {p:.3g}".replace("= 0.", "= .")
