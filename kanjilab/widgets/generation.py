"""Draw a prompt, choose among the glyphs, explain the choice: what the playground does, without a widget."""

from __future__ import annotations

import fcntl
import io
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from kanjilab.core.run_folder import RunFolder, find_runs
from kanjilab.data.dictionary import load_characters
from kanjilab.evaluation.judges.explanation import LAYOUT_WORDS, explain
from kanjilab.evaluation.judges.part_judge import load_judge
from kanjilab.evaluation.scoring import glyphs_of
from kanjilab.evaluation.text_baseline import caption_words
from kanjilab.experiments.reinvention import part_glosses
from kanjilab.models.diffusion import LatentDiffusion
from kanjilab.models.loading import load_base
from kanjilab.models.sampling import Sampling, sample
from kanjilab.models.trainable import Trainable
from kanjilab.training.checkpoints import checkpoint_images_seen, load_checkpoints
from kanjilab.training.presets import DEMO_SAMPLING
from kanjilab.viz.charts import draw_glyph_sheet
from kanjilab.widgets.common import png_bytes, stacked

CHOOSER, REPORTER = "A", "B"  # one judge chooses, the other reports, so that no score praises its own choice
FRAMES_SHOWN = 12
COLUMNS = 6  # of a static picture: no wider than a glyph explained
BASE_ALONE = "the base alone, before any training"
WAIT_SECONDS = 0.2


# ---------------------------------------------------------------------------------------------- what to draw


@dataclass(frozen=True)
class Request:
    """What to draw, completely: the same request gives the same glyphs.

    Args:
        prompt: the text; must not be blank.
        seeds: one glyph is drawn for each.
        sampling: sampler, steps, guidance, negative prompt, prefix.
        run: folder of a trained run; None for the base alone.
        base: draws where there is no run: a name or a folder.
        arm: which arm of the run.
        step: which checkpoint; None for the last.
        parts: that a glyph should show, such as ("水",); () for those that the prompt names.
    Raises:
        ValueError: a blank prompt, or no seed, or one below 0 or given twice.
    """

    prompt: str
    seeds: tuple[int, ...] = (0,)
    sampling: Sampling = DEMO_SAMPLING
    run: Path | None = None
    base: str = "pocket"
    arm: int = 0
    step: int | None = None
    parts: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.prompt.strip():
            raise ValueError("type a prompt first")
        if not self.seeds or min(self.seeds) < 0 or len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"expected distinct seeds of 0 or more, got {self.seeds}")

    def to_json(self) -> dict[str, Any]:
        """A plain dictionary, ready for JSON."""
        return asdict(self) | {"run": None if self.run is None else str(self.run)}

    @classmethod
    def from_json(cls, contents: Mapping[str, Any]) -> Request:
        """The inverse of `to_json`."""
        changed = {"run": None if contents["run"] is None else Path(contents["run"])}
        changed |= {"seeds": tuple(contents["seeds"]), "parts": tuple(contents["parts"])}
        return cls(**{**contents, **changed, "sampling": Sampling(**contents["sampling"])})


@dataclass(frozen=True)
class Limits:
    """The most that one request may ask for.

    Args:
        characters: of prompt, prefix and negative prompt, each.
        steps: denoising steps.
        glyphs: seeds.
        guidance: classifier-free guidance scale.
    """

    characters: int = 1000
    steps: int = 200
    glyphs: int = 32
    guidance: float = 50.0

    def check(self, request: Request) -> Request:
        """The request itself.

        Raises:
            ValueError: it asks for more than this; says what and how much is allowed.
        """
        sampling = request.sampling
        longest = max(len(text) for text in (request.prompt, sampling.prefix, sampling.negative_prompt))
        asked = {"characters": longest, "steps": sampling.steps, "glyphs": len(request.seeds)}
        for name, value in (asked | {"guidance": sampling.guidance}).items():
            if not value <= getattr(self, name):
                raise ValueError(f"at most {getattr(self, name):g} {name}, got {value:g}")
        return request


PUBLIC = Limits(characters=100, steps=30, glyphs=6, guidance=15.0)


