"""A writer whose every answer is known: it typesets the parts that a prompt names, and a dictionary small enough."""

import re
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import pytest

from kanjilab.core.rng import counted_rng
from kanjilab.data.components import load_components
from kanjilab.data.part_names import part_named
from kanjilab.data.rendering import default_font, draw_font
from kanjilab.data.typeset import SLOTS_OF_LAYOUT, Pair, Typesetter
from kanjilab.evaluation import criteria
from kanjilab.evaluation.judges.nearest_character import Neighbours

TYPESETTER = Typesetter(load_components(), default_font())
COMPARED = list("休林相花国好明時詩語海清鯉炸焼虫蚊蛇蝶灯灰炎魚鮮鯨漁鉄銅銀安字守悪意思恩忘忠感想急怒性情")


def real(character: str) -> np.ndarray:
    """(128, 128) uint8, a character in the default font."""
    return np.asarray(draw_font(character, default_font()))


def noise(seed: int = 0) -> np.ndarray:
    """(128, 128) uint8, no glyph at all."""
    return counted_rng(seed, "sampling noise").integers(0, 256, (128, 128), dtype=np.uint8)


def pair_of(prompt: str) -> Pair | None:
    """The parts that a prompt of slots names."""
    named = dict(re.findall(r"(left|right|top|bottom): ([^,]+)", prompt))
    for layout, slots in SLOTS_OF_LAYOUT.items():
        if tuple(named) == slots:
            return Pair(layout, *(part_named(named[slot]) for slot in slots))
    return None


def draw(prompts: Sequence[str], seeds: Sequence[int]) -> np.ndarray:
    """(P S, 128, 128) uint8: pairs by slots are typeset; any other prompt is 休 for an even seed, else noise."""
    return np.stack([_drawn(prompt, seed) for prompt in prompts for seed in seeds])


def _drawn(prompt: str, seed: int) -> np.ndarray:
    pair = pair_of(prompt)
    made = TYPESETTER.compose(pair, counted_rng(seed, "typeset")) if pair else None
    return made.image if made else noise(seed) if seed % 2 else real("休")


def word_vectors(captions: Sequence[str]) -> np.ndarray:
    """(N, 4096) unit vectors that count words, by a hash."""
    counts = np.full((len(captions), 4096), 1e-4, np.float32)
    for row, text in enumerate(captions):
        for word in text.lower().split():
            counts[row, zlib.crc32(word.encode()) % 4096] += 1
    return counts / np.linalg.norm(counts, axis=1, keepdims=True)


@contextmanager
def few_neighbours() -> Iterator[None]:
    """The outlines of a few characters: those of all take a while to fit."""
    found = Neighbours.fit(COMPARED, default_font())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(criteria.Neighbours, "load_or_fit", lambda cache: found)
        yield
