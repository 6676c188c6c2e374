"""Jobs over a study, as a panel starts them, and the same as Python: measure the cost; train, draw and judge."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from kanjilab.evaluation.judges.part_judge import Judge as PartsJudge
from kanjilab.evaluation.judges.part_judge import load_judge
from kanjilab.evaluation.metrics import expected_part_hits, expected_radical_hits
from kanjilab.experiments.context import open_study
from kanjilab.experiments.designs import BUDGETS, DESIGNS, make_study
from kanjilab.experiments.packs import plan
from kanjilab.experiments.results import Hits, Judge, kept_arms
from kanjilab.experiments.run_study import ablate, own_share
from kanjilab.experiments.study import Study
from kanjilab.widgets.common import Code, changed_fields, python_call
from kanjilab.widgets.stored_studies import StudyPlan, write_plan
from kanjilab.widgets.worker import Worker

BLANK = np.full((1, 64, 64), 255, dtype=np.uint8)
PART_JUDGES = {"judge-a": "A", "judge-b": "B"}  # by the names of their files


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
    judge: Judge | None = None,
    name: str = "radicals",
    hits: Hits = expected_radical_hits,
    kept: Path | None = None,
) -> str:
    """Python that runs the same study without a panel, in the same folder.

    Args:
        study: the question.
        folder: of the study.
        judge, name, hits, kept: as for `ablate`; see `reading_code`.
    """
    imports, reading = reading_code(judge, name, hits)
    reading |= {"kept": kept} if kept else {}
    lines = ["from pathlib import Path", "", "from kanjilab.experiments.run_study import ablate", *imports]
    design, _, scale = study.name.rpartition("-")
    named = design in DESIGNS and scale in BUDGETS
    if named and make_study(design, scale, seeds=study.seeds) == study:
        seeds = {} if make_study(design, scale) == study else {"seeds": study.seeds}
        lines.append("from kanjilab.experiments.designs import make_study")
        made = python_call("make_study", design, scale, **seeds)
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


def answer_study(
    study: Study, folder: Path, kept: Path | None, worker: Worker, readings: Sequence[dict[str, Any]]
) -> None:
    """A job: plan, then train, draw and judge what is not stored, pack by pack, to the end or to a stop.

    Args:
        study, folder, kept, worker: as for `plan_study`.
        readings: judge, name and hits of each judge that reads the images, as for `ablate`; one at least.
    """
    plan_study(study, folder, kept, readings[0]["name"], worker)
    worker.tell("train")
    for reading in readings:
        ablate(study, folder, kept=kept, progress=False, on_progress=worker.tell, say=lambda line: None, **reading)


def further_readings(folder: Path) -> list[dict[str, Any]]:
    """The judges of parts that read a stored study, as `ablate` takes them.

    Args:
        folder: of the study.
    """
    names = [name for name in PART_JUDGES if (folder / f"report-{name}.json").exists()]
    return [{"judge": load_judge(PART_JUDGES[name]), "name": name, "hits": expected_part_hits} for name in names]
