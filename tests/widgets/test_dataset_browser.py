"""The dataset browser: filters by hand, what a glyph's entry says, and the panel driven as the page drives it."""

import re
import shutil
import statistics
import threading
import time
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from kanjilab.data.dictionary import load_characters
from kanjilab.data.image_folder import open_dataset
from kanjilab.widgets import DatasetBrowser, dataset_browser
from kanjilab.widgets.dataset_browser import (
    PAGE_GLYPHS,
    Filter,
    balance_table,
    entry_facts,
    filter_table,
    grade_name,
    pages,
    same_caption,
)
from kanjilab.widgets.glyph_grid import GlyphGrid
from tests.image_folders import CHARACTERS, HOSTILE, eight_kanji, write_dataset


@pytest.fixture(scope="module")
def kanji(tmp_path_factory):
    return eight_kanji(tmp_path_factory.mktemp("data") / "kanji")


@pytest.fixture
def browser(kanji):
    return DatasetBrowser(kanji)


def found(dataset, chosen):
    return "".join(dataset.table["character"].iloc[filter_table(dataset.table, chosen)])


def wait_for(condition, seconds=30):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it never came"
        time.sleep(0.02)


# Pure functions


@pytest.mark.parametrize(
    ("chosen", "characters"),
    [
        (Filter(), CHARACTERS),
        (Filter(text="CARP"), "鯉鮒"),
        (Filter(text="  carp "), "鯉鮒"),
        (Filter(text="no such word"), ""),
        (Filter(radicals=("人", "木")), "信仏柵"),
        (Filter(positions=("left",)), "鯉鮒鯨信仏柵淵"),
        (Filter(splits=("held_out",)), "仏淵"),
        (Filter(strokes=(0, 4)), "仏火"),
        (Filter(strokes=(9, 9)), "信柵"),
        (Filter(radicals=("人",), splits=("train",)), "信"),
        (Filter(text="onerror"), "火"),
    ],
)
def test_each_condition_lets_the_right_glyphs_pass(kanji, chosen, characters):
    assert found(open_dataset(kanji), chosen) == characters


def test_a_filter_on_what_the_dataset_does_not_say_is_refused():
    table = pd.DataFrame({"file_name": ["a.png"], "text": ["fish"], "split": ["train"]})
    assert list(filter_table(table, Filter(text="fish", splits=("train",)))) == [0]
    for chosen in (Filter(radicals=("水",)), Filter(positions=("left",)), Filter(strokes=(1, 4))):
        with pytest.raises(ValueError, match="expected a dataset with the column"):
            filter_table(table, chosen)
    with pytest.raises(ValueError, match="fewest and most"):
        Filter(strokes=(5, 4))


def test_balance_counts_only_what_passes(kanji):
    table = open_dataset(kanji).table
    counts = balance_table(table, filter_table(table, Filter(strokes=(5, 99))))
    assert counts.to_dict("index") == {
        "魚": {"on the left": 3, "elsewhere": 0},
        "人": {"on the left": 1, "elsewhere": 0},
        "木": {"on the left": 1, "elsewhere": 0},
        "水": {"on the left": 1, "elsewhere": 0},
    }
    assert balance_table(table, np.array([7])).to_dict("index") == {"火": {"on the left": 0, "elsewhere": 1}}
    assert balance_table(table[["text", "split"]], np.array([0, 4]))["glyphs"].to_dict() == {"train": 1, "held_out": 1}
    assert len(balance_table(table, np.zeros(0, int))) == 0


def test_the_same_caption_by_group_or_by_text():
    table = pd.DataFrame({"text": ["Carp", "carp", "carp;koi", "fish"], "group": [1, 2, 1, 3]})
    assert list(same_caption(table, 0)) == [2]
    assert list(same_caption(table[["text"]], 0)) == [1]
    assert list(same_caption(table, 3)) == []


def test_an_entry_says_what_the_dictionary_knows(kanji):
    table = open_dataset(kanji).table
    facts = entry_facts(table.iloc[0], load_characters())
    assert facts["meanings"] == "carp" and facts["radical"] == "魚 (no. 195), left" and facts["strokes"] == "18"
    assert "こい" in facts["readings"] and facts["split"] == "train"
    stranger = entry_facts(table.iloc[0].drop("character"), load_characters())
    assert list(stranger) == ["caption", "split", "file"]


@pytest.mark.parametrize(("count", "expected"), [(0, 1), (1, 1), (PAGE_GLYPHS, 1), (PAGE_GLYPHS + 1, 2)])
def test_pages(count, expected):
    assert pages(count) == expected


# The grid


def test_a_grid_refuses_lists_that_do_not_fit():
    grid = GlyphGrid("some")
    grid.fill([b"a", b"b"], ["one", "two"], selected=1)
    assert grid.names == ["one", "two"] and grid.choice == 1
    for wrong in (([b"a"], ["one", "two"]), ([b"a"], ["one"], ["one", "two"])):
        with pytest.raises(ValueError, match="as many pictures"):
            grid.fill(*wrong)
    with pytest.raises(ValueError, match="one of them"):
        grid.fill([b"a"], ["one"], selected=1)
    grid.selected = 7  # a page may send anything
    assert grid.choice is None


