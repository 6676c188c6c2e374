"""The brush panel without a browser: what strokes, types and pictures become, what ends what, and what is refused."""

import base64
import dataclasses
import io
import re
import threading

import numpy as np
import pytest
import torch
from PIL import Image

from kanjilab.data.skeleton import skeleton_of_strokes
from kanjilab.experiments.writing import WRITING, typed_skeleton, write
from kanjilab.models.loading import load_base
from kanjilab.models.sampling import Sampling
from kanjilab.models.skeleton_encoder import save_encoder, with_skeletons
from kanjilab.widgets import BrushPanel, brush, brush_output
from kanjilab.widgets.brush_board import BYTES_MOST
from tests.photos import glyph
from tests.tiny import save_tiny_pipeline

STYLES = ("queen", "water", "fire")
QUICK = Sampling("ddim", steps=1, guidance=1.5, array_guidance=1.5)
CROSS = [[[20.0, 64.0], [108.0, 64.0]], [[64.0, 20.0], [64.0, 108.0]]]
HOSTILE = "<img src=x onerror=alert(1)>"


@pytest.fixture(scope="module")
def led(tmp_path_factory):
    """A folder with a tiny base whose hint does something."""
    folder = save_tiny_pipeline(tmp_path_factory.mktemp("brush") / "base")
    encoder = with_skeletons(load_base(folder), "hint", "永国").condition_encoder
    torch.nn.init.normal_(encoder.skeleton.last.weight, generator=torch.Generator().manual_seed(0))
    save_encoder(encoder, folder)
    return folder


@pytest.fixture(autouse=True)
def quick(monkeypatch, tmp_path):
    for module in (brush, brush_output):
        monkeypatch.setattr(module, "WRITING", QUICK)
        monkeypatch.setattr(module, "TRACING", QUICK)
    monkeypatch.setattr(brush, "page_html", lambda images, places, text, style: style)  # outlines take a while
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def panel(led):
    return BrushPanel(led, "", styles=STYLES, checked=STYLES[:2])


def lay(panel, strokes):
    """Draws strokes, as the page says it, and waits until they are written."""
    panel.board.drawing = panel.board.drawing | {"strokes": strokes}
    finish(panel)


def finish(panel):
    """Waits for the work, and for what that starts."""
    while (worker := latest(panel)) is not None and (worker.alive or worker is not latest(panel)):
        worker.join(20)


def latest(panel):
    with panel._beginning:  # else it might be between two
        return panel._worker


def pictures(panel):
    return [bytes(picture) for picture in panel.row.pictures]


def test_strokes_are_lines_and_dots_where_the_pen_was():
    lines = skeleton_of_strokes([[(20, 64), (108, 64)]])
    rows, columns = np.nonzero(lines)
    assert set(rows) <= {63, 64, 65} and columns.min() <= 22 and columns.max() >= 106
    assert sorted(set(columns)) == list(range(columns.min(), columns.max() + 1)), "without a gap"
    rows, columns = np.nonzero(skeleton_of_strokes([[(30.0, 90.0)]]))
    assert 1 <= len(rows) <= 4 and abs(rows.mean() - 90) <= 1 and abs(columns.mean() - 30) <= 1
    assert not skeleton_of_strokes([[(200, 300)]]).any() and not skeleton_of_strokes([]).any()


def test_strokes_are_written_in_the_checked_styles_and_undone(panel, monkeypatch):
    lay(panel, CROSS[:1])
    first = pictures(panel)
    assert panel.row.captions == list(STYLES[:2]) and first[0] != first[1]
    assert re.search("2 glyphs in .* s.", panel.status.value) and panel.stop_button.disabled
    lay(panel, CROSS)
    assert all(one != other for one, other in zip(pictures(panel), first, strict=True))
    asked = []
    monkeypatch.setattr(
        brush,
        "write",
        lambda base, prompts, *rest, **hooks: asked.append(prompts) or write(base, prompts, *rest, **hooks),
    )
    lay(panel, CROSS[:1])
    assert pictures(panel) == first and asked == [], "what was written is kept"
    panel.checks[2].value = True
    finish(panel)
    assert pictures(panel)[:2] == first and [prompt.text for prompt in asked[0]] == ["fire"], "only what is new"
    panel.seed.value = 1
    finish(panel)
    assert len(asked[1]) == 3 and pictures(panel)[0] != first[0]


