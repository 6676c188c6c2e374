"""Build pocket-ja's text encoder: words -> tokenizer -> what MiniLM says of their English -> stages 1a and 1b.

The stages with images are ordinary trainings over `pocket-ja`: with Japanese captions, `Arm(targets="none",
text_encoder="full")` is stage 1c, where the denoiser is frozen, and `Arm(targets="all", text_encoder="full")` stage 2,
where both learn.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from kanjilab.core.progress import open_bar
from kanjilab.core.storage import write_bytes_atomic
from kanjilab.data.dictionary import load_characters
from kanjilab.data.image_folder import HELD_OUT, TRAIN, Dataset
from kanjilab.data.japanese import load_names, load_words
from kanjilab.models.cpu_layers import autocast_bf16
from kanjilab.models.japanese import save_encoder
from kanjilab.models.loading import load_base
from kanjilab.models.minilm import TOKENS, load_minilm
from kanjilab.models.text_encoders import OneEncoder
from kanjilab.training.attention_match import AttentionMatching, AttentionProbe, attention_probes
from kanjilab.training.distillation import Distillation, DistilRecipe, WordPairs, distil, pooled, word_pairs
from kanjilab.training.encoded import encode_dataset
from kanjilab.training.japanese_tokenizer import save_tokenizer, train_pieces

MATCHED = DistilRecipe(words_seen=32_000, batch=96, peak_lr=5e-4, warmup_steps=50)
STAGES = (  # the package has the encoder after the second
    ("1a", DistilRecipe()),
    ("1b", MATCHED),
    ("1a", DistilRecipe(words_seen=1_600_000, peak_lr=1.2e-3, alignment=6.0, seed=1)),
    ("1b", replace(MATCHED, words_seen=64_000, seed=1)),
)
READERS = ("pocket2", "writer")  # the denoisers whose cross-attention is matched
PROBED_IMAGES = 64
TAUGHT_NAMES_ONE_IN = 2  # names teach how katakana spell other languages


def build_japanese(folder: Path, dataset: Dataset, stages: Sequence[tuple[str, DistilRecipe]] = STAGES) -> Path:
    """The whole recipe; called again, it goes on from what `folder` holds.

    Args:
        folder: keeps the tokenizer, the teacher's states, the state of each stage, and what the package carries in
            `weights/`.
        dataset: an image folder of kanji with held-out characters, such as left16: words with these are left out, and
            its training images are what the denoisers look at while their cross-attention is matched.
        stages: "1a" or "1b" and its recipe, each from where the one before ended.
    Returns:
        `folder/weights`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    words = load_words()
    pieces = stored_pieces(words, folder)
    held_out = dataset.split(HELD_OUT).table["character"].tolist()
    pairs = word_pairs(pd.concat([words, load_names(TAUGHT_NAMES_ONE_IN)]), load_characters(), held_out)
    targets = teacher_states(pairs.english, folder / "teacher.npy")
    base = load_base(READERS[0])
    assert isinstance(base.text, OneEncoder)
    probes = reader_probes(dataset.split(TRAIN))
    weights = None
    for number, (stage, recipe) in enumerate(stages):
        if stage == "1b":
            training = AttentionMatching(recipe, pieces, weights, base.text, probes)
        else:
            training = Distillation(recipe, pieces, weights)
        weights = trained(training, pairs, targets, folder / f"{number}_{stage}.safetensors").average
    assert weights is not None, "at least one stage"
    save_encoder(weights, folder / "tokenizer", folder / "weights")
    return folder / "weights"


def stored_pieces(words: pd.DataFrame, folder: Path) -> Any:
    """The tokenizer's pieces, found once and kept in `folder`, beside the tokenizer itself.

    Args:
        words: of `load_words`; held-out ones are left out.
        folder: for pieces.model and `tokenizer/`.
    """
    import sentencepiece

    path = folder / "pieces.model"
    if not path.exists():
        pieces = train_pieces(form for forms in words.loc[~words["held_out"], "forms"] for form in forms)
        save_tokenizer(pieces, folder / "tokenizer")
        write_bytes_atomic(path, pieces.serialized_model_proto())
    return sentencepiece.SentencePieceProcessor(model_proto=path.read_bytes())


@torch.inference_mode()
def teacher_states(english: Sequence[str], path: Path, batch: int = 256) -> np.ndarray:
    """MiniLM's pooled states, not scaled, written once.

    Args:
        english: M texts.
        path: .npy file; it is read, not written again, if it holds as many.
        batch: texts encoded at a time.
    Returns:
        (M, 384) float16.
    """
    if not path.exists():
        tokenizer, model = load_minilm()
        found = np.zeros((len(english), model.config.hidden_size), np.float16)
        order = sorted(range(len(english)), key=lambda row: len(english[row]))  # alike in length: little padding
        for start in open_bar(range(0, len(order), batch), desc="teacher"):
            rows = order[start : start + batch]
            texts = [english[row] for row in rows]
            tokens = tokenizer(texts, padding=True, truncation=True, max_length=TOKENS, return_tensors="pt")
            with autocast_bf16():
                states = model(tokens.input_ids, attention_mask=tokens.attention_mask).last_hidden_state
            found[rows] = pooled(states.float(), tokens.attention_mask).half().numpy()
        np.save(path, found)
    stored = np.load(path, allow_pickle=False)
    if len(stored) != len(english):
        raise ValueError(f"{path}: expected the states of {len(english)} texts, got {len(stored)}; remove it")
    return stored


def reader_probes(training: Dataset, images: int = PROBED_IMAGES) -> list[AttentionProbe]:
    """The cross-attention layers of all `READERS`, with queries that they ask of some training images.

    Args:
        training: images with English captions.
        images: how many of them.
    """
    probes: list[AttentionProbe] = []
    for name in READERS:
        base = load_base(name)
        encoded = encode_dataset(base, training)
        rows = np.linspace(0, len(encoded) - 1, images).astype(int)
        captions = [encoded.captions[row] for row in encoded.caption[rows]]
        probes += attention_probes(base, torch.from_numpy(np.array(encoded.mean[rows])), captions)
    return probes


def trained(training: Any, pairs: WordPairs, targets: np.ndarray, state: Path) -> Distillation:
    """A stage trained to its end, with a progress bar; called again, it goes on from the stored state.

    Args:
        training: of `Distillation` or `AttentionMatching`.
        pairs, targets, state: as for `distil`.
    """
    with open_bar(total=training.recipe.steps, desc=type(training).__name__) as bar:
        for step, loss in distil(pairs, targets, training, state):
            bar.update(step - bar.n)
            bar.set_postfix_str(f"loss {loss:.3f}", refresh=False)
    return training
