"""Radicals: where they are in a character, and how evenly a set of characters covers them."""

import unicodedata
from bisect import bisect_right
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from typing import Any

import numpy as np
import pandas as pd

from kanjilab.data.dictionary import rows_of

RADICALS = 214
FIRST_KANGXI_CODEPOINT = 0x2F00
RADICALS_WANTED = 16
FIRST_UNIFIED, LAST_UNIFIED = "\u4e00", "\u9fa5"


@dataclass(frozen=True)
class LeftForm:
    """A radical on the left of a character: classical number, its shape there, strokes of it, meaning."""

    number: int
    form: str
    strokes: tuple[int, ...]
    meaning: str


# In the order of how many characters have them on the left (KANJIDIC2 drawn in IPAexGothic).
LEFT_FORMS = (
    LeftForm(85, "氵", (3,), "water"),
    LeftForm(75, "木", (4,), "tree"),
    LeftForm(64, "扌", (3, 4), "hand"),  # 4 for 龵, as in 拜
    LeftForm(9, "亻", (2,), "person"),
    LeftForm(30, "口", (3,), "mouth"),
    LeftForm(167, "金", (8,), "metal"),
    LeftForm(120, "糸", (6,), "thread"),
    LeftForm(61, "忄", (3,), "heart"),
    LeftForm(149, "言", (7,), "speech"),
    LeftForm(38, "女", (3,), "woman"),
    LeftForm(142, "虫", (6,), "insect"),
    LeftForm(32, "土", (3,), "earth"),
    LeftForm(130, "月", (4,), "flesh"),
    LeftForm(96, "王", (4,), "jewel"),
    LeftForm(195, "魚", (11,), "fish"),
    LeftForm(86, "火", (4,), "fire"),
    LeftForm(157, "足", (7,), "foot"),
    LeftForm(112, "石", (5,), "stone"),
)
BY_NUMBER = {left.number: left for left in LEFT_FORMS}
RADICALS16 = tuple(left.number for left in LEFT_FORMS[:RADICALS_WANTED])
# SKIP splits these after as many strokes as the left form has, yet the left part is not that form.
NOT_ON_THE_LEFT = frozenset(
    "以"  # one shape, no parts
    "从"  # a whole person on either side
    "修倏倐"  # 攸 is there, with a person of its own
    "灎"  # 澧 is there
    "纇"  # 糸 is under 米
    "㣺"  # the radical heart itself
)


def radical_character(number: int) -> str:
    """The classical radical as an ordinary character, such as 水 for 85.

    Raises:
        ValueError: a number outside 1 to 214.
    Source: Unicode, block Kangxi Radicals.
    """
    if not 1 <= number <= RADICALS:
        raise ValueError(f"radical must be 1 to {RADICALS}, got {number}")
    return unicodedata.normalize("NFKC", chr(FIRST_KANGXI_CODEPOINT + number - 1))


def listed_radical(character: str) -> int | None:
    """The radical under which Unicode lists a Han character, simplified Chinese ones too (铜: 167), by its place.

    Args:
        character: one character.
    Returns:
        1 to 214; None for what is outside the first block, U+4E00 to U+9FA5, which is ordered by radical and starts
        each section with the radical itself. Of KANJIDIC2's characters there all but 14 of 12,559 are as it says.
    Source: Unicode, block CJK Unified Ideographs.
    """
    inside = len(character) == 1 and FIRST_UNIFIED <= character <= LAST_UNIFIED
    return bisect_right(_sections(), character) if inside else None


@cache
def _sections() -> list[str]:
    return [radical_character(number) for number in range(1, RADICALS + 1)]


def visible_position(character: str, radical: int, skip: str | None) -> str:
    """Where in a character its classical radical is, as far as the dictionary shows it.

    Args:
        character: the character.
        radical: classical number, 1 to 214.
        skip: SKIP code, such as "1-3-4".
    Returns:
        "left" where the character divides left from right after exactly the strokes of one of the
        18 known left forms; else the kind of layout: "beside" (left and right, the radical
        elsewhere or unknown), "above or below", "around", "whole", or "unknown".
    Source: SKIP codes by Jack Halpern, in KANJIDIC2; CC BY-SA 4.0.
    """
    layout, _, rest = (skip or "").partition("-")
    if layout == "1" and radical in BY_NUMBER and character not in NOT_ON_THE_LEFT:
        if int(rest.split("-")[0]) in BY_NUMBER[radical].strokes:
            return "left"
    return {"1": "beside", "2": "above or below", "3": "around", "4": "whole"}.get(layout, "unknown")


def left_radical(row: Any) -> int | None:
    """The radical's number if it is on the left, else None.

    Args:
        row: a row of the character table (as from `itertuples`, or a Series), indexed by character.
    """
    character, radical = str(row.Index if hasattr(row, "Index") else row.name), int(row.radical)
    return radical if visible_position(character, radical, row.skip) == "left" else None


def with_radicals(characters: pd.DataFrame) -> pd.DataFrame:
    """A copy with the columns radical_character and position (see `visible_position`)."""
    return characters.assign(
        radical_character=[radical_character(number) for number in characters["radical"]],
        position=[visible_position(row.Index, row.radical, row.skip) for row in rows_of(characters)],
    )


def balance_entropy(counts: Mapping[Any, int] | Sequence[int] | pd.Series) -> float:
    """Shannon entropy of counts: log2(n) for n equal ones, 0 for a single one.

    Args:
        counts: non-negative numbers, at least one of them positive.
    Returns:
        Entropy in bits.
    Raises:
        ValueError: a negative count, or nothing counted.
    Source: Shannon 1948.
    """
    values = np.asarray(list(counts.values()) if isinstance(counts, Mapping) else list(counts), dtype=np.float64)
    if (values < 0).any() or values.sum() <= 0:
        raise ValueError(f"counts must be >= 0 with a positive sum, got {values.tolist()}")
    shares = values[values > 0] / values.sum()
    return float(-(shares * np.log2(shares)).sum()) + 0.0  # + 0.0 turns -0.0 into 0.0


@dataclass(frozen=True)
class BalanceReport:
    """Counts of a selection by radical and by where that radical shows, with their entropies in bits."""

    by_radical: dict[str, int]
    by_position: dict[str, int]
    left_by_radical: dict[str, int]
    radical_bits: float
    position_bits: float

    def to_json(self) -> dict[str, Any]:
        """Plain values for a JSON file."""
        return asdict(self)


def balance_report(selected: pd.DataFrame) -> BalanceReport:
    """Count a selection.

    Args:
        selected: rows with radical_character and position, as the rules return them.
    Raises:
        ValueError: no rows.
    """
    by_radical = Counter(selected["radical_character"])
    by_position = Counter(selected["position"])
    left = Counter(row.radical_character for row in rows_of(selected) if row.position == "left")
    return BalanceReport(
        by_radical=dict(by_radical),
        by_position=dict(by_position.most_common()),
        left_by_radical={radical: left[radical] for radical in by_radical},
        radical_bits=balance_entropy(by_radical),
        position_bits=balance_entropy(by_position),
    )
