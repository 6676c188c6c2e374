"""What was read of a person's hand: every cleaned glyph above its skeleton."""

from __future__ import annotations

import numpy as np
from PIL import Image

from kanjilab.data.handwriting import Hand
from kanjilab.data.skeleton import skeletons_of

COLUMNS = 8


def hand_sheet(hand: Hand) -> Image.Image:
    """A picture of mode L: rows of glyphs, each row with that of their skeletons below it."""
    lines = np.where(skeletons_of(hand.images), 0, 255).astype(np.uint8)
    count, side = len(hand.images), hand.images.shape[1]
    rows = -(-count // COLUMNS)
    columns = min(count, COLUMNS)
    sheet = np.full((rows, 2, side, columns, side), 255, np.uint8)
    for number in range(count):
        row, column = divmod(number, columns)
        sheet[row, 0, :, column], sheet[row, 1, :, column] = hand.images[number], lines[number]
    return Image.fromarray(sheet.reshape(rows * 2 * side, columns * side))
