"""Draw a prompt, rank the glyphs and explain one: what the playground does, without widgets."""

from __future__ import annotations

import fcntl
import io
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from kanjilab.core.config import DEFAULT_BASE
from kanjilab.core.rng import SEED_MAX
from kanjilab.core.run_folder import RunFolder, find_runs
from kanjilab.data.dictionary import load_characters
from kanjilab.data.part_names import part_names
from kanjilab.evaluation.caption_baseline import caption_words
from kanjilab.evaluation.judges.explanation import explain
from kanjilab.evaluation.judges.part_judge import load_judge
from kanjilab.evaluation.scoring import glyphs_of
from kanjilab.experiments.coining import WRITER
from kanjilab.experiments.reinvention import part_glosses
from kanjilab.models.diffusion import LatentDiffusion
from kanjilab.models.japanese import reading_japanese
from kanjilab.models.loading import PACKAGED, load_base
from kanjilab.models.sampling import Sampling, sample
from kanjilab.models.trainable import Trainable
from kanjilab.training.checkpoints import checkpoint_images_seen, load_checkpoints
from kanjilab.training.presets import DEMO_SAMPLING
from kanjilab.viz.charts import draw_glyph_sheet
from kanjilab.widgets.common import png_bytes, stacked

CHOOSER, REPORTER = "A", "B"  # one judge chooses and the other reports, so that no judge scores its own choice
FRAMES_SHOWN = 12
COLUMNS = 6  # of a static picture, which is then no wider than the explanation above it
BASE_ALONE = "the base alone, before any training"
WRITER_ALONE = "the writer"
WAIT_SECONDS = 0.2


@dataclass(frozen=True)
class Request:
    """All settings of a drawing: the same request gives the same glyphs.

    Args:
        prompt: the text; not blank.
        seeds: one glyph is drawn for each.
        sampling: sampler, steps, guidance, negative prompt, prefix.
        run: folder of a trained run; None for the base alone.
        base: used where there is no run: a name or a folder.
        arm: index of the run's arm.
        step: of the checkpoint; None for the last.
        parts: expected in a glyph, such as ("水",); () for those that the prompt names.
    Raises:
        ValueError: a blank prompt, no seed, a seed outside its range, or the same seed twice.
    """

    prompt: str
    seeds: tuple[int, ...] = (0,)
    sampling: Sampling = DEMO_SAMPLING
    run: Path | None = None
    base: str = DEFAULT_BASE
    arm: int = 0
    step: int | None = None
    parts: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.prompt.strip():
            raise ValueError("type a prompt first")
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"expected one or more distinct seeds, got {str(self.seeds):.80}")
        if min(self.seeds) < 0 or max(self.seeds) > SEED_MAX:
            raise ValueError(f"expected distinct seeds from 0 to 2^63 - 1, got {str(self.seeds):.80}")

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
    """Upper bounds on a request.

    Args:
        characters: of prompt, prefix and negative prompt, each.
        steps: denoising steps.
        glyphs: number of seeds.
        guidance: classifier-free guidance scale.
    """

    characters: int = 1000
    steps: int = 200
    glyphs: int = 32
    guidance: float = 50.0

    def check(self, request: Request) -> Request:
        """The request itself, where it is within the bounds.

        Raises:
            ValueError: it is not; the message names the bound.
        """
        sampling = request.sampling
        longest = max(len(text) for text in (request.prompt, sampling.prefix, sampling.negative_prompt))
        asked = {"characters": longest, "steps": sampling.steps, "glyphs": len(request.seeds)}
        for name, value in (asked | {"guidance": sampling.guidance}).items():
            if not value <= getattr(self, name):
                raise ValueError(f"at most {getattr(self, name):g} {name}, got {value:g}")
        return request


PUBLIC = Limits(characters=100, steps=30, glyphs=8, guidance=15.0)


