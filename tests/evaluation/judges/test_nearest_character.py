"""The nearest real character by whole-glyph features: real, rough, altered and meaningless glyphs."""

import numpy as np
import pandas as pd
import pytest
from PIL import Image, ImageFilter

from kanjilab.core.rng import counted_rng
from kanjilab.data.dictionary import load_characters
from kanjilab.data.rendering import default_font, draw_font
from kanjilab.evaluation.judges.nearest_character import Neighbours, _discriminants, whole_glyph_features
from kanjilab.evaluation.judges.orientation import normalise_glyphs, orientation_features, roughen


@pytest.fixture(scope="module")
def characters() -> list[str]:
    """All JIS level 1 kanji: 2,965."""
    table = load_characters()
    return [str(character) for character in table.index[(table["jis_order"] < 4800).fillna(False)]]


@pytest.fixture(scope="module")
def neighbours(characters) -> Neighbours:
    return Neighbours.fit(characters, default_font())


@pytest.fixture(scope="module")
def pictures(characters) -> np.ndarray:
    """Every tenth of them."""
    return np.stack([np.asarray(draw_font(character, default_font())) for character in characters[::10]])


def half_swapped(pictures: np.ndarray) -> np.ndarray:
    mixed = pictures.copy()
    mixed[:, :, 64:] = np.roll(pictures, 37, axis=0)[:, :, 64:]
    return mixed


def test_every_glyph_is_its_own_nearest(neighbours, characters, pictures):
    found = neighbours.read(pictures)
    assert found["nearest"].tolist() == characters[::10]
    np.testing.assert_allclose(found["distance"], 0, atol=1e-5)
    assert found["exists"].all()


def test_a_reading_names_the_character_that_it_already_is(neighbours):
    found = neighbours.read(np.asarray(draw_font("休", default_font()))[None]).iloc[0]
    assert (found["nearest"], found["codepoint"], found["exists"]) == ("休", "U+4F11", True)


def test_roughened_glyphs_are_recognised_at_the_stated_share(neighbours, characters, pictures):
    ink = roughen(normalise_glyphs(pictures)[0], np.random.default_rng(0))
    found = neighbours.read((255 * (1 - ink)).astype(np.uint8))
    assert (found["nearest"] == characters[::10]).mean() > 0.98
    assert found["exists"].mean() == pytest.approx(0.95, abs=0.04)


@pytest.mark.parametrize(
    "picture_filter",
    [ImageFilter.MaxFilter(3), ImageFilter.MinFilter(3), ImageFilter.GaussianBlur(2)],
    ids=["thinner", "thicker", "blurred"],
)
def test_stroke_weight_size_and_place_do_not_matter(neighbours, characters, pictures, picture_filter):
    changed = []
    for picture in pictures[::3]:
        image = Image.new("L", (160, 160), 255)
        image.paste(Image.fromarray(picture).filter(picture_filter).resize((100, 100)), (50, 10))
        changed.append(np.asarray(image))
    assert (neighbours.read(np.stack(changed))["nearest"] == characters[::10][::3]).mean() > 0.97


def test_swapped_halves_are_far_and_noise_is_farther(neighbours, pictures):
    rng = counted_rng(0, "resampling")
    noise = rng.integers(0, 256, (50, 128, 128), dtype=np.uint8)
    coarse = (255 * rng.integers(0, 2, (50, 16, 16), dtype=np.uint8)).repeat(8, axis=1).repeat(8, axis=2)
    swapped, far, coarse_far = (neighbours.read(some) for some in (half_swapped(pictures), noise, coarse))
    assert swapped["exists"].mean() < 0.2  # some halves of kanji make another kanji
    assert not far["exists"].any() and not coarse_far["exists"].any()
    assert min(far["distance"].median(), coarse_far["distance"].median()) > swapped["distance"].quantile(0.75)
    assert not neighbours.read(np.full((1, 128, 128), 255, np.uint8))["exists"].any()


def test_nearest_are_those_of_a_plain_search(neighbours, pictures):
    order, distances = neighbours.nearest(pictures[:5], 4)
    away = whole_glyph_features(normalise_glyphs(pictures[:5])[0]) - neighbours.centre
    for row, vector in enumerate((away @ neighbours.axes).astype(np.float64)):
        cosines = [float(vector @ d) / np.linalg.norm(vector) for d in neighbours.directions]
        best = np.argsort(cosines)[::-1][:4]
        assert order[row].tolist() == best.tolist()
        np.testing.assert_allclose(distances[row], 1 - np.array(cosines)[best], atol=1e-4)


def test_axes_are_those_along_which_characters_differ_and_roughening_does_not():
    rng = np.random.default_rng(0)
    features = rng.normal(size=(4000, 3)).astype(np.float32) * [1, 5, 5]
    changes = rng.normal(size=(4000, 3)).astype(np.float32) * [1, 1, 20]
    axes = _discriminants(features.astype(np.float32), changes.astype(np.float32), 2)
    # Variance 1, 25, 25 between and 1, 1, 400 within, to which their mean, 134, is added on each axis.
    assert np.abs(axes[:, 0]).argmax() == 1 and np.abs(axes[:, 1]).argmax() == 2
    np.testing.assert_allclose((features @ axes).var(axis=0), [25 / 135, 25 / 534], rtol=0.1)


def test_features_see_the_right_third_which_the_first_judge_ignores():
    ink = np.random.default_rng(5).random((1, 64, 64)).astype(np.float32)
    changed = ink.copy()
    changed[:, :, 50:] = 0
    np.testing.assert_array_equal(orientation_features(ink), orientation_features(changed))
    assert np.abs(whole_glyph_features(ink) - whole_glyph_features(changed)).max() > 0.1


def test_bad_questions_are_refused(neighbours, pictures):
    with pytest.raises(ValueError, match="k must lie in 1 to 2965, got 0"):
        neighbours.nearest(pictures, 0)
    with pytest.raises(ValueError, match="expected uint8 images"):
        neighbours.read(pictures.astype(float))
    with pytest.raises(ValueError, match="two or more characters that ipaexg.ttf draws, got 1"):
        Neighbours.fit(["\uffff", "水"], default_font())
    assert len(neighbours.read(pictures[:0])) == 0


def test_cache_gives_the_same_neighbours_and_notices_every_input(tmp_path, monkeypatch):
    fitted, fit = [], Neighbours.fit
    monkeypatch.setattr(Neighbours, "fit", classmethod(lambda cls, *inputs: fitted.append(inputs) or fit(*inputs)))
    font = default_font()
    first = Neighbours.load_or_fit(tmp_path / "deep" / "cache", list("水木人"))
    second = Neighbours.load_or_fit(tmp_path / "deep" / "cache", list("水木人"), font)
    assert len(fitted) == 1 and second.characters == tuple("水木人")
    assert first.same_distance == second.same_distance
    np.testing.assert_array_equal(first.directions, second.directions)
    np.testing.assert_array_equal(first.centre, second.centre)
    Neighbours.load_or_fit(tmp_path / "deep" / "cache", list("水木火"))
    Neighbours.load_or_fit(tmp_path / "deep" / "cache", list("水木人"), seed=1)
    assert len(fitted) == 3


def test_a_damaged_cache_file_is_replaced(tmp_path):
    Neighbours.load_or_fit(tmp_path, list("水木人"))
    (path,) = tmp_path.iterdir()
    good = path.read_bytes()
    path.write_bytes(good[:100])
    found = Neighbours.load_or_fit(tmp_path, list("水木人"))
    assert path.read_bytes() == good and isinstance(found.read(np.zeros((1, 9, 9), np.uint8)), pd.DataFrame)
