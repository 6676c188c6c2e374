"""Charts: the numbers that are drawn, the fonts that draw them, and no global state."""

import json
import subprocess
import sys
from io import BytesIO

import matplotlib
import matplotlib.colors
import numpy as np
import pandas as pd
import pytest
from matplotlib import font_manager
from matplotlib.figure import Figure
from matplotlib.text import Text
from numpy.testing import assert_allclose
from PIL import Image

from kanjilab.viz.charts import (
    PALETTE,
    arm_values,
    draw_glyph_sheet,
    draw_gradient_norm,
    draw_learning_rate,
    draw_loss,
    draw_radical_balance,
    figure_png,
    font_families,
    save_figure,
    smooth,
)
from kanjilab.viz.study_charts import draw_blocks, draw_budget, draw_differences, draw_logs, draw_rates, draw_study
from kanjilab.viz.text import has_character

HOSTILE = "$\\frac{ <img onerror=1> \x00\n\u202e 女 한국 " + "x" * 400


@pytest.fixture
def log():
    steps = np.arange(1, 101)
    return pd.DataFrame(
        {
            "step": steps,
            "images_seen": 8 * steps,
            "loss": [[1 / step, 2 / step, None if step > 40 else 3.0] for step in steps],
            "gradient_norm": [[step * 1.0, 10.0, float("nan")] for step in steps],
            "lr": 1e-4 * (1 - steps / 100),
            "stopped": [(None, None, "step 41: loss nan" if step > 40 else None) for step in steps],
        }
    )


def curves(figure):
    return [line for line in figure.axes[0].lines if line.get_gid() == "smoothed"]


def texts(figure):
    return [text.get_text() for text in figure.findobj(lambda artist: isinstance(artist, Text))]


def test_arm_values_of_lists_numbers_and_gaps():
    log = pd.DataFrame({"a": [[1, 2], [3, None], None, [5, float("inf")]], "b": [1.0, None, 3.0, 4.0]})
    assert_allclose(arm_values(log, "a"), [[1, 2], [3, np.nan], [np.nan, np.nan], [5, np.inf]])
    assert_allclose(arm_values(log, "b"), [[1], [np.nan], [3], [4]])
    with pytest.raises(ValueError, match=r"no column 'c', only \['a', 'b'\]"):
        arm_values(log, "c")
    with pytest.raises(ValueError, match=r"same number of arms in every record, got \[2, 3\]"):
        arm_values(pd.DataFrame({"a": [[1, 2], [1, 2, 3]]}), "a")


def test_smoothing_by_hand():
    values = np.array([[1.0], [4.0], [np.nan], [7.0]])  # span 3: each older value weighs half
    expected = [[1], [(4 + 1 / 2) / 1.5], [np.nan], [(7 + 4 / 2 + 1 / 4) / 1.75]]
    assert_allclose(smooth(values, 3), expected)
    assert_allclose(smooth(values, 1), values)
    assert_allclose(smooth(np.full((9, 2), 0.3), 5), 0.3)  # no bias at the beginning
    with pytest.raises(ValueError, match="span"):
        smooth(values, 0.5)


def test_loss_curves_are_the_smoothed_log_up_to_where_each_arm_ends(log):
    figure = draw_loss(log, ["reference", "twice", "stopped early"], span=7)
    values = np.array([[1 / step, 2 / step, 3.0] for step in log.step])
    for k, line in enumerate(curves(figure)):
        end = 40 if k == 2 else 100
        assert_allclose(line.get_xdata(), log.images_seen[:end])
        assert_allclose(line.get_ydata(), smooth(values[:end], 7)[:, k])
    assert {"reference", "twice", "stopped early (stopped)"} <= set(texts(figure))
    assert len({line.get_color() for line in curves(figure)}) == 3


