"""The pocket base's corpus: no Han character is in it, proved by other means than the code that left them out."""

import json
import re
import unicodedata
from functools import cache
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
import pytest

import kanjilab
from kanjilab.data.pocket_corpus import (
    CorpusGlyph,
    common_name,
    corpus_list,
    draw_glyph,
    draw_glyphs,
    expand_corpus_list,
    held_out,
    list_glyphs,
    touches_han,
    unicode_caption,
)

LIST = Path(kanjilab.__file__).parent / "weights" / "pocket2" / "corpus.json"
FONT_FOLDER = Path("/usr/share/fonts")
DEJAVU = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"

# From Blocks.txt of the Unicode Character Database, not from kanjilab. Whole planes 2 and 3 are set aside for Han.
HAN_BLOCKS = {
    "CJK Radicals Supplement": range(0x2E80, 0x2F00),
    "Kangxi Radicals": range(0x2F00, 0x2FE0),
    "Ideographic Description Characters": range(0x2FF0, 0x3000),
    "Kanbun": range(0x3190, 0x31A0),
    "CJK Strokes": range(0x31C0, 0x31F0),
    "Enclosed CJK Letters and Months, circled": range(0x3280, 0x32B1),
    "Enclosed CJK Letters and Months, months": range(0x32C0, 0x32CC),
    "CJK Unified Ideographs Extension A": range(0x3400, 0x4DC0),
    "CJK Unified Ideographs": range(0x4E00, 0xA000),
    "CJK Compatibility Ideographs": range(0xF900, 0xFB00),
    "Enclosed Ideographic Supplement": range(0x1F200, 0x1F300),
    "Supplementary and Tertiary Ideographic Planes": range(0x20000, 0x40000),
}
# Cut from Han characters: the kana, also where they are small, historic, halfwidth or circled, and bopomofo.
CUT_FROM_HAN_BLOCKS = {
    "Hiragana and Katakana": range(0x3040, 0x3100),
    "Bopomofo": range(0x3100, 0x3130),
    "Bopomofo Extended": range(0x31A0, 0x31C0),
    "Katakana Phonetic Extensions": range(0x31F0, 0x3200),
    "Enclosed kana": range(0x32D0, 0x32FF),
    "CJK Compatibility": range(0x3300, 0x3358),
    "Halfwidth Katakana": range(0xFF66, 0xFFA0),
    "Kana Extended and Supplement": range(0x1AFF0, 0x1B170),
}
SHOWING_HAN_BLOCKS = {"Mahjong Tiles": range(0x1F000, 0x1F030), "Chess Symbols, xiangqi": range(0x1FA60, 0x1FA70)}
SHOWING_HAN_BLOCKS |= {
    "Tibetan, svasti signs (卍 卐)": range(0x0FD5, 0x0FD9),
    "rain, which Symbola draws as 雨": range(0x26C6, 0x26C7),
}
SET_ASIDE = {
    code for blocks in (HAN_BLOCKS, CUT_FROM_HAN_BLOCKS, SHOWING_HAN_BLOCKS) for b in blocks.values() for code in b
}
HAN_WORDS = {
    *(
        "CJK",
        "IDEOGRAPH",
        "IDEOGRAPHIC",
        "IDEOGRAPHS",
        "KANGXI",
        "KANBUN",
        "BOPOMOFO",
        "HANGZHOU",
        "XIANGQI",
        "MAHJONG",
    ),
    *("HIRAGANA", "KATAKANA", "HENTAIGANA", "KANA"),
}


def han_words(codepoint: int) -> set[str]:
    """Words of a Unicode name that speak of Han characters."""
    return set(re.split("[ -]", unicodedata.name(chr(codepoint), ""))) & HAN_WORDS


@cache
def shows_han(codepoint: int) -> bool:
    """By block, by the words of the name, and by one step of decomposition after another."""
    if codepoint in SET_ASIDE or han_words(codepoint):
        return True
    parts = [part for part in unicodedata.decomposition(chr(codepoint)).split() if not part.startswith("<")]
    return any(shows_han(int(part, 16)) for part in parts)


def stored_list() -> dict[str, list[list[int]]]:
    """The committed list; until there is one, that of the fonts of this machine."""
    if LIST.is_file():
        return json.loads(LIST.read_text())
    try:
        glyphs = list_glyphs([FONT_FOLDER])
    except FileNotFoundError as error:
        pytest.skip(f"no {LIST.name} and no build fonts: {error}")
    return corpus_list(
        pd.DataFrame([(glyph.codepoint, glyph.font.name) for glyph in glyphs], columns=["codepoint", "font"])
    )


@pytest.fixture(scope="module")
def glyphs() -> pd.DataFrame:
    return expand_corpus_list(stored_list())


def test_no_han_character_is_in_the_corpus(glyphs):
    assert len(glyphs) > 30_000
    found = sorted(code for code in set(glyphs["codepoint"]) if shows_han(code))
    assert [f"U+{code:04X} {unicodedata.name(chr(code), '')}" for code in found] == []


def test_the_first_pocket_saw_five_that_the_second_did_not():
    """Its card says so."""
    first = expand_corpus_list(json.loads((LIST.parents[1] / "pocket" / "corpus.json").read_text()))
    assert {code for code in first["codepoint"] if shows_han(code)} == {0xFD5, 0xFD6, 0xFD7, 0xFD8, 0x26C6}


def test_the_corpus_is_of_the_named_fonts(glyphs):
    """None of them is made for kanji."""
    fonts = set(glyphs["font"])
    assert {font for font in fonts if not font.startswith(("NotoSans", "NotoSerif", "Nanum", "Symbola"))} == set()
    assert {font for font in fonts if "CJK" in font} == set()
    hangul = glyphs.loc[glyphs["codepoint"].between(0xAC00, 0xD7A3), "font"]
    assert set(hangul) == {"NanumGothic.ttf", "NanumMyeongjo.ttf"}


