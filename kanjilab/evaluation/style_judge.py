"""In which style a glyph is written: a discriminant of stroke directions and widths, fitted on real glyphs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.linalg import solve_triangular

SHRINKAGE = 0.3  # of the covariance towards its mean variance
CELL_PX = 16
ORIENTATIONS = 9
WIDTH_QUANTILES = (0.1, 0.25, 0.5, 0.75, 0.9)
INK_MAX = 128
PAPER_MIN = 224  # brighter than this is paper
SCALE_MIN = 0.5  # of the mean standard deviation: what hardly varied counts for little


def style_features(images: NDArray[np.uint8]) -> NDArray[np.float64]:
    """(N, F) of images (N, H, W): histograms of oriented gradients, quantiles of stroke width in px, share of ink.

    Source: Dalal and Triggs 2005, as in scikit-image.
    """
    from skimage.feature import hog  # a third of a second to import

    clean = np.where(images > PAPER_MIN, 255, images)  # or else the grain of blank paper has directions
    directions = [hog(image, ORIENTATIONS, (CELL_PX, CELL_PX), (1, 1), block_norm="L2") for image in clean]
    return np.column_stack([np.stack(directions), np.stack([_widths(image < INK_MAX) for image in images])])


def _widths(ink: NDArray[np.bool_]) -> NDArray[np.float64]:
    if not ink.any():
        return np.zeros(len(WIDTH_QUANTILES) + 1)
    depth = np.asarray(ndimage.distance_transform_edt(ink))
    ridge = ink & (depth == ndimage.maximum_filter(depth, 3))  # the middles of strokes
    return np.append(2 * np.quantile(depth[ridge], WIDTH_QUANTILES), ink.mean() * 100)


@dataclass(frozen=True)
class StyleJudge:
    """Gaussian classes with one shrunk covariance; make one with `fit`.

    Attributes:
        styles: that it knows.
        scale: (F,) standard deviations by which features are divided.
        root: (F, F) lower Cholesky factor of the covariance of scaled features within a style.
        means: (styles, F) of whitened features.
    """

    styles: tuple[str, ...]
    scale: NDArray[np.float64]
    root: NDArray[np.float64]
    means: NDArray[np.float64]

    @classmethod
    def fit(cls, images: NDArray[np.uint8], styles: Sequence[str]) -> StyleJudge:
        """Fits on real glyphs.

        Args:
            images: (N, H, W) uint8.
            styles: of each.
        """
        names, classes = np.unique(np.asarray(styles, str), return_inverse=True)
        features = style_features(images)
        scale = features.std(axis=0)
        scale = np.maximum(scale, SCALE_MIN * scale.mean())
        means = np.stack([(features / scale)[classes == label].mean(axis=0) for label in range(len(names))])
        centred = features / scale - means[classes]
        covariance = centred.T @ centred / (len(centred) - len(names))
        mean_variance = np.trace(covariance) / len(covariance)
        shrunk = (1 - SHRINKAGE) * covariance + SHRINKAGE * mean_variance * np.eye(len(covariance))
        root = np.linalg.cholesky(shrunk)
        return cls(tuple(map(str, names)), scale, root, _whitened(means, root))

    def whiten(self, images: NDArray[np.uint8]) -> NDArray[np.float64]:
        """(N, F) features in which the variance within a style is one in every direction."""
        return _whitened(style_features(images) / self.scale, self.root)

    def read(self, images: NDArray[np.uint8]) -> list[str]:
        """The style of each image, the nearest mean."""
        found = self.whiten(images)
        distances = ((found[:, None] - self.means) ** 2).sum(axis=2)
        return [self.styles[row] for row in distances.argmin(axis=1)]

    def distance(self, drawn: NDArray[np.uint8], true: NDArray[np.uint8]) -> float:
        """Between the styles of two sets of glyphs of the same characters, in standard deviations within a style.

        The squared distance is estimated without bias: from that of the means is taken what so few characters add by
        chance, which in so many features is more than the style. An estimate below zero counts as zero.

        Args:
            drawn, true: (N, H, W) uint8, N of 2 or more.
        Raises:
            ValueError: fewer, of which nothing can be said.
        """
        if len(drawn) < 2:
            raise ValueError(f"a distance of styles needs two glyphs or more, got {len(drawn)}")
        apart = self.whiten(drawn) - self.whiten(true)
        by_chance = apart.var(axis=0, ddof=1).sum() / len(apart)
        return float(np.sqrt(max(0.0, (apart.mean(axis=0) ** 2).sum() - by_chance)))


def _whitened(features: NDArray[np.float64], root: NDArray[np.float64]) -> NDArray[np.float64]:
    return solve_triangular(root, features.T, lower=True).T
