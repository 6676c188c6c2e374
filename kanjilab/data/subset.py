"""Some images of a dataset as an image folder of their own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from kanjilab.core.storage import appearing_folder, require_new, write_synced
from kanjilab.data.image_folder import Dataset, open_dataset


def write_subset(
    dataset: Dataset, rows: Sequence[int] | np.ndarray, folder: Path, beside: Mapping[str, bytes] | None = None
) -> Dataset:
    """Copies some images with their metadata; the folder appears when it is whole.

    Splits that are folders of their own stay so; otherwise there is one metadata.csv.

    Args:
        dataset: where they come from; its table may hold other captions than its files do.
        rows: of `dataset.table`.
        folder: new.
        beside: further files at its root, by name.
    Returns:
        The new dataset, of the same size and filter.
    Raises:
        FileExistsError: the folder is there already.
        DatasetError: a file is not what it was when the dataset was opened.
    """
    require_new(folder)
    kept = dataset.take(rows)
    with appearing_folder(folder) as partial:
        for row, name in enumerate(kept.table["file_name"]):
            (partial / name).parent.mkdir(parents=True, exist_ok=True)
            (partial / name).write_bytes(kept.content(row))
        for place, table in _metadata(kept.table):
            write_synced(partial / place / "metadata.csv", table.to_csv(index=False, lineterminator="\n").encode())
        for name, content in (beside or {}).items():
            write_synced(partial / name, content)
    return open_dataset(folder, size_px=dataset.size_px, resample=dataset.resample)


def _metadata(table: pd.DataFrame) -> list[tuple[str, pd.DataFrame]]:
    """Where metadata files go, and their rows: one in each split's own folder, or one for all."""
    names = table["file_name"].str.partition("/")
    if not (names[0] == table["split"]).all():
        return [("", table)]
    return [(str(split), rows) for split, rows in table.assign(file_name=names[2]).groupby("split", sort=False)]
