"""Captions filtered by their images, and how well that finds captions that were swapped on purpose.

`python -m kanjilab.experiments.filtering runs/filter` plants errors in left16, scores every pair, and trains on what
the filter keeps, beside clean, corrupted and randomly thinned captions. Called again, it goes on.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from kanjilab.core.progress import bar
from kanjilab.core.rng import counted_rng
from kanjilab.core.storage import json_bytes, require_new, write_json_atomic
from kanjilab.data.build import build_dataset
from kanjilab.data.image_folder import TRAIN, Dataset
from kanjilab.data.selection import Left16, rule_from_json
from kanjilab.data.subset import write_subset
from kanjilab.evaluation.caption_filter import Pairs, clip_scores, known_pairs, pair_scores, pairs_of
from kanjilab.experiments.designs import BUDGETS, STUDY_ARM
from kanjilab.experiments.run_study import ablate_by_both
from kanjilab.experiments.study import Study, Variant
from kanjilab.models.clip import load_clip
from kanjilab.viz.caption_filter import draw_scores
from kanjilab.viz.charts import save_figure

Scores = Callable[[Dataset], NDArray[np.float64]]
WORST_SHOWN = 24
SHARES, SEEDS = (0.1, 0.2, 0.3), tuple(range(5))
TRAINED_SHARE = 0.3  # of the captions that are swapped where it is trained on them


def own_scores(dataset: Dataset) -> NDArray[np.float64]:
    """(N,) scores of a dataset's pairs by models trained on them out of fold, beside kanji that it does not hold."""
    pairs = pairs_of(dataset)
    known = known_pairs(set(pairs.names), bar("draw other kanji"))
    return pair_scores(pairs, known, on_progress=bar("score"))


def scorer(clip: str, device: torch.device | str = "cpu") -> tuple[Scores, dict[str, Any]]:
    """What scores pairs, and its name for filter.json.

    Args:
        clip: a CLIP model, as for `load_clip`; "" for models that are trained on the pairs.
        device: of the CLIP model.
    """
    if not clip:
        return own_scores, {"image": "judge A's network", "text": "MiniLM, or for Japanese the Japanese encoder"}
    loaded = load_clip(clip, device)
    return lambda dataset: clip_scores(dataset, loaded), {"clip": clip}


def filter_dataset(dataset: Dataset, folder: Path, keep: float, scores: Scores, facts: dict[str, Any]) -> Dataset:
    """Writes the images whose captions fit best as a new image folder, and beside it a picture of what was left out.

    Only what is trained on is filtered; other splits are copied. The folder has scores.csv, with every pair's
    score, and filter.json; `<folder>.png` shows the scores and the worst pairs.

    Args:
        dataset: of all splits.
        folder: new.
        keep: share of the training images that stay, in (0, 1].
        scores: gives one for each image of the training split.
        facts: what scored, for filter.json.
    Raises:
        ValueError: a share outside its range.
        FileExistsError: the folder, or the picture, is there already.
        ValueError: there is no training split.
    """
    if not 0 < keep <= 1:
        raise ValueError(f"keep must be a share of the images, above 0 and at most 1, got {keep}")
    picture = folder.with_name(f"{folder.name}.png")
    require_new(folder)  # before anything is scored
    require_new(picture)
    if TRAIN not in (splits := sorted(set(dataset.table["split"]))):
        raise ValueError(f"{dataset.folder}: expected images of the split {TRAIN!r}, got {splits}")
    trained = np.flatnonzero((dataset.table["split"] == TRAIN).to_numpy())
    split = dataset.split(TRAIN)
    found = scores(split)
    order = np.argsort(found, kind="stable")
    left_out = order[: len(order) - max(1, round(keep * len(order)))]
    table = split.table[["file_name", "text"]].assign(score=np.round(found, 4), kept=True)
    table.loc[left_out, "kept"] = False
    contents = facts | {"content_hash": dataset.content_hash, "keep": keep, "left_out": len(left_out)}
    csv = table.sort_values("score", kind="stable").to_csv(index=False, lineterminator="\n").encode()
    kept = np.setdiff1d(np.arange(len(dataset)), trained[left_out])
    filtered = write_subset(dataset, kept, folder, {"scores.csv": csv, "filter.json": json_bytes(contents, "filter")})
    worst = order[:WORST_SHOWN]
    figure = draw_scores(found, len(left_out), split.images(worst), split.table["text"].iloc[worst].tolist())
    save_figure(figure, picture, contents)
    return filtered


def swapped_captions(captions: Sequence[str], share: float, seed: int) -> NDArray[np.int64]:
    """(N,) row of the caption that each image has after some were swapped; its own where it keeps it.

    Args:
        captions: N of them.
        share: of the images that get another's caption, which says something else.
        seed: of the choice.
    """
    rng, own = counted_rng(seed, "caption shuffle"), np.arange(len(captions))
    chosen, texts = rng.permutation(len(captions))[: round(share * len(captions))], np.array(captions, dtype=object)
    for shift in range(1, len(chosen)):
        moved = np.roll(chosen, shift)
        if (texts[moved] != texts[chosen]).all():
            own[chosen] = moved
            return own
    if len(chosen):
        raise ValueError(f"{len(chosen)} captions cannot be swapped so that all differ")
    return own


