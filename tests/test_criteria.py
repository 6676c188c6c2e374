"""The five criteria on glyphs of a toy script whose parts are counted bars, and on real ones beside their controls."""

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from kanjilab import criteria
from kanjilab.adapters import make_trainable
from kanjilab.bases import load_base
from kanjilab.characters import load_characters
from kanjilab.components import Components, Decomposition, Part, load_components
from kanjilab.criteria import (
    CRITERIA,
    Context,
    PartMeaning,
    Thresholds,
    attested_spans,
    caption_vectors,
    control_table,
    controls,
    erasure_scores,
    fit_thresholds,
    judge_hash,
    judge_images,
    line_difference,
    load_frozen,
    main_parts,
    make_context,
    prompt_information,
    summary,
    yield_at,
)
from kanjilab.dataset import build_dataset
from kanjilab.glyphs import default_font, draw_font
from kanjilab.judges import frame_glyphs, load_judge
from kanjilab.legality import MEASURES, Bounds
from kanjilab.neighbours import Neighbours
from kanjilab.radicals import EveryCharacter
from kanjilab.sample import Sampling
from kanjilab.settings import Arm
from tests.tiny import save_tiny_pipeline

PARTS = ("水", "木", "人", "火", "土")  # drawn as one to five bars
LEFT, RIGHT, TOP, BOTTOM = (0.0, 0.0, 0.5, 1.0), (0.5, 0.0, 1.0, 1.0), (0.0, 0.0, 1.0, 0.5), (0.0, 0.5, 1.0, 1.0)
WHOLE = (0.0, 0.0, 1.0, 1.0)
BOXES = {"⿰": (LEFT, RIGHT), "⿱": (TOP, BOTTOM)}
SLOTS = {"⿰": ("left", "right"), "⿱": ("top", "bottom")}
EXISTING = {("⿰", "人", "木"): "休", ("⿰", "水", "木"): "沐", ("⿱", "火", "土"): "灶", ("⿰", "木", "土"): "杜"}
WORDS = ("water", "tree", "person", "fire", "earth")


def glyph(layout: str, *names: str) -> np.ndarray:
    """(128, 128) uint8: each part as many bars as its number, in its box."""
    image = np.full((128, 128), 255, np.uint8)
    for name, (left, top, right, _) in zip(names, BOXES.get(layout, (WHOLE,)), strict=False):
        for bar in range(PARTS.index(name) + 1):
            row = round(128 * top) + 6 + 10 * bar
            image[row : row + 5, round(128 * left) + 6 : round(128 * right) - 6] = 0
    return image


BLOB = np.zeros((128, 128), np.uint8)
DA = np.asarray(draw_font("大", default_font()))


class ToyJudge:
    """Counts bars; takes a black picture for two parts in one place, and a gray one for junk."""

    name, parts, layouts, characters = "A", PARTS, ("⿰", "⿱", "⿻"), tuple("休沐灶杜大")
    part_thresholds, novel_distance, legal_threshold = np.full(5, 0.5, np.float32), 0.1, 0.5

    def look(self, image):
        """Layout, and (part, box) of what is there."""
        dark = image < 128
        if dark.all():
            return "⿻", [("火", WHOLE), ("土", WHOLE)]
        layout = next((sign for sign, gap in (("⿰", dark[:, 60:68]), ("⿱", dark[62:66])) if not gap.any()), "⿻")
        found = []
        for left, top, right, bottom in BOXES.get(layout, (WHOLE,)):
            rows = slice(round(128 * top), round(128 * bottom))
            bars = int(np.diff(dark[rows, round(64 * (left + right))].astype(int), prepend=0).clip(0).sum())
            if 1 <= bars <= 5:
                found.append((PARTS[bars - 1], (left, top, right, bottom)))
        return (layout if found else ""), found

    def part_probabilities(self, images):
        names = [{name for name, _ in self.look(image)[1]} for image in images]
        return np.array([[float(part in own) for part in PARTS] for own in names]).reshape(-1, 5)

    def read(self, images):
        rows = []
        for image in images:
            layout, found = self.look(image)
            known = EXISTING.get((layout, *(name for name, _ in found)))
            clean = float(((image > 50) & (image < 200)).mean() < 0.05)
            rows.append(
                {
                    "parts": tuple(name for name, _ in found),
                    "part_scores": (1.0,) * len(found),
                    "part_boxes": tuple(box for _, box in found),
                    "layout": layout,
                    "layout_probability": 1.0 if found else 0.0,
                    "nearest": known or "大",
                    "codepoint": f"U+{ord(known or '大'):04X}",
                    "distance": 0.0 if known else 0.9,
                    "exists": known is not None,
                    "legal_probability": clean,
                    "legal": clean >= 0.5,
                }
            )
        return pd.DataFrame(rows)


