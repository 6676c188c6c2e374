"""Train judges A and B from fonts, KanjiVG's decompositions and a great deal of junk, and measure them."""

from __future__ import annotations

import argparse
import itertools
import json
import platform
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from safetensors import safe_open
from safetensors.numpy import load_file as load_arrays
from safetensors.numpy import save_file as save_arrays
from safetensors.torch import load_file, save_file
from scipy.special import expit, softmax
from torch import Tensor
from torch.nn import functional as F

from kanjilab.bases import load_base
from kanjilab.characters import load_characters
from kanjilab.components import (
    COMPONENTS_FILE,
    LAYOUTS,
    Box,
    Components,
    Part,
    build_components,
    components_to_json,
    load_components,
)
from kanjilab.counted import counted_rng
from kanjilab.glyphs import GlyphError, KanjiVG, default_font, draw_font, draws
from kanjilab.judges import (
    ARCHITECTURES,
    GRID,
    LAYOUT_SURE,
    SIZE_PX,
    Answers,
    Judge,
    JudgeNetwork,
    frame_glyphs,
    frame_of,
    is_held_out,
    save_judge,
)
from kanjilab.runs import write_json_atomic
from kanjilab.typeset import Pair, Typesetter, novel_pairs

NONE = len(LAYOUTS)  # the layout of what is no glyph
KINDS = (
    "real", "nearly clean", "typeset", "scribble", "jumbled strokes", "blob", "noise", "half denoised", "letter",
    "mirrored", "half swapped", "shuffled patches", "half faded",
)  # fmt: skip
JUNK = KINDS[3:]
WITHOUT_PARTS = ("scribble", "jumbled strokes", "blob", "noise", "letter")  # the rest of the junk may show some


@dataclass(frozen=True)
class FontFile:
    """A font, where Debian puts it below /usr/share/fonts, and the package that does."""

    path: str
    package: str


IPAEX_GOTHIC = FontFile("", "the Python package matplotlib-fontja")
_NOTO = "opentype/noto/"
_TRUETYPE = "truetype/"
TRAINING_FONTS = {
    "A": (
        IPAEX_GOTHIC,
        FontFile(_NOTO + "NotoSansCJK-Regular.ttc", "fonts-noto-cjk"),
        FontFile(_NOTO + "NotoSansCJK-Bold.ttc", "fonts-noto-cjk"),
        FontFile(_TRUETYPE + "arphic/ukai.ttc", "fonts-arphic-ukai"),
        FontFile(_TRUETYPE + "kouzan-mouhitsu/kouzan-mouhitsu.ttf", "fonts-kouzan-mouhitsu"),
    ),
    "B": (
        FontFile("opentype/ipaexfont-mincho/ipaexm.ttf", "fonts-ipaexfont-mincho"),
        FontFile(_NOTO + "NotoSerifCJK-Regular.ttc", "fonts-noto-cjk"),
        FontFile(_NOTO + "NotoSerifCJK-Bold.ttc", "fonts-noto-cjk"),
        FontFile(_TRUETYPE + "klee/KleeOne-Regular.ttf", "fonts-klee"),
        FontFile(_TRUETYPE + "aoyagi-soseki/aoyagi-soseki.ttf", "fonts-aoyagi-soseki"),
    ),
}
# Seen by neither in training: the first set thresholds, the second are for the card alone.
VALIDATION_FONTS = (
    FontFile(_TRUETYPE + "motoya-l-maruberi/MTLmr3m.ttf", "fonts-motoya-l-maruberi"),
    FontFile(_TRUETYPE + "horai-umefont/ume-tmo3.ttf", "fonts-horai-umefont"),
    FontFile(_TRUETYPE + "cwtex/cwkai.ttf", "fonts-cwtex-kai"),
)
TEST_FONTS = (
    FontFile(_TRUETYPE + "motoya-l-cedar/MTLc3m.ttf", "fonts-motoya-l-cedar"),
    FontFile(_TRUETYPE + "hanazono/HanaMinA.ttf", "fonts-hanazono"),
    FontFile(_TRUETYPE + "cns11643/TW-Kai-98_1.ttf", "fonts-cns11643-kai"),
)
HANGUL_FONT = FontFile(_TRUETYPE + "nanum/NanumGothic.ttf", "fonts-nanum")


FONTS_FOLDER = Path("/usr/share/fonts")


def locate(font: FontFile, folder: Path = FONTS_FOLDER) -> Path:
    """The font's file in a folder of fonts that is laid out as Debian's.

    Raises:
        FileNotFoundError: it is not there; the message names the package that has it.
    """
    path = folder / font.path if font.path else default_font()
    if not path.is_file():
        raise FileNotFoundError(f"{path}: expected the font of {font.package} (apt-get install {font.package})")
    return path


def recogniser_characters() -> tuple[str, ...]:
    """The characters with an English meaning that the default font draws, by codepoint."""
    table = load_characters()
    return tuple(
        sorted(
            c
            for c, glosses in zip(table.index, table.meanings_raw, strict=True)
            if glosses and draws(c, default_font())
        )
    )


# ---------------------------------------------------------------- glyphs with their truth


@dataclass(frozen=True)
class Glyphs:
    """Framed glyphs and what is known of each.

    Attributes:
        ink: (N, 64, 64) uint8, 0 paper to 255 ink.
        character: (N,) int, class of the recogniser; -1 for none.
        legal: (N,) int, 1 a well-formed glyph, 0 junk, -1 not to be asked.
        layout: (N,) int, index in `LAYOUTS` or `NONE`; -1 where unknown.
        parts_known: (N,) bool, whether `parts` is the whole truth about the parts.
        parts: (M, 6) float, one row a part: glyph, index of the part, box (left, top, right, bottom) in
            [0, 1] of the frame; rows in the glyphs' order.
        kind: (N,) int, index in `KINDS`: how it was made.
    """

    ink: NDArray[np.uint8]
    character: NDArray[np.int64]
    legal: NDArray[np.int64]
    layout: NDArray[np.int64]
    parts_known: NDArray[np.bool_]
    parts: NDArray[np.float32]
    kind: NDArray[np.int64]

    def __len__(self) -> int:
        """Number of glyphs."""
        return len(self.ink)

    def rows_of_parts(self) -> NDArray[np.int64]:
        """Where each glyph's parts begin in `parts`.

        Returns:
            (N + 1,) int; the last is the number of parts.
        """
        return np.searchsorted(self.parts[:, 0], np.arange(len(self) + 1))


def part_rows(parts: Sequence[Part], frame: Box, vocabulary: dict[str, int]) -> list[list[float]]:
    """Parts of the vocabulary with their boxes in the frame that the judge will see.

    Args:
        parts: of one glyph, boxes in any unit.
        frame: the glyph's ink box in the same unit.
        vocabulary: index by part.
    Returns:
        Per part: index, left, top, right, bottom in [0, 1].
    """
    left, top, right, bottom = frame_of(frame)
    rows = []
    for part in parts:
        if part.element in vocabulary:
            a, b, c, d = part.box
            box = (
                (a - left) / (right - left),
                (b - top) / (bottom - top),
                (c - left) / (right - left),
                (d - top) / (bottom - top),
            )
            rows.append([float(vocabulary[part.element]), *(min(1.0, max(0.0, value)) for value in box)])
    return rows


def real_glyphs(font: Path, characters: Sequence[str], components: Components) -> Glyphs:
    """Every one of the characters that the font draws, labelled by KanjiVG where that has it."""
    vocabulary = {name: index for index, name in enumerate(components.parts)}
    images, classes, layouts, known, parts = [], [], [], [], []
    for index, character in enumerate(characters):
        try:
            images.append(np.asarray(draw_font(character, font)))
        except GlyphError:
            continue
        listed = components.of(character)
        if listed is not None:
            parts += [[len(classes), *row] for row in part_rows(listed.parts, listed.frame, vocabulary)]
        classes.append(index)
        known.append(listed is not None)
        layouts.append(-1 if listed is None else LAYOUTS.index(listed.layout))
    return Glyphs(
        frame_glyphs(np.stack(images))[0],
        np.array(classes),
        np.ones(len(classes), dtype=np.int64),
        np.array(layouts),
        np.array(known),
        np.array(parts, np.float32).reshape(-1, 6),
        np.full(len(classes), KINDS.index("real")),
    )


