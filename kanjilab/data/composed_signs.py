"""Two signs of other scripts in one glyph, composed as kanji are: a crown beside a fish, a letter above a bell.

Their captions name the signs and their places, or words near in meaning to the first sign, which stands where a
kanji's radical does. From them a base learns that words are about parts and places before it sees a kanji. Hangul
syllables are composed by nature, of letters that have names: they are captioned in the same way.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from kanjilab.core.images import SIZE_PX
from kanjilab.core.rng import counted_rng
from kanjilab.data.captioned import SEPARATOR, save_captioned, shared_out
from kanjilab.data.pocket_corpus import (
    HANGUL,
    HELD_OUT_EVERY,
    LONGEST_SIDE_PX,
    TANGUT_COMPONENTS,
    CorpusGlyph,
    draw_glyphs,
    held_out,
    within,
)
from kanjilab.data.typeset import SLOTS_OF_LAYOUT

COUNTS = {"frequent pairs": 6_000, "pairs": 18_000}  # composed glyphs
FREQUENT = {"symbols": 32, "letters": 24, "components": 24, "pictographs": 0}  # signs of few strokes
ALIKE = 0.5  # of the pairs have both signs of one kind
BESIDE = 0.65  # of the composed glyphs have their signs side by side; in the others one is above the other
FIRST_SHARE = {"⿰": (0.36, 0.52), "⿱": (0.38, 0.55)}  # of the square, for the first sign
GAP_PX = (3, 8)
STRETCH = 1.9  # at most, of one side of a sign against the other
SLENDER = 4  # signs longer than so many times their width are left out
DRAWN_PX = 220
MEANING_CAPTIONS = 6  # of a glyph
SYMBOLS = ((0x2600, 0x26FF), (0x1F700, 0x1F77F))
PICTOGRAPHS = ((0x2700, 0x27BF), (0x1F300, 0x1F6FF), (0x1F780, 0x1FAFF))
# Words of a pictograph's name that do not say what it shows.
ADJECTIVES = frozenset(
    "face symbol icon sign emblem black white european japanese womans mans older heavy light medium bold classical "
    "personal sports oncoming closed open building buildings empty wrapped double single".split()
)
ABSTRACT = re.compile(
    r"circled|negative|dingbat|die face|diamond|saltire|cross|rosette|florette|asterisk|star|snowflake|bullet|\d|"
    r"hexagram|trigram|digram|recycling|flag|quotation|clock face|arrow|rocket$|button|hand "
)
IDEOGRAM = re.compile(r"(?:linear b ideogram b\d+\w?|alchemical symbol for) ([a-z][a-z -]*[a-z])(?:-\d)?")
LETTER = re.compile(
    r"(greek|hebrew|cyrillic|armenian|georgian|gothic|coptic|phoenician) (small |capital )?letter (\w{3,})"
)
FIRST_SHARES = {"frequent pairs": 0.75, "world": 0.15, "syllables": 0.1}
SHARES = {"world": 0.43, "syllables": 0.12, "frequent pairs": 0.1, "pairs": 0.15, "meaning": 0.2}


def sign_name(glyph: CorpusGlyph) -> tuple[str, str] | None:
    """The kind of a sign, and what it is called in a caption of parts.

    Returns:
        ("symbols", "salt"), of few strokes, ("pictographs", "crown"), ("letters", "omega") or ("components",
        "tangut 17"), which has no name but its number; None for what has no short name.
    """
    caption = glyph.caption
    if within(glyph.codepoint, [TANGUT_COMPONENTS]):
        return "components", caption
    if match := IDEOGRAM.fullmatch(caption):
        return ("symbols", match[1]) if len(match[1].split()) <= 2 else None
    for kind, ranges in (("symbols", SYMBOLS), ("pictographs", PICTOGRAPHS)):
        if within(glyph.codepoint, ranges):
            words = [word for word in caption.split() if word not in ADJECTIVES]
            short = 1 <= len(words) <= 2 and len(caption.split()) <= 3
            return (kind, " ".join(words)) if short and not ABSTRACT.search(caption) else None
    match = LETTER.fullmatch(caption)
    return ("letters", match[3]) if match else None


@lru_cache(maxsize=4096)
def _ink(glyph: CorpusGlyph) -> Image.Image | None:
    """A sign cut out along its ink; None for blank and slender ones."""
    font = ImageFont.truetype(str(glyph.font), DRAWN_PX)
    left, top, right, bottom = font.getbbox(chr(glyph.codepoint))
    margin = 4
    image = Image.new("L", (int(right - left) + 2 * margin, int(bottom - top) + 2 * margin), 255)
    ImageDraw.Draw(image).text((margin - left, margin - top), chr(glyph.codepoint), font=font, fill=0)
    rows, columns = (np.flatnonzero((np.asarray(image) < 128).any(axis=axis)) for axis in (1, 0))
    if not len(rows):
        return None
    ink = image.crop((columns[0], rows[0], columns[-1] + 1, rows[-1] + 1))
    return ink if max(ink.size) < SLENDER * min(ink.size) else None


def named_signs(glyphs: Iterable[CorpusGlyph]) -> dict[str, dict[str, list[CorpusGlyph]]]:
    """The signs that can be composed.

    Args:
        glyphs: of `list_glyphs`.
    Returns:
        Each kind of `FREQUENT` -> names in alphabetical order -> the glyphs that share it. No name is in two kinds.
    """
    signs: dict[str, dict[str, list[CorpusGlyph]]] = {kind: {} for kind in FREQUENT}
    for glyph in glyphs:
        named = sign_name(glyph)
        if named is not None and _ink(glyph) is not None:
            signs[named[0]].setdefault(named[1], []).append(glyph)
    taken: set[str] = set()
    for named in signs.values():  # of two kinds that share a name, the first keeps it
        for name in taken & named.keys():
            del named[name]
        taken |= named.keys()
    return {kind: dict(sorted(named.items())) for kind, named in signs.items()}


def _fitted(ink: Image.Image, width: int, height: int) -> Image.Image:
    """A sign as large as a box allows, stretched along its shorter way up to `STRETCH`."""
    wide, high = width / ink.width, height / ink.height
    least = min(wide, high)
    size = (round(ink.width * min(wide, least * STRETCH)), round(ink.height * min(high, least * STRETCH)))
    return ink.resize((max(size[0], 1), max(size[1], 1)), Image.Resampling.LANCZOS)


def compose_signs(first: CorpusGlyph, second: CorpusGlyph, layout: str, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Two signs in one square, each in the middle of its share.

    Args:
        first: left, or on top.
        second: right, or at the bottom.
        layout: ⿰ or ⿱.
        rng: of the shares and the gap.
    Returns:
        (128, 128) uint8, 0 = ink.
    Raises:
        ValueError: one of the signs is blank or slender.
    """
    inks = _ink(first), _ink(second)
    if inks[0] is None or inks[1] is None:
        raise ValueError(f"expected two signs with ink, got {first} and {second}")
    gap = int(rng.integers(*GAP_PX))
    begun = round(LONGEST_SIDE_PX * rng.uniform(*FIRST_SHARE[layout])) - gap // 2
    margin = (SIZE_PX - LONGEST_SIDE_PX) // 2
    canvas = Image.new("L", (SIZE_PX, SIZE_PX), 255)
    for ink, start, length in ((inks[0], 0, begun), (inks[1], begun + gap, LONGEST_SIDE_PX - begun - gap)):
        box = (length, LONGEST_SIDE_PX) if layout == "⿰" else (LONGEST_SIDE_PX, length)
        corner = (start, 0) if layout == "⿰" else (0, start)
        sign = _fitted(ink, *box)
        place = [margin + corner[axis] + (box[axis] - sign.size[axis]) // 2 for axis in (0, 1)]
        canvas.paste(sign, (place[0], place[1]))
    return np.asarray(canvas)


def syllable_captions(codepoint: int) -> list[str]:
    """Captions of a Hangul syllable by its letters: 'kiyeok + a', and with places where they are plain.

    Args:
        codepoint: in U+AC00 to U+D7A3.
    Returns:
        One caption, or two.
    Source: the arithmetic of the Unicode Standard, section 3.12. Vowels with an upright stroke alone stand to the
        right, those with a lying one below; of those with both no places are told.
    """
    lead, rest = divmod(codepoint - HANGUL[0], 21 * 28)
    vowel, tail = divmod(rest, 28)
    letters = [0x1100 + lead, 0x1161 + vowel, *([0x11A7 + tail] if tail else [])]
    names = [unicodedata.name(chr(letter)).lower().split()[-1] for letter in letters]
    captions = [" + ".join(names)]
    if vowel in (0, 1, 2, 3, 4, 5, 6, 7, 20):
        captions.append(_placed(("left", "right", "bottom"), names))
    elif vowel in (8, 12, 13, 17, 18):
        captions.append(_placed(("top", "middle", "bottom") if tail else ("top", "bottom"), names))
    return captions


def _placed(slots: Sequence[str], names: Sequence[str]) -> str:
    return ", ".join(f"{slot}: {name}" for slot, name in zip(slots, names, strict=False))


@dataclass(frozen=True)
class ComposedSigns:
    """Two signs in one glyph.

    Attributes:
        layout: ⿰ or ⿱.
        first, second: names; first is on the left or on top.
        image: (128, 128) uint8, 0 = ink.
    """

    layout: str
    first: str
    second: str
    image: NDArray[np.uint8]


def composed_pairs(
    signs: Mapping[str, Mapping[str, Sequence[CorpusGlyph]]], count: int, seed: int
) -> Iterator[ComposedSigns]:
    """Pairs of different signs, half of them of one kind.

    Args:
        signs: of `named_signs`, at least two of each kind that has any.
        count: of pairs.
        seed: of all choices.
    """
    kinds = [kind for kind, named in signs.items() if named]
    names = {kind: list(signs[kind]) for kind in kinds}
    for index in range(count):
        rng = counted_rng(seed, "typeset", index)
        kind = kinds[int(rng.integers(len(kinds)))]
        other = kind if rng.random() < ALIKE else kinds[int(rng.integers(len(kinds)))]
        first = names[kind][int(rng.integers(len(names[kind])))]
        left = [name for name in names[other] if name != first]
        second = left[int(rng.integers(len(left)))]
        layout = "⿰" if rng.random() < BESIDE else "⿱"
        glyphs = [signs[of][name] for of, name in ((kind, first), (other, second))]
        one, two = (found[int(rng.integers(len(found)))] for found in glyphs)
        yield ComposedSigns(layout, first, second, compose_signs(one, two, layout, rng))


def build_pocket_corpus(
    folder: Path,
    glyphs: Sequence[CorpusGlyph],
    words: Mapping[str, Sequence[str]],
    counts: Mapping[str, int] = COUNTS,
) -> pd.DataFrame:
    """Draw the corpus into `folder/images.npy`, with `folder/glyphs.csv` beside it.

    Args:
        folder: made if need be.
        glyphs: of `list_glyphs`.
        words: near in meaning to a sign, by its name; see `kanjilab.training.pocket_base.words_near`.
        counts: composed glyphs of each kind.
    Returns:
        One row for each image and kind of caption, see `kanjilab.data.captioned`: kind is 'world', 'syllables',
        'frequent pairs', 'pairs' or 'meaning'; codepoint and font of a single sign, first and second of a pair.
    """
    world, images = draw_glyphs(glyphs)
    rows: list[dict[str, Any]] = []
    for image, row in enumerate(world.to_dict("records")):
        told = {name: row[name] for name in ("codepoint", "font", "weight")}
        held = held_out(row["codepoint"])
        captions = [row["common_name"], *[row["caption"]] * 3]  # one draw in four is of the common name
        rows.append(_row(image, "world", captions, held, **told))
        if within(row["codepoint"], [HANGUL]):
            rows.append(_row(image, "syllables", syllable_captions(row["codepoint"]), held, **told | {"weight": 1.0}))
    signs = named_signs(glyphs)
    frequent = {kind: _some(named, FREQUENT[kind]) for kind, named in signs.items()}
    for seed, (kind, pool) in enumerate({"frequent pairs": frequent, "pairs": signs}.items()):
        for number, pair in enumerate(composed_pairs(pool, counts[kind], seed)):
            held, parts = number % HELD_OUT_EVERY == 0, (pair.first, pair.second)
            captions = [" + ".join(parts), _placed(SLOTS_OF_LAYOUT[pair.layout], parts)]
            told = {"first": pair.first, "second": pair.second}
            rows.append(_row(len(images), kind, captions, held, **told))
            if near := words.get(pair.first):
                captions = _some_words(near, counted_rng(seed, "recipe", number))
                rows.append(_row(len(images), "meaning", captions, held, **told))
            images.append(pair.image)
    table = pd.DataFrame(rows).fillna({"codepoint": -1, "font": "", "first": "", "second": ""})
    table = table.astype({"codepoint": int})
    save_captioned(folder, table, images)
    return table


def _row(image: int, kind: str, captions: Sequence[str], held: bool, **told: Any) -> dict[str, Any]:
    row = {"image": image, "kind": kind, "captions": SEPARATOR.join(captions), "weight": 1.0, "held_out": held}
    return row | told


def _some(named: Mapping[str, Any], count: int) -> dict[str, Any]:
    """So many of the names, drawn at random, always the same."""
    chosen = counted_rng(0, "recipe").permutation(len(named))[:count]
    return {name: named[name] for number, name in enumerate(named) if number in chosen}


def _some_words(near: Sequence[str], rng: np.random.Generator) -> list[str]:
    """`MEANING_CAPTIONS` captions of one to three words."""
    sizes = rng.integers(1, 4, MEANING_CAPTIONS).clip(max=len(near))
    return [", ".join(rng.choice(near, size, replace=False)) for size in sizes]


def weights_of_kinds(shares: Mapping[str, float], table: pd.DataFrame) -> np.ndarray:
    """Sampling weights (N,) in which each kind has its share, and what is held out has none.

    Args:
        shares: by kind.
        table: of `build_pocket_corpus`.
    """
    weight = np.where(table["held_out"], 0.0, table["weight"])
    return shared_out(weight, table["kind"], shares)
