"""The release of a finished training, arm by arm: a strip, the LoRA, a ComfyUI workflow and a model card."""

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from kanjilab.core.outside_files import read_file
from kanjilab.core.run_folder import RunFolder
from kanjilab.export.comfyui import Drawing, workflow_for, write_workflow
from kanjilab.export.conversion import LORA_FORMS, require_own_card, to_pipeline, write_card
from kanjilab.export.onnx_folder import run_to_onnx
from kanjilab.models.conditioning import check_texts
from kanjilab.models.loading import LatentDiffusion
from kanjilab.models.sampling import Sampling, fitting
from kanjilab.training.history import history_strip, sample_history
from kanjilab.viz.strip import Strip, save_strip

PNG_BYTES_MAX = 64 * 1024 * 1024
OTHER_NOISES = (1, 2, 3)  # seeds in which the last checkpoint is drawn besides
DRAWN_TOGETHER = 4  # pictures between two reports: a large base takes minutes for them on a processor
FORMS = (*LORA_FORMS, "pipeline", "onnx")


@dataclass(frozen=True)
class Handover:
    """How one checkpoint is written for others.

    Args:
        form: one of `FORMS`; `comfyui` has a workflow beside it.
        card: whether a model card is written.
        strip: a PNG for the card.
        prompt: of the workflow.
        sampling: of the workflow: steps, guidance, negative prompt, prefix.
        weights: how ONNX stores them, a key of `onnx_folder.ONNX_WEIGHTS`.
    Raises:
        ValueError: an unknown form, a card for ONNX, which has its own, a strip that is no PNG, or a prompt that no
            text encoder reads.
        FileNotFoundError: a strip that is not there.
    """

    form: str = "diffusers"
    card: bool = False
    strip: Path | None = None
    prompt: str = "mountains"
    sampling: Sampling = Sampling("ddim", steps=28, guidance=5.0)
    weights: str = "fp16"

    def __post_init__(self) -> None:
        if self.form not in FORMS:
            raise ValueError(f"format must be one of {', '.join(FORMS)}, got {self.form!r}")
        check_texts(self.prompt)
        if self.strip is not None:
            _require_png(self.strip)
        if self.form == "onnx" and self.card:
            raise ValueError("the format onnx has a card of its own, without a strip, and is not pushed")

    def drawing(self, size_px: int) -> Drawing:
        """What the workflow draws, of this height and width."""
        sampling = self.sampling
        text = sampling.prefix + self.prompt
        shape = {"steps": sampling.steps, "guidance": sampling.guidance, "size_px": size_px}
        return Drawing(text, sampling.negative_prompt, **shape)


def _require_png(path: Path) -> None:
    data = read_file(path, "a PNG for the card", PNG_BYTES_MAX)
    try:
        with Image.open(io.BytesIO(data), formats=["PNG"]) as image:
            image.verify()
    except Exception as error:  # decoders raise whatever their parsers trip over
        raise ValueError(f"{path}: expected a PNG for the card, got another or a damaged file ({error})") from error


def hand_over(run: RunFolder, step: int, arm: int, path: Path, handover: Handover) -> list[Path]:
    """Writes one arm's checkpoint for others.

    Args:
        run, step, arm: as for `kanjilab.export.conversion.to_diffusers`.
        path: a folder; of the forms `pipeline` and `onnx` a new one.
    Returns:
        What was written, the weights first.
    Raises:
        ValueError, RunError, FileExistsError: as `kanjilab.export.conversion`.
    """
    if handover.card:
        require_own_card(path)
    if handover.form == "onnx":
        return [run_to_onnx(run, step, arm, path, handover.weights)]
    write = to_pipeline if handover.form == "pipeline" else LORA_FORMS[handover.form]
    written = [write(run, step, arm, path)]
    if handover.form == "comfyui":
        mmdit = run.settings.get("family") == "mmdit"
        workflow = workflow_for(run.settings["base"], mmdit, written[0].name, handover.drawing(run.size_px))
        written.append(write_workflow(path / "workflow.json", workflow))
    if handover.card:
        name = "" if handover.form == "pipeline" else written[0].name
        written.append(write_card(path, run, step, arm, file=name, strip=handover.strip))
    return written


def release_arm(
    base: LatentDiffusion,
    run: RunFolder,
    arm: int,
    prompts: Sequence[str],
    sampling: Sampling,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[Path]:
    """Draws an arm's strip and hands its last checkpoint over, into `release/arm_<arm>/` of the run.

    Args:
        base: of the run.
        arm: which arm, from 0.
        prompts: rows of the strip; the first goes into the workflow.
        sampling: of strip and workflow; where its sampler is not the base's, the base's own.
        on_progress: called with (done, total) pictures of the strip that are drawn now.
    Returns:
        What was written, the strip first.
    Raises:
        ValueError: the last checkpoint is not finite.
    """
    sampling = fitting(sampling, base)
    folder = run.path / "release" / f"arm_{arm}"
    folder.mkdir(parents=True, exist_ok=True)
    strip = save_strip(_drawn_strip(base, run, arm, prompts, sampling, on_progress), folder / "strip.png")
    if run.arm(arm).targets == "full":
        return [strip]  # a whole pipeline is gigabytes: only when asked for
    handover = Handover("comfyui", card=True, strip=strip, prompt=prompts[0], sampling=sampling)
    return [strip, *hand_over(run, run.checkpoints()[-1], arm, folder, handover)]


def pictures_of(checkpoints: int, prompts: Sequence[str]) -> int:
    """How many pictures an arm's strip has.

    Args:
        checkpoints: after the one before training.
        prompts: rows of the strip.
    """
    return len(prompts) * (1 + checkpoints + len(OTHER_NOISES))


def _drawn_strip(
    base: LatentDiffusion,
    run: RunFolder,
    arm: int,
    prompts: Sequence[str],
    sampling: Sampling,
    on_progress: Callable[[int, int], None],
) -> Strip:
    """One noise at every checkpoint, and further ones at the last alone."""
    steps = run.checkpoints()
    total = pictures_of(len(steps) - 1, prompts)

    def draw(seeds: Sequence[int], wanted: Sequence[int], drawn: int) -> tuple[np.ndarray, dict[str, Any]]:
        return sample_history(
            base,
            run,
            prompts,
            seeds,
            sampling,
            arm=arm,
            steps=wanted,
            batch=DRAWN_TOGETHER,
            on_progress=lambda done, _: on_progress(drawn + done, total),
        )

    # The noises of the last checkpoint are drawn together: one forward pass a step for all of them.
    earlier, facts = draw([0], steps[:-1], 0)
    last, facts_of_last = draw([0, *OTHER_NOISES], steps[-1:], len(prompts) * (len(steps) - 1))
    images = np.concatenate([earlier, last[:, :, :1]])
    seen = [*facts["images_seen"], *facts_of_last["images_seen"]]
    facts |= {"steps": steps, "images_seen": seen, "seeds": [0, *OTHER_NOISES]}
    return history_strip(images, facts, run.name, others=last[-1, :, 1:])