@pytest.mark.parametrize("draw", [draw_loss, draw_gradient_norm, draw_learning_rate])
def test_each_arm_is_at_its_own_images_and_is_marked_only_if_it_stopped(draw):
    """Batches of 1 and 16 where the first ends early; the second stops at the very last record."""
    steps = np.arange(1, 9)
    values = [[0.1 if step <= 4 else None, 0.2, 0.3] for step in steps]
    seen = [[min(step, 4), 16 * step, None if step == 1 else step] for step in steps]
    log = pd.DataFrame({"images_seen": seen, "loss": values, "gradient_norm": values, "lr": values})
    log["stopped"] = [[None, "step 8: too steep" if step == 8 else None, None] for step in steps]
    figure = draw(log)
    assert [np.asarray(line.get_xdata()).tolist() for line in curves(figure)] == [
        [1, 2, 3, 4],
        [16 * step for step in steps],
        [2, 3, 4, 5, 6, 7, 8],
    ]
    low, high = figure.axes[0].get_xlim()
    assert low < 1 and high > 128
    assert {"arm 0", "arm 1 (stopped)", "arm 2"} <= set(texts(figure))
    assert [line.get_xydata().tolist() for line in figure.axes[0].lines if line.get_marker() == "x"] == [[[128, 0.2]]]


def test_names_are_beside_their_lines_in_order_without_overlap(log):
    log["loss"] = [[0.5 + k * 1e-4 for k in range(6)] + [0.9] for _ in log.step]
    figure = draw_loss(log)
    figure_png(figure)
    names = [text for text in figure.axes[0].texts if text.get_text().startswith("arm ")]
    boxes = [(text.get_window_extent(), text.get_text()) for text in names]
    boxes.sort(key=lambda pair: pair[0].y0)
    assert [name for _, name in boxes] == [f"arm {k}" for k in range(7)]
    assert all(low.y1 <= high.y0 for (low, _), (high, _) in zip(boxes, boxes[1:], strict=False))
    assert boxes[0][0].y0 > 0 and boxes[-1][0].y1 < figure.bbox.height
    assert max(box.x1 for box, _ in boxes) <= figure.bbox.width


def test_a_spike_does_not_flatten_the_curve(log):
    log["loss"] = [0.1 + 0.001 * step for step in log.step]
    log.loc[50, "loss"] = 1e6
    low, high = draw_loss(log, span=1).axes[0].get_ylim()
    assert low < 0.1 and high > 1e6  # unsmoothed, the spike is the curve
    log["loss"] = np.random.default_rng(0).uniform(0.1, 0.2, 100)
    log.loc[50, "loss"] = 5.0
    assert draw_loss(log, span=60).axes[0].get_ylim()[1] < 1.0


def test_gradient_norm_is_logarithmic_and_passes_over_what_has_no_logarithm(log):
    log.at[3, "gradient_norm"] = [0.0, -1.0, np.inf]
    figure = draw_gradient_norm(log, span=1)
    assert figure.axes[0].get_yscale() == "log"
    first = curves(figure)[0]
    assert 4 * 8 not in first.get_xdata() and len(first.get_xdata()) == 99
    assert len(curves(figure)[2].get_xdata()) == 0
    figure_png(figure)


def test_learning_rate_is_drawn_as_it_was_and_steps_may_be_the_axis(log):
    (line,) = curves(draw_learning_rate(log, x="step"))
    assert_allclose(line.get_ydata(), log.lr)
    assert_allclose(line.get_xdata(), log.step)


def test_wrong_number_of_names_is_refused(log):
    with pytest.raises(ValueError, match="expected 3 arm names.*got 1"):
        draw_loss(log, ["only"])


def test_balance_bars_are_the_counts_most_first():
    counts = pd.DataFrame({"left": [5, 9], "elsewhere": [1, 2]}, index=["木", "水"])
    figure = draw_radical_balance(counts, title="balance", note="entropy 0.94 of 1.00 bits")
    heights = [bar.get_height() for bar in figure.axes[0].patches]
    assert heights == [9, 5, 2, 1]
    assert [bar.get_y() for bar in figure.axes[0].patches] == [0, 0, 9, 5]
    assert [label.get_text() for label in figure.axes[0].get_xticklabels()] == ["水", "木"]
    assert {"11", "6", "left", "elsewhere", "balance"} <= set(texts(figure))
    with pytest.raises(ValueError, match=">= 0"):
        draw_radical_balance(pd.Series({"水": -1}))
    with pytest.raises(ValueError, match="at least one radical"):
        draw_radical_balance(pd.Series(dtype=float))