def found_errors(scores: NDArray[np.float64], wrong: NDArray[np.bool_]) -> dict[str, float]:
    """How well low scores find wrong captions.

    Args:
        scores: (N,) of the pairs.
        wrong: (N,) whose captions are wrong; some and not all.
    Returns:
        auc (that a wrong pair's score is below a right one's; ties count half), and precision of leaving out as many as
        are wrong, which is then also the share of them that is found.
    """
    low, high = scores[wrong], scores[~wrong]
    below = np.searchsorted(np.sort(high), low, "left"), np.searchsorted(np.sort(high), low, "right")
    auc = 1 - (below[0] + below[1]).mean() / 2 / len(high)
    return {"auc": float(auc), "precision": float(wrong[np.argsort(scores, kind="stable")[: wrong.sum()]].mean())}


def planted_table(pairs: Pairs, captions: Sequence[str], known: Pairs) -> pd.DataFrame:
    """How well swapped captions are found.

    Args:
        pairs: N right ones.
        captions: theirs.
        known: right ones of other characters, left out of one row in two.
    Returns:
        One row a share, seed, and way: share, seed, others ("with other kanji" or "alone"), auc, precision.
    """
    rows = []
    for share in SHARES:
        for seed in SEEDS:
            given = swapped_captions(captions, share, seed)
            planted = dataclasses.replace(pairs, texts=pairs.texts[given])
            for others, right in (("with other kanji", known), ("alone", None)):
                found = found_errors(pair_scores(planted, right), given != np.arange(len(given)))
                rows.append({"share": share, "seed": seed, "others": others, **found})
    return pd.DataFrame(rows)


def filter_study(folder: Path) -> Study:
    """Clean, corrupted, filtered and thinned captions of four radicals, as a study; its image folders are made here.

    The filter leaves out as many pairs as were swapped; the thinned set loses as many at random.

    Args:
        folder: below whose sets/ they are.
    """
    budget, sets = BUDGETS["steps"], folder / "sets"
    clean = build_dataset(rule_from_json(budget.data), sets / "clean")
    rows = np.flatnonzero((clean.table["split"] == TRAIN).to_numpy())
    given = np.arange(len(clean))
    given[rows] = rows[swapped_captions(clean.table["text"].iloc[rows].tolist(), TRAINED_SHARE, 0)]
    wrong = dataclasses.replace(clean, table=clean.table.assign(text=clean.table["text"].to_numpy()[given]))
    left = counted_rng(0, "caption shuffle", 1).permutation(rows)[: int((given != np.arange(len(given))).sum())]
    share = 1 - len(left) / len(rows)
    ways: dict[str, Callable[[Path], Any]] = {
        "corrupted": lambda place: write_subset(wrong, np.arange(len(wrong)), place),
        "filtered": lambda place: filter_dataset(wrong, place, share, *scorer("")),
        "thinned at random": lambda place: write_subset(wrong, np.setdiff1d(np.arange(len(wrong)), left), place),
    }
    variants = [Variant("clean", {}, {"folder": str(sets / "clean")})]
    for label, make in ways.items():
        place = sets / label.split()[0]
        if not place.exists():
            make(place)
        variants.append(Variant(label, {}, {"folder": str(place)}))
    pairs = (("filtered", "corrupted"), ("corrupted", "clean"), ("filtered", "thinned at random"))
    return Study(
        "captions",
        "a filter regains what wrong captions cost",
        dataclasses.replace(STUDY_ARM, images_seen=budget.images_seen),
        tuple(variants),
        budget.seeds[:1],
        pairs,
        {"folder": str(sets / "clean")},
        budget.base,
        prompts_per_radical=10,
        splits=("held_out",),
        noise_seeds=(0, 1),
    )


def main(arguments: Sequence[str]) -> None:
    """Measures the filter, then trains on what it keeps; tables and reports go into a folder."""
    folder = Path(*arguments[:1] or ("runs/filter",))
    dataset = build_dataset(Left16(), folder / "left16")
    trained = dataset.split(TRAIN)
    if not (folder / "planted.json").exists():
        known = known_pairs(set(dataset.table["character"]))
        table = planted_table(pairs_of(trained), trained.table["text"].tolist(), known)
        write_json_atomic(folder / "planted.json", {"images": len(trained), "rows": table.to_dict("records")})
        print(table.groupby(["share", "others"])[["auc", "precision"]].agg(["mean", "min", "max"]).round(3))
    if found := ablate_by_both(filter_study(folder), folder / "study"):
        write_json_atomic(folder / "trained.json", found)


if __name__ == "__main__":
    main(sys.argv[1:])
