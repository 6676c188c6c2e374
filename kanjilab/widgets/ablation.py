"""The ablation panel: a study from its axes to its verdict, with what is stored, what the rest costs, and its images.

A thin shell over `kanjilab.experiments.run_study` and stored studies: the work goes on in a thread of the kernel (`worker.py`), and
what is shown is read from the study's folder (`study_state.py`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import anywidget
import ipywidgets as widgets
import numpy as np
import traitlets
from PIL import Image

from kanjilab.core.run_folder import RunFolder, find_runs
from kanjilab.evaluation.judges.part_judge import Judge as PartsJudge
from kanjilab.evaluation.judges.part_judge import load_judge
from kanjilab.evaluation.metrics import expected_part_hits, expected_radical_hits
from kanjilab.experiments.context import open_study
from kanjilab.experiments.designs import BUDGETS, DESIGNS, make_study
from kanjilab.experiments.packs import plan
from kanjilab.experiments.results import Hits, Judge
from kanjilab.experiments.run_study import ablate, own_share
from kanjilab.experiments.study import Study
from kanjilab.viz.strip import draw_strip, encode_png
from kanjilab.widgets.common import (
    FOLDER,
    Code,
    CodeBox,
    changed_fields,
    escape,
    html_text,
    labelled,
    picture_html,
    progress_html,
    python_call,
    stacked,
)
from kanjilab.widgets.study_state import (
    AXES,
    StudyPlan,
    StudyState,
    free_study,
    numbers_from_text,
    rate_points,
    read_study,
    study_cost_text,
    table_of_cells,
    value_from_text,
    variant_strip,
    write_plan,
)
from kanjilab.widgets.work_panel import WorkPanel
from kanjilab.widgets.worker import Worker

FREE, GIVEN, NONE = "free axes", "the given study", "none"
BLANK = np.full((1, 64, 64), 255, dtype=np.uint8)
WIDE = widgets.Layout(width="24em")


class RatePoints(anywidget.AnyWidget):
    """Rates with intervals, a row a variant; a click, or Enter, selects one.

    Attributes:
        points: as `rate_points` gives them.
        title: above them; untrusted.
        selected: label of the variant.
    """

    _esm = FOLDER / "rate_points.js"
    _css = FOLDER / "rate_points.css"
    points = traitlets.List().tag(sync=True)
    title = traitlets.Unicode().tag(sync=True)
    selected = traitlets.Unicode().tag(sync=True)


def check_reading(judge: Judge, hits: Hits) -> None:
    """Try out on a blank image whether hits can be told from what a judge reads.

    Raises:
        ValueError: they cannot.
    """
    try:
        hits(judge.read(BLANK), [frozenset()])
    except (LookupError, ValueError) as error:
        raise ValueError(f"expected hits that fit the judge, as expected_part_hits do A and B: {error}") from error


def reading_code(judge: Judge | None, name: str, hits: Hits) -> tuple[list[str], dict[str, Any]]:
    """Who reads a study's images, as Python.

    Args:
        judge, name, hits: as for `ablate`.
    Returns:
        imports, and keyword arguments of `ablate`; what the package does not hold is called `judge` or `hits` there.
    """
    imports, options = [], {}
    if isinstance(judge, PartsJudge) and judge.report == load_judge(judge.name).report:
        imports.append("from kanjilab.evaluation.judges.part_judge import load_judge")
        options["judge"] = Code(python_call("load_judge", judge.name))
    elif judge is not None:
        options["judge"] = Code("judge")
    if name != "radicals":
        options["name"] = name
    if hits is expected_part_hits:
        imports.append("from kanjilab.evaluation.metrics import expected_part_hits")
        options["hits"] = Code("expected_part_hits")
    elif hits is not expected_radical_hits:
        options["hits"] = Code("hits")
    return imports, options


def study_code(
    study: Study,
    folder: Path,
    named: tuple[str, str] | None,
    judge: Judge | None = None,
    name: str = "radicals",
    hits: Hits = expected_radical_hits,
) -> str:
    """Python that does the same study without a panel, in the same folder.

    Args:
        study: what is asked.
        folder: of the study.
        named: design and scale of which it is made, or None.
        judge, name, hits: as for `ablate`; see `reading_code`.
    """
    imports, reading = reading_code(judge, name, hits)
    lines = ["from pathlib import Path", "", "from kanjilab.experiments.run_study import ablate", *imports]
    if named and make_study(*named, seeds=study.seeds) == study:
        seeds = {} if make_study(*named) == study else {"seeds": study.seeds}
        lines.append("from kanjilab.experiments.designs import make_study")
        made = python_call("make_study", *named, **seeds)
    else:
        lines += ["from kanjilab.models.sampling import Sampling", "from kanjilab.core.config import Arm"]
        lines.append("from kanjilab.experiments.study import Study, Variant")
        made = python_call("Study", **changed_fields(study))
    answered = python_call("ablate", Code("study"), folder, **reading)
    return "\n".join([*lines, "", f"study = {made}", f"report = {answered}"])


def plan_study(study: Study, folder: Path, worker: Worker) -> None:
    """A job: open the study, measure its packs where that is not done yet, and take note of them."""
    worker.tell("load the base and the data")
    with own_share() as share:
        lab = open_study(study, folder, share.device, progress=False)
        worker.tell("measure what the packs cost")
        write_plan(study, folder, StudyPlan.of(lab, plan(lab)))
    worker.check()


def answer_study(study: Study, folder: Path, worker: Worker, **reading: Any) -> None:
    """A job: plan, then train, draw and read whatever is not stored, pack by pack, to the end or to a stop.

    Args:
        study: what is asked.
        folder: of the study.
        worker: told how far it has come.
        **reading: judge, name and hits, as for `ablate`.
    """
    plan_study(study, folder, worker)

    def on_progress(stage: str, done: int, total: int) -> None:
        worker.tell(stage, done, total)

    worker.tell("train")
    ablate(study, folder, progress=False, on_progress=on_progress, say=lambda line: None, **reading)


class AblationPanel(WorkPanel):
    """A study from its axes to its verdict: what is stored, what the rest costs, run it, look at each variant.

    Everything lies in the folder, each study in a subfolder by its name, as `kanjilab sweep` puts it. A panel that is
    built again shows the same, and goes on with what was stopped or killed.

    Args:
        folder: of studies, such as runs/studies.
        study: one to begin with, in place of a design by name.
        design: one of `kanjilab.experiments.designs.DESIGNS`. scale: one of `BUDGETS`.
        seeds: blocks in place of the scale's.
        judge: who reads the images; the first judge by default.
        name: of the judge, for its files.
        hits: which of its readings show what was expected; `expected_part_hits` for judges A and B.
    Raises:
        ValueError: the hits cannot be told from what the judge reads.
    """

    def __init__(
        self,
        folder: Path | str,
        study: Study | None = None,
        *,
        design: str = "rank",
        scale: str = "smoke",
        seeds: Sequence[int] = (),
        judge: Judge | None = None,
        name: str = "radicals",
        hits: Hits = expected_radical_hits,
    ):
        super().__init__()
        if judge is not None:
            check_reading(judge, hits)
        self.root, self.given = Path(folder), study
        self.reading: dict[str, Any] = {"judge": judge, "name": name, "hits": hits}
        self.study = study or make_study(design, scale, seeds)
        self._problem, self._shown = "", ()
        self._make_inputs(design, scale, seeds)
        self._make_outputs()
        self.widget = self._laid_out()
        self._show_axes()
        self.refresh()

    # ------------------------------------------------------------------------------------------ what stands where

    def _make_inputs(self, design: str, scale: str, seeds: Sequence[int]) -> None:
        designs = [GIVEN] * (self.given is not None) + [*DESIGNS, FREE]
        self.design: Any = widgets.Dropdown(options=designs, value=GIVEN if self.given else design, layout=WIDE)
        self.scale: Any = widgets.Dropdown(options=list(BUDGETS), value=scale, layout=WIDE)
        given = ", ".join(map(str, seeds))
        self.seeds: Any = widgets.Text(value=given, placeholder="the scale's", continuous_update=False, layout=WIDE)
        budget = BUDGETS[scale].images_seen
        self.images: Any = widgets.BoundedIntText(value=budget, min=1, max=10**9, layout=WIDE)
        self.axes: Any = [
            widgets.Dropdown(options=[*AXES], value="rank", layout=WIDE),
            widgets.Dropdown(options=[NONE, *AXES], value=NONE, layout=WIDE),
        ]
        self.chips = [widgets.Box(layout=widgets.Layout(flex_flow="row wrap")) for _ in self.axes]
        self.further = [widgets.Text(placeholder="and Enter", continuous_update=False, layout=WIDE) for _ in self.axes]
        labels = {"study": self.design, "scale": self.scale, "training seeds": self.seeds, "images seen": self.images}
        labels |= {"first axis": self.axes[0], "second axis": self.axes[1]}
        labels |= {"further value of the first": self.further[0], "further value of the second": self.further[1]}
        for label, box in labels.items():
            labelled(box, label)
        for box in (self.design, self.seeds, self.images):
            box.observe(self._changed, "value")
        self.scale.observe(self._scaled, "value")
        for number, (axis, further) in enumerate(zip(self.axes, self.further, strict=True)):
            self._offer(number)
            axis.observe(lambda _, number=number: (self._offer(number), self._changed(None)), "value")
            further.observe(lambda change, number=number: self._add(number, change["new"]), "value")

    def _offer(self, number: int) -> None:
        """Chips for the values of an axis, the first two chosen."""
        axis = self.axes[number].value
        self.chips[number].children = tuple(
            self._chip(value, place < 2) for place, value in enumerate(AXES.get(axis, ()))
        )

    def _chip(self, value: Any, chosen: bool) -> widgets.Checkbox:
        chip = widgets.Checkbox(value=chosen, indent=False, layout=widgets.Layout(width="auto", margin="0 1em 0 0"))
        labelled(chip, str(value))
        chip.observe(self._changed, "value")
        return chip

    def _add(self, number: int, text: str) -> None:
        if not text.strip():
            return
        try:
            value = value_from_text(self.axes[number].value, text)
        except (ValueError, KeyError) as error:
            self._problem = f"Not possible: {error}"
            return self.refresh()
        self.chips[number].children += (self._chip(value, True),)
        self.further[number].value = ""
        self._changed(None)

    def _make_outputs(self) -> None:
        self.start_button = widgets.Button(description="Run", button_style="primary")
        self.stop_button = widgets.Button(description="Stop", tooltip="Run goes on from there")
        self.plan_button = widgets.Button(description="Plan", tooltip="What is stored, and what the rest costs")
        self.start_button.on_click(lambda _: self.start())
        self.stop_button.on_click(lambda _: self.stop())
        self.plan_button.on_click(lambda _: self.plan())
        self.claim, self.cost, self.status = html_text("", "b"), html_text(""), html_text("")
        self.progress, self.cells, self.sentences = widgets.HTML(), widgets.HTML(), widgets.HTML()
        self.points, self.figure = RatePoints(), widgets.HTML()
        self.strip = widgets.HTML(layout={"max_height": "44em", "overflow": "auto"})  # a study may have many prompts
        self.points.observe(lambda _: self._show_strip(), "selected")
        self.code_box = CodeBox(label="This study as code")

    def _laid_out(self) -> widgets.VBox:
        wrap = widgets.Layout(flex_flow="row wrap")
        self.free = widgets.VBox(
            [
                widgets.VBox([widgets.Box([axis, further], layout=wrap), chips])
                for axis, further, chips in zip(self.axes, self.further, self.chips, strict=True)
            ]
            + [self.images]
        )
        asked = widgets.Box([self.design, self.scale, self.seeds], layout=wrap)
        buttons = widgets.Box([self.start_button, self.stop_button, self.plan_button], layout=wrap)
        shown = [self.claim, self.cost, buttons, self.status, self.progress, self.cells]
        results = [self.sentences, self.points, self.strip, self.figure]
        return widgets.VBox([asked, self.free, *shown, *results, self.code_box])

    def _show_axes(self) -> None:
        self.free.layout.display = "flex" if self.design.value == FREE else "none"
        self.scale.disabled = self.seeds.disabled = self.design.value == GIVEN

    def _read(self) -> Study:
        """The study that the inputs show."""
        seeds = numbers_from_text(self.seeds.value)
        if self.design.value == GIVEN and self.given is not None:
            return self.given
        if self.design.value != FREE:
            return make_study(self.design.value, self.scale.value, seeds)
        chosen: dict[str, list[Any]] = {}
        for axis, chips in zip(self.axes, self.chips, strict=True):
            if axis.value != NONE:
                texts = [chip.description for chip in chips.children if chip.value]  # pyright: ignore
                chosen[axis.value] = [value_from_text(axis.value, text) for text in texts]
        return free_study(chosen, self.scale.value, seeds or BUDGETS[self.scale.value].seeds, self.images.value)

    # ------------------------------------------------------------------------------------------ what people do

    def _changed(self, _change: Any) -> None:
        self._show_axes()
        try:
            self.study, self._problem = self._read(), ""
        except ValueError as error:
            self._problem = f"Not possible: {error}"
        self.refresh()

    def _scaled(self, change: Any) -> None:
        self.images.value = BUDGETS[change["new"]].images_seen
        self._changed(change)

    def start(self) -> Worker:
        """Train, draw and read whatever is not stored; it goes on in the background.

        Raises:
            WorkerBusy: this kernel is at this study already.
        """
        study, folder, reading = self.study, self.folder, self.reading
        return self._begin(lambda worker: answer_study(study, folder, worker, **reading))

    def plan(self) -> Worker:
        """Find out, in the background, what is stored and what the rest will cost."""
        study, folder = self.study, self.folder
        return self._begin(lambda worker: plan_study(study, folder, worker))

    # ------------------------------------------------------------------------------------------ what is shown

    @property
    def folder(self) -> Path:
        """Of the study that is shown."""
        return self.root / self.study.name

    @property
    def going_on_elsewhere(self) -> bool:
        """Whether processes, of this kernel or others, write packs of the study."""
        return bool(self.state.writers)

    def _stop_elsewhere(self) -> None:
        for run in find_runs(self.folder / "packs"):
            if run.writer() is not None:
                RunFolder.open(run.path).request_stop()

    @property
    def state(self) -> StudyState:
        """How far the study has come."""
        return read_study(self.study, self.folder, self.reading["name"])

    @property
    def code(self) -> str:
        """Python that does the same study without a panel."""
        design = self.design.value
        named = (design, self.scale.value) if design in DESIGNS else None
        return study_code(self.study, self.folder, named, **self.reading)

    def picture(self) -> Image.Image:
        """The study's figure, and below it what the selected variant drew.

        Raises:
            ValueError: the study is not finished.
        """
        state = self.state
        if state.report is None:
            raise ValueError(
                f"{self.folder}: the study is not finished, {state.stored} of {state.arms} arms are stored"
            )
        pictures = [Image.open(self._figure_path)] if self._figure_path.exists() else []
        strip = self._strip(state.report)
        return stacked(pictures + ([draw_strip(strip)] if strip else []))

    def refresh(self) -> None:
        """Show what the study's folder tells now; while work goes on this repeats itself every second."""
        with self._lock:
            worker, state = self.worker, self.state
            busy = worker is not None and worker.alive
            going_on = busy or bool(state.writers)
            self.start_button.description = "Running" if going_on else state.button
            self.start_button.disabled = going_on or bool(self._problem)
            self.stop_button.disabled = not going_on
            self.plan_button.disabled = going_on or bool(self._problem) or state.report is not None
            study = self.study
            seeds = f"{len(study.seeds)} training seeds"
            self.claim.value = f"<b>{escape(study.claim)}</b>: {len(study.variants)} variants × {seeds}"
            self.cost.value = escape(study_cost_text(state))
            self.status.value = f'<span role="status">{escape(self._problem or _status(state, worker))}</span>'
            self.progress.value = _progress(worker)
            self._show_cells()
            self._show_results(state.report)
            self.code_box.set(self.code)
            self._watch_while(going_on)

    def _show_cells(self) -> None:
        rows = table_of_cells(self.study, self.folder)
        head = "".join(f"<th scope='col'>seed {seed}</th>" for seed in self.study.seeds)
        body = "".join(
            f"<tr><th scope='row'>{escape(label)}</th>{''.join(f'<td>{escape(cell)}</td>' for cell in cells)}</tr>"
            for label, cells in rows
        )
        table = f"<table><tr><th></th>{head}</tr>{body}</table>" if rows else ""
        self.cells.value = f"<details><summary>what is stored</summary>{table}</details>" if table else ""

    @property
    def _figure_path(self) -> Path:
        return self.folder / f"figure-{self.reading['name']}.png"

    def _show_results(self, report: Mapping[str, Any] | None) -> None:
        shown = (self.folder, report["hash"] if report else None)
        if shown == self._shown:
            return
        self._shown = shown
        if report is None:
            self.points.points, self.points.selected = [], ""
            self.sentences.value = self.figure.value = self.strip.value = ""
            return
        lines = [
            f"<li>{escape(split.replace('_', '-'))} prompts: {escape(sentence)}</li>"
            for split, sentences in report["sentences"].items()
            for sentence in sentences
        ]
        self.sentences.value = f"<ul>{''.join(lines)}</ul>"
        path = self._figure_path
        told = f"{report['study']['claim']}: rates and differences with 95% intervals"
        self.figure.value = picture_html(path.read_bytes(), told, "48em") if path.exists() else ""
        self.points.title = "images with the expected radical, 95% interval; choose one to see what it drew"
        self.points.points = rate_points(report)
        self.points.selected = report["study"]["variants"][0]["label"]
        self._show_strip()

    def _strip(self, report: Mapping[str, Any]) -> Any:
        return variant_strip(report, self.folder, self.points.selected) if self.points.selected else None

    def _show_strip(self) -> None:
        if not self.points.selected or (report := self.state.report) is None:
            return
        if (strip := self._strip(report)) is None:
            self.strip.value = escape(f"The images of {self.points.selected} are not stored in {self.folder}.")
            return
        told = f"What {self.points.selected} drew: {', '.join(strip.row_labels)}"
        self.strip.value = picture_html(encode_png(draw_strip(strip)), told)


def _progress(worker: Worker | None) -> str:
    known = worker is not None and worker.alive and worker.total > 0
    return progress_html(worker.done, worker.total, worker.stage) if worker and known else ""


def _status(state: StudyState, worker: Worker | None) -> str:
    if worker is not None and worker.alive:
        stopping = "; it stops at the next step, and Resume goes on from there" if worker.stopping else ""
        return f"In this kernel: {worker.stage}{stopping}."
    if worker is not None and worker.error is not None:
        return f"Failed: {type(worker.error).__name__}: {worker.error}"
    if state.writers:
        return f"Going on in process {', '.join(state.writers)}."
    if state.report is not None:
        return "Finished."
    return "Stopped; Resume goes on." if state.stored or worker and worker.stopped else "Not begun."
