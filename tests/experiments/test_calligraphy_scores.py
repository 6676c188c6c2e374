"""The table of calligraphy, on a tiny base: rows whose values are known beforehand."""

import dataclasses
from functools import partial

import numpy as np
import pytest

from kanjilab.data.calligraphy import Style, build_calligraphy_folder, typed_glyph
from kanjilab.data.components import is_held_out
from kanjilab.data.rendering import default_font
from kanjilab.experiments import calligraphy_scores, calligraphy_sheet
from kanjilab.experiments.calligraphy_scores import Amounts, score_calligraphy
from kanjilab.models.sampling import Sampling
from kanjilab.models.skeleton_encoder import with_skeletons
from kanjilab.training import few_shot

FONTS = [default_font().parent]
STYLES = tuple(
    Style(name, script, "pen", name, "ipaexg.ttf") for name, script in (("queen", "regular"), ("water", "cursive"))
)
HAND = Style("new hand", "regular", "pen", "river", "ipaexg.ttf")
FEW = Amounts(unseen=1, seeds=2, known=2, fitted=4, hands=1, of_hand=2, old=1)


@pytest.fixture(scope="module")
def scored(base, tmp_path_factory):
    """The report, and the folder of what was learned."""
    target = tmp_path_factory.mktemp("scores")
    dataset = build_calligraphy_folder(target / "data", FONTS, STYLES, "永国心九足道耳")
    led = with_skeletons(base, "hint", "九国心永足")
    quick = dataclasses.replace(few_shot.HAND_RECIPE, images_seen=2, batch=2, warmup_steps=0)
    write, draw = calligraphy_scores.write, Sampling("ddim", steps=1, guidance=1.0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(calligraphy_scores, "write", lambda *a, **k: write(*a, **k, sampling=draw))
        patch.setattr(few_shot.learn_hand, "__defaults__", (quick,))
        knows = {"outside": lambda images: ["道"] * len(images)}
        report = score_calligraphy(led, dataset, FONTS, target / "out", FEW, knows, [HAND])
    return report, led, target / "out"


def test_rows_that_cost_nothing_have_the_values_that_they_must_have(scored):
    rows = {(row["split"], row["row"]): row for row in scored[0]["rows"]}
    real, blank = (rows["unseen characters", name] for name in ("real glyphs", "blank page"))
    assert real["l1"] == [0, 0, 0] and real["ssim"][0] == 1 and real["outside"][0] == 1
    assert 0.02 < blank["l1"][0] < blank["rmse"][0] < 1
    assert rows["unseen characters", "nearest other font"]["l1"][0] == 0  # both styles have the same font here
    even = rows["unseen characters", "skeleton, inked evenly"]
    assert 0 < even["l1"][0] < blank["l1"][0]
    assert rows["trained characters, regular", "real glyphs"]["outside"][0] == 0  # none of them is 道


def test_every_seed_and_every_hand_is_there(scored):
    report, _, folder = scored
    counts = {(row["split"], row["row"]): row["glyphs"] for row in report["rows"]}
    assert counts["unseen characters", "led by its skeleton"] == 4  # two styles, two seeds
    assert (
        counts["trained characters, regular", "by index"]
        == counts["trained characters, running and cursive", "by index"]
        == 2
    )
    hand = report["hands"][0]
    assert hand["hand"] == "new hand" and len(hand["samples"]) == 5 and "道" not in hand["samples"]
    assert np.isfinite([hand["distance_before"], hand["distance_after"]]).all()
    assert {row["style"] for row in report["styles"]} == {"queen", "water"}
    assert (folder / "report.json").exists() and (folder / "table.parquet").exists()


def test_the_sheet_of_hands_shows_the_true_one_first(scored, monkeypatch):
    _, base, folder = scored
    draw = partial(calligraphy_sheet.write, sampling=Sampling("ddim", steps=1, guidance=1.0))
    monkeypatch.setattr(calligraphy_sheet, "write", draw)
    sheet = calligraphy_sheet.hands_sheet(base, FONTS, folder, styles=[HAND])
    assert sheet.row_labels == ("river", "by its name alone", "after five samples")
    assert len(sheet.column_labels) == 8 and all(map(is_held_out, sheet.column_labels))
    true, before, after = sheet.images
    typed = np.stack([typed_glyph(character) for character in sheet.column_labels])  # the same font, in its own scale
    assert np.abs(true.astype(int) - typed).mean() < 20
    assert (before != after).any()
