"""An invented script: signs of other scripts that stand for groups of English words, two signs to a glyph.

It is made as kanji are, and has none of their shapes. Each sign, a Tangut component or a letter, is given a group of
words that are near in meaning; a glyph has one sign on the left or on top, and another beside or below. From captions
that name both, or that only mean the first, a base learns that words are about parts and places before it sees a kanji.
Hangul syllables, which are composed of letters by nature, are captioned by these in the same way.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from scipy.ndimage import gaussian_filter

from kanjilab.core.images import SIZE_PX
from kanjilab.core.rng import counted_rng
from kanjilab.data.captioned import SEPARATOR, save_captioned, shared_out
from kanjilab.data.components import load_components
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
from kanjilab.data.rendering import default_font, draw_font, drawable_characters
from kanjilab.data.typeset import SLOTS_OF_LAYOUT

SIGNS = 128
COMPONENT_SHARE = 0.75
FREQUENT = 40  # of the signs, in the pairs that are learned first
COUNTS = {"frequent": 6_000, "": 18_000}  # glyphs
BESIDE = 0.65  # of the glyphs have their signs side by side; in the others one is above the other
FIRST_SHARE = {"⿰": (0.36, 0.52), "⿱": (0.38, 0.55)}  # of the square, for the first sign
GAP_PX = (3, 8)
STRETCH = 1.9  # at most, of one side of a sign against the other
SLENDER = 4  # signs longer than so many times their width are left out
DRAWN_PX = 220
KANJI_LIKENESS = 0.6  # at most, of a sign
MEANINGS = 40  # captions of a sign, each of one to three of its words
MEANINGS_DRAWN = 6  # of them for one glyph
LETTER = re.compile(r"(greek|hebrew|cyrillic|armenian|georgian|gothic|coptic|phoenician) (?:capital )?letter \w{2,}")
KINDS = ("world", "syllables", "frequent pairs", "frequent meaning", "pairs", "meaning")


@dataclass(frozen=True)
class Sign:
    """A sign of the script and the words that it stands for.

    Attributes:
        glyph: as another script has it.
        ink: cut out along its edges.
        words: near in meaning to each other, the most typical first.
    """

    glyph: CorpusGlyph
    ink: Image.Image
    words: tuple[str, ...]


def invent_script(glyphs: Sequence[CorpusGlyph], groups: Sequence[Sequence[str]]) -> list[Sign]:
    """Gives each group of words a sign, drawn at random: three of four a component of Tangut, the others letters.

    A few of these have the shape of a kanji or of a part of one, by chance: they are left out.

    Args:
        glyphs: of `list_glyphs`; without Tangut all signs are letters.
        groups: of words that are near in meaning.
    Raises:
        ValueError: too few signs.
    """
    components = [glyph for glyph in glyphs if within(glyph.codepoint, [TANGUT_COMPONENTS])]
    letters = [glyph for glyph in glyphs if LETTER.fullmatch(glyph.caption)]
    chosen = _signs(components, 0)[: round(len(groups) * COMPONENT_SHARE)]
    chosen += _signs(letters, len(chosen))[: len(groups) - len(chosen)]
    if len(chosen) < len(groups):
        raise ValueError(f"expected {len(groups)} signs for the invented script, got {len(chosen)}")
    order = counted_rng(1, "recipe").permutation(len(groups))
    dealt = zip((chosen[number] for number in order), groups, strict=True)
    return [Sign(glyph, ink, tuple(words)) for (glyph, ink), words in dealt]


def _signs(glyphs: Sequence[CorpusGlyph], place: int) -> list[tuple[CorpusGlyph, Image.Image]]:
    """The glyphs that can be signs, in a random order, always the same for their place in the script."""
    order = counted_rng(0, "recipe", place).permutation(len(glyphs))
    inked = [(glyphs[number], ink) for number in order if (ink := sign_ink(glyphs[number])) is not None]
    like = kanji_likeness([ink for _, ink in inked])
    return [sign for sign, likeness in zip(inked, like, strict=True) if likeness <= KANJI_LIKENESS]


def sign_ink(glyph: CorpusGlyph) -> Image.Image | None:
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


def kanji_likeness(inks: Sequence[Image.Image]) -> NDArray[np.float32]:
    """The highest correlation of each sign with a kanji or a part that is a character, stretched to one square.

    Args:
        inks: N, cut out along their ink.
    Returns:
        (N,) in [-1, 1]; of chance coincidences by eye most lie above 0.6.
    """
    if not inks:
        return np.zeros(0, np.float32)
    return (_shapes(inks) @ _kanji_shapes().T).max(axis=1)


@cache
def _kanji_shapes() -> NDArray[np.float32]:
    font = default_font()
    kanji = sorted(drawable_characters(sorted(load_components().decompositions), font))
    return _shapes([draw_font(character, font) for character in kanji])


def _shapes(images: Sequence[Any], side: int = 24) -> NDArray[np.float32]:
    """(N, side^2) of mean 0 and length 1: the ink of each image, stretched to a square and blurred."""
    rows = []
    for image in images:
        dark = 255 - np.asarray(image)
        box = [np.flatnonzero((dark > 127).any(axis=axis))[[0, -1]] for axis in (0, 1)]
        cut = Image.fromarray(dark).crop((box[0][0], box[1][0], box[0][1] + 1, box[1][1] + 1))
        square = cut.resize((side, side), Image.Resampling.BOX)
        rows.append(gaussian_filter(np.asarray(square, np.float32), 1).ravel())
    centred = np.array(rows) - np.mean(rows, axis=1, keepdims=True)
    return centred / (np.linalg.norm(centred, axis=1, keepdims=True) + 1e-9)


def _fitted(ink: Image.Image, width: int, height: int) -> Image.Image:
    """A sign as large as a box allows, stretched along its shorter way up to `STRETCH`."""
    wide, high = width / ink.width, height / ink.height
    least = min(wide, high)
    size = (round(ink.width * min(wide, least * STRETCH)), round(ink.height * min(high, least * STRETCH)))
    return ink.resize((max(size[0], 1), max(size[1], 1)), Image.Resampling.LANCZOS)


def compose(first: Image.Image, second: Image.Image, layout: str, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Two signs in one square, each in the middle of its share.

    Args:
        first: ink of the sign on the left, or on top.
        second: of the other.
        layout: ⿰ or ⿱.
        rng: of the shares and the gap.
    Returns:
        (128, 128) uint8, 0 = ink.
    """
    gap = int(rng.integers(*GAP_PX))
    begun = round(LONGEST_SIDE_PX * rng.uniform(*FIRST_SHARE[layout])) - gap // 2
    margin = (SIZE_PX - LONGEST_SIDE_PX) // 2
    canvas = Image.new("L", (SIZE_PX, SIZE_PX), 255)
    for ink, start, length in ((first, 0, begun), (second, begun + gap, LONGEST_SIDE_PX - begun - gap)):
        box = (length, LONGEST_SIDE_PX) if layout == "⿰" else (LONGEST_SIDE_PX, length)
        corner = (start, 0) if layout == "⿰" else (0, start)
        sign = _fitted(ink, *box)
        place = [margin + corner[axis] + (box[axis] - sign.size[axis]) // 2 for axis in (0, 1)]
        canvas.paste(sign, (place[0], place[1]))
    return np.asarray(canvas)


@dataclass(frozen=True)
class InventedGlyph:
    """A glyph of the invented script.

    Attributes:
        layout: ⿰ or ⿱.
        first, second: places of its signs in the script; first is on the left or on top.
        image: (128, 128) uint8, 0 = ink.
        parts: captions that name both signs.
        meanings: captions that mean the first.
    """

    layout: str
    first: int
    second: int
    image: NDArray[np.uint8]
    parts: tuple[str, ...]
    meanings: tuple[str, ...]


def invented_glyphs(script: Sequence[Sign], count: int, seed: int) -> Iterator[InventedGlyph]:
    """Glyphs of two different signs.

    Args:
        script: of `invent_script`, two signs or more.
        count: of glyphs.
        seed: of all choices.
    """
    meanings = [_meanings(sign.words, counted_rng(number, "recipe", 1)) for number, sign in enumerate(script)]
    for index in range(count):
        rng = counted_rng(seed, "typeset", index)
        first, second = (int(number) for number in rng.choice(len(script), 2, replace=False))
        layout = "⿰" if rng.random() < BESIDE else "⿱"
        image = compose(script[first].ink, script[second].ink, layout, rng)
        pairs = [[str(rng.choice(script[number].words)) for number in (first, second)] for _ in range(2)]
        parts = (" + ".join(pairs[0]), placed(SLOTS_OF_LAYOUT[layout], pairs[1]))
        drawn = rng.choice(meanings[first], MEANINGS_DRAWN, replace=False)
        yield InventedGlyph(layout, first, second, image, parts, tuple(map(str, drawn)))


def _meanings(words: Sequence[str], rng: np.random.Generator) -> list[str]:
    """Captions of one to three words each, as glosses are."""
    sizes = rng.integers(1, 4, MEANINGS).clip(max=len(words))
    return [", ".join(rng.choice(words, size, replace=False)) for size in sizes]


def placed(slots: Sequence[str], names: Sequence[str]) -> str:
    """'left: water, right: three'."""
    return ", ".join(f"{slot}: {name}" for slot, name in zip(slots, names, strict=False))


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
        captions.append(placed(("left", "right", "bottom"), names))
    elif vowel in (8, 12, 13, 17, 18):
        captions.append(placed(("top", "middle", "bottom") if tail else ("top", "bottom"), names))
    return captions


def build_pocket_corpus(
    folder: Path,
    glyphs: Sequence[CorpusGlyph],
    script: Sequence[Sign],
    counts: Mapping[str, int] = COUNTS,
) -> pd.DataFrame:
    """Draw the corpus into `folder/images.npy`, with `folder/glyphs.csv` beside it.

    Args:
        folder: made if need be.
        glyphs: of `list_glyphs`.
        script: of `invent_script`.
        counts: of invented glyphs, of the frequent signs and of all.
    Returns:
        One row for each image and kind of caption, see `kanjilab.data.captioned`: kind is one of `KINDS`; codepoint
        and font of a glyph of the world, layout, first and second of an invented one.
    """
    world, images = draw_glyphs(glyphs)
    rows: list[dict[str, Any]] = []
    for image, row in enumerate(world.to_dict("records")):
        held = held_out(row["codepoint"])
        told = {"codepoint": row["codepoint"], "font": row["font"]}
        captions = [row["common_name"], *[row["caption"]] * 3]  # one draw in four is of the common name
        rows.append(_row(image, "world", captions, held, weight=row["weight"], **told))
        if within(row["codepoint"], [HANGUL]):
            rows.append(_row(image, "syllables", syllable_captions(row["codepoint"]), held, **told))
    for seed, (kind, count) in enumerate(counts.items()):
        signs = script[:FREQUENT] if kind else script
        for number, glyph in enumerate(invented_glyphs(signs, count, seed)):
            told = {"layout": glyph.layout, "first": glyph.first, "second": glyph.second}
            for captions, of in ((glyph.parts, "pairs"), (glyph.meanings, "meaning")):
                held = number % HELD_OUT_EVERY == 0
                rows.append(_row(len(images), f"{kind} {of}".strip(), captions, held, **told))
            images.append(glyph.image)
    absent = {"codepoint": -1, "font": "", "layout": "", "first": -1, "second": -1}
    table = pd.DataFrame(rows).fillna(absent).astype({"codepoint": int, "first": int, "second": int})
    save_captioned(folder, table, images)
    return table


def _row(image: int, kind: str, captions: Sequence[str], held: bool, **told: Any) -> dict[str, Any]:
    row = {"image": image, "kind": kind, "captions": SEPARATOR.join(captions), "weight": 1.0, "held_out": held}
    return row | told


def weights_of_kinds(shares: Mapping[str, float], table: pd.DataFrame) -> np.ndarray:
    """Sampling weights (N,) in which each kind has its share, and what is held out has none.

    Args:
        shares: by kind.
        table: of `build_pocket_corpus`.
    """
    weight = np.where(table["held_out"], 0.0, table["weight"])
    return shared_out(weight, table["kind"], shares)