# ---------------------------------------------------------------------------------------------- models


class Models:
    """Loaded bases and the checkpoint used last; for one thread at a time.

    Args:
        loaded: bases that are loaded already; each draws whatever was trained on a base of its name.
        device: where to load others.
    """

    def __init__(self, *loaded: LatentDiffusion, device: str = "cpu"):
        self._device = device
        self._given = {base.name: base for base in loaded}
        self._bases: dict[tuple[str, str], LatentDiffusion] = {}
        self._used: tuple[tuple, Trainable] | None = None

    def load(self, request: Request) -> tuple[LatentDiffusion, Trainable | None]:
        """Base, and adapters or None, that a request asks for.

        Raises:
            RunError: no such run or checkpoint.
            ValueError: the run was trained on another base of that name.
        """
        if request.run is None:
            return self._base(request.base, "fp32"), None
        run = RunFolder.open(request.run)
        base = self._base(run.settings["base"], run.settings["precision"])
        step = run.checkpoints()[-1] if request.step is None else request.step
        key = (run.path, run.settings["hash"], request.arm, step)
        if self._used is None or self._used[0] != key:
            self._used = None  # a fully fine-tuned denoiser is large: not two at once
            self._used = key, load_checkpoints(base, run, [step], request.arm)
        return base, self._used[1]

    def _base(self, name: str, precision: str) -> LatentDiffusion:
        if name in self._given:
            return self._given[name]
        if (name, precision) not in self._bases:
            self._bases[name, precision] = load_base(name, precision, self._device)
        return self._bases[name, precision]


@contextmanager
def turn(lock: Path, check: Callable[[], None], on_wait: Callable[[], None]) -> Iterator[None]:
    """Wait until nobody else draws: of all processes that use this lock, one at a time.

    Args:
        lock: a file, made if need be; of whichever user.
        check: called again and again while waiting; what it raises ends the wait.
        on_wait: called once where there is a wait.
    """
    with suppress(FileExistsError):
        lock.touch(exist_ok=False)
        lock.chmod(0o644)  # whatever the umask: who may read the file can wait for it
    with lock.open("rb") as file:
        told = False
        while not _taken(file):
            if not told:
                on_wait()
            told = True
            check()
            time.sleep(WAIT_SECONDS)
        yield  # the lock goes with the file


def _taken(file: Any) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


# ---------------------------------------------------------------------------------------------- choices


def run_choices(runs: Path | None) -> list[tuple[str, tuple[Path, int] | None]]:
    """What can draw: the base alone, and every arm of every run below a folder that has a checkpoint.

    Args:
        runs: folder, searched to any depth; None for none.
    Returns:
        (label, (run's folder, arm)), and (label, None) last for the base alone.
    Raises:
        RunError: a run's settings cannot be read.
    """
    choices: list[tuple[str, tuple[Path, int] | None]] = []
    for run in find_runs(runs) if runs is not None else []:
        if not run.checkpoints():
            continue
        label = "/".join(run.path.parts[len(Path(runs or "").parts) :]).removesuffix("/run") or run.name
        arms = len(run.settings["arms"])
        choices += [(label + (f", arm {arm}" if arms > 1 else ""), (run.path, arm)) for arm in range(arms)]
    return [*choices, (BASE_ALONE, None)]


def checkpoint_choices(run: Path | None, arm: int = 0) -> list[tuple[str, int | None]]:
    """The checkpoints of a run, named by what they had seen: (label, step), the last first.

    Args:
        run: its folder; None for the base alone, which has one state.
        arm: which arm of the run.
    """
    if run is None:
        return [("as it is", None)]
    folder = RunFolder.open(run)
    choices = []
    for step in reversed(folder.checkpoints()):
        seen = checkpoint_images_seen(folder, step, arm)
        choices.append((f"{seen:,} images seen" if step else "before training", step))
    return choices


# ---------------------------------------------------------------------------------------------- drawing


