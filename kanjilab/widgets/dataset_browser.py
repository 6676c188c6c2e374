"""The dataset browser: filter an image folder by captions and dictionary facts, and look at single glyphs."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ipywidgets as widgets
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image

from kanjilab.data.dictionary import load_characters
from kanjilab.data.image_folder import Dataset, open_dataset
from kanjilab.data.radicals import radical_character
from kanjilab.data.rendering import default_font
from kanjilab.evaluation.judges.nearest_character import Neighbours
from kanjilab.models.loading import cache_folder
from kanjilab.viz.charts import draw_glyph_sheet
from kanjilab.widgets.common import (
    WRAP,
    CodeBox,
    Panel,
    escape,
    labelled,
    panel_box,
    picture_html,
    png_bytes,
    python_call,
)
from kanjilab.widgets.folder_input import FolderInput
from kanjilab.widgets.glyph_grid import NONE, GlyphGrid
from kanjilab.widgets.said import Said

PAGE_GLYPHS = 40
PAGE_COLUMNS = 8
SAME_SHOWN = 12
NEAREST = 8
GRADES = {  # of KANJIDIC; 1 to 6 are the years of primary school
    8: "taught in secondary school (jōyō)",
    9: "for names (jinmeiyō)",
    10: "for names (jinmeiyō), variant of a jōyō kanji",
}
THUMBNAIL_PX = 128
CHART_AFTER_SECONDS = 0.3  # a chart is slower to draw than a page of glyphs, so it waits for a pause in typing
MOST_STROKES = 99
ANY = "any"
BALANCE_BARS = 40


@dataclass(frozen=True)
class Filter:
    """Which glyphs to show. Each default lets every glyph pass.

    Args:
        text: words in the caption; upper and lower case are the same.
        radicals: any of these, such as ("水", "木").
        positions: of the radical, any of these, such as ("left",).
        splits: any of these, such as ("train",).
        strokes: fewest and most strokes.
    Raises:
        ValueError: fewest is greater than most.
    """

    text: str = ""
    radicals: tuple[str, ...] = ()
    positions: tuple[str, ...] = ()
    splits: tuple[str, ...] = ()
    strokes: tuple[int, int] = (0, MOST_STROKES)

    def __post_init__(self) -> None:
        if self.strokes[0] > self.strokes[1]:
            raise ValueError(f"strokes: expected fewest and most, got {self.strokes}")


def filter_table(table: pd.DataFrame, chosen: Filter) -> NDArray[np.intp]:
    """The rows that pass a filter.

    Args:
        table: of a `Dataset`.
        chosen: the filter.
    Returns:
        (N,) positions in the table, ascending.
    Raises:
        ValueError: a condition on a column that the table lacks; the message names it.
    """
    passed = np.ones(len(table), dtype=bool)
    for column, wanted in (("radical_character", chosen.radicals), ("position", chosen.positions)):
        if wanted:
            passed &= _column(table, column).isin(wanted).to_numpy()
    if chosen.splits:
        passed &= table["split"].isin(chosen.splits).to_numpy()
    if chosen.strokes != (0, MOST_STROKES):
        passed &= _column(table, "strokes").between(*chosen.strokes).to_numpy()
    if wanted := chosen.text.strip().casefold():
        passed &= np.fromiter((wanted in caption.casefold() for caption in table["text"]), bool, len(table))
    return np.flatnonzero(passed)


def _column(table: pd.DataFrame, name: str) -> Any:
    if name not in table:
        raise ValueError(f"expected a dataset with the column {name!r}, got only {', '.join(map(str, table.columns))}")
    return table[name]


def balance_table(table: pd.DataFrame, rows: NDArray[np.intp]) -> pd.DataFrame:
    """Number of glyphs of each radical among some rows, as `draw_radical_balance` takes them.

    Args:
        table: of a `Dataset`.
        rows: (N,) positions in it.
    Returns:
        The most frequent radicals in rows, columns "on the left" and "elsewhere"; of a dataset without radicals, its
        splits in rows and the column "glyphs".
    """
    some = table.iloc[rows]
    if "radical_character" not in table or "position" not in table:
        return some["split"].value_counts(sort=False).to_frame("glyphs")
    left = some["position"] == "left"
    counts: Any = pd.DataFrame({"on the left": left, "elsewhere": ~left}).groupby(some["radical_character"]).sum()
    return counts.loc[counts.sum(axis=1).nlargest(BALANCE_BARS).index]


def same_caption(table: pd.DataFrame, row: int) -> NDArray[np.intp]:
    """The other glyphs that have the same caption as this one, or nearly.

    Args:
        table: of a `Dataset`; its column `group`, where it has one, joins variants and characters that share their
            first meaning.
        row: position of the glyph.
    Returns:
        (N,) positions: of the same group, or without groups, of the same caption in any case.
    """
    groups = table["group"] if "group" in table else table["text"].str.casefold()
    same = (groups == groups.iloc[row]).to_numpy().copy()
    same[row] = False
    return np.flatnonzero(same)


def entry_facts(row: pd.Series, characters: pd.DataFrame) -> dict[str, str]:
    """What is known of one glyph.

    Args:
        row: of a dataset's table.
        characters: the dictionary, as from `load_characters`.
    Returns:
        name -> value, as text: of the dataset first, then of the dictionary, if it has the character.
    """
    facts = {"caption": str(row["text"]), "split": str(row["split"]), "file": str(row["file_name"])}
    character = str(row.get("character", ""))
    if character not in characters.index:
        return facts
    entry = characters.loc[character]
    facts |= {
        "meanings": "; ".join(entry["meanings"]) or "none left after cleaning",
        "in the dictionary": "; ".join(entry["meanings_raw"]),
        "readings": "、".join([*entry["readings_on"], *entry["readings_kun"]]),
        "radical": f"{radical_character(int(entry['radical']))} (no. {entry['radical']}), {row.get('position', '')}",
        "strokes": str(entry["strokes"]),
        "layout (SKIP)": str(entry["skip"] or ""),
        "grade": grade_name(entry["grade"]),
        "rank by frequency": _number(entry["frequency"]),
        "variants": " ".join(entry["variants"]),
    }
    return {name: value.strip(" ,") for name, value in facts.items() if value.strip(" ,")}


def grade_name(grade: Any) -> str:
    """What a grade of KANJIDIC means; "" for a character without one.

    Args:
        grade: 1 to 6, 8, 9, 10, or missing.
    """
    if pd.isna(grade):
        return ""
    return GRADES.get(int(grade), f"taught in year {int(grade)} of primary school (jōyō)")


def balance_html(table: pd.DataFrame) -> str:
    """Bars of `balance_table` that fit any width, in the theme's colours; "" for an empty table."""
    if not len(table):
        return ""
    totals, most = table.sum(axis=1), float(table.sum(axis=1).max())
    keys = "".join(f'<span class="key{place}">■</span> {escape(name)} ' for place, name in enumerate(table.columns))
    bars = []
    for (name, counts), total in zip(table.iterrows(), totals, strict=True):
        parts = "".join(
            f'<i class="part{place}" style="width:{100 * count / most:.1f}%"></i>' for place, count in enumerate(counts)
        )
        said = ", ".join(f"{count:,} {column}" for column, count in counts.items())
        bars.append(
            f'<li title="{escape(said)}"><b lang="ja">{escape(name)}</b><span class="share">{parts}</span>'
            f"<span>{total:,}</span></li>"
        )
    return f'<h2>Radicals of the glyphs that pass the filter</h2><p>{keys}</p><ul class="bars">{"".join(bars)}</ul>'


