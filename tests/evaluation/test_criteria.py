"""The five criteria on glyphs of a toy script whose parts are counted bars, and what is frozen for the real judges."""

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from kanjilab.data.components import load_components
from kanjilab.data.rendering import default_font, draw_font
from kanjilab.evaluation.criteria import (
    CRITERIA,
    Context,
    dictionary_context,
    fit_thresholds,
    held_out_characters,
    judge_hash,
    judge_images,
    line_difference,
    load_frozen,
    make_context,
    outer_parts,
)
from kanjilab.evaluation.judges.nearest_character import Neighbours
from kanjilab.evaluation.judges.part_judge import load_judge
from kanjilab.evaluation.prompt_parts import AskedMeaning
from tests.toy_script import BLOB, DA, PARTS, ToyJudge, glyph, toy_context, toy_vectors


@pytest.fixture(scope="module")
def context() -> Context:
    return toy_context()


def judged(context, images, prompts) -> pd.DataFrame:
    return judge_images(ToyJudge(), np.stack(images), prompts, context)


def test_lines_that_differ_are_measured_both_ways():
    plain, longer = glyph("⿰", "人", "木"), glyph("⿰", "人", "木")
    longer[110:115, 20:110] = 0  # a bar of 90 px, whose middle line is some 4 px shorter
    pairs = line_difference(np.stack([plain, plain, longer]), np.stack([plain, longer, plain]))
    assert pairs[0] == 0 and pairs[1] == pairs[2] == pytest.approx(86 / 128, abs=3 / 128)
    shifted = np.roll(plain, 2, axis=0)
    assert line_difference(plain[None], shifted[None])[0] == 0
    # Five bars of 52 px against nothing, and against a blob, which has no lines but a dot.
    nothing = line_difference(np.stack([plain] * 2), np.stack([255 - BLOB, BLOB]))
    np.testing.assert_allclose(nothing, 5 * 48 / 128, atol=0.1)


def test_classes_of_novelty(context):
    stroke = DA.copy()
    stroke[100:107, 50:75] = 0  # a short stroke more than 大 has
    nearly = context.training[2].copy()
    nearly[60, 64] = 0  # a training image but for a dot; its character is unknown to the judge
    images = [glyph("⿰", "人", "木"), nearly, stroke, glyph("⿰", "火", "木"), glyph("⿰", "土", "人")]
    found = judged(context, images, ["tree"] * 5)
    assert found["novelty"].tolist() == ["exists", "copy", "one stroke off", "in the list", "new"]
    assert found["novel"].tolist() == [False] * 4 + [True]
    assert found["line_difference"][2] < 0.5 < found["line_difference"][4]
    assert found[["codepoint", "nearest"]].loc[0].tolist() == ["U+4F11", "休"]
    assert found.loc[2, "neighbour"] == "大"


def test_each_criterion_fails_alone(context):
    # 木 on the left and 土 on the right are attested (杜), as are 人, 水, 火 on the left.
    good = glyph("⿰", "人", "土")
    gray = good.copy()
    gray[good == 0] = 100
    cases = {
        "none": (good, "person tree"),
        "two_or_more": (glyph("⿻", "水"), "water"),
        "distinct": (BLOB, "fire earth"),
        "novel": (glyph("⿰", "人", "木"), "person tree"),
        "legal": (gray, "person tree"),
        "meaning": (glyph("⿰", "火", "土"), "person tree"),
    }
    found = judged(context, [image for image, _ in cases.values()], [prompt for _, prompt in cases.values()])
    failed = [{name for name in CRITERIA if not row[name]} for _, row in found.iterrows()]
    assert failed == [set(), {"two_or_more", "distinct"}, {"distinct"}, {"novel"}, {"legal"}, {"meaning"}]
    assert found["all_five"].tolist() == [True] + [False] * 5
    assert set(found["expected"][0].split()[:2]) == {"人", "木"} and found["parts"][0] == "人 土"


