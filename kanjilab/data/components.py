"""Components: which parts a character has, in which layout, and where each of them is.

`decompose` reads them from KanjiVG's groups. The package carries the whole list (`load_components`), so that no
stroke file is needed to use it.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

from kanjilab.core.storage import PACKAGE_WEIGHTS
from kanjilab.data.kanjivg import KVG, VIEW_BOX, KanjiVG
from kanjilab.data.rendering import GlyphError

Box = tuple[float, float, float, float]  # left, top, right, bottom, each in [0, 1]

LAYOUTS = ("⿰", "⿱", "⿸", "⿺", "⿴", "⿻")  # the last: one piece, or pieces that overlap
SLOTS = ("left", "right", "top", "bottom", "outside", "inside", "whole")
COMPONENTS_FILE = PACKAGE_WEIGHTS / "judges" / "components.json"
CREDIT = (
    "Decompositions from KanjiVG r20250816, (c) Ulrich Apel, CC BY-SA 3.0, https://kanjivg.tagaini.net; "
    "this adaptation is licensed CC BY-SA 4.0."
)
CHARACTERS_MIN = 15  # with a part, for it to be one of the vocabulary
PART_TEXT = re.compile(r"(\S+?)([0-9-])([no])([-\d]+),([-\d]+),(\d+),(\d+);([\d,-]+)")
ATTRIBUTES = f"{{{KVG}}}"  # their namespace, as ElementTree spells it
STROKES_MIN = 2  # a single dot or line is in everything, scribbles included

LAYOUT_OF_POSITION = {
    "left": "⿰", "right": "⿰", "top": "⿱", "bottom": "⿱", "tare": "⿸", "tarec": "⿸",
    "nyo": "⿺", "nyoc": "⿺", "kamae": "⿴", "kamaec": "⿴", "⿵A": "⿴", "⿵B": "⿴", "⿶1": "⿴", "⿶2": "⿴",
}  # fmt: skip
SLOT_OF_POSITION = {
    "left": "left", "right": "right", "top": "top", "bottom": "bottom", "tare": "outside", "nyo": "outside",
    "kamae": "outside", "tarec": "inside", "nyoc": "inside", "kamaec": "inside", "⿵A": "outside", "⿵B": "inside",
    "⿶1": "outside", "⿶2": "inside",
}  # fmt: skip

# One name for what looks alike or is the same sign in another place; KanjiVG's `original` says most of it.
NORMAL_FORMS = {
    "辶": "辵", "⻌": "辵", "艹": "艸", "氵": "水", "氺": "水", "扌": "手", "忄": "心", "⺗": "心", "㣺": "心",
    "亻": "人", "犭": "犬", "⺨": "犬", "礻": "示", "衤": "衣", "灬": "火", "刂": "刀", "攵": "攴", "罒": "网",
    "⺤": "爪", "爫": "爪", "⺌": "小", "耂": "老", "𦥑": "臼", "⻖": "阜", "⻏": "邑", "⻞": "食", "飠": "食",
    "⺕": "彐", "彑": "彐", "覀": "西", "襾": "西", "⺮": "竹", "糹": "糸", "訁": "言", "釒": "金", "牜": "牛",
    "⺷": "羊", "⺶": "羊", "肀": "聿", "黑": "黒", "黃": "黄", "靑": "青", "眞": "真", "匸": "匚", "夊": "夂",
    "王": "玉", "肉": "月", "士": "土", "曰": "日", "巳": "己", "已": "己", "毋": "母", "旡": "无", "⺍": "⺍",
    "ツ": "⺍", "𧾷": "足", "⻊": "足", "丬": "爿", "⺦": "爿", "戶": "戸", "户": "戸", "册": "冊", "亀": "龜",
    "⺫": "网", "⺼": "月", "⺡": "水", "⺘": "手", "⺖": "心", "⺅": "人", "⺾": "艸", "⻍": "辵", "⺭": "示",
    "⻂": "衣",
}  # fmt: skip
# Shapes that KanjiVG derives from a sign that they do not look like: they keep their own name.
KEEPS_ITS_NAME = frozenset("儿八𠂊冫川卩己土入人丷⺍匚戍戌厶夹戋兹竜麦歯国柬東斉㔾円")
HELD_OUT_ONE_IN = 20  # characters


def is_held_out(character: str) -> bool:
    """Whether the judges were trained without a character's parts, layout and well-formedness, and without its pieces.

    This holds for one in twenty, by its hash. The recogniser has every character among its classes, these too.
    """
    return hashlib.sha256(character.encode()).digest()[0] % HELD_OUT_ONE_IN == 0


def normal_form(element: str) -> str:
    """The name under which a part is listed: 水 for 氵, 月 for 肉 (one shape), 玉 for 王."""
    return NORMAL_FORMS.get(element, element)


@dataclass(frozen=True)
class Part:
    """A part at its place in a character.

    Attributes:
        element: its normal form.
        box: of its strokes' points (left, top, right, bottom) in [0, 1] of KanjiVG's square.
        slot: one of `SLOTS`; of a nested part, its place within what it is nested in, or "".
        nested: whether it is within another part of the character.
        strokes: numbers of its strokes, from 0, in writing order.
    """

    element: str
    box: Box
    slot: str
    nested: bool
    strokes: tuple[int, ...]


@dataclass(frozen=True)
class Decomposition:
    """Layout (one of `LAYOUTS`) and parts of a character: outer ones first, then the nested."""

    layout: str
    parts: tuple[Part, ...]

    @property
    def outer(self) -> tuple[Part, ...]:
        """The parts that make up the layout: neither nested, nor the whole character itself."""
        return tuple(part for part in self.parts if not part.nested and part.slot != "whole")

    @property
    def frame(self) -> Box:
        """Box of all strokes."""
        return union_box([part.box for part in self.parts])


def consecutive_runs(numbers: Iterable[int]) -> list[list[int]]:
    """[[first, last], ...]: ascending whole numbers as runs without gaps, both ends included."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and runs[-1][1] == number - 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return runs


