"""Charts as pure functions: data in, matplotlib figure out; no pyplot, no global state.

Each `draw_*` makes a figure of its own, or draws into the axes it is given and returns their figure. Kanji are drawn
by IPAexGothic, colours are the Okabe-Ito palette (distinct also to colour-blind eyes), lines carry their names.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib import font_manager
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
from PIL import Image

from kanjilab.data.rendering import default_font
from kanjilab.viz.picture_files import checked_path, write_picture
from kanjilab.viz.text import has_character, printable, typeface

PALETTE = ("#222222", "#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")  # Okabe-Ito, gray for black
LINE_STYLES = ("-", (0, (5, 1.5)), (0, (1.5, 1.5)))  # beyond seven arms colours repeat, dashes do not
INK, SOFT, FAINT = "#222222", "#666666", "#dddddd"
DOTS_PER_INCH = 144
MOST_RAW_CURVES = 3  # more of them would hide the smoothed ones
SMOOTHED = "smoothed"
NAME_PITCH_INCHES = 0.175  # between the names of two lines
NAME_LETTERS = 32  # of the name of a line or a row, at most


@cache
def font_families() -> tuple[str, str]:
    """Names under which matplotlib finds the fonts of all text: DejaVu Sans, and for what it lacks the kanji font."""
    path = default_font()
    font_manager.fontManager.addfont(path)
    return "DejaVu Sans", font_manager.FontProperties(fname=path).get_name()


def arm_values(log: pd.DataFrame, column: str) -> np.ndarray:
    """One quantity of a run's log, arm by arm.

    Args:
        log: one row per record.
        column: numbers, or lists of K numbers, one per arm; None or NaN where an arm has stopped or a record is of
            another kind.
    Returns:
        (N, K) float, NaN where there is nothing.
    Raises:
        ValueError: no such column, or rows with different numbers of arms.
    """
    if column not in log:
        raise ValueError(f"the log has no column {column!r}, only {list(map(str, log.columns))}")
    rows = [entry if isinstance(entry, (list, tuple, np.ndarray)) else [entry] for entry in log[column]]
    arms = {len(row) for row in rows if len(row) != 1} or {1}  # one value: a single arm, or nothing in this record
    if len(arms) > 1:
        raise ValueError(f"column {column!r}: expected the same number of arms in every record, got {sorted(arms)}")
    values = np.full((len(rows), arms.pop()), np.nan)
    for place, row in zip(values, rows, strict=True):
        if len(row) == len(place):
            place[:] = [np.nan if value is None or value is pd.NA else value for value in row]
    return values


def smooth(values: np.ndarray, span: float) -> np.ndarray:
    """Exponential moving average without the bias of its beginning.

    Args:
        values: (N, K) float; NaN entries are passed over and stay NaN.
        span: in records; weight 1 - 2 / (span + 1) per record back; 1 for none.
    Returns:
        (N, K) float.
    Raises:
        ValueError: span < 1.
    """
    if span < 1:
        raise ValueError(f"span must be >= 1 record, got {span}")
    average = pd.DataFrame(values).ewm(span=span, ignore_na=True).mean().to_numpy()
    return np.where(np.isnan(values), np.nan, average)


def draw_loss(
    log: pd.DataFrame,
    arms: Sequence[str] = (),
    *,
    x: str = "images_seen",
    span: float | None = None,
    ax: Axes | None = None,
) -> Figure:
    """Loss of each arm over training: smoothed, with the raw values faintly behind.

    Args:
        log: as `RunFolder.read_log` gives it, with the columns `loss` and x; arms that its column `stopped` gives a
            reason for are marked.
        arms: names of the K arms.
        x: column of the horizontal axis.
        span: of the moving average in records; default a twentieth of the records.
        ax: axes to draw into; default a figure of its own.
    Raises:
        ValueError: see `arm_values`; or another number of names than arms.
    """
    return _draw_curves(log, "loss", arms, x, ax, ylabel="loss", span=span)


def draw_learning_rate(
    log: pd.DataFrame, arms: Sequence[str] = (), *, x: str = "images_seen", ax: Axes | None = None
) -> Figure:
    """Learning rate of each arm over training.

    Args:
        log: with the columns `lr` and x.
        arms, x, ax: as for `draw_loss`.
    Raises:
        ValueError: as `draw_loss`.
    """
    return _draw_curves(log, "lr", arms, x, ax, ylabel="learning rate", span=1)


def draw_gradient_norm(
    log: pd.DataFrame,
    arms: Sequence[str] = (),
    *,
    x: str = "images_seen",
    span: float | None = None,
    ax: Axes | None = None,
) -> Figure:
    """Gradient norm of each arm over training, before clipping, on a logarithmic axis.

    Args:
        log: with the columns `gradient_norm` and x.
        arms, x, span, ax: as for `draw_loss`.
    Raises:
        ValueError: as `draw_loss`.
    """
    return _draw_curves(log, "gradient_norm", arms, x, ax, ylabel="gradient norm", span=span, log_scale=True)


def _draw_curves(
    log: pd.DataFrame,
    column: str,
    arms: Sequence[str],
    x: str,
    ax: Axes | None,
    *,
    ylabel: str,
    span: float | None,
    log_scale: bool = False,
) -> Figure:
    values = arm_values(log, column)  # (N, K)
    positions = np.broadcast_to(arm_values(log, x), values.shape)
    names = tuple(arms) or (("",) if values.shape[1] == 1 else tuple(f"arm {k}" for k in range(values.shape[1])))
    if len(names) != values.shape[1]:
        raise ValueError(f"expected {values.shape[1]} arm names, one per arm of {column!r}, got {len(names)}")
    values[~np.isfinite(values + positions) | (values <= 0 if log_scale else False)] = np.nan
    span = max(1.0, np.isfinite(values).any(axis=1).sum() / 20) if span is None else span
    figure, ax = figure_and_axes(ax)
    if log_scale:
        make_logarithmic(ax)
    smoothed = smooth(values, span)
    for k in range(values.shape[1]):
        color = PALETTE[k % len(PALETTE)]
        dashes = LINE_STYLES[k // len(PALETTE) % len(LINE_STYLES)]
        shown = np.isfinite(values[:, k])
        if span > 1 and values.shape[1] <= MOST_RAW_CURVES:
            ax.plot(positions[shown, k], values[shown, k], color=color, linewidth=0.6, alpha=0.18, zorder=1)
        ax.plot(positions[shown, k], smoothed[shown, k], color=color, linestyle=dashes, linewidth=1.6, gid=SMOOTHED)
    _set_limits(ax, positions, values, smoothed)
    ax.set_xlabel(x.replace("_", " "))
    ax.set_ylabel(ylabel)
    ax.xaxis.set_major_formatter("{x:,.0f}")
    if not log_scale:
        ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    name_lines(ax, names, ["(stopped)" * bool(reason) for reason in _reasons(log, len(names))])
    finish(ax)
    return figure


def _reasons(log: pd.DataFrame, arms: int) -> Sequence[str | None]:
    """Per arm, why it stopped early, or None; the newest record with reasons counts."""
    entries = log["stopped"] if "stopped" in log else ()
    reasons = [entry for entry in entries if isinstance(entry, (list, tuple)) and len(entry) == arms]
    return reasons[-1] if reasons else [None] * arms


def _set_limits(ax: Axes, positions: np.ndarray, values: np.ndarray, smoothed: np.ndarray) -> None:
    """Room for the smoothed curves and nearly all raw values: a single spike must not flatten the rest."""
    if not np.isfinite(values).any():
        return
    low = min(np.nanpercentile(values, 0.5), np.nanmin(smoothed))
    high = max(np.nanpercentile(values, 99), np.nanmax(smoothed))
    if ax.get_yscale() == "log":
        ax.set_ylim(low / 1.2, high * 1.2)
    else:
        pad = 0.05 * (high - low) or 0.05 * abs(high) or 1.0
        ax.set_ylim(low - pad, high + pad)
    first, last = np.nanmin(positions), np.nanmax(positions)
    pad = 0.01 * (last - first) or 1.0
    ax.set_xlim(first - pad, last + pad)


def name_lines(ax: Axes, names: Sequence[str], endings: Sequence[str]) -> None:
    """Write each line's name and ending beside its end, pushed apart where ends are close; cross the stopped ones."""
    ends = []
    lines = [line for line in ax.lines if line.get_gid() == SMOOTHED][-len(names) :]
    for line, name, ending in zip(lines, (label_text(name, NAME_LETTERS) for name in names), endings, strict=True):
        data = np.asarray(line.get_xydata())
        if not len(data):
            continue
        if ending:
            ax.plot(*data[-1], "x", color=line.get_color(), markersize=6)
        if text := f"{name} {ending}".strip():
            height = ax.transAxes.inverted().transform(ax.transData.transform(data[-1]))[1]
            ends.append((height, text, line.get_color()))
    ends.sort(key=lambda end: end[0])
    spacing = NAME_PITCH_INCHES * ax.figure.dpi / ax.get_window_extent().height
    places = _spread([height for height, _, _ in ends], spacing)
    for place, (_, name, color) in zip(places, ends, strict=True):
        ax.annotate(name, (1.015, place), xycoords="axes fraction", color=color, fontsize=9, va="center")


