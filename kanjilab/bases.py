"""Load a base model, and speak to it through one interface whatever its architecture."""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from kanjilab.minilm import TOKENS, minilm_folder, sha256_file
from kanjilab.schedules import min_snr_weight, velocity_weight
from kanjilab.settings import PRECISIONS

HUB_BASES = {
    "sd14": ("CompVis/stable-diffusion-v1-4", "133a221b8aa7292a167afc5127cb63fb5005638b"),
    "sd15": ("stable-diffusion-v1-5/stable-diffusion-v1-5", None),
}
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def cache_folder() -> Path:
    """Where kanjilab keeps what it derives: `$KANJILAB_CACHE`, else `~/.cache/kanjilab`."""
    return Path(os.environ.get("KANJILAB_CACHE") or Path.home() / ".cache" / "kanjilab")


class TextStates(NamedTuple):
    """What the denoiser reads of captions: token states (N, L, D), and pooled states (N, P) or None."""

    tokens: Tensor
    pooled: Tensor | None = None

    def select(self, rows: Tensor) -> "TextStates":
        """The states of some captions, by index."""
        return TextStates(self.tokens[rows], None if self.pooled is None else self.pooled[rows])


@dataclass
class Base:
    """A text-to-image latent diffusion model in its parts.

    Attributes:
        name: as it was asked for.
        identity: hash of its weights' names, sizes and configuration; the key of caches.
        denoiser: predicts noise or velocity; frozen unless a training unfreezes it.
        vae, tokenizer, text_encoder: the two ends.
        scheduler_config: diffusers' configuration of the noise schedule.
        precision: in which the denoiser computes, `fp32` or `bf16`.
    """

    name: str
    identity: str
    denoiser: nn.Module
    vae: Any
    tokenizer: Any
    text_encoder: Any
    scheduler_config: dict[str, Any]
    precision: str
    device: torch.device

    def __post_init__(self) -> None:
        from diffusers import DDPMScheduler

        scheduler: Any = DDPMScheduler.from_config(self.scheduler_config)
        self.alpha_bar: Tensor = scheduler.alphas_cumprod.to(self.device)
        self.prediction = self.scheduler_config.get("prediction_type", "epsilon")
        if self.prediction not in ("epsilon", "v_prediction"):
            raise ValueError(f"expected a base that predicts epsilon or v_prediction, got {self.prediction!r}")

    @property
    def channels(self) -> Literal[1, 3]:
        """Channels of an image: 1 (grayscale) or 3."""
        return self.vae.config.in_channels

    @property
    def timesteps(self) -> int:
        """T, the number of noise levels."""
        return len(self.alpha_bar)

    @torch.no_grad()
    def encode_images(self, pixels: np.ndarray) -> tuple[Tensor, Tensor]:
        """Posterior of the autoencoder, in the unit scale that the denoiser works in.

        Args:
            pixels: (B, H, W) or (B, H, W, 3) uint8.
        Returns:
            Mean and log-variance, (B, C, h, w) float32 each; the log-variance is of scaled latents.
        """
        images = torch.from_numpy(pixels.astype(np.float32) / 127.5 - 1).to(self.device, self.vae.dtype)
        images = images[:, None] if images.ndim == 3 else images.permute(0, 3, 1, 2)
        posterior = self.vae.encode(images).latent_dist
        factor = self.vae.config.scaling_factor
        return posterior.mean.float() * factor, posterior.logvar.float() + 2 * float(np.log(factor))

    @torch.no_grad()
    def decode(self, latents: Tensor) -> np.ndarray:
        """Latents to pixels.

        Args:
            latents: (B, C, h, w) in unit scale.
        Returns:
            (B, H, W) or (B, H, W, 3) uint8.
        """
        images = self.vae.decode(latents.to(self.vae.dtype) / self.vae.config.scaling_factor).sample
        pixels = ((images.float() + 1) * 127.5).round().clamp(0, 255).byte().cpu().numpy()
        return pixels[:, 0] if pixels.shape[1] == 1 else pixels.transpose(0, 2, 3, 1)

    @torch.no_grad()
    def encode_text(self, captions: Sequence[str]) -> TextStates:
        """Token states of captions, padded to the model's length.

        Args:
            captions: B strings; what is longer than the model's length is cut.
        """
        tokens = self.tokenizer(
            list(captions),
            padding="max_length",
            max_length=self.tokenizer.model_max_length,
            truncation=True,
            return_tensors="pt",
        ).to(self.device)
        mask = tokens.attention_mask if getattr(self.text_encoder.config, "use_attention_mask", False) else None
        states = self.text_encoder(tokens.input_ids, attention_mask=mask)[0]
        return TextStates(states.float())

    def noised(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> tuple[Tensor, Tensor]:
        """The denoiser's input and its target.

        Args:
            latents, noise: (B, C, h, w).
            timesteps: (B,) int64.
        Returns:
            Noisy latents and the noise or velocity to predict, (B, C, h, w) each.
        """
        signal = self.alpha_bar[timesteps].view(-1, 1, 1, 1)
        noisy = signal.sqrt() * latents + (1 - signal).sqrt() * noise
        if self.prediction == "epsilon":
            return noisy, noise
        return noisy, signal.sqrt() * noise - (1 - signal).sqrt() * latents

    def loss_weight(self, timesteps: Tensor, gamma: float | None, velocity: bool = False) -> Tensor:
        """Weight of each image's squared error.

        Args:
            timesteps: (B,) int64.
            gamma: of min-SNR weighting; None for none.
            velocity: count errors as velocity errors, whatever the base predicts.
        Returns:
            (B,) float; ones with neither.
        """
        if gamma is None and not velocity:
            return torch.ones(len(timesteps), device=self.device)
        alpha_bar = self.alpha_bar[timesteps]
        if velocity:
            weight = velocity_weight(alpha_bar, gamma)
        else:
            assert gamma is not None
            weight = min_snr_weight(alpha_bar, gamma)
        # The error of a velocity prediction carries a factor SNR + 1 itself, of which SNR is the noise error's.
        return weight * alpha_bar if self.prediction == "v_prediction" else weight

    def denoise(self, noisy: Tensor, timesteps: Tensor, text: TextStates) -> Tensor:
        """The denoiser's prediction, (B, C, h, w) float32."""
        dtype = next(self.denoiser.parameters()).dtype
        return self.denoiser(noisy.to(dtype), timesteps, text.tokens.to(dtype)).sample.float()


def load_base(name: str | Path = "pocket", precision: str = "fp32", device: str | torch.device = "cpu") -> Base:
    """Loads a base by name.

    Args:
        name: `pocket`, `sd14`, `sd15`, a Hub id, or a folder in diffusers' format.
        precision: of the frozen denoiser, `fp32` or `bf16`; the autoencoder and the text encoder
            stay in fp32.
        device: where the parts go.
    Raises:
        ValueError: an unknown precision, or a model that is no U-Net latent-diffusion pipeline.
        FileNotFoundError: a folder that is not there.
    """
    from diffusers import DiffusionPipeline
    from diffusers.models.attention_processor import AttnProcessor

    if precision not in PRECISIONS:
        raise ValueError(f"precision must be one of {PRECISIONS}, got {precision!r}")
    location, revision = _locate(str(name))
    unused = dict(safety_checker=None, feature_extractor=None, image_encoder=None)
    with _quiet_diffusers():
        pipeline = DiffusionPipeline.from_pretrained(
            location,
            revision=revision,
            use_safetensors=True,
            dtype=torch.float32,
            **unused,
        )
    if not hasattr(pipeline, "unet"):
        raise ValueError(f"{name}: expected a pipeline with a U-Net, got {type(pipeline).__name__}")
    device = torch.device(device)
    identity = _identity(pipeline)  # of the weights as stored, whatever the precision they are used in
    with _quiet_diffusers():
        denoiser = pipeline.unet.to(device, DTYPES[precision])
    if device.type == "cpu" and precision == "bf16":
        # torch's fused attention takes two to four times as long there, backwards above all.
        denoiser.set_attn_processor(AttnProcessor())
    return Base(
        name=str(name),
        identity=identity,
        denoiser=denoiser.requires_grad_(False).eval(),
        vae=pipeline.vae.to(device).requires_grad_(False).eval(),
        tokenizer=pipeline.tokenizer,
        text_encoder=pipeline.text_encoder.to(device).requires_grad_(False).eval(),
        scheduler_config=dict(pipeline.scheduler.config),
        precision=precision,
        device=device,
    )


@contextmanager
def _quiet_diffusers() -> Iterator[None]:
    """Silences progress bars and remarks on parts (a BERT text side) that are as intended."""
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    levels = diffusers_logging.get_verbosity(), transformers_logging.get_verbosity()
    diffusers_logging.set_verbosity_error()
    transformers_logging.set_verbosity_error()
    diffusers_logging.disable_progress_bar()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        diffusers_logging.set_verbosity(levels[0])
        transformers_logging.set_verbosity(levels[1])
        diffusers_logging.enable_progress_bar()
        transformers_logging.enable_progress_bar()


def _locate(name: str) -> tuple[str, str | None]:
    if name == "pocket":
        return str(pocket_folder()), None
    if name in HUB_BASES:
        return HUB_BASES[name]
    looks_like_path = name.startswith((".", "/", "~")) or name.count("/") != 1
    folder = Path(name).expanduser()
    if folder.exists() or looks_like_path:
        if not (folder / "model_index.json").is_file():
            raise FileNotFoundError(f"{name}: expected a folder with model_index.json, or a Hub id 'owner/name'")
        return str(folder), None
    return name, None


def _identity(pipeline: Any) -> str:
    """Hash of every weight's bits and of the noise schedule."""
    digest = hashlib.sha256()
    for part in ("unet", "vae", "text_encoder"):
        for name, value in sorted(getattr(pipeline, part).state_dict().items()):
            digest.update(f"{part}.{name}{tuple(value.shape)}".encode())
            digest.update(value.contiguous().view(torch.uint8).numpy())
    digest.update(json.dumps(dict(pipeline.scheduler.config), sort_keys=True, default=str).encode())
    return digest.hexdigest()[:16]


def pocket_folder() -> Path:
    """The pocket base as a complete `StableDiffusionPipeline` folder.

    The package carries the denoiser, the autoencoder and the scheduler; MiniLM's text encoder and
    tokenizer are put beside them once, in the user's cache.

    Raises:
        FileNotFoundError: the package's weights, or MiniLM, are missing.
    """
    source = Path(str(files("kanjilab") / "weights" / "pocket"))
    weights = source / "unet" / "diffusion_pytorch_model.safetensors"
    if not weights.is_file():
        raise FileNotFoundError(f"{weights}: the pocket base's weights are missing from this installation")
    vae_weights = source / "vae" / weights.name
    key = hashlib.sha256((sha256_file(weights) + sha256_file(vae_weights) + str(TOKENS)).encode()).hexdigest()[:16]
    target = cache_folder() / f"pocket-{key}"
    if not target.is_dir():
        assemble_pipeline(source, minilm_folder(), target)
    return target


@contextmanager
def appearing_folder(target: Path) -> Iterator[Path]:
    """A temporary folder to fill, which takes the target's name at the end: whole, or not at all.

    Where another process was first, its folder stays and this one is dropped.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        yield temporary
        try:
            temporary.rename(target)
        except OSError:
            if not target.is_dir():
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def assemble_pipeline(source: Path, text_model: Path, target: Path) -> None:
    """Writes a whole pipeline folder from a denoiser with autoencoder and a folder of MiniLM.

    Args:
        source: holds model_index.json, unet/, vae/, scheduler/.
        text_model: holds config.json, model.safetensors and the tokenizer's files.
        target: appears whole or not at all.
    """
    with appearing_folder(target) as temporary:
        shutil.copytree(source, temporary, dirs_exist_ok=True)
        encoder, tokenizer = temporary / "text_encoder", temporary / "tokenizer"
        encoder.mkdir()
        tokenizer.mkdir()
        shutil.copyfile(text_model / "model.safetensors", encoder / "model.safetensors")
        config = json.loads((text_model / "config.json").read_text())
        # Padding is hidden from the text encoder, in kanjilab and in diffusers' own pipeline alike.
        (encoder / "config.json").write_text(json.dumps(config | {"use_attention_mask": True}, indent=2))
        for name in ("tokenizer.json", "vocab.txt", "special_tokens_map.json"):
            shutil.copyfile(text_model / name, tokenizer / name)
        settings = json.loads((text_model / "tokenizer_config.json").read_text())
        (tokenizer / "tokenizer_config.json").write_text(json.dumps(settings | {"model_max_length": TOKENS}, indent=2))
