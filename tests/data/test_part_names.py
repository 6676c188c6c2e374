"""Names of parts: one part a name, parts found by any form or name, and captions that ask for them."""

import re
from collections import Counter

import pytest

from kanjilab.data.components import load_components, normal_form
from kanjilab.data.part_names import name_of_part, pair_caption, part_named, part_names, parts_caption


def test_no_name_belongs_to_two_parts():
    counts = Counter(name for names in part_names().values() for name in names)
    assert [name for name, count in counts.items() if count > 1] == []


def test_every_part_that_the_judges_know_has_a_name():
    assert set(load_components().parts) - part_names().keys() == set()


def test_names_are_plain_words_of_normal_forms():
    assert [part for part in part_names() if normal_form(part) != part] == []
    names = [name for own in part_names().values() for name in own]
    assert [name for name in names if not re.fullmatch(r"[a-z]+([ -][a-z]+)*", name)] == []


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("water", "水"),
        (" Water ", "水"),
        ("氵", "水"),
        ("水", "水"),
        ("亻", "人"),
        ("man", "人"),  # not its first name
        ("king", "玉"),  # 王 is its shape on the left
        ("rice field", "田"),
        ("竜", "竜"),  # no name of its own in the table
        ("dragon", "龍"),  # by the dictionary; of its two parts the more frequent one
    ],
)
def test_parts_are_found_by_name_and_by_any_form(text, part):
    assert part_named(text) == part


def test_each_name_leads_back_to_its_part():
    assert all(part_named(name) == part for part, names in part_names().items() for name in names)


def test_an_unknown_name_is_refused_with_those_near_it():
    with pytest.raises(ValueError, match="no part of characters is called 'waer'; near it are water"):
        part_named("waer")
    with pytest.raises(ValueError, match="no part of characters is called 'qqqq'$"):
        part_named("qqqq")


def test_captions_name_the_slots_or_the_sum():
    assert parts_caption("⿰", "水", "三") == "left: water, right: three"
    assert parts_caption("⿱", "艸", "人") == "top: grass, bottom: person"
    assert parts_caption("⿴", "囗", "玉") == "outside: enclosure, inside: jewel"
    assert pair_caption("水", "三") == "water + three"
    assert name_of_part("竜") == "dragon"
    with pytest.raises(ValueError, match="expected a layout of ⿰⿱⿸⿺⿴, got '⿻'"):
        parts_caption("⿻", "水", "三")
    with pytest.raises(ValueError, match="x is not a part with an English name"):
        pair_caption("水", "x")
