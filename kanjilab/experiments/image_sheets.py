"""What a study's arms drew, as one small picture an arm, so that a stored study can be looked at without its packs.

    <study>/images/sheets.json      the prompts of the rows, the noise seeds, and the moments of each arm
    <study>/images/<arm>.webp       prompts in rows; in columns the scored moments, each with all noise seeds

A glyph is 64 px wide and has six grays, about 400 bytes: strokes stay clean, where a lossy picture of the same size
has ripples around them.
"""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from PIL import Image

from kanjilab.core.images import grayscale
from kanjilab.core.outside_files import read_file, read_json_object
from kanjilab.core.run_folder import RunFolder
from kanjilab.core.storage import write_bytes_atomic, write_json_atomic
from kanjilab.experiments.packs import Moment, moments_below
from kanjilab.experiments.study import read_report

GLYPH_PX = 64
TONES = 6
ROWS_PER_SPLIT = 20
EFFORT = {"lossless": True, "method": 4, "quality": 80}  # more takes seconds a sheet and saves two percent
SHEET_BYTES_MAX = 64 * 1024 * 1024
PLACE, CONTENTS = "images", "sheets.json"


@dataclass(frozen=True)
class ImageSheets:
    """The stored images of a study.

    Attributes:
        folder: of the study.
        drawing: identity of what was drawn, see `StudyContext.drawing`.
        prompts: of the rows: split, prompt, expected (radicals of which any will do).
        noise_seeds: of each moment's columns.
        arms: the arm's key -> images seen at each scored moment.
    """

    folder: Path
    drawing: str
    prompts: tuple[Mapping[str, Any], ...]
    noise_seeds: tuple[int, ...]
    arms: Mapping[str, tuple[int, ...]]

    @classmethod
    def read(cls, folder: Path | str) -> Self | None:
        """The sheets in a study's folder, or None where there are none; ValueError where their list is damaged."""
        path = Path(folder) / PLACE / CONTENTS
        if not path.exists():
            return None
        facts = read_json_object(path, "the list of a study's pictures")
        try:
            arms = {str(key): tuple(map(int, seen)) for key, seen in facts["arms"].items()}
            prompts = tuple(dict(asked, split=str(asked["split"])) for asked in facts["prompts"])
            return cls(Path(folder), str(facts["drawing"]), prompts, tuple(map(int, facts["noise_seeds"])), arms)
        except (LookupError, TypeError, AttributeError, ValueError) as error:
            raise ValueError(
                f"{path}: expected the list of a study's pictures, got another ({error!r:.200})"
            ) from error

    def write(self) -> None:
        """Store what the sheets show; they themselves are stored before."""
        arms = {key: list(self.arms[key]) for key in sorted(self.arms)}
        facts = {"drawing": self.drawing, "glyph_px": GLYPH_PX, "noise_seeds": self.noise_seeds}
        write_json_atomic(self.folder / PLACE / CONTENTS, facts | {"prompts": self.prompts, "arms": arms})

    def path(self, key: str) -> Path:
        """The picture of an arm."""
        return self.folder / PLACE / f"{key}.webp"

    def _shape(self, key: str) -> tuple[int, int, int]:
        """Prompts, moments and noise seeds of an arm's sheet."""
        return len(self.prompts), len(self.arms[key]), len(self.noise_seeds)

    def picture(self, key: str) -> bytes:
        """The file of an arm's picture, of the size that its glyphs have.

        Raises:
            KeyError: the arm has no sheet.
            FileNotFoundError: its file is missing.
            ValueError: another file, or a picture of another size.
        """
        path, (prompts, moments, noises) = self.path(key), self._shape(key)
        data = read_file(path, "a sheet of glyphs", SHEET_BYTES_MAX)
        try:
            with Image.open(io.BytesIO(data), formats=["WEBP"]) as picture:
                size = picture.size
        except (OSError, SyntaxError, Image.DecompressionBombError) as error:
            raise ValueError(f"{path}: expected a sheet of glyphs, got a damaged or another file ({error})") from error
        if size != (expected := (moments * noises * GLYPH_PX, prompts * GLYPH_PX)):
            raise ValueError(f"{path}: expected a sheet of {expected[0]} x {expected[1]} px, got {size[0]} x {size[1]}")
        return data

    def images(self, key: str) -> np.ndarray:
        """What an arm drew: (P, C, S, 64, 64) uint8, prompts by moments by noise seeds, 0 = ink.

        Raises:
            KeyError: the arm has no sheet.
            FileNotFoundError, ValueError: as `picture`.
        """
        shape, data = self._shape(key), self.picture(key)
        try:
            with Image.open(io.BytesIO(data), formats=["WEBP"]) as picture:
                sheet = np.asarray(picture.convert("L"))
        except (OSError, SyntaxError) as error:
            raise ValueError(f"{self.path(key)}: expected a sheet of glyphs, got a damaged file ({error})") from error
        tiles = sheet.reshape(shape[0], GLYPH_PX, shape[1] * shape[2], GLYPH_PX).swapaxes(1, 2)
        return tiles.reshape(*shape, GLYPH_PX, GLYPH_PX)


