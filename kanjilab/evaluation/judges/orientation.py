"""Gradient orientations of a glyph, cell by cell (a small HOG), and glyphs made rougher."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from kanjilab.evaluation.judges.framing import require_glyphs

Ink = NDArray[np.floating]  # float32 (N, H, W), 0 paper to 1 ink

SIZE_PX = 64  # glyphs are scaled to this, their ink box filling the square
LEFT_PX = 44  # columns that are looked at
CELL_PX = 4
ORIENTATIONS = 8
INK_SHARE_MIN = 0.01  # less ink than this is a blank picture
SPECK_SHARE = 0.003  # ink left outside the box on each side, so that a stray dot does not move it


def normalise_glyphs(images: NDArray[np.uint8]) -> tuple[Ink, NDArray[np.bool_]]:
    """Cut each glyph out by its ink and scale it to 64 px.

    Args:
        images: (N, H, W) uint8, 0 ink to 255 paper, any size.
    Returns:
        (N, 64, 64) float32 ink in [0, 1], contrast raised, and (N,) bool: whether there was ink at all.
    Raises:
        ValueError: a wrong shape or type.
    """
    images = require_glyphs(images)
    ink = np.zeros((len(images), SIZE_PX, SIZE_PX), np.float32)
    has_ink = np.zeros(len(images), dtype=bool)
    for index, image in enumerate(images):
        dark = 255 - image
        mask = dark > 110
        has_ink[index] = mask.sum() >= INK_SHARE_MIN * mask.size
        if has_ink[index]:
            (left, right), (top, bottom) = _ink_span(mask.sum(axis=0)), _ink_span(mask.sum(axis=1))
            scaled = Image.fromarray(dark).resize(
                (SIZE_PX, SIZE_PX), Image.Resampling.BILINEAR, box=(left, top, right, bottom)
            )
            ink[index] = np.asarray(scaled, np.float32) / 255
    return np.clip((ink - 0.25) * 2, 0, 1), has_ink


def _ink_span(profile: NDArray) -> tuple[float, float]:
    """Where the ink is along one axis, specks aside; at least half the side, so that 一 stays flat."""
    share = np.cumsum(profile) / profile.sum()
    start, stop = float(np.searchsorted(share, SPECK_SHARE)), float(np.searchsorted(share, 1 - SPECK_SHARE) + 1)
    missing = max(0.0, len(profile) / 2 - (stop - start))
    return max(0.0, start - missing / 2), min(float(len(profile)), stop + missing / 2)


def blur(ink: Ink, times: int) -> Ink:
    """Binomial blur (1 2 1) / 4 along both axes, applied several times; (N, H, W) float."""
    for _ in range(times):
        padded = np.pad(ink, ((0, 0), (1, 1), (0, 0)))
        ink = (padded[:, :-2] + 2 * padded[:, 1:-1] + padded[:, 2:]) / 4
        padded = np.pad(ink, ((0, 0), (0, 0), (1, 1)))
        ink = (padded[:, :, :-2] + 2 * padded[:, :, 1:-1] + padded[:, :, 2:]) / 4
    return ink


def roughen(ink: Ink, rng: np.random.Generator) -> Ink:
    """Glyphs made rougher: shifted, scaled, wobbly, thinner or thicker.

    Args:
        ink: (N, 64, 64) float32 in [0, 1].
        rng: generator of all that varies, one setting per glyph.
    Returns:
        (N, 64, 64) float32 in [0, 1].
    """
    count = len(ink)
    axis = np.linspace(-1, 1, SIZE_PX, dtype=np.float32)
    linear = rng.normal(size=(count, 2, 2)) * [[0.04, 0.03], [0.03, 0.04]] + np.eye(2)
    shift = rng.normal(size=(count, 2)) / 32  # 1 px
    wobble = rng.normal(size=(count, 2, 5, 5)) * rng.uniform(0.75, 2.5, (count, 1, 1, 1)) / 32  # 0.75 to 2.5 px
    spread = _spread_matrix(5)
    source = np.einsum("yi,ncij,xj->ncyx", spread, wobble.astype(np.float32), spread, optimize=True)
    source += linear[:, :, 0, None, None].astype(np.float32) * axis
    source += linear[:, :, 1, None, None].astype(np.float32) * axis[:, None]
    source += shift[:, :, None, None].astype(np.float32)
    blurred = blur(_sample(ink, source), 2)
    cut = rng.uniform(0.2, 0.6, (count, 1, 1)).astype(np.float32)  # low: thick strokes
    return np.clip((blurred - cut) * 4 + 0.5, 0, 1)


def _spread_matrix(knots: int) -> NDArray[np.float32]:
    """(64, knots) weights that blend values at evenly spaced knots smoothly over the side."""
    place = np.linspace(0, knots - 1, SIZE_PX)
    first = np.minimum(place.astype(int), knots - 2)
    weight = (place - first) ** 2 * (3 - 2 * (place - first))
    spread = np.zeros((SIZE_PX, knots), np.float32)
    spread[np.arange(SIZE_PX), first] = 1 - weight
    spread[np.arange(SIZE_PX), first + 1] = weight
    return spread


def _sample(ink: Ink, source: NDArray[np.float32]) -> Ink:
    """Read ink at (N, 2, 64, 64) places (x, y) in [-1, 1], between pixels linearly; paper outside."""
    padded = np.pad(ink, ((0, 0), (1, 2), (1, 2)))
    width = padded.shape[2]
    place = np.clip((source + 1) * ((SIZE_PX - 1) / 2) + 1, 0, SIZE_PX + 1)
    corner = place.astype(np.int32)
    across, down = (place - corner)[:, 0], (place - corner)[:, 1]
    start = np.arange(len(ink), dtype=np.int32)[:, None, None] * width * width + corner[:, 1] * width + corner[:, 0]
    flat = padded.ravel()
    above = flat[start] * (1 - across) + flat[start + 1] * across
    below = flat[start + width] * (1 - across) + flat[start + width + 1] * across
    return above * (1 - down) + below * down


def orientation_features(ink: Ink) -> NDArray[np.float32]:
    """Which way the strokes' edges run, cell by cell, in the left two thirds of each glyph.

    Args:
        ink: (N, 64, 64) float32 in [0, 1].
    Returns:
        (N, 704) float32: 8 rows x 11 columns of cells x 8 orientations, of unit mean square per glyph.
    Source: after Dalal and Triggs 2005, histograms of oriented gradients.
    """
    soft = np.pad(blur(ink[:, :, : LEFT_PX + 4], 1), ((0, 0), (1, 1), (1, 0)))[:, :, : LEFT_PX + 2]
    across = soft[:, 1:-1, 2:] - soft[:, 1:-1, :-2]
    down = soft[:, 2:, 1:-1] - soft[:, :-2, 1:-1]
    strength = np.sqrt(across**2 + down**2) + 1e-6
    cosine, sine = (across**2 - down**2) / strength, 2 * across * down / strength  # of twice the angle
    angles = 2 * np.pi * np.arange(ORIENTATIONS, dtype=np.float32) / ORIENTATIONS
    parts = [np.maximum(cosine * np.cos(a) + sine * np.sin(a) - strength / 2, 0) for a in angles]
    histogram = np.concatenate([_cell_means(part) for part in parts])  # (8 N, 16, 11)
    rooted = np.sqrt(blur(histogram, 1)[:, ::2]).reshape(ORIENTATIONS, len(ink), -1)
    features = rooted.transpose(1, 2, 0).reshape(len(ink), -1)
    return features / np.sqrt((features**2).mean(axis=1, keepdims=True) + 1e-6)


def _cell_means(pixels: Ink) -> NDArray[np.float32]:
    """Means over 4 x 4 cells, rows first: several times faster than over both axes at once."""
    count, height, width = pixels.shape
    rows = pixels.reshape(count, height // CELL_PX, CELL_PX, width).mean(axis=2)
    return rows.reshape(count, height // CELL_PX, width // CELL_PX, CELL_PX).mean(axis=3)
