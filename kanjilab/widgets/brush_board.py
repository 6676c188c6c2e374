"""The square that a skeleton is drawn in: strokes of a pen over the skeleton of something typed or opened."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import anywidget
import numpy as np
import traitlets
from numpy.typing import NDArray

from kanjilab.core.images import SIZE_PX
from kanjilab.data.image_files import read_image
from kanjilab.data.skeleton import skeleton_of_strokes
from kanjilab.widgets.common import FOLDER, png_bytes

STROKES_MOST, POINTS_MOST, BYTES_MOST = 300, 2000, 8_000_000  # as in the page's own code, which may not be trusted
UNDER_BYTES_MOST = 20_000  # many times what a skeleton has


class BrushBoard(anywidget.AnyWidget):
    """A canvas for mouse, pen and touch, with undo; observe `drawing`.

    Args:
        on_seen: called when the page shows it.
        on_opened: called with the name and the content of a picture file that was chosen.
    Attributes:
        drawing: the strokes, each a list of points (x, y) in px of the skeleton; the PNG of a skeleton `under` them,
            black on white, or no bytes; and what that one is the skeleton `of`, in words.
        example: whether the first stroke replaces all of that.
    """

    _esm = FOLDER / "brush_board.js"
    _css = FOLDER / "brush_board.css"
    drawing: Any = traitlets.Dict({"strokes": [], "under": b"", "of": ""}).tag(sync=True)
    example = traitlets.Bool(False).tag(sync=True)

    def __init__(self, on_seen: Callable[[], None], on_opened: Callable[[str, bytes], None]):
        super().__init__(layout={"width": "256px", "max_width": "100%"})
        self._on_seen, self._on_opened = on_seen, on_opened
        self.on_msg(self._receive)

    def _receive(self, _: Any, content: dict[str, Any], buffers: Sequence[memoryview]) -> None:
        if content.get("event") == "seen":
            self._on_seen()
        elif content.get("event") == "open" and len(buffers) == 1:
            self._on_opened(str(content.get("name", "")), bytes(buffers[0][: BYTES_MOST + 1]))

    def put(self, lines: NDArray[np.bool_], of: str, example: bool = False) -> None:
        """Shows a skeleton in place of all that is drawn.

        Args:
            lines: (128, 128) bool.
            of: what it is the skeleton of, in words; untrusted.
            example: whether the first stroke replaces it.
        """
        with self.hold_sync():
            self.example = example
            self.drawing = {"strokes": [], "under": skeleton_png(lines), "of": of}

    @property
    def strokes(self) -> list[list[tuple[float, float]]]:
        """What was drawn; ValueError where the page sent something else."""
        return _checked(self.drawing.get("strokes", ()))

    @property
    def under(self) -> bytes:
        """PNG of the skeleton below the strokes, or no bytes; ValueError where the page sent something else."""
        sent = self.drawing.get("under", b"")
        if not isinstance(sent, bytes | memoryview) or len(sent) > UNDER_BYTES_MOST:
            raise ValueError(f"expected a small PNG below the strokes, got {type(sent).__name__}")
        return bytes(sent)

    @property
    def of(self) -> str:
        """What that one is the skeleton of, in words; untrusted."""
        return str(self.drawing.get("of", ""))

    @property
    def lines(self) -> NDArray[np.bool_]:
        """What is drawn, (128, 128) bool.

        Raises:
            ValueError: the page sent something else than a drawing.
        """
        found = skeleton_of_strokes(self.strokes)
        return found | (read_image(self.under, SIZE_PX, "nearest") < 128) if self.under else found


def skeleton_png(lines: NDArray[np.bool_]) -> bytes:
    """A skeleton, (H, W) bool, as PNG, black on white."""
    return png_bytes(np.where(lines, 0, 255).astype(np.uint8))


def _checked(strokes: Sequence[Any]) -> list[list[tuple[float, float]]]:
    """Strokes as the page sends them, within bounds."""
    try:
        too_much = len(strokes) > STROKES_MOST or any(len(stroke) > POINTS_MOST for stroke in strokes)
    except TypeError as error:
        raise ValueError(f"expected strokes of points (x, y): {error}") from error
    if too_much:  # before anything is made of it
        raise ValueError(f"at most {STROKES_MOST} strokes of {POINTS_MOST:,} points each")
    try:
        checked = [[(float(x), float(y)) for x, y in stroke] for stroke in strokes]
    except (TypeError, ValueError) as error:
        raise ValueError(f"expected strokes of points (x, y): {error}") from error
    numbers = [value for stroke in checked for point in stroke for value in point]
    if not all(0 <= value <= SIZE_PX for value in numbers):  # NaN is neither
        raise ValueError(f"expected points from 0 to {SIZE_PX} px")
    return checked
