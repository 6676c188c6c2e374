"""Streams of random numbers: every draw is a function of (seed, stream, index), so no generator is carried along."""

import numpy as np

SEED_MAX = 2**63 - 1

# Each stream by its name. The numbers are in every stored result: a new stream takes a new one, and none changes.
STREAMS = {
    "initial weights": 0,
    "data order": 1,
    "training image": 2,
    "sampling noise": 3,
    "recipe": 4,  # which prompts are asked
    "caption shuffle": 5,
    "judge training": 6,
    "typeset": 7,
    "resampling": 8,
    "handwriting": 9,
    "distillation": 10,
    "caption filter": 11,
    "noise levels": 12,
}


def counted_rng(seed: int, stream: str, index: int = 0) -> np.random.Generator:
    """A generator for one place in one training.

    Args:
        seed: in [0, 2**63).
        stream: one of `STREAMS`; no two give the same numbers.
        index: step, image, layer or epoch, in [0, 2**63).
    Raises:
        ValueError: an unknown stream, or a seed or index outside its range.
    Source: Philox 4x64, Salmon et al. 2011, as in numpy.
    """
    if stream not in STREAMS:
        raise ValueError(f"stream must be one of {', '.join(STREAMS)}, got {stream!r}")
    if not (0 <= seed <= SEED_MAX and 0 <= index <= SEED_MAX):
        raise ValueError(f"expected a seed and an index from 0 to 2^63 - 1, got {seed} and {index}")
    return np.random.Generator(np.random.Philox(key=[seed, index], counter=[0, 0, 0, STREAMS[stream]]))
