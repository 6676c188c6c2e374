"""Which characters a dataset holds and how they are captioned: the selection rules."""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import numpy as np
import pandas as pd

from kanjilab.core.storage import plain_json
from kanjilab.data.dictionary import has_clean_meaning, rows_of
from kanjilab.data.japanese import CAPTION_CLASSES, japanese_captions, load_words
from kanjilab.data.radicals import BY_NUMBER, RADICALS_WANTED, radical_character, with_radicals

PER_RADICAL = 100
BATCH_MULTIPLE = 8


def caption_of_meanings(row: Any) -> str:
    """Cleaned meanings joined by ';', such as 'person;human'; the raw ones where none is left."""
    return ";".join(row.meanings or row.meanings_raw)


def caption_of_template(row: Any) -> str:
    """The sentence of the full set: what the image is, then the meanings."""
    meanings = ", ".join(row.meanings)
    return f"Image of a Japanese kanji character {row.Index} in plain font. The character means: {meanings}."


def caption_groups(characters: pd.DataFrame) -> pd.Series:
    """Groups that must not be divided between training and held-out data.

    Two characters belong together when one is listed as a variant of the other, or when they share
    their first meaning. Any other character that belongs with one of the two belongs with both.

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


def _in_reading_order(characters: pd.DataFrame, drawable: Iterable[str]) -> pd.DataFrame:
    """The characters that are drawn. JIS X 0208 comes first, level 1 before level 2; others follow by codepoint."""
    rows = characters.loc[characters.index.isin(list(drawable))]
    return rows.sort_values(["jis_order", "codepoint"], na_position="last")


def _captioned(rows: pd.DataFrame, caption: Callable[[Any], str]) -> pd.DataFrame:
    return with_radicals(rows).assign(text=[caption(row) for row in rows_of(rows)])


def _first_of_each(pool: pd.DataFrame, counts: Mapping[int, int]) -> pd.DataFrame:
    """The first characters of each radical, as many as `counts` says, radicals in its order."""
    groups: list[pd.DataFrame] = [pool.loc[pool["radical"] == number].head(count) for number, count in counts.items()]
    return pd.concat(groups)


class Rule(Protocol):
    """A selection rule: which characters are trained on.

    `pool` and `select` take a table of `load_characters` and the characters that the font or the stroke files draw.
    They return rows of the table with radical_character, position and text (the caption) added, and raise a
    ValueError where the rule cannot be met.
    """

    name: ClassVar[str]

    def pool(self, characters: pd.DataFrame, drawable: Iterable[str]) -> pd.DataFrame:
        """All characters that could be chosen; those left over may be held out."""
        ...

    def select(self, characters: pd.DataFrame, drawable: Iterable[str]) -> pd.DataFrame:
        """The characters that are chosen."""
        ...

    def to_json(self) -> dict[str, Any]:
        """Name and parameters, as `rule_from_json` reads them."""
        parameters = {key: value.to_json() if key == "rule" else value for key, value in vars(self).items()}
        return plain_json({"name": self.name, **parameters})


@dataclass(frozen=True)
class Seed16(Rule):
    """The published 1,600 of "Generative Kanji": the first 100 JIS X 0208 kanji of each of 16 radicals.

    The radical is the classical one, wherever it shows. A caption joins the cleaned meanings with
    ';'; the handful without any keeps its raw ones, so that the set stays the published one.
    """

    per_radical: int = PER_RADICAL
    name: ClassVar[str] = "seed16"

    def pool(self, characters: pd.DataFrame, drawable: Iterable[str]) -> pd.DataFrame:
        """Every JIS X 0208 kanji of the 16 commonest radicals, in JIS order."""
        rows = _in_reading_order(characters, drawable)
        rows = rows.loc[rows["jis_order"].notna() & rows["meanings_raw"].map(bool)]
        reached = [number for number, count in Counter(rows["radical"]).most_common() if count >= self.per_radical]
        if len(reached) < RADICALS_WANTED:
            raise ValueError(
                f"seed16 needs {RADICALS_WANTED} radicals with {self.per_radical} drawable JIS X 0208 kanji each, "
                f"got {len(reached)}: choose a fuller font or a smaller per_radical"
            )
        return _captioned(rows.loc[rows["radical"].isin(reached[:RADICALS_WANTED])], caption_of_meanings)

    def select(self, characters: pd.DataFrame, drawable: Iterable[str]) -> pd.DataFrame:
        """The set itself, radical by radical, in the order of their numbers."""
        pool = self.pool(characters, drawable)
        return _first_of_each(pool, dict.fromkeys(sorted(set(pool["radical"])), self.per_radical))


@dataclass(frozen=True)
class Left16(Rule):
    """What the article describes: 16 radicals, each really on the left of all its characters.

    `per_radical` None takes 100 where the font reaches that, else the largest multiple of 8 that
    all 16 reach (88 in IPAexGothic), so that batches divide evenly.
    """

    per_radical: int | None = None
    name: ClassVar[str] = "left16"

    def pool(self, characters: pd.DataFrame, drawable: Iterable[str]) -> pd.DataFrame:
        """Every character with a cleaned meaning and one of the 16 commonest left forms, in JIS order."""
        rows = _in_reading_order(characters, drawable)
        rows = rows.loc[has_clean_meaning(rows) & rows["radical"].isin(list(BY_NUMBER))]
        rows = _captioned(rows, caption_of_meanings)
        rows = rows.loc[rows["position"] == "left"]
        counts = Counter(rows["radical"])
        ranked = sorted(BY_NUMBER, key=lambda number: -counts[number])
        return rows.loc[rows["radical"].isin(ranked[:RADICALS_WANTED])]

    def select(self, characters: pd.DataFrame, drawable: Iterable[str]) -> pd.DataFrame:
        """The set itself, radical by radical, in the order of `LEFT_FORMS`."""
        pool = self.pool(characters, drawable)
        available = Counter(pool["radical"])
        least = min(available.values()) if len(available) == RADICALS_WANTED else 0
        wanted = self.per_radical or (PER_RADICAL if least >= PER_RADICAL else least - least % BATCH_MULTIPLE)
        if not 1 <= wanted <= least:
            raise ValueError(
                f"left16 needs {RADICALS_WANTED} radicals with {max(wanted, 1)} drawable characters each, got "
                f"{ {radical_character(number): count for number, count in available.items()} }"
            )
        return _first_of_each(pool, dict.fromkeys((number for number in BY_NUMBER if number in available), wanted))


@dataclass(frozen=True)
class EveryCharacter(Rule):
    """The full set: every character with a cleaned meaning, captioned by a sentence."""

    name: ClassVar[str] = "all"

    def pool(self, characters: pd.DataFrame, drawable: Iterable[str]) -> pd.DataFrame:
        """The same as `select`: nothing is left out."""
        rows = _in_reading_order(characters, drawable)
        return _captioned(rows.loc[has_clean_meaning(rows)], caption_of_template)

    def select(self, characters: pd.DataFrame, drawable: Iterable[str]) -> pd.DataFrame:
        """Every drawable character, in JIS order and then by codepoint."""
        rows = self.pool(characters, drawable)
        if rows.empty:
            raise ValueError("expected drawable characters with an English meaning, got none")
        return rows


@dataclass(frozen=True)
class Only(Rule):
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
        """What the whole rule selects, these radicals alone."""
        return self._of_these(self.rule.select(characters, drawable))

    def _of_these(self, rows: pd.DataFrame) -> pd.DataFrame:
        if unknown := sorted(set(self.radicals) - set(rows["radical"])):
            raise ValueError(f"{self.rule.name} selects no radicals {unknown}, only {sorted(set(rows['radical']))}")
        return rows.loc[rows["radical"].isin(list(self.radicals))]


@dataclass(frozen=True)
class Imbalanced(Rule):
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
        """The set itself, largest radical first."""
        pool = self.pool(characters, drawable)
        total = len(self.rule.select(characters, drawable))
        available = Counter(pool["radical"])
        ranked = [number for number, _ in available.most_common()]
        counts = dict(zip(ranked, geometric_counts(total, len(ranked), self.ratio), strict=True))
        short = [f"{radical_character(n)} {c} of {available[n]}" for n, c in counts.items() if c > available[n]]
        if short:
            raise ValueError(f"ratio {self.ratio:g} asks for more characters than there are: {', '.join(short)}")
        return _first_of_each(pool, counts)


@dataclass(frozen=True)
class InJapanese(Rule):
    """What another rule selects, captioned with Japanese words of the same meaning.

    Characters without such a word are left out, and so are words that the Japanese text encoder is tested on.

    Args:
        rule: what selects.
        kinds: of words, see `japanese.CAPTION_CLASSES`; by default those without the kanji itself.
        language: `ja`, or `both` for the Japanese words and then the rule's own caption.
        words: at most so many in a caption, the usual ones first, joined by ';'.
    Raises:
        ValueError: an unknown kind or language, or no word.
    """

    rule: "Seed16 | Left16 | EveryCharacter | Only | Imbalanced"
    kinds: tuple[str, ...] = ("kana", "other kanji")
    language: str = "ja"
    words: int = 3
    name: ClassVar[str] = "japanese"

    def __post_init__(self):
        object.__setattr__(self, "kinds", tuple(self.kinds))
        if not self.kinds or not set(self.kinds) <= set(CAPTION_CLASSES):
            raise ValueError(f"kinds must be one or more of {', '.join(CAPTION_CLASSES)}, got {self.kinds}")
        if self.language not in ("ja", "both") or self.words < 1:
            raise ValueError(f"expected language ja or both and words >= 1, got {self.language!r}, {self.words}")

    def pool(self, characters: pd.DataFrame, drawable: Iterable[str]) -> pd.DataFrame:
        """The other rule's pool, captioned in Japanese."""
        return self._captioned(self.rule.pool(characters, drawable))

    def select(self, characters: pd.DataFrame, drawable: Iterable[str]) -> pd.DataFrame:
        """What the other rule selects, captioned in Japanese."""
        return self._captioned(self.rule.select(characters, drawable))

    def _captioned(self, rows: pd.DataFrame) -> pd.DataFrame:
        found = japanese_captions(rows, load_words())
        found = found.loc[found["kind"].isin(list(self.kinds)) & ~found["held_out"]]
        texts = {
            str(character): ";".join(dict.fromkeys(own["text"].head(self.words)))
            for character, own in found.groupby("character", sort=False)
        }
        rows = rows.loc[rows.index.isin(list(texts))]
        japanese = [texts[str(character)] for character in rows.index]
        if self.language == "both":
            japanese = [f"{own};{english}" for own, english in zip(japanese, rows["text"], strict=True)]
        return rows.assign(text=japanese)


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
    """Further characters of the rule's radicals that share no group with a training character.

    So none has the caption or first meaning of a selected character, or is a variant of one (`caption_groups`).

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
    group = caption_groups(characters)
    pool = pool.loc[~group.loc[pool.index].isin(group.loc[selected.index])]
    return _first_of_each(pool, dict.fromkeys(selected["radical"], per_radical))


def rule_from_json(values: Mapping[str, Any]) -> Rule:
    """Rebuild a rule from its `to_json`.

    Raises:
        ValueError: no mapping with a name, an unknown name, or parameters that the rule does not have.
    """
    if not isinstance(values, Mapping) or not isinstance(values.get("name"), str):
        raise ValueError(f"expected a rule as {{'name': ...}}, got {values!r:.80}")
    parameters = {key: value for key, value in values.items() if key != "name"}
    rules = {rule.name: rule for rule in (Seed16, Left16, EveryCharacter, Only, Imbalanced, InJapanese)}
    if (name := values["name"]) not in rules:
        raise ValueError(f"rule name must be one of {', '.join(rules)}, got {name!r}")
    if name in (Only.name, Imbalanced.name, InJapanese.name) and "rule" in parameters:
        parameters["rule"] = rule_from_json(parameters["rule"])
    try:
        return rules[name](**parameters)
    except TypeError as error:
        raise ValueError(f"rule {name!r} does not take {sorted(parameters)}: {error}") from error
