"""Presets on tiny bases, through the command line: cost first, then strips, LoRAs, workflows and cards."""

import json
from dataclasses import replace

import pytest
from PIL import Image
from safetensors import safe_open
from test_cli import call, done, image_folder, refused

from kanjilab.cli import train_command
from kanjilab.core.run_folder import RunFolder
from kanjilab.training import driver, presets
from kanjilab.training.loop import train

SMALL = ["--set", "rank=3", "--set", "alpha=3", "--set", "images_seen=4", "--set", "batch=1"]


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return image_folder(tmp_path_factory.mktemp("data") / "images")


@pytest.fixture(scope="module", autouse=True)
def few_denoising_steps():
    """Presets draw in tens of steps."""
    with pytest.MonkeyPatch.context() as patch:
        for name, preset in presets.PRESETS.items():
            patch.setitem(presets.PRESETS, name, replace(preset, sampling=replace(preset.sampling, steps=2)))
        yield


@pytest.fixture(scope="module")
def trained(images, sd3_folder, tmp_path_factory):
    """InstantKanji's preset on a tiny SD 3, and what was said."""
    folder = tmp_path_factory.mktemp("runs") / "kanji & co"
    arguments = ["train", images, folder, "--preset", "instantkanji-sd35-lora", "--base", sd3_folder, *SMALL]
    arguments += ["--checkpoints", 1, "--tracker", "none"]
    return done(*arguments), folder, arguments


def test_the_cost_comes_first(trained):
    said = trained[0].splitlines()
    assert said[0].startswith("InstantKanji on SD 3.5 Large")
    assert any(line.startswith("not published: negative prompt") for line in said)
    cost = next(number for number, line in enumerate(said) if line.startswith("2 arms: 4 steps, 8 images; estimated"))
    measured = next(number for number, line in enumerate(said) if line.startswith("measured: 4 steps, 8 images; "))
    drawn = next(number for number, line in enumerate(said) if line.endswith("strip.png") and "Next" not in line)
    assert cost < measured < drawn
    assert " s at the measured" in said[measured] and "GB held" in said[measured]
    assert "strip at the end: 5 pictures of 2 denoising steps for each arm" in said


def test_what_takes_long_shows_how_far_it_is(images, sd3_folder, tmp_path, monkeypatch):
    monkeypatch.setenv("KANJILAB_CACHE", str(tmp_path / "cache"))  # where nothing is encoded yet
    arguments = ["--preset", "instantkanji-sd35-lora", "--base", sd3_folder, *SMALL, "--checkpoints", 1]
    result = call("train", images, tmp_path / "run", *arguments, "--tracker", "none")
    assert [bar for bar in ("encode", "draw arm 0", "draw arm 1") if f"{bar}: 100%" not in result.stderr] == []


def test_the_preset_trains_two_arms_and_hands_them_over(trained):
    folder = trained[1]
    arms = RunFolder.open(folder).settings["arms"]
    assert [(arm["peak_lr"], arm["rank"], arm["schedule"]) for arm in arms] == [
        (1.05e-3, 3, "cosine"),
        (9.5e-4, 3, "cosine"),
    ]
    for arm in (0, 1):
        release = folder / "release" / f"arm_{arm}"
        facts = json.loads((release / "strip.json").read_text())
        assert facts["row_labels"] == ["mountains"]
        assert facts["column_labels"][:2] == ["before", "4"]
        prefix = "Image of a Japanese kanji character in plain font. The character means: "
        assert (facts["facts"]["sampling"]["prefix"], facts["facts"]["sampling"]["steps"]) == (prefix, 2)
        (lora,) = release.glob("*.safetensors")
        assert lora.name == f"kanji-co-arm-{arm}-step-000004.safetensors"
        with safe_open(lora, "pt") as file:
            assert all(name.startswith("transformer.") for name in file.keys())
        workflow = json.loads((release / "workflow.json").read_text())
        assert {"TripleCLIPLoader", "ModelSamplingSD3"} < {node["class_type"] for node in workflow.values()}
        loaded = next(node for node in workflow.values() if node["class_type"] == "LoraLoaderModelOnly")
        assert loaded["inputs"]["lora_name"] == lora.name
        assert prefix + "mountains" in {node["inputs"].get("text") for node in workflow.values()}
        assert "![Prompts in rows, checkpoints in columns](strip.png)" in (release / "README.md").read_text()
        with Image.open(release / "strip.png") as picture:
            assert picture.width > 100


