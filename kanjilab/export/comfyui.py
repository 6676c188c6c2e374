"""ComfyUI workflows in API form, for a LoRA that kanjilab exported, and a picture of their graph.

A workflow is `{"id": {"class_type": ..., "inputs": {...}}}`; an input is a value, or a link `["id", output slot]`.
In ComfyUI: put the LoRA into `models/loras`, then drop the JSON onto the page, or POST `{"prompt": workflow}` to
`/prompt`.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch, PathPatch
from matplotlib.path import Path as MatplotlibPath

from kanjilab.core.storage import write_json_atomic
from kanjilab.viz.charts import DOTS_PER_INCH, INK, PALETTE, SOFT, font_families
from kanjilab.viz.text import printable

Workflow = dict[str, dict[str, Any]]
# The files that Stability AI gives beside SD 3.5, by the names under which ComfyUI's examples know them.
SD3_ENCODERS = ("clip_l.safetensors", "clip_g.safetensors", "t5xxl_fp16.safetensors")
CHECKPOINTS = {
    "sd14": "sd-v1-4.safetensors",
    "sd15": "v1-5-pruned-emaonly.safetensors",
    "sd35-medium": "sd3.5_medium.safetensors",
    "sd35-large": "sd3.5_large.safetensors",
}
WIDTH, GAP, LINE, BETWEEN = 2.3, 0.5, 0.17, 0.25  # inches: of a box, between columns, of a line, between boxes
TITLE, BELOW = 0.36, 0.1  # inches: of a box's title, under its last line
LONGEST = 36  # letters of a setting
OUTPUTS = {
    "CheckpointLoaderSimple": ("MODEL", "CLIP", "VAE"),
    "TripleCLIPLoader": ("CLIP",),
    "LoraLoader": ("MODEL", "CLIP"),
    "LoraLoaderModelOnly": ("MODEL",),
    "ModelSamplingSD3": ("MODEL",),
    "CLIPTextEncode": ("CONDITIONING",),
    "EmptyLatentImage": ("LATENT",),
    "EmptySD3LatentImage": ("LATENT",),
    "KSampler": ("LATENT",),
    "VAEDecode": ("IMAGE",),
    "SaveImage": (),
}
KINDS = ("MODEL", "CLIP", "VAE", "CONDITIONING", "LATENT", "IMAGE")
COLORS: dict[str, str] = dict(zip(KINDS, PALETTE[1:], strict=True))


@dataclass(frozen=True)
class Drawing:
    """What a workflow draws, and how.

    Args:
        prompt, negative_prompt: texts.
        seed: of the noise, which is ComfyUI's own: the same seed draws another picture here.
        steps: denoising steps.
        guidance: classifier-free guidance scale.
        size_px: height and width, a multiple of 16.
        batch: pictures.
        strength: factor of the LoRA.
    Raises:
        ValueError: a value outside its range.
    """

    prompt: str = "mountains"
    negative_prompt: str = ""
    seed: int = 0
    steps: int = 28
    guidance: float = 5.0
    size_px: int = 128
    batch: int = 4
    strength: float = 1.0

    def __post_init__(self) -> None:
        if self.size_px < 16 or self.size_px % 16:
            raise ValueError(f"size_px must be a positive multiple of 16, got {self.size_px}")
        for name in ("steps", "batch"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be >= 1, got {getattr(self, name)}")


def sd1_workflow(checkpoint: str, lora: str, drawing: Drawing | None = None) -> Workflow:
    """A workflow for SD 1.x: one checkpoint file with its text encoder, and the LoRA on both.

    Args:
        checkpoint: file in `models/checkpoints`.
        lora: file in `models/loras`, of the form `comfyui` or `kohya`.
        drawing: what is drawn.
    """
    drawing = drawing or Drawing()
    strengths = dict(strength_model=drawing.strength, strength_clip=drawing.strength)
    return {
        "1": _node("CheckpointLoaderSimple", ckpt_name=checkpoint),
        "2": _node("LoraLoader", model=["1", 0], clip=["1", 1], lora_name=lora, **strengths),
        "3": _node("CLIPTextEncode", text=drawing.prompt, clip=["2", 1]),
        "4": _node("CLIPTextEncode", text=drawing.negative_prompt, clip=["2", 1]),
        "5": _node("EmptyLatentImage", width=drawing.size_px, height=drawing.size_px, batch_size=drawing.batch),
        "6": _sampler(drawing, model="2", positive="3", negative="4", latent="5", method=("dpmpp_2m", "karras")),
        "7": _node("VAEDecode", samples=["6", 0], vae=["1", 2]),
        "8": _node("SaveImage", images=["7", 0], filename_prefix="kanjilab"),
    }


def sd3_workflow(
    checkpoint: str,
    lora: str,
    drawing: Drawing | None = None,
    *,
    encoders: tuple[str, str, str] = SD3_ENCODERS,
    shift: float = 3.0,
) -> Workflow:
    """A workflow for SD 3.5, whose checkpoint file has no text encoders: these are loaded by themselves.

    Args:
        checkpoint, drawing: as for `sd1_workflow`.
        lora: file in `models/loras`, of the form `comfyui` or `diffusers`.
        encoders: CLIP-L, CLIP-G and T5-XXL, files in `models/text_encoders`.
        shift: of the timesteps towards noise.
    """
    drawing = drawing or Drawing()
    names = {f"clip_name{number}": name for number, name in enumerate(encoders, 1)}
    return {
        "1": _node("CheckpointLoaderSimple", ckpt_name=checkpoint),
        "2": _node("TripleCLIPLoader", **names),
        "3": _node("LoraLoaderModelOnly", model=["1", 0], lora_name=lora, strength_model=drawing.strength),
        "4": _node("ModelSamplingSD3", model=["3", 0], shift=shift),
        "5": _node("CLIPTextEncode", text=drawing.prompt, clip=["2", 0]),
        "6": _node("CLIPTextEncode", text=drawing.negative_prompt, clip=["2", 0]),
        "7": _node("EmptySD3LatentImage", width=drawing.size_px, height=drawing.size_px, batch_size=drawing.batch),
        "8": _sampler(drawing, model="4", positive="5", negative="6", latent="7", method=("euler", "sgm_uniform")),
        "9": _node("VAEDecode", samples=["8", 0], vae=["1", 2]),
        "10": _node("SaveImage", images=["9", 0], filename_prefix="kanjilab"),
    }


def workflow_for(base: str, mmdit: bool, lora: str, drawing: Drawing | None = None) -> Workflow:
    """The workflow for a base.

    Args:
        base: as a run names it; of another than SD's own the checkpoint's name is made from it, to be changed.
        mmdit: whether it is one of SD 3's kind.
        lora: file in `models/loras`.
        drawing: what is drawn.
    """
    checkpoint = CHECKPOINTS.get(base, f"{Path(base).name}.safetensors")
    return (sd3_workflow if mmdit else sd1_workflow)(checkpoint, lora, drawing)


def write_workflow(path: Path | str, workflow: Workflow) -> Path:
    """Write a workflow as JSON; returns the path."""
    return write_json_atomic(path, workflow)


def _node(kind: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": kind, "inputs": inputs}


def _sampler(
    drawing: Drawing, *, model: str, positive: str, negative: str, latent: str, method: tuple[str, str]
) -> dict[str, Any]:
    return _node(
        "KSampler",
        model=[model, 0],
        seed=drawing.seed,
        steps=drawing.steps,
        cfg=drawing.guidance,
        sampler_name=method[0],
        scheduler=method[1],
        positive=[positive, 0],
        negative=[negative, 0],
        latent_image=[latent, 0],
        denoise=1.0,
    )


def links(workflow: Mapping[str, Mapping[str, Any]]) -> Iterator[tuple[str, int, str, str]]:
    """Every link of a workflow: from which node and slot, to which node and input."""
    for name, node in workflow.items():
        for key, value in node["inputs"].items():
            if isinstance(value, list):
                yield value[0], value[1], name, key


@dataclass(frozen=True)
class _Box:
    """A node on paper, in inches: its left upper corner, and what is written into it."""

    left: float
    top: float
    title: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    settings: tuple[str, ...]

    @property
    def ports(self) -> int:
        return max(len(self.inputs), len(self.outputs))

    @property
    def height(self) -> float:
        return TITLE + LINE * (self.ports + len(self.settings)) + BELOW

    def row(self, number: int) -> float:
        """Height of a line's middle: ports first, then settings."""
        return self.top - TITLE - LINE * (number + 0.5)


