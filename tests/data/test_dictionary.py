"""The character table and the cleaning of its meanings, on real characters."""

import gzip
from pathlib import Path
from xml.sax.saxutils import escape

import pandas as pd
import pytest

from kanjilab.data.dictionary import clean_meanings, has_clean_meaning, is_composed, load_characters

SAMPLE = "亜観觀人氺衤基姓億粂欄水"


@pytest.fixture(scope="module")
def characters() -> pd.DataFrame:
    return load_characters()


def test_size_and_one_row_known_by_heart(characters):
    assert len(characters) == 13_108
    assert characters["meanings_raw"].map(bool).sum() == 10_357
    assert characters["jis"].notna().sum() == 6_355
    row = characters.loc["亜"]
    assert (row.codepoint, row.radical, row.strokes, row.skip) == (0x4E9C, 7, 7, "4-7-1")
    assert (row.jis, row.jis_order, row.grade, row.frequency) == ("1-16-1", 1601, 8, 1509)
    assert row.meanings == ("Asia", "rank next", "come after")
    assert row.meanings_raw == ("Asia", "rank next", "come after", "-ous")
    assert row.readings_on == ("ア",) and row.readings_kun == ("つ.ぐ",)
    assert row.variants == ("亞",)


def test_codepoint_belongs_to_the_index_and_numbers_are_in_range(characters):
    assert (characters["codepoint"] == [ord(character) for character in characters.index]).all()
    assert characters.index.is_unique
    assert characters["radical"].between(1, 214).all()
    assert characters["skip"].str.fullmatch(r"[1-4]-\d+-\d+").all()


@pytest.mark.parametrize(
    ("character", "raw", "clean"),
    [
        ("川", "river or three-stroke river radical (no. 47)", ("stream", "river")),
        ("衤", "clothing radical (no. 145", ("clothes",)),  # the bracket never closes
        ("亻", "radical number 9", ()),
        ("基", "radical (chem)", ("fundamentals", "radical", "counter for machines", "foundation")),
        ("粂", "(kokuji)", ()),
        ("鰯", "(kokuji)", ("sardine",)),
        ("亜", "-ous", ("Asia", "rank next", "come after")),
        ("漢", "Sino-", ("China",)),
        ("負", "-", ("defeat", "negative", "minus", "bear", "owe", "assume a responsibility")),
        ("億", "10**8", ("hundred million",)),
        ("乎", "?", None),
        ("桔", "used in plant names", ()),
        ("倻", "phonetic used in Korean place names", ()),
        ("妛", "same as", ("despise", "contempt", "ugly")),
        ("丂", "variant of other characters", ("obstruction of breath as it seeks release",)),
        ("緯", "(parallels of) latitude", None),
        ("𪃹", "{kokuji}", ("thrush",)),
        ("瞿", "surname", ()),
        ("渤", "place name", ()),
        ("淮", "name of a Chinese river", ()),
        ("嫡", "direct descent (non-bastard)", ("legitimate wife", "direct descent")),
    ],
)
def test_each_cleaning_rule_on_a_real_character(characters, character, raw, clean):
    row = characters.loc[character]
    assert raw in row.meanings_raw
    assert raw not in row.meanings
    if clean is not None:
        assert row.meanings == clean


def test_kept_although_they_look_like_what_is_dropped(characters):
    assert "to sort out the stalks used in divination" in characters.loc["揲"].meanings
    assert "what?" in characters.loc["那"].meanings
    assert characters.loc["河"].meanings == ("river",)
    assert "family name" in characters.loc["氏"].meanings and "name" in characters.loc["名"].meanings
    assert "latitude" in characters.loc["緯"].meanings


def test_cleaning_twice_changes_nothing_more(characters):
    once = {meanings for meanings in characters["meanings"]}
    again = {clean_meanings(meanings) for meanings in once}
    # "radical" survives the first pass only as the chemist's one, so a second pass may not see it.
    assert {m for m in once if "radical" not in m} <= again


def test_no_remarks_are_left_anywhere(characters):
    glosses = {gloss for meanings in characters["meanings"] for gloss in meanings}
    assert not [gloss for gloss in glosses if set("()[]{};*") & set(gloss)]
    assert not [gloss for gloss in glosses if gloss != gloss.strip() or "  " in gloss or "kokuji" in gloss]


def test_repeats_and_semicolons_cannot_break_a_caption():
    assert clean_meanings(["ear (of grain)", "ear", "a;b"]) == ("ear", "a, b")
    assert clean_meanings([]) == ()


