"""The dictionary table: every character of KANJIDIC2 with its radical, strokes, layout and meanings."""

import re
import sqlite3
import unicodedata
import zlib
from collections.abc import Iterator, Sequence
from functools import cache
from gzip import BadGzipFile, GzipFile
from io import BytesIO
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element, ParseError

import pandas as pd

from kanjilab.core.outside_files import read_file, reading_database
from kanjilab.core.storage import package_file

XML_BYTES_MAX = 256 * 1024 * 1024  # the real file unpacks to about 15 MB
GZIP_MAGIC = b"\x1f\x8b"
CHARACTER_SETS = ("ucs", "jis208", "jis212", "jis213")

RADICAL_OF_CHEMISTRY = "radical (chem)"
NOT_A_MEANING = re.compile(
    r"\bradical\b"  # 'fishhook radical (no. 5)' names a form
    r"|\(no\.? ?\d"  # the same, also where the bracket never closes
    r"|\(kokuji\)"  # 'made in Japan'
    r"|^-|-$"  # an affix: '-ous', 'semi-', and the bare minus sign
    r"|\b10\*\*\d"  # a power of ten
    r"|^\?+$"
    r"|^(?:\w+ )?used in\b"  # 'character used in place names', but not 'stalks used in divination'
    r"|^same as\b|^variant of\b",
    re.IGNORECASE,
)
ONLY_A_NAME = re.compile(
    r"^(?:chinese |korean )?(?:surname|(?:place|proper|personal) name)$"
    r"|^name of (?:an? |the |certain )?(?:chinese )?(?:rivers?|place)\b",
    re.IGNORECASE,
)
BRACKETED = re.compile(r"\([^()]*\)|\([^()]*$|\[[^\[\]]*\]|\{[^{}]*\}")


def clean_meanings(raw: Sequence[str]) -> tuple[str, ...]:
    """English meanings without the dictionary's remarks; order is kept, repeats are dropped.

    Left out: names of radicals ("radical (chem)" stays), kokuji marks, affixes, powers of ten, bare
    question marks, "used in", "same as" and "variant of" notes, and glosses that only say that this
    is a surname, a place or a river. Other bracketed parts are cut out of their gloss.

    Args:
        raw: meanings as KANJIDIC2 prints them.
    Returns:
        The cleaned ones; empty where none is left.
    """
    cleaned = (_clean(gloss) for gloss in raw)
    return tuple(dict.fromkeys(gloss for gloss in cleaned if gloss))


def _clean(gloss: str) -> str:
    gloss = unicodedata.normalize("NFC", gloss).strip()
    if gloss == RADICAL_OF_CHEMISTRY:
        return "radical"
    if NOT_A_MEANING.search(gloss):
        return ""
    bare = " ".join(BRACKETED.sub(" ", gloss).replace(";", ", ").split()).strip(" ,)")
    return "" if ONLY_A_NAME.search(bare) or not any(sign.isalnum() for sign in bare) else bare


def is_composed(character: str) -> bool:
    """False for compatibility ideographs, which NFC replaces by another character."""
    return unicodedata.normalize("NFC", character) == character


def rows_of(characters: pd.DataFrame) -> Iterator[Any]:
    """Rows as named tuples: `row.Index` is the character, `row.meanings` and so on its columns."""
    return iter(characters.itertuples())


def has_clean_meaning(characters: pd.DataFrame) -> pd.Series:
    """Which rows can be captioned: a cleaned meaning is left, and NFC keeps the character.

    Args:
        characters: a table of `load_characters`.
    Returns:
        (rows,) bool, same index.
    """
    kept = [bool(row.meanings) and is_composed(row.Index) for row in rows_of(characters)]
    return pd.Series(kept, index=characters.index, dtype=bool)


@cache
def load_characters(kanjidic2: Path | None = None) -> pd.DataFrame:
    """The character table; read once per process, so copy before changing it.

    Args:
        kanjidic2: a `kanjidic2.xml` or `kanjidic2.xml.gz`; None reads the copy in `jamdict-data`.
    Returns:
        One row per character, indexed by it, in the source's order. Columns: codepoint (int),
        radical (int, classical 1 to 214), strokes (int), skip (str or None), jis (JIS X 0208 kuten
        such as "1-16-1", or None), jis_order (nullable int, 100 x row + cell), grade, frequency
        (nullable ints), meanings (tuple, cleaned English), meanings_raw (tuple), readings_on,
        readings_kun (tuples), variants (tuple of characters).
    Raises:
        FileNotFoundError: the file, or the package, is not there.
        ValueError: the file is not KANJIDIC2, or defines XML entities.
    Source: KANJIDIC2, EDRDG, CC BY-SA 4.0, https://www.edrdg.org/wiki/index.php/KANJIDIC_Project
    """
    if kanjidic2 is None:
        return _to_table(_read_jamdict())
    try:
        return _to_table(_read_xml(Path(kanjidic2)))
    except _EntryError as error:
        raise ValueError(f"{kanjidic2}: {error}") from error


