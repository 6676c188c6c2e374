"""What the ablation panel's browser side needs of a stored study, as plain JSON and one picture an arm.

The shape of the catalogue is described at the top of `ablation.js`, which reads it.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from kanjilab.core.config import SCHEDULES, TARGETS, TIMESTEPS, Arm
from kanjilab.core.notices import notice_once
from kanjilab.core.rng import counted_rng
from kanjilab.core.run_differences import setting_differences
from kanjilab.evaluation.metrics import two_way_bootstrap
from kanjilab.evaluation.statistics import sentence
from kanjilab.experiments.findings import READERS, claim_of, claims, numbers_of
from kanjilab.experiments.image_sheets import GLYPH_PX, ImageSheets, spread_rows
from kanjilab.experiments.report import StoredStudy, read_judges
from kanjilab.experiments.setting_axes import Axis, find_axes, star_centre
from kanjilab.experiments.study import Study, place, read_report
from kanjilab.widgets.common import label_of

SPLITS = {"held_out": "held-out", "train": "training captions"}
AXIS_LABELS = {
    "images_seen": "Training budget",
    "batch": "Batch size",
    "peak_lr": "Peak rate",
    "equal": "Compared at",
    "beta2": "Memory of Adam",
}
VALUE_TEXTS = {  # of values that say too little by themselves
    ("equal", "images"): "equal images",
    ("equal", "steps"): "equal steps",
    ("beta2", "per step"): "β₂ per step",
    ("beta2", "per image"): "β₂ per image",
    ("kanji", None): "all kanji",
}
UNITS = {"images_seen": "images"}
CHOICES = {"schedule": SCHEDULES, "targets": TARGETS, "timesteps": TIMESTEPS}  # of a category; numbers are typed
SETTINGS = {field.name: field for field in dataclasses.fields(Arm)}
RESAMPLES = 1_000  # of an interval for one radical, of which there are many; those over all are the report's
Catalogue = dict[str, Any]


def first_upper(text: str) -> str:
    """The text with a capital first letter, the rest as it is."""
    return text[:1].upper() + text[1:]


def value_text(value: Any) -> str:
    """A setting's value for readers."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.0f}" if value.is_integer() and abs(value) >= 1 else f"{value:.3g}"
    return "–" if value is None else str(value)


def axis_json(axis: Axis) -> dict[str, Any]:
    """An axis as the browser reads it: values, texts, distances, and whether and how a value can be added."""
    open_to = CHOICES.get(axis.name, ()) if not axis.is_number else ()
    return {
        "name": axis.name,
        "label": AXIS_LABELS.get(axis.name, label_of(axis.name)),
        "unit": UNITS.get(axis.name, ""),
        "values": list(axis.values),
        "texts": [VALUE_TEXTS.get((axis.name, value)) or value_text(value) for value in axis.values],
        "number": axis.is_number,
        "log": axis.is_log,
        "apart": axis.apart().round(4).tolist(),
        "typed": axis.is_number and axis.name in SETTINGS,
        "choices": [value for value in open_to if value not in axis.values],
    }


@dataclasses.dataclass(frozen=True)
class StudySettings:
    """The different settings of a study: variants that are the same trainings are one.

    Attributes:
        labels: of each setting, that of its first variant.
        index: a variant's label -> number of its setting.
        arms: (number, seed) -> keys of the arm at the scored moments, a row of the report each.
        axes, places: of `find_axes`.
    """

    labels: tuple[str, ...]
    index: Mapping[str, int]
    arms: Mapping[tuple[int, int], list[Mapping[str, Any]]]
    axes: tuple[Axis, ...]
    places: tuple[Mapping[str, Any], ...]

    @classmethod
    def of(cls, study: Study, report: Mapping[str, Any], added: Mapping[str, Sequence[Any]]) -> StudySettings:
        """The settings of a finished study, with stops that were added to its axes."""
        rows: dict[tuple[str, int], list[Mapping[str, Any]]] = {}
        for row in report["arms"]:
            rows.setdefault((row["variant"], row["seed"]), []).append(row)
        index: dict[str, int] = {}
        known: dict[tuple[str, ...], int] = {}
        for variant in study.variants:
            keys = tuple(rows[variant.label, seed][0]["arm"] for seed in study.seeds)
            index[variant.label] = known.setdefault(keys, len(known))
        labels = tuple(next(label for label in index if index[label] == number) for number in range(len(known)))
        arms = {(index[label], seed): some for (label, seed), some in reversed(rows.items())}
        axes, places = find_axes(_axis_rows(study, labels), labels, SETTINGS)
        for name, values in added.items():
            for value in values:
                axes = [axis.with_value(value) if axis.name == name else axis for axis in axes]
        return cls(labels, index, arms, tuple(axes), tuple(places))


