"""Which settings are the axes of some trainings, and which trainings are near a combination of them."""

import numpy as np
import pytest

from kanjilab.experiments.setting_axes import Axis, find_axes, nearest, star_centre

RANKS = Axis("rank", (1, 4, 16, 64, 256))


def test_numbers_are_sorted_and_categories_keep_their_order():
    rows = [dict(rank=64, way="b"), dict(rank=4, way="b"), dict(rank=4, way="a")]
    axes, places = find_axes(rows, "xyz")
    assert [(axis.name, axis.values) for axis in axes] == [("rank", (4, 64)), ("way", ("b", "a"))]
    assert places == rows


def test_what_is_the_same_for_all_or_follows_from_the_rest_is_no_axis():
    rows = [dict(setting=f"rank {r}", rank=r, peak_lr=lr, batch=8) for r in (4, 64) for lr in (1e-3, 1e-4)]
    axes, _ = find_axes(rows, "abcd", settings={"rank", "peak_lr", "batch"})
    assert [(axis.name, axis.values) for axis in axes] == [("rank", (4, 64)), ("peak_lr", (1e-4, 1e-3))]


def test_a_name_that_is_no_setting_stays_where_it_is_needed():
    rows = [dict(rank=4, scaling="a"), dict(rank=64, scaling="a"), dict(rank=64, scaling=None)]
    axes, _ = find_axes(rows, "abc", settings={"rank"})
    assert [(axis.name, axis.values) for axis in axes] == [("rank", (4, 64)), ("scaling", ("a", None))]


def test_trainings_that_their_axes_do_not_distinguish_are_told_apart_by_name():
    axes, places = find_axes([dict(rank=4), dict(rank=4), dict(rank=8)], ["one", "two", "three"])
    assert axes == [Axis("setting", ("one", "two", "three"))] and places[1] == {"setting": "two"}


def test_distances_of_ranks_are_of_their_logarithms():
    assert RANKS.is_log and not Axis("x", (1, 2, 4)).is_log and not Axis("x", (0, 9)).is_log
    assert not Axis("x", (True, False)).is_number
    np.testing.assert_allclose(RANKS.apart()[0], [0, 0.5 + 1 / 8, 0.5 + 2 / 8, 0.5 + 3 / 8, 1])
    np.testing.assert_allclose(Axis("way", ("a", None, "b")).apart(), 1 - np.eye(3))
    assert Axis("rank", (4,)).apart() == [[0]]


def test_the_nearest_differ_in_one_axis_before_two_and_by_little_before_much():
    axes = [RANKS, Axis("scaling", ("alpha = r", "rsLoRA"))]
    places = [dict(rank=rank, scaling="alpha = r") for rank in RANKS.values]
    places += [dict(rank=rank, scaling="rsLoRA") for rank in (1, 16, 256)]
    # Wanted: rank 4, rsLoRA. Ranks 1 and 16 are .625 away, rank 256 .875, the other scaling 1, both more.
    order = nearest(axes, places, dict(rank=4, scaling="rsLoRA"))
    assert order[:4] == [5, 6, 7, 1]
    assert nearest(axes, places, dict(rank=64, scaling="alpha = r"))[0] == 3


@pytest.mark.parametrize(("value", "values"), [(8, (1, 4, 8, 16, 64, 256)), (64, RANKS.values)])
def test_a_further_stop_is_at_its_place(value, values):
    assert RANKS.with_value(value).values == values
    assert Axis("way", ("b", "a")).with_value("c").values == ("b", "a", "c")


def test_the_centre_of_a_star_is_the_training_that_the_others_leave_by_one_setting():
    usual = dict(rank=64, batch=8, schedule="cosine")
    moved = [dict(rank=1), dict(rank=4), dict(batch=1), dict(batch=64), dict(schedule="linear")]
    star = [usual | change for change in moved]
    # The reference has all 5 as neighbours; the two ranks and the two batches have 2 each, the schedule 1.
    assert star_centre([*star[:3], usual, *star[3:]]) == 3
    # With 4 further ones that differ in two settings it has 5 of 9, with 5 it has half of them and is no centre.
    far = [dict(rank=rank, batch=16, schedule="cosine") for rank in (2, 8, 16, 32, 128)]
    assert star_centre([usual, *star, *far[:4]]) == 0
    assert star_centre([usual, *star, *far]) is None


def test_a_grid_and_a_ladder_have_no_centre():
    grid = [dict(rank=rank, batch=batch) for rank in (1, 4, 16) for batch in (1, 8)]  # 2 + 1 of 5 others each
    assert star_centre(grid) is None
    assert star_centre([dict(rank=rank) for rank in (1, 4, 16)]) is None
    assert star_centre([dict(rank=4), dict(rank=64)]) is None
    assert star_centre([dict(rank=4)]) is None and star_centre([]) is None
