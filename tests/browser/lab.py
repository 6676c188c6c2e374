"""A JupyterLab server of its own, and a notebook open in it, as a test drives them."""

import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import nbformat
from playwright.sync_api import Locator, Page, expect

# Against hanging alone: many times what a quiet machine needs.
START_SECONDS, RUN_SECONDS, END_SECONDS = 300, 600, 60
FOLDERS = {  # nothing of the user's, and nothing of another test's
    "JUPYTER_CONFIG_DIR": "config",
    "JUPYTER_DATA_DIR": "data",
    "JUPYTER_RUNTIME_DIR": "runtime",
    "JUPYTERLAB_SETTINGS_DIR": "settings",
    "JUPYTERLAB_WORKSPACES_DIR": "workspaces",
    "IPYTHONDIR": "ipython",
    "MPLCONFIGDIR": "matplotlib",
}
# The pop-up that offers Jupyter's news would cover the notebook, and would ask another machine for them.
NO_NEWS = {"fetchNews": "false", "checkForUpdates": False}

SHOWN = "const panel = window.jupyterapp?.shell.currentWidget; const cells = panel?.content?.model?.cells;"
# The "idle" badge alone is not enough: it may be that of a kernel which is not connected yet.
READY = f"""() => {{ {SHOWN}
  const session = panel?.context?.sessionContext, kernel = session?.session?.kernel;
  return !!(panel?.context?.isReady && session.isReady
            && kernel?.connectionStatus === 'connected' && kernel.status === 'idle');
}}"""
# What is off the screen is not rendered: so the model is asked, not the page.
CELLS = f"""() => {{ {SHOWN}
  return Array.from({{length: cells.length}}, (_, index) => cells.get(index)).map(cell => ({{
    type: cell.type,
    source: cell.sharedModel.getSource(),
    count: cell.type === 'code' ? cell.executionCount : null,
    running: cell.type === 'code' && cell.executionState === 'running',
    outputs: cell.type === 'code' ? cell.outputs.toJSON() : [],
  }}));
}}"""
FINISHED = f"""() => {{
  const code = ({CELLS})().filter(cell => cell.type === 'code' && cell.source.trim());
  const failed = code.some(cell => cell.outputs.some(output => output.output_type === 'error'));
  return failed || code.every(cell => cell.count && !cell.running);
}}"""
# A command waits until the key that asks for it is released.
AFTER_KEYS = "new Promise(done => requestAnimationFrame(() => setTimeout(done)))"


def free_port() -> int:
    """A port of this machine's loopback that nobody listens to."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def wait_until(condition: Callable[[], bool], what: str = "what was expected") -> None:
    """Waits for what takes a moment: a page that is laid out anew, a picture that is drawn."""
    end = time.monotonic() + RUN_SECONDS / 2
    while not condition():
        assert time.monotonic() < end, f"{what}: it never came"
        time.sleep(0.05)


def end_process(process: subprocess.Popen) -> None:
    """End a server; it may shut its kernels down first."""
    process.terminate()
    try:
        process.wait(END_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def own_folders(folder: Path) -> dict[str, str]:
    """Jupyter's environment variables, each with a new folder below `folder`."""
    for name in FOLDERS.values():
        (folder / name).mkdir()
    return {variable: str(folder / name) for variable, name in FOLDERS.items()}


class Lab:
    """A JupyterLab server on this machine's loopback.

    Args:
        folder: for everything it reads and writes; notebooks lie in its subfolder `root`.
    """

    def __init__(self, folder: Path):
        self.root = folder / "root"
        self.root.mkdir(parents=True)
        self.token = secrets.token_hex(16)
        self.port = free_port()
        self.address = f"http://127.0.0.1:{self.port}"
        self._ending: dict[str, threading.Thread] = {}
        self._settings = folder / "settings" / "@jupyterlab" / "apputils-extension"
        self._log = folder / "server.log"
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                self._command(), env=self._environment(folder), cwd=self.root, stdout=log, stderr=subprocess.STDOUT
            )
        self._wait_until_it_answers()

    def _command(self) -> list[str]:
        return [
            *(sys.executable, "-m", "jupyterlab", "--allow-root", "--no-browser", "--ip=127.0.0.1"),
            *(f"--port={self.port}", "--ServerApp.port_retries=0", f"--IdentityProvider.token={self.token}"),
            *(f"--ServerApp.root_dir={self.root}", "--LabApp.expose_app_in_browser=True"),
        ]

    def _environment(self, folder: Path) -> dict[str, str]:
        environment = os.environ | own_folders(folder)
        self._settings.mkdir(parents=True)
        (self._settings / "notification.jupyterlab-settings").write_text(json.dumps(NO_NEWS))
        return environment

    def _wait_until_it_answers(self) -> None:
        end = time.monotonic() + START_SECONDS
        while time.monotonic() < end and self._process.poll() is None:
            try:
                return self.ask("status") and None
            except OSError:
                time.sleep(0.1)
        self.stop()
        raise RuntimeError(f"JupyterLab did not start within {START_SECONDS} s:\n{self._log.read_text()[-2000:]}")

    def ask(self, path: str, method: str = "GET") -> Any:
        """Ask the server's interface.

        Args:
            path: below `/api/`.
            method: of HTTP.
        Returns:
            what its JSON says; None for an empty answer.
        """
        request = Request(f"{self.address}/api/{path}", method=method)
        request.add_header("Authorization", f"token {self.token}")
        with urlopen(request, timeout=START_SECONDS) as answer:
            return json.loads(answer.read() or "null")

    def end_sessions(self) -> None:
        """Have all kernels shut down, without waiting: each may take seconds, and no notebook is opened twice."""
        for session in self.ask("sessions"):
            if (name := session["id"]) not in self._ending:
                self._ending[name] = threading.Thread(target=self.ask, args=(f"sessions/{name}", "DELETE"))
                self._ending[name].start()

    def forget_theme(self) -> None:
        """Open the next notebook in the light theme, whichever was chosen before."""
        (self._settings / "themes.jupyterlab-settings").unlink(missing_ok=True)

    def add_notebook(self, content: Path | Sequence[str]) -> str:
        """A fresh copy of a notebook, in a folder of its own, whose parent is its own too ('../figures').

        Args:
            content: a notebook file, or the sources of code cells.
        Returns:
            its path on the server.
        """
        place = self.root / secrets.token_hex(4) / "notebooks"
        place.mkdir(parents=True)
        if isinstance(content, Path):
            shutil.copy(content, place / content.name)
            return (place / content.name).relative_to(self.root).as_posix()
        cells = [nbformat.v4.new_code_cell(source, id=f"cell-{index}") for index, source in enumerate(content)]
        kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
        nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=kernel), place / "test.ipynb")
        return (place / "test.ipynb").relative_to(self.root).as_posix()

    def stop(self) -> None:
        """End the server and its kernels."""
        for thread in self._ending.values():
            thread.join()
        end_process(self._process)


