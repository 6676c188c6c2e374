"""A strip for a model card is looked at before anything is written."""

import pytest
from PIL import Image
from typer.testing import CliRunner

from kanjilab.cli.main import app
from kanjilab.core.config import Arm
from kanjilab.core.run_folder import RunFolder
from kanjilab.export.release import FORMS, Handover, hand_over
from kanjilab.training.loop import train
from tests.tiny import tiny_encoded


@pytest.fixture(scope="module")
def run(base, tmp_path_factory):
    path = tmp_path_factory.mktemp("runs") / "run"
    for _ in train(base, tiny_encoded(base), [Arm(rank=2, images_seen=1)], path, checkpoints=1):
        pass
    return RunFolder.open(path)


def png(path):
    Image.linear_gradient("L").save(path, "PNG")


def cut(path):
    png(path)
    path.write_bytes(path.read_bytes()[:100])


def flipped(path):
    png(path)
    data = bytearray(path.read_bytes())
    data[60] ^= 1
    path.write_bytes(bytes(data))


WRONG = {
    "missing": lambda path: None,
    "a folder": lambda path: path.mkdir(),
    "a text file": lambda path: path.write_text("no picture"),
    "0 bytes": lambda path: path.touch(),
    "a JPEG by the name of a PNG": lambda path: Image.new("L", (8, 8)).save(path, "JPEG"),
    "half a PNG": cut,
    "a PNG with a flipped bit": flipped,
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", WRONG)
def test_a_strip_that_is_no_png_is_refused_before_anything_is_written(name, form, tmp_path):
    WRONG[name](tmp_path / "strip.png")
    with pytest.raises((ValueError, FileNotFoundError), match=r"strip\.png: expected a PNG for the card"):
        Handover(form, card=True, strip=tmp_path / "strip.png")


def test_the_command_leaves_nothing_and_succeeds_when_it_is_repeated(run, tmp_path):
    for form in (form for form in FORMS if form != "onnx"):  # which has a card of its own
        target, strip = tmp_path / form, tmp_path / f"{form}.png"
        words = ["export", str(run.path), str(target), "--format", form, "--card", "--strip", str(strip)]
        refused = CliRunner().invoke(app, words)
        assert refused.exit_code == 1 and f"{form}.png: expected a PNG" in refused.stderr and not target.exists()
    png(strip)
    done = CliRunner().invoke(app, words)  # of the form that takes a new folder
    assert done.exit_code == 0, done.output
    assert (target / "README.md").exists() and (target / "strip.png").read_bytes() == strip.read_bytes()


def test_a_sound_strip_is_taken(run, tmp_path):
    png(tmp_path / "strip.png")
    written = hand_over(run, 1, 0, tmp_path / "out", Handover("kohya", card=True, strip=tmp_path / "strip.png"))
    assert [path.suffix for path in written] == [".safetensors", ".md"]


# Options that are wrong whatever the run is -> what is said
LATE = {
    "no owner": (["--push", "kanji"], "expected owner/name, got 'kanji'"),
    "an address": (["--push", "https://huggingface.co/me/kanji"], "expected owner/name, got"),
    "a name that is no text": (["--push", "me/\udce6"], "expected owner/name, got"),
    "a blank name": (["--push", " "], "expected owner/name, got ' '"),
    "a prompt that is no text": (["--prompt", "\udce6"], "expected a prompt in UTF-8"),
    "a book as the prompt": (["--prompt", "a" * 10_001], "expected a prompt of at most 10,000 characters"),
}


@pytest.mark.parametrize("name", LATE)
def test_what_would_be_refused_at_the_end_is_refused_before_anything_is_written(name, run, tmp_path):
    options, said = LATE[name]
    target = tmp_path / "out"
    refused = CliRunner().invoke(app, ["export", str(run.path), str(target), "--format", "comfyui", *options])
    assert refused.exit_code == 1 and said in refused.stderr and not target.exists()
