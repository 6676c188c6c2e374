"""The training panel: settings, cost, Start / Resume / Load and Stop, live curves and a growing strip.

The training runs in a thread of the kernel (`worker.py`) and is stored in a run folder (`training_job.py`). The panel
only shows that folder, so it can be rebuilt at any time, in this kernel or another, and shows the same.
"""

from __future__ import annotations

import dataclasses
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ipywidgets as widgets
import pandas as pd
from matplotlib.figure import Figure
from PIL import Image

from kanjilab.core.config import DEFAULT_BASE, SCHEDULES, TARGETS, UNTRAINED, Arm
from kanjilab.core.run_folder import RunFolder
from kanjilab.data.prompts import DEMO
from kanjilab.data.selection import Rule
from kanjilab.models.sampling import Sampling
from kanjilab.training.history import history_strip
from kanjilab.training.job import TrainingJob
from kanjilab.training.presets import DEMO_SAMPLING
from kanjilab.viz.charts import draw_gradient_norm, draw_loss, figure_png, new_figure
from kanjilab.viz.strip import draw_strip, encode_png
from kanjilab.viz.text import printable
from kanjilab.widgets.common import (
    changed_fields,
    escape,
    folded,
    label_of,
    labelled,
    panel_box,
    picture_html,
    progress_html,
    python_call,
    stacked,
)
from kanjilab.widgets.training_curves import TrainingCurves, curve_of
from kanjilab.widgets.training_job import (
    FINISHED,
    GOING_ON,
    NEW,
    PANEL_JOB,
    Drawing,
    RunState,
    Workshop,
    cost_text,
    pace_of_log,
    panel_job,
    progress_text,
    read_state,
    state_text,
)
from kanjilab.widgets.work_panel import WorkPanel
from kanjilab.widgets.worker import Worker

BASES = (DEFAULT_BASE, "sd14", "sd15")
RULES = ("left16", "seed16", "all")
FIELD = widgets.Layout(width="19em")
NAMES = {  # of the settings, for readers; the field's own name is the hint
    "base": "Base model",
    "rank": "LoRA rank",
    "alpha": "LoRA alpha",
    "schedule": "Learning-rate schedule",
    "images_seen": "Images seen, in all",
}
RUNS_COMPARED = 6  # whose curves can be laid over each other
WIDE = widgets.Layout(width="33em")


def data_from_text(text: str) -> dict[str, Any]:
    """The data that a user typed: a rule's name, a rule as JSON, or the path of an image folder.

    Raises:
        ValueError: an empty text, or invalid JSON.
    """
    text = text.strip()
    if not text:
        raise ValueError(f"data: expected a rule ({', '.join(RULES)}), a rule as JSON, or an image folder; got nothing")
    if text in RULES:
        return {"name": text}
    if text.startswith("{"):
        return json.loads(text)
    return {"folder": text}


def text_from_data(data: Mapping[str, Any]) -> str:
    """The inverse of `data_from_text`."""
    if set(data) == {"name"}:
        return str(data["name"])
    return str(data["folder"]) if set(data) == {"folder"} else json.dumps(data, ensure_ascii=False)


def as_data(data: Rule | Path | str | Mapping[str, Any]) -> dict[str, Any]:
    """Data as `TrainingJob` holds them: a rule's JSON or {"folder": path}."""
    if isinstance(data, Path):
        return {"folder": str(data)}
    if isinstance(data, str):
        return data_from_text(data)
    return dict(data) if isinstance(data, Mapping) else json.loads(json.dumps(data.to_json()))


