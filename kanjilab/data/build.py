"""Builds an image folder: select, caption, draw, split, check and save."""

import hashlib
import itertools
import json
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

from kanjilab import __version__
from kanjilab.core.images import SIZE_PX
from kanjilab.core.outside_files import read_json_object
from kanjilab.core.storage import appearing_folder, sha256_file, write_synced
from kanjilab.data.dictionary import load_characters, rows_of
from kanjilab.data.image_folder import DESCRIPTION, HELD_OUT, TRAIN, Dataset, DatasetError, open_dataset
from kanjilab.data.kanjivg import KANJIVG_SHA256, KanjiVG, draw_strokes
from kanjilab.data.radicals import balance_report
from kanjilab.data.rendering import GlyphError, checked_font, default_font, draw_font, drawable_characters, font_file
from kanjilab.data.selection import Rule, caption_groups, held_out

Facts = dict[str, Any]  # as dataset.json holds them


def hold_out(groups: pd.Series, share: float, seed: int) -> pd.Series:
    """Divide rows into "train" and "held_out" without dividing any group.

    Args:
        groups: (rows,) group of each row, as from `selection.caption_groups`.
        share: of rows to hold out, 0 to 1; met from below, short by less than the smallest group left.
        seed: of the order in which groups are drawn.
    Returns:
        (rows,) "train" or "held_out", same index.
    Raises:
        ValueError: a share outside 0 to 1.
    """
    if not 0 <= share <= 1:
        raise ValueError(f"share must lie in [0, 1], got {share}")
    sizes = groups.value_counts(sort=False)
    room = round(share * len(groups))
    chosen = []
    for position in np.random.default_rng(seed).permutation(len(sizes)):
        if sizes.iloc[position] <= room:
            chosen.append(sizes.index[position])
            room -= int(sizes.iloc[position])
    return groups.isin(chosen).map({True: HELD_OUT, False: TRAIN})