@pytest.mark.parametrize(
    "codepoint",
    [
        0x4E00,  # 一
        0x9FFF,
        0x3400,
        0x20000,
        0x31350,  # extension H, younger than this Python's names
        0x2E80,  # radicals
        0x2F00,
        0x31C0,  # a stroke
        0x2FF0,  # how a character is composed
        0x3007,  # 〇, a character outside the blocks
        0x3021,  # 〡, which is 一 upright
        0x3038,  # decomposes to 十
        0x3192,  # ㆒, a reading mark
        0x3220,  # (一)
        0x3280,  # 一 in a circle
        0x32C0,  # 1月
        0x32FF,  # 令和 in a square
        0x3358,  # 0点
        0xF900,
        0x1F210,  # 手 in a square
        0x1F240,  # 〔本〕
        0x1F250,  # 得 in a circle
        0x30AB,  # カ, cut from 加
        0x3042,  # あ, from 安
        0xFF76,  # halfwidth カ
        0x32D0,  # ア in a circle
        0x3300,  # アパート in a square
        0x1B002,  # a kana of old
        0x3105,  # ㄅ, cut from 勹
        0x1F004,  # 中 on a tile
        0x1FA60,  # 帥 on a piece
        0x1F4AE,  # 大変よくできました
        0x26C6,  # rain, drawn as 雨
        0x0FD6,  # 卍
    ],
)
def test_han_and_what_comes_of_it_is_refused(codepoint):
    assert touches_han(codepoint)


@pytest.mark.parametrize(
    "character", ["a", "é", "½", "Ω", "ß", "ﬁ", "Ⅳ", "①", "♔", "★", "각", "ㄱ", "ꀀ", "☷", "⛩", "𓀀", "\U00017000"]
)
def test_other_scripts_and_signs_are_accepted(character):
    assert not touches_han(ord(character))


def test_refusal_misses_nothing_that_the_independent_rule_sees():
    missed = [code for code in range(0x40000) if shows_han(code) and not touches_han(code)]
    names = [unicodedata.name(chr(code)) for code in missed if unicodedata.category(chr(code)) not in ("Cn", "Cs")]
    assert names == []


def test_captions_are_names():
    assert unicode_caption(0x17000) == unicode_caption(0x187F7) == "tangut character"
    assert unicode_caption(0x18800) == "tangut 1" and unicode_caption(0x18AFF) == "tangut 768"
    assert unicode_caption(ord("a")) == "latin small letter a"
    assert unicode_caption(0x2654) == "white chess king"
    assert [unicode_caption(code) for code in (0x20, 0x301, 0xE000, 0x2800, 0x2500)] == [None] * 5


@pytest.mark.parametrize(
    ("caption", "name"),
    [
        ("hebrew letter alef", "alef"),
        ("hangul syllable gag", "hangul syllable gag"),
        ("greek capital letter omega", "omega"),
        ("latin small letter a with acute", "a with acute"),
        ("castle", "castle"),
        ("cent sign", "cent sign"),
    ],
)
def test_common_names(caption, name):
    assert common_name(caption) == name


def test_list_round_trip():
    table = pd.DataFrame({"codepoint": [65, 66, 66, 67, 70, 1200], "font": ["a.ttf", "a.ttf", "b.ttf", *["a.ttf"] * 3]})
    contents = corpus_list(table)
    assert contents == {"a.ttf": [[65, 67], [70, 70], [1200, 1200]], "b.ttf": [[66, 66]]}
    pd.testing.assert_frame_equal(expand_corpus_list(json.loads(json.dumps(contents))), table)


@pytest.mark.parametrize("ranges", [[[5, 4]], [[1, 3], [3, 5]], [[5, 6], [1, 2]], [[1]], [[-1, 3]], [[0, 0x110000]]])
def test_a_broken_list_is_refused(ranges):
    with pytest.raises(ValueError, match=r"a\.ttf: expected \[first, last\]"):
        expand_corpus_list({"a.ttf": ranges})


def test_missing_build_fonts_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="NotoSerifTangut.*apt-get install fonts-noto-core"):
        list_glyphs([tmp_path])


def letters(text: str) -> list[CorpusGlyph]:
    return [CorpusGlyph(ord(letter), DEJAVU, f"letter {letter}") for letter in text]


def test_glyphs_are_centred_and_large():
    for glyph in letters("AiwΩ"):
        dark = np.asarray(draw_glyph(glyph)) < 128
        top, bottom = np.flatnonzero(dark.any(axis=1))[[0, -1]]
        left, right = np.flatnonzero(dark.any(axis=0))[[0, -1]]
        assert 96 <= max(bottom - top, right - left) + 1 <= 113  # the space that letters keep beside them counts
        assert abs(top + bottom - 127) <= 4 and abs(left + right - 127) <= 4
    assert draw_glyph(CorpusGlyph(0x2003, DEJAVU, "em space")) is None


def test_blank_glyphs_and_repeated_pictures_are_left_out():
    glyphs = [*letters("Aa\u2003Ω"), *letters("A"), CorpusGlyph(ord("Α"), DEJAVU, "letter A")]
    table, images = draw_glyphs(glyphs)
    assert table["caption"].tolist() == ["letter A", "letter a", "letter Ω"]  # no blank, no second A of that caption
    np.testing.assert_array_equal(images[2], np.asarray(draw_glyph(glyphs[3])))


def test_one_codepoint_in_fifty_is_held_out():
    assert np.mean([held_out(code) for code in range(0x3000)]) == pytest.approx(1 / 50, rel=0.1)
