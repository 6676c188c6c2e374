"""How well calligraphy writes what it was never shown, beside real glyphs and what costs nothing.

Rows are ways of making a glyph, columns measures of it. All of one call lies in one folder: table.parquet, report.json.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from kanjilab.core.progress import bar
from kanjilab.core.rng import counted_rng
from kanjilab.core.storage import write_json_atomic
from kanjilab.data.calligraphy import (
    FEW_SHOT_STYLES,
    STYLES,
    Style,
    draw_style,
    known_characters,
    load_skeletons,
    open_face,
)
from kanjilab.data.framing import frame_glyphs, frame_scale
from kanjilab.data.handwriting import Hand
from kanjilab.data.image_folder import HELD_OUT, TRAIN, Dataset
from kanjilab.data.skeleton import skeletons_of, unpack_skeletons
from kanjilab.evaluation.controls import through_vae
from kanjilab.evaluation.judges.framing import Images
from kanjilab.evaluation.judges.part_judge import load_judge
from kanjilab.evaluation.metrics import two_way_bootstrap
from kanjilab.evaluation.outside_reader import OutsideReader
from kanjilab.evaluation.script_style import (
    PAPER,
    fitted_radius,
    inked,
    mean_absolute_difference,
    root_mean_square_difference,
    structural_similarity,
)
from kanjilab.evaluation.style_judge import StyleJudge
from kanjilab.experiments.results import write_table
from kanjilab.experiments.writing import TRACING, WRITING, index_of, typed_skeleton, write, writing_prompt
from kanjilab.models.diffusion import LatentDiffusion
from kanjilab.models.trainable import Trainable
from kanjilab.training.few_shot import learn_hand

UNSEEN, KNOWN = "unseen characters", "trained characters"
SHOTS = 5
Reader = Callable[[Images], list[str]]


@dataclass(frozen=True)
class Amounts:
    """How much is drawn.

    Attributes:
        unseen: held-out characters, each in every style.
        seeds: of them.
        known: trained characters, each by its index in one style of each script's.
        fitted: trained characters, on whose real glyphs style judge and stroke widths are fitted.
        hands: draws of five samples of each unseen hand.
        of_hand: characters written in each.
        old: characters written in every trained style, before and after.
    """

    unseen: int = 10
    seeds: int = 3
    known: int = 60
    fitted: int = 150
    hands: int = 1
    of_hand: int = 24
    old: int = 10


@dataclass(frozen=True)
class Made:
    """Glyphs made in one way: N of each.

    Attributes:
        split, row: which glyphs, and how they were made.
        seed: of the noise.
        styles, characters: of each.
        images: (N, 128, 128) uint8.
        true: the real ones.
    """

    split: str
    row: str
    seed: int
    styles: Sequence[str]
    characters: Sequence[str]
    images: Images
    true: Images


def score_calligraphy(
    base: LatentDiffusion,
    dataset: Dataset,
    font_folders: Sequence[Path],
    folder: Path,
    amounts: Amounts = Amounts(),
    read: Mapping[str, Reader] | None = None,
    hands: Sequence[Style] = FEW_SHOT_STYLES,
) -> dict[str, Any]:
    """Draws, measures and writes everything.

    Args:
        base: led by skeletons.
        dataset: of `build_calligraphy_folder`.
        font_folders: with the fonts of the unseen hands, see `kanjilab.data.calligraphy.open_face`.
        folder: of the results, and of what was learned of hands.
        amounts: how much.
        read: readers by name; both judges and the outside one by default.
        hands: that were never trained on.
    Returns:
        The report: for each split and row the means of its columns with 95% intervals, over seeds and characters.
    """
    read = default_readers() if read is None else read
    known = _chosen(dataset.split(TRAIN), amounts.fitted)
    judge = StyleJudge.fit(known.images(), list(known.table["style"]))
    made = unseen_characters(base, dataset, known, amounts) + trained_characters(base, dataset, amounts)
    learned = unseen_hands(base, dataset, font_folders, folder, judge, amounts, hands)
    table = pd.concat([measured(one, judge, read) for one in made], ignore_index=True)
    sampling = {"its own lines": TRACING.to_json(), "other lines, or an index": WRITING.to_json()}
    facts = {"base": base.name, "identity": base.identity, "sampling": sampling, "amounts": vars(amounts)}
    report = facts | {"rows": summarised(table), "styles": by_style(table), "hands": learned}
    folder.mkdir(parents=True, exist_ok=True)
    write_table(table, folder / "table.parquet")
    write_json_atomic(folder / "report.json", report)
    return report


def default_readers() -> dict[str, Reader]:
    """Both judges' nearest characters, and the outside reader."""
    judges = {name: load_judge(name) for name in ("A", "B")}

    def nearest(name: str) -> Reader:
        judge = judges[name]
        return lambda images: [judge.characters[row] for row in judge.nearest(images, 1)[0][:, 0]]

    return {f"judge_{name.lower()}": nearest(name) for name in judges} | {"outside": OutsideReader().read}


