"""The style judge on two made-up hands, and the outside reader on printed characters."""

import numpy as np
import pytest

from kanjilab.data.calligraphy import jis_level_1, typed_glyph
from kanjilab.data.skeleton import skeletons_of
from kanjilab.evaluation.metrics import expected_part_hits
from kanjilab.evaluation.outside_reader import OutsideJudge, OutsideReader
from kanjilab.evaluation.script_style import inked
from kanjilab.evaluation.style_judge import StyleJudge

CHARACTERS = jis_level_1()[::60]  # 50 of them


@pytest.fixture(scope="module")
def glyphs():
    """Characters written by a thin pen, and by a thick one."""
    skeletons = skeletons_of(np.stack([typed_glyph(character) for character in CHARACTERS]))
    return {"thin": inked(skeletons, 1.5), "thick": inked(skeletons, 4.5)}


def test_a_hand_is_known_by_characters_that_were_not_fitted(glyphs):
    images = np.concatenate([glyphs["thin"][:40], glyphs["thick"][:40]])
    judge = StyleJudge.fit(images, ["thin"] * 40 + ["thick"] * 40)
    for name in glyphs:
        assert judge.read(glyphs[name][40:]).count(name) >= 9
    assert judge.distance(glyphs["thin"], glyphs["thin"]) == 0
    apart = judge.distance(glyphs["thin"], glyphs["thick"])
    mixed = np.concatenate([glyphs["thin"][:25], glyphs["thick"][25:]])
    assert 0 < judge.distance(mixed, glyphs["thick"]) < apart
    blank = np.full((1, 128, 128), 255, np.uint8)
    assert judge.read(blank)[0] in ("thin", "thick")


def test_what_few_glyphs_add_by_chance_is_no_distance(monkeypatch):
    monkeypatch.setattr(StyleJudge, "whiten", lambda judge, features: features)
    judge, none = StyleJudge((), np.ones(1), np.ones((1, 1)), np.ones((1, 1))), np.zeros((2, 1))
    assert judge.distance(np.array([[1.0], [1.0]]), none) == 1
    assert judge.distance(np.array([[3.0], [1.0]]), none) == pytest.approx(
        3**0.5
    )  # 2 ** 2, less a variance of 2 over 2
    assert judge.distance(np.array([[1.0], [-1.0]]), none) == 0
    rng, shift = np.random.default_rng(0), np.full(500, 4 / 500**0.5)  # a distance of 4
    squared = [judge.distance(rng.normal(size=(6, 500)) + shift, np.zeros((6, 500))) ** 2 for _ in range(200)]
    assert np.mean(squared) == pytest.approx(16, abs=1)


def test_the_grain_of_paper_is_no_style(glyphs):
    """A decoder's blank paper is mottled just below white."""
    images = np.concatenate([glyphs["thin"][:40], glyphs["thick"][:40]])
    judge = StyleJudge.fit(images, ["thin"] * 40 + ["thick"] * 40)
    grain = np.random.default_rng(0).integers(0, 12, images.shape)
    grainy = (images.astype(int) - grain).clip(0, 255).astype(np.uint8)
    assert judge.distance(grainy, images) < judge.distance(images[:40], images[40:]) / 4


def test_within_a_style_every_direction_has_at_most_unit_variance(glyphs):
    images, styles = np.concatenate(list(glyphs.values())), ["thin"] * 50 + ["thick"] * 50
    judge = StyleJudge.fit(images, styles)
    found = judge.whiten(images).reshape(2, 50, -1)
    centred = (found - found.mean(axis=1, keepdims=True)).reshape(100, -1)
    variances = np.linalg.eigvalsh(centred @ centred.T / 98)
    assert 0.3 < variances.max() <= 1 / 0.7 + 1e-6  # shrinkage takes three tenths of the covariance away


def test_the_outside_reader_reads_print():
    pytest.importorskip("rapidocr_onnxruntime", exc_type=ImportError)
    reader = OutsideReader()
    images = np.stack([typed_glyph(character) for character in "永国水"])
    assert reader.read(images) == ["永", "国", "水"] and {"永", "国"} < reader.characters
    assert reader.reads(images, "永国火").tolist() == [True, True, False]
    assert reader.read(np.full((1, 128, 128), 255, np.uint8)) == [""]


class Reads:
    """An outside reader that says what it is told to."""

    def __init__(self, said):
        self.said = said

    def read(self, images):
        return list(self.said)


def test_the_outside_reader_finds_the_parts_of_what_it_reads():
    readings = OutsideJudge(Reads(["詞", "词", "", "A", "海"])).read(np.zeros((5, 8, 8), np.uint8))
    assert readings["radical"].tolist() == ["言", "言", "", "", "水"]
    assert {"言", "司"} <= set(readings["parts"][0]) and readings["parts"][1] == ("言",)  # simplified
    assert readings["abstain"].tolist() == [False, False, True, True, False]
    expected = [{"言"}, {"言"}, {"言"}, {"言"}, {"水", "虫"}]
    assert expected_part_hits(readings, expected).tolist() == [True, True, False, False, True]
