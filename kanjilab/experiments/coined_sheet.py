"""Coined glyphs as figures: large, with the parts that the reporting judge finds, and beside the nearest characters."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import NDArray

from kanjilab.data.rendering import default_font, draw_font
from kanjilab.evaluation.criteria import CRITERIA
from kanjilab.experiments.certificate import Certificate, Nearest
from kanjilab.experiments.coining import Coined
from kanjilab.viz.charts import SOFT, finish, label_text, new_figure
from kanjilab.viz.strip import Strip

PART_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00")  # Okabe-Ito
CELL_INCHES = 1.75
LABEL_UNITS = 26


def draw_coined(glyphs: Sequence[Coined], labels: Sequence[str] = (), *, columns: int = 4, title: str = "") -> Figure:
    """Glyphs with a box around each part that judge B finds, and the parts' names and the criteria met below.

    Args:
        glyphs: at least one.
        labels: one a glyph, above it; () for the prompts that were drawn.
        columns: glyphs a row.
        title: above all.
    Raises:
        ValueError: no glyphs, or another number of labels.
    """
    labels = labels or [one.certificate.prompt for one in glyphs]
    if not glyphs or len(labels) != len(glyphs):
        raise ValueError(f"expected glyphs and as many labels, got {len(glyphs)} and {len(labels)}")
    columns = min(columns, len(glyphs))
    rows = -(-len(glyphs) // columns)
    figure = new_figure(CELL_INCHES * columns, (CELL_INCHES + 0.55) * rows + (0.35 if title else 0.0))
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for ax, one, label in zip(axes, glyphs, labels, strict=False):
        height, width = one.image.shape
        ax.imshow(one.image, cmap="gray", vmin=0, vmax=255, extent=(0, width, height, 0), interpolation="lanczos")
        ax.set_title(label_text(label, LABEL_UNITS), fontsize=7.5, color=SOFT, loc="left")
        _draw_parts(ax, one.certificate, width, height)
    for ax in axes:
        ax.set(xticks=[], yticks=[])
        ax.spines[:].set_color("#dddddd")
    for ax in axes[len(glyphs) :]:
        ax.set_axis_off()
    for ax in axes:
        finish(ax)
    if title:
        figure.suptitle(title, x=0.01, ha="left", fontsize=10)
    return figure


def _draw_parts(ax: Axes, certificate: Certificate, width: int, height: int) -> None:
    report, size = certificate.report, (width, height, width, height)
    for place, part in enumerate(report.parts):
        left, top, right, bottom = (end * length for end, length in zip(part.box, size, strict=True))
        colour = PART_COLOURS[place % len(PART_COLOURS)]
        ax.add_patch(Rectangle((left, top), right - left, bottom - top, fill=False, edgecolor=colour, linewidth=1.6))
        text = f"{part.part} {part.name}"
        ax.text(
            place * width / 2, height + 4, label_text(text, 13), color=colour, fontsize=7.5, va="top", clip_on=False
        )
    met = len(CRITERIA) - len(report.lacking)
    lacking = "" if report.passes else f" (not {', '.join(report.lacking)})"
    ax.set_xlabel(
        label_text(f"{met} of {len(CRITERIA)}{lacking}", LABEL_UNITS + 6), fontsize=7.5, labelpad=13, loc="left"
    )


def nearest_strip(glyphs: Sequence[Coined], title: str = "Each glyph, and the nearest real characters") -> Strip:
    """Glyphs in rows; in columns the glyph itself and, drawn by the default font, what is nearest to it.

    Args:
        glyphs: at least one.
        title: above all.
    """
    certificates = [one.certificate for one in glyphs]
    rows = [[one.image, *(_drawn(near, one.image) for near in _nearest(one.certificate))] for one in glyphs]
    labels = tuple(
        f"{number}. " + ", ".join(f"{near.character} {near.distance:.2f}" for near in _nearest(one))
        for number, one in enumerate(certificates, 1)
    )
    columns = ("coined", *(f"by judge {verdict.judge}" for verdict in certificates[0].verdicts), "by outline")
    facts = {"phrases": sorted({one.phrase for one in certificates}), "writer": certificates[0].identity}
    return Strip(np.array(rows), labels, columns, title, facts)


def _nearest(certificate: Certificate) -> list[Nearest]:
    return [verdict.nearest[0] for verdict in certificate.verdicts] + [certificate.outline[0]]


def _drawn(near: Nearest, like: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return np.asarray(draw_font(near.character, default_font()).resize(like.shape[::-1]))