def test_glyph_sheet_holds_every_image_in_its_place():
    images = np.random.default_rng(0).integers(0, 256, (5, 8, 8), dtype=np.uint8)
    figure = draw_glyph_sheet(images, list("水木火土金"), columns=3)
    shown = figure.axes[0].images
    assert all(np.array_equal(artist.get_array(), image) for artist, image in zip(shown, images, strict=True))
    corners = [(round(artist.get_extent()[0] / 1.08), round(artist.get_extent()[3] / 1.28)) for artist in shown]
    assert corners == [(0, 0), (1, 0), (2, 0), (0, 1), (1, 1)]
    with pytest.raises(ValueError, match="5 labels"):
        draw_glyph_sheet(images, ["a"])
    with pytest.raises(ValueError, match="uint8"):
        draw_glyph_sheet(images.astype(float))


RATES = pd.DataFrame(
    {
        "variant": ["rank 4", "rank 64"] * 2,
        "images_seen": [4_000.0, 4_000.0, 16_000.0, 16_000.0],
        "final": [False, False, True, True],
        "value": [0.1, 0.2, 0.4, 0.5],
        "low": [0.05, 0.1, 0.3, 0.4],
        "high": [0.15, 0.3, 0.5, 0.6],
        "blocks": [[0.1, 0.1], [0.15, 0.25], [0.35, 0.45], [0.5, 0.5]],
    }
)
DIFFERENCES = pd.DataFrame(
    {
        "label": ["rank 64 – rank 4", "rank 1 – rank 4"],
        "value": [0.1, -0.01],
        "low": [0.05, -0.02],
        "high": [0.15, 0.02],
        "blocks": [[0.05, 0.15], [-0.01, -0.01]],
        "verdict": ["held", "equivalent"],
    }
)


def drawn_values(ax):
    """Of each row: the interval, the value, and the blocks' points."""
    lines = [np.asarray(line.get_xdata()).tolist() for line in ax.lines if line.get_linestyle() != "--"]
    return [line for line in lines if line != [0, 0]]  # the zero line apart


def test_rates_are_dots_with_intervals_and_the_blocks_points():
    figure = draw_rates(RATES[RATES["final"]], title="rates")
    (ax,) = figure.axes
    assert drawn_values(ax) == [[0.35, 0.45], [0.3, 0.5], [0.4], [0.5, 0.5], [0.4, 0.6], [0.5]]
    assert [label.get_text() for label in ax.get_yticklabels()] == ["rank 4", "rank 64"]
    low, high = ax.get_ylim()
    assert low > high  # the first variant stands above
    figure_png(figure)
    assert {"20%", "40%"} <= {label.get_text() for label in ax.get_xticklabels()}
    with pytest.raises(ValueError, match="at least one row"):
        draw_rates(RATES[:0])


def test_differences_are_drawn_over_the_band_of_no_difference():
    figure = draw_differences(DIFFERENCES, margin=0.03)
    (ax,) = figure.axes
    assert drawn_values(ax) == [[0.05, 0.15], [0.05, 0.15], [0.1], [-0.01, -0.01], [-0.02, 0.02], [-0.01]]
    (band,) = ax.patches
    assert (band.get_x(), band.get_x() + band.get_width()) == pytest.approx((-0.03, 0.03))
    colors = {text.get_text(): text.get_color() for text in ax.texts}
    assert colors["better"] != colors["as good"]
    figure_png(figure)
    assert "+10" in {label.get_text() for label in ax.get_xticklabels()}
    with pytest.raises(ValueError, match="at least one row"):
        draw_differences(DIFFERENCES[:0])


def test_long_names_of_rows_are_wrapped_and_none_is_cut():
    name = "targets attention+feed-forward – the studies' arm"
    figure = draw_differences(pd.concat([DIFFERENCES.assign(label=name)] * 9))
    figure_png(figure)
    labels = figure.axes[0].get_yticklabels()
    assert {label.get_text().replace("\n", " ") for label in labels} == {name}
    boxes = [label.get_window_extent() for label in labels]
    assert all(upper.y0 > lower.y1 for upper, lower in zip(boxes, boxes[1:], strict=False)), "none over another"


