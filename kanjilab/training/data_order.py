"""Which image, timestep and noise a training sees when: a function of (seed, index)."""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from kanjilab.core.config import Arm
from kanjilab.core.rng import counted_rng
from kanjilab.training.encoded import Encoded


@dataclass(frozen=True)
class Draw:
    """One training example: image row, timestep, two noises (C, h, w), and uniform draws for dropout.

    `dropout` is of the caption, `array_dropout` of each of the prompt's arrays in order of their names.

    The timestep is the index of a noise level, each as likely as any other; what it means is the base's.
    """

    row: int
    timestep: int
    dropout: float
    posterior_noise: np.ndarray
    noise: np.ndarray
    array_dropout: np.ndarray


@lru_cache(maxsize=8)
def epoch_order(seed: int, epoch: int, size: int) -> np.ndarray:
    """The order of the images in one epoch.

    Args:
        seed: the arm's.
        epoch: from 0.
        size: number of training images.
    Returns:
        (size,) int64, a permutation of the images.
    """
    return counted_rng(seed, "data order", epoch).permutation(size)


def draw_example(seed: int, index: int, size: int, shape: tuple[int, ...], timesteps: int, arrays: int = 0) -> Draw:
    """The `index`-th image that a training with this seed sees, whatever its batch size.

    Args:
        index: images seen before it.
        size: number of training images.
        shape: (C, h, w) of the latents.
        timesteps: T.
        arrays: how many the prompts carry.
    """
    rng = counted_rng(seed, "training image", index)
    dropout, timestep = rng.random(2)
    noise = rng.standard_normal((2, *shape), dtype=np.float32)
    row = int(epoch_order(seed, index // size, size)[index % size])
    return Draw(row, int(timestep * timesteps), float(dropout), noise[0], noise[1], rng.random(arrays))


@lru_cache(maxsize=8)
def _strata(seed: int, step: int, count: int) -> np.ndarray:
    """Which stretch of the noise levels each image of an optimizer step is given, a permutation."""
    return counted_rng(seed, "noise levels", step).permutation(count)


class NoiseLevels:
    """Which noise levels one arm is shown, where some weigh more in its loss than others.

    A level is drawn with a probability in proportion to the root of its weight, which makes the gradient's variance the
    smallest where the weighted errors are alike in size at all levels; and the levels of one optimizer step are spread
    evenly over the distribution.
    Sources: importance sampling of timesteps, Nichol and Dhariwal 2021, arXiv:2102.09672; low-discrepancy sampling,
    Kingma et al. 2021, arXiv:2107.00630.

    Args:
        weight: (T,) of each level in the loss, all > 0.
        seed: the arm's.
        images_per_step: N.
    Attributes:
        share: (T,) how much more often than alike each level is drawn, mean 1; its loss is divided by it.
    """

    def __init__(self, weight: np.ndarray, seed: int, images_per_step: int):
        self.share = np.sqrt(weight) / np.sqrt(weight).mean()
        self.seed, self.images_per_step = seed, images_per_step
        self._cumulative = np.cumsum(self.share) / len(weight)

    def level(self, index: int, timestep: int) -> int:
        """The level for the `index`-th image, in place of one that is as likely as any other.

        Args:
            index: images seen before it.
            timestep: that one, in [0, T).
        """
        step, place = divmod(index, self.images_per_step)
        stratum = _strata(self.seed, step, self.images_per_step)[place]
        quantile = (stratum + (timestep + 0.5) / len(self.share)) / self.images_per_step
        return min(int(np.searchsorted(self._cumulative, quantile)), len(self.share) - 1)


def captions_of(arm: Arm, data: Encoded) -> np.ndarray:
    """(N,) caption index per image; if the arm's captions are shuffled, that of another image."""
    if not arm.shuffled_captions:
        return np.asarray(data.caption)
    order = counted_rng(arm.seed, "caption shuffle").permutation(len(data))
    shuffled = np.empty(len(data), dtype=np.int64)
    shuffled[order] = data.caption[np.roll(order, 1)]  # one cycle through all images
    return shuffled
