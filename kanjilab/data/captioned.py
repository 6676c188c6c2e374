"""Tables of captioned pictures: what a denoiser is trained on whole.

One row for each image and kind of caption: image (row of `images.npy`), kind, captions (joined by `SEPARATOR`), weight
(how often it is drawn among its kind), held_out, and what else a corpus tells of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

SEPARATOR = "|"  # of the captions in a cell


def save_captioned(folder: Path, table: pd.DataFrame, images: Sequence[np.ndarray]) -> None:
    """Writes `folder/images.npy`, then `folder/glyphs.csv`, whose presence says that both are there.

    Args:
        folder: made if need be.
        table: see above.
        images: N of (128, 128) uint8, 0 = ink.
    """
    folder.mkdir(parents=True, exist_ok=True)
    np.save(folder / "images.npy", np.stack(images))
    table.to_csv(folder / "glyphs.csv", index=False)


def load_captioned(folder: Path) -> tuple[pd.DataFrame, np.ndarray]:
    """The table, and the images as (N, 128, 128) uint8, mapped into memory."""
    table = pd.read_csv(folder / "glyphs.csv", keep_default_na=False)
    return table, np.load(folder / "images.npy", mmap_mode="r", allow_pickle=False)


def shared_out(weight: np.ndarray, kinds: Any, shares: Mapping[str, float]) -> np.ndarray:
    """Weights (N,) scaled so that each kind has its share of the sum, and any other kind none.

    Args:
        weight: (N,), at least 0.
        kinds: N names, a column of the table.
        shares: of the sum, by kind.
    """
    names = np.array(kinds)
    total = {kind: weight[names == kind].sum() for kind in shares}
    scale = [shares[kind] / total[kind] if total.get(kind) else 0.0 for kind in names]
    return weight * np.array(scale)