def test_parts_asked_by_name_must_all_show_and_of_guessed_ones_one(context):
    named = AskedMeaning(**vars(context.meaning), asked={"person + tree": ("人", "木"), "person + soil": ("人", "土")})
    images, asked = [glyph("⿰", "人", "土")] * 3, ["person + tree", "person + soil", "person tree"]
    found = judged(replace(context, meaning=named), images, asked)
    assert found["needed"].tolist() == [2, 2, 1]
    assert found["meaning"].tolist() == [False, True, True]


def test_a_part_where_it_never_is_makes_no_well_formed_glyph(context):
    found = judged(context, [glyph("⿰", "土", "人"), glyph("⿱", "土", "火"), glyph("⿱", "火", "土")], ["fire"] * 3)
    assert found["slots_attested"].tolist() == [False, False, True]
    assert found["legal"].tolist() == [False, False, True]
    assert (found["legal_probability"] == 1).all() and (found["excess"] == 0).all()


def test_abstaining_from_the_layout_is_not_well_formed(context):
    blank = np.full((128, 128), 255, np.uint8)
    found = judged(context, [blank], ["tree"])
    assert found["layout"][0] == "" and not found["legal"][0] and found["parts"][0] == ""


def test_images_of_a_prompt_are_numbered_in_any_order(context):
    found = judged(context, [glyph("⿰", "人", "土")] * 4, ["tree", "fire", "fire", "tree"])
    assert found["image"].tolist() == [0, 0, 1, 1]


def test_larger_images_are_judged_alike(context):
    images = [glyph("⿰", "人", "土"), glyph("⿻", "水"), DA]
    large = [image.repeat(4, axis=0).repeat(4, axis=1) for image in images]
    pd.testing.assert_frame_equal(judged(context, large, ["tree"] * 3), judged(context, images, ["tree"] * 3))


def test_wrong_counts_and_another_judge_are_refused(context):
    with pytest.raises(ValueError, match="got 1 images and 2 prompts"):
        judged(context, [BLOB], ["a", "b"])
    other = replace(context, thresholds=replace(context.thresholds, judge_hash="0"))
    with pytest.raises(ValueError, match="frozen for judge A, got another judge's"):
        judged(other, [BLOB], ["a"])


class GradedJudge(ToyJudge):
    """As sure of a well-formed glyph as the first pixel says, in 250ths."""

    def read(self, images):
        found = super().read(images)
        return found.assign(legal_probability=[float(image[0, 0]) / 250 for image in images])


def test_thresholds_let_95_of_100_real_glyphs_pass(context):
    images = np.stack([glyph("⿰", "人", "木")] * 100)
    images[:, 0, 0] = np.arange(150, 250)  # sure from 0.6 to 0.996
    fitted = fit_thresholds(GradedJudge(), images, context.bounds, context.components)
    # The fifth lowest is the last quantile at or below 5%: four fail.
    assert fitted.legal_probability == pytest.approx(154 / 250) and fitted.slack == 0
    assert dict(fitted.passed) == {"two_or_more": 1, "distinct": 1, "novel": 1, "legal": 0.96}
    assert (fitted.glyphs, fitted.judge_hash) == (100, judge_hash(ToyJudge())) and fitted.distinct > 27
    # Ten with a part where it never stands fail whatever the thresholds: 95% of the other ninety is the goal then.
    images[:10] = glyph("⿰", "土", "人")
    images[:10, 0, 0] = 249
    assert 0.85 <= fit_thresholds(GradedJudge(), images, context.bounds, context.components).passed["legal"] <= 0.88


def test_frozen_values_are_read_for_their_judge_only(context, tmp_path):
    path = frozen_file(tmp_path, context)
    bounds, thresholds = load_frozen(ToyJudge(), path)
    assert bounds == context.bounds and (thresholds.distinct, thresholds.glyphs) == (0.4, 7)
    retrained = ToyJudge()
    retrained.part_thresholds = np.full(5, 0.51, np.float32)
    with pytest.raises(ValueError, match="expected thresholds of judge A with hash"):
        load_frozen(retrained, path)
    retrained.name = "B"
    with pytest.raises(ValueError, match="expected thresholds of judge B"):
        load_frozen(retrained, path)


