"""The ablation panel: sliders over a stored study, and what no slider has yet trained beside its neighbours.

The browser's side (`ablation.js`) holds the whole study, so that every move shows at once. Jobs run in a thread of
the kernel (`worker.py`), and all that is shown is read from the studies' folders.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ipywidgets as widgets
from PIL import Image

from kanjilab.core.notices import notice_once
from kanjilab.core.run_folder import RunFolder, find_runs
from kanjilab.evaluation.metrics import expected_radical_hits
from kanjilab.experiments.image_sheets import ImageSheets, write_sheets
from kanjilab.experiments.results import Hits, Judge
from kanjilab.experiments.study import Study, read_report
from kanjilab.viz.strip import Strip, draw_strip
from kanjilab.widgets.ablation_catalogue import StudySettings, menu, study_catalogue
from kanjilab.widgets.ablation_view import AblationView
from kanjilab.widgets.common import FoldButton, Panel, escape, panel_box, progress_html, stacked
from kanjilab.widgets.run_ablation import RunsPanel
from kanjilab.widgets.stored_studies import (
    StudyState,
    find_kept,
    read_study,
    setting_strip,
    study_cost_text,
    study_with,
    value_of_axis,
)
from kanjilab.widgets.study_inputs import StudyInputs
from kanjilab.widgets.study_job import answer_study, check_reading, further_readings, plan_study, study_code
from kanjilab.widgets.work_panel import WorkPanel
from kanjilab.widgets.worker import Worker, WorkerBusy

OWN, STORED = "Yours", "Stored with kanjilab"


class AblationPanel(WorkPanel):
    """Sliders over stored studies: what each setting drew, its score, and the curve over each axis.

    A combination that is not stored can be trained from the panel; it becomes a stop of the sliders. Each study is
    stored in a subfolder of its name, as by `kanjilab sweep`. A panel that is rebuilt shows the same, and resumes what
    was stopped or killed.

    Args:
        folder: of the user's own studies, such as runs/studies.
        study: shown first, in place of one that is stored.
        design: one of `kanjilab.experiments.designs.DESIGNS`: a stored study of it is shown first.
        scale: of the design, one of `BUDGETS`.
        seeds: training seeds, in place of the scale's.
        judge: of the images; the first judge by default.
        name: of the judge, for its files.
        hits: which of its readings show what was expected; `expected_part_hits` for judges A and B.
        kept: folder of finished studies, which are shown too, and whose arms are not trained again; by default
            figures/studies of the clone in which the notebook is.
    Attributes:
        study: what `start` trains, and `state` and `code` are of.
        shown: folder of the study that the sliders show; None where nothing is stored.
    Raises:
        ValueError: the hits cannot be computed from the judge's readings.
    """

    def __init__(
        self,
        folder: Path | str,
        study: Study | None = None,
        *,
        design: str | None = None,
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
        self.root = Path(folder)
        self.kept = Path(kept) if kept else find_kept()
        self.reading: dict[str, Any] = {"judge": judge, "name": name, "hits": hits}
        self.shown: Path | None = None
        self._added: dict[Path, dict[str, list[Any]]] = {}  # stops that no training has, by study and axis
        self._parent: Path | None = None  # of a study to which a variant was added: the study with the others
        self._asked: dict[str, Any] = {}  # the combination that it was added for
        self._seen: tuple[Path | None, str] = None, ""  # folder and hash of the study's report, when last looked at
        self.inputs = StudyInputs(study, design or "rank", scale, seeds, self._inputs_changed)
        self.study = self.inputs.read()
        self.view = AblationView(menu=self._menu())
        self.widget = self._laid_out()
        self._show_first(asked=study is not None or design is not None, design=design or "")
        self.view.observe(lambda change: self._choose(Path(change["new"])), "chosen")
        self.view.on_msg(self._answer)

    @staticmethod
    def of_runs(folder: Path | str) -> Panel:
        """The same sliders over any folder of runs: their axes are the settings that differ.

        Args:
            folder: searched for runs to any depth.
        Raises:
            ValueError: fewer than two trainings are there.
        """
        return RunsPanel(folder)

    def _laid_out(self) -> widgets.VBox:
        self.claim, self.figure = widgets.HTML(), widgets.HTML()
        buttons = self._button_row("Plan", "Shows what is stored and what the rest costs", self.plan)
        self.own = widgets.VBox(
            [self.inputs.widget, self.claim, self.cost, buttons, self.status, self.progress, self.code_box]
        )
        self.fold = FoldButton(title="Train a study of your own")
        self.fold.observe(lambda change: self._fold(change["new"]), "opened")
        return widgets.VBox([self.view, panel_box([self.fold, self.own])])

    def _fold(self, opened: bool) -> None:
        self.fold.opened, self.own.layout.display = opened, "flex" if opened else "none"

    # ------------------------------------------------------------------------------------------ what is shown

    def _menu(self) -> list[dict[str, Any]]:
        return menu({STORED: self.kept, OWN: self.root})

    def _show_first(self, asked: bool, design: str) -> None:
        """Show the study that was asked for if it is stored, or else the first whole one, of the same design if any."""
        paths = [Path(entry["path"]) for group in self.view.menu for entry in group["studies"]]
        alike = [path for path in paths if design and path.name.startswith(f"{design}-")]
        source = self.state.source if asked else None
        wished: list[Path] = [*([source] if source else []), *alike, *paths]
        for path in dict.fromkeys(wished):
            if self._opened(path):
                break
        if not asked and self.shown:
            self.study = self._shown_study()
        self._seen = self._report_of(self.state)
        self._fold(asked and source != self.shown or self.shown is None)
        self.refresh()

    @staticmethod
    def _report_of(state: StudyState) -> tuple[Path | None, str]:
        return state.source, state.report["hash"] if state.report else ""

    def _open(self, folder: Path, at: dict[str, Any] | None = None) -> None:
        """Show a finished study, at a combination of stops if one is given."""
        if ImageSheets.read(folder) is None and (folder / "packs").is_dir():
            write_sheets(folder)  # of a study that was finished before there were sheets
        catalogue, images = study_catalogue(folder, self._added.get(folder))
        self.shown = folder
        with self.view.hold_sync():
            self.view.menu = self._menu()
            if at:
                self.view.state = {**self.view.state, "study": catalogue["name"], "at": at}
            self.view.catalogue, self.view.images, self.view.chosen = catalogue, images, str(folder)

    def _opened(self, folder: Path, at: dict[str, Any] | None = None) -> bool:
        """`_open` a study; where it is incomplete or damaged, tell that and leave what is shown."""
        try:
            self._open(folder, at)
        except (OSError, ValueError) as error:
            reason = f"{error}; the study is not shown"
            notice_once(reason)
            self.view.send({"kind": "refused", "reason": reason})
            return False
        return True

    def _shown_study(self) -> Study:
        return read_report(self._shown_path())[1]

    def _shown_report(self) -> dict[str, Any]:
        return read_report(self._shown_path())[0]

    def _shown_path(self) -> Path:
        if self.shown is None:
            raise ValueError(f"{self.root}: no finished study is stored there")
        return min(self.shown.glob("report-*.json"))

    def _choose(self, folder: Path) -> None:
        """Show the study that was chosen from the menu."""
        paths = [entry["path"] for group in self.view.menu for entry in group["studies"]]
        if folder == self.shown or str(folder) not in paths:
            return
        if self._opened(folder):
            self._take(self._shown_study())
        else:
            self.view.chosen = str(self.shown or "")

    def _take(self, study: Study, parent: Path | None = None) -> None:
        self.study, self._parent, self._problem = study, parent, ""
        self._seen = self._report_of(self.state)
        self.refresh()

    def _inputs_changed(self) -> None:
        def change() -> None:
            self.study, self._parent = self.inputs.read(), None
            state = self.state
            self._seen = self._report_of(self.state)
            if state.source is not None:
                self._opened(state.source)

        self._try(change)

    # ------------------------------------------------------------------------------------------ jobs

    @property
    def folder(self) -> Path:
        """Of the study that `start` trains."""
        return self.root / self.study.name

    @property
    def _kept_from(self) -> Path | None:
        """Holds the finished studies whose arms are taken over."""
        return self._parent.parent if self._parent else self.kept

    def start(self) -> Worker:
        """Train, draw and judge, in the background, what is not stored."""
        study, folder, kept = self.study, self.folder, self._kept_from
        first_judge = self.reading["judge"] is None and self.reading["name"] == "radicals"
        readings = [self.reading, *(further_readings(self._parent) if self._parent and first_judge else [])]
        return self._begin(lambda worker: answer_study(study, folder, kept, worker, readings))

    def plan(self) -> Worker:
        """Find out, in the background, what is stored and what the rest costs."""
        study, folder, kept, name = self.study, self.folder, self._kept_from, self.reading["name"]
        return self._begin(lambda worker: plan_study(study, folder, kept, name, worker))

    @property
    def running_elsewhere(self) -> bool:
        """Whether any process is writing packs of the study."""
        return bool(self.state.writers)

    def _stop_elsewhere(self) -> None:
        for run in find_runs(self.folder / "packs"):
            if run.writer() is not None:
                RunFolder.open(run.path).request_stop()

    def _answer(self, _widget: Any, message: dict[str, Any], _buffers: Any) -> None:
        """Answer a message of the browser."""
        try:
            if message["kind"] == "add":
                self.add_stop(message["axis"], message["value"])
            elif message["kind"] in ("train", "measure"):
                self.ask(message["at"])
                _ = self.start() if message["kind"] == "train" else self.plan()
            elif message["kind"] == "stop":
                self.stop()
        except (ValueError, WorkerBusy) as error:
            self.view.send({"kind": "refused", "reason": f"Not possible: {error}"})

    def _settings(self) -> StudySettings:
        added = self._added.get(self.shown, {}) if self.shown else {}
        return StudySettings.of(self._shown_study(), self._shown_report(), added)

    def add_stop(self, name: str, text: str) -> None:
        """Give a slider a stop that no training has, and move it there.

        Args:
            name: of the axis.
            text: the value, as typed.
        Raises:
            ValueError: no such axis, or a value that its setting does not allow.
        """
        settings, folder = self._settings(), self.shown
        axis = next((axis for axis in settings.axes if axis.name == name), None)
        if axis is None or folder is None:
            raise ValueError(f"expected one of the axes {[axis.name for axis in settings.axes]}, got {name!r}")
        value = value_of_axis(axis, text)
        at = {**settings.places[0], **self.view.state.get("at", {}), name: value}
        if value not in axis.values:
            axes = tuple(other.with_value(value) if other.name == name else other for other in settings.axes)
            settings = StudySettings(settings.labels, settings.index, settings.arms, axes, settings.places)
            study_with(self._shown_study(), settings, at)  # refuses what cannot be trained
            self._added.setdefault(folder, {}).setdefault(name, []).append(value)
        self._open(folder, at)

    def ask(self, at: dict[str, Any]) -> None:
        """Make a combination of stops that the shown study does not have the next thing that `start` trains.

        Args:
            at: axis -> value, for every axis of the shown study.
        Raises:
            ValueError: a value that a setting does not allow; no finished study is shown.
        """
        study = study_with(self._shown_study(), self._settings(), at)
        self._asked = dict(at)
        self._take(study, self.shown)

    # ------------------------------------------------------------------------------------------ status

    @property
    def state(self) -> StudyState:
        """What is stored of the study."""
        return read_study(self.study, self.folder, self.reading["name"], self.kept)

    @property
    def code(self) -> str:
        """Python that runs the same study without a panel."""
        return study_code(self.study, self.folder, **self.reading, kept=self._kept_from)

    def picture(self) -> Image.Image:
        """The study's figure above the glyphs that the shown setting drew; of a finished study only."""
        state = self.state
        if state.report is None or state.source is None:
            raise ValueError(
                f"{self.folder}: the study is not finished; {state.stored} of {state.arms} arms are stored"
            )
        path = state.source / f"figure-{self.reading['name']}.png"
        pictures = [Image.open(path)] if path.exists() else []
        strip = self.strip()
        return stacked(pictures + ([draw_strip(strip)] if strip else []))

    def strip(self) -> Strip | None:
        """What the shown setting drew, as a static strip; None where its images are not stored."""
        if self.shown is None:
            return None
        settings, state = self._settings(), self.view.state
        fits = [number for number, at in enumerate(settings.places) if at == state.get("at")]
        return setting_strip(self.shown, settings.labels[fits[0] if fits else self.view.catalogue["first"]])

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
            self.code_box.code = self.code
            self._show_finished(state, running)
            self.view.work = self._work(state, worker, running)
            self._watch_while(running)

    def _show_finished(self, state: StudyState, running: bool) -> None:
        """Show the study when it has come to its end since it was last looked at."""
        if running or state.source is None or self._report_of(state) == self._seen:
            return
        self._seen = self._report_of(state)
        added = self._added.pop(self._parent, {}) if self._parent else {}
        self._added[state.source] = {**self._added.get(state.source, {}), **added}
        self._opened(state.source, self._asked if self._parent else None)

    def _work(self, state: StudyState, worker: Worker | None, running: bool) -> dict[str, Any]:
        """What the browser says of the training of a combination that was asked for in it."""
        if self._parent is None:
            return {}
        alive = worker is not None and worker.alive
        text = (f"{worker.stage}, then stop" if worker.stopping else worker.stage) if worker and alive else "running"
        done, total = (worker.done, worker.total) if worker and alive else (0, 0)
        problem = f"Failed: {type(worker.error).__name__}: {worker.error}" if worker and worker.error else ""
        cost = study_cost_text(state) if state.planned and state.report is None else ""
        work = {"running": running, "text": text, "done": done, "total": total, "problem": problem}
        return work | {"cost": cost, "at": self._asked}


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
