"""What all panels share: escaped text, pictures as PNG, labelled inputs, and the state as a Python call."""

from __future__ import annotations

import base64
import dataclasses
import html
import io
import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePath
from typing import Any, TypeVar

import anywidget
import ipywidgets as widgets
import numpy as np
import traitlets
from matplotlib.figure import Figure
from PIL import Image

from kanjilab.viz.charts import figure_png

FOLDER = Path(__file__).parent
AnyInput = TypeVar("AnyInput", bound=widgets.DOMWidget)
LINE_CHARACTERS = 100  # a longer call is broken, one argument a line
COLOURS = 64  # of a static picture, which is stored in notebooks
WRAP = {"flex_flow": "row wrap", "align_items": "center"}  # layout of a row of inputs
LABELS = {  # of settings whose own name says too little; others are shown by their name
    "targets": "Trained layers",
    "batch": "Batch size",
    "peak_lr": "Peak learning rate",
    "seed": "Training seed",
    "data": "Training data",
    "checkpoints": "Strip columns",
}
# ipywidgets makes the description of these a <label> of their input, so it is their accessible name.
NAMED_BY_DESCRIPTION = (
    widgets.Text,
    widgets.Textarea,
    widgets.Combobox,
    widgets.BoundedIntText,
    widgets.BoundedFloatText,
    widgets.IntText,
    widgets.FloatText,
    widgets.Dropdown,
    widgets.Select,
    widgets.SelectMultiple,
    widgets.Checkbox,
)


def escape(text: object) -> str:
    """Text that HTML shows and never interprets, also inside the quotes of an attribute."""
    return html.escape(str(text), quote=True)


def label_of(setting: str) -> str:
    """The name of a setting for readers: "peak_lr" is "Peak learning rate"."""
    return LABELS.get(setting, setting.replace("_", " ").capitalize())


class Code(str):
    """Python source, which `python_call` copies unchanged."""


def python_call(name: str, /, *args: Any, **options: Any) -> str:
    """A call as Python source: `StripComparator(Path("runs/a"), seed=3)`.

    Args:
        name: of the function or class.
        *args: positional arguments: numbers, text, paths, containers of these, NumPy scalars, None, `Code`, and
            dataclasses, of which only the fields that differ from their defaults are written.
        **options: keyword arguments of the same kinds.
    Returns:
        One line; with one argument a line where that would be longer than 100 characters.
    """
    words = _words(args, options)
    line = f"{name}({', '.join(words)})"
    if len(line) <= LINE_CHARACTERS or not words:
        return line
    return f"{name}(\n" + "".join(f"    {word},\n" for word in words) + ")"


def _words(args: Iterable[Any], options: Mapping[str, Any]) -> list[str]:
    return [_source(value) for value in args] + [f"{key}={_source(value)}" for key, value in options.items()]


def _source(value: Any) -> str:
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, Code):
        return value
    if isinstance(value, PurePath):
        return f"Path({_quoted(str(value))})"
    if isinstance(value, str):
        return _quoted(value)
    if isinstance(value, float) and not math.isfinite(value):
        return f'float("{value}")'
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return f"{type(value).__name__}({', '.join(_words((), changed_fields(value)))})"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_source(key)}: {_source(entry)}" for key, entry in value.items()) + "}"
    if isinstance(value, tuple):
        return "(" + ", ".join(map(_source, value)) + ("," if len(value) == 1 else "") + ")"
    if isinstance(value, list):
        return "[" + ", ".join(map(_source, value)) + "]"
    return repr(value)


def _quoted(text: str) -> str:
    """A string literal, in double quotes unless it contains quotes."""
    return f'"{repr(text)[1:-1]}"' if '"' not in text and "'" not in text else repr(text)


def changed_fields(value: Any) -> dict[str, Any]:
    """Fields of a dataclass that differ from their defaults, or have none: what a call must give to make it again."""
    changed = {}
    for field in dataclasses.fields(value):
        made = field.default_factory is not dataclasses.MISSING
        default = field.default_factory() if made else field.default  # type: ignore[misc]
        if field.init and (default is dataclasses.MISSING or getattr(value, field.name) != default):
            changed[field.name] = getattr(value, field.name)
    return changed