class _EntryError(ValueError):
    """An entry that is none of KANJIDIC2; the message names its character."""


def _read_jamdict() -> list[dict[str, Any]]:
    if (path := package_file("jamdict_data", "jamdict.db")) is None:
        raise FileNotFoundError("no KANJIDIC2 on this machine: expected the package jamdict-data with its jamdict.db")
    with reading_database(path, "KANJIDIC2") as connection:
        found = connection.execute("SELECT id, literal, stroke_count, grade, freq FROM character ORDER BY id")
        records = {number: _empty_record(*scalars) for number, *scalars in found}
        _add_jamdict_lists(connection, records)
    return list(records.values())


def _add_jamdict_lists(connection: sqlite3.Connection, records: dict[int, dict[str, Any]]) -> None:
    for number, kind, value in connection.execute("SELECT cid, cp_type, value FROM codepoint ORDER BY rowid"):
        records[number]["codes"][kind] = value
    for number, kind, value in connection.execute("SELECT cid, var_type, value FROM variant ORDER BY rowid"):
        records[number]["variant_codes"].append((kind, value))
    for number, value in connection.execute("SELECT cid, value FROM radical WHERE rad_type = 'classical'"):
        records[number]["radical"] = value
    skip = "SELECT cid, value FROM query_code WHERE qc_type = 'skip' AND ifnull(skip_misclass, '') = ''"
    for number, value in connection.execute(skip):
        records[number]["skip"] = value
    group = dict(connection.execute("SELECT id, cid FROM rm_group"))
    meaning = "SELECT gid, value FROM meaning WHERE ifnull(m_lang, '') IN ('', 'en') ORDER BY rowid"
    for number, value in connection.execute(meaning):
        records[group[number]]["meanings_raw"].append(value)
    reading = "SELECT gid, r_type, value FROM reading WHERE r_type IN ('ja_on', 'ja_kun') ORDER BY rowid"
    for number, kind, value in connection.execute(reading):
        records[group[number]]["readings_" + kind.removeprefix("ja_")].append(value)


def _empty_record(character: str, strokes: Any, grade: Any, frequency: Any) -> dict[str, Any]:
    scalars = {"character": character, "strokes": strokes, "grade": grade, "frequency": frequency}
    lists: dict[str, Any] = {name: [] for name in ("variant_codes", "meanings_raw", "readings_on", "readings_kun")}
    return {**scalars, "codes": {}, "radical": None, "skip": None, **lists}


def _read_xml(path: Path) -> list[dict[str, Any]]:
    from defusedxml import DefusedXmlException
    from defusedxml.ElementTree import fromstring

    data = _unpacked(path)
    try:
        root = fromstring(data)
    except DefusedXmlException as error:
        raise ValueError(f"{path}: expected plain KANJIDIC2, got a file that defines XML entities ({error})") from error
    except (ParseError, LookupError, ValueError) as error:  # a LookupError of an encoding that Python does not know
        raise ValueError(f"{path}: expected KANJIDIC2 as XML, got text that does not parse ({error})") from error
    if root.tag != "kanjidic2":
        raise ValueError(f"{path}: expected the root element <kanjidic2>, got <{root.tag}>")
    if not (records := [_record_of(node) for node in root.iter("character")]):
        raise ValueError(f"{path}: expected KANJIDIC2, got a file without characters")
    return records


def _unpacked(path: Path) -> bytes:
    stored = read_file(path, "KANJIDIC2", XML_BYTES_MAX)
    try:
        with GzipFile(fileobj=BytesIO(stored)) if stored.startswith(GZIP_MAGIC) else BytesIO(stored) as file:
            data = file.read(XML_BYTES_MAX + 1)
    except (EOFError, BadGzipFile, zlib.error) as error:
        raise ValueError(f"{path}: expected a whole gzip file, got a damaged one ({error})") from error
    if len(data) > XML_BYTES_MAX:
        raise ValueError(f"{path}: expected at most {XML_BYTES_MAX} bytes of XML, got more")
    return data


