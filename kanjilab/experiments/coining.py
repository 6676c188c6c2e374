"""Coin a kanji: draw a phrase in several readings, let judge A choose, and let judge B report.

What is not well-formed, or exists already, is rejected. Of glyphs that are nearly the same, the best one counts.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

import kanjilab
from kanjilab.core.progress import bar
from kanjilab.core.rng import SEED_MAX
from kanjilab.data.components import load_components
from kanjilab.data.dictionary import load_characters
from kanjilab.data.part_names import name_of_part
from kanjilab.data.typeset import SLOTS_OF_LAYOUT
from kanjilab.evaluation.criteria import (
    CRITERIA,
    ONE_STROKE,
    Context,
    dictionary_context,
    judge_images,
    line_difference,
    load_frozen,
)
from kanjilab.evaluation.judges.framing import Images
from kanjilab.evaluation.judges.part_judge import load_judge
from kanjilab.evaluation.scoring import glyphs_of
from kanjilab.experiments.certificate import Certificate, novelty_sentence, outlines_near, verdicts_of
from kanjilab.experiments.phrase_readings import Embed, Reading, read_phrase, translate
from kanjilab.models.diffusion import LatentDiffusion
from kanjilab.models.japanese import reading_japanese, text_vectors
from kanjilab.models.loading import load_base, usual_device
from kanjilab.models.sampling import Sampling, fitting, sample
from kanjilab.training.presets import DEMO_SAMPLING

CHOOSER, REPORTER = "A", "B"  # one judge chooses and the other reports, so that no judge scores its own choice
NOISES, KEEP = 8, 8
WRITER = "writer"

Draw = Callable[[Sequence[str], Sequence[int]], NDArray[np.uint8]]  # P prompts, S seeds -> (P S, 128, 128)


@dataclass(frozen=True, eq=False)
class Coined:
    """A glyph, (128, 128) uint8 with 0 for ink, and its certificate."""

    image: NDArray[np.uint8]
    certificate: Certificate


@dataclass(frozen=True, eq=False)
class Coinage:
    """What came of a phrase.

    Attributes:
        phrase: as it was given.
        translation: its English, for a phrase in Japanese; else "".
        readings: that were drawn.
        candidates: how many glyphs were drawn.
        rejected: how many for each reason.
        glyphs: the best first; where all candidates were rejected, the best of those.
        unread: named parts that are not among those that the judges find, so that no glyph can pass for its meaning.
    """

    phrase: str
    translation: str
    readings: tuple[Reading, ...]
    candidates: int
    rejected: Mapping[str, int]
    glyphs: tuple[Coined, ...]
    unread: tuple[str, ...] = ()

    @property
    def found(self) -> bool:
        """Whether any candidate was well-formed and new."""
        return bool(self.glyphs) and not self.glyphs[0].certificate.rejected

    @property
    def summary(self) -> str:
        """How many were drawn, rejected and kept, and how many pass all five criteria by the judge that reports."""
        why = ", ".join(f"{count} {reason}" for reason, count in self.rejected.items())
        drawn = f"{self.candidates} candidates" + (f", of which {why}" if why else "")
        if not self.found:
            return f"{drawn}. Nothing found: none is both well-formed and new. The best, with what each lacks:"
        passing = sum(one.certificate.report.passes for one in self.glyphs)
        kept = f"{drawn}. Kept {len(self.glyphs)}; {passing} pass all five criteria by judge {REPORTER}."
        named = " and ".join(f"{part} ({name_of_part(part)})" for part in self.unread)
        return kept + (f" The judges do not know {named}: none can pass for its meaning." if named else "")


def coin(
    phrase: str,
    *,
    parts: str = "",
    layouts: Sequence[str] = tuple(SLOTS_OF_LAYOUT),
    noises: int = NOISES,
    keep: int = KEEP,
    seed: int = 0,
    writer: LatentDiffusion | str = WRITER,
    sampling: Sampling = DEMO_SAMPLING,
    draw: Draw | None = None,
    embed: Embed = text_vectors,
    on_drawn: Callable[[Reading, Images], None] = lambda reading, images: None,
    on_progress: Callable[[int, int], None] | None = None,
) -> Coinage:
    """Coin glyphs for a phrase.

    Args:
        phrase: in English or in Japanese; one in kanji is read in the dictionary's translation too.
        parts: two of them to draw, such as "woman+bird" or "女+鳥"; "" for those that the words suggest.
        layouts: that pairs may have.
        noises: candidates of each reading.
        keep: how many glyphs come back, at most.
        seed: of the first noise; the others follow.
        writer: what draws: a base, or its name as for `load_base`, which is loaded in bf16 once the phrase is read.
        sampling: how it draws.
        draw: draws in the writer's place: takes P prompts and S seeds, gives (P S, 128, 128) uint8, a prompt's images
            side by side.
        embed: captions to unit vectors (N, D).
        on_drawn: called with each reading and its candidates before these are judged.
        on_progress: called with (readings drawn, all); a progress bar by default.
    Raises:
        ValueError: as `read_phrase`, or a number below its least.
    """
    if min(noises, keep) < 1 or seed < 0:
        raise ValueError(f"expected noises and keep of 1 or more, seed of 0 or more, got {noises}, {keep}, {seed}")
    if seed + noises - 1 > SEED_MAX:
        raise ValueError(f"expected seeds of at most {SEED_MAX:,}, got {noises} from {seed}")
    translation = translate(phrase, load_characters())
    options = {"translation": translation, "parts": parts, "layouts": layouts, "embed": embed}
    readings = read_phrase(phrase, load_components(), **options)
    facts: dict[str, Any] = {"phrase": phrase, "translation": translation, "sampling": sampling.to_json()}
    facts |= {"writer": "", "identity": "", "version": kanjilab.__version__}
    if draw is None:
        writer = load_base(writer, "bf16", usual_device()) if isinstance(writer, str) else writer
        writer = reading_japanese(writer)
        sampling = fitting(sampling, writer)
        facts |= {"sampling": sampling.to_json() | {"precision": writer.precision}}
        facts |= {"writer": writer.name, "identity": writer.identity}
        draw = partial(_drawn, writer, sampling)
    seeds = range(seed, seed + noises)
    images = _candidates(draw, readings, seeds, on_drawn, on_progress or bar("draw"))
    origins = [Origin(reading, one) for reading in readings for one in seeds]
    chooser = dictionary_context(load_judge(CHOOSER), asked={one.prompt: one.parts for one in readings}, embed=embed)
    glyphs, rejected = choose(images, origins, keep, chooser, facts)
    named = readings[0].parts if parts else ()
    unread = tuple(part for part in named if part not in load_judge(REPORTER).parts)
    return Coinage(phrase, translation, tuple(readings), len(images), rejected, glyphs, unread)


class Origin(NamedTuple):
    """What a candidate was drawn from."""

    reading: Reading
    seed: int


def _drawn(writer: LatentDiffusion, sampling: Sampling, prompts: Sequence[str], seeds: Sequence[int]) -> Images:
    return glyphs_of(sample(writer, prompts, seeds, sampling)[0])


def _candidates(
    draw: Draw,
    readings: Sequence[Reading],
    seeds: Sequence[int],
    on_drawn: Callable[[Reading, Images], None],
    progress: Callable[[int, int], None],
) -> Images:
    """(R S, H, W): every reading with every seed, a reading's images side by side."""
    images = []
    for done, reading in enumerate(readings):
        progress(done, len(readings))
        images.append(draw([reading.prompt], seeds))
        on_drawn(reading, images[-1])
    progress(len(readings), len(readings))
    return np.concatenate(images)


