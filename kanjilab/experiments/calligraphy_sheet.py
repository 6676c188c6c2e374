"""Pictures of what calligraphy writes: every style, what it learned and when, and hands from five samples."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from kanjilab.core.run_folder import RunFolder
from kanjilab.data.calligraphy import FEW_SHOT_STYLES, STYLES, Style, draw_style, jis_level_1, open_face
from kanjilab.data.components import is_held_out
from kanjilab.data.framing import frame_glyphs, frame_scale
from kanjilab.data.skeleton import skeletons_of
from kanjilab.experiments.writing import (
    TRACING,
    WRITING,
    index_of,
    known_index,
    symbols_of,
    typed_skeleton,
    write,
    writing_prompt,
)
from kanjilab.models.diffusion import LatentDiffusion
from kanjilab.models.sampling import Sampling
from kanjilab.training.checkpoints import load_checkpoints
from kanjilab.training.few_shot import learned_hand
from kanjilab.viz.strip import Strip

UNSEEN = 8  # characters
FURTHER = {"kana": "あのミ", "kanji that do not exist": "⿰言鳥⿱雨鳥⿰火魚"}


def unseen_characters(count: int) -> str:
    """Held-out characters, evenly spread over JIS level 1."""
    held = [character for character in jis_level_1() if is_held_out(character)]
    return "".join(held[row] for row in np.linspace(0, len(held) - 1, count).astype(int))


def calligraphy_sheet(
    base: LatentDiffusion, captions: Sequence[str] = (), seed: int = 0, sampling: Sampling = WRITING
) -> Strip:
    """Unselected drawings, each led by the skeleton of what is typed.

    Args:
        base: led by skeletons.
        captions: of the rows; those of the trained styles by default.
        seed: of the noise, the same for all.
        sampling: how.
    """
    captions = tuple(captions) or tuple(style.caption for style in STYLES)
    texts = {"never shown": unseen_characters(UNSEEN)} | FURTHER
    groups = {name: symbols_of(text) for name, text in texts.items()}
    symbols = [symbol for group in groups.values() for symbol in group]
    led = [{"index": known_index(base, symbol), "typed": typed_skeleton(symbol)} for symbol in symbols]
    prompts = [[writing_prompt(base, caption, **one) for one in led] for caption in captions]
    rows = [write(base, row, seed, sampling) for row in prompts]
    facts = {"base": base.name, "identity": base.identity, "seed": seed, "sampling": sampling.to_json()}
    title = "Each style, led by the skeletons of another font; unselected"
    sizes = tuple((name, len(group)) for name, group in groups.items())
    labels = tuple(" + ".join(symbol[-2:]) if len(symbol) > 1 else symbol for symbol in symbols)  # fonts lack ⿰
    return Strip(np.stack(rows), captions, labels, title, facts, column_groups=sizes)


def learning_strip(base: LatentDiffusion, run: RunFolder, seed: int = 0, sampling: Sampling = WRITING) -> Strip:
    """What the training of `build_calligraphy` wrote at each of its checkpoints.

    Args:
        base: of `base_to_train`.
        run: of the training.
        seed: of the noise, the same for all.
        sampling: how.
    """
    styles, unseen, known = STYLES[::2], unseen_characters(1), "永"
    led = [writing_prompt(base, style.caption, typed=typed_skeleton(unseen)) for style in styles]
    by_index = [writing_prompt(base, style.caption, index=index_of(base, known)) for style in styles]
    steps = run.checkpoints()
    drawn = [write(base, led + by_index, seed, sampling, load_checkpoints(base, run, [step])) for step in steps]
    images = run.arm(0).batch * np.array(steps)
    facts = {"base": base.name, "seed": seed, "steps": steps, "sampling": sampling.to_json()}
    return Strip(
        np.stack(drawn, axis=1),
        tuple(style.caption_of_kind for style in styles) * 2,
        tuple(f"{count:,}" for count in images),
        "Images seen, from left to right",
        facts,
        row_groups=(
            (f"{unseen}, never shown, by a typed skeleton", len(styles)),
            (f"{known} by its index", len(styles)),
        ),
    )


def hands_sheet(
    base: LatentDiffusion,
    font_folders: Sequence[Path],
    learned: Path,
    draw: int = 0,
    styles: Sequence[Style] = FEW_SHOT_STYLES,
) -> Strip:
    """Hands that were never trained on: true, asked for by name alone, and learned from five samples.

    Args:
        base: led by skeletons.
        font_folders: with the fonts of the hands, see `kanjilab.data.calligraphy.open_face`.
        learned: folder of `score_calligraphy`, which holds what was learned.
        draw: which five samples.
        styles: the hands.
    """
    held = [character for character in jis_level_1() if is_held_out(character)]
    faces = [draw_style(open_face(style, font_folders), held) for style in styles]
    common = [character for character in held if all(character in face for face in faces)]
    characters = common[:: len(common) // UNSEEN][:UNSEEN]
    rows, labels = [], []
    for style, face in zip(styles, faces, strict=True):
        true = frame_glyphs([face[character] for character in characters], frame_scale(list(face.values())))
        prompts = [writing_prompt(base, style.caption, lines) for lines in skeletons_of(true)]
        hand = learned_hand(base, learned / f"{style.name}-{draw}")
        rows += [true, write(base, prompts), write(base, prompts, trainable=hand)]
        labels += [style.hand, "by its name alone", "after five samples"]
    groups = tuple((style.caption_of_kind, 3) for style in styles)
    facts = {"base": base.name, "identity": base.identity, "sampling": TRACING.to_json()}
    return Strip(np.stack(rows), tuple(labels), tuple(characters), "Hands never trained on", facts, row_groups=groups)
