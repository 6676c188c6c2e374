"""Words of Japanese: the entries of JMdict with their English, by script and kind, and which of them are held out.

Words are what the Japanese text encoder learns from. `japanese_captions` captions characters with them.
"""

from __future__ import annotations

import hashlib
import re
import sqlite3
import unicodedata
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any

import pandas as pd

from kanjilab.core.outside_files import reading_database
from kanjilab.core.storage import package_file
from kanjilab.data.dictionary import rows_of

SCRIPTS = ("hiragana", "katakana", "kanji", "other")
GLOSSES = 3  # of a word's first sense, that make its English
HELD_OUT_ONE_IN = 95  # groups of words: about two thousand entries
MIMETIC_HELD_OUT_ONE_IN = 10  # of which there would else be too few to measure anything
NAMES_ONE_IN = 8  # of those in katakana, of people and places
MIMETIC = "onomatopoeic or mimetic word"
# Forms that nobody writes today are left out, and so are spellings that JMdict calls irregular.
STALE = ("out-dated", "irregular")
HIRAGANA = re.compile(r"[\u3041-\u309fー]+")
KATAKANA = re.compile(r"[\u30a1-\u30ffー]+")
HAN = re.compile(r"[々\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]")
JAPANESE = re.compile(r"[\u3041-\u30ff\uff66-\uff9f]|" + HAN.pattern)
UNDERSTOOD = {"Latin", "Hiragana", "Katakana", "Cjk"}  # letters, by the first word of their names
TO_HIRAGANA = {code: code - 0x60 for code in range(0x30A1, 0x30F7)}
LEADING = re.compile(r"^(?:to be|to|an?|the) ")


def normal_text(text: str) -> str:
    """Text as the Japanese tokenizer reads it: NFKC, so that ﾛﾎﾞｯﾄ, ロボット and its NFD are one; lower case."""
    return unicodedata.normalize("NFKC", text).lower()


def has_japanese(text: str) -> bool:
    """Whether a text has kana or kanji, and so is read as Japanese."""
    return bool(JAPANESE.search(unicodedata.normalize("NFKC", text)))


def script_note(text: str) -> str:
    """What to say to a user of a text's scripts: "" for English."""
    scripts = _letter_scripts(text)
    said = []
    if has_japanese(text):
        said.append("Read as Japanese, its Latin letters too." if "Latin" in scripts else "Read as Japanese.")
    if scripts := sorted(scripts - UNDERSTOOD):
        said.append(f"{' and '.join(scripts)} letters are not understood: write in English or in Japanese.")
    return " ".join(said)


def is_understood(text: str) -> bool:
    """Whether a text encoder understands any of its letters, or it has none."""
    scripts = _letter_scripts(text)
    return not scripts or bool(scripts & UNDERSTOOD)


def _letter_scripts(text: str) -> set[str]:
    """The first words of the letters' names: Latin, Hiragana, Katakana, Cjk (kanji), Cyrillic, Hangul and so on."""
    letters = (sign for sign in unicodedata.normalize("NFKC", text) if sign.isalpha())
    return {unicodedata.name(sign, "Unnamed").split()[0].split("-")[0].capitalize() for sign in letters}


def script_of(word: str) -> str:
    """The script of a word, one of `SCRIPTS`: `kanji` where it has any, `other` where it has signs of neither kana."""
    if HAN.search(word):
        return "kanji"
    plain = word.replace("・", "")
    if KATAKANA.fullmatch(plain):
        return "katakana"
    return "hiragana" if HIRAGANA.fullmatch(plain) else "other"


@cache
def load_words() -> pd.DataFrame:
    """The words of JMdict; read once per process, so copy before changing it.

    Returns:
        One row per entry, indexed by its number in JMdict. Columns: forms (tuple, the usual one first; the readings in
        kana among them), english (the first sense's first glosses, joined by '; '), glosses (tuple, of all senses),
        script (of the first form), mimetic (bool, onomatopoeia), loan (bool, all forms in katakana), common (bool,
        marked as such), group (int, see `word_groups`), held_out (bool, see `is_held_out_group`).
    Raises:
        FileNotFoundError: the package `jamdict-data` is missing.
        ValueError: its database is damaged.
    Source: JMdict, EDRDG, CC BY-SA 4.0, https://www.edrdg.org/wiki/index.php/JMdict-EDICT_Dictionary_Project
    """
    with _dictionary() as connection:
        return word_table(*_read_entries(connection))


