"""Checkpoints of a run, loaded back onto its base."""

from collections.abc import Sequence

from kanjilab.core.run_folder import RunFolder
from kanjilab.core.tensor_files import read_tensors
from kanjilab.models.diffusion import LatentDiffusion
from kanjilab.models.trainable import Trainable


def load_checkpoints(base: LatentDiffusion, run: RunFolder, steps: Sequence[int], arm: int = 0) -> Trainable:
    """Checkpoints of one arm as the arms of one trainable, ready for `sample`.

    A fully fine-tuned denoiser is as large as the base, so only one step at a time is accepted.

    Args:
        steps: some of `run.checkpoints()`.
        arm: which arm of the run.
    Raises:
        ValueError: the run was trained on another base, or has no such arm.
        RunError: an adapter is not what was written.
    """
    setting = run.arm(arm)
    if run.settings["base_identity"] != base.identity:
        raise ValueError(f"{run.path} was trained on base {run.settings['base']!r}, which differs from {base.name!r}")
    trainable = Trainable(base.denoiser, [setting] * len(steps), base.text_encoder, base.condition_encoder)
    trainable.size_px = run.size_px
    for k, step in enumerate(steps):
        trainable.load_state(k, read_tensors(run.sound_file(step, f"arm_{arm}/adapter_model.safetensors")))
    return trainable


def checkpoint_images_seen(run: RunFolder, step: int, arm: int = 0) -> int:
    """Images that an arm had seen at a checkpoint."""
    return run.read_state(step)["arms"][arm]["images_seen"]