def _number(value: Any) -> str:
    return "" if pd.isna(value) else str(int(value))


def pages(count: int) -> int:
    """Number of pages that so many glyphs fill, at least one."""
    return max(1, -(-count // PAGE_GLYPHS))


def small_png(image: NDArray[np.uint8]) -> bytes:
    """A glyph as PNG of at most 128 px.

    Args:
        image: (H, W) uint8.
    """
    picture = Image.fromarray(image)
    picture.thumbnail((THUMBNAIL_PX, THUMBNAIL_PX), Image.Resampling.LANCZOS)
    return png_bytes(picture)


class DatasetBrowser(Panel):
    """Filter a dataset, page through its glyphs, and select one to see its entry, neighbours and caption group.

    Args:
        dataset: of `build_dataset` or `open_dataset`, or its folder.
        chosen: the first filter.
        page: the first page, from 1.
        selected: file name of the first selected glyph; "" for the first glyph.
    Attributes:
        opening: the input of another folder, which replaces the shown one if it is sound.
        filter: the present filter.
        rows: (N,) positions in the dataset's table of the glyphs that pass it.
        selected: position in that table of the selected glyph.
    Raises:
        DatasetError: the folder holds no dataset.
        ValueError: no such glyph, or a filter on a column that this dataset lacks.
    """

    def __init__(
        self, dataset: Dataset | Path | str, chosen: Filter | None = None, *, page: int = 1, selected: str = ""
    ):
        self._characters = load_characters()
        self._timer: threading.Timer | None = None
        self.opening, self._body = FolderInput(lambda opened: self._show(opened, None, 1, "")), widgets.VBox()
        self.widget = panel_box([self.opening.widget, self._body])
        self._show(dataset if isinstance(dataset, Dataset) else open_dataset(dataset), chosen, page, selected)

    def _show(self, dataset: Dataset, chosen: Filter | None, page: int, selected: str) -> None:
        self.dataset, self._table = dataset, dataset.table
        self._pictures: dict[int, bytes] = {}
        self._neighbours: Neighbours | None = None
        self.filter = chosen or Filter()
        self.rows = filter_table(self._table, self.filter)
        self._page = min(max(1, page), pages(len(self.rows)))
        self.selected = self._row_of(selected) if selected else (int(self.rows[0]) if len(self.rows) else 0)
        self.opening.path.value = str(dataset.folder)
        self._make_inputs()
        self._make_layout()
        self._show_page()
        self._show_entry()
        self._draw_chart()

    @property
    def code(self) -> str:
        """The call that builds a browser which shows the same."""
        options: dict[str, Any] = {} if self._page == 1 else {"page": self._page}
        name = str(self._table["file_name"].iloc[self.selected])
        return python_call("DatasetBrowser", self.dataset.folder, self.filter, **options, selected=name)

    def picture(self) -> Figure:
        """This page of glyphs with their captions, for readers without a kernel."""
        shown = self._on_page()
        if not len(shown):
            raise ValueError("no glyph passes the filter, so there is nothing to draw")
        captions = [str(text).split(";")[0] for text in self._table["text"].iloc[shown]]
        return draw_glyph_sheet(self.dataset.images(shown), captions, columns=PAGE_COLUMNS, title=self._tally())

    def _row_of(self, file_name: str) -> int:
        found = np.flatnonzero((self._table["file_name"] == file_name).to_numpy())
        if not len(found):
            raise ValueError(f"expected a file of this dataset, got {file_name!r}")
        return int(found[0])

    def _on_page(self) -> NDArray[np.intp]:
        first = (self._page - 1) * PAGE_GLYPHS
        return self.rows[first : first + PAGE_GLYPHS]

    def _tally(self) -> str:
        return f"{len(self.rows):,} of {len(self._table):,} glyphs, page {self._page:,} of {pages(len(self.rows)):,}"

    def _make_inputs(self) -> None:
        chosen, has = self.filter, self._table.columns
        self.text = widgets.Text(value=chosen.text, continuous_update=True, layout={"width": "19em"})
        labelled(self.text, "Caption contains")
        known = list(dict.fromkeys(self._table["radical_character"])) if "radical_character" in has else []
        known += [name for name in chosen.radicals if name not in known]
        self.radicals = widgets.SelectMultiple(options=known, value=chosen.radicals, rows=4, layout={"width": "9em"})
        labelled(self.radicals, "Radical")
        self.position = self._choice("Radical is", "position", chosen.positions)
        self.split = self._choice("Split", "split", chosen.splits)
        bounds = {"min": 0, "max": MOST_STROKES}
        self.fewest = widgets.BoundedIntText(value=chosen.strokes[0], layout={"width": "14em"}, **bounds)
        self.most = widgets.BoundedIntText(value=chosen.strokes[1], layout={"width": "9em"}, **bounds)
        labelled(self.fewest, "Strokes, at least")
        labelled(self.most, "at most")
        for widget, column in ((self.radicals, "radical_character"), (self.fewest, "strokes"), (self.most, "strokes")):
            widget.disabled = column not in has
        self._inputs = (self.text, self.radicals, self.position, self.split, self.fewest, self.most)
        for widget in self._inputs:
            widget.observe(lambda _: self._refilter(), "value")

    def _choice(self, label: str, column: str, wanted: tuple[str, ...]) -> widgets.Dropdown:
        """A drop-down of a column's values; several values, which only code can give, are one more option."""
        known = sorted(map(str, set(self._table[column]))) if column in self._table else []
        options = [(ANY, ()), *((name, (name,)) for name in known)]
        if wanted not in [value for _, value in options]:
            options.append((" or ".join(wanted), wanted))
        box = widgets.Dropdown(options=options, value=wanted, disabled=not known, layout={"width": "16em"})
        labelled(box, label)
        return box

    def _make_layout(self) -> None:
        self.status = Said()
        self.previous, self.next = widgets.Button(description="Previous page"), widgets.Button(description="Next page")
        self.clear = widgets.Button(description="Clear filters")
        self.previous.on_click(lambda _: self._turn(-1))
        self.next.on_click(lambda _: self._turn(1))
        self.clear.on_click(lambda _: self._clear())
        self.grid = GlyphGrid("Glyphs", columns=PAGE_COLUMNS, empty="No glyph passes the filter.")
        self.same = GlyphGrid("Same caption, first meaning or variant", columns=6, cell_px=48, empty="None.")
        self.nearest = GlyphGrid("Most similar in shape, by distance (0 is the same)", columns=4, cell_px=64, empty="")
        self.seek = widgets.Button(description="Find similar glyphs", layout={"width": "16em"})
        self.seek.on_click(lambda _: self._find_nearest())
        self.seek.disabled = "character" not in self._table
        self.entry, self.chart, self.box = widgets.HTML(), widgets.HTML(), CodeBox(label="This view as code")
        for grid in (self.grid, self.same, self.nearest):
            grid.observe(lambda _, grid=grid: self._choose(grid), "selected")
        wrap, column = WRAP | {"align_items": "flex-start"}, {"flex": "1 1 20em", "min_width": "16em"}
        filters = widgets.HBox([*self._inputs, self.clear], layout=wrap)
        turning = widgets.HBox([self.previous, self.next, self.status], layout=WRAP)
        entry = widgets.VBox([self.entry, self.same, self.seek, self.nearest], layout=column)
        glyphs = widgets.VBox([turning, self.grid], layout={"flex": "2 1 42em", "min_width": "16em"})
        self._body.children = [filters, widgets.HBox([glyphs, entry], layout=wrap), self.chart, self.box]

    def _refilter(self) -> None:
        if self._filling:
            return
        strokes = (self.fewest.value, max(self.fewest.value, self.most.value))
        radicals, positions, splits = (tuple(box.value or ()) for box in (self.radicals, self.position, self.split))
        self.filter = Filter(self.text.value, radicals, positions, splits, strokes)
        self.rows, self._page = filter_table(self._table, self.filter), 1
        if not len(self.rows) or self.selected not in self.rows or not self.entry.value:
            self.selected = int(self.rows[0]) if len(self.rows) else self.selected
            self._show_entry()
        self._show_page()
        if self._timer is not None:
            self._timer.cancel()
        self._timer = threading.Timer(CHART_AFTER_SECONDS, self._draw_chart)
        self._timer.daemon = True
        self._timer.start()

    def _clear(self) -> None:
        with self._changing_inputs():
            self.text.value, self.radicals.value, self.position.value, self.split.value = "", (), (), ()
            self.fewest.value, self.most.value = 0, MOST_STROKES
        self._refilter()

    def _turn(self, pages_on: int) -> None:
        self._page = min(max(1, self._page + pages_on), pages(len(self.rows)))
        self._show_page()

    def _choose(self, grid: GlyphGrid) -> None:
        if grid.choice is None or self._filling:
            return
        rows = {id(self.grid): self._on_page(), id(self.same): self._same_rows, id(self.nearest): self._nearest_rows}
        self.selected = int(rows[id(grid)][grid.choice])
        self._show_entry()
        with self._changing_inputs():
            self.grid.selected = self._place_of_selected(self._on_page())
        self.box.code = self.code

    def _show_page(self) -> None:
        shown = self._on_page()
        self._fill(self.grid, shown, [str(text).split(";")[0] for text in self._table["text"].iloc[shown]])
        self.box.code = self.code
        self.status.value = self._tally()
        self.previous.disabled = self._page == 1
        self.next.disabled = self._page == pages(len(self.rows))

    def _place_of_selected(self, rows: NDArray[np.intp]) -> int:
        at = np.flatnonzero(rows == self.selected)
        return int(at[0]) if len(at) else NONE

    def _fill(self, grid: GlyphGrid, rows: NDArray[np.intp], captions: Sequence[str]) -> None:
        names = [self._name(row) for row in rows]
        with self._changing_inputs():
            grid.fill(self._thumbnails(rows), captions, names, self._place_of_selected(rows))

    def _name(self, row: int) -> str:
        text, character = self._table["text"].iloc[row], self._table.get("character")
        return str(text) if character is None else f"{character.iloc[row]}: {text}"

    def _thumbnails(self, rows: NDArray[np.intp]) -> list[bytes]:
        missing = [int(row) for row in rows if row not in self._pictures]
        for row, image in zip(missing, self.dataset.images(missing) if missing else [], strict=True):
            self._pictures[row] = small_png(image)
        return [self._pictures[int(row)] for row in rows]

    def _show_entry(self) -> None:
        """Describe the selected glyph; nothing where none passes the filter."""
        if not len(self.rows):
            self.entry.value, self._same_rows, self._nearest_rows = "", self.rows, self.rows
            self._fill(self.same, self.rows, [])
            return self._fill(self.nearest, self.rows, [])
        facts = entry_facts(self._table.iloc[self.selected], self._characters)
        lines = "".join(
            f'<tr><th scope="row">{escape(name)}</th><td lang="ja">{escape(value)}</td></tr>'
            for name, value in facts.items()
        )
        large = picture_html(png_bytes(self.dataset.images([self.selected])[0]), self._name(self.selected), "128px")
        self.entry.value = f'{large}<table class="facts">{lines}</table>'
        self._same_rows = same_caption(self._table, self.selected)[:SAME_SHOWN]
        self._fill(self.same, self._same_rows, list(map(str, self._table["split"].iloc[self._same_rows])))
        self._nearest_rows = np.zeros(0, dtype=np.intp)
        self._fill(self.nearest, self._nearest_rows, [])
        if self._neighbours is not None:
            self._find_nearest()

    def _find_nearest(self) -> None:
        """Show the glyphs of the dataset that look most like the selected one; the first time takes some seconds."""
        if self._neighbours is None:
            self.seek.disabled, self.seek.description = True, "Measuring all glyphs, once …"
            threading.Thread(target=self._fit_neighbours, args=(self._table, self.seek), daemon=True).start()
            return
        image = self.dataset.images([self.selected])
        names = self._neighbours.characters
        order, distances = self._neighbours.nearest(image, min(NEAREST + 1, len(names)))
        first_row = dict(zip(reversed(list(self._table["character"])), reversed(range(len(self._table))), strict=True))
        own = self._table["character"].iloc[self.selected]
        found = [(names[i], d) for i, d in zip(order[0], distances[0], strict=True) if names[i] != own][:NEAREST]
        self._nearest_rows = np.array([first_row[name] for name, _ in found], dtype=np.intp)
        self._fill(self.nearest, self._nearest_rows, [f"{distance:.2f}" for _, distance in found])

    def _fit_neighbours(self, table: pd.DataFrame, seek: widgets.Button) -> None:
        """Measure the glyphs of a dataset, whose button was pressed; it may no longer be the shown one afterwards."""
        names = [str(name) for name in dict.fromkeys(table["character"])]
        try:
            neighbours = Neighbours.load_or_fit(cache_folder() / "judges", names, default_font())
        except ValueError as error:
            seek.description = "No comparison possible"
            seek.tooltip = str(error)
            return
        if table is not self._table:
            return
        self._neighbours = neighbours
        seek.layout.display = "none"
        self._find_nearest()

    def _draw_chart(self) -> None:
        self.chart.value = balance_html(balance_table(self._table, self.rows))
