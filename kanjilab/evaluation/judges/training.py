"""Train judges A and B on their material, and store them with what was measured."""

from __future__ import annotations

import argparse
import platform
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.torch import load_file, save
from torch import Tensor
from torch.nn import functional as F

from kanjilab.core.rng import counted_rng
from kanjilab.core.storage import write_bytes_atomic, write_json_atomic
from kanjilab.data.components import COMPONENTS_FILE, LAYOUTS, build_components, components_to_json, load_components
from kanjilab.data.kanjivg import KanjiVG
from kanjilab.evaluation.judges.calibration import (
    SAMPLE_NAME,
    calibrate,
    make_sample,
    measure,
    measure_sample,
    read_sample,
)
from kanjilab.evaluation.judges.framing import SIZE_PX
from kanjilab.evaluation.judges.labelled_glyphs import (
    FONTS_FOLDER,
    HANGUL_FONT,
    KINDS,
    NEGATIVES,
    TEST_FONTS,
    TRAINING_FONTS,
    VALIDATION_FONTS,
    Amounts,
    Glyphs,
    build_material,
    load_glyphs,
    locate,
    parts_of,
    recogniser_characters,
    save_glyphs,
)
from kanjilab.evaluation.judges.network import ARCHITECTURES, Answers, JudgeNetwork
from kanjilab.evaluation.judges.part_judge import GRID, Judge, save_judge
from kanjilab.models.cpu_layers import autocast_bf16

SAVE_EVERY = 500  # steps
SEEDS = {"A": 1, "B": 2}  # of weights and order
MATERIAL_SEEDS = {"A": 11, "B": 22, "validation": 33, "test": 44}
TEST_AMOUNTS = Amounts(typeset_per_font=400, negatives_per_kind=600, through_pocket=600)


def roughen(ink: NDArray[np.uint8], rng: np.random.Generator) -> Tensor:
    """Glyphs as a small diffusion model draws them; one in six stays as it is.

    The others are shifted, scaled, wobbly, thinner or thicker, a little faded, blurred and noisy.

    Args:
        ink: (B, 64, 64) uint8, 0 paper to 255 ink.
        rng: of all that varies.
    Returns:
        (B, 1, 64, 64) float32 in [0, 1].
    """
    count = len(ink)
    clean = torch.from_numpy(ink.astype(np.float32) / 255)[:, None]

    def uniform(low: float, high: float) -> Tensor:
        return torch.from_numpy(rng.uniform(low, high, (count, 1, 1, 1)).astype(np.float32))

    def chance(share: float) -> Tensor:
        return uniform(0, 1) < share

    linear = np.eye(2) + rng.normal(size=(count, 2, 2)) * [[0.05, 0.035], [0.035, 0.05]]
    affine = np.concatenate([linear, rng.normal(size=(count, 2, 1)) * 0.03], axis=2).astype(np.float32)
    knots = torch.from_numpy(rng.normal(size=(count, 2, 6, 6)).astype(np.float32)) * uniform(0, 0.045)
    wobble = F.interpolate(knots, size=(SIZE_PX, SIZE_PX), mode="bilinear", align_corners=True)
    grid = F.affine_grid(torch.from_numpy(affine), [count, 1, SIZE_PX, SIZE_PX], align_corners=False)
    moved = F.grid_sample(clean, grid + wobble.permute(0, 2, 3, 1), align_corners=False)
    blurred = _blur(moved)
    twice = torch.where(chance(0.5), blurred, _blur(blurred))
    redrawn = ((twice - uniform(0.12, 0.5)) * uniform(2, 6) + 0.5).clamp(0, 1)
    rough = torch.where(chance(0.65), redrawn, moved)
    rough = torch.where(chance(0.25), _blur(rough), rough) * uniform(0.7, 1)
    grain = torch.from_numpy(rng.standard_normal(rough.shape, dtype=np.float32))
    rough = (rough + grain * uniform(-0.04, 0.07).clamp(min=0)).clamp(0, 1)
    return torch.where(chance(1 / 6), clean, rough)