def recogniser_only(glyphs: Glyphs, characters: Sequence[str]) -> Glyphs:
    """The same glyphs, those of held-out characters with no other truth than which character they are."""
    held_out = np.array([is_held_out(character) for character in characters])
    held = (glyphs.character >= 0) & held_out[glyphs.character]
    return replace(
        glyphs,
        legal=np.where(held, -1, glyphs.legal),
        layout=np.where(held, -1, glyphs.layout),
        parts_known=glyphs.parts_known & ~held,
    )


def typeset_glyphs(
    typesetter: Typesetter, pairs: Sequence[Pair], count: int, components: Components, rng: np.random.Generator
) -> Glyphs:
    """Some of the pairs, composed; each with the truth about its parts."""
    vocabulary = {name: index for index, name in enumerate(components.parts)}
    enclosing = [pair for pair in pairs if pair.layout in "⿸⿺⿴"]
    images, layouts, parts = [], [], []
    for _ in range(20 * count):
        if len(images) == count:
            break
        pool = enclosing if enclosing and rng.random() < 0.15 else pairs
        pair = pool[int(rng.integers(len(pool)))]
        composed = typesetter.compose(pair, rng, stroke_width=float(rng.uniform(3, 7)))
        if composed is None:
            continue
        ink = np.argwhere(composed.image < 128) / len(composed.image)
        frame = (*ink.min(axis=0)[::-1], *ink.max(axis=0)[::-1])
        parts += [[len(images), *row] for row in part_rows(composed.parts, frame, vocabulary)]
        images.append(composed.image)
        layouts.append(LAYOUTS.index(pair.layout))
    return Glyphs(
        frame_glyphs(np.stack(images))[0],
        np.full(len(images), -1),
        np.ones(len(images), dtype=np.int64),
        np.array(layouts),
        np.ones(len(images), dtype=bool),
        np.array(parts, np.float32),
        np.full(len(images), KINDS.index("typeset")),
    )


def junk_glyphs(images: NDArray[np.uint8], kind: str) -> Glyphs:
    """Pictures of no character: (N, H, W) uint8, 0 ink to 255 paper, made as `kind` (one of `JUNK`) says."""
    count = len(images)
    return Glyphs(
        frame_glyphs(images)[0],
        np.full(count, -1),
        np.zeros(count, dtype=np.int64),
        np.full(count, NONE),
        np.full(count, kind in WITHOUT_PARTS),
        np.zeros((0, 6), np.float32),
        np.full(count, KINDS.index(kind)),
    )


def parts_of(glyphs: Glyphs, rows: NDArray[np.int64]) -> NDArray[np.float32]:
    """The parts (M, 6) of some glyphs, renumbered: glyph 0 is the one of `rows[0]`."""
    starts = np.searchsorted(glyphs.parts[:, 0], rows)
    stops = np.searchsorted(glyphs.parts[:, 0], rows, side="right")
    counts = stops - starts
    within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    parts = glyphs.parts[np.repeat(starts, counts) + within].copy()
    parts[:, 0] = np.repeat(np.arange(len(rows)), counts)
    return parts


def taken(glyphs: Glyphs, rows: NDArray[np.int64]) -> Glyphs:
    """Some of the glyphs, in the order of `rows`, (N,)."""
    arrays = {field.name: getattr(glyphs, field.name)[rows] for field in fields(Glyphs) if field.name != "parts"}
    return Glyphs(**arrays, parts=parts_of(glyphs, rows))


def joined(several: Sequence[Glyphs]) -> Glyphs:
    """All of them one after the other."""
    offsets = np.cumsum([0, *(len(glyphs) for glyphs in several)])
    parts = [
        glyphs.parts + np.array([offset, 0, 0, 0, 0, 0], np.float32)
        for glyphs, offset in zip(several, offsets[:-1], strict=True)
    ]
    names = [field.name for field in fields(Glyphs) if field.name != "parts"]
    arrays = {name: np.concatenate([getattr(glyphs, name) for glyphs in several]) for name in names}
    return Glyphs(**arrays, parts=np.concatenate(parts))


# ---------------------------------------------------------------- junk

LETTER_RANGES = ("09", "AZ", "az", "ΑΩ", "Ая", "ぁん", "ァヺ")
SAME_AS_A_KANJI = frozenset("カエオタチトニネハヒフホミムメモラリレロンノヘへソスセケヨヲヤワ一二三oO0〇日XY")
HANGUL = (0xAC00, 0xD7A3)


