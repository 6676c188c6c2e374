"""Build calligraphy: the writer trained whole, led by skeletons, text, and the index of a character.

The recipe in order: `build_calligraphy_folder` (kanjilab.data.calligraphy) -> the ordinary training of one arm, whose
run folder goes on where it was stopped -> `save_calligraphy`.
"""

from __future__ import annotations

import copy
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pandas as pd
from safetensors.torch import load_file

from kanjilab.core.config import Arm
from kanjilab.core.run_folder import RunFolder
from kanjilab.core.storage import appearing_folder, write_json_atomic
from kanjilab.data.calligraphy import (
    STYLES,
    Style,
    build_calligraphy_folder,
    column_of,
    known_characters,
    load_skeletons,
)
from kanjilab.data.components import load_components
from kanjilab.data.dictionary import load_characters
from kanjilab.data.image_folder import TRAIN, Dataset, open_dataset
from kanjilab.data.typeset import pair_of
from kanjilab.data.writer_corpus import captions_by_parts
from kanjilab.models.diffusion import LatentDiffusion
from kanjilab.models.loading import base_folder, load_base
from kanjilab.models.skeleton_encoder import SkeletonEncoder, save_encoder, with_skeletons
from kanjilab.models.trainable import PREFIXES
from kanjilab.training.driver import finished_training
from kanjilab.training.encoded import Encoded, encode_dataset

RECIPE = Arm(
    targets="full",
    condition_encoder="full",
    peak_lr=8e-4,
    schedule="linear",
    warmup_steps=200,
    batch=16,
    images_seen=260_000,
    array_dropout=0.25,
    min_snr_gamma=5.0,
    velocity_weight=True,
    ema_decay=0.998,
    beta2=0.99,
)
TYPED_ONE_IN = 2  # of the images, which are shown once more with the skeleton of their character in print
CHECKPOINTS = 8
DENOISER_FOLDERS = {"unet": "unet", "mmdit": "transformer"}
ENCODER_PREFIX = PREFIXES["condition_encoder"]


def encode_calligraphy(base: LatentDiffusion, dataset: Dataset, cache: Path | None = None) -> Encoded:
    """A calligraphy folder as a base with a skeleton encoder reads it.

    Each image comes with its own skeleton, once more by the index of its character alone, and one in `TYPED_ONE_IN`
    with the skeleton of its character in the default font: so the model learns to write what is typed, in a style, and
    not to ink a skeleton alone.

    Args:
        base: of `with_skeletons`.
        dataset: of `build_calligraphy_folder`, or a split of it.
        cache: as for `encode_dataset`.
    Raises:
        FileNotFoundError, ValueError: the folder lacks a column or skeletons, or has damaged ones.
    """
    own, printed, styles = load_skeletons(dataset), load_skeletons(dataset, "typed"), column_of(dataset, "style")
    encoded = encode_dataset(base, dataset, cache)
    encoder = cast(SkeletonEncoder, base.condition_encoder)
    index_of = {character: number for number, character in enumerate(encoder.characters, start=1)}
    index = np.array([index_of.get(character, 0) for character in column_of(dataset, "character")])
    numbers: Any = pd.to_numeric(dataset.table["typed"])
    order = numbers.astype(np.int64) + styles.astype("category").cat.codes
    again = np.flatnonzero(order.to_numpy() % TYPED_ONE_IN == 0)
    every = np.arange(len(encoded))
    rows = np.concatenate([every, again, every])
    typed = printed[again]
    skeleton = np.concatenate([own, np.zeros_like(typed), np.zeros_like(own)])
    typed = np.concatenate([np.zeros_like(own), typed, np.zeros_like(own)])
    shown = replace(
        encoded, mean=encoded.mean[rows], log_variance=encoded.log_variance[rows], caption=encoded.caption[rows]
    )
    return shown.with_arrays(skeleton=skeleton, typed=typed, index=index[rows])


