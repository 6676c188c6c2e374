"""Calligraphy as image folders: characters in several styles, each with its skeleton.

A style is a script, a tool and a hand, and the font files that draw it. Fonts are read when a folder is built, never
after: see `FONT_PACKAGES` for where they come from.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from PIL import Image

from kanjilab.core.images import SIZE_PX
from kanjilab.core.outside_files import read_array
from kanjilab.core.rng import counted_rng
from kanjilab.core.storage import appearing_folder, require_new, write_synced
from kanjilab.data.components import is_held_out
from kanjilab.data.framing import frame_glyphs, frame_scale
from kanjilab.data.handwriting import Hand
from kanjilab.data.image_folder import HELD_OUT, TRAIN, Dataset, open_dataset
from kanjilab.data.rendering import GlyphError, default_font, draw_font, font_characters
from kanjilab.data.skeleton import pack_skeletons, skeletons_of

SKELETONS = "skeletons.npy"  # beside metadata.csv: (M, 128, 16) uint8, one bit a pixel
DRAWN_PX = 256  # at which fonts are drawn before they are framed
OWN = "own"  # style and script of a person's hand
HAND_VARIANTS = 24  # of each glyph of a person's own
SHIFT_PX, TURN_DEGREES, RESIZE = 4.0, 3.0, 0.06  # at most, of a variant
UNNAMED_ONE_IN = 3  # of the captions, which leave the hand out
REFERENCE = "永国語書道東京都心春夏秋冬風花鳥月雨雪愛夢"  # their median size is that of a font's glyphs
FONT_PACKAGES = (
    "Debian's fonts-kouzan-mouhitsu, fonts-arphic-ukai, fonts-klee (few-shot: fonts-aoyagi-soseki, fonts-kiloji) and "
    "npm's @fontsource/ma-shan-zheng, zhi-mang-xing, liu-jian-mao-cao, yuji-syuku (few-shot: long-cang)"
)


@dataclass(frozen=True)
class Style:
    """One way of writing.

    Attributes:
        name: in the column `style`.
        script: regular, running or cursive.
        tool: brush or pen, with what is peculiar to it.
        hand: whose, in small Latin letters.
        files: glob of its font files, anywhere below the font folders; each draws the characters that it has.
    """

    name: str
    script: str
    tool: str
    hand: str
    files: str

    @property
    def caption(self) -> str:
        """What an image in this style is captioned."""
        return f"{self.caption_of_kind}, by {self.hand}"

    @property
    def caption_of_kind(self) -> str:
        """The caption without the hand, which several styles may share."""
        return f"{self.script} script, {self.tool}"


def _slices(name: str) -> str:
    return f"{name}-[0-9]*-400-normal.woff2"


STYLES = (
    Style("kouzan-regular", "regular", "brush", "aoyagi kouzan", "kouzan-mouhitsu.ttf"),
    Style("kouzan-running", "running", "brush", "aoyagi kouzan", "kouzan-mouhitsu-gyosho.ttf"),
    Style("kouzan-cursive", "cursive", "brush", "aoyagi kouzan", "KouzanBrushFontSousyo.ttf"),
    Style("ma-shan-zheng", "regular", "brush", "ma shan zheng", _slices("ma-shan-zheng")),
    Style("zhi-mang-xing", "running", "brush", "zhi mang xing", _slices("zhi-mang-xing")),
    Style("liu-jian-mao-cao", "cursive", "brush", "liu jian mao cao", _slices("liu-jian-mao-cao")),
    Style("yuji", "regular", "bold brush", "yuji kataoka", _slices("yuji-syuku")),
    Style("ukai", "regular", "print", "arphic", "ukai.ttc"),
    Style("klee", "regular", "pen", "fontworks klee", "KleeOne-Regular.ttf"),
)
STYLE_CAPTIONS = tuple(dict.fromkeys(f"“{one}”" for style in STYLES for one in (style.caption_of_kind, style.caption)))
FEW_SHOT_STYLES = (  # never trained on
    Style("aoyagi-soseki", "running", "dry brush", "aoyagi soseki", "aoyagi-soseki.ttf"),
    Style("long-cang", "running", "brush", "long cang", _slices("long-cang")),
    Style("kiloji", "regular", "pen", "kiloji", "kiloji.ttf"),
)


def jis_level_1() -> list[str]:
    """The 2,965 kanji of JIS X 0208 that are in daily use, in its order."""
    codes = (bytes((0xA0 + row, 0xA0 + cell)) for row in range(16, 48) for cell in range(1, 95))
    return [text for code in codes if (text := code.decode("euc_jp", "ignore"))]


@dataclass(frozen=True)
class Face:
    """The font files of one style.

    Attributes:
        name: of the style.
        file_of: which file draws a character.
    """

    name: str
    file_of: Mapping[str, Path]

    def draw(self, character: str) -> NDArray[np.uint8]:
        """A character as the font has it, (256, 256) uint8, 0 ink to 255 paper.

        Raises:
            GlyphError: the font lacks it, or draws it blank.
        """
        if character not in self.file_of:
            raise GlyphError(f"{self.name} has no glyph for {character}")
        return np.asarray(draw_font(character, self.file_of[character], DRAWN_PX))


def open_face(style: Style, folders: Sequence[Path]) -> Face:
    """Finds the font files of a style.

    Args:
        style: what is looked for.
        folders: where fonts are, as /usr/share/fonts and node_modules/@fontsource; searched with their subfolders.
    Raises:
        FileNotFoundError: there are none.
        GlyphError: one of them is no font, or a damaged one.
    """
    files = sorted(path for folder in folders for path in Path(folder).rglob(style.files))
    if not files:
        where = ", ".join(map(str, folders))
        raise FileNotFoundError(
            f"no font for style {style.name}: expected {style.files} below {where}; {FONT_PACKAGES}"
        )
    file_of: dict[str, Path] = {}
    for path in files:
        file_of |= dict.fromkeys(font_characters(path), path)
    return Face(style.name, file_of)


def draw_style(face: Face, characters: Iterable[str]) -> dict[str, NDArray[np.uint8]]:
    """Those of the characters that the font draws, as it has them; characters of one file one after the other."""
    drawn = {}
    for character in sorted(characters, key=lambda one: (str(face.file_of.get(one)), one)):
        try:
            drawn[character] = face.draw(character)
        except GlyphError:
            continue
    return drawn


@cache
def typed_scale() -> float:
    """Pixels of a frame for a pixel of the default font, drawn at `DRAWN_PX`."""
    return frame_scale([np.asarray(draw_font(character, default_font(), DRAWN_PX)) for character in REFERENCE])


def typed_glyph(character: str) -> NDArray[np.uint8]:
    """A character in the default font, framed as the styles are, (128, 128) uint8: its skeleton stands for the text.

    Raises:
        GlyphError: the font lacks it, or it is not one character.
    """
    drawn = np.asarray(draw_font(character, default_font(), DRAWN_PX))
    return frame_glyphs([drawn], typed_scale())[0]


def build_calligraphy_folder(
    folder: Path,
    font_folders: Sequence[Path],
    styles: Sequence[Style] = STYLES,
    characters: Iterable[str] | None = None,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> Dataset:
    """Draws an image folder over several styles.

    Its metadata.csv has the columns style, script, character, skeleton (row of `skeletons.npy`: of the image itself)
    and typed (of the character in the default font). What is held out has the split of that name.

    Args:
        folder: new.
        font_folders: see `open_face`.
        styles: which.
        characters: those that every style draws are taken; JIS level 1 by default.
        on_progress: called with (done, total) styles.
    """
    require_new(folder)
    wanted = list(jis_level_1() if characters is None else characters)
    drawn: dict[str, dict[str, NDArray[np.uint8]]] = {}
    for done, style in enumerate(styles, start=1):
        drawn[style.name] = draw_style(open_face(style, font_folders), wanted)
        on_progress(done, len(styles))
    typed = {character: typed_glyph(character) for character in wanted if _is_typed(character)}
    common = [one for one in wanted if one in typed and all(one in glyphs for glyphs in drawn.values())]
    if not common:
        raise GlyphError("no character is drawn by every style")
    images = [typed[one] for one in common]
    rows: list[dict[str, Any]] = []
    for style in styles:
        framed = frame_glyphs([drawn[style.name][one] for one in common])
        rows += [_row(style, one, len(images) + number, number) for number, one in enumerate(common)]
        images.extend(framed)
    _write(folder, rows, images)
    return open_dataset(folder)


def _is_typed(character: str) -> bool:
    try:
        typed_glyph(character)
    except GlyphError:
        return False
    return True


def _row(style: Style, character: str, skeleton: int, typed: int) -> dict[str, Any]:
    named = hashlib.sha256(f"{style.name} {character}".encode()).digest()[0] % UNNAMED_ONE_IN
    return {
        "file_name": f"images/{style.name}_{ord(character):05x}.png",
        "text": style.caption if named else style.caption_of_kind,
        "split": HELD_OUT if is_held_out(character) else TRAIN,
        "character": character,
        "style": style.name,
        "script": style.script,
        "skeleton": skeleton,
        "typed": typed,
    }


def build_hand_folder(folder: Path, hand: Hand, caption: str, variants: int = HAND_VARIANTS, seed: int = 0) -> Dataset:
    """An image folder of a person's own glyphs, each with small shifts, turns and changes of size; never mirrored.

    Args:
        folder: new.
        hand: what was read from photos.
        caption: of every image.
        variants: of each glyph, the first as it is.
        seed: of the variants.
    """
    require_new(folder)
    rows: list[dict[str, Any]] = []
    glyphs = list(zip(hand.characters, hand.images, strict=True))
    images = [typed_glyph(character) if _is_typed(character) else image for character, image in glyphs]
    for number, (character, image) in enumerate(glyphs):
        for variant in range(variants):
            name = f"images/{number:03d}_{variant:02d}.png"
            labels = {"file_name": name, "text": caption, "split": TRAIN, "character": character}
            rows.append(labels | {"style": OWN, "script": OWN, "skeleton": len(images), "typed": number})
            images.append(_varied(image, counted_rng(seed, "handwriting", len(images))) if variant else image)
    _write(folder, rows, images)
    return open_dataset(folder)


def _varied(image: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
    """A glyph moved, turned and resized a little, about its middle."""
    across, down, degrees, resized = rng.uniform(-1, 1, 4) * (SHIFT_PX, SHIFT_PX, TURN_DEGREES, RESIZE)
    cosine, sine = np.cos(np.radians(degrees)) / (1 + resized), np.sin(np.radians(degrees)) / (1 + resized)
    x, y = len(image) / 2 + across, len(image) / 2 + down  # where the middle comes to be
    matrix = (
        cosine,
        -sine,
        len(image) / 2 - cosine * x + sine * y,
        sine,
        cosine,
        len(image) / 2 - sine * x - cosine * y,
    )
    moved = Image.fromarray(image).transform(
        image.shape, Image.Transform.AFFINE, matrix, Image.Resampling.BICUBIC, fillcolor=255
    )
    return np.asarray(moved)


def _write(folder: Path, rows: Sequence[dict[str, Any]], images: Sequence[NDArray[np.uint8]]) -> None:
    with appearing_folder(folder) as partial:
        (partial / "images").mkdir()
        for row in rows:
            Image.fromarray(images[row["skeleton"]]).save(partial / row["file_name"])
        np.save(partial / SKELETONS, pack_skeletons(skeletons_of(np.stack(images))))
        table = pd.DataFrame(rows).to_csv(index=False, lineterminator="\n")
        write_synced(partial / "metadata.csv", table.encode("utf-8"))


def load_skeletons(dataset: Dataset, column: str = "skeleton") -> NDArray[np.uint8]:
    """(N, 128, 16) uint8: the packed skeleton of each image of a calligraphy folder.

    Args:
        dataset: of `build_calligraphy_folder`, or a split of it.
        column: `skeleton` for the image's own, `typed` for the character's in the default font.
    Raises:
        FileNotFoundError: there are no skeletons.
        ValueError: they are damaged or of another form, or the table names none of them.
    """
    path = dataset.folder / SKELETONS
    stored = read_array(path, "the skeletons of a calligraphy folder")
    expected = (SIZE_PX, SIZE_PX // 8)
    if stored.dtype != np.uint8 or stored.shape[1:] != expected:
        raise ValueError(f"{path}: expected (M, {SIZE_PX}, {SIZE_PX // 8}) uint8, got {stored.shape} {stored.dtype}")
    rows: Any = pd.to_numeric(column_of(dataset, column), errors="coerce")
    is_row = (rows >= 0) & (rows < len(stored)) & (rows % 1 == 0)
    if not is_row.all():
        wrong = dataset.table.loc[~is_row].iloc[0]
        raise ValueError(
            f"{dataset.folder}: file {wrong['file_name']!r}: {column}: expected a row of {SKELETONS}, from 0 to "
            f"{len(stored) - 1}, got {wrong[column]!r:.80}"
        )
    return stored[rows.to_numpy(dtype=np.int64)]


def column_of(dataset: Dataset, name: str) -> Any:
    """A column, a Series, of a calligraphy folder's table.

    Raises:
        ValueError: the table has none of that name.
    """
    if name not in dataset.table:
        raise ValueError(
            f"{dataset.folder}: expected the column {name} of a calligraphy folder, got {', '.join(dataset.table)}"
        )
    return dataset.table[name]


def known_characters(dataset: Dataset) -> tuple[str, ...]:
    """The characters of a dataset, each once, in order of their codepoints: their place is their index.

    Raises:
        ValueError: there is no column of characters, or an image has none or several.
    """
    characters = list(column_of(dataset, "character"))
    if wrong := [one for one in characters if not (isinstance(one, str) and len(one) == 1)]:
        raise ValueError(f"{dataset.folder}: character: expected one sign for each image, got {wrong[0]!r:.80}")
    return tuple(sorted(set(characters)))
