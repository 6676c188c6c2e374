"""Visitors of the public page: how many at once, by which names of this machine, in whose frames, how refused."""

import asyncio
import os
import re
from datetime import UTC, datetime

from jupyter_server.services.kernels.kernelmanager import AsyncMappingKernelManager
from tornado.web import HTTPError

MOST_VISITORS = 8  # each has a kernel of up to 1 GB
UNCLAIMED_SECONDS = 20.0  # in which a page that is made connects to its kernel; what only asks for pages holds no place
FULL = "All places are taken. Please come back in a few minutes."
ORIGIN = re.compile(r"https://[a-z0-9-]+(\.[a-z0-9-]+)+(:[0-9]{1,5})?")
OWN_NAMES = ("localhost", "127.0.0.1", "[::1]")


class Visitors(AsyncMappingKernelManager):
    """Starts a kernel for each visitor while there are places, and ends those that no page connects to."""

    starting = 0

    async def start_kernel(self, *args, **kwargs):
        """As the server does it; raises HTTPError 503, before anything is started, where this machine is full."""
        if len(self.list_kernel_ids()) + self.starting >= MOST_VISITORS:
            raise HTTPError(503, reason=FULL)
        self.starting += 1  # a kernel takes a while to be listed
        try:
            kernel_id = await super().start_kernel(*args, **kwargs)
        finally:
            self.starting -= 1
        self._look_later(kernel_id)
        return kernel_id

    def _look_later(self, kernel_id):
        asyncio.get_running_loop().call_later(UNCLAIMED_SECONDS, self._end_if_unclaimed, kernel_id)

    def _end_if_unclaimed(self, kernel_id):
        if kernel_id not in self.list_kernel_ids() or self._kernel_connections.get(kernel_id):
            return
        kernel = self.get_kernel(kernel_id)
        idle = (datetime.now(UTC) - kernel.last_activity).total_seconds()
        if kernel.execution_state in ("starting", "busy") or idle < UNCLAIMED_SECONDS:
            self._look_later(kernel_id)  # the page connects once it is made, which takes a slow machine long
        else:
            self._ending = asyncio.ensure_future(self.shutdown_kernel(kernel_id, now=True))


def served_names():
    """The names under which the page is served: this machine's own, and those in $KANJILAB_HOSTS."""
    return {*OWN_NAMES, *filter(None, os.environ.get("KANJILAB_HOSTS", "").lower().split(","))}


def frame_ancestors():
    """Who may show the page in a frame: itself, and the sites in $KANJILAB_FRAMES; ValueError where one is no origin.

    Another site's frame can lead clicks astray, so none is allowed that is not named.
    """
    sites = list(filter(None, os.environ.get("KANJILAB_FRAMES", "").lower().split(",")))
    if wrong := [site for site in sites if not ORIGIN.fullmatch(site)]:
        raise ValueError(f"KANJILAB_FRAMES: expected sites as https://huggingface.co, got {wrong[0]!r}")
    return " ".join(["'self'", *sites])


def check_host(handler):
    """Whether a request asks for this page by one of its names; another site could else be made to stand for it."""
    host = handler.request.host.lower()
    return (host if host.endswith("]") else host.rpartition(":")[0] or host) in served_names()


def set_headers(handler):
    """The headers of all pages, for files and for their refusals, which have none of their own."""
    for name, value in handler.settings["headers"].items():
        handler.set_header(name, value)
