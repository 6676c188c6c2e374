"""Re-invention: withhold real two-part kanji from training, prompt with the meanings of their parts, and look for them.

T1 asks by the glosses of the parts ("person tree" for 休), T2 by the dictionary's gloss ("rest"), T3 for pairs
that no listed character is made of. Only a base that has never seen a kanji can be said to re-invent one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from kanjilab.core.rng import counted_rng
from kanjilab.data.components import SLOTS, Components, Part, normal_form
from kanjilab.data.dictionary import has_clean_meaning, rows_of
from kanjilab.data.radicals import LEFT_FORMS, radical_character
from kanjilab.data.selection import Rule, rule_from_json
from kanjilab.data.typeset import SLOTS_OF_LAYOUT, Pair, novel_pairs
from kanjilab.evaluation.judges.part_judge import Judge
from kanjilab.evaluation.metrics import Estimate, two_way_bootstrap

Images = NDArray[np.uint8]  # (N, H, W), 0 ink to 255 paper

SEEN_MIN = 5  # training characters with a part in a slot, for prompts to ask for it there
GLOSS_WORDS_MAX = 2
TOP = (1, 10)
READ_AT_ONCE = 256


def part_glosses(characters: pd.DataFrame) -> dict[str, str]:
    """An English name for every part that is a character by itself, at most two words.

    Args:
        characters: a table of `load_characters`.
    Returns:
        Normal form of the part -> the name that the left forms have, else the first cleaned meaning.
    """
    meant = characters.loc[has_clean_meaning(characters)]
    glosses = {str(row.Index): str(row.meanings[0]) for row in rows_of(meant) if normal_form(row.Index) == row.Index}
    glosses |= {normal_form(radical_character(left.number)): left.meaning for left in reversed(LEFT_FORMS)}
    return {part: gloss for part, gloss in glosses.items() if len(gloss.split()) <= GLOSS_WORDS_MAX}


@dataclass(frozen=True)
class Item:
    """Two parts for a prompt, in the order of their slots.

    Attributes:
        character: the withheld one; "" for a pair that exists nowhere.
        layout: such as "⿰".
        parts: normal forms.
        glosses: of the parts.
        meaning: the dictionary's first gloss of the character; "" where there is none.
        withheld: every character that training must not show: those of the same pair, their variants, characters
            that contain one of these, and those with the meaning among their glosses.
    """

    character: str
    layout: str
    parts: tuple[str, str]
    glosses: tuple[str, str]
    meaning: str = ""
    withheld: tuple[str, ...] = ()

    @property
    def by_parts(self) -> str:
        """T1 and T3: the glosses in the order of the slots."""
        return " ".join(self.glosses)

    @property
    def by_parts_reversed(self) -> str:
        """The same in the other order."""
        return " ".join(self.glosses[::-1])


def two_parts(character: str, components: Components) -> tuple[Part, Part] | None:
    """The two parts that a character is wholly made of, in the order of their slots; None for any other."""
    if (listed := components.of(character)) is None or len(listed.outer) != 2:
        return None
    first, second = sorted(listed.outer, key=lambda part: SLOTS.index(part.slot))
    whole = {stroke for part in listed.parts for stroke in part.strokes}
    return (first, second) if set(first.strokes) | set(second.strokes) == whole else None


class _Families:
    """Finds the characters to withhold with a given one, see `Item.withheld`; the indices are built once."""

    def __init__(self, characters: pd.DataFrame, components: Components):
        self.variants: dict[str, set[str]] = {}
        self.holders: dict[str, set[str]] = {}  # of a gloss
        self.first: dict[str, str] = {}
        for row in rows_of(characters):
            for partner in row.variants:
                self.variants.setdefault(row.Index, set()).add(partner)
                self.variants.setdefault(partner, set()).add(row.Index)
            for gloss in row.meanings:
                self.holders.setdefault(gloss.casefold(), set()).add(row.Index)
            if row.meanings:
                self.first[row.Index] = row.meanings[0].casefold()
        self.containing: dict[str, set[str]] = {}
        self.pairs: dict[frozenset[str], set[str]] = {}
        for character, listed in components.decompositions.items():
            for part in listed.parts:
                if part.slot != "whole":
                    self.containing.setdefault(part.element, set()).add(character)
            if (two := two_parts(character, components)) is not None:
                self.pairs.setdefault(frozenset(part.element for part in two), set()).add(character)
        self.pair_of = {character: pair for pair, members in self.pairs.items() for character in members}

    def of(self, character: str) -> tuple[str, ...]:
        """The characters to withhold with this one, itself first."""
        alike = {character} | self.pairs.get(self.pair_of.get(character, frozenset()), set())
        alike |= {partner for member in alike for partner in self.variants.get(member, ())}
        family = alike | {holder for member in alike for holder in self.containing.get(normal_form(member), ())}
        family |= self.holders.get(self.first.get(character, ""), set())
        return (character, *sorted(family - {character}))


def choose_items(
    characters: pd.DataFrame, components: Components, training: Collection[str], count: int = 300, seed: int = 0
) -> list[Item]:
    """Characters to withhold: both parts glossed, and seen at least five times in their slots by what remains.

    Args:
        characters: a table of `load_characters`.
        components: the list of decompositions.
        training: the characters that would be trained on if nothing were withheld.
        count: how many items; fewer where there are no more.
        seed: of the order in which characters are tried.
    Returns:
        Items with different pairs, prompts and meanings.
    """
    glosses, families, known = part_glosses(characters), _Families(characters, components), set(training)
    seen = _slot_counts(known, components)
    candidates = [c for c in sorted(known) if _is_candidate(c, characters, components, glosses)]
    items: list[Item] = []
    removed: set[str] = set()
    needed: set[tuple[str, str]] = set()
    taken: set[str] = set()
    for index in counted_rng(seed, "recipe").permutation(len(candidates)):
        item, slots = _item_of(candidates[index], characters, components, glosses, families)
        prompts = {item.by_parts, item.by_parts_reversed, item.meaning.casefold()}
        lost = _slot_counts((set(item.withheld) & known) - removed, components)
        if item.character in removed or prompts & taken:
            continue
        if any(seen[slot] - lost[slot] < SEEN_MIN for slot in needed | set(slots)):
            continue
        if len(items) == count:
            break
        items.append(item)
        seen.subtract(lost)
        removed |= set(item.withheld)
        needed |= set(slots)
        taken |= prompts
    return items


def _is_candidate(character: str, characters: pd.DataFrame, components: Components, glosses: Mapping[str, str]) -> bool:
    if character not in characters.index or not characters.at[character, "meanings"]:
        return False
    names = {part.element for part in two_parts(character, components) or ()}
    return len(names) == 2 and names <= glosses.keys() and names <= set(components.parts)


def _item_of(
    character: str, characters: pd.DataFrame, components: Components, glosses: Mapping[str, str], families: _Families
) -> tuple[Item, list[tuple[str, str]]]:
    """The item and the (part, slot) pairs that training must still show."""
    listed, parts = components.decompositions[character], two_parts(character, components)
    assert parts is not None
    names = (parts[0].element, parts[1].element)
    meaning: Any = characters.at[character, "meanings"]
    item = Item(
        character, listed.layout, names, (glosses[names[0]], glosses[names[1]]), meaning[0], families.of(character)
    )
    return item, [(part.element, part.slot) for part in parts]


def _slot_counts(characters: Iterable[str], components: Components) -> Counter[tuple[str, str]]:
    """In how many of the characters each part fills each slot."""
    counts: Counter[tuple[str, str]] = Counter()
    for character in characters:
        if (listed := components.of(character)) is not None:
            counts.update({(part.element, part.slot) for part in listed.outer})
    return counts


def choose_novel_items(
    characters: pd.DataFrame, components: Components, training: Collection[str], count: int = 100, seed: int = 0
) -> list[Item]:
    """T3: pairs that no listed character is made of, both parts glossed and seen in their slots.

    Args:
        characters, components: as for `choose_items`.
        training: the characters that are trained on.
        count: how many, at most.
        seed: of the choice.
    Returns:
        Items without a character; prompts differ in every order of words.
    """
    glosses, seen = part_glosses(characters), _slot_counts(training, components)
    usable = [pair for pair in novel_pairs(components) if _is_askable(pair, glosses, seen)]
    items: list[Item] = []
    taken: set[frozenset[str]] = set()
    for index in counted_rng(seed, "recipe", 1).permutation(len(usable)):
        pair = usable[index]
        names = frozenset((glosses[pair.first], glosses[pair.second]))
        if len(items) < count and len(names) == 2 and names not in taken:
            taken.add(names)
            items.append(Item("", pair.layout, (pair.first, pair.second), (glosses[pair.first], glosses[pair.second])))
    return items


def _is_askable(pair: Pair, glosses: Mapping[str, str], seen: Mapping[tuple[str, str], int]) -> bool:
    places = zip((pair.first, pair.second), SLOTS_OF_LAYOUT[pair.layout], strict=True)
    return all(name in glosses and seen.get((name, slot), 0) >= SEEN_MIN for name, slot in places)


@dataclass(frozen=True)
class Without:
    """A selection rule that withholds characters: the rule it wraps chooses as if they did not exist.

    `build_dataset` takes it like the rules of `kanjilab.data.selection`.
    """

    rule: Rule
    withheld: tuple[str, ...]
    name: ClassVar[str] = "without"

    @classmethod
    def known(cls, rule: Rule, withheld: Iterable[str], characters: pd.DataFrame, components: Components) -> Self:
        """Without some characters, and without those of unknown composition, which may contain them.

        Args:
            rule: to wrap.
            withheld: characters.
            characters, components: as for `choose_items`.
        """
        unknown = {str(character) for character in characters.index if components.of(str(character)) is None}
        return cls(rule, tuple(sorted(unknown.union(withheld))))

    def pool(self, characters: pd.DataFrame, drawable: Iterable[str]) -> pd.DataFrame:
        """The wrapped rule's pool, less what is withheld."""
        return self.rule.pool(characters, set(drawable) - set(self.withheld))

    def select(self, characters: pd.DataFrame, drawable: Iterable[str]) -> pd.DataFrame:
        """The wrapped rule's set, chosen from what is left."""
        return self.rule.select(characters, set(drawable) - set(self.withheld))

    def to_json(self) -> dict[str, Any]:
        """Name, the wrapped rule and the characters."""
        return {"name": self.name, "rule": self.rule.to_json(), "withheld": "".join(self.withheld)}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """The inverse of `to_json`."""
        return cls(rule_from_json(values["rule"]), tuple(values["withheld"]))


