"""What all panels share: escaped text, pictures as bytes, accessible names, and the state as a Python call."""

from __future__ import annotations

import base64
import dataclasses
import html
import io
import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
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
COLOURS = 64  # of a static picture: notebooks keep them
# ipywidgets ties the description of these to their input by <label for>: it is their accessible name.
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


# ---------------------------------------------------------------------------------------------- text


def escape(text: object) -> str:
    """Anything as text that HTML shows and never obeys, also inside an attribute's quotes."""
    return html.escape(str(text), quote=True)


def html_text(text: object, tag: str = "span", role: str = "") -> widgets.HTML:
    """A widget that shows untrusted text; set its `value` only to something escaped again.

    Args:
        text: anything, from anybody.
        tag: element around it, such as "p" or "b"; not from outside.
        role: accessible role, such as "status" for what a screen reader should announce; "" for none.
    """
    announced = f' role="{escape(role)}"' if role else ""
    return widgets.HTML(f"<{tag}{announced}>{escape(text)}</{tag}>")


# ---------------------------------------------------------------------------------------------- code


class Code(str):
    """Python source, which `python_call` writes as it stands."""


def python_call(name: str, /, *args: Any, **options: Any) -> str:
    """A call as Python source: `StripComparator(Path("runs/a"), seed=3)`.

    Args:
        name: of what is called.
        *args: positional arguments: numbers, text, paths, containers of these, NumPy scalars, dataclasses (of which
            only what differs from the default is written), None, and `Code`.
        **options: keyword arguments, likewise.
    Returns:
        one line, or one argument a line where it would be longer than 100 characters.
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
    """A string literal in double quotes where that needs no more escapes than `repr`."""
    return f'"{repr(text)[1:-1]}"' if '"' not in text and "'" not in text else repr(text)


def changed_fields(value: Any) -> dict[str, Any]:
    """Fields of a dataclass that differ from their defaults, or have none: what has to be written to make it again."""
    changed = {}
    for field in dataclasses.fields(value):
        made = field.default_factory is not dataclasses.MISSING
        default = field.default_factory() if made else field.default  # type: ignore[misc]
        if field.init and (default is dataclasses.MISSING or getattr(value, field.name) != default):
            changed[field.name] = getattr(value, field.name)
    return changed


class CodeBox(anywidget.AnyWidget):
    """The call that reproduces a panel's state, in a labelled read-only box with a button that copies it.

    Args:
        code: Python source; later changes through `set`.
        label: accessible name of the box.
    """

    _esm = FOLDER / "code_box.js"
    _css = FOLDER / "code_box.css"
    code = traitlets.Unicode().tag(sync=True)
    label = traitlets.Unicode().tag(sync=True)

    def __init__(self, code: str = "", label: str = "This state as code"):
        super().__init__(code=code, label=label)

    def set(self, code: str) -> None:
        """Show another call."""
        self.code = code


# ---------------------------------------------------------------------------------------------- pictures


def png_bytes(picture: Figure | Image.Image | np.ndarray) -> bytes:
    """A figure, picture or array as PNG; no pyplot, so that callbacks and threads may call it.

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
    """A PNG as an <img> for `widgets.HTML`, with the alternative text that `widgets.Image` cannot have.

    Args:
        png: the file's bytes.
        alternative: what it shows, in words; untrusted.
        width: largest width on the page, in CSS.
    """
    data = base64.b64encode(png).decode()
    style = f"max-width:min(100%,{escape(width)});height:auto"  # never beyond a narrow or zoomed window
    return f'<img src="data:image/png;base64,{data}" alt="{escape(alternative)}" style="{style}">'


def stacked(pictures: Sequence[Image.Image]) -> Image.Image:
    """Pictures below each other, each at most as wide as the first, and on its own paper where it is narrower."""
    width = pictures[0].width
    fitting = [p if p.width <= width else p.resize((width, round(p.height * width / p.width))) for p in pictures]
    sheet = Image.new("RGB", (width, sum(picture.height for picture in fitting)))
    top = 0
    for picture in (picture.convert("RGB") for picture in fitting):
        sheet.paste(picture.resize((width, picture.height), box=(0, 0, 1, 1)), (0, top))
        sheet.paste(picture, (0, top))
        top += picture.height
    return sheet.quantize(COLOURS)


# ---------------------------------------------------------------------------------------------- names


def labelled(widget: AnyInput, label: str) -> AnyInput:
    """Give an input its visible label, which is its accessible name too.

    Args:
        widget: a text, number, drop-down, select or check box of ipywidgets.
        label: in words; untrusted.
    Returns:
        the same widget.
    Raises:
        TypeError: a widget that ipywidgets gives no accessible name (sliders, Play, IntProgress, ToggleButtons,
            RadioButtons); says what to take instead.
    """
    if not isinstance(widget, NAMED_BY_DESCRIPTION):
        raise TypeError(
            f"{type(widget).__name__} has no accessible name in ipywidgets: take a number box or a drop-down, "
            "progress_html for progress, or a native input inside an anywidget"
        )
    widget.description_allow_html = False
    widget.description = label
    widget.style.description_width = "initial"
    return widget


def progress_html(done: float, total: float, label: str) -> str:
    """A progress bar for `widgets.HTML`, named and readable without colour: label, bar, "3 of 12".

    Args:
        done: so far, in the unit of `total`.
        total: > 0.
        label: what progresses; untrusted.
    """
    share = f"{done:,.0f} of {total:,.0f}"
    bar = f'<progress value="{done:g}" max="{total:g}" style="width:16em;vertical-align:middle">{share}</progress>'
    return f"<label>{escape(label)} {bar} {share}</label>"


# ---------------------------------------------------------------------------------------------- panels


class Panel(ABC):
    """Base of all panels: shows itself where it is a cell's last value.

    Subclasses set `widget`, and offer `code` and `picture`.
    """

    widget: widgets.DOMWidget

    @property
    @abstractmethod
    def code(self) -> str:
        """The call that builds a panel which shows the same."""

    @abstractmethod
    def picture(self) -> Image.Image | Figure:
        """What is shown, as a picture for readers without a kernel."""

    def _repr_mimebundle_(self, **_options: Any) -> dict[str, Any]:
        bundle: Any = self.widget._repr_mimebundle_()  # anywidget's comes with metadata
        data = bundle[0] if isinstance(bundle, tuple) else bundle
        return {**(data or {}), "text/plain": self.code}
