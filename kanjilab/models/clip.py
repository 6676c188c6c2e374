"""CLIP models as others publish them: what they say of images and of captions, as vectors of one space.

Two forms are read: transformers' own, as OpenAI's models have it, and that of rinna's Japanese CLIP and CLOOB, whose
vectors are the projections of each side's first state.

Source: Radford et al. 2021, arXiv:2103.00020; github.com/rinnakk/japanese-clip (Apache-2.0).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import exp
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from kanjilab.core.outside_files import read_json_object
from kanjilab.core.tensor_files import check_tensor_file, read_tensors
from kanjilab.models.hub import CONVERSION, hub_folder, load_tokenizer, load_whole, quiet_diffusers
from kanjilab.models.sentence_pieces import load_sentence_pieces

FILES: dict[str, Any] = dict(allow_patterns=["*.json", "*.txt", "*.model", "*.safetensors"])
RINNA_WORDS = "rinna/japanese-roberta-base"  # the tokenizer of both of rinna's models
RINNA_TOKENS = 77
PIXEL_MEAN, PIXEL_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
AT_ONCE = 64


@dataclass(frozen=True)
class Clip:
    """A model that puts images and captions into one space.

    Attributes:
        image_side: of pixels (B, 3, size_px, size_px), normalised; (B, D).
        text_side: of B captions; (B, D).
        size_px: side of the images that it sees.
        scale: what the model multiplies cosines by.
        device: where it computes.
    """

    image_side: Callable[[Tensor], Tensor]
    text_side: Callable[[list[str]], Tensor]
    size_px: int
    scale: float
    device: torch.device

    @torch.no_grad()
    def image_vectors(self, images: NDArray[np.uint8]) -> Tensor:
        """(N, D) unit vectors of RGB images (N, H, W, 3)."""
        found = []
        for start in range(0, len(images), AT_ONCE):
            pixels = torch.from_numpy(images[start : start + AT_ONCE]).to(self.device).permute(0, 3, 1, 2) / 255
            size = (self.size_px, self.size_px)
            pixels = F.interpolate(pixels, size, mode="bilinear", align_corners=False, antialias=True)
            mean, std = (torch.tensor(v, device=self.device).view(3, 1, 1) for v in (PIXEL_MEAN, PIXEL_STD))
            found.append(F.normalize(self.image_side((pixels - mean) / std).float(), dim=1).cpu())
        return torch.cat(found)

    @torch.no_grad()
    def text_vectors(self, captions: Sequence[str]) -> Tensor:
        """(N, D) unit vectors of captions."""
        parts = [list(captions[start : start + AT_ONCE]) for start in range(0, len(captions), AT_ONCE)]
        return torch.cat([F.normalize(self.text_side(part).float(), dim=1).cpu() for part in parts])


def load_clip(name: str, device: torch.device | str = "cpu") -> Clip:
    """Loads a CLIP model.

    Args:
        name: a Hub id, such as rinna/japanese-clip-vit-b-16 or openai/clip-vit-base-patch32, or a folder of its files.
        device: where it computes.
    Raises:
        FileNotFoundError: nothing there, or not in the Hub's cache while offline.
        ValueError: no CLIP model, one that comes with code of its own, no safetensors, or damaged or missing weights.
    """
    folder = _folder(name)
    config, device = read_json_object(folder / "config.json"), torch.device(device)
    if config.get("auto_map"):
        raise ValueError(
            f"{name}: expected a model that transformers knows, got one with its own code, which is not run"
        )
    if (kind := config.get("model_type")) not in ("clip", "cloob"):
        raise ValueError(f"{name}: expected a CLIP or CLOOB model, got {kind!r}")
    if not (folder / "model.safetensors").is_file():
        raise ValueError(f"{name}: expected model.safetensors, found none; {CONVERSION}")
    check_tensor_file(folder / "model.safetensors")
    text_kind = (config.get("text_config") or {}).get("model_type", "clip_text_model")
    with quiet_diffusers():
        if text_kind == "clip_text_model":
            return _usual(folder, device)
        return _of_rinna(folder, config, device)


def _folder(name: str) -> Path:
    path = Path(name).expanduser()
    folder = path if path.exists() or name.count("/") != 1 else hub_folder(name, name, None, FILES)
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(f"{name}: expected a folder with config.json, or a Hub id 'owner/name'")
    return folder


def _usual(folder: Path, device: torch.device) -> Clip:
    from transformers import AutoTokenizer, CLIPModel

    model = load_whole(CLIPModel, folder).to(device).eval().requires_grad_(False)
    words = load_tokenizer(AutoTokenizer, folder)

    def text_side(captions: list[str]) -> Tensor:
        length = model.config.text_config.max_position_embeddings
        tokens = words(captions, padding=True, truncation=True, max_length=length, return_tensors="pt").to(device)
        return model.get_text_features(**tokens).pooler_output

    size, scale = model.config.vision_config.image_size, model.logit_scale.exp().item()
    return Clip(lambda pixels: model.get_image_features(pixels).pooler_output, text_side, size, scale, device)


def _of_rinna(folder: Path, config: dict[str, Any], device: torch.device) -> Clip:
    """Two of transformers' models, without their poolers, and a projection of the first state of each."""
    tensors, sides = read_tensors(folder / "model.safetensors"), {}
    for side in ("vision", "text"):
        settings = dict(config[f"{side}_config"])
        own = {
            key.removeprefix(f"{side}_model."): value
            for key, value in tensors.items()
            if key.startswith(f"{side}_model.")
        }
        sides[side] = _side(folder, settings, own).to(device)
    projections = [tensors[f"{kind}_projection.weight"].float().to(device) for kind in ("visual", "text")]
    words = _rinna_words(folder)

    def image_side(pixels: Tensor) -> Tensor:
        return sides["vision"](pixel_values=pixels).last_hidden_state[:, 0] @ projections[0].T

    def text_side(captions: list[str]) -> Tensor:
        ids = [_rinna_ids(words, caption) for caption in captions]
        length = max(map(len, ids))
        padded = torch.tensor([row + [words.pad_token_id] * (length - len(row)) for row in ids], device=device)
        mask = torch.tensor([[1] * len(row) + [0] * (length - len(row)) for row in ids], device=device)
        places = torch.arange(length, device=device).expand(len(ids), -1)
        states = sides["text"](input_ids=padded, attention_mask=mask, position_ids=places).last_hidden_state
        return states[:, 0] @ projections[1].T

    if "logit_scale" in tensors:
        scale = exp(tensors["logit_scale"].item())
    else:
        scale = float(config.get("init_inv_tau", 30.0))  # CLOOB's, which is not trained
    return Clip(image_side, text_side, config["vision_config"].get("image_size", 224), scale, device)


def _side(folder: Path, settings: dict[str, Any], tensors: dict[str, Tensor]) -> Any:
    from transformers import AutoConfig, AutoModel

    config = AutoConfig.for_model(settings.pop("model_type"), **settings)
    model_class: Any = type(AutoModel.from_config(config, add_pooling_layer=False))
    model = load_whole(model_class, folder, config=config, state_dict=tensors, add_pooling_layer=False)
    return model.eval().requires_grad_(False)


def _rinna_words(folder: Path) -> Any:
    own = (folder / "spiece.model").is_file() or (folder / "tokenizer.json").is_file()
    return load_sentence_pieces(folder if own else hub_folder(RINNA_WORDS, RINNA_WORDS, None, FILES), RINNA_TOKENS)


def _rinna_ids(words: Any, caption: str) -> list[int]:
    ids = words(caption, add_special_tokens=False, truncation=True, max_length=RINNA_TOKENS - 1).input_ids
    return [words.cls_token_id, *ids]
