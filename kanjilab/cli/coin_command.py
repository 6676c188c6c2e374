"""The command that coins kanji for a phrase."""

import re
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from kanjilab.cli.options import count, seed_of

SKETCH_COLUMNS = 32
MARKS = {True: "yes", False: "–"}


def coin(
    phrase: Annotated[str, typer.Argument(help="What the kanji should mean, in English or in Japanese.")],
    parts: Annotated[str, typer.Option(help="Two parts to draw, as woman+bird or 女+鳥.")] = "",
    layout: Annotated[
        str, typer.Option(help="Of parts: {kanjilab.experiments.phrase_readings.LAYOUTS_BY_NAME}, or a sign as ⿰.")
    ] = "",
    noises: Annotated[int, count("Candidates of each reading of the phrase.")] = 8,
    keep: Annotated[int, count("Glyphs to keep, at most.")] = 8,
    out: Annotated[
        Path | None, typer.Option("--out", "--folder", help="New folder; runs/coined/<phrase> by default.")
    ] = None,
    seed: Annotated[int, seed_of("Of the first noise; the others follow.")] = 0,
    base: Annotated[str, typer.Option(help="What draws.")] = "writer",
) -> None:
    """Coin new kanji for a phrase, with certificates, as pictures and as a font. Called again, it shows them.

    Candidates are drawn from the phrase and from pairs of parts that its words suggest. Judge A rejects and ranks them;
    judge B reports the five criteria of a new kanji.
    """
    started = time.perf_counter()
    from kanjilab import __version__
    from kanjilab.cli.coin_folder import CARD, is_finished, stored_certificates, write_coinage
    from kanjilab.data.japanese import script_note
    from kanjilab.data.typeset import SLOTS_OF_LAYOUT
    from kanjilab.experiments.phrase_readings import layouts_named

    layouts = layouts_named(layout) if layout else tuple(SLOTS_OF_LAYOUT)
    folder = out or Path("runs/coined", folder_name(phrase, parts))
    options = {"parts": parts, "layouts": layouts, "noises": noises, "keep": keep, "seed": seed}
    call = {"phrase": phrase, "base": base, "version": __version__, **options}
    if note := script_note(phrase):
        typer.echo(note)
    if not is_finished(folder, call):
        write_coinage(_coinage(phrase, base, started, **options), folder, call)
    summary, certificates = stored_certificates(folder)
    if translation := certificates[0].translation:
        typer.echo(f"translated by the dictionary: {translation}")
    typer.echo(f"{summary}\n{certificate_table(certificates)}\n{folder / CARD}")


def _coinage(phrase: str, base: str, started: float, **options: Any) -> Any:
    """What is coined for a phrase; the first glyph is sketched as soon as it is drawn."""
    from kanjilab.experiments.coining import coin as coin_glyphs

    shown = []

    def show_first(reading: Any, images: Any) -> None:
        if not shown and sys.stdout.isatty():
            typer.echo(f"\n{sketch(images[0])}\nfirst candidate of “{reading.prompt}” after {_since(started)}")
        shown.append(reading)

    coinage = coin_glyphs(phrase, writer=base, on_drawn=show_first, **options)
    typer.echo(f"{len(coinage.glyphs)} glyphs with certificates after {_since(started)}")
    return coinage


def _since(started: float) -> str:
    return f"{time.perf_counter() - started:.0f} s"


def folder_name(phrase: str, parts: str = "") -> str:
    """A folder's name for a phrase: letters of any script, words joined by dashes."""
    words = re.findall(r"\w+", f"{phrase} {parts}".lower())
    return "-".join(words)[:60] or "phrase"


def sketch(image: Any, columns: int = SKETCH_COLUMNS) -> str:
    """A glyph in block characters, two rows of cells in a line.

    Args:
        image: (H, W) uint8, 0 ink to 255 paper; sides a multiple of the columns.
        columns: cells on a side.
    """
    cell = image.shape[0] // columns
    dark = image.reshape(columns, cell, columns, cell).mean(axis=(1, 3)) < 128
    signs = {(False, False): " ", (True, False): "▀", (False, True): "▄", (True, True): "█"}
    pairs = zip(dark[::2].tolist(), dark[1::2].tolist(), strict=True)
    return "\n".join("".join(signs[pair] for pair in zip(*rows, strict=True)).rstrip() for rows in pairs)


def certificate_table(certificates: Sequence[Any]) -> str:
    """The glyphs in rows: the parts that judge B finds, its five criteria, the nearest character, and the reading.

    Args:
        certificates: the best first.
    """
    import pandas as pd

    from kanjilab.experiments.certificate import certificate_rows

    rows = certificate_rows(certificates)
    rows.insert(0, "", [f"{number:02d}" for number in rows.index])
    with pd.option_context("display.unicode.east_asian_width", True):
        return rows.replace(MARKS).to_string(index=False)
