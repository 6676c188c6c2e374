"""Components: hand-checked decompositions, the stored list against KanjiVG, and questions to the list."""

import json

import pytest

from kanjilab.data.components import (
    CHARACTERS_MIN,
    COMPONENTS_FILE,
    LAYOUTS,
    SLOTS,
    Components,
    Decomposition,
    build_components,
    components_to_json,
    decompose,
    load_components,
    normal_form,
)
from kanjilab.data.kanjivg import KanjiVG, local_kanjivg

needs_kanjivg = pytest.mark.skipif(local_kanjivg() is None, reason="KanjiVG is not on this machine")


@pytest.fixture(scope="module")
def components() -> Components:
    return load_components()


@pytest.fixture(scope="module")
def kanjivg() -> KanjiVG:
    return KanjiVG.open()


def outer(decomposition: Decomposition | None) -> list[tuple[str, str]]:
    assert decomposition is not None
    return sorted((part.element, part.slot) for part in decomposition.outer)


def nested(decomposition: Decomposition | None) -> set[str]:
    assert decomposition is not None
    return {part.element for part in decomposition.parts if part.nested}


@pytest.mark.parametrize(
    ("character", "layout", "parts"),
    [
        ("休", "⿰", [("人", "left"), ("木", "right")]),
        ("海", "⿰", [("水", "left"), ("毎", "right")]),
        ("国", "⿴", [("囗", "outside"), ("玉", "inside")]),
        ("道", "⿺", [("辵", "outside"), ("首", "inside")]),
        ("森", "⿱", [("木", "top"), ("林", "bottom")]),
        ("病", "⿸", [("疒", "outside"), ("丙", "inside")]),
        ("間", "⿴", [("日", "inside"), ("門", "outside")]),
        ("花", "⿱", [("化", "bottom"), ("艸", "top")]),
        ("言", "⿻", []),
    ],
)
def test_hand_checked_layouts(components, character, layout, parts):
    listed = components.of(character)
    assert listed.layout == layout
    assert outer(listed) == sorted(parts)


def test_nested_parts_are_marked(components):
    assert nested(components.of("言")) == {"口"}
    assert {"目", "自"} <= nested(components.of("道"))
    assert nested(components.of("休")) == set()
    assert [part.slot for part in components.of("言").parts if part.element == "言"] == ["whole"]


def test_boxes_lie_where_the_parts_are(components):
    person, tree = components.of("休").outer
    assert person.box[2] <= tree.box[0] + 0.05 and tree.box[2] > 0.8
    first, second = components.of("森").outer
    assert first.box[3] < second.box[3] and first.box[1] < second.box[1] - 0.2
    frame, inside = components.of("国").outer
    assert all(frame.box[i] < inside.box[i] for i in (0, 1)) and all(frame.box[i] > inside.box[i] for i in (2, 3))


def test_a_split_group_is_one_part(components):
    (frame,) = [part for part in components.of("国").parts if part.element == "囗"]
    assert frame.strokes == (0, 1, 7)  # the lid is written last


def test_every_stroke_number_and_box_is_sound(components):
    for character, listed in components.decompositions.items():
        assert listed.layout in LAYOUTS
        whole = next(part for part in listed.parts if part.slot == "whole")
        assert whole.strokes == tuple(range(len(whole.strokes))), character
        for part in listed.parts:
            assert part.slot in ("", *SLOTS) and set(part.strokes) <= set(whole.strokes)
            left, top, right, bottom = part.box
            assert -0.03 <= left <= right <= 1.03 and -0.03 <= top <= bottom <= 1.03, (character, part)


@pytest.mark.parametrize(
    ("form", "name"), [("氵", "水"), ("扌", "手"), ("忄", "心"), ("艹", "艸"), ("辶", "辵"), ("亻", "人"), ("人", "人")]
)
def test_normal_forms(form, name):
    assert normal_form(form) == name


def test_normal_form_is_idempotent_and_vocabulary_is_normal(components):
    assert all(normal_form(normal_form(part)) == normal_form(part) == part for part in components.parts)


def test_vocabulary_holds_the_sixteen_radicals(components):
    assert set("人口土女心手木水竹糸艸虫言辵金玉魚") <= set(components.parts)
    assert not set("一丨丶丿") & set(components.parts), "single strokes are everywhere"


def test_questions_to_the_list(components):
    assert components.exists("⿰", ("人", "木")) == ["休"]
    assert components.exists("⿰", ("亻", "木")) == ["休"]
    assert "杏" in components.exists("⿱", ("木", "口"))
    assert components.exists("⿰", ("木", "人")) == []
    assert components.contains("言", "口") and not components.contains("口", "言")
    assert not components.contains("木", "木")
    assert components.of("A") is None


def test_json_round_trip_of_a_few(components, tmp_path):
    few = Components(components.parts[:3], {c: components.decompositions[c] for c in "休国言"})
    path = tmp_path / "few.json"
    path.write_text(json.dumps(components_to_json(few)))
    read = load_components(path)
    assert read.parts == few.parts and dict(read.decompositions) == dict(few.decompositions)


def test_a_damaged_list_is_refused(tmp_path):
    path = tmp_path / "bad.json"
    path.write_text(json.dumps({"parts": [], "characters": {"休": "⿰ 人0x1,2,3,4;0-1"}}))
    with pytest.raises(ValueError, match="人0x1"):
        load_components(path)


def test_the_file_names_its_source():
    content = json.loads(COMPONENTS_FILE.read_text(encoding="utf-8"))
    assert "Ulrich Apel" in content["credit"] and "CC BY-SA" in content["credit"]
    assert COMPONENTS_FILE.stat().st_size < 1_500_000


@needs_kanjivg
@pytest.mark.parametrize("character", list("休海国道森言病間花行衛品赤林樹街"))
def test_the_stored_list_is_what_kanjivg_says(components, kanjivg, character):
    fresh = components_to_json(Components((), {character: decompose(character, kanjivg)}))
    stored = components_to_json(Components((), {character: components.of(character)}))
    assert fresh == stored


@needs_kanjivg
def test_a_part_enters_the_vocabulary_by_how_many_characters_have_it(kanjivg):
    files = {f"{ord(c):05x}.svg": kanjivg._files[f"{ord(c):05x}.svg"] for c in "休体木林森校村杉松枝枚析杯板柱桂梅植"}
    some = KanjiVG(files)
    built = build_components(some, some.characters())
    assert "木" in built.parts and "人" not in built.parts  # in all but none, and in two, of 18
    assert CHARACTERS_MIN <= 18
    assert "木" not in build_components(some, "休体").parts
