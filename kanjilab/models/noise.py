"""Noise levels of a base: how each counts in the loss, and the sigmas of a rectified flow."""

from statistics import NormalDist

import numpy as np
from torch import Tensor


def min_snr_weight(alpha_bar: Tensor, gamma: float) -> Tensor:
    """Loss weight per timestep of a noise-predicting model; damps the nearly clean ones.

    Args:
        alpha_bar: float in [0, 1], any shape: the share of signal *variance* kept.
        gamma: cap on the signal-to-noise power ratio, > 0.
    Returns:
        min(SNR, gamma) / SNR, of the shape of alpha_bar, in [0, 1].
    Raises:
        ValueError: gamma <= 0, or an alpha_bar outside [0, 1] or NaN.
    Source: Hang et al. 2023, arXiv:2303.09556.
    """
    if gamma <= 0:
        raise ValueError(f"gamma must be > 0, got {gamma}")
    if not ((alpha_bar >= 0) & (alpha_bar <= 1)).all():
        raise ValueError("alpha_bar must lie in [0, 1]")
    return (gamma * ((1 - alpha_bar) / alpha_bar)).clamp(max=1)  # inf before the clamp at pure noise


def velocity_weight(alpha_bar: Tensor, gamma: float | None = None) -> Tensor:
    """Loss weight per timestep that makes a noise error count as a velocity error.

    A noise error of the same size means a far worse picture at high noise than at low, and it is at
    high noise that the prompt decides; this weight says so. With gamma the nearly clean timesteps
    are damped as in `min_snr_weight`.

    Args:
        alpha_bar: float in (0, 1], any shape: the share of signal *variance* kept.
        gamma: cap on the signal-to-noise power ratio, > 0; None for no cap.
    Returns:
        (min(SNR, gamma) + 1) / SNR, of the shape of alpha_bar.
    Raises:
        ValueError: gamma <= 0, or an alpha_bar outside (0, 1] or NaN.
    Source: Salimans and Ho 2022, arXiv:2202.00512, section 4 ("SNR + 1").
    """
    if not ((alpha_bar > 0) & (alpha_bar <= 1)).all():
        raise ValueError("alpha_bar must lie in (0, 1]")
    share = 1.0 if gamma is None else min_snr_weight(alpha_bar, gamma)
    return share + (1 - alpha_bar) / alpha_bar


def flow_sigmas(levels: int, shift: float) -> np.ndarray:
    """Noise levels of a rectified flow, as likely each as any other in training.

    They cut the logit-normal distribution of mean 0 and deviation 1 into equal parts, of which each
    level is the middle: level i is sigmoid(Phi^-1((i + 1/2) / T)). The shift moves all towards noise,
    for a picture of more pixels needs more noise to be as hidden.

    Args:
        levels: T.
        shift: s > 0; sigma becomes s·sigma / (1 + (s - 1)·sigma).
    Returns:
        (T,) float32 in (0, 1), ascending: the share of noise.
    Raises:
        ValueError: T < 1, or a shift that is not positive.
    Source: Esser et al. 2024, arXiv:2403.03206, equations 19 and 23.
    """
    if levels < 1:
        raise ValueError(f"levels must be >= 1, got {levels}")
    if not shift > 0:
        raise ValueError(f"shift must be > 0, got {shift}")
    normal = NormalDist()
    logits = np.array([normal.inv_cdf((level + 0.5) / levels) for level in range(levels)])
    sigmas = 1 / (1 + np.exp(-logits))
    return (shift * sigmas / (1 + (shift - 1) * sigmas)).astype(np.float32)
