"""Write with calligraphy: characters in a style, led by what is typed, by a drawn skeleton, or by an index alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from kanjilab.core.images import SIZE_PX
from kanjilab.core.rng import counted_rng
from kanjilab.data.calligraphy import DRAWN_PX, jis_level_1, typed_glyph, typed_scale
from kanjilab.data.components import load_components
from kanjilab.data.framing import frame_glyphs
from kanjilab.data.rendering import default_font
from kanjilab.data.skeleton import pack_skeletons, skeletons_of
from kanjilab.data.typeset import SLOTS_OF_LAYOUT, Pair, Typesetter
from kanjilab.models.conditioning import Prompt
from kanjilab.models.diffusion import LatentDiffusion
from kanjilab.models.sampling import Sampling, sample
from kanjilab.models.skeleton_encoder import SkeletonEncoder
from kanjilab.models.trainable import Trainable
from kanjilab.training.presets import TRACING, WRITING

OTHER_LAYOUTS = {chr(code) for code in range(0x2FF0, 0x3000)} - SLOTS_OF_LAYOUT.keys()  # as ⿲, of three parts


def skeleton_encoder(base: LatentDiffusion) -> SkeletonEncoder:
    """What a base reads skeletons with.

    Raises:
        ValueError: it has no such encoder.
    """
    if not isinstance(base.condition_encoder, SkeletonEncoder):
        raise ValueError(f"{base.name} reads no skeletons: expected a base as `calligraphy`")
    return base.condition_encoder


def symbols_of(line: str) -> list[str]:
    """A line in what is written as one glyph: characters, and pairs of parts as `⿰水鳥`.

    Raises:
        ValueError: a layout that is not followed by two parts, or one that pairs do not have.
    """
    symbols, rest = [], line
    while rest:
        length = 3 if rest[0] in SLOTS_OF_LAYOUT else 1
        symbols.append(rest[:length])
        if length == 1 and rest[0] in OTHER_LAYOUTS:
            raise ValueError(f"{rest[:4]!r}: expected a layout of {' '.join(SLOTS_OF_LAYOUT)}, got {rest[0]}")
        if length == 3 and (len(rest) < 3 or any(part in SLOTS_OF_LAYOUT for part in rest[1:3])):
            raise ValueError(f"{rest[:3]!r}: expected a layout and two parts, as ⿰水鳥")
        rest = rest[length:]
    return symbols


def typed_skeleton(symbol: str) -> NDArray[np.bool_]:
    """The skeleton of what is typed, in the default font.

    Args:
        symbol: of `symbols_of`; a character that does not exist is composed of parts of others.
    Returns:
        (128, 128) bool.
    Raises:
        ValueError: the font lacks the character, or no characters have the parts in these places.
    """
    glyph = typed_glyph(symbol) if len(symbol) == 1 else _composed(symbol)
    return skeletons_of(glyph[None])[0]


def _composed(symbol: str) -> NDArray[np.uint8]:
    composed = _typesetter().compose(Pair(*symbol), counted_rng(0, "typeset"))
    if composed is None:
        raise ValueError(f"{symbol!r}: no characters have these parts in these places, to take them from")
    return frame_glyphs([composed.image], typed_scale() * DRAWN_PX / SIZE_PX)[0]


@cache
def _typesetter() -> Typesetter:
    return Typesetter(load_components(), default_font(), set(jis_level_1()))


def index_of(base: LatentDiffusion, character: str) -> int:
    """The number by which a base knows a character, from 1.

    Raises:
        ValueError: it does not know the character.
    """
    index, known = known_index(base, character), skeleton_encoder(base).characters
    if not index:
        some = "".join(known[:: max(1, len(known) // 12)][:12])
        raise ValueError(f"{character!r} has no index: {base.name} knows {len(known)} characters, such as {some}")
    return index


def known_index(base: LatentDiffusion, symbol: str) -> int:
    """As `index_of`, but 0 for what the base does not know: typed characters are written by both where both exist."""
    known = skeleton_encoder(base).characters
    return known.find(symbol) + 1 if len(symbol) == 1 else 0


def writing_prompt(
    base: LatentDiffusion,
    style: str,
    skeleton: NDArray[np.bool_] | None = None,
    index: int = 0,
    typed: NDArray[np.bool_] | None = None,
    toward: str = "",
    share: float = 0.0,
) -> Prompt:
    """What one character is asked for by.

    Args:
        base: led by skeletons.
        style: as "running script, brush".
        skeleton: (128, 128), of the very glyph: its lines are followed exactly. None for none.
        index: of `index_of`; 0 for none.
        typed: (128, 128), of `typed_skeleton`: the form of the character, to be written in the style. None for none.
        toward: another style.
        share: how far to go towards it, 0 to 1.
    """
    side = skeleton_encoder(base).size_px
    blank = np.zeros((side, side), bool)
    drawn, printed = (pack_skeletons(blank if lines is None else lines) for lines in (skeleton, typed))
    arrays = {"skeleton": drawn, "typed": printed, "index": np.array(index, np.float32)}
    return Prompt(style, arrays, toward, share)


def usual_sampling(prompts: Sequence[Prompt]) -> Sampling:
    """`TRACING` where every prompt has lines of the glyph itself, else `WRITING`.

    Args:
        prompts: as for `write`.
    """
    return TRACING if all(np.any(prompt.arrays.get("skeleton", 0)) for prompt in prompts) else WRITING


def write(
    base: LatentDiffusion,
    prompts: Sequence[Prompt],
    seed: int = 0,
    sampling: Sampling | None = None,
    trainable: Trainable | None = None,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
    on_latents: Callable[[Tensor], None] = lambda latents: None,
) -> NDArray[np.uint8]:
    """Draws every prompt once.

    Args:
        base: led by skeletons.
        prompts: N of `writing_prompt`.
        seed: of the noise, the same for all.
        sampling: how; None for `usual_sampling`.
        trainable: a hand that was learned, of `learn_hand`.
        on_progress: called with (done, total) characters.
        on_latents: as for `sample`.
    Returns:
        (N, 128, 128) uint8.
    """
    sampling = sampling or usual_sampling(prompts)
    hooks = {"on_progress": on_progress, "on_latents": on_latents}
    return sample(base, prompts, [seed], sampling, trainable=trainable, size_px=SIZE_PX, **hooks)[0, :, 0]
