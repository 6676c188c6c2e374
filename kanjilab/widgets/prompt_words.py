"""What a model reads of a prompt: how many tokens, and which words no caption of a kanji has."""

from __future__ import annotations

import re
from copy import deepcopy
from functools import cache, lru_cache
from typing import Any

from kanjilab.data.dictionary import load_characters
from kanjilab.data.japanese import script_note
from kanjilab.data.part_names import part_names
from kanjilab.evaluation.caption_baseline import caption_words
from kanjilab.models.diffusion import LatentDiffusion

LAYOUT_WORDS = frozenset("left right top bottom outside inside middle".split())
OTHER_SCRIPT = re.compile(r"[^\W\d_a-zA-Z]+")


@cache
def known_words() -> frozenset[str]:
    """Every English word of a meaning in the dictionary, of a part's name, or of a layout."""
    meanings = (word for row in load_characters()["meanings"] for text in row for word in caption_words(text))
    names = (word for row in part_names().values() for text in row for word in caption_words(text))
    return LAYOUT_WORDS.union(meanings, names)


def unknown_words(prompt: str) -> tuple[str, ...]:
    """English words of a prompt that no caption of a kanji has, in order: "a blorpt of 水" gives ("blorpt",)."""
    known = known_words()
    return tuple(word for word in caption_words(OTHER_SCRIPT.sub(" ", prompt)) if word not in known)


def token_count(prompt: str, base: LatentDiffusion) -> tuple[int, int] | None:
    """Tokens of a prompt, with those that mark its ends, and how many the base reads; None for several encoders."""
    if len(tokenizers := base.text.tokenizers()) > 1:
        return None
    [(tokenizer, most)] = tokenizers
    return len(_own_copy(tokenizer)(prompt, truncation=False, verbose=False).input_ids), most


@lru_cache(maxsize=8)
def _own_copy(tokenizer: Any) -> Any:
    """A copy, for a call changes how the tokenizer pads and cuts, and another thread may be drawing with it."""
    return deepcopy(tokenizer)


def prompt_note(prompt: str, tokens: tuple[int, int] | None, taught: bool) -> str:
    """What to know of a prompt before it is drawn: tokens, and words that no caption has.

    Args:
        prompt: the text.
        tokens: of `token_count`.
        taught: whether the model knows captions of kanji alone; a large base knows other words too.
    Returns:
        Such as "5 of 32 tokens. No caption of a kanji has “blorpt”: the model guesses from similar words."
    """
    words = [note] if (note := script_note(prompt)) else []
    if tokens:
        count, most = tokens
        words.append(
            f"{count} of {most} tokens." if count <= most else f"{count} tokens: only the first {most} are read."
        )
    if taught and (unknown := unknown_words(prompt)):
        named = ", ".join(f"“{word}”" for word in unknown)
        words.append(f"No caption of a kanji has {named}: the model guesses from similar words.")
    return " ".join(words)
