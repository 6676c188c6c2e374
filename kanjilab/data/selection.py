"""Which characters a dataset holds and how they are captioned: the selection rules."""

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Protocol

import numpy as np
import pandas as pd

from kanjilab.data.dictionary import has_clean_meaning, rows_of
from kanjilab.data.radicals import (
    BATCH_MULTIPLE,
    BY_NUMBER,
    LEFT_FORMS,
    PER_RADICAL,
    RADICALS_WANTED,
    radical_character,
    with_radicals,
)


def caption_of_meanings(row: Any) -> str:
    """Cleaned meanings joined by ';', such as 'person;human'; the raw ones where none is left."""
    return ";".join(row.meanings or row.meanings_raw)


def caption_of_template(row: Any) -> str:
    """The sentence of the full set: what the image is, then the meanings."""
    return (
        f"Image of a Japanese kanji character {row.Index} in plain font. "
        f"The character means: {', '.join(row.meanings)}."
    )


def caption_groups(characters: pd.DataFrame) -> pd.Series:
    """Groups that must not be divided between training and held-out data.

    Two characters belong together when one is listed as a variant of the other, or when they share
    their whole caption or their first meaning; and so does whoever belongs with either.

    Args:
        characters: rows of the character table, best all of it: a chain of variants may lead
            through a character that is not selected.
    Returns:
        (rows,) int, same index: equal numbers for characters that belong together.
    """
    parent = {character: character for character in characters.index}

    def root(character: Any) -> Any:
        while parent[character] != character:
            parent[character] = parent[parent[character]]
            character = parent[character]
        return character

    first_with: dict[str, Any] = {}
    for row in rows_of(characters):
        meanings = row.meanings or row.meanings_raw
        together = [partner for partner in row.variants if partner in parent]
        if meanings:
            together.append(first_with.setdefault(meanings[0].casefold(), row.Index))
        for partner in together:
            parent[root(row.Index)] = root(partner)
    numbers: dict[Any, int] = {}
    found = [numbers.setdefault(root(character), len(numbers)) for character in characters.index]
    return pd.Series(found, index=characters.index, dtype="int64")


def _apart_from(pool: pd.DataFrame, selected: pd.DataFrame, characters: pd.DataFrame) -> pd.DataFrame:
    """Rows of the pool that share no group (see `caption_groups`) with a selected character."""
    group = caption_groups(characters).to_dict()
    taken = {group[character] for character in selected.index}
    return pool.loc[[group[character] not in taken for character in pool.index]]


def _in_reading_order(rows: pd.DataFrame) -> pd.DataFrame:
    # JIS X 0208 comes first, its everyday level 1 before level 2; characters outside it by codepoint.
    return rows.sort_values(["jis_order", "codepoint"], na_position="last")


def _captioned(rows: pd.DataFrame, caption: Any) -> pd.DataFrame:
    return with_radicals(rows).assign(text=[caption(row) for row in rows_of(rows)])


def _first_of_each(pool: pd.DataFrame, counts: Mapping[int, int]) -> pd.DataFrame:
    """The first characters of each radical, as many as counted, radicals in the order of `counts`."""
    groups: list[pd.DataFrame] = [pool.loc[pool["radical"] == number].head(count) for number, count in counts.items()]
    return pd.concat(groups)


def _drawn(characters: pd.DataFrame, drawable: Iterable[str]) -> pd.DataFrame:
    return characters.loc[characters.index.isin(list(drawable))]


class Rule(Protocol):
    """A selection rule: which characters are trained on."""

    name: ClassVar[str]

    def pool(self, characters: pd.DataFrame, drawable: Iterable[str]) -> pd.DataFrame:
        """All characters that could be chosen; those left over may be held out."""
        ...

    def select(self, characters: pd.DataFrame, drawable: Iterable[str]) -> pd.DataFrame:
        """The characters that are chosen."""
        ...

    def to_json(self) -> dict[str, Any]:
        """Name and parameters."""
        ...


