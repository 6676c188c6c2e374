"""Build the pocket base: a small latent-diffusion model that has never seen a kanji.

The recipe in order: `build_corpus` (kanjilab.data.pocket_corpus) -> `train_vae` -> `encode_corpus` ->
`train_unet` -> `save_pocket`. Every random choice is a function of (seed, step), every stage
writes its state as safetensors and goes on from it when called again.
"""

import math
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from safetensors.torch import load_file, save
from torch import Tensor

from kanjilab.core.progress import open_bar
from kanjilab.core.storage import appearing_folder, write_bytes_atomic, write_json_atomic
from kanjilab.data.pocket_corpus import build_corpus, corpus_list
from kanjilab.models.loading import assemble_pipeline
from kanjilab.models.minilm import minilm_folder
from kanjilab.training.denoiser import (
    SCHEDULER_CONFIG,
    EncodedCorpus,
    UnetRecipe,
    averaged_unet,
    encode_captions,
    finished_denoiser,
)

VAE_CONFIG: dict[str, Any] = dict(
    in_channels=1,
    out_channels=1,
    down_block_types=("DownEncoderBlock2D",) * 4,
    up_block_types=("UpDecoderBlock2D",) * 4,
    block_out_channels=(16, 32, 64, 96),
    layers_per_block=1,
    latent_channels=4,
    norm_num_groups=8,
    sample_size=128,
    mid_block_add_attention=False,
)
DRAWN = ("common_name", "caption", "caption", "caption")  # of the captions: each is drawn as often as it is here


@dataclass(frozen=True)
class VaeRecipe:
    """How the autoencoder is trained: on random crops, four times cheaper than whole glyphs."""

    steps: int = 5500
    batch: int = 16
    crop_px: int = 64
    peak_lr: float = 2e-3
    warmup_steps: int = 200
    kl_weight: float = 1e-3
    seed: int = 0


def to_model_range(images: np.ndarray) -> Tensor:
    """(B, H, W) uint8 -> (B, 1, H, W) float in [-1, 1]."""
    return torch.from_numpy(images.astype(np.float32) / 127.5 - 1)[:, None]


def random_crops(images: np.ndarray, rng: np.random.Generator, batch: int, size_px: int) -> np.ndarray:
    """Crops of which nearly all hold some ink.

    Args:
        images: (N, H, W) uint8.
    Returns:
        (batch, size_px, size_px) uint8.
    """
    crops: list[np.ndarray] = []
    while len(crops) < batch:
        image = images[rng.integers(len(images))]
        top, left = rng.integers(0, image.shape[0] - size_px + 1, 2)
        crop = image[top : top + size_px, left : left + size_px]
        if crop.min() < 128 or rng.random() < 0.05:
            crops.append(crop)
    return np.stack(crops)


def _vae_loss(vae: Any, images: Tensor, generator: torch.Generator, kl_weight: float) -> Tensor:
    """L1 + half the squared error + a small Kullback-Leibler term, all as means over images (B, 1, H, W)."""
    posterior = vae.encode(images).latent_dist
    error = vae.decode(posterior.sample(generator=generator)).sample - images
    kl = 0.5 * (posterior.mean**2 + posterior.var - 1 - posterior.logvar).mean()
    return error.abs().mean() + 0.5 * error.square().mean() + kl_weight * kl


def new_vae(recipe: VaeRecipe) -> AutoencoderKL:
    """An untrained autoencoder, the same for the same seed."""
    with torch.random.fork_rng():
        torch.manual_seed(recipe.seed)
        return AutoencoderKL(**VAE_CONFIG)


def train_vae(images: np.ndarray, vae: AutoencoderKL, recipe: VaeRecipe) -> Iterator[tuple[int, float]]:
    """Trains the autoencoder in place; yields (step, loss) after every step.

    Args:
        images: (N, 128, 128) uint8, the corpus without its held-out glyphs.
        vae: of `new_vae`.
        recipe: how long and how fast.
    """
    vae.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    optimizer = torch.optim.AdamW(vae.parameters(), lr=recipe.peak_lr, betas=(0.9, 0.99), fused=True)
    for step in range(recipe.steps):
        rng = np.random.Generator(np.random.Philox(key=[recipe.seed, step]))
        warm = min(1.0, (step + 1) / recipe.warmup_steps)
        optimizer.param_groups[0]["lr"] = recipe.peak_lr * warm * 0.5 * (1 + math.cos(math.pi * step / recipe.steps))
        crops = to_model_range(random_crops(images, rng, recipe.batch, recipe.crop_px))
        loss = _vae_loss(vae, crops, torch.Generator().manual_seed(step), recipe.kl_weight)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        yield step, loss.item()


@torch.inference_mode()
def encode_corpus(vae: AutoencoderKL, images: np.ndarray, batch: int = 64) -> tuple[Tensor, Tensor]:
    """Posterior mean and log-variance of every glyph, unscaled.

    Returns:
        Two (N, 4, 16, 16) float32 tensors.
    """
    model: Any = vae  # diffusers' annotations know only its tuples
    batches = (to_model_range(images[start : start + batch]) for start in range(0, len(images), batch))
    moments = [model.encode(pixels).latent_dist.parameters for pixels in batches]
    mean, log_variance = torch.cat(moments).chunk(2, dim=1)
    return mean, log_variance.clamp(-30, 20)


