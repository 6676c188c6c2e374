"""Finished studies, read again: what they asked, what came out, and the words for it, all from what is stored.

A study's report and table are enough for its numbers and sentences (`StoredStudy`); its run folders, where they are at
hand, also show what was drawn (`last_images`, `variants_strip`, `measure_images`).
"""

from __future__ import annotations

import dataclasses
import html
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import pandas as pd

from kanjilab.core.config import Arm
from kanjilab.data.components import normal_form
from kanjilab.data.radicals import radical_character
from kanjilab.evaluation.metrics import answered_prompts, shown_radicals
from kanjilab.evaluation.statistics import SIGNIFICANCE, Contrast, compare, sentence
from kanjilab.experiments.designs import TUNED_SUFFIX
from kanjilab.experiments.findings import claims, is_tuned
from kanjilab.experiments.results import arm_contrasts, contrasts, outcomes
from kanjilab.experiments.study import Study, place

HITS, LOSS, DIVERSITY = "images with the expected radical", "held-out loss", "diversity"
DEALT = "dealt at random"
MOSTLY = 0.9  # a judge that abstains from more than this share saw hardly a glyph
SHARED = ("images_seen", "batch", "peak_lr", "schedule", "rank", "targets", "ema_decay", "beta2")
READ_TOO = {"legal": "well-formed", "exists": "taken for an existing character"}


def spelled(name: str) -> str:
    """A split as a reader knows it: "held-out"."""
    return name.replace("_", "-")


def as_list(lines: Iterable[str]) -> str:
    """Lines as a Markdown list; what is in them is text and no markup of HTML."""
    return "\n".join(f"- {html.escape(line, quote=False)}" for line in lines)


def variant_settings(study: Study) -> pd.DataFrame:
    """In which settings a study's variants differ, whatever its blocks are.

    Returns:
        One row a variant, in the study's order: its label, the settings that are not the same for all, and `data`
        where that is not.
    """
    rows = {v.label: dataclasses.asdict(study.arm_of(v, study.seeds[0])) for v in study.variants}
    if len(study.datasets()) > 1:
        rows = {v.label: rows[v.label] | {"data": str(dict(study.data_of(v)))} for v in study.variants}
    table = pd.DataFrame.from_dict(rows, orient="index").rename_axis("variant")
    return table.loc[:, [column for column in table if len(set(table[column])) > 1]]


# ---------------------------------------------------------------------------------------------- reports