def test_compatibility_ideographs_are_not_captioned(characters):
    assert not is_composed("\ufa1e") and is_composed("羽")
    captioned = has_clean_meaning(characters)
    changed = [character for character in characters.index if not is_composed(character)]
    english = [character for character in changed if characters.loc[character].meanings_raw]
    assert len(english) == 14
    assert not captioned[changed].any()
    assert captioned["水"] and not captioned["瞿"]


# --- kanjidic2.xml ---------------------------------------------------------------------------------


def as_xml(rows: pd.DataFrame) -> str:
    """A kanjidic2.xml of some rows, with what the real one has besides: other languages, misread codes."""
    entries = []
    for character, row in rows.iterrows():
        jis = f'<cp_value cp_type="jis208">{row.jis}</cp_value>' if row.jis else ""
        grade = "" if pd.isna(row.grade) else f"<grade>{row.grade}</grade>"
        frequency = "" if pd.isna(row.frequency) else f"<freq>{row.frequency}</freq>"
        variants = "".join(f'<variant var_type="ucs">{ord(v):X}</variant>' for v in row.variants)
        readings = "".join(f'<reading r_type="ja_on">{r}</reading>' for r in row.readings_on)
        readings += "".join(f'<reading r_type="ja_kun">{r}</reading>' for r in row.readings_kun)
        meanings = "".join(f"<meaning>{escape(m)}</meaning>" for m in row.meanings_raw)
        entries.append(
            f"<character><literal>{character}</literal>"
            f'<codepoint><cp_value cp_type="ucs">{row.codepoint:x}</cp_value>{jis}</codepoint>'
            f'<radical><rad_value rad_type="nelson_c">1</rad_value>'
            f'<rad_value rad_type="classical">{row.radical}</rad_value></radical>'
            f"<misc>{grade}<stroke_count>{row.strokes}</stroke_count><stroke_count>99</stroke_count>"
            f"{variants}{frequency}</misc>"
            f'<query_code><q_code qc_type="skip" skip_misclass="posn">4-9-9</q_code>'
            f'<q_code qc_type="skip">{row.skip}</q_code></query_code>'
            f'<reading_meaning><rmgroup><reading r_type="pinyin">ya4</reading>{readings}{meanings}'
            f'<meaning m_lang="fr">Asie</meaning></rmgroup></reading_meaning></character>'
        )
    doctype = "<!DOCTYPE kanjidic2 [<!ELEMENT kanjidic2 (header,character*)>]>"
    return f'<?xml version="1.0" encoding="UTF-8"?>{doctype}<kanjidic2><header/>{"".join(entries)}</kanjidic2>'


@pytest.mark.parametrize("packed", [False, True], ids=["xml", "xml.gz"])
def test_xml_gives_the_same_table_as_the_package(characters, tmp_path, packed):
    expected = characters.loc[list(SAMPLE)]
    expected = expected.assign(variants=[tuple(v for v in vs if v in SAMPLE) for vs in expected["variants"]])
    data = as_xml(expected).encode("utf-8")
    path = tmp_path / ("kanjidic2.xml.gz" if packed else "kanjidic2.xml")
    path.write_bytes(gzip.compress(data) if packed else data)
    pd.testing.assert_frame_equal(load_characters(path), expected)


def test_entity_bomb_is_refused(tmp_path):
    path = tmp_path / "kanjidic2.xml"
    path.write_text('<!DOCTYPE k [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;">]><kanjidic2>&b;</kanjidic2>')
    with pytest.raises(ValueError, match="defines XML entities"):
        load_characters(path)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"<kanjidic2><character>", "does not parse"),
        (b"<jmdict/>", "expected the root element <kanjidic2>, got <jmdict>"),
        (gzip.compress(b"<kanjidic2/>" * 100)[:-9], "damaged"),
        (b"", "does not parse"),
        (b"<kanjidic2><character><literal>\xe6\xb0\xb4</literal></character></kanjidic2>", "radical and strokes"),
    ],
    ids=["truncated", "another file", "truncated gzip", "empty", "no radical"],
)
def test_damaged_files_are_refused(tmp_path, data, message):
    path = tmp_path / "kanjidic2.xml"
    path.write_bytes(data)
    with pytest.raises(ValueError, match=message):
        load_characters(path)


def test_missing_file_is_said_to_be_missing(tmp_path):
    with pytest.raises(FileNotFoundError):
        load_characters(Path(tmp_path / "none.xml"))
