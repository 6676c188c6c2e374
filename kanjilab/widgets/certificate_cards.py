"""Coined glyphs to choose from, each with a compact certificate, and the whole certificate of the chosen one."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import anywidget
import traitlets

from kanjilab.cli.coin_card import certificate_html
from kanjilab.cli.coin_folder import outline_of
from kanjilab.evaluation.criteria import CRITERIA
from kanjilab.experiments.certificate import LABELS, Certificate
from kanjilab.experiments.coining import Coined
from kanjilab.export.vectors import svg_of
from kanjilab.widgets.common import FOLDER, download_link, png_bytes
from kanjilab.widgets.glyph_grid import NONE

PARTS_SHOWN = 3


class CoinCards(anywidget.AnyWidget):
    """Cards in a grid, one chosen by mouse or by arrow keys; observe `selected`.

    Args:
        label: accessible name of the group, shown above it.
    """

    _esm = FOLDER / "certificate_cards.js"
    _css = FOLDER / "certificate_cards.css"
    label = traitlets.Unicode().tag(sync=True)
    pictures = traitlets.List(traitlets.Bytes()).tag(sync=True)
    cards = traitlets.List(traitlets.Dict()).tag(sync=True)
    selected = traitlets.Int(NONE).tag(sync=True)

    def __init__(self, label: str):
        super().__init__(label=label, layout={"max_width": "100%"})

    def fill(self, glyphs: Sequence[Coined]) -> None:
        """Show other glyphs, the first one chosen."""
        with self.hold_sync():  # one message, so that no card gets another's picture
            self.selected = NONE
            self.pictures = [png_bytes(one.image) for one in glyphs]
            self.cards = [card_facts(number, one.certificate) for number, one in enumerate(glyphs, 1)]
            self.selected = 0 if glyphs else NONE

    @property
    def choice(self) -> int | None:
        """Index of the chosen card; None for none, or where the page sent an index out of range."""
        return self.selected if 0 <= self.selected < len(self.cards) else None


def card_facts(number: int, certificate: Certificate) -> dict[str, Any]:
    """What a card says of a glyph: parts, the five marks, their sum, the nearest character, and all of it as a name.

    Args:
        number: of the glyph, from 1.
        certificate: its own.
    """
    report, near = certificate.report, certificate.report.nearest[0]
    found = [f"{part.part} {part.name}".strip() for part in report.parts[:PARTS_SHOWN]]
    parts = " + ".join(found) or "no known part"
    marks = [[LABELS[criterion.name], criterion.passed] for criterion in report.criteria]
    total = f"{len(CRITERIA) - len(report.lacking)} of {len(CRITERIA)} criteria"
    if certificate.rejected:
        total = f"rejected: {certificate.rejected}"
    nearest = f"near {near.character} {near.codepoint}, {near.distance:.2f}"
    lacking = ", ".join(LABELS[name].lower() for name in report.lacking)
    name = f"Glyph {number}: {parts}; {total}{f', not: {lacking}' if lacking else ''}; {nearest}"
    return {"parts": parts, "marks": marks, "sum": total, "near": nearest, "name": name}


def chosen_html(number: int, one: Coined) -> str:
    """The whole certificate of one glyph, with the glyph as PNG and SVG and the certificate as JSON to download.

    Args:
        number: of the glyph, from 1.
        one: glyph and certificate.
    """
    outline, certificate = outline_of(one), one.certificate
    title = f"{certificate.phrase[:60]} ({number})"
    files = {
        "png": ("image/png", png_bytes(one.image)),
        "svg": ("image/svg+xml", svg_of(outline, title).encode()),
        "json": ("application/json", json.dumps(certificate.to_json(), ensure_ascii=False, indent=1).encode()),
    }
    name = "-".join("".join(sign if sign.isalnum() else " " for sign in certificate.phrase).split())[:40] or "glyph"
    links = " · ".join(download_link(f"{name}-{number}.{kind}", *content) for kind, content in files.items())
    return f'<div class="glyph">{certificate_html(number, certificate, outline, f"Download {links}")}</div>'