def _chosen(dataset: Dataset, count: int) -> Dataset:
    """The rows of so many of its characters, in every style; the same for every purpose."""
    characters = known_characters(dataset)
    kept = [characters[row] for row in counted_rng(0, "recipe").permutation(len(characters))[:count]]
    return dataset.take(np.flatnonzero(dataset.table["character"].isin(kept)))


def _captions(styles: Sequence[str]) -> list[str]:
    caption_of = {style.name: style.caption for style in (*STYLES, *FEW_SHOT_STYLES)}
    return [caption_of.get(style, style) for style in styles]


def unseen_characters(base: LatentDiffusion, dataset: Dataset, known: Dataset, amounts: Amounts) -> list[Made]:
    """Held-out characters in every style: what costs nothing, and what is led by three kinds of skeletons.

    Args:
        base: led by skeletons.
        dataset: whole.
        known: the characters on which stroke widths are fitted.
        amounts: how much.
    """
    chosen = _chosen(dataset.split(HELD_OUT), amounts.unseen)
    styles, characters = list(chosen.table["style"]), list(chosen.table["character"])
    true = chosen.images()
    skeletons = unpack_skeletons(load_skeletons(chosen))
    radius_of = {}
    for style in set(styles):
        rows = np.flatnonzero(known.table["style"] == style)
        some = known.take(rows)
        radius_of[style] = fitted_radius(unpack_skeletons(load_skeletons(some)), some.images())
    even = np.concatenate([inked(one[None], radius_of[style]) for one, style in zip(skeletons, styles, strict=True)])
    others = _other_styles(chosen, true)
    made = {
        "real glyphs": true,
        "blank page": np.full_like(true, PAPER),
        "nearest other font": true[others],
        "skeleton, inked evenly": even,
        "autoencoder": through_vae(base, true),
    }
    rows = [Made(UNSEEN, name, 0, styles, characters, images, true) for name, images in made.items()]
    typed = np.stack([typed_skeleton(character) for character in characters])
    led = {
        "led by its skeleton": ("skeleton", skeletons),
        "by the typed one": ("typed", typed),
        "by another font's": ("typed", skeletons[others]),
    }
    for name, (kind, lines) in led.items():
        for seed in range(amounts.seeds):
            led_by = zip(_captions(styles), lines, strict=True)
            prompts = [writing_prompt(base, caption, **{kind: one}) for caption, one in led_by]
            images = write(base, prompts, seed, on_progress=bar(f"{name}, seed {seed}"))
            rows.append(Made(UNSEEN, name, seed, styles, characters, images, true))
    return rows


