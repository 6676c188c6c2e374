"""What the stages of the Japanese text encoder are worth in training, beside English captions of the same characters.

`python -m kanjilab.experiments.japanese_stages runs/stages` trains a LoRA on four radicals with Japanese captions, the
text encoder frozen after stage 1 or trained too (stage 2), the same with MiniLM reading the Japanese, and one with the
English captions of the same characters, and asks each for held-out characters in its own language. Called again, it
goes on.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from kanjilab.core.config import DEFAULT_BASE
from kanjilab.core.storage import write_json_atomic
from kanjilab.data.build import build_dataset
from kanjilab.data.dictionary import load_characters
from kanjilab.data.image_folder import HELD_OUT, Dataset, open_dataset
from kanjilab.data.selection import rule_from_json
from kanjilab.data.subset import write_subset
from kanjilab.evaluation.statistics import compare
from kanjilab.experiments.context import open_study
from kanjilab.experiments.designs import BUDGETS, CONFIRM_SEEDS, STUDY_ARM
from kanjilab.experiments.drawn import variants_strip
from kanjilab.experiments.results import outcomes, read_table
from kanjilab.experiments.run_study import ablate_by_both
from kanjilab.experiments.study import Study, Variant
from kanjilab.viz.strip import save_strip

BUDGET = BUDGETS["steps"]
PROMPTS = 10  # for each radical
SEEDS = CONFIRM_SEEDS[:3]
TITLE = "Words of held-out kanji; one noise"
STAGES = (
    Variant("stage 1", {}),
    Variant("stage 2", {"text_encoder": "full", "text_encoder_lr": 1e-4}),
)


def in_english(japanese: Dataset, folder: Path) -> Dataset:
    """The same characters, with all their English meanings as captions.

    Args:
        japanese: of `InJapanese`.
        folder: new, or of an earlier call.
    """
    if not folder.exists():
        meanings = load_characters().loc[japanese.table["character"], "meanings"]
        table = japanese.table.assign(text=[";".join(some) for some in meanings])
        return write_subset(dataclasses.replace(japanese, table=table), np.arange(len(table)), folder)
    return open_dataset(folder)


def stage_studies(folder: Path) -> dict[str, Study]:
    """A study of each text encoder and language, of the same characters, seeds, noise and order.

    Args:
        folder: below whose sets/ their image folders are.
    """
    japanese = build_dataset(rule_from_json({"name": "japanese", "rule": BUDGET.data}), folder / "sets" / "japanese")
    in_english(japanese, folder / "sets" / "english")
    study = Study(
        "japanese",
        "trained together, text encoder and denoiser draw more from Japanese than the denoiser alone",
        dataclasses.replace(STUDY_ARM, images_seen=BUDGET.images_seen),
        STAGES,
        SEEDS,
        data={"folder": str(japanese.folder)},
        base="pocket-ja",
        prompts_per_radical=PROMPTS,
        splits=("held_out",),
        noise_seeds=(0, 1),
        sampling=BUDGET.sampling,
        loss_images=BUDGET.loss_images,
    )
    english = {"folder": str(folder / "sets" / "english")}
    only = {"variants": (Variant("English captions", {}),), "contrasts": (), "base": DEFAULT_BASE}
    return {
        "japanese": study,
        "english": dataclasses.replace(study, name="english", data=english, **only),
        "minilm": dataclasses.replace(study, name="minilm", **only | {"variants": (Variant("MiniLM", {}),)}),
    }


def against_minilm(studies: Mapping[str, Study], folder: Path) -> dict[str, dict[str, Any]]:
    """Stage 1 against MiniLM, which read the same captions, by the judge's name.

    Args:
        studies: of `stage_studies`, scored by `ablate_by_both`.
        folder: that of the studies' folders.
    """
    variants, found = {"japanese": "stage 1", "minilm": "MiniLM"}, {}
    for judge in ("radicals", "judge-b"):
        tables = {name: read_table(folder / name / f"table-{judge}.parquet", studies[name]) for name in variants}
        first, second = (outcomes(tables[name], variant, HELD_OUT) for name, variant in variants.items())
        found[judge] = compare(first, second, ("stage 1", "MiniLM")).to_json()
    return found


def main(arguments: Sequence[str]) -> None:
    """Trains and scores all; what both judges say goes into stages.json, what the stages drew into strip.png."""
    folder = Path(*arguments[:1] or ("runs/stages",))
    studies = stage_studies(folder)
    found = {name: ablate_by_both(study, folder / name) for name, study in studies.items()}
    if all(found.values()):
        strip = variants_strip(open_study(studies["japanese"], folder / "japanese"), title=TITLE)
        save_strip(strip, folder / "strip.png")
        write_json_atomic(folder / "stages.json", {"studies": found, "against": against_minilm(studies, folder)})


if __name__ == "__main__":
    main(sys.argv[1:])
