"""A study's stored images and logs: strips, measures and curves; nothing is trained."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd

from kanjilab.core.run_folder import RunFolder
from kanjilab.evaluation.scoring import glyphs_of
from kanjilab.experiments.context import StudyContext
from kanjilab.experiments.packs import stored_moments
from kanjilab.experiments.study import Variant, spelled
from kanjilab.models.sampling import sample
from kanjilab.viz.charts import arm_values
from kanjilab.viz.strip import Strip

LOGGED = ("images_seen", "loss", "gradient_norm", "lr", "update_norm")


def last_images(context: StudyContext, variant: Variant, seed: int) -> np.ndarray:
    """The images that one arm drew at the end of its training.

    Returns:
        (P, S, H, W) or (P, S, H, W, 3) uint8, the prompts of all splits one after the other, in every noise.
    Raises:
        KeyError: the arm is not stored.
    """
    moment = stored_moments(context)[context.key(variant, seed)][-1]
    return RunFolder.open(context.folder / moment.folder).read_samples(moment.samples)[0]


def prompt_table(context: StudyContext) -> pd.DataFrame:
    """The study's prompts in the order of the images: split, prompt, radical (all that count as a hit)."""
    rows = [
        (split, caption, "".join(sorted(wanted)))
        for split, asked in context.prompts.items()
        for caption, wanted in zip(asked.captions, asked.expected, strict=True)
    ]
    return pd.DataFrame(rows, columns=["split", "prompt", "radical"])


def variants_strip(
    context: StudyContext, variants: Sequence[Variant] = (), seed: int | None = None, title: str = ""
) -> Strip:
    """The base and each variant in rows; in columns a prompt for each radical of each split, in one noise.

    Args:
        variants: in which order; the study's by default.
        seed: of the training; the study's first by default.
        title: above.
    """
    study, seed = context.study, context.study.seeds[0] if seed is None else seed
    asked = prompt_table(context).drop_duplicates(["split", "radical"])
    chosen = variants or study.variants
    rows = [last_images(context, variant, seed)[asked.index, 0] for variant in chosen]
    size_px, prompts = rows[0].shape[1], list(asked["prompt"])
    before = sample(context.base, prompts, study.noise_seeds[:1], study.sampling, size_px=size_px)[0, :, 0]
    groups = tuple((spelled(str(split)), len(part)) for split, part in asked.groupby("split", sort=False))
    facts = {"study": study.hash, "seed": seed} | study.sampling.to_json()
    labels = ("before training", *(variant.label for variant in chosen))
    return Strip(np.stack([before, *rows]), labels, tuple(prompts), title, facts, column_groups=groups)


def measure_images(
    context: StudyContext, measure: Callable[[np.ndarray], pd.DataFrame], variants: Sequence[Variant] = ()
) -> pd.DataFrame:
    """Measures all images that were drawn at the end of training.

    Args:
        measure: (N, H, W) uint8, 0 = black, to a table of N rows.
        variants: of the study; all by default.
    Returns:
        One row an image: variant, seed, split, prompt, noise_seed and the measure's columns.
    """
    asked, noises = prompt_table(context), context.study.noise_seeds
    parts = []
    for variant, seed in itertools.product(variants or context.study.variants, context.study.seeds):
        rows = asked.loc[asked.index.repeat(len(noises)), ["split", "prompt"]].reset_index(drop=True)
        rows.insert(0, "variant", variant.label)
        rows.insert(1, "seed", seed)
        rows["noise_seed"] = list(noises) * len(asked)
        parts.append(pd.concat([rows, measure(glyphs_of(last_images(context, variant, seed)))], axis=1))
    return pd.concat(parts, ignore_index=True)


def read_logs(context: StudyContext) -> pd.DataFrame:
    """The training logs of all arms.

    Returns:
        One row an arm and record: variant, seed, step, images_seen, loss, gradient_norm, lr, update_norm (how far the
        weights are from where they began), stopped (why the arm ended early, or None); records after an arm's end are
        left out.
    """
    stored, parts = stored_moments(context), []
    for variant, seed in context.study.cells():
        last = stored[context.key(variant, seed)][-1]
        run = RunFolder.open(context.folder / last.folder)
        arm = run.settings["arms"].index(context.study.arm_of(variant, seed).to_json())
        log = run.read_log()
        columns = {name: arm_values(log, name)[:, arm] for name in LOGGED}
        rows = pd.DataFrame({"variant": variant.label, "seed": seed, "step": log["step"], **columns})
        rows["stopped"] = last.stopped
        parts.append(rows.loc[np.isfinite(rows["loss"])])
    return pd.concat(parts, ignore_index=True)
