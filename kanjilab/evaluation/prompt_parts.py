"""The parts that a prompt asks for, learned from the training captions alone."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Self

import numpy as np
from numpy.typing import NDArray

from kanjilab.models.minilm import caption_vectors

CAPTION_TEMPERATURE = 0.08  # of the votes of training captions, in cosine
UNSURE = 0.02  # share of the vote that the parts' overall frequency has
TOP_PARTS = 3  # of the parts that a prompt makes likely, one must show


@dataclass(frozen=True, eq=False)
class PartMeaning:
    """p(part | prompt), learned from the training captions alone: captions near the prompt vote for their parts.

    Attributes:
        parts: R names, in order of first appearance.
        vectors: (M, D) unit vectors of the training captions.
        votes: (M, R) float, each caption's parts with equal shares.
        embed: captions to unit vectors.
    """

    parts: tuple[str, ...]
    vectors: NDArray[np.float32]
    votes: NDArray[np.float32]
    embed: Callable[[Sequence[str]], NDArray[np.float32]]

    @classmethod
    def fit(
        cls,
        captions: Sequence[str],
        parts: Sequence[Collection[str]],
        embed: Callable[[Sequence[str]], NDArray[np.float32]] = caption_vectors,
    ) -> Self:
        """Learn from captions and the parts of their characters.

        Args:
            captions: M training captions.
            parts: of each caption's character; without any, a caption has no vote.
            embed: captions to unit vectors (N, D).
        Raises:
            ValueError: the lengths differ, or no caption has a part.
        """
        if len(captions) != len(parts):
            raise ValueError(f"expected the parts of every caption, got {len(captions)} captions, {len(parts)} parts")
        names = tuple(dict.fromkeys(name for own in parts for name in own))
        if not names:
            raise ValueError(f"expected captions of characters with known parts, got none among {len(captions)}")
        column = {name: index for index, name in enumerate(names)}
        votes = np.zeros((len(captions), len(names)), np.float32)
        for row, own in enumerate(parts):
            votes[row, [column[name] for name in own]] = 1 / max(1, len(set(own)))
        return cls(names, embed(list(captions)), votes, embed)

    def probabilities(self, prompts: Sequence[str]) -> NDArray[np.float64]:
        """p(part | prompt), (N, R) float, rows sum to 1."""
        cosine = self.embed(list(prompts)) @ self.vectors.T
        voted = np.exp((cosine - cosine.max(axis=1, keepdims=True)) / CAPTION_TEMPERATURE) @ self.votes.astype(float)
        overall = self.votes.sum(axis=0) / self.votes.sum()
        return (1 - UNSURE) * voted / voted.sum(axis=1, keepdims=True) + UNSURE * overall

    def expected(self, prompts: Sequence[str], top: int = TOP_PARTS) -> list[tuple[str, ...]]:
        """The most probable parts of each prompt, best first."""
        order = np.argsort(-self.probabilities(prompts), axis=1, kind="stable")[:, :top]
        return [tuple(self.parts[column] for column in row) for row in order]

    def needed(self, prompt: str) -> int:
        """How many of the expected parts a glyph must show to have the prompt's meaning: one of guessed ones."""
        del prompt
        return 1


@dataclass(frozen=True, eq=False)
class AskedMeaning(PartMeaning):
    """As `PartMeaning`, but some prompts name their parts.

    Attributes:
        asked: by prompt; of these nothing has to be learned.
    """

    asked: Mapping[str, Sequence[str]] = field(default_factory=dict)

    def expected(self, prompts: Sequence[str], top: int = TOP_PARTS) -> list[tuple[str, ...]]:
        """The parts that a prompt names, or else the most probable ones, best first."""
        others = [prompt for prompt in dict.fromkeys(prompts) if not self.asked.get(prompt)]
        learned = dict(zip(others, super().expected(others, top), strict=True)) if others else {}
        return [learned[prompt] if prompt in learned else tuple(self.asked[prompt]) for prompt in prompts]

    def needed(self, prompt: str) -> int:
        """All the parts that a prompt names; of guessed ones, one."""
        return len(set(self.asked.get(prompt, ()))) or super().needed(prompt)
