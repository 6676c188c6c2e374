"""kanjilab coin: the folder it leaves, what it prints, and what it refuses."""

import json
import re
from functools import partial
from html.parser import HTMLParser

import numpy as np
import pytest
from fontTools.ttLib import TTFont
from PIL import Image
from typer.testing import CliRunner

from kanjilab.cli.coin_command import folder_name, sketch
from kanjilab.cli.coin_folder import is_finished
from kanjilab.cli.main import app
from kanjilab.experiments import coining
from kanjilab.experiments.certificate import Certificate
from tests.typeset_writer import draw, few_neighbours, noise, word_vectors

QUICK = ["--noises", "2", "--keep", "2"]


def call(*arguments):
    return CliRunner().invoke(app, ["coin", *map(str, arguments)])


@pytest.fixture(scope="module", autouse=True)
def typesetting():
    """The command with a writer that typesets, and no model to load."""
    with few_neighbours(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(coining, "coin", partial(coining.coin, draw=draw, embed=word_vectors))
        yield


@pytest.fixture(scope="module")
def coined(tmp_path_factory):
    """A folder, and what the command said."""
    folder = tmp_path_factory.mktemp("coined") / "out"
    result = call("fire jewel", *QUICK, "--out", folder)
    assert result.exit_code == 0, result.output
    return folder, result.output


def test_every_file_is_there(coined):
    folder, _ = coined
    numbered = [f"{number:02d}.{kind}" for number in (1, 2) for kind in ("json", "png", "svg")]
    expected = [*numbered, "coin.json", "coined.ttf", "coined.woff2", "index.html"]
    assert sorted(path.name for path in folder.iterdir()) == sorted(expected)
    for number in (1, 2):
        certificate = Certificate.from_json(json.loads((folder / f"{number:02d}.json").read_text("utf-8")))
        pixels = np.asarray(Image.open(folder / f"{number:02d}.png"))
        assert (pixels == draw([certificate.prompt], [certificate.seed])[0]).all()
        assert len((folder / f"{number:02d}.svg").read_bytes()) <= 4096
    assert set(TTFont(folder / "coined.ttf").getBestCmap()) == {0x20, 0xE000, 0xE001}


def test_the_output_is_a_table_and_the_path_of_the_card(coined):
    folder, said = coined
    assert "10 candidates, of which" in said and said.rstrip().endswith(str(folder / "index.html"))
    head = next(line for line in said.splitlines() if "two_or_more" in line)
    assert head.split() == "parts two_or_more distinct novel legal meaning nearest asked".split()
    row = next(line for line in said.splitlines() if line.startswith("01"))
    assert row.count("yes") == 5 and re.search(r"U\+[0-9A-F]{4,5} \d\.\d\d", row)


def test_the_same_call_shows_what_it_left(coined, monkeypatch):
    folder, said = coined
    monkeypatch.setattr(coining, "coin", None)  # nothing is drawn again
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    again = call("fire jewel", *QUICK, "--out", folder)
    assert again.exit_code == 0 and again.output.splitlines() == said.splitlines()[1:]
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_another_folder_is_left_alone(coined, tmp_path):
    folder, _ = coined
    (tmp_path / "mine.txt").write_text("keep")
    for arguments in (["fire jewel", *QUICK, "--seed", "7", "--out", folder], ["fire jewel", "--out", tmp_path]):
        result = call(*arguments)
        assert result.exit_code == 1 and "holds something else: choose another folder with --out" in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_an_empty_folder_is_filled(tmp_path):
    assert not is_finished(tmp_path, {}) and not is_finished(tmp_path / "none", {})
    result = call("anything", "--parts", "fire+jewel", "--noises", "1", "--out", tmp_path)
    assert result.exit_code == 0, result.output
    assert (tmp_path / "index.html").is_file()


class Words(HTMLParser):
    """The texts of a page and the addresses that it names."""

    def __init__(self, page):
        super().__init__()
        self.texts, self.addresses = [], []
        self.feed(page)

    def handle_data(self, data):
        self.texts.append(data)

    def handle_starttag(self, tag, attributes):
        self.addresses += [value for name, value in attributes if name in ("href", "src")]


def test_the_card_holds_everything_and_reaches_for_nothing(coined):
    folder, _ = coined
    words = Words((folder / "index.html").read_text("utf-8"))
    text = " ".join(words.texts)
    certificate = Certificate.from_json(json.loads((folder / "01.json").read_text("utf-8")))
    for criterion in certificate.report.criteria:
        assert f"(least {criterion.threshold:.3g})" in text
    for expected in (
        "not in the list of 8,788 characters",
        "U+E000 to U+E001",
        "\ue000 \ue001",
        "Judge B, which reports",
    ):
        assert expected in text
    files = [address for address in words.addresses if not address.startswith("#")]
    assert len(files) == 6 and all((folder / name).is_file() for name in files)
    page = (folder / "index.html").read_text("utf-8")
    assert page.count("<svg") == 4 and "http" not in page.replace("http-equiv", "")


def test_markup_in_a_phrase_stays_text(tmp_path):
    result = call("<b>fire</b> & jewel", "--noises", "1", "--keep", "1", "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    page = (tmp_path / "out" / "index.html").read_text("utf-8")
    assert "<b>fire" not in page and "&lt;b&gt;fire&lt;/b&gt; &amp; jewel" in page


def test_a_long_phrase_leaves_the_outlines_short(tmp_path):
    result = call("fire & jewel " * 200, "--noises", "1", "--keep", "1", "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert len((tmp_path / "out" / "01.svg").read_bytes()) <= 4096


def test_a_translation_is_labelled(tmp_path):
    result = call("火の玉", "--noises", "1", "--keep", "1", "--out", tmp_path / "out")
    assert "Read as Japanese." in result.output and "translated by the dictionary: fire jewel" in result.output
    assert "translated by the dictionary: fire jewel" in (tmp_path / "out" / "index.html").read_text("utf-8")


def test_nothing_found_is_said(tmp_path, monkeypatch):
    def scribble(prompts, seeds):
        return np.stack([noise(seed) for _ in prompts for seed in seeds])

    monkeypatch.setattr(coining, "coin", partial(coining.coin, draw=scribble))
    result = call("x", "--parts", "fire+jewel", "--noises", "1", "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert "Nothing found" in result.output and "not well-formed" in result.output
    assert "rejected by judge A: not well-formed" in (tmp_path / "out" / "index.html").read_text("utf-8")


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["물고기"], "cannot be read: Hangul letters are not understood"),
        (["x", "--parts", "waer+fire"], "no part of characters is called 'waer'; near it are water"),
        (["x", "--parts", "lid+walk"], "are never in two slots that fit"),
        (["x", "--layout", "diagonal"], "expected a layout of left-right, top-bottom, outside-inside"),
        ([" "], "expected a phrase, got none"),
    ],
)
def test_refusals_are_one_line_and_leave_nothing(arguments, complaint, tmp_path):
    result = call(*arguments, "--out", tmp_path / "out")
    assert result.exit_code == 1 and complaint in result.stderr and "Traceback" not in result.output
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("option", ["--noises", "--keep"])
def test_a_number_out_of_range_is_a_fault_of_the_command(option, tmp_path):
    result = call("x", option, "0", "--out", tmp_path / "out")
    assert result.exit_code == 2 and f"Invalid value for '{option}'" in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_folders_are_named_by_the_phrase():
    assert folder_name("Queen of dragons!") == "queen-of-dragons"
    assert folder_name("火の玉", "女+竜") == "火の玉-女-竜"
    assert folder_name("../..") == "phrase"


def test_a_sketch_has_two_rows_of_cells_in_a_line():
    image = np.full((8, 8), 255, np.uint8)
    image[:2, :4] = 0  # above left
    image[2:4, 2:] = 0
    assert sketch(image, columns=4) == "▀█▄▄\n"
