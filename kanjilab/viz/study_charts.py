"""Charts of a study: rates, differences, budgets, blocks and logs, with intervals; each `draw_*` returns its figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from textwrap import fill
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from kanjilab.viz.charts import (
    FAINT,
    INK,
    LINE_STYLES,
    NAME_LETTERS,
    NAME_PITCH_INCHES,
    PALETTE,
    SMOOTHED,
    SOFT,
    figure_and_axes,
    finish,
    font_families,
    label_text,
    make_logarithmic,
    name_lines,
    new_figure,
    smooth,
    write_title,
)


def _stopped_trainings(names: Sequence[str], stopped: Mapping[str, int]) -> list[str]:
    """What is written beside the names of variants: how many of their trainings stopped early."""
    return [f"({stopped[name]} stopped)" if stopped.get(name) else "" for name in names]


def draw_rates(rates: pd.DataFrame, *, title: str = "", note: str = "", ax: Axes | None = None) -> Figure:
    """Share of images that show what was asked: a dot and its interval per variant, the blocks as faint points.

    Args:
        rates: one row a variant, drawn from above: variant, value, low, high (shares), blocks (list of shares).
        title: above the chart.
        note: a second, smaller line.
        ax: axes to draw into; default a figure of its own.
    Raises:
        ValueError: no rows.
    """
    figure, ax = _rows(rates, "variant", ax)
    for row, rate in enumerate(rates.itertuples()):
        _dot_with_interval(ax, row, rate, "#0072B2")
    ax.set_xlim(left=0)
    ax.set_xlabel("images with the expected radical")
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:g}%"))
    _finish_rows(ax, title, note)
    return figure


def draw_differences(
    differences: pd.DataFrame, *, margin: float = 0.03, title: str = "", note: str = "", ax: Axes | None = None
) -> Figure:
    """Paired differences in points, with the band within which two variants count as the same.

    Args:
        differences: one row a contrast: label, value, low, high (shares), blocks (list of shares), verdict.
        margin: half the width of the band, as a share.
        title, note, ax: as for `draw_rates`.
    Raises:
        ValueError: no rows.
    """
    figure, ax = _rows(differences, "label", ax)
    ax.axvspan(-margin, margin, color="#56B4E9", alpha=0.18, linewidth=0)
    ax.axvline(0, color=SOFT, linewidth=0.8)
    colors = {"held": "#009E73", "refuted": "#D55E00", "equivalent": "#0072B2"}
    words = {"held": "better", "refuted": "worse", "equivalent": "as good"}
    for row, (difference, verdict) in enumerate(zip(differences.itertuples(), differences["verdict"], strict=True)):
        color = colors.get(verdict, SOFT)
        _dot_with_interval(ax, row, difference, color)
        word, place = words.get(verdict, str(verdict)), ("axes fraction", "data")
        ax.annotate(word, (1.01, row), xycoords=place, color=color, fontsize=9, va="center")
    ax.set_xlabel(f"difference in points, same training seeds and prompts; shaded: ±{100 * margin:g}")
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:+g}" if value else "0"))
    _finish_rows(ax, title, note)
    return figure


def draw_budget(rates: pd.DataFrame, *, title: str = "", note: str = "", ax: Axes | None = None) -> Figure:
    """Share of images that show what was asked, over the images seen in training; a line per variant.

    Args:
        rates: rows of variant, images_seen, value, low, high (shares); where there is `stopped` (number of trainings),
            it is written beside the name.
        title, note, ax: as for `draw_rates`.
    Raises:
        ValueError: no rows.
    """
    if rates.empty:
        raise ValueError("expected at least one rate to draw, got none")
    figure, ax = figure_and_axes(ax)
    names = list(dict.fromkeys(rates["variant"]))
    for k, name in enumerate(names):
        part = rates.loc[rates["variant"] == name].sort_values(by="images_seen")
        color, dashes = PALETTE[k % len(PALETTE)], LINE_STYLES[k // len(PALETTE) % len(LINE_STYLES)]
        seen, value = part["images_seen"].to_numpy(float), part["value"].to_numpy(float)
        ax.fill_between(seen, part["low"], part["high"], color=color, alpha=0.12, linewidth=0)
        ax.plot(seen, value, color=color, linestyle=dashes, linewidth=1.6, marker="o", markersize=4, gid=SMOOTHED)
    ax.set_ylim(bottom=0)
    ax.set_xlabel("images seen in training")
    ax.set_ylabel("images with the expected radical")
    ax.xaxis.set_major_formatter("{x:,.0f}")
    ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:g}%"))
    write_title(ax, title, note)
    stopped: Any = rates.groupby("variant")["stopped"].max() if "stopped" in rates else {}
    name_lines(ax, names, _stopped_trainings(names, stopped))
    finish(ax)
    return figure


def draw_blocks(
    values: Mapping[str, pd.DataFrame], pairs: Sequence[tuple[str, str]], *, title: str = "", note: str = ""
) -> Figure:
    """Pairs of variants block by block: each thin line is a block, from the second of a pair to its first.

    Args:
        values: name of what was measured -> a row a block, a column a variant; a chart each.
        pairs: (first, second), names of columns.
        title, note: above the charts.
    Raises:
        ValueError: nothing to draw.
    """
    if not values or not pairs:
        raise ValueError(f"expected at least one chart and one pair, got {list(values)} and {list(pairs)}")
    beside = len(pairs) == 1  # else the names need the whole width
    rows, columns = (1, len(values)) if beside else (len(values), 1)
    figure = new_figure(max(6.4, 2.8 * columns), 2.7 * rows + 0.3)
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for ax, (name, table) in zip(axes, values.items(), strict=True):
        _draw_pairs(ax, table, pairs)
        ax.set_ylabel(label_text(name, 36), color=INK, fontsize=9)
        finish(ax)
    _write_around(figure, title, note)
    return figure


def draw_logs(logs: pd.DataFrame, columns: Sequence[str], *, title: str = "", note: str = "") -> Figure:
    """How trainings went, a chart for each quantity: thin a training, bold the median of a variant's.

    Args:
        logs: rows of variant, seed, images_seen and the columns, as `experiments.drawn.read_logs` gives them; where
            there is `stopped` (reasons), the number of trainings with one is written beside the name.
        columns: what is drawn; gradient norms on a logarithmic axis.
        title: above the charts.
        note: a smaller line below.
    Raises:
        ValueError: no rows or no columns.
    """
    if logs.empty or not columns:
        raise ValueError(f"expected records and columns to draw, got {len(logs)} records and {list(columns)}")
    figure = new_figure(max(6.4, 2.7 * len(columns) + 1), 2.9)
    axes = list(figure.subplots(1, len(columns), squeeze=False).flat)
    names = list(dict.fromkeys(logs["variant"]))
    for ax, column in zip(axes, columns, strict=True):
        if column == "gradient_norm":
            make_logarithmic(ax)
        for k, name in enumerate(names):
            _draw_trainings(ax, logs.loc[logs["variant"] == name], column, k)
        ax.set_xlabel("images seen")
        ax.set_ylabel({"lr": "learning rate"}.get(column, column.replace("_", " ")))
        ax.xaxis.set_major_formatter("{x:,.0f}")
        ax.autoscale_view()
    ended: Any = logs.loc[logs["stopped"].notna()] if "stopped" in logs else logs[:0]
    stopped = ended.drop_duplicates(["variant", "seed"])["variant"].value_counts()
    name_lines(axes[-1], names, _stopped_trainings(names, stopped))
    for ax in axes:
        finish(ax)
    _write_around(figure, title, note)
    return figure


def _draw_trainings(ax: Axes, logs: pd.DataFrame, column: str, k: int) -> None:
    """One variant's trainings and their median, where a log is noisy as a moving average."""
    color, dashes = PALETTE[k % len(PALETTE)], LINE_STYLES[k // len(PALETTE) % len(LINE_STYLES)]
    values = logs.pivot_table(index="images_seen", columns="seed", values=column)  # (N, seeds)
    seen = values.index.to_numpy(float)
    span = max(1.0, len(values) / 20) if column in ("loss", "gradient_norm") else 1.0
    if values.shape[1] > 1:
        ax.plot(seen, smooth(values.to_numpy(float), span), color=color, linewidth=0.5, alpha=0.3)
    middle = smooth(values.median(axis=1).to_numpy(float)[:, None], span)[:, 0]
    ax.plot(seen, middle, color=color, linestyle=dashes, linewidth=1.8, gid=SMOOTHED)


def _write_around(figure: Figure, title: str, note: str) -> None:
    """Title above and note below all charts: above the first alone there may be no room for them."""
    style: dict[str, Any] = dict(x=0.01, ha="left", color=SOFT, fontfamily=list(font_families()), parse_math=False)
    if text := label_text(title, 80):
        figure.suptitle(text, fontsize=12, **style)
    if text := label_text(note, 110):
        figure.supxlabel(text, fontsize=8.5, **style)


def _draw_pairs(ax: Axes, table: pd.DataFrame, pairs: Sequence[tuple[str, str]]) -> None:
    ticks: dict[float, str] = {}
    for index, pair in enumerate(pairs):
        places, names = (1.8 * index, 1.8 * index + 1), list(pair[::-1])
        ax.plot(places, table[names].to_numpy(float).T, ".-", color="#0072B2", linewidth=0.8, alpha=0.5)
        ax.plot(places, table[names].mean().to_numpy(float), "o-", color=INK, linewidth=2)
        ticks |= dict(zip(places, names, strict=True))
    ax.set_xticks(list(ticks), [fill(label_text(name, 40), 14) for name in ticks.values()], fontsize=9)
    ax.margins(x=0.2 / len(pairs))


def draw_study(
    rates: pd.DataFrame, differences: pd.DataFrame, *, title: str = "", note: str = "", margin: float = 0.03
) -> Figure:
    """A study at a glance: rates, the tested differences, and, where several moments were scored, the way there.

    Args:
        rates: as for `draw_rates` and `draw_budget`, with `final`.
        differences: as for `draw_differences`; no rows where nothing was compared.
        title, note: above the charts.
        margin: as for `draw_differences`.
    """
    last = rates.loc[rates["final"]]
    heights = [_row_inches(_row_labels(last, "variant"))]
    if len(differences):
        heights.append(_row_inches(_row_labels(differences, "label")))
    names = len(set(rates["variant"]))
    heights += [max(3.2, 1.4 + NAME_PITCH_INCHES * names)] * (len(last) < len(rates))
    figure = new_figure(7.6, sum(heights) + 0.3)
    axes = list(figure.subplots(len(heights), 1, height_ratios=heights, squeeze=False)[:, 0])
    draw_rates(last, title=title, note=note, ax=axes.pop(0))
    if len(differences):
        draw_differences(differences, margin=margin, ax=axes.pop(0))
    if axes:
        draw_budget(rates, ax=axes.pop(0))
    return figure


def _row_labels(table: pd.DataFrame, labels: str) -> list[str]:
    """The names of rows; long ones in two lines, those of contrasts before their second variant."""
    names = []
    for label in table[labels]:
        name = label_text(str(label), 2 * NAME_LETTERS)
        first, dash, second = name.partition(" – ")
        fits = dash and max(len(first), len(second) + 2) <= NAME_LETTERS < len(name)
        names.append(f"{first}\n– {second}" if fits else fill(name, NAME_LETTERS))
    return names


def _row_inches(labels: Sequence[str]) -> float:
    """Height of axes with a labelled line for each of these names."""
    return 0.95 + (0.35 if any("\n" in label for label in labels) else 0.27) * len(labels)


def _rows(table: pd.DataFrame, labels: str, ax: Axes | None) -> tuple[Figure, Axes]:
    """Axes with a labelled line for every row of a table."""
    if table.empty:
        raise ValueError("expected at least one row to draw, got none")
    names = _row_labels(table, labels)
    figure, ax = figure_and_axes(ax, width=7.6, height=_row_inches(names) + 0.3)
    ax.set_yticks(range(len(table)), names, fontsize=9)
    ax.set_ylim(len(table) - 0.4, -0.6)
    return figure, ax


def _dot_with_interval(ax: Axes, row: int, values: Any, color: str) -> None:
    blocks = values.blocks
    ax.plot(blocks, [row + 0.24] * len(blocks), "o", color=color, markersize=3.5, alpha=0.35, markeredgewidth=0)
    ax.plot([values.low, values.high], [row, row], color=color, linewidth=2.2, solid_capstyle="butt")
    ax.plot(values.value, row, "o", color=color, markersize=6)


def _finish_rows(ax: Axes, title: str, note: str) -> None:
    write_title(ax, title, note)
    finish(ax)
    ax.grid(axis="y", visible=False)
    ax.grid(axis="x", color=FAINT, linewidth=0.6)
    ax.tick_params(axis="y", length=0, labelcolor=INK)
