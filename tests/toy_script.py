"""A toy script whose parts are counted bars, a judge that reads it, and what its glyphs are compared with."""

import numpy as np
import pandas as pd

from kanjilab.data.components import Components, Decomposition, Part
from kanjilab.data.rendering import default_font, draw_font
from kanjilab.evaluation.criteria import Context, Thresholds, judge_hash
from kanjilab.evaluation.judges.nearest_character import Neighbours
from kanjilab.evaluation.prompt_parts import PartMeaning
from kanjilab.evaluation.well_formed import MEASURES, Bounds

PARTS = ("水", "木", "人", "火", "土")  # drawn as one to five bars
LEFT, RIGHT, TOP, BOTTOM = (0.0, 0.0, 0.5, 1.0), (0.5, 0.0, 1.0, 1.0), (0.0, 0.0, 1.0, 0.5), (0.0, 0.5, 1.0, 1.0)
WHOLE = (0.0, 0.0, 1.0, 1.0)
BOXES = {"⿰": (LEFT, RIGHT), "⿱": (TOP, BOTTOM)}
SLOTS = {"⿰": ("left", "right"), "⿱": ("top", "bottom")}
EXISTING = {("⿰", "人", "木"): "休", ("⿰", "水", "木"): "沐", ("⿱", "火", "土"): "灶", ("⿰", "木", "土"): "杜"}
WORDS = ("water", "tree", "person", "fire", "earth")


def glyph(layout: str, *names: str) -> np.ndarray:
    """(128, 128) uint8: each part as many bars as its number, in its box."""
    image = np.full((128, 128), 255, np.uint8)
    for name, (left, top, right, _) in zip(names, BOXES.get(layout, (WHOLE,)), strict=False):
        for bar in range(PARTS.index(name) + 1):
            row = round(128 * top) + 6 + 10 * bar
            image[row : row + 5, round(128 * left) + 6 : round(128 * right) - 6] = 0
    return image


BLOB = np.zeros((128, 128), np.uint8)
DA = np.asarray(draw_font("大", default_font()))


class ToyJudge:
    """Counts bars; takes a black picture for two parts in one place, and a gray one for junk."""

    name, parts, layouts, characters = "A", PARTS, ("⿰", "⿱", "⿻"), tuple("休沐灶杜大")
    part_thresholds, novel_distance, legal_threshold = np.full(5, 0.5, np.float32), 0.1, 0.5

    def look(self, image):
        """Layout, and (part, box) of what is there."""
        dark = image < 128
        if dark.all():
            return "⿻", [("火", WHOLE), ("土", WHOLE)]
        layout = next((sign for sign, gap in (("⿰", dark[:, 60:68]), ("⿱", dark[62:66])) if not gap.any()), "⿻")
        found = []
        for left, top, right, bottom in BOXES.get(layout, (WHOLE,)):
            rows = slice(round(128 * top), round(128 * bottom))
            bars = int(np.diff(dark[rows, round(64 * (left + right))].astype(int), prepend=0).clip(0).sum())
            if 1 <= bars <= 5:
                found.append((PARTS[bars - 1], (left, top, right, bottom)))
        return (layout if found else ""), found

    def part_probabilities(self, images):
        names = [{name for name, _ in self.look(image)[1]} for image in images]
        return np.array([[float(part in own) for part in PARTS] for own in names]).reshape(-1, 5)

    def read(self, images):
        rows = []
        for image in images:
            layout, found = self.look(image)
            known = EXISTING.get((layout, *(name for name, _ in found)))
            clean = float(((image > 50) & (image < 200)).mean() < 0.05)
            rows.append(
                {
                    "parts": tuple(name for name, _ in found),
                    "part_scores": (1.0,) * len(found),
                    "part_boxes": tuple(box for _, box in found),
                    "layout": layout,
                    "layout_probability": 1.0 if found else 0.0,
                    "nearest": known or "大",
                    "codepoint": f"U+{ord(known or '大'):04X}",
                    "distance": 0.0 if known else 0.9,
                    "exists": known is not None,
                    "legal_probability": clean,
                    "legal": clean >= 0.5,
                }
            )
        return pd.DataFrame(rows)


def toy_vectors(captions) -> np.ndarray:
    """Unit vectors that count the five words."""
    counts = np.array([[text.split().count(word) for word in WORDS] for text in captions], np.float32) + 1e-3
    return counts / np.linalg.norm(counts, axis=1, keepdims=True)


def decomposition(character: str, layout: str, *names: str) -> Decomposition:
    places = zip(names, BOXES[layout], SLOTS[layout], strict=True)
    parts = [Part(name, box, slot, False, (n,)) for n, (name, box, slot) in enumerate(places)]
    return Decomposition(layout, (Part(character, WHOLE, "whole", False, (0, 1)), *parts))


TRAINING = [("⿰", "人", "木"), ("⿰", "水", "木"), ("⿰", "火", "人"), ("⿰", "水", "土"), ("⿱", "火", "土")]
CAPTIONS = ["person tree", "water tree", "fire earth", "water earth", "fire"]


def toy_context() -> Context:
    listed = {character: decomposition(character, *pair) for pair, character in EXISTING.items()}
    listed["焱"] = decomposition("焱", "⿰", "火", "木")  # in the list, but unknown to the judge
    wide = dict.fromkeys(MEASURES, (-1e9,)), dict.fromkeys(MEASURES, (1e9,)) | {"gray": (0.02,)}
    return Context(
        Components(PARTS, listed),
        Neighbours.fit(list("休沐大杜"), default_font()),
        Bounds(128, (1.0,), *wide, glyphs=0),
        Thresholds(judge_hash(ToyJudge()), 0.5, 0.5, 0.5, 0.0, 0, {}),
        PartMeaning.fit(CAPTIONS, [pair[1:] for pair in TRAINING], toy_vectors),
        np.stack([glyph(*pair) for pair in TRAINING]),
        tuple("休沐焱池灶"),
    )