@dataclass(frozen=True)
class Seed16:
    """The published 1,600 of "Generative Kanji": the first 100 JIS X 0208 kanji of each of 16 radicals.

    The radical is the classical one, wherever it shows. A caption joins the cleaned meanings with
    ';'; the handful without any keeps its raw ones, so that the set stays the published one.
    """

    per_radical: int = PER_RADICAL
    name: ClassVar[str] = "seed16"

    def pool(self, characters: pd.DataFrame, drawable: Iterable[str]) -> pd.DataFrame:
        """Every character that the rule may choose from, captioned, in JIS order."""
        rows = _drawn(characters, drawable)
        rows = _in_reading_order(rows.loc[rows["jis_order"].notna() & rows["meanings_raw"].map(bool)])
        return _captioned(rows.loc[rows["radical"].isin(self._radicals(rows))], caption_of_meanings)

    def _radicals(self, rows: pd.DataFrame) -> list[int]:
        counts = Counter(rows["radical"])
        reached = [number for number, count in counts.most_common() if count >= self.per_radical]
        if len(reached) < RADICALS_WANTED:
            raise ValueError(
                f"seed16 needs {RADICALS_WANTED} radicals with {self.per_radical} drawable JIS X 0208 kanji each, "
                f"got {len(reached)}: choose a fuller font or a smaller per_radical"
            )
        return sorted(reached[:RADICALS_WANTED])

    def select(self, characters: pd.DataFrame, drawable: Iterable[str]) -> pd.DataFrame:
        """The set itself, radical by radical.

        Args:
            characters: a table of `load_characters`.
            drawable: the characters that the font or the stroke files draw.
        Returns:
            Rows of the table with radical_character, position and text (the caption) added.
        Raises:
            ValueError: fewer than 16 radicals have enough characters.
        """
        pool = self.pool(characters, drawable)
        return _first_of_each(pool, dict.fromkeys(sorted(set(pool["radical"])), self.per_radical))

    def to_json(self) -> dict[str, Any]:
        """Name and parameters, as `rule_from_json` reads them."""
        return {"name": self.name, **asdict(self)}


@dataclass(frozen=True)
class Left16:
    """What the article describes: 16 radicals, each really on the left of all its characters.

    `per_radical` None takes 100 where the font reaches that, else the largest multiple of 8 that
    all 16 reach (88 in IPAexGothic), so that batches divide evenly.
    """

    per_radical: int | None = None
    name: ClassVar[str] = "left16"

    def pool(self, characters: pd.DataFrame, drawable: Iterable[str]) -> pd.DataFrame:
        """Every character with a cleaned meaning and a known radical on its left, in JIS order."""
        rows = _drawn(characters, drawable)
        rows = rows.loc[has_clean_meaning(rows) & rows["radical"].isin(list(BY_NUMBER))]
        rows = _captioned(_in_reading_order(rows), caption_of_meanings)
        rows = rows.loc[rows["position"] == "left"]
        return rows.loc[rows["radical"].isin(self._radicals(rows))]

    def _radicals(self, rows: pd.DataFrame) -> list[int]:
        counts = Counter(rows["radical"])
        ranked = sorted((left.number for left in LEFT_FORMS), key=lambda number: -counts[number])
        return ranked[:RADICALS_WANTED]

    def select(self, characters: pd.DataFrame, drawable: Iterable[str]) -> pd.DataFrame:
        """The set itself, radical by radical.

        Args:
            characters: a table of `load_characters`.
            drawable: the characters that the font or the stroke files draw.
        Returns:
            Rows of the table with radical_character, position and text (the caption) added.
        Raises:
            ValueError: a radical has fewer characters than `per_radical`, or nearly none.
        """
        pool = self.pool(characters, drawable)
        available = Counter(pool["radical"])
        least = min(available.values()) if len(available) == RADICALS_WANTED else 0
        wanted = self.per_radical or (PER_RADICAL if least >= PER_RADICAL else least - least % BATCH_MULTIPLE)
        if not 1 <= wanted <= least:
            raise ValueError(
                f"left16 needs {RADICALS_WANTED} radicals with {max(wanted, 1)} drawable characters each, got "
                f"{ {radical_character(number): count for number, count in available.items()} }"
            )
        order = [left.number for left in LEFT_FORMS if left.number in available]
        return _first_of_each(pool, dict.fromkeys(order, wanted))

    def to_json(self) -> dict[str, Any]:
        """Name and parameters, as `rule_from_json` reads them."""
        return {"name": self.name, **asdict(self)}


