"""Finished studies in words: what they asked, what they found, and what limits the answer, as Markdown.

A study's stored report and table are enough for this; `kanjilab.experiments.drawn` shows what its runs drew.
"""

from __future__ import annotations

import dataclasses
import html
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from kanjilab.core.config import Arm, settings_hash
from kanjilab.data.radicals import radical_character
from kanjilab.evaluation.statistics import SIGNIFICANCE, Contrast, compare, sentence
from kanjilab.experiments.designs import TUNED_SUFFIX
from kanjilab.experiments.findings import READERS, claim_of, claims, claims_of, is_tuned
from kanjilab.experiments.results import contrasts, outcomes
from kanjilab.experiments.stored_numbers import StudyNumbers
from kanjilab.experiments.study import Study, place, spelled

MOSTLY = 0.9  # a judge that abstains from more than this share saw hardly a glyph
SHARED = ("images_seen", "batch", "peak_lr", "schedule", "rank", "targets", "ema_decay", "beta2")


def as_list(lines: Iterable[str]) -> str:
    """Lines as a Markdown list, with HTML in them escaped."""
    return "\n".join(f"- {html.escape(line, quote=False)}" for line in lines)


def variant_settings(study: Study) -> pd.DataFrame:
    """The settings in which a study's variants differ.

    Returns:
        One row a variant, in the study's order: its label, the settings that are not the same for all, and `data`
        where that is not, in words.
    """
    rows = {v.label: dataclasses.asdict(study.arm_of(v, study.seeds[0])) for v in study.variants}
    if len(study.datasets()) > 1:
        rows = {v.label: rows[v.label] | {"data": _data_text(study.data_of(v))} for v in study.variants}
    table = pd.DataFrame.from_dict(rows, orient="index").rename_axis("variant")
    table = table.loc[:, [column for column in table if len(set(table[column])) > 1]]
    if "alpha" in table:
        table["alpha"] = table["alpha"].astype(object).where(table["alpha"].notna(), "the rank")
    return table


def _data_text(data: Mapping[str, Any]) -> str:
    """A rule in words, without its radicals, as "imbalanced left16, ratio 10, per_radical 88"; a folder as its path."""
    names, values, inner = [], [], data
    while inner:
        names += [str(inner.get("name", inner.get("folder")))] * (inner.get("name") != "only")
        values += [f"{key} {value:g}" for key, value in inner.items() if isinstance(value, (int, float))]
        inner = inner.get("rule", {})
    return ", ".join([" ".join(names), *values])


