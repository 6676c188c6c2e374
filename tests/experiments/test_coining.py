"""Coining with a writer that typesets, so that every answer is known: what is kept, rejected and certified."""

import json

import numpy as np
import pandas as pd
import pytest

from kanjilab.evaluation.criteria import CRITERIA
from kanjilab.experiments.certificate import Certificate, certificate_rows
from kanjilab.experiments.coined_sheet import coined_strip
from kanjilab.experiments.coining import Coinage, coin, rank_candidates
from tests.typeset_writer import draw, few_neighbours, noise, pair_of, real, word_vectors


@pytest.fixture(scope="module", autouse=True)
def quick():
    with few_neighbours():
        yield


@pytest.fixture(scope="module")
def fire_jewel() -> Coinage:
    return coin("fire jewel", noises=2, keep=3, draw=draw, embed=word_vectors)


def test_the_parts_asked_for_are_found_where_they_are(fire_jewel):
    one = next(one.certificate for one in fire_jewel.glyphs if one.certificate.asked == ("火", "玉"))
    for verdict in one.verdicts:
        boxes = {part.part: part.box for part in verdict.parts}
        assert set(boxes) == {"火", "玉"} and verdict.layout == "⿰"
        assert boxes["火"][2] <= boxes["玉"][0] + 0.15  # the right end of one is about the left end of the other
    assert [verdict.judge for verdict in one.verdicts] == ["A", "B"]
    assert one.report.passes and one.report.parts[0].name in ("fire", "jewel")
    assert one.novelty == "not in the list of 8,788 characters"
    assert one.prompt == "left: fire, right: jewel" and one.layout == "⿰" and one.seed in (0, 1)


def test_what_exists_and_what_is_no_glyph_are_rejected(fire_jewel):
    # Of the phrase itself this writer draws 休 and noise.
    assert fire_jewel.candidates == 10 and fire_jewel.found
    assert fire_jewel.rejected["not new: exists"] >= 1 and fire_jewel.rejected["not well-formed"] >= 1
    assert all(one.certificate.asked for one in fire_jewel.glyphs)
    assert fire_jewel.summary.startswith("10 candidates, of which ")


def test_the_glyphs_come_back_as_drawn(fire_jewel):
    for one in fire_jewel.glyphs:
        again = draw([one.certificate.prompt], [one.certificate.seed])[0]
        assert (one.image == again).all()
        assert pair_of(one.certificate.prompt).layout == one.certificate.layout


def test_certificates_survive_json(fire_jewel):
    for one in fire_jewel.glyphs:
        content = json.loads(json.dumps(one.certificate.to_json(), allow_nan=False))
        assert Certificate.from_json(content) == one.certificate


def test_glyphs_that_are_nearly_the_same_count_once():
    def nearly(prompts, seeds):
        found = np.stack([draw(["left: fire, right: jewel"], [0])[0]] * (len(prompts) * len(seeds)))
        found[1:, 64, 64] = 255 - found[1:, 64, 64]  # another pixel
        return found

    found = coin("anything", parts="fire+jewel", noises=2, draw=nearly, embed=word_vectors)
    assert found.candidates == 4 and not found.rejected and len(found.glyphs) == 1
    assert found.unread == () and found.summary.endswith("pass all five criteria by judge B.")


def test_named_parts_that_no_judge_knows_are_named():
    found = coin("dragon queen", parts="woman+dragon", noises=1, draw=draw, embed=word_vectors)
    assert found.unread == ("龍",) and not any(one.certificate.report.passes for one in found.glyphs)
    assert found.summary.endswith("The judges do not know 龍 (dragon): none can pass for its meaning.")


def test_nothing_found_says_so_and_shows_what_each_lacks():
    def scribble(prompts, seeds):
        return np.stack([noise(seed) for _ in prompts for seed in seeds])

    found = coin("anything", parts="fire+jewel", noises=1, draw=scribble, embed=word_vectors)
    assert not found.found and "Nothing found" in found.summary
    for one in found.glyphs:
        assert one.certificate.rejected == "not well-formed" and "legal" in one.certificate.report.lacking


def test_an_existing_character_is_named():
    found = coin("x", parts="fire+jewel", noises=1, draw=lambda p, s: real("休")[None], embed=word_vectors)
    one = found.glyphs[0].certificate
    assert not found.found and one.rejected == "not new: exists"
    assert one.report.exists and one.report.nearest[0].codepoint == "U+4F11"
    assert "takes it for U+4F11 休, of 8,788 characters" in one.novelty
    assert one.outline[0].character == "休"


