"""The two-sample test: on halves of one set, on thicker and softer lines, and at hand-worked numbers."""

import numpy as np
import pytest
from scipy import ndimage

from kanjilab.evaluation.two_sample import TwoSampleTest, _area

CHARACTERS = 40


@pytest.fixture(scope="module")
def glyphs(some_kanji):
    """Real glyphs, in an order that has nothing to do with them."""
    images = some_kanji.split("train").images()
    return images[np.random.default_rng(0).permutation(len(images))]


def names(count, each=1):
    return [f"prompt {number // each}" for number in range(count)]


def test_halves_of_one_set_are_not_separated(glyphs):
    half = len(glyphs) // 2
    found = TwoSampleTest.of(glyphs[half:]).auc(glyphs[:half], names(half))
    assert found.low < 0.5 < found.high


def test_thicker_or_softer_lines_are_separated(glyphs):
    half = len(glyphs) // 2
    thicker = ndimage.grey_erosion(glyphs[:half], size=(1, 3, 3))
    softer = ndimage.gaussian_filter(glyphs[:half].astype(float), (0, 1.5, 1.5)).astype(np.uint8)
    for changed in (thicker, softer):
        found = TwoSampleTest.of(glyphs[half:]).auc(changed, names(half))
        assert found.value > 0.95 and found.low > 0.9


def test_copies_of_real_glyphs_are_not_compared_with_themselves(glyphs):
    copied = glyphs[: len(glyphs) // 2]
    found = TwoSampleTest.of(glyphs).auc(copied, names(len(copied)))
    alone = TwoSampleTest.of(glyphs[len(copied) :]).auc(copied, names(len(copied)))
    assert found == alone


def test_repeated_images_count_once(glyphs):
    half = len(glyphs) // 2
    twice, others = np.repeat(glyphs[:half], 2, axis=0), TwoSampleTest.of(glyphs[half:])
    assert others.auc(twice, names(len(twice), 2)) == others.auc(glyphs[:half], names(half))


@pytest.mark.parametrize(("count", "each"), [(20, 20), (9, 1)])
def test_nothing_is_said_of_one_prompt_or_of_few_images(glyphs, count, each):
    assert np.isnan(TwoSampleTest.of(glyphs[count:]).auc(glyphs[:count], names(count, each))).all()


def test_the_area_at_hand_worked_numbers():
    # Prompt 0's one image beats both real glyphs; of prompt 1's two images one beats one, and one ties with one.
    images, group = np.array([9.0, 3.0, 1.0]), np.array([0, 1, 1])
    real = np.array([1.0, 5.0])
    found = _area(images, real, group, np.random.default_rng(0))
    assert found.value == pytest.approx((1 + (1 / 2 + 1 / 4) / 2) / 2)
    assert found.low <= found.value <= found.high