@cache
def load_names(one_in: int = NAMES_ONE_IN) -> pd.DataFrame:
    """Names of people and places in katakana, of JMnedict: one in so many of those that JMdict does not list.

    Args:
        one_in: divides `NAMES_ONE_IN`, so that more names are those of fewer and others.
    Returns:
        A table as of `load_words`.
    Raises:
        FileNotFoundError: the package `jamdict-data` is missing.
    Source: JMnedict, EDRDG, CC BY-SA 4.0.
    """
    query = (
        "SELECT n.idseq, n.text, g.text FROM NEKana n JOIN NETranslation t ON t.idseq = n.idseq "
        "JOIN NETransGloss g ON g.tid = t.ID WHERE n.idseq NOT IN (SELECT idseq FROM NEKanji) "
        "AND n.text NOT IN (SELECT text FROM Kana) ORDER BY n.ID, g.rowid"
    )
    forms: dict[int, tuple[list[str], list[str]]] = {}
    senses: dict[int, list[list[str]]] = {}
    with _dictionary() as connection:
        for entry, text, gloss in connection.execute(query):
            if script_of(text) == "katakana" and _hash_of(text) % one_in == 0:
                forms.setdefault(entry, ([], []))[1].append(text)
                senses.setdefault(entry, [[]])[0].append(gloss)
    return word_table(forms, senses, (), ())


@contextmanager
def _dictionary() -> Iterator[sqlite3.Connection]:
    if (path := package_file("jamdict_data", "jamdict.db")) is None:
        raise FileNotFoundError("no JMdict on this machine: expected the package jamdict-data with its jamdict.db")
    with reading_database(path, "JMdict") as connection:
        yield connection


def word_table(
    forms: dict[int, tuple[list[str], list[str]]],
    senses: dict[int, list[list[str]]],
    mimetic: Collection[int],
    common: Collection[int],
) -> pd.DataFrame:
    """The table of `load_words`.

    Args:
        forms: entry -> its forms with kanji, and those in kana.
        senses: entry -> the glosses of each sense.
        mimetic, common: entries.
    """
    listed = [entry for entry in sorted(forms) if senses.get(entry) and any(forms[entry])]
    headwords = {entry: tuple(forms[entry][0] or forms[entry][1]) for entry in listed}
    group = word_groups(headwords)
    rows = []
    for entry in listed:
        with_kanji, kana = forms[entry]
        own = tuple(dict.fromkeys(normal_text(form) for form in (*with_kanji, *kana)))
        rows.append(
            {
                "entry": entry,
                "forms": own,
                "english": english_of(senses[entry][0]),
                "glosses": tuple(dict.fromkeys(gloss for sense in senses[entry] for gloss in sense)),
                "script": script_of(own[0]),
                "mimetic": entry in mimetic,
                "loan": not with_kanji and all(script_of(form) == "katakana" for form in own),
                "common": entry in common,
                "group": group[entry],
            }
        )
    table = pd.DataFrame(rows).set_index("entry")
    first = {number: headwords[entry] for entry, number in reversed(group.items())}
    sounds = {group[entry] for entry in mimetic if entry in group}
    held_out = {number: is_held_out_group(words, number in sounds) for number, words in first.items()}
    return table.assign(held_out=[held_out[number] for number in table["group"]])


def english_of(glosses: Sequence[str]) -> str:
    """A sense in English: its first glosses joined by '; '; what brackets hold is kept, for 'raining' may be there."""
    plain = (" ".join(re.sub(r"[()\[\]{}]", " ", gloss).split()) for gloss in glosses[:GLOSSES])
    return "; ".join(dict.fromkeys(gloss for gloss in plain if gloss))


def word_groups(headwords: dict[int, tuple[str, ...]]) -> dict[int, int]:
    """Entries that must not be divided between training and held-out words: those that share a headword.

    Katakana and hiragana count as one, so ザーザー and ざあざあ need no luck to stay together.

    Args:
        headwords: entry -> its forms with kanji, or those in kana where it has no others.
    Returns:
        Entry -> the number of its group, which is its first entry's.
    """
    parent = {entry: entry for entry in headwords}

    def root(entry: int) -> int:
        while parent[entry] != entry:
            parent[entry] = parent[parent[entry]]
            entry = parent[entry]
        return entry

    first_with: dict[str, int] = {}
    for entry, words in headwords.items():
        for word in words:
            other = root(first_with.setdefault(folded(word), entry))
            own = root(entry)
            parent[max(own, other)] = min(own, other)
    return {entry: root(entry) for entry in headwords}


def folded(word: str) -> str:
    """A word with katakana as hiragana, without dots between its words."""
    return normal_text(word).translate(TO_HIRAGANA).replace("・", "")


def is_held_out_group(words: Iterable[str], mimetic: bool = False) -> bool:
    """Whether a group of words is held out, by the hash of its first entry's first headword.

    Args:
        words: those headwords.
        mimetic: whether onomatopoeia is in the group.
    """
    one_in = MIMETIC_HELD_OUT_ONE_IN if mimetic else HELD_OUT_ONE_IN
    return _hash_of(folded(next(iter(words)))) % one_in == 0


def _hash_of(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4])


