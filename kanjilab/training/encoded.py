"""Encode a dataset once per base: latents and text states, cached by hash and memory-mapped."""

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kanjilab.core.config import settings_hash
from kanjilab.core.manifest import keep_sound
from kanjilab.core.storage import appearing_folder, cache_folder, reserve
from kanjilab.data.image_folder import Dataset
from kanjilab.models.caption_check import tell_caption_losses, token_hash
from kanjilab.models.conditioning import Conditioning, Prompts
from kanjilab.models.diffusion import LatentDiffusion

FORMAT = 1
FREE_NAMES = ("transformers_version", "dtype", "torch_dtype")  # of a configuration, which change no state


@dataclass(frozen=True)
class Encoded:
    """A dataset as a base sees it. Arrays are memory-mapped; nothing is read until it is used.

    Attributes:
        mean, log_variance: (N, C, h, w) float32, the autoencoder's posterior in unit scale.
        captions: M distinct ones, the empty one among them.
        tokens: (M, L, D) float16, their text states.
        pooled: (M, P) float16 or None.
        caption: (N,) int64, row of `tokens` for each image.
        identity: hash of base and data.
        arrays: (N, ...) by name, what each image's prompt carries beside its caption; see `with_arrays`.
    """

    mean: np.ndarray
    log_variance: np.ndarray
    captions: tuple[str, ...]
    tokens: np.ndarray
    pooled: np.ndarray | None
    caption: np.ndarray
    identity: str
    arrays: Mapping[str, np.ndarray] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.mean)

    def latents(self, rows: np.ndarray, noise: np.ndarray) -> Tensor:
        """Samples of the posterior.

        Args:
            rows: (B,) images.
            noise: (B, C, h, w) standard normal float32.
        Returns:
            (B, C, h, w) float32.
        """
        return torch.from_numpy(self.mean[rows] + np.exp(0.5 * self.log_variance[rows]) * noise)

    @property
    def empty(self) -> int:
        """Row of the empty caption."""
        return self.captions.index("")

    def with_arrays(self, **arrays: np.ndarray) -> "Encoded":
        """The same images and captions, each with further arrays for the base's condition encoder.

        Args:
            arrays: (N, ...) by name.
        Raises:
            ValueError: not one entry an image.
        """
        for name, values in arrays.items():
            if len(values) != len(self):
                raise ValueError(f"{name}: expected one entry for each of {len(self)} images, got {len(values)}")
        digests = {name: hashlib.sha256(values.tobytes()).hexdigest() for name, values in arrays.items()}
        return replace(self, arrays={**self.arrays, **arrays}, identity=settings_hash([self.identity, digests]))

    def prompts(
        self, rows: np.ndarray, captions: np.ndarray, device: torch.device, dropped: np.ndarray | None = None
    ) -> Prompts:
        """A batch of prompts.

        Args:
            rows: (B,) images, whose arrays the prompts carry.
            captions: (B,) rows of `tokens`.
            device: of the arrays.
            dropped: (B, A) bool, which arrays are zeros, in order of their names; by default all of those whose caption
                is the empty one.
        """
        if dropped is None:
            dropped = np.repeat((captions == self.empty)[:, None], len(self.arrays), axis=1)
        arrays = {
            name: torch.from_numpy(values[rows].astype(np.float32) * ~zero.reshape(-1, *[1] * (values.ndim - 1)))
            for (name, values), zero in zip(sorted(self.arrays.items()), dropped.T, strict=True)
        }
        return Prompts([self.captions[row] for row in captions], {n: array.to(device) for n, array in arrays.items()})

    def text(self, captions: np.ndarray, device: torch.device) -> Conditioning:
        """Text states of rows of `tokens`, (B, L, D) float32."""
        tokens = torch.from_numpy(self.tokens[captions].astype(np.float32))
        pooled = None if self.pooled is None else torch.from_numpy(self.pooled[captions].astype(np.float32))
        return Conditioning(tokens, pooled).to(device)


