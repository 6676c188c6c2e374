"""Calligraphy folders: skeletons, frames, splits, and variants of a person's glyphs."""

import numpy as np
import pytest
from PIL import Image
from skimage.measure import euler_number, label

from kanjilab.data.calligraphy import (
    STYLES,
    Style,
    build_calligraphy_folder,
    build_hand_folder,
    jis_level_1,
    known_characters,
    load_skeletons,
    open_face,
    typed_glyph,
)
from kanjilab.data.components import is_held_out
from kanjilab.data.framing import LIMIT_PX, MEDIAN_PX, frame_glyphs, ink_box
from kanjilab.data.handwriting import Hand
from kanjilab.data.image_folder import HELD_OUT
from kanjilab.data.rendering import GlyphError, default_font
from kanjilab.data.skeleton import pack_skeletons, skeletons_of, unpack_skeletons

WORDS = "永国語書道東京都心春夏秋冬九足"  # 道 is held out
TWO = (
    Style("first", "regular", "pen", "one", "ipaexg.ttf"),
    Style("second", "regular", "pen", "another", "ipaexg.ttf"),
)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    folder = tmp_path_factory.mktemp("calligraphy") / "data"
    return build_calligraphy_folder(folder, [default_font().parent], TWO, WORDS + "\uffff")


def bar(width, height, canvas=300):
    image = np.full((canvas, canvas), 255, np.uint8)
    image[20 : 20 + height, 30 : 30 + width] = 0
    return image


def test_skeletons_are_thin_and_keep_what_hangs_together_and_what_is_enclosed():
    images = np.stack([typed_glyph(character) for character in "国口心道日"])
    skeletons = skeletons_of(images)
    for image, lines in zip(images, skeletons, strict=True):
        ink = image < 128
        assert lines[~ink].sum() == 0 and 0 < lines.sum() < ink.sum() / 3
        assert label(lines, connectivity=2).max() == label(ink, connectivity=2).max()
        assert euler_number(lines, connectivity=2) == euler_number(ink, connectivity=2)
    assert np.array_equal(unpack_skeletons(pack_skeletons(skeletons)), skeletons)


def test_frames_do_not_depend_on_the_size_that_a_style_was_drawn_at():
    glyphs = [typed_glyph(character) for character in "永道心"]
    large = [np.asarray(Image.fromarray(glyph).resize((384, 384), Image.Resampling.BICUBIC)) for glyph in glyphs]
    framed, again = frame_glyphs(glyphs), frame_glyphs(large)
    assert np.abs(framed.astype(int) - again).mean() < 3


def test_a_style_shares_one_scale_and_none_leaves_the_frame():
    framed = frame_glyphs([bar(100, 20), bar(100, 20), bar(20, 10), bar(250, 100), np.full((9, 9), 255, np.uint8)])
    boxes = [ink_box(image) for image in framed]
    sizes = [(right - left, bottom - top) for left, top, right, bottom in boxes]
    assert MEDIAN_PX == 100  # so that a pixel of the bars is one of the frame
    assert np.allclose(sizes, [(100, 20), (100, 20), (20, 10), (LIMIT_PX, LIMIT_PX * 0.4), (0, 0)], atol=1)
    middles = [((left + right) / 2, (top + bottom) / 2) for left, top, right, bottom in boxes[:4]]
    assert np.allclose(middles, 64, atol=1)


def test_a_folder_has_every_character_in_every_style_and_its_skeletons(dataset):
    table = dataset.table
    assert known_characters(dataset) == tuple(sorted(WORDS)) and len(table) == 2 * len(WORDS)
    assert set(table["text"]) <= {"regular script, pen", *(style.caption for style in TWO)} and len(set(table.text)) > 1
    assert np.array_equal(unpack_skeletons(load_skeletons(dataset)), skeletons_of(dataset.images()))
    typed = skeletons_of(np.stack([typed_glyph(character) for character in table["character"]]))
    assert np.array_equal(unpack_skeletons(load_skeletons(dataset, "typed")), typed)


def test_a_character_is_held_out_in_all_styles_or_none(dataset):
    held = dataset.table["split"] == HELD_OUT
    assert held.equals(dataset.table["character"].map(is_held_out)) and 0 < held.sum() < len(held) / 3
    level_1 = jis_level_1()
    assert len(level_1) == 2965 and level_1[0] == "亜" and level_1[-1] == "腕"


def test_fonts_that_are_not_there_are_named_with_their_packages(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"kouzan-regular: expected kouzan-mouhitsu.ttf below .*fonts-kouzan"):
        open_face(STYLES[0], [tmp_path])
    with pytest.raises(GlyphError, match="no character is drawn by every style"):
        build_calligraphy_folder(tmp_path / "none", [default_font().parent], TWO, "\uffff")


def test_variants_of_a_hand_are_near_its_glyphs_and_not_their_mirror_images(tmp_path):
    images = np.stack([typed_glyph(character) for character in "永心"])
    hand = Hand(("永", "心"), images, ("永.jpg", "心.jpg"), ())
    dataset = build_hand_folder(tmp_path / "hand", hand, "by own hand", variants=4)
    found = dataset.images().reshape(2, 4, 128, 128)
    assert np.array_equal(found[:, 0], images)
    for glyph, variants in zip(images, found, strict=True):
        shared = ((glyph < 128) & (variants[1:] < 128)).sum(axis=(1, 2))
        mirrored = ((glyph[:, ::-1] < 128) & (variants[1:] < 128)).sum(axis=(1, 2))
        assert (shared > 1.3 * mirrored).all() and len({variant.tobytes() for variant in variants}) == 4