# The panel


def test_typing_filters_the_grid(browser):
    browser.text.value = "carp"
    assert browser.grid.names == ["鯉: carp", "鮒: carp"] and "2 of 8 glyphs" in browser.status.value
    browser.radicals.value = ("人",)
    assert browser.grid.pictures == [] and "0 of 8 glyphs" in browser.status.value
    with pytest.raises(ValueError, match="nothing to draw"):
        browser.picture()
    browser.clear.click()
    assert len(browser.grid.pictures) == 8 and browser.filter == Filter()


def test_choosing_shows_entry_and_group(browser):
    browser.grid.selected = 1
    assert browser.selected == 1 and "鮒" in browser.entry.value
    assert browser.same.names == ["鯉: carp"]
    browser.same.selected = 0
    assert browser.selected == 0 and browser.grid.selected == 0 and browser.same.names[0].startswith("鮒")


def test_the_code_builds_the_same_view(browser):
    browser.text.value, browser.split.value = "a", ("train",)
    browser.grid.selected = 1
    again = eval(browser.code, {"DatasetBrowser": DatasetBrowser, "Filter": Filter, "Path": Path})
    assert again.filter == browser.filter and again.selected == browser.selected
    assert again.grid.pictures == browser.grid.pictures and again.grid.selected == browser.grid.selected


def test_a_hostile_caption_is_text_everywhere(browser):
    browser.grid.selected = CHARACTERS.index("火")
    assert "onerror" in browser.entry.value and "<img src=x" not in browser.entry.value
    assert HOSTILE in browser.grid.captions[7]  # set by textContent, so it is not escaped here


def test_the_nearest_in_shape_are_other_glyphs(browser, tmp_path, monkeypatch):
    monkeypatch.setenv("KANJILAB_CACHE", str(tmp_path))
    browser.grid.selected = CHARACTERS.index("鯉")
    browser.seek.click()
    wait_for(lambda: browser.nearest.pictures)
    assert len(browser.nearest.names) == 7 and not any(name.startswith("鯉") for name in browser.nearest.names)
    assert browser.nearest.names[0][0] in "鮒鯨"  # the two others with a fish on the left
    nearest = browser.nearest.names[0][0]
    browser.nearest.selected = 0
    assert CHARACTERS[browser.selected] == nearest
    assert len(browser.nearest.names) == 7 and not any(name.startswith(nearest) for name in browser.nearest.names)


def test_neighbours_of_a_folder_that_is_no_longer_shown_are_dropped(browser, tmp_path, monkeypatch):
    leave, ended, original = threading.Event(), threading.Event(), browser._fit_neighbours

    def fit(*_):
        assert leave.wait(30)
        return SimpleNamespace(characters=list(CHARACTERS))

    def measured(*given):
        try:
            original(*given)
        finally:
            ended.set()

    monkeypatch.setattr(dataset_browser.Neighbours, "load_or_fit", fit)
    monkeypatch.setattr(browser, "_fit_neighbours", measured)
    browser.seek.click()
    rows = [["a.png", "a cat", "train", "猫"], ["b.png", "a dog", "train", "犬"]]
    pictures = [Image.new("L", (8, 8), 255)] * 2
    browser.opening.open(write_dataset(tmp_path / "other", rows, pictures))
    leave.set()
    assert ended.wait(30)
    browser.grid.selected = 1
    assert browser.selected == 1 and browser.nearest.pictures == [] and not browser.seek.disabled


def bars_of(browser):
    """Glyphs of each radical, as the bars say."""
    found = re.findall(r'<b lang="ja">(.)</b>.*?</span><span>([\d,]+)</span>', browser.chart.value)
    return {name: int(count) for name, count in found}


def test_the_chart_follows_the_filter(browser):
    assert bars_of(browser)["魚"] == 3
    browser.text.value = "carp"
    wait_for(lambda: bars_of(browser).get("魚") == 2 and "人" not in bars_of(browser))


def test_turning_pages(tmp_path):
    rows = [[f"{index}.png", f"caption {index}", "train"] for index in range(PAGE_GLYPHS + 5)]
    folder = write_dataset(tmp_path / "many", rows, [Image.new("L", (8, 8), 255)] * len(rows))
    browser = DatasetBrowser(folder)
    assert browser.previous.disabled and len(browser.grid.pictures) == PAGE_GLYPHS
    browser.next.click()
    assert browser.grid.captions == [f"caption {index}" for index in range(PAGE_GLYPHS, PAGE_GLYPHS + 5)]
    assert browser.next.disabled and "page=2" in browser.code
    browser.text.value = "caption 4"  # 4 and 40 to 44: back to the first page
    assert len(browser.grid.pictures) == 6 and "page=" not in browser.code


