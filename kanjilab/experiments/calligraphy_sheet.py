"""The sheet of calligraphy: every style in a row, with characters that were never shown, kana, and new kanji."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from kanjilab.data.calligraphy import STYLES, is_held_out_character, jis_level_1
from kanjilab.experiments.writing import WRITING, symbols_of, typed_skeleton, write, writing_prompt
from kanjilab.models.diffusion import LatentDiffusion
from kanjilab.models.sampling import Sampling
from kanjilab.viz.strip import Strip

UNSEEN = 8  # characters
FURTHER = {"kana": "あのミ", "kanji that do not exist": "⿰木鳥⿱雨魚⿰金花"}


def unseen_characters(count: int) -> str:
    """Held-out characters, evenly spread over JIS level 1."""
    held = [character for character in jis_level_1() if is_held_out_character(character)]
    return "".join(held[row] for row in np.linspace(0, len(held) - 1, count).astype(int))


def calligraphy_sheet(
    base: LatentDiffusion, captions: Sequence[str] = (), seed: int = 0, sampling: Sampling = WRITING
) -> Strip:
    """Unselected drawings, each led by the skeleton of what is typed.

    Args:
        base: led by skeletons.
        captions: of the rows; those of the trained styles by default.
        seed: of the noise, the same for all.
        sampling: how.
    """
    captions = tuple(captions) or tuple(style.caption for style in STYLES)
    texts = {"never shown": unseen_characters(UNSEEN)} | FURTHER
    groups = {name: symbols_of(text) for name, text in texts.items()}
    symbols = [symbol for group in groups.values() for symbol in group]
    skeletons = [typed_skeleton(symbol) for symbol in symbols]
    rows = [write(base, [writing_prompt(base, one, lines) for lines in skeletons], seed, sampling) for one in captions]
    facts = {"base": base.name, "identity": base.identity, "seed": seed, "sampling": sampling.to_json()}
    title = "Each style, led by the skeletons of another font; unselected"
    sizes = tuple((name, len(group)) for name, group in groups.items())
    return Strip(np.stack(rows), captions, tuple(symbols), title, facts, column_groups=sizes)
