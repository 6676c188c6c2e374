"""The playground's page that coins kanji: glyphs as they are drawn, then ranked, each with its certificate."""

from __future__ import annotations

import contextlib
import io
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from math import inf
from pathlib import Path
from typing import Any

import ipywidgets as widgets
import numpy as np
from PIL import Image

from kanjilab.core.outside_files import read_json_object
from kanjilab.core.storage import write_json_atomic
from kanjilab.data.components import load_components
from kanjilab.data.japanese import is_understood, script_note
from kanjilab.data.typeset import SLOTS_OF_LAYOUT
from kanjilab.evaluation.criteria import CRITERIA
from kanjilab.evaluation.judges.framing import Images
from kanjilab.experiments.coined_sheet import draw_coined
from kanjilab.experiments.coining import KEEP, NOISES, WRITER, Coinage, Coined, coin
from kanjilab.experiments.phrase_readings import (
    LAYOUTS_BY_NAME,
    PAIRS_SUGGESTED,
    Reading,
    layouts_named,
    readings_of_parts,
)
from kanjilab.models.loading import cache_folder
from kanjilab.models.sampling import Sampling
from kanjilab.widgets.certificate_cards import CoinCards, chosen_html
from kanjilab.widgets.common import (
    WRAP,
    CodeBox,
    chip,
    escape,
    folded,
    labelled,
    panel_box,
    png_bytes,
    progress_html,
    python_call,
    stop_button,
    wide,
)
from kanjilab.widgets.draw_panel import DrawPanel, Job
from kanjilab.widgets.generation import Models, Request
from kanjilab.widgets.glyph_grid import GlyphGrid
from kanjilab.widgets.said import Said
from kanjilab.widgets.saved_glyphs import Kept
from kanjilab.widgets.worker import Worker

EXAMPLES = ("queen of dragons", "robot", "river of stars", "iron bird", "火の玉")
ANY_LAYOUT = "any"
CHARACTERS_MOST = 100  # of a phrase
NOISES_MOST, KEEP_MOST, SEED_MOST = 16, 16, 2**31 - 32
PACE_FILE = "coin_pace.json"


@dataclass(frozen=True)
class Pace:
    """How long coining takes here.

    Attributes:
        start: seconds to load the writer and read the phrase, the first time in a kernel.
        candidate: seconds a candidate, drawn and judged.
        measured: whether on this machine.
    """

    start: float = 8.0  # these two on one quiet core of an AMD EPYC
    candidate: float = 0.6
    measured: bool = False

    @classmethod
    def load(cls) -> Pace:
        """What was measured here last, or else the usual."""
        try:
            stored = read_json_object(cache_folder() / PACE_FILE)
            start, candidate = float(stored["start"]), float(stored["candidate"])
        except (OSError, ValueError, LookupError, TypeError):
            return cls()
        return cls(start, candidate, True) if 0 <= start < inf and 0 < candidate < inf else cls()

    def save(self) -> None:
        """Keep it for the next panel."""
        cache_folder().mkdir(parents=True, exist_ok=True)
        write_json_atomic(cache_folder() / PACE_FILE, {"start": self.start, "candidate": self.candidate})


