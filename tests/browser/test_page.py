"""The static page in Chromium: it draws what Python draws, without a network, and reads well everywhere."""

import dataclasses
import http.server
import io
import json
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import BrowserContext, Locator, Page, expect

from app.page import build as page_build
from kanjilab.data.skeleton import skeleton_of_strokes
from kanjilab.experiments.writing import TRACING, WRITING, index_of, typed_skeleton, write, writing_prompt
from kanjilab.export.onnx_folder import base_to_onnx
from kanjilab.models.loading import load_base
from kanjilab.models.sampling import Sampling, sample
from kanjilab.viz.strip import WHITENED
from tests.tiny import save_tiny_pipeline

from .lab import wait_until
from .strokes import INKED_LEAST, TREE, draw, inked

NO_RUNTIME = "onnxruntime-web is not there: make page installs it with npm"
CANVAS = """canvas => {
  const { data } = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height);
  return [...data.filter((_, at) => at % 4 === 0)];
}"""
# Whether a file can be had; the service worker may still be storing it.
FETCHED = "name => fetch(name).then(response => response.ok, () => false)"
PICTURED = """() => [...document.images].every(image => {
  image.loading = 'eager';
  return image.complete;
})"""
SIZE_PX = 32
WRITING_STEPS = 6  # in place of 18


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return load_base(save_tiny_pipeline(tmp_path_factory.mktemp("tiny") / "base"))


@pytest.fixture(scope="module")
def site(base, tmp_path_factory) -> Path:
    """The page over a tiny model; without onnxruntime-web all of it that needs no model."""
    folder = tmp_path_factory.mktemp("page")
    if not (page_build.RUNTIME / "ort.wasm.bundle.min.mjs").is_file():
        page_build.write_pages(page_build.Site(folder))
        return folder
    model = base_to_onnx(base, folder / "model", "fp32", size_px=SIZE_PX)
    page_build.build(folder / "site", model)
    facts = folder / "site" / "calligraphy" / "kanjilab.json"
    numbers = json.loads(facts.read_text())
    facts.write_text(json.dumps(numbers | {"sampling": numbers["sampling"] | {"steps": WRITING_STEPS}}))
    return folder / "site"


@pytest.fixture(scope="module")
def server(site) -> Iterator[http.server.ThreadingHTTPServer]:
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(site)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def address(server) -> str:
    return f"http://127.0.0.1:{server.server_port}"


def glyphs(page: Page) -> np.ndarray:
    """(4, H, W) gray levels of the canvases."""
    return np.stack([gray(canvas) for canvas in page.locator(".glyph canvas").all()])


def drawn_by_python(base, prompt: str, seed: int, guidance: float) -> np.ndarray:
    sampling = Sampling("dpm-solver++", 15, guidance)
    images = sample(base, [prompt], range(seed, seed + 4), sampling, size_px=SIZE_PX)
    return WHITENED[images[0, 0]].astype(int)


def test_a_link_draws_what_python_draws_also_offline(base, address, page: Page, window: BrowserContext, request):
    if not (page_build.RUNTIME / "ort.wasm.bundle.min.mjs").is_file():
        pytest.skip(NO_RUNTIME)
    problems: list[str] = []
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("console", lambda message: problems.append(message.text) if message.type == "error" else None)
    page.goto(f"{address}/#prompt=queen&seed=5&guidance=3.5")
    said = page.get_by_role("status")
    expect(said).to_have_text("Four glyphs for “queen”, each out of its own noise.")
    expected = drawn_by_python(base, "queen", 5, 3.5)
    assert np.abs(glyphs(page) - expected).max() <= 3
    assert len({one.tobytes() for one in expected}) == 4 and expected.std() > 10
    window.set_offline(True)
    request.addfinalizer(lambda: window.set_offline(False))
    page.get_by_label("What the kanji is made of").fill("mountain zzqx☃")
    page.keyboard.press("Enter")
    expect(said).to_have_text("Four glyphs for “mountain zzqx☃”, each out of its own noise.")
    assert np.abs(glyphs(page) - drawn_by_python(base, "mountain zzqx☃", 5, 3.5)).max() <= 3
    expect(page.locator("#read")).to_contain_text("Unknown to the text encoder: zzqx☃.")
    expect(page).to_have_url(f"{address}/#prompt=mountain+zzqx%E2%98%83&seed=5&guidance=3.5")
    with page.expect_download() as download:
        page.get_by_role("button", name="Save the glyph of noise 6").click()
    assert download.value.suggested_filename == "mountain-zzqx-noise-6.png"
    for kept in ("model/denoiser.onnx.gz", "vendor/ort-wasm-simd-threaded.wasm.gz"):
        wait_until(partial(page.evaluate, FETCHED, kept), f"{kept} without a network")
    page.goto(f"{address}/docs/findings.html")
    expect(page.get_by_role("heading", name="Findings", exact=True)).to_be_visible()
    assert problems == []


