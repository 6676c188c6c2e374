"""The findings of the stored studies, in sentences."""

import dataclasses
from pathlib import Path
from typing import Any

import pandas as pd

from kanjilab.evaluation.statistics import Contrast, holm, sentence
from kanjilab.experiments.designs import CLAIM_OF, CLAIMS, TUNED
from kanjilab.experiments.study import Study, place, read_report

READERS = {"radicals": "first judge", "judge-a": "judge A", "judge-b": "judge B", "outside": "outside reader"}


def claims_of(study: Study) -> tuple[tuple[str, str], ...]:
    """The contrasts of a study that are claims: several of the article's, or its first one."""
    return tuple(pair for pair in study.contrasts if pair in CLAIM_OF) or study.contrasts[:1]


def is_tuned(study: Study) -> bool:
    """Whether a study trains the variants of its first contrast, or its only one, at a pilot's rates."""
    tuned = TUNED.get(study.name, {})
    arms = {variant.label: study.arm_of(variant, study.seeds[0]) for variant in study.variants}
    return all(tuned.get(label) == arms[label].peak_lr for label in next(iter(study.contrasts), arms))


def claims(
    folder: Path, judge: str = "radicals", split: str = "held_out", suffix: str = "", scale: str = "full"
) -> list[tuple[Study, Contrast]]:
    """The claims whose study is finished, with p values corrected together.

    Args:
        folder: holds the studies' folders, as "rank-full" or "claims-legible".
        judge: name of the judge whose readings count.
        split: of the prompts.
        suffix: `TUNED_SUFFIX` for the variants at the rates that pilots chose; a study that `is_tuned` has no others.
        scale: of the studies; those that only explore make no claim.
    """
    found = []
    for path in (folder / f"{name}-{scale}" / f"report-{judge}.json" for name in (*CLAIMS, "claims")):
        if path.exists():
            study, known = _reported(path, split)
            if study.phase != "confirm":
                continue
            wanted = {tuple(label + suffix * (not is_tuned(study)) for label in pair) for pair in claims_of(study)}
            found += [(study, Contrast.from_json(c)) for c in known if (c["first"], c["second"]) in wanted]
    corrected = holm([contrast.p for _, contrast in found])
    return [(study, dataclasses.replace(c, p_corrected=p)) for (study, c), p in zip(found, corrected, strict=True)]


def _reported(path: Path, split: str) -> tuple[Study, list[dict[str, Any]]]:
    """A stored report's study, and its contrasts over the prompts of a split."""
    report, study = read_report(path)
    try:
        return study, list(report["contrasts"][split])
    except (LookupError, TypeError) as error:
        raise ValueError(f"{path}: expected contrasts over {split} prompts, got none that can be read") from error


def findings(
    folder: Path, judge: str = "radicals", split: str = "held_out", suffix: str = "", scale: str = "full"
) -> list[str]:
    """A sentence for each of `claims`.

    Args:
        folder, judge, split, suffix, scale: as for `claims`.
    """
    found = claims(folder, judge, split, suffix, scale)
    return [f"{claim_of(study, contrast)}: {sentence(contrast, place(study))}" for study, contrast in found]


def claims_table(folder: Path, split: str = "held_out", scale: str = "legible") -> pd.DataFrame:
    """What each reader finds of each of `claims`, its p values corrected together.

    Args:
        folder, split, scale: as for `claims`.
    Returns:
        A row a claim, in words; a column a reader, as "+3.1 points [0.4, 5.9], p = .02, 8 blocks: held".
    """
    columns: dict[str, dict[str, str]] = {}
    for judge, name in READERS.items():
        for study, contrast in claims(folder, judge, split, scale=scale):
            columns.setdefault(name, {})[claim_of(study, contrast)] = numbers_of(study, contrast)
    return pd.DataFrame(columns)


def numbers_of(study: Study, contrast: Contrast) -> str:
    """A contrast's sentence without its names: "+3.1 points [0.4, 5.9], p = .02, 8 blocks: held"."""
    names = f"{place(study)}, {contrast.first} against {contrast.second}: "
    return sentence(contrast, place(study)).removeprefix(names)


def claim_of(study: Study, contrast: Contrast) -> str:
    """What a contrast of a study says if it holds; the study's claim where the contrast is not one of several."""
    return CLAIM_OF.get((contrast.first, contrast.second), study.claim)