def union_box(boxes: Iterable[Box]) -> Box:
    """The smallest box that holds all of them."""
    left, top, right, bottom = zip(*boxes, strict=True)
    return min(left), min(top), max(right), max(bottom)


@dataclass
class _Group:
    """One group of a stroke file, pieces of a split group joined."""

    element: str
    position: str
    strokes: list[int]
    children: list[_Group]
    bare: bool  # holds strokes of its own, outside any child


def decompose(character: str, kanjivg: KanjiVG) -> Decomposition:
    """Parts and layout of a character; the whole character is among its parts, in slot "whole".

    Raises:
        GlyphError: KanjiVG has no file for it, or one without strokes.
    """
    strokes = kanjivg.strokes(character)
    if not any(strokes):
        raise GlyphError(f"KanjiVG has no strokes for {character}")
    root = _read_group(_root_group(character, kanjivg), iter(range(len(strokes))))
    layout, slots = _layout(root, strokes)
    parts = [_part(normal_form(character), root.strokes, "whole", False, strokes)]
    for child, slot in zip(root.children, slots, strict=True):
        outer = bool(child.element and slot)
        if child.element:
            parts.append(_part(child.element, child.strokes, slot, not outer, strokes))
        parts += _nested_parts(child, strokes)
    return Decomposition(layout, tuple(sorted(parts, key=lambda part: part.nested)))


def _root_group(character: str, kanjivg: KanjiVG) -> Any:
    """The group of the whole character, as an XML element."""
    groups = [node for node in kanjivg.drawing(character).iter() if str(node.tag).endswith("}g")]
    return next(node for node in groups if "StrokePaths" not in node.get("id", ""))


