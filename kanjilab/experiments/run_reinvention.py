"""Runs the re-invention experiment: train without some characters, then prompt with the meanings of their parts.

`kanjilab.experiments.reinvention` chooses the prompts and scores the images; this module does the work in one folder:

    items.json                          the withheld characters and their prompts
    data/, run/                         the image folder without them, and the training
    strip.png, table.parquet, report.json
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from kanjilab.core.config import Arm, settings_hash
from kanjilab.core.run_folder import RunFolder
from kanjilab.core.storage import write_bytes_atomic, write_json_atomic
from kanjilab.data.build import build_dataset
from kanjilab.data.components import load_components
from kanjilab.data.dictionary import load_characters
from kanjilab.data.rendering import default_font, draw_font, drawable_characters
from kanjilab.data.selection import Left16, Rule
from kanjilab.evaluation.judges.part_judge import Judge, judge_facts, load_judge
from kanjilab.evaluation.scoring import glyphs_of
from kanjilab.experiments.demo import run_facts
from kanjilab.experiments.reinvention import (
    Item,
    Without,
    choose_items,
    choose_novel_items,
    reinvention_summary,
    score_items,
    word_order_consistency,
)
from kanjilab.models.loading import LatentDiffusion, load_base
from kanjilab.models.sampling import Sampling, sample
from kanjilab.training.checkpoints import load_checkpoints
from kanjilab.training.driver import finished_training
from kanjilab.training.encoded import encode_dataset
from kanjilab.training.presets import DEMO_SAMPLING, PLAIN_ARM
from kanjilab.viz.strip import Strip, save_strip

BY_PARTS, REVERSED, BY_MEANING, NEW_PAIRS = "T1, by parts", "T1, parts reversed", "T2, by meaning", "T3, new pairs"
FLOOR = " read as answers to another item"
STRIP_ROWS, STRIP_IMAGES = 12, 3


@dataclass(frozen=True)
class ReinventionScale:
    """How much of the experiment is done.

    Args:
        images_seen: budget of the training.
        items: most that are withheld, and most new pairs.
        seeds: images a prompt, the same noise for all.
    """

    images_seen: int
    items: int
    seeds: int


SCALES = {
    "smoke": ReinventionScale(images_seen=64, items=4, seeds=2),
    "full": ReinventionScale(images_seen=28_000, items=300, seeds=8),
}


@dataclass(frozen=True)
class Asked:
    """One task: items, and the prompt for each."""

    items: tuple[Item, ...]
    prompts: tuple[str, ...]


def run_reinvention(
    folder: Path,
    *,
    rule: Rule | None = None,
    base_name: str = "pocket",
    arm: Arm = PLAIN_ARM,
    scale: ReinventionScale = SCALES["full"],
    judge: Judge | None = None,
    precision: str = "bf16",
    sampling: Sampling = DEMO_SAMPLING,
) -> dict[str, Any]:
    """Withholds, trains, draws and scores. Called again, it resumes.

    Args:
        folder: new, or of an earlier call with the same settings.
        rule: of the training set before anything is withheld; left16 by default.
        base_name: as for `load_base`; only one that has never seen a kanji can re-invent one.
        arm: what is trained; its budget is the scale's.
        scale: how much of everything.
        judge: ranks the characters; B by default.
        precision: of the frozen denoiser.
        sampling: how images are drawn.
    Returns:
        The report that was written: run, items, and each task's scores beside those by luck, with 95% intervals.
    Raises:
        ValueError: the rule leaves no item to withhold.
        InterruptedError: a STOP file ended the training.
    """
    base, judge = load_base(base_name, precision), judge or load_judge("B")
    items, without = withhold(rule or Left16(), scale.items)
    folder.mkdir(parents=True, exist_ok=True)
    write_json_atomic(folder / "items.json", [dataclasses.asdict(item) for item in items])
    dataset = build_dataset(without, folder / "data")
    train = dataset.split("train")
    arm = dataclasses.replace(arm, images_seen=scale.images_seen)
    run = finished_training(base, encode_dataset(base, train), [arm], folder / "run", checkpoints=1)
    trained_on = set(train.table["character"])
    asked = tasks(items, choose_novel_items(load_characters(), load_components(), trained_on, scale.items))
    images = {name: draw(base, run, task.prompts, range(scale.seeds), sampling) for name, task in asked.items()}
    save_strip(answer_strip(asked, images, run), folder / "strip.png")
    tables = {name: score_items(judge, load_components(), asked[name].items, drawn) for name, drawn in images.items()}
    scored = tables | floors(judge, asked, images)
    report = run_facts(run, dataset) | {
        "images_seen": run.read_log()["images_seen"].iloc[-1][0],
        "sampling": sampling.to_json(),
        "seeds": scale.seeds,
        "judge": judge_facts(judge),
        "items": {name: len(task.items) for name, task in asked.items()},
        "scores": {name: reinvention_summary(table).to_dict(orient="index") for name, table in scored.items()},
        "word_order": word_order_consistency(tables[BY_PARTS], tables[REVERSED])._asdict(),
    }
    table = pd.concat(tables, names=["task"]).reset_index(level="task")
    write_bytes_atomic(folder / "table.parquet", table.to_parquet())
    write_json_atomic(folder / "report.json", report)
    return report


def withhold(rule: Rule, count: int) -> tuple[list[Item], Without]:
    """Items from all characters that a rule could choose, and the rule that withholds them.

    Args:
        rule: of the training set.
        count: most items.
    Raises:
        ValueError: there is no such item.
    """
    characters, components = load_characters(), load_components()
    drawable = drawable_characters(characters.index, default_font())
    items = choose_items(characters, components, set(rule.pool(characters, drawable).index), count)
    if not items:
        raise ValueError(f"expected two-part characters to withhold from {rule.name}, got none")
    withheld = {character for item in items for character in item.withheld}
    return items, Without.known(rule, withheld, characters, components)


def tasks(items: Sequence[Item], new: Sequence[Item]) -> dict[str, Asked]:
    """The tasks: withheld characters by their parts in either order and by meaning, and pairs that exist nowhere.

    Args:
        items: of `choose_items`.
        new: of `choose_novel_items`; may be empty.
    """
    asked = {
        BY_PARTS: Asked(tuple(items), tuple(item.by_parts for item in items)),
        REVERSED: Asked(tuple(items), tuple(item.by_parts_reversed for item in items)),
        BY_MEANING: Asked(tuple(items), tuple(item.meaning for item in items)),
    }
    return asked | ({NEW_PAIRS: Asked(tuple(new), tuple(item.by_parts for item in new))} if new else {})


def draw(
    base: LatentDiffusion,
    run: RunFolder,
    prompts: Sequence[str],
    seeds: Sequence[int],
    sampling: Sampling,
    arm: int = 0,
) -> np.ndarray:
    """Every prompt with every seed from an arm's last checkpoint; read, where an earlier call stored them.

    Args:
        prompts: P. seeds: S.
        arm: of the run.
    Returns:
        (P, S, H, W) uint8 glyphs.
    """
    facts = {"step": run.checkpoints()[-1], "arm": arm, "prompts": list(prompts), "seeds": list(seeds)}
    facts |= {"sampling": sampling.to_json()}
    if (name := f"asked_{settings_hash(facts)}") not in run.samples():
        images = sample(base, prompts, seeds, sampling, trainable=load_checkpoints(base, run, [facts["step"]], arm))[0]
        run.write_samples(name, glyphs_of(images).reshape(*images.shape[:4]), facts)
    return run.read_samples(name)[0]


def floors(judge: Judge, asked: dict[str, Asked], images: dict[str, np.ndarray]) -> dict[str, pd.DataFrame]:
    """The scores by luck: each image read as the answer to the next item.

    Args:
        judge: ranks the characters.
        asked: tasks by name.
        images: (I, S, H, W) uint8 of each.
    """
    others = {name: (*task.items[1:], task.items[0]) for name, task in asked.items()}
    return {name + FLOOR: score_items(judge, load_components(), others[name], drawn) for name, drawn in images.items()}


def answer_strip(asked: dict[str, Asked], images: dict[str, np.ndarray], run: RunFolder) -> Strip:
    """The first items in rows: the withheld character, and the drawings by parts and by meaning.

    Args:
        asked, images: as for `floors`.
        run: what drew them.
    """
    items = asked[BY_PARTS].items[:STRIP_ROWS]
    shown = min(STRIP_IMAGES, images[BY_PARTS].shape[1])
    real = np.stack([np.asarray(draw_font(item.character, default_font())) for item in items])
    columns = [real[:, None], *(images[name][: len(items), :shown] for name in (BY_PARTS, BY_MEANING))]
    return Strip(
        np.concatenate(columns, axis=1),
        tuple(f"{item.by_parts} ({item.meaning})" for item in items),
        ("real", *(f"noise {seed}" for _ in range(2) for seed in range(shown))),
        "Withheld characters, and what was drawn when they were asked for: single run",
        {"run": run.settings["hash"], "withheld": "".join(item.character for item in items)},
        column_groups=(("withheld", 1), ("asked by parts", shown), ("asked by meaning", shown)),
    )


def report_table(report: dict[str, Any]) -> str:
    """The report as text: tasks in columns, scores in rows, each with its 95% interval; then the floors the same."""

    def estimate(row: dict[str, float]) -> str:
        return f"{row['value']:.1%} [{row['low']:.1%}, {row['high']:.1%}]"

    judge = f"judge {report['judge']['name']}"
    lines = [f"{report['items'][BY_PARTS]} characters withheld, {report['seeds']} images a prompt, {judge}"]
    for floor in (False, True):
        tasks = {name: scores for name, scores in report["scores"].items() if name.endswith(FLOOR) == floor}
        cells = {name: {score: estimate(row) for score, row in scores.items()} for name, scores in tasks.items()}
        table = pd.DataFrame(cells).fillna("").rename(columns=lambda name: name.removesuffix(FLOOR))
        lines += [f"the same images{FLOOR}:" * floor + "asked for:" * (not floor), table.to_string()]
    return "\n".join([*lines, f"same nearest character in either order of words: {estimate(report['word_order'])}"])