def score_items(judge: Judge, components: Components, items: Sequence[Item], images: NDArray[np.uint8]) -> pd.DataFrame:
    """Scores each image: its nearest character, the rank of the withheld one, and the parts.

    Args:
        judge: B for reports.
        components: the list of decompositions.
        items: I of them, one prompt each.
        images: (I, S, H, W) uint8, drawn with the same noise for every item.
    Returns:
        I S rows: item (its number), character, image, nearest, rank (of the character among all that the judge
        knows, from 1), rank_sharing (among those that share a part with it, itself included), parts (names
        joined by spaces), recall (share of the item's parts that are read), layout_right (bool). Ranks are NaN
        for a pair without a character.
    Raises:
        ValueError: not one row of images per item, or a character that the judge does not know.
    """
    if images.ndim != 4 or len(images) != len(items):
        raise ValueError(f"expected images (I, S, H, W) of {len(items)} items, got {images.shape}")
    if unknown := [item.character for item in items if item.character and item.character not in judge.characters]:
        raise ValueError(f"expected characters that judge {judge.name} knows, got {''.join(unknown)}")
    flat, each = images.reshape(-1, *images.shape[2:]), images.shape[1]
    asked = [item for item in items for _ in range(each)]
    readings = judge.read(flat)
    ranks = rank_characters(judge, components, [item.character for item in asked], flat)
    shown = [set(parts) for parts in readings["parts"]]
    return pd.DataFrame(
        {
            "item": np.repeat(np.arange(len(items)), each),
            "character": [item.character for item in asked],
            "image": np.tile(np.arange(each), len(items)),
            "nearest": readings["nearest"],
            "rank": ranks[:, 0],
            "rank_sharing": ranks[:, 1],
            "parts": [" ".join(parts) for parts in readings["parts"]],
            "recall": [len(own & set(item.parts)) / 2 for own, item in zip(shown, asked, strict=True)],
            "layout_right": [own == item.layout for own, item in zip(readings["layout"], asked, strict=True)],
        }
    )


