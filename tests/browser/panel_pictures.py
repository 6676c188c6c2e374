"""Draws figures/panel_*: pictures of the panels in JupyterLab's light theme, and of three that move.

python -m tests.browser.panel_pictures              all of them (some minutes)
python -m tests.browser.panel_pictures brush        those whose names begin so
"""

import io
import json
import re
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from PIL import Image
from playwright.sync_api import Browser, Locator, expect, sync_playwright

from kanjilab.models.loading import load_base
from kanjilab.training.presets import TRACING
from kanjilab.viz.picture_files import write_picture
from tests.browser.conftest import chromium
from tests.browser.lab import Lab, NotebookPage
from tests.browser.pixels import READ_BY_JUDGE, wait_painted

ROOT = Path(__file__).parents[2]
FIGURES = ROOT / "figures"
RUN = FIGURES / "runs" / "demo-left16" / "run"
STUDY = "settings-steps"
SLOW_MS = 900_000
COLOURS = 96  # of a still
HOLD_MS = 2_500  # the last frame
LUCK = [  # strokes of 吉, in px of the skeleton
    [(30, 38), (99, 36)],
    [(64, 12), (64, 59)],
    [(24, 61), (105, 59)],
    [(40, 71), (38, 110)],
    [(40, 71), (93, 71), (90, 109)],
    [(39, 109), (90, 109)],
]
Moving = tuple[list[Image.Image], list[int], dict[str, Any]]


class Studio:
    """A server and a browser, and panels in them.

    Args:
        folder: for what the server writes.
        browser: Chromium.
    """

    def __init__(self, folder: Path, browser: Browser):
        self.folder, self.browser = folder, browser
        self.lab = Lab(folder)

    def show(self, call: str, width: int, scale: float) -> Locator:
        """The panel that a call gives, alone in a wide window.

        Args:
            call: Python, with the name of a panel.
            width: of the window, in px of the page.
            scale: px of the picture for one of the page.
        """
        window = self.browser.new_context(viewport={"width": width, "height": 1500}, device_scale_factor=scale)
        page = window.new_page()
        page.set_default_timeout(SLOW_MS)
        source = f"from pathlib import Path\nfrom kanjilab.widgets import *\n{call}"
        notebook = NotebookPage(self.lab, page, self.lab.add_notebook([source]), self.folder)
        notebook.use_theme("Light")
        notebook.command("application:toggle-left-area")
        notebook.run_all()
        panel = notebook.output(0).locator(".kanjilab-panel, .kanjilab-ablation").first
        panel.wait_for()
        return panel


def picture_of(panel: Locator, bottom: Locator | None = None) -> Image.Image:
    """What a panel shows, down to the lower edge of `bottom`."""
    panel.page.mouse.move(1, 1)
    image = Image.open(io.BytesIO(panel.screenshot(animations="disabled"))).convert("RGB")
    if bottom is None:
        return image
    whole, last = panel.bounding_box(), bottom.bounding_box()
    assert whole and last
    scale = image.width / whole["width"]  # not by the heights: a panel may still grow at its foot
    lower_edge = round(scale * (last["y"] + last["height"] - whole["y"]))
    return image.crop((0, 0, image.width, min(image.height, lower_edge)))


def comparator(studio: Studio) -> tuple[Image.Image, dict[str, Any]]:
    """Prompts and seeds in rows, with the readings of judge B; one glyph pinned."""
    call = (
        f'StripComparator({{"demo": Path({str(RUN)!r})}}, prompts=["fish", "iron", "queen"], seeds=[0, 1], judge="B")'
    )
    panel = studio.show(call, 1150, 2)
    cells, readings = panel.locator("button.cell"), panel.locator(".reading")
    readings.first.wait_for()
    panel.page.wait_for_function(READ_BY_JUDGE)
    wait_painted(cells.locator("canvas"))
    columns = readings.count() // 6
    cells.nth(3 * columns - 1).click()
    panel.get_by_role("button", name="Pin this glyph").click()
    cells.nth(columns - 1).click()
    settings = json.loads((RUN / "settings.json").read_text())
    shows = "prompts fish, iron, queen; seeds 0 and 1; iron, seed 0 pinned; judge B"
    return picture_of(panel, panel.locator(".legend")), {"shows": shows, "run": settings["hash"]}


