"""The playground: type a prompt, watch glyphs form, and read what the judges see in them."""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ipywidgets as widgets
import numpy as np
from PIL import Image
from torch import Tensor

from kanjilab.core.run_folder import RunFolder
from kanjilab.core.storage import cache_folder
from kanjilab.data.dictionary import load_characters
from kanjilab.evaluation.judges.part_judge import load_judge
from kanjilab.evaluation.scoring import glyphs_of
from kanjilab.experiments.coining import WRITER, Coined
from kanjilab.models.diffusion import FlowDiffusion, LatentDiffusion, UNetDiffusion
from kanjilab.models.loading import PACKAGED
from kanjilab.models.sampling import SAMPLERS, Sampling
from kanjilab.widgets.brush import BrushPanel
from kanjilab.widgets.certificate_cards import chosen_html
from kanjilab.widgets.coin_page import CoinPage
from kanjilab.widgets.common import (
    WRAP,
    CodeBox,
    chip,
    folded,
    labelled,
    panel_box,
    picture_html,
    place_in,
    png_bytes,
    progress_html,
    python_call,
    stop_button,
    wide,
)
from kanjilab.widgets.draw_panel import DrawPanel, Job
from kanjilab.widgets.generation import (
    BASE_ALONE,
    FRAMES_SHOWN,
    PUBLIC,
    REPORTER,
    WRITER_ALONE,
    Glyphs,
    Limits,
    Models,
    Request,
    about_model,
    checkpoint_choices,
    draw_glyphs,
    run_choices,
)
from kanjilab.widgets.glyph_grid import NONE, GlyphGrid
from kanjilab.widgets.prompt_words import prompt_note, token_count
from kanjilab.widgets.said import Said
from kanjilab.widgets.saved_glyphs import Kept, kept_glyph, load_history, save_history
from kanjilab.widgets.share_link import ShareLink, query_of, request_of_query
from kanjilab.widgets.verdict import advice, caption_of, describe, made_of, verdict_html
from kanjilab.widgets.worker import Worker

SEED_MOST = 2**31
RANDOM_SEEDS = 1_000_000  # short enough to be read out
HISTORY_MOST = 24  # glyphs that the panel keeps; the oldest are dropped
FRAME_EVERY_SECONDS = 0.25
GLYPHS = 8
EXAMPLES = ("fish king", "iron tree", "water castle", "fire person", "dragon")
WRITER_EXAMPLES = ("river", "dragon", "water + bird", "woman + eye", "top: bamboo, bottom: eye")
LOCK = "playground.lock"  # in the cache of the user who serves the page: no other one can hold it