def test_anybodys_folder_can_be_browsed(tmp_path):
    rows = [["a.png", "a cat", "train"], ["b.png", "a dog", "test"]]
    browser = DatasetBrowser(write_dataset(tmp_path / "own", rows, [Image.new("RGB", (40, 20), "red")] * 2))
    assert browser.radicals.disabled and browser.fewest.disabled and browser.seek.disabled
    assert not browser.split.disabled
    browser.text.value = "DOG"
    assert browser.grid.captions == ["a dog"] and browser.grid.names == ["a dog"]
    assert browser.picture().axes
    with pytest.raises(ValueError, match="expected a file of this dataset"):
        DatasetBrowser(browser.dataset, selected="c.png")


def test_a_filter_of_1400_glyphs_takes_less_than_100_ms(tmp_path):
    browser = DatasetBrowser(eight_kanji(tmp_path / "many", times=175))
    assert len(browser.rows) == 1400
    seconds = []
    for text in ("c", "ca", "carp", "", "trust", "whale", "fence", "abyss", "a", "e"):
        started = time.thread_time()  # of this thread's own work, however busy the machine is
        browser.text.value = text
        seconds.append(time.thread_time() - started)
    assert statistics.median(seconds) < 0.1


def test_the_detail_follows_the_filter(browser):
    browser.selected = int(browser.rows[-1])
    browser._show_entry()
    before = browser.entry.value
    browser.text.value = "carp"
    assert browser.selected in browser.rows and browser.entry.value != before and "carp" in browser.entry.value
    kept = browser.selected
    browser.text.value = "car"
    assert browser.selected == kept, "it stays while it passes"
    browser.text.value = "no such word"
    assert browser.entry.value == "" and browser.same.pictures == []
    browser.text.value = ""
    assert "carp" in browser.entry.value, "the same glyph comes back"


@pytest.mark.parametrize(
    ("grade", "name"),
    [
        (1, "taught in year 1 of primary school (jōyō)"),
        (6, "taught in year 6 of primary school (jōyō)"),
        (8, "taught in secondary school (jōyō)"),
        (9, "for names (jinmeiyō)"),
        (10, "for names (jinmeiyō), variant of a jōyō kanji"),
        (pd.NA, ""),
    ],
)
def test_grades_have_names(grade, name):
    assert grade_name(grade) == name


def test_a_folder_that_cannot_be_used_is_listed_problem_by_problem(browser, tmp_path):
    folder, before = tmp_path / "mine", browser.dataset
    folder.mkdir()
    hostile = "<img src=x onerror=alert(1)>"
    lines = [f"{number}.png,{hostile}" for number in range(25)]
    (folder / "metadata.csv").write_text("file_name,text\n" + "\n".join(lines))
    browser.opening.open(folder)
    shown = browser.opening.said.value
    assert "Not opened: 25 problems" in shown and shown.count("<li>") == 20 and "and 5 more" in shown
    assert "metadata.csv line 2" in shown and hostile not in shown and browser.dataset is before
    browser.opening.open(tmp_path / "nowhere")
    assert "1 problem" in browser.opening.said.value


def test_another_folder_is_opened(browser, tmp_path):
    other = eight_kanji(tmp_path / "other", times=2)
    browser.opening.path.value = str(other)
    browser.opening.open_button.click()
    assert browser.opening.said.value == "" and len(browser.rows) == 16 and str(other) in browser.code
    browser.text.value = "carp"
    assert 0 < len(browser.rows) < 16, "its own filters"


def uploaded(*files):
    """Files as the page sends them."""
    facts = {"type": "", "last_modified": datetime.now(UTC)}
    return tuple({"name": name, "content": memoryview(data), "size": len(data), **facts} for name, data in files)


def zip_of(folder):
    return Path(shutil.make_archive(str(folder), "zip", folder.parent, folder.name)).read_bytes()


def test_a_zip_file_from_elsewhere_replaces_what_is_shown(browser, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    browser.opening.upload.value = uploaded(("other.zip", zip_of(eight_kanji(tmp_path / "other", times=2))))
    assert len(browser.rows) == 16 and browser.opening.upload.value == ()
    unpacked = browser.dataset.folder
    assert unpacked.is_relative_to(tmp_path / "temporary") and unpacked.name == "other"
    assert f"Unpacked into {unpacked}" in browser.opening.said.value
    assert browser.opening.path.value == str(unpacked)
    with_images = [(path.name, path.read_bytes()) for path in unpacked.iterdir()]
    browser.opening.upload.value = uploaded(*with_images)
    assert len(browser.rows) == 16 and browser.dataset.folder != unpacked and unpacked.is_dir()


def test_what_is_wrong_with_files_from_elsewhere_is_listed_and_none_of_them_kept(browser, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    before = browser.dataset
    lines = b"file_name,text\nnot-here.png,one\nb.png,\n"
    browser.opening.upload.value = uploaded(("metadata.csv", lines), ("b.png", b""))
    shown = browser.opening.said.value
    assert "Not opened: 3 problems" in shown and shown.count("<li>") == 3 and "metadata.csv line 2" in shown
    browser.opening.upload.value = uploaded(("<b>.zip", b"no zip"))
    shown = browser.opening.said.value
    assert "Not opened: 1 problem" in shown and "&lt;b&gt;.zip: expected a zip file" in shown and "<b>" not in shown
    assert browser.dataset is before and list(tmp_path.iterdir()) == []
