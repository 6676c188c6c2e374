"""Certificates: what they say of glyphs of known parts, and that JSON loses nothing."""

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from kanjilab.evaluation.criteria import CRITERIA, Thresholds
from kanjilab.experiments.certificate import Certificate, criteria_of, novelty_sentence
from tests.certificates import certificate, verdict

THRESHOLDS = Thresholds("", 3.0, 0.6, 0.5, 0.1, 100, {})
JUDGE = SimpleNamespace(novel_distance=0.5)
ROW = dict(
    parts="火 魚", expected="火 水 木", needed=1, layout_probability=0.9, excess=0.05, worst_measure="spurs",
    slots_attested=True, line_difference=1.25, erasure=7.5, distance=0.8, novelty="new", codepoint="U+4F11",
    nearest="休", legal_probability=0.95, two_or_more=True, distinct=True, novel=True, legal=True, meaning=True,
)  # fmt: skip


def test_every_criterion_has_its_number_and_threshold():
    found = {one.name: one for one in criteria_of(SimpleNamespace(**ROW), THRESHOLDS, JUDGE)}
    assert list(found) == list(CRITERIA) and all(one.passed for one in found.values())
    numbers = {name: (one.value, one.threshold) for name, one in found.items()}
    assert numbers == {
        "two_or_more": (2, 2), "distinct": (7.5, 3.0), "novel": (0.8, 0.5), "legal": (0.95, 0.6), "meaning": (1, 1),
    }  # fmt: skip
    assert found["novel"].note == "new; strokes differ by 1.25 sides (least 0.5); nearest U+4F11 休"
    assert "outside real glyphs' range by 0.05 (most 0.10), worst spurs" in found["legal"].note


def test_what_cannot_be_measured_has_no_number():
    row = SimpleNamespace(**ROW | {"erasure": np.float64("nan"), "parts": "", "distinct": False})
    found = {one.name: one for one in criteria_of(row, THRESHOLDS, JUDGE)}
    assert found["distinct"].value is None and not found["distinct"].passed
    assert found["two_or_more"].value == found["meaning"].value == 0


def test_json_loses_nothing():
    one = certificate()
    assert Certificate.from_json(json.loads(json.dumps(one.to_json(), allow_nan=False))) == one
    with pytest.raises(ValueError, match="expected a certificate of asked, "):
        Certificate.from_json({"phrase": "sea"})


def test_what_judge_b_misses_is_lacking():
    one = certificate()
    assert one.report.judge == "B" and one.report.lacking == ("novel",) and not one.report.passes
    assert one.verdicts[0].passes and one.verdicts[0].lacking == ()


def test_a_sentence_says_whether_it_is_in_the_list():
    assert novelty_sentence([verdict("A"), verdict("B")], 8788) == "not in the list of 8,788 characters"
    known = replace(verdict("B"), exists=True)
    assert novelty_sentence([verdict("A"), known], 8788) == "judge B takes it for U+4F11 休, of 8,788 characters"