def encode_dataset(
    base: LatentDiffusion,
    dataset: Dataset,
    cache: Path | None = None,
    *,
    batch: int = 32,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> Encoded:
    """Encodes images and captions, or opens what an earlier call stored under the same hash.

    A notice tells of captions that the base cannot tell apart; `caption_losses` lists them.

    Args:
        cache: a folder; the user's cache by default.
        batch: images or captions encoded at a time.
        on_progress: called with (done, total) items.
    """
    captions = distinct_captions(dataset)
    tell_caption_losses(base.text, captions)
    identity = settings_hash([FORMAT, base.encoding_identity, dataset.content_hash])
    # Two bases of the same weights may differ in scale, in the length of captions, and in how they read them.
    reading = [base.text.shape, token_hash(base.text, captions), _text_config(base)]
    folder = (cache or cache_folder() / "encoded") / settings_hash([identity, base.latent_scale, *reading])

    def make() -> None:
        with appearing_folder(folder) as temporary:
            _write(base, dataset, temporary, batch, on_progress)

    keep_sound(folder, make)

    def array(name: str) -> np.ndarray:
        return np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False)

    pooled = array("pooled") if (folder / "pooled.npy").exists() else None
    return Encoded(array("mean"), array("log_variance"), captions, array("tokens"), pooled, array("caption"), identity)


def _text_config(base: LatentDiffusion) -> dict[str, Any]:
    """The configuration of the text encoder that stays loaded; of others the base's identity covers it."""
    config = getattr(base.text.encoder, "config", None)
    contents = {} if config is None else config.to_dict()
    return {name: str(value) for name, value in contents.items() if not name.startswith("_") and name not in FREE_NAMES}


def distinct_captions(dataset: Dataset) -> tuple[str, ...]:
    """The empty caption and the dataset's, each once, in order."""
    return "", *sorted(set(dataset.table["text"]) - {""})


def blank_encoded(base: LatentDiffusion, size_px: int, images: int) -> Encoded:
    """Data of the right shapes and nothing in them, on which a training can be measured before anything is encoded.

    Args:
        size_px: height and width of the images.
        images: N of them.
    """

    def zeros(dtype: type[np.generic], *shape: int) -> np.ndarray:
        return np.broadcast_to(np.zeros(1, dtype), shape)

    latents, pooled = (images, *base.latent_shape(size_px)), base.text.pooled_width
    return Encoded(
        mean=zeros(np.float32, *latents),
        log_variance=zeros(np.float32, *latents),
        captions=("",),
        tokens=zeros(np.float16, 1, *base.text.shape),
        pooled=None if pooled is None else zeros(np.float16, 1, pooled),
        caption=zeros(np.int64, images),
        identity="blank",
    )


def _reserved(path: Path, dtype: np.dtype, shape: tuple[int, ...]) -> np.memmap:
    """A new array of zeros on the disk, with all its room taken."""
    array = np.lib.format.open_memmap(path, "w+", dtype, shape)
    reserve(path, path.stat().st_size)
    return array


def _write(
    base: LatentDiffusion, dataset: Dataset, folder: Path, batch: int, on_progress: Callable[[int, int], None]
) -> None:
    texts, captions = dataset.table["text"].tolist(), distinct_captions(dataset)
    row = {caption: index for index, caption in enumerate(captions)}
    total, done = len(texts) + base.text.passes * len(captions), 0
    stores: dict[str, np.memmap] = {}

    def store(name: str, start: int, values: np.ndarray, length: int) -> None:
        if name not in stores:
            shape = (length, *values.shape[1:])
            stores[name] = _reserved(folder / f"{name}.npy", values.dtype, shape)
        stores[name][start : start + len(values)] = values

    for start in range(0, len(texts), batch):
        rows = np.arange(start, min(start + batch, len(texts)))
        mean, log_variance = base.encode_images(dataset.images(rows, channels=base.channels))
        store("mean", start, mean.cpu().numpy(), len(texts))
        store("log_variance", start, log_variance.cpu().numpy(), len(texts))
        on_progress(done := done + len(rows), total)
    sizes: dict[str, tuple[int, ...]] = {"tokens": base.text.shape}
    if base.text.pooled_width is not None:
        sizes["pooled"] = (base.text.pooled_width,)
    for name, size in sizes.items():  # filled with zeros, which stay where no encoder speaks
        stores[name] = _reserved(folder / f"{name}.npy", np.dtype(np.float16), (len(captions), *size))
    for part in base.text.parts(captions, batch):
        stores["tokens"][part.captions, part.positions, part.widths] = part.tokens.half().cpu().numpy()
        if part.pooled is not None:
            stores["pooled"][part.captions, part.pooled_widths] = part.pooled.half().cpu().numpy()
        on_progress(done := done + len(part.tokens), total)
    np.save(folder / "caption.npy", np.array([row[text] for text in texts], dtype=np.int64))
    for values in stores.values():
        values.flush()
    facts = {"base": base.name, "base_identity": base.identity, "data_hash": dataset.content_hash}
    (folder / "encoded.json").write_text(json.dumps(facts, indent=2))
