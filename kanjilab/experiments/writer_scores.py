"""How well the writer draws what a caption names: pairs that it was taught, pairs held out, pairs that no kanji has.

Judge A chooses where there is a choice; judge B reports. All files go into one folder: drawn.npz, table.parquet,
report.json, sheet.png.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from kanjilab.core.progress import bar
from kanjilab.core.rng import counted_rng
from kanjilab.core.storage import write_json_atomic
from kanjilab.data.components import Components, is_held_out, load_components
from kanjilab.data.dictionary import has_clean_meaning, load_characters, rows_of
from kanjilab.data.part_names import has_name, parts_caption
from kanjilab.data.rendering import default_font, drawable_characters
from kanjilab.data.typeset import Pair, novel_pairs, pair_of
from kanjilab.data.writer_corpus import FREQUENT, SlotCounts, is_held_out_pair, places, slot_counts
from kanjilab.evaluation.criteria import dictionary_context, judge_images, outer_parts
from kanjilab.evaluation.judges.framing import Images
from kanjilab.evaluation.judges.part_judge import load_judge
from kanjilab.evaluation.metrics import wilson_interval
from kanjilab.evaluation.scoring import glyphs_of
from kanjilab.experiments.coining import rank_candidates
from kanjilab.experiments.results import write_table
from kanjilab.models.diffusion import LatentDiffusion
from kanjilab.models.loading import load_base
from kanjilab.models.sampling import Sampling, fitting, sample
from kanjilab.training.presets import DEMO_SAMPLING
from kanjilab.viz.strip import Strip

TAUGHT, HELD_OUT, NOVEL, MEANING = "taught", "held out", "novel", "meaning"
PROMPTS = 64  # of each set
NOISES = 4
BEST_OF = 8  # images of each novel pair
DRAWN_AT_ONCE = 8  # prompts
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
SHUFFLES = 20  # of the control


@dataclass(frozen=True)
class Asked:
    """One prompt of a set.

    Attributes:
        kind: one of the four sets.
        prompt: what the writer is asked.
        parts: normal forms that the glyph should show.
        layout: of a pair; "" for a meaning.
        character: the real one; "" for a novel pair.
    """

    kind: str
    prompt: str
    parts: tuple[str, ...]
    layout: str = ""
    character: str = ""


def writer_prompts(prompts: int = PROMPTS, seed: int = 0) -> list[Asked]:
    """The prompts of all four sets; of pairs, as many different second parts as there are.

    Args:
        prompts: of each set, at most.
        seed: of the choice.
    """
    components, characters = load_components(), load_characters()
    listed = [character for character in components.decompositions if character in characters.index]
    known = sorted(drawable_characters(listed, default_font()))
    counts, vocabulary = slot_counts(components, known), set(load_judge("B").parts)
    real = [(character, pair) for character in known if (pair := _frequent_pair(character, components, counts))]
    shown = [(character, pair) for character, pair in real if {pair.first, pair.second} <= vocabulary]
    taught = [(c, pair) for c, pair in shown if not is_held_out(c) and not is_held_out_pair(pair, counts)]
    held = [(character, pair) for character, pair in shown if is_held_out_pair(pair, counts)]
    novel = [("", pair) for pair in novel_pairs(components) if is_held_out_pair(pair, counts) and _named(pair)]
    sets = {TAUGHT: taught, HELD_OUT: held, NOVEL: novel}
    asked = [
        Asked(kind, parts_caption(*_fields(pair)), (pair.first, pair.second), pair.layout, character)
        for kind, items in sets.items()
        for character, pair in _spread(items, prompts, seed)
    ]
    return asked + _by_meaning(known, components, vocabulary, prompts, seed)


def _fields(pair: Pair) -> tuple[str, str, str]:
    return pair.layout, pair.first, pair.second


def _named(pair: Pair) -> bool:
    return has_name(pair.first) and has_name(pair.second)


def _frequent_pair(character: str, components: Components, counts: SlotCounts) -> Pair | None:
    """Its two parts, where both have a name and are frequent in their slots."""
    pair = pair_of(components.of(character))
    if pair is None or not _named(pair):
        return None
    return pair if all(counts[place] >= FREQUENT for place in places(pair)) else None


def _spread(items: Sequence[tuple[str, Pair]], count: int, seed: int) -> list[tuple[str, Pair]]:
    """So many of them: one of each second part in turn, in a random order."""
    order = counted_rng(seed, "recipe").permutation(len(items))
    turns: dict[str, int] = {}
    keyed = []
    for index in order:
        second = items[index][1].second
        keyed.append((turns.setdefault(second, 0), len(keyed), items[index]))
        turns[second] += 1
    return [item for _, _, item in sorted(keyed)[:count]]


def _by_meaning(
    known: Sequence[str], components: Components, vocabulary: set[str], prompts: int, seed: int
) -> list[Asked]:
    """First meanings of held-out characters, where no character of the training has the same meaning."""
    table = load_characters().loc[list(known)]
    table = table.loc[has_clean_meaning(table)]
    seen = {gloss for row in rows_of(table) if not is_held_out(row.Index) for gloss in row.meanings}
    found = []
    for row in rows_of(table):
        parts = outer_parts(row.Index, components, vocabulary)
        if is_held_out(row.Index) and parts and row.meanings[0] not in seen:
            found.append(Asked(MEANING, row.meanings[0], parts, character=row.Index))
    return [found[index] for index in sorted(counted_rng(seed, "recipe", 1).permutation(len(found))[:prompts])]


def score_writer(
    folder: Path,
    base_name: str = "writer",
    *,
    prompts: int = PROMPTS,
    precision: str = "bf16",
    sampling: Sampling = DEMO_SAMPLING,
    draw: Callable[[Sequence[str], Sequence[int]], Images] | None = None,
) -> dict[str, Any]:
    """Draw all prompts, read them and write the report.

    Args:
        folder: made if need be; what it holds is replaced.
        base_name: as for `load_base`.
        prompts: of each set.
        precision: of the denoiser.
        sampling: how images are drawn.
        draw: draws in the base's place: P prompts and S seeds to (P S, 128, 128) uint8, a prompt's side by side.
    Returns:
        The report that was written, see `report_of`.
    """
    facts: dict[str, Any] = {"base": base_name, "precision": precision, "noises": NOISES, "best_of": BEST_OF}
    if draw is None:
        base = load_base(base_name, precision)
        sampling = fitting(sampling, base)
        facts |= {"identity": base.identity, "sampling": sampling.to_json()}
        draw = partial(_drawn, base, sampling)
    asked = writer_prompts(prompts)
    images = {kind: _images(draw, asked, kind) for kind in (TAUGHT, HELD_OUT, NOVEL, MEANING)}
    tables = [read_pairs([one for one in asked if one.kind == kind], images[kind], kind) for kind in images]
    table = pd.concat(tables, ignore_index=True)
    report = facts | {"sets": report_of(table)}
    folder.mkdir(parents=True, exist_ok=True)
    drawn: dict[str, Any] = {kind.replace(" ", "_"): found for kind, found in images.items()}
    np.savez_compressed(folder / "drawn.npz", **drawn)
    write_table(table, folder / "table.parquet")
    write_json_atomic(folder / "report.json", report)
    return report


def _drawn(base: LatentDiffusion, sampling: Sampling, prompts: Sequence[str], seeds: Sequence[int]) -> Images:
    return glyphs_of(sample(base, prompts, seeds, sampling)[0])


def _images(draw: Callable[[Sequence[str], Sequence[int]], Images], asked: Sequence[Asked], kind: str) -> Images:
    """(P, S, H, W) of one set."""
    prompts, progress = [one.prompt for one in asked if one.kind == kind], bar(f"draw {kind}")
    seeds, drawn = range(BEST_OF if kind == NOVEL else NOISES), []
    for start in range(0, len(prompts), DRAWN_AT_ONCE):
        progress(start, len(prompts))
        drawn.append(draw(prompts[start : start + DRAWN_AT_ONCE], seeds))
    progress(len(prompts), len(prompts))
    images = np.concatenate(drawn)
    return images.reshape(len(prompts), len(seeds), *images.shape[1:])


def read_pairs(asked: Sequence[Asked], images: Images, kind: str) -> pd.DataFrame:
    """One row an image: what judge B finds, and for novel pairs which image judge A would choose.

    Args:
        asked: P prompts of one set.
        images: (P, S, H, W) uint8.
        kind: of the set.
    Returns:
        kind, prompt, character, layout, noise, first and second (bool: the asked part is there), either, both,
        well_formed, parts, wanted; for novel pairs also all_five by B and chosen, A's choice among a prompt's images.
    """
    flat = images.reshape(-1, *images.shape[2:])
    rows = [(one, noise) for one in asked for noise in range(images.shape[1])]
    readings = load_judge("B").read(flat)
    table = pd.DataFrame(
        {
            "kind": kind,
            "prompt": [one.prompt for one, _ in rows],
            "character": [one.character for one, _ in rows],
            "layout": [one.layout for one, _ in rows],
            "noise": [noise for _, noise in rows],
            "wanted": ["".join(one.parts) for one, _ in rows],
            "parts": ["".join(found) for found in readings["parts"]],
            "first": [one.parts[0] in found for (one, _), found in zip(rows, readings["parts"], strict=True)],
            "second": [one.parts[-1] in found for (one, _), found in zip(rows, readings["parts"], strict=True)],
            "well_formed": readings["legal"].to_numpy(),
        }
    )
    table["either"], table["both"] = table["first"] | table["second"], table["first"] & table["second"]
    if kind == NOVEL:
        table = table.join(_criteria(asked, flat, [one.prompt for one, _ in rows]))
    return table


def _criteria(asked: Sequence[Asked], flat: Images, prompts: Sequence[str]) -> pd.DataFrame:
    """all_five by judge B, and chosen: of each prompt's images the one that `coin` would put first, by judge A."""
    named = {one.prompt: one.parts for one in asked}
    by_a, by_b = (
        judge_images(load_judge(name), flat, prompts, dictionary_context(load_judge(name), asked=named))
        for name in ("A", "B")
    )
    place = rank_candidates(by_a)["place"]
    chosen = place == place.groupby(by_a["prompt"]).transform("min")
    return pd.DataFrame({"all_five": by_b["all_five"], "chosen": chosen})


