"""Runs a study: its arms are packed into few trainings, trained, drawn and read, and end in one table.

A study's folder:

    study.json, plans/           what was asked, and the packs that it was cut into
    data/<rule>/                 its image folders
    packs/<hash>/                run folders: one training of several arms, its samples, results/ and scores/
    table-, report-, figure-<judge>    once every arm is there
    images/                      what each arm drew, as small sheets (`image_sheets.py`)

Files are written atomically, and an arm's key is the hash of all its settings. So a study that was killed resumes,
any number of processes or machines can share the packs, and folders of packs can be copied together.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from kanjilab.core.storage import write_json_atomic
from kanjilab.evaluation.judges.part_judge import load_judge
from kanjilab.evaluation.judges.radical_judge import RadicalJudge
from kanjilab.evaluation.metrics import expected_part_hits, expected_radical_hits
from kanjilab.experiments.context import open_study
from kanjilab.experiments.image_sheets import write_sheets
from kanjilab.experiments.packs import missing, plan, plan_text, run_pack
from kanjilab.experiments.results import Hits, Judge, kept_arms, write_report
from kanjilab.experiments.study import Study
from kanjilab.models.loading import cache_folder, usual_device

LAUNCHER = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")  # set by torchrun and accelerate


@dataclass(frozen=True)
class Share:
    """Which of how many processes this is, how many of them are on this machine, and its device."""

    index: int
    processes: int
    on_this_machine: int
    device: str


@contextmanager
def own_share() -> Iterator[Share]:
    """The share that torchrun or `accelerate launch` gives this process.

    Within the block the launcher's variables are unset: each process does whole packs, and none waits for another.
    """
    device = usual_device()
    launched = {name: os.environ.pop(name) for name in LAUNCHER if name in os.environ}
    try:
        if device.type == "cuda":
            torch.cuda.set_device(device)
        index, processes = int(launched.get("RANK", 0)), int(launched.get("WORLD_SIZE", 1))
        yield Share(index, processes, int(launched.get("LOCAL_WORLD_SIZE", 1)), str(device))
    finally:
        os.environ.update(launched)


def ablate(
    study: Study,
    folder: Path,
    *,
    judge: Judge | None = None,
    name: str = "radicals",
    hits: Hits = expected_radical_hits,
    only: Sequence[int] | None = None,
    most_arms: int = 8,
    memory_gb: float | None = None,
    keep_adapters: bool = False,
    kept: Path | None = None,
    dry_run: bool = False,
    progress: bool = True,
    on_progress: Callable[[str, int, int], None] = lambda stage, done, total: None,
    say: Callable[[str], None] = print,
) -> dict[str, Any] | None:
    """Answers a study, or does this process's share of it. Called again, it resumes; stored arms are not trained again.

    Under torchrun or `accelerate launch` every process takes its share of the packs. A process that ends when all are
    stored writes table, report, figure, and the sheets of images.

    Args:
        folder: of the study.
        judge, name, hits: as for `write_report`; the first judge by default.
        only: numbers of packs, as an array job does one each; all by default.
        most_arms, memory_gb: as for `plan`; by default most of the memory that is free.
        keep_adapters, progress, on_progress: as for `run_pack`.
        kept: holds folders of finished studies, whose arms are taken from their tables, not trained again.
        dry_run: only say which packs there are and what they cost.
        say: takes each line of output.
    Returns:
        The report, or None while arms are missing.
    Raises:
        ValueError: a number of no pack.
    """
    with own_share() as share:
        context = open_study(study, folder, share.device, progress=progress)
        if kept is not None:
            context = dataclasses.replace(context, kept=kept_arms(context, kept, name))
        packs = plan(context, most_arms, memory_gb, 0.8 if share.device != "cpu" else 0.8 / share.on_this_machine)
        say(plan_text(context, packs))
        numbers = list(range(len(packs)))[share.index :: share.processes] if only is None else list(only)
        if unknown := [number for number in numbers if not 0 <= number < len(packs)]:
            raise ValueError(f"expected numbers of packs from 0 to {len(packs) - 1}, got {unknown}")
        if dry_run:
            return None
        write_json_atomic(folder / "study.json", study.to_json())
        for number in numbers:
            run_pack(context, packs[number], keep_adapters, progress, on_progress)
        if left := missing(context):
            say(f"{folder}: {left} of {len(context.trainings())} arms are not there yet")
            return None
        judge = judge or RadicalJudge.load_or_fit(cache_folder() / "judges")
        report = write_report(context, judge, name, hits)
        write_sheets(folder, kept)
        return report


def ablate_by_both(study: Study, folder: Path) -> dict[str, dict[str, Any]] | None:
    """A study answered by the first judge and by judge B: the rates and contrasts of each, by the judge's name.

    Args:
        study, folder: as for `ablate`.
    Returns:
        None while arms are missing.
    """
    judge_b: dict[str, Any] = {"judge": load_judge("B"), "name": "judge-b", "hits": expected_part_hits}
    reports = {"radicals": ablate(study, folder), "judge-b": ablate(study, folder, **judge_b)}
    found = {
        name: {part: report[part] for part in ("rates", "contrasts")} for name, report in reports.items() if report
    }
    return found if len(found) == len(reports) else None
