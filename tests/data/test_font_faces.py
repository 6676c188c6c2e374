"""A face of a collection, by number and by name, and an instance of a variable font."""

from pathlib import Path

import numpy as np
import pytest
from fontTools.ttLib import TTCollection, TTFont
from PIL import ImageFont

from kanjilab.data import rendering
from kanjilab.data.rendering import GlyphError, checked_font, default_font, draw_font, font_file


@pytest.fixture(scope="module")
def collection(tmp_path_factory):
    """The default font, and a second face whose 水 is its 火."""
    first, second = TTFont(default_font()), TTFont(default_font())
    names = second.getBestCmap()
    for table in second["cmap"].tables:
        table.cmap = {code: name for code, name in table.cmap.items() if code < 128} | {0x6C34: names[0x706B]}
    second["name"].setName("Other", 1, 3, 1, 0x409)
    fonts = TTCollection()
    fonts.fonts = [first, second]
    path = tmp_path_factory.mktemp("fonts") / "both.ttc"
    fonts.save(path, shareTables=True)
    return path


def same(one, other):
    return np.array_equal(np.asarray(one), np.asarray(other))


def test_a_face_is_chosen_by_number_or_name(collection):
    water, fire = draw_font("水", default_font()), draw_font("火", default_font())
    assert same(draw_font("水", collection), water) and same(draw_font("水", Path(f"{collection}#0")), water)
    assert same(draw_font("水", Path(f"{collection}#1")), fire)
    assert same(draw_font("水", Path(f"{collection}#Other Regular")), fire)
    assert checked_font(Path(f"{collection}#1")) == Path(f"{collection}#1")
    assert font_file(Path(f"{collection}#1")) == (collection, "1")


@pytest.mark.parametrize("face", ["2", "Third", "other regular"])
def test_a_face_that_is_not_there_is_refused_with_those_that_are(collection, face):
    with pytest.raises(GlyphError, match=rf"both\.ttc: expected one of the faces .*Other Regular, got '{face}'"):
        draw_font("水", Path(f"{collection}#{face}"))


def test_a_file_with_that_sign_in_its_name_is_a_file(collection, tmp_path):
    odd = tmp_path / "a#1.ttc"
    odd.write_bytes(collection.read_bytes())
    assert same(draw_font("水", odd), draw_font("水", default_font()))
    assert same(draw_font("水", Path(f"{odd}#1")), draw_font("火", default_font()))


def test_an_instance_of_a_variable_font_is_chosen_by_name(monkeypatch):
    chosen = []

    class Variable(ImageFont.FreeTypeFont):
        def get_variation_names(self):
            return [b"Light", b"Bold"]

        def set_variation_by_name(self, name):
            chosen.append(name)

    monkeypatch.setattr(rendering.ImageFont, "truetype", lambda path, size, **options: Variable(path, size, **options))
    rendering._load_font.__wrapped__(Path(f"{default_font()}#Bold"), 20)
    assert chosen == ["Bold"]
    with pytest.raises(GlyphError, match="Light, Bold, got 'Heavy'"):
        rendering._load_font.__wrapped__(Path(f"{default_font()}#Heavy"), 20)
