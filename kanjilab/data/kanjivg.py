"""KanjiVG: the strokes of characters, read, checked and drawn."""

import hashlib
import io
import os
import re
import urllib.request
import zipfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from xml.etree.ElementTree import Element, ParseError

import numpy as np
from PIL import Image, ImageDraw

from kanjilab.core.images import SIZE_PX
from kanjilab.core.outside_files import read_file, reading_zip
from kanjilab.core.storage import cache_folder, write_bytes_atomic
from kanjilab.data.rendering import PAPER, GlyphError, describe_character, has_ink_pixels

KANJIVG_FILE = "kanjivg-r20250816-plain.zip"
KANJIVG_URL = "https://github.com/KanjiVG/kanjivg/releases/download/r20250816/kanjivg-20250816-all.zip"
KANJIVG_SHA256 = "332cc110f394c6583b5cf7969c9b1c3bb8c667e13308274f97f43b13d55b6304"  # see `kanjivg_content_hash`
KANJIVG_NAME = re.compile(r"(?:.*/)?kanji/([0-9a-f]{5}\.svg)")
KVG = "http://kanjivg.tagaini.net"  # namespace of its own attributes
KANJIVG_BYTES_MAX = 128 * 1024 * 1024
SVG_BYTES_MAX = 1024 * 1024
VIEW_BOX = 109.0
OVERSAMPLING = 4
STEPS_PER_CURVE = 16
PATH_TOKEN = re.compile(r"[MmCcSsLlHhVvQqTtZz]|[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?")


class KanjiVG:
    """The stroke files of KanjiVG, read from one zip file whose content was checked.

    Source: KanjiVG, Ulrich Apel, CC BY-SA 3.0, https://kanjivg.tagaini.net
    """

    def __init__(self, files: dict[str, bytes]):
        """Keep SVG files by name, such as `04e9c.svg`; see `open` for the ordinary way."""
        self._files = files

    @classmethod
    def open(cls, path: Path | None = None) -> "KanjiVG":
        """Read release r20250816 from a mirror, the user's cache, or its own home.

        Args:
            path: a zip file of the release; None looks in the folder named by `KANJILAB_MIRROR`, then in the
                user's cache folder, and else downloads the release into that cache.
        Raises:
            FileNotFoundError: `path` is not there, or no copy is on this machine and the download fails.
            ValueError: the content is not that of the release.
        """
        found = Path(path) if path is not None else local_kanjivg()
        if found is None:
            return cls(_download_kanjivg(cache_folder() / KANJIVG_FILE))
        return cls(_read_kanjivg(read_file(found, "a zip file of KanjiVG", KANJIVG_BYTES_MAX), found))

    def characters(self) -> set[str]:
        """Every character that has a file: Han, kana, digits and letters."""
        return {chr(int(name.removesuffix(".svg"), 16)) for name in self._files}

    def strokes(self, character: str) -> list[list[tuple[float, float]]]:
        """The strokes of a character in writing order.

        Returns:
            Per stroke a polyline of (x, y) in the 109 x 109 view box, y downwards.
        Raises:
            GlyphError: there is no file for it, or the file is not a readable SVG.
        """
        paths = [node for node in self.drawing(character).iter() if str(node.tag).rpartition("}")[2] == "path"]
        return [sample_path(node.get("d", "")) for node in paths]

    def drawing(self, character: str) -> Element:
        """The file of a character, parsed; KanjiVG's own attributes carry the namespace `KVG`.

        Raises:
            GlyphError: there is no file for it, or the file is not a readable SVG.
        """
        name = f"{ord(character):05x}.svg"
        if name not in self._files:
            raise GlyphError(f"KanjiVG has no strokes for {describe_character(character)}")
        return _parse_svg(name, self._files[name])


def local_kanjivg() -> Path | None:
    """KanjiVG's zip file in the folder named by `KANJILAB_MIRROR`, else in the user's cache, else None."""
    folders = [Path(mirror)] if (mirror := os.environ.get("KANJILAB_MIRROR")) else []
    return next((p for f in [*folders, cache_folder()] if (p := f / KANJIVG_FILE).is_file()), None)


