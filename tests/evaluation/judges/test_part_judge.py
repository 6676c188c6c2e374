"""The packaged judges: what they read in known glyphs, invariances, files, and the card's numbers on a sample."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image

from kanjilab.data.components import LAYOUTS
from kanjilab.data.rendering import default_font, draw_font
from kanjilab.evaluation.judges.calibration import measure_sample, read_sample
from kanjilab.evaluation.judges.explanation import explain
from kanjilab.evaluation.judges.framing import frame_glyphs, frame_of
from kanjilab.evaluation.judges.network import ARCHITECTURES, JudgeNetwork
from kanjilab.evaluation.judges.part_judge import (
    GRID,
    WEIGHTS,
    Judge,
    _box_of_map,
    _each_once,
    _Seen,
    judge_file,
    load_judge,
    save_judge,
)

SAMPLE = WEIGHTS / "sample.png"
both = pytest.mark.parametrize("name", ["A", "B"])


def drawn(characters: str, size_px: int = 128) -> np.ndarray:
    return np.stack([np.asarray(draw_font(character, default_font(), size_px)) for character in characters])


# Pictures


def test_frame_at_hand_worked_boxes():
    assert frame_of((0, 0, 10, 10)) == pytest.approx((-0.5, -0.5, 10.5, 10.5))
    assert frame_of((0, 4, 10, 6)) == pytest.approx((-0.5, 1.7, 10.5, 8.3))  # never flatter than 0.6


def test_frame_holds_the_ink_and_forgets_place_and_size():
    small, large = drawn("国", 96), drawn("国", 192)
    moved = np.full((1, 160, 160), 255, np.uint8)
    moved[0, 50:146, 3:99] = small[0]
    glyphs = np.concatenate([frame_glyphs(images)[0] for images in (small, large, moved)]).astype(float)
    assert np.abs(glyphs[0] - glyphs[2]).mean() < 1
    assert np.abs(glyphs[0] - glyphs[1]).mean() < 12
    assert (glyphs[0].max(axis=1) > 100).sum() == pytest.approx(64 / 1.1, abs=3)


def test_a_speck_does_not_move_the_frame():
    image = drawn("国")
    dotted = image.copy()
    dotted[0, 0, 0] = 0
    assert np.allclose(frame_glyphs(image)[1], frame_glyphs(dotted)[1], atol=1)


def test_blank_and_wrong_pictures():
    glyphs, _, has_ink = frame_glyphs(np.full((2, 40, 40), 255, np.uint8))
    assert not has_ink.any() and not glyphs.any()
    with pytest.raises(ValueError, match="uint8"):
        frame_glyphs(np.zeros((1, 8, 8)))
    with pytest.raises(ValueError, match=r"\(8, 8\)"):
        frame_glyphs(np.zeros((8, 8), np.uint8))


def test_box_of_a_map_at_hand_worked_cells():
    heat = np.zeros((GRID, GRID), np.float32)
    heat[2:4, 4:8] = 0.9
    heat[0, 0] = 0.3  # cooler than half of the warmest
    assert _box_of_map(heat, np.array([0.0, 0.0, 1.0, 1.0])) == pytest.approx((0.5, 0.25, 1.0, 0.5))
    assert _box_of_map(heat, np.array([0.2, 0.0, 0.6, 1.0])) == pytest.approx((0.4, 0.25, 0.6, 0.5))


def seen(element: str, score: float, *boxes: tuple[float, float, float, float]) -> _Seen:
    """A part with warm cells in each of the boxes."""
    middles = (np.arange(GRID) + 0.5) / GRID
    cells = [(x, y) for x in middles for y in middles if any(a <= x <= c and b <= y <= d for a, b, c, d in boxes)]
    around = tuple(pick(side) for pick, side in zip((min, min, max, max), zip(*boxes, strict=True), strict=True))
    return _Seen(element, score, around, np.array(cells))


def test_each_thing_is_counted_once():
    frame = np.array([0.0, 0.0, 1.0, 1.0])
    left, right, whole = (0.05, 0.05, 0.45, 0.95), (0.5, 0.05, 0.95, 0.95), (0.05, 0.05, 0.95, 0.95)
    mouth = (0.1, 0.6, 0.4, 0.95)

    def names(*found: _Seen) -> list[str]:
        return [part.element for part in _each_once(list(found), frame)]

    assert names(seen("言", 0.9, left), seen("口", 0.8, mouth), seen("木", 0.7, right)) == ["言", "木"]
    assert names(seen("言", 0.9, left), seen("口", 0.8, right)) == ["言", "口"]  # a mouth of its own
    assert names(seen("言", 0.9, left), seen("口", 0.8, mouth, right)) == ["言", "口"]  # both at once
    assert names(seen("日", 0.9, left), seen("目", 0.8, left)) == ["日"]  # one place, one reading
    upper, lower = (0.05, 0.05, 0.95, 0.45), (0.2, 0.5, 0.8, 0.95)
    sound = seen("音", 0.9, whole), seen("立", 0.8, upper), seen("日", 0.7, lower)
    assert names(*sound) == ["立", "日"]  # the whole glyph, seen in its parts
    assert names(seen("言", 0.9, whole), seen("口", 0.8, lower)) == ["言"]  # of which only a piece is a part


# Networks and files


def test_the_judges_are_of_different_build():
    assert ARCHITECTURES["A"].kind != ARCHITECTURES["B"].kind
    a, b = (JudgeNetwork(ARCHITECTURES[name], 5, 7) for name in "AB")
    assert {type(module) for module in a.trunk} != {type(module) for module in b.trunk}


@both
def test_answers_have_their_shapes(name):
    answers = JudgeNetwork(ARCHITECTURES[name], 5, 7).eval()(torch.rand(3, 1, 64, 64))
    assert answers.maps.shape == (3, 5, GRID, GRID) and answers.presence.shape == (3, 5)
    assert answers.layout.shape == (3, len(LAYOUTS) + 1) and answers.well_formed.shape == (3,)
    assert torch.allclose(answers.embedding.norm(dim=1), torch.ones(3), atol=1e-5)


def test_unknown_judges_and_missing_files():
    with pytest.raises(ValueError, match="'C'"):
        load_judge("C")
    with pytest.raises(FileNotFoundError, match="nowhere"):
        load_judge("A", Path("/nowhere/judge.safetensors"))


def test_a_stored_judge_reads_the_same(tmp_path):
    judge = load_judge("A")
    changed = replace(judge, novel_distance=0.123, report={"note": "ここ"})
    save_judge(changed, tmp_path / "a.safetensors")
    again = load_judge("A", tmp_path / "a.safetensors")
    assert again.novel_distance == 0.123 and again.report == {"note": "ここ"} and again.parts == judge.parts
    assert np.allclose(again.embed(drawn("休国")), judge.embed(drawn("休国")), atol=1e-6)
    assert np.array_equal(again.part_thresholds, judge.part_thresholds)


def test_the_weights_are_small():
    assert sum(judge_file(name).stat().st_size for name in "AB") <= 8_000_000


# Reading


@both
def test_read_known_glyphs(name):
    table = load_judge(name).read(drawn("休海国道語"))
    assert list(table.nearest) == list("休海国道語")
    assert list(table.codepoint)[0] == "U+4F11"
    assert table.exists.all() and table.legal.all()
    assert list(table.layout) == ["⿰", "⿰", "⿴", "⿺", "⿰"]
    assert {"人", "木"} == set(table.parts[0])
    assert {"水", "囗", "辵", "言"} <= {part for parts in table.parts for part in parts}
    assert "口" not in table.parts[4] or table.parts[4].count("口") == 1


@both
def test_boxes_are_on_the_parts(name):
    row = load_judge(name).read(drawn("休")).iloc[0]
    boxes = dict(zip(row.parts, row.part_boxes, strict=True))
    assert (boxes["人"][0] + boxes["人"][2]) / 2 < 0.4 < 0.5 < (boxes["木"][0] + boxes["木"][2]) / 2
    assert all(0 <= value <= 1 for box in row.part_boxes for value in box)
    scores = row.part_scores
    assert list(scores) == sorted(scores, reverse=True)


@both
def test_blank_paper_is_nothing(name):
    judge = load_judge(name)
    row = judge.read(np.full((1, 128, 128), 255, np.uint8)).iloc[0]
    assert row.parts == () and row.layout == "" and not row.legal and row.legal_probability == 0


@both
def test_no_pictures_no_rows(name):
    judge = load_judge(name)
    none = np.zeros((0, 64, 64), np.uint8)
    assert len(judge.read(none)) == 0 and judge.embed(none).shape == (0, 96)
    assert judge.part_maps(none).shape == (0, len(judge.parts), GRID, GRID)


@both
def test_size_and_company_do_not_matter(name):
    judge = load_judge(name)
    characters = "休海国道語花草茶"
    together = judge.read(drawn(characters))
    alone = [judge.read(drawn(character)).iloc[0] for character in characters]
    assert [row.parts for row in alone] == list(together.parts)
    assert np.allclose([row.distance for row in alone], together.distance, atol=1e-4)
    small, large = drawn(characters), drawn(characters, 256)
    assert np.array_equal(judge.nearest(small, 1)[0], judge.nearest(large, 1)[0])
    gaps = np.abs(judge.part_probabilities(small) - judge.part_probabilities(large))
    assert gaps.mean() < 0.005 and np.quantile(gaps, 0.99) < 0.1


@both
def test_nearest_is_sorted_and_agrees_with_embeddings(name):
    judge = load_judge(name)
    images = drawn("休海")
    indices, distances = judge.nearest(images, 5)
    assert indices.shape == distances.shape == (2, 5) and (np.diff(distances) >= 0).all()
    assert judge.characters[indices[0, 0]] == "休"
    assert np.allclose(np.linalg.norm(judge.embed(images), axis=1), 1, atol=1e-5)
    assert (judge.nearest(images, 1)[0][:, 0] == indices[:, 0]).all()


@both
def test_probabilities_are_probabilities(name):
    judge = load_judge(name)
    images = drawn("休海")
    assert judge.layouts == LAYOUTS
    for values in (judge.part_probabilities(images), judge.part_maps(images), judge.legal_probability(images)):
        assert values.min() >= 0 and values.max() <= 1


@both
def test_ink_upside_down_is_another_thing(name):
    judge = load_judge(name)
    images = drawn("海語道鉄村")
    assert judge.legal_probability(images).min() > judge.legal_threshold
    assert judge.legal_probability(images[:, ::-1]).mean() < judge.legal_probability(images).mean() - 0.3


# The card


@both
def test_the_cards_numbers_on_the_sample(name):
    """Every number that the card gives for the small sample, computed again from its pictures."""
    images, truth = read_sample(SAMPLE)
    stored = json.loads((WEIGHTS / "facts.json").read_text(encoding="utf-8"))["sample"][name]
    measured = measure_sample(load_judge(name), images, truth)
    assert measured.keys() == stored.keys()
    for key, value in stored.items():
        assert measured[key] == pytest.approx(value, abs=0.03), key


@both
def test_the_card_meets_its_targets(name):
    report = load_judge(name).report["test"]
    illegal = report["junk_called_illegal"]
    assert min(illegal[kind] for kind in ("noise", "scribble", "jumbled strokes", "half denoised")) >= 0.95
    assert report["not_novel_rate"] >= 0.95
    assert report["typeset_both_found"] >= 0.9
    assert report["legal_pass_rate"] >= 0.95


@pytest.mark.parametrize(
    ("row", "key"),
    [
        ('real glyphs called "not novel" (≥ 95%)', "not_novel_rate"),
        ("both parts of a typeset novel pair found (≥ 90%)", "typeset_both_found"),
        ("real held-out glyphs passed as well-formed (≥ 95%)", "legal_pass_rate"),
        ("recogniser, best of 8,788 right", "top1"),
        ("typeset novel pairs called novel", "typeset_called_novel"),
    ],
)
def test_the_card_and_the_headers_hold_the_facts(row, key):
    facts = json.loads((WEIGHTS / "facts.json").read_text(encoding="utf-8"))
    values = [facts[name]["test"][key] for name in "AB"]
    assert values == [load_judge(name).report["test"][key] for name in "AB"]
    shown = " | ".join(f"{100 * value:.1f}%" for value in values)
    assert f"| {row} | {shown} |" in (WEIGHTS / "README.md").read_text(encoding="utf-8")


def test_the_sample_is_small():
    assert SAMPLE.stat().st_size < 300_000
    with Image.open(SAMPLE) as sheet:
        assert sheet.mode == "L"


# Pictures of a reading


def test_explain_shows_glyph_neighbours_and_verdict():
    judge: Judge = load_judge("A")
    figure = explain(judge, drawn("休")[0], "cost $5 and $6")
    assert isinstance(figure, Figure)
    assert len(figure.axes) == 6 and len(figure.axes[0].patches) == 2
    title = figure.get_suptitle()
    assert "U+4F11" in title and r"\$5" in title and "judge A" in title
    figure.savefig("/dev/null", format="png")
