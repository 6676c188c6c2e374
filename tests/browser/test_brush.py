"""The brush panel in Chromium, with the packaged weights: a pointer draws, undo, a typed character, the latency."""

import re
import time
from itertools import count, pairwise

import numpy as np
from playwright.sync_api import Locator, expect

from kanjilab.data.skeleton import skeleton_of_strokes
from kanjilab.widgets.common import FOLDER

from .alone import show_alone
from .lab import wait_until
from .pixels import pixels
from .strokes import INKED_LEAST, TREE, draw, inked

CELL = """
from kanjilab.widgets import BrushPanel

panel = BrushPanel(text="")
panel
"""
EMPTY = '{ drawing: { strokes: [], under: new DataView(new ArrayBuffer(0)), of: "" }, example: false }'
NAMELESS = """place => [...place.querySelectorAll('canvas, button, input, select, textarea')].filter(
  e => e.checkVisibility() && !(e.labels?.length || e.getAttribute('aria-label') || e.title || e.textContent.trim())
).map(e => e.outerHTML)"""


def shown(glyphs: Locator) -> list[np.ndarray]:
    return [pixels(image) for image in glyphs.all()]


def same(glyphs: list[np.ndarray], others: list[np.ndarray]) -> bool:
    return all(np.array_equal(glyph, other) for glyph, other in zip(glyphs, others, strict=True))


def wait_written(finished: Locator, glyphs: Locator, lines: np.ndarray) -> list[np.ndarray]:
    """The glyphs that follow these lines, when they are finished: not those of fewer strokes, nor half formed ones."""
    found: list[np.ndarray] = []

    def written() -> bool:
        found[:] = shown(glyphs)
        is_finished = finished.is_visible()  # of what was found, if that does not change meanwhile
        return is_finished and same(found, shown(glyphs)) and min(inked(found, lines)) >= INKED_LEAST

    wait_until(written, "glyphs that follow the lines")
    return found


def test_what_is_drawn_is_written(open_notebook, record_property):
    notebook = open_notebook([CELL, "1"])
    page = notebook.page
    notebook.use_theme("Dark")
    page.evaluate("void jupyterapp.commands.execute('notebook:run-cell')")
    place = notebook.output(0)
    canvas, row = (place.get_by_role("img", name="Drawing surface"), place.get_by_role("group", name="Written"))
    glyphs = row.locator("img")
    expect(canvas).to_have_accessible_description("Empty: draw here, or type a character.")
    draw(canvas, TREE[:1])
    expect(canvas).to_have_accessible_description("Drawn: 1 stroke.")
    finished = place.get_by_text(re.compile("^4 glyphs in"))
    expect(finished).to_be_visible()
    expect(glyphs).to_have_count(4)
    one, lines = shown(glyphs), skeleton_of_strokes(TREE)
    assert max(inked(one, lines)) < INKED_LEAST, "one stroke of four"
    assert min(inked(one, skeleton_of_strokes(TREE[:1]))) >= INKED_LEAST

    before, start = glyphs.first.get_attribute("src"), time.perf_counter()
    draw(canvas, TREE[1:])
    expect(glyphs.first).not_to_have_attribute("src", before)
    to_first = time.perf_counter() - start
    expect(canvas).to_have_accessible_description("Drawn: 4 strokes.")
    four = wait_written(finished, glyphs, lines)
    assert all((image != other).any() for image, other in pairwise(four)), "styles differ"
    shares = ", ".join(f"{share:.2f}" for share in inked(four, lines))
    record_property(
        "measured",
        f"brush panel: first picture {to_first:.1f} s after three strokes were begun; {finished.text_content()} "
        f"Shares of the strokes that are inked: {shares}",
    )
    notebook.screenshot("brush_dark")

    for strokes in ("3 strokes", "2 strokes", "1 stroke"):
        place.get_by_role("button", name="Undo").click()
        expect(canvas).to_have_accessible_description(f"Drawn: {strokes}.")
    wait_until(lambda: same(shown(glyphs), one))

    typed = place.get_by_label("Character", exact=True)
    typed.focus()  # from here on by keyboard
    assert typed.evaluate("input => getComputedStyle(input).outlineStyle") == "solid", "where the keyboard is, is seen"
    page.keyboard.insert_text("国")
    page.keyboard.press("Enter")
    expect(canvas).to_have_accessible_description("Drawn: the skeleton of 国.")
    wait_until(lambda: not same(shown(glyphs), one))
    place.get_by_role("button", name="Undo").focus()
    for key in ("b", "d", "d", "Control+z"):
        page.keyboard.press(key)
    wait_until(lambda: same(shown(glyphs), one))
    assert notebook.selection() == (0, 2), "keys reached JupyterLab"
    assert place.evaluate(NAMELESS) == []


def test_a_pen_draws_beside_a_resting_hand_and_only_on_the_paper(page):
    style, script = ((FOLDER / f"brush_board.{ending}").read_text(encoding="utf-8") for ending in ("css", "js"))
    show_alone(page, script, EMPTY, style + "#panel { width: 256px }")
    devtools = page.context.new_cdp_session(page)
    clock = count(time.time() - 60, 0.01)  # seconds: however slow this machine, no hand comes long after the pen

    def touch(kind: str, *points: tuple[int, int]) -> None:
        places = [{"x": 2 * x, "y": 2 * y} for x, y in points]  # the square is 256 px wide
        devtools.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": places, "timestamp": next(clock)})

    def pen(points: list[tuple[int, int]]) -> None:
        kinds = ["Pressed", *["Moved"] * (len(points) - 1), "Released"]
        for kind, (x, y) in zip(kinds, [*points, points[-1]], strict=True):
            event = {"type": f"mouse{kind}", "x": 2 * x, "y": 2 * y, "pointerType": "pen", "force": 0.4}
            event |= {"button": "left", "buttons": int(kind != "Released"), "clickCount": 1, "timestamp": next(clock)}
            devtools.send("Input.dispatchMouseEvent", event)

    def strokes() -> list:
        return page.evaluate("values.drawing.strokes")

    page.get_by_role("img", name="Drawing surface").wait_for()
    touch("touchStart", (20, 20))
    touch("touchMove", (60, 20))
    touch("touchEnd")
    assert strokes() == [[[20, 20], [60, 20]]], "a finger draws"
    touch("touchStart", (100, 110))
    pen([(10, 40), (50, 40)])
    touch("touchEnd")
    assert strokes()[1:] == [[[10, 40], [50, 40]]], "the pen's, not the hand's"
    touch("touchStart", (100, 110))
    touch("touchEnd")
    assert len(strokes()) == 2, "the hand touches again"
    pen([(100, 60), (140, 80), (140, 100), (100, 120)])
    assert strokes()[2:] == [[[100, 60], [128, 74]], [[128, 106], [100, 120]]], "cut at the paper's edge"
    page.get_by_role("button", name="Undo").click()
    assert len(strokes()) == 2, "one way of the pen"
