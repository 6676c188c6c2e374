"""kanjilab write: pages, skeletons, hands, and what it refuses in a sentence."""

import re

import numpy as np
import pytest
from PIL import Image
from test_cli import call, done, refused

from kanjilab.experiments import writing
from kanjilab.models.loading import load_base
from kanjilab.models.sampling import Sampling
from kanjilab.models.skeleton_encoder import save_encoder, with_skeletons
from kanjilab.training import few_shot
from tests.photos import glyph, page
from tests.tiny import save_tiny_pipeline


@pytest.fixture(scope="module")
def writer(tmp_path_factory):
    """A tiny base that reads skeletons and knows two characters."""
    folder = save_tiny_pipeline(tmp_path_factory.mktemp("write") / "base")
    save_encoder(with_skeletons(load_base(folder), "hint", "永国").condition_encoder, folder)
    return folder


@pytest.fixture(autouse=True)
def in_two_steps(monkeypatch, tmp_path):
    monkeypatch.setattr(writing, "WRITING", Sampling("ddim", steps=2, array_guidance=1.5))
    monkeypatch.setattr(writing, "TRACING", Sampling("ddim", steps=2, array_guidance=0.5))
    monkeypatch.chdir(tmp_path)


def pixels(path):
    with Image.open(path) as image:
        return np.asarray(image)


@pytest.mark.parametrize(("options", "size"), [([], (256, 256)), (["--vertical"], (256, 256))])
def test_a_page_is_a_picture_and_outlines(writer, tmp_path, options, size):
    said = done("write", "永国 心", "--base", writer, "--out", tmp_path / "page.png", *options)
    assert said.split() == [str(tmp_path / "page.png"), str(tmp_path / "page.svg")]
    picture = pixels(tmp_path / "page.png")
    assert picture.shape == (size[1] * 4, size[0] * 4)
    places = [(row, column) for row in (0, 1) for column in (0, 1)]
    quarters = {place: picture[512 * place[0] :, 512 * place[1] :][20:492, 20:492] for place in places}
    empty = (1, 0) if options else (1, 1)  # the second line has one character
    assert [place for place, quarter in quarters.items() if (quarter == 255).all()] == [empty]
    svg = (tmp_path / "page.svg").read_text("utf-8")
    assert 'viewBox="0 0 256 256"' in svg and svg.count("<path") == 3 and "永国 心 (regular script, brush)" in svg


def test_the_same_call_draws_the_same_and_another_style_or_skeleton_another(writer, tmp_path):
    drawn = {}
    for name, options in {"a": [], "b": [], "c": ["--seed", 4]}.items():
        done("write", "永", "--base", writer, "--out", tmp_path / f"{name}.png", *options)
        drawn[name] = (tmp_path / f"{name}.png").read_bytes()
    assert drawn["a"] == drawn["b"] != drawn["c"]


def test_a_drawn_skeleton_needs_no_text(writer, tmp_path):
    glyph("永", 300).save(tmp_path / "lines.png")
    said = done("write", "--base", writer, "--skeleton", tmp_path / "lines.png")
    assert re.fullmatch(r"runs/written/skeleton-[0-9a-f]{6}\.png", said.split()[0])


def test_another_text_or_style_has_another_file(writer):
    names = [
        done("write", text, "--base", writer, *options).split()[0]
        for text, options in (
            ("⿰水鳥", []),
            ("水鳥", []),
            ("水鳥", ["--style", "cursive script, brush"]),
            ("水鳥", []),
        )
    ]
    assert len(set(names)) == 3 and names[1] == names[3]


def test_print_and_index_lead_what_is_typed_and_drawn_lines_lead_alone(writer, tmp_path, monkeypatch):
    glyph("永", 300).save(tmp_path / "lines.png")
    asked = []

    def write(base, prompts, *rest):
        asked.extend(prompts)
        return np.zeros((len(prompts), 128, 128), np.uint8)

    monkeypatch.setattr(writing, "write", write)
    for arguments in (["永心⿰木鳥"], ["永", "--by-index"], ["永", "--skeleton", tmp_path / "lines.png"]):
        done("write", *arguments, "--base", writer)
    led = [{name: bool(array.any()) for name, array in prompt.arrays.items()} for prompt in asked]
    typed = dict(skeleton=False, typed=True)
    assert led == [
        typed | {"index": True},
        typed | {"index": False},
        typed | {"index": False},
        dict(skeleton=False, typed=False, index=True),
        dict(skeleton=True, typed=False, index=False),
    ]