def toy_vectors(captions) -> np.ndarray:
    """Unit vectors that count the five words."""
    counts = np.array([[text.split().count(word) for word in WORDS] for text in captions], np.float32) + 1e-3
    return counts / np.linalg.norm(counts, axis=1, keepdims=True)


def decomposition(character: str, layout: str, *names: str) -> Decomposition:
    places = zip(names, BOXES[layout], SLOTS[layout], strict=True)
    parts = [Part(name, box, slot, False, (n,)) for n, (name, box, slot) in enumerate(places)]
    return Decomposition(layout, (Part(character, WHOLE, "whole", False, (0, 1)), *parts))


TRAINING = [("⿰", "人", "木"), ("⿰", "水", "木"), ("⿰", "火", "人"), ("⿰", "水", "土"), ("⿱", "火", "土")]
CAPTIONS = ["person tree", "water tree", "fire earth", "water earth", "fire"]


@pytest.fixture(scope="module")
def context() -> Context:
    listed = {character: decomposition(character, *pair) for pair, character in EXISTING.items()}
    listed["焱"] = decomposition("焱", "⿰", "火", "木")  # in the list, but unknown to the judge
    wide = dict.fromkeys(MEASURES, (-1e9,)), dict.fromkeys(MEASURES, (1e9,)) | {"gray": (0.02,)}
    return Context(
        Components(PARTS, listed),
        Neighbours.fit(list("休沐大杜"), default_font()),
        Bounds(128, (1.0,), *wide, glyphs=0),
        Thresholds(judge_hash(ToyJudge()), 0.5, 0.5, 0.5, 0.0, 0, {}),
        PartMeaning.fit(CAPTIONS, [pair[1:] for pair in TRAINING], toy_vectors),
        np.stack([glyph(*pair) for pair in TRAINING]),
        tuple("休沐焱池灶"),
    )


def judged(context, images, prompts) -> pd.DataFrame:
    return judge_images(ToyJudge(), np.stack(images), prompts, context)


# ---------------------------------------------------------------- parts and slots


def reading(layout, parts, boxes):
    return SimpleNamespace(layout=layout, parts=parts, part_boxes=boxes, part_scores=(0.9,) * len(parts))


def test_main_parts_stand_in_the_order_of_their_slots():
    inner = (0.3, 0.3, 0.7, 0.7)
    for layout, boxes, order in [
        ("⿰", (RIGHT, LEFT), [("木", "left"), ("人", "right")]),
        ("⿱", (TOP, BOTTOM), [("人", "top"), ("木", "bottom")]),
        ("⿴", (inner, WHOLE), [("木", "outside"), ("人", "inside")]),
        ("⿻", (inner, WHOLE), [("木", ""), ("人", "")]),
    ]:
        found = main_parts(reading(layout, ("人", "木", "口"), (*boxes, inner)))
        assert [(element, slot) for element, _, slot in found] == order
    assert main_parts(reading("⿰", ("人",), (LEFT,))) == ()


