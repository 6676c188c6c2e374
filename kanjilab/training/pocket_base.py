"""Build the pocket base: a small latent-diffusion model that has never seen a kanji.

The recipe in order: `build_pocket_corpus` (kanjilab.data.invented_script) -> `train_vae` -> the stages of the
denoiser (kanjilab.training.stages) -> `save_pocket`. Every random choice is a function of (seed, step), every stage
writes its state as safetensors and goes on from it when called again.
"""

import math
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from scipy.cluster.vq import kmeans2
from scipy.spatial.distance import cdist
from torch import Tensor

from kanjilab.core.progress import open_bar
from kanjilab.core.rng import counted_rng
from kanjilab.core.storage import appearing_folder, write_json_atomic
from kanjilab.data.captioned import load_captioned
from kanjilab.data.invented_script import (
    COUNTS,
    SIGNS,
    build_pocket_corpus,
    invent_script,
    weights_of_kinds,
)
from kanjilab.data.pocket_corpus import corpus_list, list_glyphs
from kanjilab.models.loading import assemble_pipeline
from kanjilab.models.minilm import caption_vectors, load_minilm, minilm_folder
from kanjilab.training.denoiser import SCHEDULER_CONFIG, UnetRecipe, averaged_unet
from kanjilab.training.stages import Stage, encode_table, to_model_range, train_stages

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
    scaling_factor=1.0,  # measured once the corpus is encoded
)
WORDS = 10_000  # of MiniLM's vocabulary, for the invented script


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


def _stage(recipe: UnetRecipe, **shares: float) -> Stage:
    """A stage in which each kind of caption has its share of the images."""
    return Stage(recipe, partial(weights_of_kinds, {name.replace("_", " "): share for name, share in shares.items()}))


_LATER = UnetRecipe(batch=16, peak_lr=1e-3, warmup_steps=200, velocity_from_step=0, ema_decay=0.998)
# In the second and the third stage the invented script was one thing among others, and words remained without effect:
# only in the fourth, where it is alone, they began to choose the signs. In the fifth the rest came back.
STAGES: Mapping[str, Stage] = MappingProxyType(
    {
        "world": _stage(UnetRecipe(), world=1.0),
        "mixed": _stage(
            replace(_LATER, steps=2_000, cooldown_steps=500),
            frequent_pairs=0.55,
            frequent_meaning=0.2,
            world=0.15,
            syllables=0.1,
        ),
        "all": _stage(
            replace(_LATER, steps=2_000, batch=32, cooldown_steps=1, ema_decay=0.999, seed=1),
            world=0.38,
            syllables=0.1,
            frequent_pairs=0.05,
            frequent_meaning=0.05,
            pairs=0.2,
            meaning=0.22,
        ),
        "script": _stage(
            replace(_LATER, steps=4_000, warmup_steps=100, cooldown_steps=1_000, seed=5),
            frequent_pairs=0.6,
            frequent_meaning=0.4,
        ),
        "everything": _stage(
            replace(_LATER, steps=5_000, batch=32, cooldown_steps=1_700, ema_decay=0.999, seed=6),
            world=0.19,
            syllables=0.06,
            frequent_pairs=0.1,
            frequent_meaning=0.07,
            pairs=0.28,
            meaning=0.3,
        ),
    }
)


@dataclass(frozen=True)
class PocketRecipe:
    """How pocket is trained; the defaults made the packaged weights.

    Attributes:
        vae: the autoencoder.
        stages: of the denoiser, by name, in order.
    """

    vae: VaeRecipe = VaeRecipe()
    stages: Mapping[str, Stage] = field(default_factory=lambda: STAGES)


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


def word_groups(count: int = SIGNS) -> list[list[str]]:
    """Groups of English words that are near in meaning, the largest first, and in each the most typical word first.

    Args:
        count: of groups.
    Source: k-means of MiniLM's sentence embeddings of the first `WORDS` whole words of its vocabulary.
    """
    vocabulary = sorted(load_minilm()[0].get_vocab().items(), key=lambda item: item[1])  # the frequent words first
    words = [word for word, _ in vocabulary if re.fullmatch("[a-z]{3,}", word)][:WORDS]
    vectors = caption_vectors(words)
    means, group = kmeans2(vectors, _far_apart(vectors, count, counted_rng(0, "recipe")), iter=40, minit="matrix")
    typical = np.einsum("nd,nd->n", vectors, means[group]) / np.linalg.norm(means[group], axis=1)
    sizes = np.bincount(group, minlength=count)
    members = [np.flatnonzero(group == number) for number in np.argsort(-sizes, kind="stable")]
    return [[words[row] for row in rows[np.argsort(-typical[rows], kind="stable")]] for rows in members]


def _far_apart(vectors: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """(count, D) rows that k-means begins with: each the likelier, the farther it is from those before.

    They are those of scipy's `kmeans2(minit="++")`, which measures every distance anew for each.
    Source: k-means++, Arthur and Vassilvitskii 2007.
    """
    chosen = [vectors[rng.integers(len(vectors))].astype(np.float64)]
    nearest = np.full(len(vectors), np.inf)
    while len(chosen) < count:
        nearest = np.minimum(nearest, cdist(chosen[-1:], vectors, "sqeuclidean")[0])
        share = (nearest / nearest.sum()).cumsum()
        chosen.append(vectors[np.searchsorted(share, rng.uniform())].astype(np.float64))
    return np.stack(chosen)


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
    recipe: PocketRecipe | None = None,
    *,
    glyphs: int | None = None,
    counts: Mapping[str, int] = COUNTS,
    save_every_steps: int = 1000,
) -> Path:
    """The whole recipe; called again, it goes on from what `folder` holds.

    Args:
        font_folders: where the build fonts are, as /usr/share/fonts/truetype.
        folder: keeps every stage, its history (see `train_stages`), what the package carries in `weights/`, and the
            whole in `pipeline/`.
        recipe: how long and how fast; the default made the packaged weights.
        glyphs: only so many of the single signs, evenly spread, for a trial.
        counts: of invented glyphs.
        save_every_steps: of the denoiser's training.
    Returns:
        `folder/pipeline`, which `load_base` and plain diffusers read.
    """
    recipe, corpus = recipe or PocketRecipe(), folder / "corpus"
    if not (corpus / "glyphs.csv").exists():
        listed = list_glyphs(font_folders)
        rows = np.linspace(0, len(listed) - 1, glyphs).astype(int) if glyphs else range(len(listed))
        build_pocket_corpus(corpus, [listed[row] for row in rows], invent_script(listed, word_groups()), counts)
    table, images = load_captioned(corpus)
    world = table.loc[table["kind"] == "world"]
    vae = _trained_vae(images[world.loc[~world["held_out"], "image"]], folder / "vae", recipe.vae)
    encoded = encode_table(vae, table, images, folder)
    training, seen = train_stages(encoded, table, recipe.stages, folder, None, save_every_steps)
    weights, pipeline = folder / "weights", folder / "pipeline"
    save_pocket(vae, averaged_unet(training), weights)
    write_json_atomic(weights / "corpus.json", corpus_list(world))
    facts = {
        "pictures": len(images),
        "captions": len(encoded.text),
        "images_seen": seen,
        "held_out_loss": training.held_out_loss(encoded),
    }
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