@dataclass(frozen=True, eq=False)
class Glyphs:
    """What a request gave.

    Attributes:
        request: as it was made.
        images: (S, H, W) uint8, one glyph per seed.
        latents: (steps, S, C, h, w), after each denoising step.
        base: that decodes the latents.
        ranking: of `rank_glyphs`, S rows, by the judge that chooses.
        expected: parts that were wanted.
    """

    request: Request
    images: NDArray[np.uint8]
    latents: Tensor
    base: LatentDiffusion
    ranking: pd.DataFrame
    expected: tuple[str, ...]

    @property
    def best(self) -> int:
        """Index of the first in rank; where all were rejected, of the most nearly well-formed."""
        return int(np.argmin(self.ranking["order"].to_numpy()))

    def forming(self, index: int) -> tuple[NDArray[np.uint8], list[int]]:
        """How a glyph formed: (F, H, W) uint8 after some of its steps, evenly chosen up to the last; and which."""
        steps = len(self.latents)
        shown = sorted({round(step) for step in np.linspace(1, steps, min(steps, FRAMES_SHOWN))})
        frames = self.base.decode(self.latents[[step - 1 for step in shown], index].to(self.base.device))
        return glyphs_of(frames[None]), shown

    def picture(self, index: int | None = None) -> Image.Image:
        """One glyph explained, how it formed, and all others with their ranks; None for the best."""
        index = self.best if index is None else index
        frames, steps = self.forming(index)
        labels = [f"step {step}" for step in steps]
        sheets = [explain(load_judge(REPORTER), self.images[index], self.request.prompt)]
        sheets.append(draw_glyph_sheet(frames, labels, columns=COLUMNS))
        if len(self.images) > 1:
            order = list(np.argsort(self.ranking["order"]))
            captions = [short_caption(self.ranking.iloc[one], self.request.seeds[one]) for one in order]
            sheets.append(draw_glyph_sheet(self.images[order], captions, columns=COLUMNS))
        return stacked([Image.open(io.BytesIO(png_bytes(sheet))) for sheet in sheets])


def draw_glyphs(
    request: Request, models: Models | None = None, on_step: Callable[[Tensor], None] = lambda latents: None
) -> Glyphs:
    """Draw a request and rank the glyphs.

    Args:
        request: what to draw.
        models: that keep what they loaded; None for new ones.
        on_step: called after each denoising step with the latents (S, C, h, w); what it raises ends the drawing.
    Raises:
        RunError, ValueError, FileNotFoundError: there is no such run, checkpoint or base.
    """
    base, trainable = (models or Models()).load(request)
    latents: list[Tensor] = []

    def keep(now: Tensor) -> None:
        latents.append(now.float().cpu())
        on_step(now)

    images = sample(
        base,
        [request.prompt],
        request.seeds,
        request.sampling,
        trainable=trainable,
        batch=len(request.seeds),
        on_latents=keep,
    )
    images = glyphs_of(images[0])  # (S, H, W)
    chooser = load_judge(CHOOSER)
    expected = request.parts or named_parts(request.prompt, chooser.parts)
    ranking = rank_glyphs(chooser.read(images), expected)
    return Glyphs(request, images, torch.stack(latents), base, ranking, expected)


@cache
def glosses() -> dict[str, str]:
    """English names of parts, as from `part_glosses`."""
    return part_glosses(load_characters())


def named_parts(prompt: str, parts: Sequence[str], names: Mapping[str, str] | None = None) -> tuple[str, ...]:
    """The parts that a prompt names in so many words.

    Args:
        prompt: such as "fire fish".
        parts: known ones, in order of preference where two have the same name.
        names: part -> English name; None for `glosses`.
    Returns:
        such as ("火", "魚"), in the order of the prompt.
    """
    names = glosses() if names is None else names
    by_words: dict[tuple[str, ...], str] = {}
    for part in parts:
        if part in names:
            by_words.setdefault(caption_words(names[part]), part)
    words, found, place = caption_words(prompt), [], 0
    while place < len(words):
        length = next((n for n in (2, 1) if tuple(words[place : place + n]) in by_words), 0)
        if length:
            found.append(by_words[tuple(words[place : place + length])])
        place += length or 1
    return tuple(dict.fromkeys(found))


