"""A study made ready: its datasets built and encoded, its prompts chosen, its base loaded."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from kanjilab.core.config import Arm, settings_hash
from kanjilab.core.progress import bar
from kanjilab.data.build import build_dataset
from kanjilab.data.image_folder import Dataset, open_dataset
from kanjilab.data.selection import rule_from_json
from kanjilab.evaluation.scoring import PromptSet, caption_prompts
from kanjilab.experiments.study import Study, Variant
from kanjilab.models.loading import LatentDiffusion, load_base
from kanjilab.training.encoded import Encoded, encode_dataset

FEW_HELD_OUT, MANY_HELD_OUT = 20, 1_000  # characters per radical; many so that several datasets share some
DRAWN_TOGETHER = {"cpu": 32}  # images a batch; more is no faster there
DRAWN_TOGETHER_ELSEWHERE = 256


@dataclass(frozen=True)
class StudyContext:
    """A study with all that its trainings and drawings need.

    Attributes:
        study, folder, base: the settings, the folder of all files, and the model.
        encoded: training images by the hash of their rule.
        prompts: captions of each split that mean the same in all of the study's datasets.
        held_out: images for the held-out loss; None where there are none.
        kept: rows of finished studies' tables by the key of their arm; these arms are not trained again.
    """

    study: Study
    folder: Path
    base: LatentDiffusion
    encoded: dict[str, Encoded]
    prompts: dict[str, PromptSet]
    held_out: Encoded | None
    kept: Mapping[str, pd.DataFrame] = field(default_factory=dict)

    def data(self, variant: Variant) -> Encoded:
        """The encoded training images of a variant."""
        return self.encoded[settings_hash(dict(self.study.data_of(variant)))]

    def dataset(self, variant: Variant) -> Dataset:
        """The images and captions of all splits of a variant's data."""
        return open_data(self.study.data_of(variant), self.folder, _held_out_per_radical(self.study))

    def key(self, variant: Variant, seed: int) -> str:
        """Identity of one training: the hash of its settings, its encoded data, and the precision."""
        return settings_hash(
            [self.study.arm_of(variant, seed).to_json(), self.data(variant).identity, self.base.precision]
        )

    @property
    def drawing(self) -> str:
        """Identity of what is drawn and measured: the hash of prompts, noises, sampling, moments and loss images."""
        study, held_out = self.study, self.held_out.identity if self.held_out else None
        prompts = {name: asked.captions for name, asked in self.prompts.items()}
        drawn = [prompts, study.noise_seeds, study.sampling.to_json(), study.checkpoints, study.loss_images, held_out]
        return settings_hash(drawn)

    @property
    def captions(self) -> list[str]:
        """The prompts of all splits, one after the other."""
        return [caption for asked in self.prompts.values() for caption in asked.captions]

    @property
    def drawn_together(self) -> int:
        """Batch size of sampling; it changes the images by rounding alone."""
        return DRAWN_TOGETHER.get(self.base.device.type, DRAWN_TOGETHER_ELSEWHERE)

    def trainings(self) -> dict[str, tuple[Arm, Encoded]]:
        """The different trainings by key; variants with equal settings share one in each block."""
        found = {}
        for variant, seed in self.study.cells():
            found[self.key(variant, seed)] = (self.study.arm_of(variant, seed), self.data(variant))
        return found


def open_study(
    study: Study, folder: Path, device: str | torch.device = "cpu", *, progress: bool = True
) -> StudyContext:
    """Builds and encodes the study's datasets, or opens those of an earlier call, and loads the base.

    Args:
        folder: of the study: new, or of an earlier call.
        device: where the base goes.
        progress: show bars while datasets are built and encoded.
    Raises:
        ValueError: a dataset without training images, or no caption that all datasets share.
    """
    folder.mkdir(parents=True, exist_ok=True)
    held_out_each = _held_out_per_radical(study)
    curated, encoding = bar("curate", shown=progress), bar("encode", shown=progress)
    datasets = {settings_hash(dict(data)): open_data(data, folder, held_out_each, curated) for data in study.datasets()}
    base = load_base(study.base, study.precision, device)
    encoded = {
        name: encode_dataset(base, dataset.split("train"), on_progress=encoding) for name, dataset in datasets.items()
    }
    shared = {split: _shared_rows(list(datasets.values()), split) for split in ("held_out", *study.splits)}
    prompts = {}
    for split in study.splits:
        if (rows := shared[split]) is not None:
            prompts[split] = caption_prompts(rows, split, study.prompts_per_radical)
    if not prompts:
        raise ValueError(f"study {study.name!r}: no caption of {study.splits} is in all of its datasets")
    held_out = shared["held_out"]
    encoded_held_out = encode_dataset(base, held_out, on_progress=encoding) if held_out else None
    return StudyContext(study, folder, base, encoded, prompts, encoded_held_out)


def _held_out_per_radical(study: Study) -> int:
    return MANY_HELD_OUT if len(study.datasets()) > 1 else FEW_HELD_OUT


def open_data(
    data: Mapping[str, Any],
    folder: Path,
    held_out_per_radical: int = FEW_HELD_OUT,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> Dataset:
    """Builds a dataset, or opens one: an earlier call's, or an image folder.

    Args:
        data: a selection rule as `rule_from_json` reads it, or {"folder": path} of an image folder.
        folder: below whose data/ it is built.
        held_out_per_radical, on_progress: as for `build_dataset`.
    """
    if "folder" in data:
        return open_dataset(Path(data["folder"]))
    target = folder / "data" / settings_hash([dict(data), held_out_per_radical])
    return build_dataset(
        rule_from_json(data), target, held_out_per_radical=held_out_per_radical, on_progress=on_progress
    )


def _shared_rows(datasets: Sequence[Dataset], split: str) -> Dataset | None:
    """The first dataset's rows of one split whose captions the others have in the same split; None for none."""
    for dataset in datasets:
        if split not in set(dataset.table["split"]):
            return None
    texts = set.intersection(*(set(dataset.split(split).table["text"]) for dataset in datasets))
    first = datasets[0].split(split)
    kept = np.flatnonzero(first.table["text"].isin(list(texts)).to_numpy())
    table = first.table.iloc[kept].reset_index(drop=True)
    return dataclasses.replace(first, table=table, digests=tuple(first.digests[i] for i in kept)) if len(kept) else None