def _read_group(node: Any, counter: Any) -> _Group:
    """A group of the file as a tree; `counter` numbers the strokes in the file's order."""
    group = _Group(_element(node.attrib), node.get(ATTRIBUTES + "position", ""), [], [], False)
    pieces: dict[tuple[str, str], _Group] = {}
    for child in node:
        if str(child.tag).endswith("path"):
            group.strokes.append(next(counter))
            group.bare = True
        elif str(child.tag).endswith("}g"):
            read = _read_group(child, counter)
            group.strokes += read.strokes
            key = (read.element, child.get(ATTRIBUTES + "number", "")) if child.get(ATTRIBUTES + "part") else None
            if key is not None and key in pieces:
                _join(pieces[key], read)
                continue
            group.children.append(read)
            if key is not None:
                pieces[key] = read
    return group


def _join(first: _Group, second: _Group) -> None:
    first.strokes += second.strokes
    first.children += second.children
    first.position = first.position or second.position
    first.bare |= second.bare


def _element(attributes: Mapping[str, str]) -> str:
    element, original = attributes.get(ATTRIBUTES + "element", ""), attributes.get(ATTRIBUTES + "original", "")
    if original and element not in KEEPS_ITS_NAME and element not in NORMAL_FORMS:
        return normal_form(original)
    return normal_form(element)


def _part(element: str, numbers: Sequence[int], slot: str, nested: bool, strokes: Sequence[Sequence]) -> Part:
    return Part(element, _box(numbers, strokes), slot, nested, tuple(sorted(numbers)))


def _box(numbers: Iterable[int], strokes: Sequence[Sequence]) -> Box:
    points = [point for number in numbers for point in strokes[number]]
    across, down = [x / VIEW_BOX for x, _ in points], [y / VIEW_BOX for _, y in points]
    return min(across), min(down), max(across), max(down)


def _nested_parts(group: _Group, strokes: Sequence[Sequence]) -> list[Part]:
    parts = []
    for child in group.children:
        if child.element:
            slot = SLOT_OF_POSITION.get(child.position, "")
            parts.append(_part(child.element, child.strokes, slot, True, strokes))
        parts += _nested_parts(child, strokes)
    return parts


def _layout(root: _Group, strokes: Sequence[Sequence]) -> tuple[str, list[str]]:
    """Layout of a character and the slot of each of its root's children ("" for one that has none)."""
    positions = [child.position for child in root.children]
    named = next((LAYOUT_OF_POSITION[position] for position in positions if position in LAYOUT_OF_POSITION), None)
    if named is None:
        return _layout_by_boxes(root, strokes)
    slots = [SLOT_OF_POSITION.get(position, "") for position in positions]
    if named in "⿸⿺⿴":  # what is inside a frame often carries no position
        slots = [slot if slot == "outside" else "inside" for slot in slots]
    return named, slots


def _layout_by_boxes(root: _Group, strokes: Sequence[Sequence]) -> tuple[str, list[str]]:
    """The layout of children without positions, if two of them make up everything and do not overlap."""
    if root.bare or len(root.children) != 2 or not all(child.element for child in root.children):
        return "⿻", [""] * len(root.children)
    boxes = [_box(child.strokes, strokes) for child in root.children]
    for layout, low, names in (("⿰", 0, ("left", "right")), ("⿱", 1, ("top", "bottom"))):
        first, second = sorted(range(2), key=lambda index: boxes[index][low])
        overlap = boxes[first][low + 2] - boxes[second][low]
        if overlap < 0.05:  # of the square: strokes may reach over a little
            slots = {first: names[0], second: names[1]}
            return layout, [slots[0], slots[1]]
    return "⿻", ["", ""]


