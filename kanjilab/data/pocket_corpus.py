"""The pocket corpus: glyphs and captions of the world's other scripts, which the pocket base is trained on.

No Han character, radical or stroke is among them, nor a codepoint that decomposes to one, nor kana
and bopomofo (cut from Han characters), nor pictures that show one (mahjong tiles, xiangqi pieces).
"""

import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from kanjilab.core.images import SIZE_PX
from kanjilab.data.components import consecutive_runs
from kanjilab.data.rendering import font_characters

LONGEST_SIDE_PX = 112
HELD_OUT_EVERY = 50  # one codepoint in fifty is kept for the held-out loss

HAN_RANGES = (
    (0x2E80, 0x2FDF),  # radicals
    (0x2FF0, 0x2FFF),  # ideographic description
    (0x3005, 0x3007),
    (0x3021, 0x3029),
    (0x3038, 0x303B),
    (0x3190, 0x319F),  # kanbun
    (0x31C0, 0x31EF),  # strokes
    (0x3400, 0x4DBF),
    (0x4E00, 0x9FFF),
    (0xF900, 0xFAFF),
    (0x16FF0, 0x16FF1),
    (0x1F200, 0x1F2FF),  # squared and circled Han
    (0x20000, 0x3FFFF),
)
SHOWS_HAN = (
    (0x0FD5, 0x0FD8),  # svasti signs, which are 卍 and 卐
    (0x26C6, 0x26C6),  # rain, drawn as 雨
    (0x1F000, 0x1F02B),  # mahjong tiles
    (0x1FA60, 0x1FA6D),  # xiangqi pieces
    (0x1F3EE, 0x1F3EE),  # lantern, lettered
    (0x1F4AE, 0x1F4AE),  # flower stamp, lettered
    (0x1F5FE, 0x1F5FE),
)
HAN_NAMES = re.compile(r"\b(CJK|IDEOGRAPHIC|KANA|KATAKANA|HIRAGANA|HENTAIGANA|BOPOMOFO|KANGXI|TORTOISE SHELL)\b")
BARE_MARKS = re.compile(r"\b(BRAILLE PATTERN|SIGNWRITING|VARIATION SELECTOR|BOX DRAWINGS)\b")
TANGUT_COMPONENTS = (0x18800, 0x18AFF)
TANGUT = ((0x17000, 0x187FF), (0x18800, 0x18AFF), (0x18D00, 0x18D8F))
HANGUL = (0xAC00, 0xD7A3)
# The first font that draws a codepoint keeps it, so the order is one of preference.
SANS_THEN_SERIF = ("NotoSans*-Regular.ttf", "NotoSerif*-Regular.ttf")
HANGUL_FONTS = ("NanumGothic.ttf", "NanumMyeongjo.ttf")
SYMBOL_FONTS = ("Symbola_hint.ttf", "Symbola.ttf", "NotoSansSymbols-Regular.ttf", "NotoSansSymbols2-Regular.ttf")
SKIPPED_FONTS = re.compile(r"CJK|Display|Mono|UI-|Emoji|LastResort|Duployan|Looped")
COMMON_SCRIPTS = re.compile(
    r"^(LATIN|GREEK|CYRILLIC|HEBREW|ARABIC|ARMENIAN|GEORGIAN|DEVANAGARI|BENGALI|THAI|TIBETAN|ETHIOPIC)\b"
)
BLOCK_SCRIPTS = re.compile(r"(hangul syllable|yi syllable|tangut|nushu)\b")
SIGN_WORDS = re.compile(
    r"^.*\b(?:letter|syllable|sign|ideogram|symbol for|symbol|vowel|consonant|character|digit|capital|small)\s+"
)


def within(codepoint: int, ranges: Iterable[tuple[int, int]]) -> bool:
    """Whether a codepoint lies in one of the ranges [first, last]."""
    return any(low <= codepoint <= high for low, high in ranges)


