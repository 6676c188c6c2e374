"""Dictionary files that are damaged, cut or of another make: one sentence that names file and character."""

import gzip
import io
import struct
import time
import zipfile
import zlib

import pytest

from kanjilab.data.dictionary import load_characters
from kanjilab.data.kanjivg import KanjiVG
from kanjilab.data.rendering import GlyphError

ENTRY = """<character><literal>{literal}</literal><codepoint><cp_value cp_type="ucs">6c34</cp_value>
<cp_value cp_type="jis208">{jis}</cp_value></codepoint>
<radical><rad_value rad_type="classical">{radical}</rad_value></radical>
<misc><grade>{grade}</grade><stroke_count>{strokes}</stroke_count><freq>{freq}</freq></misc>
<reading_meaning><rmgroup><meaning>water</meaning></rmgroup></reading_meaning></character>"""
SOUND = dict(literal="水", jis="1-31-69", radical="85", grade="1", strokes="4", freq="223")


def xml(**changes: str) -> bytes:
    return f"<kanjidic2>{ENTRY.format(**{**SOUND, **changes})}</kanjidic2>".encode()


def flipped(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 0x55]) + data[at + 1 :]


WORDS = b"".join(struct.pack("<I", 2654435761 * number % 2**32).hex().encode() for number in range(2_000))
PACKED = gzip.compress(b"<kanjidic2>" + WORDS + b"</kanjidic2>")
FAULTS = {
    "gzip with a flipped byte": (flipped(PACKED, 200), "expected a whole gzip file, got a damaged one"),
    "gzip with a flipped byte at its end": (flipped(PACKED, len(PACKED) - 6), "expected a whole gzip file"),
    "gzip cut in half": (PACKED[: len(PACKED) // 2], "expected a whole gzip file"),
    "gzip of an unknown method": (flipped(PACKED, 2), "expected a whole gzip file"),
    "gzip of a header alone": (PACKED[:10], "expected a whole gzip file"),
    "no characters": (b"<kanjidic2/>", "got a file without characters"),
    "a header alone": (b"<kanjidic2><header/></kanjidic2>", "got a file without characters"),
    "a word for a radical": (xml(radical="one"), "character '水': expected a whole number as radical, got 'one'"),
    "a word for strokes": (xml(strokes="four"), "character '水': expected a whole number as strokes, got 'four'"),
    "a word for a grade": (xml(grade="first"), "character '水': expected a whole number as grade, got 'first'"),
    "a fraction for a frequency": (xml(freq="1.5"), "character '水': expected a whole number as frequency"),
    "no strokes": (xml().replace(b"<stroke_count>4</stroke_count>", b""), "character '水': expected one character"),
    "two characters in one": (xml(literal="水火"), "character '水火': expected one character"),
    "no character": (xml(literal=""), "character '': expected one character"),
    "jis208 without text": (xml(jis=""), "character '水': expected a jis208 code such as 1-16-1, got ''"),
    "jis208 in words": (xml(jis="a-b-c"), "character '水': expected a jis208 code such as 1-16-1, got 'a-b-c'"),
    "an unknown encoding": (b'<?xml version="1.0" encoding="klingon"?>' + xml(), "text that does not parse"),
    "bytes of another encoding": (b'<?xml version="1.0" encoding="utf-8"?>\xff' + xml(), "does not parse"),
    "an HTML page": (b"<html><body>404</body></html>", "expected the root element <kanjidic2>, got <html>"),
    "an LFS pointer": (b"version https://git-lfs.github.com/spec/v1\n", "text that does not parse"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_what_is_no_dictionary_is_refused_by_name(name, tmp_path):
    data, message = FAULTS[name]
    path = tmp_path / "kanjidic2.xml"
    path.write_bytes(data)
    with pytest.raises(ValueError, match=message) as caught:
        load_characters(path)
    assert str(caught.value).startswith(str(path)) and "\n" not in str(caught.value)


def test_the_sound_entry_is_read(tmp_path):
    (tmp_path / "sound.xml").write_bytes(xml())
    row = load_characters(tmp_path / "sound.xml").loc["水"]
    assert (row["radical"], row["strokes"], row["grade"], row["jis_order"]) == (85, 4, 1, 3169)


def archive(data: bytes = WORDS, method: int = zipfile.ZIP_DEFLATED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as file:
        file.writestr("kanji/04e00.svg", data)
    return buffer.getvalue()


def with_field(data: bytes, offsets: tuple[int, int], value: int) -> bytes:
    """A zip whose one entry has another number in its header, at two places: its own and the directory's."""
    found = bytearray(data)
    for start, offset in zip((data.index(b"PK\x03\x04"), data.index(b"PK\x01\x02")), offsets, strict=True):
        found[start + offset : start + offset + 2] = struct.pack("<H", value)
    return bytes(found)


ARCHIVES = {
    "damaged deflate data": flipped(archive(), 60),
    "deflate data of ones": archive().replace(zlib.compress(WORDS)[2:40], b"\xff" * 38),
    "a wrong checksum": archive(b"<svg/>", zipfile.ZIP_STORED).replace(b"<svg/>", b"<gvs/>"),
    "an unknown compression": with_field(archive(), (8, 10), 77),
    "a password": with_field(archive(), (6, 8), 1),
    "cut in half": archive()[:2_000],
    "0 bytes": b"",
}


@pytest.mark.parametrize("name", ARCHIVES)
def test_a_damaged_archive_is_refused_by_name(name, tmp_path):
    path = tmp_path / "kanjivg.zip"
    path.write_bytes(ARCHIVES[name])
    with pytest.raises(ValueError, match=r"kanjivg\.zip: expected a zip file of KanjiVG"):
        KanjiVG.open(path)


@pytest.mark.parametrize(
    "svg",
    [b"<!DOCTYPE" * 110_000, b"<!DOCTYPE svg [" + b"[" * 10**6, b"", b"<svg>", b"\xff" * 10**6, b"<!DOCTYPE svg []>"],
    ids=["doctypes without end", "brackets without end", "empty", "cut", "no text", "nothing after the doctype"],
)
def test_a_drawing_that_is_none_takes_no_time(svg):
    started = time.monotonic()
    with pytest.raises(GlyphError, match=r"04e00\.svg: expected a plain SVG of strokes"):
        KanjiVG({"04e00.svg": svg}).strokes("一")
    assert time.monotonic() - started < 60
