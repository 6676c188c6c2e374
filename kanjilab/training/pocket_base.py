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
from torch.nn import functional as F

from kanjilab.core.progress import open_bar
from kanjilab.core.storage import appearing_folder, write_bytes_atomic, write_json_atomic
from kanjilab.data.pocket_corpus import build_corpus, corpus_list
from kanjilab.models.loading import assemble_pipeline
from kanjilab.models.minilm import TOKENS, minilm_folder
from kanjilab.models.noise import min_snr_weight, velocity_weight
from kanjilab.models.text_encoders import padded_tokens

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
UNET_CONFIG: dict[str, Any] = dict(
    sample_size=16,
    in_channels=4,
    out_channels=4,
    block_out_channels=(64, 128, 160),
    layers_per_block=(2, 1, 1),
    down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    cross_attention_dim=384,
    attention_head_dim=(1, 2, 2),  # diffusers reads this as the number of heads
    norm_num_groups=16,
)
SCHEDULER_CONFIG: dict[str, Any] = dict(
    beta_start=0.00085,
    beta_end=0.012,
    beta_schedule="scaled_linear",
    clip_sample=False,
    set_alpha_to_one=False,
    steps_offset=1,
    prediction_type="epsilon",
)


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


@dataclass(frozen=True)
class UnetRecipe:
    """How the denoiser is trained: constant rate, then a linear cool-down to zero.

    The loss is weighted by min-SNR, and from `velocity_from_step` on by `velocity_weight`, which
    gives high noise its due. The defaults made the packaged weights.
    """

    steps: int = 7_881
    batch: int = 32
    peak_lr: float = 8e-4
    warmup_steps: int = 500
    cooldown_steps: int = 1_600
    caption_dropout: float = 0.1
    common_name_share: float = 0.25
    min_snr_gamma: float = 5.0
    velocity_from_step: int = 6081
    ema_decay: float = 0.999
    seed: int = 0

    def lr(self, step: int) -> float:
        """Learning rate at a step (0-based)."""
        warm = min(1.0, (step + 1) / self.warmup_steps)
        return self.peak_lr * warm * min(1.0, (self.steps - step) / self.cooldown_steps)


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


@dataclass(frozen=True)
class EncodedCorpus:
    """What the denoiser's training reads: latents in unit scale and text states.

    mean, std: (N, 4, 16, 16); text: (M, L, 384) float16; caption, common_name: (N,) rows of `text`;
    empty: the row of the empty caption; weight: (N,) sampling weights; held_out: (N,) bool.
    """

    mean: Tensor
    std: Tensor
    text: np.ndarray
    caption: np.ndarray
    common_name: np.ndarray
    empty: int
    weight: np.ndarray
    held_out: np.ndarray

    def batch(self, rng: np.random.Generator, rows: np.ndarray, recipe: UnetRecipe) -> tuple[Tensor, Tensor]:
        """Latents (B, 4, 16, 16) sampled from the posterior, and text states (B, L, 384)."""
        draws = rng.random((2, len(rows)))
        captions = np.where(draws[0] < recipe.common_name_share, self.common_name[rows], self.caption[rows])
        captions = np.where(draws[1] < recipe.caption_dropout, self.empty, captions)
        noise = torch.from_numpy(rng.standard_normal((len(rows), *self.mean.shape[1:]), dtype=np.float32))
        return self.mean[rows] + self.std[rows] * noise, torch.from_numpy(self.text[captions].astype(np.float32))