def _other_styles(dataset: Dataset, images: Images) -> NDArray[np.intp]:
    """(N,) for each glyph the row of its character in the style that is nearest to its own, by L1."""
    styles, characters = dataset.table["style"].to_numpy(), dataset.table["character"].to_numpy()
    row_of = {pair: row for row, pair in enumerate(zip(styles, characters, strict=True))}
    names = sorted(set(styles))

    def distance(one: str, other: str) -> float:
        rows = np.flatnonzero(styles == one)
        same = [row_of[other, character] for character in characters[rows]]
        return float(mean_absolute_difference(images[rows], images[same]).mean())

    nearest = {one: min((name for name in names if name != one), key=lambda name: distance(one, name)) for one in names}
    return np.array([row_of[nearest[style], character] for style, character in zip(styles, characters, strict=True)])


def trained_characters(base: LatentDiffusion, dataset: Dataset, amounts: Amounts) -> list[Made]:
    """Trained characters by their index alone: each in one regular style, and in one running or cursive style."""
    chosen = _chosen(dataset.split(TRAIN), amounts.known)
    made = []
    for name, scripts in {"regular": ("regular",), "running and cursive": ("running", "cursive")}.items():
        styles = sorted(set(chosen.table["style"][chosen.table["script"].isin(scripts)]))
        wanted: Any = {one: styles[number % len(styles)] for number, one in enumerate(known_characters(chosen))}
        some = chosen.take(np.flatnonzero(chosen.table["style"] == chosen.table["character"].map(wanted)))
        its_styles, its_characters = list(some.table["style"]), list(some.table["character"])
        made_by = {"real glyphs": some.images()}
        for way, is_typed in {"by index": False, "typed, with index": True}.items():
            prompts = [
                writing_prompt(base, caption, None, index_of(base, one), typed_skeleton(one) if is_typed else None)
                for caption, one in zip(_captions(its_styles), its_characters, strict=True)
            ]
            made_by[way] = write(base, prompts, on_progress=bar(f"{way}, {name}"))
        for row, images in made_by.items():
            made.append(Made(f"{KNOWN}, {name}", row, 0, its_styles, its_characters, images, some.images()))
    return made


def measured(made: Made, judge: StyleJudge, read: Mapping[str, Reader]) -> pd.DataFrame:
    """One row a glyph: split, row, seed, style, character, the columns of the table."""
    columns: dict[str, Any] = {
        "l1": mean_absolute_difference(made.images, made.true),
        "rmse": root_mean_square_difference(made.images, made.true),
        "ssim": structural_similarity(made.images, made.true),
        "style_read": np.array(judge.read(made.images)) == np.array(made.styles),
    }
    for name, reader in read.items():
        columns[name] = np.array(reader(made.images)) == np.array(made.characters)
    labels = {"split": made.split, "row": made.row, "seed": made.seed, "style": made.styles}
    return pd.DataFrame(labels | {"character": made.characters} | columns)


def _columns(table: pd.DataFrame) -> list[str]:
    return [name for name in table.columns if name not in ("split", "row", "seed", "style", "character")]