def test_called_again_it_measures_and_trains_nothing(trained, monkeypatch):
    monkeypatch.setattr(train_command, "measure_steps", lambda *_: pytest.fail("measured"))
    said = done(*trained[2])
    assert "was finished before; nothing was left to train" in said


def test_a_dry_run_says_the_cost_and_leaves_nothing(images, sd3_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(train_command, "encode_dataset", lambda *_, **__: pytest.fail("encoded"))
    said = done("train", images, tmp_path / "run", "--base", sd3_folder, "--dry-run", "--set", "images_seen=7")
    assert "1 arm: 7 steps, 7 images; estimated memory" in said
    assert "measured: 7 steps, 7 images" in said
    assert not (tmp_path / "run").exists()


def test_a_whole_denoiser_has_a_strip_but_no_lora(images, sd3_folder, tmp_path):
    arguments = ["--preset", "instantkanji-sd15-full", "--base", sd3_folder, "--set", "images_seen=2"]
    done("train", images, tmp_path / "run", *arguments, "--checkpoints", 1, "--tracker", "none")
    assert [path.name for path in sorted((tmp_path / "run" / "release" / "arm_0").iterdir())] == [
        "strip.json",
        "strip.png",
    ]


def test_a_ruined_arm_does_not_keep_the_other_from_being_written(images, sd3_folder, tmp_path, monkeypatch):
    def release_arm(base, run, arm, prompts, sampling, on_progress):
        if arm == 0:
            raise ValueError("not finite")
        return [tmp_path / "written"]

    monkeypatch.setattr(train_command, "release_arm", release_arm)
    arguments = ["--preset", "instantkanji-sd35-lora", "--base", sd3_folder, *SMALL, "--tracker", "none"]
    said = done("train", images, tmp_path / "run", *arguments, "--checkpoints", 1)
    assert "arm 0: not finite" in said
    assert str(tmp_path / "written") in said


def test_what_does_not_fit_is_refused_before_anything_is_loaded(images, sd3_folder, tmp_path, monkeypatch):
    run = tmp_path / "run"
    assert "preset must be one of pocket-demo, generative" in refused("train", images, run, "--preset", "sd9")
    complaint = refused("train", images, run, "--preset", "generative-kanji-article", "--base", sd3_folder)
    assert "has no cross-attention" in complaint
    monkeypatch.setattr(train_command, "load_base", lambda *_, **__: pytest.fail("loaded"))
    huge = ["--set", "rank=30000", "--set", "alpha=null"]
    monkeypatch.setattr("kanjilab.models.memory.free_bytes", lambda device: 10**7)
    assert "0.0 GB are free on cpu. With" in refused("train", images, run, "--base", sd3_folder, *huge)
    assert not run.exists()


def test_a_stopped_training_says_where_and_hands_nothing_over(images, sd3_folder, tmp_path, monkeypatch):
    def stopping(*arguments, **options):
        for report in train(*arguments, **options):
            RunFolder.open(arguments[3]).request_stop()
            yield report

    arguments = ["train", images, tmp_path / "run", "--preset", "instantkanji-sd35-lora", "--base", sd3_folder, *SMALL]
    arguments += ["--tracker", "none", "--checkpoints", 1]
    with monkeypatch.context() as patch:
        patch.setattr(driver, "train", stopping)
        said = done(*arguments)
    assert "was stopped at step 2; the same command goes on with it" in said
    assert not (tmp_path / "run" / "release").exists()
    assert "was stopped" not in done(*arguments)
    assert (tmp_path / "run" / "release" / "arm_1" / "strip.png").exists()


@pytest.mark.parametrize("count", [0, -1])
def test_a_training_without_checkpoints_is_refused_and_leaves_nothing(images, folder, tmp_path, count):
    complaint = refused("train", images, tmp_path / "run", "--base", folder, "--checkpoints", count)
    assert f"checkpoints must be from 1 to 1,000, got {count}" in complaint
    assert not (tmp_path / "run").exists()