def unet_errors(
    unet: UNet2DConditionModel, alpha_bar: Tensor, latents: Tensor, text: Tensor, rng: np.random.Generator
) -> tuple[Tensor, Tensor]:
    """Noise-prediction errors of one batch.

    Timesteps are stratified over the batch, so that every step sees the whole range of noise.

    Args:
        unet: the denoiser.
        alpha_bar: (T,) share of signal variance kept.
        latents: (B, 4, 16, 16).
        text: (B, L, 384).
        rng: of timesteps and noise.
    Returns:
        (B,) mean squared error of each image, and (B,) the alpha_bar of its noise level.
    """
    batch = len(latents)
    strata = (np.arange(batch) + rng.random(batch)) / batch
    timesteps = torch.from_numpy((strata * len(alpha_bar)).astype(np.int64))
    noise = torch.from_numpy(rng.standard_normal(latents.shape, dtype=np.float32))
    signal = alpha_bar[timesteps].view(-1, 1, 1, 1)
    noisy = signal.sqrt() * latents + (1 - signal).sqrt() * noise
    with torch.autocast("cpu", torch.bfloat16):
        predicted = unet(noisy, timesteps, text).sample
    return F.mse_loss(predicted.float(), noise, reduction="none").mean(dim=(1, 2, 3)), alpha_bar[timesteps]


class UnetTraining:
    """The denoiser with its averaged weights and optimizer; can be stored and taken up again."""

    def __init__(self, recipe: UnetRecipe):
        self.recipe, self.step = recipe, 0
        with torch.random.fork_rng():
            torch.manual_seed(recipe.seed)
            self.unet = UNet2DConditionModel(**UNET_CONFIG)
        self.parameters = dict(self.unet.named_parameters())
        self.average = {name: value.detach().clone() for name, value in self.parameters.items()}
        self.optimizer = torch.optim.AdamW(
            self.unet.parameters(), lr=recipe.peak_lr, betas=(0.9, 0.99), weight_decay=0.01, fused=True
        )
        self.alpha_bar = DDIMScheduler(**SCHEDULER_CONFIG).alphas_cumprod

    def advance(self, corpus: EncodedCorpus, cumulative_weight: np.ndarray) -> float:
        """One step; returns the unweighted loss."""
        recipe = self.recipe
        rng = np.random.Generator(np.random.Philox(key=[recipe.seed, self.step]))
        rows = np.searchsorted(cumulative_weight, rng.random(recipe.batch) * cumulative_weight[-1])
        latents, text = corpus.batch(rng, rows, recipe)
        errors, alpha_bar = unet_errors(self.unet, self.alpha_bar, latents, text, rng)
        weight = velocity_weight if self.step >= recipe.velocity_from_step else min_snr_weight
        (weight(alpha_bar, recipe.min_snr_gamma) * errors).mean().backward()
        torch.nn.utils.clip_grad_norm_(self.unet.parameters(), 1.0)
        self.optimizer.param_groups[0]["lr"] = recipe.lr(self.step)
        self.optimizer.step()
        self.optimizer.zero_grad()
        decay = min(recipe.ema_decay, (self.step + 1) / (self.step + 10))
        torch._foreach_lerp_(list(self.average.values()), [p.detach() for p in self.parameters.values()], 1 - decay)
        self.step += 1
        return errors.mean().item()

    @torch.no_grad()
    def held_out_loss(self, corpus: EncodedCorpus) -> float | None:
        """Unweighted loss of the averaged weights on the held-out glyphs, always the same noise.

        Returns:
            None where nothing is held out.
        """
        if not corpus.held_out.any():
            return None
        unet, rows, losses = averaged_unet(self), np.flatnonzero(corpus.held_out), []
        fixed = UnetRecipe(caption_dropout=0, common_name_share=0)
        for start in range(0, len(rows), 64):
            rng = np.random.Generator(np.random.Philox(key=[1, start]))
            latents, text = corpus.batch(rng, rows[start : start + 64], fixed)
            losses += unet_errors(unet, self.alpha_bar, latents, text, rng)[0].tolist()
        return float(np.mean(losses))

    def save(self, path: Path) -> None:
        """Everything needed to go on, in one safetensors file, replaced atomically."""
        state = {f"unet.{name}": value.detach() for name, value in self.parameters.items()}
        state |= {f"average.{name}": value for name, value in self.average.items()}
        for name, parameter in self.parameters.items():
            for key, value in self.optimizer.state[parameter].items():
                state[f"optimizer.{key}.{name}"] = value
        write_bytes_atomic(path, save(state, metadata={"step": str(self.step)}))

    def load(self, path: Path) -> None:
        """Takes up what `save` stored."""
        state = load_file(path)
        self.unet.load_state_dict({n: state[f"unet.{n}"] for n in self.parameters})
        numbers = ("step", "exp_avg", "exp_avg_sq")
        for name, parameter in self.parameters.items():
            self.average[name].copy_(state[f"average.{name}"])
            self.optimizer.state[parameter] = {key: state[f"optimizer.{key}.{name}"] for key in numbers}
            self.step = int(state[f"optimizer.step.{name}"].item())