def training_code(recipe: TrainingJob, workshop: Workshop) -> str:
    """Python that runs the same training without a panel, in the same folders."""
    run = python_call("Path", str(workshop.run_path(recipe)))
    data = python_call("open_data", dict(recipe.data), workshop.folder)
    device = {} if workshop.device == "cpu" else {"device": workshop.device}
    return "\n".join(
        [
            "from pathlib import Path",
            "",
            "from kanjilab.core.config import Arm",
            "from kanjilab.experiments.context import open_data",
            "from kanjilab.models.loading import load_base",
            "from kanjilab.training.driver import run_training",
            "from kanjilab.training.encoded import encode_dataset",
            "",
            f"dataset = {data}",
            f"base = {python_call('load_base', recipe.base, recipe.precision, **device)}",
            'data = encode_dataset(base, dataset.split("train"))',
            f"arm = {python_call('Arm', **changed_fields(recipe.arm))}",
            f"run = run_training(base, data, [arm], {run}, {recipe.checkpoints})",
        ]
    )


def draw_curves(log: pd.DataFrame, title: str = "") -> Figure | None:
    """Loss and gradient norm side by side; None for an empty log."""
    if not len(log):
        return None
    figure = new_figure(9.6, 2.9)
    left, right = figure.subplots(1, 2)
    draw_loss(log, ax=left)
    draw_gradient_norm(log, ax=right)
    if title:
        figure.suptitle(printable(title).replace("$", r"\$"), x=0.01, ha="left", fontsize=9)
    return figure