def report_of(table: pd.DataFrame) -> dict[str, Any]:
    """Shares of images, each with Wilson's 95% interval and the number of images.

    Args:
        table: of `read_pairs`, all sets.
    Returns:
        By set: first, second, right (second part of left-right pairs), either, both, well_formed; for novel pairs also
        all_five and best (all five, of the chosen images); for meanings instead parts, the share of a character's
        parts that its images show, shuffled, the same for another character's parts, and well_formed.
    """
    report: dict[str, Any] = {}
    groups: Any = table.groupby("kind", sort=False)
    for kind, rows in groups:
        shares = {name: _share(rows[name]) for name in ("first", "second", "either", "both", "well_formed")}
        if (beside := rows["layout"] == "⿰").any():
            shares["right"] = _share(rows.loc[beside, "second"])
        if kind == NOVEL:
            chosen = rows["chosen"].astype(bool)
            shares |= {"all_five": _share(rows["all_five"]), "best": _share(rows.loc[chosen, "all_five"])}
        report[str(kind)] = _meaning_shares(rows) if kind == MEANING else shares
    return report


def _share(outcomes: Any) -> list[float]:
    return [*wilson_interval(int(outcomes.astype(bool).sum()), len(outcomes)), len(outcomes)]


def _meaning_shares(rows: pd.DataFrame) -> Mapping[str, Any]:
    """Recall of a character's own parts, and of those of characters drawn at random, over the same images."""
    found = rows.groupby("prompt", sort=False)["parts"].apply(list)
    wanted = rows.groupby("prompt", sort=False)["wanted"].first().tolist()

    def recall(order: Sequence[int]) -> float:
        own = [(set(wanted[index]), texts) for index, texts in zip(order, found, strict=True)]
        return float(np.mean([len(parts & set(text)) / len(parts) for parts, texts in own for text in texts]))

    rng = counted_rng(0, "resampling")
    shuffled = [recall(rng.permutation(len(wanted)).tolist()) for _ in range(SHUFFLES)]
    facts = {"parts": recall(range(len(wanted))), "shuffled": float(np.mean(shuffled)), "prompts": len(wanted)}
    return facts | {"well_formed": _share(rows["well_formed"])}


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
