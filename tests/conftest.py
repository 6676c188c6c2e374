"""What holds for every test: no network, no file in the user's home, notebooks last."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import network_guard
import pytest
import torch

OFFLINE = {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "DO_NOT_TRACK": "1",
    "TOKENIZERS_PARALLELISM": "false",  # else it warns whenever a test forks
}
# Each would lead out of the temporary home, which otherwise holds every cache.
CACHE_FOLDERS = ("HF_HOME", "HF_HUB_CACHE", "HF_DATASETS_CACHE", "TORCH_HOME", "MPLCONFIGDIR", "IPYTHONDIR")
JUPYTER_FOLDERS = ("JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR")
XDG_FOLDERS = ("XDG_CACHE_HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME", "XDG_STATE_HOME", "XDG_RUNTIME_DIR")


def pytest_configure(config: pytest.Config) -> None:
    git_settings = Path.home() / ".gitconfig"
    if git_settings.exists():
        os.environ.setdefault("GIT_CONFIG_GLOBAL", str(git_settings))
    home = tempfile.mkdtemp(prefix="kanjilab-home-")
    config.add_cleanup(lambda: shutil.rmtree(home, ignore_errors=True))
    for name in (*CACHE_FOLDERS, *JUPYTER_FOLDERS, *XDG_FOLDERS):
        os.environ.pop(name, None)
    guard = str(Path(__file__).parent / "offline")
    search_path = os.pathsep.join(filter(None, [guard, os.environ.get("PYTHONPATH")]))
    os.environ.update(OFFLINE, HOME=home, PYTHONPATH=search_path)
    network_guard.forbid_network()
    torch.set_num_threads(1)  # the models are so small that threads would mostly wait for each other


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.get_closest_marker("notebook") is not None)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny pipeline in diffusers' format."""
    from tests.tiny import save_tiny_pipeline  # not before the environment is set

    return save_tiny_pipeline(tmp_path_factory.mktemp("tiny") / "base")


@pytest.fixture(scope="module")
def base(folder: Path):
    """The same, loaded."""
    from kanjilab.bases import load_base

    return load_base(folder)


@pytest.fixture(autouse=True)
def network_attempts() -> Iterator[list[str]]:
    """Connections tried during a test; one that provokes them on purpose takes this fixture and clears it."""
    network_guard.attempts.clear()
    yield network_guard.attempts
    assert network_guard.attempts == [], "the test reached for another machine"