@dataclass(frozen=True)
class EveryCharacter:
    """The full set: every character with a cleaned meaning, captioned by a sentence."""

    name: ClassVar[str] = "all"

    def pool(self, characters: pd.DataFrame, drawable: Iterable[str]) -> pd.DataFrame:
        """The same as `select`: nothing is left out."""
        rows = _drawn(characters, drawable)
        return _captioned(_in_reading_order(rows.loc[has_clean_meaning(rows)]), caption_of_template)

    def select(self, characters: pd.DataFrame, drawable: Iterable[str]) -> pd.DataFrame:
        """Every drawable character, in JIS order and then by codepoint.

        Args:
            characters: a table of `load_characters`.
            drawable: the characters that the font or the stroke files draw.
        Returns:
            Rows of the table with radical_character, position and text (the caption) added.
        Raises:
            ValueError: nothing is drawable.
        """
        rows = self.pool(characters, drawable)
        if rows.empty:
            raise ValueError("expected drawable characters with an English meaning, got none")
        return rows

    def to_json(self) -> dict[str, Any]:
        """Name and parameters, as `rule_from_json` reads them."""
        return {"name": self.name}


@dataclass(frozen=True)
class Only:
    """Some of the radicals of a balanced rule: a small set, which a few thousand images teach.

    Args:
        rule: what is selected from.
        radicals: classical numbers, in any order.
    Raises:
        ValueError: no radical, or one twice.
    """

    rule: Seed16 | Left16
    radicals: tuple[int, ...]
    name: ClassVar[str] = "only"

    def __post_init__(self):
        object.__setattr__(self, "radicals", tuple(self.radicals))
        if not self.radicals or len(set(self.radicals)) < len(self.radicals):
            raise ValueError(f"radicals must be one or more different numbers, got {self.radicals}")

    def pool(self, characters: pd.DataFrame, drawable: Iterable[str]) -> pd.DataFrame:
        """What the whole rule could choose from, these radicals alone."""
        return self._of_these(self.rule.pool(characters, drawable))

    def select(self, characters: pd.DataFrame, drawable: Iterable[str]) -> pd.DataFrame:
        """What the whole rule selects, these radicals alone.

        Args:
            characters: a table of `load_characters`.
            drawable: the characters that the font or the stroke files draw.
        Returns:
            Rows of the table with radical_character, position and text (the caption) added.
        Raises:
            ValueError: a radical that the rule does not select, or the rule's own reasons.
        """
        return self._of_these(self.rule.select(characters, drawable))

    def _of_these(self, rows: pd.DataFrame) -> pd.DataFrame:
        if unknown := sorted(set(self.radicals) - set(rows["radical"])):
            raise ValueError(f"{self.rule.name} selects no radicals {unknown}, only {sorted(set(rows['radical']))}")
        return rows.loc[rows["radical"].isin(list(self.radicals))]

    def to_json(self) -> dict[str, Any]:
        """Name, the whole rule and the radicals, as `rule_from_json` reads them."""
        return {"name": self.name, "rule": self.rule.to_json(), "radicals": list(self.radicals)}