def touches_han(codepoint: int) -> bool:
    """Whether a codepoint is, decomposes to, is cut from, or shows a Han character.

    Args:
        codepoint: a Unicode scalar value.
    Source: Unicode 14 blocks, names and compatibility decompositions.
    """
    if within(codepoint, HAN_RANGES) or within(codepoint, SHOWS_HAN):
        return True
    if HAN_NAMES.search(unicodedata.name(chr(codepoint), "")):
        return True
    decomposed = unicodedata.normalize("NFKD", chr(codepoint))
    return any(ord(part) != codepoint and touches_han(ord(part)) for part in decomposed)


def unicode_caption(codepoint: int) -> str | None:
    """The lower-case Unicode name, as a caption; None for what has no glyph or no name.

    Tangut's are numbers alone, of which those of its components are kept: 'tangut 17'.
    """
    if within(codepoint, [TANGUT_COMPONENTS]):
        return f"tangut {codepoint - TANGUT_COMPONENTS[0] + 1}"
    if within(codepoint, TANGUT):
        return "tangut character"
    character = chr(codepoint)
    if unicodedata.category(character)[0] in "CMZ":
        return None
    name = unicodedata.name(character, "")
    return name.lower() if name and not BARE_MARKS.search(name) else None


def common_name(caption: str) -> str:
    """The name of a letter or sign without its script and kind: 'hebrew letter alef' -> 'alef'.

    Syllables of the large block scripts keep theirs: nobody calls 'hangul syllable gag' just 'gag'.
    """
    return caption if BLOCK_SCRIPTS.match(caption) else SIGN_WORDS.sub("", caption) or caption


@dataclass(frozen=True)
class CorpusGlyph:
    """One glyph to draw: a codepoint in a font file, with its caption."""

    codepoint: int
    font: Path
    caption: str


def list_glyphs(font_folders: Iterable[Path]) -> list[CorpusGlyph]:
    """Everything the build fonts draw that may be in the corpus, in a fixed order.

    Args:
        font_folders: folders searched through for the Debian packages `fonts-noto-core`,
            `fonts-noto-extra`, `fonts-nanum` and `fonts-symbola`.
    Raises:
        FileNotFoundError: a font that the corpus needs (Tangut, Hangul) is missing.
    """
    fonts = {path.name: path for folder in font_folders for path in sorted(Path(folder).rglob("*.?t[fc]"))}
    needed = ("NotoSerifTangut-Regular.ttf", HANGUL_FONTS[0])
    if missing := [name for name in needed if name not in fonts]:
        raise FileNotFoundError(
            f"fonts {missing} not found; apt-get install fonts-noto-core fonts-noto-extra fonts-nanum fonts-symbola"
        )
    glyphs: dict[tuple[int, str], CorpusGlyph] = {}
    for kind, names in _font_order(fonts):
        for name in names:
            for codepoint in _drawable(fonts[name]):
                caption = unicode_caption(codepoint)
                if caption is None or touches_han(codepoint) or not _wanted(kind, name, names, codepoint, caption):
                    continue
                face = kind if COMMON_SCRIPTS.match(caption.upper()) else "any"
                glyphs.setdefault((codepoint, face), CorpusGlyph(codepoint, fonts[name], caption))
    return sorted(glyphs.values(), key=lambda glyph: (glyph.codepoint, glyph.font.name))


def _font_order(fonts: dict[str, Path]) -> Iterator[tuple[str, list[str]]]:
    yield "hangul", [name for name in HANGUL_FONTS if name in fonts]
    yield "symbols", [name for name in SYMBOL_FONTS if name in fonts]
    for kind, pattern in zip(("sans", "serif"), SANS_THEN_SERIF, strict=True):
        names = sorted(name for name in fonts if Path(name).match(pattern) and not SKIPPED_FONTS.search(name))
        yield kind, names


def _wanted(kind: str, name: str, names: list[str], codepoint: int, caption: str) -> bool:
    if kind == "hangul":  # one of the faces for each syllable, in turn
        return within(codepoint, [HANGUL]) and name == names[codepoint % len(names)]
    if within(codepoint, [HANGUL]):
        return False
    return kind != "symbols" or not COMMON_SCRIPTS.match(caption.upper())