def _download_kanjivg(target: Path) -> dict[str, bytes]:
    try:
        with urllib.request.urlopen(KANJIVG_URL, timeout=60) as answer:
            data = answer.read(KANJIVG_BYTES_MAX + 1)
    except OSError as error:
        raise FileNotFoundError(
            f"KanjiVG is not on this machine ({KANJIVG_FILE} in KANJILAB_MIRROR or {target.parent}), "
            f"and {KANJIVG_URL} cannot be read: {error}"
        ) from error
    files = _read_kanjivg(data, KANJIVG_URL)
    target.parent.mkdir(parents=True, exist_ok=True)
    write_bytes_atomic(target, data)
    return files


def _read_kanjivg(data: bytes, source: Path | str) -> dict[str, bytes]:
    """The stroke files in a zip file, if they are those of the release."""
    with reading_zip(source, "a zip file of KanjiVG"):
        archive = zipfile.ZipFile(io.BytesIO(data))
    wanted = {m[1]: i for i in archive.infolist() if (m := KANJIVG_NAME.fullmatch(i.filename))}
    oversized = [name for name, info in wanted.items() if info.file_size > SVG_BYTES_MAX]
    if oversized or sum(info.file_size for info in wanted.values()) > KANJIVG_BYTES_MAX:
        raise ValueError(f"{source}: expected stroke files of a few kB each, got far larger ones {oversized[:3]}")
    with reading_zip(source, "a zip file of KanjiVG"):
        files = {name: archive.read(info) for name, info in sorted(wanted.items())}
    if (content := kanjivg_content_hash(files)) != KANJIVG_SHA256:
        raise ValueError(f"{source}: expected KanjiVG with content hash {KANJIVG_SHA256}, got {content}")
    return files


def kanjivg_content_hash(files: dict[str, bytes]) -> str:
    """SHA-256 of the stroke files by name, whatever container they came in.

    It is taken over, sorted by name: `kanji/<name>`, a zero byte, the SHA-256 of the file.
    """
    digest = hashlib.sha256()
    for name in sorted(files):
        digest.update(f"kanji/{name}\0".encode() + hashlib.sha256(files[name]).digest())
    return digest.hexdigest()


def _parse_svg(name: str, svg: bytes) -> Element:
    from defusedxml import DefusedXmlException
    from defusedxml.ElementTree import fromstring

    # The prefix kvg: is declared only in the DOCTYPE; that has to go, as it declares attributes too.
    before, doctype, after = svg.decode("utf-8", "replace").partition("<!DOCTYPE")
    text = before + (after.partition("]>")[2] if doctype else "")
    text = re.sub(r"<svg\b", f'<svg xmlns:kvg="{KVG}"', text, count=1)
    try:
        return fromstring(text.encode("utf-8"))
    except (ParseError, DefusedXmlException) as error:
        raise GlyphError(f"{name}: expected a plain SVG of strokes ({error})") from error


def sample_path(data: str, steps: int = STEPS_PER_CURVE) -> list[tuple[float, float]]:
    """Follow one SVG path of lines and cubic curves.

    Args:
        data: the `d` attribute; commands M, L, C, S in both cases.
        steps: points per curve.
    Returns:
        Polyline of (x, y), in the path's own unit, ends included.
    Raises:
        GlyphError: another command, or too few numbers.
    Source: SVG 1.1, section 8.3.
    """
    points: list[tuple[float, float]] = []
    share = np.arange(1, steps + 1)[:, None] / steps
    bernstein = np.hstack([(1 - share) ** 3, 3 * share * (1 - share) ** 2, 3 * share**2 * (1 - share), share**3])
    control: tuple[float, float] | None = None  # second control point of the curve before, for S
    for command, numbers in _segments(data):
        here = points[-1] if points else (0.0, 0.0)
        base = here if command.islower() else (0.0, 0.0)
        pairs = [(base[0] + x, base[1] + y) for x, y in zip(numbers[::2], numbers[1::2], strict=True)]
        if command in "Mm" and points:
            raise GlyphError(f"expected one unbroken path per stroke, got {data[:60]!r}")
        if command in "MmLl":
            points.append(pairs[0])
            control = None
            continue
        if command in "Ss":
            mirrored = (2 * here[0] - control[0], 2 * here[1] - control[1]) if control else here
            pairs.insert(0, mirrored)
        curve = bernstein @ np.array([here, *pairs])  # (steps, 4) @ (4, 2)
        points += [(float(x), float(y)) for x, y in curve]
        control = pairs[1]
    return points


