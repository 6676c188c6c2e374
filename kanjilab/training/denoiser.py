"""Train a denoiser of pocket's shape with all of its weights: pocket itself, and the writer.

Every random choice is a function of (seed, step). The state is one safetensors file, from which a training goes on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import DDIMScheduler, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from torch import Tensor
from torch.nn import functional as F

from kanjilab.core.progress import open_bar
from kanjilab.core.storage import reserve
from kanjilab.models.cpu_layers import autocast_bf16
from kanjilab.models.minilm import TOKENS, load_minilm
from kanjilab.models.noise import min_snr_weight, velocity_weight
from kanjilab.models.text_encoders import padded_tokens
from kanjilab.training.averaged import AveragedTraining

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
class UnetRecipe:
    """How the denoiser is trained: constant rate, then a linear cool-down to zero.

    The loss is weighted by min-SNR, and from `velocity_from_step` on by `velocity_weight`, which
    gives high noise its due. The defaults made pocket's weights.
    """

    steps: int = 7_881
    batch: int = 32
    peak_lr: float = 8e-4
    warmup_steps: int = 500
    cooldown_steps: int = 1_600
    caption_dropout: float = 0.1
    min_snr_gamma: float = 5.0
    velocity_from_step: int = 6081
    ema_decay: float = 0.999
    seed: int = 0

    def lr(self, step: int) -> float:
        """Learning rate at a step (0-based)."""
        warm = min(1.0, (step + 1) / self.warmup_steps)
        return self.peak_lr * warm * min(1.0, (self.steps - step) / self.cooldown_steps)


@dataclass(frozen=True)
class EncodedCorpus:
    """What the denoiser's training reads: latents in unit scale and text states.

    Attributes:
        latents: (N, 4, 16, 16).
        text: (M, L, 384) float16.
        captions: (N, K) rows of `text`, of which one is drawn each time.
        empty: the row of the empty caption.
        weight: (N,) how often each image is drawn.
        held_out: (N,) bool.
    """

    latents: Tensor
    text: np.ndarray
    captions: np.ndarray
    empty: int
    weight: np.ndarray
    held_out: np.ndarray

    def batch(self, rng: np.random.Generator, rows: np.ndarray, caption_dropout: float) -> tuple[Tensor, Tensor]:
        """Latents (B, 4, 16, 16) and text states (B, L, 384)."""
        choice, dropped = rng.random((2, len(rows)))
        captions = self.captions[rows, (choice * self.captions.shape[1]).astype(int)]
        captions = np.where(dropped < caption_dropout, self.empty, captions)
        return self.latents[rows], torch.from_numpy(self.text[captions].astype(np.float32))


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
    with autocast_bf16():
        predicted = unet(noisy, timesteps, text).sample
    return F.mse_loss(predicted.float(), noise, reduction="none").mean(dim=(1, 2, 3)), alpha_bar[timesteps]


class UnetTraining(AveragedTraining):
    """The denoiser with its averaged weights and optimizer; can be stored and taken up again.

    Args of the constructor:
        recipe: how long and how fast.
        initial: weights to begin with, by name; None for random ones.
    """

    def __init__(self, recipe: UnetRecipe, initial: Mapping[str, Tensor] | None = None):
        """Nothing is trained yet."""
        with torch.random.fork_rng():
            torch.manual_seed(recipe.seed)
            self.unet = UNet2DConditionModel(**UNET_CONFIG)
        if initial is not None:
            self.unet.load_state_dict(dict(initial))
        self.unet.set_attn_processor(AttnProcessor())  # plain products: the fused kernel is slower backward on a CPU
        super().__init__(self.unet, "unet", recipe, beta2=0.99)
        self.alpha_bar = DDIMScheduler(**SCHEDULER_CONFIG).alphas_cumprod

    def advance(self, corpus: EncodedCorpus, cumulative_weight: np.ndarray) -> float:
        """One step; returns the unweighted loss."""
        recipe = self.recipe
        rng = np.random.Generator(np.random.Philox(key=[recipe.seed, self.step]))
        rows = np.searchsorted(cumulative_weight, rng.random(recipe.batch) * cumulative_weight[-1])
        latents, text = corpus.batch(rng, rows, recipe.caption_dropout)
        errors, alpha_bar = unet_errors(self.unet, self.alpha_bar, latents, text, rng)
        weight = velocity_weight if self.step >= recipe.velocity_from_step else min_snr_weight
        (weight(alpha_bar, recipe.min_snr_gamma) * errors).mean().backward()
        self.apply_gradients()
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
        for start in range(0, len(rows), 64):
            rng = np.random.Generator(np.random.Philox(key=[1, start]))
            latents, text = corpus.batch(rng, rows[start : start + 64], caption_dropout=0)
            losses += unet_errors(unet, self.alpha_bar, latents, text, rng)[0].tolist()
        return float(np.mean(losses))


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


def finished_denoiser(
    corpus: EncodedCorpus,
    recipe: UnetRecipe,
    state: Path,
    initial: Mapping[str, Tensor] | None = None,
    save_every_steps: int = 1000,
    on_saved: Callable[[UnetTraining], None] | None = None,
) -> UnetTraining:
    """Trains to the end of a recipe with a progress bar; called again, it goes on from the stored state.

    Args:
        corpus: what is learned.
        recipe: how long and how fast.
        state: file of the state.
        initial: as for `UnetTraining`.
        save_every_steps: how often the state is stored.
        on_saved: called each time with the training, to look at its averaged weights.
    """
    training, steps = UnetTraining(recipe, initial), recipe.steps
    if state.exists():
        training.load(state)
    with open_bar(total=steps, initial=training.step, desc="denoiser") as bar:
        for step, loss in train_unet(corpus, training):
            bar.update()
            bar.set_postfix_str(f"loss {loss:.3f}", refresh=False)
            if (step + 1) % save_every_steps == 0 or step + 1 == steps:
                training.save(state)
                if on_saved is not None:
                    on_saved(training)
    return training


@torch.inference_mode()
def encode_captions(captions: Sequence[str], path: Path, batch: int = 128) -> np.ndarray:
    """MiniLM's token states of captions, written once and memory-mapped.

    Args:
        captions: M strings.
        path: .npy file; it is read, not written again, if it holds as many.
    Returns:
        (M, L, 384) float16.
    """
    if not path.exists():
        tokenizer, model = load_minilm()
        temporary = path.with_suffix(".tmp")
        states = np.lib.format.open_memmap(temporary, "w+", np.float16, (len(captions), TOKENS, 384))
        reserve(temporary, temporary.stat().st_size)
        for start in open_bar(range(0, len(captions), batch), desc="captions"):
            tokens = padded_tokens(tokenizer, list(captions[start : start + batch]), TOKENS)
            with autocast_bf16():
                hidden = model(tokens.input_ids, attention_mask=tokens.attention_mask).last_hidden_state
            states[start : start + batch] = hidden.half().numpy()
        states.flush()
        temporary.replace(path)
    stored = np.load(path, mmap_mode="r", allow_pickle=False)
    if len(stored) != len(captions):
        raise ValueError(f"{path}: expected {len(captions)} captions, got {len(stored)}; remove it")
    return stored