def _blur(ink: Tensor) -> Tensor:
    """Binomial blur (1 2 1) / 4 along both axes."""
    ink = F.pad(ink, (1, 1, 1, 1))
    ink = (ink[..., :-2] + ink[..., 2:]) / 4 + ink[..., 1:-1] / 2
    return (ink[..., :-2, :] + ink[..., 2:, :]) / 4 + ink[..., 1:-1, :] / 2


def map_targets(parts: NDArray[np.float32], count: int, vocabulary: int) -> NDArray[np.float32]:
    """How much of each cell each part's box covers.

    Args:
        parts: (M, 6): glyph, part, box in [0, 1].
        count: of glyphs, B.
        vocabulary: number of parts, P.
    Returns:
        (B, P, 8, 8) float32 in [0, 1]; several boxes of one part are joined.
    """
    edges = np.arange(GRID + 1) / GRID

    def covered(low: NDArray, high: NDArray) -> NDArray:
        overlap = np.minimum(high[:, None], edges[1:]) - np.maximum(low[:, None], edges[:-1])
        return np.clip(overlap * GRID, 0, 1)

    cells = covered(parts[:, 3], parts[:, 5])[:, :, None] * covered(parts[:, 2], parts[:, 4])[:, None, :]
    targets = np.zeros((count, vocabulary, GRID, GRID), np.float32)
    np.maximum.at(targets, (parts[:, 0].astype(int), parts[:, 1].astype(int)), cells.astype(np.float32))
    return targets


@dataclass(frozen=True)
class JudgeRecipe:
    """How a judge is trained: constant rate after a warm-up, then a linear cool-down to zero."""

    name: str
    steps: int = 3600
    batch_real: int = 80
    batch_typeset: int = 28
    batch_negatives: int = 24
    peak_lr: float = 3e-3
    warmup_steps: int = 200
    cooldown_steps: int = 1600
    weight_decay: float = 0.02
    softness: float = 22.0  # cosines are multiplied by it
    margin: float = 0.1  # that the right character's cosine must lead by
    novel_from_step: int = 2000  # from here on, novel pairs are to be near no character ...
    novel_cosine: float = 0.4  # ... nearer than this, and real glyphs nearer than this to theirs
    known_cosine: float = 0.65  # a pair as near as this may be a character that no decomposition is listed for
    novel_weight: float = 1.0
    part_weight: float = 0.5
    map_weight: float = 0.5
    covered_weight: float = 4.0  # of cells within a part's box
    layout_weight: float = 0.5
    legal_weight: float = 1.0
    seed: int = 0

    def lr(self, step: int) -> float:
        """Learning rate at a step (0-based)."""
        warm = min(1.0, (step + 1) / self.warmup_steps)
        return self.peak_lr * warm * min(1.0, (self.steps - step) / self.cooldown_steps)