def _axis_rows(study: Study, labels: Sequence[str]) -> list[dict[str, Any]]:
    """What each variant has on each axis of the study: its own value, or that of its arm."""
    variants = [next(variant for variant in study.variants if variant.label == label) for label in labels]
    own = [dict(variant.changes if variant.axes is None else variant.axes) for variant in variants]
    names = dict.fromkeys(name for axes in own for name in axes)
    arms = [dataclasses.asdict(study.arm_of(variant, study.seeds[0])) for variant in variants]
    return [{name: axes.get(name, arm.get(name)) for name in names} for axes, arm in zip(own, arms, strict=True)]


def study_catalogue(folder: Path, added: Mapping[str, Sequence[Any]] | None = None) -> tuple[Catalogue, list[bytes]]:
    """A finished study for the browser.

    Args:
        folder: of the study, with the report and table of one judge at least.
        added: stops that no variant has, by axis.
    Returns:
        The catalogue, and the sheets of its arms, in the order of the numbers in it.
    Raises:
        FileNotFoundError: no finished study there.
    """
    read = read_judges(folder)
    first = next(iter(read.values()))
    study, settings = first.study, StudySettings.of(first.study, first.report, added or {})
    sheets = ImageSheets.read(folder)
    prompts = _prompts(first.table, sheets)
    hits = {name: _hits(stored.table, settings, prompts, study) for name, stored in read.items()}
    arms, pictures = _arms(settings, study, sheets, hits)
    splits = first.splits
    return {
        "name": study.name,
        "title": first_upper(study.claim),
        "verdict": verdict(first),
        "place": place(study),
        "percent": True,
        "measure": "images with the expected radical",
        "axes": [axis_json(axis) for axis in settings.axes],
        "settings": _settings_json(settings, study),
        "first": first_shown(study, settings),
        "seeds": list(study.seeds),
        "noises": list(study.noise_seeds),
        "prompts": prompts,
        "splits": [[split, SPLITS.get(split, split)] for split in splits],
        "radicals": sorted({radical for asked in prompts for radical in asked["expected"]}),
        "judges": [[name, READERS.get(name, name)] for name in read],
        "arms": arms,
        "rates": {name: _rates(stored, settings, prompts, hits[name]) for name, stored in read.items()},
        "contrasts": {name: _contrasts(stored, settings) for name, stored in read.items()},
        "differences": differences_json(_setting_values(settings, study), settings.labels),
        "glyph_px": GLYPH_PX,
        "trainable": True,
    }, pictures


def first_shown(study: Study, settings: StudySettings) -> int:
    """Number of the setting that a study is opened on: the claim's, or the reference of one that moves many settings.

    The latter is a study that puts no contrast first as its claim's own, and moves one setting at a time away from its
    first variant.
    """
    reference = settings.index[study.variants[0].label]
    if study.contrasts == study.usual_contrasts and star_centre(settings.places) == reference:
        return reference
    return settings.index[next(iter(study.contrasts), (study.variants[0].label,))[0]]


def verdict(stored: StoredStudy) -> str:
    """The study's answer in one sentence, as the findings say it: corrected with the other claims' where it is one."""
    study, contrasts = stored.study, stored.contrasts()
    if not contrasts:
        return ""
    known = claims(stored.folder.parent, stored.report["judge"], stored.splits[0], scale=study.scale)
    own = [contrast for of, contrast in known if of.hash == study.hash]
    texts = [f"{claim_of(study, contrast)}: {numbers_of(study, contrast)}" for contrast in own]
    text = "; ".join(texts) if len(own) > 1 else sentence((own or contrasts)[0], place(study))
    return f"{first_upper(text)}{f' ({len(known)} claims corrected together)' * (bool(own) and len(known) > 1)}."


