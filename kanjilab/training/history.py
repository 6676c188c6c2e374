"""What a run drew at each of its checkpoints: sampled once, stored in the run, shown as a strip."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from kanjilab.core.config import settings_hash
from kanjilab.core.manifest import kept_where_it_can_be
from kanjilab.core.notices import notice
from kanjilab.core.run_folder import RunError, RunFolder
from kanjilab.models.conditioning import check_texts
from kanjilab.models.loading import LatentDiffusion
from kanjilab.models.sampling import Sampling, default_sampling, sample
from kanjilab.models.trainable import Trainable
from kanjilab.training.checkpoints import checkpoint_images_seen, load_checkpoints
from kanjilab.viz.strip import Strip, seen_label

LOADED_BYTES = 1_000_000_000  # of adapters, a rank of 768 having 4.5 GB


class Column(NamedTuple):
    """What one checkpoint drew: (P, S, H, W) or (P, S, H, W, 3) uint8, after so many images seen."""

    images_seen: int
    images: np.ndarray


def sample_history(
    base: LatentDiffusion,
    run: RunFolder,
    prompts: Sequence[str],
    seeds: Sequence[int],
    sampling: Sampling | None = None,
    *,
    arm: int = 0,
    steps: Sequence[int] | None = None,
    batch: int = 32,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[np.ndarray, dict[str, Any]]:
    """Every prompt with every seed at every checkpoint; the same noise in each.

    What is drawn is stored in the run's `samples/`: a later call with the same arguments draws only checkpoints that
    have come since. So a strip can grow while its run is trained. Of a run that is kept without its checkpoints, what
    was drawn is returned. Where nothing can be written, as on a disk for reading alone, nothing is stored.

    Args:
        prompts: P prompts. seeds: S seeds.
        arm: which arm of the run.
        steps: some of `run.checkpoints()`, ascending; all by default.
        batch: images drawn at a time.
        on_progress: called with (done, total) images of those that are drawn now.
    Returns:
        (C, P, S, H, W) uint8 images, C checkpoints from "before training" on, without those that the training removed
        meanwhile; and the facts: steps, images_seen, prompts, seeds, sampling.
    Raises:
        ValueError: the run has no such arm, or no checkpoint yet; a prompt that no text encoder reads.
    """
    check_texts(*prompts)
    sampling = sampling or default_sampling(base.family)
    facts = {"base": base.name, "run": run.settings["hash"], "arm": arm}
    asked = {"prompts": list(prompts), "seeds": list(seeds), "sampling": sampling.to_json()}
    name = _name(run, prompts, seeds, sampling, arm)
    columns: dict[int, Column] = {}
    if stored := stored_history(run, prompts, seeds, sampling, arm=arm):
        (images, earlier), there = stored, run.checkpoints()
        shown = zip(earlier["steps"], map(Column, earlier["images_seen"], images), strict=True)
        columns = {step: column for step, column in shown if step in there or not there}
    wanted = _wanted(run, arm, steps, list(columns))

    def stacked(shown: dict[int, Column]) -> tuple[np.ndarray, dict[str, Any]]:
        seen = [column.images_seen for column in shown.values()]
        images = np.stack([column.images for column in shown.values()])
        return images, facts | {"steps": list(shown), "images_seen": seen} | asked

    left = [step for step in wanted if step not in columns]
    for drawn in _draw_columns(base, run, arm, left, (prompts, seeds, sampling), batch, on_progress):
        columns = dict(sorted((columns | drawn).items()))
        with kept_where_it_can_be(f"what {run.path} draws"):
            run.write_samples(name, *stacked(columns))
    return stacked({step: columns[step] for step in wanted if step in columns})


def stored_history(
    run: RunFolder, prompts: Sequence[str], seeds: Sequence[int], sampling: Sampling | None = None, *, arm: int = 0
) -> tuple[np.ndarray, dict[str, Any]] | None:
    """What `sample_history` stored of these, of the checkpoints drawn so far; no base is needed.

    Args:
        prompts, seeds, sampling, arm: as for `sample_history`.
    Returns:
        Images and facts as there, or None where nothing is stored, or nothing sound that can be drawn again.
    Raises:
        RunError: what is stored is damaged, and the run has no checkpoint to draw it again.
    """
    sampling = sampling or default_sampling(run.settings.get("family", "unet"))  # older runs do not say
    name = _name(run, prompts, seeds, sampling, arm)
    if name not in run.samples():
        return None
    try:
        return run.read_samples(name)
    except RunError as error:
        if not run.checkpoints():
            raise
        notice(f"{error}; it is drawn again")
        return None


def _name(run: RunFolder, prompts: Sequence[str], seeds: Sequence[int], sampling: Sampling, arm: int) -> str:
    return f"history_{settings_hash([run.settings['hash'], arm, list(prompts), list(seeds), sampling.to_json()])}"


def _draw_columns(
    base: LatentDiffusion,
    run: RunFolder,
    arm: int,
    steps: Sequence[int],
    asked: tuple[Sequence[str], Sequence[int], Sampling],
    batch: int,
    on_progress: Callable[[int, int], None],
) -> Iterator[dict[int, Column]]:
    """Columns by step, as many at once as are drawn together: small adapters of one base."""
    if not steps:
        return
    prompts, seeds, sampling = asked
    each, together = len(prompts) * len(seeds), _drawn_together(run, arm)
    on_progress(0, each * len(steps))
    for start in range(0, len(steps), together):
        if (found := _load(base, run, steps[start : start + together], arm)) is None:
            continue
        seen, trainable = found
        report = _shifted(on_progress, each * start, each * len(steps))
        images = sample(base, prompts, seeds, sampling, trainable=trainable, batch=batch, on_progress=report)
        yield {step: Column(count, shown) for (step, count), shown in zip(seen.items(), images, strict=True)}


def _load(
    base: LatentDiffusion, run: RunFolder, steps: Sequence[int], arm: int
) -> tuple[dict[int, int], Trainable] | None:
    """Images seen by step, and the adapters, of those that are still there: a training that goes on removes some."""
    while there := [step for step in steps if step in run.checkpoints()]:
        try:
            seen = {step: checkpoint_images_seen(run, step, arm) for step in there}
            return seen, load_checkpoints(base, run, there, arm)
        except (RunError, FileNotFoundError):
            if set(there) <= set(run.checkpoints()):
                raise
    return None


def _drawn_together(run: RunFolder, arm: int) -> int:
    """How many of an arm's checkpoints are loaded at once."""
    if run.arm(arm).targets == "full":
        return 1
    first = run.checkpoint_path(run.checkpoints()[0]) / f"arm_{arm}" / "adapter_model.safetensors"
    return max(1, LOADED_BYTES // first.stat().st_size)


def _wanted(run: RunFolder, arm: int, only: Sequence[int] | None, stored: Sequence[int]) -> list[int]:
    run.arm(arm)
    if not (steps := run.checkpoints() or list(stored)):
        raise ValueError(f"{run.path} has no checkpoint yet: its training never began")
    return steps if only is None else [step for step in steps if step in only]


def _shifted(on_progress: Callable[[int, int], None], before: int, total: int) -> Callable[[int, int], None]:
    return lambda done, _: on_progress(before + done, total)


def history_strip(
    images: np.ndarray, facts: dict[str, Any], title: str = "", further: int = 3, others: np.ndarray | None = None
) -> Strip:
    """Checkpoints in columns, prompts in rows, and the last checkpoint in some other noises.

    Args:
        images, facts: of `sample_history`.
        title: above the strip.
        further: how many other noises of the last checkpoint to show, where there are so many seeds.
        others: (P, F, H, W) or (P, F, H, W, 3), the last checkpoint in further noises than the images' own.
    """
    if others is None:
        others = images[-1, :, 1 : 1 + further]  # (P, further, H, W)
    columns = images[:, :, 0].swapaxes(0, 1)  # (P, C, H, W)
    seen = facts["images_seen"]
    labels = [seen_label(count) for count in seen]
    groups = [("images seen", len(labels))]
    if others.shape[1]:
        groups.append(("final, other noises", others.shape[1]))
    return Strip(
        np.concatenate([columns, others], axis=1),
        tuple(facts["prompts"]),
        (*labels, *(f"seed {seed}" for seed in facts["seeds"][1 : 1 + others.shape[1]])),
        title=title,
        facts={key: value for key, value in facts.items() if key not in ("prompts", "images_seen", "steps")}
        | {"images seen": seen[-1]},
        column_groups=tuple(groups),
    )