class JudgeTraining:
    """A network with its optimizer; it can be stored and resumed without any difference."""

    def __init__(self, recipe: JudgeRecipe, parts: int, characters: int):
        """New weights from the recipe's seed."""
        self.recipe, self.step, self.seconds = recipe, 0, 0.0
        with torch.random.fork_rng():
            torch.manual_seed(recipe.seed)
            network = JudgeNetwork(ARCHITECTURES[recipe.name], parts, characters)
        self.network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.optimizer = torch.optim.AdamW(
            self.network.parameters(),
            lr=recipe.peak_lr,
            betas=(0.9, 0.99),
            weight_decay=recipe.weight_decay,
            fused=True,
        )

    def advance(self, material: Glyphs, pools: Pools) -> dict[str, float]:
        """One step; returns the losses."""
        recipe, started = self.recipe, time.perf_counter()
        rng = counted_rng(recipe.seed, "judge training", self.step)
        rows = pools.draw(recipe, rng)
        self.network.train()
        with autocast_bf16():
            answers = self.network(roughen(material.ink[rows], rng).to(memory_format=torch.channels_last))
        losses = judge_losses(
            answers, self.network.prototypes, material, rows, recipe, self.step >= recipe.novel_from_step
        )
        sum(losses.values()).backward()  # type: ignore[union-attr]
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), 5.0)
        self.optimizer.param_groups[0]["lr"] = recipe.lr(self.step)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.step += 1
        self.seconds += time.perf_counter() - started
        return {name: value.item() for name, value in losses.items()}

    def save(self, path: Path) -> None:
        """Everything needed to go on, in one safetensors file, replaced atomically."""
        state = {f"network.{name}": value for name, value in self.network.state_dict().items()}
        for name, parameter in self.network.named_parameters():
            for key, value in self.optimizer.state[parameter].items():
                state[f"optimizer.{key}.{name}"] = value
        facts = {"step": str(self.step), "seconds": str(self.seconds)}
        write_bytes_atomic(path, save({name: value.detach().contiguous() for name, value in state.items()}, facts))

    def load(self, path: Path) -> None:
        """Resume from what `save` stored."""
        state = load_file(path)
        self.network.load_state_dict({name: state[f"network.{name}"] for name in self.network.state_dict()})
        for name, parameter in self.network.named_parameters():
            # laid out in memory as the parameter is: the fused optimizer goes through both side by side
            self.optimizer.state[parameter] = {
                key: torch.empty_like(parameter).copy_(state[f"optimizer.{key}.{name}"])
                for key in ("exp_avg", "exp_avg_sq")
            } | {"step": state[f"optimizer.step.{name}"]}
        with safe_open(path, framework="pt") as file:
            facts = file.metadata()
        self.step, self.seconds = int(facts["step"]), float(facts["seconds"])


@dataclass(frozen=True)
class Pools:
    """Rows of the material by sort, so that every batch holds all sorts."""

    real: NDArray[np.int64]
    typeset: NDArray[np.int64]
    negatives: tuple[NDArray[np.int64], ...]

    @classmethod
    def of(cls, material: Glyphs) -> Pools:
        """Sort the material; its nearly clean glyphs go with the real ones."""
        rows = {kind: np.flatnonzero(material.is_kind(kind)) for kind in KINDS}
        negatives = tuple(rows[kind] for kind in NEGATIVES if len(rows[kind]))
        return cls(np.concatenate([rows["real"], rows["nearly clean"]]), rows["typeset"], negatives)

    def draw(self, recipe: JudgeRecipe, rng: np.random.Generator) -> NDArray[np.int64]:
        """(B,) rows of a batch; every kind of negative equally likely."""
        kinds = rng.integers(len(self.negatives), size=recipe.batch_negatives)
        negatives = [self.negatives[kind][rng.integers(len(self.negatives[kind]))] for kind in kinds]
        real = self.real[rng.integers(len(self.real), size=recipe.batch_real)]
        typeset = self.typeset[rng.integers(len(self.typeset), size=recipe.batch_typeset)]
        return np.concatenate([real, typeset, np.array(negatives, dtype=np.int64)])


def judge_losses(
    answers: Answers,
    prototypes: Tensor,
    material: Glyphs,
    rows: NDArray[np.int64],
    recipe: JudgeRecipe,
    novelty: bool = True,
) -> dict[str, Tensor]:
    """The terms of the loss, weighted; each only over the glyphs whose truth is known.

    Args:
        answers: of the network, for the glyphs of `rows`.
        prototypes: (C, D), one direction a character.
        material: the truth.
        rows: (B,) which glyphs.
        recipe: the weights.
        novelty: whether "none of them" is among the recogniser's answers.
    """
    layout, known = torch.from_numpy(material.layout[rows]), torch.from_numpy(material.parts_known[rows])
    legal = torch.from_numpy(material.legal[rows])
    targets = torch.from_numpy(map_targets(parts_of(material, rows), len(rows), answers.maps.shape[1]))
    present = (targets.amax((2, 3)) > 0).float()
    presence = F.binary_cross_entropy_with_logits(answers.presence, present, reduction="none")
    asked = legal >= 0
    well_formed = F.binary_cross_entropy_with_logits(answers.well_formed[asked], legal[asked].float())
    return {
        **_recogniser_losses(answers.embedding, prototypes, material, rows, recipe, novelty),
        "maps": recipe.map_weight * _map_loss(answers.maps, targets, known, recipe.covered_weight),
        "presence": recipe.part_weight * presence[known].sum() / known.sum(),
        "layout": recipe.layout_weight * F.cross_entropy(answers.layout, layout, ignore_index=-1),
        "well_formed": recipe.legal_weight * well_formed,
    }


