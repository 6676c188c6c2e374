"""From checkpoints, prompts and seeds to images: the same noise everywhere."""

import warnings
from collections.abc import Callable, Generator, Sequence
from contextlib import closing, nullcontext
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kanjilab.core.images import SIZE_PX
from kanjilab.core.rng import counted_rng
from kanjilab.models.conditioning import Conditioning, Prompt, Prompts, check_texts
from kanjilab.models.diffusion import FlowDiffusion, LatentDiffusion, UNetDiffusion
from kanjilab.models.trainable import Trainable

MOST = 1_000  # steps, and guidance: pictures of more are no others, or none
SAMPLERS = (*UNetDiffusion.samplers, *FlowDiffusion.samplers)


@dataclass(frozen=True)
class Sampling:
    """How images are drawn from a model.

    Args:
        sampler: `ddim` or `dpm-solver++` for a U-Net, `flow-euler` for a rectified flow.
        steps: denoising steps.
        guidance: classifier-free guidance scale; 1 leaves it out.
        array_guidance: of the arrays that prompts carry, where they have a scale of their own; `guidance` is then of
            the text alone, given the arrays.
        negative_prompt: takes the place of the empty caption in guidance.
        prefix: put before every prompt.
    Raises:
        ValueError: a value outside its range, a text that no text encoder reads.
    Source: two scales as in Brooks et al. 2023, arXiv:2211.09800, equation 3.
    """

    sampler: str = "ddim"
    steps: int = 25
    guidance: float = 3.0
    negative_prompt: str = ""
    prefix: str = ""
    array_guidance: float | None = None

    def __post_init__(self) -> None:
        check_texts(self.negative_prompt, self.prefix)
        if self.sampler not in SAMPLERS:
            raise ValueError(f"sampler must be one of {SAMPLERS}, got {self.sampler!r}")
        if not 1 <= self.steps <= MOST:
            raise ValueError(f"steps must be from 1 to {MOST:,}, got {self.steps}")
        if not 1 <= self.guidance <= MOST:  # NaN is neither
            raise ValueError(f"guidance must be from 1 to {MOST:,}, got {self.guidance}")
        if self.array_guidance is not None and not 0 <= self.array_guidance <= MOST:
            raise ValueError(f"array_guidance must be None or from 0 to {MOST:,}, got {self.array_guidance}")

    def to_json(self) -> dict:
        """A plain dictionary, ready for JSON; a scale that is not used is left out, as drawings were stored before."""
        return {name: value for name, value in asdict(self).items() if value is not None}

    @property
    def copies(self) -> int:
        """How often the denoiser sees each image in a step: with less and less of its prompt."""
        return 3 if self.array_guidance is not None else 2 if self.guidance > 1 else 1

    def guided(self, predicted: Tensor) -> Tensor:
        """What is predicted under guidance.

        Args:
            predicted: (N copies, C, h, w), the copies of an image side by side: by the empty prompt, by its arrays
                alone, by all of its prompt; of fewer copies the last ones, but of two the first and the last.
        Returns:
            (N, C, h, w).
        """
        if self.copies == 1:
            return predicted
        empty, full = predicted[0 :: self.copies], predicted[self.copies - 1 :: self.copies]
        if self.array_guidance is None:
            return empty + self.guidance * (full - empty)
        arrays = predicted[1::3]
        return empty + self.array_guidance * (arrays - empty) + self.guidance * (full - arrays)

    def scheduler(self, base: LatentDiffusion) -> Any:
        """A fresh scheduler of diffusers for this base.

        Raises:
            ValueError: the sampler does not fit the base.
        """
        if self.sampler not in base.samplers:
            raise ValueError(
                f"{base.name} predicts {base.prediction!r}: expected a sampler of {base.samplers}, got {self.sampler!r}"
            )
        # Here, for stored results are read without it; it takes as long to import as torch.
        from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, FlowMatchEulerDiscreteScheduler

        if self.sampler == "flow-euler":
            return FlowMatchEulerDiscreteScheduler.from_config(base.scheduler_config)
        if self.sampler == "ddim":
            # Latents go beyond 1; where another scheduler's settings say nothing, diffusers would clip them.
            return DDIMScheduler.from_config(base.scheduler_config, clip_sample=False)
        return DPMSolverMultistepScheduler.from_config(base.scheduler_config, algorithm_type="dpmsolver++")


def default_sampling(family: str) -> Sampling:
    """How images are drawn where nothing is said, from a base of family `unet` or `mmdit`."""
    return Sampling(FlowDiffusion.samplers[0] if family == FlowDiffusion.family else UNetDiffusion.samplers[0])


def fitting(sampling: Sampling, base: LatentDiffusion) -> Sampling:
    """The same, with the base's first sampler if its own is made for the other family."""
    return sampling if sampling.sampler in base.samplers else replace(sampling, sampler=base.samplers[0])


def initial_noise(seeds: Sequence[int], shape: tuple[int, ...]) -> Tensor:
    """(N, C, h, w) noise, one generator per seed, whatever the batch, prompt or checkpoint."""
    noise = [counted_rng(seed, "sampling noise").standard_normal(shape, dtype=np.float32) for seed in seeds]
    return torch.from_numpy(np.stack(noise))


