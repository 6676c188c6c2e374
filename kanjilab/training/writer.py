"""Build the writer: pocket's denoiser, trained whole on real kanji and typeset pairs until it draws what captions name.

The recipe in order: `build_writer_corpus` (kanjilab.data.writer_corpus) -> two stages (kanjilab.training.stages) ->
`save_writer`. The first stage sees pairs of frequent parts only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel

from kanjilab.core.storage import PACKAGE_WEIGHTS, write_json_atomic
from kanjilab.data.captioned import load_captioned, shared_out
from kanjilab.data.writer_corpus import SHARES, build_writer_corpus
from kanjilab.training.denoiser import SCHEDULER_CONFIG, UnetRecipe, averaged_unet
from kanjilab.training.stages import Stage, encode_table, train_stages

FREQUENT_SHARES = {"frequent pairs": 0.7, "parts": 0.3}


@dataclass(frozen=True)
class WriterRecipe:
    """How the writer is trained; the defaults made the packaged weights.

    Attributes:
        frequent: pairs of two frequent parts, captioned by parts.
        everything: all kinds of captions.
    """

    frequent: UnetRecipe = UnetRecipe(
        steps=1_600, batch=16, peak_lr=1e-3, warmup_steps=200, cooldown_steps=480, velocity_from_step=0, ema_decay=0.998
    )
    everything: UnetRecipe = UnetRecipe(
        steps=8_500,
        batch=16,
        peak_lr=1e-3,
        warmup_steps=200,
        cooldown_steps=3_000,
        velocity_from_step=0,
        seed=1,
    )


def frequent_weights(table: pd.DataFrame) -> np.ndarray:
    """Sampling weights (N,) of the first stage."""
    chosen = table["frequent"] & ~table["held_out"]
    weight = np.where(chosen, table["weight"], 0.0)
    return shared_out(weight, table["kind"], FREQUENT_SHARES)


def _weights(table: pd.DataFrame) -> np.ndarray:
    return table["weight"].to_numpy(dtype=float)


def build_writer(
    folder: Path,
    recipe: WriterRecipe | None = None,
    *,
    characters: Sequence[str] | None = None,
    save_every_steps: int = 500,
) -> Path:
    """The whole recipe; called again, it goes on from what `folder` holds.

    Args:
        folder: keeps every stage, its history (see `train_stages`), and what the package carries in `weights/`.
        recipe: how long and how fast; the default made the packaged weights.
        characters: only these of the corpus, for a trial.
        save_every_steps: of each training.
    Returns:
        `folder/weights`.
    """
    recipe = recipe or WriterRecipe()
    if not (folder / "glyphs.csv").exists():
        build_writer_corpus(folder, characters=characters)
    table, images = load_captioned(folder)
    vae = AutoencoderKL.from_pretrained(PACKAGE_WEIGHTS / "pocket" / "vae").float().eval()
    corpus = encode_table(vae, table, images, folder)
    initial = UNet2DConditionModel.from_pretrained(PACKAGE_WEIGHTS / "pocket" / "unet").float().state_dict()
    stages = {"frequent": Stage(recipe.frequent, frequent_weights), "everything": Stage(recipe.everything, _weights)}
    training, seen = train_stages(corpus, table, stages, folder, initial, save_every_steps)
    facts = {
        "images": len(images),
        "captions": len(corpus.text),
        "images_seen": seen,
        "shares": SHARES,
        "held_out_loss": training.held_out_loss(corpus),
    }
    return save_writer(averaged_unet(training), facts, folder / "weights")


def save_writer(unet: UNet2DConditionModel, facts: Mapping[str, Any], folder: Path) -> Path:
    """Writes what the package carries: the rest is pocket's.

    Args:
        unet: the denoiser, stored in fp16.
        facts: how it was made, in plain values.
        folder: made if need be.
    """
    unet.half().save_pretrained(folder / "unet")
    DDIMScheduler(**SCHEDULER_CONFIG).save_pretrained(folder / "scheduler")
    write_json_atomic(folder / "facts.json", facts)
    return folder
