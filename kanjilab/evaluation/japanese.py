"""How well a text encoder reads Japanese: words found among their English, and what a denoiser makes of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from kanjilab.core.rng import counted_rng
from kanjilab.evaluation.metrics import wilson_interval
from kanjilab.models.conditioning import Conditioning
from kanjilab.models.diffusion import LatentDiffusion

CLASSES = ("all", "kanji", "katakana", "onomatopoeia")


def word_classes(words: pd.DataFrame) -> dict[str, NDArray[np.bool_]]:
    """Which words are of which of `CLASSES`, (N,) bool each.

    Args:
        words: N rows of `load_words`.
    """
    script = words["script"].to_numpy(dtype=str)
    found = np.ones(len(words), bool), script == "kanji", script == "katakana", words["mimetic"].to_numpy(dtype=bool)
    return dict(zip(CLASSES, found, strict=True))


def retrieval_ranks(vectors: NDArray, english: NDArray) -> NDArray[np.int64]:
    """(N,) how many of the English texts are nearer to each word than its own; 0 where its own is the nearest.

    Texts that are equally near, as those of synonyms, are not nearer.

    Args:
        vectors, english: (N, D) unit vectors of words and of their English.
    """
    cosine = vectors @ english.T
    return (cosine > np.diagonal(cosine)[:, None] + 1e-6).sum(axis=1)


def retrieval_table(vectors: NDArray, english: NDArray, classes: Mapping[str, NDArray[np.bool_]]) -> pd.DataFrame:
    """How often a word's own English is the nearest of all N, and among the nearest ten; how near it is.

    Args:
        vectors, english: (N, D) unit vectors of words and of their English.
        classes: name -> (N,) bool.
    Returns:
        One row a class: class, words, first and tenth (shares, with 95% Wilson intervals as first_low and so on), and
        cosine (mean, of each word to its own English).
    """
    ranks, cosine = retrieval_ranks(vectors, english), (vectors * english).sum(axis=1)
    rows = []
    for name, rows_of_class in classes.items():
        own = ranks[rows_of_class]
        row = {"class": name, "words": len(own)}
        for key, most in (("first", 1), ("tenth", 10)):
            share = wilson_interval(int((own < most).sum()), len(own))
            row |= {key: share.value, f"{key}_low": share.low, f"{key}_high": share.high}
        rows.append(row | {"cosine": cosine[rows_of_class].mean()})
    return pd.DataFrame(rows)


@torch.no_grad()
def prediction_gap(
    base: LatentDiffusion,
    latents: Tensor,
    states: Tensor,
    wanted: Tensor,
    empty: Tensor,
    levels: Sequence[float] = (0.3, 0.7),
    seed: int = 0,
) -> NDArray[np.float64]:
    """How far a denoiser's predictions are from those for the wanted states; 1 is as far as the empty caption's.

    Args:
        base: its denoiser reads the states.
        latents: (N, C, h, w) of images, in unit scale.
        states, wanted: (N, L, D) token states, of a caption each.
        empty: (1, L, D), those of the empty caption.
        levels: shares of the noise levels at which it predicts.
        seed: of the noise.
    Returns:
        (N,) ratios of root mean squared differences over the levels; a mean is over captions.
    """
    near, far = np.zeros(len(latents)), np.zeros(len(latents))
    for number, level in enumerate(levels):
        noise = torch.from_numpy(counted_rng(seed, "sampling noise", number).standard_normal(latents.shape, np.float32))
        timesteps = torch.full((len(latents),), int(level * base.timesteps))
        noisy, _ = base.add_noise(latents, noise, timesteps)
        own, target, nothing = (
            base.denoise(noisy, base.model_timestep(timesteps), Conditioning(tokens))
            for tokens in (states, wanted, empty.expand_as(wanted))
        )
        near += (own - target).square().mean(dim=(1, 2, 3)).numpy()
        far += (nothing - target).square().mean(dim=(1, 2, 3)).numpy()
    return np.sqrt(near / far)
