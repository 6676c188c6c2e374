"""Readings of a phrase: words find the parts they name, named parts find their slots, and Japanese is translated."""

from collections import Counter

import pytest

from kanjilab.data.components import load_components
from kanjilab.data.dictionary import load_characters
from kanjilab.data.typeset import Pair, novel_pairs
from kanjilab.data.writer_corpus import slot_counts
from kanjilab.experiments.phrase_readings import (
    attested,
    best_pair,
    layouts_named,
    nearness,
    read_phrase,
    translate,
)
from tests.typeset_writer import word_vectors

components = load_components()
every_layout = ("⿰", "⿱", "⿸", "⿺", "⿴")


def test_the_phrase_itself_comes_first():
    first, *others = read_phrase(" fire jewel ", components, embed=word_vectors)
    assert (first.prompt, first.pair, first.parts) == ("fire jewel", None, ())
    assert len(others) == 4 and all(reading.pair is not None for reading in others)


def test_words_find_the_parts_that_they_name():
    best = read_phrase("the jewel of fire", components, embed=word_vectors)[1]
    assert set(best.parts) == {"火", "玉"}
    assert best.prompt == "left: fire, right: jewel" and best.pair == Pair("⿰", "火", "玉")
    assert best.reason == "火 fire is near fire (1.00); 玉 jewel is near jewel (1.00)"


def test_suggested_pairs_are_new_and_attested():
    novel, counts = set(novel_pairs(components)), slot_counts(components, components.decompositions)
    for reading in read_phrase("water woman", components, embed=word_vectors)[1:]:
        assert reading.pair in novel and attested(reading.pair, counts) >= 2
    pairs = [frozenset(reading.parts) for reading in read_phrase("robot", components, embed=word_vectors)[1:]]
    assert len(set(pairs)) == len(pairs)


def test_layouts_are_kept_to():
    readings = read_phrase("water woman", components, layouts=("⿱",), embed=word_vectors)[1:]
    assert readings and {reading.pair.layout for reading in readings} == {"⿱"}


def test_the_nearest_name_of_a_part_counts():
    near, names = nearness(["man", "person"], ["人", "水"], word_vectors)
    assert names[0][0] == "man" and names[1][0] == "person"
    assert near[:, 0] == pytest.approx([1, 1], abs=1e-5) and (near[:, 1] < 0.1).all()


def test_named_parts_are_asked_by_slots_and_as_a_sum():
    readings = read_phrase("anything", components, parts="jewel + 火", embed=word_vectors)
    assert [reading.prompt for reading in readings] == ["left: fire, right: jewel", "fire + jewel"]
    assert readings[0].parts == ("火", "玉")
    assert read_phrase("anything", components, parts="女+竜")[0].prompt == "left: woman, right: dragon"


@pytest.mark.parametrize(
    ("parts", "complaint"),
    [
        ("water", "expected two parts, as woman\\+fish, got 'water'"),
        ("water+fire+tree", "expected two parts"),
        ("water+qqqq", "no part of characters is called 'qqqq'"),
        ("lid+walk", "亠 and 辵 are never in two slots that fit: 亠 is top; 辵 is outside"),
    ],
)
def test_parts_that_cannot_be_set_are_refused(parts, complaint):
    with pytest.raises(ValueError, match=complaint):
        read_phrase("anything", components, parts=parts)


def test_a_pair_that_exists_is_set_otherwise_or_refused():
    assert components.exists("⿰", ("人", "木")) == ["休"]
    assert best_pair("人", "木", components, every_layout) != Pair("⿰", "人", "木")
    counts = slot_counts(components, components.decompositions)
    turned = best_pair("人", "木", components, ("⿰",))
    assert turned == Pair("⿰", "木", "人") and attested(turned, counts) == 2  # 从 and 臥; 以 has a third part
    with pytest.raises(ValueError, match="火 and 火 make a character already: 炎"):
        best_pair("火", "火", components, ("⿱",))


def test_a_pair_is_attested_as_often_as_its_rarer_part():
    counts = Counter({("⿰", "火", "left"): 5, ("⿰", "玉", "right"): 3, ("⿰", "玉", "left"): 9})
    assert attested(Pair("⿰", "火", "玉"), counts) == 3
    assert attested(Pair("⿰", "玉", "火"), counts) == 0  # 火 is never on the right


@pytest.mark.parametrize(
    ("phrase", "english"),
    [("火の鳥", "fire bird"), ("泳ぐ", "swim"), ("queen", ""), ("café", ""), ("竜 queen", "dragon queen")],
)
def test_kanji_are_translated_by_the_dictionary(phrase, english):
    assert translate(phrase, load_characters()) == english


@pytest.mark.parametrize("phrase", ["さくら", "ロボット", "火のロボット", "\U0002a6d6"])
def test_what_the_dictionary_lacks_has_no_translation(phrase):
    assert translate(phrase, load_characters()) == ""


def test_japanese_is_read_as_it_is_and_in_translation():
    found = read_phrase("火の玉", components, translation="fire jewel", embed=word_vectors)
    assert [reading.prompt for reading in found[:2]] == ["火の玉", "fire jewel"]
    assert set(found[2].parts) == {"火", "玉"}  # suggested by the words of the translation


def test_what_no_encoder_understands_is_refused():
    with pytest.raises(ValueError, match="'물고기' cannot be read: Hangul letters are not understood"):
        read_phrase("물고기", components, embed=word_vectors)


def test_layouts_have_names():
    assert layouts_named("left-right") == ("⿰",) == layouts_named("⿰")
    assert layouts_named("outside-inside") == ("⿸", "⿺", "⿴")
    with pytest.raises(ValueError, match="expected a layout of left-right, top-bottom, outside-inside, ⿰"):
        layouts_named("diagonal")


def test_a_blank_phrase_is_refused():
    with pytest.raises(ValueError, match="expected a phrase, got none"):
        read_phrase("  ", components)
