"""Sheets of a study's images: what is in them, where, and how near it is to what was drawn."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from kanjilab.core.run_folder import RunFolder
from kanjilab.experiments.image_sheets import GLYPH_PX, ImageSheets, sheet_bytes, spread_rows, write_sheets
from kanjilab.experiments.packs import moments_below

HALF_A_STEP = 26  # six grays are 51 apart


@pytest.fixture
def stored(finished, tmp_path):
    """A copy of the finished study's folder."""
    return shutil.copytree(finished[0], tmp_path / "studies" / "tiny")


def test_every_glyph_is_at_its_place(tmp_path):
    images = np.full((2, 3, 2, 128, 128), 255, dtype=np.uint8)
    images[1, 2, 0, :64, 64:] = 0  # second prompt, third moment, first noise: ink in the upper right quarter
    images[0, 0, 1, 1::2] = 0  # every second line is ink: half gray at half the size
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "key.webp").write_bytes(sheet_bytes(images))
    sheet = np.asarray(Image.open(tmp_path / "images" / "key.webp").convert("L"))
    assert sheet.shape == (2 * 64, 6 * 64)
    assert (sheet[64:96, 4 * 64 + 32 : 5 * 64] == 0).all()
    assert np.unique(sheet[:64, 64:128]) == 153  # the mean 127.5 is nearest to 153 of 0, 51, 102, 153, 204, 255
    sheet = sheet.copy()
    sheet[64:96, 4 * 64 + 32 : 5 * 64] = 255
    sheet[:64, 64:128] = 255
    assert (sheet == 255).all()
    read = ImageSheets(tmp_path, "", ({}, {}), (0, 1), {"key": (1, 2, 3)}).images("key")
    assert read.shape == (2, 3, 2, 64, 64)
    assert (read[1, 2, 0, :32, 32:] == 0).all() and (read[0, 0, 1] == 153).all() and (read[0, 1] == 255).all()


def test_a_finished_study_has_the_images_of_all_its_arms(finished):
    folder, report, _ = finished
    sheets = ImageSheets.read(folder)
    assert sheets.drawing == report["drawing"]
    assert set(sheets.arms) == {arm["arm"] for arm in report["arms"]}
    for key, moments in moments_below(folder, sheets.drawing).items():
        assert sheets.arms[key] == tuple(moment.images_seen for moment in moments)
        drawn, facts = RunFolder.open(folder / moments[-1].folder).read_samples(moments[-1].samples)
        rows = [facts["prompts"].index(asked) for asked in sheets.prompts]
        large = drawn[rows].repeat(GLYPH_PX // 32, axis=2).repeat(GLYPH_PX // 32, axis=3)
        assert np.abs(sheets.images(key)[:, -1].astype(int) - large).max() <= HALF_A_STEP
    pictures = [sheets.path(key).stat().st_size for key in sheets.arms]
    assert len(pictures) == 6 and sum(pictures) < 100_000


def test_radicals_take_turns_and_a_split_has_no_more_rows_than_asked():
    asked = [dict(split="held_out", expected=[radical]) for radical in "水水水木木火"]
    asked += [dict(split="train", expected=["水"])]
    assert spread_rows(asked, 4) == [0, 3, 5, 1, 6]
    assert sorted(spread_rows(asked, 9)) == list(range(7))


def test_arms_of_another_study_are_copied_with_their_images(finished, stored, tmp_path):
    """As in a study that takes its arms from a kept one: the report and no packs."""
    taken = tmp_path / "more"
    taken.mkdir()
    shutil.copy(stored / "report-radicals.json", taken)
    assert write_sheets(taken) is None
    sheets, first = write_sheets(taken, kept=stored.parent), ImageSheets.read(stored)
    assert sheets.arms == first.arms and sheets.prompts == first.prompts
    assert all((sheets.images(key) == first.images(key)).all() for key in first.arms)


def test_sheets_of_another_drawing_are_not_taken(stored, tmp_path):
    taken = tmp_path / "more"
    taken.mkdir()
    report = json.loads((stored / "report-radicals.json").read_text())
    (taken / "report-radicals.json").write_text(json.dumps(report | {"drawing": "0" * 16}))
    assert write_sheets(taken, kept=stored.parent) is None


def test_stored_sheets_are_not_written_again_and_missing_ones_are(stored):
    sheets = ImageSheets.read(stored)
    first, *others = sheets.arms
    before = sheets.path(first).stat().st_mtime_ns
    (stored / "images" / "sheets.json").write_text(
        json.dumps(json.loads((stored / "images" / "sheets.json").read_text()) | {"arms": {first: [8]}})
    )
    for key in others:
        sheets.path(key).unlink()
    assert set(write_sheets(stored).arms) == set(sheets.arms)
    assert sheets.path(first).stat().st_mtime_ns == before and all(sheets.path(key).exists() for key in others)


def test_an_unfinished_study_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="expected report-<judge>.json of a finished study"):
        write_sheets(tmp_path)
