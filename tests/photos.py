"""Photos of handwriting as a camera takes them: tilted, in uneven light, with noise, on lined paper."""

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from kanjilab.data.rendering import default_font

PAPER, INK = 235, 35


def glyph(character: str, size_px: int) -> Image.Image:
    """A character in the middle of a square of paper."""
    image = Image.new("L", (size_px, size_px), PAPER)
    font = ImageFont.truetype(str(default_font()), round(size_px * 0.7))
    ImageDraw.Draw(image).text((size_px / 2, size_px / 2), character, font=font, fill=INK, anchor="mm")
    return image


def page(character: str, lined: bool = False) -> Image.Image:
    """One character on a page."""
    image = Image.new("L", (480, 600), PAPER)
    if lined:
        canvas = ImageDraw.Draw(image)
        for y in range(40, 600, 50):
            canvas.line((0, y, 480, y), fill=175, width=2)
    written = glyph(character, 400)
    image.paste(written, (40, 100), written.point(lambda value: 255 if value < 200 else 0))
    return image


def sheet(characters: str, columns: int = 3, frame: int = 120) -> Image.Image:
    """Boxes with a character in each; " " leaves one empty."""
    rows = -(-len(characters) // columns)
    image = Image.new("L", (columns * 180 + 60, rows * 180 + 60), PAPER)
    for number, character in enumerate(characters):
        x, y = 35 + number % columns * 180, 35 + number // columns * 180
        image.paste(glyph(character, 170), (x, y))
        ImageDraw.Draw(image).rectangle((x, y, x + 170, y + 170), outline=frame, width=3)
    return image


def photographed(image: Image.Image, tilt: float = 3, shadow: float = 0.5, noise: float = 5) -> Image.Image:
    """The same in perspective, turned by `tilt` degrees, darker towards a corner, with a sensor's noise."""
    width, height = image.size
    corners = (12, 8, -4, height + 9, width - 18, height - 12, width + 8, -8)
    image = image.transform(image.size, Image.Transform.QUAD, corners, Image.Resampling.BICUBIC, fillcolor=PAPER)
    image = image.rotate(tilt, Image.Resampling.BICUBIC, fillcolor=PAPER)
    x, y = np.meshgrid(np.linspace(0, 1, width), np.linspace(0.5, 1, height))
    light = np.asarray(image) * (1 - shadow * x * y)
    noisy = light + np.random.default_rng(0).normal(0, noise, light.shape)
    return Image.fromarray(noisy.clip(0, 255).astype(np.uint8))
