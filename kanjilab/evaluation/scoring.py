"""Does a run draw what its prompts ask for? The first judge's reading of samples, with intervals."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from kanjilab.core.images import grayscale
from kanjilab.core.rng import counted_rng
from kanjilab.data.image_folder import Dataset
from kanjilab.evaluation.judges.radical_judge import RadicalJudge
from kanjilab.evaluation.metrics import Estimate, expected_radical_hits, two_way_bootstrap
from kanjilab.models.loading import LatentDiffusion
from kanjilab.models.sampling import Sampling, sample
from kanjilab.models.trainable import Trainable


@dataclass(frozen=True)
class PromptSet:
    """Captions with the radicals that an answer should show.

    Attributes:
        name: as it stands in tables.
        captions: P strings.
        expected: for each, the radicals of the characters that share the caption.
    """

    name: str
    captions: tuple[str, ...]
    expected: tuple[frozenset[str], ...]


def caption_prompts(dataset: Dataset, name: str, per_radical: int, seed: int = 0) -> PromptSet:
    """Captions of one split, the same number for each radical as far as they go.

    Args:
        dataset: one split of a set whose table has `radical_character`.
        name: of the prompt set.
        per_radical: captions per radical.
        seed: of the choice.
    Raises:
        ValueError: the set has no radicals.
    """
    if "radical_character" not in dataset.table:
        raise ValueError(f"{dataset.folder}: expected a column radical_character, got {list(dataset.table.columns)}")
    table = dataset.table
    shared = {str(text): frozenset(rows["radical_character"]) for text, rows in table.groupby("text")}
    captions: list[str] = []
    for index, (_, rows) in enumerate(table.groupby("radical_character", sort=True)):
        texts = sorted(set(rows["text"]) - set(captions))
        order = counted_rng(seed, "recipe", index).permutation(len(texts))
        captions += [texts[i] for i in order[:per_radical]]
    return PromptSet(name, tuple(captions), tuple(shared[caption] for caption in captions))


def glyphs_of(images: np.ndarray) -> np.ndarray:
    """What judges read of sampled images: a prompt's images side by side, without colour.

    Args:
        images: (P, S, H, W) or (P, S, H, W, 3) uint8.
    Returns:
        (P S, H, W) uint8, 0 ink to 255 paper.
    """
    glyphs = grayscale(images) if images.ndim == 5 else images
    return glyphs.reshape(-1, *glyphs.shape[2:])


def score_prompts(
    base: LatentDiffusion,
    judge: RadicalJudge,
    prompts: PromptSet,
    seeds: Sequence[int],
    sampling: Sampling | None = None,
    trainable: Trainable | None = None,
    *,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[pd.DataFrame, np.ndarray]:
    """Draws every prompt with every seed and reads the glyphs.

    Args:
        trainable: one arm; None for the base alone.
        on_progress: as for `sample`.
    Returns:
        One row an image: prompt, seed, expected, radical, probability, abstain, hit; and the images,
        (P, S, H, W) or (P, S, H, W, 3) uint8.
    """
    images = sample(base, prompts.captions, seeds, sampling, trainable=trainable, on_progress=on_progress)[0]
    readings = judge.read(glyphs_of(images))
    expected = [wanted for wanted in prompts.expected for _ in seeds]
    readings["hit"] = expected_radical_hits(readings, expected)
    readings.insert(0, "prompt", [caption for caption in prompts.captions for _ in seeds])
    readings.insert(1, "seed", [seed for _ in prompts.captions for seed in seeds])
    readings.insert(2, "expected", ["".join(sorted(wanted)) for wanted in expected])
    return readings, images


def expected_radical_share(readings: pd.DataFrame, seed: int = 0) -> Estimate:
    """Share of images with an expected radical; 95% interval over prompts and seeds.

    Args:
        readings: of `score_prompts`.
        seed: of the bootstrap.
    """
    outcomes = readings.pivot(index="seed", columns="prompt", values="hit").to_numpy(dtype=float)
    return two_way_bootstrap(outcomes, rng=counted_rng(seed, "recipe"))