def test_what_is_drawn_next_ends_the_writing(panel, monkeypatch):
    written, may_go_on = [], threading.Event()

    def slow(base, prompts, seed, sampling, on_latents):
        may_go_on.wait(20)
        images = write(base, prompts, seed, sampling, on_latents=on_latents)
        written.append(prompts)
        return images

    monkeypatch.setattr(brush, "write", slow)
    panel.board.drawing = panel.board.drawing | {"strokes": CROSS[:1]}
    older = panel._worker
    panel.board.drawing = panel.board.drawing | {"strokes": CROSS}
    may_go_on.set()
    finish(panel)
    assert older.join(20) and older.stopped and len(written) == 1
    assert "2 glyphs in" in panel.status.value and panel.stop_button.disabled


def test_the_work_is_known_until_the_next_is_there(panel, monkeypatch):
    lay(panel, CROSS[:1])
    older, make, seen = panel._worker, panel._job, []
    monkeypatch.setattr(panel, "_job", lambda: (seen.append(panel._worker), make())[1])
    lay(panel, CROSS)
    assert seen == [older] and panel._worker is not older


def test_a_typed_character_and_strokes_over_it(panel):
    panel.text.value = "永"
    panel.type_character()
    finish(panel)
    assert np.array_equal(panel.board.lines, typed_skeleton("永")) and panel.board.of == "永"
    typed = pictures(panel)
    lay(panel, CROSS)
    assert (panel.board.lines == typed_skeleton("永") | skeleton_of_strokes(CROSS)).all()
    assert pictures(panel) != typed


def test_a_share_of_another_hand_is_one_more_glyph(panel):
    lay(panel, CROSS)
    panel.share.value = 40
    finish(panel)
    assert panel.row.captions[2] == "60% queen + 40% water" and len(set(pictures(panel))) == 3
    panel.share.value = 100
    finish(panel)
    assert pictures(panel)[2] == pictures(panel)[1], "all the way is the other hand"


@pytest.mark.parametrize("typed", ["永", "⿰水鳥", ""])
def test_the_code_writes_the_same(panel, typed):
    panel.guidance.value, panel.share.value, panel.seed.value = 2, 50, 3
    if typed:
        panel.text.value = typed
        panel.type_character()
        finish(panel)
    else:
        lay(panel, CROSS)
        panel.box.copies += 1  # the button that copies
    assert panel.code == panel.box.code and (f'typed_skeleton("{typed}")' in panel.code) == bool(typed)
    names = {}
    exec(panel.code, names)
    assert np.abs(names["images"].astype(int) - np.stack(panel._images)).max() <= 1  # rounding, by the batch


def picture_file(image, kind="PNG"):
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()


def extent(lines):
    """The first and the last row and column with ink."""
    return [int(found[end]) for axis in (0, 1) for found in [np.flatnonzero(lines.any(axis=axis))] for end in (0, -1)]


def opened(panel, content, name="lines.png"):
    panel.board._receive(None, {"event": "open", "name": name}, [memoryview(content)])
    finish(panel)
    return panel.board.lines


def test_pictures_of_any_colour_and_size_are_read_alike(panel):
    plain = opened(panel, picture_file(glyph("木", 300)))
    assert 100 < plain.sum() < 600
    inverted = glyph("木", 300).point(lambda value: 255 - value)
    coloured = Image.merge("RGB", [glyph("木", 300), Image.new("L", (300, 300), 230), glyph("木", 300)])
    for image in (inverted, coloured, glyph("木", 60), glyph("木", 3000)):
        near = opened(panel, picture_file(image))
        assert abs(int(near.sum()) - int(plain.sum())) < 0.25 * plain.sum()
        assert all(abs(one - other) <= 5 for one, other in zip(extent(near), extent(plain), strict=True))


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "0 bytes"),
        (b"no picture", "not an image"),
        (picture_file(Image.new("L", (64, 64), 255)), "no ink is to be seen"),
        (picture_file(Image.new("L", (64, 64), 0)), "no ink is to be seen"),
        (picture_file(Image.new("L", (1, 1), 0)), "no ink is to be seen"),
        (picture_file(Image.fromarray(np.random.default_rng(0).integers(0, 256, (99, 99), np.uint8))), "more is dark"),
        (b"x" * (BYTES_MOST + 1), "more than 8 MB"),
    ],
)
def test_pictures_without_lines_are_refused_in_a_sentence(panel, content, sentence):
    assert not opened(panel, content, HOSTILE).any()
    assert sentence in panel.status.value and panel.stop_button.disabled


