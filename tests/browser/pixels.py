"""What stands in a picture on the page."""

import numpy as np
from playwright.sync_api import Locator

from .lab import wait_until

READ = """async image => {
  await image.decode();
  const canvas = new OffscreenCanvas(image.naturalWidth, image.naturalHeight);
  const context = canvas.getContext('2d');
  context.drawImage(image, 0, 0);
  const { data } = context.getImageData(0, 0, canvas.width, canvas.height);
  return [canvas.height, canvas.width, ...data.filter((_, at) => at % 4 === 0)];
}"""

PAINTED = """canvases => canvases.length && canvases.every(canvas => canvas.getContext('2d')
  .getImageData(0, 0, canvas.width, canvas.height).data.some(value => value))"""
# Whether a judge has read every glyph of a comparator.
READ_BY_JUDGE = "[...document.querySelectorAll('.reading')].every(at => !['…', ''].includes(at.textContent))"


def wait_painted(canvases: Locator) -> None:
    """Wait until canvases are there and each has a picture, which is decoded after its canvas is made."""
    wait_until(lambda: bool(canvases.evaluate_all(PAINTED)), "pictures on all canvases")


def pixels(image: Locator) -> np.ndarray:
    """(H, W) uint8, the red of an <img> as the browser decoded it."""
    height, width, *values = image.evaluate(READ)
    return np.array(values, np.uint8).reshape(height, width)