def rank_characters(
    judge: Judge, components: Components, targets: Sequence[str], images: Images
) -> NDArray[np.float64]:
    """The rank of each image's target among the characters ordered by distance.

    Args:
        judge: whose embedding orders them.
        components: the list of decompositions.
        targets: N characters that the judge knows; "" for none.
        images: (N, H, W) uint8.
    Returns:
        (N, 2) ranks from 1: among all, and among those that share an outer part with the target; NaN for none.
    """
    ranks = np.full((len(images), 2), np.nan)
    place = {character: index for index, character in enumerate(judge.characters)}
    sharing = _SharingParts(judge.characters, components)
    for start in range(0, len(images), READ_AT_ONCE):
        order, _ = judge.nearest(images[start : start + READ_AT_ONCE], len(judge.characters))
        for row, found in enumerate(order, start):
            if targets[row]:
                before = found[: int(np.flatnonzero(found == place[targets[row]])[0])]
                ranks[row] = 1 + len(before), 1 + sharing.with_target(targets[row])[before].sum()
    return ranks


class _SharingParts:
    """Which characters share an outer part with a target."""

    def __init__(self, characters: Sequence[str], components: Components):
        self.parts = {c: {part.element for part in d.outer} for c, d in components.decompositions.items()}
        self.characters = characters
        self.found: dict[str, NDArray[np.bool_]] = {}

    def with_target(self, target: str) -> NDArray[np.bool_]:
        """(characters,) bool."""
        if target not in self.found:
            own = self.parts.get(target, set())
            self.found[target] = np.array([bool(own & self.parts.get(c, set())) for c in self.characters])
        return self.found[target]


