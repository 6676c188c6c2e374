"""The parts that a prompt asks for, learned from the training captions alone."""

from __future__ import annotations

import io
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Self

import numpy as np
from numpy.typing import NDArray

from kanjilab.core.config import settings_hash
from kanjilab.core.storage import write_bytes_atomic
from kanjilab.models.loading import cache_folder
from kanjilab.models.minilm import TOKENS, WEIGHTS_SHA256, load_minilm

CAPTION_TEMPERATURE = 0.08  # of the votes of training captions, in cosine
UNSURE = 0.02  # share of the vote that the parts' overall frequency has
CAPTION_BATCH = 128
TOP_PARTS = 3  # of the parts that a prompt makes likely, one must show


def caption_vectors(captions: Sequence[str]) -> NDArray[np.float32]:
    """MiniLM's sentence embeddings, (N, 384) unit vectors, kept in the user's cache.

    Source: Reimers and Gurevych 2019, arXiv:1908.10084: the mean of the token states.
    """
    key = settings_hash([WEIGHTS_SHA256, TOKENS, list(captions)])
    path = cache_folder() / "captions" / f"{key}.npy"
    try:
        return np.load(path, allow_pickle=False)
    except (OSError, ValueError):
        vectors = _embedded(captions)
    path.parent.mkdir(parents=True, exist_ok=True)
    buffer = io.BytesIO()
    np.save(buffer, vectors, allow_pickle=False)
    write_bytes_atomic(path, buffer.getvalue())
    return vectors


def _embedded(captions: Sequence[str]) -> NDArray[np.float32]:
    import torch

    tokenizer, model = load_minilm()
    vectors = np.zeros((len(captions), model.config.hidden_size), np.float32)
    order = sorted(range(len(captions)), key=lambda index: len(captions[index]))  # alike in length: little padding
    with torch.inference_mode():
        for start in range(0, len(order), CAPTION_BATCH):
            rows = order[start : start + CAPTION_BATCH]
            texts = [captions[row] for row in rows]
            tokens = tokenizer(texts, padding=True, truncation=True, max_length=TOKENS, return_tensors="pt")
            states = model(tokens.input_ids, attention_mask=tokens.attention_mask).last_hidden_state
            mask = tokens.attention_mask[..., None]
            vectors[rows] = torch.nn.functional.normalize((states * mask).sum(1) / mask.sum(1), dim=1).numpy()
    return vectors


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
