"""Scores of a prompt set by the five criteria, with intervals over its images and prompts."""

from __future__ import annotations

from math import comb
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from kanjilab.core.rng import counted_rng
from kanjilab.evaluation.criteria import ALL_FIVE, CRITERIA, NOVELTY
from kanjilab.evaluation.metrics import Estimate, two_way_bootstrap

PERMUTATIONS = 200
RESAMPLES = 2_000


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
        combinations of parts and layout among a prompt's passing images), meaning_balanced (mean over the prompts'
        likeliest parts, so that a part asked for often counts once), meaning_permuted (with the prompts in random
        order), information_bits (between prompt and parts, less what permuted prompts give) and its p-value,
        complexity, neighbour_exists (the third check on novelty), and the share of each class of novelty. Columns
        value, low, high; the ends are NaN where there is no interval.
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
    rows: Any = table[["layout", "parts"]].itertuples(index=False)
    kinds = pd.Series([f"{layout} {sorted(parts.split())}" for layout, parts in rows])
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
    wanted = [set(text.split()) for text in table.groupby("prompt")["expected"].first()]
    shown = table["parts"].value_counts()
    hits = sum(
        int(count) * sum(bool(own & set(str(parts).split())) for own in wanted) for parts, count in shown.items()
    )
    return hits / (len(table) * len(wanted))


def prompt_information(table: pd.DataFrame, rng: np.random.Generator) -> tuple[float, float]:
    """Mutual information between the prompt and the parts shown, against permuted prompts.

    Args:
        table: of `judge_images`.
        rng: of the permutations.
    Returns:
        Bits between the prompts' likeliest part and the parts that the images show, less the mean under
        permutation (few images make any table look informative); and the share of permutations, the given order
        counted among them, that reach as much.
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
