"""Cases of every area: nothing wrong, or refused in a sentence; and what was there is there after it.

The normal run takes one in `ONE_IN`; `make faults` takes all.
"""

import os
import re
from collections import Counter

import pytest

from tests.faults import app_cases, cli_cases, data_cases, outside_cases, run_cases
from tests.faults.case import Here, end_of
from tests.faults.sound import small, sound_things
from tests.typeset_writer import few_neighbours

AREAS = {
    "CLI": cli_cases.CASES,
    "data": data_cases.CASES,
    "runs": run_cases.CASES,
    "outside files": outside_cases.CASES,
    "app": app_cases.CASES,
}
CASES = {f"{area}: {case.name}": (area, case) for area, cases in AREAS.items() for case in cases}
FIRST, ONE_IN = (0, 1) if os.environ.get("KANJILAB_FAULTS") else (20, 40)
TAKEN = list(CASES)[FIRST::ONE_IN]


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    with few_neighbours(), pytest.MonkeyPatch.context() as patch:
        small(patch)
        yield sound_things(tmp_path_factory.mktemp("sound"))


@pytest.fixture(scope="module")
def ended():
    """How the cases ended so far, by area."""
    return Counter()


def test_the_cases_are_many_and_different():
    assert len(CASES) == sum(map(len, AREAS.values())) >= 300


@pytest.mark.parametrize("name", TAKEN)
def test_a_case_ends_plainly_and_loses_nothing(name, sound, ended, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    area, case = CASES[name]
    end, said = end_of(case, Here(tmp_path, sound))
    ended[area, end] += 1
    assert end == ("refused" if case.says else "survived"), said
    assert re.search(case.says, said), said


def test_every_area_ends_well(ended, record_property):
    """After the others: what the table of docs/reliability.md says."""
    for area in AREAS:
        counts = {end: count for (of, end), count in ended.items() if of == area}
        assert counts.keys() <= {"refused", "survived"}
        told = f"{sum(counts.values())} cases, {counts.get('refused', 0)} refused, {counts.get('survived', 0)} survived"
        record_property("measured", f"faults, {area}: {told}")
