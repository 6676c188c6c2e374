"""Two radicals in one prompt: do they combine if each has a slot of its own, and fail if both need the same one?

Adapters are trained on kanji of six radicals, none of which shows two of the six. The prompts then name one radical
("water") or two of them in either order: "grass water" needs the top and the left slot, "water metal" the left slot
twice. All files go into one folder:

    data/, run/                         the image folder, and the training of all seeds together
    strip.png, table.parquet, report.json
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from kanjilab.core.config import Arm
from kanjilab.core.rng import counted_rng
from kanjilab.core.run_folder import RunFolder
from kanjilab.core.storage import write_json_atomic
from kanjilab.data.build import build_dataset
from kanjilab.data.components import Components, load_components, normal_form
from kanjilab.data.dictionary import load_characters
from kanjilab.data.radicals import radical_character
from kanjilab.data.rendering import default_font, draw_font, drawable_characters
from kanjilab.data.selection import Only, Seed16
from kanjilab.evaluation.judges.part_judge import Judge, load_judge
from kanjilab.evaluation.metrics import two_way_bootstrap, wilson_interval
from kanjilab.evaluation.statistics import Contrast, compare, sentence
from kanjilab.experiments.demo import run_facts
from kanjilab.experiments.reinvention import Without, part_glosses
from kanjilab.experiments.results import write_table
from kanjilab.experiments.run_reinvention import draw
from kanjilab.models.loading import load_base
from kanjilab.models.sampling import Sampling
from kanjilab.training.driver import finished_training
from kanjilab.training.encoded import encode_dataset
from kanjilab.training.presets import DEMO_SAMPLING, PLAIN_ARM
from kanjilab.viz.strip import Strip, save_strip

# Radicals of seed16 that are almost always in one slot, by classical number.
SLOT_OF = {85: "left", 167: "left", 149: "left", 120: "left", 140: "top", 118: "top"}
ALONE, SAME, DIFFERENT = "alone", "same slot", "different slots"
SHARES = ("any", "both", "first", "second", "another two")


@dataclass(frozen=True)
class PairScale:
    """How much of the experiment is done.

    Args:
        images_seen: budget of each training.
        per_radical: kanji of each radical.
        seeds: trainings, done together.
        noises: images a prompt, the same noise for all.
    """

    images_seen: int
    per_radical: int
    seeds: tuple[int, ...]
    noises: int


SCALES = {
    "smoke": PairScale(images_seen=64, per_radical=8, seeds=(0, 1), noises=1),
    "full": PairScale(images_seen=9_600, per_radical=88, seeds=tuple(range(100, 108)), noises=4),
}


@dataclass(frozen=True)
class Question:
    """One radical, or two in the order of the words.

    Attributes:
        kind: `ALONE`, `SAME` or `DIFFERENT`, by the slots that the radicals want.
        parts: normal forms, such as 水.
        prompt: their names.
    """

    kind: str
    parts: tuple[str, ...]
    prompt: str


def questions() -> list[Question]:
    """Every radical of `SLOT_OF` alone, then every ordered two of them."""
    glosses, found = part_glosses(load_characters()), []
    for count in (1, 2):
        for numbers in itertools.permutations(SLOT_OF, count):
            parts = tuple(normal_form(radical_character(number)) for number in numbers)
            slots = {SLOT_OF[number] for number in numbers}
            kind = ALONE if count == 1 else SAME if len(slots) == 1 else DIFFERENT
            found.append(Question(kind, parts, " ".join(glosses[part] for part in parts)))
    return found


def shown_together(parts: Collection[str], components: Components) -> dict[str, frozenset[str]]:
    """The characters that show two or more of the parts, however deep.

    Args:
        parts: normal forms.
        components: the list of decompositions.
    Returns:
        Character -> those of the parts that it shows.
    """
    found = {
        character: frozenset(part.element for part in listed.parts).intersection(parts)
        for character, listed in components.decompositions.items()
    }
    return {character: together for character, together in found.items() if len(together) > 1}


def run_pairs(
    folder: Path,
    *,
    base_name: str = "pocket",
    arm: Arm = PLAIN_ARM,
    scale: PairScale = SCALES["full"],
    judges: Sequence[Judge] = (),
    precision: str = "bf16",
    sampling: Sampling = DEMO_SAMPLING,
) -> dict[str, Any]:
    """Trains, draws and reads. Called again, it resumes.

    Args:
        folder: new, or of an earlier call with the same settings.
        base_name: as for `load_base`.
        arm: what is trained, once with each seed; its budget is the scale's.
        scale: how much of everything.
        judges: find the parts; A and B by default.
        precision: of the frozen denoiser.
        sampling: how images are drawn.
    Returns:
        The report that was written: what made it, and by the name of each judge `report_of` and `read_real`.
    Raises:
        ValueError: an unknown base, or an earlier call's settings were others.
        InterruptedError: a STOP file ended the training.
    """
    base = load_base(base_name, precision)  # an unknown name is refused before anything is written
    folder.mkdir(parents=True, exist_ok=True)
    judges = judges or [load_judge("A"), load_judge("B")]
    asked, characters, components = questions(), load_characters(), load_components()
    together = shown_together({part for question in asked for part in question.parts}, components)
    rule = Without.known(Only(Seed16(scale.per_radical), tuple(SLOT_OF)), together, characters, components)
    dataset = build_dataset(rule, folder / "data")
    arms = [replace(arm, images_seen=scale.images_seen, seed=seed) for seed in scale.seeds]
    run = finished_training(base, encode_dataset(base, dataset.split("train")), arms, folder / "run", checkpoints=1)
    prompts = [question.prompt for question in asked]
    images = np.stack([draw(base, run, prompts, range(scale.noises), sampling, k) for k in range(len(arms))])
    save_strip(pair_strip(asked, images[0, :, 0], run), folder / "strip.png")
    tables = {judge.name: read_pairs(judge, asked, scale.seeds, images) for judge in judges}
    write_table(pd.concat(tables, names=["judge"]).reset_index(level="judge"), folder / "table.parquet")
    report = run_facts(run, dataset) | {
        "sampling": sampling.to_json(),
        "noises": scale.noises,
        "judges": {
            judge.name: report_of(tables[judge.name]) | {"real": read_real(judge, asked, together)} for judge in judges
        },
    }
    write_json_atomic(folder / "report.json", report)
    return report


def read_pairs(judge: Judge, asked: Sequence[Question], seeds: Sequence[int], images: np.ndarray) -> pd.DataFrame:
    """Which parts of each prompt a judge finds.

    Args:
        judge: with `read`.
        asked: P questions.
        seeds: S, of the trainings.
        images: (S, P, N, H, W) uint8, N noises.
    Returns:
        One row an image: seed, noise, kind, prompt, parts (asked for), found (of the parts of all questions), and
        whether `any` asked part is there, the `first` and the `second` word's, `both`, or `another two` than the asked.
    """
    known = {part for question in asked for part in question.parts}
    readings = judge.read(images.reshape(-1, *images.shape[3:]))
    cells = itertools.product(seeds, asked, range(images.shape[2]))
    rows = []
    for (seed, question, noise), parts in zip(cells, readings["parts"], strict=True):
        found = known & set(parts)
        there = [part in found for part in question.parts]
        row = {"seed": seed, "noise": noise, "kind": question.kind, "prompt": question.prompt}
        row |= {"parts": "".join(question.parts), "found": "".join(sorted(found)), "any": any(there)}
        both = there == [True, True]
        row |= {"first": there[0], "second": there[1:] == [True], "both": both}
        rows.append(row | {"another two": len(found) > 1 and not both})
    return pd.DataFrame(rows)


def read_real(
    judge: Judge, asked: Sequence[Question], together: Mapping[str, frozenset[str]]
) -> dict[str, dict[str, Any]]:
    """The judge's readings where both parts are certain: of real characters, none of which was trained on.

    Args:
        judge, asked: as for `read_pairs`.
        together: of `shown_together`.
    Returns:
        For each kind of two the characters that show just two of the parts, and in what share of them the judge finds
        both, with Wilson's 95% interval.
    """
    drawable, found = drawable_characters(together, default_font()), {}
    for kind in (SAME, DIFFERENT):
        pairs = {frozenset(question.parts) for question in asked if question.kind == kind}
        characters = sorted(character for character in drawable if together[character] in pairs)
        glyphs = np.stack([np.asarray(draw_font(character, default_font())) for character in characters])
        parts = judge.read(glyphs)["parts"]
        hits = sum(together[character] <= set(seen) for character, seen in zip(characters, parts, strict=True))
        found[kind] = {"characters": "".join(characters), "both": list(wilson_interval(hits, len(characters)))}
    return found


def report_of(table: pd.DataFrame) -> dict[str, Any]:
    """The table's shares of images, each with its 95% interval over trainings and prompts.

    Args:
        table: of `read_pairs`.
    Returns:
        rates: of each kind the share of images with `any` asked part, and of two also the other `SHARES`;
        alone: how often each part comes when it alone is asked for;
        independent: for each kind of two, the share with both if each part came as often as it does alone;
        contrast: both in different slots against the same slot, each part's pairs of one kind against its own of the
        other, block by block.
    """
    kinds: dict[str, Any] = {kind: table.loc[table["kind"] == kind] for kind in (ALONE, SAME, DIFFERENT)}
    shares = {kind: SHARES[:1] if kind == ALONE else SHARES for kind in kinds}
    alone = {str(part): float(rows["any"].mean()) for part, rows in kinds[ALONE].groupby("parts")}
    different, same = (_by_part(kinds[kind], alone) for kind in (DIFFERENT, SAME))
    return {
        "rates": {kind: {name: _share(rows, name) for name in shares[kind]} for kind, rows in kinds.items()},
        "alone": alone,
        "independent": {
            kind: float(np.mean([alone[one] * alone[other] for one, other in kinds[kind]["parts"]]))
            for kind in (SAME, DIFFERENT)
        },
        "contrast": compare(different, same, (DIFFERENT, SAME)).to_json(),
    }


def _share(rows: pd.DataFrame, column: str) -> list[float]:
    outcomes = rows.astype({column: float}).pivot_table(index="seed", columns="prompt", values=column).to_numpy()
    return list(two_way_bootstrap(outcomes, counted_rng(0, "resampling")))


def _by_part(rows: pd.DataFrame, parts: Iterable[str]) -> np.ndarray:
    """(S, R) share of images with both, of the questions that ask for each of R parts."""
    counted = rows.astype({"both": float})
    each = [counted[[part in asked for asked in rows["parts"]]] for part in parts]
    return np.stack([of_part.pivot_table(index="seed", values="both").to_numpy()[:, 0] for of_part in each], axis=1)


def pair_strip(asked: Sequence[Question], images: np.ndarray, run: RunFolder) -> Strip:
    """The first word in rows, the second in columns; on the diagonal the radical alone.

    Args:
        asked: P questions.
        images: (P, H, W) uint8.
        run: what drew them.
    """
    drawn = {question.parts: image for question, image in zip(asked, images, strict=True)}
    names = {question.parts[0]: question.prompt for question in asked if question.kind == ALONE}
    rows = [[drawn[(one,) if one == other else (one, other)] for other in names] for one in names]
    groups = tuple((slot, len(list(members))) for slot, members in itertools.groupby(SLOT_OF.values()))
    return Strip(
        np.array(rows),
        tuple(f"{name} …" for name in names.values()),
        tuple(f"… {name}" for name in names.values()),
        "Two radicals asked for together (on the diagonal one alone): one training seed, one noise",
        {"run": run.settings["hash"], "seed": run.arm(0).seed},
        groups,
        groups,
    )


def rates_table(readings: Mapping[str, Any]) -> pd.DataFrame:
    """Kinds of questions in columns, shares of images in rows, each with its 95% interval.

    Args:
        readings: the report's entry of one judge.
    """

    def cell(values: Sequence[float]) -> str:
        return "{:.1%} [{:.1%}, {:.1%}]".format(*values)

    cells = {
        kind: {name: cell(values) for name, values in shares.items()} for kind, shares in readings["rates"].items()
    }
    for kind, real in readings["real"].items():
        cells[kind]["both, if each came as often as alone"] = f"{readings['independent'][kind]:.1%}"
        cells[kind]["both, in real characters"] = f"{cell(real['both'])} of {len(real['characters'])}"
    return pd.DataFrame(cells).fillna("")


def findings_of(report: Mapping[str, Any]) -> dict[str, str]:
    """Each judge's contrast of different slots against the same slot, as a sentence."""
    place = f"in {Path(report['settings']['base']).name}"
    return {
        name: sentence(Contrast.from_json(readings["contrast"]), place) for name, readings in report["judges"].items()
    }


def report_text(report: Mapping[str, Any]) -> str:
    """The report in words and numbers."""
    lines = [f"{len(report['settings']['arms'])} trainings, {report['noises']} images a prompt"]
    for name, finding in findings_of(report).items():
        lines += ["", f"judge {name}:", rates_table(report["judges"][name]).to_string(), finding]
    return "\n".join(lines)
