"""Strips and animations: what stands where, in any script, in a small file."""

import json
from io import BytesIO

import numpy as np
import pytest
from PIL import Image, ImageSequence

from kanjilab.viz import text
from kanjilab.viz.animation import save_animation
from kanjilab.viz.strip import PAGE, Strip, draw_strip, encode_png, save_strip
from kanjilab.viz.text import Typeface, facts_line, fit_text, printable, typeface

HOSTILE = "<img src=x onerror=alert(1)>\n\x00\u202eevil\ud800" + "a\u0301" + "\u0300" * 500 + "$\\frac{" + "x" * 5000


def glyphs(rows=3, columns=4, size_px=32, seed=0):
    """Black strokes on white, each image different."""
    rng = np.random.default_rng(seed)
    images = np.full((rows, columns, size_px, size_px), 255, np.uint8)
    for image in images.reshape(-1, size_px, size_px):
        for position in rng.integers(3, size_px - 3, 4):
            image[position, 3:-3] = 0
    return images


def strip(images=None, **changes):
    images = glyphs() if images is None else images
    labels = {
        "row_labels": tuple(f"row {n}" for n in range(images.shape[0])),
        "column_labels": tuple(f"{n}" for n in range(images.shape[1])),
    }
    return Strip(images, **(labels | changes))


def cells(picture, cell_px):
    """Upper left corners of the cells, found in the picture itself: the pure white squares."""
    pixels = np.asarray(picture)
    corners = []
    for y, x in zip(*np.nonzero(pixels == 255), strict=True):
        border = np.concatenate([pixels[y, x : x + cell_px], pixels[y : y + cell_px, x]])
        outside = pixels[y - 1, x] != 255 and pixels[y, x - 1] != 255
        if outside and len(border) == 2 * cell_px and (border == 255).all():
            corners.append((int(y), int(x)))
    return corners


def test_cells_hold_the_images_pixel_for_pixel_in_order():
    images = glyphs()
    picture = draw_strip(strip(images), cell_px=32)
    corners = cells(picture, 32)
    assert len(corners) == 12
    rows, columns = sorted({y for y, _ in corners}), sorted({x for _, x in corners})
    assert corners == [(y, x) for y in rows for x in columns]
    for image, (y, x) in zip(images.reshape(-1, 32, 32), corners, strict=True):
        assert np.array_equal(np.asarray(picture)[y : y + 32, x : x + 32], image)


def test_off_white_paper_becomes_white_and_ink_stays():
    images = glyphs()
    faded = np.where(images == 255, 243, 0).astype(np.uint8)
    assert np.array_equal(np.asarray(draw_strip(strip(images), 32)), np.asarray(draw_strip(strip(faded), 32)))


def test_groups_widen_the_gap_before_each_group_only():
    plain = sorted({x for _, x in cells(draw_strip(strip(), 32), 32)})
    grouped_picture = draw_strip(
        strip(column_groups=(("one noise", 3), ("others", 1)), row_groups=(("a", 1), ("b", 2))), 32
    )
    corners = cells(grouped_picture, 32)
    steps = np.diff(sorted({x for _, x in corners}))
    assert steps[0] == steps[1] == np.diff(plain)[0] and steps[2] > steps[0]
    rows = np.diff(sorted({y for y, _ in corners}))
    assert rows[0] > rows[1] == np.diff(plain)[0]


@pytest.mark.parametrize("cell_px", [48, 96, 128])
def test_labels_stay_outside_the_cells_and_inside_the_page(cell_px):
    images = glyphs(size_px=cell_px)
    texts = ("女王と王冠の箱、とても長い日本語の指示文と説明", HOSTILE, "Pikachu Pikachu Pikachu " * 4)
    columns = ("before", "1,600 images", HOSTILE, "最終 final")
    picture = np.asarray(
        draw_strip(
            strip(
                images,
                row_labels=texts,
                column_labels=columns,
                title=HOSTILE,
                facts={"prompt": HOSTILE, "n": 12_800},
                row_groups=((HOSTILE, 3),),
                column_groups=((HOSTILE, 4),),
            ),
            cell_px,
        )
    ).copy()
    corners = cells(picture, cell_px)
    assert len(corners) == 12
    for image, (y, x) in zip(images.reshape(-1, cell_px, cell_px), corners, strict=True):
        assert np.array_equal(picture[y : y + cell_px, x : x + cell_px], image)
        picture[y : y + cell_px, x : x + cell_px] = PAGE
    edge = cell_px // 12
    for border in (picture[:edge], picture[-edge:], picture[:, :edge], picture[:, -edge:]):
        assert (border == PAGE).all()
    first = min(y for y, _ in corners)
    for y in sorted({y for y, _ in corners}):
        assert (picture[y : y + cell_px, : corners[0][1]] < 128).any(), f"no label beside the row at {y}"
    assert (picture[:first] < 128).any()


