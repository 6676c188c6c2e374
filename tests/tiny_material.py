"""Material for judges, of some forty characters and a few negatives."""

from dataclasses import replace

import numpy as np

from kanjilab.core.rng import counted_rng
from kanjilab.data.components import load_components
from kanjilab.data.rendering import default_font
from kanjilab.evaluation.judges.labelled_glyphs import KINDS, Glyphs, joined, negative_glyphs, real_glyphs, taken
from kanjilab.evaluation.judges.negatives import noise, scribbles

CHARACTERS = tuple("休体林森校村杉松枝枚析杯板柱桂梅植海国道言明好村銀鉄針語話読花草茶")


def tiny_material() -> Glyphs:
    """Real glyphs, eight of them again as if typeset, scribbles and noise."""
    real = real_glyphs(default_font(), CHARACTERS, load_components())
    rng = counted_rng(0, "typeset")
    negatives = [negative_glyphs(scribbles(6, rng), "scribble"), negative_glyphs(noise(6, rng), "noise")]
    return joined([real, replace(taken(real, np.arange(8)), kind=np.full(8, KINDS.index("typeset"))), *negatives])
