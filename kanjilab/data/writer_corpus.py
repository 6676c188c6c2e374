"""What the writer learns from: real kanji and typeset pairs of parts, captioned by their parts or by their meaning.

No pair that is held out is shown in its layout, neither as a real kanji nor typeset.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from kanjilab.core.rng import counted_rng
from kanjilab.data.captioned import SEPARATOR, save_captioned, shared_out
from kanjilab.data.components import Components, is_held_out, load_components
from kanjilab.data.dictionary import load_characters, rows_of
from kanjilab.data.part_names import has_name, name_of_part, pair_caption, part_names, parts_caption
from kanjilab.data.rendering import default_font, draw_font, drawable_characters
from kanjilab.data.typeset import SLOTS_OF_LAYOUT, Pair, Typesetter, novel_pairs, pair_of

FREQUENT = 10  # characters that have a part in a slot
TEST_ONE_IN = 4  # of the pairs of two frequent parts
VARIANTS = {"frequent pairs": 7, "other pairs": 2}  # typeset glyphs a pair, from different donors
SHARES = {"frequent pairs": 0.45, "other pairs": 0.15, "parts": 0.2, "meaning": 0.2}  # of the images drawn in training
GLOSSES = 3  # captions that are one meaning each
LISTED_GLOSSES = 4  # in the caption that lists several
PAIR = ("first", "second")  # columns of the table

SlotCounts = Mapping[tuple[str, str, str], int]  # (layout, part, slot) -> characters


def slot_counts(components: Components, characters: Iterable[str]) -> Counter[tuple[str, str, str]]:
    """In how many characters each part is in each slot of each layout."""
    counts: Counter[tuple[str, str, str]] = Counter()
    for character in characters:
        if (pair := pair_of(components.of(character))) is not None:
            counts.update(places(pair))
    return counts


def is_held_out_pair(pair: Pair, counts: SlotCounts) -> bool:
    """Whether a pair is kept for tests: one in four, by its parts alone, of the pairs of two frequent parts."""
    digest = hashlib.sha256("+".join(sorted((pair.first, pair.second))).encode()).digest()
    return digest[0] % TEST_ONE_IN == 0 and all(counts[place] >= FREQUENT for place in places(pair))


def build_writer_corpus(
    folder: Path, font: Path | None = None, characters: Iterable[str] | None = None
) -> pd.DataFrame:
    """Draw the corpus into `folder/images.npy`, with `folder/glyphs.csv` beside it.

    Args:
        folder: made if need be.
        font: that draws the characters, and whose glyphs are cut into parts; IPAexGothic by default.
        characters: of the dictionary; all that KanjiVG and the font have by default.
    Returns:
        One row for each image and kind of caption, see `kanjilab.data.captioned`: kind is a key of `SHARES`; character
        ("" where typeset), layout, first, second ("" where there are no two parts), frequent (bool: both parts are
        frequent in their slots).
    """
    font, dictionary, components = font or default_font(), load_characters(), load_components()
    listed = sorted(set(characters or dictionary.index) & components.decompositions.keys() & set(dictionary.index))
    known = sorted(drawable_characters(listed, font))
    counts = slot_counts(components, known)
    images = [np.asarray(draw_font(character, font)) for character in known]
    rows = [
        row
        for number, character in enumerate(rows_of(dictionary.loc[known]))
        for row in _rows_of_character(number, character, components, counts)
    ]
    for pair, kind, image in _typeset(components, font, known, counts):
        captions = [pair_caption(pair.first, pair.second), parts_caption(pair.layout, pair.first, pair.second)]
        rows.append(_row(len(images), kind, "", pair, captions, counts))
        images.append(image)
    table = pd.DataFrame(rows)
    table["weight"] = _weights(table)
    save_captioned(folder, table, images)
    return table


def places(pair: Pair) -> list[tuple[str, str, str]]:
    """(layout, part, slot) of both parts."""
    names = (pair.first, pair.second)
    return [(pair.layout, name, slot) for name, slot in zip(names, SLOTS_OF_LAYOUT[pair.layout], strict=True)]


def _rows_of_character(image: int, row: Any, components: Components, counts: SlotCounts) -> Iterator[dict[str, Any]]:
    """A row by the parts and a row by the meaning, where there is either."""
    character, pair = str(row.Index), pair_of(components.of(str(row.Index)))
    by_parts = captions_by_parts(character, pair)
    meanings = list(row.meanings[:GLOSSES])
    if len(row.meanings) > 1:
        meanings.append(", ".join(row.meanings[:LISTED_GLOSSES]))
    for kind, captions in (("parts", by_parts), ("meaning", meanings)):
        if captions:
            yield _row(image, kind, character, pair, captions, counts)


def captions_by_parts(character: str, pair: Pair | None) -> list[str]:
    """Captions that name a character's two parts, or, of a part by itself, its names.

    Args:
        character: one sign.
        pair: its parts, if it is made of two.
    Returns:
        None to four captions, without repetition.
    """
    names = part_names()
    if pair is None:
        return list(names.get(character, ()))
    if not (has_name(pair.first) and has_name(pair.second)):
        return []
    last = [names[part][-1] if part in names else name_of_part(part) for part in (pair.first, pair.second)]
    captions = [pair_caption(pair.first, pair.second), parts_caption(pair.layout, pair.first, pair.second)]
    return list(dict.fromkeys([*captions, " + ".join(last)]))


def _row(
    image: int, kind: str, character: str, pair: Pair | None, captions: list[str], counts: SlotCounts
) -> dict[str, Any]:
    layout, first, second = (pair.layout, pair.first, pair.second) if pair else ("", "", "")
    held = is_held_out(character) if character else False
    return {
        "image": image, "kind": kind, "character": character, "layout": layout, "first": first, "second": second,
        "captions": SEPARATOR.join(captions),
        "frequent": pair is not None and all(counts[place] >= FREQUENT for place in places(pair)),
        "held_out": held or (pair is not None and is_held_out_pair(pair, counts)),
    }  # fmt: skip


def _typeset(
    components: Components, font: Path, known: list[str], counts: SlotCounts
) -> Iterator[tuple[Pair, str, NDArray[np.uint8]]]:
    """Glyphs of pairs that no character has: of parts in the vocabulary, then of the other named ones."""
    typesetter = Typesetter(components, font, known)
    vocabulary = set(components.parts)
    for index, pair in enumerate(novel_pairs(components, sorted(vocabulary | part_names().keys()))):
        named = has_name(pair.first) and has_name(pair.second)
        if not named or is_held_out_pair(pair, counts):
            continue
        kind = "frequent pairs" if {pair.first, pair.second} <= vocabulary else "other pairs"
        donors = set()
        for variant in range(VARIANTS[kind]):
            composed = typesetter.compose(pair, counted_rng(variant, "typeset", index))
            if composed is None:
                break
            if composed.donors not in donors:
                donors.add(composed.donors)
                yield pair, kind, composed.image


def _weights(table: pd.DataFrame) -> np.ndarray:
    """Sampling weights: each kind has its share, and within it rare parts come oftener than their number."""
    weight = np.ones(len(table))
    by_parts = ((table["layout"] != "") & (table["kind"] != "meaning")).to_numpy()
    paired = table[by_parts]
    counts = [paired.groupby(["kind", "layout", part])[part].transform("size").to_numpy() for part in PAIR]
    weight[by_parts] = (counts[0] ** -0.5 + counts[1] ** -0.5) / 2
    weight[table["held_out"].to_numpy()] = 0.0
    return shared_out(weight, table["kind"], SHARES)