class CoinPage(DrawPanel):
    """Coin kanji for a phrase, and read their certificates. Works in a thread, so the kernel stays free.

    Args:
        phrase: at first; nothing is drawn yet.
        parts: two of them to draw, such as "woman+bird"; "" for those that the words suggest.
        noises: candidates of each reading.
        keep: glyphs to show, at most.
        coinage: shown at first, if there is one.
        models: where loaded models are kept.
        lock: over models and figures.
        queue: file that processes of a public page wait for; None for a page that is not public.
        on_keep: called with a glyph that is to be kept; None for no such button.
    Attributes:
        coinage: what is shown, or None.
    """

    def __init__(
        self,
        phrase: str = EXAMPLES[0],
        parts: str = "",
        *,
        noises: int = NOISES,
        keep: int = KEEP,
        coinage: Coinage | None = None,
        models: Models | None = None,
        lock: threading.Lock | None = None,
        queue: Path | None = None,
        on_keep: Callable[[Kept], None] | None = None,
    ):
        self._models, self._lock, self._queue = models or Models(), lock or threading.Lock(), queue
        self._on_keep, self._pace, self._is_loaded = on_keep, Pace.load(), False
        self.coinage: Coinage | None = None
        self._make_inputs(phrase, parts, noises, keep)
        self._make_outputs()
        self._make_layout()
        self._show_cost()
        if coinage is not None:
            self.show(coinage)

    def _make_inputs(self, phrase: str, parts: str, noises: int, keep: int) -> None:
        self.phrase = wide(labelled(widgets.Text(phrase), "Phrase"))
        hint = "such as woman + dragon"
        self.parts = wide(labelled(widgets.Text(parts, placeholder=hint), "Parts (optional)"))
        options = [ANY_LAYOUT, *LAYOUTS_BY_NAME]
        self.layout = labelled(widgets.Dropdown(options=options, layout={"width": "14em"}), "Layout")
        self.noises = self._number("Noises a reading", noises, 1, NOISES_MOST)
        self.keep = self._number("Glyphs to keep", keep, 1, KEEP_MOST)
        self.seed = self._number("First seed", 0, 0, SEED_MOST)
        for widget in (self.phrase, self.parts, self.layout, self.noises, self.keep, self.seed):
            widget.observe(lambda _: self._show_cost(), "value")
        for widget in (self.phrase, self.parts):
            widget.on_msg(lambda _, content, __: self.start() if content.get("event") == "submit" else None)
        self.examples = [chip(text) for text in EXAMPLES]
        for button in self.examples:
            button.on_click(lambda chosen: setattr(self.phrase, "value", chosen.description))

    def _number(self, label: str, value: int, least: int, most: int) -> Any:
        width = f"{0.6 * len(label) + 6:g}em"
        return labelled(widgets.BoundedIntText(value, min=least, max=most, layout={"width": width}), label)

    def _make_outputs(self) -> None:
        self.button = widgets.Button(description="Coin", button_style="primary")
        self.stop_button = stop_button()
        self.button.on_click(lambda _: self.start())
        self.stop_button.on_click(lambda _: self.stop())
        self.cost, self.status, self.progress = widgets.HTML(), Said(), widgets.HTML()
        self.cards = CoinCards("Coined, best first")
        self.cards.observe(lambda _: self._show_choice(), "selected")
        self.certificate = widgets.HTML(layout={"max_width": "100%"})
        self.certificate.add_class("kanjilab-certificate")
        self.keep_button = widgets.Button(description="Keep this glyph", layout={"display": "none"})
        self.keep_button.on_click(lambda _: self.keep_choice())
        self.drawn = GlyphGrid("Candidates, as they are drawn", columns=16, cell_px=48, empty="")
        self.box = CodeBox(label="This phrase as code")

    def _make_layout(self) -> None:
        rows = [[self.phrase, self.parts], [widgets.Label("Try:"), *self.examples]]
        rows.append([self.button, self.stop_button, self.cost])
        advanced = folded("Advanced", [[self.layout, self.noises, self.keep, self.seed]])
        shown: list[widgets.Widget] = [*(widgets.HBox(row, layout=WRAP) for row in rows), advanced]
        shown += [widgets.HBox([self.status, self.progress], layout=WRAP), self.cards, self.certificate]
        shown += [self.keep_button] if self._on_keep else []
        shown += [self.drawn] + ([] if self._queue else [self.box])
        self.widget = panel_box(shown)

    @property
    def options(self) -> dict[str, Any]:
        """What the inputs ask of `coin`, besides the phrase.

        Raises:
            ValueError: an input is out of bounds.
        """
        if not self.phrase.value.strip():
            raise ValueError("type a phrase first")
        for text in (self.phrase.value, self.parts.value):
            if len(text) > CHARACTERS_MOST:
                raise ValueError(f"at most {CHARACTERS_MOST} characters, got {len(text)}")
        asked = {"noises": self.noises.value, "keep": self.keep.value, "seed": self.seed.value}
        for (name, value), most in zip(asked.items(), (NOISES_MOST, KEEP_MOST, SEED_MOST), strict=True):
            if not value <= most:  # a page may send any number
                raise ValueError(f"{name}: at most {most:,}, got {value:,}")
        named = str(self.layout.value)
        return {"parts": self.parts.value, "layouts": layouts_named(named) if named != ANY_LAYOUT else (), **asked}

    @property
    def candidates(self) -> int:
        """How many will be drawn, at most."""
        return self.noises.value * (2 if self.parts.value.strip() else 1 + PAIRS_SUGGESTED)

    @property
    def code(self) -> str:
        """The call that coins the same glyphs; "" on a public page."""
        if self._queue:
            return ""
        usual = {"parts": "", "layouts": (), "noises": NOISES, "keep": KEEP, "seed": 0}
        given = {name: value for name, value in self.options.items() if value != usual[name]}
        return python_call("kanjilab.coin", self.phrase.value, **given)

    def picture(self) -> Image.Image:
        """The glyphs with their parts in boxes."""
        if self.coinage is None:
            raise ValueError("nothing is coined yet; call coin()")
        figure = draw_coined(self.coinage.glyphs, title=f"{self.coinage.phrase}: what judge B reads")
        return Image.open(io.BytesIO(png_bytes(figure)))

    def _show_cost(self) -> None:
        pace, count = self._pace, self.candidates
        seconds = (0 if self._is_loaded else pace.start) + count * pace.candidate
        where = "measured here" if pace.measured else "as on one quiet core; not measured here yet"
        text = f"about {seconds:.0f} s: up to {count} candidates at {pace.candidate:.1f} s ({where})"
        self.cost.value = f"<span>{escape(text)}</span>"
        try:
            self.box.code = self.code
        except ValueError:
            self.box.code = ""

    def _job(self) -> Job:
        phrase, options = self.phrase.value, self.options

        def job(worker: Worker) -> None:
            self._show_nothing()
            self.show(self._coined(phrase, options, worker))

        return job

    def stop(self) -> None:
        """Stop after the present reading."""
        super().stop()
        if self._worker is not None:
            self._say("Stopping after this reading …")

    def coin(self) -> Coinage:
        """Coin, and wait for the end.

        Raises:
            Exception: the one that ended the work.
        """
        self._wait()
        if self.coinage is None:
            raise ValueError("stopped before anything was coined")
        return self.coinage

    def _say_failed(self, error: Exception) -> None:
        if isinstance(error, ValueError):  # about what was typed
            self._say(str(error))
        else:
            super()._say_failed(error)

    def _coined(self, phrase: str, options: dict[str, Any], worker: Worker) -> Coinage:
        self._say("Reading the phrase …")
        layouts = options["layouts"] or tuple(SLOTS_OF_LAYOUT)
        if not is_understood(phrase):  # what cannot be read is refused before the writer is loaded
            raise ValueError(f"{phrase!r:.80} cannot be read: {script_note(phrase)}")
        if options["parts"].strip():
            readings_of_parts(options["parts"], load_components(), layouts)
        pictures: list[bytes] = []
        captions: list[str] = []
        names: list[str] = []
        clock = [time.perf_counter()]  # of the start, and of each reading that is done

        def on_drawn(reading: Reading, images: Images) -> None:
            pictures.extend(png_bytes(image) for image in images)
            captions.extend("+".join(reading.parts) or "phrase" for _ in images)
            names.extend(reading.prompt for _ in images)
            self.drawn.fill(pictures, captions, names)

        def on_progress(done: int, total: int) -> None:
            worker.check()
            clock.append(time.perf_counter())
            self._say("Drawing …" if done < total else "Judge A ranks, judge B reports …")
            self.progress.value = progress_html(done, total, "Readings")

        self._say("Loading the writer …")
        writer, _ = self._models.load(Request(phrase, base=WRITER))
        options = options | {"parts": options["parts"].strip(), "layouts": layouts}
        coinage = coin(phrase, writer=writer, on_drawn=on_drawn, on_progress=on_progress, **options)
        self._measure(clock, coinage.candidates)
        return coinage

    def _measure(self, clock: list[float], candidates: int) -> None:
        """Note what this took, for the cost that is stated next time."""
        start = self._pace.start if self._is_loaded else clock[1] - clock[0]
        self._pace = Pace(start, (time.perf_counter() - clock[1]) / candidates, True)
        self._is_loaded = True
        with contextlib.suppress(OSError):  # a pace is never worth what was coined
            self._pace.save()
        self._show_cost()

    def _show_nothing(self) -> None:
        self.coinage = None
        self.drawn.fill([], [])
        self.cards.fill([])
        self.certificate.value, self.keep_button.layout.display = "", "none"

    def show(self, coinage: Coinage) -> None:
        """Show what was coined, the best glyph chosen."""
        self.coinage = coinage
        self.cards.fill(coinage.glyphs)
        translated = f"In the dictionary's words: {coinage.translation}." if coinage.translation else ""
        self._say(" ".join(filter(None, [script_note(coinage.phrase), translated, coinage.summary])))

    @property
    def chosen(self) -> Coined | None:
        """The glyph whose certificate is shown, or None."""
        place = self.cards.choice
        return None if self.coinage is None or place is None else self.coinage.glyphs[place]

    def _show_choice(self) -> None:
        if (one := self.chosen) is not None:
            self.certificate.value = chosen_html(self.cards.selected + 1, one)
            self.keep_button.disabled, self.keep_button.layout.display = False, None

    def keep_choice(self) -> None:
        """Put the chosen glyph among those that are kept."""
        if self._on_keep is not None and (one := self.chosen) is not None:
            self._on_keep(kept_coined(one))
            self.keep_button.disabled = True
            self._say("Kept below; Save gallery writes it to the folder." if not self._queue else "Kept below.")


def kept_coined(one: Coined) -> Kept:
    """A coined glyph as one of the playground's history; its request draws it again."""
    certificate = one.certificate
    names = {"sampler", "steps", "guidance", "negative_prompt", "prefix"}
    sampling = Sampling(**{name: value for name, value in certificate.sampling.items() if name in names})
    request = Request(
        certificate.prompt, (certificate.seed,), sampling, base=certificate.writer or WRITER, parts=certificate.asked
    )
    report = certificate.report
    met = len(CRITERIA) - len(report.lacking)
    verdict = f"Coined for “{certificate.phrase}”: {certificate.novelty}; {met} of {len(CRITERIA)} criteria by judge B."
    return Kept(request, np.asarray(one.image), verdict, certificate)
