"""The page that coins: what it asks for, what it shows as it goes, what can be kept and downloaded, and its bounds."""

import base64
import json
import re
import threading
import time
from functools import partial

import numpy as np
import pytest

import kanjilab
from kanjilab.experiments.certificate import LABELS, Certificate
from kanjilab.experiments.coined_sheet import draw_coined, nearest_strip
from kanjilab.experiments.coining import coin
from kanjilab.viz.strip import draw_strip
from kanjilab.widgets import CoinPage, Playground, coin_page
from kanjilab.widgets.certificate_cards import chosen_html
from kanjilab.widgets.coin_page import Pace, kept_coined
from kanjilab.widgets.generation import Models
from kanjilab.widgets.saved_glyphs import load_history
from kanjilab.widgets.worker import Stopped
from tests.typeset_writer import draw, few_neighbours, word_vectors

HOSTILE = "<img src=x onerror=alert(1)> fire"


@pytest.fixture(scope="module", autouse=True)
def typesetting():
    """Coining with a writer that typesets, and no model to load."""
    with few_neighbours(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(coin_page, "coin", partial(coin, draw=draw, embed=word_vectors))
        patch.setattr(Models, "load", lambda self, request: (None, None))
        yield


@pytest.fixture(autouse=True)
def own_cache(monkeypatch, tmp_path):
    monkeypatch.setattr(coin_page, "cache_folder", lambda: tmp_path / "cache")


@pytest.fixture(scope="module")
def coinage(typesetting):
    return coin("fire jewel", noises=2, keep=3, draw=draw, embed=word_vectors)


def make_page(phrase="fire jewel", **options):
    return CoinPage(phrase, **{"noises": 2, "keep": 3} | options)


def test_coining_fills_the_page(coinage):
    page = make_page()
    assert "about 14 s: up to 10 candidates" in page.cost.value and "not measured here yet" in page.cost.value
    made = page.coin()
    assert [one.certificate for one in made.glyphs] == [one.certificate for one in coinage.glyphs]
    assert len(page.drawn.pictures) == made.candidates == 10 and page.drawn.captions.count("phrase") == 2
    assert len(page.cards.cards) == 3 and page.cards.choice == 0 and page.chosen is made.glyphs[0]
    assert made.summary in page.status.value and page.progress.value == ""
    assert not page.button.disabled and page.stop_button.disabled
    assert "measured here)" in page.cost.value
    later = make_page()
    assert later._pace.measured and later._pace.candidate == page._pace.candidate, "kept for the next panel"
    assert page.picture().width > 400


def test_a_cache_that_cannot_be_written_costs_no_glyph(monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setattr(coin_page, "cache_folder", lambda: tmp_path / "file" / "cache")
    page = make_page()
    made = page.coin()
    assert len(page.cards.cards) == len(made.glyphs) == 3 and made.summary in page.status.value
    assert "measured here)" in page.cost.value


def test_a_card_has_the_parts_the_five_marks_and_the_nearest_character(coinage):
    page = make_page(coinage=coinage)
    for card, one in zip(page.cards.cards, coinage.glyphs, strict=True):
        report = one.certificate.report
        assert [passed for _, passed in card["marks"]] == [criterion.passed for criterion in report.criteria]
        assert [name for name, _ in card["marks"]] == list(LABELS.values())
        assert all(part.name in card["parts"] for part in report.parts[:3])
        assert report.nearest[0].codepoint in card["near"] and card["near"] in card["name"]
        assert card["sum"] == f"{5 - len(report.lacking)} of 5 criteria"


def test_the_chosen_glyph_can_be_downloaded(coinage):
    page = make_page(coinage=coinage)
    page.cards.selected = 1
    links = dict(re.findall(r'download="fire-jewel-2\.(\w+)" href="data:[^;]+;base64,([^"]+)"', page.certificate.value))
    assert set(links) == {"png", "svg", "json"}
    content = {kind: base64.b64decode(data) for kind, data in links.items()}
    assert Certificate.from_json(json.loads(content["json"])) == coinage.glyphs[1].certificate
    assert content["png"] == page.cards.pictures[1] and content["svg"].startswith(b"<svg")
    page.cards.selected = 99  # a page may send any number
    assert page.chosen is None


def test_what_is_typed_stays_text():
    page = make_page(HOSTILE, parts="fire+jewel", noises=1, keep=1)
    page.coin()
    shown = [page.certificate.value, page.cost.value]
    assert not any("<img src=x" in text for text in shown)
    one = page.coinage.glyphs[0]
    hostile = Certificate.from_json(
        one.certificate.to_json() | {"prompt": HOSTILE, "reason": HOSTILE, "rejected": HOSTILE}
    )
    text = chosen_html(1, type(one)(one.image, hostile))
    assert "<img" not in text and text.count("&lt;img") == 3


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"phrase": "  "}, "type a phrase first"),
        ({"phrase": "x" * 101}, "at most 100 characters, got 101"),
        ({"noises": 10**6}, "noises: at most 16, got 1,000,000"),
    ],
)
def test_what_is_out_of_bounds_is_said_at_once(changes, complaint):
    page = make_page()
    page.noises.max = 10**9  # a page can set any trait of a widget
    for name, value in changes.items():
        getattr(page, name).value = value
    with pytest.raises(ValueError, match=complaint):
        page.coin()
    assert page.box.code == "" and not page.button.disabled