@dataclass(frozen=True)
class Components:
    """Decompositions of many characters.

    Attributes:
        parts: the vocabulary, the parts that occur often enough to learn them, most frequent first.
        decompositions: by character.
    """

    parts: tuple[str, ...]
    decompositions: Mapping[str, Decomposition]

    def of(self, character: str) -> Decomposition | None:
        """Layout and parts of a character; None where the list does not have it."""
        return self.decompositions.get(character)

    def exists(self, layout: str, pair: tuple[str, str]) -> list[str]:
        """Characters of exactly these two parts in this layout, in this order (first slot, second slot)."""
        return list(self._pairs.get((layout, normal_form(pair[0]), normal_form(pair[1])), ()))

    def contains(self, outer: str, inner: str) -> bool:
        """Whether one part is a piece of another: 口 of 言."""
        return inner in self._pieces.get(outer, ())

    @cached_property
    def _pairs(self) -> dict[tuple[str, str, str], list[str]]:
        found: dict[tuple[str, str, str], list[str]] = {}
        for character, decomposition in self.decompositions.items():
            outer = sorted(decomposition.outer, key=lambda part: SLOTS.index(part.slot))
            if len(outer) == 2:
                found.setdefault((decomposition.layout, outer[0].element, outer[1].element), []).append(character)
        return found

    @cached_property
    def _pieces(self) -> dict[str, set[str]]:
        """Names of the pieces of every part, by strokes: those whose strokes are some of its own."""
        pieces: dict[str, set[str]] = {}
        for decomposition in self.decompositions.values():
            for outer in decomposition.parts:
                own = set(outer.strokes)
                inner = {part.element for part in decomposition.parts if own > set(part.strokes)}
                pieces.setdefault(outer.element, set()).update(inner - {outer.element})
        return pieces


def build_components(kanjivg: KanjiVG, learnable: Iterable[str]) -> Components:
    """Decompose every Han character of KanjiVG.

    Args:
        kanjivg: the stroke files.
        learnable: the characters among which a part must occur often to enter the vocabulary.
    """
    listed = {character: decompose(character, kanjivg) for character in filter(_is_han, sorted(kanjivg.characters()))}
    counts: Counter[str] = Counter()
    for character in sorted(set(learnable) & listed.keys()):
        names = {part.element for part in listed[character].parts if len(part.strokes) >= STROKES_MIN}
        counts.update(sorted(names))
    parts = [name for name, count in counts.most_common() if count >= CHARACTERS_MIN]
    return Components(tuple(parts), listed)


def _is_han(character: str) -> bool:
    return 0x3400 <= ord(character) <= 0x9FFF or 0x20000 <= ord(character) <= 0x3FFFF


def components_to_json(components: Components) -> dict[str, Any]:
    """Everything in plain values: boxes in thousandths, strokes as first and last of each run."""
    characters = {
        character: decomposition.layout + " " + " ".join(_part_text(part) for part in decomposition.parts)
        for character, decomposition in components.decompositions.items()
    }
    return {"credit": CREDIT, "parts": list(components.parts), "characters": characters}


def _part_text(part: Part) -> str:
    box = ",".join(str(round(1000 * value)) for value in part.box)
    slot = str(SLOTS.index(part.slot)) if part.slot else "-"
    runs = ",".join(f"{first}-{last}" for first, last in consecutive_runs(part.strokes))
    return f"{part.element}{slot}{'n' if part.nested else 'o'}{box};{runs}"


def _part_of_text(text: str) -> Part:
    if (match := PART_TEXT.fullmatch(text)) is None:
        raise ValueError(f"expected a part such as 人0o0,0,300,1000;0-1, got {text!r}")
    left, top, right, bottom = (int(value) / 1000 for value in match.groups()[3:7])
    strokes = [run.split("-") for run in match[8].split(",")]
    numbers = tuple(number for first, last in strokes for number in range(int(first), int(last) + 1))
    slot = "" if match[2] == "-" else SLOTS[int(match[2])]
    return Part(match[1], (left, top, right, bottom), slot, match[3] == "n", numbers)


@cache
def load_components(path: Path = COMPONENTS_FILE) -> Components:
    """The stored list, a JSON file of `components_to_json`; read once per process.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file does not hold such a list.
    Source: KanjiVG, Ulrich Apel, CC BY-SA 3.0.
    """
    content = json.loads(Path(path).read_text(encoding="utf-8"))
    decompositions = {}
    for character, text in content["characters"].items():
        layout, *parts = text.split(" ")
        decompositions[character] = Decomposition(layout, tuple(_part_of_text(part) for part in parts))
    return Components(tuple(content["parts"]), decompositions)
