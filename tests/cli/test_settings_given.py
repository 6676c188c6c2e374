"""Settings on the command line: each counts once, and what cannot be meant is refused before anything is done."""

import pytest
import typer
from typer.testing import CliRunner

from kanjilab.cli import train_command
from kanjilab.cli.main import app
from kanjilab.cli.options import name_and_value, parse_settings, setting_value
from kanjilab.core.config import Arm
from kanjilab.training.presets import arms_of

REFUSED = {
    "two settings to vary": (["--vary", "schedule=cosine,constant", "--vary", "rank=4"], "one setting to vary"),
    "one setting varied twice": (["--vary", "rank=4", "--vary", "rank=8"], "one setting to vary"),
    "equal arms": (["--vary", "rank=4,4"], "expected arms that differ, got equal ones: rank 4, 4"),
    "arms that are equal as numbers": (["--vary", "peak_lr=0.001,1e-3"], "expected arms that differ"),
    "None": (["--set", "alpha=None"], "alpha: expected null, as JSON has it, got None"),
    "True": (["--set", "dora=True"], "dora: expected true, as JSON has it, got True"),
    "None among values": (["--vary", "alpha=4,None"], "alpha: expected null"),
    "no name": (["--vary", "=4"], "expected name=value, got '=4'"),
    "no value": (["--set", "rank="], "expected name=value, got 'rank='"),
    "no values": (["--vary", "rank="], "expected name=value, got 'rank='"),
    "the same setting twice": (["--set", "rank=2", "--set", "rank=4"], "expected each setting once, got rank twice"),
    "two budgets": (["--set", "epochs=2", "--set", "images_seen=9"], "in epochs or in images_seen, got both"),
    "two budgets, one varied": (["--set", "images_seen=9", "--vary", "epochs=1,2"], "images_seen, got both"),
    "set and varied": (["--set", "rank=2", "--vary", "rank=4,8"], "set or varied, got rank both set and varied"),
    "brackets without end": (["--set", "rank=" + "[" * 100_000], "rank: expected one value, got brackets"),
    "a rank beyond all weights": (["--set", f"rank={10**30}"], "rank must be a whole number from 1 to 65,536"),
    "a step without end": (["--set", f"accumulation={10**15}"], "accumulation must be a whole number from 1 to"),
    "a warm-up without end": (["--set", f"warmup_steps={10**12}"], "warmup_steps must be a whole number from 0"),
    "epochs without end": (["--set", "epochs=1e300"], "epochs must be > 0 and at most 10^9"),
    "images without end": (["--set", f"images_seen={10**30}"], "images_seen must be None or from 1 to 10^12"),
}


# Commands whose options have bounds -> what is said
BOUNDS = {
    "a million seeds": (["strip", "run", "a.png", "--seeds", "1000000"], "Input should be less than or equal to 1000"),
    "no seed": (["strip", "run", "a.png", "--seeds", "0"], "Input should be greater than or equal to 1"),
    "a million steps": (["strip", "run", "a.png", "--steps", "1000000"], "Input should be less than or equal to 1000"),
    "an arm below the first": (["strip", "run", "a.png", "--arm", "-1"], "Input should be greater than or equal to 0"),
    "no arm in a training": (
        ["sweep", "--study", "rank", "--most-arms", "0"],
        "Input should be greater than or equal to 1",
    ),
    "no memory": (["sweep", "--study", "rank", "--memory-gb", "0"], "Input should be greater than or equal to 0.1"),
    "a pack below the first": (
        ["sweep", "--study", "rank", "--pack", "-1"],
        "Input should be greater than or equal to 0",
    ),
    "a seed twice": (["sweep", "--study", "rank", "--seeds", "3", "--seeds", "3"], "expected seeds that differ"),
    "no candidates": (["coin", "fire", "--noises", "0"], "Input should be greater than or equal to 1"),
    "an endless list of captions": (
        ["criteria", "run", "data", "--images", str(10**9)],
        "Input should be less than or equal to 1000",
    ),
    "checkpoints without end": (["train", "data", "run", "--checkpoints", "1000000"], "checkpoints must be from 1 to"),
    "images of a gigapixel": (
        ["train", "data", "run", "--size-px", "32768"],
        "Input should be less than or equal to 2048",
    ),
    "half a latent": (["train", "data", "run", "--size-px", "100"], "size_px must be a multiple of 16, got 100"),
    "no such tracker": (
        ["train", "data", "run", "--tracker", "mlflow"],
        "tensorboard, wandb, none, got 'mlflow'",
    ),
    "an empty tracker": (["train", "data", "run", "--tracker", ""], "one of tensorboard, wandb, none, got ''"),
    "a tracker that is missing": (["train", "data", "run", "--tracker", "wandb"], "not installed: pip install wandb"),
    "an empty precision": (["train", "data", "run", "--precision", ""], "precision must be one of"),
    "an unknown preset": (["train", "data", "run", "--preset", "sd3"], "preset must be one of"),
}


