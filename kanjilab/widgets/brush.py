"""The brush panel: draw a skeleton, or type a character, and see it written in several styles at once."""

from __future__ import annotations

import hashlib
import tempfile
import threading
import time
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import ipywidgets as widgets
import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor

from kanjilab.core.images import SIZE_PX
from kanjilab.core.storage import write_bytes_atomic
from kanjilab.data.calligraphy import STYLES
from kanjilab.data.handwriting import read_skeleton
from kanjilab.evaluation.scoring import glyphs_of
from kanjilab.experiments.writing import TRACING, WRITING, known_index, symbols_of, typed_skeleton, write
from kanjilab.export.page import places_of
from kanjilab.models.diffusion import LatentDiffusion
from kanjilab.models.loading import PACKAGED
from kanjilab.models.sampling import Sampling
from kanjilab.viz.charts import draw_glyph_sheet
from kanjilab.widgets.brush_board import BYTES_MOST, BrushBoard, skeleton_png
from kanjilab.widgets.brush_output import Tile, code_of, figure_html, page_html
from kanjilab.widgets.common import (
    WRAP,
    CodeBox,
    chip,
    folded,
    labelled,
    panel_box,
    picture_html,
    png_bytes,
    progress_html,
    python_call,
    stop_button,
    wide,
)
from kanjilab.widgets.draw_panel import DrawPanel, Job
from kanjilab.widgets.generation import Models, Request
from kanjilab.widgets.glyph_grid import GlyphGrid
from kanjilab.widgets.range_slider import RangeSlider
from kanjilab.widgets.said import Said
from kanjilab.widgets.worker import Worker

BASE = "calligraphy"
EXAMPLES = ("永", "龍", "⿰水鳥", "あ", "한", "A")
CAPTIONS = tuple(style.caption for style in STYLES)
CHECKED = ("kouzan-regular", "zhi-mang-xing", "liu-jian-mao-cao", "yuji")  # of any four, they differ most in pixels
LINE = "春夏秋冬"
GLYPHS_MOST, PUBLIC_MOST = 200, 12  # of a page
SEED_MOST = 2**31 - 1
FRAME_EVERY_SECONDS = 0.25
SYMBOLS_READ = 100  # of what is typed
KEPT_MOST = 64  # glyphs that need not be written again
BLANK = np.full((SIZE_PX, SIZE_PX), 255, np.uint8)


