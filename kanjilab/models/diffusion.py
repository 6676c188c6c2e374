"""What a base is: one interface, and the two families that keep it, U-Nets and rectified flows."""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor, nn

from kanjilab.models.adapters import compute_dtype
from kanjilab.models.conditioning import Conditioning, Prompts
from kanjilab.models.noise import flow_sigmas, min_snr_weight, velocity_weight
from kanjilab.models.text_encoders import TextEncoders


@dataclass
class LatentDiffusion(ABC):
    """A text-to-image latent diffusion model in its parts.

    A *timestep* is the index of one of T noise levels, all equally likely in training; the *model timestep* is
    what the denoiser gets in its place.

    Attributes:
        family: `unet` or `mmdit`.
        samplers: the samplers that fit, the default first.
        name: as it was asked for.
        identity: hash of its weights and configuration; the key of caches.
        denoiser: predicts noise or velocity; frozen unless a training unfreezes it.
        vae: the autoencoder.
        text: the text encoders.
        scheduler_config: diffusers' configuration of the noise schedule.
        condition_encoder: of the arrays that prompts may carry: called with the text's `Conditioning` and the arrays
            (N, ...) by name, it gives the `Conditioning` that the denoiser reads. None for text alone.
        precision: in which the denoiser computes, or is stored: one of `settings.PRECISIONS`.
    """

    name: str
    identity: str
    denoiser: nn.Module
    vae: Any
    text: TextEncoders
    scheduler_config: dict[str, Any]
    precision: str
    device: torch.device
    condition_encoder: nn.Module | None = None

    family: ClassVar[str]
    samplers: ClassVar[tuple[str, ...]]

    @abstractmethod
    def __post_init__(self) -> None:
        """Works out the noise levels from the scheduler's configuration."""

    @property
    @abstractmethod
    def prediction(self) -> str:
        """What the denoiser predicts: `epsilon`, `v_prediction` or `flow`."""

    @property
    @abstractmethod
    def timesteps(self) -> int:
        """T, the number of noise levels."""

    @abstractmethod
    def add_noise(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> tuple[Tensor, Tensor]:
        """The denoiser's input and its target.

        Args:
            latents, noise: (B, C, h, w).
            timesteps: (B,) int64.
        Returns:
            Noisy latents, and what is to be predicted, (B, C, h, w) each.
        """

    @abstractmethod
    def model_timestep(self, timesteps: Tensor) -> Tensor:
        """(B,) what the denoiser gets for each timestep."""

    @abstractmethod
    def denoise(self, noisy: Tensor, model_timestep: Tensor, text: Conditioning) -> Tensor:
        """The denoiser's prediction, (B, C, h, w) float32.

        Args:
            noisy: (B, C, h, w).
            model_timestep: (B,) of `model_timestep`, or of a sampler.
            text: B captions' states.
        """

    @abstractmethod
    def loss_weight(self, timesteps: Tensor, gamma: float | None, velocity: bool = False) -> Tensor:
        """Weight of each image's squared error.

        Args:
            timesteps: (B,) int64.
            gamma: of min-SNR weighting; None for none.
            velocity: count errors as velocity errors, whatever the base predicts.
        Returns:
            (B,) float; ones with neither.
        """

    @property
    @abstractmethod
    def first_layer(self) -> Any:
        """The convolution of the denoiser that reads the latents; a hint is added to what it gives."""

    @property
    def text_encoder(self) -> nn.Module | None:
        """The text encoder where it is one that stays loaded, as of a U-Net."""
        return self.text.encoder

    @property
    def channels(self) -> Literal[1, 3]:
        """Channels of an image: 1 (grayscale) or 3."""
        return self.vae.config.in_channels

    @property
    def encoding_identity(self) -> str:
        """What encoded latents and text states depend on, of the base."""
        return "-".join(filter(None, [self.identity, self.text.identity]))

    @property
    def latent_px(self) -> int:
        """Pixels of an image along the edge of one latent."""
        return 2 ** (len(self.vae.config.block_out_channels) - 1)

    def latent_shape(self, size_px: int) -> tuple[int, int, int]:
        """(C, h, w) of the latents of a square image."""
        return self.vae.config.latent_channels, size_px // self.latent_px, size_px // self.latent_px

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
        factor, shift = self.latent_scale
        return (posterior.mean.float() - shift) * factor, posterior.logvar.float() + 2 * float(np.log(factor))

    @torch.no_grad()
    def decode(self, latents: Tensor) -> np.ndarray:
        """Latents to pixels.

        Args:
            latents: (B, C, h, w) in unit scale.
        Returns:
            (B, H, W) or (B, H, W, 3) uint8.
        """
        factor, shift = self.latent_scale
        images = self.vae.decode(latents.to(self.vae.dtype) / factor + shift).sample
        pixels = ((images.float() + 1) * 127.5).round().clamp(0, 255).byte().cpu().numpy()
        return pixels[:, 0] if pixels.shape[1] == 1 else pixels.transpose(0, 2, 3, 1)

    @property
    def latent_scale(self) -> tuple[float, float]:
        """The autoencoder's scaling factor, and the shift before it."""
        return self.vae.config.scaling_factor, self.vae.config.get("shift_factor") or 0.0

    def encode_text(self, captions: Sequence[str]) -> Conditioning:
        """Token states (and pooled states) of captions, padded to the model's length.

        Args:
            captions: B strings; what is longer than the model's length is cut.
        """
        return self.text.states(captions).to(self.device)

    def condition(self, prompts: Prompts, states: Conditioning) -> Conditioning:
        """What the base itself makes of prompts.

        Args:
            prompts: N.
            states: of their captions.
        """
        return states if self.condition_encoder is None else self.condition_encoder(states, prompts.arrays)


class UNetDiffusion(LatentDiffusion):
    """A U-Net that predicts noise or velocity, as in Stable Diffusion 1.x and pocket."""

    family = "unet"
    samplers = ("ddim", "dpm-solver++")

    def __post_init__(self) -> None:
        from diffusers import DDPMScheduler

        scheduler: Any = DDPMScheduler.from_config(self.scheduler_config)
        self.alpha_bar: Tensor = scheduler.alphas_cumprod.to(self.device)
        if self.prediction not in ("epsilon", "v_prediction"):
            raise ValueError(f"expected a base that predicts epsilon or v_prediction, got {self.prediction!r}")

    @property
    def prediction(self) -> str:
        """What the denoiser predicts: `epsilon` or `v_prediction`."""
        return self.scheduler_config.get("prediction_type", "epsilon")

    @property
    def timesteps(self) -> int:
        """T, the number of noise levels."""
        return len(self.alpha_bar)

    def model_timestep(self, timesteps: Tensor) -> Tensor:
        """(B,) the timesteps themselves."""
        return timesteps

    def add_noise(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> tuple[Tensor, Tensor]:
        """The denoiser's input, and the noise or the velocity to predict, (B, C, h, w) each.

        Args:
            latents, noise, timesteps: as for `LatentDiffusion.add_noise`.
        """
        signal = self.alpha_bar[timesteps].view(-1, 1, 1, 1)
        noisy = signal.sqrt() * latents + (1 - signal).sqrt() * noise
        if self.prediction == "epsilon":
            return noisy, noise
        return noisy, signal.sqrt() * noise - (1 - signal).sqrt() * latents

    def loss_weight(self, timesteps: Tensor, gamma: float | None, velocity: bool = False) -> Tensor:
        """(B,) weight of each image's squared error.

        Args:
            timesteps, gamma, velocity: as for `LatentDiffusion.loss_weight`.
        """
        if gamma is None and not velocity:
            return torch.ones(len(timesteps), device=self.device)
        alpha_bar = self.alpha_bar[timesteps]
        if self.prediction == "v_prediction":
            alpha_bar = alpha_bar.clamp(min=1e-8)  # 0 at pure noise, where the product below is 1 all the same
        weight = velocity_weight(alpha_bar, gamma) if velocity or gamma is None else min_snr_weight(alpha_bar, gamma)
        # The error of a velocity prediction carries a factor SNR + 1 itself, of which SNR is the noise error's.
        return weight * alpha_bar if self.prediction == "v_prediction" else weight

    def denoise(self, noisy: Tensor, model_timestep: Tensor, text: Conditioning) -> Tensor:
        """See `LatentDiffusion.denoise`, (B, C, h, w) float32."""
        dtype = compute_dtype(self.denoiser)
        tokens = text.tokens.to(dtype)
        with hint_added(self.first_layer, text.hint):
            predicted = self.denoiser(noisy.to(dtype), model_timestep, tokens, encoder_attention_mask=text.mask)
        return predicted.sample.float()

    @property
    def first_layer(self) -> Any:
        """See `LatentDiffusion.first_layer`."""
        return self.denoiser.conv_in


class FlowDiffusion(LatentDiffusion):
    """A multimodal transformer (MMDiT) over a rectified flow, as in Stable Diffusion 3 and 3.5.

    Noisy latents are (1 - sigma) · latents + sigma · noise, and the target is noise - latents. The T
    noise levels are those of `schedules.flow_sigmas`.
    Source: Esser et al. 2024, arXiv:2403.03206.
    """

    family = "mmdit"
    samplers = ("flow-euler",)

    def __post_init__(self) -> None:
        config = self.scheduler_config
        if config.get("use_dynamic_shifting"):
            raise ValueError("expected a flow with one fixed shift, got use_dynamic_shifting in the scheduler")
        self.trained_timesteps = int(config.get("num_train_timesteps", 1000))
        sigmas = flow_sigmas(self.trained_timesteps, float(config.get("shift", 1.0)))
        self.sigmas: Tensor = torch.from_numpy(sigmas).to(self.device)

    @property
    def prediction(self) -> str:
        """`flow`: the velocity of the straight path from latents to noise."""
        return "flow"

    @property
    def timesteps(self) -> int:
        """T, the number of noise levels."""
        return len(self.sigmas)

    @property
    def encoding_identity(self) -> str:
        """The weights, and in which precision and length the text encoders read."""
        return f"{self.identity}-{self.precision}-{self.text.shape[0]}"

    def latent_shape(self, size_px: int) -> tuple[int, int, int]:
        """See `LatentDiffusion.latent_shape`; ValueError where the transformer's patches do not fill the image."""
        channels, height, width = super().latent_shape(size_px)
        patch: Any = self.denoiser.config.patch_size  # type: ignore[union-attr]
        edge_px = size_px // height * patch
        if size_px % edge_px:
            raise ValueError(f"{self.name}: expected a size that is a multiple of {edge_px} px, got {size_px}")
        return channels, height, width

    def model_timestep(self, timesteps: Tensor) -> Tensor:
        """(B,) float32: sigma, in thousandths."""
        return self.sigmas[timesteps] * self.trained_timesteps

    def add_noise(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> tuple[Tensor, Tensor]:
        """The denoiser's input, and noise - latents to predict, (B, C, h, w) each.

        Args:
            latents, noise, timesteps: as for `LatentDiffusion.add_noise`.
        """
        sigma = self.sigmas[timesteps].view(-1, 1, 1, 1)
        return (1 - sigma) * latents + sigma * noise, noise - latents

    def loss_weight(self, timesteps: Tensor, gamma: float | None, velocity: bool = False) -> Tensor:
        """(B,) ones: the levels are weighted by how often they are drawn.

        Args:
            timesteps: (B,) int64.
            gamma, velocity: None and False, as `trainer.check_arm` requires.
        """
        assert gamma is None and not velocity
        return torch.ones(len(timesteps), device=self.device)

    def denoise(self, noisy: Tensor, model_timestep: Tensor, text: Conditioning) -> Tensor:
        """See `LatentDiffusion.denoise`, (B, C, h, w) float32."""
        assert text.pooled is not None and text.mask is None
        dtype = compute_dtype(self.denoiser)
        with hint_added(self.first_layer, text.hint):
            predicted = self.denoiser(
                hidden_states=noisy.to(dtype),
                timestep=model_timestep,
                encoder_hidden_states=text.tokens.to(dtype),
                pooled_projections=text.pooled.to(dtype),
            )
        return predicted.sample.float()

    @property
    def first_layer(self) -> Any:
        """See `LatentDiffusion.first_layer`; it reads patches."""
        return self.denoiser.pos_embed.proj  # type: ignore[union-attr]


@contextmanager
def hint_added(layer: nn.Module, hint: Tensor | None) -> Iterator[None]:
    """Within it a hint is added to what a layer gives.

    Args:
        layer: gives (N, C, h, w).
        hint: of that shape; None for nothing.
    """
    if hint is None:
        yield
        return

    def add(_layer: nn.Module, _given: Any, made: Tensor) -> Tensor:
        return made + hint.to(made.dtype)

    handle: Any = layer.register_forward_hook(add)  # type: ignore[arg-type]
    try:
        yield
    finally:
        handle.remove()


def with_condition_encoder(base: LatentDiffusion, encoder: nn.Module) -> LatentDiffusion:
    """The base with an encoder of the arrays that prompts carry; its denoiser and text encoders are shared.

    Args:
        base: stays as it is.
        encoder: see `LatentDiffusion.condition_encoder`; its initial weights are part of the new base's identity.
    """
    digest = hashlib.sha256(base.identity.encode())
    for name, value in sorted(encoder.state_dict().items()):
        digest.update(name.encode() + value.cpu().contiguous().numpy().tobytes())
    encoder = encoder.to(base.device).requires_grad_(False)
    return replace(base, identity=digest.hexdigest()[:16], condition_encoder=encoder)
