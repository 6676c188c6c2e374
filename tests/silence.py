"""How long a notebook's kernel works without showing anything.

Processor time is taken, not time of day: what else the machine does then does not matter.
"""

from collections.abc import Callable, Mapping
from typing import Any

import psutil
import pytest
from nbclient import NotebookClient
from nbformat import NotebookNode

# What a reader sees: also a widget that moves, such as a bar.
SIGNS = {"stream", "display_data", "update_display_data", "execute_result", "comm_open", "comm_msg", "error"}


class Silence:
    """Listens to kernels.

    Attributes:
        longest: by cell id, the longest stretch without a sign, in seconds of processor time.
    """

    def __init__(self) -> None:
        self.longest: dict[str, float] = {}
        self._since = 0.0

    def hear(self, message: Mapping[str, Any], cell: str, processor_seconds: float) -> None:
        """Take note of a message of the kernel.

        Args:
            message: as Jupyter sends it.
            cell: id of the one that runs.
            processor_seconds: that the kernel has used since its start.
        """
        kind = message["msg_type"]
        ended = kind == "status" and message["content"]["execution_state"] == "idle"
        if kind in SIGNS or ended:
            self.longest[cell] = max(self.longest.get(cell, 0.0), processor_seconds - self._since)
        if kind in SIGNS or kind == "execute_input":
            self._since = processor_seconds

    def listen(self, patch: pytest.MonkeyPatch) -> None:
        """Hear all that `NotebookClient`s hear, as long as the patch lasts."""
        process: Callable[..., Any] = NotebookClient.process_message

        def heard(client: NotebookClient, message: dict[str, Any], cell: NotebookNode, index: int) -> Any:
            times = psutil.Process(client.km.provisioner.pid).cpu_times()
            self.hear(message, cell.id, times.user + times.system)
            return process(client, message, cell, index)

        patch.setattr(NotebookClient, "process_message", heard)
