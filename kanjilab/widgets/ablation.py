"""The ablation panel: a study from its axes to its verdict, with what is stored, what the rest costs, and its images.

A thin shell over `experiments.run_study`: jobs run in a thread of the kernel (`worker.py`), and all that is shown is
read from the study's folder (`stored_studies.py`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
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
from kanjilab.experiments.results import Hits, Judge, kept_arms
from kanjilab.experiments.run_study import ablate, own_share
from kanjilab.experiments.study import Study
from kanjilab.viz.strip import draw_strip, encode_png
from kanjilab.widgets.common import (
    FOLDER,
    WRAP,
    Code,
    changed_fields,
    escape,
    label_of,
    labelled,
    picture_html,
    progress_html,
    python_call,
    stacked,
)
from kanjilab.widgets.stored_studies import (
    AXES,
    StudyPlan,
    StudyState,
    find_kept,
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

FREE, GIVEN, NONE = "my own axes", "the given study", "none"
BLANK = np.full((1, 64, 64), 255, dtype=np.uint8)
WIDE = widgets.Layout(width="24em")


class RatePoints(anywidget.AnyWidget):
    """Rates with intervals, one variant per row; a click, or Enter, selects one.

    Attributes:
        points: of `rate_points`.
        title: above them; untrusted.
        selected: label of the selected variant.
    """

    _esm = FOLDER / "rate_points.js"
    _css = FOLDER / "rate_points.css"
    points = traitlets.List().tag(sync=True)
    title = traitlets.Unicode().tag(sync=True)
    selected = traitlets.Unicode().tag(sync=True)


def check_reading(judge: Judge, hits: Hits) -> None:
    """Try on a blank image whether the hits can be computed from the judge's readings.

    Raises:
        ValueError: they cannot.
    """
    try:
        hits(judge.read(BLANK), [frozenset()])
    except (LookupError, ValueError) as error:
        raise ValueError(f"expected hits that fit the judge, as expected_part_hits fits A and B: {error}") from error


def reading_code(judge: Judge | None, name: str, hits: Hits) -> tuple[list[str], dict[str, Any]]:
    """The judge of a study's images, as Python.

    Args:
        judge, name, hits: as for `ablate`.
    Returns:
        Imports, and keyword arguments of `ablate`; the user's own judge or hits are called `judge` and `hits`.
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
    kept: Path | None = None,
) -> str:
    """Python that runs the same study without a panel, in the same folder.

    Args:
        study: the question.
        folder: of the study.
        named: design and scale that `make_study` makes it from, or None.
        judge, name, hits, kept: as for `ablate`; see `reading_code`.
    """
    imports, reading = reading_code(judge, name, hits)
    reading |= {"kept": kept} if kept else {}
    lines = ["from pathlib import Path", "", "from kanjilab.experiments.run_study import ablate", *imports]
    if named and make_study(*named, seeds=study.seeds) == study:
        seeds = {} if make_study(*named) == study else {"seeds": study.seeds}
        lines.append("from kanjilab.experiments.designs import make_study")
        made = python_call("make_study", *named, **seeds)
    else:
        lines += ["from kanjilab.core.config import Arm", "from kanjilab.experiments.study import Study, Variant"]
        lines.append("from kanjilab.models.sampling import Sampling")
        made = python_call("Study", **changed_fields(study))
    answered = python_call("ablate", Code("study"), folder, **reading)
    return "\n".join([*lines, "", f"study = {made}", f"report = {answered}"])


def plan_study(study: Study, folder: Path, kept: Path | None, name: str, worker: Worker) -> None:
    """A job: open the study, measure the cost of its packs, and store both in its folder.

    Args:
        study: the question.
        folder: of the study.
        kept, name: as for `ablate`.
        worker: to report progress to.
    """
    worker.tell("load the base and the data")
    with own_share() as share:
        lab = open_study(study, folder, share.device, progress=False)
        lab = dataclasses.replace(lab, kept=kept_arms(lab, kept, name) if kept else {})
        worker.tell("measure the cost")
        write_plan(study, folder, StudyPlan.of(lab, plan(lab)))
    worker.check()


def answer_study(study: Study, folder: Path, kept: Path | None, worker: Worker, **reading: Any) -> None:
    """A job: plan, then train, draw and judge what is not stored, pack by pack, to the end or to a stop.

    Args:
        study, folder, kept, worker: as for `plan_study`.
        **reading: judge, name and hits, as for `ablate`.
    """
    plan_study(study, folder, kept, reading["name"], worker)
    worker.tell("train")
    ablate(study, folder, kept=kept, progress=False, on_progress=worker.tell, say=lambda line: None, **reading)