# ---------------------------------------------------------------- the context of a run


def frozen_file(folder, context):
    stored = {
        "judge_hash": judge_hash(ToyJudge()),
        "distinct": 0.4,
        "legal_probability": 0.6,
        "layout_probability": 0.5,
        "slack": 0.1,
    }
    stored |= {"glyphs": 7, "passed": {"legal": 0.95}}
    path = folder / "criteria.json"
    path.write_text(json.dumps({"bounds": context.bounds.to_json(), "thresholds": {"A": stored}}))
    return path


def test_a_run_is_compared_with_its_training_data_and_what_was_frozen(context, some_kanji, tmp_path, monkeypatch):
    monkeypatch.setattr(Neighbours, "load_or_fit", classmethod(lambda cls, cache: context.neighbours))
    monkeypatch.setenv("KANJILAB_CACHE", str(tmp_path))
    few = replace(some_kanji, table=some_kanji.table.iloc[:12], digests=some_kanji.digests[:12])
    made = make_context(few, ToyJudge(), frozen=frozen_file(tmp_path, context))
    assert made.thresholds.slack == 0.1 and made.bounds == context.bounds
    assert made.characters == tuple(few.table["character"])
    np.testing.assert_array_equal(made.training, some_kanji.images(range(12)))
    assert made.meaning.vectors.shape == (12, 384) and set(made.meaning.parts) <= set(PARTS)
    without = replace(few, table=few.table.drop(columns="character"))
    with pytest.raises(ValueError, match="expected a column character"):
        make_context(without, ToyJudge(), frozen=frozen_file(tmp_path, context))


def test_a_model_of_all_characters_needs_no_image_folder(context, tmp_path, monkeypatch):
    monkeypatch.setattr(Neighbours, "load_or_fit", classmethod(lambda cls, cache: context.neighbours))
    frozen, asked = frozen_file(tmp_path, context), {"left: water, right: three": ("水", "三")}
    made = dictionary_context(ToyJudge(), asked=asked, frozen=frozen, embed=toy_vectors)
    assert made.characters == ToyJudge.characters and made.training.shape == (5, 32, 32)
    whole = np.asarray(draw_font("大", default_font()), float)
    np.testing.assert_allclose(made.training[-1], whole.reshape(32, 4, 32, 4).mean(axis=(1, 3)), atol=1)
    # Names of parts and glosses of characters that show them: of the first only "water" and others are known words.
    assert set(made.meaning.parts) == set(PARTS)
    assert made.meaning.expected(["water"], top=1) == [("水",)]
    assert made.meaning.expected(["left: water, right: three"]) == [("水", "三")]
    copy = judge_images(ToyJudge(), DA[None], ["tree"], made)
    assert not copy["novel"][0] and copy["copy_ratio"][0] < 0.1


def test_only_outer_parts_that_the_judge_knows_count():
    components = load_components()
    assert outer_parts("休", components, PARTS) == ("人", "木")
    assert outer_parts("湖", components, PARTS) == ("水",)
    assert outer_parts("\u3042", components, PARTS) == ()


# ---------------------------------------------------------------- real judges


def test_frozen_thresholds_are_those_of_the_judge_as_it_reads_now():
    judge, components = load_judge("B"), load_components()
    bounds, thresholds = load_frozen(judge)
    characters = held_out_characters(judge, components)
    images = np.stack([np.asarray(draw_font(character, default_font())) for character in characters])
    now = fit_thresholds(judge, images, bounds, components)
    assert now.glyphs == thresholds.glyphs > 200
    assert dict(now.passed) == pytest.approx(dict(thresholds.passed), abs=0.01)
    assert thresholds.passed["legal"] >= 0.95 and min(thresholds.passed.values()) > 0.88