class Playground(DrawPanel):
    """Draw a prompt with a trained run, choose among several glyphs, and keep a gallery of them; or coin a kanji.

    Drawing runs in a thread, so the kernel stays free. Without a trained run the base itself draws. Judge A orders the
    glyphs; all that is said of them is what judge B reads. Other pages coin (`CoinPage`) and write (`BrushPanel`).

    Args:
        runs: folder with trained runs, at any depth; None for the base alone.
        request: fills the inputs at first; it is not drawn yet.
        base: draws where no run is chosen: a name, a folder, or a loaded base.
        device: where to load models.
        public: for a public page: bounded requests, one drawing at a time on this machine, no code, no paths, no
            saving.
        history: folder to save glyphs in.
        query: of a shared link (see `share_link`), which is drawn at once; "" for none.
    Attributes:
        glyphs: the latest drawing, or None.
        coining, brush: the further pages.
        history: the glyphs that are kept, the latest last.
    Raises:
        RunError: the settings of a run cannot be read.
    """

    def __init__(
        self,
        runs: Path | str | None,
        request: Request | None = None,
        *,
        base: LatentDiffusion | str | Path = WRITER,
        device: str = "cpu",
        public: bool = False,
        history: Path | str = "playground",
        query: str = "",
    ):
        self._runs = None if runs is None else Path(runs)
        self._public, self._limits = public, PUBLIC if public else Limits()
        self._base = base.name if isinstance(base, LatentDiffusion) else str(base)
        self._models = Models(*([base] if isinstance(base, LatentDiffusion) else []), device=device)
        self._choices = run_choices(self._runs, WRITER_ALONE if self._base == WRITER else BASE_ALONE)
        if public:  # hashes name the arms of a study
            self._choices = [choice for choice in self._choices if "/packs/" not in choice[0]]
        self.glyphs: Glyphs | None = None
        self._order: list[int] = []
        self.history: list[Kept] = []
        self._lock = threading.Lock()  # over models and figures: one glyph is drawn or explained at a time
        self._make_inputs()
        self._make_outputs()
        self._queue = cache_folder() / LOCK if public else None
        shared: Any = dict(models=self._models, lock=self._lock, queue=self._queue)
        self.coining, self.brush = CoinPage(**shared, on_keep=self._keep), BrushPanel(**shared)
        if not public:
            self._make_saving(Path(history))
        self._make_layout()
        run, arm = self._drawn_by
        usual = Request(self._example_texts[0], seeds=tuple(range(GLYPHS)), base=self._base, run=run, arm=arm)
        self._set_inputs(request or usual)
        self._show_code()
        if query:
            self._open_link(query)

    @property
    def request(self) -> Request:
        """The request that the inputs describe.

        Raises:
            ValueError: an input is out of bounds; the message names it.
        """
        run, arm = self._drawn_by
        step = None if run is None else self._steps[place_in(self.checkpoint, len(self._steps))]
        boxes: Any = (self.sampler, self.steps, self.guidance, self.negative, self.prefix)
        sampling = Sampling(*(box.value for box in boxes))
        count = min(int(self.count.value), self._limits.glyphs + 1)  # a public page may send any number
        seeds = tuple(range(int(self.seed.value), int(self.seed.value) + count))
        parts = tuple(dict.fromkeys(sign for sign in self.parts.value if not sign.isspace()))
        return self._limits.check(Request(self.prompt.value, seeds, sampling, run, self._base, arm, step, parts))

    @property
    def _drawn_by(self) -> tuple[Path | None, int]:
        return self._choices[place_in(self.model, len(self._choices))][1] or (None, 0)

    @property
    def _base_name(self) -> str:
        run, _ = self._drawn_by
        return self._base if run is None else str(RunFolder.open(run).settings["base"])

    @property
    def _example_texts(self) -> tuple[str, ...]:
        return WRITER_EXAMPLES if self._base_name == WRITER else EXAMPLES

    @property
    def code(self) -> str:
        """The call that draws the same glyphs, as a picture; "" on a public page."""
        if self._public:
            return ""
        request = self.glyphs.request if self.glyphs else self.request
        return f"{python_call('draw_glyphs', request)}.picture()"

    def picture(self) -> Image.Image:
        """The latest glyphs, explained; see `Glyphs.picture`."""
        if self.glyphs is None:
            raise ValueError("nothing is drawn yet; call draw()")
        return self.glyphs.picture()

    def _make_inputs(self) -> None:
        most = self._limits
        self.prompt = wide(labelled(widgets.Text(continuous_update=True), "Prompt"))
        self.model = labelled(widgets.Dropdown(options=[label for label, _ in self._choices]), "Model")
        self.checkpoint = labelled(widgets.Dropdown(), "Checkpoint")
        self.sampler = labelled(widgets.Dropdown(options=SAMPLERS), "Sampler")
        self.steps = self._number("Steps", 1, most.steps)
        self.guidance = self._number("Guidance", 1.0, most.guidance)
        self.seed = self._number("First seed", 0, SEED_MOST - most.glyphs)
        self.count = self._number("Glyphs to draw", 1, most.glyphs)
        self.prefix = labelled(widgets.Text(placeholder="words before the prompt"), "Style")
        self.negative = labelled(widgets.Text(placeholder="words to avoid"), "Negative prompt")
        self.parts = labelled(widgets.Text(placeholder="those that the prompt names"), "Expected parts")
        self.examples = widgets.HBox(layout=WRAP)
        self.random_button = widgets.Button(description="Other noises", tooltip="Draw again from a random first seed")
        self.random_button.on_click(lambda _: self.draw_others())
        self._fill_checkpoints()
        self.model.observe(lambda _: self._fill_checkpoints(), "index")
        self.prompt.observe(lambda _: self._note_prompt(), "value")
        inputs = (self.prompt, self.model, self.checkpoint, self.sampler, self.steps, self.guidance)
        for widget in (*inputs, self.seed, self.count, self.prefix, self.negative, self.parts):
            widget.observe(lambda _: self._show_code(), "value")
        self.prompt.on_msg(lambda _, content, __: self.start() if content.get("event") == "submit" else None)

    def _set_inputs(self, request: Request) -> None:
        sampling, owned = request.sampling, [choice for _, choice in self._choices]
        wanted = None if request.run is None else (request.run, request.arm)
        with self._changing_inputs():
            if wanted in owned:
                self.model.index = owned.index(wanted)
            if request.step in (None, *self._steps):  # None means the last, which is the first of them
                self.checkpoint.index = 0 if request.step is None else self._steps.index(request.step)
            self.prompt.value, self.parts.value = request.prompt, "".join(request.parts)
            if sampling.sampler in self.sampler.options:
                self.sampler.value = sampling.sampler
            self.steps.value, self.guidance.value = sampling.steps, sampling.guidance
            self.seed.value, self.count.value = request.seeds[0], len(request.seeds)
            self.prefix.value, self.negative.value = sampling.prefix, sampling.negative_prompt

    def _asks_as(self, request: Request) -> bool:
        """Whether the inputs select the same model, seeds and sampling as a request."""
        asked, names = self.request, ("run", "arm", "base", "seeds", "sampling")
        same = all(getattr(asked, name) == getattr(request, name) for name in names)
        return same and asked.step == (self._steps[0] if request.step is None else request.step)

    def _number(self, label: str, least: float, most: float) -> Any:
        kind = widgets.BoundedFloatText if isinstance(least, float) else widgets.BoundedIntText
        return labelled(kind(min=least, max=most, layout={"width": f"{0.6 * len(label) + 6:g}em"}), label)

    def _fill_checkpoints(self) -> None:
        run, arm = self._drawn_by
        choices = checkpoint_choices(run, arm)
        self._steps = [value for _, value in choices]
        self.checkpoint.options = [label for label, _ in choices]
        self.checkpoint.index = 0
        self.checkpoint.disabled = run is None
        family = RunFolder.open(run).settings.get("family", "unet") if run else None  # older runs do not say
        kinds = [kind for kind in (UNetDiffusion, FlowDiffusion) if family in (kind.family, None)]
        fitting = tuple(name for kind in kinds for name in kind.samplers)
        if fitting != self.sampler.options:
            self.sampler.options = fitting
        self._show_examples()

    def _make_outputs(self) -> None:
        self.button = widgets.Button(description="Draw", button_style="primary")
        self.stop_button = stop_button()
        self.button.on_click(lambda _: self.start())
        self.stop_button.on_click(lambda _: self.stop())
        self.note, self.status, self.progress = Said(soft=True), Said(), widgets.HTML()
        self.about = Said(about_model(self._base) if len(self._choices) == 1 else "", soft=True)
        self.candidates = GlyphGrid("Glyphs, best first", columns=GLYPHS, cell_px=80, empty="Nothing is drawn yet.")
        self.forming = GlyphGrid("How it formed, step by step", columns=FRAMES_SHOWN, cell_px=64, empty="")
        self.verdict = widgets.HTML()
        self.verdict.add_class("kanjilab-certificate")
        self.past = GlyphGrid("Gallery", columns=12, cell_px=64, empty="The best glyph of each drawing is kept here.")
        self.candidates.observe(lambda _: self._explain_choice(), "selected")
        self.forming.observe(lambda _: self._enlarge(), "selected")
        self.past.observe(lambda _: self._recall(), "selected")
        self.enlarged = widgets.HTML()
        self.box, self.link = CodeBox(label="These glyphs as code"), ShareLink()

    def _make_saving(self, history: Path) -> None:
        """Not on a public page, which can reach every widget, shown or not."""
        self.folder = labelled(widgets.Text(value=str(history)), "Folder")
        self.save_button = widgets.Button(description="Save gallery")
        self.load_button = widgets.Button(description="Load gallery")
        self.save_button.on_click(lambda _: self._try(self.save))
        self.load_button.on_click(lambda _: self._try(self.load))

    def _make_layout(self) -> None:
        rows = [[self.prompt, self.button, self.random_button, self.stop_button], [self.examples]]
        rows.append([self.status, self.progress])
        settings = [[self.model, self.checkpoint, self.count, self.seed], [self.guidance, self.steps, self.sampler]]
        self.box.layout.width = "100%"
        state = [] if self._public else [[self.box]]
        advanced = folded("Advanced", [*settings, [self.prefix, self.negative, self.parts], *state])
        shown = [*(widgets.HBox(row, layout=WRAP) for row in rows[:2]), self.about, self.note]
        shown += [widgets.HBox(rows[2], layout=WRAP), self.candidates, self.verdict]
        formed = widgets.HBox([self.forming, self.enlarged], layout={"flex_flow": "row wrap"})
        shown += [formed, *([self.link] if self._public else []), advanced]
        shown_pages = [widgets.VBox(shown), self.coining.widget, self.brush.widget]
        pages = widgets.Tab(shown_pages, titles=("Draw", "Coin a kanji", "Brush"))
        below: list[widgets.Widget] = [pages, self.past]
        if not self._public:
            below.append(widgets.HBox([self.folder, self.save_button, self.load_button], layout=WRAP))
        self.widget = panel_box(below)

    def _open_link(self, query: str) -> None:
        """Draw what a shared link asks for, or say what is wrong with it."""
        before = self.request
        try:
            asked = self._limits.check(request_of_query(query, self._choices, before))
        except ValueError as error:
            return self._say(f"This link cannot be opened: {error}")
        self._set_inputs(asked)
        if self._asks_as(asked):
            return self.start()
        self._set_inputs(before)
        self._say("This link cannot be opened: its seed, checkpoint or sampler is not to be had here")

    def _show_examples(self) -> None:
        buttons = [chip(text) for text in self._example_texts]
        for button in buttons:
            button.on_click(lambda chosen: (setattr(self.prompt, "value", chosen.description), self.start()))
        self.examples.children = [widgets.Label("Try"), *buttons]

    def draw_others(self) -> None:
        """Draw the same prompt from a random first seed."""
        self.seed.value = secrets.randbelow(RANDOM_SEEDS)
        self.start()

    def _note_prompt(self) -> None:
        """Say, from a thread, how long the prompt is, and which of its words are unknown."""
        if not self._filling:
            Worker(Path("playground"), self._show_note).start()

    def _show_note(self, _: Worker) -> None:
        name, prompt = self._base_name, self.prompt.value
        packaged = name in PACKAGED
        base = self._models.loaded(name)
        if base is None and packaged and prompt.strip():  # others may be large: they are loaded when they draw
            with self._lock:
                base = self._models.load(self.request)[0]
        text = prompt_note(prompt, token_count(prompt, base) if base else None, packaged)
        if prompt == self.prompt.value:  # else a later one is being read
            self.note.value = text

    def draw(self) -> None:
        """Draw, and wait for the end.

        Raises:
            Exception: the one that ended the drawing.
        """
        self._wait()

    def _job(self) -> Job:
        request = self.request

        def job(worker: Worker) -> None:
            self._show_nothing()
            self._say(f"Loading {self._base} …")
            base, _ = self._models.load(request)
            self._note_prompt()
            self._say("Drawing …")
            glyphs = draw_glyphs(request, self._models, self._step_display(base, request, worker))
            self.progress.value = ""
            self._show_glyphs(glyphs)

        return job

    def _step_display(self, base: LatentDiffusion, request: Request, worker: Worker) -> Callable[[Tensor], None]:
        """A function, to be called after each step, that shows the glyphs as they form, and the progress."""
        shown, done = 0.0, 0  # when they were shown last, and steps

        def on_step(latents: Tensor) -> None:
            nonlocal shown, done
            worker.check()
            done += 1
            if time.monotonic() - shown < FRAME_EVERY_SECONDS:
                return
            pictures = [png_bytes(image) for image in glyphs_of(base.decode(latents)[None])]
            self._fill(self.candidates, pictures, [f"seed {seed}" for seed in request.seeds])
            shown = time.monotonic()
            self.progress.value = progress_html(done, request.sampling.steps, "Steps")

        return on_step

    def _show_nothing(self) -> None:
        self.glyphs = None
        self._fill(self.candidates, [], [])
        self._fill(self.forming, [], [])
        self.verdict.value = self.enlarged.value = ""

    def _show_glyphs(self, glyphs: Glyphs) -> None:
        self.glyphs = glyphs
        self._order = [int(index) for index in np.argsort(glyphs.ranking["order"])]
        seeds, readings = glyphs.request.seeds, glyphs.readings
        captions = [caption_of(readings.iloc[index]) for index in self._order]
        names = [f"Seed {seeds[index]}. {self._sentence(glyphs, index)}" for index in self._order]
        pictures = [png_bytes(glyphs.images[index]) for index in self._order]
        self._fill(self.candidates, pictures, captions, names, selected=0)
        self._show_one(glyphs.best)
        self._keep(kept_glyph(glyphs, glyphs.best, self._sentence(glyphs, glyphs.best)))
        self._show_code()
        later = glyphs.request.step is not None and glyphs.request.step != self._steps[0]
        self._say(advice(readings, glyphs.expected, glyphs.request.base == WRITER and not glyphs.request.run, later))

    def _sentence(self, glyphs: Glyphs, index: int) -> str:
        return describe(glyphs.readings.iloc[index], load_characters(), REPORTER, glyphs.expected)

    def _keep(self, kept: Kept) -> None:
        self.history = [*self.history, kept][-HISTORY_MOST:]
        self._show_history()

    def _explain_choice(self) -> None:
        if self._filling or (place := self.candidates.choice) is None:
            return

        def job(_: Worker) -> None:
            with self._lock:
                if self.glyphs is not None and self.candidates.choice == place:  # else others have been chosen since
                    self._show_one(self._order[place])

        Worker(Path("playground"), job).start()

    def _show_one(self, index: int) -> None:
        """Explain one of the glyphs, and show how it formed."""
        glyphs = self.glyphs
        assert glyphs is not None
        frames, steps = glyphs.forming(index)
        labels = [f"step {step}" for step in steps]
        self._fill(self.forming, [png_bytes(frame) for frame in frames], labels, selected=len(labels) - 1)
        self._enlarge()
        self._explain(kept_glyph(glyphs, index, self._sentence(glyphs, index)))

    def _explain(self, kept: Kept) -> None:
        """Show the certificate of a glyph."""
        if kept.certificate is not None:
            self.verdict.value = chosen_html(1, Coined(kept.image, kept.certificate))
        else:
            made = made_of(kept.request, self._label_of(kept.request))
            self.verdict.value = verdict_html(load_judge(REPORTER), kept.image, kept.verdict, made)

    def _label_of(self, request: Request) -> str:
        wanted = None if request.run is None else (request.run, request.arm)
        return next((label for label, owned in self._choices if owned == wanted), "a run that is not here")

    def _enlarge(self) -> None:
        """Show the chosen step large."""
        place = self.forming.choice
        if place is None or place == len(self.forming.pictures) - 1:  # the last is the glyph, shown large already
            self.enlarged.value = ""
        else:
            self.enlarged.value = picture_html(self.forming.pictures[place], self.forming.names[place], "192px")

    def save(self) -> None:
        """Add the history to that in the folder which the panel names.

        Raises:
            PermissionError: on a public page.
            ValueError: a damaged history is there.
        """
        self._refuse_public()
        save_history(self.history, Path(self.folder.value))
        self._say(f"{len(self.history)} glyphs saved in {self.folder.value}")

    def load(self) -> None:
        """Read the history from the folder that the panel names.

        Raises:
            PermissionError: on a public page.
            ValueError: no history there, or a damaged one.
        """
        self._refuse_public()
        self.history = load_history(Path(self.folder.value))[-HISTORY_MOST:]
        self._show_history()
        self._say(f"{len(self.history)} glyphs loaded from {self.folder.value}")

    def _refuse_public(self) -> None:
        if self._public:
            raise PermissionError("a public playground neither saves nor loads a history")

    def _show_history(self) -> None:
        latest = self.history[::-1]
        names = [f"{one.request.prompt}, seed {one.request.seeds[0]}. {one.verdict}" for one in latest]
        self._fill(self.past, [png_bytes(one.image) for one in latest], [one.request.prompt for one in latest], names)

    def _recall(self) -> None:
        """Fill the inputs with the request of a glyph of the history, and explain the glyph again."""
        if self._filling or (place := self.past.choice) is None:
            return
        kept = self.history[::-1][place]
        self._set_inputs(kept.request)
        same = self._asks_as(kept.request)
        hint = "Draw draws it again" if same else "the model that drew it is not among the choices here"

        def job(_: Worker) -> None:
            with self._lock:
                self._show_nothing()
                self._explain(kept)
                self._say(f"From the gallery; {hint}.")

        Worker(Path("playground"), job).start()

    def _fill(self, grid: GlyphGrid, *content: Any, selected: int = NONE) -> None:
        with self._changing_inputs():
            grid.fill(*content, selected=selected)

    def _show_code(self) -> None:
        try:
            self.box.code = self.code
            self.link.query = query_of(self.request, self._label_of(self.request))
        except ValueError:
            self.box.code = self.link.query = ""

    def _try(self, action: Callable[[], None]) -> None:
        try:
            action()
        except (OSError, ValueError) as error:
            self._say_failed(error)
