"""What holds for every test: no network, no file in the user's home, the slow ones first."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

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
    # Of several processes all have the first one's cache: judges are fitted and bases put together once.
    cache = os.environ["XDG_CACHE_HOME"] if "PYTEST_XDIST_WORKER" in os.environ else f"{home}/.cache"
    for name in (*CACHE_FOLDERS, *JUPYTER_FOLDERS, *XDG_FOLDERS):
        os.environ.pop(name, None)
    guard = str(Path(__file__).parent / "offline")
    search_path = os.pathsep.join(filter(None, [guard, os.environ.get("PYTHONPATH")]))
    # One thread, here and in kernels: the models are so small that threads would mostly wait for each other.
    os.environ.update(OFFLINE, HOME=home, XDG_CACHE_HOME=cache, PYTHONPATH=search_path, OMP_NUM_THREADS="1")
    network_guard.forbid_network()
    torch.set_num_threads(1)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The browser's tests first, then notebooks, then plain tests.

    What takes long goes first, the later notebooks and rooms before the others, so that in the end no process waits
    long for another.
    """
    places = {path: place for place, path in enumerate(dict.fromkeys(item.path for item in items))}

    def order(numbered: tuple[int, pytest.Item]) -> tuple[int, int]:
        number, item = numbered
        if item.get_closest_marker("browser"):
            return 0, number
        return (1, -number) if item.get_closest_marker("notebook") else (2, -places[item.path])

    items[:] = [item for _, item in sorted(enumerate(items), key=order)]


@pytest.hookimpl(optionalhook=True)  # there is no such hook without xdist
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Of several processes one takes the browser, or a file whole, so that its fixtures are made once, or a notebook.

    (Groups of `--dist loadgroup` come to nothing under pytest 9.2, which lost the name that xdist 3.8 writes them to.)
    """
    from xdist.scheduler import LoadScopeScheduling

    class Scheduling(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            if nodeid.startswith("tests/test_notebooks.py::test_runs_"):
                return nodeid
            return "browser" if nodeid.startswith("tests/browser/") else nodeid.partition("::")[0]

    config.option.loadscopereorder = False  # the order is that of `pytest_collection_modifyitems`
    return Scheduling(config, log)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print what tests measured (`record_property("measured", text)`), at the end, whichever process ran them."""
    for report in terminalreporter.getreports("passed"):
        for name, value in report.user_properties:
            if name == "measured":
                terminalreporter.write_line(str(value))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny pipeline in diffusers' format."""
    from tests.tiny import save_tiny_pipeline  # not before the environment is set

    return save_tiny_pipeline(tmp_path_factory.mktemp("tiny") / "base")


@pytest.fixture(scope="module")
def base(folder: Path):
    """The same, loaded."""
    from kanjilab.models.loading import load_base

    return load_base(folder)


@pytest.fixture(scope="session")
def sd3_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Stable Diffusion 3 in diffusers' format."""
    from kanjilab.models.tiny_sd3 import save_miniature_sd3

    return save_miniature_sd3(tmp_path_factory.mktemp("tiny") / "sd3")


@pytest.fixture(scope="module")
def sd3_base(sd3_folder: Path):
    """The same, loaded."""
    from kanjilab.models.loading import load_base

    return load_base(sd3_folder)


@pytest.fixture(scope="session")
def study(tmp_path_factory: pytest.TempPathFactory):
    """A study of six tiny trainings in two packs."""
    from tests.tiny import save_tiny_pipeline
    from tests.tiny_study import four_radicals, tiny_study

    folder = tmp_path_factory.mktemp("study")
    return tiny_study(save_tiny_pipeline(folder / "base"), four_radicals(folder / "images"))


@pytest.fixture(scope="session")
def finished(study, tmp_path_factory: pytest.TempPathFactory):
    """The same done in one go: its folder, report, and what was said."""
    from tests.tiny_study import make_small, run

    folder = tmp_path_factory.mktemp("studies") / "whole"
    with pytest.MonkeyPatch.context() as patch:
        make_small(patch)
        return folder, *run(study, folder, keep_adapters=True)


@pytest.fixture(scope="session")
def some_kanji(tmp_path_factory: pytest.TempPathFactory):
    """Some 190 of the kanji with water, tree or person on the left, a fifth of them held out."""
    from kanjilab.data.build import build_dataset
    from kanjilab.data.dictionary import load_characters
    from kanjilab.data.selection import EveryCharacter

    table = load_characters()
    rows = table.loc[table["radical"].isin([85, 75, 9]) & (table["jis_order"] < 4000).fillna(False)]
    folder = tmp_path_factory.mktemp("data") / "some"
    return build_dataset(EveryCharacter(), folder, characters=rows, held_out_share=0.2)


@pytest.fixture(scope="module")
def small_lab() -> Iterator[None]:
    """Small pictures, and nothing is measured."""
    from tests.tiny_study import make_small

    with pytest.MonkeyPatch.context() as patch:
        make_small(patch)
        yield


@pytest.fixture(autouse=True)
def network_attempts() -> Iterator[list[str]]:
    """Connections tried during a test; one that provokes them on purpose takes this fixture and clears it."""
    network_guard.attempts.clear()
    yield network_guard.attempts
    assert network_guard.attempts == [], "the test reached for another machine"
