"""One setting of a stored study, step by step: what each value drew, and how it scored."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from kanjilab.experiments.findings import READERS
from kanjilab.experiments.image_sheets import ImageSheets
from kanjilab.experiments.report import StoredStudy, read_judges
from kanjilab.experiments.study import Study, spelled
from kanjilab.viz.strip import Strip


def steps_of(study: Study, axis: str) -> dict[Any, str]:
    """The values of one axis and the variants that have them, where all other axes are the reference's.

    Args:
        study: whose variants all name the axis.
        axis: such as rank.
    Returns:
        value -> label; numbers ascending, others in the study's order.
    Raises:
        ValueError: the study has no such axis, or only one value of it.
    """
    usual = dict(study.variants[0].axes or {})
    found = {}
    for variant in study.variants:
        place = dict(variant.axes or {})
        if axis in place and {**place, axis: None} == {**usual, axis: None}:
            found[place[axis]] = variant.label
    if len(found) < 2:
        raise ValueError(f"{study.name}: expected an axis with two values or more, one of {[*usual]}, got {axis!r}")
    return dict(sorted(found.items())) if all(isinstance(value, (int, float)) for value in found) else found


def ladder_strip(folder: Path, axis: str, *, seed: int | None = None, title: str = "", per_radical: int = 2) -> Strip:
    """What each value drew at the end of training; see `stored_strip`.

    Args:
        folder: of a finished study with its sheets of images.
        axis: as for `steps_of`.
        seed, title, per_radical: as for `stored_strip`.
    Raises:
        FileNotFoundError, KeyError: as `stored_strip`.
        ValueError: as `steps_of`.
    """
    steps = steps_of(StoredStudy.read(folder).study, axis)
    variants = dict(zip(_step_texts(axis, list(steps)), steps.values(), strict=True))
    return stored_strip(folder, variants, seed=seed, title=title, per_radical=per_radical)


def stored_strip(
    folder: Path, variants: Mapping[str, str], *, seed: int | None = None, title: str = "", per_radical: int = 2
) -> Strip:
    """What variants drew at the end of training: they in rows, prompts of each split in columns, one noise.

    Args:
        folder: of a finished study with its sheets of images.
        variants: names of the rows -> labels of the variants.
        seed: of the training; the study's first by default.
        title: above.
        per_radical: prompts of each radical in each split.
    Raises:
        FileNotFoundError: the folder has no report or no sheets.
        KeyError: a variant or a seed that the study does not have.
    """
    stored, sheets = StoredStudy.read(folder), ImageSheets.read(folder)
    if sheets is None:
        raise FileNotFoundError(f"{folder}: expected sheets of images in images/, found none")
    seed = stored.study.seeds[0] if seed is None else seed
    key_of = {(arm["variant"], arm["seed"]): arm["arm"] for arm in stored.report["arms"]}
    rows = _prompt_rows(sheets.prompts, per_radical)
    splits = [sheets.prompts[row]["split"] for row in rows]
    images = [sheets.images(key_of[label, seed])[rows, -1, 0] for label in variants.values()]  # (P, 64, 64) each
    groups = tuple((spelled(split), splits.count(split)) for split in dict.fromkeys(splits))
    facts = {"study": stored.study.hash, "seed": seed} | stored.study.sampling.to_json()
    prompts = tuple(sheets.prompts[row]["prompt"] for row in rows)
    return Strip(np.stack(images), tuple(variants), prompts, title, facts, column_groups=groups)


def _prompt_rows(prompts: Sequence[Mapping[str, Any]], per_radical: int) -> list[int]:
    """Rows of the first prompts of each radical, split by split, radical by radical."""
    groups: dict[str, dict[str, list[int]]] = {}
    for row, asked in enumerate(prompts):
        groups.setdefault(asked["split"], {}).setdefault("".join(asked["expected"]), []).append(row)
    return [row for of in groups.values() for radical in sorted(of) for row in of[radical][:per_radical]]


def ladder_table(folder: Path, axis: str) -> pd.DataFrame:
    """Hits of each value at the end of training, by each reader and split, and the held-out loss.

    Args:
        folder, axis: as for `ladder_strip`.
    Returns:
        A row a value; hits as "52.5 [37.5, 67.5]": percent of the images, with the 95% interval.
    """
    read = {READERS.get(name, name): stored for name, stored in read_judges(folder).items()}
    first = next(iter(read.values()))
    steps = steps_of(first.study, axis)
    table = pd.DataFrame(index=pd.Index(_step_texts(axis, list(steps)), name=axis))
    for split in first.splits:
        for name, stored in read.items():
            rates = stored.rates(split).set_index("variant").loc[list(steps.values())]
            texts = [f"{100 * r.value:.1f} [{100 * r.low:.1f}, {100 * r.high:.1f}]" for r in rates.itertuples()]
            table[f"{spelled(split)}, {name}"] = texts
    losses = first.rates().set_index("variant")["held_out_loss"]
    return table.assign(**{"held-out loss": losses.loc[list(steps.values())].round(4).to_numpy()})


def _step_texts(axis: str, values: Sequence[Any]) -> list[str]:
    """Values as rows name them: "rank 64", "rate 0.0015", "cosine"; numbers with as many digits as tell them apart."""
    name = axis.replace("peak_lr", "rate")
    texts: list[str] = []
    for digits in (2, 6, 17):
        texts = [f"{name} {v:.{digits}g}" if isinstance(v, float) else _word(name, v) for v in values]
        if len(set(texts)) == len(texts):
            break
    return texts


def _word(name: str, value: Any) -> str:
    """A value that is no fraction."""
    if isinstance(value, int):
        return f"{name} {value}"
    return "all layers" if value == "all" else str(value)
