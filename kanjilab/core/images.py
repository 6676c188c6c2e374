"""What an image is, here: its size, and its luma."""

import numpy as np

SIZE_PX = 128
SIZE_MAX_PX = 2048  # of what is trained on or drawn


def grayscale(images: np.ndarray) -> np.ndarray:
    """The luma of colour images.

    Args:
        images: (..., 3) uint8.
    Returns:
        (...) uint8.
    Source: ITU-R BT.601.
    """
    return (images @ np.array([0.299, 0.587, 0.114])).round().astype(np.uint8)
