"""Tables of captioned pictures: shares by kind, and that what is stored is what was given."""

import numpy as np
import pandas as pd
import pytest

from kanjilab.data.captioned import load_captioned, save_captioned, shared_out


def test_each_kind_has_its_share_and_others_none():
    weight = shared_out(np.array([1.0, 3.0, 2.0, 5.0]), ["a", "a", "b", "c"], {"a": 0.6, "b": 0.4, "absent": 1.0})
    assert weight.tolist() == pytest.approx([0.15, 0.45, 0.4, 0.0])


def test_what_is_stored_is_what_was_given(tmp_path):
    images = [np.full((128, 128), number, np.uint8) for number in (0, 7)]
    table = pd.DataFrame(dict(image=[0, 1, 1], captions=["null", "", "a|b"], held_out=[False, True, False]))
    save_captioned(tmp_path / "new", table, images)
    stored, mapped = load_captioned(tmp_path / "new")
    pd.testing.assert_frame_equal(stored, table)
    np.testing.assert_array_equal(mapped, np.stack(images))
