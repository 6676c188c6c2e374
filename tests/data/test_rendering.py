"""Glyphs from fonts and from strokes: ink, place, and what must be refused."""

import io
import os
import zipfile
from pathlib import Path

import numpy as np
import pytest
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen

from kanjilab.data import kanjivg as strokes
from kanjilab.data import rendering
from kanjilab.data.kanjivg import KanjiVG, draw_strokes, kanjivg_content_hash, local_kanjivg, sample_path
from kanjilab.data.rendering import GlyphError, default_font, draw_font, drawable_characters, draws

SVG = """<?xml version="1.0" encoding="UTF-8"?>
<!DOCTYPE svg PUBLIC "-//W3C//DTD SVG 1.0//EN" "http://www.w3.org/TR/2001/REC-SVG-20010904/DTD/svg10.dtd" [
<!ATTLIST g xmlns:kvg CDATA #FIXED "http://kanjivg.tagaini.net" kvg:element CDATA #IMPLIED >
]>
<svg xmlns="http://www.w3.org/2000/svg" width="109" height="109" viewBox="0 0 109 109">
<g id="kvg:StrokePaths_04e00" kvg:element="X">{paths}</g>
<g id="kvg:StrokeNumbers_04e00"><text transform="matrix(1 0 0 1 4 4)">1</text></g>
</svg>"""


def strokes_of(*paths: str) -> KanjiVG:
    """A KanjiVG that knows one character, 一, by the paths given."""
    return KanjiVG({"04e00.svg": SVG.format(paths="".join(f'<path d="{d}"/>' for d in paths)).encode()})


def box(pen: TTGlyphPen, left: int, bottom: int, right: int, top: int) -> None:
    pen.moveTo((left, bottom))
    pen.lineTo((left, top))
    pen.lineTo((right, top))
    pen.lineTo((right, bottom))
    pen.closePath()


@pytest.fixture
def odd_font(tmp_path) -> Path:
    """Of 1000 units: 一 a box off centre, 二 mapped but blank, 三 wider than any image, the rest missing."""
    outlines = {".notdef": (100, 0, 900, 900), "box": (600, 0, 900, 100), "blank": None, "wide": (0, 0, 3000, 100)}
    builder = FontBuilder(1000, isTTF=True)
    builder.setupGlyphOrder(list(outlines))
    builder.setupCharacterMap({ord("一"): "box", ord("二"): "blank", ord("三"): "wide"})
    drawn = {}
    for name, corners in outlines.items():
        pen = TTGlyphPen(None)
        if corners:
            box(pen, *corners)
        drawn[name] = pen.glyph()
    builder.setupGlyf(drawn)
    builder.setupHorizontalMetrics({name: (1000, 0) for name in outlines})
    builder.setupHorizontalHeader(ascent=900, descent=-100)
    builder.setupNameTable({"familyName": "Odd", "styleName": "Regular"})
    builder.setupOS2()
    builder.setupPost()
    path = tmp_path / "odd.ttf"
    builder.save(path)
    return path


def ink(image) -> tuple[int, int, int, int]:
    """Left, top, right, bottom (exclusive) of what is darker than mid-gray."""
    rows, columns = np.nonzero(np.asarray(image) < 128)
    return int(columns.min()), int(rows.min()), int(columns.max()) + 1, int(rows.max()) + 1


# --- Fonts -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("character", "一丨木鬱龍々口")
@pytest.mark.parametrize("size_px", [64, 128])
def test_ink_is_centred_and_black_on_white(character, size_px):
    image = draw_font(character, default_font(), size_px)
    assert image.mode == "L" and image.size == (size_px, size_px)
    pixels = np.asarray(image)
    assert pixels.min() == 0 and pixels[0, 0] == 255
    left, top, right, bottom = ink(image)
    assert abs(left - (size_px - right)) <= 2 and abs(top - (size_px - bottom)) <= 2


def test_size_of_a_box_is_its_share_of_the_font(odd_font):
    left, top, right, bottom = ink(draw_font("一", odd_font))
    assert right - left == 36 and bottom - top == 12  # 300 x 100 of 1000 units at 120 px
    assert (left, top) == (46, 58)