def write_sheets(
    folder: Path | str, kept: Path | str | None = None, rows_per_split: int = ROWS_PER_SPLIT
) -> ImageSheets | None:
    """Writes the sheets of a finished study's arms; those that are there already stay as they are.

    Args:
        folder: of the study, with its report and packs.
        kept: holds folders of finished studies; sheets of arms that were taken from these are copied.
        rows_per_split: prompts of each split that are shown, spread over the radicals.
    Returns:
        All sheets of the study; None where no image of it is stored.
    Raises:
        FileNotFoundError: the folder has no report.
    """
    folder = Path(folder)
    if not (reports := sorted(folder.glob("report-*.json"))):
        raise FileNotFoundError(f"{folder}: expected report-<judge>.json of a finished study, found none")
    report, _ = read_report(reports[0])
    keys, drawing = sorted({arm["arm"] for arm in report["arms"]}), report.get("drawing", "")
    others = (
        [ImageSheets.read(path.parents[1]) for path in sorted(Path(kept).glob(f"*/{PLACE}/{CONTENTS}"))] if kept else []
    )
    alike = [sheets for sheets in [ImageSheets.read(folder), *others] if sheets and sheets.drawing == drawing]
    stored, made = moments_below(folder, drawing), None
    for key in keys:
        if there := next((sheets for sheets in alike if key in sheets.arms), None):
            made = _copied(there, key, folder, made)
        elif key in stored:
            made = _drawn(stored[key], folder, rows_per_split, made)
    if made:
        made.write()
    return made


def _copied(there: ImageSheets, key: str, folder: Path, made: ImageSheets | None) -> ImageSheets | None:
    """The sheets with another study's of one arm, where both show the same prompts."""
    made = made or ImageSheets(folder, there.drawing, there.prompts, there.noise_seeds, {})
    if made.prompts != there.prompts:
        return made
    if there.path(key) != made.path(key):
        made.path(key).parent.mkdir(exist_ok=True)
        write_bytes_atomic(made.path(key), there.path(key).read_bytes())
    return _with_arm(made, key, there.arms[key])


def _drawn(moments: Sequence[Moment], folder: Path, rows_per_split: int, made: ImageSheets | None) -> ImageSheets:
    """The sheets with that of one arm, from the images in its run folder."""
    samples = [RunFolder.open(folder / moment.folder).read_samples(moment.samples) for moment in moments]
    facts = samples[0][1]
    asked = facts["prompts"]
    rows = [asked.index(shown) for shown in made.prompts] if made else spread_rows(asked, rows_per_split)
    drawing = moments[0].samples.rpartition("-")[2]
    prompts = tuple(asked[row] for row in rows)
    made = made or ImageSheets(folder, drawing, prompts, tuple(facts["noise_seeds"]), {})
    images = np.stack([(grayscale(shown) if shown.ndim == 5 else shown)[rows] for shown, _ in samples], axis=1)
    made.path(moments[0].key).parent.mkdir(exist_ok=True)
    write_bytes_atomic(made.path(moments[0].key), sheet_bytes(images))
    return _with_arm(made, moments[0].key, tuple(moment.images_seen for moment in moments))


def _with_arm(sheets: ImageSheets, key: str, seen: tuple[int, ...]) -> ImageSheets:
    arms = {**sheets.arms, key: seen}
    return ImageSheets(sheets.folder, sheets.drawing, sheets.prompts, sheets.noise_seeds, arms)


def spread_rows(prompts: Sequence[Mapping[str, Any]], per_split: int) -> list[int]:
    """Numbers of the prompts that are shown: split by split, the radicals taking turns.

    Args:
        prompts: split and expected of each.
        per_split: how many of a split, or all where it has fewer.
    """
    turn: Counter[tuple[str, str]] = Counter()
    order: dict[str, list[tuple[int, int]]] = {}
    for row, asked in enumerate(prompts):
        group = (asked["split"], "".join(asked["expected"]))
        order.setdefault(asked["split"], []).append((turn[group], row))
        turn[group] += 1
    return [row for some in order.values() for _, row in sorted(some)[:per_split]]


def sheet_bytes(images: np.ndarray) -> bytes:
    """Glyphs as one WebP picture.

    Args:
        images: (P, C, S, H, W) uint8, 0 = ink.
    Returns:
        The file: P rows and C S columns of glyphs of 64 px, in six grays.
    """
    glyphs = images.reshape(len(images), -1, *images.shape[3:])  # (P, C S, H, W)
    sheet = Image.new("L", (GLYPH_PX * glyphs.shape[1], GLYPH_PX * len(glyphs)))
    for row, some in enumerate(glyphs):
        for column, glyph in enumerate(some):
            small = Image.fromarray(glyph).resize((GLYPH_PX, GLYPH_PX), Image.Resampling.BOX)
            sheet.paste(small, (GLYPH_PX * column, GLYPH_PX * row))
    step = 255 / (TONES - 1)
    file = io.BytesIO()
    sheet.point([round(round(value / step) * step) for value in range(256)]).save(file, "WEBP", **EFFORT)
    return file.getvalue()