def _recogniser_losses(
    embedding: Tensor, prototypes: Tensor, material: Glyphs, rows: NDArray[np.int64], recipe: JudgeRecipe, novelty: bool
) -> dict[str, Tensor]:
    """Cross-entropy over the characters and, with novelty, over "none of them", which has one fixed cosine."""
    character = torch.from_numpy(material.character[rows])
    cosine = embedding @ F.normalize(prototypes, dim=1).T  # (B, C)
    named = character >= 0
    lead = recipe.margin * F.one_hot(character[named], cosine.shape[1])
    if not novelty:
        return {"character": F.cross_entropy(recipe.softness * (cosine[named] - lead), character[named])}
    none = torch.full((len(rows), 1), recipe.novel_cosine)
    answers = recipe.softness * torch.cat([cosine, none], dim=1)
    composed = torch.from_numpy(material.kind[rows] == KINDS.index("typeset"))
    composed &= cosine.detach().amax(1) < recipe.known_cosine
    lead = F.pad(recipe.softness * lead, (0, 1))
    nothing = torch.full((int(composed.sum()),), cosine.shape[1])
    away = F.cross_entropy(answers[composed], nothing, reduction="sum") / max(1, len(nothing))
    return {"character": F.cross_entropy(answers[named] - lead, character[named]), "novel": recipe.novel_weight * away}


def _map_loss(maps: Tensor, targets: Tensor, known: Tensor, covered_weight: float) -> Tensor:
    """Cross-entropy of cells (mean over cells, sum over parts), those covered by a part counting more.

    Most cells are covered by no part, so what concerns the others is computed for these few alone.
    """
    empty = F.softplus(maps).sum((1, 2, 3)) @ known.float()
    where = torch.nonzero((targets > 0) & known[:, None, None, None], as_tuple=True)
    logit, target = maps[where], targets[where]
    full = F.softplus(logit) - logit * target
    covered = (full * (1 + (covered_weight - 1) * target) - F.softplus(logit)).sum()
    return (empty + covered) / (known.sum() * GRID * GRID)


def train_judge(material: Glyphs, training: JudgeTraining) -> Iterator[dict[str, float]]:
    """Train to the end of the recipe; yields the losses of every step."""
    pools = Pools.of(material)
    while training.step < training.recipe.steps:
        yield training.advance(material, pools)


@dataclass(frozen=True)
class Workshop:
    """Where the stages of a build are kept, and what it draws with; a stage that is there is not made again."""

    folder: Path
    fonts: Path = FONTS_FOLDER
    kanjivg: Path | None = None

    def material(self, name: str) -> Glyphs:
        """Material for judge "A" or "B", or for "validation" or "test"."""
        path = self.folder / f"material_{name}.safetensors"
        if not path.is_file():
            files = {**TRAINING_FONTS, "validation": VALIDATION_FONTS, "test": TEST_FONTS}[name]
            fonts = [locate(font, self.fonts) for font in files]
            tests = name not in TRAINING_FONTS
            made = build_material(
                fonts,
                locate(HANGUL_FONT, self.fonts),
                recogniser_characters(),
                KanjiVG.open(self.kanjivg),
                TEST_AMOUNTS if tests else Amounts(),
                MATERIAL_SEEDS[name],
                tests,
            )
            save_glyphs(made, path)
        return load_glyphs(path)

    def trained(self, recipe: JudgeRecipe, on_step: Callable[[int, dict[str, float]], None]) -> JudgeTraining:
        """The recipe's training at its end; goes on from the last saved state."""
        path = self.folder / f"state_{recipe.name}.safetensors"
        training = JudgeTraining(recipe, len(load_components().parts), len(recogniser_characters()))
        if path.is_file():
            training.load(path)
        if training.step < recipe.steps:
            for losses in train_judge(self.material(recipe.name), training):
                on_step(training.step, losses)
                if training.step % SAVE_EVERY == 0 or training.step == recipe.steps:
                    training.save(path)
        return training


