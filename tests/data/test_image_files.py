"""Image files as other programs write them: read right, or refused by line and name."""

import struct
import zlib
from io import BytesIO

import numpy as np
import pytest
from PIL import Image, ImageDraw

from kanjilab.data.image_files import ImageError, read_image
from kanjilab.data.image_folder import DatasetError, open_dataset

INK = np.full((64, 64), 255, np.uint8)
INK[10:30, 8:20] = 0  # a block in the upper left, so that every turn of it is another image


def coded(image: Image.Image, form: str = "PNG", **options: object) -> bytes:
    buffer = BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def read(data: bytes, size_px: int = 64, channels=1) -> np.ndarray:
    return read_image(data, size_px, "nearest", channels)


def exif(*entries: tuple[int, int, int, bytes]) -> bytes:
    """EXIF with one directory of (tag, type, count, four bytes of value or offset)."""
    body = b"".join(struct.pack("<HHI", *entry[:3]) + entry[3] for entry in entries)
    return b"Exif\0\0II*\0\x08\0\0\0" + struct.pack("<H", len(entries)) + body + bytes(4) + struct.pack("<ii", -1, 0)


ORIENTATION = (0x0112, 3, 1, struct.pack("<I", 6))


def with_chunk(png: bytes, kind: bytes, data: bytes) -> bytes:
    """A PNG with one more chunk after its header."""
    chunk = struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    return png[:33] + chunk + png[33:]


def gray16(values: np.ndarray, clear: int | None = None) -> bytes:
    """A PNG of 16-bit gray, perhaps with one value that is seen through."""
    png = coded(Image.fromarray(values.astype(np.uint16)))
    return png if clear is None else with_chunk(png, b"tRNS", struct.pack(">H", clear))


def tiff(values: np.ndarray, negative: bool = False) -> bytes:
    """A TIFF of one strip, of the array's own type: what no writer here makes of a negative."""
    data, kind = values.tobytes(), {"u": 1, "i": 2, "f": 3}[values.dtype.kind]
    height, width = values.shape
    bits = values.dtype.itemsize * 8
    tags = [(256, width), (257, height), (258, bits), (259, 1), (262, 0 if negative else 1), (273, 8), (277, 1)]
    tags += [(278, height), (279, len(data)), (339, kind)]
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    return b"II*\0" + struct.pack("<I", 8 + len(data)) + data + struct.pack("<H", len(tags)) + entries + bytes(4)


UNREADABLE = {
    "a rational of -1/0": exif((0x011A, 5, 1, struct.pack("<I", 26))),
    "an artist who is a number": exif((0x013B, 5, 1, struct.pack("<I", 26))),
    "an offset beyond the end": exif((0x010F, 2, 500, struct.pack("<I", 10**6))),
    "more entries than bytes": b"Exif\0\0II*\0\x08\0\0\0\xff\xff",
    "no TIFF at all": b"Exif\0\0nothing of the sort",
    "a directory that is its own next": b"Exif\0\0II*\0\x08\0\0\0\0\0\x08\0\0\0",
    "a header alone": b"Exif\0\0II*\0",
    "the other order of bytes": exif(ORIENTATION).replace(b"II*", b"MM*"),
    "an unknown type": exif((0x0112, 99, 1, struct.pack("<I", 6))),
    "a count of four thousand million": exif((0x0112, 3, 2**32 - 1, bytes(4))),
    "an orientation of nine": exif((0x0112, 3, 1, struct.pack("<I", 9))),
    "an orientation in words": exif((0x0112, 2, 4, b"six\0")),
    "cameras' directories that lead nowhere": exif(
        *((tag, 4, 1, struct.pack("<I", 10**9)) for tag in (0x8769, 0x8825))
    ),
    "a camera's directory that leads back": exif((0x8769, 4, 1, struct.pack("<I", 8))),
}


@pytest.mark.parametrize("name", UNREADABLE)
def test_unreadable_exif_is_passed_over(name):
    plain = read(coded(Image.fromarray(INK), "JPEG", quality=95))
    assert (read(coded(Image.fromarray(INK), "JPEG", quality=95, exif=UNREADABLE[name])) == plain).all()
    png = coded(Image.fromarray(INK))
    assert (read(with_chunk(png, b"eXIf", UNREADABLE[name][6:])) == INK).all()


@pytest.mark.parametrize("beside", [(), UNREADABLE["a rational of -1/0"][16:28]])
def test_an_orientation_counts_whatever_is_beside_it(beside):
    entries = [ORIENTATION] + ([(0x011A, 5, 1, struct.pack("<I", 38))] if beside else [])
    turned = coded(Image.fromarray(INK), exif=exif(*entries)[6:])
    assert (read(turned) == np.rot90(INK, -1)).all()