def test_a_study_of_many_variants_names_each_line_beside_it():
    names = [f"targets cross-attention {k:02}" for k in range(18)]
    seen = [{"variant": name, "images_seen": count, "final": count == 2} for name in names for count in (1, 2)]
    rates = pd.DataFrame(seen).assign(value=0.5, low=0.4, high=0.6, blocks=[[0.5]] * 36)
    figure = draw_study(rates, DIFFERENCES)
    figure_png(figure)
    ax, frame = figure.axes[-1], figure.axes[-1].get_window_extent()
    found = sorted(ax.texts, key=lambda text: -text.get_window_extent().y0)
    assert sorted(text.get_text() for text in found) == names
    boxes = [text.get_window_extent() for text in found]
    assert all(upper.y0 > lower.y1 - 4 for upper, lower in zip(boxes, boxes[1:], strict=False))
    assert boxes[-1].y0 > frame.y0 - 20 and boxes[0].y1 < frame.y1 + 20 and boxes[0].x1 <= figure.bbox.x1


def test_budget_curves_run_over_images_seen_whatever_the_order():
    figure = draw_budget(RATES.iloc[::-1])
    lines = {line.get_color(): np.asarray(line.get_xydata()).tolist() for line in curves(figure)}
    assert sorted(lines.values()) == [[[4_000, 0.1], [16_000, 0.4]], [[4_000, 0.2], [16_000, 0.5]]]
    assert {"rank 4", "rank 64"} <= set(texts(figure))
    with pytest.raises(ValueError, match="at least one rate"):
        draw_budget(RATES[:0])


def test_a_smaller_budget_is_no_stop_and_a_stop_is_shown_wherever_it_is():
    rates = RATES[:3].assign(stopped=[2, 0, 2])  # rank 64 has the smaller budget, rank 4 stopped twice
    assert {"rank 4 (2 stopped)", "rank 64"} <= set(texts(draw_budget(rates)))
    budget = draw_study(rates.assign(final=[False, True, True]), DIFFERENCES).axes[-1]
    assert {"rank 4 (2 stopped)", "rank 64"} <= {text.get_text() for text in budget.texts}
    logs = pd.DataFrame({"variant": ["a", "a", "b", "b"], "seed": [1, 2, 1, 1], "images_seen": [16, 8, 8, 4]})
    logs = logs.assign(loss=0.1, stopped=[None, "step 2: too steep", None, None])
    assert {"a (1 stopped)", "b"} <= set(texts(draw_logs(logs, ["loss"])))


def test_a_study_shows_its_ends_its_contrasts_and_the_way_there():
    figure = draw_study(RATES, DIFFERENCES, title="rank", note="2 seeds")
    rates, differences, budget = figure.axes
    assert len(rates.get_yticks()) == len(differences.get_yticks()) == 2
    assert len(budget.collections) == 2
    assert len(draw_study(RATES[RATES["final"]], DIFFERENCES).axes) == 2
    assert len(draw_study(RATES[RATES["final"]], DIFFERENCES[:0]).axes) == 1
    figure_png(figure)


def test_blocks_are_lines_from_the_second_of_a_pair_to_its_first():
    table = pd.DataFrame({"a": [0.1, 0.3], "b": [0.5, 0.9]}, index=[7, 8])
    figure = draw_blocks({"hits": table, "loss": 2 * table}, [("b", "a")], title="blocks", note="2 seeds")
    hits, loss = figure.axes
    assert [np.asarray(line.get_ydata()).tolist() for line in hits.lines] == [[0.1, 0.5], [0.3, 0.9], [0.2, 0.7]]
    assert [label.get_text() for label in loss.get_xticklabels()] == ["a", "b"]
    assert {"blocks", "2 seeds", "hits", "loss"} <= set(texts(figure))
    two = draw_blocks({"hits": table}, [("b", "a"), ("a", "b")])
    assert [label.get_text() for label in two.axes[0].get_xticklabels()] == ["a", "b", "b", "a"]
    hostile = draw_blocks({HOSTILE: table.rename(columns={"a": HOSTILE})}, [("b", HOSTILE)], title=HOSTILE)
    for drawn in (figure, two, hostile):
        figure_png(drawn)
    with pytest.raises(ValueError, match="at least one chart and one pair"):
        draw_blocks({"hits": table}, [])


