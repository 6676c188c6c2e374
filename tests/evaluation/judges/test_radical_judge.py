"""The first judge against glyphs whose left part is known, and against pictures without one."""

import warnings

import numpy as np
import pandas as pd
import pytest
from PIL import Image, ImageFilter

from kanjilab.data.dictionary import load_characters
from kanjilab.data.radicals import RADICALS16, left_radical, radical_character
from kanjilab.data.rendering import default_font, draw_font, draws
from kanjilab.evaluation.judges import orientation
from kanjilab.evaluation.judges.orientation import normalise_glyphs, orientation_features, roughen
from kanjilab.evaluation.judges.radical_judge import RadicalJudge, _kanji_by_kind

RADICALS = (85, 75, 9, 167, 142, 195)  # 水 木 人 金 虫 魚: a judge of six is fitted in a third of the time
OTHER_LEFT = "碑破硬確砂研砲硫裕補初複裸被旺晴映明暗時昭曜眼眠睡瞬秋種税移程稀弾強弱張弦駅験騎馳駒軽輪軸転輸較"


def draw_all(characters) -> np.ndarray:
    return np.stack([np.asarray(draw_font(character, default_font())) for character in characters])


@pytest.fixture(scope="module")
def table() -> pd.DataFrame:
    """The six radicals' characters and every fifth of all others: enough to know what is none of the six."""
    characters = load_characters()
    left = np.array([left_radical(row) in RADICALS for row in characters.itertuples()])
    drawn = np.array([not own or draws(str(c), default_font()) for c, own in zip(characters.index, left, strict=True)])
    return characters[(left & drawn) | (~left & (np.arange(len(characters)) % 5 == 0))]