@pytest.mark.parametrize("value", range(1, 9))
def test_every_orientation_is_undone(value):
    stored = {1: INK, 2: INK[:, ::-1], 3: INK[::-1, ::-1], 4: INK[::-1], 5: INK.T, 6: np.rot90(INK)}
    stored |= {7: INK[::-1, ::-1].T, 8: np.rot90(INK, -1)}
    for form in ("PNG", "TIFF"):
        tags = Image.Exif()
        tags[0x0112] = value
        assert (read(coded(Image.fromarray(np.ascontiguousarray(stored[value])), form, exif=tags)) == INK).all(), form


RIGHT = {
    "16 bits": (gray16(INK * np.uint16(257)), INK),
    "16 bits, white is clear": (gray16(np.where(INK, 60000, 0), clear=60000), INK),
    "16 bits, a negative": (tiff(np.where(INK, 0, 65535).astype(np.uint16), negative=True), INK),
    "8 bits, a negative": (tiff(255 - INK, negative=True), INK),
    "32 bits, to 255": (tiff(INK.astype(np.int32)), INK),
    "32 bits, to 65535": (tiff(INK.astype(np.int32) * 257), INK),
    "floats to 1": (tiff((INK / 255).astype(np.float32)), INK),
    "floats to 255": (tiff(INK.astype(np.float32)), INK),
    "floats, a negative": (tiff((1 - INK / 255).astype(np.float32), negative=True), INK),
    "one bit": (coded(Image.fromarray(INK).convert("1")), INK),
    "a palette": (coded(Image.fromarray(INK).convert("P")), INK),
    "CMYK": (coded(Image.fromarray(INK).convert("CMYK"), "TIFF"), INK),
    "black on clear": (coded(Image.merge("LA", [Image.fromarray(0 * INK), Image.fromarray(255 - INK)])), INK),
    "LAB": (coded(Image.merge("LAB", [Image.fromarray(INK), *[Image.new("L", (64, 64), 128)] * 2]), "TIFF"), INK),
}


@pytest.mark.parametrize("name", RIGHT)
def test_black_is_black_and_white_is_white(name):
    data, expected = RIGHT[name]
    np.testing.assert_allclose(read(data).astype(int), expected, atol=2)
    assert read(data, channels=3).shape == (64, 64, 3)


@pytest.mark.parametrize("values", [[-1, 1], [0, np.nan], [0, np.inf], [0, 1e6], [-0.5, 0.5]])
def test_values_without_a_known_white_are_refused(values):
    with pytest.raises(ImageError, match="expected from 0 to 1, 255 or 65535"):
        read(tiff(np.array([values], np.float32)))


def white_ink() -> Image.Image:
    image = Image.new("RGBA", (64, 64), (255, 255, 255, 0))
    ImageDraw.Draw(image).line((5, 5, 60, 60), fill=(255, 255, 255, 255), width=4)
    return image


BLANK = {
    "white ink on clear": white_ink(),
    "white ink on clear, gray": white_ink().convert("LA"),
    "a line that vanishes": Image.new("L", (3000, 2), 0),
    "all white": Image.new("L", (64, 64), 255),
    "all black": Image.new("RGB", (64, 64)),
    "all clear": Image.new("RGBA", (64, 64)),
    "gray": Image.new("L", (3, 3), 128),
}


@pytest.mark.parametrize("name", BLANK)
def test_an_image_with_nothing_to_see_is_named(name, tmp_path, caplog):
    BLANK[name].save(tmp_path / "blank.png")
    Image.fromarray(INK).save(tmp_path / "sound.png")
    (tmp_path / "metadata.csv").write_text("file_name,text\nblank.png,tree\nsound.png,water\n")
    assert len(open_dataset(tmp_path)) == 2
    told = [line for line in caplog.messages if "nothing to see" in line]
    assert len(told) == 1 and "1 image of one gray alone" in told[0]
    assert "blank.png" in told[0] and "sound.png" not in told[0]


def test_what_is_wrong_is_named_by_line_before_anything_is_trained(tmp_path):
    Image.fromarray(INK).save(tmp_path / "sound.png")
    (tmp_path / "wrong.tif").write_bytes(tiff(np.array([[0, np.nan]], np.float32)))
    (tmp_path / "metadata.csv").write_text("file_name,text\nsound.png,water\nwrong.tif,tree\n")
    with pytest.raises(DatasetError, match=r"line 3: file 'wrong.tif' has values from nan to nan"):
        open_dataset(tmp_path)


def test_an_image_that_is_exchanged_after_the_check_is_not_taken_for_it(tmp_path):
    Image.fromarray(INK).save(tmp_path / "a.png")
    (tmp_path / "metadata.csv").write_text("file_name,text\na.png,water\n")
    dataset = open_dataset(tmp_path)
    Image.fromarray(255 - INK).save(tmp_path / "a.png")
    with pytest.raises(DatasetError, match="'a.png' was changed after"):
        dataset.images()
    (tmp_path / "a.png").unlink()
    with pytest.raises(DatasetError, match="'a.png' cannot be read"):
        dataset.images()
