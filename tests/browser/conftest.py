"""Fixtures of the browser tests: a JupyterLab server, Chromium, and notebooks open in them."""

import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from urllib.parse import urlparse

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, expect, sync_playwright

from .lab import Lab, NotebookPage

NO_CHROMIUM = (
    "no Chromium on the search path: install it (Debian and Ubuntu: apt-get install chromium; macOS: brew install "
    "--cask chromium), then: make browser-test"
)
LONGEST_MS = 300_000  # against hanging alone: of what is expected, and of a click
expect.set_options(timeout=LONGEST_MS)
WINDOW = {"width": 1280, "height": 1000}
HERE = Path(__file__).parent


def chromium() -> str | None:
    """The browser's executable; None where none is installed."""
    return next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.hookimpl(tryfirst=True)  # the order of all tests depends on the mark
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE in item.path.parents:
            item.add_marker("browser")
            if chromium() is None:
                item.add_marker(pytest.mark.skip(reason=NO_CHROMIUM))


@pytest.fixture(scope="package")
def jupyter(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """A JupyterLab server with folders of its own."""
    lab = Lab(tmp_path_factory.mktemp("lab"))
    yield lab
    lab.stop()


@pytest.fixture(scope="package")
def browser() -> Iterator[Browser]:
    """Chromium without a window; it ends with these tests, for no other event loop can start beside Playwright's."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium(), args=["--disable-dev-shm-usage"])
        yield browser
        browser.close()


@pytest.fixture(scope="package")
def window(browser: Browser) -> Iterator[BrowserContext]:
    """One window for all tests: it keeps JupyterLab's scripts, which take seconds to load anew."""
    window = browser.new_context(viewport=WINDOW, reduced_motion="no-preference")
    yield window
    window.close()


@pytest.fixture
def page(window: BrowserContext) -> Iterator[Page]:
    """An empty page; fails the test where it reached for another machine."""
    page = window.new_page()
    page.set_default_timeout(LONGEST_MS)
    strangers: list[str] = []
    page.on("request", lambda request: strangers.append(request.url) if _leaves(request.url) else None)
    yield page
    page.close()
    assert strangers == [], "the page reached for another machine"


def _leaves(address: str) -> bool:
    parts = urlparse(address)
    return parts.scheme not in ("data", "blob") and parts.hostname != "127.0.0.1"


@pytest.fixture(scope="session")
def screenshots(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where pictures of the window go."""
    folder = Path(os.environ.get("KANJILAB_SCREENSHOTS") or tmp_path_factory.mktemp("screenshots"))
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@pytest.fixture
def open_notebook(jupyter: Lab, page: Page, screenshots: Path) -> Iterator[Callable[..., NotebookPage]]:
    """Opens a fresh copy of a notebook file, or of code cells given as text, with a kernel of its own."""

    def open_fresh(content: Path | Sequence[str]) -> NotebookPage:
        jupyter.forget_theme()
        return NotebookPage(jupyter, page, jupyter.add_notebook(content), screenshots)

    yield open_fresh
    jupyter.end_sessions()