def test_main_parts_are_those_that_the_layout_sets_apart():
    upper, lower = (0.5, 0.0, 1.0, 0.5), (0.5, 0.5, 1.0, 1.0)
    found = main_parts(reading("⿰", ("口", "日", "水"), (upper, lower, LEFT)))
    assert [slot for _, _, slot in found] == ["left", "right"] and found[0][0] == "水"  # not the two on the right
    unsure = reading("⿰", ("口", "日", "水"), (upper, LEFT, LEFT))
    unsure.part_scores = (0.9, 0.5, 0.6)
    assert [element for element, _, _ in main_parts(unsure)] == ["水", "口"]


def test_in_a_frame_the_largest_part_stands_outside():
    upper, lower = (0.4, 0.3, 0.8, 0.6), (0.4, 0.6, 0.8, 0.9)
    found = main_parts(reading("⿸", ("女", "禾", "疒"), (lower, upper, (0.0, 0.0, 0.9, 1.0))))
    assert found[0][0] == "疒" and [slot for _, _, slot in found] == ["outside", "inside"]


def test_parts_are_attested_where_they_or_what_holds_them_stand():
    spans = attested_spans(load_components())
    assert spans["人", "left"] > 0.9 and spans["艸", "top"] > 0.9
    assert 0 < spans["艸", "left"] < 0.5  # only as a piece, as in 勤
    assert ("竹", "left") not in spans and spans["竹", "right"] < 0.5 < 0.9 < spans["竹", "top"]


def test_a_piece_may_stand_where_the_whole_part_may_not():
    spans = {("人", "left"): 1.0, ("艸", "right"): 0.3}
    piece = reading("⿰", ("人", "艸"), (LEFT, (0.5, 0.0, 1.0, 0.5)))
    assert criteria._slots_attested(piece, spans)
    assert not criteria._slots_attested(reading("⿰", ("人", "艸"), (LEFT, RIGHT)), spans)
    assert not criteria._slots_attested(reading("⿰", ("人", "木"), (LEFT, RIGHT)), spans)
    assert criteria._slots_attested(reading("⿻", ("人", "木"), (LEFT, RIGHT)), spans)


# ---------------------------------------------------------------- distinct


def test_erasing_tells_two_parts_from_two_names():
    images = np.stack([glyph("⿰", "人", "木"), glyph("⿱", "火", "木"), BLOB, glyph("⿻", "水"), 255 - BLOB])
    scores = erasure_scores(ToyJudge(), images, ToyJudge().read(images))
    # Two parts apart: wiping one takes its odds from a million to one in a million, and leaves the other's. One blob:
    # both names go together. Fewer than two parts have no score.
    sure = 2 * np.log(1e6)
    np.testing.assert_allclose(scores, [sure, sure, 0, np.nan, np.nan], rtol=1e-5)


def test_what_is_left_keeps_its_size_and_place():
    image = np.asarray(draw_font("休", default_font()))
    wiped = criteria._wiped(image, LEFT, RIGHT)
    assert (wiped[16:112, 14:58] == 255).all() and (wiped[:, 70:] <= image[:, 70:]).all()
    np.testing.assert_allclose(frame_glyphs(wiped[None])[1], frame_glyphs(image[None])[1], atol=3)


class FrameJudge:
    """囗 is ink along the rim, 木 is ink in the middle."""

    parts = ("囗", "木")

    def part_probabilities(self, images):
        ink = images < 128
        rim = ink.copy()
        rim[:, 30:98, 30:98] = False
        middle = ink[:, 30:98, 30:98].sum(axis=(1, 2))
        return np.stack([rim.sum(axis=(1, 2)) > 500, middle > 500], axis=1).astype(float)


def test_what_is_inside_a_frame_is_not_wiped_with_it():
    image = np.full((1, 128, 128), 255, np.uint8)
    image[:, 4:124, 4:124], image[:, 20:108, 20:108] = 0, 255
    image[:, 36:92, 36:92] = 0
    inner = (0.25, 0.25, 0.75, 0.75)
    table = pd.DataFrame([{"parts": ("囗", "木"), "part_boxes": (WHOLE, inner), "part_scores": (1, 1), "layout": "⿴"}])
    assert erasure_scores(FrameJudge(), image, table)[0] == pytest.approx(2 * np.log(1e6), rel=1e-5)


