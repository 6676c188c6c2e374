"""Stage 1a: a small Japanese text encoder learns to say of a word what MiniLM says of its English.

Every random choice is a function of (seed, step). The state is one safetensors file, from which a training goes on.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.nn import functional as F

from kanjilab.core.rng import counted_rng
from kanjilab.data.dictionary import has_clean_meaning, rows_of
from kanjilab.data.japanese import GLOSSES, script_of, words_with
from kanjilab.models.cpu_layers import autocast_bf16
from kanjilab.models.japanese import new_encoder
from kanjilab.models.minilm import TOKENS
from kanjilab.training.averaged import AveragedTraining

FIRST, LAST = 2, 3  # ids of the marks around a text
CHUNK = 256  # words that go through the encoder together, of like length: little padding
FIRST_FORMS = 0.7  # how often a word is read in its kanji, where it has some, and not in kana
RATE_OF = {"common": 3.0, "mimetic": 3.0, "loan": 1.5}  # how much more often than other words
SAMPLED = 0.45  # of the words, which are cut otherwise than the tokenizer would
SMOOTHNESS = 0.3  # of those cuts' probabilities


@dataclass(frozen=True)
class WordPairs:
    """Japanese texts beside their English.

    Attributes:
        texts: N, in Japanese.
        weight: (N,) how often each is drawn.
        target: (N,) int64, row of `english`.
        english: M different ones.
    """

    texts: tuple[str, ...]
    weight: np.ndarray
    target: np.ndarray
    english: tuple[str, ...]


def word_pairs(words: pd.DataFrame, characters: pd.DataFrame, held_out: Sequence[str] = ()) -> WordPairs:
    """What the encoder learns from: every form of every word, and single kanji with their meanings.

    Args:
        words: of `load_words`, and of `load_names` if they are wanted; held-out words are left out here.
        characters: of `load_characters`.
        held_out: characters that no stage may read: words with them are left out.
    """
    kept = words.loc[~words["held_out"] & ~words_with(words, held_out)]
    found: list[tuple[str, float, str]] = []
    for row in rows_of(kept):
        rate = float(np.prod([factor for name, factor in RATE_OF.items() if getattr(row, name)]))
        found += [(form, rate * share, row.english) for form, share in form_shares(row.forms)]
    captioned = characters.loc[has_clean_meaning(characters) & ~characters.index.isin(list(held_out))]
    found += [(row.Index, 1.0, "; ".join(row.meanings[:GLOSSES])) for row in rows_of(captioned)]
    texts, weight, english = zip(*found, strict=True)
    rows = {text: index for index, text in enumerate(dict.fromkeys(english))}
    return WordPairs(texts, np.array(weight), np.array([rows[text] for text in english]), tuple(rows))


def form_shares(forms: Sequence[str]) -> list[tuple[str, float]]:
    """How often a word is read in each of its forms: those with other signs than kana, then those in kana."""
    kana = [form for form in forms if script_of(form) in ("hiragana", "katakana")]
    others = [form for form in forms if form not in kana]
    if not (kana and others):
        return [(form, 1 / len(forms)) for form in forms]
    shares = [(form, FIRST_FORMS / len(others)) for form in others]
    return shares + [(form, (1 - FIRST_FORMS) / len(kana)) for form in kana]


@dataclass(frozen=True)
class DistilRecipe:
    """How the encoder is trained: a linear rise of the rate, then a linear fall to zero.

    The loss is `alignment` x (1 - cosine to the teacher's pooled state), a hundredth of the squared distance from it,
    and the divergence of the batch's similarities from the teacher's own (in-batch contrast with soft targets).
    """

    words_seen: int = 1_740_000
    batch: int = 512
    peak_lr: float = 2e-3
    warmup_steps: int = 200
    temperature: float = 0.05
    alignment: float = 4.0
    ema_decay: float = 0.998
    seed: int = 0

    @property
    def steps(self) -> int:
        """Optimizer steps."""
        return -(-self.words_seen // self.batch)

    def lr(self, step: int) -> float:
        """Learning rate at a step (0-based)."""
        return self.peak_lr * min((step + 1) / self.warmup_steps, (self.steps - step) / self.steps)


def distil_loss(student: Tensor, teacher: Tensor, temperature: float, alignment: float) -> Tensor:
    """See `DistilRecipe`; a scalar.

    Args:
        student, teacher: (B, D) pooled states.
        temperature: of the similarities, > 0.
        alignment: weight of the cosine.
    """
    own, wanted = F.normalize(student, dim=1), F.normalize(teacher, dim=1)
    cosine = (own * wanted).sum(dim=1)
    soft = (wanted @ wanted.T / temperature).softmax(dim=1)  # (B, B): words of one meaning do not repel each other
    contrast = F.kl_div((own @ wanted.T / temperature).log_softmax(dim=1), soft, reduction="batchmean")
    return alignment * (1 - cosine).mean() + 0.01 * (student - teacher).square().sum(dim=1).mean() + contrast


class Distillation(AveragedTraining):
    """The encoder with its averaged weights and optimizer; can be stored and taken up again.

    Args of the constructor:
        recipe: how long and how fast.
        pieces: a `SentencePieceProcessor`, which cuts words in several ways.
        initial: weights to begin with; None for random ones.
    """

    def __init__(self, recipe: DistilRecipe, pieces: Any, initial: dict[str, Tensor] | None = None):
        """Nothing is trained yet."""
        self.pieces = pieces
        self.encoder = new_encoder(pieces.get_piece_size(), recipe.seed).train()
        if initial is not None:
            self.encoder.load_state_dict(initial)
        super().__init__(self.encoder, "encoder", recipe, beta2=0.98)

    def advance(self, pairs: WordPairs, targets: np.ndarray, cumulative: np.ndarray) -> float:
        """One step; returns the loss.

        Args:
            pairs: what is learned.
            targets: (M, D), the teacher's pooled states of their English.
            cumulative: (N,) sums of the weights.
        """
        recipe = self.recipe
        rng = counted_rng(recipe.seed, "distillation", self.step)
        rows = np.searchsorted(cumulative, rng.random(recipe.batch) * cumulative[-1])
        cut = [self._cut(pairs.texts[row], sampled) for row, sampled in zip(rows, rng.random(len(rows)), strict=True)]
        order = sorted(range(len(cut)), key=lambda index: len(cut[index]))
        found = []
        with autocast_bf16():
            for start in range(0, len(order), CHUNK):
                ids, mask = padded([cut[index] for index in order[start : start + CHUNK]])
                found.append(pooled(self.encoder(ids, attention_mask=mask).last_hidden_state.float(), mask))
        teacher = torch.from_numpy(targets[pairs.target[rows[order]]].astype(np.float32))
        loss = distil_loss(torch.cat(found), teacher, recipe.temperature, recipe.alignment)
        loss.backward()
        self.apply_gradients()
        return loss.item()

    def _cut(self, text: str, draw: float) -> list[int]:
        if draw >= SAMPLED:
            return self.pieces.encode(text)
        return self.pieces.encode(text, enable_sampling=True, alpha=SMOOTHNESS, nbest_size=-1)


def padded(cut: Sequence[Sequence[int]], width: int | None = None) -> tuple[Tensor, Tensor]:
    """Words in pieces as a batch, between the marks of beginning and end.

    Args:
        cut: B lists of ids; what is longer than the encoder's length is cut.
        width: L of the batch; that of its longest word by default.
    Returns:
        (B, L) int64 ids and their (B, L) mask.
    """
    rows = [[FIRST, *ids[: TOKENS - 2], LAST] for ids in cut]
    width = width or max(map(len, rows))
    ids = torch.tensor([row + [0] * (width - len(row)) for row in rows])
    return ids, (torch.arange(width) < torch.tensor([[len(row)] for row in rows])).long()


def pooled(states: Tensor, mask: Tensor) -> Tensor:
    """(B, D), the mean of the token states (B, L, D) that the mask (B, L) has."""
    return (states * mask[..., None]).sum(dim=1) / mask.sum(dim=1, keepdim=True)


def distil(
    pairs: WordPairs, targets: np.ndarray, training: Distillation, state: Path, save_every_steps: int = 500
) -> Iterator[tuple[int, float]]:
    """Trains to the end of the recipe; yields (step, loss) after every step. Called again, it goes on from the state.

    Args:
        pairs, targets: as for `Distillation.advance`.
        training: new.
        state: file of the state.
        save_every_steps: how often it is stored.
    """
    if state.exists():
        training.load(state)
    cumulative = np.cumsum(pairs.weight)
    while training.step < training.recipe.steps:
        loss = training.advance(pairs, targets, cumulative)
        if training.step % save_every_steps == 0 or training.step == training.recipe.steps:
            training.save(state)
        yield training.step, loss
