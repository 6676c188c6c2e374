"""Further prompts for the strip comparator: drawn from a run's stored checkpoints as its other samples were."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from kanjilab.core.config import settings_hash
from kanjilab.core.run_folder import RunFolder
from kanjilab.models.sampling import Sampling, sample
from kanjilab.widgets.generation import Limits, Models, Request
from kanjilab.widgets.tracks import Track, own_key

LIMITS = Limits()


def can_draw(track: Track) -> bool:
    """Whether the track says from which checkpoints of which arm it was drawn; a study's samples do not."""
    return isinstance(track.facts.get("arm"), int) and "steps" in track.facts


def draw_prompt(
    track: Track, run: RunFolder, prompt: str, models: Models, on_checkpoint: Callable[[int, int], None]
) -> None:
    """Draw a prompt at every checkpoint of a track, with its seeds and sampling, and store it in the run.

    Args:
        track: of `read_tracks`, which adds what is stored here to its prompts.
        run: that it was drawn from.
        prompt: the text.
        models: where loaded models are kept.
        on_checkpoint: called with the number of checkpoints done and all of them; an exception ends the drawing.
    Raises:
        ValueError: a blank or overlong prompt, or a track that cannot be drawn again.
        RunError: a checkpoint is no longer there.
    """
    facts = track.facts
    if not can_draw(track):
        raise ValueError(f"{track.label} does not say from which checkpoints it was drawn")
    seen = list(facts["images_seen"])
    steps = [facts["steps"][seen.index(count)] for count in track.images_seen]
    request = Request(prompt, track.seeds, Sampling(**facts["sampling"]), run.path, arm=facts["arm"])
    LIMITS.check(request)
    drawn = []
    for done, step in enumerate(steps):
        on_checkpoint(done, len(steps))
        base, trainable = models.load(Request(prompt, run=run.path, arm=request.arm, step=step))
        drawn.append(sample(base, [prompt], track.seeds, request.sampling, trainable=trainable)[0, 0])
    own = {"prompts": [prompt], "own": own_key(track), "steps": steps, "images_seen": list(track.images_seen)}
    name = f"history_own_{settings_hash([own['own'], prompt])}"
    run.write_samples(name, np.stack(drawn)[:, None], {**facts, **own})  # (C, 1, S, H, W)