# ---------------------------------------------------------------- meaning


def test_nearest_captions_vote_for_their_parts():
    meaning = PartMeaning.fit(["water", "tree", "tree"], [("水",), ("木", "人"), ("木",)], toy_vectors)
    shares = dict(zip(meaning.parts, meaning.probabilities(["tree"])[0], strict=True))
    # Two captions at cosine 1, one nearly orthogonal: e^(-1 / 0.08) of a vote is nothing. 2% go by frequency.
    assert shares["木"] == pytest.approx(0.98 * 0.75 + 0.02 * 0.5, abs=1e-4)
    assert shares["人"] == pytest.approx(0.98 * 0.25 + 0.02 / 6, abs=1e-4)
    assert shares["水"] == pytest.approx(0.02 / 3, abs=1e-4)
    assert meaning.expected(["water", "tree"], top=1) == [("水",), ("木",)]
    assert sum(shares.values()) == pytest.approx(1)


def test_captions_without_parts_have_no_vote_and_nothing_to_learn_is_refused():
    meaning = PartMeaning.fit(["tree", "tree"], [("木",), ()], toy_vectors)
    assert meaning.probabilities(["tree"])[0].tolist() == [pytest.approx(1)]
    with pytest.raises(ValueError, match="known parts, got none among 1"):
        PartMeaning.fit(["tree"], [()], toy_vectors)
    with pytest.raises(ValueError, match="got 1 captions, 2 parts"):
        PartMeaning.fit(["tree"], [(), ()], toy_vectors)


def test_sentence_embeddings_know_what_words_mean_and_are_kept(monkeypatch, tmp_path):
    monkeypatch.setenv("KANJILAB_CACHE", str(tmp_path))
    captions = ["ocean", "to swim in the sea", "parliament"]
    vectors = caption_vectors(captions)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    assert vectors[0] @ vectors[1] > vectors[0] @ vectors[2] + 0.2
    np.testing.assert_allclose(caption_vectors(captions[::-1])[::-1], vectors, atol=1e-5)  # alone or padded
    monkeypatch.setattr(criteria, "_embedded", lambda captions: pytest.fail("embedded twice"))
    np.testing.assert_array_equal(caption_vectors(captions), vectors)


# ---------------------------------------------------------------- novelty


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


# ---------------------------------------------------------------- verdicts


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


def test_a_part_where_it_never_stands_is_not_legal(context):
    found = judged(context, [glyph("⿰", "土", "人"), glyph("⿱", "土", "火"), glyph("⿱", "火", "土")], ["fire"] * 3)
    assert found["slots_attested"].tolist() == [False, False, True]
    assert found["legal"].tolist() == [False, False, True]
    assert (found["legal_probability"] == 1).all() and (found["excess"] == 0).all()


def test_abstaining_from_the_layout_fails_legality(context):
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


# ---------------------------------------------------------------- freezing


class GradedJudge(ToyJudge):
    """As sure of legality as the first pixel says, in 250ths."""

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


# ---------------------------------------------------------------- summaries


def test_yield_at_hand_worked_counts():
    passes = np.array([[1, 0, 1], [0, 0, 1], [0, 0, 1], [0, 0, 1]], bool)
    np.testing.assert_allclose(yield_at(passes, 1), [1 / 4, 0, 1])
    np.testing.assert_allclose(yield_at(passes, 2), [1 / 2, 0, 1])  # 1 - C(3, 2) / C(4, 2)
    np.testing.assert_allclose(yield_at(passes, 4), [1, 0, 1])
    with pytest.raises(ValueError, match="n must lie in 1 to 4, got 5"):
        yield_at(passes, 5)


