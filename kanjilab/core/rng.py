"""Counted randomness: every draw is a function of (seed, purpose, index), so nothing is carried."""

import numpy as np

PURPOSES = (
    "initial weights",
    "data order",
    "training image",
    "sampling noise",
    "recipe",
    "caption shuffle",
    "judge training",
    "typeset",
    "resampling",
)


def counted_rng(seed: int, purpose: str, index: int = 0) -> np.random.Generator:
    """A generator for one place in one training.

    Args:
        seed: in [0, 2**63).
        purpose: one of `PURPOSES`; different purposes never share a stream.
        index: step, image, layer or epoch, in [0, 2**63).
    Raises:
        ValueError: an unknown purpose.
    Source: Philox 4x64, Salmon et al. 2011, as in numpy.
    """
    if purpose not in PURPOSES:
        raise ValueError(f"purpose must be one of {PURPOSES}, got {purpose!r}")
    return np.random.Generator(np.random.Philox(key=[seed, index], counter=[0, 0, 0, PURPOSES.index(purpose)]))
