"""How near written glyphs are to the true ones, beside what costs nothing: a blank page, and an inked skeleton."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

RADII_PX = tuple(np.arange(0.5, 9, 0.5))
PAPER = 255


def mean_absolute_difference(drawn: NDArray[np.uint8], true: NDArray[np.uint8]) -> NDArray[np.float64]:
    """(N,) L1 distance of images (N, H, W), as a share of the way from ink to paper."""
    return np.abs(drawn.astype(float) - true).mean(axis=(1, 2)) / PAPER


def root_mean_square_difference(drawn: NDArray[np.uint8], true: NDArray[np.uint8]) -> NDArray[np.float64]:
    """(N,) RMSE of images (N, H, W), as a share of the way from ink to paper."""
    return np.sqrt(((drawn.astype(float) - true) ** 2).mean(axis=(1, 2))) / PAPER


def structural_similarity(drawn: NDArray[np.uint8], true: NDArray[np.uint8]) -> NDArray[np.float64]:
    """(N,) SSIM of images (N, H, W), with windows of 7 px.

    Source: Wang et al. 2004, "Image quality assessment", as in scikit-image.
    """
    from skimage.metrics import structural_similarity as similarity  # a third of a second to import

    return np.array([similarity(one, other, data_range=PAPER) for one, other in zip(drawn, true, strict=True)])


def inked(skeletons: NDArray[np.bool_], radius_px: float) -> NDArray[np.uint8]:
    """Skeletons as strokes of one width.

    Args:
        skeletons: (N, H, W).
        radius_px: half the width.
    Returns:
        (N, H, W) uint8, 0 ink to 255 paper, with soft edges.
    """
    distances: Any = [ndimage.distance_transform_edt(~lines) for lines in skeletons]
    away = np.stack(distances)
    return ((away - radius_px + 0.5).clip(0, 1) * PAPER).round().astype(np.uint8)


def fitted_radius(skeletons: NDArray[np.bool_], true: NDArray[np.uint8]) -> float:
    """Of `RADII_PX` the one whose even strokes are nearest to the true glyphs of a style, by L1.

    Args:
        skeletons, true: (N, H, W), of glyphs that are not scored afterwards.
    """
    errors = [mean_absolute_difference(inked(skeletons, radius), true).mean() for radius in RADII_PX]
    return float(RADII_PX[int(np.argmin(errors))])
