"""One image file of any origin, as gray or colour of a fixed size: the one way in, for checks and for training."""

import warnings
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image, ImageCms, ImageOps

from kanjilab.core.outside_files import read_file

PIXELS_MAX = 64 * 1024 * 1024  # 8192 x 8192; a decompression bomb claims far more
FILE_BYTES_MAX = 512 * 1024 * 1024  # of so many pixels in 16-bit colour
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF")  # the others run programs or are rarely images
FILTERS = {
    name: Image.Resampling[name.upper()] for name in ("nearest", "box", "bilinear", "hamming", "bicubic", "lanczos")
}
ORIENTATION = 0x0112  # EXIF's tag
UPRIGHT = {  # how an image is turned that was stored so
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
PHOTOMETRIC, WHITE_IS_ZERO = 262, 0  # TIFF's tag, and its value of a negative


class ImageError(ValueError):
    """An image file that cannot be read right; the message says what is wrong with it."""


def read_image(data: bytes, size_px: int, resample: str, channels: Literal[1, 3] = 1) -> np.ndarray:
    """Decodes an image and brings it to a square: upright, transparency white, padded with white.

    Args:
        data: the file's content.
        size_px: side of the square.
        resample: one of `FILTERS`.
        channels: 1 gray, 3 RGB.
    Returns:
        (H, W) or (H, W, 3) uint8, 0 black to 255 white.
    Raises:
        ImageError: empty, too large, damaged, of another format, or of values whose black and white are not known.
    """
    mode, filter_ = {1: "L", 3: "RGB"}[channels], FILTERS[resample]
    return _decoded(data, lambda image: _square(image, mode, size_px, filter_))


def read_gray(path: Path, side_max_px: int) -> np.ndarray:
    """One picture of any kind and size, as it is seen.

    Args:
        path: of a file.
        side_max_px: a longer side is brought to this.
    Returns:
        (H, W) uint8, 0 black to 255 white.
    Raises:
        ImageError: there is none, or it cannot be read; the message says why.
    """

    def small(image: Image.Image) -> Image.Image:
        image.draft("L", (side_max_px, side_max_px))  # a JPEG is decoded no larger than is needed
        gray = _flattened(image, "L")
        gray.thumbnail((side_max_px, side_max_px), Image.Resampling.LANCZOS, reducing_gap=3)
        return gray

    try:
        return _decoded(image_bytes(path), small)
    except ImageError as error:
        raise ImageError(f"{path.name} {error}") from error


def longer_side(data: bytes) -> int:
    """The longer side in px as it is stored, of a file that `read_image` reads."""
    return int(_decoded(data, lambda image: max(image.size)))


def image_bytes(path: Path) -> bytes:
    """The content of an image file.

    Raises:
        ImageError: there is none, it is no regular file or too large, or cannot be read.
    """
    try:
        return read_file(path, "an image", FILE_BYTES_MAX)
    except FileNotFoundError:
        raise ImageError("cannot be read: it is missing") from None
    except OSError as error:
        raise ImageError(f"cannot be read ({error.strerror or error})") from error
    except ValueError as error:
        raise ImageError(str(error).partition(": ")[2]) from error


def _decoded(data: bytes, use: Callable[[Image.Image], Any]) -> np.ndarray:
    """What is made of a file's image, as an array; whatever decoders trip over is an `ImageError`."""
    if not data:
        raise ImageError("is 0 bytes")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # damaged EXIF, truncated metadata: the pixels are what counts
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(BytesIO(data), formats=FORMATS) as image:
                if image.width * image.height > PIXELS_MAX:
                    raise ImageError(f"is too large: {image.width} x {image.height} px, at most {PIXELS_MAX} pixels")
                return np.asarray(use(image))
    except ImageError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise ImageError(f"is too large: expected at most {PIXELS_MAX} pixels") from None
    except Image.UnidentifiedImageError:
        raise ImageError(f"is not an image of a known format ({', '.join(FORMATS)})") from None
    except Exception as error:  # decoders raise whatever their parsers trip over
        raise ImageError(f"is damaged ({error})") from error


def _flattened(image: Image.Image, mode: str) -> Image.Image:
    """Upright, in a mode of 8 bits, and white where it was transparent."""
    image.load()
    image = _eight_bits(_upright(image))
    if image.has_transparency_data:
        paper = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(paper, image.convert("RGBA"))
    return image.convert(mode)


def _square(image: Image.Image, mode: str, size_px: int, resample: Image.Resampling) -> Image.Image:
    image = _flattened(image, mode)
    if image.size == (size_px, size_px):
        return image
    return ImageOps.pad(image, (size_px, size_px), method=resample, color="white")


def _upright(image: Image.Image) -> Image.Image:
    """As viewers show it: turned by EXIF's orientation, or as it is stored where the EXIF cannot be read."""
    try:
        orientation = image.getexif().get(ORIENTATION)
    except Exception:  # EXIF is a file format of its own, and its readers raise what they trip over
        return image
    turn = UPRIGHT.get(orientation) if isinstance(orientation, int) else None
    return image if turn is None else image.transpose(turn)


def _eight_bits(image: Image.Image) -> Image.Image:
    """Of modes that `convert` would cut off at 255, or does not know."""
    if image.mode == "LAB":
        return ImageCms.profileToProfile(  # type: ignore[return-value]
            image, ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB"), outputMode="RGB"
        )
    if not image.mode.startswith(("I", "F")):
        return image
    values = np.asarray(image, dtype=np.float64)  # (H, W)
    white = _white_value(image.mode, values)
    clear = image.info.get("transparency")  # of a PNG of 16 bits: the value that is seen through
    gray = np.floor(values * (256 / (white + 1)) if white > 255 else values * (255 / white))
    if getattr(image, "tag_v2", {}).get(PHOTOMETRIC) == WHITE_IS_ZERO:
        gray = 255 - gray
    if isinstance(clear, int):
        gray[values == clear] = 255
    return Image.fromarray(gray.astype(np.uint8))


def _white_value(mode: str, values: np.ndarray) -> int:
    """The value of white: 65535 of 16 bits; of more bits and of floats the smallest of 1, 255, 65535 that fits."""
    if mode.startswith("I;16"):
        return 65535
    least, most = values.min(), values.max()
    if not (least >= 0 and most <= 65535):  # NaN is neither
        raise ImageError(f"has values from {least:g} to {most:g}: expected from 0 to 1, 255 or 65535")
    return next(white for white in ((1, 255, 65535) if mode == "F" else (255, 65535)) if most <= white)