def _record_of(node: Element) -> dict[str, Any]:
    def values(path: str, attribute: str, wanted: str) -> list[str]:
        return [found.text or "" for found in node.iterfind(path) if found.get(attribute, "en") == wanted]

    strokes, grade, frequency = (node.findtext(f"misc/{name}") for name in ("stroke_count", "grade", "freq"))
    record = _empty_record(node.findtext("literal", ""), strokes, grade, frequency)
    record["codes"] = {found.get("cp_type"): found.text for found in node.iterfind("codepoint/cp_value")}
    record["variant_codes"] = [(found.get("var_type"), found.text) for found in node.iterfind("misc/variant")]
    record["radical"] = next(iter(values("radical/rad_value", "rad_type", "classical")), None)
    codes = [code for code in node.iterfind("query_code/q_code") if not code.get("skip_misclass")]
    record["skip"] = next((code.text for code in codes if code.get("qc_type") == "skip"), None)
    record["meanings_raw"] = values("reading_meaning/rmgroup/meaning", "m_lang", "en")
    record["readings_on"] = values("reading_meaning/rmgroup/reading", "r_type", "ja_on")
    record["readings_kun"] = values("reading_meaning/rmgroup/reading", "r_type", "ja_kun")
    return record


def _to_table(records: Sequence[dict[str, Any]]) -> pd.DataFrame:
    by_code: dict[tuple[str, str], str] = {}
    for record in records:
        for kind in CHARACTER_SETS:
            if kind in record["codes"]:
                by_code[kind, _plain_code(record["codes"][kind])] = record["character"]
    rows = [_checked_row(record, by_code) for record in records]
    columns = {name: pd.Series([row[name] for row in rows], dtype=_dtype(name)) for name in rows[0]}
    return pd.DataFrame(columns).set_index("character")


def _dtype(column: str) -> str:
    if column in ("jis_order", "grade", "frequency"):
        return "Int64"
    return "int64" if column in ("codepoint", "radical", "strokes") else "object"


def _checked_row(record: dict[str, Any], by_code: dict[tuple[str, str], str]) -> dict[str, Any]:
    try:
        return _row(record, by_code)
    except (ValueError, TypeError) as error:
        raise _EntryError(f"character {record['character']!r}: {error}") from error


def _row(record: dict[str, Any], by_code: dict[tuple[str, str], str]) -> dict[str, Any]:
    character = record["character"]
    if len(character) != 1 or record["radical"] is None or record["strokes"] is None:
        raise ValueError(f"expected one character with its radical and strokes, got {record}")
    jis = _plain_code(record["codes"]["jis208"]) if "jis208" in record["codes"] else None
    partners = (by_code.get((kind, _plain_code(code))) for kind, code in record["variant_codes"])
    return {
        "character": character,
        "codepoint": ord(character),
        "radical": _number_of("radical", record["radical"]),
        "strokes": _number_of("strokes", record["strokes"]),
        "skip": record["skip"],
        "jis": jis,
        "jis_order": None if jis is None else _kuten_order(jis),
        "grade": _optional("grade", record["grade"]),
        "frequency": _optional("frequency", record["frequency"]),
        "meanings": clean_meanings(record["meanings_raw"]),
        "meanings_raw": tuple(record["meanings_raw"]),
        "readings_on": tuple(record["readings_on"]),
        "readings_kun": tuple(record["readings_kun"]),
        "variants": tuple(dict.fromkeys(p for p in partners if p and p != character)),
    }


def _plain_code(code: str | None) -> str:
    """'1-16-01' and '1-16-1' are the same kuten; hexadecimal codepoints come in both cases."""
    parts = (code or "").split("-")
    if len(parts) == 3 and all(part.isdecimal() for part in parts):
        return "-".join(str(int(part)) for part in parts)
    return (code or "").lower()


def _kuten_order(kuten: str) -> int:
    parts = kuten.split("-")
    if len(parts) != 3 or not all(part.isdecimal() for part in parts):
        raise ValueError(f"expected a jis208 code such as 1-16-1, got {kuten!r}")
    return 100 * int(parts[1]) + int(parts[2])


def _number_of(name: str, value: Any) -> int:
    try:
        return int(value)
    except (ValueError, TypeError):
        raise ValueError(f"expected a whole number as {name}, got {value!r}") from None


def _optional(name: str, value: Any) -> int | None:
    return None if value in (None, "") else _number_of(name, value)
