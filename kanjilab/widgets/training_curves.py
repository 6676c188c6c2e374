"""Curves of trainings in the browser: smoothing, zoom, several runs over each other, a logarithmic scale."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import anywidget
import numpy as np
import pandas as pd
import traitlets

from kanjilab.viz.charts import arm_values
from kanjilab.widgets.common import FOLDER

# The plotting library, vendored unmodified (51 kB; see NOTICE), comes first: the page asks no other machine for it.
SOURCES = ("uPlot.iife.min.js", "training_curves.js")
STYLES = ("uPlot.min.css", "training_curves.css")
POINTS_MOST = 2000  # of a run; a longer log is thinned evenly
MEASURED = ("loss", "gradient_norm")


class TrainingCurves(anywidget.AnyWidget):
    """Loss and gradient norm over images seen; set `runs` to show others.

    Attributes:
        runs: each of `curve_of`, the first one the run that the panel shows.
    """

    _esm = "\n".join((FOLDER / name).read_text(encoding="utf-8") for name in SOURCES)
    _css = "\n".join((FOLDER / name).read_text(encoding="utf-8") for name in STYLES)
    runs = traitlets.List(traitlets.Dict()).tag(sync=True)


def curve_of(name: str, label: str, log: pd.DataFrame) -> dict[str, Any] | None:
    """What the browser plots of a run's first arm.

    Args:
        name: unique among the runs that are shown.
        label: for readers; untrusted.
        log: of `RunFolder.read_log`.
    Returns:
        For JSON: name, label, `seen` (N, ascending), loss and gradient_norm (N numbers, None for what is not finite).
        None for an empty log.
    """
    if not len(log):
        return None
    kept = log[~np.isnan(arm_values(log, "images_seen")[:, 0])]
    kept = kept.iloc[:: max(1, math.ceil(len(kept) / POINTS_MOST))]
    seen = [int(value) for value in arm_values(kept, "images_seen")[:, 0]] if len(kept) else []
    if not seen:
        return None
    values: Mapping[str, Sequence[float]] = {
        key: arm_values(kept, key)[:, 0].tolist() for key in MEASURED if key in kept.columns
    }
    finite = {key: [value if math.isfinite(value) else None for value in some] for key, some in values.items()}
    return {"name": name, "label": label, "seen": seen, **finite}