def sample(
    base: LatentDiffusion,
    prompts: Sequence[str | Prompt],
    seeds: Sequence[int],
    sampling: Sampling | None = None,
    *,
    trainable: Trainable | None = None,
    batch: int = 32,
    size_px: int | None = None,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
    on_latents: Callable[[Tensor], None] = lambda latents: None,
) -> np.ndarray:
    """Draws every prompt with every seed, for every arm.

    Args:
        prompts: P prompts, text alone or with arrays; guidance's empty prompt has zeros for arrays.
        seeds: S seeds; the same seed is the same noise everywhere.
        sampling: sampler, steps, guidance; `default_sampling` of the base's family if none is given.
        trainable: adapters to draw with, K arms (see `load_checkpoints`); None for the base alone.
        batch: images at a time; it does not change the images beyond rounding.
        size_px: height and width; by default those of the images that the adapters were trained on.
        on_progress: called with (done, total) images; each denoising step counts as its share of a batch.
        on_latents: called after each denoising step with a batch's latents (N, C, h, w), for `base.decode`; N are
            pairs of prompt and seed in order, arm by arm. What it raises ends the drawing.
    Returns:
        (K, P, S, H, W) or (K, P, S, H, W, 3) uint8; K = 1 for the base alone.
    """
    sampling = sampling or default_sampling(base.family)
    size_px = size_px or (trainable and trainable.size_px) or SIZE_PX
    if not prompts or not seeds:
        raise ValueError(f"expected at least one prompt and one seed, got {len(prompts)} and {len(seeds)}")
    sampling.scheduler(base)  # refuses a sampler that does not fit, before any text encoder is loaded
    asked, copies_of = _asked(prompts, sampling)
    arms = 1 if trainable is None else len(trainable.arms)
    states, apart = _states(base, asked, trainable)
    items = [(k, p, s) for k in range(arms) for p in range(len(prompts)) for s in range(len(seeds))]
    noise = initial_noise(seeds, base.latent_shape(size_px)).to(base.device)
    images = []
    for start in range(0, len(items), batch):
        chunk = items[start : start + batch]
        # With guidance every image is there twice or thrice, side by side, so that the images of an arm stay together.
        rows = [k * apart + row for k, p, _ in chunk for row in copies_of[p]]
        text = states.select(torch.tensor(rows, device=base.device))
        latents = noise[[s for _, _, s in chunk]]
        owners = [k for k, _, _ in chunk]
        # Closed at once where a callback raises: until then the base computes with the adapters.
        with closing(_denoising(base, latents, text, owners, sampling, trainable)) as denoising:
            for taken, latents in enumerate(denoising, 1):
                on_latents(latents)
                # One step more than there are: a batch is not done before it is decoded.
                on_progress(start + len(chunk) * taken // (sampling.steps + 1), len(items))
        images.append(base.decode(latents))
        on_progress(start + len(chunk), len(items))
    pixels = np.concatenate(images)
    return pixels.reshape(arms, len(prompts), len(seeds), *pixels.shape[1:])


def _asked(prompts: Sequence[str | Prompt], sampling: Sampling) -> tuple[list[Prompt], list[list[int]]]:
    """What the denoiser is asked by, and for each prompt the rows of its copies in that, in the order of `guided`."""
    given = [prompt if isinstance(prompt, Prompt) else Prompt(prompt) for prompt in prompts]
    prefix = sampling.prefix
    own_words = [replace(one, text=prefix + one.text, toward=prefix + one.toward) for one in given]
    asked = [Prompt(sampling.negative_prompt), *own_words]
    own = range(1, 1 + len(given))
    if sampling.copies < 3:
        return asked, [[0, row][-sampling.copies :] for row in own]
    alone = [replace(one, text=sampling.negative_prompt, share=0.0) for one in given]
    return asked + alone, [[0, len(given) + row, row] for row in own]


@torch.no_grad()
def _states(base: LatentDiffusion, asked: Sequence[Prompt], trainable: Trainable | None) -> tuple[Conditioning, int]:
    """Conditioning by the prompts, arm after arm, and the rows from one arm's to the next's: 0 where all share them."""
    prompts, count = Prompts.of(asked, base.device), len(asked)
    states = base.encode_text(prompts.captions)
    if any(one.share for one in asked):
        if trainable is not None and trainable.trains_encoders:
            raise ValueError("prompts with a share of a second caption: expected text encoders that were not trained")
        share = torch.tensor([one.share for one in asked])
        states = states.mixed(base.encode_text([one.toward for one in asked]), share)
    if trainable is None or not trainable.trains_encoders:
        return base.condition(prompts, states), 0
    every = []
    for k in range(len(trainable.arms)):
        pairs = [(k, count)]
        with trainable.attached(pairs):
            every.append(trainable.condition(base.text, prompts, states, pairs))
    return Conditioning.cat(every), count


@torch.no_grad()
def _denoising(
    base: LatentDiffusion,
    latents: Tensor,
    text: Conditioning,
    owners: list[int],
    sampling: Sampling,
    trainable: Trainable | None,
) -> Generator[Tensor]:
    """The latents of one batch after each denoising step; the images of each arm are side by side."""
    scheduler = sampling.scheduler(base)
    with warnings.catch_warnings():  # diffusers' DPM-Solver makes an array of a tensor as numpy 2 deprecates
        warnings.filterwarnings("ignore", "__array__ implementation", DeprecationWarning)
        scheduler.set_timesteps(sampling.steps, device=base.device)
    copies = sampling.copies
    pairs = [(k, copies * owners.count(k)) for k in dict.fromkeys(owners)]
    with trainable.attached(pairs) if trainable else nullcontext():
        for timestep in scheduler.timesteps:
            noisy = latents.repeat_interleave(copies, 0)  # none of these samplers scales the denoiser's input
            predicted = sampling.guided(base.denoise(noisy, timestep.expand(len(noisy)), text))
            latents = scheduler.step(predicted, timestep, latents).prev_sample
            yield latents