def test_a_phrase_in_kanji_is_translated():
    found = coin("火の玉", noises=1, keep=1, draw=draw, embed=word_vectors)
    assert found.translation == found.glyphs[0].certificate.translation == "fire jewel"
    assert [reading.prompt for reading in found.readings[:2]] == ["火の玉", "fire jewel"]


def test_numbers_below_one_are_refused():
    with pytest.raises(ValueError, match="expected noises and keep of 1 or more, seed of 0 or more, got 0, 8, 0"):
        coin("fish", noises=0, draw=draw)


def test_wrong_parts_are_refused_before_the_writer_is_loaded():
    with pytest.raises(ValueError, match="no part of characters is called 'waer'"):
        coin("x", parts="waer+fire", writer="there is no such base")


def test_progress_and_glyphs_are_told_reading_by_reading():
    said = []
    coin(
        "fire jewel",
        noises=1,
        keep=1,
        draw=draw,
        embed=word_vectors,
        on_drawn=lambda reading, images: said.append((reading.prompt, len(images))),
        on_progress=lambda done, total: said.append((done, total)),
    )
    assert said[:3] == [(0, 5), ("fire jewel", 1), (1, 5)] and said[-1] == (5, 5) and len(said) == 11


def test_the_rows_of_certificates_are_what_judge_b_reports(fire_jewel):
    rows = certificate_rows([one.certificate for one in fire_jewel.glyphs])
    assert rows.index.tolist() == [1, 2, 3] and "rejected" not in rows
    for (_, row), one in zip(rows.iterrows(), fire_jewel.glyphs, strict=True):
        report = one.certificate.report
        assert all(row[criterion.name] == criterion.passed for criterion in report.criteria)
        assert row["asked"] == one.certificate.prompt and report.nearest[0].codepoint in row["nearest"]
        assert all(part.part in row["parts"] for part in report.parts)


def measured(**columns) -> pd.DataFrame:
    """Four candidates that pass everything, but for the columns given."""
    usual = dict.fromkeys(CRITERIA, [True] * 4) | {"neighbour_exists": [False] * 4, "novelty": ["new"] * 4}
    usual |= {"parts": ["火 魚"] * 4, "expected": ["火 魚"] * 4, "layout": ["⿰"] * 4, "legal_probability": [0.9] * 4}
    return pd.DataFrame(usual | columns)


def test_more_criteria_come_first_and_rejected_ones_last():
    found = rank_candidates(
        measured(
            legal=[False, True, True, True],
            novel=[True, False, True, True],
            novelty=["new", "copy", "new", "new"],
            distinct=[True, True, False, True],
        )
    )
    assert found["rejected"].tolist() == ["not well-formed", "not new: copy", "", ""]
    assert found["place"].tolist()[2:] == [1, 0] and set(found["place"][:2]) == {2, 3}


def test_the_check_without_a_network_rejects_too():
    found = rank_candidates(measured(neighbour_exists=[True, False, False, False]))
    assert found["rejected"].tolist() == ["not new: exists", "", "", ""]


def test_combinations_take_turns_and_the_surest_of_each_comes_first():
    found = rank_candidates(
        measured(parts=["火 魚", "魚 火", "水 魚", "火 魚"], legal_probability=[0.7, 0.8, 0.6, 0.9])
    )
    # Both expected parts: the third shows one only, but it is the first of its kind.
    assert found["place"].tolist() == [3, 2, 1, 0]


def test_the_sheet_has_one_drawing_of_each_reading_beside_the_best():
    strip, coined = coined_strip(["fire jewel"], noises=2, columns=3, draw=draw, embed=word_vectors)
    assert strip.images.shape == (1, 6, 128, 128) and strip.column_groups == (
        ("unselected", 3),
        ("the best by judge A", 3),
    )
    prompts = [reading.prompt for reading in coined[0].readings]
    unselected = draw(prompts[:3], [0])  # the first noise of the first three readings
    assert np.array_equal(strip.images[0, :3], unselected)
    best = [one.image for one in coined[0].glyphs]
    assert np.array_equal(strip.images[0, 3 : 3 + len(best)], best)
    assert (strip.images[0, 3 + len(best) :] == 255).all()
