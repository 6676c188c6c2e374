"""From a phrase to what the writer is asked: the phrase itself, pairs of parts that its words suggest, or named parts.

A phrase in Japanese is read as it is, and where it is in kanji also as the dictionary translates it, kanji by kanji.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import permutations

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from kanjilab.data.components import Components
from kanjilab.data.japanese import HAN, has_japanese, is_understood, script_note
from kanjilab.data.part_names import name_of_part, pair_caption, part_named, part_names, parts_caption
from kanjilab.data.typeset import SLOTS_OF_LAYOUT, Pair, novel_pairs
from kanjilab.data.writer_corpus import places, slot_counts
from kanjilab.evaluation.caption_baseline import caption_words
from kanjilab.models.conditioning import Prompt
from kanjilab.models.japanese import text_vectors

Embed = Callable[[Sequence[str]], NDArray[np.float32]]

PAIRS_SUGGESTED = 4
SMALL_WORDS = frozenset(
    "a an the of in on at to for with and or by from as into over under is are be was were it its this that these "
    "those who which whose what where when who's i you he she we they my your his her our their not no".split()
)
HIRAGANA = re.compile(r"[\u3041-\u309f]+")
LAYOUTS_BY_NAME = {"left-right": ("⿰",), "top-bottom": ("⿱",), "outside-inside": ("⿸", "⿺", "⿴")}


@dataclass(frozen=True)
class Reading:
    """One way to ask for a phrase.

    Attributes:
        prompt: what the writer is asked.
        pair: the parts that it asks for by name; None for the phrase itself.
        reason: why these parts, in words.
    """

    prompt: str
    pair: Pair | None = None
    reason: str = ""

    @property
    def parts(self) -> tuple[str, ...]:
        """The parts asked for by name, in the order of their slots."""
        return (self.pair.first, self.pair.second) if self.pair else ()


def translate(phrase: str, characters: pd.DataFrame) -> str:
    """English for a phrase in Japanese, from the dictionary's first meaning of each kanji.

    Hiragana beside kanji, which are particles and endings, are left out.

    Args:
        phrase: any text.
        characters: a table of `load_characters`.
    Returns:
        The English words; "" for a phrase without kanji, with katakana, or with a kanji that has no meaning there.
    """
    rest = HIRAGANA.sub(" ", phrase)
    if not HAN.search(rest) or has_japanese(HAN.sub(" ", rest)):
        return ""
    meanings: dict[str, tuple[str, ...]] = characters["meanings"].to_dict()
    if not all(meanings.get(sign) for sign in HAN.findall(rest)):
        return ""
    return " ".join(HAN.sub(lambda found: f" {meanings[found[0]][0]} ", rest).split())


def layouts_named(text: str) -> tuple[str, ...]:
    """The layouts that are meant by a sign such as "⿰", or by one of `LAYOUTS_BY_NAME`.

    Raises:
        ValueError: neither.
    """
    if text in SLOTS_OF_LAYOUT:
        return (text,)
    if text in LAYOUTS_BY_NAME:
        return LAYOUTS_BY_NAME[text]
    raise ValueError(f"expected a layout of {', '.join([*LAYOUTS_BY_NAME, *SLOTS_OF_LAYOUT])}, got {text!r:.80}")


def read_phrase(
    phrase: str,
    components: Components,
    *,
    translation: str = "",
    parts: str = "",
    layouts: Sequence[str] = tuple(SLOTS_OF_LAYOUT),
    embed: Embed = text_vectors,
) -> list[Reading]:
    """The ways to ask for a phrase.

    Args:
        phrase: in English or in Japanese.
        components: the list of decompositions.
        translation: its English, see `translate`; "" for none.
        parts: two of them such as "woman+bird" or "女+鳥"; "" for those that the words suggest.
        layouts: that pairs may have.
        embed: captions to unit vectors (N, D).
    Returns:
        With named parts: by slots, and as a plain sum. Else the phrase itself, its translation, and up to four pairs.
    Raises:
        ValueError: a blank phrase, one that no prompt can be, one in letters that no text encoder understands, or named
            parts that are unknown or fit in no layout.
    """
    if not phrase.strip():
        raise ValueError("expected a phrase, got none")
    Prompt(phrase)  # refuses what no text encoder reads
    if parts:
        return readings_of_parts(parts, components, layouts)
    if not is_understood(phrase):
        raise ValueError(f"{phrase!r:.80} cannot be read: {script_note(phrase)}")
    own = [Reading(text) for text in (phrase.strip(), translation) if text]
    return [*own, *suggested(translation or phrase, components, layouts, embed)]


def readings_of_parts(parts: str, components: Components, layouts: Sequence[str]) -> list[Reading]:
    """The two captions of parts that a user names.

    Args:
        parts: such as "woman+bird", in any order.
        components, layouts: as for `read_phrase`.
    Raises:
        ValueError: not two parts, an unknown one, two that are in no two slots that fit, or a pair that exists.
    """
    names = [name for name in re.split(r"\s*[+＋]\s*", parts.strip()) if name]
    if len(names) != 2:
        raise ValueError(f"expected two parts, as woman+fish, got {parts!r:.80}")
    first, second = (part_named(name) for name in names)
    pair = best_pair(first, second, components, layouts)
    reason = f"named: {name_of_part(pair.first)} {pair.first} and {name_of_part(pair.second)} {pair.second}"
    captions = parts_caption(pair.layout, pair.first, pair.second), pair_caption(pair.first, pair.second)
    return [Reading(caption, pair, reason) for caption in captions]


def best_pair(first: str, second: str, components: Components, layouts: Sequence[str]) -> Pair:
    """Two parts in the layout and order in which listed characters have them most often, as no character has them.

    Args:
        first, second: normal forms, in any order.
        components, layouts: as for `read_phrase`.
    Raises:
        ValueError: no listed characters have them in two slots that fit, or every such pair is a character.
    """
    counts = slot_counts(components, components.decompositions)
    orders = [(first, second), (second, first)]
    fitting = [Pair(layout, *order) for layout in layouts for order in orders]
    fitting = [pair for pair in fitting if attested(pair, counts)]
    if not fitting:
        raise ValueError(
            f"{first} and {second} are never in two slots that fit: {_places(first, counts)}; {_places(second, counts)}"
        )
    new = [pair for pair in fitting if not components.exists(pair.layout, (pair.first, pair.second))]
    if not new:
        known = [one for pair in fitting for one in components.exists(pair.layout, (pair.first, pair.second))]
        raise ValueError(f"{first} and {second} make a character already: {' '.join(dict.fromkeys(known))}")
    return max(new, key=lambda pair: attested(pair, counts))


def attested(pair: Pair, counts: Counter[tuple[str, str, str]]) -> int:
    """Of a pair's two parts, how many characters have the rarer one in its slot; 0 where one is never there."""
    return min(counts[place] for place in places(pair))