def playground(studio: Studio) -> tuple[Image.Image, dict[str, Any]]:
    """Eight glyphs for two parts, and the reading of the best."""
    panel = studio.show('Playground("runs")', 1300, 2)
    panel.get_by_role("button", name="water + bird").click()
    expect(panel.get_by_text("8 drawn; ")).to_be_visible(timeout=SLOW_MS)
    expect(panel.get_by_role("button", name="Draw", exact=True)).to_be_enabled()
    steps = panel.get_by_role("group", name="How it formed, step by step")
    expect(steps.locator("img").first).to_be_visible()
    shows = "prompt water + bird, seeds 0 to 7, 15 steps, guidance 5, the writer"
    return picture_of(panel, steps), {"shows": shows, "base": load_base("writer", "bf16").identity}


def coin(studio: Studio) -> tuple[Image.Image, dict[str, Any]]:
    """Coined glyphs with their marks, and the certificate of the first."""
    panel = studio.show('CoinPage("queen of dragons")', 1150, 2)
    panel.get_by_role("button", name="Coin", exact=True).click()
    expect(panel.get_by_text(re.compile("^40 candidates"))).to_be_visible(timeout=SLOW_MS)
    shows = "phrase queen of dragons, 8 noises, at most 5 glyphs"
    return picture_of(panel), {"shows": shows, "writer": load_base("writer", "bf16").identity}


def brush_panel(studio: Studio, scale: float) -> Locator:
    panel = studio.show("BrushPanel(text='')", 1080, scale)
    expect(panel.get_by_role("img", name="Drawing surface")).to_be_visible()
    return panel


def draw_strokes(panel: Locator, strokes: Sequence[Sequence[tuple[int, int]]], look: Callable[[], None]) -> None:
    """Draw with the mouse; `look` is called on the way."""
    box, mouse = panel.get_by_role("img", name="Drawing surface").bounding_box(), panel.page.mouse
    assert box
    for stroke in strokes:
        points = [(box["x"] + x / 128 * box["width"], box["y"] + y / 128 * box["height"]) for x, y in stroke]
        mouse.move(*points[0])
        mouse.down()
        for point in points[1:]:
            mouse.move(*point, steps=12)
            look()
        mouse.up()


def wait_written(panel: Locator) -> None:
    expect(panel.get_by_text(re.compile(r"^4 glyphs in"))).to_be_visible(timeout=SLOW_MS)


def brush(studio: Studio) -> tuple[Image.Image, dict[str, Any]]:
    """Drawn strokes, written in four styles."""
    panel = brush_panel(studio, 2)
    draw_strokes(panel, LUCK, lambda: None)
    wait_written(panel)
    shows = f"{len(LUCK)} strokes drawn, four styles, seed 0, " + json.dumps(TRACING.to_json())
    return picture_of(panel), {"shows": shows, "base": load_base("calligraphy", "bf16").identity}


def comparator_moves(studio: Studio) -> Moving:
    """The slider of the comparator moves through the checkpoints."""
    call = (
        f'StripComparator({{"demo": Path({str(RUN)!r})}}, prompts=["fish", "insect", "iron", "queen"], images_seen=0)'
    )
    panel = studio.show(call, 1150, 1)
    slider, frames = panel.get_by_role("slider", name="Checkpoint"), []
    wait_painted(panel.locator("button.cell canvas"))
    slider.press("Home")
    last = int(slider.get_attribute("max") or 0)
    for _ in range(last + 1):
        frames.append(picture_of(panel, panel.locator(".stage")))
        slider.press("ArrowRight")
    settings = json.loads((RUN / "settings.json").read_text())
    facts = {"shows": "four prompts, seed 0, over the checkpoints", "run": settings["hash"]}
    return frames, [700] * last + [HOLD_MS], facts


