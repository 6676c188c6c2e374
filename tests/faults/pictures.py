"""Pictures of the kinds that cameras, scanners and drawing programs make, some of them no use as lines to follow."""

import io
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from tests.photos import glyph, photographed

RNG_SEED = 0


def lines(side: int = 200, paper: int = 235, ink: int = 30, mode: str = "L") -> Image.Image:
    """A cross of thick lines on paper, clear of the border."""
    image = Image.new("L", (side, side), paper)
    canvas = ImageDraw.Draw(image)
    canvas.line((side * 0.2, side / 2, side * 0.8, side / 2), fill=ink, width=max(1, side // 20))
    canvas.line((side / 2, side * 0.2, side / 2, side * 0.8), fill=ink, width=max(1, side // 20))
    return image.convert(mode)


def saved(image: Image.Image, form: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def noise(side: int = 200) -> Image.Image:
    values = np.random.default_rng(RNG_SEED).integers(0, 256, (side, side), dtype=np.uint8)
    return Image.fromarray(values)


def _transparent(ink: tuple[int, int, int]) -> Image.Image:
    """Lines on nothing, as drawing programs for tablets store them."""
    alpha = lines(paper=0, ink=255)
    image = Image.new("RGBA", alpha.size, (*ink, 0))
    image.putalpha(alpha)
    return image


def _turned() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return saved(lines(), "JPEG", exif=exif)


def _animated() -> bytes:
    return saved(lines(), "GIF", save_all=True, append_images=[noise()], duration=100)


def _pages() -> bytes:
    return saved(lines(), "TIFF", save_all=True, append_images=[noise()])


def _many_pixels() -> bytes:
    """A PNG of a few bytes that claims 60,000 x 60,000 px."""
    head = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 0, 0, 0, 0)
    chunks = {b"IHDR": head, b"IDAT": zlib.compress(bytes(100)), b"IEND": b""}
    packed = [
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in chunks.items()
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(packed)


def _strip() -> Image.Image:
    return lines().resize((3_000, 4))


def _framed() -> Image.Image:
    image = lines()
    ImageDraw.Draw(image).rectangle((0, 0, 199, 199), outline=30, width=4)
    return image


def _to_the_border() -> Image.Image:
    image = Image.new("L", (200, 200), 235)
    ImageDraw.Draw(image).line((0, 0, 199, 199), fill=30, width=8)
    return image


def _dots() -> Image.Image:
    image = Image.new("L", (200, 200), 235)
    for x in range(8, 200, 16):
        for y in range(8, 200, 16):
            ImageDraw.Draw(image).rectangle((x, y, x + 5, y + 5), fill=30)
    return image


def _coloured(paper: tuple[int, int, int], ink: tuple[int, int, int]) -> Image.Image:
    mask = lines(paper=0, ink=255)
    return Image.composite(Image.new("RGB", mask.size, ink), Image.new("RGB", mask.size, paper), mask)


# Lines that can be followed: what was brought -> the file's ending and its content.
RIGHT: dict[str, tuple[str, Callable[[], bytes]]] = {
    "a JPEG of CMYK, as for printing": ("jpg", lambda: saved(lines(mode="CMYK"), "JPEG")),
    "a progressive JPEG": ("jpg", lambda: saved(lines(), "JPEG", progressive=True)),
    "a JPEG that EXIF turns": ("jpg", _turned),
    "a JPEG of poor quality": ("jpg", lambda: saved(lines(), "JPEG", quality=5)),
    "a photo in uneven light": ("jpg", lambda: saved(photographed(glyph("永", 400)), "JPEG")),
    "a PNG of 16 bits": ("png", lambda: saved(Image.fromarray(np.asarray(lines()).astype(np.uint16) * 257), "PNG")),
    "a PNG with a palette": ("png", lambda: saved(lines(mode="P"), "PNG")),
    "a PNG of 1 bit": ("png", lambda: saved(lines(paper=255, ink=0, mode="1"), "PNG")),
    "a PNG of gray and alpha": ("png", lambda: saved(lines(mode="LA"), "PNG")),
    "black lines on nothing": ("png", lambda: saved(_transparent((0, 0, 0)), "PNG")),
    "chalk on a blackboard": ("png", lambda: saved(lines(paper=20, ink=240), "PNG")),
    "blue ink on yellow paper": ("png", lambda: saved(_coloured((240, 230, 140), (20, 30, 160)), "PNG")),
    "red ink on white paper": ("png", lambda: saved(_coloured((255, 255, 255), (190, 0, 0)), "PNG")),
    "a scan with a frame around it": ("png", lambda: saved(_framed(), "PNG")),
    "a stroke from corner to corner": ("png", lambda: saved(_to_the_border(), "PNG")),
    "a picture of 12 px": ("png", lambda: saved(lines(24).resize((12, 12)), "PNG")),
    "a picture of 6,000 px": ("png", lambda: saved(lines(6_000), "PNG")),
    "a WebP with losses": ("webp", lambda: saved(lines(), "WEBP", quality=20)),
    "an animated GIF, whose first picture counts": ("gif", _animated),
    "a TIFF of two pages, whose first counts": ("tif", _pages),
    "a strip of 3,000 x 4 px": ("png", lambda: saved(_strip(), "PNG")),
    "a BMP": ("bmp", lambda: saved(lines(), "BMP")),
    "a JPEG that is named .png": ("png", lambda: saved(lines(), "JPEG")),
    "a PNG without an ending": ("", lambda: saved(lines(), "PNG")),
}
# What shows no lines, or is no picture -> besides, what is said of it.
WRONG: dict[str, tuple[str, Callable[[], bytes], str]] = {
    "white paper": ("png", lambda: saved(Image.new("L", (200, 200), 255), "PNG"), "no ink is to be seen"),
    "a black picture": ("png", lambda: saved(Image.new("L", (200, 200), 0), "PNG"), "no ink is to be seen"),
    "nothing at all, all of it transparent": (
        "png",
        lambda: saved(Image.new("RGBA", (200, 200), (0, 0, 0, 0)), "PNG"),
        "no ink is to be seen",
    ),
    "white lines on nothing": ("png", lambda: saved(_transparent((255, 255, 255)), "PNG"), "no ink is to be seen"),
    "pencil too faint to see": ("png", lambda: saved(lines(paper=235, ink=228), "PNG"), "no ink is to be seen"),
    "a single pixel": ("png", lambda: saved(Image.new("L", (1, 1), 0), "PNG"), "no ink is to be seen"),
    "noise": ("png", lambda: saved(noise(), "PNG"), "scattered|more is dark"),
    "a halftone of dots": ("png", lambda: saved(_dots(), "PNG"), "scattered"),
    "half of a JPEG": ("jpg", lambda: saved(noise(), "JPEG")[:4_000], "is damaged"),
    "the head of a PNG": ("png", lambda: saved(lines(), "PNG")[:40], "is damaged|not an image"),
    "a PNG that claims 3,600,000,000 pixels": ("png", _many_pixels, "is too large"),
    "a photo of an iPhone, HEIC": (
        "heic",
        lambda: b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(400),
        "not an image of a known format",
    ),
    "an AVIF": ("avif", lambda: b"\0\0\0\x1cftypavif\0\0\0\0avifmif1" + bytes(400), "not an image of a known format"),
    "an SVG": ("svg", lambda: b"<svg xmlns='http://www.w3.org/2000/svg'><path d='M0 0L9 9'/></svg>", "not an image"),
    "a PDF": ("pdf", lambda: b"%PDF-1.7\n1 0 obj<</Type/Catalog>>endobj\n%%EOF", "not an image of a known format"),
    "a file of Photoshop": ("psd", lambda: b"8BPS\0\1" + bytes(300), "not an image of a known format"),
    "a web page in place of the picture": ("png", lambda: b"<!DOCTYPE html><html>404</html>", "not an image"),
    "a Git LFS pointer": ("png", lambda: b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "not an image"),
    "an empty file": ("png", lambda: b"", "is 0 bytes"),
}


def brought(folder: Path, kind: tuple, name: str = "drawn") -> Path:
    """A picture's file in a folder."""
    path = folder / (f"{name}.{kind[0]}" if kind[0] else name)
    path.write_bytes(kind[1]())
    return path
