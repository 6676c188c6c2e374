"""What differs between trainings."""

import dataclasses

import pytest

from kanjilab.core.config import Arm
from kanjilab.core.run_differences import flat_settings, run_differences, setting_differences
from kanjilab.core.run_folder import RunFolder

ARM = Arm(rank=4)


@pytest.fixture
def runs(tmp_path):
    """Two runs of two arms each, on different data."""
    arms = [ARM, dataclasses.replace(ARM, rank=64, targets="full")]
    for name in ("a", "b"):
        settings = {"base": "pocket2", "data": f"left-{name}", "arms": [arm.to_json() for arm in arms], "hash": name}
        RunFolder.create(tmp_path / name, settings)
    return tmp_path / "a", tmp_path / "b"


def test_only_what_differs_is_shown(runs):
    table = run_differences(*runs)
    assert table.to_dict("index") == {"data": {str(runs[0]): "left-a", str(runs[1]): "left-b"}}
    table = run_differences(runs[0], runs[0], arms=(0, 1))
    assert list(table.index) == ["targets", "rank"]
    assert table.loc["rank"].tolist() == [4, 64] and table.loc["targets"].tolist() == ["attention", "full"]
    assert list(table.columns) == [str(runs[0]), f"{runs[0]}, arm 1"]


def test_a_setting_that_one_does_not_have_differs_from_one_that_it_has():
    table = setting_differences({"a": {"rank": 4, "dora": None}, "b": {"rank": 4, "seed": 0}, "c": {}})
    assert table.loc["rank"].tolist() == [4, 4, None] and table.loc["seed"].tolist() == [None, 0, None]
    assert list(table.index) == ["rank", "seed"]
    assert setting_differences({"a": {"rank": 4}, "b": {"rank": 4}}).empty


def test_nested_settings_have_names_with_dots():
    assert flat_settings({"a": 1, "b": {"c": {"d": 2}, "e": [3]}}) == {"a": 1, "b.c.d": 2, "b.e": [3]}


def test_the_same_training_twice_and_unknown_arms_are_refused(runs):
    with pytest.raises(ValueError, match="two different trainings"):
        run_differences(runs[0], runs[0])
    with pytest.raises(ValueError, match="has arms 0 to 1, got 7"):
        run_differences(*runs, arms=(0, 7))
