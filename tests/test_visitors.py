"""Visitors of the public page: no more kernels than places, and none that no page claims."""

import asyncio
import itertools
import runpy
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace

import pytest
from jupyter_server.base.handlers import JupyterHandler
from jupyter_server.services.kernels.kernelmanager import AsyncMappingKernelManager
from tornado.web import HTTPError, StaticFileHandler
from traitlets.config import Config

APP = Path(__file__).parents[1] / "app"
sys.path.insert(0, str(APP))
import visitors  # noqa: E402
from visitors import MOST_VISITORS, Visitors, check_host, frame_ancestors  # noqa: E402


@pytest.fixture
def manager(monkeypatch):
    """Kernels that are names alone, and take a moment to start."""
    running: list[str] = []
    numbers = itertools.count()

    async def start(self, *args, **kwargs):
        await asyncio.sleep(0.01)
        running.append(f"kernel {next(numbers)}")
        self._kernel_connections[running[-1]] = int(running[-1] == "kernel 3")  # which alone a page connects to
        return running[-1]

    async def end(self, kernel_id, now=False):
        running.remove(kernel_id)

    long_ago = datetime.now(UTC) - timedelta(hours=1)
    kernel = SimpleNamespace(execution_state="idle", last_activity=long_ago)
    monkeypatch.setattr(Visitors, "get_kernel", lambda self, kernel_id: kernel)
    monkeypatch.setattr(AsyncMappingKernelManager, "start_kernel", start)
    monkeypatch.setattr(Visitors, "shutdown_kernel", end)
    monkeypatch.setattr(Visitors, "list_kernel_ids", lambda self: list(running))
    monkeypatch.setattr(visitors, "UNCLAIMED_SECONDS", 0.05)
    return Visitors()


def test_twenty_at_one_moment_get_eight_kernels(manager):
    async def crowd():
        return await asyncio.gather(*(manager.start_kernel() for _ in range(20)), return_exceptions=True)

    came = asyncio.run(crowd())
    refused = [one for one in came if isinstance(one, HTTPError)]
    assert len(refused) == 20 - MOST_VISITORS and {one.status_code for one in refused} == {503}
    assert manager.starting == 0, "a place is given once"


def test_a_kernel_that_no_page_claims_is_ended_and_its_place_is_free(manager):
    async def visit():
        for _ in range(MOST_VISITORS):
            await manager.start_kernel()
        await asyncio.sleep(0.2)
        left = manager.list_kernel_ids()
        return left, await manager.start_kernel()

    assert asyncio.run(visit())[0] == ["kernel 3"]


@pytest.mark.parametrize("state", ["starting", "busy", "just idle"])
def test_a_kernel_that_still_makes_its_page_is_left_until_that_is_done(manager, state):
    kernel = manager.get_kernel("kernel 0")
    if state == "just idle":
        kernel.last_activity = datetime.now(UTC) + timedelta(hours=1)
    else:
        kernel.execution_state = state

    async def visit():
        await manager.start_kernel()
        await asyncio.sleep(0.2)
        slow = manager.list_kernel_ids()
        kernel.execution_state, kernel.last_activity = "idle", datetime.now(UTC) - timedelta(hours=1)
        await asyncio.sleep(0.2)
        return slow, manager.list_kernel_ids()

    assert asyncio.run(visit()) == (["kernel 0"], [])


def test_the_page_is_served_under_its_own_names(monkeypatch):
    monkeypatch.setenv("KANJILAB_HOSTS", "kanji.example.org,192.0.2.7")
    hosts = ["localhost:8866", "127.0.0.1", "[::1]:8866", "Kanji.Example.org", "192.0.2.7:80", "evil.example", ""]
    served = [check_host(SimpleNamespace(request=SimpleNamespace(host=host))) for host in hosts]
    assert served == [True] * 5 + [False] * 2


def policy_of_the_page(monkeypatch):
    """The header that Voila is told to send with every page."""
    for class_, name in ((JupyterHandler, "check_host"), (StaticFileHandler, "set_default_headers")):
        monkeypatch.setattr(class_, name, getattr(class_, name))  # the settings put others there
    config = Config()
    runpy.run_path(str(APP / "config" / "voila.py"), {"get_config": lambda: config})
    return config.Voila.tornado_settings["headers"]["Content-Security-Policy"]


def test_no_site_may_show_the_page_in_a_frame_unless_it_is_named(monkeypatch):
    monkeypatch.delenv("KANJILAB_FRAMES", raising=False)
    assert "frame-ancestors 'self';" in policy_of_the_page(monkeypatch)
    monkeypatch.setenv("KANJILAB_FRAMES", "https://HuggingFace.co,https://kanji.example.org:8443")
    allowed = "frame-ancestors 'self' https://huggingface.co https://kanji.example.org:8443; base-uri 'none';"
    assert allowed in policy_of_the_page(monkeypatch)


@pytest.mark.parametrize(
    "sites",
    ["*", "https://*", "http://huggingface.co", "huggingface.co", "https://a.org; script-src *", "https://a.org\nX: y",
     "https://huggingface.co,'none'", "https://a.org/path"],
)  # fmt: skip
def test_what_is_no_site_is_refused_before_the_page_is_served(monkeypatch, sites):
    monkeypatch.setenv("KANJILAB_FRAMES", sites)
    with pytest.raises(ValueError, match="KANJILAB_FRAMES: expected sites as https://huggingface.co, got"):
        frame_ancestors()