def test_drawing_is_the_same_each_time_and_differs_between_characters():
    first, again, other = (np.asarray(draw_font(c, default_font())) for c in "末末未")
    assert (first == again).all() and (first != other).any()


@pytest.mark.parametrize(
    ("character", "message"),
    [
        ("二", r"odd.ttf draws 二 \(U\+4E8C\) blank"),
        ("三", r"odd.ttf draws 三 \(U\+4E09\) clipped: 360 x 12 px of ink, 128 x 128 px"),
        ("四", r"odd.ttf has no glyph for 四 \(U\+56DB\)"),
        ("一二", "expected one character, got '一二'"),
        ("", "expected one character, got ''"),
    ],
)
def test_blank_clipped_and_missing_glyphs_are_refused(odd_font, character, message):
    with pytest.raises(GlyphError, match=message):
        draw_font(character, odd_font)


def test_drawable_goes_by_ink_not_by_cmap(odd_font):
    counts = []
    assert drawable_characters("一二三四", odd_font, lambda *count: counts.append(count)) == {"一"}
    assert counts == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert draws("一", odd_font) and not draws("二", odd_font)
    assert not draws("\U00017000", default_font())  # Tangut, which the default font lacks


def test_what_is_drawable_is_kept_by_the_fonts_content(odd_font, tmp_path, monkeypatch):
    monkeypatch.setenv("KANJILAB_CACHE", str(tmp_path / "cache"))
    asked, counts = [chr(0x4E00 + number) for number in range(rendering.WORTH_KEEPING)], []
    assert drawable_characters(asked, odd_font) == {"一"}
    same_font = odd_font.rename(tmp_path / "moved.ttf")
    with monkeypatch.context() as patch:
        patch.setattr(rendering, "draw_font", None)  # nothing can be drawn
        assert drawable_characters(asked, same_font, lambda *count: counts.append(count)) == {"一"}
        for others in ((asked[::-1], same_font), (asked, default_font())):
            with pytest.raises(TypeError):
                drawable_characters(*others)
    assert counts == [(len(asked), len(asked))]
    kept = next((tmp_path / "cache").rglob("characters.txt"))
    kept.write_text("一丁", encoding="utf-8")  # damaged
    assert drawable_characters(asked, same_font) == {"一"}


def test_a_file_that_is_no_font_is_named(tmp_path):
    path = tmp_path / "broken.ttf"
    path.write_bytes(default_font().read_bytes()[:500])
    for call in (lambda: draw_font("一", path), lambda: drawable_characters("一", path)):
        with pytest.raises(GlyphError, match="broken.ttf: expected a font file"):
            call()
    with pytest.raises(GlyphError, match="none.ttf"):
        draw_font("一", tmp_path / "none.ttf")


# --- Strokes ---------------------------------------------------------------------------------------


def test_path_of_lines_by_hand():
    assert sample_path("M10,20 30,20l0,5L1 2") == [(10, 20), (30, 20), (30, 25), (1, 2)]


def test_curve_passes_its_ends_and_its_known_middle():
    points = sample_path("M0,0C0,8,8,8,8,0", steps=2)
    assert points == [(0, 0), (4, 6), (8, 0)]  # Bernstein weights 1/8, 3/8, 3/8, 1/8
    assert sample_path("M1,1c0,8,8,8,8,0", steps=2) == [(1, 1), (5, 7), (9, 1)]


def test_smooth_curve_mirrors_the_control_point_before():
    smooth = sample_path("M0,0C0,4,4,8,8,8S16,4,16,0")
    explicit = sample_path("M0,0C0,4,4,8,8,8C12,8,16,4,16,0")
    np.testing.assert_allclose(smooth, explicit, atol=1e-12)
    # Without a curve before, the control point is where the pen is.
    np.testing.assert_allclose(sample_path("M3,3S4,8,9,9"), sample_path("M3,3C3,3,4,8,9,9"), atol=1e-12)


@pytest.mark.parametrize("data", ["M1", "10,10", "M0,0A1,1,0,0,0,5,5", "M0,0C1,1,2,2,3", "M0,0L5,5M9,9", "M0,0LC"])
def test_paths_beyond_reach_are_refused(data):
    with pytest.raises(GlyphError, match="expected"):
        sample_path(data)


