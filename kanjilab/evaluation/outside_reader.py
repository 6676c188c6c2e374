"""A reader from outside: RapidOCR's recogniser of Chinese characters, which knows nothing of this project."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from kanjilab.data.components import load_components
from kanjilab.data.radicals import listed_radical, radical_character
from kanjilab.evaluation.judges.framing import require_glyphs

MARGIN_PX = 16  # of paper around a glyph, as in a line of print
AT_ONCE = 32


class OutsideReader:
    """Reads single characters; of `pip install rapidocr-onnxruntime`, whose models come with it.

    Attributes:
        characters: that it can say; a character outside of them is never read.

    Args:
        threads: that it computes with.
    Raises:
        ImportError: the package is not installed.
    Source: PP-OCRv4 by PaddlePaddle, Apache 2.0, https://github.com/RapidAI/RapidOCR
    """

    def __init__(self, threads: int = 1):
        try:
            from rapidocr_onnxruntime import RapidOCR  # type: ignore[reportMissingImports]
        except ImportError as error:
            raise ImportError(f"the outside reader needs: pip install rapidocr-onnxruntime ({error})") from error
        self._recognise: Any = RapidOCR(intra_op_num_threads=threads).text_rec
        self.characters = frozenset(self._recognise.postprocess_op.character)

    def read(self, images: NDArray[np.uint8]) -> list[str]:
        """What is read in each image, "" for nothing.

        Args:
            images: (N, H, W) uint8, 0 ink to 255 paper.
        """
        margins = ((0, 0), (MARGIN_PX, MARGIN_PX), (MARGIN_PX, MARGIN_PX))
        padded = np.pad(require_glyphs(images), margins, constant_values=255)
        read: list[str] = []
        for start in range(0, len(padded), AT_ONCE):
            pictures = [np.repeat(image[..., None], 3, axis=-1) for image in padded[start : start + AT_ONCE]]
            read += [text for text, _ in self._recognise(pictures)[0]]
        return read

    def reads(self, images: NDArray[np.uint8], characters: Sequence[str]) -> NDArray[np.bool_]:
        """(N,) whether each image is read as its character."""
        return np.array([read == character for read, character in zip(self.read(images), characters, strict=True)])


class OutsideJudge:
    """The outside reader as a judge of parts: it finds those of the character that it reads.

    A simplified Chinese one, which it reads in the place of many others, has its radical alone.
    """

    def __init__(self, reader: OutsideReader | None = None):
        """Loads the reader, unless one is given.

        Raises:
            ImportError: as for `OutsideReader`.
        """
        self._reader, self._components = reader or OutsideReader(), load_components()

    def read(self, images: NDArray[np.uint8]) -> pd.DataFrame:
        """What is read in each image.

        Args:
            images: (N, H, W) uint8, 0 ink to 255 paper.
        Returns:
            N rows: character ("" for nothing), radical ("" for none), parts (tuple of str, the radical first),
            abstain (no kanji was read).
        """
        characters = self._reader.read(images)
        numbers = [listed_radical(character) for character in characters]
        radicals = ["" if number is None else radical_character(number) for number in numbers]
        parts = [self._parts(*pair) if pair[1] else () for pair in zip(characters, radicals, strict=True)]
        abstain = [not radical for radical in radicals]
        return pd.DataFrame({"character": characters, "radical": radicals, "parts": parts, "abstain": abstain})

    def _parts(self, character: str, radical: str) -> tuple[str, ...]:
        found = self._components.of(character)
        return (radical, *(part.element for part in found.parts)) if found else (radical,)
