"""The controls of the five criteria: ceilings, baselines and floors for the same prompts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from kanjilab.core.images import grayscale
from kanjilab.core.rng import counted_rng
from kanjilab.core.run_folder import RunFolder
from kanjilab.data.image_folder import HELD_OUT, Dataset
from kanjilab.data.rendering import default_font
from kanjilab.data.typeset import Typesetter, novel_pairs
from kanjilab.evaluation.criteria import ALL_FIVE, CRITERIA, Context, judge_images, make_context
from kanjilab.evaluation.judges.framing import Images
from kanjilab.evaluation.judges.part_judge import Judge
from kanjilab.evaluation.scoring import caption_prompts, glyphs_of
from kanjilab.evaluation.summaries import summary
from kanjilab.evaluation.two_sample import TwoSampleTest
from kanjilab.models.loading import LatentDiffusion
from kanjilab.models.sampling import Sampling, sample
from kanjilab.models.trainable import Trainable
from kanjilab.training.checkpoints import load_checkpoints

SHARPENING = 1.5  # of typeset glyphs: 2.7% of their pixels are gray then, of the font's 2.8%, without it 4.4%
STYLE = "told_from_real"
CUTS = 16  # tried for every half-swapped glyph


def score_criteria(
    base: LatentDiffusion,
    run: RunFolder,
    dataset: Dataset,
    judge: Judge,
    *,
    captions_per_radical: int = 3,
    images: int = 4,
    sampling: Sampling | None = None,
    arm: int = 0,
    shuffled: RunFolder | None = None,
) -> pd.DataFrame:
    """The five criteria of a run's last checkpoint on captions of held-out characters, with all controls.

    Args:
        base: what the run was trained on.
        run: one of its arms counts.
        dataset: all of its data, training and held out.
        judge: the one that reports.
        captions_per_radical: prompts, for each radical.
        images: of each prompt.
        sampling: how models draw.
        arm: which arm of the run.
        shuffled: the same training with shuffled captions, for a control; its first arm counts.
    Returns:
        As `control_table`, with the run first, as "run".
    Raises:
        ValueError: the dataset holds nothing out, or has no radicals or characters.
    """
    if HELD_OUT not in set(dataset.table["split"]):
        raise ValueError(f"{dataset.folder}: expected held-out characters, got a training split alone")
    prompts = caption_prompts(dataset.split(HELD_OUT), HELD_OUT, captions_per_radical).captions
    context = make_context(dataset.split("train"), judge)
    last = load_checkpoints(base, run, run.checkpoints()[-1:], arm)
    other = load_checkpoints(base, shuffled, shuffled.checkpoints()[-1:]) if shuffled else None
    seeds = range(images)
    drawn = {"run": _sampled(base, prompts, seeds, sampling, last)}
    drawn |= controls(context, dataset, base, prompts, seeds, sampling, trained=last, shuffled=other)
    return control_table(judge, drawn, prompts, context)


def criteria_text(table: pd.DataFrame) -> str:
    """The criteria of every control and its two-sample test against real glyphs, in percent, with the run's intervals.

    Args:
        table: of `score_criteria`.
    """
    names = [*CRITERIA, ALL_FIVE, STYLE]
    shares = (100 * table["value"].unstack("control")).loc[names, table.index.unique("control")]
    run = 100 * table.loc["run"].loc[names]
    ends = [f"[{low:.1f}, {high:.1f}]" for low, high in zip(run["low"], run["high"], strict=True)]
    shares.insert(1, "95% interval", ends)  # below the run, once the controls are the rows
    return shares.T.rename_axis(None).rename_axis(None, axis=1).to_string(float_format="{:.1f}".format)


def controls(
    context: Context,
    dataset: Dataset,
    base: LatentDiffusion,
    prompts: Sequence[str],
    seeds: Sequence[int],
    sampling: Sampling | None = None,
    *,
    trained: Trainable | None = None,
    shuffled: Trainable | None = None,
) -> dict[str, Images]:
    """Ceilings, baselines and floors for the same prompts and counts.

    Args:
        context: of the run.
        dataset, sampling: as for `score_criteria`.
        base: what it was trained on.
        prompts: P captions of held-out characters.
        seeds: S of them: images a prompt.
        trained: the run, to be asked with the empty prompt.
        shuffled: a run trained with shuffled captions at the same budget.
    Returns:
        name -> (P S, H, W) uint8, a prompt's images side by side: "real held-out", "through the VAE", "typeset",
        "retrieval", "base alone", "half-swapped", "noise"; "empty prompt" and "shuffled captions" where their
        models are given.
    Raises:
        ValueError: a prompt that no held-out character has for its caption.
    """
    count = len(seeds)
    real = held_out_glyphs(dataset.split(HELD_OUT), prompts, count)
    found = {"real held-out": real, "through the VAE": through_vae(base, real)}
    found["typeset"] = typeset_answers(context, prompts, count)
    found["retrieval"] = retrieved(context, prompts, count)
    if shuffled is not None:
        found["shuffled captions"] = _sampled(base, prompts, seeds, sampling, shuffled)
    found["base alone"] = _sampled(base, prompts, seeds, sampling, None)
    if trained is not None:
        found["empty prompt"] = np.concatenate([_sampled(base, [""], seeds, sampling, trained)] * len(prompts))
    rng = counted_rng(0, "resampling")
    found["half-swapped"] = half_swapped(context.training, len(real), rng)
    found["noise"] = rng.integers(0, 256, real.shape, dtype=np.uint8)
    return found


def control_table(judge: Judge, images: Mapping[str, Images], prompts: Sequence[str], context: Context) -> pd.DataFrame:
    """Every control's summary, and the two-sample test of its style against the training's.

    Args:
        judge: the one that reports.
        images: of `controls`, and more of the same count (the runs themselves).
        prompts: P, as given to `controls`.
        context: of the run.
    Returns:
        Rows by control and score; columns value, low, high. To the scores of `summary` comes "told_from_real", see
        `TwoSampleTest.auc`.
    """
    tables, style = {}, TwoSampleTest.of(context.training)
    for name, some in images.items():
        asked = [prompt for prompt in prompts for _ in range(len(some) // len(prompts))]
        tables[name] = summary(judge_images(judge, some, asked, context))
        tables[name].loc[STYLE] = style.auc(some, asked)
    return pd.concat(tables, names=["control"])


def held_out_glyphs(held_out: Dataset, prompts: Sequence[str], count: int) -> Images:
    """For each prompt the glyphs of the held-out characters with this caption, in turn.

    Args:
        held_out: the split.
        prompts: P captions of it.
        count: images a prompt.
    Returns:
        (P count, H, W) uint8.
    Raises:
        ValueError: a prompt that no held-out character has for its caption.
    """
    rows = {str(text): list(group) for text, group in held_out.table.groupby("text").indices.items()}
    if missing := [prompt for prompt in prompts if prompt not in rows]:
        raise ValueError(f"expected captions of held-out characters, got {missing[:3]} ({len(missing)} unknown)")
    return held_out.images([rows[prompt][number % len(rows[prompt])] for prompt in prompts for number in range(count)])


def through_vae(base: LatentDiffusion, images: Images, batch: int = 32) -> Images:
    """Glyphs encoded and decoded, (N, H, W) uint8: what no model on this base can be better than."""
    decoded = []
    for start in range(0, len(images), batch):
        some = images[start : start + batch]
        pixels = base.decode(base.encode_images(np.stack([some] * 3, axis=-1) if base.channels == 3 else some)[0])
        decoded.append(grayscale(pixels) if base.channels == 3 else pixels)
    return np.concatenate(decoded)


def typeset_answers(context: Context, prompts: Sequence[str], count: int) -> Images:
    """The strong baseline: two parts that the text asks for, typeset from training glyphs in a pair not in the list.

    Args:
        context: its meaning chooses the parts; its training characters give them.
        prompts: P.
        count: images a prompt: its best pairs, of those that can be set.
    Returns:
        (P count, 128, 128) uint8.
    Raises:
        ValueError: no pair can be set at all.
    """
    typesetter = Typesetter(context.components, default_font(), allowed=set(context.characters))
    column = {name: index for index, name in enumerate(context.meaning.parts)}
    pairs = [pair for pair in novel_pairs(context.components) if pair.first in column and pair.second in column]
    if not pairs:
        raise ValueError("expected pairs of parts that are not in the list, got none from these characters")
    parts = np.array([(column[pair.first], column[pair.second]) for pair in pairs])
    images = []
    for number, shares in enumerate(np.log(context.meaning.probabilities(prompts))):
        rng = counted_rng(0, "typeset", number)
        set_ones: list[Images] = []
        for index in np.argsort(-shares[parts].sum(axis=1), kind="stable"):
            if len(set_ones) == count:
                break
            if (composed := typesetter.compose(pairs[index], rng)) is not None:
                set_ones.append(_sharpened(composed.image))
        if not set_ones:
            raise ValueError("expected training characters that parts can be cut from, got none")
        images += [set_ones[index % len(set_ones)] for index in range(count)]
    return np.stack(images)


def _sharpened(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Setting a part in another size softens its edges; this makes them as sharp as the font's again."""
    return np.clip((image.astype(float) - 127.5) * SHARPENING + 127.5, 0, 255).round().astype(np.uint8)