def rank_glyphs(readings: pd.DataFrame, expected: Sequence[str]) -> pd.DataFrame:
    """Reject what is no glyph, and put the others in order.

    First by how many of the expected parts are seen, then those that are no existing character, then by how
    well-formed they are.

    Args:
        readings: of `Judge.read`, N rows.
        expected: parts that were wanted.
    Returns:
        N rows in the same order: found (expected parts that are seen), rejected (why, "" where it is kept), order
        (0 the best; rejected ones come last), rank (1 the best of those kept, 0 where it is rejected), exists,
        codepoint and nearest as read.
    """
    found = [tuple(part for part in expected if part in seen) for seen in readings["parts"]]
    rejected = [
        "" if legal else f"not well-formed ({share:.2f})"
        for legal, share in zip(readings["legal"], readings["legal_probability"], strict=True)
    ]
    table = readings[["exists", "codepoint", "nearest", "legal_probability"]].assign(found=found, rejected=rejected)
    keys = pd.DataFrame(
        {
            "out": [bool(why) for why in rejected],
            "missing": [-len(parts) for parts in found],
            "exists": readings["exists"].to_numpy(bool),
            "ill": -readings["legal_probability"].to_numpy(float),
        }
    )
    keys.loc[keys["out"], ["missing", "exists"]] = [0, False]  # of those rejected, the most nearly well-formed first
    order = np.empty(len(keys), dtype=int)
    order[keys.sort_values(["out", "missing", "exists", "ill"], kind="stable").index] = np.arange(len(keys))
    return table.assign(order=order, rank=np.where(keys["out"], 0, order + 1))


def short_caption(ranked: Any, seed: int) -> str:
    """A glyph's place among the others, in a few letters: `1. seed 7`, or `out: seed 7`.

    Args:
        ranked: row of `rank_glyphs`.
        seed: of the glyph.
    """
    return f"{ranked['rank']}. seed {seed}" if ranked["rank"] else f"out: seed {seed}"


def placing(ranked: Any, seed: int, expected: Sequence[str]) -> str:
    """Why a glyph has its place among the others, in words.

    Args:
        ranked: row of `rank_glyphs`.
        seed: of the glyph.
        expected: parts that were wanted.
    """
    if ranked["rejected"]:
        return f"seed {seed}: rejected by judge {CHOOSER}, {ranked['rejected']}"
    parts = f"{len(ranked['found'])} of {len(expected)} expected parts ({''.join(expected)}), " if expected else ""
    novelty = f"exists as {ranked['codepoint']} {ranked['nearest']}" if ranked["exists"] else "new"
    return f"seed {seed}: rank {ranked['rank']}, {parts}{novelty}, well-formed {ranked['legal_probability']:.2f}"


def describe(reading: Any, names: Mapping[str, str], characters: pd.DataFrame) -> str:
    """What a judge read, in a sentence or two.

    Args:
        reading: row of `Judge.read`.
        names: part -> English name, as from `glosses`.
        characters: the dictionary.
    Returns:
        such as "Well-formed (0.98), left and right. Parts: 人 person (0.99), 木 tree (0.99). Already exists as
        U+4F11 休 (rest)."
    """
    legal = "Well-formed" if reading["legal"] else "Not well-formed"
    layout = LAYOUT_WORDS.get(reading["layout"], "no clear layout")
    seen = [
        " ".join(filter(None, [part, names.get(part)])) + f" ({score:.2f})"
        for part, score in zip(reading["parts"], reading["part_scores"], strict=True)
    ]
    nearest, distance = f"{reading['codepoint']} {reading['nearest']}", f"{reading['distance']:.2f}"
    known = reading["nearest"] in characters.index
    meanings = "; ".join(characters.loc[reading["nearest"], "meanings"][:3]) if known else ""
    nearest += f" ({meanings})" if meanings else ""
    novelty = (
        f"Already exists as {nearest}."
        if reading["exists"]
        else (f"In no list of characters; the nearest is {nearest}, at distance {distance}.")
    )
    parts = f"Parts: {', '.join(seen)}." if seen else "No part that is known."
    return f"{legal} ({reading['legal_probability']:.2f}), {layout}. {parts} {novelty}"
