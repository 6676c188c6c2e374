"""Coined glyphs as a folder: pictures, outlines, certificates, a font and a card, whole or not at all."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from kanjilab.cli.coin_card import card_html
from kanjilab.core.outside_files import checked_file, read_file, read_json_object
from kanjilab.core.storage import appearing_folder, require_place, write_bytes_atomic, write_json_atomic
from kanjilab.experiments.certificate import Certificate
from kanjilab.experiments.coining import Coinage, Coined
from kanjilab.export.font import build_font, font_bytes
from kanjilab.export.vectors import SVG_BYTES_MAX, TOLERANCES_PX, Outline, glyph_outline, svg_of, trace

CALL_FILE = "coin.json"
CARD = "index.html"
FONT = "coined"
GLYPHS_MAX = 1_000  # of one call
PICTURE_BYTES_MAX = 16 * 1024 * 1024  # of any file of a folder
TITLE_CHARACTERS = 60  # of the phrase, in an SVG
TITLE_BYTES = 400  # that this may take there


def is_finished(folder: Path, call: Mapping[str, Any]) -> bool:
    """Whether a folder holds what this very call coins already.

    Args:
        folder: that may be there.
        call: all that the glyphs depend on, in plain values.
    Raises:
        ValueError: the folder holds anything else, or cannot be written.
    """
    require_place(folder)
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return False
    try:
        stored = json.loads((folder / CALL_FILE).read_bytes())
    except (OSError, ValueError, RecursionError):
        stored = {}
    if not isinstance(stored, dict) or stored.get("call") != json.loads(json.dumps(call)):
        raise ValueError(f"{folder} holds something else: choose another folder with --out")
    return True


def stored_certificates(folder: Path) -> tuple[str, list[Certificate]]:
    """What a finished folder says: the summary and the certificates, the best first.

    Raises:
        ValueError: a file is missing, damaged, or not the one that was written; the message says what to do.
    """
    try:
        content = read_json_object(folder / CALL_FILE, "what was coined")
        count = content.get("glyphs")
        if type(count) is not int or not 1 <= count <= GLYPHS_MAX:
            raise ValueError(f"{folder / CALL_FILE}: glyphs: expected from 1 to {GLYPHS_MAX:,}, got {count!r:.80}")
        certificates = [_stored_certificate(folder, number) for number in range(1, count + 1)]
        for name in (f"{FONT}.ttf", f"{FONT}.woff2", CARD):
            checked_file(folder / name, "a file of what was coined", PICTURE_BYTES_MAX)
    except (OSError, ValueError) as error:
        raise ValueError(f"{error}; coin into another folder with --out, or remove {folder} to coin again") from error
    return str(content.get("summary", "")), certificates


def _stored_certificate(folder: Path, number: int) -> Certificate:
    """The certificate of one glyph, whose picture and outline are there as they were written."""
    path = folder / f"{number:02d}.json"
    values = read_json_object(path, "a certificate")
    try:
        certificate = Certificate.from_json(values)
        if not all(verdict.nearest and verdict.criteria for verdict in (*certificate.verdicts, certificate.report)):
            raise ValueError("a verdict without criteria or nearest characters")
    except (ValueError, TypeError, LookupError, AttributeError) as error:
        raise ValueError(f"{path}: expected a certificate, got another or a damaged one ({error!r:.200})") from error
    checked_file(path.with_suffix(".svg"), "a file of what was coined", PICTURE_BYTES_MAX)
    picture = path.with_suffix(".png")
    data = read_file(picture, "the picture of a glyph", PICTURE_BYTES_MAX)
    try:
        with Image.open(io.BytesIO(data), formats=["PNG"]) as image:
            digest = hashlib.sha256(np.asarray(image).tobytes()).hexdigest()
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"{picture}: expected the picture of a glyph, got a damaged file ({error})") from error
    if digest != certificate.picture:
        raise ValueError(f"{picture}: expected the picture that {path.name} certifies, got another")
    return certificate


def outline_of(one: Coined) -> Outline:
    """The outline of a glyph, short for one that is kept; a rejected one may be anything, noise too."""
    most = SVG_BYTES_MAX - TITLE_BYTES
    return trace(one.image, TOLERANCES_PX[-1]) if one.certificate.rejected else glyph_outline(one.image, most)


def write_coinage(coinage: Coinage, folder: Path | str, call: Mapping[str, Any] | None = None) -> Path:
    """Write numbered PNG, SVG and JSON, the font, and the card.

    Args:
        coinage: what to write.
        folder: new or empty; it appears when all is written.
        call: of `is_finished`; None for what is certified.
    Returns:
        Path of the card.
    Raises:
        ValueError: another folder is there, or the outline of a glyph that is kept is too long.
    """
    folder = Path(folder)
    if call is None:
        call = {"phrase": coinage.phrase, "pictures": [one.certificate.picture for one in coinage.glyphs]}
    if is_finished(folder, call):
        return folder / CARD
    outlines = [outline_of(one) for one in coinage.glyphs]
    font = build_font(outlines)
    truetype, woff2 = font_bytes(font), font_bytes(font, "woff2")
    with appearing_folder(folder) as temporary:
        for number, (one, outline) in enumerate(zip(coinage.glyphs, outlines, strict=True), 1):
            buffer = io.BytesIO()
            Image.fromarray(one.image).save(buffer, "PNG", optimize=True)
            write_bytes_atomic(temporary / f"{number:02d}.png", buffer.getvalue())
            title = f"{coinage.phrase[:TITLE_CHARACTERS]} ({number})"
            write_bytes_atomic(temporary / f"{number:02d}.svg", svg_of(outline, title).encode())
            write_json_atomic(temporary / f"{number:02d}.json", one.certificate.to_json())
        write_bytes_atomic(temporary / f"{FONT}.ttf", truetype)
        write_bytes_atomic(temporary / f"{FONT}.woff2", woff2)
        write_bytes_atomic(temporary / CARD, card_html(coinage, outlines, woff2).encode())
        facts = {"call": dict(call), "summary": coinage.summary, "glyphs": len(coinage.glyphs)}
        write_json_atomic(temporary / CALL_FILE, facts)
    return folder / CARD