def test_a_straight_stroke_has_width_place_and_round_ends():
    pixels = np.asarray(draw_strokes("一", strokes_of("M20,54.5L89,54.5"), stroke_width=8.0))
    scale = 128 / 109
    assert (pixels[:, 64] < 128).sum() == pytest.approx(8 * scale, abs=1)
    left, top, right, bottom = ink(pixels)
    assert left == pytest.approx((20 - 4) * scale, abs=1) and right == pytest.approx((89 + 4) * scale, abs=1)
    assert (top + bottom) / 2 == pytest.approx(64, abs=0.5)
    assert pixels[top, left] == 255 and pixels[64, left + 1] < 128  # rounded, not square


def test_wider_strokes_leave_more_ink_and_numbers_leave_none():
    pieces = strokes_of("M20,20L20,80", "M50,30C60,40,70,50,90,50")
    thin, wide = (np.asarray(draw_strokes("一", pieces, width)) for width in (3.0, 6.0))
    assert 1.6 < (255 - wide.astype(int)).sum() / (255 - thin.astype(int)).sum() < 2.2
    assert (thin[:10, :10] == 255).all()  # where the stroke number is


@pytest.mark.parametrize(
    ("pieces", "width", "error", "message"),
    [
        (strokes_of("M20,20L120,20"), 5.0, GlyphError, "clipped at stroke width 5"),
        (strokes_of("M4,20L90,20"), 9.0, GlyphError, "clipped at stroke width 9"),
        (strokes_of(), 5.0, GlyphError, "no ink"),
        (strokes_of("M20,20L80,20"), 0.0, ValueError, "stroke_width must be > 0, got 0.0"),
        (strokes_of("M20,20L80,20"), float("nan"), ValueError, "stroke_width"),
        (KanjiVG({}), 5.0, GlyphError, r"no strokes for 一 \(U\+4E00\)"),
        (KanjiVG({"04e00.svg": b"<svg><path"}), 5.0, GlyphError, "04e00.svg: expected a plain SVG"),
    ],
)
def test_strokes_that_cannot_be_drawn_are_refused(pieces, width, error, message):
    with pytest.raises(error, match=message):
        draw_strokes("一", pieces, width)


def test_entities_in_a_stroke_file_are_refused():
    bomb = '<!DOCTYPE svg SYSTEM "x" ><!DOCTYPE svg [<!ENTITY a "M0,0">]><svg><path d="&a;"/></svg>'
    with pytest.raises(GlyphError, match="plain SVG"):
        KanjiVG({"04e00.svg": bomb.encode()}).strokes("一")


def test_content_hash_ignores_order_but_not_content():
    files = {"04e00.svg": b"a", "04e01.svg": b"b"}
    assert kanjivg_content_hash(files) == kanjivg_content_hash(dict(reversed(files.items())))
    assert kanjivg_content_hash(files) != kanjivg_content_hash({**files, "04e01.svg": b"c"})


def zipped(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"no zip", "expected a zip file"),
        (zipped({"kanji/04e00.svg": b"<svg/>"}), "expected KanjiVG with content hash 332cc110"),
        (zipped({"kanji/04e00.svg": b" " * 5_000_000}), "got far larger ones"),
    ],
    ids=["no zip", "other content", "zip bomb"],
)
def test_other_archives_are_refused(tmp_path, data, message):
    path = tmp_path / "kanjivg.zip"
    path.write_bytes(data)
    with pytest.raises(ValueError, match=message):
        KanjiVG.open(path)


def test_a_short_wide_stroke_covers_what_lies_within_half_its_width():
    path = "M30,40c4,0.5,6,0.8,9,1.5"
    kanjivg = KanjiVG({"04e00.svg": SVG.format(paths=f'<path d="{path}"/>').encode()})
    drawn = np.asarray(draw_strokes("一", kanjivg, 8.0, size_px=436)) < 128  # four pixels to the unit
    rows, columns = (np.indices(drawn.shape) + 0.5) / 4
    within = np.min([np.hypot(columns - x, rows - y) for x, y in sample_path(path, steps=100)], axis=0) < 4.0
    assert (drawn ^ within).sum() < 0.015 * within.sum()