class Models:
    """Loaded bases, and the checkpoint that was used last. One thread at a time may use it.

    Args:
        loaded: loaded bases; each is used for runs that were trained on a base of its name.
        device: where to load others.
    """

    def __init__(self, *loaded: LatentDiffusion, device: str = "cpu"):
        self._device = device
        self._given = {base.name: reading_japanese(base) for base in loaded}
        self._bases: dict[tuple[str, str], LatentDiffusion] = {}
        self._used: tuple[tuple, Trainable] | None = None

    def load(self, request: Request) -> tuple[LatentDiffusion, Trainable | None]:
        """The base of a request, and its trained weights or None.

        Raises:
            RunError: no such run or checkpoint.
            ValueError: the run was trained on another base of that name.
        """
        if request.run is None:
            return self._base(request.base, "bf16" if request.base in PACKAGED else "fp32"), None
        run = RunFolder.open(request.run)
        base = self._base(run.settings["base"], run.settings["precision"])
        step = run.checkpoints()[-1] if request.step is None else request.step
        key = (run.path, run.settings["hash"], request.arm, step)
        if self._used is None or self._used[0] != key:
            self._used = None  # frees the memory first: fully fine-tuned denoisers are large
            self._used = key, load_checkpoints(base, run, [step], request.arm)
        return base, self._used[1]

    def loaded(self, name: str) -> LatentDiffusion | None:
        """A base of that name, if it is in memory."""
        return self._given.get(name) or next((base for key, base in list(self._bases.items()) if key[0] == name), None)

    def _base(self, name: str, precision: str) -> LatentDiffusion:
        if name in self._given:
            return self._given[name]
        if (name, precision) not in self._bases:
            self._bases[name, precision] = reading_japanese(load_base(name, precision, self._device))
        return self._bases[name, precision]


@contextmanager
def turn(lock: Path, check: Callable[[], None], on_wait: Callable[[], None]) -> Iterator[None]:
    """Wait for an exclusive lock: processes that use the same file draw one at a time.

    Args:
        lock: a file of the user; created if missing.
        check: called repeatedly while waiting; an exception from it ends the wait.
        on_wait: called once if there is a wait.
    """
    lock.parent.mkdir(parents=True, exist_ok=True)
    # In place of the file a pipe would be waited for without end; so it is an error.
    with open(lock, "ab", opener=lambda path, flags: os.open(path, flags | os.O_NONBLOCK, 0o666)) as file:
        if not _taken(file):
            on_wait()
            while not _taken(file):
                check()
                time.sleep(WAIT_SECONDS)
        yield  # closing the file releases the lock


def _taken(file: Any) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def about_model(base: str) -> str:
    """What to know of a base that draws where there is no trained run."""
    if base == WRITER:
        return "The writer draws: a small model that knows real kanji. Ask by meaning, or by parts."
    text = "There is no trained run here, so the base itself draws."
    stranger = " It has never seen a kanji: its glyphs look like other scripts."
    return text + (stranger if base in PACKAGED else "")


def run_choices(runs: Path | None, alone: str = BASE_ALONE) -> list[tuple[str, tuple[Path, int] | None]]:
    """The models to choose from: every arm of every run with a checkpoint below a folder, and the base alone.

    Args:
        runs: folder, searched to any depth; None for no runs.
        alone: label of the base alone.
    Returns:
        (label, (run's folder, arm)) of each, then (label, None) of the base alone.
    Raises:
        RunError: the settings of a run cannot be read.
    """
    choices: list[tuple[str, tuple[Path, int] | None]] = []
    for run in find_runs(runs) if runs is not None else []:
        if not run.checkpoints():
            continue
        label = "/".join(run.path.parts[len(Path(runs or "").parts) :]).removesuffix("/run") or run.name
        arms = len(run.settings["arms"])
        choices += [(label + (f", arm {arm}" if arms > 1 else ""), (run.path, arm)) for arm in range(arms)]
    return [*choices, (alone, None)]


def checkpoint_choices(run: Path | None, arm: int = 0) -> list[tuple[str, int | None]]:
    """The checkpoints of a run by images seen: (label, step), the last first.

    Args:
        run: its folder; None for the base alone, which has one state.
        arm: index of the run's arm.
    """
    if run is None:
        return [("untrained", None)]
    folder = RunFolder.open(run)
    choices = []
    for step in reversed(folder.checkpoints()):
        seen = checkpoint_images_seen(folder, step, arm)
        choices.append((f"{seen:,} images seen" if step else "before training", step))
    return choices