def _segments(data: str) -> Iterable[tuple[str, list[float]]]:
    """Cut a path into single commands with their numbers; repeated ones may leave the letter out."""
    tokens = PATH_TOKEN.findall(data)
    command, index = "", 0
    while index < len(tokens):
        if tokens[index].isalpha():
            command, index = tokens[index], index + 1
        count = {"m": 2, "l": 2, "c": 6, "s": 4}.get(command.lower())
        numbers = tokens[index : index + (count or 0)]
        if count is None or len(numbers) < count or any(number.isalpha() for number in numbers):
            raise GlyphError(f"expected a path of M, L, C and S with their numbers, got {data[:60]!r}")
        yield command, [float(number) for number in numbers]
        index += count
        command = {"M": "L", "m": "l"}.get(command, command)


def check_stroke_width(stroke_width: float) -> None:
    """ValueError for a width of strokes that is not positive."""
    if not stroke_width > 0:
        raise ValueError(f"stroke_width must be > 0, got {stroke_width}")


def draw_strokes(character: str, kanjivg: KanjiVG, stroke_width: float = 5.0, size_px: int = SIZE_PX) -> Image.Image:
    """A character from its strokes, with round ends and one width throughout.

    Args:
        character: one character.
        kanjivg: where the strokes come from.
        stroke_width: in units of the 109 x 109 view box, > 0; 3 is thin at 128 px, 4 to 6 read better.
        size_px: side of the square image.
    Returns:
        (size_px, size_px) image of mode L, 0 ink to 255 paper.
    Raises:
        GlyphError: no strokes on file, none of them with ink, or one leaves the image.
        ValueError: a stroke_width that is not positive.
    """
    check_stroke_width(stroke_width)
    strokes = kanjivg.strokes(character)
    margin = stroke_width / 2
    if any(not (margin <= value <= VIEW_BOX - margin) for stroke in strokes for point in stroke for value in point):
        raise GlyphError(
            f"KanjiVG's strokes of {describe_character(character)} are clipped at stroke width {stroke_width:g}"
        )
    large = Image.new("L", (size_px * OVERSAMPLING, size_px * OVERSAMPLING), PAPER)
    canvas = ImageDraw.Draw(large)
    scale = large.width / VIEW_BOX
    width_px = round(stroke_width * scale)
    for stroke in filter(None, strokes):
        # An ellipse includes its edge, so its radius is half a pixel less.
        draw_line(canvas, [(x * scale, y * scale) for x, y in stroke], width_px, (width_px - 1) / 2, ink=0)
    image = large.reduce(OVERSAMPLING)
    if not has_ink_pixels(image):
        raise GlyphError(f"KanjiVG's strokes of {describe_character(character)} leave no ink")
    return image


def draw_line(
    canvas: ImageDraw.ImageDraw, points: Sequence[tuple[float, float]], width_px: int, radius_px: float, ink: int
) -> None:
    """A polyline with round joints and ends.

    Args:
        canvas: where to draw.
        points: (x, y) in pixels.
        width_px: of the line.
        radius_px: of the disc at every point: in a tight curve the pieces of a wide line would stand apart like teeth.
        ink: gray level.
    """
    canvas.line(points, fill=ink, width=width_px)
    for x, y in points:
        canvas.ellipse((x - radius_px, y - radius_px, x + radius_px, y + radius_px), fill=ink)