def rows_of(expected, parts, **columns) -> pd.DataFrame:
    """A table of (prompts, images) of parts, every verdict true unless given."""
    rows = [
        {"prompt": f"p{p}", "image": i, "expected": expected[p], "parts": shown, "layout": "⿰", "novelty": "new"}
        for p, line in enumerate(parts)
        for i, shown in enumerate(line)
    ]
    table = pd.DataFrame(rows).assign(
        complexity=2.0, neighbour_exists=False, **dict.fromkeys([*CRITERIA, "all_five"], True)
    )
    table["meaning"] = [
        bool(set(s.split()) & set(e.split())) for s, e in zip(table["parts"], table["expected"], strict=True)
    ]
    return table.assign(**columns)


def test_summary_at_a_hand_worked_table():
    table = rows_of(["水 木", "水 人", "火 土"], [["水 口", "口 水"], ["水 口", "土 口"], ["口 目", "土 日"]])
    table["all_five"] = [True, True, True, False, False, False]
    scores = summary(table)
    value = scores["value"]
    assert value["all_five"] == 0.5 and value["two_or_more"] == 1 and value["complexity"] == 2
    assert value["yield@2"] == pytest.approx(2 / 3) and "yield@1" not in value
    assert value["distinct_passes"] == pytest.approx((1 + 1 + 0) / 3)  # 水 and 口 in either order are one
    # Rates 1, 1/2 (both of likeliest part 水) and 1/2 (火): 3/4 and 1/2.
    assert value["meaning"] == pytest.approx(2 / 3) and value["meaning_balanced"] == pytest.approx(0.625)
    # 水 suits the first two prompts, 土 the last, 口 with 目 none: (3 x 2 + 2 x 1) of 18 pairings.
    assert value["meaning_permuted"] == pytest.approx(8 / 18)
    assert value["novelty: new"] == 1 and value["novelty: exists"] == 0
    interval = scores.loc["all_five"]
    assert 0 <= interval["low"] < 0.5 < interval["high"] <= 1


def test_spamming_a_frequent_part_is_seen_through():
    prompts = ["口 木"] * 8 + ["水 人", "火 土"]
    spam = summary(rows_of(prompts, [["口 日"]] * 10))["value"]
    assert spam["meaning"] == 0.8 and spam["meaning_permuted"] == pytest.approx(0.8)
    assert spam["meaning_balanced"] == pytest.approx(1 / 3)
    assert spam["information_bits"] == pytest.approx(0, abs=1e-12) and spam["information_p"] == 1


def test_information_between_prompts_and_parts():
    labels = ["水 木", "火 土"] * 8
    rng = np.random.default_rng(0)
    bits, p = prompt_information(rows_of(labels, [[label.split()[0]] * 3 for label in labels]), rng)
    assert 0.85 < bits <= 1 and p == pytest.approx(1 / 201)  # one bit, less a little that chance gives
    random = [[str(rng.choice(["水", "火"])) for _ in range(3)] for _ in labels]
    bits, p = prompt_information(rows_of(labels, random), rng)
    assert abs(bits) < 0.2 and p > 0.01
    assert prompt_information(rows_of(labels, [[""]] * 16), rng)[0] == pytest.approx(0, abs=1e-12)


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


def test_a_run_is_compared_with_its_training_data_and_what_was_frozen(context, dataset, tmp_path, monkeypatch):
    monkeypatch.setattr(Neighbours, "load_or_fit", classmethod(lambda cls, cache: context.neighbours))
    monkeypatch.setenv("KANJILAB_CACHE", str(tmp_path))
    few = replace(dataset, table=dataset.table.iloc[:12], digests=dataset.digests[:12])
    made = make_context(few, ToyJudge(), frozen=frozen_file(tmp_path, context))
    assert made.thresholds.slack == 0.1 and made.bounds == context.bounds
    assert made.characters == tuple(few.table["character"])
    np.testing.assert_array_equal(made.training, dataset.images(range(12)))
    assert made.meaning.vectors.shape == (12, 384) and set(made.meaning.parts) <= set(PARTS)
    without = replace(few, table=few.table.drop(columns="character"))
    with pytest.raises(ValueError, match="expected a column character"):
        make_context(without, ToyJudge(), frozen=frozen_file(tmp_path, context))