def test_logs_are_drawn_as_medians_of_the_trainings():
    rows = [("a", seed, seen, seed * seen, 1.0) for seed in (1, 2, 6) for seen in (8, 16)]
    rows += [("b", 1, 8, 5.0, 1.0)]  # of a smaller budget
    logs = pd.DataFrame(rows, columns=["variant", "seed", "images_seen", "update_norm", "gradient_norm"])
    figure = draw_logs(logs, ["update_norm", "gradient_norm"], title=HOSTILE, note=HOSTILE)
    walked, norms = figure.axes
    bold = [np.asarray(line.get_xydata()).tolist() for line in walked.lines if line.get_gid() == "smoothed"]
    assert bold == [[[8, 16], [16, 32]], [[8, 5]]]
    assert (walked.get_yscale(), norms.get_yscale()) == ("linear", "log")
    assert {"a", "b"} <= set(texts(figure))
    figure_png(figure)
    with pytest.raises(ValueError, match="expected records and columns"):
        draw_logs(logs, [])


def test_all_draw_into_axes_that_are_given(log):
    figure = Figure(figsize=(9, 9))
    axes = figure.subplots(4, 2).ravel()
    assert draw_rates(RATES, ax=axes[4]) is figure
    assert draw_differences(DIFFERENCES, ax=axes[5]) is figure
    assert draw_budget(RATES, ax=axes[6]) is figure
    axes[7].plot([0, 1])
    assert draw_loss(log, ax=axes[0]) is figure
    assert draw_learning_rate(log, ax=axes[1]) is figure
    assert draw_radical_balance(pd.Series({"水": 3}), ax=axes[2]) is figure
    assert draw_glyph_sheet(np.zeros((2, 4, 4), np.uint8), ax=axes[3]) is figure
    assert all(ax.has_data() for ax in axes)
    figure_png(figure)


def test_kanji_have_a_font_and_hostile_text_is_only_text(log, recwarn):
    family = font_families()[1]
    assert family == "IPAexGothic"
    assert has_character(font_manager.findfont(family), "鱗")
    log["loss"] = [0.1] * 100
    for figure in (
        draw_loss(log, [HOSTILE]),
        draw_radical_balance(pd.Series({HOSTILE: 3, "水": 1}), title=HOSTILE, note=HOSTILE),
        draw_glyph_sheet(np.zeros((2, 9, 9), np.uint8), [HOSTILE, "$x$"], title=HOSTILE),
        draw_study(RATES.assign(variant=HOSTILE), DIFFERENCES.assign(label=HOSTILE), title=HOSTILE, note=HOSTILE),
    ):
        picture = Image.open(BytesIO(figure_png(figure)))
        assert picture.size == tuple(int(edge * 144) for edge in figure.get_size_inches())
        assert not any("\x00" in text or text.count("\n") > 1 or "\u202e" in text for text in texts(figure))
    assert [str(warning.message) for warning in recwarn] == []  # as matplotlib warns of a glyph that no font has


def test_saved_figure_has_its_facts_beside_and_the_same_bytes_again(log, tmp_path):
    path = save_figure(draw_loss(log), tmp_path / "loss.png", {"runs": ["demo"], "smoke": True})
    assert json.loads((tmp_path / "loss.json").read_text())["facts"] == {"runs": ["demo"], "smoke": True}
    assert 0 < path.stat().st_size < 500_000
    again = save_figure(draw_loss(log), tmp_path / "again.png", {})
    assert again.read_bytes() == path.read_bytes()
    with pytest.raises(ValueError, match=r"ending in \.png"):
        save_figure(draw_loss(log), tmp_path / "loss.svg", {})


def test_no_pyplot_and_no_changed_defaults():
    before = dict(matplotlib.rcParams)
    draw_radical_balance(pd.Series({"水": 3}))
    assert dict(matplotlib.rcParams) == before
    script = "import sys, kanjilab.viz.charts; sys.exit('matplotlib.pyplot' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], timeout=60).returncode == 0


def _seen_without_red_green(color):
    """A colour as a deuteranope sees it (linear RGB; Source: Machado, Oliveira and Fernandes 2009, severity 1)."""
    matrix = np.array(
        [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]
    )
    return matrix @ (np.array(matplotlib.colors.to_rgb(color)) ** 2.2)


def test_palette_stays_distinct_without_red_and_green():
    seen = [_seen_without_red_green(color) for color in PALETTE]
    distances = [np.linalg.norm(a - b) for i, a in enumerate(seen) for b in seen[:i]]
    assert min(distances) > 0.1
