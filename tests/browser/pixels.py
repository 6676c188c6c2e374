"""What stands in a picture on the page."""

import numpy as np
from playwright.sync_api import Locator

READ = """async image => {
  await image.decode();
  const canvas = new OffscreenCanvas(image.naturalWidth, image.naturalHeight);
  const context = canvas.getContext('2d');
  context.drawImage(image, 0, 0);
  const { data } = context.getImageData(0, 0, canvas.width, canvas.height);
  return [canvas.height, canvas.width, ...data.filter((_, at) => at % 4 === 0)];
}"""


def pixels(image: Locator) -> np.ndarray:
    """(H, W) uint8, the red of an <img> as the browser decoded it."""
    height, width, *values = image.evaluate(READ)
    return np.array(values, np.uint8).reshape(height, width)