class StoredStudy(StudyNumbers):
    """A finished study as one judge read it: its numbers, and these in words."""

    def settings_text(self) -> str:
        """The study's question and settings, as a Markdown list."""
        study = self.study
        first = "".join(f" First contrast: {one} against {other}." for one, other in study.contrasts[:1])
        differing = set(variant_settings(study).columns)
        # A variant's, not the study's own: there may be settings that every variant changes.
        arm = study.arm_of(study.variants[0], study.seeds[0])
        values = {name: getattr(arm, name) for name in arm.to_json() if name in SHARED and name not in differing}
        shared = ", ".join(f"{name} {_number(value)}" for name, value in values.items())
        radicals = " ".join(radical_character(number) for number in study.data.get("radicals", ()))
        counts = " and ".join(f"{n} {spelled(split)}" for split, n in self.report["prompts"].items())
        seeds = f"{len(study.seeds)} training seeds ({study.seeds[0]} to {study.seeds[-1]})"
        lines = [
            f"Claim: {study.claim}.{first}",
            f"Variants: {'; '.join(self.labels)}. Blocks: {seeds}.",
            f"The same for all: {shared}.",
            f"Data: the radicals {radicals or 'of the whole set'}. Prompts: {counts} captions, "
            f"{len(study.noise_seeds)} image of each. Base: {Path(study.base).name}.",
        ]
        return as_list(lines)

    def sentences_text(self) -> str:
        """The findings on every split, as Markdown."""
        parts = [f"**{spelled(split)} prompts**\n\n{as_list(some)}" for split, some in self.report["sentences"].items()]
        return "\n\n".join([*parts, self._correction()])

    def _correction(self) -> str:
        """Which p values of `contrasts` are corrected, as Markdown."""
        if (asked := len(claims_of(self.study))) > 1:
            return f"*The p values of the {asked} claims are corrected together.*"
        others = len(self.study.contrasts) - 1
        own = "The p of the first contrast is its own" if others else "The p is that of this contrast by itself"
        return f"*{own}{'; those of the others are corrected among themselves' * bool(others)}.*"

    def measured_text(self, name: str, measured: pd.DataFrame, more: str, less: str) -> str:
        """The contrasts of `measured` in words, as a Markdown list.

        Args:
            name: of what was measured.
            measured: of `measured`.
            more: what the first variant is if it has more of it, as "worse".
            less: what it is if it has less.
        """
        lines = []
        for label, row in measured.to_dict(orient="index").items():
            verdict = "not told apart"
            if row["p"] < SIGNIFICANCE:
                verdict = f"the first is {more if row['difference'] > 0 else less}"
            ends = f"{row['first']:.4g} against {row['second']:.4g}"
            difference = f"{row['difference']:+.3g} [{row['low']:.3g}, {row['high']:.3g}]"
            lines.append(f"{label}: {name} {ends}, {difference}, p = {row['p']:.3g}: {verdict}")
        return as_list(lines)

    def above_chance_text(self) -> str:
        """The contrasts of `above_chance` on the first split in words, as Markdown."""
        return self._contrasts_text(self.above_chance())

    def other_prompts_text(self, pilot: pd.DataFrame) -> str:
        """The contrasts on the prompts of the first split that are not a pilot's, as Markdown.

        Args:
            pilot: the pilot's table.
        """
        table = self.table.loc[~self.table["prompt"].isin(pilot["prompt"])]
        asked = table.loc[table["split"] == self.splits[0], "prompt"].nunique()
        found = self._contrasts_text(contrasts(self.study, table, self.splits[0]))
        return f"On the {asked} prompts that the pilot did not ask:\n\n{found}"

    def _contrasts_text(self, found: Iterable[Contrast]) -> str:
        """All of the study's contrasts in words, as Markdown."""
        return f"{as_list(sentence(contrast, place(self.study)) for contrast in found)}\n\n{self._correction()}"

    def stopped_text(self) -> str:
        """The trainings that stopped early, and the contrasts without their blocks, as Markdown."""
        arms = self.table.loc[self.table["final"] & self.table["stopped"].notna()]
        arms = arms.drop_duplicates(["variant", "seed"]).sort_values(by=["variant", "seed"])
        if arms.empty:
            study = self.study  # two variants may have the same settings
            asked = ([study.arm_of(v, seed).to_json(), dict(study.data_of(v))] for v, seed in study.cells())
            return f"All {len(set(map(settings_hash, asked)))} trainings came to their end."
        budget = {v.label: _budget(self.study.arm_of(v, self.study.seeds[0])) for v in self.study.variants}
        seen = "{0.variant}, seed {0.seed}: {0.images_seen:,} images seen of {1}. {0.stopped}"
        lines = [seen.format(row, budget[str(row.variant)]) for row in arms.itertuples()]
        rest = as_list(sentence(contrast, place(self.study)) for contrast in self._without(arms))
        early = f"Stopped early, and drawn and counted as they were then:\n\n{as_list(lines)}"
        without = f"Without the blocks in which one of the two stopped early, p of each by itself:\n\n{rest}"
        return f"{early}\n\n{without}" if rest else early

    def _without(self, stopped: pd.DataFrame) -> Iterator[Contrast]:
        """The contrasts that lose blocks when those with a stopped arm are left out, over the others."""
        for one, other in self.study.contrasts:
            out = stopped.loc[stopped["variant"].isin([one, other]), "seed"]
            table = self.table.loc[~self.table["seed"].isin(out)]
            if len(out) and len(table):
                first, second = (outcomes(table, label, self.splits[0]) for label in (one, other))
                yield compare(first, second, (one, other))

    def judges_text(self, other: StudyNumbers) -> str:
        """Whether another judge finds the same, a line for each contrast, as a Markdown list."""
        lines = []
        for one, two in zip(self.contrasts(), other.contrasts(self.splits[0]), strict=True):
            same = "the same verdict" if one.verdict == two.verdict else f"where the first judge says {one.verdict}"
            opposite = one.difference.value * two.difference.value < 0
            lines.append(f"{sentence(two, place(self.study))}: {same}" + ", with the opposite sign" * opposite)
        return as_list(lines)

    def answer_text(self) -> str:
        """The answer to the claim, at the shared rate and, where a pilot chose others, at those, as Markdown.

        Its p value is corrected together with those of the other claims whose studies are in the same folder.
        """
        ways = {"": "At one learning rate for all", TUNED_SUFFIX: "At the rate that a pilot chose for each"}
        if is_tuned(self.study):
            one_rate = "peak_lr" not in variant_settings(self.study)
            shared = "At one learning rate, the one that a pilot chose for every variant"
            ways = {TUNED_SUFFIX: shared if one_rate else ways[TUNED_SUFFIX]}
        parts = []
        for suffix, way in ways.items():
            found = claims(self.folder.parent, self.report["judge"], self.splits[0], suffix, self.study.scale)
            for study, contrast in found:
                if study == self.study:
                    line = as_list([f"{sentence(contrast, place(study))} (claims corrected together: {len(found)})"])
                    claim = claim_of(study, contrast)
                    asked = "" if claim == study.claim else f"**{html.escape(claim, quote=False)}**. "
                    parts.append(f"{asked}{way}, {_answer(contrast)}\n\n{line}")
        return "\n\n".join(parts)

    def limits_text(self) -> str:
        """The answer's limits that follow from the numbers, as a Markdown list."""
        study, arm = self.study, self.study.arm
        lines = [
            f"{label} had hardly begun to draw: the judge abstained from {share:.0%} of its images. A difference from "
            "it is one between beginning sooner and later."
            for label, share in (self.beside()["abstained"].to_dict() if "abstain" in self.table else {}).items()
            if share > MOSTLY
        ]
        if self.has_tuned:
            tuned = {v.label: study.arm_of(v, study.seeds[0]).peak_lr for v in study.variants}
            named = [f"{label} {rate:.3g}" for label, rate in tuned.items() if label.endswith(TUNED_SUFFIX)]
            lines.append(f"Two ways to choose the learning rate: {arm.peak_lr:g} for all, and {'; '.join(named)}.")
        elif is_tuned(study) and "peak_lr" in variant_settings(study):
            rates = {v.label: study.arm_of(v, study.seeds[0]).peak_lr for v in study.variants}
            named = "; ".join(f"{label} {rate:.3g}" for label, rate in rates.items())
            lines.append(f"Learning rates, which a pilot with other seeds chose: {named}.")
        elif is_tuned(study):
            lines.append(f"One learning rate, {arm.peak_lr:g}, which a pilot with other seeds chose for each.")
        elif "peak_lr" not in variant_settings(study):
            lines.append(f"One learning rate, {arm.peak_lr:g}, tuned for none: a difference may be one of rates.")
        radicals = len(study.data.get("radicals", ())) or 16
        lines.append(
            f"One small base, {Path(study.base).name}; {radicals} radicals; {len(study.seeds)} training seeds."
        )
        if "images_seen" not in variant_settings(study):
            lines.append(f"One budget, {_budget(arm)}: what comes later is not seen.")
        return as_list(lines)