def ablation_moves(studio: Studio) -> Moving:
    """The rank of the ablation panel moves through its five values."""
    call = f'AblationPanel("studies", kept={str(FIGURES / "studies")!r})'
    panel = studio.show(call, 1150, 1)
    slider, frames = panel.get_by_role("slider", name="Rank"), []
    expect(panel.get_by_role("heading", name="Each setting by itself")).to_be_visible()
    wait_painted(panel.locator(".glyph canvas").first)  # sheets are decoded together
    slider.press("Home")
    last = int(slider.get_attribute("max") or 0)
    for _ in range(last + 1):
        frames.append(picture_of(panel))
        slider.press("ArrowRight")
    report = json.loads((FIGURES / "studies" / STUDY / "report-radicals.json").read_text())
    facts = {"shows": "the reference of the study, its rank from 1 to 256", "study": report["hash"]}
    return frames, [1300] * last + [HOLD_MS], facts


def brush_moves(studio: Studio) -> Moving:
    """Strokes are drawn on the brush panel, and the glyphs form."""
    panel = brush_panel(studio, 1.25)
    state, frames, durations = panel.locator(".kanjilab-drawn-written"), [], []

    def look(milliseconds: int = 250) -> None:
        image = Image.open(io.BytesIO(state.screenshot(animations="disabled"))).convert("RGB")
        if frames and image.tobytes() == frames[-1].tobytes():
            durations[-1] = milliseconds
            return
        frames.append(image)
        durations.append(milliseconds)

    look(600)
    draw_strokes(panel, LUCK, look)
    done = panel.get_by_text(re.compile(r"^4 glyphs in"))
    while not done.is_visible():
        look()
        panel.page.wait_for_timeout(700)
    look(HOLD_MS)
    facts = {
        "shows": f"{len(LUCK)} strokes drawn, four styles, seed 0",
        "base": load_base("calligraphy", "bf16").identity,
    }
    return frames, durations, facts


STILLS = {"comparator": comparator, "playground": playground, "coin": coin, "brush": brush}
MOVING = {"comparator_moves": comparator_moves, "ablation_moves": ablation_moves, "brush_moves": brush_moves}


def save_still(name: str, image: Image.Image, facts: dict[str, Any]) -> Path:
    buffer = io.BytesIO()
    image.quantize(COLOURS, dither=Image.Dither.NONE).save(buffer, "PNG", optimize=True)
    return write_picture(FIGURES / f"panel_{name}.png", buffer.getvalue(), {"kind": "screenshot"} | facts)


def save_moving(name: str, frames: list[Image.Image], durations: list[int], facts: dict[str, Any]) -> Path:
    width, height = (min(edges) for edges in zip(*(frame.size for frame in frames), strict=True))
    sheets = [frame.crop((0, 0, width, height)) for frame in frames]
    buffer = io.BytesIO()
    options: dict[str, Any] = {"save_all": True, "append_images": sheets[1:], "duration": durations, "loop": 0}
    sheets[0].save(buffer, "WEBP", quality=82, method=6, minimize_size=True, **options)
    described = {"kind": "animated screenshot", "durations_ms": durations} | facts
    return write_picture(FIGURES / f"panel_{name}.webp", buffer.getvalue(), described)


def main(wished: Sequence[str]) -> None:
    """Draws the pictures whose names begin with one of the wished; all where none is wished."""
    begins = tuple(wished) or ("",)
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium(), args=["--disable-dev-shm-usage"])
        studio = Studio(Path(folder), browser)
        try:
            for name, take in STILLS.items():
                if name.startswith(begins):
                    print(save_still(name, *take(studio)))
            for name, film in MOVING.items():
                if name.startswith(begins):
                    print(save_moving(name, *film(studio)))
                studio.lab.end_sessions()
        finally:
            browser.close()
            studio.lab.stop()


if __name__ == "__main__":
    main(sys.argv[1:])