def test_strokes_are_written_and_a_typed_character_as_in_python(address, site, page: Page, record_property):
    if not (page_build.RUNTIME / "ort.wasm.bundle.min.mjs").is_file():
        pytest.skip(NO_RUNTIME)
    problems: list[str] = []
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("console", lambda message: problems.append(message.text) if message.type == "error" else None)
    page.goto(f"{address}/write.html")
    said, glyph = page.locator("#said"), page.locator("#glyph")
    expect(said).to_contain_text("was written beforehand")
    style = "running script, brush, by zhi mang xing"
    page.get_by_label("Style", exact=True).evaluate("(select, style) => (select.value = style)", style)
    draw(page.get_by_role("img", name="Drawing surface"), TREE)
    start = time.monotonic()
    expect(page.get_by_text("Drawn: 4 strokes.")).to_be_visible()
    written, lines = f"Written: {style}.", skeleton_of_strokes(TREE)
    wait_until(
        lambda: said.inner_text() == written and inked([gray(glyph)], lines) >= [INKED_LEAST], "all four strokes"
    )
    expect(said).to_have_text(written)
    seconds = time.monotonic() - start
    drawn = gray(glyph)
    (share,) = inked([drawn], lines)
    assert share >= INKED_LEAST
    assert inked([drawn], skeleton_of_strokes([[(10, 10), (118, 10)]])) < [0.5], "ink is everywhere"
    expect(glyph).to_have_accessible_name(f"What you drew, written: {style}")
    expect(page.locator("#skeleton-guidance")).to_have_value(f"{TRACING.array_guidance:g}")

    offered = page.get_by_role("group", name="Examples").get_by_role("button").all_text_contents()
    skeletons = json.loads((site / "skeletons.json").read_text())
    assert len(offered) > 3 and set(offered) < set(skeletons["characters"])
    typed = page.get_by_label("Character to write")
    typed.fill("国")
    page.keyboard.press("Enter")
    expect(page.get_by_text("Drawn: the skeleton of 国.")).to_be_visible()
    expect(glyph).to_have_accessible_name(f"“国”, written: {style}")
    expect(said).to_have_text(written)
    expect(page.locator("#skeleton-guidance")).to_have_value(f"{WRITING.array_guidance:g}")
    base = load_base("calligraphy")
    prompt = writing_prompt(base, style, index=index_of(base, "国"), typed=typed_skeleton("国"))
    expected = WHITENED[write(base, [prompt], 0, dataclasses.replace(WRITING, steps=WRITING_STEPS))[0]]
    difference = np.abs(gray(glyph) - expected.astype(int)).mean()
    assert difference < 3 and np.abs(drawn - expected.astype(int)).mean() > 30
    for unknown in ("鬱", "A", ""):
        typed.fill(unknown)
        page.keyboard.press("Enter")
        expect(said).to_contain_text(f"no skeleton of {unknown}" if unknown else "Type a character.")
    page.get_by_role("button", name="Clear").click()
    expect(said).to_have_text("Draw a stroke, or type a character.")
    expect(glyph).to_have_accessible_name("Nothing is written yet")
    assert problems == []
    record_property("measured", f"page: {seconds:.1f} s to the first glyph of {WRITING_STEPS} steps; {share:.2f} inked")


def gray(canvas: Locator) -> np.ndarray:
    """(H, W) gray levels of a canvas."""
    values = np.array(canvas.evaluate(CANVAS), int)
    edge = round(len(values) ** 0.5)
    return values.reshape(edge, edge)


def test_a_strip_is_scrubbed_by_the_keyboard(address, page: Page):
    page.goto(f"{address}/strips.html")
    slider = page.get_by_role("slider", name="Checkpoint").first
    glyph = page.get_by_role("img", name="Glyph for “left: fish, right: see”")
    expect(slider).to_have_attribute("aria-valuetext", "161,600 images seen")
    wait_until(lambda: shot(glyph).min() < 64, "the picture that all glyphs are cut from")
    trained = shot(glyph)
    slider.press("Home")
    expect(slider).to_have_attribute("aria-valuetext", "pocket")
    expect(glyph).to_have_accessible_name("Glyph for “left: fish, right: see”, pocket")
    wait_until(lambda: np.abs(shot(glyph) - trained).mean() > 20, "another glyph")
    slider.press("End")
    wait_until(lambda: np.abs(shot(glyph) - trained).mean() < 2, "the first glyph again")


def shot(element: Locator) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(element.screenshot())).convert("L"), float)


CONTENT = {"index": ".glyph canvas", "write": "#board canvas", "strips": ".strip .cell"}  # what scripts put there


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_pages_fit_and_are_legible(address, site, scheme, width, page: Page, screenshots: Path):
    page.emulate_media(color_scheme=scheme)
    page.set_viewport_size({"width": width, "height": 850})
    names = ["index", "write", "strips", "coined", "docs/findings"]
    for name in [name for name in names if (site / f"{name}.html").exists()]:
        page.goto(f"{address}/{name}.html")
        expect(page.get_by_role("heading", level=1)).to_be_visible()
        expect(page.locator(CONTENT.get(name, "main p")).last).to_be_visible()
        wait_until(partial(page.evaluate, PICTURED), f"all pictures of {name}")
        assert page.evaluate("() => document.documentElement.scrollWidth <= innerWidth"), f"{name} is too wide"
        colours = page.evaluate(
            "() => ['color', 'background-color'].map(name => "
            "getComputedStyle(document.documentElement).getPropertyValue(name))"
        )
        ink, paper = (sum(map(int, colour.strip("rgb()").split(","))) for colour in colours)
        assert (ink < paper) == (scheme == "light") and abs(ink - paper) > 500
        page.screenshot(path=screenshots / f"page_{name.replace('/', '_')}_{scheme}_{width}.png")
