"""A finished study's numbers, from its stored report and table."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import pandas as pd

from kanjilab.data.components import normal_form
from kanjilab.evaluation.metrics import answered_prompts, shown_radicals
from kanjilab.evaluation.statistics import Contrast
from kanjilab.experiments.designs import TUNED_SUFFIX
from kanjilab.experiments.results import arm_contrasts, contrasts, differences, read_table
from kanjilab.experiments.study import Study, note, read_report, spelled

HITS, LOSS, DIVERSITY = "images with the expected radical", "held-out loss", "diversity"
DEALT = "dealt at random"
READ_TOO = {"legal": "well-formed", "exists": "taken for an existing character"}


@dataclass(frozen=True)
class StudyNumbers:
    """A finished study as one judge read it.

    Attributes:
        folder: of its report and table.
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
            judge: name of the judge whose readings count.
        Raises:
            FileNotFoundError: the study has no such report or table.
            ValueError: one of them is damaged, or another study's.
        """
        folder = Path(folder)
        report, study = read_report(folder / f"report-{judge}.json")
        return cls(folder, study, report, read_table(folder / f"table-{judge}.parquet", study))

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
        return note(self.study, self.report["prompts"][self.splits[0]], self.splits[0])

    @property
    def has_tuned(self) -> bool:
        """Whether variants were also trained at rates of their own."""
        return any(label.endswith(TUNED_SUFFIX) for label in self.labels)

    @cached_property
    def chances(self) -> pd.DataFrame:
        """The table's final images, with what a hit is worth.

        Three columns more: shown, the radicals that the judge read; dealt, the share of the split's prompts that the
        image would answer; above, its hit less that share.
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

    def contrasts(self, split: str | None = None) -> list[Contrast]:
        """What was tested, the claim's own first; on the first split by default."""
        return [Contrast.from_json(contrast) for contrast in self.report["contrasts"][split or self.splits[0]]]

    def rates(self, split: str | None = None) -> pd.DataFrame:
        """Rates at the end of training, as `draw_rates` takes them; of the first split by default."""
        rates: Any = pd.DataFrame(self.report["rates"])
        return rates.loc[rates["final"] & (rates["split"] == (split or self.splits[0]))].reset_index(drop=True)

    def differences(self, split: str | None = None) -> pd.DataFrame:
        """The tested differences, as `draw_differences` takes them; of the first split by default."""
        return differences(self.contrasts(split))

    def above_chance(self, split: str | None = None) -> list[Contrast]:
        """The contrasts in hits above chance: hits less those of the same images with the prompts dealt at random.

        A model that always draws one radical gains nothing here, however many its hits. The p values are corrected
        as those of `contrasts` are; the first split by default.
        """
        return contrasts(self.study, self.chances, split or self.splits[0], "above")

    def by_radical(self) -> pd.DataFrame:
        """How often each radical was read where it was asked for, and where it was not, in the first split.

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
        """Hits of the first split, held-out loss, diversity: by name a table, blocks in rows, variants in columns."""
        rates, table = self.rates(), self.table.loc[self.table["final"]]
        hits = pd.DataFrame(dict(zip(rates["variant"], rates["blocks"], strict=True)), index=sorted(self.study.seeds))
        arms = table.groupby(["seed", "variant"])[["held_out_loss", "diversity"]].mean().unstack()
        tables = {HITS: hits.rename_axis("seed"), LOSS: arms["held_out_loss"], DIVERSITY: arms["diversity"]}
        return {name: values.loc[:, self.labels] for name, values in tables.items()}

    def beside(self) -> pd.DataFrame:
        """What to read beside a rate, of the first judge.

        Returns:
            One row a variant: hits of each split; of the first split the hits that its images would reach with the
            prompts dealt at random, and the share from which the judge abstained; mean diversity and held-out loss.
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

    def beside_another(self, other: StudyNumbers) -> pd.DataFrame:
        """Hits of the first split as two judges read the same images, and the second judge's other readings.

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
