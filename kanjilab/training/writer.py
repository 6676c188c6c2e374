"""Build the writer: pocket's denoiser, trained whole on real kanji and typeset pairs until it draws what captions name.

The recipe in order: `build_writer_corpus` (kanjilab.data.writer_corpus) -> `encode_writer_corpus` -> two trainings ->
`save_writer`. The first training sees pairs of frequent parts only: the denoiser first has to find out that words
are about places, which takes long where every part is rare.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from safetensors.torch import load_file, save

from kanjilab.core.storage import PACKAGE_WEIGHTS, write_bytes_atomic, write_json_atomic
from kanjilab.data.writer_corpus import SEPARATOR, SHARES, build_writer_corpus, shared_out
from kanjilab.training.denoiser import (
    SCHEDULER_CONFIG,
    EncodedCorpus,
    UnetRecipe,
    UnetTraining,
    averaged_unet,
    encode_captions,
    finished_denoiser,
)
from kanjilab.training.pocket_base import encode_corpus

CAPTIONS = 12  # columns of `EncodedCorpus.captions`: lists of one to four captions are repeated to fill them
KEPT_EVERY_STEPS = 1_000
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


def encode_writer_corpus(vae: AutoencoderKL, table: pd.DataFrame, images: np.ndarray, folder: Path) -> EncodedCorpus:
    """The corpus as the denoiser's training reads it; encoded once, kept in `folder`.

    Latents are the autoencoder's means: the glyphs are clean, and so should the drawn ones be.

    Args:
        vae: pocket's.
        table: of `build_writer_corpus`.
        images: (N, 128, 128) uint8.
        folder: for latents.safetensors and text.npy.
    """
    listed = [cell.split(SEPARATOR) for cell in table["captions"]]
    captions = sorted({"", *(caption for row in listed for caption in row)})
    row_of = {caption: index for index, caption in enumerate(captions)}
    path = folder / "latents.safetensors"
    if not path.exists():
        mean, _ = encode_corpus(vae, images)
        write_bytes_atomic(path, save({"mean": mean.contiguous()}))
    mean = load_file(path)["mean"][torch.tensor(table["image"].to_numpy())] * vae.config["scaling_factor"]
    return EncodedCorpus(
        mean=mean,
        std=torch.zeros(1).expand_as(mean),
        text=encode_captions(captions, folder / "text.npy"),
        captions=np.array([np.resize([row_of[caption] for caption in row], CAPTIONS) for row in listed]),
        empty=row_of[""],
        weight=table["weight"].to_numpy(dtype=float),
        held_out=table["held_out"].to_numpy(dtype=bool),
    )


def frequent_weights(table: pd.DataFrame) -> np.ndarray:
    """Sampling weights (N,) of the first training."""
    chosen = table["frequent"] & ~table["held_out"]
    weight = np.where(chosen & table["kind"].isin(list(FREQUENT_SHARES)), table["weight"], 0.0)
    return shared_out(weight, table["kind"], FREQUENT_SHARES).to_numpy()


def build_writer(
    folder: Path,
    recipe: WriterRecipe | None = None,
    *,
    characters: Sequence[str] | None = None,
    save_every_steps: int = 500,
) -> Path:
    """The whole recipe; called again, it goes on from what `folder` holds.

    Args:
        folder: keeps every stage, what the package carries in `weights/`, and in `history/` the denoiser of each
            thousand steps and at the end of each training, in fp16, under the number of images seen.
        recipe: how long and how fast; the default made the packaged weights.
        characters: only these of the corpus, for a trial.
        save_every_steps: of each training.
    Returns:
        `folder/weights`.
    """
    recipe = recipe or WriterRecipe()
    if not (folder / "glyphs.csv").exists():
        build_writer_corpus(folder, characters=characters)
    table = pd.read_csv(folder / "glyphs.csv", keep_default_na=False)
    images = np.load(folder / "images.npy", mmap_mode="r", allow_pickle=False)
    vae = AutoencoderKL.from_pretrained(PACKAGE_WEIGHTS / "pocket" / "vae").float().eval()
    corpus = encode_writer_corpus(vae, table, images, folder)
    frequent = replace(corpus, weight=frequent_weights(table))
    initial = UNet2DConditionModel.from_pretrained(PACKAGE_WEIGHTS / "pocket" / "unet").float().state_dict()
    first = finished_denoiser(frequent, recipe.frequent, folder / "frequent.safetensors", initial, save_every_steps)
    seen = recipe.frequent.steps * recipe.frequent.batch
    _keep(first, folder / "history", 0)

    def keep(training: UnetTraining) -> None:
        if training.step % KEPT_EVERY_STEPS == 0 or training.step == recipe.everything.steps:
            _keep(training, folder / "history", seen)

    state = folder / "unet.safetensors"
    second = finished_denoiser(corpus, recipe.everything, state, first.average, save_every_steps, keep)
    facts = {
        "images": len(images),
        "captions": len(corpus.text),
        "images_seen": seen + recipe.everything.steps * recipe.everything.batch,
        "shares": SHARES,
        "held_out_loss": second.held_out_loss(corpus),
    }
    return save_writer(averaged_unet(second), facts, folder / "weights")


def _keep(training: UnetTraining, history: Path, seen: int) -> None:
    """Stores the averaged weights under the number of images seen; so many by an earlier training."""
    folder = history / f"{seen + training.step * training.recipe.batch:07d}"
    averaged_unet(training).half().save_pretrained(folder)


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