@pytest.fixture(scope="module")
def held_out(table) -> pd.DataFrame:
    """A tenth of the six radicals' characters, which the judge never sees, with their radical's name."""
    left = table[[left_radical(row) in RADICALS for row in table.itertuples()]]
    picked = left.iloc[np.random.default_rng(0).permutation(len(left))[: len(left) // 10]]
    return picked.assign(name=[radical_character(int(number)) for number in picked["radical"]])


@pytest.fixture(scope="module")
def judge(table, held_out) -> RadicalJudge:
    return RadicalJudge.fit(table.drop(held_out.index), default_font(), RADICALS)


@pytest.fixture(scope="module")
def pictures(held_out) -> np.ndarray:
    return draw_all(held_out.index)


def hits(judge: RadicalJudge, pictures: np.ndarray, names) -> float:
    readings = judge.read(pictures)
    return float(((readings["radical"] == list(names)) & ~readings["abstain"]).mean())


def filtered(pictures: np.ndarray, picture_filter) -> np.ndarray:
    return np.stack([np.asarray(Image.fromarray(picture).filter(picture_filter)) for picture in pictures])


# ---------------------------------------------------------------- reading


def test_characters_never_seen_are_read(judge, pictures, held_out):
    assert len(held_out) > 100
    assert hits(judge, pictures, held_out["name"]) >= 0.97


@pytest.mark.parametrize(
    "picture_filter",
    [ImageFilter.MaxFilter(3), ImageFilter.MinFilter(5), ImageFilter.GaussianBlur(2.5)],
    ids=["thinner", "thicker", "blurred"],
)
def test_stroke_weight_and_blur_do_not_matter(judge, pictures, held_out, picture_filter):
    assert hits(judge, filtered(pictures, picture_filter), held_out["name"]) >= 0.95


def test_wobbly_strokes_are_read(judge, pictures, held_out):
    # an elastic distortion of 2 px over patches of 16 px, made by another method than the judge's own
    rng = np.random.default_rng(1)
    steps = np.arange(128)
    wobbly = []
    for picture in pictures:
        knots = [Image.fromarray(rng.normal(size=(8, 8)).astype(np.float32)) for _ in range(2)]
        down, across = (np.asarray(field.resize((128, 128), Image.Resampling.BICUBIC)) for field in knots)
        rows = np.clip(np.rint(steps[:, None] + 2 * down / down.std()), 0, 127).astype(int)
        columns = np.clip(np.rint(steps + 2 * across / across.std()), 0, 127).astype(int)
        wobbly.append(picture[rows, columns])
    assert hits(judge, np.stack(wobbly), held_out["name"]) >= 0.9


def test_size_and_place_in_the_image_do_not_matter(judge, pictures, held_out):
    small = [np.asarray(Image.fromarray(picture).resize((72, 72), Image.Resampling.LANCZOS)) for picture in pictures]
    moved = np.full((len(small), 128, 128), 255, np.uint8)
    moved[:, 40:112, 10:82] = small
    assert hits(judge, moved, held_out["name"]) >= 0.95


def test_a_speck_does_not_move_the_glyph(pictures, monkeypatch):
    small = np.full((20, 128, 128), 255, np.uint8)
    small[:, 32:96, 32:96] = pictures[:20, ::2, ::2]
    specked = small.copy()
    specked[:, 2, 2] = 0
    clean = normalise_glyphs(small)[0]
    assert np.abs(clean - normalise_glyphs(specked)[0]).mean() < 0.03
    monkeypatch.setattr(orientation, "SPECK_SHARE", 0.0)  # the box of all ink would take the speck in
    assert np.abs(clean - normalise_glyphs(specked)[0]).mean() > 0.15


def test_typeset_novel_pairs_are_read_by_their_left_half(judge, pictures, held_out):
    # left part of one character beside the right part of another, joined at their emptiest columns
    names = held_out["name"].to_numpy()
    pairs, expected = [], []
    for left, right in zip(range(len(names)), np.random.default_rng(2).permutation(len(names)), strict=True):
        if names[left] != names[right]:
            cut, gap = emptiest_column(pictures[left]), emptiest_column(pictures[right])
            body = Image.fromarray(pictures[right][:, gap:]).resize((128 - cut, 128))
            pairs.append(np.hstack([pictures[left][:, :cut], np.asarray(body)]))
            expected.append(names[left])
    assert len(pairs) > 80
    assert hits(judge, np.stack(pairs), expected) >= 0.9


def emptiest_column(picture: np.ndarray) -> int:
    return 25 + int(np.convolve((picture < 128).sum(axis=0), np.ones(3), "same")[25:72].argmin())


def test_a_reading_says_what_it_is_made_of(judge, pictures):
    readings, shares = judge.read(pictures[:5]), judge.probabilities(pictures[:5])
    assert shares.shape == (5, 6) and (shares.sum(axis=1) <= 1 + 1e-9).all()
    for row, share in zip(readings.itertuples(), shares, strict=True):
        order = np.argsort(-share)
        assert (row.radical, row.runner_up) == (judge.radicals[order[0]], judge.radicals[order[1]])
        assert row.probability == share[order[0]] and row.runner_up_probability == share[order[1]]
        assert row.none_probability == pytest.approx(1 - share.sum(), abs=1e-12)


# ---------------------------------------------------------------- abstaining


def test_blank_and_black_images_are_abstained_from(judge):
    blank = np.full((1, 128, 128), 255, np.uint8)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        readings = judge.read(np.concatenate([blank, 0 * blank, blank - 40]))
    assert readings["abstain"].all()
    assert readings["none_probability"][0] == 1.0


def negatives(pictures: np.ndarray) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(3)
    coarse = rng.integers(0, 256, (60, 16, 16), dtype=np.uint8)
    tiles = pictures.reshape(-1, 4, 32, 4, 32).transpose(0, 1, 3, 2, 4).reshape(len(pictures), 16, 32, 32)
    mixed = tiles[:, rng.permutation(16)].reshape(-1, 4, 4, 32, 32).transpose(0, 1, 3, 2, 4).reshape(-1, 128, 128)
    return {
        "noise": rng.integers(0, 256, (60, 128, 128), dtype=np.uint8),
        "coarse noise": coarse.repeat(8, axis=1).repeat(8, axis=2),
        "latin": draw_all("ABDEFGHKLMNPQRSTUXZabdeghknpqs"),
        "other left parts": draw_all(OTHER_LEFT),
        "tiles in disorder": mixed,
        "turned by 180 degrees": pictures[:, ::-1, ::-1],
        "transposed": pictures.transpose(0, 2, 1),
    }


@pytest.mark.parametrize("kind", negatives(np.zeros((1, 128, 128), np.uint8)))
def test_pictures_without_a_radical_are_abstained_from(judge, pictures, kind):
    assert (~judge.read(negatives(pictures)[kind])["abstain"]).mean() <= 0.05


def test_threshold_lets_the_stated_share_of_held_out_glyphs_pass(judge):
    report = judge.report
    assert report["pass_share_rough"] == pytest.approx(0.95, abs=0.01)
    assert report["pass_share"] >= 0.95 and report["pass_share_other"] <= 0.03
    assert report["accuracy"] >= 0.97 and report["accuracy_rough"] >= 0.95


def test_probabilities_hold_on_rough_characters_never_seen(judge, pictures, held_out):
    ink = roughen(normalise_glyphs(np.concatenate([pictures] * 3))[0], np.random.default_rng(4))
    shares = judge.probabilities((255 * (1 - ink)).astype(np.uint8))
    right = np.array(judge.radicals)[shares.argmax(axis=1)] == list(held_out["name"]) * 3
    assert abs(right.mean() - shares.max(axis=1).mean()) < 0.06


# ---------------------------------------------------------------- features


def test_features_show_the_direction_of_strokes():
    rows = np.zeros((1, 64, 64), np.float32)
    rows[:, 4::8] = 1
    columns = rows.transpose(0, 2, 1).copy()
    flat = orientation_features(np.concatenate([rows, columns])).reshape(2, -1, 8).sum(axis=1)
    # orientation 0 is an edge seen by going across (a column), orientation 4 one seen by going down (a row)
    assert flat[0].argmax() == 4 and flat[1].argmax() == 0


def test_features_ignore_the_right_third():
    ink = np.random.default_rng(5).random((2, 64, 64)).astype(np.float32)
    changed = ink.copy()
    changed[:, :, 50:] = 1
    np.testing.assert_array_equal(orientation_features(ink), orientation_features(changed))


def test_roughening_repeats_with_its_generator_and_keeps_the_range(pictures):
    ink = normalise_glyphs(pictures[:4])[0]
    first, second = roughen(ink, np.random.default_rng(6)), roughen(ink, np.random.default_rng(6))
    np.testing.assert_array_equal(first, second)
    assert first.min() >= 0 and first.max() <= 1 and 0.01 < np.abs(first - ink).mean() < 0.3


@pytest.mark.parametrize("images", [np.zeros((128, 128), np.uint8), np.zeros((1, 128, 128), np.float32)])
def test_images_of_another_kind_are_refused(images):
    with pytest.raises(ValueError, match=r"expected uint8 images \(N, H, W\)"):
        normalise_glyphs(images)


def test_no_images_give_no_readings(judge):
    assert len(judge.read(np.zeros((0, 128, 128), np.uint8))) == 0


# ---------------------------------------------------------------- fitting and the cache


def test_a_radical_without_characters_is_refused(table):
    with pytest.raises(ValueError, match="'水': 0"):
        RadicalJudge.fit(table[table["radical"] != 85], default_font(), (75, 85))


def test_cache_gives_the_same_judge_and_notices_every_input(judge, tmp_path, monkeypatch, pictures):
    fitted = []
    monkeypatch.setattr(RadicalJudge, "fit", classmethod(lambda cls, *inputs: fitted.append(inputs) or judge))
    few = load_characters().head(50)
    first = RadicalJudge.load_or_fit(tmp_path / "deep" / "cache", few, radicals=RADICALS)
    second = RadicalJudge.load_or_fit(tmp_path / "deep" / "cache", few, radicals=RADICALS)
    assert len(fitted) == 1
    pd.testing.assert_frame_equal(first.read(pictures[:8]), second.read(pictures[:8]))
    assert (second.report, second.threshold, second.radicals) == (judge.report, judge.threshold, judge.radicals)
    for other in ({"seed": 1}, {"radicals": RADICALS[:3]}, {"characters": few.head(49)}):
        RadicalJudge.load_or_fit(tmp_path / "deep" / "cache", **{"characters": few, "radicals": RADICALS, **other})
    assert len(fitted) == 4


def test_the_usual_judge_is_in_the_package(tmp_path, monkeypatch):
    monkeypatch.setattr(RadicalJudge, "fit", lambda *inputs: pytest.fail("expected the packaged fit"))
    usual = RadicalJudge.load_or_fit(tmp_path)
    assert usual.radicals == tuple(map(radical_character, RADICALS16)) and not any(tmp_path.iterdir())
    read = usual.read(draw_all("海蛙詞銅妹作"))
    assert read["radical"].tolist() == list("水虫言金女人") and not read["abstain"].any()


def test_a_damaged_cache_file_is_replaced(judge, tmp_path, monkeypatch):
    monkeypatch.setattr(RadicalJudge, "fit", classmethod(lambda cls, *inputs: judge))
    few = load_characters().head(50)
    RadicalJudge.load_or_fit(tmp_path, few)
    (path,) = tmp_path.iterdir()
    good = path.read_bytes()
    path.write_bytes(good[:100])
    RadicalJudge.load_or_fit(tmp_path, few)
    assert path.read_bytes() == good


def test_moon_is_no_example_against_flesh():
    characters = load_characters()
    _, other = _kanji_by_kind(characters, (130,))
    kinds = dict(other)
    assert "服" not in kinds  # moon on the left, which looks like flesh
    assert kinds["砂"] == "left 112" and kinds["狩"] == "left 94"
