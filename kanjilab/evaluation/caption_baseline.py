"""The text-only baseline: how well the words of a caption alone predict its radical, by naive Bayes."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kanjilab.evaluation.metrics import Estimate, wilson_interval

WORD = re.compile(r"[a-z]+(?:'[a-z]+)?")


def caption_words(caption: str) -> tuple[str, ...]:
    """Distinct lower-case English words of a caption, in order of appearance.

    Args:
        caption: any text.
    Returns:
        Words of letters (and an inner apostrophe); digits and other scripts are left out.
    """
    return tuple(dict.fromkeys(WORD.findall(caption.lower())))


@dataclass(frozen=True)
class CaptionBayes:
    """Naive Bayes from the words of a caption to its radical: how far text alone can go.

    Attributes:
        radicals: (R,) labels, in order of first appearance in training.
        vocabulary: word -> column.
        log_word: (R, V) log p(word | radical).
        log_prior: (R,) log p(radical).
    """

    radicals: tuple[str, ...]
    vocabulary: dict[str, int]
    log_word: NDArray[np.float64]
    log_prior: NDArray[np.float64]

    @classmethod
    def fit(cls, captions: Sequence[str], radicals: Sequence[str], smoothing: float = 0.1) -> CaptionBayes:
        """Count words per radical.

        Args:
            captions: (N,) training captions.
            radicals: (N,) radical of each.
            smoothing: pseudo-count of every word in every radical, > 0.
        Raises:
            ValueError: the lengths differ, there is nothing to fit, or smoothing <= 0.
        """
        if len(captions) != len(radicals) or len(captions) == 0:
            raise ValueError(f"expected as many radicals as captions, got {len(captions)} and {len(radicals)}")
        if smoothing <= 0:
            raise ValueError(f"smoothing must be > 0, got {smoothing}")
        labels = tuple(dict.fromkeys(radicals))
        words = dict.fromkeys(word for caption in captions for word in caption_words(caption))
        vocabulary = {word: column for column, word in enumerate(words)}
        target = np.array([labels.index(radical) for radical in radicals])
        counts = np.full((len(labels), len(vocabulary)), smoothing)
        np.add.at(counts, target, _word_counts(captions, vocabulary))
        prior = np.bincount(target, minlength=len(labels)) / len(target)
        return cls(labels, vocabulary, np.log(counts / counts.sum(axis=1, keepdims=True)), np.log(prior))

    def probabilities(self, captions: Sequence[str]) -> NDArray[np.float64]:
        """Posterior over radicals for each caption; words never seen in training are ignored.

        Args:
            captions: (N,) captions.
        Returns:
            (N, R) float, rows sum to 1, columns in the order of ``radicals``.
        """
        joint = _word_counts(captions, self.vocabulary) @ self.log_word.T + self.log_prior
        joint = np.exp(joint - joint.max(axis=1, keepdims=True))
        return joint / joint.sum(axis=1, keepdims=True)


def _word_counts(captions: Sequence[str], vocabulary: dict[str, int]) -> NDArray[np.float64]:
    counts = np.zeros((len(captions), len(vocabulary)))
    for row, caption in enumerate(captions):
        columns = [vocabulary[word] for word in caption_words(caption) if word in vocabulary]
        counts[row, columns] = 1.0
    return counts


def text_only_ceiling(
    captions: Sequence[str],
    radicals: Sequence[str],
    held_out_captions: Sequence[str],
    held_out_radicals: Sequence[str],
    top: Sequence[int] = (1, 3),
) -> dict[int, Estimate]:
    """How often the training captions alone predict the radical of captions never trained on.

    No picture is involved, so this is the most that a generator can be expected to reach on
    held-out captions without knowledge from elsewhere (its text encoder brings some).

    Args:
        captions: (N,) training captions.
        radicals: (N,) their radicals.
        held_out_captions: (M,) captions to predict, M >= 1.
        held_out_radicals: (M,) their radicals.
        top: a caption counts when its radical is among the k most probable, for each k.
    Returns:
        k -> Estimate of the rate in [0, 1], with Wilson's interval.
    Raises:
        ValueError: the lengths differ or either set is empty.
    """
    if len(held_out_captions) != len(held_out_radicals) or len(held_out_captions) == 0:
        raise ValueError(
            f"expected as many held-out radicals as captions, got {len(held_out_captions)} and {len(held_out_radicals)}"
        )
    model = CaptionBayes.fit(captions, radicals)
    ranking = np.argsort(-model.probabilities(held_out_captions), axis=1, kind="stable")  # (M, R)
    column = {radical: index for index, radical in enumerate(model.radicals)}
    target = np.array([column.get(radical, -1) for radical in held_out_radicals])  # -1: never trained on, always a miss
    right = ranking == target[:, None]
    return {k: wilson_interval(int(right[:, :k].any(axis=1).sum()), len(target)) for k in top}