@dataclass(frozen=True)
class Imbalanced:
    """As many characters as a balanced rule selects, but unevenly spread over the same radicals.

    Counts fall geometrically; the radical with most characters to offer gets `ratio` times as many
    as the one with fewest.
    """

    rule: Seed16 | Left16 | Only
    ratio: float
    name: ClassVar[str] = "imbalanced"

    def __post_init__(self):
        if not (math.isfinite(self.ratio) and self.ratio >= 1):
            raise ValueError(f"ratio must be >= 1, got {self.ratio}")

    def pool(self, characters: pd.DataFrame, drawable: Iterable[str]) -> pd.DataFrame:
        """The pool of the balanced rule."""
        return self.rule.pool(characters, drawable)

    def select(self, characters: pd.DataFrame, drawable: Iterable[str]) -> pd.DataFrame:
        """The set itself, largest radical first.

        Args:
            characters: a table of `load_characters`.
            drawable: the characters that the font or the stroke files draw.
        Returns:
            Rows of the table with radical_character, position and text (the caption) added.
        Raises:
            ValueError: a radical has fewer characters than its share, or the balanced rule's reasons.
        """
        pool = self.pool(characters, drawable)
        total = len(self.rule.select(characters, drawable))
        available = Counter(pool["radical"]).most_common()
        counts = geometric_counts(total, len(available), self.ratio)
        short = [
            f"{radical_character(number)} {count} of {offered}"
            for (number, offered), count in zip(available, counts, strict=True)
            if count > offered
        ]
        if short:
            raise ValueError(f"ratio {self.ratio:g} asks for more characters than there are: {', '.join(short)}")
        return _first_of_each(pool, {number: count for (number, _), count in zip(available, counts, strict=True)})

    def to_json(self) -> dict[str, Any]:
        """Name, the balanced rule and the ratio, as `rule_from_json` reads them."""
        return {"name": self.name, "rule": self.rule.to_json(), "ratio": self.ratio}


def geometric_counts(total: int, groups: int, ratio: float) -> list[int]:
    """Whole numbers that fall geometrically from the first group to the last.

    Args:
        total: their sum.
        groups: how many, >= 1.
        ratio: first over last, >= 1, before rounding.
    Returns:
        `groups` counts, not increasing, rounded by largest remainder.
    """
    exponents = np.arange(groups) / max(groups - 1, 1)
    shares = ratio**-exponents
    exact = total * shares / shares.sum()
    counts = np.floor(exact).astype(int)
    largest_remainders = np.argsort(counts - exact, kind="stable")[: total - counts.sum()]
    counts[largest_remainders] += 1
    return sorted(counts.tolist(), reverse=True)


def held_out(rule: Rule, characters: pd.DataFrame, drawable: Iterable[str], per_radical: int = 20) -> pd.DataFrame:
    """Further characters of the rule's radicals, none of which training has seen the like of.

    None shares its caption or first meaning with a selected character, or is a variant of one.

    Args:
        rule: the rule whose selection is trained on.
        characters: a table of `load_characters`.
        drawable: the characters that the font or the stroke files draw.
        per_radical: at most so many of each radical; fewer where the pool ends.
    Returns:
        Rows as from `rule.select`, with clean meanings; empty where the rule selects its whole pool.
    """
    drawable = set(drawable)
    selected = rule.select(characters, drawable)
    pool = rule.pool(characters, drawable)
    pool = pool.loc[has_clean_meaning(pool) & ~pool.index.isin(selected.index)]
    pool = _apart_from(pool, selected, characters)
    return _first_of_each(pool, dict.fromkeys(selected["radical"], per_radical))


def rule_from_json(values: Mapping[str, Any]) -> Rule:
    """Rebuild a rule from its `to_json`.

    Raises:
        ValueError: an unknown name, or parameters that the rule does not have.
    """
    parameters = {key: value for key, value in values.items() if key != "name"}
    rules = {rule.name: rule for rule in (Seed16, Left16, EveryCharacter, Only, Imbalanced)}
    if (name := values.get("name")) not in rules:
        raise ValueError(f"rule name must be one of {', '.join(rules)}, got {name!r}")
    if name in (Only.name, Imbalanced.name) and "rule" in parameters:
        parameters["rule"] = rule_from_json(parameters["rule"])
    try:
        return rules[name](**parameters)
    except TypeError as error:
        raise ValueError(f"rule {name!r} does not take {sorted(parameters)}: {error}") from error
