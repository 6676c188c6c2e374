"""What a caption filter found: the scores of all pairs, and the pairs that fit worst."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from kanjilab.viz.charts import INK, PALETTE, SOFT, draw_glyph_sheet, finish, new_figure, write_title

COLUMNS = 8


def draw_scores(
    scores: NDArray[np.float64], left_out: int, worst: NDArray[np.uint8], captions: Sequence[str]
) -> Figure:
    """A histogram of scores, split where the filter cuts, over a sheet of the worst pairs.

    Args:
        scores: (N,) of all pairs, in nats.
        left_out: how many of the lowest were left out.
        worst: (M, H, W) uint8, images of the lowest scores, lowest first.
        captions: theirs.
    """
    rows = -(-len(worst) // COLUMNS)
    sheet = 0.5 + 0.98 * rows  # inches
    figure = new_figure(7.0, 2.9 + sheet)
    top, bottom = figure.subplots(2, 1, height_ratios=(2.5, sheet))
    lowest = np.sort(scores)[:left_out]
    edges = np.linspace(scores.min(), scores.max() + 1e-9, 41)
    top.hist([lowest, np.sort(scores)[left_out:]], edges, stacked=True, color=[PALETTE[1], PALETTE[2]])
    if left_out:
        top.axvline(lowest[-1], color=INK, linewidth=0.8)
    top.set_xlabel("how much likelier the caption is for its own image (nats)", fontsize=9, color=SOFT)
    top.set_ylabel("images", fontsize=9, color=SOFT)
    write_title(top, "Do image and caption belong together?", f"left out: {left_out:,} of {len(scores):,}, in orange")
    finish(top)
    draw_glyph_sheet(worst, captions, columns=COLUMNS, title="The pairs that fit worst, worst first", ax=bottom)
    return figure
