"""Random streams: known by name, and the same for ever."""

import numpy as np
import pytest

from kanjilab.core.rng import STREAMS, counted_rng

FIRST_NUMBERS = {  # of seed 7, index 3: what stored results were made from
    "initial weights": [2251081202, 2070726577, 1262456223],
    "data order": [3836665088, 895360646, 3794636322],
    "training image": [4246668231, 1542838726, 257299860],
    "sampling noise": [4209481302, 3441873042, 1142745624],
    "recipe": [1488220212, 2674917918, 2601742276],
    "caption shuffle": [2600857926, 3716890123, 2439115188],
    "judge training": [58245619, 290081756, 601060269],
    "typeset": [909196910, 1134463735, 274088328],
    "resampling": [3098274088, 4233761599, 580896763],
    "handwriting": [3373013350, 2439088414, 1662968281],
    "distillation": [1011282782, 1758388334, 3155273327],
    "caption filter": [1095457209, 3128196138, 2469432661],
    "noise levels": [2154204660, 47884017, 416847029],
}


def test_every_stream_gives_what_it_always_gave():
    assert {s: counted_rng(7, s, 3).integers(0, 2**32, 3).tolist() for s in STREAMS} == FIRST_NUMBERS
    assert counted_rng(2**40, "typeset").integers(0, 2**32) == 2542871043


def test_a_draw_depends_on_seed_stream_and_index_alone():
    seen = {
        tuple(counted_rng(seed, stream, index).integers(0, 2**32, 2))
        for seed in (0, 1, 2**63 - 1)
        for stream in STREAMS
        for index in (0, 1, 2**63 - 1)
    }
    assert len(seen) == 3 * len(STREAMS) * 3
    assert len(set(STREAMS.values())) == len(STREAMS)
    first, second = (counted_rng(5, "data order", 2).permutation(100) for _ in range(2))
    assert np.array_equal(first, second)


def test_an_unknown_stream_is_refused():
    with pytest.raises(ValueError, match="stream must be one of initial weights, .*, got 'noise'"):
        counted_rng(0, "noise")


@pytest.mark.parametrize(("seed", "index"), [(-1, 0), (2**63, 0), (2**80, 0), (0, -1), (0, 2**63)])
def test_a_seed_outside_its_range_is_refused_and_not_wrapped_around(seed, index):
    with pytest.raises(ValueError, match=r"expected a seed and an index from 0 to 2\^63 - 1"):
        counted_rng(seed, "recipe", index)
    assert counted_rng(2**63 - 1, "recipe", 2**63 - 1).integers(0, 9) >= 0