def _spread(heights: Sequence[float], spacing: float) -> list[float]:
    """Ascending heights moved as little as needed to be `spacing` apart, as far as 0 ... 1 has room."""
    places = list(heights)
    for _ in range(200):
        for low in range(len(places) - 1):
            if (short := spacing - (places[low + 1] - places[low])) > 1e-9:
                places[low] -= short / 2
                places[low + 1] += short / 2
    if places and (over := max(0.0, places[-1] - 1) or min(0.0, places[0])):
        places = [place - over for place in places]
    return places


def draw_radical_balance(
    counts: pd.Series | pd.DataFrame, *, title: str = "", note: str = "", ax: Axes | None = None
) -> Figure:
    """How many characters each radical has, as bars with their numbers, the most first.

    Args:
        counts: index = radicals; a Series of numbers >= 0, or a DataFrame with a column per position ("left",
            "elsewhere"), which are stacked.
        title: above the chart.
        note: a second, smaller line, as "entropy 3.98 of 4.00 bits".
        ax: axes to draw into; default a figure of its own.
    Raises:
        ValueError: no radical, or a negative or missing number.
    """
    table = counts.to_frame() if isinstance(counts, pd.Series) else counts
    numbers = table.to_numpy(float)
    if table.empty or not (numbers >= 0).all():
        raise ValueError(f"counts must be numbers >= 0 for at least one radical, got {numbers.tolist()}")
    table = table.iloc[np.argsort(-numbers.sum(axis=1), kind="stable")]
    numbers = table.to_numpy(float)
    figure, ax = figure_and_axes(ax, width=max(4.0, 0.46 * len(table) + 1.2))
    bottom = np.zeros(len(table))
    for color, name, values in zip(("#0072B2", "#E69F00", *PALETTE), table.columns, numbers.T, strict=False):
        ax.bar(range(len(table)), values, 0.74, bottom=bottom, color=color, label=label_text(str(name), 24).lstrip("_"))
        bottom += values
    for position, total in enumerate(bottom):
        ax.annotate(f"{total:,.0f}", (position, total), (0, 2), textcoords="offset points", ha="center", fontsize=8)
    ax.set_xticks(range(len(table)), [label_text(str(radical), 6) for radical in table.index], fontsize=14)
    ax.tick_params(axis="x", length=0)
    ax.set_ylabel("characters")
    ax.set_xlim(-0.7, len(table) - 0.3)
    ax.set_ylim(0, max(1.0, bottom.max()) * (1.1 if table.shape[1] == 1 else 1.22))  # room for a legend above the bars
    if table.shape[1] > 1:
        ax.legend(frameon=False, fontsize=9, loc="upper right", ncols=table.shape[1], borderaxespad=0)
    write_title(ax, title, note)
    finish(ax)
    return figure


