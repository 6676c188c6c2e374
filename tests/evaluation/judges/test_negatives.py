"""Negatives: what they keep of the glyphs that they are made from."""

import numpy as np

from kanjilab.core.rng import counted_rng
from kanjilab.data.components import load_components
from kanjilab.data.rendering import default_font
from kanjilab.evaluation.judges.labelled_glyphs import real_glyphs
from kanjilab.evaluation.judges.negatives import blobs, half_faded, half_swapped, mirrored, noise, shuffled_patches


def test_negatives_are_no_glyphs():
    rng = counted_rng(0, "judge training")
    glyphs = real_glyphs(default_font(), "林休海道", load_components())
    images = 255 - glyphs.ink
    assert noise(3, rng).shape == blobs(3, rng).shape == (3, 128, 128)
    large = np.kron(images, np.ones((1, 2, 2), np.uint8))
    assert len(mirrored(np.repeat(large[:1], 40, axis=0), rng)) < 40, "a tree mirrored left to right is kept out"
    assert (half_faded(large, rng) >= large).all(), "fading never adds ink"
    shuffled = shuffled_patches(large[1:2], rng)
    assert shuffled.shape == (1, 120, 120) and not np.array_equal(shuffled[0], large[1, 4:124, 4:124])
    for image in half_swapped(np.repeat(large, 8, axis=0), rng):
        assert image.shape == (128, 128)
