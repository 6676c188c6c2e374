"""The examples: the script trains, the notebook's cells name what is there, the Space serves the page."""

import ast
import importlib
import json
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
import yaml

import kanjilab
from kanjilab.models.sampling import Sampling
from tests.image_folders import eight_kanji
from tests.test_notebooks import code_cells, outcome_faults

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"
DOCKERFILE = (EXAMPLES / "space" / "Dockerfile").read_text(encoding="utf-8")
TORCH = re.compile(r"torch==([\d.]+)")


# The script


def run_script(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["own_dataset.py", *map(str, arguments)])
    runpy.run_path(str(EXAMPLES / "own_dataset.py"), run_name="__main__")


def test_a_folder_of_ones_own_is_trained_on_and_drawn(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(kanjilab, "Sampling", lambda sampler, steps, guidance: Sampling(sampler, 1, guidance))
    folder, run = eight_kanji(tmp_path / "own"), tmp_path / "run"
    run_script(monkeypatch, folder, run, 16)
    strip = json.loads((run / "strip.json").read_text(encoding="utf-8"))
    assert f"{run / 'strip.png'}" in capsys.readouterr().out and (run / "strip.png").is_file()
    assert "carp" in strip["row_labels"][0] and kanjilab.RunFolder.open(run).read_log()["images_seen"].iloc[-1] == [16]
    with pytest.raises(ValueError, match="expected a folder of images"):
        run_script(monkeypatch, tmp_path / "nowhere", run)
    with pytest.raises(SystemExit, match="python examples/own_dataset.py FOLDER RUN"):
        run_script(monkeypatch, folder)


# The notebook


@pytest.fixture(scope="module")
def notebook():
    return nbformat.read(EXAMPLES / "colab.ipynb", as_version=4)


@pytest.fixture(scope="module")
def cells(notebook):
    """The code cells of the notebook, by id, parsed."""
    return {cell.id: ast.parse(cell.source) for cell in code_cells(notebook)}


def test_the_notebook_is_one_clean_run_with_what_it_draws(notebook):
    cells = code_cells(notebook)
    assert [cell.execution_count for cell in cells] == [1, 2, 3, 4, 5] and outcome_faults(notebook) == []
    assert [[output.output_type for output in cell.outputs] for cell in cells] == [
        [], [], ["stream", "execute_result"], ["execute_result"], ["execute_result"],
    ]  # fmt: skip


def test_what_the_notebook_imports_is_there(cells):
    asked = 0
    for node in (node for cell in cells.values() for node in ast.walk(cell)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("kanjilab"):
            module = importlib.import_module(node.module)
            assert [alias.name for alias in node.names if not hasattr(module, alias.name)] == []
            asked += len(node.names)
        elif isinstance(node, ast.Attribute) and ast.unparse(node.value) == "kanjilab":
            assert hasattr(kanjilab, node.attr)
            asked += 1
    assert asked >= 6


def test_the_notebook_installs_what_the_package_needs_from_the_one_address(cells, monkeypatch, tmp_path):
    ran, names = [], {}
    monkeypatch.chdir(tmp_path)
    (tmp_path / "kanjilab-source").symlink_to(ROOT)
    monkeypatch.setattr(subprocess, "run", lambda words, check: ran.append([str(word) for word in words]))
    for name in ("address", "install"):
        exec(compile(cells[name], name, "exec"), names)
    assert names["ADDRESS"] == ""
    needs, source = ran
    assert {"diffusers", "jamdict-data", "anywidget"} <= {word.partition("==")[0] for word in needs[5:]}
    assert all("==" in word for word in needs[5:]) and not any(word.startswith("torch") for word in needs)
    missing = set(names["names"]) - {word.partition("==")[0] for word in needs[5:]}
    assert not missing and source[-2:] == ["--no-deps", str(tmp_path / "kanjilab-source")]  # a path


# The Space


def test_the_space_is_described_as_it_is_served():
    header = yaml.safe_load((EXAMPLES / "space" / "README.md").read_text(encoding="utf-8").split("---")[1])
    port = header["app_port"]
    assert header["sdk"] == "docker" and header["license"] == "apache-2.0" and len(header["short_description"]) <= 60
    assert f"EXPOSE {port}\n" in DOCKERFILE and f"--port={port} " in DOCKERFILE
    assert DOCKERFILE.index("USER visitor") < DOCKERFILE.index("git clone") and "USER root" not in DOCKERFILE


def test_the_space_installs_the_makefiles_torch():
    [pinned] = TORCH.findall(DOCKERFILE)
    assert {pinned} == set(TORCH.findall((ROOT / "Makefile").read_text() + (ROOT / "constraints.txt").read_text()))


def test_the_space_serves_under_its_own_name_and_in_the_frame_that_shows_it(tmp_path):
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\necho "$KANJILAB_HOSTS $*"\n')
    python.chmod(0o755)
    command = json.loads(re.findall(r"^CMD (.*)$", DOCKERFILE, re.MULTILINE)[0])
    path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
    said = [
        subprocess.run(command, env={"PATH": path} | names, capture_output=True, text=True, check=True).stdout
        for names in ({"SPACE_HOST": "a-b.hf.space"}, {"SPACE_HOST": "a-b.hf.space", "KANJILAB_HOSTS": "c.org"})
    ]
    served = "app/serve.py --port=7860 --Voila.ip=0.0.0.0"
    assert said == [f"a-b.hf.space {served}\n", f"c.org {served}\n"]
    assert "ENV KANJILAB_FRAMES=https://huggingface.co\n" in DOCKERFILE and (ROOT / "app" / "serve.py").is_file()