def words_with(words: pd.DataFrame, characters: Collection[str]) -> pd.Series:
    """Which words are written with one of some characters, in any of their forms, (rows,) bool.

    The words of held-out characters leave every stage of training: the kanji in a caption is its identity.

    Args:
        words: of `load_words`.
        characters: single signs.
    """
    signs = set(characters)
    found = [any(signs.intersection(form) for form in forms) for forms in words["forms"]]
    return pd.Series(found, index=words.index, dtype=bool)


def _read_entries(connection: sqlite3.Connection) -> tuple[Any, ...]:
    """The arguments of `word_table`."""
    stale = " OR ".join(f"text LIKE '%{word}%'" for word in STALE)
    forms: dict[int, tuple[list[str], list[str]]] = {}
    for place, table, marks in ((0, "Kanji", "KJI"), (1, "Kana", "KNI")):
        query = f"SELECT idseq, text FROM {table} WHERE ID NOT IN (SELECT kid FROM {marks} WHERE {stale}) ORDER BY ID"
        for entry, text in connection.execute(query):
            forms.setdefault(entry, ([], []))[place].append(text)
    senses: dict[int, dict[int, list[str]]] = {}
    glosses = "SELECT s.idseq, s.ID, g.text FROM Sense s JOIN SenseGloss g ON g.sid = s.ID ORDER BY s.ID, g.rowid"
    for entry, sense, text in connection.execute(glosses):
        senses.setdefault(entry, {}).setdefault(sense, []).append(text)
    mimetic = "SELECT s.idseq FROM Sense s JOIN misc m ON m.sid = s.ID WHERE m.text = ?"
    sounds = {entry for (entry,) in connection.execute(mimetic, (MIMETIC,))}
    tables = (("Kanji", "KJP"), ("Kana", "KNP"))
    marked = " UNION ".join(
        f"SELECT idseq FROM {forms} WHERE ID IN (SELECT kid FROM {marks})" for forms, marks in tables
    )
    common = {entry for (entry,) in connection.execute(marked)}
    return forms, {entry: list(found.values()) for entry, found in senses.items()}, sounds, common


# Captions of characters


def word_index(words: pd.DataFrame, meanings: Iterable[str]) -> dict[str, list[int]]:
    """Which words mean what: entries whose first sense has exactly this gloss, common words and short forms first.

    Args:
        words: of `load_words`.
        meanings: English, in any case; articles and 'to' before them do not count.
    Returns:
        Bare meaning (see `bare_meaning`) -> entries; only those that some word has.
    """
    wanted = {bare_meaning(meaning) for meaning in meanings}
    order = words.assign(length=[len(forms[0]) for forms in words["forms"]])
    order = order.sort_values(["common", "length"], ascending=[False, True], kind="stable")
    found: dict[str, list[int]] = {}
    for entry, english in zip(order.index.tolist(), order["english"].tolist(), strict=True):
        for meaning in dict.fromkeys(map(bare_meaning, english.split("; "))):
            if meaning in wanted:
                found.setdefault(meaning, []).append(entry)
    return found


def bare_meaning(gloss: str) -> str:
    """A gloss in lower case, without 'to', 'a' or 'the' before it."""
    return LEADING.sub("", gloss.strip().lower())


CAPTION_CLASSES: dict[str, Callable[[str, str], bool]] = {
    "kana": lambda form, character: script_of(form) in ("hiragana", "katakana"),
    "katakana": lambda form, character: script_of(form) == "katakana",
    "other kanji": lambda form, character: script_of(form) == "kanji" and character not in form,
    "itself": lambda form, character: character in form,
}


def japanese_captions(characters: pd.DataFrame, words: pd.DataFrame) -> pd.DataFrame:
    """Japanese words for characters: those whose English is a meaning of the character.

    Args:
        characters: rows of the character table.
        words: of `load_words`; those that are not to be used are left out of it before.
    Returns:
        One row for each character, form and class that fits: character, text (the form), kind (one of
        `CAPTION_CLASSES`), mimetic, loan, held_out, entry; a character's usual words come first.
    """
    index = word_index(words, [meaning for row in characters["meanings"] for meaning in row])
    listed = {row.Index: row for row in rows_of(words.loc[sorted({entry for own in index.values() for entry in own})])}
    found = []
    for row in rows_of(characters):
        meanings = dict.fromkeys(bare_meaning(meaning) for meaning in row.meanings)
        for entry in dict.fromkeys(entry for meaning in meanings for entry in index.get(meaning, ())):
            word = listed[entry]
            for form in word.forms:
                kinds = [kind for kind, fits in CAPTION_CLASSES.items() if fits(form, row.Index)]
                found += [(row.Index, form, kind, entry, word.mimetic, word.loan, word.held_out) for kind in kinds]
    columns = ["character", "text", "kind", "entry", "mimetic", "loan", "held_out"]
    return pd.DataFrame(found, columns=columns)
