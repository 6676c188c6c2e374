"""docs/api.md: every name that the package offers, and an example of each that runs."""

import ast
import re
from functools import partial
from importlib import import_module

import pandas as pd
import pytest

import kanjilab
from kanjilab.data.dictionary import load_characters
from kanjilab.evaluation.judges import radical_judge
from kanjilab.experiments import packs
from kanjilab.experiments.coining import coin
from kanjilab.training.cost import Cost
from tests.docs.pages import DOCS, ROOT, examples, run_examples
from tests.typeset_writer import few_neighbours, word_vectors

PAGE = (DOCS / "api.md").read_text(encoding="utf-8")
SECTION = re.compile(r"^### `(\w+)`\n(.*?)(?=^##|\Z)", re.MULTILINE | re.DOTALL)
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
        (example,) = examples(text)
        assert re.search(rf"kanjilab\.{name}\b", example), name


def test_every_example_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    # A judge of every character, and a measured plan, would take most of the time; both have tests of their own.
    monkeypatch.setattr(radical_judge, "load_characters", lambda: load_characters().iloc[::4])
    monkeypatch.setattr(packs, "measure_steps", lambda *arguments, **options: Cost(1.0, 1.0))
    # The writer draws, but captions of all characters are not embedded, nor all outlines measured.
    monkeypatch.setattr(kanjilab, "coin", partial(coin, embed=word_vectors), raising=False)
    with few_neighbours():
        names = run_examples(examples(PAGE), "api.md")
    printed = capsys.readouterr().out
    for line in ("64 (1, 128, 128)", "(1, 2, 2, 128, 128)", "1.0 4", "unet epsilon"):
        assert f"{line}\n" in printed
    assert names["images"].dtype == "uint8" and len(names["table"]) == len(names["prompts"].captions)
    assert names["run"].checkpoints()[0] == 0 and names["run"].arm(1).rank == 8
    assert isinstance(names["stored"].rates(), pd.DataFrame)
    assert all((tmp_path / name).is_file() for name in ("strip.png", "strip.json", "reading.png"))
    assert "2 candidates" in printed and (tmp_path / "coined" / "fire-bird" / "01.svg").is_file()
    assert all(list((tmp_path / folder).glob("*.safetensors")) for folder in ("lora", "comfyui/loras"))