class CodeBox(anywidget.AnyWidget):
    """A labelled read-only box with the call that reproduces a panel's state, and a button that copies it.

    Args:
        code: Python source; it can be set later.
        label: accessible name of the box.
    Attributes:
        copies: how often it was copied.
    """

    _esm = FOLDER / "code_box.js"
    _css = FOLDER / "code_box.css"
    code = traitlets.Unicode().tag(sync=True)
    label = traitlets.Unicode().tag(sync=True)
    copies = traitlets.Int(0).tag(sync=True)

    def __init__(self, code: str = "", label: str = "This state as code"):
        super().__init__(code=code, label=label)


def png_bytes(picture: Figure | Image.Image | np.ndarray) -> bytes:
    """A figure, picture or array as PNG; without pyplot, so callbacks and threads may call it.

    Args:
        picture: matplotlib figure, PIL image, or (H, W) or (H, W, 3) uint8, 0 = black.
    Raises:
        ValueError: an array of another shape or dtype.
    """
    if isinstance(picture, Figure):
        return figure_png(picture)
    if isinstance(picture, np.ndarray):
        if picture.dtype != np.uint8 or not (picture.ndim == 2 or picture.ndim == 3 and picture.shape[2] == 3):
            raise ValueError(f"expected (H, W) or (H, W, 3) uint8, got {picture.shape} {picture.dtype}")
    image = Image.fromarray(picture) if isinstance(picture, np.ndarray) else picture
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def picture_html(png: bytes, alternative: str, width: str = "100%") -> str:
    """A PNG as an <img> for `widgets.HTML`, with alternative text, which `widgets.Image` does not offer.

    Args:
        png: the file's bytes.
        alternative: what it shows, in words; untrusted.
        width: greatest width on the page, in CSS.
    """
    data = base64.b64encode(png).decode()
    style = f"max-width:min(100%,{escape(width)});height:auto"  # no wider than a narrow or zoomed window
    return f'<img src="data:image/png;base64,{data}" alt="{escape(alternative)}" style="{style}">'


def download_link(name: str, kind: str, content: bytes) -> str:
    """A link for `widgets.HTML` that saves a file; its ending is what is shown.

    Args:
        name: of the file, with its ending; untrusted.
        kind: such as "image/png".
        content: of the file.
    """
    data = base64.b64encode(content).decode()
    return (
        f'<a download="{escape(name)}" href="data:{kind};base64,{data}">{escape(name.rpartition(".")[2].upper())}</a>'
    )


def stacked(pictures: Sequence[Image.Image]) -> Image.Image:
    """Pictures below each other, at most as wide as the first; beside a narrower one its own background goes on."""
    width = pictures[0].width
    fitting = [p if p.width <= width else p.resize((width, round(p.height * width / p.width))) for p in pictures]
    sheet = Image.new("RGB", (width, sum(picture.height for picture in fitting)))
    top = 0
    for picture in (picture.convert("RGB") for picture in fitting):
        sheet.paste(picture.resize((width, picture.height), box=(0, 0, 1, 1)), (0, top))
        sheet.paste(picture, (0, top))
        top += picture.height
    return sheet.quantize(COLOURS)


def labelled(widget: AnyInput, label: str) -> AnyInput:
    """Give an input its visible label, which is its accessible name too.

    Args:
        widget: a text, number, drop-down, select or check box of ipywidgets.
        label: in words; untrusted.
    Returns:
        The same widget.
    Raises:
        TypeError: a widget to which ipywidgets gives no accessible name (sliders, Play, IntProgress, ToggleButtons,
            RadioButtons); the message names alternatives.
    """
    if not isinstance(widget, NAMED_BY_DESCRIPTION):
        raise TypeError(
            f"{type(widget).__name__} has no accessible name in ipywidgets: use a number box, a drop-down, "
            "progress_html, or a native input in an anywidget"
        )
    widget.description_allow_html = False
    widget.description = label
    widget.style.description_width = "initial"
    return widget


