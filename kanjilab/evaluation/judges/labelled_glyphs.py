"""What judges are trained and measured on: glyphs of fonts, typeset pairs and negatives, each with its labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file as load_arrays
from safetensors.numpy import save

from kanjilab.core.rng import counted_rng
from kanjilab.core.storage import write_bytes_atomic
from kanjilab.data.components import LAYOUTS, Box, Components, Part, is_held_out, load_components
from kanjilab.data.dictionary import load_characters
from kanjilab.data.kanjivg import KanjiVG
from kanjilab.data.rendering import default_font, draw_font, draws
from kanjilab.data.typeset import Pair, Typesetter, novel_pairs
from kanjilab.evaluation.judges.framing import draw_all, frame_glyphs, frame_of
from kanjilab.evaluation.judges.negatives import (
    blobs,
    half_faded,
    half_swapped,
    jumbled_strokes,
    letters,
    mirrored,
    noise,
    scribbles,
    shuffled_patches,
    through_pocket,
)

NONE = len(LAYOUTS)  # the layout of what is no glyph
KINDS = (
    "real", "nearly clean", "typeset", "scribble", "jumbled strokes", "blob", "noise", "half denoised", "letter",
    "mirrored", "half swapped", "shuffled patches", "half faded",
)  # fmt: skip
NEGATIVES = KINDS[3:]
WITHOUT_PARTS = ("scribble", "jumbled strokes", "blob", "noise", "letter")  # the other negatives may show some


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
    meant = (character for character, glosses in zip(table.index, table.meanings_raw, strict=True) if glosses)
    return tuple(sorted(character for character in meant if draws(character, default_font())))


@dataclass(frozen=True)
class Glyphs:
    """Framed glyphs and what is known of each.

    Attributes:
        ink: (N, 64, 64) uint8, 0 paper to 255 ink.
        character: (N,) int, class of the recogniser; -1 for none.
        legal: (N,) int, 1 a well-formed glyph, 0 a negative, -1 unlabelled.
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

    def is_kind(self, *kinds: str) -> NDArray[np.bool_]:
        """(N,) which glyphs are of one of some `KINDS`."""
        return np.isin(self.kind, [KINDS.index(kind) for kind in kinds])

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
    width, height, rows = right - left, bottom - top, []
    for part in parts:
        if part.element in vocabulary:
            a, b, c, d = part.box
            box = (a - left) / width, (b - top) / height, (c - left) / width, (d - top) / height
            rows.append([float(vocabulary[part.element]), *(min(1.0, max(0.0, value)) for value in box)])
    return rows


def real_glyphs(font: Path, characters: Sequence[str], components: Components) -> Glyphs:
    """Every one of the characters that the font draws, labelled by KanjiVG where that has it."""
    vocabulary = {name: index for index, name in enumerate(components.parts)}
    images, classes, layouts, known, parts = [], [], [], [], []
    for index, image in draw_all(characters, font):
        images.append(image)
        listed = components.of(characters[index])
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


def negative_glyphs(images: NDArray[np.uint8], kind: str) -> Glyphs:
    """Pictures of no character: (N, H, W) uint8, 0 ink to 255 paper, made as `kind` (one of `NEGATIVES`) says."""
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
    counts = np.searchsorted(glyphs.parts[:, 0], rows, side="right") - starts
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


@dataclass(frozen=True)
class Amounts:
    """How many glyphs of each sort a judge's material holds."""

    typeset_per_font: int = 4000
    negatives_per_kind: int = 3000
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
    negatives = negative_pictures(images, amounts.negatives_per_kind, fonts, hangul_font, kanjivg, rng)
    made = [negative_glyphs(pictures, kind) for kind, pictures in ({"half denoised": passed.half} | negatives).items()]
    return joined([real, *typeset, clean, *made])


def _rows_to_spoil(
    real: Glyphs, characters: Sequence[str], amounts: Amounts, tests: bool, rng: np.random.Generator
) -> NDArray[np.int64]:
    """Random rows of real glyphs to make negatives from: of held-out characters for tests, else of the others."""
    held = np.array([is_held_out(character) for character in characters])[real.character]
    wanted = max(2 * amounts.negatives_per_kind, amounts.through_pocket)
    return rng.choice(np.flatnonzero(held == tests), size=wanted)


def negative_pictures(
    images: NDArray[np.uint8],
    count: int,
    fonts: Sequence[Path],
    hangul_font: Path,
    kanjivg: KanjiVG,
    rng: np.random.Generator,
) -> dict[str, NDArray[np.uint8]]:
    """Negatives by kind, those that need no autoencoder.

    Args:
        images: (N, 128, 128) uint8 glyphs, from both ends of which some are taken to be spoilt.
        count: of each kind, half as many of blobs and of noise.
        fonts: for letters.
        hangul_font, kanjivg: as for `build_material`.
        rng: of everything.
    Returns:
        kind -> (M, 128, 128) uint8, M at most `count`.
    """
    return {
        "scribble": scribbles(count, rng),
        "jumbled strokes": jumbled_strokes(count, kanjivg, sorted(load_components().decompositions), rng),
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
    write_bytes_atomic(path, save(arrays))


def load_glyphs(path: Path) -> Glyphs:
    """Read what `save_glyphs` wrote."""
    return Glyphs(**load_arrays(path))