class TrainingPanel(WorkPanel):
    """Train one arm from a notebook: settings, cost, Start / Resume / Load, Stop, live curves and strip.

    Everything is stored in the folder. A panel that is rebuilt with the same arguments, after a reload, in another
    kernel or after a crash, shows the training that was started last, and can resume it. Changed settings are another
    training, with a run folder of its own.

    Args:
        folder: of this panel's data and runs; new, or of an earlier panel.
        arm: the first settings, with a budget of images_seen; the panel keeps those that it does not show.
        data: a rule, a rule's JSON, or the path of an image folder.
        base, precision, device: as for `load_base`.
        checkpoints: columns of the strip after "before training".
        prompts: rows of the strip.
        seeds: noise seeds of the strip; the first is drawn in every column.
        sampling: how the strip is drawn.
        save_every_seconds: training time that a killed kernel may lose, at most.
    Raises:
        ValueError: see `panel_job`.
    """

    def __init__(
        self,
        folder: Path | str,
        *,
        arm: Arm = PANEL_JOB.arm,
        data: Rule | Path | str | Mapping[str, Any] = "left16",
        base: str | Path = DEFAULT_BASE,
        precision: str = "bf16",
        device: str = "cpu",
        checkpoints: int = PANEL_JOB.checkpoints,
        prompts: Sequence[str] = DEMO,
        seeds: Sequence[int] = (0,),
        sampling: Sampling = DEMO_SAMPLING,
        save_every_seconds: float = 60.0,
    ):
        super().__init__("This training as code")
        self.workshop = Workshop(Path(folder), device, save_every_seconds)
        self.drawing = Drawing(tuple(prompts), tuple(seeds), sampling)
        self.asked = panel_job(arm, base=str(base), precision=precision, data=as_data(data), checkpoints=checkpoints)
        self.recipe = self.workshop.last(self.asked)
        self._shown: tuple[Any, ...] = ()
        self.curves, self.strip = TrainingCurves(), widgets.HTML()
        self._make_inputs()
        self.widget = self._laid_out()
        self._fill(self.recipe)
        self.refresh()

    def _make_inputs(self) -> None:
        most = 10**9
        self.inputs: dict[str, Any] = {
            "base": widgets.Combobox(options=BASES, continuous_update=False),
            "data": widgets.Combobox(options=RULES, continuous_update=False),
            "targets": widgets.Dropdown(options=(*TARGETS, UNTRAINED)),
            "rank": widgets.BoundedIntText(min=1, max=4096),
            "alpha": widgets.Text(placeholder="the rank", continuous_update=False),
            "batch": widgets.BoundedIntText(min=1, max=65_536),
            "peak_lr": widgets.FloatText(step=1e-4),
            "schedule": widgets.Dropdown(options=SCHEDULES),
            "images_seen": widgets.BoundedIntText(min=1, max=most),
            "seed": widgets.BoundedIntText(min=0, max=most),
            "checkpoints": widgets.BoundedIntText(min=1, max=1000),
        }
        for name, box in self.inputs.items():
            labelled(box, NAMES.get(name, label_of(name)))
            box.tooltip = f"{name}: a field of Arm" if hasattr(self.asked.arm, name) else name
            box.layout = WIDE if name in ("base", "data") else FIELD
            box.observe(self._changed, "value")
        self.runs = widgets.Dropdown(options=[("these settings", "")], layout=WIDE)
        labelled(self.runs, "Runs in this folder")
        self.runs.observe(self._chosen, "value")

    def _laid_out(self) -> widgets.VBox:
        """What is going on comes first; settings are open where nothing has begun."""
        fields = [box for name, box in self.inputs.items() if name not in ("base", "data")]
        settings = folded("Settings", [[self.inputs["base"], self.inputs["data"]], fields])
        self._settings_button: Any = settings.children[0]
        self._settings_button.opened = self.state.kind == NEW
        buttons = self._button_row("Measure cost", "Takes a few steps and discards them", self.measure)
        self.code_box.layout.width = "100%"
        code = folded("Code", [[self.code_box]])
        top = [self.runs, buttons, self.cost, self.status, self.progress]
        return panel_box([*top, self.strip, self.curves, settings, code])

    def _fill(self, recipe: TrainingJob) -> None:
        """Show a recipe's settings."""
        arm = recipe.arm
        values = {name: getattr(arm, name) for name in self.inputs if hasattr(arm, name)}
        values |= {"alpha": "" if arm.alpha is None else f"{arm.alpha:g}", "base": recipe.base}
        values |= {"data": text_from_data(recipe.data), "checkpoints": recipe.checkpoints}
        with self._changing_inputs():
            for name, box in self.inputs.items():
                box.value = values[name]
        # Boxes bound and round what they show, so that only what is changed in them is read.
        self._filled = recipe, {name: box.value for name, box in self.inputs.items()}

    def _read(self) -> TrainingJob:
        """The recipe that was filled in, with what has been changed in the inputs since."""
        recipe, shown = self._filled
        values = {name: box.value for name, box in self.inputs.items() if box.value != shown[name]}
        of_arm = {name: value for name, value in values.items() if hasattr(recipe.arm, name)}
        of_job = {name: value for name, value in values.items() if name not in of_arm}
        if "alpha" in of_arm:
            of_arm["alpha"] = float(of_arm["alpha"]) if of_arm["alpha"].strip() else None  # None means the rank
        if "base" in of_job:
            of_job["base"] = of_job["base"].strip()
        if "data" in of_job:
            of_job["data"] = data_from_text(of_job["data"])
        return dataclasses.replace(recipe, arms=(dataclasses.replace(recipe.arm, **of_arm),), **of_job)

    def _changed(self, _change: Any) -> None:
        if not self._filling:
            self._try(lambda: setattr(self, "recipe", self._read()))

    def _chosen(self, change: Any) -> None:
        known = {recipe.name: recipe for recipe in self.workshop.jobs()}
        if not self._filling and change["new"] in known:
            self.recipe, self._problem = known[change["new"]], ""
            self._fill(self.recipe)
            self.refresh()

    def start(self) -> Worker:
        """Start the training, resume it, or load it where it is finished, in the background."""
        recipe, drawing = self.recipe, self.drawing
        self._settings_button.opened = False  # the strip takes its place

        def job(worker: Worker) -> None:
            self.workshop.keep(recipe, self.asked)
            self.workshop.train(recipe, drawing, worker)

        return self._begin(job)

    def measure(self) -> Worker:
        """Measure, in the background, what the training will cost."""
        recipe = self.recipe
        return self._begin(lambda worker: self.workshop.measure(recipe, worker))

    @property
    def folder(self) -> Path:
        """Of the shown run."""
        return self.workshop.run_path(self.recipe)

    @property
    def running_elsewhere(self) -> bool:
        """Whether any process is writing the run."""
        return self.state.kind == GOING_ON

    def _stop_elsewhere(self) -> None:
        RunFolder.open(self.folder).request_stop()

    @property
    def state(self) -> RunState:
        """Progress of the shown training."""
        return read_state(self.folder)

    @property
    def code(self) -> str:
        """Python that runs the shown training without a panel."""
        return training_code(self.recipe, self.workshop)

    def picture(self) -> Image.Image:
        """Curves above the strip, so far."""
        figure = draw_curves(self._log(), self.recipe.title())
        if figure is None:
            raise ValueError(f"{self.folder}: nothing is logged yet")
        curves = Image.open(io.BytesIO(figure_png(figure)))
        drawn = self.workshop.strip(self.recipe, self.drawing)
        return stacked([curves, draw_strip(history_strip(*drawn))] if drawn else [curves])

    def refresh(self) -> None:
        """Show the present state of the run folder, and again every second while a job runs."""
        with self._lock:
            recipe, worker, state = self.recipe, self.worker, self.state
            busy = worker is not None and worker.alive
            running, cost = busy or state.kind == GOING_ON, self.workshop.cost(recipe)
            self._show_buttons(state.button, running, cost is not None or state.kind == FINISHED)
            self.cost.value = escape(cost_text(recipe, cost, state))
            self._say(state_text(state, worker))
            self._show_progress(state, worker if busy else None)
            self._show_pictures()
            self._list_runs()
            self.code_box.code = self.code
            self._watch_while(running)

    def _show_progress(self, state: RunState, worker: Worker | None) -> None:
        if state.kind == NEW and worker is None:
            self.progress.value = ""
            return
        report = worker.report if worker else None
        if report is not None:  # the log holds every tenth step only
            state = dataclasses.replace(state, images_seen=max(report.images_seen), seconds=report.seconds)
        if state.total_images:
            bar = progress_html(state.images_seen, state.total_images, "Images seen")
            pace = list(worker.pace) if worker else pace_of_log(self._log()) if state.kind == GOING_ON else []
            speed = progress_text(state, pace)
            self.progress.value = bar + (f" · {escape(speed)}" if speed else "")

    def _show_pictures(self) -> None:
        path = self.folder
        files = [path / "log.jsonl", *path.glob("samples/*.safetensors")]
        shown = (path, *((file, file.stat().st_mtime_ns) for file in files if file.exists()))
        if shown == self._shown:
            return
        self._shown = shown
        self.curves.runs = self._curves()
        drawn = self.workshop.strip(self.recipe, self.drawing)
        if drawn is None:
            self.strip.value = ""
            return
        strip = history_strip(*drawn)
        alternative = f"Strip: {', '.join(strip.row_labels)}; columns {', '.join(strip.column_labels)}"
        self.strip.value = picture_html(encode_png(draw_strip(strip)), alternative)

    def _curves(self) -> list[dict[str, Any]]:
        """Of the shown run, and of the folder's latest others."""
        others = [job for job in self.workshop.jobs() if job.name != self.recipe.name]
        jobs = [self.recipe, *others[: RUNS_COMPARED - 1]]
        found = [curve_of(job.name, job.title(), self._log(self.workshop.run_path(job))) for job in jobs]
        return [curve for curve in found if curve is not None]

    def _log(self, path: Path | None = None) -> pd.DataFrame:
        path = path or self.folder
        return RunFolder.open(path).read_log() if (path / "settings.json").exists() else pd.DataFrame()

    def _list_runs(self) -> None:
        options = [(recipe.title(), recipe.name) for recipe in self.workshop.jobs()]
        if self.recipe.name not in {name for _, name in options}:
            options.insert(0, ("these settings (not started)", self.recipe.name))
        with self._changing_inputs():
            if tuple(options) != tuple(self.runs.options):
                self.runs.options = options
            self.runs.value = self.recipe.name
