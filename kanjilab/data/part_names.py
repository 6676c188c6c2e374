"""English names of the parts of characters, and the captions that ask for parts by name."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from difflib import get_close_matches
from functools import cache
from importlib.resources import files
from types import MappingProxyType

from kanjilab.data.components import load_components, normal_form
from kanjilab.data.dictionary import load_characters
from kanjilab.data.typeset import SLOTS_OF_LAYOUT

NAMES_FILE = "part_names.tsv"
CLOSE_MATCHES = 4  # named in an error


@cache
def part_names() -> Mapping[str, tuple[str, ...]]:
    """Names of parts, the usual one first; no name belongs to two parts.

    Returns:
        Normal form of a part (水 for 氵) -> its names, in lower case.
    """
    rows = files("kanjilab.data").joinpath(NAMES_FILE).read_text(encoding="utf-8").splitlines()
    pairs = (row.split("\t") for row in rows)
    return MappingProxyType({part: tuple(names.split("|")) for part, names in pairs})


@cache
def _parts_by_name() -> Mapping[str, str]:
    return {name: part for part, names in part_names().items() for name in names}


@cache
def _dictionary_names() -> Mapping[str, str]:
    """Part -> the dictionary's first meaning, for parts without a name of their own; the most frequent first."""
    characters = load_characters()
    counts = Counter(part.element for listed in load_components().decompositions.values() for part in listed.outer)
    meanings: dict[str, tuple[str, ...]] = characters["meanings"].to_dict()
    others = (part for part, _ in counts.most_common() if meanings.get(part) and part not in part_names())
    return {part: meanings[part][0].lower() for part in others}


def has_name(part: str) -> bool:
    """Whether `name_of_part` knows a part."""
    return part in part_names() or part in _dictionary_names()


def name_of_part(part: str) -> str:
    """The usual English name of a part, or what the dictionary says first where the table has none.

    Args:
        part: normal form.
    Raises:
        ValueError: neither has one.
    """
    if part in part_names():
        return part_names()[part][0]
    if part in _dictionary_names():
        return _dictionary_names()[part]
    raise ValueError(f"{part} is not a part with an English name")


def part_named(text: str) -> str:
    """The part that is meant by a name or by a character in any of its forms.

    Args:
        text: such as "water", "Water", "水" or "氵".
    Returns:
        The normal form, such as "水".
    Raises:
        ValueError: no part has this name; the message lists names that are spelled nearly so.
    """
    asked = text.strip().lower()
    form = normal_form(asked)
    if form in part_names() or form in _dictionary_names():
        return form
    if asked in _parts_by_name():
        return _parts_by_name()[asked]
    if found := next((part for part, name in _dictionary_names().items() if name == asked), None):
        return found
    near = get_close_matches(asked, [*_parts_by_name(), *_dictionary_names().values()], CLOSE_MATCHES)
    hint = f"; near it are {', '.join(dict.fromkeys(near))}" if near else ""
    raise ValueError(f"no part of characters is called {text.strip()!r:.80}{hint}")


def parts_caption(layout: str, first: str, second: str) -> str:
    """The caption that asks for two parts in their slots, such as "left: water, right: three".

    Args:
        layout: one with two slots, such as "⿰".
        first, second: normal forms of the parts, in the order of the slots.
    Raises:
        ValueError: a layout without slots, or a part without a name.
    """
    if layout not in SLOTS_OF_LAYOUT:
        raise ValueError(f"expected a layout of {''.join(SLOTS_OF_LAYOUT)}, got {layout!r}")
    slots = SLOTS_OF_LAYOUT[layout]
    return f"{slots[0]}: {name_of_part(first)}, {slots[1]}: {name_of_part(second)}"


def pair_caption(first: str, second: str) -> str:
    """The caption that asks for two parts wherever they go, such as "water + three"."""
    return f"{name_of_part(first)} + {name_of_part(second)}"
