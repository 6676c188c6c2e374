"""The views of a stored study: each part holds the stored numbers, and the pilot is found beside the study."""

from pathlib import Path

import pandas as pd
import pytest

from kanjilab.experiments.views import StudyView, studies_folder, table_html

STUDIES = Path(__file__).parents[2] / "figures" / "studies"


@pytest.fixture(scope="module")
def rank():
    return StudyView.read(STUDIES / "rank-full")


def test_every_part_has_the_stored_sentences(rank):
    first, second = (stored.report["sentences"]["held_out"][0] for stored in rank.judges.values())
    assert first in rank.results() and second in rank.second_judge() and second in rank.checks()
    assert "the claim **holds** here" in rank.answer()
    assert "rank 64 – rank 4: held-out loss" in rank.losses()


def test_the_pilot_beside_a_full_study_is_shown(rank):
    assert set(rank.pilot["prompt"]) <= set(rank.first.table["prompt"])
    assert "0.0405" not in rank.setup() and "<th>0.041</th>" in rank.setup()
    assert "On the 20 prompts that the pilot did not ask" in rank.checks()


def test_without_a_pilot_nothing_is_said_of_one():
    view = StudyView.read(STUDIES / "targets-full")
    assert view.pilot is None and "Pilot" not in view.setup() and "pilot did not ask" not in view.checks()
    assert StudyView.read(STUDIES / "rank-broad").pilot is None


def test_figures_name_their_study(rank, tmp_path):
    path = rank.save_blocks(tmp_path / "blocks.png")
    assert path.is_file() and rank.first.report["hash"] in path.with_suffix(".json").read_text()


def test_a_table_is_escaped_and_rounded():
    html = table_html(pd.DataFrame({"<b>": [0.12345, float("nan")]}))
    assert "&lt;b&gt;" in html and "<td>0.123</td>" in html and "nan" not in html.lower()


def test_studies_are_found_without_figures_of_their_own(tmp_path):
    assert studies_folder(tmp_path) == STUDIES
    (tmp_path / "studies").mkdir()
    assert studies_folder(tmp_path) == tmp_path / "studies"