def encode_glyphs(vae: AutoencoderKL, table: pd.DataFrame, images: np.ndarray, folder: Path) -> EncodedCorpus:
    """The corpus as the denoiser's training reads it; encoded once, kept in `folder`.

    Args:
        table: of `build_corpus`.
        images: (N, 128, 128) uint8.
        folder: for latents.safetensors and text.npy.
    """
    captions = sorted({"", *table["caption"], *table["common_name"]})
    row = {caption: index for index, caption in enumerate(captions)}
    path = folder / "latents.safetensors"
    if not path.exists():
        mean, log_variance = encode_corpus(vae, images)
        write_bytes_atomic(path, save({"mean": mean.contiguous(), "log_variance": log_variance.contiguous()}))
    latents = load_file(path)
    held_out = table["held_out"].to_numpy(dtype=bool)
    factor = 1 / latents["mean"][torch.from_numpy(~held_out)].std().item()
    vae.register_to_config(scaling_factor=factor)
    return EncodedCorpus(
        mean=latents["mean"] * factor,
        std=(0.5 * latents["log_variance"]).exp() * factor,
        text=encode_captions(captions, folder / "text.npy"),
        captions=np.array([[row[names[column]] for column in DRAWN] for names in table.to_dict("records")]),
        empty=row[""],
        weight=table["weight"].to_numpy(dtype=float),
        held_out=held_out,
    )


def save_pocket(vae: AutoencoderKL, unet: UNet2DConditionModel, folder: Path) -> None:
    """Writes what the package carries: denoiser, autoencoder and scheduler, in fp16.

    The text encoder and the tokenizer, MiniLM's, are put beside them by `kanjilab.models.loading.packaged_folder`.
    """
    unet.half().save_pretrained(folder / "unet")
    vae.half().save_pretrained(folder / "vae")
    DDIMScheduler(**SCHEDULER_CONFIG).save_pretrained(folder / "scheduler")
    parts = {
        "scheduler": ["diffusers", "DDIMScheduler"],
        "text_encoder": ["transformers", "BertModel"],
        "tokenizer": ["transformers", "BertTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    absent = dict.fromkeys(("feature_extractor", "image_encoder", "safety_checker"), [None, None])
    index = {"_class_name": "StableDiffusionPipeline", "requires_safety_checker": False, **absent, **parts}
    write_json_atomic(folder / "model_index.json", index)


def build_pocket(
    font_folders: Sequence[Path],
    folder: Path,
    vae_recipe: VaeRecipe | None = None,
    unet_recipe: UnetRecipe | None = None,
    *,
    glyphs: int | None = None,
    save_every_steps: int = 1000,
) -> Path:
    """The whole recipe; called again, it goes on from what `folder` holds.

    Args:
        font_folders: where the build fonts are, as /usr/share/fonts/truetype.
        folder: keeps every stage, what the package carries in `weights/`, and the whole in `pipeline/`.
        vae_recipe, unet_recipe: how long and how fast; the defaults made the packaged weights.
        glyphs: only so many of the corpus, evenly spread, for a trial.
        save_every_steps: of the denoiser's training.
    Returns:
        `folder/pipeline`, which `load_base` and plain diffusers read.
    """
    corpus = folder / "corpus"
    if not (corpus / "glyphs.csv").exists():
        build_corpus(font_folders, corpus)
    table = pd.read_csv(corpus / "glyphs.csv", keep_default_na=False)
    images = np.load(corpus / "images.npy", mmap_mode="r", allow_pickle=False)
    if glyphs:
        rows = np.linspace(0, len(table) - 1, glyphs).astype(int)
        table, images = table.iloc[rows].reset_index(drop=True), images[rows]
    vae = _trained_vae(images[~table["held_out"].to_numpy(dtype=bool)], folder / "vae", vae_recipe or VaeRecipe())
    encoded = encode_glyphs(vae, table, images, folder)
    recipe, state = unet_recipe or UnetRecipe(), folder / "unet.safetensors"
    training = finished_denoiser(encoded, recipe, state, save_every_steps=save_every_steps)
    weights, pipeline = folder / "weights", folder / "pipeline"
    save_pocket(vae, averaged_unet(training), weights)
    write_json_atomic(weights / "corpus.json", corpus_list(table))
    facts = {"glyphs": len(table), "unet_steps": recipe.steps, "held_out_loss": training.held_out_loss(encoded)}
    write_json_atomic(weights / "facts.json", facts)
    shutil.rmtree(pipeline, ignore_errors=True)  # of an earlier, shorter training
    assemble_pipeline([weights], minilm_folder(), pipeline)
    return pipeline


def _trained_vae(images: np.ndarray, folder: Path, recipe: VaeRecipe) -> AutoencoderKL:
    if not folder.exists():
        vae = new_vae(recipe)
        with open_bar(total=recipe.steps, desc="autoencoder") as bar:
            for _, loss in train_vae(images, vae, recipe):
                bar.update()
                bar.set_postfix_str(f"loss {loss:.3f}", refresh=False)
        with appearing_folder(folder) as partial:
            vae.save_pretrained(partial)
    return AutoencoderKL.from_pretrained(folder).eval()