class NotebookPage:
    """A notebook open in the browser, its kernel connected.

    Args:
        lab: the server.
        page: Playwright's page, empty.
        path: of the notebook on the server.
        screenshots: folder for them.
    """

    def __init__(self, lab: Lab, page: Page, path: str, screenshots: Path):
        self.lab, self.page, self.path, self._screenshots = lab, page, path, screenshots
        page.goto(f"{lab.address}/lab/tree/{path}?token={lab.token}&reset", timeout=1000 * START_SECONDS)
        self.wait_idle()

    @property
    def folder(self) -> Path:
        """Where the notebook lies, and its kernel starts."""
        return (self.lab.root / self.path).parent

    def wait_idle(self, seconds: float = RUN_SECONDS) -> None:
        """Wait until the notebook is loaded and its kernel connected and idle."""
        self.page.wait_for_function(READY, timeout=1000 * seconds, polling=50)

    def run_all(self, seconds: float = RUN_SECONDS, wait: bool = True) -> None:
        """Run all cells, by default to the end.

        Args:
            seconds: longest wait.
            wait: False to come back while they run; `wait_done` waits later.
        Raises:
            AssertionError: a cell failed; tells its error.
        """
        self.command("notebook:clear-all-cell-outputs")
        self.page.evaluate("void jupyterapp.commands.execute('notebook:run-all-cells')")
        if wait:
            self.wait_done(seconds)

    def wait_done(self, seconds: float = RUN_SECONDS) -> None:
        """Wait until every code cell has run; raises AssertionError where one failed."""
        self.page.wait_for_function(FINISHED, timeout=1000 * seconds, polling=50)
        errors = [output for cell in self.cells() for output in cell["outputs"] if output["output_type"] == "error"]
        assert not errors, "\n".join(errors[0]["traceback"])
        self.wait_idle(seconds)

    def restart(self) -> None:
        """Restart the kernel; outputs stay as they are."""
        self.page.evaluate(
            "async () => { await jupyterapp.shell.currentWidget.context.sessionContext.restartKernel() }"
        )
        self.wait_idle()

    def command(self, name: str, **options: Any) -> None:
        """Execute a command of JupyterLab, such as 'notebook:interrupt-kernel', with its arguments."""
        self.page.evaluate(
            "async ([name, options]) => { await jupyterapp.commands.execute(name, options) }", [name, options]
        )

    def use_theme(self, name: str) -> None:
        """Show JupyterLab in its theme "Light" or "Dark"; the command alone comes back before that."""
        self.command("apputils:change-theme", theme=f"JupyterLab {name}")
        expect(self.page.locator("body")).to_have_attribute("data-jp-theme-name", f"JupyterLab {name}")
        expect(self.page.locator("#jupyterlab-splash")).to_have_count(0)

    def cells(self) -> list[dict[str, Any]]:
        """Type, source, execution count, running and outputs (as in the file) of each cell, from the model."""
        return self.page.evaluate(CELLS)

    def text(self, cell: int) -> str:
        """What a code cell printed, and its value as plain text."""
        parts = []
        for output in self.cells()[cell]["outputs"]:
            part = output.get("text") or output.get("data", {}).get("text/plain", "")
            parts.append(part if isinstance(part, str) else "".join(part))
        return "".join(parts)

    def output(self, cell: int) -> Locator:
        """The place on the page where a code cell's output stands; scrolled into view."""
        show = "panel.content.activeCellIndex = index; await panel.content.scrollToItem(index);"
        self.page.evaluate(f"async index => {{ {SHOWN} {show} }}", cell)
        return self.page.locator(f".jp-Notebook .jp-Cell[data-windowed-list-index='{cell}'] .jp-Cell-outputWrapper")

    def selection(self) -> tuple[int, int]:
        """Index of the selected cell and number of cells, when JupyterLab has done what keys asked it for."""
        active, count = self.page.evaluate(
            f"async () => {{ await {AFTER_KEYS}; {SHOWN} return [panel.content.activeCellIndex, cells.length]; }}"
        )
        return active, count

    def screenshot(self, name: str) -> Path:
        """Take a picture of the window, into $KANJILAB_SCREENSHOTS or a temporary folder."""
        path = self._screenshots / f"{name}.png"
        self.page.screenshot(path=path)
        return path