@pytest.mark.parametrize(
    ("phrase", "parts", "complaint"),
    [("물고기", "", "cannot be read: Hangul"), ("x", "waer+fire", "no part of characters is called")],
)
def test_what_cannot_be_read_is_refused_before_the_writer_is_loaded(phrase, parts, complaint, monkeypatch):
    monkeypatch.setattr(Models, "load", None)
    page = make_page(phrase, parts=parts)
    with pytest.raises(ValueError, match=complaint):
        page.coin()
    assert complaint in page.status.value and page.coinage is None


def test_stop_ends_it_between_readings(monkeypatch):
    page, drawing, going_on = make_page(), threading.Event(), threading.Event()

    def slow(prompts, seeds):
        drawing.set()
        assert going_on.wait(30)
        return draw(prompts, seeds)

    monkeypatch.setattr(coin_page, "coin", partial(coin, draw=slow, embed=word_vectors))
    page.start()
    assert drawing.wait(60) and page.button.disabled and not page.stop_button.disabled
    page.stop()
    going_on.set()
    end = time.monotonic() + 60
    while page.button.disabled and time.monotonic() < end:
        time.sleep(0.02)
    assert "Stopped" in page.status.value and page.coinage is None and isinstance(Stopped(), Exception)
    assert len(page.drawn.pictures) == 2, "the reading that was drawn is shown"


def test_the_code_coins_what_is_shown(monkeypatch):
    page = make_page("robot", parts="car + dog")
    page.layout.value = "left-right"
    asked = {}
    monkeypatch.setattr(kanjilab, "coin", lambda phrase, **options: asked.update(options, phrase=phrase), raising=False)
    eval(page.code, {"kanjilab": kanjilab})
    assert asked == {"phrase": "robot", "parts": "car + dog", "layouts": ("⿰",), "noises": 2, "keep": 3}
    assert CoinPage("robot").code == 'kanjilab.coin("robot")'


def test_an_example_fills_the_phrase():
    page = make_page()
    page.examples[1].click()
    assert page.phrase.value == page.examples[1].description == "robot" and '"robot"' in page.box.code


def test_a_damaged_pace_counts_for_none(tmp_path):
    Pace(1.0, 2.0, True).save()
    assert Pace.load() == Pace(1.0, 2.0, True)
    (tmp_path / "cache" / coin_page.PACE_FILE).write_text("{")
    assert Pace.load() == Pace()


def test_a_kept_glyph_joins_the_playgrounds_history(base, coinage, tmp_path):
    panel = Playground(None, base=base, history=tmp_path / "kept")
    page = panel.coining
    page.show(coinage)
    page.cards.selected = 1
    page.keep_button.click()
    one = coinage.glyphs[1]
    assert panel.past.captions == [one.certificate.prompt] and page.keep_button.disabled
    assert panel.save_button.description in page.status.value
    assert "Coined for “fire jewel”" in panel.past.names[0]
    panel.save()
    (kept,) = load_history(tmp_path / "kept")
    assert kept.request == kept_coined(one).request and kept.request.base == "writer"
    assert kept.certificate == one.certificate
    panel.past.selected = 0
    end = time.monotonic() + 20
    while not panel.verdict.value and time.monotonic() < end:
        time.sleep(0.02)
    assert panel.verdict.value == chosen_html(1, one), "the whole certificate comes back"
    assert kept.request.seeds == (one.certificate.seed,) and kept.request.parts == one.certificate.asked
    assert np.array_equal(kept.image, one.image)


def test_a_public_page_shows_no_code(coinage, tmp_path):
    page = make_page(coinage=coinage, queue=tmp_path / "lock")
    assert page.code == "" and page.box not in page.widget.children
    page.coin()
    assert page.coinage is not None and (tmp_path / "lock").exists()


def test_figures_of_coined_glyphs(coinage):
    figure = draw_coined(coinage.glyphs, title="<$x$>", columns=2)
    (axes,) = figure.axes
    boxes = sum(len(one.certificate.report.parts) for one in coinage.glyphs)
    assert len(axes.patches) == boxes + len(coinage.glyphs)  # a frame each
    assert axes.get_title(loc="left") == "<$x$>"
    with pytest.raises(ValueError, match="expected glyphs and as many labels, got 3 and 1"):
        draw_coined(coinage.glyphs, ["one"])
    strip = nearest_strip(coinage.glyphs)
    assert strip.images.shape == (3, 4, 128, 128) and np.array_equal(strip.images[0, 0], coinage.glyphs[0].image)
    assert draw_strip(strip).width > 400
