"""The invented script: its signs, where they stand in a glyph, what captions say, and how often each kind is drawn."""

from pathlib import Path

import matplotlib
import numpy as np
import pytest
from PIL import Image

from kanjilab.data import invented_script
from kanjilab.data.captioned import load_captioned
from kanjilab.data.invented_script import (
    KINDS,
    Sign,
    build_pocket_corpus,
    compose,
    invent_script,
    invented_glyphs,
    kanji_likeness,
    sign_ink,
    syllable_captions,
    weights_of_kinds,
)
from kanjilab.data.pocket_corpus import CorpusGlyph, unicode_caption
from kanjilab.data.rendering import default_font, draw_font

DEJAVU = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"
TANGUT = "\U00018800\U00018801\U00018802\U00018803\U00018804"


def glyph(character: str) -> CorpusGlyph:
    return CorpusGlyph(ord(character), DEJAVU, str(unicode_caption(ord(character))))


def ink(width: int, height: int) -> Image.Image:
    return Image.new("L", (width, height), 0)


# ------------------------------------------------------------------------------------------ signs


def test_a_sign_is_cut_out_along_its_ink_and_slender_ones_are_none():
    letter = np.asarray(sign_ink(glyph("Ω")))
    assert all((letter < 128).any(axis=axis)[[0, -1]].all() for axis in (0, 1))
    assert sign_ink(glyph("Ι")) is None  # iota is a bar
    assert sign_ink(CorpusGlyph(0x2003, DEJAVU, "em space")) is None


def test_what_has_the_shape_of_a_kanji_is_like_one():
    tall = Image.fromarray(np.asarray(draw_font("米", default_font()))).resize((60, 120))
    like = kanji_likeness([tall, sign_ink(glyph("Ω"))])
    assert like[0] > 0.9 and like[1] < 0.6
    assert len(kanji_likeness([])) == 0


@pytest.fixture
def scripts(monkeypatch):
    """Glyphs of both kinds, of which two are like kanji."""
    like = {ord("Δ"), 0x18802}
    monkeypatch.setattr(invented_script, "sign_ink", lambda glyph: ink(1 + glyph.codepoint % 97, 50))
    taken = {ink(1 + code % 97, 50).size for code in like}
    monkeypatch.setattr(
        invented_script, "kanji_likeness", lambda inks: np.array([0.9 if one.size in taken else 0.1 for one in inks])
    )
    return [glyph(character) for character in "aΓΔΩ☁" + TANGUT]


def test_each_group_of_words_has_a_sign_of_its_own_and_none_is_like_a_kanji(scripts):
    groups = [["sea", "ship"], ["king"], ["tree", "wood"], ["one"], ["two"], ["three"]]
    script = invent_script(scripts, groups)
    assert [list(sign.words) for sign in script] == groups
    codes = {sign.glyph.codepoint for sign in script}
    # A quarter of six, so two, are letters; Δ and the third component are left out.
    assert codes == {ord("Γ"), ord("Ω"), 0x18800, 0x18801, 0x18803, 0x18804}
    assert invent_script(scripts, groups) == script
    with pytest.raises(ValueError, match="expected 8 signs for the invented script, got 6"):
        invent_script(scripts, groups + [["four"]] * 2)
    assert {sign.glyph.codepoint for sign in invent_script(scripts[:5], groups[:2])} == {ord("Γ"), ord("Ω")}


# ------------------------------------------------------------------------------------------ glyphs


@pytest.mark.parametrize(("layout", "axis"), [("⿰", 0), ("⿱", 1)])
def test_each_sign_has_its_share_of_the_square(layout, axis):
    """Between the two, and only there, a gap goes across from edge to edge."""
    for seed in range(10):
        image = compose(ink(50, 50), ink(50, 50), layout, np.random.default_rng(seed))
        inked = np.flatnonzero((image < 128).any(axis=axis))
        assert image.shape == (128, 128) and inked[0] == 8 and inked[-1] == 119
        gaps = np.flatnonzero(np.diff(inked) > 1)
        assert len(gaps) == 1
        assert 40 <= inked[gaps[0]] + 1 <= 72  # 8 and 0.36 to 0.55 of 112


def test_a_sign_keeps_its_shape_within_bounds():
    image = compose(ink(10, 10), ink(90, 30), "⿰", np.random.default_rng(0)) < 128
    gap = np.flatnonzero(np.diff(np.flatnonzero(image.any(axis=0))) > 1)[0] + 8
    first, second = image[:, : gap + 1], image[:, gap + 1 :]
    # A square in a box of 112 to some 50 becomes 1.9 times as high as wide; three to one has room to become so.
    shapes = [[np.ptp(np.flatnonzero(half.any(axis=axis))) + 1 for axis in (0, 1)] for half in (first, second)]
    assert shapes[0][1] / shapes[0][0] == pytest.approx(1.9, rel=0.05)
    assert shapes[1][0] / shapes[1][1] == pytest.approx(3 / 1.9, rel=0.08)


