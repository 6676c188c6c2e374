"""The playground: type a prompt, see glyphs form, and read what the judges say of them."""

from __future__ import annotations

import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import nullcontext
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
from kanjilab.models.diffusion import FlowDiffusion, LatentDiffusion, UNetDiffusion
from kanjilab.models.loading import cache_folder
from kanjilab.models.sampling import SAMPLERS, Sampling
from kanjilab.widgets.common import (
    CodeBox,
    Panel,
    escape,
    html_text,
    labelled,
    picture_html,
    png_bytes,
    progress_html,
    python_call,
)
from kanjilab.widgets.generation import (
    FRAMES_SHOWN,
    PUBLIC,
    REPORTER,
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
    turn,
)
from kanjilab.widgets.glyph_grid import NONE, GlyphGrid
from kanjilab.widgets.saved_glyphs import Kept, kept_glyph, load_history, save_history
from kanjilab.widgets.worker import POLL_SECONDS, Stopped, Worker

NEIGHBOURS_LOCK = threading.Lock()  # panels of one kernel fit them once
SEED_MOST = 2**31
HISTORY_MOST = 24  # glyphs that the panel keeps; the oldest go first
FRAME_EVERY_SECONDS = 0.25
NEAREST = 5
LOCK = Path(tempfile.gettempdir()) / "kanjilab-playground.lock"


