"""A study's arms are packed into few trainings, trained, drawn, read, and end in one table.

A study's folder:

    study.json, plans/           what was asked, and the packs that it was cut into
    data/<rule>/                 its image folders
    packs/<hash>/                run folders: one training of several arms, its samples, results/ and scores/
    table-, report-, figure-<judge>    once every arm is there

Every file appears whole or not at all, and an arm is known by the hash of all that it is made of. So a study that was
killed goes on, packs may be done by any number of processes or machines, and folders of packs can simply be copied
together.
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
from kanjilab.evaluation.judges.radical_judge import RadicalJudge
from kanjilab.evaluation.metrics import expected_radical_hits
from kanjilab.experiments.context import open_study
from kanjilab.experiments.packs import missing, plan, plan_text, run_pack
from kanjilab.experiments.results import Hits, Judge, kept_arms, write_report
from kanjilab.experiments.study import Study
from kanjilab.models.loading import cache_folder, usual_device

LAUNCHER = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")  # what torchrun and accelerate tell


@dataclass(frozen=True)
class Share:
    """Which of how many processes this is, how many of them are on this machine, and its device."""

    index: int
    processes: int
    on_this_machine: int
    device: str


@contextmanager
def own_share() -> Iterator[Share]:
    """What torchrun or `accelerate launch` told this process.

    Within it nothing else sees the others: each process does whole packs by itself, and none waits for another.
    """
    device = usual_device()
    told = {name: os.environ.pop(name) for name in LAUNCHER if name in os.environ}
    try:
        if device.type == "cuda":
            torch.cuda.set_device(device)
        index, processes = int(told.get("RANK", 0)), int(told.get("WORLD_SIZE", 1))
        yield Share(index, processes, int(told.get("LOCAL_WORLD_SIZE", 1)), str(device))
    finally:
        os.environ.update(told)


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
    """Answers a study, or does its share of it. Called again it goes on, and what is stored is not done again.

    Under torchrun or `accelerate launch` every process takes its share of the packs; whoever finds all of them stored
    at its end writes table, report and figure.

    Args:
        folder: of the study.
        judge: who reads the images; the first judge by default.
        name: of the judge, for its files.
        hits: which of its readings show what was expected.
        only: numbers of packs, as an array job does one each; all by default.
        most_arms: arms in one training.
        memory_gb: memory that a training may take; by default most of what is free.
        keep_adapters: leave each pack's last checkpoint.
        kept: holds folders of finished studies, whose arms are taken as they were read, and not trained again.
        dry_run: tell the packs and their cost, and do no more.
        progress: show bars while training and drawing.
        on_progress: told of every step and arm, see `run_pack`.
        say: told what goes on.
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
        if dry_run:
            return None
        numbers = list(range(len(packs)))[share.index :: share.processes] if only is None else list(only)
        if unknown := [number for number in numbers if not 0 <= number < len(packs)]:
            raise ValueError(f"expected numbers of packs from 0 to {len(packs) - 1}, got {unknown}")
        write_json_atomic(folder / "study.json", study.to_json())
        for number in numbers:
            run_pack(context, packs[number], keep_adapters, progress, on_progress)
        if left := missing(context):
            say(f"{folder}: {left} of {len(context.trainings())} arms are not there yet")
            return None
        judge = judge or RadicalJudge.load_or_fit(cache_folder() / "judges")
        return write_report(context, judge, name, hits)
