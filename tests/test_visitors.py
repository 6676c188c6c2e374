"""Visitors of the public page: no more kernels than places, and none that no page claims."""

import asyncio
import itertools
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from jupyter_server.services.kernels.kernelmanager import AsyncMappingKernelManager
from tornado.web import HTTPError

sys.path.insert(0, str(Path(__file__).parents[1] / "app"))
import visitors  # noqa: E402
from visitors import MOST_VISITORS, Visitors, check_host  # noqa: E402


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


def test_the_page_is_served_under_its_own_names(monkeypatch):
    monkeypatch.setenv("KANJILAB_HOSTS", "kanji.example.org,192.0.2.7")
    hosts = ["localhost:8866", "127.0.0.1", "[::1]:8866", "Kanji.Example.org", "192.0.2.7:80", "evil.example", ""]
    served = [check_host(SimpleNamespace(request=SimpleNamespace(host=host))) for host in hosts]
    assert served == [True] * 5 + [False] * 2
