"""One verdict on a glyph, by one judge that is named: as a line, as a sentence, and as a page with boxes."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from kanjilab.data.part_names import name_of_part
from kanjilab.evaluation.judges.explanation import LAYOUT_WORDS
from kanjilab.evaluation.judges.part_judge import Judge
from kanjilab.widgets.common import escape, png_bytes
from kanjilab.widgets.generation import Request

NEAREST_SHOWN = 5
FILE_NAME_CHARACTERS = 40


def named(part: str) -> str:
    """A part and its English name, where it has one: "水 water"."""
    try:
        return f"{part} {name_of_part(part)}"
    except ValueError:
        return part


def caption_of(reading: Any) -> str:
    """A judge's reading as a line of a few signs: "✓ 魚 王" where the glyph is well-formed, "✗ 魚" where it is not.

    Args:
        reading: row of `Judge.read`.
    """
    return " ".join(["✓" if reading["legal"] else "✗", *reading["parts"]]) + ("" if reading["parts"] else " no part")


def describe(reading: Any, characters: pd.DataFrame, judge: str, expected: Sequence[str] = ()) -> str:
    """What a judge reads, in a few sentences.

    Args:
        reading: row of `Judge.read`.
        characters: the dictionary.
        judge: its name.
        expected: parts that were asked for.
    Returns:
        Such as "Judge B reads 人 person (0.99) and 木 tree (0.99), left and right; well-formed (0.98). It takes the
        glyph for U+4F11 休 (rest), at distance 0.10."
    """
    seen = [
        f"{named(part)} ({score:.2f})" for part, score in zip(reading["parts"], reading["part_scores"], strict=True)
    ]
    layout = LAYOUT_WORDS.get(reading["layout"], "no clear layout")
    legal = "well-formed" if reading["legal"] else "not well-formed"
    text = f"Judge {judge} reads {' and '.join(seen) or 'no known part'}, {layout}; {legal}"
    text += f" ({reading['legal_probability']:.2f}). {_novelty(reading, characters)}"
    if expected:
        found = sum(part in reading["parts"] for part in expected)
        text += f" Of the parts asked for ({' '.join(expected)}) it reads {found} of {len(expected)}."
    return text


def _novelty(reading: Any, characters: pd.DataFrame) -> str:
    known = reading["nearest"] in characters.index
    meanings = "; ".join(characters.loc[reading["nearest"], "meanings"][:3]) if known else ""
    nearest = f"{reading['codepoint']} {reading['nearest']}" + (f" ({meanings})" if meanings else "")
    if reading["exists"]:
        return f"It takes the glyph for {nearest}, at distance {reading['distance']:.2f}."
    return (
        f"It takes the glyph for no listed character; the nearest is {nearest}, at distance {reading['distance']:.2f}."
    )


def advice(readings: pd.DataFrame, expected: Sequence[str], by_parts: bool, earlier: bool) -> str:
    """What came of a drawing, in one judge's eyes, and what to try where nothing passed.

    Args:
        readings: of `Judge.read`, a row for each glyph.
        expected: parts that were asked for.
        by_parts: whether the model can be asked for parts by name.
        earlier: whether a later checkpoint of the run is stored.
    """
    count, formed = len(readings), sum(map(bool, readings["legal"]))
    text = f"{count} drawn; judge B reads {formed} as well-formed."
    whole = [
        legal and set(expected) <= set(parts) for legal, parts in zip(readings["legal"], readings["parts"], strict=True)
    ]
    if any(whole):
        return text
    ways = ["Other noises"] + (["a later checkpoint"] if earlier else [])
    named_none = by_parts and not expected
    ways += ["parts by name, such as “water + bird”"] if named_none else ["fewer words", "another guidance (3 to 7)"]
    missing = "None passed." if not formed else f"None shows all of {' '.join(expected)}."
    return f"{text} {missing} Try {', '.join(ways[:-1])} or {ways[-1]}."


def made_of(request: Request, model: str) -> dict[str, Any]:
    """What a glyph was made from, without paths, which mean nothing elsewhere.

    Args:
        request: with one seed.
        model: label of what drew it.
    """
    sampling = request.sampling
    made = {"prompt": request.prompt, "seed": request.seeds[0], "model": model, "checkpoint": request.step or ""}
    made |= {"steps": sampling.steps, "guidance": sampling.guidance, "sampler": sampling.sampler}
    return made | {"style": sampling.prefix, "negative prompt": sampling.negative_prompt}


def verdict_html(judge: Judge, image: NDArray[np.uint8], sentence: str, made: Mapping[str, Any]) -> str:
    """The glyph with the parts that a judge finds in boxes, what it says, the nearest characters, and downloads.

    Args:
        judge: whose reading.
        image: (H, W) uint8.
        sentence: of `describe`; untrusted.
        made: prompt, seed and whatever else made the glyph, in plain values; untrusted.
    """
    reading: Any = judge.read(image[None]).iloc[0]
    order, distances = judge.nearest(image[None], NEAREST_SHOWN)
    near = [(judge.characters[at], float(far)) for at, far in zip(order[0], distances[0], strict=True)]
    png, prompt = png_bytes(image), str(made["prompt"])
    boxes = "".join(_box(place, box) for place, box in enumerate(reading["part_boxes"]))
    keys = " ".join(
        f'<span class="key{place}">{escape(named(part))}</span>' for place, part in enumerate(reading["parts"])
    )
    nearest = "".join(
        f'<li><b lang="ja">{escape(name)}</b> <span class="soft">{far:.2f}</span></li>' for name, far in near
    )
    settings = " · ".join(f"{name} {value}" for name, value in made.items() if name != "prompt" and value != "")
    return (
        f'<div class="verdict"><figure>{_image(png, f"{prompt}: {sentence}")}'
        f'<svg viewBox="0 0 1 1" aria-hidden="true">{boxes}</svg></figure><div>'
        f'<h2 lang="ja">{escape(prompt)}{" · " if keys else ""}{keys}</h2><p lang="ja">{escape(sentence)}</p>'
        f'<p class="soft">Nearest real characters, by distance:</p><ul>{nearest}</ul>'
        f'<p class="soft">{escape(settings)}</p>'
        f"<p>Download {_downloads(png, _certificate(judge, reading, near, made), made)}</p></div></div>"
    )


def _image(png: bytes, alternative: str) -> str:
    return f'<img src="data:image/png;base64,{base64.b64encode(png).decode()}" alt="{escape(alternative)}">'


def _box(place: int, box: Sequence[float]) -> str:
    left, top, right, bottom = box
    return (
        f'<rect class="p{place}" x="{left:.3f}" y="{top:.3f}" width="{right - left:.3f}" height="{bottom - top:.3f}"/>'
    )


def _certificate(judge: Judge, reading: Any, near: list[tuple[str, float]], made: Mapping[str, Any]) -> dict[str, Any]:
    """What is known of a glyph, in plain values."""
    parts = [
        {"part": part, "score": float(score)}
        for part, score in zip(reading["parts"], reading["part_scores"], strict=True)
    ]
    return {
        "made": dict(made),
        "judge": judge.name,
        "parts": parts,
        "layout": reading["layout"],
        "well_formed": bool(reading["legal"]),
        "well_formed_probability": float(reading["legal_probability"]),
        "exists": bool(reading["exists"]),
        "nearest": [{"character": name, "distance": far} for name, far in near],
    }


def _downloads(png: bytes, certificate: Mapping[str, Any], made: Mapping[str, Any]) -> str:
    words = "-".join("".join(sign if sign.isalnum() else " " for sign in str(made["prompt"])).split())
    name = f"{words[:FILE_NAME_CHARACTERS] or 'glyph'}-{made['seed']}"
    text = json.dumps(certificate, ensure_ascii=False, indent=1).encode()
    files = {"PNG": ("png", "image/png", png), "certificate": ("json", "application/json", text)}
    return " · ".join(
        f'<a download="{escape(name)}.{kind}" href="data:{media};base64,{base64.b64encode(data).decode()}">{label}</a>'
        for label, (kind, media, data) in files.items()
    )
