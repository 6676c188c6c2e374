"""The command that writes with calligraphy."""

import io
import re
import unicodedata
from pathlib import Path
from typing import Annotated, Any

import typer

from kanjilab.cli.options import require_effect, seed_of

CHARACTERS_MAX = 200


def write(
    context: typer.Context,
    text: Annotated[str, typer.Argument(help="What to write; a space begins a new line.")] = "",
    style: Annotated[
        str, typer.Option(help="Script and tool, and by whom: {kanjilab.data.calligraphy.STYLE_CAPTIONS}.")
    ] = "regular script, brush",
    skeleton: Annotated[Path | None, typer.Option(help="Picture of lines to follow, in place of typed ones.")] = None,
    hand: Annotated[Path | None, typer.Option(help="Folder of photos (永.jpg) whose hand is learned first.")] = None,
    by_index: Annotated[bool, typer.Option(help="Without a skeleton, of known characters alone.")] = False,
    vertical: Annotated[bool, typer.Option(help="Lines run down, from the right.")] = False,
    guidance: Annotated[float, typer.Option(help="How strongly the style counts; 1 for no more than learned.")] = 2.5,
    skeleton_guidance: Annotated[
        float | None, typer.Option(help="How strongly the skeleton and the index count: 5, or 2.5 with --skeleton.")
    ] = None,
    seed: Annotated[int, seed_of("Of the noise.")] = 0,
    base: Annotated[str, typer.Option(help="What writes: a base that reads skeletons.")] = "calligraphy",
    out: Annotated[
        Path | None,
        typer.Option(help="PNG, with an SVG beside it; else runs/written/<text>-<hash of all options>.png."),
    ] = None,
) -> None:
    """Write characters in a style, typed or along drawn lines, and in a hand that is learned from photos."""
    from dataclasses import replace

    from kanjilab.core.config import settings_hash
    from kanjilab.data.handwriting import read_skeleton
    from kanjilab.experiments.writing import index_of, known_index, typed_skeleton, usual_sampling, writing_prompt
    from kanjilab.experiments.writing import write as write_prompts
    from kanjilab.export.page import page_picture, page_svg, places_of
    from kanjilab.models.loading import load_base

    require_effect(context, skeleton is None, "without --skeleton", "by_index", "vertical")
    name = re.sub(r"\W+", "-", text).strip("-")[:40] or "skeleton"
    options = settings_hash({option: str(value) for option, value in context.params.items()})
    files = _files_of(out or Path("runs/written", f"{name}-{options[:6]}"))
    lines = _lines_of(text, skeleton)
    symbols = [symbol for line in lines for symbol in line]
    # What cannot be written is refused before anything is loaded.
    drawn = [None if skeleton is None else read_skeleton(skeleton) for _ in symbols]
    typed = [None if by_index or skeleton else typed_skeleton(symbol) for symbol in symbols]
    samples = None if hand is None else _samples(hand)
    loaded = load_base(base)
    number = index_of if by_index else known_index
    indices = [0 if skeleton else number(loaded, symbol) for symbol in symbols]
    prompts = [writing_prompt(loaded, style, *led) for led in zip(drawn, indices, typed, strict=True)]
    sampling = replace(usual_sampling(prompts), guidance=guidance)
    if skeleton_guidance is not None:
        sampling = replace(sampling, array_guidance=skeleton_guidance)
    trainable = None
    if samples is not None:
        trainable, style = _learned(loaded, samples, style)
        prompts = [replace(prompt, text=style) for prompt in prompts]
    images = write_prompts(loaded, prompts, seed, sampling, trainable)
    places = places_of([len(line) for line in lines], vertical)
    title = f"{text} ({style})" if text else style
    typer.echo("\n".join(map(str, _save(files, page_picture(images, places), page_svg(images, places, title)))))


def _lines_of(text: str, skeleton: Path | None) -> list[list[str]]:
    """What is to be written, glyph by glyph."""
    from kanjilab.experiments.writing import symbols_of

    lines = [symbols_of(line) for line in unicodedata.normalize("NFC", text).split()]
    count = sum(map(len, lines))
    if skeleton is not None and count <= 1:
        return lines or [[""]]
    if skeleton is not None:
        raise ValueError(f"a skeleton leads one character: expected one at most, got {count}")
    if not 1 <= count <= CHARACTERS_MAX:
        raise ValueError(f"expected 1 to {CHARACTERS_MAX} characters to write, got {count}")
    return lines


def _samples(folder: Path) -> Any:
    """A person's glyphs; shown, with their skeletons, before anything is learned."""
    from kanjilab.core.config import settings_hash
    from kanjilab.core.storage import write_bytes_atomic
    from kanjilab.data.handwriting import read_hand
    from kanjilab.viz.hand_sheet import hand_sheet

    hand = read_hand(folder)
    for name, why in hand.unread:
        typer.echo(f"not read: {name} ({why})")
    whole = folder.resolve()  # folders in different places may have one name
    path = Path("runs/hands", f"{whole.name}-{settings_hash(str(whole))[:6]}.png")
    path.parent.mkdir(parents=True, exist_ok=True)
    buffer = io.BytesIO()
    hand_sheet(hand).save(buffer, "PNG")
    write_bytes_atomic(path, buffer.getvalue())
    typer.echo(f"{len(hand.characters)} glyphs and their skeletons: {path}")
    return hand


def _learned(base: Any, hand: Any, style: str) -> tuple[Any, str]:
    """What was learned of a hand, and the caption that asks for it."""
    import hashlib

    from kanjilab.core.config import settings_hash
    from kanjilab.training.few_shot import HAND_RECIPE, learn_hand

    caption = f"{style}, by own hand"
    digest = hashlib.sha256(hand.images.tobytes()).hexdigest()
    key = settings_hash([base.identity, digest, hand.characters, caption, HAND_RECIPE.to_json()])
    folder = Path("runs/hands", key)
    steps = HAND_RECIPE.total_steps(1)
    typer.echo(f"learning the hand, {steps} steps, two to five minutes of one core; kept in {folder}")
    return learn_hand(base, hand, caption, folder), caption


def _files_of(out: Path) -> tuple[Path, Path]:
    """The PNG and the SVG to write: whatever else the name has behind a dot stays, so that v1.2 is not v1.3.

    Raises:
        ValueError: a folder is there in place of one, or they cannot be written.
    """
    from kanjilab.core.storage import require_place

    if out.name in ("", ".."):
        raise ValueError(f"expected the name of a picture, got {str(out)!r}")
    stem = out.with_suffix("") if out.suffix.lower() in (".png", ".svg") else out
    files = stem.with_name(f"{stem.name}.png"), stem.with_name(f"{stem.name}.svg")
    if taken := next((path for path in files if path.is_dir()), None):
        raise ValueError(f"{taken}: expected the name of a picture, got that of a folder")
    for path in files:
        require_place(path)
    return files


def _save(files: tuple[Path, Path], picture: Any, svg: str) -> list[Path]:
    from kanjilab.core.storage import write_together

    files[0].parent.mkdir(parents=True, exist_ok=True)
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", optimize=True)
    return write_together(dict(zip(files, (buffer.getvalue(), svg.encode()), strict=True)))