@dataclass(frozen=True)
class StoredStudy:
    """A finished study as one judge read it.

    Attributes:
        folder: where it lies.
        study: what was asked.
        report: what `write_report` wrote.
        table: one row an image, see `study_table`.
    """

    folder: Path
    study: Study
    report: Mapping[str, Any]
    table: pd.DataFrame

    @classmethod
    def read(cls, folder: Path | str, judge: str = "radicals") -> Self:
        """Reads report-<judge>.json and table-<judge>.parquet.

        Args:
            folder: of the study.
            judge: name of whose readings count.
        Raises:
            FileNotFoundError: the study has no such report or table.
        """
        folder = Path(folder)
        report = json.loads((folder / f"report-{judge}.json").read_text())
        table = pd.read_parquet(folder / f"table-{judge}.parquet")
        return cls(folder, Study.from_json(report["study"]), report, table)

    @property
    def labels(self) -> list[str]:
        """Of the variants, the reference first."""
        return [variant.label for variant in self.study.variants]

    @property
    def splits(self) -> list[str]:
        """Of the prompts; the first is the one that verdicts are about."""
        return list(self.report["contrasts"])

    @property
    def source(self) -> dict[str, Any]:
        """What a figure that is drawn from it should say in its JSON."""
        runs = sorted({arm["run"] for arm in self.report["arms"]})
        return {"study": self.report["hash"], "runs": runs, "name": self.study.name, "judge": self.report["judge"]}

    @property
    def note(self) -> str:
        """A line for figures: where, how many blocks, how many prompts."""
        split, blocks = self.splits[0], len(self.study.seeds)
        seeds = f"{blocks} training seed" + "s" * (blocks > 1)
        return f"{place(self.study)}: {seeds}, {self.report['prompts'][split]} {spelled(split)} prompts"

    @property
    def has_tuned(self) -> bool:
        """Whether variants were also trained at rates of their own."""
        return any(label.endswith(TUNED_SUFFIX) for label in self.labels)

    @cached_property
    def chances(self) -> pd.DataFrame:
        """The table's final images, as read, with what stands behind a hit.

        Three columns more: shown, the radicals that the judge read; dealt, the share of the split's prompts that the
        image would answer; above, its hit less that.
        """
        final = self.table.loc[self.table["final"]]
        final = final.assign(shown=shown_radicals(final))
        # Every arm drew the same prompts, so the prompts of all arms have the shares of each.
        dealt = [
            pd.Series(answered_prompts(part["shown"].tolist(), [set(e) for e in part["expected"]]), part.index)
            for _, part in final.groupby("split")
        ]
        final["dealt"] = pd.concat(dealt)
        return final.assign(above=final["hit"] - final["dealt"])

    # ------------------------------------------------------------------------------------------ numbers

    def contrasts(self, split: str | None = None) -> list[Contrast]:
        """What was tested, the claim's own first; on the first split by default."""
        return [Contrast.from_json(contrast) for contrast in self.report["contrasts"][split or self.splits[0]]]

    def rates(self, split: str | None = None) -> pd.DataFrame:
        """Rates at the end of training, as `draw_rates` takes them; of the first split by default."""
        rates: Any = pd.DataFrame(self.report["rates"])
        return rates.loc[rates["final"] & (rates["split"] == (split or self.splits[0]))].reset_index(drop=True)

    def differences(self, split: str | None = None) -> pd.DataFrame:
        """The tested differences, as `draw_differences` takes them; of the first split by default."""
        rows = [
            {"label": f"{c.first} – {c.second}", **c.difference._asdict(), "blocks": c.blocks, "verdict": c.verdict}
            for c in self.contrasts(split)
        ]
        return pd.DataFrame(rows)

    def above_chance(self, split: str | None = None) -> list[Contrast]:
        """The contrasts in hits above chance: less what the same images reach with the prompts dealt at random.

        Whoever draws one radical whatever is asked for gains nothing here, however many the hits. Corrected among
        themselves as the study's own are; on the first split by default.
        """
        return contrasts(self.study, self.chances, split or self.splits[0], "above")

    def by_radical(self) -> pd.DataFrame:
        """How often each radical was read where it was asked for, and where it was not; of the first split.

        Returns:
            One row a variant; two columns a radical: ("asked for", radical) and ("not asked for", radical), shares of
            images over all seeds. A prompt asks for every radical that will do.
        """
        drawn = self.chances.loc[self.chances["split"] == self.splits[0]]
        columns = {}
        for radical in sorted(set("".join(drawn["expected"]))):
            asked, form = drawn["expected"].str.contains(radical), normal_form(radical)
            seen = drawn.assign(seen=[form in shown for shown in drawn["shown"]])
            for name, rows in (("asked for", seen.loc[asked]), ("not asked for", seen.loc[~asked])):
                columns[name, radical] = rows.groupby("variant")["seen"].mean()
        return pd.DataFrame(columns).loc[self.labels].sort_index(axis=1, level=0, sort_remaining=False)

    def blocks(self) -> dict[str, pd.DataFrame]:
        """Hits of the first split, held-out loss and diversity: by name a table of blocks (rows) and variants."""
        rates, table = self.rates(), self.table.loc[self.table["final"]]
        hits = pd.DataFrame(dict(zip(rates["variant"], rates["blocks"], strict=True)), index=sorted(self.study.seeds))
        arms = table.groupby(["seed", "variant"])[["held_out_loss", "diversity"]].mean().unstack()
        tables = {HITS: hits.rename_axis("seed"), LOSS: arms["held_out_loss"], DIVERSITY: arms["diversity"]}
        return {name: values.loc[:, self.labels] for name, values in tables.items()}

    def beside(self) -> pd.DataFrame:
        """What should stand beside a rate, as the first judge's table tells it.

        Returns:
            One row a variant: hits of each split; of the first split what its images would reach were the prompts
            dealt to them at random, and the share that the judge abstained from; mean diversity and held-out loss.
        """
        rows = {}
        for label in self.labels:
            part: Any = self.chances.loc[self.chances["variant"] == label]
            asked = {split: part.loc[part["split"] == split] for split in self.splits}
            first = asked[self.splits[0]]
            rows[label] = {f"hits, {spelled(split)}": some["hit"].mean() for split, some in asked.items()}
            rows[label] |= {DEALT: first["dealt"].mean(), "abstained": first["abstain"].mean()}
            rows[label] |= {DIVERSITY: part["diversity"].mean(), LOSS: part["held_out_loss"].mean()}
        return pd.DataFrame.from_dict(rows, orient="index").rename_axis("variant")

    def measured(self, column: str, table: pd.DataFrame | None = None) -> pd.DataFrame:
        """The study's contrasts in a number that is no hit, such as the held-out loss.

        Args:
            column: of the table; its mean over an arm's images counts.
            table: one row an image with variant, seed and the column, as of `measure_images`; default the study's.
        Returns:
            One row a contrast: first and second (means), difference, low, high (95% interval over blocks), p (of this
            contrast by itself).
        """
        final = self.table.loc[self.table["final"]] if table is None else table
        means: Any = final.groupby("variant")[column].mean()
        rows = {}
        for found in arm_contrasts(self.study, final, column):
            value, low, high = found["difference"]
            ends = {"first": means[found["first"]], "second": means[found["second"]]}
            rows[f"{found['first']} – {found['second']}"] = ends | dict(
                difference=value, low=low, high=high, p=found["p"]
            )
        return pd.DataFrame.from_dict(rows, orient="index").rename_axis("contrast")

    def beside_another(self, other: StoredStudy) -> pd.DataFrame:
        """Hits of the first split as two judges read the same images, and what else the second said of them.

        Args:
            other: the same study, as judge A or B read it.
        Raises:
            ValueError: it is another study.
        """
        if other.report["hash"] != self.report["hash"]:
            raise ValueError(f"expected readings of study {self.report['hash']}, got {other.report['hash']}")
        hits: Any = self.rates().set_index("variant")["value"]
        table, name = other.chances, other.report["judge"]
        read: Any = table.loc[table["split"] == self.splits[0]].groupby("variant")
        second = read[["hit", "dealt", *READ_TOO]].mean()
        second = second.rename(columns={"hit": f"hits, {name}", "dealt": DEALT} | READ_TOO)
        second.insert(0, "hits, first judge", hits)
        return second.loc[self.labels]

    # ------------------------------------------------------------------------------------------ words

    def settings_text(self) -> str:
        """What was asked, as a Markdown list."""
        study, first = self.study, self.study.contrasts[0]
        differing = set(variant_settings(study).columns)
        # A variant's, not the study's own: there may be settings that every variant changes.
        arm = study.arm_of(study.variants[0], study.seeds[0])
        values = {name: getattr(arm, name) for name in arm.to_json() if name in SHARED and name not in differing}
        shared = ", ".join(f"{name} {_number(value)}" for name, value in values.items())
        radicals = " ".join(radical_character(number) for number in study.data.get("radicals", ()))
        counts = " and ".join(f"{n} {spelled(split)}" for split, n in self.report["prompts"].items())
        seeds = f"{len(study.seeds)} training seeds ({study.seeds[0]} to {study.seeds[-1]})"
        lines = [
            f"Claim: {study.claim}. First contrast: {first[0]} against {first[1]}.",
            f"Variants: {'; '.join(self.labels)}. Blocks: {seeds}.",
            f"The same for all: {shared}.",
            f"Data: the radicals {radicals or 'of the whole set'}. Prompts: {counts} captions, "
            f"{len(study.noise_seeds)} image of each. Base: {Path(study.base).name}.",
        ]
        return as_list(lines)

    def sentences_text(self) -> str:
        """What was found on every split, as Markdown."""
        parts = [f"**{spelled(split)} prompts**\n\n{as_list(some)}" for split, some in self.report["sentences"].items()]
        return "\n\n".join([*parts, self._correction()])

    def _correction(self) -> str:
        """For what the p values of `contrasts` are corrected, as Markdown."""
        others = len(self.study.contrasts) - 1
        own = "The p of the first contrast is its own" if others else "The p is that of this contrast by itself"
        return f"*{own}{'; those of the others are corrected among themselves' * bool(others)}.*"

    def measured_text(self, name: str, measured: pd.DataFrame, more: str, less: str) -> str:
        """The contrasts of `measured` in words, as a Markdown list.

        Args:
            name: of what was measured.
            measured: of `measured`.
            more: what the first is where it has more of it, as "worse".
            less: and where it has less.
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
        return self._told(self.above_chance())

    def other_prompts_text(self, pilot: pd.DataFrame) -> str:
        """The contrasts on those prompts of the first split that a pilot did not ask, as Markdown.

        Args:
            pilot: its table.
        """
        table = self.table.loc[~self.table["prompt"].isin(pilot["prompt"])]
        asked = table.loc[table["split"] == self.splits[0], "prompt"].nunique()
        told = self._told(contrasts(self.study, table, self.splits[0]))
        return f"On the {asked} prompts that the pilot did not ask:\n\n{told}"

    def _told(self, found: Iterable[Contrast]) -> str:
        """All of the study's contrasts in words, as Markdown."""
        return f"{as_list(sentence(contrast, place(self.study)) for contrast in found)}\n\n{self._correction()}"

    def stopped_text(self) -> str:
        """Which trainings did not come to their end, and what the contrasts are in the other blocks, as Markdown."""
        arms = self.table.loc[self.table["final"] & self.table["stopped"].notna()]
        arms = arms.drop_duplicates(["variant", "seed"]).sort_values(by=["variant", "seed"])
        if arms.empty:
            return f"All {len(self.study.cells())} trainings came to their end."
        budget = {v.label: _budget(self.study.arm_of(v, self.study.seeds[0])) for v in self.study.variants}
        seen = "{0.variant}, seed {0.seed}: {0.images_seen:,} images seen of {1}. {0.stopped}"
        lines = [seen.format(row, budget[str(row.variant)]) for row in arms.itertuples()]
        rest = as_list(sentence(contrast, place(self.study)) for contrast in self._without(arms))
        told = f"Stopped early, and drawn and counted as they were then:\n\n{as_list(lines)}"
        without = f"Without the blocks in which one of the two stopped early, p of each by itself:\n\n{rest}"
        return f"{told}\n\n{without}" if rest else told

    def _without(self, stopped: pd.DataFrame) -> Iterator[Contrast]:
        """The contrasts that lose blocks when those with a stopped arm are left out, over the others."""
        for one, other in self.study.contrasts:
            out = stopped.loc[stopped["variant"].isin([one, other]), "seed"]
            table = self.table.loc[~self.table["seed"].isin(out)]
            if len(out) and len(table):
                first, second = (outcomes(table, label, self.splits[0]) for label in (one, other))
                yield compare(first, second, (one, other))

    def judges_text(self, other: StoredStudy) -> str:
        """Whether another judge finds the same, contrast by contrast, as a Markdown list."""
        lines = []
        for one, two in zip(self.contrasts(), other.contrasts(self.splits[0]), strict=True):
            same = "the same verdict" if one.verdict == two.verdict else f"where the first judge says {one.verdict}"
            opposite = one.difference.value * two.difference.value < 0
            lines.append(f"{sentence(two, place(self.study))}: {same}" + ", with the opposite sign" * opposite)
        return as_list(lines)

    def answer_text(self) -> str:
        """The answer to the claim, at the shared rate and, where a pilot chose others, at those, as Markdown.

        It is corrected together with the other claims whose studies lie in the same folder.
        """
        ways = {"": "At one learning rate for all", TUNED_SUFFIX: "At the rate that a pilot chose for each"}
        if is_tuned(self.study):
            ways = {TUNED_SUFFIX: "At one learning rate for all, which a pilot chose for each"}
        parts = []
        for suffix, way in ways.items():
            found = claims(self.folder.parent, self.report["judge"], self.splits[0], suffix)
            for study, contrast in found:
                if study == self.study:
                    line = as_list([f"{sentence(contrast, place(study))} (claims corrected together: {len(found)})"])
                    parts.append(f"{way}, {_answer(contrast)}\n\n{line}")
        return "\n\n".join(parts)

    def limits_text(self) -> str:
        """What an answer may hang on, found by rule in the numbers, as a Markdown list."""
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


# ---------------------------------------------------------------------------------------------- drawn images