def scribbles(count: int, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Random lines, bends and arcs as thick as strokes; some of them upright or level as in kanji.

    Returns:
        (count, 128, 128) uint8, 0 ink to 255 paper.
    """
    pictures = []
    for _ in range(count):
        picture = Image.new("L", (256, 256), 255)
        pen, width = ImageDraw.Draw(picture), int(rng.integers(6, 20))
        upright = rng.random() < 0.5
        for _ in range(rng.integers(4, 24)):
            x, y = rng.uniform(15, 240, 2)
            across, down = rng.normal(size=2) * rng.uniform(20, 90)
            if rng.random() < 0.3:
                start, (w, h) = rng.uniform(0, 360), rng.uniform(15, 110, 2)
                pen.arc((x - w, y - h, x + w, y + h), start, start + rng.uniform(40, 250), fill=0, width=width)
                continue
            if upright and rng.random() < 0.7:
                across, down = (across, down * 0.04) if rng.random() < 0.5 else (across * 0.04, down)
            bend = rng.normal(size=2) * (0 if rng.random() < 0.5 else 15)
            points = [(x, y), (x + across / 2 + bend[0], y + down / 2 + bend[1]), (x + across, y + down)]
            pen.line(points, fill=0, width=width, joint="curve")
        pictures.append(np.asarray(picture.reduce(2)))
    return np.stack(pictures)


def jumbled_strokes(
    count: int, kanjivg: KanjiVG, characters: Sequence[str], rng: np.random.Generator
) -> NDArray[np.uint8]:
    """Real strokes of several characters thrown together at random places.

    Returns:
        (count, 128, 128) uint8, 0 ink to 255 paper.
    """
    pictures = []
    for _ in range(count):
        picture = Image.new("L", (256, 256), 255)
        pen, width = ImageDraw.Draw(picture), int(rng.integers(6, 18))
        names = [characters[int(rng.integers(len(characters)))] for _ in range(4)]
        strokes = [np.array(stroke) for name in names for stroke in kanjivg.strokes(name)]
        for index in rng.permutation(len(strokes))[: rng.integers(4, 16)]:
            stroke = strokes[index] - strokes[index].mean(axis=0)
            turn = rng.normal() * 0.5
            stroke = stroke @ np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
            points = stroke * rng.uniform(1.5, 3.5) + rng.uniform(40, 216, 2)
            pen.line([(float(x), float(y)) for x, y in points], fill=0, width=width, joint="curve")
        pictures.append(np.asarray(picture.reduce(2)))
    return np.stack(pictures)


def _smooth_field(count: int, rng: np.random.Generator, size: int = 128) -> NDArray[np.float64]:
    """(count, size, size) smooth noise of unit variance, each of its own coarseness."""
    fields = []
    for _ in range(count):
        knots = int(rng.choice([4, 5, 7, 10, 16, 28]))
        coarse = Image.fromarray(rng.normal(size=(knots, knots)).astype(np.float32), mode="F")
        field = np.asarray(coarse.resize((size, size), Image.Resampling.BICUBIC))
        fields.append(field / field.std())
    return np.stack(fields)


def blobs(count: int, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Smooth noise cut at a random level; (N, 128, 128) uint8."""
    cut, sharp = rng.uniform(-0.2, 1.2, (count, 1, 1)), rng.uniform(2, 8, (count, 1, 1))
    return (255 * np.clip(0.5 - (_smooth_field(count, rng) - cut) * sharp, 0, 1)).astype(np.uint8)


def noise(count: int, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Grey noise, from single pixels to patches of some, (N, 128, 128) uint8."""
    pictures = []
    for _ in range(count):
        knots = int(rng.choice([16, 32, 48, 64, 128, 128]))
        coarse = Image.fromarray(
            rng.normal(rng.uniform(0.2, 0.8), rng.uniform(0.1, 0.6), (knots, knots)).astype(np.float32), mode="F"
        )
        resample = Image.Resampling.NEAREST if rng.random() < 0.3 else Image.Resampling.BICUBIC
        pictures.append(255 * np.clip(np.asarray(coarse.resize((128, 128), resample)), 0, 1))
    return np.stack(pictures).astype(np.uint8)


def mirrored(images: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
    """Left-right or upside-down images of those glyphs that this changes much; (N, H, W) uint8."""
    flipped = [image[:, ::-1] if rng.random() < 0.5 else image[::-1] for image in images]
    kept = []
    for image, turned in zip(images, flipped, strict=True):
        a, b = (
            np.asarray(Image.fromarray(255 - p).resize((32, 32), Image.Resampling.BOX), np.float32)
            for p in (image, turned)
        )
        if (a * b).sum() < 0.72 * np.sqrt((a**2).sum() * (b**2).sum()):
            kept.append(turned)
    return np.stack(kept)


def half_swapped(images: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
    """Halves of two glyphs joined where both have strokes across the cut; (N, H, W) uint8."""
    pictures = []
    for first, second in zip(images, images[rng.permutation(len(images))], strict=True):
        if rng.random() < 0.5:
            first, second, turn = first.T, second.T, True
        else:
            turn = False
        cut = int(rng.integers(44, 85))
        edges = [image[:, at] < 128 for image, at in ((first, cut - 1), (second, cut))]
        if min(edge.sum() for edge in edges) < 8 or (edges[0] ^ edges[1]).sum() < 0.7 * (edges[0] | edges[1]).sum():
            continue
        joined_halves = np.concatenate([first[:, :cut], second[:, cut:]], axis=1)
        pictures.append(joined_halves.T if turn else joined_halves)
    return np.stack(pictures)


def shuffled_patches(images: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
    """Glyphs cut into 4, 9 or 16 squares and put together in another order; (N, H, W) uint8."""
    pictures = []
    for image in images:
        pieces = int(rng.choice([2, 3, 4]))
        side = 120 // pieces
        cells = [image[4 + r * side :, 4 + c * side :][:side, :side] for r in range(pieces) for c in range(pieces)]
        order = np.roll(np.arange(len(cells)), 1) if pieces == 2 else rng.permutation(len(cells))
        grid = [np.concatenate([cells[i] for i in order[r * pieces : (r + 1) * pieces]], axis=1) for r in range(pieces)]
        pictures.append(np.concatenate(grid))
    return np.stack(pictures)


def half_faded(images: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
    """Glyphs of which smooth patches, about half, have faded away, (N, H, W) uint8."""
    field = _smooth_field(len(images), rng, images.shape[1])
    kept = np.clip(
        0.5 + (field - rng.uniform(-0.2, 0.4, (len(images), 1, 1))) * 3, rng.uniform(0, 0.25, (len(images), 1, 1)), 1
    )
    return (255 - (255 - images) * kept).astype(np.uint8)


def letters(fonts: Sequence[Path], hangul_font: Path, count: int, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Kana, Latin, Greek, Cyrillic and Hangul, less those that look like a kanji.

    Args:
        fonts: for all but Hangul.
        hangul_font: for Hangul, half of the glyphs.
        count: how many.
        rng: which.
    Returns:
        (count, 128, 128) uint8, 0 ink to 255 paper.
    """
    codes = [chr(code) for first, last in LETTER_RANGES for code in range(ord(first), ord(last) + 1)]
    codes = [code for code in codes if code not in SAME_AS_A_KANJI]
    pictures = []
    while len(pictures) < count:
        hangul = rng.random() < 0.5
        character = chr(rng.integers(*HANGUL)) if hangul else codes[int(rng.integers(len(codes)))]
        font = hangul_font if hangul else fonts[int(rng.integers(len(fonts)))]
        try:
            pictures.append(np.asarray(draw_font(character, font)))
        except GlyphError:
            continue
    return np.stack(pictures)


@dataclass(frozen=True)
class Denoised:
    """Glyphs through the autoencoder of the pocket base: nearly clean ones, and others half denoised."""

    nearly_clean: NDArray[np.uint8]
    half: NDArray[np.uint8]


@torch.inference_mode()
@torch.autocast("cpu", torch.bfloat16)
def through_pocket(images: NDArray[np.uint8], rng: np.random.Generator, batch: int = 64) -> Denoised:
    """What glyphs look like early and late in denoising.

    Args:
        images: (N, 128, 128) uint8.
        rng: noise and noise levels.
        batch: glyphs at a time.
    Returns:
        Nearly clean: decoded with little noise. Half: with much noise left, or as the base's guess at
        the clean glyph from much noise (it has never seen a kanji). (N, 128, 128) uint8 each.
    """
    base = load_base("pocket")
    base.vae.to(memory_format=torch.channels_last)
    text = base.encode_text([""])
    clean, half = [], []
    for start in range(0, len(images), batch):
        latents = base.encode_images(images[start : start + batch])[0]
        draw = torch.from_numpy(rng.normal(size=latents.shape).astype(np.float32))
        mild = torch.from_numpy(rng.uniform(0, 0.3, len(latents)).astype(np.float32))[:, None, None, None]
        clean.append(base.decode(latents + mild * draw))
        way = torch.from_numpy(rng.integers(0, 3, len(latents)))
        most = torch.where(way == 0, 0.15, 0.45)  # the guess is good early on
        alpha_bar = 0.02 + torch.from_numpy(rng.random(len(latents)).astype(np.float32)) * most
        steps = (base.alpha_bar[None] - alpha_bar[:, None]).abs().argmin(1)
        noisy, _ = base.noised(latents, draw, steps)
        signal = base.alpha_bar[steps][:, None, None, None]
        states = text.select(torch.zeros(len(latents), dtype=torch.long))
        guess = (noisy - (1 - signal).sqrt() * base.denoise(noisy, steps, states)) / signal.sqrt()
        way = way[:, None, None, None]
        mixed = torch.where(way == 0, guess, torch.where(way == 1, noisy, noisy / signal.sqrt()))
        half.append(base.decode(mixed))
    return Denoised(np.concatenate(clean), np.concatenate(half))


# ---------------------------------------------------------------- the material


@dataclass(frozen=True)
class Amounts:
    """How many glyphs of each sort a judge's material holds."""

    characters: int | None = None  # the first so many of the recogniser's classes; None for all
    typeset_per_font: int = 4000
    junk_per_kind: int = 3000
    through_pocket: int = 2500


def build_material(
    fonts: Sequence[Path],
    hangul_font: Path,
    characters: Sequence[str],
    kanjivg: KanjiVG,
    amounts: Amounts,
    seed: int,
    tests: bool = False,
) -> Glyphs:
    """Everything that a judge is trained on, or measured on.

    Args:
        fonts: to draw characters in, and to cut typeset pairs from.
        hangul_font: for letters that are no kana.
        characters: the recogniser's classes.
        kanjivg: strokes to jumble.
        amounts: how much of each sort.
        seed: of everything drawn at random.
        tests: take the pairs kept for tests and the characters held out, instead of all the others.
    """
    components = load_components()
    by_font = [real_glyphs(font, characters, components) for font in fonts]
    real = joined(by_font) if tests else recogniser_only(joined(by_font), characters)
    allowed = {character for character in components.decompositions if tests or not is_held_out(character)}
    pairs = [pair for pair in novel_pairs(components) if pair.for_tests == tests]
    typeset = []
    for index, font in enumerate(fonts):
        typesetter, rng = Typesetter(components, font, allowed), counted_rng(seed, "typeset", index)
        typeset.append(typeset_glyphs(typesetter, pairs, amounts.typeset_per_font, components, rng))
    rows = _rows_to_spoil(real, characters, amounts, tests, counted_rng(seed, "judge training", 2**40))
    font_of_row = np.repeat(np.arange(len(fonts)), [len(glyphs) for glyphs in by_font])
    drawn = [draw_font(characters[int(real.character[row])], fonts[int(font_of_row[row])]) for row in rows]
    images = np.stack([np.asarray(image) for image in drawn])
    rng = counted_rng(seed, "judge training", 2**40 + 1)
    passed = through_pocket(images[: amounts.through_pocket], rng)
    clean = taken(real, rows[: amounts.through_pocket])
    clean = replace(
        clean, ink=frame_glyphs(passed.nearly_clean)[0], kind=np.full(len(clean), KINDS.index("nearly clean"))
    )
    junk = _junk_pictures(images, amounts.junk_per_kind, fonts, hangul_font, kanjivg, rng)
    made = [junk_glyphs(pictures, kind) for kind, pictures in ({"half denoised": passed.half} | junk).items()]
    return joined([real, *typeset, clean, *made])


def _rows_to_spoil(
    real: Glyphs, characters: Sequence[str], amounts: Amounts, tests: bool, rng: np.random.Generator
) -> NDArray[np.int64]:
    """Random rows of real glyphs to make junk from: of held-out characters for tests, else of the others."""
    held = np.array([is_held_out(character) for character in characters])[real.character]
    wanted = max(2 * amounts.junk_per_kind, amounts.through_pocket)
    return rng.choice(np.flatnonzero(held == tests), size=wanted)


def _junk_pictures(
    images: NDArray[np.uint8],
    count: int,
    fonts: Sequence[Path],
    hangul_font: Path,
    kanjivg: KanjiVG,
    rng: np.random.Generator,
) -> dict[str, NDArray[np.uint8]]:
    """Pictures by kind of junk, those that need no autoencoder; glyphs to spoil are taken from `images`."""
    listed = sorted(load_components().decompositions)
    return {
        "scribble": scribbles(count, rng),
        "jumbled strokes": jumbled_strokes(count, kanjivg, listed, rng),
        "blob": blobs(count // 2, rng),
        "noise": noise(count // 2, rng),
        "letter": letters(fonts, hangul_font, count, rng),
        "mirrored": mirrored(images[:count], rng),
        "half swapped": half_swapped(images[-count:], rng),
        "shuffled patches": shuffled_patches(images[:count], rng),
        "half faded": half_faded(images[-count:], rng),
    }


def save_glyphs(glyphs: Glyphs, path: Path) -> None:
    """Write glyphs with their truth as one safetensors file, whole or not at all."""
    arrays = {field.name: np.ascontiguousarray(getattr(glyphs, field.name)) for field in fields(Glyphs)}
    temporary = path.with_suffix(".tmp")
    save_arrays(arrays, temporary)
    temporary.replace(path)


def load_glyphs(path: Path) -> Glyphs:
    """Read what `save_glyphs` wrote."""
    return Glyphs(**load_arrays(path))


# ---------------------------------------------------------------- training


def roughen(ink: NDArray[np.uint8], rng: np.random.Generator) -> Tensor:
    """Glyphs as an unsure hand, or a small diffusion model, draws them; one in six stays as it is.

    Shifted, scaled, wobbly, thinner or thicker, a little faded, blurred and noisy.

    Args:
        ink: (B, 64, 64) uint8, 0 paper to 255 ink.
        rng: of all that varies.
    Returns:
        (B, 1, 64, 64) float32 in [0, 1].
    """
    count = len(ink)
    clean = torch.from_numpy(ink.astype(np.float32) / 255)[:, None]

    def uniform(low: float, high: float) -> Tensor:
        return torch.from_numpy(rng.uniform(low, high, (count, 1, 1, 1)).astype(np.float32))

    def chance(share: float) -> Tensor:
        return uniform(0, 1) < share

    linear = np.eye(2) + rng.normal(size=(count, 2, 2)) * [[0.05, 0.035], [0.035, 0.05]]
    affine = np.concatenate([linear, rng.normal(size=(count, 2, 1)) * 0.03], axis=2).astype(np.float32)
    knots = torch.from_numpy(rng.normal(size=(count, 2, 6, 6)).astype(np.float32)) * uniform(0, 0.045)
    wobble = F.interpolate(knots, size=(SIZE_PX, SIZE_PX), mode="bilinear", align_corners=True)
    grid = F.affine_grid(torch.from_numpy(affine), [count, 1, SIZE_PX, SIZE_PX], align_corners=False)
    moved = F.grid_sample(clean, grid + wobble.permute(0, 2, 3, 1), align_corners=False)
    blurred = _blur(moved)
    twice = torch.where(chance(0.5), blurred, _blur(blurred))
    redrawn = ((twice - uniform(0.12, 0.5)) * uniform(2, 6) + 0.5).clamp(0, 1)
    rough = torch.where(chance(0.65), redrawn, moved)
    rough = torch.where(chance(0.25), _blur(rough), rough) * uniform(0.7, 1)
    grain = torch.from_numpy(rng.standard_normal(rough.shape, dtype=np.float32))
    rough = (rough + grain * uniform(-0.04, 0.07).clamp(min=0)).clamp(0, 1)
    return torch.where(chance(1 / 6), clean, rough)


def _blur(ink: Tensor) -> Tensor:
    """Binomial blur (1 2 1) / 4 along both axes."""
    ink = F.pad(ink, (1, 1, 1, 1))
    ink = (ink[..., :-2] + ink[..., 2:]) / 4 + ink[..., 1:-1] / 2
    return (ink[..., :-2, :] + ink[..., 2:, :]) / 4 + ink[..., 1:-1, :] / 2


def map_targets(parts: NDArray[np.float32], count: int, vocabulary: int) -> NDArray[np.float32]:
    """How much of each cell each part's box covers.

    Args:
        parts: (M, 6): glyph, part, box in [0, 1].
        count: of glyphs, B.
        vocabulary: number of parts, P.
    Returns:
        (B, P, 8, 8) float32 in [0, 1]; several boxes of one part are joined.
    """
    edges = np.arange(GRID + 1) / GRID

    def covered(low: NDArray, high: NDArray) -> NDArray:
        overlap = np.minimum(high[:, None], edges[1:]) - np.maximum(low[:, None], edges[:-1])
        return np.clip(overlap * GRID, 0, 1)

    cells = covered(parts[:, 3], parts[:, 5])[:, :, None] * covered(parts[:, 2], parts[:, 4])[:, None, :]
    targets = np.zeros((count, vocabulary, GRID, GRID), np.float32)
    np.maximum.at(targets, (parts[:, 0].astype(int), parts[:, 1].astype(int)), cells.astype(np.float32))
    return targets


@dataclass(frozen=True)
class JudgeRecipe:
    """How a judge is trained: constant rate after a warm-up, then a linear cool-down to zero."""

    name: str
    steps: int = 3600
    batch_real: int = 80
    batch_typeset: int = 28
    batch_junk: int = 24
    peak_lr: float = 3e-3
    warmup_steps: int = 200
    cooldown_steps: int = 1600
    weight_decay: float = 0.02
    softness: float = 22.0  # cosines are multiplied by it
    margin: float = 0.1  # that the right character's cosine must lead by
    novel_from_step: int = 2000  # from here on, novel pairs are to lie near no character ...
    novel_cosine: float = 0.4  # ... nearer than this, and real glyphs nearer than this to theirs
    known_cosine: float = 0.65  # a pair as near as this may be a character that no decomposition is listed for
    novel_weight: float = 1.0
    part_weight: float = 0.5
    map_weight: float = 0.5
    covered_weight: float = 4.0  # of cells within a part's box
    layout_weight: float = 0.5
    legal_weight: float = 1.0
    seed: int = 0

    def lr(self, step: int) -> float:
        """Learning rate at a step (0-based)."""
        warm = min(1.0, (step + 1) / self.warmup_steps)
        return self.peak_lr * warm * min(1.0, (self.steps - step) / self.cooldown_steps)


class JudgeTraining:
    """A network with its optimizer; can be stored and taken up again, and goes on as if never stopped."""

    def __init__(self, recipe: JudgeRecipe, parts: int, characters: int):
        """New weights from the recipe's seed."""
        self.recipe, self.step, self.seconds = recipe, 0, 0.0
        with torch.random.fork_rng():
            torch.manual_seed(recipe.seed)
            network = JudgeNetwork(ARCHITECTURES[recipe.name], parts, characters)
        self.network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.optimizer = torch.optim.AdamW(
            self.network.parameters(),
            lr=recipe.peak_lr,
            betas=(0.9, 0.99),
            weight_decay=recipe.weight_decay,
            fused=True,
        )

    def advance(self, material: Glyphs, pools: Pools) -> dict[str, float]:
        """One step; returns the losses."""
        recipe, started = self.recipe, time.perf_counter()
        rng = counted_rng(recipe.seed, "judge training", self.step)
        rows = pools.draw(recipe, rng)
        self.network.train()
        with torch.autocast("cpu", torch.bfloat16):
            ink = roughen(material.ink[rows], rng).to(memory_format=torch.channels_last)
            answers = self.network(ink)
        losses = judge_losses(
            answers, self.network.prototypes, material, rows, recipe, self.step >= recipe.novel_from_step
        )
        sum(losses.values()).backward()  # type: ignore[union-attr]
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), 5.0)
        self.optimizer.param_groups[0]["lr"] = recipe.lr(self.step)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.step += 1
        self.seconds += time.perf_counter() - started
        return {name: value.item() for name, value in losses.items()}

    def save(self, path: Path) -> None:
        """Everything needed to go on, in one safetensors file, replaced atomically."""
        state = {f"network.{name}": value for name, value in self.network.state_dict().items()}
        for name, parameter in self.network.named_parameters():
            for key, value in self.optimizer.state[parameter].items():
                state[f"optimizer.{key}.{name}"] = value
        facts = {"step": str(self.step), "seconds": str(self.seconds)}
        temporary = path.with_suffix(".tmp")
        save_file({name: value.detach().contiguous() for name, value in state.items()}, temporary, facts)
        temporary.replace(path)

    def load(self, path: Path) -> None:
        """Take up what `save` stored."""
        state = load_file(path)
        self.network.load_state_dict({name: state[f"network.{name}"] for name in self.network.state_dict()})
        for name, parameter in self.network.named_parameters():
            # laid out in memory as the parameter is: the fused optimizer goes through both side by side
            self.optimizer.state[parameter] = {
                key: torch.empty_like(parameter).copy_(state[f"optimizer.{key}.{name}"])
                for key in ("exp_avg", "exp_avg_sq")
            } | {"step": state[f"optimizer.step.{name}"]}
        with safe_open(path, framework="pt") as file:
            facts = file.metadata()
        self.step, self.seconds = int(facts["step"]), float(facts["seconds"])


@dataclass(frozen=True)
class Pools:
    """Rows of the material by sort, so that every batch holds all sorts."""

    real: NDArray[np.int64]
    typeset: NDArray[np.int64]
    junk: tuple[NDArray[np.int64], ...]

    @classmethod
    def of(cls, material: Glyphs) -> Pools:
        """Sort the material; its nearly clean glyphs go with the real ones."""
        rows = {kind: np.flatnonzero(material.kind == index) for index, kind in enumerate(KINDS)}
        junk = tuple(rows[kind] for kind in JUNK if len(rows[kind]))
        return cls(np.concatenate([rows["real"], rows["nearly clean"]]), rows["typeset"], junk)

    def draw(self, recipe: JudgeRecipe, rng: np.random.Generator) -> NDArray[np.int64]:
        """(B,) rows of a batch; every kind of junk equally likely."""
        kinds = rng.integers(len(self.junk), size=recipe.batch_junk)
        junk = [self.junk[kind][rng.integers(len(self.junk[kind]))] for kind in kinds]
        real = self.real[rng.integers(len(self.real), size=recipe.batch_real)]
        typeset = self.typeset[rng.integers(len(self.typeset), size=recipe.batch_typeset)]
        return np.concatenate([real, typeset, np.array(junk, dtype=np.int64)])


def judge_losses(
    answers: Answers,
    prototypes: Tensor,
    material: Glyphs,
    rows: NDArray[np.int64],
    recipe: JudgeRecipe,
    novelty: bool = True,
) -> dict[str, Tensor]:
    """The terms of the loss, weighted; each only over the glyphs whose truth is known.

    Args:
        answers: of the network, for the glyphs of `rows`.
        prototypes: (C, D), one direction a character.
        material: the truth.
        rows: (B,) which glyphs.
        recipe: the weights.
        novelty: whether "none of them" is among the recogniser's answers.
    """
    layout, known = torch.from_numpy(material.layout[rows]), torch.from_numpy(material.parts_known[rows])
    legal = torch.from_numpy(material.legal[rows])
    targets = torch.from_numpy(map_targets(parts_of(material, rows), len(rows), answers.maps.shape[1]))
    present = (targets.amax((2, 3)) > 0).float()
    presence = F.binary_cross_entropy_with_logits(answers.presence, present, reduction="none")
    asked = legal >= 0
    legality = F.binary_cross_entropy_with_logits(answers.legality[asked], legal[asked].float())
    return {
        **_recogniser_losses(answers.embedding, prototypes, material, rows, recipe, novelty),
        "maps": recipe.map_weight * _map_loss(answers.maps, targets, known, recipe.covered_weight),
        "presence": recipe.part_weight * presence[known].sum() / known.sum(),
        "layout": recipe.layout_weight * F.cross_entropy(answers.layout, layout, ignore_index=-1),
        "legality": recipe.legal_weight * legality,
    }


def _recogniser_losses(
    embedding: Tensor,
    prototypes: Tensor,
    material: Glyphs,
    rows: NDArray[np.int64],
    recipe: JudgeRecipe,
    novelty: bool,
) -> dict[str, Tensor]:
    """Cross-entropy over the characters and, with novelty, over "none of them", which has one fixed cosine."""
    character = torch.from_numpy(material.character[rows])
    cosine = embedding @ F.normalize(prototypes, dim=1).T  # (B, C)
    named = character >= 0
    lead = recipe.margin * F.one_hot(character[named], cosine.shape[1])
    if not novelty:
        return {"character": F.cross_entropy(recipe.softness * (cosine[named] - lead), character[named])}
    none = torch.full((len(rows), 1), recipe.novel_cosine)
    answers = recipe.softness * torch.cat([cosine, none], dim=1)
    composed = torch.from_numpy(material.kind[rows] == KINDS.index("typeset"))
    composed &= cosine.detach().amax(1) < recipe.known_cosine
    lead = F.pad(recipe.softness * lead, (0, 1))
    nothing = torch.full((int(composed.sum()),), cosine.shape[1])
    away = F.cross_entropy(answers[composed], nothing, reduction="sum") / max(1, len(nothing))
    return {
        "character": F.cross_entropy(answers[named] - lead, character[named]),
        "novel": recipe.novel_weight * away,
    }


def _map_loss(maps: Tensor, targets: Tensor, known: Tensor, covered_weight: float) -> Tensor:
    """Cross-entropy of cells (mean over cells, sum over parts), those covered by a part counting more.

    Most cells are covered by no part, so what concerns the others is computed for these few alone.
    """
    empty = F.softplus(maps).sum((1, 2, 3)) @ known.float()
    where = torch.nonzero((targets > 0) & known[:, None, None, None], as_tuple=True)
    logit, target = maps[where], targets[where]
    full = F.softplus(logit) - logit * target
    covered = (full * (1 + (covered_weight - 1) * target) - F.softplus(logit)).sum()
    return (empty + covered) / (known.sum() * GRID * GRID)


def train_judge(material: Glyphs, training: JudgeTraining) -> Iterator[dict[str, float]]:
    """Train to the end of the recipe; yields the losses of every step."""
    pools = Pools.of(material)
    while training.step < training.recipe.steps:
        yield training.advance(material, pools)


# ---------------------------------------------------------------- thresholds and the card

FALSE_POSITIVES = 0.05  # of pictures without any part, that may show one


class Logits(NamedTuple):
    """What a network says of N glyphs: embedding (N, D), presence (N, P), layout (N, L + 1), legality (N,)."""

    embedding: NDArray[np.float32]
    presence: NDArray[np.float32]
    layout: NDArray[np.float32]
    legality: NDArray[np.float32]


@torch.inference_mode()
def all_logits(network: JudgeNetwork, ink: NDArray[np.uint8], batch: int = 128) -> Logits:
    """Ask a network about framed glyphs.

    Args:
        network: the judge's; left in evaluation mode.
        ink: (N, 64, 64) uint8, 0 paper to 255 ink.
        batch: glyphs at a time.
    """
    network.eval()
    found: list[tuple[NDArray, ...]] = []
    for start in range(0, len(ink), batch):
        glyphs = torch.from_numpy(ink[start : start + batch].astype(np.float32) / 255)[:, None]
        answers = network(glyphs.contiguous(memory_format=torch.channels_last))
        found.append(
            tuple(value.numpy() for value in (answers.embedding, answers.presence, answers.layout, answers.legality))
        )
    return Logits(*(np.concatenate(values) for values in zip(*found, strict=True)))


def present_parts(glyphs: Glyphs, vocabulary: int) -> NDArray[np.bool_]:
    """(N, P) which parts each glyph has, as far as that is known."""
    present = np.zeros((len(glyphs), vocabulary), dtype=bool)
    present[glyphs.parts[:, 0].astype(int), glyphs.parts[:, 1].astype(int)] = True
    return present


def temperature_of(logits: NDArray[np.float32], truth: NDArray[np.bool_]) -> float:
    """The temperature at which probabilities hold best: least cross-entropy.

    Args:
        logits: any shape.
        truth: the same shape.
    """
    signs = np.where(truth, -logits, logits).astype(np.float64)
    return float(min(np.geomspace(0.3, 3, 60), key=lambda t: np.logaddexp(0, signs / t).mean()))


def calibration_error(probability: NDArray, truth: NDArray[np.bool_], bins: int = 15) -> float:
    """Expected calibration error: mean gap between probability and frequency, over equal bins of probability.

    Args:
        probability: any shape, in [0, 1].
        truth: the same shape.
        bins: how many.
    Source: Guo et al. 2017, arXiv:1706.04599, equation 3.
    """
    place = np.minimum((probability.ravel() * bins).astype(int), bins - 1)
    count = np.bincount(place, minlength=bins)
    gaps = np.abs(np.bincount(place, probability.ravel(), bins) - np.bincount(place, truth.ravel(), bins))
    return float(gaps.sum() / count.sum())


@dataclass(frozen=True)
class Calibration:
    """What turns a network's logits into verdicts; see `judges.Judge` for the meaning of each."""

    temperatures: dict[str, float]
    part_thresholds: NDArray[np.float32]
    novel_distance: float
    legal_threshold: float


def calibrate(network: JudgeNetwork, validation: Glyphs, characters: Sequence[str]) -> Calibration:
    """Set temperatures and thresholds on fonts that were not trained on, with characters held out.

    Args:
        network: trained.
        validation: material made with `tests=True`.
        characters: the recogniser's classes.
    """
    said = all_logits(network, validation.ink)
    held = _held_out_rows(validation, characters)
    labelled = held & validation.parts_known
    present = present_parts(validation, said.presence.shape[1])
    parts_temperature = temperature_of(said.presence[labelled], present[labelled])
    probability = expit(said.presence / parts_temperature)
    layouts = said.layout[labelled]
    hit = np.eye(layouts.shape[1], dtype=bool)[validation.layout[labelled]]
    layout_temperature = min(
        np.geomspace(0.3, 3, 60), key=lambda t: -np.log(softmax(layouts / t, axis=1)[hit] + 1e-12).mean()
    )
    asked = held | (validation.legal == 0)
    legal_temperature = temperature_of(said.legality[asked], validation.legal[asked] == 1)
    legality = expit(said.legality[held] / legal_temperature)
    distance = _own_distance(network, said, validation)
    return Calibration(
        {"parts": parts_temperature, "layout": float(layout_temperature), "legality": legal_temperature},
        _part_thresholds(probability, present, validation, labelled),
        float(np.quantile(distance, KNOWN_QUANTILE)),
        float(np.quantile(legality, LEGAL_QUANTILE)),
    )


# Beyond 95% in both, so that 95% still pass in other unseen fonts, which may lie a little farther off.
KNOWN_QUANTILE = 0.97  # of the distances between a glyph and its own character
LEGAL_QUANTILE = 0.03
CONFUSED_MAX = 0.005  # of the real glyphs without a part, that may show it


def _part_thresholds(
    probability: NDArray[np.float32], present: NDArray[np.bool_], validation: Glyphs, labelled: NDArray[np.bool_]
) -> NDArray[np.float32]:
    """(P,) the higher of two: of the pictures without any part 5% show one; and few real glyphs show a wrong one."""
    empty = probability[np.isin(validation.kind, [KINDS.index(kind) for kind in WITHOUT_PARTS])]
    floor = np.quantile(empty.max(axis=1), 1 - FALSE_POSITIVES)
    without = np.where(present[labelled], 0.0, probability[labelled])
    return np.maximum(floor, np.quantile(without, 1 - CONFUSED_MAX, axis=0)).astype(np.float32)


def _held_out_rows(glyphs: Glyphs, characters: Sequence[str]) -> NDArray[np.bool_]:
    held = np.array([is_held_out(character) for character in characters])
    return (glyphs.character >= 0) & held[glyphs.character] & (glyphs.kind == KINDS.index("real"))


def _own_distance(network: JudgeNetwork, said: Logits, glyphs: Glyphs) -> NDArray[np.float32]:
    """Distance (1 - cosine) of every real glyph to its own character's prototype."""
    real = glyphs.character >= 0
    prototypes = F.normalize(network.prototypes.detach(), dim=1).numpy()
    return 1 - (said.embedding[real] * prototypes[glyphs.character[real]]).sum(axis=1)


def measure(judge: Judge, glyphs: Glyphs) -> dict[str, Any]:
    """Everything the card tells of a judge, on material made with `tests=True`.

    Args:
        judge: with its thresholds.
        glyphs: in fonts that neither training nor thresholds have seen.
    Returns:
        Shares in [0, 1], counts, and tables of shares by kind of junk and by layout.
    """
    said = all_logits(judge.network, glyphs.ink)
    held = _held_out_rows(glyphs, judge.characters)
    probability = expit(said.presence / judge.temperatures["parts"])
    seen, present = probability >= judge.part_thresholds, present_parts(glyphs, len(judge.parts))
    legal = expit(said.legality / judge.temperatures["legality"]) >= judge.legal_threshold
    labelled = held & glyphs.parts_known
    report: dict[str, Any] = {
        **_measure_recogniser(judge, said, glyphs),
        "held_out_glyphs": int(held.sum()),
        "legal_pass_rate": float(legal[held].mean()),
        "legal_pass_rate_through_vae": float(legal[glyphs.kind == KINDS.index("nearly clean")].mean()),
        "part_recall": float(seen[labelled][present[labelled]].mean()),
        "part_precision": float(present[labelled][seen[labelled]].mean()),
        "part_calibration_error": calibration_error(probability[labelled], present[labelled]),
        **_measure_layout(judge, said, glyphs, labelled),
        **_measure_typeset(seen, present, glyphs),
        **_measure_reading(judge, glyphs),
    }
    kinds = {kind: glyphs.kind == KINDS.index(kind) for kind in JUNK}
    report["junk_called_illegal"] = {kind: float(1 - legal[rows].mean()) for kind, rows in kinds.items() if rows.any()}
    empty = np.isin(glyphs.kind, [KINDS.index(kind) for kind in WITHOUT_PARTS])
    report["empty_pictures_showing_a_part"] = float(seen[empty].any(axis=1).mean())
    report["junk_showing_a_part"] = {
        kind: float(seen[rows].any(axis=1).mean()) for kind, rows in kinds.items() if rows.any()
    }
    return report


def _measure_recogniser(judge: Judge, said: Logits, glyphs: Glyphs) -> dict[str, Any]:
    real, composed = (np.flatnonzero(glyphs.kind == KINDS.index(kind)) for kind in ("real", "typeset"))
    prototypes = F.normalize(judge.network.prototypes, dim=1).numpy().T
    blocks = np.array_split(real, 1 + len(real) // 1000)
    cosine = np.concatenate([said.embedding[rows] @ prototypes for rows in blocks])
    order = np.argpartition(-cosine, 10, axis=1)[:, :10]
    right = glyphs.character[real]
    novel = 1 - (said.embedding[composed] @ prototypes).max(axis=1) > judge.novel_distance
    return {
        "real_glyphs": len(real),
        "top1": float((cosine.argmax(axis=1) == right).mean()),
        "top10": float((order == right[:, None]).any(axis=1).mean()),
        "not_novel_rate": float((1 - cosine.max(axis=1) <= judge.novel_distance).mean()),
        "typeset_called_novel": float(novel.mean()),
    }


def _measure_layout(judge: Judge, said: Logits, glyphs: Glyphs, labelled: NDArray[np.bool_]) -> dict[str, Any]:
    shares = softmax(said.layout[labelled] / judge.temperatures["layout"], axis=1)
    best = shares.argmax(axis=1)
    sure = (best != NONE) & (shares.max(axis=1) >= LAYOUT_SURE)
    right = best == glyphs.layout[labelled]
    return {"layout_accuracy_when_sure": float(right[sure].mean()), "layout_abstained": float(1 - sure.mean())}


def _measure_typeset(seen: NDArray[np.bool_], present: NDArray[np.bool_], glyphs: Glyphs) -> dict[str, Any]:
    """How often both parts of a novel pair are found; the pair stands first among each glyph's parts."""
    rows = np.flatnonzero(glyphs.kind == KINDS.index("typeset"))
    starts = glyphs.rows_of_parts()[rows]
    pair = glyphs.parts[np.stack([starts, starts + 1]), 1].astype(int)  # (2, N)
    both = seen[rows, pair[0]] & seen[rows, pair[1]]
    layouts = {name: glyphs.layout[rows] == index for index, name in enumerate(LAYOUTS)}
    extra = (seen[rows] & ~present[rows]).sum(axis=1)
    return {
        "typeset_pairs": len(rows),
        "typeset_both_found": float(both.mean()),
        "typeset_both_found_by_layout": {name: float(both[at].mean()) for name, at in layouts.items() if at.any()},
        "typeset_wrong_parts_each": float(extra.mean()),
    }


def _measure_reading(judge: Judge, glyphs: Glyphs, count: int = 1000) -> dict[str, Any]:
    """What `read` makes of novel pairs, nested parts counted once, and how long it takes."""
    rows = np.flatnonzero(glyphs.kind == KINDS.index("typeset"))[:count]
    starts = glyphs.rows_of_parts()[rows]
    started = time.perf_counter()
    table = judge.read(255 - glyphs.ink[rows])
    seconds = time.perf_counter() - started
    pairs = [{judge.parts[int(index)] for index in glyphs.parts[at : at + 2, 1]} for at in starts]
    both = [pair <= set(parts) for pair, parts in zip(pairs, table.parts, strict=True)]
    return {
        "typeset_both_read": float(np.mean(both)),
        "typeset_parts_read_each": float(np.mean([len(parts) for parts in table.parts])),
        "read_seconds_per_1000": round(1000 * seconds / len(rows), 1),
    }


# ---------------------------------------------------------------- from nothing to the package's files

SAVE_EVERY = 500  # steps
SEEDS = {"A": 1, "B": 2}  # of weights and order
MATERIAL_SEEDS = {"A": 11, "B": 22, "validation": 33, "test": 44}
TEST_AMOUNTS = Amounts(typeset_per_font=400, junk_per_kind=600, through_pocket=600)


@dataclass(frozen=True)
class Workshop:
    """Where the parts of a build are kept, and what it draws with; whatever is there already is not made again."""

    folder: Path
    fonts: Path = FONTS_FOLDER
    kanjivg: Path | None = None

    def material(self, name: str) -> Glyphs:
        """Material for judge "A" or "B", or for "validation" or "test"."""
        path = self.folder / f"material_{name}.safetensors"
        if not path.is_file():
            files = {**TRAINING_FONTS, "validation": VALIDATION_FONTS, "test": TEST_FONTS}[name]
            fonts = [locate(font, self.fonts) for font in files]
            tests = name not in TRAINING_FONTS
            amounts = TEST_AMOUNTS if tests else Amounts()
            made = build_material(
                fonts,
                locate(HANGUL_FONT, self.fonts),
                recogniser_characters(),
                KanjiVG.open(self.kanjivg),
                amounts,
                MATERIAL_SEEDS[name],
                tests,
            )
            save_glyphs(made, path)
        return load_glyphs(path)

    def trained(self, recipe: JudgeRecipe, on_step: Callable[[int, dict[str, float]], None]) -> JudgeTraining:
        """The recipe's training at its end; goes on from the last saved state."""
        path = self.folder / f"state_{recipe.name}.safetensors"
        training = JudgeTraining(recipe, len(load_components().parts), len(recogniser_characters()))
        if path.is_file():
            training.load(path)
        if training.step < recipe.steps:
            for losses in train_judge(self.material(recipe.name), training):
                on_step(training.step, losses)
                if training.step % SAVE_EVERY == 0 or training.step == recipe.steps:
                    training.save(path)
        return training


def finish_judge(training: JudgeTraining, validation: Glyphs, test: Glyphs) -> Judge:
    """Set the thresholds on the validation fonts, then measure on the test fonts."""
    characters = recogniser_characters()
    name, network = training.recipe.name, training.network
    for parameter in network.parameters():  # measured as it will be stored
        parameter.data = parameter.data.half().float() if parameter.ndim >= 2 else parameter.data
    network.requires_grad_(False).eval()
    found = calibrate(network, validation, characters)
    judge = Judge(
        name,
        network,
        load_components().parts,
        found.part_thresholds,
        LAYOUTS,
        characters,
        found.temperatures,
        found.novel_distance,
        found.legal_threshold,
        {},
    )
    recipe = training.recipe
    images = training.step * (recipe.batch_real + recipe.batch_typeset + recipe.batch_junk)
    report = {
        "steps": training.step,
        "images_seen": images,
        "training_seconds": round(training.seconds),
        "machine": f"one core, {platform.machine()}, bf16",
        "validation": measure(judge, validation),
        "test": measure(judge, test),
    }
    return replace(judge, report=report)


# ---------------------------------------------------------------- a small sample, kept for the tests

SAMPLE_NAME = "sample.png"
SAMPLE_PX = 96
SAMPLE_COLUMNS = 16
SAMPLE_PER_FONT = 16
SAMPLE_PER_JUNK = 6


def make_sample(workshop: Workshop, path: Path, seed: int = 55) -> None:
    """Draw real held-out characters, novel pairs and junk from the test fonts; store picture and truth.

    Args:
        workshop: where the fonts are.
        path: a PNG, glyphs in rows of 16; its truth is stored beside it as JSON.
        seed: of what is drawn.
    """
    components, rng = load_components(), counted_rng(seed, "judge training")
    fonts = [locate(font, workshop.fonts) for font in TEST_FONTS]
    held = [character for character in recogniser_characters() if is_held_out(character)]
    pairs = [pair for pair in novel_pairs(components) if pair.for_tests]
    images, truth = [], []
    for font in fonts:
        chosen = [held[int(index)] for index in rng.permutation(len(held))[: 4 * SAMPLE_PER_FONT]]
        drawable = [character for character in chosen if draws(character, font)][:SAMPLE_PER_FONT]
        images += [np.asarray(draw_font(character, font)) for character in drawable]
        truth += [{"kind": "real", "character": character} for character in drawable]
        typesetter = Typesetter(components, font)
        made = (typesetter.compose(pairs[int(index)], rng) for index in rng.permutation(len(pairs)))
        composed = list(itertools.islice((one for one in made if one is not None), SAMPLE_PER_FONT))
        images += [one.image for one in composed]
        truth += [{"kind": "typeset", "parts": [one.pair.first, one.pair.second]} for one in composed]
    full = max(fonts, key=lambda font: sum(draws(character, font) for character in held))
    whole = np.stack([np.asarray(draw_font(held[int(i)], full)) for i in rng.permutation(len(held))[:64]])
    hangul_font, kanjivg = locate(HANGUL_FONT, workshop.fonts), KanjiVG.open(workshop.kanjivg)
    junk = _junk_pictures(whole, 64, fonts, hangul_font, kanjivg, rng)
    junk["half denoised"] = through_pocket(whole[:SAMPLE_PER_JUNK], rng).half
    for kind in JUNK:
        images += list(junk[kind][:SAMPLE_PER_JUNK])
        truth += [{"kind": kind}] * len(junk[kind][:SAMPLE_PER_JUNK])
    _write_sample(path, images, truth)


def _write_sample(path: Path, images: Sequence[NDArray[np.uint8]], truth: list[dict[str, Any]]) -> None:
    small = [Image.fromarray(image).resize((SAMPLE_PX, SAMPLE_PX), Image.Resampling.BOX) for image in images]
    rows = -(-len(small) // SAMPLE_COLUMNS)
    sheet = Image.new("L", (SAMPLE_COLUMNS * SAMPLE_PX, rows * SAMPLE_PX), 255)
    for index, image in enumerate(small):
        coarse = image.point([round(value / 17) * 17 for value in range(256)])  # 16 greys make a third of the file
        sheet.paste(coarse, (index % SAMPLE_COLUMNS * SAMPLE_PX, index // SAMPLE_COLUMNS * SAMPLE_PX))
    sheet.save(path, optimize=True)
    write_json_atomic(path.with_suffix(".json"), {"glyphs": truth})


def read_sample(path: Path) -> tuple[NDArray[np.uint8], list[dict[str, Any]]]:
    """A stored sample.

    Returns:
        (N, 96, 96) uint8, 0 ink to 255 paper, and what is known of each: kind, and character or parts.
    """
    truth = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))["glyphs"]
    with Image.open(path) as image:
        sheet = np.asarray(image)
    cells = sheet.reshape(-1, SAMPLE_PX, SAMPLE_COLUMNS, SAMPLE_PX).swapaxes(1, 2)
    return cells.reshape(-1, SAMPLE_PX, SAMPLE_PX)[: len(truth)], truth


def measure_sample(judge: Judge, images: NDArray[np.uint8], truth: Sequence[dict[str, Any]]) -> dict[str, float]:
    """What the card says of a judge on the sample.

    Args:
        judge: A or B.
        images: (N, H, W) uint8.
        truth: of each, as `read_sample` gives it.
    Returns:
        Shares in [0, 1].
    """
    table, kinds = judge.read(images), np.array([one["kind"] for one in truth])
    over = judge.part_probabilities(images) >= judge.part_thresholds
    column = {part: index for index, part in enumerate(judge.parts)}
    both = [over[i, [column[part] for part in one["parts"]]].all() for i, one in enumerate(truth) if "parts" in one]
    real = kinds == "real"
    names = np.array([one.get("character", "") for one in truth])
    measured = {
        "top1": (table.nearest.to_numpy() == names)[real].mean(),
        "not_novel_rate": table.exists.to_numpy()[real].mean(),
        "legal_pass_rate": table.legal.to_numpy()[real].mean(),
        "typeset_both_found": np.mean(both),
    }
    for kind in JUNK:
        measured[f"called illegal: {kind}"] = 1 - table.legal.to_numpy()[kinds == kind].mean()
    return {name: round(float(value), 4) for name, value in measured.items()}


# ---------------------------------------------------------------- everything


def build_judges(workshop: Workshop, out: Path, names: Sequence[str] = ("A", "B")) -> dict[str, Judge]:
    """Train, calibrate, measure and store judges, and `facts.json` with what was measured.

    Args:
        workshop: keeps every stage; one that is there already is not done again.
        out: folder for the weights and the facts.
        names: which judges.
    """
    judges = {}
    for name in names:
        recipe = JudgeRecipe(name, seed=SEEDS[name])
        training = workshop.trained(recipe, _print_progress)
        judges[name] = finish_judge(training, workshop.material("validation"), workshop.material("test"))
        save_judge(judges[name], out / f"judge_{name.lower()}.safetensors")
    make_sample(workshop, out / SAMPLE_NAME)
    images, truth = read_sample(out / SAMPLE_NAME)
    facts = {name: judge.report for name, judge in judges.items()}
    sample = {name: measure_sample(judge, images, truth) for name, judge in judges.items()}
    write_json_atomic(out / "facts.json", facts | {"sample": sample})
    return judges


def _print_progress(step: int, losses: dict[str, float]) -> None:
    if step % 20 == 0:
        terms = "  ".join(f"{name} {value:.3f}" for name, value in losses.items())
        print(f"step {step}: {terms}", flush=True)


def main(arguments: Sequence[str] | None = None) -> None:
    """`python -m kanjilab.judge_training --out FOLDER`: both judges and the list of components from nothing."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder for weights, list and facts")
    parser.add_argument("--fonts", type=Path, default=FONTS_FOLDER, help="folder of fonts, laid out as Debian's")
    parser.add_argument("--work", type=Path, default=Path.home() / ".cache" / "kanjilab-judges", help="for the stages")
    parser.add_argument("--components", action="store_true", help="only make the list of components")
    chosen = parser.parse_args(arguments)
    for folder in (chosen.out, chosen.work):
        folder.mkdir(parents=True, exist_ok=True)
    if chosen.components:
        listed = build_components(KanjiVG.open(), recogniser_characters())
        write_json_atomic(chosen.out / COMPONENTS_FILE.name, components_to_json(listed))
        return
    build_judges(Workshop(chosen.work, chosen.fonts), chosen.out)


if __name__ == "__main__":
    main()
