"""Glyphs to choose from: a group of native radio buttons, each a picture with its caption."""

from __future__ import annotations

from collections.abc import Sequence

import anywidget
import traitlets

from kanjilab.widgets.common import FOLDER

NONE = -1  # nothing chosen


class GlyphGrid(anywidget.AnyWidget):
    """Glyphs in a grid, chosen by mouse or by arrow keys, as in any radio group.

    Observe `selected`, which also changes when `fill` shows other glyphs.

    Args:
        label: accessible name of the group, shown above it.
        columns: glyphs in a row, where the page is wide enough.
        cell_px: side of a glyph on the page.
        empty: text in place of glyphs; "" hides a group without glyphs.
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

    def __init__(self, label: str, *, columns: int = 8, cell_px: int = 64, empty: str = "Nothing to show."):
        shape = {"max_width": "100%"}  # beside other widgets it would overflow a narrow window
        super().__init__(label=label, columns=columns, cell_px=cell_px, empty=empty, layout=shape)

    def fill(
        self, pictures: Sequence[bytes], captions: Sequence[str], names: Sequence[str] = (), selected: int = NONE
    ) -> None:
        """Show other glyphs.

        Args:
            pictures: N files, PNG.
            captions: N lines below them; untrusted.
            names: N texts for screen readers and tooltips; () for the captions.
            selected: index of the chosen one, or -1.
        Raises:
            ValueError: lists of different lengths, or an index out of range.
        """
        names = list(names) or list(captions)
        if not len(pictures) == len(captions) == len(names) or not NONE <= selected < len(pictures):
            raise ValueError(
                "expected as many pictures as captions and names, and the index of one of them or -1, got "
                f"{len(pictures)}, {len(captions)}, {len(names)} and {selected}"
            )
        with self.hold_sync():  # one message, so that the page never shows pictures without their captions
            self.pictures, self.captions, self.names = list(pictures), list(captions), names
            self.selected = selected

    @property
    def choice(self) -> int | None:
        """Index of the chosen glyph; None for none, or where the page sent an index out of range."""
        return self.selected if 0 <= self.selected < len(self.pictures) else None
