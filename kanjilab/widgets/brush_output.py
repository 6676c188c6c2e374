"""What the brush panel shows and hands out: styles in a row, glyphs to save, and the calls that write them."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from kanjilab.experiments.writing import TRACING, WRITING, writing_prompt
from kanjilab.export.page import Place, page_picture, page_svg
from kanjilab.models.conditioning import Prompt
from kanjilab.models.diffusion import LatentDiffusion
from kanjilab.models.sampling import Sampling
from kanjilab.widgets.common import Code, download_link, escape, python_call


@dataclass(frozen=True)
class Tile:
    """One of the glyphs in the row.

    Args:
        style: caption of a style.
        toward: another; "" for none.
        share: how far to go towards it, 0 to 1.
    """

    style: str
    toward: str = ""
    share: float = 0.0

    @property
    def caption(self) -> str:
        """What is shown below it."""
        return f"{1 - self.share:.0%} {self.style} + {self.share:.0%} {self.toward}" if self.toward else self.style

    def prompt(
        self,
        base: LatentDiffusion,
        skeleton: NDArray[np.bool_] | None = None,
        index: int = 0,
        typed: NDArray[np.bool_] | None = None,
    ) -> Prompt:
        """What its glyph is asked for by.

        Args:
            base, skeleton, index, typed: as for `writing_prompt`.
        """
        return writing_prompt(base, self.style, skeleton, index, typed, self.toward, self.share)


def code_of(base: str, precision: str, led_by: Path | str, tiles: Sequence[Tile], seed: int, sampling: Sampling) -> str:
    """The calls that write one skeleton in some styles.

    Args:
        base: name or folder.
        precision: in which it is loaded.
        led_by: the picture of what was drawn, or what was typed.
        tiles: the styles.
        seed: of the noise.
        sampling: how.
    """
    is_picture = isinstance(led_by, Path)
    usual = sampling == (TRACING if is_picture else WRITING)
    if is_picture:
        skeleton = f"np.asarray({python_call('Image.open', str(led_by))}) < 128"
        led = {"skeleton": Code("lines")}
    else:
        skeleton = python_call("typed_skeleton", led_by)
        led = {"index": Code(python_call("known_index", Code("base"), led_by)), "typed": Code("lines")}
    lines = ["import numpy as np", "from PIL import Image", ""] if is_picture else []
    names = "write, writing_prompt" if is_picture else "known_index, typed_skeleton, write, writing_prompt"
    lines += [f"from kanjilab.experiments.writing import {names}", "from kanjilab.models.loading import load_base"]
    lines += [] if usual else ["from kanjilab.models.sampling import Sampling"]
    lines += ["", f"base = {python_call('load_base', base, precision)}", f"lines = {skeleton}", "prompts = ["]
    for tile in tiles:
        mixed = {"toward": tile.toward, "share": tile.share} if tile.toward else {}
        lines.append(f"    {python_call('writing_prompt', Code('base'), tile.style, **led, **mixed)},")
    options = ({"seed": seed} if seed else {}) | ({} if usual else {"sampling": sampling})
    call = python_call("write", Code("base"), Code("prompts"), **options)
    return "\n".join([*lines, "]", f"images = {call}  # (N, 128, 128) uint8"])


def page_html(images: NDArray[np.uint8], places: Sequence[Place], text: str, style: str) -> str:
    """Glyphs as outlines, and links that save them as PNG and SVG.

    Args:
        images: (N, 128, 128) uint8.
        places: N of `places_of`.
        text: what is written; untrusted.
        style: its caption; untrusted.
    """
    buffer, title = io.BytesIO(), f"{text} ({style})"
    page_picture(images, places).save(buffer, "PNG", optimize=True)
    svg = page_svg(images, places, title).encode()
    name = "-".join("".join(sign if sign.isalnum() else " " for sign in text).split())[:40] or "glyph"
    links = download_link(f"{name}.png", "image/png", buffer.getvalue())
    links += " · " + download_link(f"{name}.svg", "image/svg+xml", svg)
    data = base64.b64encode(svg).decode()
    return figure_html(f'<img src="data:image/svg+xml;base64,{data}" alt="{escape(title)}">', style, f"Save {links}")


def figure_html(picture: str, caption: str, links: str = "") -> str:
    """A picture with its caption, and links beside it.

    Args:
        picture: HTML.
        caption: untrusted.
        links: HTML.
    """
    return f'<figure>{picture}<figcaption>{escape(caption)}<span class="soft">{links}</span></figcaption></figure>'
