"""Rendering: a character in a font, black on white."""

import unicodedata
from collections.abc import Callable, Collection, Iterable, Iterator
from functools import cache, lru_cache, partial
from io import BytesIO
from pathlib import Path

import PIL
from PIL import Image, ImageChops, ImageFont

from kanjilab.core.config import settings_hash
from kanjilab.core.images import SIZE_PX
from kanjilab.core.manifest import keep_sound, kept_where_it_can_be
from kanjilab.core.outside_files import checked_file
from kanjilab.core.storage import appearing_folder, cache_folder, package_file, sha256_file

FONT_SHARE = 120 / 128  # font size over image size
INK_MAX = 200  # a pixel darker than this counts as ink
INK_PIXELS_MIN = 8  # of 128 x 128; the lightest character of IPAexGothic has 758
PAPER = 255
FACES_MAX = 64
FONT_BYTES_MAX = 512 * 1024 * 1024  # the largest collections of faces have some 100 MB
WORTH_KEEPING = 500  # characters: drawing more than these takes longer than finding out that they were drawn
DRAWABLE = "characters.txt"
LACKED = "\uffff"  # a noncharacter, which no font has
PLACEHOLDERS = (LACKED, "〓", "\ufffd")  # what fonts show in place of a glyph that they lack


class GlyphError(ValueError):
    """A character cannot be drawn whole: no ink, cut off at the edge, or no strokes on file."""


@cache
def default_font() -> Path:
    """IPAexGothic as the package `matplotlib-fontja` carries it, found without importing that.

    Returns:
        Path of an existing `ipaexg.ttf`.
    Raises:
        FileNotFoundError: the package is not installed.
    Source: IPAex Font, IPA Font License 1.0.
    """
    if (font := package_file("matplotlib_fontja", "fonts/ipaexg.ttf")) is None:
        raise FileNotFoundError("no default font: expected the package matplotlib-fontja with fonts/ipaexg.ttf")
    return font


def font_file(font: Path) -> tuple[Path, str]:
    """The file of a font, and the face that is wanted of it: `fonts.ttc#1`, `fonts.ttc#Name`, `variable.ttf#Bold`.

    Args:
        font: a file, or a file and a face after `#`.
    """
    path, sign, face = str(font).rpartition("#")
    return (Path(path), face) if sign and not font.exists() else (font, "")


def checked_font(font: Path) -> Path:
    """The same path, of a file that can be a font.

    Raises:
        GlyphError: no regular file, as a device that never ends, or too large for a font.
    """
    try:
        checked_file(font_file(font)[0], "a font file", FONT_BYTES_MAX)
    except (OSError, ValueError) as error:
        raise GlyphError(str(error)) from error
    return font


@lru_cache(maxsize=8)
def _load_font(font: Path, size_px: int) -> ImageFont.FreeTypeFont:
    path, face = font_file(checked_font(font))
    load = partial(ImageFont.truetype, str(path), size_px, layout_engine=ImageFont.Layout.BASIC)
    try:
        return _face_of(load, face, path) if face else load()
    except OSError as error:
        raise GlyphError(f"{path}: expected a font file that FreeType reads ({error})") from error


def _face_of(load: Callable[..., ImageFont.FreeTypeFont], face: str, path: Path) -> ImageFont.FreeTypeFont:
    """A face of a collection by number or name, or an instance of a variable font by name."""
    faces = list(_faces(load))
    names = [" ".join(filter(None, one.getname())) for one in faces]
    if face.isdecimal() and int(face) < len(faces):
        return faces[int(face)]
    if face in names:
        return faces[names.index(face)]
    if face not in (instances := _instances(faces[0])):
        raise GlyphError(f"{path}: expected one of the faces {', '.join([*names, *instances])}, got {face!r}")
    faces[0].set_variation_by_name(face)
    return faces[0]


def _faces(load: Callable[..., ImageFont.FreeTypeFont]) -> Iterator[ImageFont.FreeTypeFont]:
    """The faces of a font file: one, or those of a collection."""
    yield load()
    for index in range(1, FACES_MAX):
        try:
            yield load(index=index)
        except OSError:  # there are no more
            return


def _instances(font: ImageFont.FreeTypeFont) -> list[str]:
    """The named instances of a variable font; none of another one."""
    try:
        return [name.decode() for name in font.get_variation_names()]
    except OSError:
        return []


def font_characters(font: Path) -> set[str]:
    """The characters that a font lists; some may be blank.

    Args:
        font: a .ttf, .otf, .ttc or .woff2 file; of a collection the first face counts.
    Raises:
        GlyphError: no font, or a damaged one.
    """
    from fontTools.ttLib import TTFont

    try:
        data = BytesIO(checked_font(font).read_bytes())  # fontTools leaves a file open that it cannot read
        with TTFont(data, fontNumber=0, lazy=True) as table:
            listed = table.getBestCmap() if "cmap" in table else None
    except GlyphError:
        raise
    except Exception as error:  # fontTools raises whatever its parsers trip over
        raise GlyphError(f"{font}: expected a font file, got another or a damaged one ({error})") from error
    if not listed:
        raise GlyphError(f"{font}: expected a font file that lists characters, got one without any")
    return set(map(chr, listed))