class Playground(Panel):
    """Draw a prompt with a trained run, choose among several glyphs, and keep what is liked.

    Drawing goes on in a thread; the kernel stays free. Without any run the base itself draws.

    Args:
        runs: folder with trained runs, at any depth; None for the base alone.
        request: to start with; nothing is drawn yet.
        base: draws where no run is chosen: a name, a folder, or loaded already.
        device: where to load models.
        public: for strangers: bounded requests, one drawing at a time on this machine, no code, no paths.
        history: folder to save glyphs in; strangers save nothing.
    Raises:
        RunError: a run's settings cannot be read.
    """

    def __init__(
        self,
        runs: Path | str | None,
        request: Request | None = None,
        *,
        base: LatentDiffusion | str | Path = "pocket",
        device: str = "cpu",
        public: bool = False,
        history: Path | str = "playground",
    ):
        self._runs = None if runs is None else Path(runs)
        self._public, self._limits = public, PUBLIC if public else Limits()
        self._base = base.name if isinstance(base, LatentDiffusion) else str(base)
        self._models = Models(*([base] if isinstance(base, LatentDiffusion) else []), device=device)
        self._choices = run_choices(self._runs)
        if public:  # the arms of a study have names that tell a stranger nothing
            self._choices = [choice for choice in self._choices if "/packs/" not in choice[0]]
        self._neighbours: Neighbours | None = None
        self._worker: Worker | None = None
        self._glyphs: Glyphs | None = None
        self._explained: tuple[np.ndarray, str] | None = None  # a glyph and its prompt
        self._order: list[int] = []
        self._kept: list[Kept] = []
        self._filling = False
        self._told = ""  # what was said of it
        self._lock = threading.Lock()  # over models and figures: one glyph is drawn or explained at a time
        self._make_inputs()
        self._make_outputs()
        if not public:
            self._make_saving(Path(history))
        self._make_layout()
        run, arm = self._drawn_by
        self._set_inputs(request or Request("fish king", seeds=(0, 1, 2, 3), run=run, arm=arm))
        self._show_code()

    # ------------------------------------------------------------------------------------------ state

    @property
    def request(self) -> Request:
        """What the inputs ask for.

        Raises:
            ValueError: an input is out of bounds; says which.
        """
        run, arm = self._drawn_by
        step = None if run is None else self._steps[min(self.checkpoint.index or 0, len(self._steps) - 1)]
        sampling = Sampling(
            str(self.sampler.value),
            int(self.steps.value),
            float(self.guidance.value),
            str(self.negative.value),
            str(self.prefix.value),
        )
        count = min(int(self.count.value), self._limits.glyphs + 1)  # a page may claim anything
        seeds = tuple(range(int(self.seed.value), int(self.seed.value) + count))
        parts = tuple(dict.fromkeys(sign for sign in self.parts.value if not sign.isspace()))
        return self._limits.check(Request(self.prompt.value, seeds, sampling, run, self._base, arm, step, parts))

    @property
    def _drawn_by(self) -> tuple[Path | None, int]:
        index: Any = self.model.index
        return self._choices[index or 0][1] or (None, 0)

    @property
    def glyphs(self) -> Glyphs | None:
        """What was drawn last."""
        return self._glyphs

    @property
    def history(self) -> tuple[Kept, ...]:
        """What was drawn before, the latest last."""
        return tuple(self._kept)

    @property
    def code(self) -> str:
        """The call that draws what is shown: the same glyphs, as a picture; strangers are not told."""
        if self._public:
            return ""
        request = self._glyphs.request if self._glyphs else self.request
        return f"{python_call('draw_glyphs', request)}.picture()"

    def picture(self) -> Image.Image:
        """The last glyphs, explained; see `Glyphs.picture`."""
        if self._glyphs is None:
            raise ValueError("nothing is drawn yet: call draw()")
        return self._glyphs.picture()

    # ------------------------------------------------------------------------------------------ widgets

    def _make_inputs(self) -> None:
        most = self._limits
        self.prompt = labelled(widgets.Text(layout={"width": "24em"}), "Prompt")
        self.model = labelled(widgets.Dropdown(options=[label for label, _ in self._choices]), "Drawn by")
        self.checkpoint = labelled(widgets.Dropdown(), "Checkpoint")
        self.sampler = labelled(widgets.Dropdown(options=SAMPLERS), "Sampler")
        self.steps = self._number("Steps", 1, most.steps)
        self.guidance = self._number("Guidance", 1.0, most.guidance)
        self.seed = self._number("First seed", 0, SEED_MOST - most.glyphs)
        self.count = self._number("Glyphs, to choose the best of", 1, most.glyphs)
        self.prefix = labelled(widgets.Text(placeholder="put before the prompt"), "Style")
        self.negative = labelled(widgets.Text(placeholder="what to avoid"), "Not")
        self.parts = labelled(widgets.Text(placeholder="from the words of the prompt"), "Expected parts")
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
        """Whether the inputs name the model of a request, and its sampling."""
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
        self.status, self.progress = html_text("", role="status"), widgets.HTML()
        self.about = widgets.HTML(self._about())
        self.candidates = GlyphGrid("Glyphs, the best first", columns=6, cell_px=96, empty="Nothing is drawn yet.")
        self.forming = GlyphGrid("How it formed, step by step", columns=FRAMES_SHOWN, cell_px=64, empty="")
        self.verdict, self.reasons = widgets.HTML(), widgets.HTML()
        self.past = GlyphGrid("History", columns=12, cell_px=64, empty="Empty so far.")
        self.candidates.observe(lambda _: self._explain_choice(), "selected")
        self.forming.observe(lambda _: self._enlarge(), "selected")
        self.past.observe(lambda _: self._recall(), "selected")
        self.enlarged, self.box = widgets.HTML(), CodeBox(label="These glyphs as code")

    def _make_saving(self, history: Path) -> None:
        """Never where strangers are: a page reaches every widget that there is, shown or not."""
        self.folder = labelled(widgets.Text(value=str(history)), "Folder")
        self.save_button = widgets.Button(description="Save history")
        self.load_button = widgets.Button(description="Load history")
        self.save_button.on_click(lambda _: self._try(self.save))
        self.load_button.on_click(lambda _: self._try(self.load))

    def _about(self) -> str:
        if len(self._choices) > 1:
            return ""
        told = "There is no trained run here: the base itself draws."
        if self._base == "pocket":
            told += " It has never seen a kanji: its glyphs look like other scripts, and the prompt hardly matters."
        return f"<p><b>{escape(told)}</b></p>"

    def _make_layout(self) -> None:
        wrap = {"flex_flow": "row wrap", "align_items": "center"}
        first = widgets.HBox([self.prompt, self.button, self.stop_button], layout=wrap)
        second = widgets.HBox([self.model, self.checkpoint, self.count, self.seed], layout=wrap)
        third = widgets.HBox([self.guidance, self.steps, self.sampler], layout=wrap)
        fourth = widgets.HBox([self.prefix, self.negative, self.parts], layout=wrap)
        told = widgets.HBox([self.status, self.progress], layout=wrap)
        formed = widgets.HBox([self.forming, self.enlarged], layout={"flex_flow": "row wrap"})
        shown = [self.about, first, second, third, fourth, told, self.candidates, self.verdict, formed]
        shown += [self.reasons, self.past]
        if not self._public:
            saving = widgets.HBox([self.folder, self.save_button, self.load_button], layout=wrap)
            shown += [saving, self.box]
        self.widget = widgets.VBox(shown)

    # ------------------------------------------------------------------------------------------ drawing

    def start(self) -> None:
        """Begin to draw what the inputs ask for, in a thread; what is wrong with them is said in the panel."""
        if self._worker is not None and self._worker.alive:
            return
        self._worker = None
        try:
            request = self.request
        except ValueError as error:
            return self._say(str(error))
        self.button.disabled, self.stop_button.disabled = True, False
        self._worker = Worker(Path("playground"), lambda worker: self._draw(request, worker))
        self._worker.start()

    def stop(self) -> None:
        """End the drawing after its present step."""
        if self._worker is not None:
            self._worker.stop()

    def draw(self) -> None:
        """Draw, and wait for it.

        Raises:
            Exception: what ended the drawing too early.
        """
        self.start()
        if self._worker is None:
            raise ValueError(self.status.value)
        while not self._worker.join(POLL_SECONDS):
            pass
        if self._worker.error is not None:
            raise self._worker.error

    def _draw(self, request: Request, worker: Worker) -> None:
        waiting = turn(LOCK, worker.check, lambda: self._say("Another drawing is going on; yours is next."))
        try:
            with waiting if self._public else nullcontext(), self._lock:
                self._show_nothing()
                self._say(f"Loading {self._base} …")
                base, _ = self._models.load(request)
                self._say("Drawing …")
                glyphs = draw_glyphs(request, self._models, self._told_of_step(base, request, worker))
                self.progress.value = ""
                self._show_glyphs(glyphs)
        except Exception as error:
            self._say_failed(error)
            raise
        finally:
            self.progress.value = ""
            self.button.disabled, self.stop_button.disabled = False, True

    def _told_of_step(self, base: LatentDiffusion, request: Request, worker: Worker) -> Callable[[Tensor], None]:
        """Shows the first glyph as it forms, and how far all are."""
        frames: list[bytes] = []
        labels: list[str] = []
        told, done = 0.0, 0

        def on_step(latents: Tensor) -> None:
            nonlocal told, done
            worker.check()
            done += 1
            if time.monotonic() - told < FRAME_EVERY_SECONDS:
                return
            told = time.monotonic()
            frames.append(png_bytes(glyphs_of(base.decode(latents[:1])[None])[0]))
            labels.append(f"step {done}")
            self._fill(self.forming, frames, labels)
            self.progress.value = progress_html(done, request.sampling.steps, "Steps")

        return on_step

    def _show_nothing(self) -> None:
        self._glyphs, self._explained = None, None
        self._fill(self.candidates, [], [])
        self._fill(self.forming, [], [])
        self.verdict.value = self.reasons.value = self.enlarged.value = ""

    def _show_glyphs(self, glyphs: Glyphs) -> None:
        self._glyphs = glyphs
        self._order = [int(index) for index in np.argsort(glyphs.ranking["order"])]
        seeds, ranked = glyphs.request.seeds, glyphs.ranking
        captions = [short_caption(ranked.iloc[index], seeds[index]) for index in self._order]
        reasons = [placing(ranked.iloc[index], seeds[index], glyphs.expected) for index in self._order]
        pictures = [png_bytes(glyphs.images[index]) for index in self._order]
        self._fill(self.candidates, pictures, captions, reasons, selected=0)
        self.reasons.value = f"<ol>{''.join(f'<li>{escape(reason)}</li>' for reason in reasons)}</ol>"
        self._say("Explaining the best …")
        self._show_one(glyphs.best)
        self._remember(kept_glyph(glyphs, glyphs.best, self._told))
        self._show_code()
        rejected = sum(rank == 0 for rank in ranked["rank"])
        self._say(f"{len(seeds)} drawn, {rejected} rejected as not well-formed.")

    # ------------------------------------------------------------------------------------------ explaining

    def _explain_choice(self) -> None:
        if self._filling or (place := self.candidates.choice) is None:
            return

        def job(_: Worker) -> None:
            with self._lock:
                if self._glyphs is not None and self.candidates.choice == place:  # else others were chosen since
                    self._show_one(self._order[place])

        Worker(Path("playground"), job).start()

    def _show_one(self, index: int) -> None:
        """Explain one of the glyphs, and show how it formed."""
        glyphs = self._glyphs
        assert glyphs is not None
        frames, steps = glyphs.forming(index)
        labels = [f"step {step}" for step in steps]
        self._fill(self.forming, [png_bytes(frame) for frame in frames], labels, selected=len(labels) - 1)
        self._enlarge()
        self._explain(glyphs.images[index], glyphs.request.prompt)

    def _explain(self, image: np.ndarray, prompt: str) -> None:
        judge = load_judge(REPORTER)
        self._explained = image, prompt
        self._told = describe(judge.read(image[None]).iloc[0], glosses(), load_characters())
        figure = picture_html(png_bytes(explain(judge, image, prompt)), f"{prompt}: {self._told}", "52em")
        self.verdict.value = f"{figure}<p>{escape(self._told)}</p><p>{escape(self._outlines(image))}</p>"

    def _outlines(self, image: np.ndarray) -> str:
        """The third opinion, for which all characters are drawn and measured once."""
        if self._neighbours is None:
            Worker(Path("playground"), self._find_neighbours).start()
            return "Nearest by outline alone, without a network: all characters are being compared, once …"
        order, distances = self._neighbours.nearest(image[None], NEAREST)
        names = [self._neighbours.characters[index] for index in order[0]]
        near = ", ".join(f"{name} ({distance:.2f})" for name, distance in zip(names, distances[0], strict=True))
        same = "the nearest counts as the same" if distances[0][0] <= self._neighbours.same_distance else "all differ"
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

    # ------------------------------------------------------------------------------------------ history

    def save(self) -> None:
        """Write the history into the folder that the panel names.

        Raises:
            PermissionError: the panel is for strangers.
        """
        self._refuse_strangers()
        save_history(self._kept, Path(self.folder.value))
        self._say(f"{len(self._kept)} glyphs saved in {self.folder.value}")

    def load(self) -> None:
        """Take the history from the folder that the panel names.

        Raises:
            PermissionError: the panel is for strangers.
            ValueError: there is none, or a damaged one.
        """
        self._refuse_strangers()
        self._kept = load_history(Path(self.folder.value))[-HISTORY_MOST:]
        self._show_history()
        self._say(f"{len(self._kept)} glyphs loaded from {self.folder.value}")

    def _refuse_strangers(self) -> None:
        if self._public:
            raise PermissionError("a public playground neither saves nor loads a history")

    def _remember(self, kept: Kept) -> None:
        self._kept = [*self._kept, kept][-HISTORY_MOST:]
        self._show_history()

    def _show_history(self) -> None:
        latest = self._kept[::-1]
        names = [f"{one.request.prompt}, seed {one.request.seeds[0]}. {one.verdict}" for one in latest]
        self._fill(self.past, [png_bytes(one.image) for one in latest], [one.request.prompt for one in latest], names)

    def _recall(self) -> None:
        """Ask again for a glyph of the history, and explain it anew."""
        if self._filling or (place := self.past.choice) is None:
            return
        kept = self._kept[::-1][place]
        self._set_inputs(kept.request)
        told = "Draw draws it again" if self._asks_as(kept.request) else "what drew it is not among the choices here"

        def job(_: Worker) -> None:
            with self._lock:
                self._show_nothing()
                self._explain(kept.image, kept.request.prompt)
                self._say(f"From the history; {told}.")

        Worker(Path("playground"), job).start()

    # ------------------------------------------------------------------------------------------ telling

    def _fill(self, grid: GlyphGrid, *content: Any, selected: int = NONE) -> None:
        self._filling = True
        try:
            grid.fill(*content, selected=selected)
        finally:
            self._filling = False

    def _show_code(self) -> None:
        try:
            self.box.set(self.code)
        except ValueError:
            self.box.set("")

    def _say(self, text: str) -> None:
        self.status.value = f'<span role="status">{escape(text)}</span>'

    def _say_failed(self, error: Exception) -> None:
        if isinstance(error, Stopped):
            self._say("Stopped.")
        elif self._public:
            self._say("That did not work; nothing is drawn.")
        else:
            self._say(f"{type(error).__name__}: {error}")

    def _try(self, action: Callable[[], None]) -> None:
        try:
            action()
        except (OSError, ValueError) as error:
            self._say_failed(error)