def summarised(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Means with intervals over seeds and characters, for each split and row."""
    found = []
    groups: Any = table.groupby(["split", "row"], sort=False)
    for (split, row), glyphs in groups:
        estimates = {}
        for name in _columns(table):
            by_seed = glyphs.pivot_table(index="seed", columns="character", values=name, aggfunc="mean")
            estimates[name] = list(two_way_bootstrap(by_seed.to_numpy(float), np.random.default_rng(0)))
        found.append({"split": split, "row": row, "glyphs": len(glyphs), **estimates})
    return found


def by_style(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Means of each style of the unseen characters."""
    unseen = table[table["split"] == UNSEEN]
    groups: Any = unseen.groupby(["row", "style"], sort=False)
    return groups[_columns(table)].mean().reset_index().to_dict("records")


def unseen_hands(
    base: LatentDiffusion,
    dataset: Dataset,
    font_folders: Sequence[Path],
    folder: Path,
    judge: StyleJudge,
    amounts: Amounts,
    styles: Sequence[Style],
) -> list[dict[str, Any]]:
    """Hands learned from five samples: how far they are from the true hand, without and with what was learned.

    Args:
        base: led by skeletons.
        dataset: whole; its held-out characters are written.
        font_folders: with the fonts of the hands.
        folder: keeps the trainings.
        judge: in whose measure hands are apart.
        amounts: how much.
        styles: the hands.
    Returns:
        For each hand and draw: distance_before and distance_after to the true hand; style_read and l1 of the trained
        styles, before and after.
    """
    held = _chosen(dataset.split(HELD_OUT), amounts.old)
    characters = known_characters(_chosen(dataset.split(HELD_OUT), amounts.of_hand))
    samples = known_characters(dataset.split(TRAIN))
    before_old = _old_styles(base, held, judge)
    found = []
    for style in styles:
        drawn = draw_style(open_face(style, font_folders), [*characters, *samples])
        scale = frame_scale(list(drawn.values()))
        shown = [character for character in characters if character in drawn]
        true = frame_glyphs([drawn[character] for character in shown], scale)
        before = _in_hand(base, style.caption, true)
        for draw in range(amounts.hands):
            chosen = counted_rng(draw, "handwriting").permutation(len(samples))
            five = [samples[row] for row in chosen if samples[row] in drawn][:SHOTS]
            glyphs = frame_glyphs([drawn[character] for character in five], scale)
            hand = Hand(tuple(five), glyphs, tuple(five), ())
            learned = learn_hand(base, hand, style.caption, folder / f"{style.name}-{draw}")
            after, after_old = _in_hand(base, style.caption, true, learned), _old_styles(base, held, judge, learned)
            found.append({
                "hand": style.name, "draw": draw, "samples": "".join(five),
                "distance_before": judge.distance(before, true), "distance_after": judge.distance(after, true),
                "l1_before": float(mean_absolute_difference(before, true).mean()),
                "l1_after": float(mean_absolute_difference(after, true).mean()),
                "style_read_before": before_old, "style_read_after": after_old,
            })  # fmt: skip
    return found


def _in_hand(base: LatentDiffusion, caption: str, true: Images, learned: Trainable | None = None) -> Images:
    prompts = [writing_prompt(base, caption, lines) for lines in skeletons_of(true)]
    return write(base, prompts, trainable=learned)


def _old_styles(base: LatentDiffusion, held: Dataset, judge: StyleJudge, learned: Trainable | None = None) -> float:
    """Share of the held-out glyphs in the trained styles that the judge takes for their style."""
    styles, lines = list(held.table["style"]), unpack_skeletons(load_skeletons(held))
    prompts = [writing_prompt(base, *one) for one in zip(_captions(styles), lines, strict=True)]
    images = write(base, prompts, trainable=learned)
    return float(np.mean(np.array(judge.read(images)) == np.array(styles)))


def table_text(report: Mapping[str, Any]) -> str:
    """The report's rows as a table in Markdown; shares in percent with their intervals.

    Args:
        report: of `score_calligraphy`.
    """
    head = "| glyphs | made from | L1 | RMSE | SSIM | style | outside reader | judge A | judge B |\n"
    rule = "|---" * 9 + "|\n"

    def share(estimate: Sequence[float]) -> str:
        mean, low, high = (100 * value for value in estimate)
        return f"{mean:.1f} [{low:.1f}, {high:.1f}]"

    def line(row: Mapping[str, Any]) -> str:
        distances = [f"{row[name][0]:.3f}" for name in ("l1", "rmse", "ssim")]
        shares = [share(row[name]) for name in ("style_read", "outside", "judge_a", "judge_b")]
        return "| " + " | ".join([row["split"], row["row"], *distances, *shares]) + " |"

    return head + rule + "\n".join(map(line, report["rows"])) + "\n"
