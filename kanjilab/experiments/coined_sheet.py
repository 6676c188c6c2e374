"""Coined glyphs as figures: large, with the parts that the reporting judge finds; beside the nearest characters; and
unselected ones beside chosen ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import NDArray

from kanjilab.data.prompts import PUBLISHED
from kanjilab.data.rendering import default_font, draw_font
from kanjilab.evaluation.criteria import CRITERIA
from kanjilab.experiments.certificate import Certificate, Nearest
from kanjilab.experiments.coining import CHOOSER, NOISES, REPORTER, Coinage, Coined, coin
from kanjilab.viz.charts import FAINT, INK, SOFT, finish, label_text, new_figure, write_title
from kanjilab.viz.strip import Strip

PHRASES = ("queen of dragons", *PUBLISHED)
COLUMNS = 4  # unselected glyphs of a phrase, and as many chosen ones
PART_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00")  # Okabe-Ito
CELL_INCHES = 1.8
ACROSS, DOWN = 1.1, 1.47  # of a cell, in glyph widths
LINE_UNITS = 34  # of text below a glyph; a kanji takes two
LETTERS_A_WIDTH = 29
PART_UNITS = (13, 13, 0, 0, 0)  # of the parts' names; of further parts the sign alone
SHORT = {"two_or_more": "two parts", "distinct": "distinct", "novel": "new", "legal": "well-formed"}


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
    width, height = ACROSS * columns, DOWN * -(-len(glyphs) // columns)
    figure = new_figure(CELL_INCHES * width, CELL_INCHES * height + (0.35 if title else 0.05))
    ax = figure.subplots()
    for index, (one, label) in enumerate(zip(glyphs, labels, strict=True)):
        _draw_one(ax, one, label, ACROSS * (index % columns), 0.14 + DOWN * (index // columns))
    ax.set_xlim(-0.03, width)
    ax.set_ylim(height, 0)
    ax.set_axis_off()
    write_title(ax, title, "")
    finish(ax)
    return figure


def _draw_one(ax: Axes, one: Coined, label: str, left: float, top: float) -> None:
    """A glyph as large as 1, with all that belongs to it."""
    extent = (left, left + 1, top + 1, top)
    ax.imshow(one.image, cmap="gray", vmin=0, vmax=255, extent=extent, interpolation="lanczos")
    ax.add_patch(Rectangle((left, top), 1, 1, fill=False, edgecolor=FAINT, linewidth=0.8))
    write = partial(ax.text, fontsize=7.5)
    write(left, top - 0.03, label_text(label, LINE_UNITS), va="bottom", color=SOFT)
    report, place = one.certificate.report, left
    for part, colour, units in zip(report.parts, PART_COLOURS, PART_UNITS, strict=False):
        x, y, right, bottom = part.box
        ax.add_patch(Rectangle((left + x, top + y), right - x, bottom - y, fill=False, edgecolor=colour, linewidth=1.6))
        text = label_text(f"{part.part} {part.name}", units) if units else part.part
        write(place, top + 1.04, text, va="top", color=colour)
        place += (len(text) + 2.5) / LETTERS_A_WIDTH
    met, lacking = len(CRITERIA) - len(report.lacking), [SHORT.get(name, name) for name in report.lacking]
    text = f"{met} of {len(CRITERIA)}" + (f"; not {', '.join(lacking)}" if 0 < len(lacking) < 3 else "")
    write(left, top + 1.16, label_text(text, LINE_UNITS), va="top", color=INK)


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


def coined_strip(
    phrases: Sequence[str] = PHRASES, noises: int = NOISES, columns: int = COLUMNS, **options: Any
) -> tuple[Strip, list[Coinage]]:
    """Of each phrase the first glyph of its first readings, as they came, then the best of all.

    Args:
        phrases: one a row.
        noises: candidates of each reading.
        columns: glyphs of each half.
        options: of `coin`.
    Returns:
        The strip, blank where a phrase has fewer glyphs, and what was coined for each phrase.
    """
    rows, coined = [], []
    for phrase in phrases:
        unselected: list[NDArray[np.uint8]] = []
        found = coin(
            phrase,
            noises=noises,
            keep=columns,
            on_drawn=lambda reading, images, kept=unselected: kept.append(images[0]),
            **options,
        )
        rows.append([*_padded(unselected, columns), *_padded([one.image for one in found.glyphs], columns)])
        coined.append(found)
    facts = _facts(coined, noises)
    halves = (("unselected", columns), (f"the best by judge {CHOOSER}", columns))
    labels = tuple(str(column + 1) for _ in halves for column in range(columns))
    title = "Coined kanji: one drawing of each reading, unselected, beside the best of all"
    return Strip(np.array(rows), tuple(phrases), labels, title, facts, column_groups=halves), coined


def _padded(images: Sequence[NDArray[np.uint8]], columns: int) -> list[NDArray[np.uint8]]:
    blank = np.full((128, 128), 255, np.uint8)
    return [*images[:columns], *[blank] * (columns - len(images))]


def _facts(coined: Sequence[Coinage], noises: int) -> dict[str, Any]:
    chosen = [one.certificate for found in coined for one in found.glyphs]
    passing = sum(one.report.passes for one in chosen)
    return {
        "writer": coined[0].glyphs[0].certificate.identity,
        "noises a reading": noises,
        "candidates": sum(found.candidates for found in coined),
        f"chosen that pass all five criteria by judge {REPORTER}": f"{passing} of {len(chosen)}",
    }