class AblationPanel(WorkPanel):
    """A study from its axes to its verdict: choose it, see what is stored and what the rest costs, run it, compare.

    Each study is stored in a subfolder of its name, as by `kanjilab sweep`. A panel that is rebuilt shows the same, and
    resumes what was stopped or killed.

    Args:
        folder: of studies, such as runs/studies.
        study: shown first, in place of a design by name.
        design: one of `kanjilab.experiments.designs.DESIGNS`.
        scale: one of `BUDGETS`.
        seeds: training seeds, in place of the scale's.
        judge: of the images; the first judge by default.
        name: of the judge, for its files.
        hits: which of its readings show what was expected; `expected_part_hits` for judges A and B.
        kept: folder of finished studies, which are shown too, and whose arms are not trained again; by default
            figures/studies of the clone in which the notebook is.
    Raises:
        ValueError: the hits cannot be computed from the judge's readings.
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
        kept: Path | str | None = None,
    ):
        super().__init__("This study as code")
        if judge is not None:
            check_reading(judge, hits)
        self.root, self.given = Path(folder), study
        self.kept = Path(kept) if kept else find_kept()
        self.reading: dict[str, Any] = {"judge": judge, "name": name, "hits": hits}
        self.study = study or make_study(design, scale, seeds)
        self._shown: tuple[Any, ...] = ()
        self._make_inputs(design, scale, seeds)
        self._make_outputs()
        self.widget = self._laid_out()
        self._show_axes()
        self.refresh()

    def _make_inputs(self, design: str, scale: str, seeds: Sequence[int]) -> None:
        designs = [GIVEN] * (self.given is not None) + [*DESIGNS, FREE]
        self.design: Any = widgets.Dropdown(options=designs, value=GIVEN if self.given else design, layout=WIDE)
        self.scale: Any = widgets.Dropdown(options=list(BUDGETS), value=scale, layout=WIDE)
        self.seeds: Any = widgets.Text(
            value=", ".join(map(str, seeds)), placeholder="those of the scale", continuous_update=False, layout=WIDE
        )
        budget = BUDGETS[scale].images_seen
        self.images: Any = widgets.BoundedIntText(value=budget, min=1, max=10**9, layout=WIDE)
        axes = [(label_of(axis), axis) for axis in AXES]
        self.axes: Any = [
            widgets.Dropdown(options=axes, value="rank", layout=WIDE),
            widgets.Dropdown(options=[(NONE, NONE), *axes], value=NONE, layout=WIDE),
        ]
        self.chips = [widgets.HBox(layout=WRAP) for _ in self.axes]
        self.further = [widgets.Text(placeholder="then Enter", continuous_update=False, layout=WIDE) for _ in self.axes]
        labels = {"Study": self.design, "Scale": self.scale, "Training seeds": self.seeds, "Images seen": self.images}
        labels |= {"First axis": self.axes[0], "Second axis": self.axes[1]}
        labels |= {"Another value of the first": self.further[0], "Another value of the second": self.further[1]}
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
        """Check boxes for the values of an axis, the first two checked."""
        axis = self.axes[number].value
        self.further[number].disabled = axis == NONE
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

        def change() -> None:
            self.chips[number].children += (self._chip(value_from_text(self.axes[number].value, text), True),)
            self.further[number].value = ""
            self.study = self._read()

        self._try(change)

    def _make_outputs(self) -> None:
        self.claim, self.cells, self.sentences = widgets.HTML(), widgets.HTML(), widgets.HTML()
        self.points, self.figure = RatePoints(), widgets.HTML()
        self.strip = widgets.HTML(layout={"max_height": "44em", "overflow": "auto"})  # a study may have many prompts
        self.points.observe(lambda _: self._show_strip(), "selected")

    def _laid_out(self) -> widgets.VBox:
        rows = [
            widgets.VBox([widgets.HBox([axis, further], layout=WRAP), chips])
            for axis, further, chips in zip(self.axes, self.further, self.chips, strict=True)
        ]
        self.free = widgets.VBox([*rows, self.images])
        asked = widgets.HBox([self.design, self.scale, self.seeds], layout=WRAP)
        buttons = self._button_row("Plan", "Shows what is stored and what the rest costs", self.plan)
        shown = [self.claim, self.cost, buttons, self.status, self.progress, self.cells]
        results = [self.sentences, self.points, self.strip, self.figure]
        return widgets.VBox([asked, self.free, *shown, *results, self.code_box])

    def _show_axes(self) -> None:
        self.free.layout.display = "flex" if self.design.value == FREE else "none"
        self.scale.disabled = self.seeds.disabled = self.design.value == GIVEN

    def _read(self) -> Study:
        """The study that the inputs describe."""
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

    def _changed(self, _change: Any) -> None:
        self._show_axes()
        self._try(lambda: setattr(self, "study", self._read()))

    def _scaled(self, change: Any) -> None:
        self.images.value = BUDGETS[change["new"]].images_seen
        self._changed(change)

    def start(self) -> Worker:
        """Train, draw and judge, in the background, what is not stored."""
        study, folder, reading = self.study, self.folder, self.reading
        return self._begin(lambda worker: answer_study(study, folder, self.kept, worker, **reading))

    def plan(self) -> Worker:
        """Find out, in the background, what is stored and what the rest costs."""
        study, folder, name = self.study, self.folder, self.reading["name"]
        return self._begin(lambda worker: plan_study(study, folder, self.kept, name, worker))

    @property
    def folder(self) -> Path:
        """Of the shown study."""
        return self.root / self.study.name

    @property
    def running_elsewhere(self) -> bool:
        """Whether any process is writing packs of the study."""
        return bool(self.state.writers)

    def _stop_elsewhere(self) -> None:
        for run in find_runs(self.folder / "packs"):
            if run.writer() is not None:
                RunFolder.open(run.path).request_stop()

    @property
    def state(self) -> StudyState:
        """What is stored of the study."""
        return read_study(self.study, self.folder, self.reading["name"], self.kept)

    @property
    def code(self) -> str:
        """Python that runs the same study without a panel."""
        design = self.design.value
        named = (design, self.scale.value) if design in DESIGNS else None
        return study_code(self.study, self.folder, named, **self.reading, kept=self.kept)

    def picture(self) -> Image.Image:
        """The study's figure above the glyphs that the selected variant drew; of a finished study only."""
        state = self.state
        if state.report is None:
            raise ValueError(
                f"{self.folder}: the study is not finished; {state.stored} of {state.arms} arms are stored"
            )
        path = self._figure_path(state)
        pictures = [Image.open(path)] if path.exists() else []
        strip = self._strip(state)
        return stacked(pictures + ([draw_strip(strip)] if strip else []))

    def refresh(self) -> None:
        """Show the present state of the study's folder, and again every second while a job runs."""
        with self._lock:
            worker, state, study = self.worker, self.state, self.study
            running = bool(state.writers) or worker is not None and worker.alive
            self._show_buttons(state.button, running, state.report is not None)
            seeds = f"{len(study.seeds)} training seeds"
            self.claim.value = f"<b>{escape(study.claim)}</b>: {len(study.variants)} variants × {seeds}"
            self.cost.value = escape(study_cost_text(state))
            self._say(_status(state, worker))
            known = worker is not None and worker.alive and worker.total > 0
            self.progress.value = progress_html(worker.done, worker.total, worker.stage) if worker and known else ""
            self._show_cells()
            self._show_results(state)
            self.code_box.code = self.code
            self._watch_while(running)

    def _show_cells(self) -> None:
        rows = table_of_cells(self.study, self.folder)
        head = "".join(f"<th scope='col'>seed {seed}</th>" for seed in self.study.seeds)
        body = "".join(
            f"<tr><th scope='row'>{escape(label)}</th>{''.join(f'<td>{escape(cell)}</td>' for cell in cells)}</tr>"
            for label, cells in rows
        )
        table = f"<table><tr><th></th>{head}</tr>{body}</table>" if rows else ""
        self.cells.value = f"<details><summary>Stored trainings</summary>{table}</details>" if table else ""

    def _figure_path(self, state: StudyState) -> Path:
        return (state.source or self.folder) / f"figure-{self.reading['name']}.png"

    def _show_results(self, state: StudyState) -> None:
        report = state.report
        shown = (self.folder, state.source, report["hash"] if report else None)
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
        path = self._figure_path(state)
        alternative = f"{report['study']['claim']}: rates and differences with 95% intervals"
        self.figure.value = picture_html(path.read_bytes(), alternative, "48em") if path.exists() else ""
        self.points.title = "Images with the expected radical, 95% interval. Select a variant to see what it drew."
        self.points.points = rate_points(report)
        self.points.selected = report["study"]["variants"][0]["label"]
        self._show_strip()

    def _strip(self, state: StudyState) -> Any:
        if state.report is None or state.source is None or not self.points.selected:
            return None
        return variant_strip(state.report, state.source, self.points.selected)

    def _show_strip(self) -> None:
        state, selected = self.state, self.points.selected
        if (strip := self._strip(state)) is not None:
            alternative = f"What {selected} drew: {', '.join(strip.row_labels)}"
            self.strip.value = picture_html(encode_png(draw_strip(strip)), alternative)
        elif state.report is not None and selected:
            self.strip.value = escape(f"The images of {selected} are not stored in {state.source}.")


def _status(state: StudyState, worker: Worker | None) -> str:
    if worker is not None and worker.alive:
        stopping = "; it stops at the next step, and Resume continues from there" if worker.stopping else ""
        return f"In this kernel: {worker.stage}{stopping}."
    if worker is not None and worker.error is not None:
        return f"Failed: {type(worker.error).__name__}: {worker.error}"
    if state.writers:
        return f"Running in process {', '.join(state.writers)}."
    if state.report is not None:
        return "Finished."
    return "Stopped; Resume continues." if state.stored or worker and worker.stopped else "Not started."
