"""The static page in Chromium: it draws what Python draws, without a network, and reads well everywhere."""

import functools
import http.server
import io
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import BrowserContext, Locator, Page, expect

from app.page import build as page_build
from kanjilab.export.onnx_folder import base_to_onnx
from kanjilab.models.loading import load_base
from kanjilab.models.sampling import Sampling, sample
from kanjilab.viz.strip import WHITENED
from tests.tiny import save_tiny_pipeline

NO_RUNTIME = "onnxruntime-web is not there: make page installs it with npm"
CANVAS = """canvas => {
  const { data } = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height);
  return [...data.filter((_, at) => at % 4 === 0)];
}"""
SIZE_PX = 32


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
    return folder / "site"


@pytest.fixture(scope="module")
def server(site) -> Iterator[http.server.ThreadingHTTPServer]:
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(site)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def address(server) -> str:
    return f"http://127.0.0.1:{server.server_port}"


def glyphs(page: Page) -> np.ndarray:
    """(4, H, W) gray levels of the canvases."""
    found = [np.array(canvas.evaluate(CANVAS), int) for canvas in page.locator(".glyph canvas").all()]
    return np.stack([one.reshape(SIZE_PX, SIZE_PX) for one in found])


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
    assert page.url.endswith("#prompt=mountain+zzqx%E2%98%83&seed=5&guidance=3.5")
    with page.expect_download() as download:
        page.get_by_role("button", name="Save the glyph of noise 6").click()
    assert download.value.suggested_filename == "mountain-zzqx-noise-6.png"
    for kept in ("model/denoiser.onnx.gz", "vendor/ort-wasm-simd-threaded.wasm.gz"):
        assert page.evaluate("async (name) => (await fetch(name)).ok", kept), "it is not there without a network"
    page.goto(f"{address}/docs/findings.html")
    expect(page.get_by_role("heading", name="Findings", exact=True)).to_be_visible()
    assert problems == []


def test_a_strip_is_scrubbed_by_the_keyboard(address, page: Page):
    page.goto(f"{address}/strips.html")
    slider = page.get_by_role("slider", name="Checkpoint").first
    glyph = page.get_by_role("img", name="Glyph for “left: fish, right: see”")
    expect(slider).to_have_attribute("aria-valuetext", "161,600 images seen")
    trained = shot(glyph)
    slider.press("Home")
    expect(slider).to_have_attribute("aria-valuetext", "pocket")
    expect(glyph).to_have_accessible_name("Glyph for “left: fish, right: see”, pocket")
    assert np.abs(shot(glyph) - trained).mean() > 20
    slider.press("End")
    assert np.abs(shot(glyph) - trained).mean() < 2


def shot(element: Locator) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(element.screenshot())).convert("L"), float)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_pages_fit_and_are_legible(address, site, scheme, width, page: Page, screenshots: Path):
    page.emulate_media(color_scheme=scheme)
    page.set_viewport_size({"width": width, "height": 850})
    names = ["index", "strips", "coined", "docs/findings"]
    for name in [name for name in names if (site / f"{name}.html").exists()]:
        page.goto(f"{address}/{name}.html")
        expect(page.get_by_role("heading", level=1)).to_be_visible()
        assert page.evaluate("() => document.documentElement.scrollWidth <= innerWidth"), f"{name} is too wide"
        colours = page.evaluate(
            "() => ['color', 'background-color'].map(name => "
            "getComputedStyle(document.documentElement).getPropertyValue(name))"
        )
        ink, paper = (sum(map(int, colour.strip("rgb()").split(","))) for colour in colours)
        assert (ink < paper) == (scheme == "light") and abs(ink - paper) > 500
        page.screenshot(path=screenshots / f"page_{name.replace('/', '_')}_{scheme}_{width}.png")
