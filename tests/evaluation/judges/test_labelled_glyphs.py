"""What judges learn from: truth in the right places, in any order of glyphs, and in a file."""

import numpy as np
import pytest

from kanjilab.core.rng import counted_rng
from kanjilab.data.components import LAYOUTS, Part, is_held_out, load_components
from kanjilab.data.rendering import default_font
from kanjilab.data.typeset import Typesetter, novel_pairs
from kanjilab.evaluation.judges.labelled_glyphs import (
    NONE,
    FontFile,
    Glyphs,
    joined,
    load_glyphs,
    locate,
    negative_glyphs,
    part_rows,
    real_glyphs,
    recogniser_only,
    save_glyphs,
    taken,
    typeset_glyphs,
)
from kanjilab.evaluation.judges.negatives import noise
from tests.tiny_material import tiny_material

components = load_components()


@pytest.fixture(scope="module")
def material() -> Glyphs:
    return tiny_material()


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


def test_boxes_are_given_in_the_frame():
    part = Part("木", (0.5, 0.0, 1.0, 1.0), "right", False, (0,))
    ((index, left, top, right, bottom),) = part_rows([part], (0.0, 0.0, 1.0, 1.0), {"木": 7})
    assert index == 7
    assert (left, right) == pytest.approx((0.5, 1 - 0.05 / 1.1), abs=1e-6)  # a margin of 5% on either side
    assert (top, bottom) == pytest.approx((0.05 / 1.1, 1 - 0.05 / 1.1), abs=1e-6)


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


def test_typeset_glyphs_put_the_pair_first():
    pairs = [pair for pair in novel_pairs(components) if pair.layout == "⿱"]
    made = typeset_glyphs(Typesetter(components, default_font()), pairs, 4, components, counted_rng(0, "typeset"))
    assert len(made) == 4 and (made.layout == LAYOUTS.index("⿱")).all() and (made.character == -1).all()
    for start in made.rows_of_parts()[:-1]:
        upper, lower = made.parts[start : start + 2]
        assert upper[3] < lower[3] and upper[5] <= lower[3] + 0.02  # top ends before bottom begins


def test_negatives_are_never_well_formed_but_may_show_parts():
    negatives = negative_glyphs(noise(3, counted_rng(0, "judge training")), "noise")
    assert (negatives.legal == 0).all() and (negatives.layout == NONE).all() and negatives.parts_known.all()
    images = 255 - real_glyphs(default_font(), "林", components).ink
    assert not negative_glyphs(images, "mirrored").parts_known.any()  # a mirrored tree is a tree
