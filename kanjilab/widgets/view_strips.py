"""A view of the comparator as a strip to draw, without widgets."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from kanjilab.core.images import grayscale
from kanjilab.viz.strip import Strip, seen_label
from kanjilab.widgets.tracks import Track, View, some_chosen, timeline


def view_strip(tracks: Sequence[Track], view: View, title: str = "") -> Strip:
    """A view as a strip to draw.

    Args:
        tracks: to choose from.
        title: above it.
    Returns:
        For columns "checkpoints", checkpoints in columns and a row for each prompt, run and seed; for columns "runs",
        prompts in rows and runs and seeds in columns, at the slider's checkpoint. Images that are smaller than others
        are enlarged to their size, each pixel to a block.
    Raises:
        ValueError: nothing is chosen.
    """
    shown = _of_one_size(some_chosen(tracks, view))
    facts = {"runs": {track.label: track.facts.get("run", "") for track in shown}}
    facts |= {"sampling": {track.label: track.facts.get("sampling", {}) for track in shown}}
    if view.columns == "checkpoints":
        return _checkpoint_strip(shown, view, title, facts)
    return _run_strip(shown, view, title, facts)


def _of_one_size(tracks: Sequence[Track]) -> list[Track]:
    """The tracks, their images as large as the largest, by nearest neighbour."""
    sizes = [track.images.shape[3:5] for track in tracks]
    largest = max(height for height, _ in sizes), max(width for _, width in sizes)
    result = []
    for track, size in zip(tracks, sizes, strict=True):
        rows, columns = (np.arange(most) * own // most for own, most in zip(size, largest, strict=True))
        same = size == largest
        result.append(track if same else replace(track, images=track.images[:, :, :, rows[:, None], columns]))
    return result


def _checkpoint_strip(shown: Sequence[Track], view: View, title: str, facts: dict[str, Any]) -> Strip:
    steps = timeline(shown)
    several = len(shown) * len(view.seeds) > 1
    rows, labels, groups = [], [], []
    for prompt in view.prompts:
        before = len(rows)
        for track, seed in itertools.product(shown, view.seeds):
            glyphs = track.cell(prompt, seed)
            if glyphs is not None:
                own = [track.images_seen.index(seen) if seen in track.images_seen else -1 for seen in steps]
                rows.append(_row(glyphs, own))
                labels.append(_row_label(track, seed, shown, view) if several else prompt)
        groups += [(prompt, len(rows) - before)] if len(rows) > before else []
    facts |= {"seeds": list(view.seeds)}
    columns = tuple(map(seen_label, steps))
    heading = (("images seen", len(steps)),)
    return Strip(_same_kind(rows), tuple(labels), columns, title, facts, tuple(groups) if several else (), heading)


def _row_label(track: Track, seed: int, shown: Sequence[Track], view: View) -> str:
    return ", ".join([track.label] * (len(shown) > 1) + [f"seed {seed}"] * (len(view.seeds) > 1))


def _run_strip(shown: Sequence[Track], view: View, title: str, facts: dict[str, Any]) -> Strip:
    rows, blank = [], np.full_like(shown[0].images[0, 0, 0], 255)
    for prompt in view.prompts:
        cells = []
        for track, seed in itertools.product(shown, view.seeds):
            glyphs = track.cell(prompt, seed)
            cells.append(blank if glyphs is None else _row(glyphs, [track.checkpoint_at(view.images_seen)])[0])
        rows.append(_same_kind(cells))
    facts |= {"images seen": view.images_seen}
    columns = tuple(f"seed {seed}" for _ in shown for seed in view.seeds)
    groups = tuple((track.label, len(view.seeds)) for track in shown)
    return Strip(_same_kind(rows), view.prompts, columns, title, facts, (), groups)


def _row(glyphs: np.ndarray, checkpoints: Sequence[int]) -> np.ndarray:
    """(N, H, W[, 3]): the glyph at each of the checkpoints, blank where that is -1."""
    blank = np.full_like(glyphs[0], 255)
    return np.stack([glyphs[checkpoint] if checkpoint >= 0 else blank for checkpoint in checkpoints])


def _same_kind(arrays: Sequence[np.ndarray]) -> np.ndarray:
    """One array of all; all become gray where some are gray and others coloured."""
    if len({array.ndim for array in arrays}) > 1:
        fewest = min(array.ndim for array in arrays)
        arrays = [grayscale(array) if array.ndim > fewest else array for array in arrays]
    return np.stack(arrays)