def draw_glyph_sheet(
    images: np.ndarray, labels: Sequence[str] = (), *, columns: int = 10, title: str = "", ax: Axes | None = None
) -> Figure:
    """Glyph images in a grid, each with a small label below.

    Args:
        images: (N, H, W) uint8, 0 = black.
        labels: one per image, cut to the width of a cell; () for none.
        columns: images a row.
        title: above the sheet.
        ax: axes to draw into; default a figure of its own.
    Raises:
        ValueError: no images, or another number of labels than images.
    """
    if images.ndim != 3 or images.dtype != np.uint8 or 0 in images.shape:
        raise ValueError(f"images must be (N, H, W) uint8, got {images.shape} {images.dtype}")
    if labels and len(labels) != len(images):
        raise ValueError(f"expected {len(images)} labels, one per image, got {len(labels)}")
    columns = max(1, min(columns, len(images)))
    rows = -(-len(images) // columns)
    pitch = 1.28 if labels else 1.08  # of a row, in glyph heights
    width, height = 1.08 * columns, pitch * rows + 0.04
    figure, ax = figure_and_axes(ax, width=0.76 * width + 0.1, height=0.76 * height + (0.42 if title else 0.1))
    for index, image in enumerate(images):
        left, top = 1.08 * (index % columns), pitch * (index // columns)
        ax.imshow(image, cmap="gray", vmin=0, vmax=255, extent=(left, left + 1, top + 1, top), interpolation="lanczos")
        if labels:
            text = label_text(labels[index], 14)
            ax.text(left + 0.5, top + 1.04, text, ha="center", va="top", fontsize=7, color=SOFT)
    ax.set_xlim(-0.04, width - 0.04)
    ax.set_ylim(height - 0.04, -0.04)
    ax.set_axis_off()
    write_title(ax, title, "")
    finish(ax)
    return figure


def new_figure(width: float, height: float) -> Figure:
    """An empty figure of a size in inches, which belongs to no pyplot window."""
    figure = Figure(figsize=(width, height), dpi=DOTS_PER_INCH, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def figure_and_axes(ax: Axes | None, width: float = 6.4, height: float = 3.6) -> tuple[Figure, Axes]:
    """The given axes with their figure; for None new ones, of a size in inches."""
    if ax is not None:
        figure = ax.get_figure(root=True)
        assert figure is not None, "axes without a figure"
        return figure, ax
    figure = new_figure(width, height)
    return figure, figure.add_subplot()


def label_text(text: str, units: int) -> str:
    """Text fit for a figure, cut to a width in letters; an ideograph counts two, a box replaces the undrawable."""
    paths = typeface(10).paths
    text = "".join(
        character if any(has_character(path, character) for path in paths) else "□" for character in printable(text)
    )
    used = 0
    for position, character in enumerate(text):
        used += 2 if ord(character) >= 0x2E80 else 1
        if used > units:
            return text[: max(0, position - 1)].rstrip() + "…"
    return text


def write_title(ax: Axes, title: str, note: str) -> None:
    """A title above the axes, and under it a smaller note."""
    units = int(13 * ax.get_window_extent().width / ax.figure.dpi)  # letters of this size to the inch
    if title := label_text(title, units):
        ax.set_title(title, loc="left", fontsize=12, color=INK, pad=20 if note else 8)
    if note := label_text(note, round(1.4 * units)):
        ax.annotate(note, (0, 1), (0, 6), "axes fraction", textcoords="offset points", fontsize=8.5, color=SOFT)


def finish(ax: Axes) -> None:
    """Quiet frame; the two fonts on every text; a dollar sign is a dollar sign."""
    ax.spines[["top", "right"]].set_visible(False)
    ax.spines[["left", "bottom"]].set_color(SOFT)
    ax.grid(axis="y", color=FAINT, linewidth=0.6)
    ax.set_axisbelow(True)
    ax.tick_params(colors=SOFT, labelfontfamily=list(font_families()))
    ax.tick_params(axis="x", labelcolor=INK)
    for text in ax.findobj(Text):
        assert isinstance(text, Text)
        text.set_fontfamily(list(font_families()))
        text.set_parse_math(text in ax.yaxis.get_ticklabels(which="both"))  # powers of ten on a logarithmic axis


def figure_png(figure: Figure) -> bytes:
    """A figure as PNG, also for an image widget.

    Args:
        figure: any matplotlib figure.
    Returns:
        PNG, the same bytes for the same figure; with a palette of 128 colours.
    """
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    picture = Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")
    buffer = io.BytesIO()
    picture.quantize(128, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def save_figure(figure: Figure, path: Path | str, facts: Mapping[str, Any]) -> Path:
    """Write a figure as PNG, and a JSON of the same name that says what it was drawn from.

    Args:
        figure: any matplotlib figure.
        path: ends in .png; its folder must exist.
        facts: JSON-able: the runs and settings it came from.
    Returns:
        the PNG's path.
    Raises:
        ValueError: another ending, or the file would reach 500 kB.
    """
    about = {"kind": "figure", "matplotlib": matplotlib.__version__, "facts": facts}
    return write_picture(checked_path(path, (".png",)), figure_png(figure), about)


def make_logarithmic(ax: Axes) -> None:
    """A logarithmic axis with plain numbers at 1, 2 and 5 of each power, so that a short one has a few, too."""
    ax.set_yscale("log")
    ax.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    ax.yaxis.set_minor_formatter(NullFormatter())
