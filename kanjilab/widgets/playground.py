"""The playground: type a prompt, watch glyphs form, and read what the judges see in them."""

from __future__ import annotations

import tempfile
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
from kanjilab.data.dictionary import load_characters
from kanjilab.evaluation.judges.explanation import explain
from kanjilab.evaluation.judges.nearest_character import Neighbours
from kanjilab.evaluation.judges.part_judge import load_judge
from kanjilab.evaluation.scoring import glyphs_of
from kanjilab.experiments.coining import WRITER
from kanjilab.models.diffusion import FlowDiffusion, LatentDiffusion, UNetDiffusion
from kanjilab.models.loading import cache_folder
from kanjilab.models.sampling import SAMPLERS, Sampling
from kanjilab.widgets.coin_page import CoinPage
from kanjilab.widgets.common import (
    WRAP,
    CodeBox,
    escape,
    labelled,
    picture_html,
    png_bytes,
    progress_html,
    python_call,
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
    checkpoint_choices,
    describe,
    draw_glyphs,
    glosses,
    placing,
    run_choices,
    short_caption,
)
from kanjilab.widgets.glyph_grid import NONE, GlyphGrid
from kanjilab.widgets.saved_glyphs import Kept, kept_glyph, load_history, save_history
from kanjilab.widgets.worker import Worker

NEIGHBOURS_LOCK = threading.Lock()  # so that the panels of one kernel fit the neighbours once
SEED_MOST = 2**31
HISTORY_MOST = 24  # glyphs that the panel keeps; the oldest are dropped
FRAME_EVERY_SECONDS = 0.25
NEAREST = 5
LOCK = Path(tempfile.gettempdir()) / "kanjilab-playground.lock"