def choose(
    images: Images, origins: Sequence[Origin], keep: int, chooser: Context, facts: Mapping[str, Any]
) -> tuple[tuple[Coined, ...], dict[str, int]]:
    """Let judge A rank and reject candidates, and certify the best.

    Args:
        images: (N, H, W) uint8, candidates.
        origins: N, of each.
        keep: how many come back, at most.
        chooser: context of judge A.
        facts: fields of the certificates that are the same for all.
    Returns:
        The best glyphs, nearly equal ones once, and how many candidates were rejected for each reason. Where all
        were rejected, the glyphs are the best of these.
    """
    prompts = [origin.reading.prompt for origin in origins]
    ranked = rank_candidates(judge_images(load_judge(CHOOSER), images, prompts, chooser))
    best = _best(ranked, images, keep)
    rejected = Counter(str(reason) for reason in ranked["rejected"] if reason)
    why = [str(ranked["rejected"][row]) for row in best]
    certificates = certify(images[best], [origins[row] for row in best], why, chooser, facts)
    glyphs = tuple(Coined(images[row], one) for row, one in zip(best, certificates, strict=True))
    return glyphs, dict(rejected.most_common())


def rank_candidates(measured: pd.DataFrame) -> pd.DataFrame:
    """Reject what is not well-formed or not new, and order the others.

    Those come first that pass more criteria; among equals each combination of parts and layout in turn, and of one
    combination the glyph that shows more of the expected parts and is more surely well-formed.

    Args:
        measured: of `criteria.judge_images`, N rows.
    Returns:
        N rows in the same order: rejected (the reason, or "") and place (int, 0 is the best).
    """
    legal, new = measured["legal"], measured["novel"] & ~measured["neighbour_exists"]
    kinds = np.where(measured["novel"], "exists", measured["novelty"])
    rejected = np.where(~legal, "not well-formed", np.where(new, "", [f"not new: {kind}" for kind in kinds]))
    found, expected = measured["parts"].str.split(), measured["expected"].str.split()
    shown = [len(set(own) & set(wanted)) for own, wanted in zip(found, expected, strict=True)]
    keys = pd.DataFrame(
        {
            "out": rejected != "",
            "failed": -measured[list(CRITERIA)].sum(axis=1),
            "unseen": -np.array(shown),
            "ill": -measured["legal_probability"],
            "kind": [
                f"{layout} {' '.join(sorted(own))}" for layout, own in zip(measured["layout"], found, strict=True)
            ],
        }
    ).sort_values(["out", "failed", "unseen", "ill"], kind="stable")
    keys["turn"] = keys.groupby(["out", "failed", "kind"]).cumcount()
    order = keys.sort_values(["out", "failed", "turn", "unseen", "ill"], kind="stable").index
    place = np.empty(len(keys), int)
    place[order] = np.arange(len(keys))
    return pd.DataFrame({"rejected": rejected, "place": place}, index=measured.index)


