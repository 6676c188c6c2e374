"""Scores of a writer: on glyphs that are typeset as asked, on others, and by a table made by hand."""

import json
import shutil

import numpy as np
import pandas as pd
import pytest

from kanjilab.data.components import is_held_out, load_components
from kanjilab.data.rendering import default_font, draw_font
from kanjilab.data.typeset import Pair, Typesetter
from kanjilab.data.writer_corpus import is_held_out_pair, slot_counts
from kanjilab.evaluation.scoring import glyphs_of
from kanjilab.experiments.writer_scores import (
    HELD_OUT,
    MEANING,
    NOVEL,
    TAUGHT,
    report_of,
    score_writer,
    training_strip,
    writer_prompts,
)
from kanjilab.models.loading import load_base, packaged_folder
from kanjilab.models.sampling import sample
from kanjilab.training.presets import DEMO_SAMPLING
from tests.typeset_writer import few_neighbours

PROMPTS = 6


@pytest.fixture(scope="module")
def asked():
    return writer_prompts(PROMPTS)


@pytest.fixture
def few_outlines():
    with few_neighbours():
        yield


def drawn_as_asked(asked):
    """A writer that makes no mistake: the real character, or the pair typeset."""
    typesetter = Typesetter(load_components(), default_font())

    def glyph(one, seed):
        if one.character:
            return np.asarray(draw_font(one.character, default_font()))
        composed = typesetter.compose(Pair(one.layout, *one.parts), np.random.default_rng(seed))
        return composed.image if composed else np.full((128, 128), 255, np.uint8)

    by_prompt = {one.prompt: one for one in asked}
    return lambda prompts, seeds: np.stack([glyph(by_prompt[prompt], seed) for prompt in prompts for seed in seeds])


def test_the_sets_are_what_their_names_say(asked):
    components = load_components()
    counts = slot_counts(components, components.decompositions)
    kinds = {kind: [one for one in asked if one.kind == kind] for kind in (TAUGHT, HELD_OUT, NOVEL, MEANING)}
    assert {kind: len(found) for kind, found in kinds.items()} == dict.fromkeys(kinds, PROMPTS)
    for kind in (TAUGHT, HELD_OUT, NOVEL):
        for one in kinds[kind]:
            pair = Pair(one.layout, *one.parts)
            assert is_held_out_pair(pair, counts) == (kind != TAUGHT)
            assert (one.character in components.exists(one.layout, one.parts)) == (kind != NOVEL)
        assert len({one.parts[1] for one in kinds[kind]}) == PROMPTS  # one of each second part in turn
    assert not components.exists(kinds[NOVEL][0].layout, kinds[NOVEL][0].parts)
    assert all(is_held_out(one.character) for one in kinds[MEANING])
    assert writer_prompts(PROMPTS) == asked


def test_a_writer_without_mistakes_scores_high_and_one_of_one_glyph_low(asked, few_outlines, tmp_path):
    right = score_writer(tmp_path / "right", prompts=PROMPTS, draw=drawn_as_asked(asked))["sets"]
    assert right[TAUGHT]["both"][0] >= 0.8 and right[HELD_OUT]["both"][0] >= 0.8
    assert right[NOVEL]["both"][0] >= 0.6 and right[NOVEL]["well_formed"][0] >= 0.6
    assert right[MEANING]["parts"] > 3 * right[MEANING]["shuffled"]
    one = np.asarray(draw_font("鬱", default_font()))
    same = score_writer(
        tmp_path / "same", prompts=PROMPTS, draw=lambda prompts, seeds: np.stack([one] * len(prompts) * len(seeds))
    )["sets"]
    assert same[TAUGHT]["both"][0] == same[HELD_OUT]["both"][0] == same[NOVEL]["all_five"][0] == 0
    assert json.loads((tmp_path / "same" / "report.json").read_text())["sets"] == same
    images = np.load(tmp_path / "right" / "drawn.npz", allow_pickle=False)
    assert images["novel"].shape == (PROMPTS, 8, 128, 128) and images["held_out"].shape == (PROMPTS, 4, 128, 128)


def test_shares_at_hand_worked_points():
    rows = pd.DataFrame(
        {
            "kind": TAUGHT,
            "prompt": ["a", "a", "b", "b"],
            "layout": ["⿰", "⿰", "⿱", "⿱"],
            "first": [True, True, False, True],
            "second": [True, False, False, False],
            "well_formed": [True, True, True, False],
            "parts": "",
            "wanted": "",
        }
    )
    rows["either"], rows["both"] = rows["first"] | rows["second"], rows["first"] & rows["second"]
    shares = {name: (values[0], values[3]) for name, values in report_of(rows)[TAUGHT].items()}
    assert shares["first"] == (0.75, 4) and shares["second"] == (0.25, 4) and shares["right"] == (0.5, 2)
    assert shares["either"] == (0.75, 4) and shares["both"] == (0.25, 4) and shares["well_formed"] == (0.75, 4)


def test_recall_of_meanings_against_other_characters_parts():
    rows = pd.DataFrame({"kind": MEANING, "prompt": ["a", "b"], "wanted": ["水木", "火"], "parts": ["水口", "火"]})
    rows["well_formed"], rows["layout"] = True, ""
    for name in ("first", "second", "either", "both"):
        rows[name] = True
    report = report_of(rows)[MEANING]
    assert report["parts"] == 0.75  # one of two, and one of one
    assert 0 < report["shuffled"] < 0.75  # 0 whenever the two are exchanged


def test_the_strip_over_a_training_draws_each_stored_denoiser_from_the_same_noise(tmp_path):
    for seen, base in (("0000016", "pocket"), ("0000032", "writer")):
        shutil.copytree(packaged_folder(base) / "unet", tmp_path / seen)
    strip = training_strip(tmp_path, ["left: fish, right: see"])
    assert strip.column_labels == ("pocket", "16", "32") and strip.images.shape == (1, 3, 128, 128)
    drawn = glyphs_of(sample(load_base("writer"), ["left: fish, right: see"], [0], DEMO_SAMPLING)[0])[0]
    assert np.array_equal(strip.images[0, 2], drawn)
    assert np.array_equal(strip.images[0, 0], strip.images[0, 1]) and not np.array_equal(strip.images[0, 1], drawn)
