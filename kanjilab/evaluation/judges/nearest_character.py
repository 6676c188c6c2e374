"""A third check, without a network: which real character does a whole glyph look most like?

Gradient orientations as the first judge counts them, but over the whole glyph, compared with every character
that the default font draws. As there, one covariance says what roughening changes within a character, and what
separates characters is weighed against it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import scipy.linalg
from numpy.typing import NDArray

from kanjilab.core.rng import counted_rng
from kanjilab.core.storage import sha256_file
from kanjilab.data.dictionary import load_characters
from kanjilab.data.rendering import default_font
from kanjilab.evaluation.judges.fit_cache import cached_fit
from kanjilab.evaluation.judges.framing import draw_all
from kanjilab.evaluation.judges.orientation import Ink, normalise_glyphs, orientation_features, roughen

FORMAT = 1  # of a stored fit: one more whenever a change of code changes what a fit gives
PART = 256  # glyphs at a time
DIRECTIONS = 128  # in which characters differ most, against what varies within one
SHRINKAGE = 1.0  # of the covariance's mean variance: as much again
SAME_SHARE = 0.95  # of roughened glyphs that must count as the character they are
ROUGH_SHARE = 0.5  # roughened glyphs per character: three quarters for the covariance, the rest for that share


def whole_glyph_features(ink: Ink) -> NDArray[np.float32]:
    """Which way the strokes' edges run, cell by cell, all over each glyph.

    The first judge's features cover the left two thirds; those of the mirrored glyph cover the right two.

    Args:
        ink: (N, 64, 64) float32 in [0, 1], as from `normalise_glyphs`.
    Returns:
        (N, 1408) float32.
    """
    parts = [ink[start : start + PART] for start in range(0, len(ink), PART)]
    sides = [[orientation_features(part), orientation_features(part[:, :, ::-1])] for part in parts]
    return np.concatenate([np.concatenate(pair, axis=1) for pair in sides] or [np.zeros((0, 1408), np.float32)])


def _discriminants(features: NDArray[np.float32], changes: NDArray[np.float32], count: int) -> NDArray[np.float32]:
    """(F, count) axes along which the features of characters vary most, for what the changes vary."""
    within = changes.T @ changes / len(changes)
    within[np.diag_indices_from(within)] += SHRINKAGE * np.trace(within) / len(within) + 1e-9
    between = np.cov(features, rowvar=False)
    last = len(within) - 1
    _, axes = scipy.linalg.eigh(between, within, subset_by_index=(last + 1 - count, last))
    return axes[:, ::-1].astype(np.float32)


def _unit(vectors: NDArray) -> NDArray[np.float32]:
    return vectors.astype(np.float32) / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-6)


@dataclass(frozen=True)
class Neighbours:
    """Every real character's whole-glyph features; make one with `fit` or `load_or_fit`.

    Attributes:
        characters: those compared with, in the order of `directions`.
        centre: (F,) float32, the mean of their features: without it all dense pictures are alike, noise too.
        axes: (F, D) float32, along which characters differ.
        directions: (M, D) float32 unit vectors from the centre to each character, along the axes.
        same_distance: a glyph no farther than this from a character is taken for that character.
    """

    characters: tuple[str, ...]
    centre: NDArray[np.float32]
    axes: NDArray[np.float32]
    directions: NDArray[np.float32]
    same_distance: float

    @classmethod
    def fit(cls, characters: Sequence[str], font: Path, seed: int = 0) -> Neighbours:
        """Draw the characters, and roughen some to see how far a character may be from itself.

        Args:
            characters: single characters; those that the font does not draw are left out.
            font: the font file to draw with.
            seed: of what is roughened, and how.
        Raises:
            ValueError: the font draws fewer than two of the characters.
        """
        drawn = [(characters[index], image) for index, image in draw_all(characters, font)]
        if len(drawn) < 2:
            raise ValueError(f"expected two or more characters that {Path(font).name} draws, got {len(drawn)}")
        ink = normalise_glyphs(np.stack([image for _, image in drawn]))[0]
        features, rng = whole_glyph_features(ink), counted_rng(seed, "judge training")
        chosen = rng.integers(len(ink), size=max(40, round(ROUGH_SHARE * len(ink))))
        parts = [roughen(ink[chosen[start : start + PART]], rng) for start in range(0, len(chosen), PART)]
        rough = np.concatenate([whole_glyph_features(part) for part in parts])
        known = np.arange(len(chosen)) % 4 > 0
        centre = features.mean(axis=0)
        axes = _discriminants(features, (rough - features[chosen])[known], min(DIRECTIONS, len(drawn) - 1))
        directions = _unit((features - centre) @ axes)
        distances = 1 - (_unit((rough[~known] - centre) @ axes) * directions[chosen[~known]]).sum(axis=1)
        same = float(np.quantile(distances, SAME_SHARE))
        return cls(tuple(character for character, _ in drawn), centre, axes, directions, same)

    @classmethod
    def load_or_fit(
        cls, cache: Path, characters: Sequence[str] | None = None, font: Path | None = None, seed: int = 0
    ) -> Neighbours:
        """The neighbours from the cache, fitted first where the cache has none for these very inputs.

        Args:
            cache: folder for the file, made if need be; a file there that cannot be read is replaced.
            characters: as in `fit`; None for all with an English meaning.
            font: as in `fit`; None for `default_font()`.
            seed: as in `fit`.
        Raises:
            ValueError: as in `fit`.
        """
        font = default_font() if font is None else Path(font)
        if characters is None:
            table = load_characters()
            characters = [str(c) for c, raw in zip(table.index, table["meanings_raw"], strict=True) if raw]
        inputs = {"format": FORMAT, "characters": list(characters), "font": sha256_file(font), "seed": seed}
        return cached_fit(cache, "neighbours", inputs, cls, partial(cls.fit, characters, font, seed))

    def nearest(self, images: NDArray[np.uint8], k: int = 1) -> tuple[NDArray[np.intp], NDArray[np.float32]]:
        """The nearest characters of each image.

        Args:
            images: (N, H, W) uint8 grayscale, 0 ink to 255 paper.
            k: how many, at most the number of characters.
        Returns:
            (N, k) indices into `characters`, nearest first, and (N, k) float32 distances: 1 - cosine.
        Raises:
            ValueError: a wrong shape or type, or a k outside its range.
        """
        if not 1 <= k <= len(self.characters):
            raise ValueError(f"k must lie in 1 to {len(self.characters)}, got {k}")
        directions = _unit((whole_glyph_features(normalise_glyphs(images)[0]) - self.centre) @ self.axes)
        distances = 1 - directions @ self.directions.T  # (N, M)
        order = np.argpartition(distances, k - 1, axis=1)[:, :k]
        order = np.take_along_axis(order, np.take_along_axis(distances, order, axis=1).argsort(axis=1), axis=1)
        return order, np.take_along_axis(distances, order, axis=1)

    def read(self, images: NDArray[np.uint8]) -> pd.DataFrame:
        """What each image already is, if anything.

        Args:
            images: (N, H, W) uint8 grayscale, 0 ink to 255 paper.
        Returns:
            N rows: nearest (str), codepoint (such as "U+4F11"), distance (1 - cosine), exists (bool: so near
            that it is that character).
        Raises:
            ValueError: a wrong shape or type.
        """
        order, distances = self.nearest(images)
        names = [self.characters[index] for index in order[:, 0]]
        return pd.DataFrame(
            {
                "nearest": names,
                "codepoint": [f"U+{ord(name):04X}" for name in names],
                "distance": distances[:, 0],
                "exists": distances[:, 0] <= self.same_distance,
            }
        )