def retrieved(context: Context, prompts: Sequence[str], count: int) -> Images:
    """For each prompt the training glyphs with the nearest captions, (P count, H, W) uint8."""
    cosine = context.meaning.embed(list(prompts)) @ context.meaning.vectors.T
    order = np.argsort(-cosine, axis=1, kind="stable")[:, np.arange(count) % cosine.shape[1]]
    return context.training[order.ravel()]


def half_swapped(training: Images, count: int, rng: np.random.Generator) -> Images:
    """Left parts of training glyphs with right parts of others, cut through strokes that do not go on.

    Halves that happen to fit make a well-formed glyph; so of some random cuts the one is taken that tears most.

    Args:
        training: (M, H, W) uint8, two or more.
        count: how many to make.
        rng: which glyphs, and where they are cut.
    Returns:
        (count, H, W) uint8.
    """
    width = training.shape[2]
    mixed = []
    for _ in range(count):
        first = rng.integers(len(training), size=CUTS)
        second = (first + rng.integers(1, len(training), size=CUTS)) % len(training)
        cut = rng.integers(round(0.35 * width), round(0.65 * width), size=CUTS)
        edges = training[first, :, cut - 1] < 128, training[second, :, cut] < 128  # (CUTS, H) each
        torn = np.minimum((edges[0] & ~edges[1]).sum(axis=1), (edges[1] & ~edges[0]).sum(axis=1))
        best = int(torn.argmax())
        mixed.append(np.where(np.arange(width) < cut[best], training[first[best]], training[second[best]]))
    return np.stack(mixed)


def _sampled(
    base: LatentDiffusion,
    prompts: Sequence[str],
    seeds: Sequence[int],
    sampling: Sampling | None,
    trainable: Trainable | None,
) -> Images:
    return glyphs_of(sample(base, prompts, seeds, sampling, trainable=trainable)[0])
