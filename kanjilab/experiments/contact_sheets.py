"""Sheets of coined kanji, unselected ones beside chosen ones, and the writer's strip over its training."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kanjilab.data.prompts import PUBLISHED
from kanjilab.evaluation.scoring import glyphs_of
from kanjilab.experiments.coining import CHOOSER, NOISES, REPORTER, Coinage, coin
from kanjilab.models.loading import load_base
from kanjilab.models.sampling import sample
from kanjilab.training.presets import DEMO_SAMPLING
from kanjilab.viz.strip import Strip

PHRASES = ("queen of dragons", *PUBLISHED)
COLUMNS = 4  # unselected glyphs of a phrase, and as many chosen ones
STRIP_PROMPTS = (
    "left: water, right: blue",  # 清, which it is taught
    "left: person, right: tree",  # 休
    "left: fish, right: see",  # no kanji
    "top: bamboo, bottom: horse",  # 篤
    "left: fire, right: bird",  # no kanji
    "top: grass, bottom: ear",  # 茸
    "river",
    "to swim",
)


def coined_strip(
    phrases: Sequence[str] = PHRASES, noises: int = NOISES, columns: int = COLUMNS, **options: Any
) -> tuple[Strip, list[Coinage]]:
    """Of each phrase the first glyph of its first readings, as they came, then the best of all.

    Args:
        phrases: one a row.
        noises: candidates of each reading.
        columns: glyphs of each half.
        options: of `coin`.
    Returns:
        The strip, blank where a phrase has fewer glyphs, and what was coined for each phrase.
    """
    rows, coined = [], []
    for phrase in phrases:
        unselected: list[NDArray[np.uint8]] = []
        found = coin(
            phrase,
            noises=noises,
            keep=columns,
            on_drawn=lambda reading, images, kept=unselected: kept.append(images[0]),
            **options,
        )
        rows.append([*_padded(unselected, columns), *_padded([one.image for one in found.glyphs], columns)])
        coined.append(found)
    facts = _facts(coined, noises)
    halves = (("unselected", columns), (f"the best by judge {CHOOSER}", columns))
    labels = tuple(str(column + 1) for _ in halves for column in range(columns))
    title = "Coined kanji: one drawing of each reading, unselected, beside the best of all"
    return Strip(np.array(rows), tuple(phrases), labels, title, facts, column_groups=halves), coined


def _padded(images: Sequence[NDArray[np.uint8]], columns: int) -> list[NDArray[np.uint8]]:
    blank = np.full((128, 128), 255, np.uint8)
    return [*images[:columns], *[blank] * (columns - len(images))]


def _facts(coined: Sequence[Coinage], noises: int) -> dict[str, Any]:
    chosen = [one.certificate for found in coined for one in found.glyphs]
    passing = sum(one.report.passes for one in chosen)
    return {
        "writer": coined[0].glyphs[0].certificate.identity,
        "noises a reading": noises,
        "candidates": sum(found.candidates for found in coined),
        f"chosen that pass all five criteria by judge {REPORTER}": f"{passing} of {len(chosen)}",
    }


def training_strip(history: Path, prompts: Sequence[str] = STRIP_PROMPTS, seed: int = 0) -> Strip:
    """What the writer drew along its training: prompts in rows, images seen in columns, the same noise.

    Args:
        history: of `training.writer.build_writer`: a denoiser in each folder, named by the images seen.
        prompts: one a row.
        seed: of the noise.
    """
    from diffusers import UNet2DConditionModel

    base = load_base("pocket")
    steps = sorted(path for path in history.iterdir() if path.name.isdigit())
    columns = [glyphs_of(sample(base, prompts, [seed], DEMO_SAMPLING)[0])]
    for path in steps:
        base.denoiser.load_state_dict(UNet2DConditionModel.from_pretrained(path).float().state_dict())
        columns.append(glyphs_of(sample(base, prompts, [seed], DEMO_SAMPLING)[0]))
    labels = ("pocket", *(f"{int(path.name):,}" for path in steps))
    title = "The writer along its training: images seen, the same noise in each row"
    return Strip(np.stack(columns, axis=1), tuple(prompts), labels, title, {"seed": seed})
