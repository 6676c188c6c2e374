import csv
import json

import numpy as np
import pytest
from PIL import Image

from kanjilab.data.image_folder import open_dataset
from kanjilab.experiments import filtering
from kanjilab.experiments.filtering import filter_dataset, found_errors, scorer, swapped_captions
from tests.image_folders import eight_kanji
from tests.tiny_clip import save_tiny_clip


@pytest.fixture
def dataset(tmp_path):
    return open_dataset(eight_kanji(tmp_path / "all"))


def test_so_many_captions_are_swapped_and_all_of_them_say_something_else():
    captions = [f"caption {number // 2}" for number in range(40)]
    given = swapped_captions(captions, 0.25, 0)
    moved = np.flatnonzero(given != np.arange(40))
    assert len(moved) == 10 and sorted(given) == list(range(40))
    assert all(captions[row] != captions[given[row]] for row in moved)
    assert (swapped_captions(captions, 0.25, 0) == given).all() and (swapped_captions(captions, 0.25, 1) != given).any()
    assert (swapped_captions(captions, 0.0, 0) == np.arange(40)).all()
    with pytest.raises(ValueError, match="cannot be swapped so that all differ"):
        swapped_captions(["the same"] * 10, 0.5, 0)


def test_errors_found_by_hand():
    wrong = np.array([True, False, True, False])
    found = found_errors(np.array([0.0, 1.0, 2.0, 3.0]), wrong)
    assert found == {"auc": 3 / 4, "precision": 1 / 2}
    assert found_errors(np.array([0.0, 2.0, 1.0, 3.0]), wrong) == {"auc": 1.0, "precision": 1.0}
    assert found_errors(np.zeros(4), wrong)["auc"] == 0.5, "ties count half"


def test_the_worst_are_left_out_and_held_out_images_stay(dataset, tmp_path):
    scores = np.array([3.0, -1.0, 2.0, 5.0, 0.5, 4.0])  # of the six that are trained on
    kept = filter_dataset(dataset, tmp_path / "kept", 2 / 3, lambda split: scores[: len(split)], {"by": "hand"})
    trained = dataset.split("train").table
    left = [trained["file_name"][row] for row in (1, 4)]
    assert kept.table["file_name"].tolist() == [name for name in dataset.table["file_name"] if name not in left]
    assert (kept.table["split"] == "held_out").sum() == 2
    for name in kept.table["file_name"]:
        assert (tmp_path / "kept" / name).read_bytes() == (tmp_path / "all" / name).read_bytes()
    rows = list(csv.DictReader((tmp_path / "kept" / "scores.csv").read_text(encoding="utf-8").splitlines()))
    assert [row["score"] for row in rows] == ["-1.0", "0.5", "2.0", "3.0", "4.0", "5.0"]
    assert [row["file_name"] for row in rows if row["kept"] == "False"] == left
    facts = json.loads((tmp_path / "kept" / "filter.json").read_text())
    assert facts == {"by": "hand", "content_hash": dataset.content_hash, "keep": 2 / 3, "left_out": 2}
    with Image.open(tmp_path / "kept.png") as picture:
        assert picture.width > 600


def test_wrong_shares_and_a_folder_that_is_there_are_refused_before_anything_is_scored(dataset, tmp_path):
    def never(split):
        raise AssertionError("scored")

    for keep in (0, -0.1, 1.01, float("nan")):
        with pytest.raises(ValueError, match="above 0 and at most 1"):
            filter_dataset(dataset, tmp_path / "kept", keep, never, {})
    with pytest.raises(FileExistsError, match="exists already: expected a new folder"):
        filter_dataset(dataset, tmp_path / "all", 0.5, never, {})
    (tmp_path / "kept.png").write_bytes(b"mine")
    with pytest.raises(FileExistsError, match="kept.png exists already"):
        filter_dataset(dataset, tmp_path / "kept", 0.5, never, {})
    with pytest.raises(ValueError, match="expected images of the split 'train', got \\['held_out'\\]"):
        filter_dataset(dataset.split("held_out"), tmp_path / "other", 0.5, never, {})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["all", "kept.png"]
    assert (tmp_path / "kept.png").read_bytes() == b"mine"


def test_all_stay_at_one_and_one_stays_at_least(dataset, tmp_path):
    for keep, count in ((1, 8), (0.001, 3)):
        kept = filter_dataset(dataset, tmp_path / str(keep), keep, lambda split: np.arange(float(len(split))), {})
        assert len(kept) == count


def test_a_clip_model_scores_by_its_own_cosines(dataset, tmp_path):
    scores, by = scorer(str(save_tiny_clip(tmp_path / "clip")))
    assert by == {"clip": str(tmp_path / "clip")}
    found = scores(dataset)
    again = scores(dataset.take([3, 1]))
    assert found.shape == (8,) and np.isfinite(found).all() and len(set(found.round(6))) == 8
    assert again.shape == (2,)


def test_own_scores_leave_the_datasets_characters_out_of_those_that_help(dataset, monkeypatch):
    asked = []

    def pair_scores(pairs, known, on_progress):
        asked.append((pairs.names, known))
        return np.zeros(len(pairs.names))

    monkeypatch.setattr(filtering, "known_pairs", lambda without, on_progress: ("all kanji but", without))
    monkeypatch.setattr(filtering, "pair_scores", pair_scores)
    scores, _ = scorer("")
    assert (scores(dataset) == 0).all()
    names = tuple(dataset.table["character"])
    assert asked == [(names, ("all kanji but", set(names)))]
