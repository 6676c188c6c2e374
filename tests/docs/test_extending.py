"""docs/extending.md, docs/own-data.md and docs/coin.md: what they show works as it is written there."""

import re
from functools import partial

import pytest
from PIL import Image

import kanjilab
from kanjilab.data.image_folder import DatasetError, open_dataset
from kanjilab.experiments import designs
from kanjilab.experiments.coining import coin
from kanjilab.experiments.report import StoredStudy
from tests.docs.pages import DOCS, examples, run_examples
from tests.typeset_writer import draw, few_neighbours, word_vectors


def test_a_base_a_condition_a_judge_and_a_study_are_added_as_the_page_says(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(designs, "DESIGNS", dict(designs.DESIGNS))
    names = run_examples(examples((DOCS / "extending.md").read_text(encoding="utf-8")), "extending.md")
    assert "mmdit ('flow-euler',)\n" in capsys.readouterr().out
    assert names["images"].shape == (1, 1, 1, 128, 128)
    assert names["led"].shape == names["images"].shape
    assert (names["readings"]["radical"] == names["dataset"].table["radical_character"]).all()
    assert StoredStudy.read("studies/bars", "ink").labels == ["rank 2", "rank 4"]
    assert designs.make_study("dropout", "smoke").claim == "more caption dropout draws better"


def test_faults_are_listed_as_the_page_shows(tmp_path):
    page = (DOCS / "own-data.md").read_text(encoding="utf-8")
    (metadata,) = re.findall(r"^```\n(file_name.*?)^```", page, re.MULTILINE | re.DOTALL)
    (message,) = re.findall(r"^```\n(my-glyphs: .*?)\n```", page, re.MULTILINE | re.DOTALL)
    folder = tmp_path / "my-glyphs"
    (folder / "more").mkdir(parents=True)
    (folder / "metadata.csv").write_text(metadata.replace("a dog", ""))
    (folder / "a.png").touch()
    Image.new("L", (8, 8)).save(folder / "more" / "b.jpg")
    with pytest.raises(DatasetError) as caught:
        open_dataset(folder)
    found = str(caught.value).replace(str(folder), "my-glyphs").splitlines()
    assert [line for line in message.splitlines() if line not in found] == []


def test_a_kanji_is_coined_as_the_page_says(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(kanjilab, "coin", partial(coin, draw=draw, embed=word_vectors), raising=False)
    with few_neighbours():
        names = run_examples(examples((DOCS / "coin.md").read_text(encoding="utf-8")), "coin.md")
    assert "2 candidates" in capsys.readouterr().out and len(names["coinage"].glyphs) == 1
    assert (tmp_path / "coined" / "fire-bird" / "index.html").is_file()
