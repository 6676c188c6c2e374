"""A judge's reading as a figure: its parts drawn over the glyph, and the nearest real characters beside it."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.patches import Rectangle
from numpy.typing import NDArray

from kanjilab.data.rendering import default_font, draw_font, draws
from kanjilab.evaluation.judges.part_judge import Judge

NEIGHBOURS_SHOWN = 5
PAPER = {"facecolor": "white", "edgecolor": "none", "alpha": 0.85, "pad": 0.5}  # behind words that lie on strokes
LAYOUT_WORDS = {  # no common font has the signs
    "⿰": "left and right",
    "⿱": "above and below",
    "⿸": "hung from the upper left",
    "⿺": "carried from the lower left",
    "⿴": "enclosed",
    "⿻": "one piece",
}


def explain(judge: Judge, image: NDArray[np.uint8], prompt: str = "") -> Figure:
    """Draw what a judge sees over a glyph, and the nearest real characters beside it.

    Args:
        judge: whose reading.
        image: (H, W) uint8, 0 ink to 255 paper.
        prompt: what it was made from, for the title.
    Returns:
        A figure that belongs to no pyplot window.
    """
    reading = judge.read(image[None]).iloc[0]
    nearest, distances = judge.nearest(image[None], NEIGHBOURS_SHOWN)
    figure = Figure(figsize=(3.2 + 1.1 * NEIGHBOURS_SHOWN, 3.6), layout="constrained")
    axes = figure.subplots(1, 1 + NEIGHBOURS_SHOWN, width_ratios=[3.2, *[1.0] * NEIGHBOURS_SHOWN])
    _draw_reading(axes[0], image, reading)
    font = FontProperties(fname=str(default_font()))
    for axis, index, distance in zip(axes[1:], nearest[0], distances[0], strict=True):
        axis.imshow(draw_font(judge.characters[index], default_font()), cmap="gray", vmin=0, vmax=255)
        near = distance <= judge.novel_distance
        axis.set_title(
            f"U+{ord(judge.characters[index]):04X}\n{distance:.2f}", fontsize=8, color="C3" if near else "0.2"
        )
    for axis in axes:
        axis.set(xticks=[], yticks=[])
    verdict = f"already exists as {reading.codepoint} {reading.nearest}" if reading.exists else "not in the list"
    legal = "well-formed" if reading.legal else "not well-formed"
    title = prompt.replace("$", r"\$") + "\n" if prompt else ""  # no mathematics in prompts
    layout = LAYOUT_WORDS.get(reading.layout, "no clear layout")
    title += f"{legal} ({reading.legal_probability:.2f}), {layout}, {verdict}, judge {judge.name}"
    figure.suptitle(title, fontproperties=font, fontsize=10)
    return figure


def _draw_reading(axis: Any, image: NDArray[np.uint8], reading: Any) -> None:
    font = FontProperties(fname=str(default_font()))
    height, width = image.shape
    axis.imshow(image, cmap="gray", vmin=0, vmax=255)
    for index, (part, score, box) in enumerate(
        zip(reading.parts, reading.part_scores, reading.part_boxes, strict=True)
    ):
        left, top, right, bottom = np.array(box) * [width, height, width, height] - 0.5
        colour = f"C{index % 10}"
        axis.add_patch(Rectangle((left, top), right - left, bottom - top, fill=False, edgecolor=colour, linewidth=2))
        name = part if draws(part, default_font()) else f"U+{ord(part):04X}"
        words = {"fontproperties": font, "fontsize": 10, "color": colour, "bbox": PAPER}
        axis.text(left, top, f"{name} {score:.2f}", va="bottom", **words)
