"""What all panels share: text that stays text, code that evaluates to what it shows, and labels of inputs."""

import ast
import io
from dataclasses import dataclass, field
from pathlib import Path

import ipywidgets as widgets
import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from kanjilab import widgets as panels
from kanjilab.widgets.common import (
    Code,
    CodeBox,
    Panel,
    escape,
    label_of,
    labelled,
    picture_html,
    png_bytes,
    progress_html,
    stacked,
)
from kanjilab.widgets.common import python_call as call

HOSTILE = """<img src=x onerror="alert('1')">"""


@dataclass(frozen=True)
class Setting:
    rank: int = 4
    words: list = field(default_factory=list)
    needed: str = "x"


def evaluated(source: str):
    """(args, options) of a call, read back by Python."""
    names = {"f": lambda *args, **options: (args, options), "Path": Path, "Setting": Setting}
    return eval(source, {"__builtins__": {"float": float}} | names)


@pytest.mark.parametrize(
    "value",
    [3, 0.1, -1e-9, None, True, "plain", HOSTILE, 'it\'s "so"\n\\', "水", Path("runs/a'b"), (1,), (1, "a"), [Path("x")]]
    + [[Path("x")], {"a": (1, 2)}, Setting(), Setting(rank=8, words=["a"]), [Setting(needed=HOSTILE)]],
)
def test_a_call_reads_back_as_what_was_put_in(value):
    assert evaluated(call("f", value, option=value)) == ((value,), {"option": value})


def test_a_call_writes_plain_numbers_and_only_changes():
    assert call("f", np.int64(3), np.float32(0.5), x=np.bool_(True)) == "f(3, 0.5, x=True)"
    assert call("f", Setting(rank=8)) == "f(Setting(rank=8))"
    assert np.isnan(evaluated(call("f", float("nan")))[0][0])


def test_source_is_written_unchanged():
    assert call("f", Code("study"), judge=Code('load("B")'), word="study") == 'f(study, judge=load("B"), word="study")'


def test_a_long_call_is_broken_one_argument_a_line():
    source = call("f", "a" * 60, option="b" * 60)
    assert source == f'f(\n    "{"a" * 60}",\n    option="{"b" * 60}",\n)'
    assert evaluated(source) == (("a" * 60,), {"option": "b" * 60})
    assert call("f") == "f()"
    ast.parse(call("f", [Setting(words=["w" * 50] * 4)]))


def test_hostile_text_stays_text_everywhere():
    assert escape(HOSTILE) == "&lt;img src=x onerror=&quot;alert(&#x27;1&#x27;)&quot;&gt;"
    for source in (picture_html(b"", HOSTILE), progress_html(1, 2, HOSTILE)):
        assert escape(HOSTILE) in source and HOSTILE not in source
    box = labelled(widgets.IntText(), HOSTILE)
    assert box.description == HOSTILE and box.description_allow_html is False


@pytest.mark.parametrize("nameless", [widgets.IntSlider, widgets.Play, widgets.IntProgress, widgets.ToggleButtons])
def test_inputs_without_an_accessible_name_are_refused(nameless):
    with pytest.raises(TypeError, match=f"{nameless.__name__} has no accessible name"):
        labelled(nameless(), "Step")


def test_pictures_become_png_with_the_same_pixels():
    gray = np.arange(12, dtype=np.uint8).reshape(3, 4)
    for pixels in (gray, np.stack([gray, gray, 255 - gray], axis=2)):
        assert np.array_equal(np.asarray(Image.open(io.BytesIO(png_bytes(pixels)))), pixels)
        assert png_bytes(Image.fromarray(pixels)) == png_bytes(pixels)
    assert Image.open(io.BytesIO(png_bytes(Figure(figsize=(1, 2), dpi=50)))).size == (50, 100)
    with pytest.raises(ValueError, match=r"got \(3, 4\) float64"):
        png_bytes(gray / 2)


def test_stacked_pictures_are_as_wide_as_the_first_each_on_its_own_paper():
    pixels = [np.full(shape, level, np.uint8) for shape, level in (((2, 4), 255), ((1, 2), 90), ((2, 8), 30))]
    page = np.asarray(stacked([Image.fromarray(one) for one in pixels]).convert("L"))
    assert page.tolist() == [[255] * 4] * 2 + [[90] * 4] + [[30] * 4]


def test_progress_is_in_words_too():
    assert progress_html(3, 12, "images") == (
        '<label>images <progress value="3" max="12" style="width:16em;vertical-align:middle">3 of 12</progress>'
        " 3 of 12</label>"
    )


def test_code_box_holds_what_was_set():
    box = CodeBox("f(1)")
    box.code = "f(2)"
    assert box.get_state(["code"])["code"] == "f(2)"
    assert box.label == "This state as code"


def test_settings_have_labels_for_readers():
    assert [label_of(name) for name in ("peak_lr", "rank", "caption_dropout")] == [
        "Peak learning rate",
        "Rank",
        "Caption dropout",
    ]


def test_a_panel_shows_its_widget_and_its_code():
    class Small(Panel):
        widget = widgets.Button()
        code = "Small()"

        def picture(self):
            return Image.new("L", (1, 1))

    bundle = Small()._repr_mimebundle_()
    view = bundle["application/vnd.jupyter.widget-view+json"]
    assert (view["model_id"], bundle["text/plain"]) == (Small.widget.model_id, "Small()")


def test_the_package_offers_its_panels_by_name_alone():
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        _ = panels.Nothing
