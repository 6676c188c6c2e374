"""How near written glyphs are to the true ones, beside what costs nothing: a blank page, and an inked skeleton."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import ndimage

RADII_PX = tuple(np.arange(0.5, 9, 0.5))
PAPER = 255


def mean_absolute_difference(drawn: NDArray[np.uint8], true: NDArray[np.uint8]) -> NDArray[np.float64]:
    """(N,) L1 distance of images (N, H, W), as a share of the way from ink to paper."""
    return np.abs(drawn.astype(float) - true).mean(axis=(1, 2)) / PAPER


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


def style_scores(
    drawn: NDArray[np.uint8],
    true: NDArray[np.uint8],
    skeletons: NDArray[np.bool_],
    styles: Sequence[str],
    radii_px: Sequence[float],
) -> pd.DataFrame:
    """Mean L1 and SSIM of each style: of what was drawn, of a blank page, and of the skeleton inked evenly.

    Args:
        drawn, true: (N, H, W).
        skeletons: (N, H, W), that led the drawing.
        styles: of each glyph.
        radii_px: of each glyph's style, of `fitted_radius`.
    Returns:
        A row for each style and each of `blank page`, `inked skeleton`, `drawn`; columns l1 and ssim.
    """
    even = np.concatenate([inked(lines[None], radius) for lines, radius in zip(skeletons, radii_px, strict=True)])
    made = {"blank page": np.full_like(true, PAPER), "inked skeleton": even, "drawn": drawn}
    rows = [
        pd.DataFrame({
            "style": styles, "row": name,
            "l1": mean_absolute_difference(images, true), "ssim": structural_similarity(images, true),
        })
        for name, images in made.items()
    ]  # fmt: skip
    means: Any = pd.concat(rows).groupby(["style", "row"], sort=False)[["l1", "ssim"]].mean()
    return means