@pytest.mark.parametrize(
    ("text", "sentence"),
    [("", "got 0"), ("永国", "got 2"), ("😀", "no glyph for 😀"), ("⿰木", "two parts"), ("x" * 10**6, "got 100")],
)
def test_what_cannot_be_typed_is_said(panel, text, sentence):
    panel.text.value = text
    panel.type_character()
    finish(panel)
    assert sentence in panel.status.value and not panel.board.lines.any()


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda panel: panel.checks[0].set_trait("value", False), "Check a style"),
        (lambda panel: lay(panel, []), "Draw a stroke, or type"),
        (lambda panel: lay(panel, [[[0, float("nan")]]]), "from 0 to 128"),
        (lambda panel: lay(panel, [["ab"], 7]), "expected strokes of points"),
        (lambda panel: lay(panel, [[[1, 1]]] * 301), "at most 300 strokes"),
        (
            lambda panel: panel.board.set_trait("drawing", {"under": "x"}),
            "expected a small PNG below the strokes, got str",
        ),
        (lambda panel: panel.board.set_trait("drawing", {"under": b"x" * 10**5}), "a small PNG below the strokes"),
        (lambda panel: panel.board.set_trait("drawing", {"under": b"x"}), "is not an image"),
        (lambda panel: panel.guidance.set_trait("value", 99.0), "Style guidance: expected 1 to 4, got 99"),
        (lambda panel: panel.share.set_trait("value", float("nan")), "Between two hands: expected 0 to 100"),
    ],
)
def test_what_no_page_should_send_is_refused(led, change, sentence):
    panel = BrushPanel(led, "", styles=STYLES, checked=STYLES[:1])
    lay(panel, CROSS[:1])
    change(panel)
    finish(panel)
    assert sentence in panel.status.value and panel.stop_button.disabled


def files(html):
    found = re.findall(r'download="([^"]+)" href="data:[^;]+;base64,([^"]+)"', html)
    return {name: base64.b64decode(data) for name, data in found}


def test_the_line_is_written_in_the_chosen_style_and_saved(panel, monkeypatch):
    monkeypatch.setattr(brush, "page_html", brush_output.page_html)
    lay(panel, CROSS)
    panel.row.selected = 1
    assert set(files(panel.large.value)) == {"drawn.png", "drawn.svg"} and ">water<" in panel.large.value
    panel.line.value = "永 心"
    panel.button.click()
    finish(panel)
    saved = files(panel.page.value)
    assert Image.open(io.BytesIO(saved["永-心.png"])).size == (512, 1024)
    svg = saved["永-心.svg"].decode()
    assert svg.count("<path") == 2 and "永 心 (water)" in svg
    panel.line.value = "永" * 201
    panel.button.click()
    finish(panel)
    assert "expected 1 to 200 characters, got 201" in panel.status.value


def test_a_public_page_gives_no_code_and_keeps_no_file(led, tmp_path):
    panel = BrushPanel(led, "", styles=STYLES, checked=STYLES[:1], queue=tmp_path / "lock")
    lay(panel, CROSS)
    panel.save_skeleton()
    assert panel.code == panel.box.code == "" and not (tmp_path / "brush").exists()
    panel.line.value = "永" * 13
    panel.start_page()
    assert "1 to 12 characters" in panel.status.value


def test_the_example_is_written_once_the_panel_is_seen(led):
    panel = BrushPanel(led, "心", styles=STYLES, checked=STYLES[:1])
    assert panel._worker is None
    panel.board._receive(None, {"event": "seen"}, [])
    finish(panel)
    assert panel.board.example and len(pictures(panel)) == 1 and panel.picture() is not None


def test_a_base_without_skeletons_is_refused_in_a_sentence(folder):
    panel = BrushPanel(folder, "", styles=STYLES, checked=STYLES[:1])
    lay(panel, CROSS)
    assert "reads no skeletons" in panel.status.value


def test_the_defaults_are_those_of_the_command(monkeypatch):
    for module in (brush, brush_output):
        monkeypatch.setattr(module, "WRITING", WRITING)
    panel = BrushPanel()
    assert panel.sampling == WRITING and len(panel.tiles) == 4


def test_drawn_lines_have_their_own_usual_guidance_and_a_moved_slider_stays(panel, monkeypatch):
    with monkeypatch.context() as patch:
        for module in (brush, brush_output):
            patch.setattr(module, "TRACING", dataclasses.replace(QUICK, array_guidance=2.5))
        lay(panel, CROSS)
        assert panel.sampling == brush.TRACING and "sampling=" not in panel.code
        asked = []
        blank = np.zeros((4, 128, 128), np.uint8)
        patch.setattr(brush, "write", lambda base, prompts, seed, sampling, **_: asked.append(sampling) or blank)
        panel.start_page()
        finish(panel)
        assert [sampling.array_guidance for sampling in asked] == [QUICK.array_guidance]  # its line is typed
    panel.skeleton_guidance.value = 4
    finish(panel)
    panel.board.put(typed_skeleton("心"), "心")
    finish(panel)
    assert panel.sampling.array_guidance == 4
