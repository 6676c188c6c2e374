"""Words of Japanese: their scripts, their groups, which are held out, and the captions that they make."""

import unicodedata

import pandas as pd
import pytest

from kanjilab.data import selection
from kanjilab.data.dictionary import load_characters
from kanjilab.data.japanese import (
    english_of,
    folded,
    has_japanese,
    is_held_out_group,
    is_understood,
    japanese_captions,
    normal_text,
    script_note,
    script_of,
    word_groups,
    word_table,
    words_with,
)
from kanjilab.data.selection import EveryCharacter, InJapanese, rule_from_json

FORMS = {
    1: (["魚"], ["さかな"]),
    2: ([], ["フィッシュ"]),
    3: (["大海"], ["たいかい"]),
    4: ([], ["ザーザー", "ざあざあ"]),
    5: (["釣る"], ["つる"]),
}
SENSES = {1: [["fish"]], 2: [["a fish"]], 3: [["ocean"]], 4: [["(raining) heavily"], ["with a buzz"]], 5: [["to fish"]]}


@pytest.fixture(scope="module")
def words() -> pd.DataFrame:
    return word_table(FORMS, SENSES, mimetic={4}, common={1, 5})


def test_a_word_is_read_alike_however_it_is_typed():
    robot = "ロボット"
    for typed in ("ﾛﾎﾞｯﾄ", unicodedata.normalize("NFD", robot), robot):
        assert normal_text(typed) == robot
        assert has_japanese(typed)
    assert normal_text("Ｔシャツ") == "tシャツ"


@pytest.mark.parametrize(
    ("word", "script"),
    [("さかな", "hiragana"), ("サラリー・マン", "katakana"), ("人魚", "kanji"), ("Tシャツ", "other"), ("々", "kanji")],
)
def test_scripts(word, script):
    assert script_of(word) == script


@pytest.mark.parametrize(
    ("text", "note"),
    [
        ("river", ""),
        ("42", ""),
        ("川", "Read as Japanese."),
        ("赤い robot", "Read as Japanese, its Latin letters too."),
        ("река", "Cyrillic letters are not understood: write in English or in Japanese."),
        ("川 река", "Read as Japanese. Cyrillic letters are not understood: write in English or in Japanese."),
    ],
)
def test_a_note_says_how_a_text_is_read(text, note):
    assert script_note(text) == note


def test_what_no_encoder_understands():
    assert not is_understood("물고기") and not is_understood("река")
    assert is_understood("川 река") and is_understood("fish") and is_understood("+")


def test_english_keeps_what_brackets_hold():
    assert english_of(["(raining) heavily", "heavily", "fast", "never read"]) == "raining heavily; heavily; fast"


def test_words_that_share_a_headword_are_one_group():
    groups = word_groups({1: ("ザーザー",), 2: ("海", "うみ"), 3: ("ざーざー",), 4: ("うみ", "膿")})
    assert groups == {1: 1, 2: 2, 3: 1, 4: 2}
    assert folded("サラリー・マン") == "さらりーまん"


def test_one_word_in_ninety_five_is_held_out_and_more_onomatopoeia():
    names = [f"語{number}" for number in range(20_000)]
    assert 150 < sum(is_held_out_group([name]) for name in names) < 275  # 210 expected
    assert 1_850 < sum(is_held_out_group([name], mimetic=True) for name in names) < 2_150


def test_the_table_marks_loans_and_onomatopoeia(words):
    assert words.loc[2, "loan"] and not words.loc[4, "loan"]  # ざあざあ is another form of it
    assert words.loc[4, "mimetic"] and words.loc[1, "common"]
    assert words.loc[4, "english"] == "raining heavily"
    assert words.loc[1, "forms"] == ("魚", "さかな")


def test_words_with_a_character_in_any_form(words):
    assert words_with(words, "魚海").tolist() == [True, False, True, False, False]


def test_captions_of_a_character_by_kind(words):
    fish = load_characters().loc[["魚"]]
    found = japanese_captions(fish, words)
    assert found.loc[found["kind"] == "itself", "text"].tolist() == ["魚"]
    assert set(found.loc[found["kind"] == "kana", "text"]) == {"さかな", "フィッシュ", "つる"}
    assert found.loc[found["kind"] == "katakana", "text"].tolist() == ["フィッシュ"]
    assert found.loc[found["kind"] == "other kanji", "text"].tolist() == ["釣る"]
    assert found["text"].iloc[0] == "魚"  # the usual word first
    assert "たいかい" not in set(found["text"])


def test_a_rule_captions_its_characters_with_words_that_are_not_held_out(words, monkeypatch):
    held_back = words.assign(held_out=words.index == 2)  # フィッシュ
    monkeypatch.setattr(selection, "load_words", lambda: held_back)
    characters = load_characters().loc[["魚", "鯉"]]
    rule = InJapanese(EveryCharacter(), words=2)
    chosen = rule.select(characters, ["魚", "鯉"])
    assert chosen["text"].to_dict() == {"魚": "さかな;釣る"}  # no word means carp
    both = InJapanese(EveryCharacter(), kinds=("itself",), language="both").select(characters, ["魚", "鯉"])
    assert both.loc["魚", "text"].startswith("魚;Image of a Japanese kanji")
    assert rule_from_json(rule.to_json()) == rule


@pytest.mark.parametrize("wrong", [{"kinds": ("romaji",)}, {"kinds": ()}, {"language": "en"}, {"words": 0}])
def test_wrong_settings_of_the_rule_are_refused(wrong):
    with pytest.raises(ValueError, match="kinds must be one or more|expected language ja or both"):
        InJapanese(EveryCharacter(), **wrong)