def test_only_outer_parts_that_the_judge_knows_count():
    components = load_components()
    assert criteria.outer_parts("休", components, PARTS) == ("人", "木")
    assert criteria.outer_parts("湖", components, PARTS) == ("水",)
    assert criteria.outer_parts("\u3042", components, PARTS) == ()


# ---------------------------------------------------------------- controls


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    """Some 190 of the kanji with water, tree or person on the left, a fifth of them held out."""
    table = load_characters()
    rows = table.loc[table["radical"].isin([85, 75, 9]) & (table["jis_order"] < 4000).fillna(False)]
    return build_dataset(
        EveryCharacter(), tmp_path_factory.mktemp("data") / "some", characters=rows, held_out_share=0.2
    )


@pytest.fixture(scope="module")
def real_context(dataset) -> Context:
    """As `make_context` makes it, but with captions embedded by their words, which takes no time."""
    training, components = dataset.split("train"), load_components()
    characters = tuple(training.table["character"])
    parts = [criteria.outer_parts(c, components, components.parts) for c in characters]
    wide = dict.fromkeys(MEASURES, (-1e9,)), dict.fromkeys(MEASURES, (1e9,))
    return Context(
        components,
        Neighbours.fit(list(characters), default_font()),
        Bounds(128, (1.0,), *wide, glyphs=0),
        Thresholds("", 0.5, 0.5, 0.5, 0.0, 0, {}),
        PartMeaning.fit(tuple(training.table["text"]), parts, hashed_words),
        training.images(),
        characters,
    )


def hashed_words(captions) -> np.ndarray:
    """Unit vectors that count words, by the sum of their letters."""
    counts = np.full((len(captions), 512), 1e-3, np.float32)
    for row, text in enumerate(captions):
        for word in text.lower().split():
            counts[row, sum(map(ord, word)) % 512] += 1
    return counts / np.linalg.norm(counts, axis=1, keepdims=True)


@pytest.fixture(scope="module")
def made(dataset, real_context, tmp_path_factory):
    """Prompts and controls, the models being tiny."""
    base = load_base(save_tiny_pipeline(tmp_path_factory.mktemp("tiny") / "base"))
    prompts = list(dataset.split("held_out").table["text"][:3])
    run = make_trainable(base.denoiser, [Arm(rank=1)])
    quick = Sampling(steps=1, guidance=1.0)
    return prompts, controls(real_context, dataset, base, prompts, [0, 1], quick, trained=run, shuffled=run)


def test_controls_have_the_same_prompts_and_counts(made):
    _, images = made
    assert list(images) == [
        "real held-out",
        "through the VAE",
        "typeset",
        "retrieval",
        "shuffled captions",
        "base alone",
        "empty prompt",
        "half-swapped",
        "noise",
    ]
    assert {(some.shape, some.dtype) for some in images.values()} == {((6, 128, 128), np.dtype(np.uint8))}


def test_controls_are_what_they_are_called(made, dataset, real_context):
    prompts, images = made
    held_out = dataset.split("held_out")
    shown = held_out.images([list(held_out.table["text"]).index(prompt) for prompt in prompts for _ in range(2)])
    np.testing.assert_array_equal(images["real held-out"], shown)
    training = {image.tobytes() for image in real_context.training}
    assert all(image.tobytes() in training for image in images["retrieval"])
    assert images["retrieval"][0].tobytes() != images["retrieval"][1].tobytes()
    left = {image[:, :44].tobytes() for image in real_context.training}
    right = {image[:, 84:].tobytes() for image in real_context.training}
    for image in images["half-swapped"]:
        assert image[:, :44].tobytes() in left and image[:, 84:].tobytes() in right
        assert image.tobytes() not in training
    assert images["empty prompt"][0].tobytes() == images["empty prompt"][2].tobytes()  # whatever was asked
    assert images["typeset"][0].tobytes() not in training and (images["typeset"] < 128).mean() > 0.05


def test_retrieval_finds_the_training_caption_itself(dataset, real_context):
    captions = list(dataset.split("train").table["text"][:4])
    np.testing.assert_array_equal(criteria.retrieved(real_context, captions, 1), real_context.training[:4])