def _prompts(table: pd.DataFrame, sheets: ImageSheets | None) -> list[dict[str, Any]]:
    """The prompts, those that the sheets show first, in their order; without sheets the radicals take turns."""
    asked: Any = table.drop_duplicates(["split", "prompt"])
    found = [
        {"split": row.split, "text": row.prompt, "expected": "".join(row.expected)}
        for row in asked[["split", "prompt", "expected"]].itertuples()
    ]
    rows = {(shown["split"], shown["prompt"]): row for row, shown in enumerate(sheets.prompts if sheets else ())}
    found = [found[number] for number in spread_rows(found, len(found))]
    for entry in found:
        entry["row"] = rows.get((entry["split"], entry["text"]), -1)
    return sorted(found, key=lambda entry: entry["row"] if entry["row"] >= 0 else len(rows))


def _hits(
    table: pd.DataFrame, settings: StudySettings, prompts: Sequence[Mapping[str, Any]], study: Study
) -> np.ndarray:
    """(V, S, C, P, N) float: settings, training seeds, moments, prompts, noises; NaN where nothing was drawn."""
    number = {(asked["split"], asked["text"]): at for at, asked in enumerate(prompts)}
    seeds = {seed: at for at, seed in enumerate(study.seeds)}
    noises = {noise: at for at, noise in enumerate(study.noise_seeds)}
    moments = max(table["checkpoint"].tolist())
    hits = np.full((len(settings.labels), len(seeds), moments, len(prompts), len(noises)), np.nan)
    columns = (table[name].tolist() for name in ("variant", "seed", "checkpoint", "split", "prompt", "noise_seed"))
    places = [
        (settings.index[variant], seeds[seed], checkpoint - 1, number[split, prompt], noises[noise])
        for variant, seed, checkpoint, split, prompt, noise in zip(*columns, strict=True)
    ]
    hits[tuple(np.array(places).T)] = table["hit"].to_numpy(float)
    return hits


def _arms(
    settings: StudySettings, study: Study, sheets: ImageSheets | None, hits: Mapping[str, np.ndarray]
) -> tuple[list[list[dict[str, Any]]], list[bytes]]:
    """For each setting and training seed: number of its sheet or -1, images seen and hits at each moment."""
    pictures: list[bytes] = []
    arms = []
    for number in range(len(settings.labels)):
        row = []
        for at, seed in enumerate(study.seeds):
            moments = sorted(settings.arms[number, seed], key=lambda moment: moment["checkpoint"])
            sheet, key = -1, moments[0]["arm"]
            if sheets and key in sheets.arms and sheets.path(key).exists():
                sheet = len(pictures)
                pictures.append(sheets.picture(key))
            marks = {name: [_marks(some) for some in found[number, at]] for name, found in hits.items()}
            seen = [moment["images_seen"] for moment in moments]
            row.append({"sheet": sheet, "seen": seen, "hits": marks, "seconds": moments[-1].get("seconds") or 0})
        arms.append(row)
    return arms, pictures


def _marks(hits: np.ndarray) -> str:
    """Hits of (P, N) as text, a letter an image, prompt by prompt: 1 for a hit, 0 for none, - for no image."""
    return "".join("-" if math.isnan(hit) else str(int(hit > 0)) for hit in hits.ravel())


def _rates(
    stored: StoredStudy, settings: StudySettings, prompts: Sequence[Mapping[str, Any]], hits: np.ndarray
) -> dict[str, Any]:
    """split -> radical, or "" for all -> setting -> moment: [value, low, high, rate of each training]."""
    found: dict[str, Any] = {}
    for split in stored.splits:
        every = {(row["variant"], row["checkpoint"]): row for row in stored.report["rates"] if row["split"] == split}
        names = [("value", "low", "high", "blocks")] * hits.shape[2]
        found[split] = {
            "": [
                [_rounded([every[label, at + 1][name] for name in some]) for at, some in enumerate(names)]
                for label in settings.labels
            ]
        }
        for radical in sorted({radical for asked in prompts for radical in asked["expected"]}):
            rows = [at for at, a in enumerate(prompts) if a["split"] == split and radical in a["expected"]]
            if rows:
                part = np.nanmean(hits[:, :, :, rows], axis=-1)  # (V, S, C, P)
                found[split][radical] = [[_rate(part[v, :, c]) for c in range(part.shape[2])] for v in range(len(part))]
    return found


