"""Material for judges, of some forty characters and a little junk."""

from dataclasses import replace

import numpy as np

from kanjilab.components import load_components
from kanjilab.counted import counted_rng
from kanjilab.glyphs import default_font
from kanjilab.junk import noise, scribbles
from kanjilab.material import KINDS, Glyphs, joined, junk_glyphs, real_glyphs, taken

CHARACTERS = tuple("休体林森校村杉松枝枚析杯板柱桂梅植海国道言明好村銀鉄針語話読花草茶")


def tiny_material() -> Glyphs:
    """Real glyphs, eight of them again as if typeset, scribbles and noise."""
    real = real_glyphs(default_font(), CHARACTERS, load_components())
    rng = counted_rng(0, "typeset")
    junk = [junk_glyphs(scribbles(6, rng), "scribble"), junk_glyphs(noise(6, rng), "noise")]
    return joined([real, replace(taken(real, np.arange(8)), kind=np.full(8, KINDS.index("typeset"))), *junk])
