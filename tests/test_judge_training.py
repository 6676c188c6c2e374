"""Training judges, at a tiny scale: truth in the right places, losses that fall, resuming without a trace."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from kanjilab.components import LAYOUTS, Part, load_components
from kanjilab.counted import counted_rng
from kanjilab.glyphs import default_font
from kanjilab.judge_training import (
    JUNK,
    KINDS,
    NONE,
    FontFile,
    Glyphs,
    JudgeRecipe,
    JudgeTraining,
    Pools,
    Workshop,
    _part_thresholds,
    _recogniser_losses,
    blobs,
    calibration_error,
    half_faded,
    half_swapped,
    joined,
    judge_losses,
    junk_glyphs,
    load_glyphs,
    locate,
    map_targets,
    mirrored,
    noise,
    part_rows,
    real_glyphs,
    recogniser_only,
    roughen,
    save_glyphs,
    scribbles,
    shuffled_patches,
    taken,
    temperature_of,
    train_judge,
    typeset_glyphs,
)
from kanjilab.judges import GRID, is_held_out
from kanjilab.typeset import Typesetter, novel_pairs

CHARACTERS = tuple("休体林森校村杉松枝枚析杯板柱桂梅植海国道言明好村銀鉄針語話読花草茶")
components = load_components()


@pytest.fixture(scope="module")
def material() -> Glyphs:
    real = real_glyphs(default_font(), CHARACTERS, components)
    rng = counted_rng(0, "typeset")
    junk = [junk_glyphs(scribbles(6, rng), "scribble"), junk_glyphs(noise(6, rng), "noise")]
    return joined([real, replace(taken(real, np.arange(8)), kind=np.full(8, KINDS.index("typeset"))), *junk])


def recipe(**changes) -> JudgeRecipe:
    small = JudgeRecipe("A", steps=8, batch_real=8, batch_typeset=4, batch_junk=4, warmup_steps=2, cooldown_steps=2)
    return replace(small, **changes)


def training(**changes) -> JudgeTraining:
    return JudgeTraining(recipe(**changes), len(components.parts), len(CHARACTERS))


# Truth


def test_real_glyphs_carry_the_truth_of_the_list():
    glyphs = real_glyphs(default_font(), "休A国", components)
    assert glyphs.character.tolist() == [0, 1, 2]
    assert glyphs.parts_known.tolist() == [True, False, True]
    assert [LAYOUTS[index] if index >= 0 else "?" for index in glyphs.layout] == ["⿰", "?", "⿴"]
    rows = glyphs.rows_of_parts()
    first = [components.parts[int(row[1])] for row in glyphs.parts[rows[0] : rows[1]]]
    assert {"人", "木"} <= set(first)
    assert rows.tolist() == [0, rows[1], rows[1], len(glyphs.parts)]


def test_held_out_characters_keep_only_their_name():
    held = next(c for c in components.decompositions if is_held_out(c))
    kept = next(c for c in components.decompositions if not is_held_out(c))
    glyphs = recogniser_only(real_glyphs(default_font(), [held, kept], components), [held, kept])
    assert glyphs.character.tolist() == [0, 1]
    assert glyphs.legal.tolist() == [-1, 1] and glyphs.parts_known.tolist() == [False, True]
    assert glyphs.layout[0] == -1 and glyphs.layout[1] >= 0


def test_a_few_per_cent_are_held_out():
    share = np.mean([is_held_out(character) for character in components.decompositions])
    assert 0.03 < share < 0.07


def test_boxes_are_told_in_the_frame():
    part = Part("木", (0.5, 0.0, 1.0, 1.0), "right", False, (0,))
    ((index, left, top, right, bottom),) = part_rows([part], (0.0, 0.0, 1.0, 1.0), {"木": 7})
    assert index == 7
    assert (left, right) == pytest.approx((0.5, 1 - 0.05 / 1.1), abs=1e-6)  # a margin of 5% on either side
    assert (top, bottom) == pytest.approx((0.05 / 1.1, 1 - 0.05 / 1.1), abs=1e-6)


def test_map_targets_at_hand_worked_cells():
    parts = np.array([[0, 2, 0.0, 0.0, 0.5, 0.25], [0, 2, 0.9375, 0.0, 1.0, 0.125]], np.float32)
    targets = map_targets(parts, 2, 3)
    assert targets.shape == (2, 3, GRID, GRID)
    assert targets[0, 2, :2, :4].tolist() == [[1.0] * 4] * 2  # the left half of the top quarter
    assert targets[0, 2, 0, 7] == pytest.approx(0.5)  # half a cell of the second box
    assert targets.sum() == pytest.approx(8.5)


def test_taken_and_joined_keep_parts_with_their_glyphs(material):
    rows = np.array([5, 0, 3])
    some = taken(material, rows)
    for new, old in enumerate(rows):
        a = some.parts[some.parts[:, 0] == new][:, 1:]
        b = material.parts[material.parts[:, 0] == old][:, 1:]
        assert len(a) and np.array_equal(a, b)
    twice = joined([some, some])
    assert np.array_equal(twice.parts[len(some.parts) :, 1:], some.parts[:, 1:])
    assert (twice.parts[len(some.parts) :, 0] == some.parts[:, 0] + 3).all()


def test_material_survives_its_file(material, tmp_path):
    save_glyphs(material, tmp_path / "m.safetensors")
    read = load_glyphs(tmp_path / "m.safetensors")
    assert all(
        np.array_equal(getattr(read, name), getattr(material, name)) for name in ("ink", "parts", "kind", "legal")
    )


def test_a_missing_font_names_its_package():
    with pytest.raises(FileNotFoundError, match="apt-get install fonts-of-nobody"):
        locate(FontFile("truetype/nobody.ttf", "fonts-of-nobody"))


# Junk


def test_typeset_glyphs_put_the_pair_first():
    pairs = [pair for pair in novel_pairs(components) if pair.layout == "⿱"]
    made = typeset_glyphs(Typesetter(components, default_font()), pairs, 4, components, counted_rng(0, "typeset"))
    assert len(made) == 4 and (made.layout == LAYOUTS.index("⿱")).all() and (made.character == -1).all()
    for start in made.rows_of_parts()[:-1]:
        upper, lower = made.parts[start : start + 2]
        assert upper[3] < lower[3] and upper[5] <= lower[3] + 0.02  # top ends before bottom begins


def test_junk_is_junk():
    rng = counted_rng(0, "judge training")
    glyphs = real_glyphs(default_font(), "林休海道", components)
    images = 255 - glyphs.ink
    assert noise(3, rng).shape == blobs(3, rng).shape == (3, 128, 128)
    junk = junk_glyphs(noise(3, rng), "noise")
    assert (junk.legal == 0).all() and (junk.layout == NONE).all() and junk.parts_known.all()
    assert not junk_glyphs(images, "mirrored").parts_known.any()  # a mirrored tree is a tree
    large = np.kron(images, np.ones((1, 2, 2), np.uint8))
    assert len(mirrored(np.repeat(large[:1], 40, axis=0), rng)) < 40, "a tree mirrored left to right is kept out"
    assert (half_faded(large, rng) >= large).all(), "fading never adds ink"
    shuffled = shuffled_patches(large[1:2], rng)
    assert shuffled.shape == (1, 120, 120) and not np.array_equal(shuffled[0], large[1, 4:124, 4:124])
    for image in half_swapped(np.repeat(large, 8, axis=0), rng):
        assert image.shape == (128, 128)


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


# Training


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
    known = np.append(rows[:3], len(material) - 1)  # one glyph of junk, so that every mean has a term
    unknown = replace(unknown, parts_known=np.arange(len(material)) == len(material) - 1)
    answers = made.network(torch.from_numpy(unknown.ink[known] / np.float32(255))[:, None])
    for value in answers:
        value.retain_grad()
    losses = judge_losses(answers, made.network.prototypes, unknown, known, recipe())
    (losses["presence"] + losses["maps"] + losses["layout"] + losses["legality"]).backward()
    for value in (answers.presence, answers.maps, answers.layout, answers.legality):
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
    assert set(kinds[12:]) <= {KINDS.index(kind) for kind in JUNK}


def test_rate_rises_holds_and_falls():
    plan = recipe(steps=10, warmup_steps=2, cooldown_steps=4, peak_lr=1.0)
    assert [plan.lr(step) for step in range(10)] == pytest.approx([0.5, 1, 1, 1, 1, 1, 1, 0.75, 0.5, 0.25])


# Thresholds


def test_temperature_undoes_overconfidence():
    rng = np.random.default_rng(0)
    logits = rng.normal(size=20_000) * 2
    truth = rng.random(20_000) < 1 / (1 + np.exp(-logits))
    assert temperature_of(2 * logits, truth) == pytest.approx(2, rel=0.1)
    assert temperature_of(logits, truth) == pytest.approx(1, rel=0.1)


def test_calibration_error_at_hand_worked_points():
    assert calibration_error(np.array([0.9, 0.9, 0.1, 0.1]), np.array([True, True, False, False])) == pytest.approx(0.1)
    assert calibration_error(np.full(10, 0.3), np.arange(10) < 3) == pytest.approx(0)


def test_thresholds_leave_five_per_cent_of_empty_pictures_with_a_part(material):
    rng = np.random.default_rng(0)
    count = 400
    glyphs = taken(material, np.concatenate([np.full(count, len(material) - 1), np.zeros(count, dtype=int)]))
    probability = rng.random((2 * count, 5)).astype(np.float32) ** 4
    present = np.zeros((2 * count, 5), dtype=bool)
    thresholds = _part_thresholds(probability, present, glyphs, np.arange(2 * count) >= count)
    assert (probability[:count] >= thresholds).any(axis=1).mean() <= 0.05
    assert (probability[count:] >= thresholds).mean(axis=0).max() <= 0.01


def test_a_workshop_takes_what_is_there(material, tmp_path):
    save_glyphs(material, tmp_path / "material_A.safetensors")
    shop = Workshop(tmp_path, fonts=Path("/nowhere"))
    assert len(shop.material("A")) == len(material)
    with pytest.raises(FileNotFoundError, match="apt-get install"):
        shop.material("B")
