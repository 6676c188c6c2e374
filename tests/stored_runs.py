"""Runs with stored samples and no training: what panels that only look need."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from kanjilab.core.config import Arm
from kanjilab.core.run_folder import RunFolder


def distinct_glyphs(shape: tuple[int, ...], seed: int, size_px: int = 64) -> np.ndarray:
    """(*shape, size_px, size_px) uint8, no two alike: coarse blocks of black on white."""
    blocks = np.random.default_rng(seed).integers(0, 2, (*shape, 8, 8), np.uint8) * 255
    return blocks.repeat(size_px // 8, -2).repeat(size_px // 8, -1)


def store_run(
    path: Path,
    *,
    images_seen: Sequence[int] = (0, 100, 200),
    prompts: Sequence[str] = ("water", "tree"),
    seeds: Sequence[int] = (0, 1),
    guidance: float = 3.0,
    seed: int = 0,
    size_px: int = 64,
) -> np.ndarray:
    """Store a sampled history in a run folder, new or there already.

    Returns:
        (C, P, S, H, W) uint8, what was stored.
    """
    new = not (path / "settings.json").exists()
    run = (
        RunFolder.create(path, {"base": "tiny", "hash": path.name, "arms": [Arm().to_json()]})
        if new
        else RunFolder.open(path)
    )
    images = distinct_glyphs((len(images_seen), len(prompts), len(seeds)), seed, size_px)
    facts = {"run": path.name, "arm": 0, "steps": list(images_seen), "images_seen": list(images_seen)}
    facts |= {"prompts": list(prompts), "seeds": list(seeds), "sampling": {"sampler": "ddim", "guidance": guidance}}
    run.write_samples(f"history_{seed:04d}", images, facts)
    return images