def draw_workflow(workflow: Workflow) -> Figure:
    """The graph as boxes with their settings, left to right in the order in which they are computed.

    Args:
        workflow: of the nodes that kanjilab writes, in API form.
    Returns:
        A figure.
    """
    boxes, width, height = _boxes(workflow)
    figure = Figure(figsize=(width, height), dpi=DOTS_PER_INCH)
    ax = figure.add_axes((0, 0, 1, 1))
    ax.set(xlim=(0, width), ylim=(0, height))
    ax.axis("off")
    for source, slot, target, key in links(workflow):
        _draw_link(ax, boxes[source], slot, boxes[target], key)
    for box in boxes.values():
        _draw_box(ax, box)
    return figure


def _boxes(workflow: Workflow) -> tuple[dict[str, _Box], float, float]:
    """Where each node is; the width and height of the sheet."""
    columns = _columns(workflow)
    drafts = {
        name: _Box(
            left=GAP + (WIDTH + GAP) * number,
            top=0.0,
            title=workflow[name]["class_type"],
            inputs=tuple(key for _, _, target, key in links(workflow) if target == name),
            outputs=OUTPUTS[workflow[name]["class_type"]],
            settings=_settings_of(workflow[name]),
        )
        for number, column in enumerate(columns)
        for name in column
    }
    heights = [sum(drafts[name].height + BETWEEN for name in column) for column in columns]
    room = max(heights) + 2 * BETWEEN  # the last for links that pass under the boxes
    boxes = {}
    for column, height in zip(columns, heights, strict=True):
        top = room - BETWEEN - (max(heights) - height) / 2
        for name in column:
            boxes[name] = replace(drafts[name], top=top)
            top -= drafts[name].height + BETWEEN
    return boxes, GAP + (WIDTH + GAP) * len(columns), room


