"""A study's results: a judge reads its stored images; table, contrasts, report and figure follow."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from kanjilab.core.outside_files import checked_file
from kanjilab.core.rng import counted_rng
from kanjilab.core.run_folder import RunFolder
from kanjilab.core.storage import write_bytes_atomic, write_json_atomic
from kanjilab.evaluation.metrics import expected_radical_hits, two_way_bootstrap
from kanjilab.evaluation.scoring import glyphs_of
from kanjilab.evaluation.statistics import MARGIN, Contrast, compare, holm, joint_sign_flips, sentence
from kanjilab.experiments.context import StudyContext
from kanjilab.experiments.findings import claims_of
from kanjilab.experiments.packs import missing, stored_moments
from kanjilab.experiments.study import Study, note, place, read_report
from kanjilab.viz.charts import save_figure
from kanjilab.viz.study_charts import draw_study

TABLE_BYTES_MAX = 2**32
TABLE_COLUMNS = ("variant", "seed", "run", "final", "split", "prompt", "expected", "hit", "images_seen", "diversity")
TABLE_COLUMNS += ("held_out_loss",)
ARM_COLUMNS = ("variant", "seed", "checkpoint", "arm", "run", "images_seen", "diversity", "held_out_loss")
ARM_COLUMNS += ("stopped", "seconds")


class Judge(Protocol):
    """Reads glyphs: (N, H, W) uint8 to a table of N rows with at least radical and abstain."""

    def read(self, images: np.ndarray) -> pd.DataFrame:
        """One row an image."""
        ...


Hits = Callable[[pd.DataFrame, Sequence[Any]], np.ndarray]


def read_images(run: RunFolder, samples: str, judge: Judge, hits: Hits = expected_radical_hits) -> pd.DataFrame:
    """A judge's readings of an arm's stored images.

    Args:
        run: the training's folder.
        samples: a name of `run.samples()`, stored by `run_pack`.
        judge: see `Judge`.
        hits: which readings show what was expected.
    Returns:
        One row an image: split, prompt, noise_seed, expected, hit, and the judge's own columns.
    """
    images, facts = run.read_samples(samples)
    readings = judge.read(glyphs_of(images))
    asked = [(p, seed) for p in facts["prompts"] for seed in facts["noise_seeds"]]
    readings["hit"] = hits(readings, [frozenset(p["expected"]) for p, _ in asked])
    readings.insert(0, "split", [p["split"] for p, _ in asked])
    readings.insert(1, "prompt", [p["prompt"] for p, _ in asked])
    readings.insert(2, "noise_seed", [seed for _, seed in asked])
    readings.insert(3, "expected", ["".join(p["expected"]) for p, _ in asked])
    return readings


def study_table(
    context: StudyContext, judge: Judge, name: str = "radicals", hits: Hits = expected_radical_hits
) -> pd.DataFrame:
    """The study's one table, of what is stored so far; nothing is trained or drawn.

    Args:
        judge: see `Judge`; its stored readings under the same name are used again.
        name: of the judge, for its files.
        hits: which readings show what was expected.
    Returns:
        One row an image: study, variant, the axes' values, arm, run, seed, checkpoint, final, images_seen, split,
        prompt, noise_seed, expected, the judge's columns, hit, diversity, held_out_loss, stopped, seconds.
    """
    stored, parts = stored_moments(context), []
    for variant, seed in context.study.cells():
        key = context.key(variant, seed)
        axes = dict(variant.changes if variant.axes is None else variant.axes)
        labels = {"study": context.study.name, "variant": variant.label, **axes, "arm": key}
        for moment in stored.get(key, []):
            readings = _readings(context.folder / moment.folder, moment.samples, judge, name, hits)
            before = {"run": moment.run, "seed": seed, "checkpoint": moment.number, "final": moment.final}
            before |= {"images_seen": moment.images_seen}
            after = {"diversity": moment.diversity, "held_out_loss": moment.held_out_loss}
            after |= {"stopped": moment.stopped, "seconds": moment.seconds}
            parts.append(pd.DataFrame({**labels, **before, **readings, **after}))
        if key not in stored and key in context.kept:
            parts.append(pd.DataFrame({**labels, **context.kept[key]}))
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()


def kept_arms(context: StudyContext, folder: Path, name: str = "radicals") -> dict[str, pd.DataFrame]:
    """Arms in the tables of finished studies, which serve for tables and figures without their run folders.

    Args:
        folder: holds the studies' folders, as figures/studies does.
        name: of the judge whose readings count.
    Returns:
        `StudyContext.kept`: by the arm's key its rows of a table, without a study's own labels; only of studies whose
        images were drawn as this one's are.
    """
    found: dict[str, pd.DataFrame] = {}
    for report in sorted(folder.glob(f"*/report-{name}.json")):
        stored, study = read_report(report)
        if stored.get("drawing") == context.drawing:
            table = read_table(report.with_name(f"table-{name}.parquet"), study)
            table = table.drop_duplicates(["arm", "checkpoint", "split", "prompt", "noise_seed"])  # variants share arms
            labels = table.columns[: table.columns.get_loc("run")].drop("images_seen", errors="ignore")  # also an axis
            for key, rows in table.groupby("arm"):
                found[str(key)] = rows.drop(columns=labels).reset_index(drop=True)
    return found


def read_table(path: Path, study: Study) -> pd.DataFrame:
    """A finished study's table, one row an image.

    Args:
        path: of table-<judge>.parquet.
        study: of the report beside it.
    Raises:
        FileNotFoundError: there is none.
        ValueError: a damaged table, or another study's.
    """
    checked_file(path, "a study's table", TABLE_BYTES_MAX)
    try:
        table = pd.read_parquet(path)
    except Exception as error:  # pyarrow raises whatever its parsers trip over
        raise ValueError(f"{path}: expected a study's table, got a damaged or another file ({error!s:.200})") from error
    if lacking := [name for name in TABLE_COLUMNS if name not in table]:
        raise ValueError(f"{path}: expected a study's table, got one without {', '.join(lacking)}")
    labels = [variant.label for variant in study.variants]
    if not len(table) or (others := sorted({*table["variant"].astype(str)} - {*labels})):
        raise ValueError(
            f"{path}: expected images of the variants {labels!s:.200}, got {others if len(table) else 'none'}"
        )
    return table


def _readings(folder: Path, samples: str, judge: Judge, name: str, hits: Hits) -> pd.DataFrame:
    path = folder / "scores" / name / f"{samples}.parquet"
    if not path.exists():
        readings = read_images(RunFolder.open(folder), samples, judge, hits)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_table(readings, path)
    return pd.read_parquet(path)


def write_table(table: pd.DataFrame, path: Path) -> None:
    """Writes Parquet atomically, without the index."""
    write_bytes_atomic(path, table.to_parquet(index=False))


def outcomes(table: pd.DataFrame, variant: str, split: str, outcome: str = "hit") -> np.ndarray:
    """Outcomes at the end of training.

    Args:
        table: of `study_table`.
        variant: its label.
        split: of the prompts.
        outcome: a column of the table, bool or number.
    Returns:
        (S, P) float, blocks by prompts, the mean where a prompt was drawn in several noises.
    """
    rows = (table["variant"] == variant) & (table["split"] == split) & table["final"]
    return _cells(table.loc[rows], outcome)


def _cells(rows: pd.DataFrame, outcome: str) -> np.ndarray:
    """(S, P) float, blocks by prompts, both in order."""
    values = rows.assign(outcome=rows[outcome].astype(float))
    return values.pivot_table(index="seed", columns="prompt", values="outcome").to_numpy(float)


def contrasts(study: Study, table: pd.DataFrame, split: str, outcome: str = "hit") -> list[Contrast]:
    """The study's contrasts on one split of prompts.

    The p values of the claims are corrected together by Holm's method. A study of one claim has it first, and leaves
    its p as it is: `findings.claims` corrects it with the other studies'. The p values of the other contrasts are
    corrected among themselves (`joint_sign_flips`).

    Args:
        table, split: as for `outcomes`.
        outcome: a column of the table, in which more is better.
    """
    found = [
        compare(outcomes(table, one, split, outcome), outcomes(table, other, split, outcome), (one, other), seed=index)
        for index, (one, other) in enumerate(study.contrasts)
    ]
    claims = len(claims_of(study))  # the first contrasts
    corrected = holm([contrast.p for contrast in found[:claims]])
    others = np.array([contrast.blocks for contrast in found[claims:]])
    corrected += joint_sign_flips(others, counted_rng(0, "resampling", 1))
    return [dataclasses.replace(c, p_corrected=p) for c, p in zip(found, corrected, strict=True)]


def differences(found: Sequence[Contrast]) -> pd.DataFrame:
    """The differences of contrasts, as `draw_differences` takes them: one row a contrast."""
    return pd.DataFrame(
        [
            {"label": f"{c.first} – {c.second}", **c.difference._asdict(), "blocks": c.blocks, "verdict": c.verdict}
            for c in found
        ]
    )


def rates(study: Study, table: pd.DataFrame, outcome: str = "hit") -> pd.DataFrame:
    """The mean outcome of each variant, such as its share of hits, at each scored moment.

    Args:
        table: of `study_table`.
        outcome: a column of the table.
    Returns:
        One row a split, variant and moment: value, low, high (95% interval over blocks and prompts), blocks (their own
        rates), images_seen, diversity and held_out_loss (means of the blocks), stopped (number of blocks), final.
    """
    rows: list[dict[str, Any]] = []
    split: Any
    for split in table["split"].unique():
        for variant in study.variants:
            of_variant = table.loc[(table["split"] == split) & (table["variant"] == variant.label)]
            for number in sorted(of_variant["checkpoint"].unique()):
                moment = of_variant.loc[of_variant["checkpoint"] == number]
                cells = _cells(moment, outcome)
                rows.append(
                    {"split": split, "variant": variant.label, "checkpoint": int(number)}
                    | two_way_bootstrap(cells, counted_rng(len(rows), "resampling", 2))._asdict()
                    | {"blocks": cells.mean(axis=1).tolist()}
                    | _means(moment.drop_duplicates("seed"))
                )
    return pd.DataFrame(rows)


def _means(arms: pd.DataFrame) -> dict[str, Any]:
    means = {name: arms[name].to_numpy(float).mean() for name in ("images_seen", "diversity", "held_out_loss")}
    return means | {"stopped": int(arms["stopped"].notna().to_numpy().sum()), "final": bool(arms["final"].all())}


def arm_contrasts(study: Study, table: pd.DataFrame, column: str) -> list[dict[str, Any]]:
    """The study's contrasts in a number that is no hit, such as the held-out loss, over blocks.

    Args:
        table: one row an image at the end of training: variant, seed, and the column.
        column: of numbers; an arm's is their mean.
    Returns:
        first, second, difference (value, low, high), p; without those where a number is not finite.
    """
    means: Any = table.assign(value=table[column].astype(float)).groupby(["variant", "seed"])["value"].mean()
    arms = {variant.label: means.loc[variant.label].sort_index().to_numpy(float) for variant in study.variants}
    found = []
    for index, (one, other) in enumerate(study.contrasts):
        if np.isfinite(arms[one] - arms[other]).all():
            contrast = compare(arms[one][:, None], arms[other][:, None], (one, other), seed=index)
            found.append({"first": one, "second": other, "difference": list(contrast.difference), "p": contrast.p})
    return found


def write_report(
    context: StudyContext,
    judge: Judge,
    name: str = "radicals",
    hits: Hits = expected_radical_hits,
    outcome: str = "hit",
) -> dict[str, Any]:
    """Reads the stored images and writes table-<name>.parquet, report-<name>.json and figure-<name>.png.

    Args:
        judge, name, hits: as for `study_table`.
        outcome: the column of the table that is compared.
    Returns:
        What report-<name>.json holds.
    Raises:
        ValueError: arms are missing.
    """
    if left := missing(context):
        raise ValueError(f"{context.folder}: {left} of {len(context.trainings())} arms are not there yet")
    study, table = context.study, study_table(context, judge, name, hits)
    write_table(table, context.folder / f"table-{name}.parquet")
    report = table_report(study, table, context.drawing, name, outcome)
    write_json_atomic(context.folder / f"report-{name}.json", report)
    facts = {"study": study.hash, "runs": sorted(set(table["run"])), "report": f"report-{name}.json"}
    figure = study_figure(report)
    save_figure(figure, context.folder / f"figure-{name}.png", facts)
    return report


def table_report(
    study: Study, table: pd.DataFrame, drawing: str, name: str = "radicals", outcome: str = "hit"
) -> dict[str, Any]:
    """What report-<name>.json holds: the study, its contrasts in numbers and words, its rates, and its arms.

    Args:
        table: of `study_table`, with all of the study's arms.
        drawing: see `StudyContext.drawing`.
        name: of the judge.
        outcome: the column of the table that is compared.
    """
    splits = list(dict.fromkeys(table["split"]))
    found = {split: contrasts(study, table, split, outcome) for split in splits}
    return {
        "study": study.to_json(),
        "hash": study.hash,
        "drawing": drawing,
        "judge": name,
        "outcome": outcome,
        "prompts": {split: int(table.loc[table["split"] == split, "prompt"].nunique()) for split in splits},
        "sentences": {split: [sentence(c, place(study)) for c in some] for split, some in found.items()},
        "contrasts": {split: [c.to_json() for c in some] for split, some in found.items()},
        "rates": _records(rates(study, table, outcome)),
        "losses": arm_contrasts(study, table.loc[table["final"]], "held_out_loss"),
        "arms": _records(table.drop_duplicates(["variant", "seed", "checkpoint"]).loc[:, list(ARM_COLUMNS)]),
    }


def _records(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Rows for JSON: a number that is not finite becomes None."""
    rows = zip(*(table[name] for name in table.columns), strict=True)
    return [{str(c): _plain(value) for c, value in zip(table.columns, row, strict=True)} for row in rows]


def _plain(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def study_figure(report: Mapping[str, Any]) -> Figure:
    """A study's rates, differences, and the way there, over its first split; drawn from what `table_report` gives."""
    study, split = Study.from_json(report["study"]), next(iter(report["contrasts"]))
    share = pd.DataFrame(report["rates"])
    shown, tested = share.loc[share["split"] == split], [Contrast.from_json(c) for c in report["contrasts"][split]]
    text = f"{study.name}, {note(study, report['prompts'][split], split)}; 95% intervals"
    title = "Images with the expected radical, at the end of training"
    return draw_study(shown, differences(tested), title=title, note=text, margin=MARGIN)