def _best(ranked: pd.DataFrame, images: Images, keep: int) -> list[int]:
    """Rows of the best candidates, without those that nearly equal a better one; rejected ones only if all are."""
    rows = [int(row) for row in np.argsort(ranked["place"].to_numpy())]
    accepted = [row for row in rows if ranked["rejected"].iloc[row] == ""]
    best: list[int] = []
    for row in accepted or rows:
        if len(best) < keep and not _is_among(images[row], images[best]):
            best.append(row)
    return best


def _is_among(image: NDArray[np.uint8], others: Images) -> bool:
    """Whether a glyph is less than a stroke apart from one of the others."""
    if not len(others):
        return False
    return bool((line_difference(np.stack([image] * len(others)), others) < ONE_STROKE).any())


def certify(
    images: Images, origins: Sequence[Origin], rejected: Sequence[str], chooser: Context, facts: Mapping[str, Any]
) -> list[Certificate]:
    """The certificates of glyphs, by both judges and the outlines of their strokes.

    Args:
        images: (N, H, W) uint8.
        origins: N, of each.
        rejected: N reasons of judge A, or "".
        chooser: context of judge A.
        facts: the other fields of all certificates.
    """
    prompts = [origin.reading.prompt for origin in origins]
    judges = load_judge(CHOOSER), load_judge(REPORTER)
    bounds, thresholds = load_frozen(judges[1])
    contexts = chooser, replace(chooser, bounds=bounds, thresholds=thresholds)
    read = [verdicts_of(judge, images, prompts, one) for judge, one in zip(judges, contexts, strict=True)]
    outlines = outlines_near(chooser, images)
    certificates = []
    for index, (reading, seed) in enumerate(origins):
        verdicts = read[0][index], read[1][index]
        own = {"prompt": reading.prompt, "reason": reading.reason, "seed": seed, "asked": reading.parts}
        own |= {"layout": reading.pair.layout if reading.pair else "", "rejected": rejected[index]}
        own |= {"novelty": novelty_sentence(verdicts, len(judges[1].characters)), "verdicts": verdicts}
        own |= {"outline": outlines[index], "picture": hashlib.sha256(images[index].tobytes()).hexdigest()}
        certificates.append(Certificate(**facts, **own))
    return certificates