WITHOUT_EFFECT = {
    "weights of no ONNX": (["export", "run", "out", "--weights", "int8"], "--weights", "with --format onnx"),
    "the usual weights of no ONNX": (["export", "run", "out", "--weights", "fp16"], "--weights", "with --format onnx"),
    "weights of a pipeline": (
        ["export", "run", "out", "--format", "pipeline", "--weights", "int8"],
        "--weights",
        "with --format onnx",
    ),
    "a prompt without a workflow": (["export", "run", "out", "--prompt", "queen"], "--prompt", "with --format comfyui"),
    "a prompt of ONNX": (
        ["export", "run", "out", "--format", "onnx", "--prompt", "queen"],
        "--prompt",
        "with --format comfyui",
    ),
    "public but not pushed": (["export", "run", "out", "--public"], "--public", "with --push"),
    "a step of a base": (
        ["export", "writer", "out", "--format", "onnx", "--weights", "none", "--step", "3"],
        "--step",
        "for a run",
    ),
    "an arm of a base": (
        ["export", "writer", "out", "--format", "onnx", "--weights", "none", "--arm", "0"],
        "--arm",
        "for a run",
    ),
    "a set of prompts beside a prompt": (
        ["strip", "run", "a.png", "--prompts", "demo", "--prompt", "queen"],
        "--prompts",
        "without --prompt",
    ),
    "a negative prompt without guidance": (
        ["strip", "run", "a.png", "--guidance", "1", "--negative-prompt", "noise"],
        "--negative-prompt",
        "with --guidance above 1",
    ),
    "an index beside a skeleton": (
        ["write", "永", "--skeleton", "a.png", "--by-index"],
        "--by-index",
        "without --skeleton",
    ),
    "lines of one drawn glyph": (["write", "--skeleton", "a.png", "--vertical"], "--vertical", "without --skeleton"),
    "an imbalance of all": (
        ["data", "out", "--rule", "all", "--ratio", "2"],
        "--ratio",
        "with --rule left16 or seed16",
    ),
    "a balance of all": (["data", "out", "--rule", "all", "--ratio", "1"], "--ratio", "with --rule left16 or seed16"),
    "cycles of a plain cosine": (["train", "data", "run", "--set", "cycles=3"], "cycles", "with schedule=cosine-rest"),
    "cycles varied of a plain cosine": (
        ["train", "data", "run", "--vary", "cycles=1,2"],
        "cycles",
        "with schedule=cosine-restarts",
    ),
    "a cool-down of a line": (
        ["demo", "--scale", "none", "--set", "schedule=linear", "--set", "cooldown_share=0.5"],
        "cooldown_share",
        "with schedule=constant-coo",
    ),
    "a rank of every weight": (
        ["demo", "--scale", "none", "--set", "targets=full", "--set", "rank=4"],
        "rank",
        "with a LoRA",
    ),
    "a rank of a preset of every weight": (
        ["train", "data", "run", "--preset", "instantkanji-sd15-full", "--set", "rank=4"],
        "rank",
        "with a LoRA",
    ),
    "a rate of a frozen encoder": (
        ["train", "data", "run", "--set", "text_encoder_lr=0.001"],
        "text_encoder_lr",
        "with text_encoder=lora or full",
    ),
    "a rate of nothing": (
        [
            *("train", "data", "run", "--set", "targets=none", "--set", "text_encoder=full"),
            *("--set", "text_encoder_lr=0.001", "--set", "peak_lr=0.1"),
        ],
        "peak_lr",
        "with more to train than a text encoder of its own rate",
    ),
    "a dropout of no arrays": (
        ["train", "data", "run", "--set", "array_dropout=0.2"],
        "array_dropout",
        "with prompts that carry arrays",
    ),
}
# The same options where they have an effect; what is refused then is that nothing of these names is there.
WITH_EFFECT = {
    "weights of ONNX": ["export", "run", "out", "--format", "onnx", "--weights", "fp16"],
    "a prompt of a workflow": ["export", "run", "out", "--format", "comfyui", "--prompt", "queen"],
    "public and pushed": ["export", "run", "out", "--push", "owner/name", "--public"],
    "not public": ["export", "run", "out", "--no-public"],
    "a step and an arm of a run": ["export", "run", "out", "--format", "onnx", "--step", "3", "--arm", "0"],
    "a set of prompts": ["strip", "run", "a.png", "--prompts", "demo"],
    "a negative prompt": ["strip", "run", "a.png", "--guidance", "1.5", "--negative-prompt", "noise"],
    "an index without a skeleton": ["write", "永", "--by-index", "--vertical", "--base", "none"],
    "an imbalance": ["data", "out", "--rule", "seed16", "--ratio", "0.5"],
    "cycles": ["train", "data", "run", "--set", "cycles=3", "--vary", "schedule=cosine,cosine-restarts"],
    "a cool-down": ["demo", "--set", "cooldown_share=0.5", "--set", "schedule=constant-cooldown", "--scale", "none"],
    "a rank of an encoder": [
        *("demo", "--set", "targets=none", "--set", "text_encoder=lora", "--set", "rank=4", "--scale", "none")
    ],
    "two rates": [
        *("train", "data", "run", "--set", "text_encoder=full", "--set", "text_encoder_lr=0.001", "--set", "peak_lr=1")
    ],
}