class BrushPanel(DrawPanel):
    """Draw a skeleton with mouse, pen or touch, or type a character; it is written in several styles, live.

    Writing runs in a thread, so the kernel stays free; what is drawn next ends it.

    Args:
        base: writes: a name, a folder, or a loaded base; one that reads skeletons.
        text: a character, or a pair such as ⿰水鳥, whose skeleton is there at first; "" for an empty square.
        styles: captions to choose from.
        checked: those that are written at first; by default those that differ most.
        device: where to load the base.
        folder: keeps drawn skeletons that copied code refers to.
        models: where loaded models are kept.
        lock: over models.
        queue: file that processes of a public page wait for; None for a page that is not public.
    """

    def __init__(
        self,
        base: LatentDiffusion | str | Path = BASE,
        text: str = EXAMPLES[0],
        *,
        styles: Sequence[str] = CAPTIONS,
        checked: Sequence[str] = tuple(style.caption for style in STYLES if style.name in CHECKED),
        device: str = "cpu",
        folder: Path | str = "brush",
        models: Models | None = None,
        lock: threading.Lock | None = None,
        queue: Path | None = None,
    ):
        self._base = base.name if isinstance(base, LatentDiffusion) else str(base)
        usual = "bf16" if self._base in PACKAGED else "fp32"  # as `Models` loads it
        self._precision = base.precision if isinstance(base, LatentDiffusion) else usual
        self._models = models or Models(*([base] if isinstance(base, LatentDiffusion) else []), device=device)
        self._lock, self._queue, self._folder = lock or threading.Lock(), queue, Path(folder)
        self._styles, self._first = tuple(styles), text
        self._typed: dict[bytes, str] = {}  # what a picture below the strokes was typed as
        self._written: dict[Any, NDArray[np.uint8]] = {}
        self._images: list[NDArray[np.uint8]] = []  # as they are shown, finished or not
        self._tiles: tuple[Tile, ...] = ()
        self._finished = False
        self._usual = WRITING  # what the sliders are at, unless they were moved
        self._make_inputs(checked)
        self._make_outputs()
        self._make_layout()
        self._watch()
        self._show_code()

    def _make_inputs(self, checked: Sequence[str]) -> None:
        self.board = BrushBoard(self._seen, self._open)
        self.text = wide(labelled(widgets.Text(placeholder="永 or ⿰水鳥, then Enter"), "Character"))
        self.examples = [chip(text) for text in EXAMPLES]
        auto = {"width": "auto"}
        self.checks = [
            labelled(widgets.Checkbox(style in checked, indent=False, layout=auto), style) for style in self._styles
        ]
        self.guidance = RangeSlider("Style guidance", WRITING.guidance, 1, 4, 0.25)
        self.skeleton_guidance = RangeSlider("Skeleton guidance", WRITING.array_guidance or 1, 0, 8, 0.25)
        box: Any = widgets.BoundedIntText(0, min=0, max=SEED_MOST, layout={"width": "9em"})
        self.seed = labelled(box, "Seed")
        ends = [widgets.Dropdown(options=self._styles, index=index) for index in (0, min(1, len(self._styles) - 1))]
        self.start_style, self.end_style = wide(labelled(ends[0], "From")), wide(labelled(ends[1], "to"))
        self.share = RangeSlider("Between two hands", 0, 0, 100, 5, "%")
        self.line = wide(labelled(widgets.Text(LINE), "Line"))
        self.vertical = labelled(widgets.Checkbox(False, indent=False, layout=auto), "vertical")

    def _make_outputs(self) -> None:
        self.button = widgets.Button(description="Write the page", tooltip="The line, in the chosen style")
        self.stop_button = stop_button()
        self.status, self.progress = Said(), widgets.HTML()
        self.row = GlyphGrid("Written", columns=len(self._styles) + 1, cell_px=128, empty="")
        self.large, self.page = widgets.HTML(), widgets.HTML()
        self.large.add_class("kanjilab-large")
        self.page.add_class("kanjilab-page")
        self.box = CodeBox(label="These glyphs as code")

    def _make_layout(self) -> None:
        styles = widgets.Box(self.checks)
        styles.add_class("kanjilab-styles")
        state = widgets.HBox([self.status, self.progress, self.stop_button], layout=WRAP)
        state.add_class("kanjilab-state")
        both = widgets.HBox([self.board, self.large, styles, self.row, state])
        both.add_class("kanjilab-drawn-written")
        rows = [[self.text, widgets.Label("Try"), *self.examples], [both]]
        rows += [[self.guidance, self.skeleton_guidance, self.seed]]
        rows += [[self.share, self.start_style, self.end_style], [self.line, self.vertical, self.button], [self.page]]
        shown: list[widgets.Widget] = [widgets.HBox(row, layout=WRAP) for row in rows]
        self.box.layout.width = "100%"
        self.widget = panel_box(shown + ([] if self._queue else [folded("As code", [[self.box]])]))

    def _watch(self) -> None:
        self.board.observe(lambda _: self.start(), "drawing")
        inputs = (self.guidance, self.skeleton_guidance, self.seed, self.share, self.start_style, self.end_style)
        for widget in (*self.checks, *inputs):
            widget.observe(lambda _: None if self._filling else self.start(), "value")
        self.row.observe(lambda _: self._choose(), "selected")
        self.text.on_msg(lambda _, content, __: self.type_character() if content.get("event") == "submit" else None)
        self.line.on_msg(lambda _, content, __: self.start_page() if content.get("event") == "submit" else None)
        for button in self.examples:
            button.on_click(lambda chosen: (setattr(self.text, "value", chosen.description), self.type_character()))
        self.button.on_click(lambda _: self.start_page())
        self.stop_button.on_click(lambda _: self.stop())
        self.box.observe(lambda _: self.save_skeleton(), "copies")

    @property
    def tiles(self) -> tuple[Tile, ...]:
        """What is to be written: the checked styles, and what is between two of them."""
        chosen = tuple(Tile(style) for style, box in zip(self._styles, self.checks, strict=True) if box.value)
        if (share := self.share.checked / 100) and self.start_style.value != self.end_style.value:
            chosen += (Tile(str(self.start_style.value), str(self.end_style.value), share),)
        return chosen

    @property
    def sampling(self) -> Sampling:
        """How it is written, by the sliders."""
        return replace(self._usual, guidance=self.guidance.checked, array_guidance=self.skeleton_guidance.checked)

    @property
    def _moved(self) -> bool:
        """Whether somebody moved the skeleton's slider."""
        return self.skeleton_guidance.checked != self._usual.array_guidance

    def _set_usual(self, usual: Sampling) -> None:
        """Move the skeleton's slider to what is usual now, unless somebody moved it from what was."""
        moved, self._usual = self._moved, usual
        if not moved:
            with self._changing_inputs():
                self.skeleton_guidance.value = usual.array_guidance or 1

    @property
    def chosen(self) -> Tile | None:
        """The tile that is shown large, whose style the page is written in; None where there is none."""
        place = self.row.choice
        return None if place is None or place >= len(self._tiles) else self._tiles[place]

    @property
    def code(self) -> str:
        """The calls that write the same glyphs; the panel itself while nothing is drawn; "" on a public page."""
        if self._queue:
            return ""
        if not self.board.strokes and not self.board.under:
            return python_call("BrushPanel", *([] if self._base == BASE else [self._base]))
        led_by = self._typed_symbol or self._skeleton_path
        return code_of(self._base, self._precision, led_by, self.tiles, self.seed.value, self.sampling)

    @property
    def _typed_symbol(self) -> str | None:
        """What was typed, where nothing was drawn over it."""
        return None if self.board.strokes else self._typed.get(self.board.under)

    @property
    def _skeleton_path(self) -> Path:
        digest = hashlib.sha256(self.board.lines.tobytes()).hexdigest()
        return self._folder / f"skeleton-{digest[:8]}.png"

    def save_skeleton(self) -> None:
        """Write the drawn skeleton to where copied code reads it; what was typed needs no file."""
        if self._queue or self._typed_symbol:
            return
        self._skeleton_path.parent.mkdir(parents=True, exist_ok=True)
        write_bytes_atomic(self._skeleton_path, skeleton_png(self.board.lines))

    def picture(self) -> Figure:
        """The skeleton, and the latest glyphs."""
        if not self._images:
            raise ValueError("nothing is written yet; call draw()")
        skeleton = np.where(self.board.lines, 0, 255).astype(np.uint8)
        captions = ["skeleton", *(tile.caption for tile in self._tiles)]
        return draw_glyph_sheet(np.stack([skeleton, *self._images]), captions, columns=5)

    def draw(self) -> None:
        """Write what is drawn, and wait for the end.

        Raises:
            Exception: the one that ended the work.
        """
        self._wait()

    def start(self) -> None:
        """Start to write what is drawn, in a thread; what is being written is given up."""
        self._begin(self._job)

    def start_page(self) -> None:
        """Start to write the line in the chosen style."""
        self._begin(self._page_job)

    def type_character(self) -> None:
        """Put the skeleton of what is typed onto the square."""
        self._begin(lambda: self._type_job(self.text.value))

    def _seen(self) -> None:
        """The panel is on the screen: load, and write the example."""
        if self._first and self._worker is None:
            self._begin(lambda: self._type_job(self._first, example=True))

    def _show_working(self, working: bool) -> None:
        self.stop_button.disabled = not working

    def _say_failed(self, error: Exception) -> None:
        if isinstance(error, ValueError):  # about what was typed or opened
            self._say(str(error))
        else:
            super()._say_failed(error)

    def _type_job(self, text: str, example: bool = False) -> Job:
        symbols = symbols_of(unicodedata.normalize("NFC", text.strip())[:SYMBOLS_READ])
        if len(symbols) != 1:
            raise ValueError(f"type one character, or a pair such as ⿰水鳥; got {len(symbols)}")

        def job(worker: Worker) -> None:
            lines = typed_skeleton(symbols[0])
            self._typed[skeleton_png(lines)] = symbols[0]
            self._put(worker, lines, symbols[0], example)

        return job

    def _open(self, name: str, content: bytes) -> None:
        """Put the lines of a picture file onto the square."""

        def job(worker: Worker) -> None:
            if len(content) > BYTES_MOST:
                raise ValueError(f"{name} has more than 8 MB: make the picture smaller")
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder, "this picture")
                path.write_bytes(content)
                lines = read_skeleton(path)
            self._put(worker, lines, name[:40])

        self._begin(lambda: job)

    def _put(self, worker: Worker, lines: NDArray[np.bool_], of: str, example: bool = False) -> None:
        """Put a job's lines onto the square, unless something was drawn since it began."""
        with self._beginning:
            worker.check()
            self.board.put(lines, of, example)

    def _job(self) -> Job:
        lines, symbol = self.board.lines, self._typed_symbol
        self._set_usual(TRACING if lines.any() and not symbol else WRITING)
        self._show_code()
        tiles, sampling, seed = self.tiles, self.sampling, self.seed.value
        keys = [(tile, symbol, lines.tobytes(), seed, sampling) for tile in tiles]

        def job(worker: Worker) -> None:
            worker.check()
            if not lines.any() or not tiles:
                self._show((), [])
                return self._say("Check a style." if lines.any() else "Draw a stroke, or type a character.")
            base, start = self._loaded(), time.perf_counter()
            self._say(f"Writing {_glyphs(len(tiles))} …")
            shown = dict(zip(self._tiles, self._images, strict=True))
            images = [self._written.get(key, shown.get(key[0], BLANK)) for key in keys]
            new = [place for place, key in enumerate(keys) if key not in self._written]
            if new:
                led: Any = {"index": known_index(base, symbol), "typed": lines} if symbol else {"skeleton": lines}
                prompts = [tiles[place].prompt(base, **led) for place in new]
                hook = self._forming(base, tiles, images, new, worker)
                written = write(base, prompts, seed, sampling, on_latents=hook)
                for place, image in zip(new, glyphs_of(written[None]), strict=True):
                    self._written[keys[place]] = images[place] = image
            self._show(tiles, images, finished=True)
            self._say(f"{_glyphs(len(tiles))} in {time.perf_counter() - start:.1f} s.")
            for key in list(self._written)[:-KEPT_MOST]:
                del self._written[key]

        return job

    def _loaded(self) -> LatentDiffusion:
        if self._models.loaded(self._base) is None:
            self._say(f"Loading {self._base} …")
        return self._models.load(Request("-", base=self._base))[0]

    def _forming(
        self,
        base: LatentDiffusion,
        tiles: tuple[Tile, ...],
        images: list[NDArray[np.uint8]],
        places: Sequence[int],
        worker: Worker,
    ) -> Callable[[Tensor], None]:
        """A function, to be called after each step, that shows the images of these places as they form.

        The first third of the steps is left out: it is all noise.
        """
        shown, done = 0.0, 0
        steps = self.sampling.steps

        def on_latents(latents: Tensor) -> None:
            nonlocal shown, done
            worker.check()
            done += 1
            if not steps <= 3 * done < 3 * steps or time.monotonic() - shown < FRAME_EVERY_SECONDS:
                return
            for place, image in zip(places, glyphs_of(base.decode(latents)[None]), strict=True):
                images[place] = image
            self._show(tiles, images)
            shown = time.monotonic()
            self.progress.value = progress_html(done, steps, "Steps")

        return on_latents

    def _show(self, tiles: tuple[Tile, ...], images: Sequence[NDArray[np.uint8]], finished: bool = False) -> None:
        self._tiles, self._images, self._finished = tiles, list(images), finished
        place = min(max(self.row.selected, 0), len(tiles) - 1)  # -1 without any
        with self._changing_inputs():
            self.row.fill([png_bytes(image) for image in images], [tile.caption for tile in tiles], selected=place)
        self._enlarge()

    def _choose(self) -> None:
        if not self._filling:
            self._enlarge()

    def _enlarge(self) -> None:
        """Show the chosen tile large; once it is finished as an outline, with files to save."""
        tile, place = self.chosen, self.row.selected
        if tile is None:
            self.large.value = ""
        elif self._finished:
            of = self.board.of or "drawn"
            self.large.value = page_html(np.stack(self._images[place : place + 1]), [(0, 0)], of, tile.caption)
        else:
            picture = picture_html(png_bytes(self._images[place]), tile.caption, "256px")
            self.large.value = figure_html(picture, tile.caption)

    def _page_job(self) -> Job:
        lines = [symbols_of(line) for line in unicodedata.normalize("NFC", self.line.value).split()]
        count, most = sum(map(len, lines)), PUBLIC_MOST if self._queue else GLYPHS_MOST
        if not 1 <= count <= most:
            raise ValueError(f"Line: expected 1 to {most} characters, got {count}")
        title, seed, sampling = self.line.value, self.seed.value, self.sampling
        if not self._moved:  # what is typed here is not what leads the square
            sampling = replace(sampling, array_guidance=WRITING.array_guidance)
        tile, places = (
            self.chosen or Tile(self._styles[0]),
            places_of([len(line) for line in lines], self.vertical.value),
        )

        def job(worker: Worker) -> None:
            def on_progress(done: int, total: int) -> None:
                worker.check()
                self.progress.value = progress_html(done, total, "Characters")

            symbols = [symbol for line in lines for symbol in line]
            typed = [typed_skeleton(symbol) for symbol in symbols]
            base = self._loaded()
            self._say(f"Writing {_glyphs(count)} …")
            led_by = zip(symbols, typed, strict=True)
            prompts = [tile.prompt(base, index=known_index(base, symbol), typed=one) for symbol, one in led_by]
            images = glyphs_of(write(base, prompts, seed, sampling, on_progress=on_progress)[None])
            self.page.value = page_html(images, places, title, tile.caption)
            self._say(f"{_glyphs(count)}, {tile.caption}.")

        return job

    def _show_code(self) -> None:
        try:
            self.box.code = self.code
        except ValueError:
            self.box.code = ""


def _glyphs(count: int) -> str:
    return f"{count} glyph{'s' if count > 1 else ''}"
