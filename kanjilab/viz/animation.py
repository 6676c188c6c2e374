"""One prompt's glyph over the checkpoints of a training, as an endless GIF or WebP."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from kanjilab.viz.picture_files import PAGE, checked_path, few_grays, image_facts, write_picture
from kanjilab.viz.strip import INK, SOFT, draw_cell
from kanjilab.viz.text import fit_text, typeface


def save_animation(
    frames: np.ndarray,
    labels: Sequence[str],
    path: Path | str,
    seconds_per_frame: float = 0.5,
    *,
    title: str = "",
    facts: Mapping[str, Any] | None = None,
    size_px: int = 256,
    last_frame_seconds: float = 2.5,
) -> Path:
    """Write one prompt's glyph over training as an endless animation, and a JSON beside it.

    Args:
        frames: (F, H, W) uint8, 0 = black.
        labels: one a frame, written under the glyph, as "before", "1,600 images".
        path: ends in .gif or .webp; its folder must exist.
        seconds_per_frame: how long each frame is shown.
        title: written above, usually the prompt.
        facts: goes into the JSON.
        size_px: edge of the glyph.
        last_frame_seconds: how long the last one is shown.
    Returns:
        the path.
    Raises:
        ValueError: an argument is not as described, or the file would reach 500 kB.
    """
    path = checked_path(path, (".gif", ".webp"))
    if frames.ndim != 3 or frames.dtype != np.uint8 or 0 in frames.shape:
        raise ValueError(f"frames must be (F, H, W) uint8, got {frames.shape} {frames.dtype}")
    if len(labels) != len(frames):
        raise ValueError(f"expected {len(frames)} labels, one per frame, got {len(labels)}")
    if seconds_per_frame < 0.02 or last_frame_seconds < 0.02:
        raise ValueError(f"a frame must be shown at least 0.02 s, got {seconds_per_frame} and {last_frame_seconds}")
    done = np.linspace(0, 1, len(frames)) if len(frames) > 1 else [1.0]
    pictures = [_draw_frame(*parts, title, size_px) for parts in zip(frames, labels, done, strict=True)]
    durations = [round(1000 * seconds_per_frame)] * (len(frames) - 1) + [round(1000 * last_frame_seconds)]
    data = _encode_animation(pictures, durations, path.suffix)
    description = {"kind": "animation", "title": title, "labels": list(labels), "durations_ms": durations}
    return write_picture(path, data, description | {"facts": dict(facts or {}), "images": image_facts(frames)})


def _draw_frame(frame: np.ndarray, label: str, done: float, title: str, size_px: int) -> Image.Image:
    margin, line = round(size_px * 0.07), round(size_px * 0.13)
    top = margin + (line if title else 0)
    image = Image.new("L", (size_px + 2 * margin, top + size_px + line + margin), PAGE)
    canvas = ImageDraw.Draw(image)
    image.paste(draw_cell(frame, size_px), (margin, top))
    middle = margin + size_px / 2
    if title:
        (text,), face = fit_text(title, typeface(round(size_px * 0.075), bold=True), size_px, max_lines=1)
        face.draw(canvas, middle, margin + round(line * 0.45), text, INK, "m")
    rule = top + size_px + max(2, round(size_px * 0.012))
    thick = max(2, round(size_px * 0.012))
    canvas.line((margin, rule, margin + size_px - 1, rule), 221, thick)
    canvas.line((margin, rule, margin + round(done * (size_px - 1)), rule), SOFT, thick)
    (text,), face = fit_text(label, typeface(round(size_px * 0.068)), size_px, max_lines=1)
    face.draw(canvas, middle, top + size_px + round(line * 0.9), text, SOFT, "m")
    return image


def _encode_animation(pictures: Sequence[Image.Image], durations: Sequence[int], ending: str) -> bytes:
    buffer = io.BytesIO()
    options: dict[str, Any] = {"save_all": True, "duration": list(durations), "loop": 0}
    if ending == ".gif":
        reduced = [few_grays(picture, 16) for picture in pictures]
        reduced[0].save(buffer, "GIF", append_images=reduced[1:], optimize=True, **options)
    else:
        pictures = [picture.convert("RGB") for picture in pictures]
        pictures[0].save(buffer, "WEBP", append_images=pictures[1:], quality=80, method=4, **options)
    return buffer.getvalue()
