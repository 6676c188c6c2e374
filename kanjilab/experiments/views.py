"""A finished study as notebooks show it: what was compared, what came out, how firm that is, and the answer.

Each part is one call that returns Markdown, or saves one figure. Notebook 07 explains how to read them.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Self

import pandas as pd

from kanjilab.experiments.designs import PILOTS
from kanjilab.experiments.report import StoredStudy, variant_settings
from kanjilab.viz.charts import save_figure
from kanjilab.viz.study_charts import draw_blocks, draw_logs

LOGGED = ("loss", "gradient_norm", "update_norm")
PILOT = "**Pilot.** Share of hits at each peak learning rate, with other training seeds than the study's."


def studies_folder(figures: Path) -> Path:
    """The folder of the stored studies: in `figures`, or else in the clone that kanjilab is installed from."""
    own = figures / "studies"
    return own if own.is_dir() else Path(__file__).parents[2] / "figures" / "studies"


def table_html(table: pd.DataFrame, number: str = ".3f") -> str:
    """A table as HTML, which Markdown may contain; its floats in the given format."""
    return table.to_html(border=0, na_rep="", float_format=lambda value: format(value, number))


@dataclass(frozen=True)
class StudyView:
    """A finished study, as both judges read it.

    Attributes:
        first: the study by the first judge.
        second: the same images by judge B.
        pilot: the final images of the study that chose the learning rates; None where there was none.
    """

    first: StoredStudy
    second: StoredStudy
    pilot: pd.DataFrame | None = None

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Reads a study's two reports, and the pilot beside it, as "rank-pilot" for "rank-full".

        Raises:
            FileNotFoundError: a report or table of the study is missing.
        """
        name, _, scale = folder.name.partition("-")
        pilot, table = folder.with_name(f"{name}-{PILOTS.get(scale)}"), None
        if pilot.is_dir():
            table = pd.read_parquet(pilot / "table-radicals.parquet").query("final")
        return cls(StoredStudy.read(folder), StoredStudy.read(folder, "judge-b"), table)

    @property
    def judges(self) -> dict[str, StoredStudy]:
        """The study by the name of the judge."""
        return {"first judge": self.first, "judge B": self.second}

    def setup(self) -> str:
        """What was compared: claim, variants, what all share, what differs, the pilot; Markdown."""
        parts = [self.first.settings_text(), table_html(variant_settings(self.first.study), number=".6g")]
        if self.pilot is not None:
            rates = self.pilot.pivot_table("hit", "setting", "peak_lr", sort=False).sort_index(axis=1)
            rates.columns = pd.Index([f"{rate:.2g}" for rate in rates.columns], name="peak_lr")
            parts += [PILOT, table_html(rates)]
        return "\n\n".join(parts)

    def results(self) -> str:
        """What came out: the contrasts, the rates with what belongs beside them, early ends; Markdown."""
        return "\n\n".join([self.first.sentences_text(), table_html(self.first.beside()), self.first.stopped_text()])

    def losses(self) -> str:
        """The contrasts in held-out loss and in diversity; Markdown."""
        words = {
            "held_out_loss": ("held-out loss", "worse", "better"),
            "diversity": ("diversity", "more varied", "more alike"),
        }
        lines = [
            self.first.measured_text(name, self.first.measured(column), more, less)
            for column, (name, more, less) in words.items()
        ]
        return "\n".join(lines)

    def second_judge(self) -> str:
        """The contrasts and rates by judge B, from the same images; Markdown."""
        return f"{self.first.judges_text(self.second)}\n\n{table_html(self.first.beside_another(self.second))}"

    def checks(self) -> str:
        """How firm it is: by judge B, above chance, radical by radical, without the pilot's prompts; Markdown."""
        seen = pd.concat({name: stored.by_radical() for name, stored in self.judges.items()})
        parts = [
            f"**By judge B**\n\n{self.second_judge()}",
            *(f"**Above chance, {name}**\n\n{stored.above_chance_text()}" for name, stored in self.judges.items()),
            f"**Radical by radical:** share of images that show it\n\n{table_html(seen)}",
        ]
        if self.pilot is not None:
            parts.append(f"**Other prompts.** {self.first.other_prompts_text(self.pilot)}")
        return "\n\n".join(parts)

    def answer(self) -> str:
        """The answer to the claim, where it is one of the four, and what it may depend on; Markdown."""
        return "\n\n".join(filter(None, [self.first.answer_text(), self.first.limits_text()]))

    def save_blocks(self, path: Path, title: str = "Hits, loss and diversity, block by block") -> Path:
        """Saves the chart of all contrasts, a thin line for each training seed; returns its path."""
        pairs = [(contrast.first, contrast.second) for contrast in self.first.contrasts()]
        figure = draw_blocks(self.first.blocks(), pairs, title=title, note=self.first.note)
        return save_figure(figure, path, self.first.source)

    def save_logs(self, path: Path) -> Path:
        """Saves the chart of loss, gradient norm and update norm over images seen; returns its path."""
        logs, title = pd.read_parquet(self.first.folder / "log.parquet"), "Thin: a training; bold: a variant's median"
        return save_figure(draw_logs(logs, LOGGED, title=title, note=self.first.note), path, self.first.source)