def finish_judge(training: JudgeTraining, validation: Glyphs, test: Glyphs) -> Judge:
    """Set the thresholds on the validation fonts, then measure on the test fonts."""
    characters = recogniser_characters()
    name, network = training.recipe.name, training.network
    for parameter in network.parameters():  # measured as it will be stored
        parameter.data = parameter.data.half().float() if parameter.ndim >= 2 else parameter.data
    network.requires_grad_(False).eval()
    found = calibrate(network, validation, characters)
    judge = Judge(
        name,
        network,
        load_components().parts,
        found.part_thresholds,
        LAYOUTS,
        characters,
        found.temperatures,
        found.novel_distance,
        found.legal_threshold,
        {},
    )
    recipe = training.recipe
    report = {
        "steps": training.step,
        "images_seen": training.step * (recipe.batch_real + recipe.batch_typeset + recipe.batch_negatives),
        "training_seconds": round(training.seconds),
        "machine": f"one core, {platform.machine()}, bf16",
        "validation": measure(judge, validation),
        "test": measure(judge, test),
    }
    return replace(judge, report=report)


def build_judges(workshop: Workshop, out: Path, names: Sequence[str] = ("A", "B")) -> dict[str, Judge]:
    """Train, calibrate, measure and store judges, and `facts.json` with what was measured.

    Args:
        workshop: keeps every stage; one that is there already is not done again.
        out: folder for the weights and the facts.
        names: which judges.
    """
    judges = {}
    for name in names:
        training = workshop.trained(JudgeRecipe(name, seed=SEEDS[name]), _print_progress)
        judges[name] = finish_judge(training, workshop.material("validation"), workshop.material("test"))
        save_judge(judges[name], out / f"judge_{name.lower()}.safetensors")
    make_sample(out / SAMPLE_NAME, workshop.fonts, workshop.kanjivg)
    images, truth = read_sample(out / SAMPLE_NAME)
    facts = {name: judge.report for name, judge in judges.items()}
    sample = {name: measure_sample(judge, images, truth) for name, judge in judges.items()}
    write_json_atomic(out / "facts.json", facts | {"sample": sample})
    return judges


def _print_progress(step: int, losses: dict[str, float]) -> None:
    if step % 20 == 0:
        terms = "  ".join(f"{name} {value:.3f}" for name, value in losses.items())
        print(f"step {step}: {terms}", flush=True)


def main(arguments: Sequence[str] | None = None) -> None:
    """Make both judges and the list of components: `python -m kanjilab.evaluation.judges.training --out FOLDER`."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder for weights, list and facts")
    parser.add_argument("--fonts", type=Path, default=FONTS_FOLDER, help="folder of fonts, laid out as Debian's")
    parser.add_argument("--work", type=Path, default=Path.home() / ".cache" / "kanjilab-judges", help="for the stages")
    parser.add_argument("--components", action="store_true", help="only make the list of components")
    chosen = parser.parse_args(arguments)
    for folder in (chosen.out, chosen.work):
        folder.mkdir(parents=True, exist_ok=True)
    if chosen.components:
        listed = build_components(KanjiVG.open(), recogniser_characters())
        write_json_atomic(chosen.out / COMPONENTS_FILE.name, components_to_json(listed))
        return
    build_judges(Workshop(chosen.work, chosen.fonts), chosen.out)


if __name__ == "__main__":
    main()
