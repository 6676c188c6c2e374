"""A person's hand read from photos, and drawn skeletons: what is found, and what is refused in which words."""

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from kanjilab.data.framing import frame_glyphs
from kanjilab.data.handwriting import read_hand, read_skeleton
from kanjilab.data.skeleton import skeletons_of
from tests.photos import glyph, page, photographed, sheet


def true_glyph(character):
    return frame_glyphs([np.asarray(glyph(character, 256))])[0]


def agreement(found, true, turn=0.0):
    """Shared ink over all ink, once the true glyph is turned as its photo was."""
    turned = ndimage.rotate(true, turn, reshape=False, cval=255, order=1)
    a, b = found < 128, turned < 128
    return (a & b).sum() / (a | b).sum()


@pytest.fixture(scope="module")
def hand(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hand")
    photographed(page("永")).save(folder / "永.jpg")
    photographed(page("道", lined=True), tilt=-4).save(folder / "道.png")
    photographed(sheet("春夏秋冬花鳥")).save(folder / "春夏秋冬花鳥.jpg")
    photographed(sheet("国 一", columns=3), tilt=-2).save(folder / "国山一.png")
    photographed(sheet("春夏秋")).save(folder / "春夏.jpg")
    photographed(Image.new("L", (400, 400), 235)).save(folder / "空.jpg")
    Image.new("L", (300, 300), 0).save(folder / "黒.png")
    grain = np.random.default_rng(0).integers(0, 256, (300, 300), dtype=np.uint8)
    Image.fromarray(grain).save(folder / "猫.png")
    (folder / "notes.txt").write_text("not a picture")
    (folder / "壊.png").write_bytes(b"")
    photographed(page("永")).save(folder / "123.jpg")
    return read_hand(folder)


def test_every_photo_gives_the_characters_of_its_name(hand):
    assert sorted(hand.characters) == sorted("永道春夏秋冬花鳥国一")
    assert dict(zip(hand.characters, hand.files, strict=True))["鳥"] == "春夏秋冬花鳥.jpg"


@pytest.mark.parametrize(
    ("characters", "turn"),
    [("永", 3), ("道", -4), ("春夏秋冬花鳥", 0), ("国", 0)],
    ids=["shadow and tilt", "lined paper", "sheet", "sheet with a box left empty"],
)
def test_glyphs_come_out_as_they_were_written(hand, characters, turn):
    found = dict(zip(hand.characters, hand.images, strict=True))
    measured = {one: agreement(found[one], true_glyph(one), turn) for one in characters}
    others = {one: agreement(found[one], true_glyph("器"), turn) for one in characters}
    assert min(measured.values()) > 0.6 and all(measured[one] > others[one] + 0.25 for one in characters), measured


def test_paper_is_white_and_has_no_specks(hand):
    for image in hand.images:
        assert np.mean(image == 255) > 0.4 and image.min() < 60
        assert ndimage.label(image < 128, np.ones((3, 3)))[1] <= 16


def test_what_could_not_be_read_is_listed_by_file_with_the_reason(hand):
    said = dict(hand.unread)
    assert said.keys() == {"春夏.jpg", "空.jpg", "黒.png", "猫.png", "notes.txt", "壊.png", "国山一.png", "123.jpg"}
    assert "2 characters, but 3 boxes" in said["春夏.jpg"] and "山: no ink" in said["国山一.png"]
    assert "no ink" in said["空.jpg"] and "no ink" in said["黒.png"] and "scattered" in said["猫.png"]
    assert "not an image" in said["notes.txt"] and "0 bytes" in said["壊.png"] and "lists no char" in said["123.jpg"]


def test_a_folder_with_nothing_to_read_is_refused_with_the_reasons(tmp_path):
    with pytest.raises(ValueError, match="expected a folder of photos"):
        read_hand(tmp_path / "none")
    (tmp_path / "永.png").write_bytes(b"x")
    with pytest.raises(ValueError, match=r"none that can be read\n  永.png: is not an image"):
        read_hand(tmp_path)


def picture(size, mode="L", ink: object = 0, paper: object = 255, thin=False):
    drawn = np.asarray(glyph("永", min(size))) < 128
    drawn = skeletons_of(np.where(drawn, 0, 255).astype(np.uint8)[None])[0] if thin else drawn
    image = Image.new(mode, size, paper)  # type: ignore[arg-type]
    corner = (size[0] - drawn.shape[1]) // 2, (size[1] - drawn.shape[0]) // 2
    image.paste(ink, corner, Image.fromarray(np.where(drawn, 255, 0).astype(np.uint8)))  # type: ignore[arg-type]
    return image


ODD = {
    "large": picture((900, 900)),
    "small": picture((60, 50)),
    "wide": picture((1000, 200)),
    "inverted": picture((300, 300), ink=255, paper=0),
    "coloured": picture((300, 300), "RGB", (190, 30, 30), (250, 240, 200)),
    "transparent": picture((300, 300), "RGBA", (0, 0, 200, 255), (0, 0, 0, 0)),
    "one pixel wide": picture((500, 500), thin=True),
}


@pytest.mark.parametrize("name", ODD)
def test_a_skeleton_may_be_of_any_size_and_colour(name, tmp_path):
    ODD[name].save(tmp_path / "lines.png")
    found = read_skeleton(tmp_path / "lines.png")
    expected = skeletons_of(frame_glyphs([np.asarray(glyph("永", 256))]))[0]
    near = ndimage.binary_dilation(expected, iterations=4)
    assert found.shape == (128, 128) and found.sum() > 0.7 * expected.sum()
    assert found[near].sum() > 0.85 * found.sum()


def test_what_shows_no_lines_is_refused_in_a_sentence(tmp_path):
    pictures = {"empty": np.full((90, 90), 255), "black": np.zeros((90, 90)), "one": np.zeros((1, 1))}
    pictures["photo"] = np.random.default_rng(0).integers(0, 256, (200, 200, 3))
    for name, pixels in pictures.items():
        Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / f"{name}.png")
        with pytest.raises(ValueError, match=f"^{name}.png: (no ink is to be seen|what is dark lies scattered)"):
            read_skeleton(tmp_path / f"{name}.png")
    with pytest.raises(ValueError, match="missing.png cannot be read"):
        read_skeleton(tmp_path / "missing.png")