def words_of_refusal(arguments):
    """What a command says that must end plainly."""
    done = CliRunner().invoke(app, arguments)
    assert isinstance(done.exception, SystemExit) and done.exit_code == 1, done.exception
    return done.stderr


@pytest.mark.parametrize("name", WITHOUT_EFFECT)
def test_an_option_without_effect_is_refused_before_anything_is_done(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    arguments, option, where = WITHOUT_EFFECT[name]
    said = words_of_refusal(arguments)
    assert said.startswith(f"kanjilab: {option} has an effect only {where}") and "leave it out, or" in said
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", WITH_EFFECT)
def test_an_option_with_effect_is_not_refused(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert "has an effect" not in words_of_refusal(WITH_EFFECT[name])


@pytest.mark.parametrize("name", BOUNDS)
def test_what_never_ends_or_is_not_there_is_refused_before_anything_is_done(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(train_command, "find_spec", lambda package: None if package == "wandb" else package)
    arguments, message = BOUNDS[name]
    done = CliRunner().invoke(app, arguments)
    assert isinstance(done.exception, SystemExit) and done.exit_code in (1, 2), done.exception
    words = " ".join(done.stderr.replace("│", " ").split())
    assert message in words, words
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_meant_is_refused_before_anything_is_done(name, tmp_path):
    options, message = REFUSED[name]
    done = CliRunner().invoke(app, ["train", str(tmp_path), str(tmp_path / "run"), *options])
    assert isinstance(done.exception, SystemExit) and done.exit_code in (1, 2)
    words = " ".join(done.stderr.replace("│", " ").split())
    assert message in words, words
    assert not (tmp_path / "run").exists()


def test_one_setting_is_varied():
    name, values = name_and_value("rank=4,8")
    arms = arms_of((Arm(),), {"seed": 3}, name, [setting_value(name, value) for value in values.split(",")])
    assert [(arm.rank, arm.seed) for arm in arms] == [(4, 3), (8, 3)]


def test_values_are_read_as_json_has_them():
    assert parse_settings(["alpha=null", "dora=true", "seed=3", "schedule=cosine", "a=b=c"]) == {
        **{"alpha": None, "dora": True, "seed": 3, "schedule": "cosine", "a": "b=c"}
    }
    with pytest.raises(typer.BadParameter):
        parse_settings(["None"])