def test_drawn_lines_are_guided_less_than_typed_ones_unless_told(writer, tmp_path, monkeypatch):
    glyph("永", 300).save(tmp_path / "lines.png")
    scales = []

    def write(base, prompts, seed, sampling, trainable):
        scales.append((sampling.guidance, sampling.array_guidance))
        return np.zeros((len(prompts), 128, 128), np.uint8)

    monkeypatch.setattr(writing, "write", write)
    drawn = ["永", "--skeleton", tmp_path / "lines.png"]
    for arguments in (["永"], ["永", "--by-index"], drawn, [*drawn, "--skeleton-guidance", 3, "--guidance", 2]):
        done("write", *arguments, "--base", writer)
    assert scales == [(2.5, 1.5), (2.5, 1.5), (2.5, 0.5), (2.0, 3.0)]


def test_characters_that_do_not_exist_are_composed(writer, tmp_path):
    done("write", "⿰木鳥永", "--base", writer, "--out", tmp_path / "new.png")
    assert pixels(tmp_path / "new.png").shape == (512, 1024)
    lines = writing.typed_skeleton("⿰木鳥")
    true = writing.typed_skeleton("木")
    assert lines[:, :60].sum() > 0.4 * true.sum() and lines[:, 68:].sum() > 0.4 * true.sum()


def test_a_hand_is_shown_then_learned_then_written_with(writer, monkeypatch, tmp_path):
    quick = few_shot.HAND_RECIPE.__class__(rank=2, batch=2, images_seen=4)
    monkeypatch.setattr(few_shot, "HAND_RECIPE", quick)
    monkeypatch.setattr(few_shot.learn_hand, "__defaults__", (quick,))
    (tmp_path / "mine").mkdir()
    page("永").save(tmp_path / "mine" / "永.jpg")
    (tmp_path / "mine" / "心.jpg").write_bytes(b"")
    said = done("write", "国", "--base", writer, "--hand", tmp_path / "mine")
    assert "not read: 心.jpg (is 0 bytes)" in said and "1 glyphs and their skeletons: runs/hands/mine-" in said
    (sheet,) = (tmp_path / "runs" / "hands").glob("mine-*.png")
    assert pixels(sheet).shape == (256, 128)
    assert said.index("skeletons:") < said.index("learning the hand") < said.index("written/国-")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["😀"], "no glyph for 😀"),
        (["\ue000"], "no glyph for"),
        ([""], "expected 1 to 200 characters"),
        (["永" * 201], "expected 1 to 200 characters"),
        (["心", "--by-index"], "'心' has no index: .* knows 2 characters, such as 永国"),
        (["⿰木"], "expected a layout and two parts"),
        (["⿰木A"], "no characters have these parts"),
        (["永", "--guidance", "0.5"], "guidance must be from 1"),
        (["永", "--skeleton", "missing.png"], "missing.png cannot be read"),
        (["永国", "--skeleton", "missing.png"], "leads one character"),
        (["永", "--hand", "missing"], "expected a folder of photos"),
    ],
)
def test_what_cannot_be_written_is_refused_in_a_sentence(writer, arguments, sentence):
    assert re.search(sentence, refused("write", *arguments, "--base", writer))


def test_a_base_that_reads_no_skeletons_is_refused(tmp_path):
    folder = save_tiny_pipeline(tmp_path / "plain")
    assert "reads no skeletons" in refused("write", "永", "--base", folder)


def test_known_characters_are_written_by_index_alone(writer, tmp_path):
    done("write", "国", "--by-index", "--base", writer, "--out", tmp_path / "known.png")
    assert (tmp_path / "known.svg").exists()


def test_help_names_the_styles():
    assert "cursive script, brush" in re.sub(r"\s+", " ", call("write", "--help").output.replace("│", ""))