def _columns(workflow: Workflow) -> list[list[str]]:
    """Each node one column to the left of the first one that waits for it."""
    depth: dict[str, int] = {}

    def of(name: str) -> int:
        if name not in depth:
            after = [of(target) for source, _, target, _ in links(workflow) if source == name]
            depth[name] = 1 + max(after, default=-1)
        return depth[name]

    last = max(of(name) for name in workflow)
    return [[name for name in workflow if of(name) == last - column] for column in range(last + 1)]


def _settings_of(node: Mapping[str, Any]) -> tuple[str, ...]:
    """`name: value` of every input that is no link, cut to the box."""
    lines = []
    for key, value in node["inputs"].items():
        if not isinstance(value, list):
            line = f"{key}: {printable(str(value)) or '(empty)'}"
            lines.append(line if len(line) <= LONGEST else line[: LONGEST - 1] + "…")
    return tuple(lines)


def _draw_box(ax: Axes, box: _Box) -> None:
    style: dict[str, Any] = dict(boxstyle="round,pad=0,rounding_size=0.06", facecolor="white", edgecolor=SOFT)
    ax.add_patch(FancyBboxPatch((box.left, box.top - box.height), WIDTH, box.height, **style))
    text: dict[str, Any] = dict(va="center", family=list(font_families()), parse_math=False)
    ax.text(box.left + 0.1, box.top - 0.19, box.title, fontsize=9, color=INK, **text)
    for number, key in enumerate(box.inputs):
        ax.text(box.left + 0.1, box.row(number), key, fontsize=7, color=INK, **text)
    for number, kind in enumerate(box.outputs):
        right = box.left + WIDTH - 0.1
        ax.text(right, box.row(number), kind, fontsize=7, color=COLORS[kind], ha="right", **text)
    for number, line in enumerate(box.settings):
        ax.text(box.left + 0.1, box.row(box.ports + number), line, fontsize=7, color=SOFT, **text)


def _draw_link(ax: Axes, source: _Box, slot: int, target: _Box, key: str) -> None:
    """From the output's line to the input's; past other columns it goes under all boxes."""
    color = COLORS[source.outputs[slot]]
    start = (source.left + WIDTH, source.row(slot))
    end = (target.left, target.row(target.inputs.index(key)))
    if target.left - start[0] < 1.5 * GAP:
        middle = (start[0] + end[0]) / 2
        corners = [start, (middle, start[1]), (middle, end[1]), end]
        path = MatplotlibPath(corners, [MatplotlibPath.MOVETO] + [MatplotlibPath.CURVE4] * 3)
    else:
        out, back, under = start[0] + 0.35 * GAP, end[0] - 0.35 * GAP, 0.6 * BETWEEN
        path = MatplotlibPath([start, (out, start[1]), (out, under), (back, under), (back, end[1]), end])
    ax.add_patch(PathPatch(path, facecolor="none", edgecolor=color, linewidth=1.3, zorder=0))
    ax.plot(*end, "o", color=color, markersize=3.5, zorder=3)