def averaged_unet(training: UnetTraining) -> UNet2DConditionModel:
    """The denoiser with its averaged weights."""
    unet = UNet2DConditionModel(**UNET_CONFIG)
    unet.load_state_dict(training.average)
    return unet


def train_unet(corpus: EncodedCorpus, training: UnetTraining) -> Iterator[tuple[int, float]]:
    """Trains the denoiser to the end of its recipe; yields (step, unweighted loss) after every step."""
    cumulative_weight = np.cumsum(np.where(corpus.held_out, 0.0, corpus.weight))
    while training.step < training.recipe.steps:
        yield training.step, training.advance(corpus, cumulative_weight)


@torch.inference_mode()
def encode_captions(captions: Sequence[str], path: Path, batch: int = 128) -> np.ndarray:
    """MiniLM's token states of captions, written once and memory-mapped.

    Args:
        captions: M strings.
        path: .npy file; it is read, not written again, if it holds as many.
    Returns:
        (M, L, 384) float16.
    """
    from transformers import AutoModel, AutoTokenizer

    if not path.exists():
        tokenizer, model = AutoTokenizer.from_pretrained(minilm_folder()), AutoModel.from_pretrained(minilm_folder())
        temporary = path.with_suffix(".tmp")
        states = np.lib.format.open_memmap(temporary, "w+", np.float16, (len(captions), TOKENS, 384))
        for start in open_bar(range(0, len(captions), batch), desc="captions"):
            tokens = padded_tokens(tokenizer, list(captions[start : start + batch]), TOKENS)
            with torch.autocast("cpu", torch.bfloat16):
                hidden = model.eval()(tokens.input_ids, attention_mask=tokens.attention_mask).last_hidden_state
            states[start : start + batch] = hidden.half().numpy()
        states.flush()
        temporary.replace(path)
    stored = np.load(path, mmap_mode="r", allow_pickle=False)
    if len(stored) != len(captions):
        raise ValueError(f"{path}: expected {len(captions)} captions, got {len(stored)}; remove it")
    return stored


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
        caption=np.array([row[caption] for caption in table["caption"]]),
        common_name=np.array([row[name] for name in table["common_name"]]),
        empty=row[""],
        weight=table["weight"].to_numpy(dtype=float),
        held_out=held_out,
    )


def save_pocket(vae: AutoencoderKL, unet: UNet2DConditionModel, folder: Path) -> None:
    """Writes what the package carries: denoiser, autoencoder and scheduler, in fp16.

    The text encoder and the tokenizer, MiniLM's, are put beside them by `kanjilab.models.loading.pocket_folder`.
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
    training, state = UnetTraining(unet_recipe or UnetRecipe()), folder / "unet.safetensors"
    if state.exists():
        training.load(state)
    steps = training.recipe.steps
    with open_bar(total=steps, initial=training.step, desc="denoiser") as bar:
        for step, loss in train_unet(encoded, training):
            bar.update()
            bar.set_postfix_str(f"loss {loss:.3f}", refresh=False)
            if (step + 1) % save_every_steps == 0 or step + 1 == steps:
                training.save(state)
    weights, pipeline = folder / "weights", folder / "pipeline"
    save_pocket(vae, averaged_unet(training), weights)
    write_json_atomic(weights / "corpus.json", corpus_list(table))
    facts = {"glyphs": len(table), "unet_steps": steps, "held_out_loss": training.held_out_loss(encoded)}
    write_json_atomic(weights / "facts.json", facts)
    shutil.rmtree(pipeline, ignore_errors=True)  # of an earlier, shorter training
    assemble_pipeline(weights, minilm_folder(), pipeline)
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