def draw_font(character: str, font: Path, size_px: int = SIZE_PX) -> Image.Image:
    """A character in a font, its ink centred.

    Args:
        character: one character.
        font: a .ttf, .otf or .ttc file, with a face as `font_file` has it.
        size_px: side of the square image; the font is set at 120/128 of it.
    Returns:
        (size_px, size_px) image of mode L, 0 ink to 255 paper.
    Raises:
        GlyphError: the font cannot be read, lacks the character or shows a placeholder for it, draws it blank (brush
            fonts map thousands of characters to blank glyphs), or larger than the image.
    """
    font = Path(font)
    if len(character) != 1:
        raise GlyphError(f"expected one character, got {character!r}")
    image = _draw_font(character, font, size_px)
    shown = image.tobytes()
    if any(
        shown == other for sign, other in _placeholders(font, size_px).items() if sign != character or sign == LACKED
    ):
        raise GlyphError(f"{font.name} has no glyph for {describe_character(character)}")
    return image


def _draw_font(character: str, font: Path, size_px: int) -> Image.Image:
    # Drawn first and measured then: a text's bounding box includes the white beside its glyph.
    drawn = _load_font(font, round(size_px * FONT_SHARE)).getmask(character, mode="L")
    ink = Image.new("L", drawn.size)  # 255 ink
    ink.im.paste(drawn, (0, 0, *drawn.size))
    left, top, right, bottom = ink.getbbox() or (0, 0, 0, 0)
    width, height = right - left, bottom - top
    if width > size_px or height > size_px:
        raise GlyphError(
            f"{font.name} draws {describe_character(character)} clipped: {width} x {height} px of ink, "
            f"{size_px} x {size_px} px of image"
        )
    image = Image.new("L", (size_px, size_px), PAPER)
    corner = ((size_px - width) // 2, (size_px - height) // 2)
    image.paste(ImageChops.invert(ink.crop((left, top, right, bottom))), corner)
    if not has_ink_pixels(image):
        raise GlyphError(f"{font.name} draws {describe_character(character)} blank")
    return image


@lru_cache(maxsize=8)
def _placeholders(font: Path, size_px: int) -> dict[str, bytes]:
    """How the font shows each placeholder that it draws: `LACKED`, as a rule, as an empty box."""
    found = {}
    for character in PLACEHOLDERS:
        try:
            found[character] = _draw_font(character, font, size_px).tobytes()
        except GlyphError:
            continue
    return found


def has_ink_pixels(image: Image.Image) -> bool:
    """Whether enough pixels of a picture are dark for it to show a glyph."""
    inked = sum(image.histogram()[:INK_MAX])
    return inked >= INK_PIXELS_MIN * image.width * image.height / SIZE_PX**2


def describe_character(character: str) -> str:
    """A character with its codepoint, for messages."""
    return f"{character} (U+{ord(character):04X})"


def draws(character: str, font: Path) -> bool:
    """Whether a font draws a character whole, by the ink that it leaves: a font may list a glyph that is blank."""
    try:
        draw_font(character, font)
    except GlyphError:
        return False
    return True


def drawable_characters(
    characters: Iterable[str], font: Path, on_progress: Callable[[int, int], None] = lambda done, total: None
) -> set[str]:
    """Those of the characters that the font draws whole, with ink, and unlike any other of them.

    Some fonts list characters that they have no glyph of, and draw one and the same picture for all of them. To find
    out, all are drawn; the answer is kept in the user's cache, for these characters and this font's content.

    Args:
        characters: single characters.
        font: a font file.
        on_progress: called with (done, total) characters.
    Raises:
        GlyphError: the font file cannot be read.
    """
    _load_font(Path(font), round(SIZE_PX * FONT_SHARE))
    characters = list(dict.fromkeys(characters))
    if len(characters) < WORTH_KEEPING:
        return _drawable(characters, font, on_progress)
    path, face = font_file(Path(font))
    asked = [sha256_file(path), face, "".join(characters), SIZE_PX, FONT_SHARE, PIL.__version__]
    folder = cache_folder() / "drawable" / settings_hash(asked)

    def make() -> None:
        with appearing_folder(folder) as temporary:
            found = "".join(sorted(_drawable(characters, font, on_progress)))
            (temporary / DRAWABLE).write_text(found, encoding="utf-8")

    with kept_where_it_can_be(str(folder)):
        keep_sound(folder, make)
        on_progress(len(characters), len(characters))
        return set((folder / DRAWABLE).read_text(encoding="utf-8"))
    return _drawable(characters, font, on_progress)


def _drawable(characters: Collection[str], font: Path, on_progress: Callable[[int, int], None]) -> set[str]:
    """See `drawable_characters`: drawn anew."""
    drawn: dict[bytes, set[str]] = {}
    for done, character in enumerate(characters, start=1):
        try:
            drawn.setdefault(draw_font(character, font).tobytes(), set()).add(character)
        except GlyphError:
            pass
        on_progress(done, len(characters))
    return {character for alike in drawn.values() if _is_one_character(alike) for character in alike}


def _is_one_character(characters: set[str]) -> bool:
    """Whether Unicode has these as one, as it has compatibility ideographs."""
    return len({unicodedata.normalize("NFKC", character) for character in characters}) == 1