def read_judges(folder: Path) -> dict[str, StoredStudy]:
    """A study as each judge read it whose report and table are in its folder, the first judge before the others.

    Raises:
        FileNotFoundError: there are none.
    """
    names = [path.stem.removeprefix("report-") for path in sorted(folder.glob("report-*.json"))]
    names.sort(key=lambda name: (list(READERS).index(name) if name in READERS else len(READERS), name))
    found = {name: StoredStudy.read(folder, name) for name in names}
    if not found:
        raise FileNotFoundError(f"{folder}: expected report-<judge>.json of a finished study, found none")
    wanted = next(iter(found.values())).report["hash"]
    return {name: stored for name, stored in found.items() if stored.report["hash"] == wanted}


def _budget(arm: Arm) -> str:
    return f"{arm.images_seen:,} images seen" if arm.images_seen else f"{arm.epochs:g} epochs"


def _number(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else "none" if value is None else f"{value}"


def _answer(contrast: Contrast) -> str:
    one, other = (html.escape(name, quote=False) for name in (contrast.first, contrast.second))
    words = {
        "held": "the claim **holds** here.",
        "refuted": f"the claim **fails** here: {one} draws worse than {other}.",
        "equivalent": f"the claim **fails** here: {one} and {other} draw equally well, within the margin.",
        "undecided": "the claim is **undecided**: this study can neither tell the two apart nor call them the same.",
    }
    return words[contrast.verdict]