def answering(data: bytes):
    """A stand-in for `urlopen` whose answer is `data`."""
    return lambda address, timeout: io.BytesIO(data)


def test_download_is_checked_before_it_is_kept(tmp_path, monkeypatch):
    files = {"04e00.svg": SVG.format(paths='<path d="M20,20L80,20"/>').encode()}
    data = zipped({"release/kanji/04e00.svg": files["04e00.svg"], "release/kanji/04e00-Kaisho.svg": b"<svg/>"})
    monkeypatch.delenv("KANJILAB_MIRROR", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(strokes.urllib.request, "urlopen", answering(data))
    with pytest.raises(ValueError, match="content hash"):
        KanjiVG.open()
    assert not (tmp_path / "kanjilab").exists()
    monkeypatch.setattr(strokes, "KANJIVG_SHA256", kanjivg_content_hash(files))
    assert KanjiVG.open().characters() == {"一"}
    assert [path.name for path in (tmp_path / "kanjilab").iterdir()] == [strokes.KANJIVG_FILE]
    monkeypatch.setattr(strokes.urllib.request, "urlopen", None)  # a second time nothing is asked for
    assert KanjiVG.open().characters() == {"一"}


def test_offline_without_a_copy_says_where_it_looked(tmp_path, monkeypatch):
    def refuse(address, timeout):
        raise OSError("network is unreachable")

    monkeypatch.setenv("KANJILAB_MIRROR", str(tmp_path / "mirror"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(strokes.urllib.request, "urlopen", refuse)
    with pytest.raises(FileNotFoundError, match="KANJILAB_MIRROR.*network is unreachable"):
        KanjiVG.open()


def test_a_local_copy_is_found_and_the_mirror_comes_first(tmp_path, monkeypatch):
    monkeypatch.setenv("KANJILAB_MIRROR", str(tmp_path / "mirror"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert local_kanjivg() is None
    for folder in (tmp_path / "cache" / "kanjilab", tmp_path / "mirror"):
        folder.mkdir(parents=True)
        (folder / strokes.KANJIVG_FILE).touch()
        assert local_kanjivg() == folder / strokes.KANJIVG_FILE


def test_strokes_are_in_the_cache_of_the_environment(tmp_path, monkeypatch):
    monkeypatch.delenv("KANJILAB_MIRROR", raising=False)
    monkeypatch.setenv("KANJILAB_CACHE", str(tmp_path))
    assert local_kanjivg() is None
    (tmp_path / strokes.KANJIVG_FILE).touch()
    assert local_kanjivg() == tmp_path / strokes.KANJIVG_FILE


@pytest.fixture(scope="module")
def kanjivg() -> KanjiVG:
    mirror = os.environ.get("KANJILAB_MIRROR")
    if not mirror or not (Path(mirror) / strokes.KANJIVG_FILE).is_file():
        pytest.skip(f"needs {strokes.KANJIVG_FILE} in the folder named by KANJILAB_MIRROR")
    return KanjiVG.open()


def test_release_has_the_known_characters_and_strokes(kanjivg):
    assert len(kanjivg.characters()) == 6_702
    assert len([character for character in kanjivg.characters() if "\u3400" <= character <= "\u9fff"]) == 6_415
    assert [len(kanjivg.strokes(character)) for character in "一亜海鬱"] == [1, 7, 9, 29]


def test_strokes_lie_where_the_font_has_ink(kanjivg):
    overlaps = []
    for character in "木水人口土女山":
        drawn = np.asarray(draw_strokes(character, kanjivg, 5.0)) < 128
        printed = np.asarray(draw_font(character, default_font()).reduce(8).resize((128, 128))) < 230
        overlaps.append((drawn & printed).sum() / drawn.sum())
    assert np.mean(overlaps) > 0.6


def test_a_sample_of_the_release_is_drawn_whole(kanjivg):
    for character in sorted(kanjivg.characters())[::60]:
        if character > "\u3400":
            assert (np.asarray(draw_strokes(character, kanjivg, 6.0)) < 128).sum() > 100
