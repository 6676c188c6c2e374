"""What a run learned, in files that other programs load."""

import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save

from kanjilab.runs import RunFolder, write_bytes_atomic
from kanjilab.settings import Arm

DIFFUSERS_FILE = "pytorch_lora_weights.safetensors"
PEFT_PREFIX = "base_model.model."
LICENCE = (
    "CC BY-SA 4.0, for what was trained on kanjilab's own datasets (made from KANJIDIC2, EDRDG); "
    "otherwise as the data and the base model permit"
)


def to_diffusers(run: RunFolder, step: int, arm: int, path: Path | str) -> Path:
    """Writes one arm's adapter as a file that diffusers' `load_lora_weights` reads.

    The scale (alpha / r) is folded into B, since a file without alpha is read with scale 1. The
    header says what the adapter was trained on and how far.

    Args:
        run: a run folder.
        step: one of `run.checkpoints()`.
        arm: which arm of the run, from 0.
        path: the folder to write `pytorch_lora_weights.safetensors` into; made if it is not there.
    Returns:
        The file.
    Raises:
        ValueError: the run has no such arm, the arm trained the whole denoiser, or its weights are
            not finite.
        RunError: there is no complete checkpoint of that step.
    """
    settings = _arm_settings(run, arm)
    if settings.targets == "unet":
        raise ValueError(f"arm {arm} of {run.path} trained the whole denoiser: it has no LoRA to write")
    stored = load_file(run.checkpoint_path(step) / f"arm_{arm}" / "adapter_model.safetensors")
    tensors = {}
    for name, value in stored.items():
        if not torch.isfinite(value).all():
            raise ValueError(f"arm {arm} of {run.path} at step {step}: {name} is not finite; take an earlier step")
        scaled = value * settings.scale if name.endswith(".lora_B.weight") else value
        tensors["unet." + name.removeprefix(PEFT_PREFIX)] = scaled
    folder = Path(path)
    folder.mkdir(parents=True, exist_ok=True)
    return write_bytes_atomic(folder / DIFFUSERS_FILE, save(tensors, _header(run, step, arm, settings)))


def _arm_settings(run: RunFolder, arm: int) -> Arm:
    arms = run.settings["arms"]
    if not 0 <= arm < len(arms):
        raise ValueError(f"{run.path} has arms 0 to {len(arms) - 1}, got {arm}")
    return Arm.from_json(arms[arm])


def _header(run: RunFolder, step: int, arm: int, settings: Arm) -> dict[str, str]:
    """Text by text, as safetensors wants it."""
    facts, state = run.settings, json.loads((run.checkpoint_path(step) / "state.json").read_text())
    return {
        "format": "pt",
        "base": facts["base"],
        "base_identity": facts["base_identity"],
        "data": facts["data"],
        "targets": settings.targets,
        "rank": str(settings.rank),
        "scale": f"{settings.scale:g}, folded into lora_B",
        "step": str(step),
        "images_seen": str(state["arms"][arm]["images_seen"]),
        "settings": json.dumps(settings.to_json()),
        "kanjilab": facts["versions"]["kanjilab"],
        "licence": LICENCE,
    }
