"""The playground as a page of its own, as visitors see it (`make app`)."""

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest
from playwright.sync_api import Browser, Page, expect

from kanjilab.core.config import Arm
from kanjilab.training.loop import train
from tests.tiny import tiny_encoded

from .conftest import LONGEST_MS
from .hostile import obeyed
from .lab import START_SECONDS, end_process, free_port, own_folders, wait_until
from .pixels import pixels

HOSTILE = """<img src=x onerror="window.obeyed=1"> water"""
WIDEST = "Math.max(...[...document.querySelectorAll('.kanjilab-panel *')].map(e => e.getBoundingClientRect().right))"
SERVE = Path(__file__).parents[2] / "app" / "serve.py"


@pytest.fixture(scope="module")
def runs(base, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one tiny run."""
    folder = tmp_path_factory.mktemp("app") / "runs"
    arm = Arm(targets="all", rank=2, peak_lr=0.02, images_seen=6, batch=2)
    for _ in train(base, tiny_encoded(base), [arm], folder / "coined" / "run", checkpoints=1):
        pass
    return folder


@pytest.fixture(scope="module")
def address(runs: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Where the page is served."""
    folder, port = tmp_path_factory.mktemp("voila"), free_port()
    environment = os.environ | own_folders(folder) | {"KANJILAB_RUNS": str(runs)}
    command = [sys.executable, str(SERVE), f"--port={port}", "--Voila.ip=127.0.0.1"]
    with (folder / "server.log").open("wb") as log:
        server = subprocess.Popen(command, env=environment, cwd=folder, stdout=log, stderr=subprocess.STDOUT)
    try:
        wait_until_it_answers(f"http://127.0.0.1:{port}/static/favicons/favicon.ico", server, folder / "server.log")
        yield f"http://127.0.0.1:{port}/"
    finally:
        end_process(server)


def wait_until_it_answers(address: str, server: subprocess.Popen, log: Path) -> None:
    end = time.monotonic() + START_SECONDS
    while time.monotonic() < end and server.poll() is None:
        try:
            urlopen(address, timeout=10).close()
            return
        except OSError as error:
            if hasattr(error, "code"):
                return  # an answer, if a refusal
            time.sleep(0.1)
    raise RuntimeError(f"Voilà did not start within {START_SECONDS} s:\n{log.read_text()[-2000:]}")


def wait_drawn(page: Page, count: int) -> None:
    """Wait until glyphs are drawn and the next can be asked for, which a panel that still works passes over."""
    expect(page.get_by_text(f"{count} drawn; ")).to_be_visible()
    expect(page.get_by_role("button", name="Draw", exact=True)).to_be_enabled()


def copies_link(page: Page, address: re.Pattern) -> bool:
    """Whether the button copies such a link by now: the kernel makes it."""
    page.get_by_role("button", name="Copy link").click()
    return address.search(page.url) is not None


def test_a_visitor_draws_a_glyph(address: str, runs: Path, page: Page, screenshots: Path):
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
    answer = page.goto(address)
    assert "default-src 'none'" in answer.headers["content-security-policy"]
    draw = page.get_by_role("button", name="Draw", exact=True)
    expect(draw).to_be_enabled()
    page.get_by_label("Prompt", exact=True).fill("fire water")
    expect(page.get_by_label("Steps", exact=True)).to_be_attached()
    expect(page.get_by_label("Steps", exact=True)).to_be_hidden()
    page.get_by_role("button", name="Advanced").first.click()
    page.get_by_label("Glyphs to draw").fill("2")
    page.get_by_label("Steps", exact=True).fill("4")
    draw.click()
    wait_drawn(page, 2)
    glyphs = page.get_by_role("group", name="Glyphs, best first").locator("img")
    expect(glyphs).to_have_count(2)
    assert pixels(glyphs.first).std() > 0 and (pixels(glyphs.first) != pixels(glyphs.last)).any()
    expect(page.get_by_role("group", name="How it formed, step by step").locator("img")).to_have_count(4)

    page.get_by_label("Prompt", exact=True).fill(HOSTILE)
    page.get_by_label("Prompt", exact=True).press("Enter")
    past = page.get_by_role("group", name="Gallery").locator("img")
    expect(past).to_have_count(2)
    assert HOSTILE in past.first.get_attribute("alt")
    wait_drawn(page, 2)
    page.get_by_label("Prompt", exact=True).fill("water " * 40)
    page.get_by_label("Prompt", exact=True).press("Enter")
    expect(page.get_by_text("at most 100 characters, got 240")).to_be_visible()
    page.screenshot(path=screenshots / "app.png", full_page=True)
    shown = page.content()
    assert str(runs) not in shown and "draw_glyphs" not in shown, "neither paths nor code on a public page"
    assert errors == []
    assert not obeyed(page)


def test_a_link_opens_the_drawing_of_another_on_a_phone(address: str, browser: Browser, screenshots: Path):
    phone: dict = {"viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True}
    window = browser.new_context(**phone, permissions=["clipboard-write"])
    page = window.new_page()
    page.set_default_timeout(LONGEST_MS)
    page.goto(address + "?prompt=fire+water&seed=40&glyphs=8&steps=4")
    wait_drawn(page, 8)
    expect(page.get_by_label("Prompt", exact=True)).to_have_value("fire water")
    glyphs = page.get_by_role("group", name="Glyphs, best first").locator("img")
    expect(glyphs).to_have_count(8)
    names = {image.get_attribute("alt").split(".")[0] for image in glyphs.all()}
    assert names == {f"Seed {seed}" for seed in range(40, 48)}
    page.screenshot(path=screenshots / "app_phone.png", full_page=True)
    assert page.evaluate(WIDEST) <= 390, "nothing is cut off at the right"
    first, fourth = glyphs.first.bounding_box(), glyphs.nth(3).bounding_box()
    assert first["y"] == fourth["y"], "four in a row"
    letters = page.get_by_label("Prompt", exact=True).evaluate("input => parseFloat(getComputedStyle(input).fontSize)")
    assert letters >= 16, "else an iPhone enlarges the page when one types"

    page.get_by_label("Prompt", exact=True).fill("water castle")
    asked = re.compile(r"prompt=water\+castle&seed=40&glyphs=8&.*steps=4")
    wait_until(lambda: copies_link(page, asked), "a link to the new prompt")
    shared = page.url
    page.goto(shared)
    expect(page.get_by_label("Prompt", exact=True)).to_have_value("water castle")
    window.close()


@pytest.mark.parametrize(
    ("host", "path", "status"),
    [("evil.example", "", 403), ("evil.example:8866", "static/x", 403), ("", "nothing", 403)],
)
def test_a_refusal_has_the_headers_of_all_pages(address: str, host: str, path: str, status: int):
    request = Request(address + path, headers={"Host": host} if host else {})
    with pytest.raises(HTTPError) as refused:
        urlopen(request, timeout=START_SECONDS)
    with refused.value as answer:  # which holds the connection open
        assert answer.code == status
        assert "default-src 'none'" in answer.headers["content-security-policy"]
        assert answer.headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize("path", ["voila/files/serve.py", "voila/files/playground.ipynb", "files/serve.py"])
def test_no_file_is_given_away(address: str, path: str, page: Page):
    assert page.request.get(address + path, timeout=LONGEST_MS).status in (403, 404)