class Playground(DrawPanel):
    """Draw a prompt with a trained run, choose among several glyphs, and save a history of them; or coin a kanji.

    Drawing runs in a thread, so the kernel stays free. Without a trained run the base itself draws. A page of its own
    coins kanji for a phrase, see `CoinPage`.

    Args:
        runs: folder with trained runs, at any depth; None for the base alone.
        request: fills the inputs at first; it is not drawn yet.
        base: draws where no run is chosen: a name, a folder, or a loaded base.
        device: where to load models.
        public: for a public page: bounded requests, one drawing at a time on this machine, no code, no paths, no
            saving.
        history: folder to save glyphs in.
    Attributes:
        glyphs: the latest drawing, or None.
        coining: the page that coins.
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
    ):
        self._runs = None if runs is None else Path(runs)
        self._public, self._limits = public, PUBLIC if public else Limits()
        self._base = base.name if isinstance(base, LatentDiffusion) else str(base)
        self._models = Models(*([base] if isinstance(base, LatentDiffusion) else []), device=device)
        self._choices = run_choices(self._runs, WRITER_ALONE if self._base == WRITER else BASE_ALONE)
        if public:  # hashes name the arms of a study
            self._choices = [choice for choice in self._choices if "/packs/" not in choice[0]]
        self._neighbours: Neighbours | None = None
        self.glyphs: Glyphs | None = None
        self._explained: tuple[np.ndarray, str] | None = None  # a glyph and its prompt
        self._order: list[int] = []
        self.history: list[Kept] = []
        self._verdict = ""  # on the explained glyph
        self._lock = threading.Lock()  # over models and figures: one glyph is drawn or explained at a time
        self._make_inputs()
        self._make_outputs()
        self._queue = LOCK if public else None
        self.coining = CoinPage(models=self._models, lock=self._lock, queue=self._queue, on_keep=self._keep)
        if not public:
            self._make_saving(Path(history))
        self._make_layout()
        run, arm = self._drawn_by
        self._set_inputs(request or Request("fish king", seeds=(0, 1, 2, 3), run=run, arm=arm))
        self._show_code()

    @property
    def request(self) -> Request:
        """The request that the inputs describe.

        Raises:
            ValueError: an input is out of bounds; the message names it.
        """
        run, arm = self._drawn_by
        step = None if run is None else self._steps[min(self.checkpoint.index or 0, len(self._steps) - 1)]
        boxes: Any = (self.sampler, self.steps, self.guidance, self.negative, self.prefix)
        sampling = Sampling(*(box.value for box in boxes))
        count = min(int(self.count.value), self._limits.glyphs + 1)  # a public page may send any number
        seeds = tuple(range(int(self.seed.value), int(self.seed.value) + count))
        parts = tuple(dict.fromkeys(sign for sign in self.parts.value if not sign.isspace()))
        return self._limits.check(Request(self.prompt.value, seeds, sampling, run, self._base, arm, step, parts))

    @property
    def _drawn_by(self) -> tuple[Path | None, int]:
        index: Any = self.model.index
        return self._choices[index or 0][1] or (None, 0)

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
        self.prompt = labelled(widgets.Text(layout={"width": "24em"}), "Prompt")
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
        self._fill_checkpoints()
        self.model.observe(lambda _: self._fill_checkpoints(), "index")
        inputs = (self.prompt, self.model, self.checkpoint, self.sampler, self.steps, self.guidance)
        for widget in (*inputs, self.seed, self.count, self.prefix, self.negative, self.parts):
            widget.observe(lambda _: self._show_code(), "value")
        self.prompt.on_msg(lambda _, content, __: self.start() if content.get("event") == "submit" else None)

    def _set_inputs(self, request: Request) -> None:
        sampling = request.sampling
        wanted = None if request.run is None else (request.run, request.arm)
        owned = [choice for _, choice in self._choices]
        if wanted in owned:
            self.model.index = owned.index(wanted)
        if request.step in self._steps:
            self.checkpoint.index = self._steps.index(request.step)
        self.prompt.value, self.parts.value = request.prompt, "".join(request.parts)
        if sampling.sampler in self.sampler.options:
            self.sampler.value = sampling.sampler
        self.steps.value, self.guidance.value = sampling.steps, sampling.guidance
        self.seed.value, self.count.value = request.seeds[0], len(request.seeds)
        self.prefix.value, self.negative.value = sampling.prefix, sampling.negative_prompt

    def _asks_as(self, request: Request) -> bool:
        """Whether the inputs select the same model and sampling as a request."""
        names = ("run", "arm", "step", "base", "sampling")
        return all(getattr(self.request, name) == getattr(request, name) for name in names)

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
        fitting = tuple(
            name for kind in (UNetDiffusion, FlowDiffusion) if family in (kind.family, None) for name in kind.samplers
        )
        if fitting != self.sampler.options:
            self.sampler.options = fitting

    def _make_outputs(self) -> None:
        self.button = widgets.Button(description="Draw", button_style="primary")
        self.stop_button = widgets.Button(description="Stop", disabled=True)
        self.button.on_click(lambda _: self.start())
        self.stop_button.on_click(lambda _: self.stop())
        self.status, self.progress = widgets.HTML(), widgets.HTML()
        self.about = widgets.HTML(self._about())
        self.candidates = GlyphGrid("Glyphs, best first", columns=6, cell_px=96, empty="Nothing is drawn yet.")
        self.forming = GlyphGrid("How it formed, step by step", columns=FRAMES_SHOWN, cell_px=64, empty="")
        self.verdict, self.reasons = widgets.HTML(), widgets.HTML()
        self.past = GlyphGrid("History", columns=12, cell_px=64, empty="No glyphs yet.")
        self.candidates.observe(lambda _: self._explain_choice(), "selected")
        self.forming.observe(lambda _: self._enlarge(), "selected")
        self.past.observe(lambda _: self._recall(), "selected")
        self.enlarged, self.box = widgets.HTML(), CodeBox(label="These glyphs as code")

    def _make_saving(self, history: Path) -> None:
        """Not on a public page, which can reach every widget, shown or not."""
        self.folder = labelled(widgets.Text(value=str(history)), "Folder")
        self.save_button = widgets.Button(description="Save history")
        self.load_button = widgets.Button(description="Load history")
        self.save_button.on_click(lambda _: self._try(self.save))
        self.load_button.on_click(lambda _: self._try(self.load))

    def _about(self) -> str:
        if len(self._choices) > 1:
            return ""
        text = "There is no trained run here, so the base itself draws."
        if self._base == WRITER:
            text = (
                "There is no trained run here, so the writer draws. It knows real kanji: ask by meaning, as “river”, "
            )
            text += "or by parts, as “water + three” or “left: water, right: three”."
        if self._base in ("pocket2", "pocket"):
            text += " It has never seen a kanji: its glyphs look like other scripts."
        return f"<p>{escape(text)}</p>"

    def _make_layout(self) -> None:
        rows = [[self.prompt, self.button, self.stop_button], [self.model, self.checkpoint, self.count, self.seed]]
        rows += [[self.guidance, self.steps, self.sampler], [self.prefix, self.negative, self.parts]]
        rows.append([self.status, self.progress])
        shown = [self.about, *(widgets.HBox(row, layout=WRAP) for row in rows), self.candidates, self.verdict]
        formed = widgets.HBox([self.forming, self.enlarged], layout={"flex_flow": "row wrap"})
        shown += [formed, self.reasons] + ([] if self._public else [self.box])
        pages = widgets.Tab([widgets.VBox(shown), self.coining.widget], titles=("Draw", "Coin a kanji"))
        below: list[widgets.Widget] = [pages, self.past]
        if not self._public:
            below.append(widgets.HBox([self.folder, self.save_button, self.load_button], layout=WRAP))
        self.widget = widgets.VBox(below)

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
            self._say("Drawing …")
            glyphs = draw_glyphs(request, self._models, self._step_display(base, request, worker))
            self.progress.value = ""
            self._show_glyphs(glyphs)

        return job

    def _step_display(self, base: LatentDiffusion, request: Request, worker: Worker) -> Callable[[Tensor], None]:
        """A function, to be called after each step, that shows the first glyph as it forms, and the progress."""
        frames: list[bytes] = []
        labels: list[str] = []
        shown, done = 0.0, 0  # when a frame was shown last, and steps

        def on_step(latents: Tensor) -> None:
            nonlocal shown, done
            worker.check()
            done += 1
            if time.monotonic() - shown < FRAME_EVERY_SECONDS:
                return
            shown = time.monotonic()
            frames.append(png_bytes(glyphs_of(base.decode(latents[:1])[None])[0]))
            labels.append(f"step {done}")
            self._fill(self.forming, frames, labels)
            self.progress.value = progress_html(done, request.sampling.steps, "Steps")

        return on_step

    def _show_nothing(self) -> None:
        self.glyphs, self._explained = None, None
        self._fill(self.candidates, [], [])
        self._fill(self.forming, [], [])
        self.verdict.value = self.reasons.value = self.enlarged.value = ""

    def _show_glyphs(self, glyphs: Glyphs) -> None:
        self.glyphs = glyphs
        self._order = [int(index) for index in np.argsort(glyphs.ranking["order"])]
        seeds, ranked = glyphs.request.seeds, glyphs.ranking
        captions = [short_caption(ranked.iloc[index], seeds[index]) for index in self._order]
        reasons = [placing(ranked.iloc[index], seeds[index], glyphs.expected) for index in self._order]
        pictures = [png_bytes(glyphs.images[index]) for index in self._order]
        self._fill(self.candidates, pictures, captions, reasons, selected=0)
        self.reasons.value = f"<ol>{''.join(f'<li>{escape(reason)}</li>' for reason in reasons)}</ol>"
        self._say("Explaining the best …")
        self._show_one(glyphs.best)
        self._keep(kept_glyph(glyphs, glyphs.best, self._verdict))
        self._show_code()
        rejected = sum(rank == 0 for rank in ranked["rank"])
        self._say(f"{len(seeds)} drawn, {rejected} rejected as not well-formed.")

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
        self._explain(glyphs.images[index], glyphs.request.prompt)

    def _explain(self, image: np.ndarray, prompt: str) -> None:
        judge = load_judge(REPORTER)
        self._explained = image, prompt
        self._verdict = describe(judge.read(image[None]).iloc[0], glosses(), load_characters())
        figure = picture_html(png_bytes(explain(judge, image, prompt)), f"{prompt}: {self._verdict}", "52em")
        self.verdict.value = f"{figure}<p>{escape(self._verdict)}</p><p>{escape(self._nearest_outlines(image))}</p>"

    def _nearest_outlines(self, image: np.ndarray) -> str:
        """The nearest characters by outline; the first time, all characters have to be drawn and measured."""
        if self._neighbours is None:
            Worker(Path("playground"), self._find_neighbours).start()
            return "Nearest by outline alone, without a network: measuring all characters, once …"
        order, distances = self._neighbours.nearest(image[None], NEAREST)
        names = [self._neighbours.characters[index] for index in order[0]]
        near = ", ".join(f"{name} ({distance:.2f})" for name, distance in zip(names, distances[0], strict=True))
        is_same = distances[0][0] <= self._neighbours.same_distance
        same = "the nearest counts as the same character" if is_same else "none counts as the same character"
        return f"Nearest by outline alone, without a network: {near}; {same}."

    def _find_neighbours(self, _: Worker) -> None:
        with NEIGHBOURS_LOCK:
            self._neighbours = Neighbours.load_or_fit(cache_folder() / "judges")
        with self._lock:
            if self._explained is not None:
                self._explain(*self._explained)

    def _enlarge(self) -> None:
        if (place := self.forming.choice) is not None:
            self.enlarged.value = picture_html(self.forming.pictures[place], self.forming.names[place], "192px")

    def save(self) -> None:
        """Write the history to the folder that the panel names.

        Raises:
            PermissionError: on a public page.
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
                self._explain(kept.image, kept.request.prompt)
                self._say(f"From the history; {hint}.")

        Worker(Path("playground"), job).start()

    def _fill(self, grid: GlyphGrid, *content: Any, selected: int = NONE) -> None:
        with self._changing_inputs():
            grid.fill(*content, selected=selected)

    def _show_code(self) -> None:
        try:
            self.box.code = self.code
        except ValueError:
            self.box.code = ""

    def _try(self, action: Callable[[], None]) -> None:
        try:
            action()
        except (OSError, ValueError) as error:
            self._say_failed(error)
