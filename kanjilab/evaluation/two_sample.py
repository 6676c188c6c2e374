"""A two-sample test of style: how well a classifier separates images from real glyphs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import scipy.linalg
from numpy.typing import NDArray

from kanjilab.core.rng import counted_rng
from kanjilab.evaluation.judges.nearest_character import whole_glyph_features
from kanjilab.evaluation.judges.orientation import normalise_glyphs
from kanjilab.evaluation.metrics import Estimate
from kanjilab.evaluation.well_formed import MEASURES, measure

FOLDS = 5
SHRINKAGE = 0.1  # of the covariance's mean variance
RESAMPLES = 2_000
FEWEST = 10  # different images, and real glyphs, below which nothing is said


@dataclass(frozen=True)
class TwoSampleTest:
    """Real glyphs and their features, measured once; any number of images is compared with them.

    Attributes:
        glyphs: (M, H, W) uint8.
        features: (M, F), see `of`.
    """

    glyphs: NDArray[np.uint8]
    features: NDArray[np.float64]

    @classmethod
    def of(cls, glyphs: NDArray[np.uint8]) -> Self:
        """Measure gradient orientations, cell by cell, and the line: how wide, even, gray and whole it is.

        Args:
            glyphs: (M, H, W) uint8, of the training.
        """
        return cls(glyphs, _features(glyphs))

    def auc(self, images: NDArray[np.uint8], prompts: Sequence[str], seed: int = 0) -> Estimate:
        """How well a linear discriminant on these features separates images from the real glyphs.

        It is fitted on four fifths of the prompts and of the real glyphs and scores the rest, each fifth in turn.
        Repeated images count once, and a real glyph that is among the images is left out.

        Args:
            images: (N, H, W) uint8.
            prompts: N, of each image; a prompt's images are in the same fold.
            seed: of the folds and of the resampling.
        Returns:
            The area under the ROC curve: 0.5 where the two cannot be separated, 1 where they always are; with a 95%
            interval over prompts and real glyphs. NaN with fewer than `FEWEST` of either, or a single prompt.
        Source: Lopez-Paz and Oquab 2017, arXiv:1610.06545.
        """
        kept = np.sort(np.unique(images.reshape(len(images), -1), axis=0, return_index=True)[1])
        shown = {image.tobytes() for image in images[kept]}
        others = self.features[[glyph.tobytes() not in shown for glyph in self.glyphs]]
        names, group = np.unique(np.asarray(prompts, dtype=str)[kept], return_inverse=True)
        if min(len(kept), len(others)) < FEWEST or len(names) < 2:
            return Estimate(np.nan, np.nan, np.nan)
        rng = counted_rng(seed, "resampling", 3)
        folds = rng.permutation(len(names))[group] % FOLDS, rng.permutation(len(others)) % FOLDS
        return _area(*_scores(_features(images[kept]), others, folds), group, rng)


def _features(images: NDArray[np.uint8]) -> NDArray[np.float64]:
    """(N, F): many directions of strokes, and the few `MEASURES` of line last."""
    directions = whole_glyph_features(normalise_glyphs(images)[0])
    lines = np.nan_to_num(measure(images).to_numpy(dtype=float))
    return np.concatenate([directions.astype(float), lines], axis=1)


def _scores(
    images: NDArray[np.float64], real: NDArray[np.float64], folds: tuple[NDArray, NDArray]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """How little each image, and each real glyph, looks like a real one to a discriminant that has not seen it."""
    found = np.empty(len(images)), np.empty(len(real))
    kinds = [real.shape[1] - len(MEASURES), len(MEASURES)]
    share = np.sqrt(np.repeat(kinds, kinds))  # so that the few measures of line count as much as the many directions
    for fold in range(FOLDS):
        seen = images[folds[0] != fold], real[folds[1] != fold]
        center, width = seen[1].mean(axis=0), (np.concatenate(seen).std(axis=0) + 1e-9) * share
        first, second = ((part - center) / width for part in seen)
        within = (np.cov(first, rowvar=False) + np.cov(second, rowvar=False)) / 2
        within[np.diag_indices_from(within)] += SHRINKAGE * np.trace(within) / len(within)
        axis = scipy.linalg.solve(within, first.mean(axis=0), assume_a="pos")
        spread = (second @ axis).std() + 1e-12  # so that the folds are on one scale
        for scores, rows, part in zip(found, folds, (images, real), strict=True):
            scores[rows == fold] = (part[rows == fold] - center) / width @ axis / spread
    return found


def _area(
    images: NDArray[np.float64], real: NDArray[np.float64], group: NDArray[np.intp], rng: np.random.Generator
) -> Estimate:
    """The share of pairs in which the image has the higher score, prompts counting equally."""
    wins = (images[:, None] > real) + 0.5 * (images[:, None] == real)  # (N, M)
    member = np.eye(group.max() + 1)[group]
    by_prompt = member.T @ wins / member.sum(axis=0)[:, None]  # (P, M)
    drawn = [rng.multinomial(n, np.full(n, 1 / n), size=RESAMPLES) / n for n in by_prompt.shape]
    resampled = ((drawn[0] @ by_prompt) * drawn[1]).sum(axis=1)
    low, high = np.quantile(resampled, [0.025, 0.975])
    return Estimate(float(by_prompt.mean()), float(low), float(high))