def test_a_label_changes_only_its_own_row():
    one, two = strip(row_labels=("water", "axe", "tree")), strip(row_labels=("water", "oxe", "tree"))
    first, second = np.asarray(draw_strip(one, 32)).astype(int), np.asarray(draw_strip(two, 32)).astype(int)
    changed = np.nonzero(np.abs(first - second).max(axis=1))[0]
    top = sorted({y for y, _ in cells(draw_strip(one, 32), 32)})[1]
    assert len(changed) and top <= changed.min() and changed.max() < top + 32


def test_strip_refuses_what_does_not_fit():
    with pytest.raises(ValueError, match="expected 3 row labels.*got 1"):
        strip(row_labels=("a",))
    with pytest.raises(ValueError, match="expected 4 column labels"):
        strip(column_labels=())
    with pytest.raises(ValueError, match="column groups must cover 4 columns"):
        strip(column_groups=(("a", 3),))
    with pytest.raises(ValueError, match="float64"):
        Strip(glyphs().astype(float), ("a", "b", "c"), ("a", "b", "c", "d"))
    with pytest.raises(ValueError, match="cell_px"):
        draw_strip(strip(), 8)


def test_printable_is_one_harmless_line():
    assert printable("  queen\tof\r\nhearts ") == "queen of hearts"
    assert printable("ab\u202ecd\u2066e\ufeff") == "abcde"
    assert printable("\ud800\ue000") == "��"
    assert printable("e" + "\u0323" * 100) == "ẹ" + "\u0323" * 3
    assert printable("か\u3099") == "が"  # NFC
    assert printable("می\u200cخواهم") == "می\u200cخواهم"
    assert len(printable("x" * 10_000)) == 300 and printable("x" * 10_000).endswith("…")


def test_fitting_wraps_then_shrinks_then_cuts():
    face = typeface(20)
    assert fit_text("axe", face, 300) == (["axe"], face)
    lines, same = fit_text("to swim in a river", face, face.width("to swim in a") + 1)
    words = "to swim in a river".split()
    splits = [(" ".join(words[:cut]), " ".join(words[cut:])) for cut in range(1, 5)]
    evenest = min(splits, key=lambda pair: max(map(face.width, pair)))  # not "to swim in a" / "river"
    assert tuple(lines) == evenest and same == face
    word = "incomprehensibilities"
    lines, smaller = fit_text(word, face, face.width(word) * 0.9)
    assert lines == [word] and 15 <= smaller.size < 20
    lines, smallest = fit_text("a long prompt without any end " * 9, face, 200)
    assert len(lines) == 2 and lines[1].endswith("…") and smallest.size == 15
    lines, kanji_face = fit_text("女王と王冠の箱", face, 100)
    assert "".join(lines) == "女王と王冠の箱" and len(lines) == 2
    for found, used, place in ((lines, kanji_face, 100), fit_text(HOSTILE, face, 90) + (90,)):
        assert all(used.width(line) <= place for line in found)


def test_long_column_labels_and_titles_are_not_cut():
    label, title = "sink;be submerged;subside;be depressed;aloes", "28,000 images seen, one run"
    drawn: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        draw = Typeface.draw
        patch.setattr(Typeface, "draw", lambda self, *a, **k: (drawn.append(a[3]), draw(self, *a, **k))[1])
        draw_strip(Strip(np.zeros((1, 1, 8, 8), np.uint8), ("rank 1",), (label,), title), 64)
    assert title in drawn and "".join(drawn[1:-1][::-1]).replace(" ", "") == label.replace(" ", "")


def test_no_line_begins_with_a_closing_mark():
    face = typeface(20)
    lines, _ = fit_text("王冠の箱、斧", face, face.width("王冠の箱") + 1)
    assert not any(line.startswith("、") for line in lines) and len(lines) == 2


def test_each_script_is_drawn_by_a_font_that_has_it():
    face = typeface(20)
    assert [piece for _, piece in face.pieces("queen 女王 королева")] == ["queen ", "女王 ", "королева"]
    families = [font.getname()[0] for font, _ in face.pieces("queen 女王")]
    assert families == ["DejaVu Sans", "IPAexGothic"]


def test_a_box_replaces_what_no_font_has(monkeypatch):
    monkeypatch.setattr(text, "_system_font", lambda character: None)
    assert [piece for _, piece in typeface(20).pieces("ab\U00013000")] == ["ab□"]


def test_facts_line_shows_scalars_only():
    facts = {"base": "pocket", "images_seen": 12800, "peak_lr": 1e-3, "seed": 0, "ema": True, "scores": [1], "x": None}
    assert facts_line(facts) == "base pocket · images seen 12,800 · peak lr 0.001 · seed 0 · ema yes"