def test_prompts_without_a_real_answer_are_refused(dataset, real_context):
    with pytest.raises(ValueError, match="captions of held-out characters, got \\['robot'\\]"):
        controls(real_context, dataset, None, ["robot"], [0])


def test_one_table_for_all_controls(context):
    images = {"good": np.stack([glyph("⿰", "人", "土")] * 4), "blob": np.stack([BLOB] * 4)}
    table = control_table(ToyJudge(), images, ["person tree", "earth"], context)
    assert table.index.names == ["control", "score"]
    assert table.loc[("good", "all_five"), "value"] == 1 and table.loc[("blob", "all_five"), "value"] == 0


# ---------------------------------------------------------------- real glyphs, real judges


@pytest.fixture(scope="module", params=["A", "B"])
def real_scores(request, dataset, real_context) -> pd.Series:
    """Scores of the controls that need no model, by a packaged judge with what was frozen for it."""
    judge = load_judge(request.param)
    bounds, thresholds = load_frozen(judge)
    packaged = replace(real_context, bounds=bounds, thresholds=thresholds)
    prompts, rng = sorted(set(dataset.split("held_out").table["text"]))[:40], np.random.default_rng(0)
    images = {
        "real": criteria._real_glyphs(dataset.split("held_out"), prompts, 1),
        "typeset": criteria.typeset_answers(packaged, prompts, 1),
        "retrieval": criteria.retrieved(packaged, prompts, 1),
        "half-swapped": criteria.half_swapped(packaged.training, len(prompts), rng),
        "noise": rng.integers(0, 256, (len(prompts), 128, 128), dtype=np.uint8),
    }
    tables = {name: judge_images(judge, some, prompts, packaged) for name, some in images.items()}
    columns = [*CRITERIA, "all_five", "distance"]
    return pd.DataFrame({name: table[columns].mean() for name, table in tables.items()}).T.stack()


def test_legality_puts_the_controls_in_order(real_scores):
    legal = real_scores[:, "legal"]
    assert legal["real"] > legal["half-swapped"] + 0.2 and legal["half-swapped"] > legal["noise"] == 0
    assert legal["real"] >= 0.85 and legal["retrieval"] >= 0.85


def test_what_exists_is_never_novel_and_noise_is_novel_but_worth_nothing(real_scores):
    assert real_scores["real", "novel"] <= 0.05 and real_scores["retrieval", "novel"] <= 0.05
    assert real_scores["typeset", "novel"] >= 0.7
    assert real_scores["noise", "distance"] > real_scores["real", "distance"]
    assert real_scores["noise", "novel"] >= 0.8 and real_scores["noise", "all_five"] == 0
    assert real_scores["half-swapped", "all_five"] <= 0.25 and real_scores["retrieval", "all_five"] == 0


def test_parts_are_found_where_there_are_parts(real_scores):
    for name in ("two_or_more", "distinct"):
        found = real_scores[:, name]
        assert min(found["real"], found["typeset"], found["retrieval"]) >= 0.85 and found["noise"] == 0
    assert real_scores["typeset", "all_five"] > real_scores["half-swapped", "all_five"] + 0.2


def test_noise_answers_no_prompt(real_scores):
    assert real_scores["noise", "meaning"] == 0 and real_scores["retrieval", "meaning"] > 0.8


def test_frozen_thresholds_are_those_of_the_judge_as_it_reads_now():
    judge, components = load_judge("B"), load_components()
    bounds, thresholds = load_frozen(judge)
    characters = criteria.held_out_characters(judge, components)
    images = np.stack([np.asarray(draw_font(character, default_font())) for character in characters])
    now = fit_thresholds(judge, images, bounds, components)
    assert now.glyphs == thresholds.glyphs > 200
    assert dict(now.passed) == pytest.approx(dict(thresholds.passed), abs=0.01)
    assert thresholds.passed["legal"] >= 0.95 and min(thresholds.passed.values()) > 0.88