def build_dataset(
    rule: Rule,
    folder: Path | str,
    *,
    font: Path | None = None,
    kanjivg: KanjiVG | None = None,
    stroke_width: float = 5.0,
    held_out_per_radical: int = 20,
    held_out_share: float = 0.0,
    seed: int = 0,
    characters: pd.DataFrame | None = None,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> Dataset:
    """Select, caption, draw, split, check and save an image folder; returns it as read back.

    Further characters of the same radicals, which the rule did not select, are held out: at most `held_out_per_radical`
    each; or with `held_out_share`, that share of the selection itself. None of them shares a caption or first meaning
    with a training character or is a variant of one.

    A folder that holds the same dataset already is read and not built again. A new one appears when it is complete.

    Args:
        rule: what to select.
        folder: where to write; it must not exist, or hold the same dataset.
        font: font file to draw with; None for IPAexGothic, unless `kanjivg` is given.
        kanjivg: draw from its strokes instead.
        stroke_width: of these strokes, in units of the 109 x 109 view box.
        held_out_per_radical, held_out_share: how many are held out; a share above 0 takes the place of the number.
        seed: of the split by share.
        characters: the character table; None for the default one.
        on_progress: called with (done, total): first characters that the font is tried on, then images.
    Raises:
        GlyphError: the font is no font file.
        DatasetError: the folder is taken, or characters cannot be drawn (all of them are named).
        ValueError: the rule cannot be met, or both a font and KanjiVG are given.
    """
    folder = Path(folder)
    if font is not None and kanjivg is not None:
        raise ValueError("expected a font or KanjiVG, got both")
    font = checked_font(Path(font)) if font else default_font()
    table = load_characters() if characters is None else characters
    held_back = {"per_radical": held_out_per_radical, "share": held_out_share, "seed": seed}
    recipe = _recipe(rule, table, _source_of(font, kanjivg, stroke_width), held_back)
    if folder.exists():
        return _reopen(folder, recipe)
    captioned = [row.Index for row in rows_of(table) if row.meanings_raw]
    drawable = kanjivg.characters() if kanjivg else drawable_characters(captioned, font, on_progress)
    rows = _split_rows(rule, table, drawable, held_out_per_radical, held_out_share, seed)
    draw = (lambda c: draw_strokes(c, kanjivg, stroke_width)) if kanjivg else (lambda c: draw_font(c, font))
    images = _draw_all(folder, [str(character) for character in rows.index], draw)
    return _write_folder(folder, rows, images, recipe, on_progress)


def _recipe(rule: Rule, table: pd.DataFrame, source: Facts, held_back: Facts) -> Facts:
    return {
        "rule": rule.to_json(),
        "drawn_from": source,
        "held_out": held_back,
        "versions": _versions(),
        "characters_sha256": hashlib.sha256(table.to_csv().encode("utf-8")).hexdigest(),
    }


def _source_of(font: Path, kanjivg: KanjiVG | None, stroke_width: float) -> Facts:
    if kanjivg:
        return {"kanjivg_sha256": KANJIVG_SHA256, "stroke_width": stroke_width, "size_px": SIZE_PX}
    return {"font": font.name, "font_sha256": sha256_file(font_file(font)[0]), "size_px": SIZE_PX}


def _versions() -> dict[str, str]:
    return {"kanjilab": __version__, **{name: metadata.version(name) for name in ("jamdict-data", "pillow")}}


def _described(folder: Path) -> Facts:
    """The description in a folder; empty where it holds none that can be read."""
    path = folder / DESCRIPTION
    try:
        return read_json_object(path)
    except (OSError, ValueError):
        return {}


def _reopen(folder: Path, recipe: Facts) -> Dataset:
    known = _described(folder)
    # Not the versions: the content hash shows whether they drew the same.
    if differing := [key for key in recipe if key != "versions" and known.get(key) != recipe[key]]:
        found = f"a folder that holds something else: other {', '.join(differing)}"
        raise DatasetError(folder, [f"expected a new folder or the same dataset, got {found}"])
    dataset = open_dataset(folder)
    if dataset.content_hash != known.get("content_hash"):
        wrong = f"expected the content that {DESCRIPTION} names, got images or captions changed since"
        raise DatasetError(folder, [wrong])
    return dataset


def _split_rows(
    rule: Rule, table: pd.DataFrame, drawable: set[str], per_radical: int, share: float, seed: int
) -> pd.DataFrame:
    selected = rule.select(table, drawable)
    groups = caption_groups(table)
    if share > 0:
        rows = selected.assign(split=hold_out(groups.loc[selected.index], share, seed))
    else:
        further = held_out(rule, table, drawable, per_radical)
        rows = pd.concat([selected.assign(split=TRAIN), further.assign(split=HELD_OUT)])
    return rows.assign(group=groups.loc[rows.index])


def _draw_all(folder: Path, characters: Sequence[str], draw: Callable[[str], Image.Image]) -> dict[str, Image.Image]:
    images, problems = {}, []
    for character in characters:
        try:
            images[character] = draw(character)
        except GlyphError as error:
            problems.append(str(error))
    if problems:
        raise DatasetError(folder, problems)
    return images


def image_name(character: str) -> str:
    """File name of a character's image, such as `亜_kanji_04e9c.png`."""
    return f"{character}_kanji_{ord(character):05x}.png"


def _write_folder(
    folder: Path,
    rows: pd.DataFrame,
    images: dict[str, Image.Image],
    recipe: Facts,
    on_progress: Callable[[int, int], None],
) -> Dataset:
    saved = itertools.count(1)
    with appearing_folder(folder) as partial:
        for name, part in rows.groupby("split", sort=False):
            _write_split(partial / str(name), part, images, lambda: on_progress(next(saved), len(rows)))
        dataset = open_dataset(partial)
        balance = {str(name): balance_report(part).to_json() for name, part in rows.groupby("split", sort=False)}
        description = {**recipe, "content_hash": dataset.content_hash, "rows": len(rows), "balance": balance}
        write_synced(partial / "README.md", _card(rows, description).encode("utf-8"))
        write_synced(
            partial / DESCRIPTION, (json.dumps(description, ensure_ascii=False, indent=1) + "\n").encode("utf-8")
        )
    if _described(folder).get("content_hash") != dataset.content_hash:  # another process was first
        return _reopen(folder, recipe)
    return replace(dataset, folder=folder)


def _write_split(
    folder: Path, rows: pd.DataFrame, images: dict[str, Image.Image], on_saved: Callable[[], None]
) -> None:
    """One split as an image folder of its own, so that any trainer can be pointed at it alone."""
    folder.mkdir()
    names = [image_name(str(character)) for character in rows.index]
    # Thousands of fsyncs would take longer than drawing; the content hash would show an image lost in a crash.
    for character, name in zip(rows.index, names, strict=True):
        images[str(character)].save(folder / name, format="PNG")
        on_saved()
    write_synced(folder / "metadata.csv", _metadata_csv(rows, names).encode("utf-8"))


def _metadata_csv(rows: pd.DataFrame, names: Sequence[str]) -> str:
    columns = ["codepoint", "radical", "radical_character", "position", "strokes", "skip", "jis", "grade", "frequency"]
    leading = rows.assign(file_name=names, character=rows.index)[["file_name", "text", "split", "character"]]
    return leading.join(rows[[*columns, "group"]]).to_csv(index=False, lineterminator="\n")


CARD = """---
license: cc-by-sa-4.0
language: [en, ja]
task_categories: [text-to-image]
pretty_name: {title}
configs:
- config_name: default
  data_files:
{files}
---
# {title}

{count} images of kanji, {size_px} x {size_px} px, black on white, each with an English caption.

| split | images | radicals | entropy over radicals (bits) | radical visibly on the left |
|---|---|---|---|---|
{table}

First caption: `{caption}`

Each split is a folder with its own `metadata.csv`: file_name, text (the caption), split, character,
codepoint, radical (classical number), radical_character, position (where the radical shows), strokes,
skip, jis, grade, frequency, and group: characters that are variants of each other or share their
first meaning have the same group, and no group is in more than one split. `dataset.json` holds rule, versions, counts
and content hash.

```python
from datasets import load_dataset

everything = load_dataset("{name}")  # this folder, with all splits
training = load_dataset("imagefolder", data_dir="{name}/train")  # one split
```

## Sources and licence
- Meanings, readings, radicals and codes: KANJIDIC2, property of the Electronic Dictionary Research and
  Development Group (https://www.edrdg.org/), CC BY-SA 4.0. SKIP codes: Jack Halpern, CC BY-SA 4.0.
- Glyphs: {glyphs}
- This dataset: CC BY-SA 4.0.

## Limits
Captions are dictionary glosses, some shared by several characters and some with sensitive words.
One drawing of each character, without variation in style.
"""

FONT_CREDIT = "drawn from the font {font}, whose licence allows images and not a font made from them."

STROKE_CREDIT = (
    "drawn {stroke_width:g} units wide from KanjiVG (https://kanjivg.tagaini.net), Ulrich Apel, CC BY-SA 3.0."
)


def _card(rows: pd.DataFrame, description: Facts) -> str:
    source = description["drawn_from"]
    lines = []
    for name, report in description["balance"].items():
        left = sum(report["left_by_radical"].values())
        total = sum(report["by_radical"].values())
        lines.append(f"| {name} | {total} | {len(report['by_radical'])} | {report['radical_bits']:.3f} | {left} |")
    title = f"Kanji with captions, rule {description['rule']['name']}"
    return CARD.format(
        title=title,
        name=unicodedata.normalize("NFC", description["rule"]["name"]),
        files="\n".join(f"  - split: {name}\n    path: {name}/**" for name in description["balance"]),
        count=len(rows),
        size_px=source["size_px"],
        table="\n".join(lines),
        caption=rows["text"].iloc[0],
        glyphs=(FONT_CREDIT if "font" in source else STROKE_CREDIT).format(**source),
    )