def test_saved_strip_is_small_and_explains_itself(tmp_path):
    rng = np.random.default_rng(1)
    images = rng.integers(0, 256, (16, 10, 64, 64), dtype=np.uint8)  # noise: the worst case for a PNG
    wide = strip(images, title="noise", facts={"run": "demo", "scores": {"top1": 0.5}}, row_groups=(("all", 16),))
    path = save_strip(wide, tmp_path / "noise.png")
    assert path.stat().st_size < 500_000
    beside = json.loads((tmp_path / "noise.json").read_text())
    assert beside["facts"] == {"run": "demo", "scores": {"top1": 0.5}}
    assert beside["row_groups"] == [["all", 16]] and beside["row_labels"][15] == "row 15"
    assert beside["picture"]["cell_px"] < 96
    with Image.open(path) as picture:
        assert list(picture.size) == beside["picture"]["size_px"]
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["noise.json", "noise.png"]
    with pytest.raises(ValueError, match=r"ending in \.png"):
        save_strip(wide, tmp_path / "noise.jpg")


def test_a_picture_replaces_no_json_that_is_about_something_else(tmp_path):
    (tmp_path / "settings.json").write_text('{"rank": 4}')
    with pytest.raises(FileExistsError, match="settings.json is not about a picture"):
        save_strip(strip(), tmp_path / "settings.png")
    assert [path.name for path in tmp_path.iterdir()] == ["settings.json"]
    save_strip(strip(), tmp_path / "a.png").unlink()
    save_strip(strip(), tmp_path / "a.png")  # its own, left over, it replaces


def test_same_strip_gives_the_same_bytes(tmp_path):
    first = save_strip(strip(title="x"), tmp_path / "a.png").read_bytes()
    assert save_strip(strip(title="x"), tmp_path / "b.png").read_bytes() == first


def test_sixteen_tones_are_near_the_picture():
    ramp = Image.fromarray(np.tile(np.arange(256, dtype=np.uint8), (4, 1)))
    with Image.open(BytesIO(encode_png(ramp))) as packed:
        error = np.abs(np.asarray(packed.convert("L")).astype(int) - np.arange(256))
    assert error.max() <= 10 and error[:, [0, PAGE, 255]].max() == 0


def test_colour_strip_keeps_its_colours(tmp_path):
    images = np.repeat(glyphs()[..., None], 3, axis=-1)
    images[1, 1] = (200, 30, 30)
    path = save_strip(strip(images), tmp_path / "colour.png", cell_px=32)
    with Image.open(path) as picture:
        red = np.abs(np.asarray(picture.convert("RGB")).astype(int) - (200, 30, 30)).max(axis=-1) < 12
    assert red.sum() == pytest.approx(32 * 32, rel=0.02)


@pytest.mark.parametrize("ending", [".gif", ".webp"])
def test_animation_shows_each_frame_and_rests_on_the_last(tmp_path, ending):
    frames = glyphs(1, 5, 64)[0]
    path = save_animation(
        frames,
        ["before", "100", "200", "400", "final 女王"],
        tmp_path / f"queen{ending}",
        0.4,
        title="queen",
        size_px=64,
    )
    with Image.open(path) as animation:
        shown, durations = [], []
        for frame in ImageSequence.Iterator(animation):
            shown.append(np.asarray(frame.convert("L")).astype(int))
            durations.append(frame.info["duration"])
        assert animation.info["loop"] == 0
    assert durations == [400] * 4 + [2500]
    left, top = round(64 * 0.07), round(64 * 0.07) + round(64 * 0.13)
    for picture, frame in zip(shown, frames, strict=True):
        inside = picture[top : top + 64, left : left + 64]
        assert np.abs(inside - frame).mean() < 12
    assert path.stat().st_size < 500_000
    assert json.loads(path.with_suffix(".json").read_text())["labels"][-1] == "final 女王"


def test_animation_refuses_what_does_not_fit(tmp_path):
    frames = glyphs(1, 3)[0]
    with pytest.raises(ValueError, match="3 labels"):
        save_animation(frames, ["a"], tmp_path / "x.gif")
    with pytest.raises(ValueError, match=r"\(F, H, W\) uint8"):
        save_animation(frames.astype(float), ["a"] * 3, tmp_path / "x.gif")
    with pytest.raises(ValueError, match=r"\.gif or \.webp"):
        save_animation(frames, ["a"] * 3, tmp_path / "x.png")
    with pytest.raises(ValueError, match=r"0\.02 s"):
        save_animation(frames, ["a"] * 3, tmp_path / "x.gif", 0.0)
    assert list(tmp_path.iterdir()) == []