@dataclass(frozen=True, eq=False)
class Glyphs:
    """The glyphs of a request.

    Attributes:
        request: what they were drawn from.
        images: (S, H, W) uint8, one glyph per seed.
        latents: (steps, S, C, h, w), after each denoising step.
        base: decodes the latents.
        ranking: of `rank_glyphs`, S rows, by judge A.
        expected: the parts that were expected.
    """

    request: Request
    images: NDArray[np.uint8]
    latents: Tensor
    base: LatentDiffusion
    ranking: pd.DataFrame
    expected: tuple[str, ...]

    @property
    def best(self) -> int:
        """Index of the first in rank; where all are rejected, of the most nearly well-formed."""
        return int(np.argmin(self.ranking["order"].to_numpy()))

    @cached_property
    def readings(self) -> pd.DataFrame:
        """What judge B, which did not choose, reads in each glyph; see `Judge.read`."""
        return load_judge(REPORTER).read(self.images)

    def forming(self, index: int) -> tuple[NDArray[np.uint8], list[int]]:
        """A glyph after some of its steps, evenly spaced up to the last: (F, H, W) uint8, and the F steps."""
        steps = len(self.latents)
        shown = sorted({round(step) for step in np.linspace(1, steps, min(steps, FRAMES_SHOWN))})
        frames = self.base.decode(self.latents[[step - 1 for step in shown], index].to(self.base.device))
        return glyphs_of(frames[None]), shown

    def picture(self, index: int | None = None) -> Image.Image:
        """One glyph explained (None for the best), how it formed, and all glyphs in judge A's order."""
        index = self.best if index is None else index
        frames, steps = self.forming(index)
        labels = [f"step {step}" for step in steps]
        sheets = [explain(load_judge(REPORTER), self.images[index], self.request.prompt)]
        sheets.append(draw_glyph_sheet(frames, labels, columns=COLUMNS))
        if len(self.images) > 1:
            order = list(np.argsort(self.ranking["order"]))
            captions = [f"seed {self.request.seeds[one]}" for one in order]
            sheets.append(draw_glyph_sheet(self.images[order], captions, columns=COLUMNS))
        return stacked([Image.open(io.BytesIO(png_bytes(sheet))) for sheet in sheets])


def draw_glyphs(
    request: Request, models: Models | None = None, on_step: Callable[[Tensor], None] = lambda latents: None
) -> Glyphs:
    """Draw a request and rank the glyphs.

    Args:
        request: what to draw.
        models: where loaded models are kept; None to load them for this drawing alone.
        on_step: called after each denoising step with the latents (S, C, h, w); an exception ends the drawing.
    Raises:
        RunError, ValueError, FileNotFoundError: no such run, checkpoint or base.
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
    """English names of parts, see `part_glosses`."""
    return part_glosses(load_characters())


def named_parts(prompt: str, parts: Sequence[str], names: Mapping[str, Sequence[str]] | None = None) -> tuple[str, ...]:
    """The parts whose English names are in a prompt.

    Args:
        prompt: such as "fire fish".
        parts: known parts; of two with the same name the first counts.
        names: part -> its English names; None for those that the writer was taught, and the dictionary's glosses.
    Returns:
        Such as ("火", "魚"), in the order of the prompt.
    """
    glossed = {} if names is not None else {part: [gloss] for part in parts if (gloss := glosses().get(part))}
    by_words: dict[tuple[str, ...], str] = {}
    for known in (part_names() if names is None else names, glossed):  # what was taught comes before any gloss
        for part in parts:
            for name in known.get(part, ()):
                by_words.setdefault(caption_words(name), part)
    longest = max(map(len, by_words), default=0)
    words, found, place = caption_words(prompt), [], 0
    while place < len(words):
        length = next((n for n in range(longest, 0, -1) if tuple(words[place : place + n]) in by_words), 0)
        if length:
            found.append(by_words[tuple(words[place : place + length])])
        place += length or 1
    return tuple(dict.fromkeys(found))


def rank_glyphs(readings: pd.DataFrame, expected: Sequence[str]) -> pd.DataFrame:
    """Reject glyphs that are not well-formed, and rank the others.

    They are ranked by the number of expected parts found, then new before existing characters, then by how well-formed
    they are.

    Args:
        readings: of `Judge.read`, N rows.
        expected: parts that a glyph should show.
    Returns:
        N rows in the same order: found (expected parts that were read), rejected (the reason, or ""), order (0 is the
        best; rejected ones come last), rank (1 is the best; 0 if rejected), exists, codepoint and nearest as read.
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