def reinvention_summary(table: pd.DataFrame, seed: int = 0) -> pd.DataFrame:
    """Scores of one task, with 95% intervals over images and items.

    Args:
        table: of `score_items`.
        seed: of the resampling.
    Returns:
        Rows by `score`: top-1, top-10 and mean reciprocal rank, among all and among those sharing a part (left
        out for pairs without characters), part-set recall, both parts, layout; columns value, low, high.
    """
    columns: dict[str, NDArray] = {}
    recall = table["recall"].to_numpy()
    if not np.isnan(table["rank"].to_numpy()).any():
        for name, column in (("among all", "rank"), ("sharing a part", "rank_sharing")):
            ranks = table[column].to_numpy()
            columns |= {f"top-{top}, {name}": ranks <= top for top in TOP}
            columns[f"mean reciprocal rank, {name}"] = 1 / ranks
    columns |= {"part-set recall": recall, "both parts": recall == 1, "layout": table["layout_right"].to_numpy()}
    rng = counted_rng(seed, "resampling")
    rows = {name: two_way_bootstrap(_grid(table, values), rng) for name, values in columns.items()}
    return pd.DataFrame(rows.values(), columns=["value", "low", "high"], index=pd.Index(rows, name="score"))


def word_order_consistency(first: pd.DataFrame, second: pd.DataFrame, seed: int = 0) -> Estimate:
    """Share of images that come out as the same character whichever part is named first.

    Args:
        first, second: of `score_items`, of the same items and noise, prompts in the two orders of words.
        seed: of the resampling.
    Raises:
        ValueError: they are not of the same items and images.
    """
    keys = ["item", "character", "image"]
    if not first[keys].equals(second[keys]):
        raise ValueError("expected two tables of the same items and images, got different ones")
    same = first["nearest"].to_numpy() == second["nearest"].to_numpy()
    return two_way_bootstrap(_grid(first, same), counted_rng(seed, "resampling"))


def _grid(table: pd.DataFrame, values: NDArray) -> NDArray[np.float64]:
    """(images, items) of values in the order of the table's rows."""
    return table.assign(value=values.astype(float)).pivot(index="image", columns="item", values="value").to_numpy()