def caption_of(character: str) -> str:
    """What the writer knows a character by: its parts where they have names, else its first meaning, else itself."""
    named = captions_by_parts(character, pair_of(load_components().of(character)))
    characters = load_characters()
    meanings = characters.loc[character, "meanings"] if character in characters.index else ()
    return next(iter([*named[1:2], *named, *meanings, character]))  # a pair's second caption names the places


def base_to_train(base_name: str, characters: Sequence[str], enters: str = "hint", seed: int = 0) -> LatentDiffusion:
    """What a training starts from, in bf16; each character's index from what the writer knows it by.

    Args:
        base_name: a base.
        characters: those that get an index.
        enters, seed: see `SkeletonEncoder`.
    """
    captions = [caption_of(character) for character in characters]
    return with_skeletons(load_base(base_name, "bf16"), enters, "".join(characters), seed, captions)


def build_calligraphy(
    folder: Path,
    font_folders: Sequence[Path],
    recipe: Arm = RECIPE,
    *,
    enters: str = "hint",
    base_name: str = "writer",
    styles: Sequence[Style] = STYLES,
    characters: str | None = None,
) -> Path:
    """The whole recipe; called again, it goes on from what `folder` holds.

    Args:
        folder: keeps the images in `data/`, the training in `run/`, what the package carries in `weights/`, and the
            whole in `pipeline/`.
        font_folders: see `kanjilab.data.calligraphy.open_face`.
        recipe: how long and how fast.
        enters: how the skeleton does, see `SkeletonEncoder`.
        base_name: that is trained.
        styles: which.
        characters: only these, for a trial.
    Returns:
        `folder/pipeline`, which `load_base` reads with the skeleton encoder, and plain diffusers without.
    """
    data = folder / "data"
    dataset = open_dataset(data) if data.exists() else build_calligraphy_folder(data, font_folders, styles, characters)
    training = dataset.split(TRAIN)
    base = base_to_train(base_name, known_characters(training), enters, recipe.seed)
    encoded = encode_calligraphy(base, training, folder / "encoded")
    run = finished_training(base, encoded, [recipe], folder / "run", CHECKPOINTS)
    facts = {"images": len(training), "examples": len(encoded), "images_seen": recipe.images_seen}
    return save_calligraphy(base, run, run.checkpoints()[-1], facts, folder)


def save_calligraphy(base: LatentDiffusion, run: RunFolder, step: int, facts: Mapping[str, Any], folder: Path) -> Path:
    """Writes a trained base: what the package carries, in fp16, into `folder/weights`, and the whole pipeline.

    Args:
        base: that was trained; it stays as it is.
        run: of the training.
        step: which checkpoint.
        facts: how it was made, in plain values.
        folder: of `build_calligraphy`.
    Returns:
        `folder/pipeline`.
    """
    weights, pipeline, untrained = folder / "weights", folder / "pipeline", base_folder(base.name)
    trained = load_file(run.checkpoint_path(step) / "arm_0" / "adapter_model.safetensors")
    of_encoder = {name for name in trained if name.startswith(ENCODER_PREFIX)}
    original: Any = base.denoiser
    settings = {name: value for name, value in original.config.items() if name != "_name_or_path"}
    denoiser = type(original).from_config(settings)
    denoiser.load_state_dict({name: value for name, value in trained.items() if name not in of_encoder})
    encoder = copy.deepcopy(cast(SkeletonEncoder, base.condition_encoder))
    encoder.load_state_dict({name.removeprefix(ENCODER_PREFIX): trained[name] for name in of_encoder})
    for path in (weights, pipeline):
        shutil.rmtree(path, ignore_errors=True)  # of an earlier, shorter training
    with appearing_folder(weights) as partial:
        denoiser.half().save_pretrained(partial / DENOISER_FOLDERS[base.family])
        save_encoder(encoder, partial)
        shutil.copytree(untrained / "scheduler", partial / "scheduler")
        write_json_atomic(partial / "facts.json", facts)
    with appearing_folder(pipeline) as partial:
        for source in (untrained, weights):
            shutil.copytree(source, partial, dirs_exist_ok=True)
    return pipeline