def test_the_first_sign_is_on_the_left_or_on_top():
    def halves(layout):
        dark = compose(ink(50, 50), Image.new("L", (50, 50), 200), layout, np.random.default_rng(0)) < 128
        return dark[:, :60].any(), dark[:, 80:].any(), dark[:60].any(), dark[80:].any()

    assert halves("⿰")[:2] == (True, False) and halves("⿱")[2:] == (True, False)


@pytest.fixture
def script():
    return [Sign(glyph("Ω"), ink(20 + number, 30), (f"word{number}", f"like{number}")) for number in range(6)]


def test_captions_name_both_signs_in_their_places_or_mean_the_first(script):
    glyphs = list(invented_glyphs(script, 200, 0))
    for one in glyphs:
        slots = ("left", "right") if one.layout == "⿰" else ("top", "bottom")
        both = [script[number].words for number in (one.first, one.second)]
        assert one.parts[0] in {f"{first} + {second}" for first in both[0] for second in both[1]}
        places = {f"{slots[0]}: {first}, {slots[1]}: {second}" for first in both[0] for second in both[1]}
        assert one.parts[1] in places and one.first != one.second
        assert {word for caption in one.meanings for word in caption.split(", ")} <= set(both[0])
    assert np.mean([one.layout == "⿰" for one in glyphs]) == pytest.approx(0.65, abs=0.1)
    assert {one.first for one in glyphs} == {one.second for one in glyphs} == set(range(6))
    again = next(invented_glyphs(script, 1, 0))
    assert np.array_equal(again.image, glyphs[0].image) and again.meanings == glyphs[0].meanings


@pytest.mark.parametrize(
    ("syllable", "captions"),
    [
        ("가", ["kiyeok + a", "left: kiyeok, right: a"]),
        ("각", ["kiyeok + a + kiyeok", "left: kiyeok, right: a, bottom: kiyeok"]),
        ("오", ["ieung + o", "top: ieung, bottom: o"]),
        ("온", ["ieung + o + nieun", "top: ieung, middle: o, bottom: nieun"]),
        ("과", ["kiyeok + wa"]),  # below and on the right
        ("힣", ["hieuh + i + hieuh", "left: hieuh, right: i, bottom: hieuh"]),
    ],
)
def test_syllables_are_captioned_by_their_letters(syllable, captions):
    assert syllable_captions(ord(syllable)) == captions


# ------------------------------------------------------------------------------------------ the corpus


def test_the_corpus_has_each_picture_once_a_kind_and_each_kind_its_share(script, tmp_path, monkeypatch):
    monkeypatch.setattr(invented_script, "FREQUENT", 3)
    letters = [CorpusGlyph(ord(letter), DEJAVU, f"letter {letter}") for letter in "Aab"]
    syllable = CorpusGlyph(0xAC01, DEJAVU, "hangul syllable gag")
    shade = lambda one: Image.new("L", (128, 128), one.codepoint % 99)  # noqa: E731
    monkeypatch.setattr("kanjilab.data.pocket_corpus.draw_glyph", shade)
    table = build_pocket_corpus(tmp_path, [*letters, syllable], script, {"frequent": 60, "": 60})
    stored, images = load_captioned(tmp_path)
    assert len(stored) == len(table) and len(images) == 4 + 120 and set(table["image"]) == set(range(124))
    counts = {"world": 4, "syllables": 1, "frequent pairs": 60, "frequent meaning": 60, "pairs": 60, "meaning": 60}
    assert table["kind"].value_counts().to_dict() == counts
    frequent = table[table["kind"].str.startswith("frequent")]
    assert frequent[["first", "second"]].max().max() == 2 and table["second"].max() == 5
    assert table.loc[table["kind"] == "world", "captions"].iloc[0] == "A|letter A|letter A|letter A"
    wanted = dict(zip(KINDS, (0.3, 0.1, 0.1, 0.1, 0.2, 0.2), strict=True))
    weight = weights_of_kinds(wanted, table)
    assert table["held_out"].sum() >= 4 * 2 and (weight[table["held_out"]] == 0).all()
    shares = table.assign(weight=weight).groupby("kind")["weight"].sum()
    assert shares.to_dict() == pytest.approx(wanted)
