"""Teach calligraphy a new hand from a few samples: a LoRA on the denoiser, everything else frozen."""

from __future__ import annotations

from pathlib import Path

from kanjilab.core.config import Arm
from kanjilab.core.run_folder import RunFolder
from kanjilab.data.calligraphy import build_hand_folder
from kanjilab.data.handwriting import Hand
from kanjilab.data.image_folder import open_dataset
from kanjilab.models.diffusion import LatentDiffusion
from kanjilab.models.trainable import Trainable
from kanjilab.training.calligraphy import encode_calligraphy
from kanjilab.training.checkpoints import load_checkpoints
from kanjilab.training.driver import finished_training

HAND_RECIPE = Arm(
    targets="all",
    rank=16,
    peak_lr=1e-3,
    schedule="linear",
    warmup_steps=10,
    batch=8,
    images_seen=5_000,
    array_dropout=0.1,
    min_snr_gamma=5.0,
    velocity_weight=True,
)


def learn_hand(base: LatentDiffusion, hand: Hand, caption: str, folder: Path, recipe: Arm = HAND_RECIPE) -> Trainable:
    """Trains on a person's samples; called again, it goes on from what `folder` holds.

    Args:
        base: led by skeletons.
        hand: what was read from photos, one glyph or more.
        caption: by which the hand is asked for afterwards.
        folder: keeps the images in `data/` and the training in `run/`.
        recipe: of a LoRA.
    Returns:
        One arm, to draw with.
    """
    data = folder / "data"
    dataset = open_dataset(data) if data.exists() else build_hand_folder(data, hand, caption)
    encoded = encode_calligraphy(base, dataset, folder / "encoded")
    finished_training(base, encoded, [recipe], folder / "run", checkpoints=1)
    return learned_hand(base, folder)


def learned_hand(base: LatentDiffusion, folder: Path) -> Trainable:
    """What `learn_hand` left in a folder: one arm, to draw with.

    Args:
        base: led by skeletons, the one that it was learned on.
        folder: of `learn_hand`.
    Raises:
        RunError: nothing was learned there.
        ValueError: what was learned is damaged, or belongs to another base.
    """
    run = RunFolder.open(folder / "run")
    if damaged := run.damaged_checkpoints():
        raise ValueError(
            f"{run.path}: the checkpoint of step {damaged[-1]} is not whole; remove {folder} to learn again"
        )
    return load_checkpoints(base, run, run.checkpoints()[-1:])