def progress_html(done: float, total: float, label: str) -> str:
    """A labelled progress bar for `widgets.HTML`, with its numbers in words: label, bar, "3 of 12".

    Args:
        done: in the unit of `total`.
        total: > 0.
        label: untrusted.
    """
    share = f"{done:,.0f} of {total:,.0f}"
    bar = f'<progress value="{done:g}" max="{total:g}" style="width:16em;vertical-align:middle">{share}</progress>'
    return f"<label>{escape(label)} {bar} {share}</label>"


class PanelStyle(anywidget.AnyWidget):
    """Brings `panels.css`, the look that all panels share, to the page; it shows nothing itself."""

    _esm = "export default { render() {} }"
    _css = FOLDER / "panels.css"


def panel_box(shown: Sequence[widgets.Widget]) -> widgets.VBox:
    """What a panel shows, from top to bottom, in the look that all panels share."""
    box = widgets.VBox([PanelStyle(layout={"display": "none"}), *shown])
    box.add_class("kanjilab-panel")
    return box


def chip(text: str) -> widgets.Button:
    """A small round button that stands for a suggestion, such as an example; `text` may be untrusted."""
    button = widgets.Button(description=text)
    button.add_class("kanjilab-chip")
    return button


def stop_button() -> widgets.Button:
    """A button that is shown only while there is something to stop."""
    button = widgets.Button(description="Stop", disabled=True)
    button.add_class("kanjilab-stop")
    return button


def wide(widget: AnyInput) -> AnyInput:
    """The same input, as wide as its row has room for."""
    widget.add_class("kanjilab-wide")
    return widget


class FoldButton(anywidget.AnyWidget):
    """A native button that says whether what it governs is open, which no button of ipywidgets does."""

    _esm = """
    export default { render({ model, el }) {
      const button = document.createElement("button");
      button.type = "button";
      button.className = "kanjilab-fold";
      button.textContent = model.get("title");
      const show = () => button.setAttribute("aria-expanded", model.get("opened"));
      button.addEventListener("click", () => { model.set("opened", !model.get("opened")); model.save_changes(); });
      el.addEventListener("keydown", (event) => event.stopPropagation());
      model.on("change:opened", show);
      show();
      el.append(button);
      return () => model.off("change:opened", show);
    } };
    """
    title = traitlets.Unicode().tag(sync=True)
    opened = traitlets.Bool(False).tag(sync=True)


def folded(title: str, rows: Sequence[Sequence[widgets.Widget]]) -> widgets.VBox:
    """Rows of inputs that are hidden until the button with their title is pressed."""
    button = FoldButton(title=title)
    inside = widgets.VBox([widgets.HBox(list(row), layout=WRAP) for row in rows], layout={"display": "none"})
    button.observe(lambda change: setattr(inside.layout, "display", "flex" if change["new"] else "none"), "opened")
    return widgets.VBox([button, inside])


class Panel(ABC):
    """Base of all panels: shown where it is the last value of a notebook cell.

    Subclasses set `widget` and define `code` and `picture`.
    """

    widget: widgets.DOMWidget
    _filling = False  # whether the panel itself is changing its inputs

    @contextmanager
    def _changing_inputs(self) -> Iterator[None]:
        """Within it the panel changes its own inputs; their observers should do nothing."""
        self._filling = True
        try:
            yield
        finally:
            self._filling = False

    @property
    @abstractmethod
    def code(self) -> str:
        """Python that reproduces what is shown."""

    @abstractmethod
    def picture(self) -> Image.Image | Figure:
        """What is shown, as a static picture for readers without a kernel; raises ValueError if that is nothing."""

    def _repr_mimebundle_(self, **_options: Any) -> dict[str, Any]:
        bundle: Any = self.widget._repr_mimebundle_()  # anywidget's comes with metadata
        data = bundle[0] if isinstance(bundle, tuple) else bundle
        return {**(data or {}), "text/plain": self.code}


def place_in(choice: Any, count: int) -> int:
    """Which of so many is chosen in a menu, whatever choices a page has made up; the first where none is.

    Args:
        choice: a widget with an index.
        count: how many there are.
    """
    return max(0, min(choice.index or 0, count - 1))
