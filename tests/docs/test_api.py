"""docs/api.md: every name that the package offers, and an example of each that runs."""

import ast
import re
from importlib import import_module
from pathlib import Path

import pandas as pd
import pytest

import kanjilab

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
SECTION = re.compile(r"^### `(\w+)`\n(.*?)(?=^##|\Z)", re.MULTILINE | re.DOTALL)
EXAMPLE = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)
ROOMS = {path.parent.name for path in (ROOT / "kanjilab").glob("*/__init__.py")}


def typed_imports() -> dict[str, str]:
    """Name -> module in the block for type checkers."""
    tree = ast.parse((ROOT / "kanjilab" / "__init__.py").read_text(encoding="utf-8"))
    (block,) = (node for node in tree.body if isinstance(node, ast.If))
    return {node.names[0].asname: node.module for node in block.body}


def test_type_checkers_see_what_running_code_gets():
    typed = typed_imports()
    assert list(kanjilab.__all__) == sorted(typed)
    for name, module in typed.items():
        assert getattr(kanjilab, name) is getattr(import_module(module), name)
    assert set(kanjilab.__all__) <= set(dir(kanjilab))


def test_no_name_hides_a_room():
    assert ROOMS & set(kanjilab.__all__) == set()
    for room in ROOMS:
        assert import_module(f"kanjilab.{room}") is getattr(kanjilab, room)


def test_an_unknown_name_is_refused():
    with pytest.raises(AttributeError, match="no attribute 'load_bases'; it offers Arm, DEMO_ARM"):
        _ = kanjilab.load_bases


def test_the_page_documents_each_name_with_one_example():
    sections = dict(SECTION.findall(PAGE))
    assert sorted(sections) == kanjilab.__all__
    for name, text in sections.items():
        (example,) = EXAMPLE.findall(text)
        assert re.search(rf"kanjilab\.{name}\b", example), name


def test_every_example_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    for number, example in enumerate(EXAMPLE.findall(PAGE)):
        exec(compile(example, f"api.md, example {number}", "exec"), names)
    printed = capsys.readouterr().out
    for line in ("64 (1, 128, 128)", "(1, 2, 2, 128, 128)", "1.0 4", "unet epsilon", "[0, 2, 4] 8"):
        assert f"{line}\n" in printed
    assert names["images"].dtype == "uint8" and len(names["table"]) == len(names["prompts"].captions)
    assert isinstance(names["stored"].rates(), pd.DataFrame)
    written = {"strip.png", "strip.json", "reading.png", "lora.safetensors", "comfyui.safetensors"}
    assert written <= {path.name for path in tmp_path.iterdir()}