def _drawable(font: Path) -> list[int]:
    return sorted(map(ord, font_characters(font)))


def draw_glyph(glyph: CorpusGlyph) -> Image.Image | None:
    """Black on white, centred, longest side 112 px (less for small marks); None if there is no ink.

    Returns:
        (128, 128) grayscale image.
    """
    font = ImageFont.truetype(str(glyph.font), 96)
    left, top, right, bottom = font.getbbox(chr(glyph.codepoint))
    longest = max(right - left, bottom - top)
    if longest <= 0:
        return None
    font = ImageFont.truetype(str(glyph.font), min(round(96 * LONGEST_SIDE_PX / longest), 180))
    left, top, right, bottom = font.getbbox(chr(glyph.codepoint))
    image = Image.new("L", (SIZE_PX, SIZE_PX), 255)
    offset = ((SIZE_PX - (right - left)) / 2 - left, (SIZE_PX - (bottom - top)) / 2 - top)
    ImageDraw.Draw(image).text(offset, chr(glyph.codepoint), font=font, fill=0)
    return image if np.asarray(image).min() < 128 else None


def sampling_weight(codepoint: int) -> float:
    """How often a glyph is drawn in training; the scripts built of blocks, like kanji, more often."""
    if within(codepoint, TANGUT):
        return 3.0
    if within(codepoint, [HANGUL]):
        return 0.75
    return 1.0


def held_out(codepoint: int) -> bool:
    """Whether a codepoint is kept for the held-out loss: one in fifty, by a hash of itself."""
    return codepoint * 2654435761 % 2**32 % HELD_OUT_EVERY == 0


def draw_glyphs(glyphs: Iterable[CorpusGlyph]) -> tuple[pd.DataFrame, list[NDArray[np.uint8]]]:
    """Draw glyphs; blank ones and repeated pictures of one caption are left out.

    Args:
        glyphs: of `list_glyphs`.
    Returns:
        One row a picture, codepoint, font, caption, common_name, weight; and the pictures, (128, 128), 0 = ink.
    """
    rows, images, seen = [], [], set()
    for glyph in glyphs:
        image = draw_glyph(glyph)
        if image is None or (image.tobytes(), glyph.caption) in seen:
            continue
        seen.add((image.tobytes(), glyph.caption))
        images.append(np.asarray(image))
        rows.append((glyph.codepoint, glyph.font.name, glyph.caption, common_name(glyph.caption)))
    table = pd.DataFrame(rows, columns=["codepoint", "font", "caption", "common_name"])
    table["weight"] = table["codepoint"].map(sampling_weight)
    return table, images


def corpus_list(table: pd.DataFrame) -> dict[str, list[list[int]]]:
    """Which codepoints were drawn from which font, as short as JSON can hold it.

    Args:
        table: of `draw_glyphs`.
    Returns:
        Font file -> [[first, last], ...], ascending stretches of codepoints, both ends included.
    """
    fonts = table.groupby("font", sort=True)["codepoint"]
    return {str(font): consecutive_runs(sorted(map(int, found.unique()))) for font, found in fonts}


def expand_corpus_list(contents: Mapping[str, Sequence[Sequence[int]]]) -> pd.DataFrame:
    """The inverse of `corpus_list`.

    Args:
        contents: font file -> [[first, last], ...].
    Returns:
        One row a glyph, codepoint and font, in the order of the corpus's table.
    Raises:
        ValueError: a stretch that is no [first, last], overlaps the one before it, or leaves Unicode.
    """
    rows: list[tuple[int, str]] = []
    for font, ranges in contents.items():
        end = -1
        for stretch in ranges:
            if len(stretch) != 2 or not end < stretch[0] <= stretch[1] <= 0x10FFFF:
                raise ValueError(f"{font}: expected [first, last] in ascending order after {end}, got {list(stretch)}")
            rows += [(codepoint, font) for codepoint in range(stretch[0], stretch[1] + 1)]
            end = stretch[1]
    return pd.DataFrame(sorted(rows), columns=["codepoint", "font"])
