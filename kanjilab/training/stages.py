"""Train a denoiser in stages over one corpus: what pocket and the writer have in common.

What a stage draws is a matter of its sampling weights. A denoiser first has to find out that words are about places,
which takes long where every part is rare: so pairs of a few frequent parts come before everything else.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from diffusers import AutoencoderKL
from safetensors.torch import load_file, save
from torch import Tensor

from kanjilab.core.storage import write_bytes_atomic
from kanjilab.data.captioned import SEPARATOR
from kanjilab.training.denoiser import (
    EncodedCorpus,
    UnetRecipe,
    UnetTraining,
    averaged_unet,
    encode_captions,
    finished_denoiser,
)

CAPTIONS = 12  # columns of `EncodedCorpus.captions`: shorter lists of captions are repeated to fill them
KEPT_EVERY_STEPS = 1_000


@dataclass(frozen=True)
class Stage:
    """One training of several.

    Attributes:
        recipe: how long and how fast.
        weights: the corpus's table -> (N,) how often each of its rows is drawn.
    """

    recipe: UnetRecipe
    weights: Callable[[pd.DataFrame], np.ndarray]


def to_model_range(images: np.ndarray) -> Tensor:
    """(B, H, W) uint8 -> (B, 1, H, W) float in [-1, 1]."""
    return torch.from_numpy(images.astype(np.float32) / 127.5 - 1)[:, None]


@torch.inference_mode()
def encode_images(vae: AutoencoderKL, images: np.ndarray, batch: int = 64) -> Tensor:
    """The posterior mean of every image, unscaled.

    Args:
        vae: of pocket's shape.
        images: (N, 128, 128) uint8.
        batch: of the encoder.
    Returns:
        (N, 4, 16, 16) float32.
    """
    batches = (to_model_range(images[start : start + batch]) for start in range(0, len(images), batch))
    return torch.cat([vae.encode(pixels).latent_dist.mean for pixels in batches])  # pyright: ignore[reportAttributeAccessIssue]


def encode_table(vae: AutoencoderKL, table: pd.DataFrame, images: np.ndarray, folder: Path) -> EncodedCorpus:
    """The corpus as the denoiser's training reads it; encoded once, kept in `folder`.

    Latents are the autoencoder's means: the glyphs are clean, and so should the drawn ones be.

    Args:
        vae: its scaling factor brings the latents to unit scale; where it is 1, it is measured here, and set.
        table: of `kanjilab.data.captioned`.
        images: (N, 128, 128) uint8.
        folder: for latents.safetensors and text.npy.
    """
    listed = [cell.split(SEPARATOR) for cell in table["captions"]]
    captions = sorted({"", *(caption for row in listed for caption in row)})
    row_of = {caption: index for index, caption in enumerate(captions)}
    path = folder / "latents.safetensors"
    if not path.exists():
        write_bytes_atomic(path, save({"mean": encode_images(vae, images).contiguous()}))
    held_out = table["held_out"].to_numpy(dtype=bool)
    latents = load_file(path)["mean"][torch.tensor(table["image"].to_numpy())]
    if vae.config["scaling_factor"] == 1:
        vae.register_to_config(scaling_factor=1 / latents[torch.from_numpy(~held_out)].std().item())
    return EncodedCorpus(
        latents=latents * vae.config["scaling_factor"],
        text=encode_captions(captions, folder / "text.npy"),
        captions=np.array([np.resize([row_of[caption] for caption in row], CAPTIONS) for row in listed]),
        empty=row_of[""],
        weight=table["weight"].to_numpy(dtype=float),
        held_out=held_out,
    )


def train_stages(
    corpus: EncodedCorpus,
    table: pd.DataFrame,
    stages: Mapping[str, Stage],
    folder: Path,
    initial: Mapping[str, Tensor] | None = None,
    save_every_steps: int = 500,
) -> tuple[UnetTraining, int]:
    """Trains one stage after the other, each from the averaged weights of the one before.

    Called again, it goes on from what `folder` holds.

    Args:
        corpus: of `encode_table`.
        table: as for `encode_table`.
        stages: by name, in order.
        folder: keeps the state of each stage, and in `history/` the denoiser of each thousand steps and at the end
            of each stage, in fp16, under the number of images seen.
        initial: weights to begin with, by name; None for random ones.
        save_every_steps: of each training.
    Returns:
        The last training, and how many images were seen in all.
    """
    seen, training = 0, None
    for name, stage in stages.items():
        weighted, begun = replace(corpus, weight=stage.weights(table)), seen

        def keep(training: UnetTraining, begun: int = begun) -> None:
            if training.step % KEPT_EVERY_STEPS == 0 or training.step == training.recipe.steps:
                kept = folder / "history" / f"{begun + training.step * training.recipe.batch:07d}"
                averaged_unet(training).half().save_pretrained(kept)

        state = folder / f"{name}.safetensors"
        training = finished_denoiser(weighted, stage.recipe, state, initial, save_every_steps, keep)
        initial, seen = training.average, seen + stage.recipe.steps * stage.recipe.batch
    if training is None:
        raise ValueError("expected one stage or more, got none")
    return training, seen
