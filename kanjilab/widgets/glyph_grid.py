"""Pictures to choose from: a group of native radio buttons, each a glyph with its caption."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import anywidget
import traitlets

FOLDER = Path(__file__).parent
NONE = -1  # nothing chosen


class GlyphGrid(anywidget.AnyWidget):
    """Glyphs in a grid, chosen by mouse, or by the arrow keys as any radio group.

    Observe `selected`; it also changes when `fill` shows other glyphs.

    Args:
        label: accessible name of the group, shown above it.
        columns: glyphs a row, where there is room.
        cell_px: side of a glyph on the page.
        empty: what to say where there are no glyphs; "" hides the group then.
    """

    _esm = FOLDER / "glyph_grid.js"
    _css = FOLDER / "glyph_grid.css"
    label = traitlets.Unicode().tag(sync=True)
    empty = traitlets.Unicode().tag(sync=True)
    columns = traitlets.Int(8).tag(sync=True)
    cell_px = traitlets.Int(64).tag(sync=True)
    pictures = traitlets.List(traitlets.Bytes()).tag(sync=True)
    captions = traitlets.List(traitlets.Unicode()).tag(sync=True)
    names = traitlets.List(traitlets.Unicode()).tag(sync=True)
    selected = traitlets.Int(NONE).tag(sync=True)

    def __init__(self, label: str, *, columns: int = 8, cell_px: int = 64, empty: str = "nothing to show"):
        shape = {"max_width": "100%"}  # beside something else it would stick out of a narrow window
        super().__init__(label=label, columns=columns, cell_px=cell_px, empty=empty, layout=shape)

    def fill(
        self, pictures: Sequence[bytes], captions: Sequence[str], names: Sequence[str] = (), selected: int = NONE
    ) -> None:
        """Show other glyphs.

        Args:
            pictures: N files, PNG.
            captions: N lines to show below them; untrusted.
            names: N texts for screen readers and the tooltip; () for the captions.
            selected: the one chosen, or -1 for none.
        Raises:
            ValueError: lists of different lengths, or a choice among fewer glyphs.
        """
        names = list(names) or list(captions)
        if not len(pictures) == len(captions) == len(names) or not NONE <= selected < len(pictures):
            raise ValueError(
                f"expected as many pictures as captions and names, and one of them or none chosen, got "
                f"{len(pictures)}, {len(captions)}, {len(names)} and {selected}"
            )
        with self.hold_sync():  # one message: the page never sees pictures without their captions
            self.pictures, self.captions, self.names = list(pictures), list(captions), names
            self.selected = selected

    @property
    def choice(self) -> int | None:
        """The chosen glyph, or None; a number from elsewhere that is none of them counts as None."""
        return self.selected if 0 <= self.selected < len(self.pictures) else None
