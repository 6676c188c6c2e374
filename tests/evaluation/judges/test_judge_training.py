"""Training judges, at a tiny scale: losses that fall, resuming without a trace."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from kanjilab.core.rng import counted_rng
from kanjilab.data.components import load_components
from kanjilab.evaluation.judges.labelled_glyphs import KINDS, NEGATIVES, Glyphs, save_glyphs
from kanjilab.evaluation.judges.part_judge import GRID
from kanjilab.evaluation.judges.training import (
    JudgeRecipe,
    JudgeTraining,
    Pools,
    Workshop,
    _recogniser_losses,
    judge_losses,
    map_targets,
    roughen,
    train_judge,
)
from tests.tiny_material import CHARACTERS, tiny_material

components = load_components()


@pytest.fixture(scope="module")
def material() -> Glyphs:
    return tiny_material()


def recipe(**changes) -> JudgeRecipe:
    batches = {"batch_real": 8, "batch_typeset": 4, "batch_negatives": 4}
    return replace(JudgeRecipe("A", steps=8, warmup_steps=2, cooldown_steps=2, **batches), **changes)


def training(**changes) -> JudgeTraining:
    return JudgeTraining(recipe(**changes), len(components.parts), len(CHARACTERS))


def test_map_targets_at_hand_worked_cells():
    parts = np.array([[0, 2, 0.0, 0.0, 0.5, 0.25], [0, 2, 0.9375, 0.0, 1.0, 0.125]], np.float32)
    targets = map_targets(parts, 2, 3)
    assert targets.shape == (2, 3, GRID, GRID)
    assert targets[0, 2, :2, :4].tolist() == [[1.0] * 4] * 2  # the left half of the top quarter
    assert targets[0, 2, 0, 7] == pytest.approx(0.5)  # half a cell of the second box
    assert targets.sum() == pytest.approx(8.5)


def test_roughening_keeps_the_glyph_and_never_repeats(material):
    ink = np.repeat(material.ink[:1], 60, axis=0)
    rough = roughen(ink, counted_rng(0, "judge training"))
    assert rough.shape == (60, 1, 64, 64) and rough.min() >= 0 and rough.max() <= 1
    flat = rough.numpy().reshape(60, -1)
    correlation = np.corrcoef(np.concatenate([ink[:1].reshape(1, -1) / 255, flat]))[0, 1:]
    assert 0.3 < np.median(correlation) < 0.98
    untouched = (np.abs(flat - ink.reshape(60, -1) / 255).max(axis=1) < 1e-6).sum()
    assert 2 <= untouched <= 22  # one in six
    again = roughen(ink, counted_rng(0, "judge training"))
    assert torch.equal(rough, again)


def test_a_few_steps_lower_the_loss(material):
    made = training(steps=40, warmup_steps=2, cooldown_steps=1)
    losses = [sum(step.values()) for step in train_judge(material, made)]
    assert len(losses) == 40
    assert np.mean(losses[-5:]) < 0.7 * np.mean(losses[:3])


def test_resuming_is_exact(material, tmp_path):
    straight = training()
    list(train_judge(material, straight))
    first = training()
    for _ in train_judge(material, first):
        if first.step == 5:
            break
    first.save(tmp_path / "state.safetensors")
    second = training()
    second.load(tmp_path / "state.safetensors")
    assert second.step == 5 and second.seconds > 0
    list(train_judge(material, second))
    for (name, a), b in zip(straight.network.state_dict().items(), second.network.state_dict().values(), strict=True):
        assert torch.equal(a, b), name


def test_what_is_unknown_gives_no_gradient(material):
    made = training()
    rows = np.arange(4)
    unknown = replace(
        material,
        parts_known=np.zeros(len(material), dtype=bool),
        legal=np.where(np.arange(len(material)) < 3, -1, material.legal),
        layout=np.where(np.arange(len(material)) < 3, -1, material.layout),
    )
    known = np.append(rows[:3], len(material) - 1)  # one negative, so that every mean has a term
    unknown = replace(unknown, parts_known=np.arange(len(material)) == len(material) - 1)
    answers = made.network(torch.from_numpy(unknown.ink[known] / np.float32(255))[:, None])
    for value in answers:
        value.retain_grad()
    losses = judge_losses(answers, made.network.prototypes, unknown, known, recipe())
    (losses["presence"] + losses["maps"] + losses["layout"] + losses["well_formed"]).backward()
    for value in (answers.presence, answers.maps, answers.layout, answers.well_formed):
        assert (value.grad[:3] == 0).all() and (value.grad[3] != 0).any()


def test_map_loss_is_the_weighted_cross_entropy(material):
    made, rows = training(), np.arange(6)
    answers = made.network(torch.from_numpy(material.ink[rows] / np.float32(255))[:, None])
    losses = judge_losses(answers, made.network.prototypes, material, rows, recipe(map_weight=1.0, covered_weight=3.0))
    parts = material.parts[material.parts[:, 0] < 6]
    target = torch.from_numpy(map_targets(parts, 6, len(components.parts)))
    cells = torch.nn.functional.binary_cross_entropy_with_logits(answers.maps, target, reduction="none")
    expected = (cells * (1 + 2 * target)).mean((0, 2, 3)).sum()
    assert losses["maps"].item() == pytest.approx(expected.item(), rel=1e-4)


def test_novel_pairs_are_pushed_off_unless_they_may_be_known(material):
    row = np.flatnonzero(material.kind == KINDS.index("typeset"))[:1]
    prototypes = torch.eye(96)[: len(CHARACTERS)]

    def away(cosine: float) -> float:
        embedding = torch.zeros(1, 96)
        embedding[0, 0], embedding[0, 95] = cosine, (1 - cosine**2) ** 0.5
        unnamed = replace(material, character=np.full(len(material), -1))
        return _recogniser_losses(embedding, prototypes, unnamed, row, recipe(), True)["novel"].item()

    assert away(0.9) == 0  # as near as this it may be that character
    assert away(0.6) > away(0.4) > away(0.1) > 0
    others = (len(CHARACTERS) - 1) * np.exp(22 * (0 - 0.4))
    assert away(0.4) == pytest.approx(np.log(2 + others), rel=1e-4)  # as near as "none of them" itself


def test_novelty_adds_one_answer_to_the_recogniser(material):
    rows = np.array([0])
    prototypes = torch.eye(96)[: len(CHARACTERS)]
    embedding = prototypes[material.character[rows]] * 1.0
    with_none = _recogniser_losses(embedding, prototypes, material, rows, recipe(margin=0.0), True)["character"].item()
    without = _recogniser_losses(embedding, prototypes, material, rows, recipe(margin=0.0), False)["character"].item()
    others = (len(CHARACTERS) - 1) * np.exp(-22.0)
    assert without == pytest.approx(np.log(1 + others), abs=1e-6)
    assert with_none == pytest.approx(np.log(1 + others + np.exp(22 * (0.4 - 1))), abs=1e-6)


def test_every_batch_holds_every_sort(material):
    pools = Pools.of(material)
    kinds = material.kind[pools.draw(recipe(), counted_rng(0, "judge training"))]
    assert (kinds[:8] <= 1).all() and (kinds[8:12] == KINDS.index("typeset")).all()
    assert set(kinds[12:]) <= {KINDS.index(kind) for kind in NEGATIVES}


def test_rate_rises_holds_and_falls():
    plan = recipe(steps=10, warmup_steps=2, cooldown_steps=4, peak_lr=1.0)
    assert [plan.lr(step) for step in range(10)] == pytest.approx([0.5, 1, 1, 1, 1, 1, 1, 0.75, 0.5, 0.25])


def test_a_workshop_takes_what_is_there(material, tmp_path):
    save_glyphs(material, tmp_path / "material_A.safetensors")
    shop = Workshop(tmp_path, fonts=Path("/nowhere"))
    assert len(shop.material("A")) == len(material)
    with pytest.raises(FileNotFoundError, match="apt-get install"):
        shop.material("B")