def _rate(outcomes: np.ndarray) -> list[Any]:
    """Value, interval and blocks of (S, P) outcomes."""
    estimate = two_way_bootstrap(outcomes, counted_rng(0, "resampling", 2), RESAMPLES)
    return _rounded([*estimate, outcomes.mean(axis=1).tolist()])


def _rounded(values: Sequence[Any]) -> list[Any]:
    return [[round(v, 4) for v in value] if isinstance(value, list) else round(value, 4) for value in values]


def _contrasts(stored: StoredStudy, settings: StudySettings) -> dict[str, list[dict[str, Any]]]:
    """split -> what was tested: numbers of the two settings, the difference with its interval, and the sentence."""
    return {
        split: [
            {
                "first": settings.index[contrast.first],
                "second": settings.index[contrast.second],
                "difference": _rounded(list(contrast.difference)),
                "text": sentence(contrast, place(stored.study)).partition(": ")[2],
            }
            for contrast in stored.contrasts(split)
        ]
        for split in stored.splits
    }


def _settings_json(settings: StudySettings, study: Study) -> list[dict[str, Any]]:
    found = []
    for number, (label, at) in enumerate(zip(settings.labels, settings.places, strict=True)):
        last = [max(settings.arms[number, seed], key=lambda row: row["checkpoint"]) for seed in study.seeds]
        stopped = [f"seed {row['seed']}: {row['stopped']}" for row in last if row.get("stopped")]
        seconds = sum(row.get("seconds") or 0 for row in last)
        found.append({"label": label, "at": dict(at), "seconds": round(seconds), "stopped": stopped})
    return found


def _setting_values(settings: StudySettings, study: Study) -> dict[str, dict[str, Any]]:
    """All settings of each training but its seed, by the label of its setting."""
    found = {}
    for variant in study.variants:
        if variant.label in settings.labels:
            arm = dataclasses.asdict(study.arm_of(variant, study.seeds[0]))
            found[variant.label] = {name: arm[name] for name in arm if name != "seed"}
            found[variant.label] |= {"data": json.dumps(dict(study.data_of(variant)), ensure_ascii=False)}
    return found


def differences_json(values: Mapping[str, Mapping[str, Any]], labels: Sequence[str]) -> list[list[Any]]:
    """The settings that differ, for the browser.

    Args:
        values: by label all settings of each training.
        labels: of the trainings, in order.
    Returns:
        For each setting its name for readers and its own, and the value's text in each training.
    """
    table = setting_differences({label: values[label] for label in labels})
    return [
        [label_of(str(name)), str(name), *(value_text(value) for value in row)]
        for name, row in zip(table.index, table.to_numpy(), strict=True)
    ]


def menu(places: Mapping[str, Path | None]) -> list[dict[str, Any]]:
    """The finished studies below some folders, for the browser's menu.

    Args:
        places: heading -> folder of studies, which need not exist.
    Returns:
        For each heading with studies: {"heading", "studies": [{"path", "label", "images", "variants"}]}, those with
        images first, pilots last. A study whose report is damaged is left out, with a notice.
    """
    found = []
    for heading, place_of in places.items():
        paths = sorted({path.parent for path in place_of.glob("*/report-*.json")}) if place_of else []
        studies = [entry for path in paths if (entry := _entry(path))]
        studies.sort(key=lambda entry: (not entry["images"], entry["pilot"], -entry["settings"]))
        if studies:
            found.append({"heading": heading, "studies": studies})
    return found


def _entry(path: Path) -> dict[str, Any] | None:
    """The entry of a study; None, with a notice, where its report is damaged: the others are still of use."""
    try:
        report, _ = read_report(min(path.glob("report-*.json")))
    except (OSError, ValueError) as error:
        notice_once(f"{error}; the study is not listed")
        return None
    study, images = report["study"], (path / "images" / "sheets.json").exists()
    label = f"{first_upper(study['claim'])} ({study['name']})"
    settings = len({arm["arm"] for arm in report["arms"] if arm["seed"] == study["seeds"][0]})
    pilot = study["phase"] == "pilot"
    return {"path": str(path), "label": label, "images": images, "settings": settings, "pilot": pilot}