def _places(part: str, counts: Counter[tuple[str, str, str]]) -> str:
    slots = Counter[str]()
    for (_, name, slot), count in counts.items():
        if name == part and slot:
            slots[slot] += count
    return f"{part} is {', '.join(slot for slot, _ in slots.most_common())}" if slots else f"{part} is nowhere alone"


def suggested(phrase: str, components: Components, layouts: Sequence[str], embed: Embed) -> list[Reading]:
    """Pairs of parts whose names are nearest to two words of the phrase, each part frequent in its slot.

    Args:
        phrase, components, layouts, embed: as for `read_phrase`.
    Returns:
        Up to `PAIRS_SUGGESTED`, the best first; no character has such a pair.
    """
    words = [word for word in caption_words(phrase) if word not in SMALL_WORDS] or [phrase]
    pairs = [pair for pair in novel_pairs(components) if pair.layout in layouts]
    if not pairs:
        return []
    near, names = nearness(words, components.parts, embed)  # (words, R)
    column = {name: index for index, name in enumerate(components.parts)}
    first, second = (np.array([column[name] for name in side]) for side in zip(*_parts(pairs), strict=True))
    uses = list(permutations(range(len(words)), 2)) or [(0, 0)]  # a word for each part, another where there are two
    scores = np.stack([near[one, first] + near[other, second] for one, other in uses])  # (uses, pairs)
    score, used, counts = (
        scores.max(axis=0).round(6),
        scores.argmax(axis=0),
        slot_counts(components, components.decompositions),
    )
    best: dict[frozenset[str], Reading] = {}
    for row in sorted(range(len(pairs)), key=lambda row: (-score[row], -attested(pairs[row], counts))):
        at = zip(uses[used[row]], (first[row], second[row]), strict=True)
        found = [f"{names[word][part]} is near {words[word]} ({near[word, part]:.2f})" for word, part in at]
        best.setdefault(frozenset(_parts([pairs[row]])[0]), _suggestion(pairs[row], found))
        if len(best) == PAIRS_SUGGESTED:
            break
    return list(best.values())


def _parts(pairs: Sequence[Pair]) -> list[tuple[str, str]]:
    return [(pair.first, pair.second) for pair in pairs]


def nearness(
    texts: Sequence[str], parts: Sequence[str], embed: Embed
) -> tuple[NDArray[np.float64], list[tuple[str, ...]]]:
    """How near the nearest name of each part is to each text, and which name that is.

    Args:
        texts: N of them.
        parts: R normal forms with names.
        embed: captions to unit vectors (N, D).
    Returns:
        (N, R) cosines, and for each text R names.
    """
    names = [part_names()[part] for part in parts]
    cosine = np.asarray(embed(texts) @ embed([name for own in names for name in own]).T, np.float64)
    ends = np.cumsum([len(own) for own in names])[:-1]
    columns = np.split(cosine, ends, axis=1)  # R of (N, names)
    near = np.stack([own.max(axis=1) for own in columns], axis=1)
    best = np.stack([own.argmax(axis=1) for own in columns], axis=1)
    return near, [tuple(own[index] for own, index in zip(names, row, strict=True)) for row in best]


def _suggestion(pair: Pair, found: Sequence[str]) -> Reading:
    reason = f"{pair.first} {found[0]}; {pair.second} {found[1]}"
    return Reading(parts_caption(pair.layout, pair.first, pair.second), pair, reason)
