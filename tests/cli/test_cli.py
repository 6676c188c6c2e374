"""The command line: what it writes, and one plain line for each error."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import typer
from PIL import Image
from safetensors import safe_open
from typer.testing import CliRunner

from kanjilab.cli.main import app
from kanjilab.cli.options import parse_settings, plain_errors
from kanjilab.core.config import Arm
from kanjilab.core.run_folder import RunFolder
from kanjilab.data.image_folder import open_dataset
from kanjilab.data.rendering import default_font
from kanjilab.evaluation import controls
from kanjilab.evaluation.criteria import ALL_FIVE, CRITERIA
from kanjilab.evaluation.judges import part_judge as judges
from kanjilab.experiments import demo, findings, packs
from kanjilab.experiments import designs as studies
from kanjilab.experiments import run_study as ablate
from kanjilab.experiments.study import Study, Variant
from kanjilab.models import loading as bases
from kanjilab.models.sampling import Sampling
from kanjilab.training import driver, history
from kanjilab.training.cost import Cost
from kanjilab.training.presets import PRESETS
from tests.tiny import save_tiny_pipeline

COMMANDS = [
    "coin",
    "demo",
    "data",
    "train",
    "sweep",
    "findings",
    "strip",
    "score",
    "criteria",
    "reinvent",
    "pairs",
    "diagnose",
    "export",
]
QUICK = ["--steps", "1", "--guidance", "1", "--sampler", "ddim", "--seeds", "1"]
ROWS = [("water", "水"), ("tree", "木"), ("person", "人"), ("fire", "火")]
KANJIDIC2 = """<kanjidic2><header/>{}</kanjidic2>"""
CHARACTER = (
    "<character><literal>{0}</literal><codepoint><cp_value cp_type='ucs'>{1:x}</cp_value></codepoint>"
    "<radical><rad_value rad_type='classical'>{2}</rad_value></radical><misc><stroke_count>4</stroke_count></misc>"
    "<query_code><q_code qc_type='skip'>4-4-4</q_code></query_code>"
    "<reading_meaning><rmgroup><meaning>{3}</meaning></rmgroup></reading_meaning></character>"
)


def call(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def done(*arguments):
    """The output of a command that must succeed."""
    result = call(*arguments)
    assert result.exit_code == 0, result.output
    return result.output


def refused(*arguments, code=1):
    """The complaint of a command that must end plainly."""
    result = call(*arguments)
    assert isinstance(result.exception, SystemExit), repr(result.exception)
    assert result.exit_code == code
    assert "Traceback" not in result.output
    if code == 1:
        assert any(line.startswith("kanjilab: ") for line in result.stderr.splitlines())
    return " ".join(result.stderr.split())


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return save_tiny_pipeline(tmp_path_factory.mktemp("tiny") / "base")


def image_folder(folder, rows=ROWS, extra=""):
    folder.mkdir()
    rng = np.random.default_rng(0)
    lines = [f"file_name,text,radical_character{extra and ',split'}"]
    for number, (text, radical) in enumerate(rows):
        Image.fromarray(rng.integers(0, 256, (32, 32), dtype=np.uint8)).save(folder / f"{number}.png")
        lines.append(f"{number}.png,{text},{radical}{extra}")
    (folder / "metadata.csv").write_text("\n".join(lines))
    return folder


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return image_folder(tmp_path_factory.mktemp("data") / "images")


@pytest.fixture(scope="module")
def arguments(base, images, tmp_path_factory):
    """A training of two arms, with the trackers that the command has by default."""
    run = tmp_path_factory.mktemp("runs") / "run"
    settings = ["images_seen=3", "peak_lr=0.01", "rslora=true", "dora=true", "alpha=null", "targets=cross-attention"]
    options = [part for pair in settings for part in ("--set", pair)]
    options += ["--base", base, "--precision", "fp32", "--checkpoints", "1", "--vary", "rank=2,4"]
    return ["train", images, run, *options]


@pytest.fixture(scope="module")
def trained(arguments):
    """The run and what the command said."""
    said = done(*arguments)
    return RunFolder.open(arguments[2]), said


# ---------------------------------------------------------------------------------- what is done


def test_help_names_every_command():
    help_text = done("--help")
    for command in COMMANDS:
        assert f" {command} " in help_text
        assert "--help" in done(command, "--help")


def test_help_lists_the_tables_that_options_choose_from():
    for command, names in (("train", PRESETS), ("sweep", studies.DESIGNS), ("sweep", studies.BUDGETS)):
        help_text = " ".join(done(command, "--help").replace("│", " ").split())
        assert ", ".join(names) in help_text, command


def test_the_list_of_commands_loads_no_torch():
    code = "import sys; from kanjilab.cli.main import app; print('torch' in sys.modules, 'pandas' in sys.modules)"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).split() == ["False", "False"]


def test_values_are_numbers_booleans_null_or_text():
    pairs = ["rank=16", "peak_lr=2e-3", "rslora=true", "alpha=null", "targets=all", "x=a=b", 'y="8"']
    expected = dict(rank=16, peak_lr=0.002, rslora=True, alpha=None, targets="all", x="a=b", y="8")
    found = parse_settings(pairs)
    assert found == expected
    assert [type(value) for value in found.values()] == [type(value) for value in expected.values()]


def test_data_writes_a_folder_that_is_read_again(tmp_path):
    dictionary = tmp_path / "kanjidic2.xml"
    rows = [("水", 0x6C34, 85, "water"), ("木", 0x6728, 75, "tree"), ("火", 0x706B, 86, "fire")]
    dictionary.write_text(KANJIDIC2.format("".join(CHARACTER.format(*row) for row in rows)))
    folder = tmp_path / "new" / "set"
    said = done("data", folder, "--rule", "all", "--kanjidic2", dictionary)
    assert said == f"{folder}: 3 train images\n"
    dataset = open_dataset(folder)
    assert sorted(dataset.table["character"]) == sorted("水木火")
    assert (dataset.images().min(axis=(1, 2)) == 0).all()
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    assert done("data", folder, "--rule", "all", "--kanjidic2", dictionary) == said
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before
    assert "holds something else" in refused("data", folder)


def test_train_trains_an_arm_for_every_value(trained, base):
    run, said = trained
    common = dict(images_seen=3, peak_lr=0.01, rslora=True, dora=True, alpha=None, targets="cross-attention")
    assert run.settings["arms"] == [Arm(rank=rank, **common).to_json() for rank in (2, 4)]
    assert (run.settings["base"], run.settings["precision"]) == (str(base), "fp32")
    assert run.settings["training_images"] == 4
    assert run.checkpoints() == [0, 3]
    assert run.read_log()["images_seen"].iloc[-1] == [3, 3]
    assert f"Next: kanjilab strip {run.path} strip.png" in said
    assert list(run.path.glob("trackers/kanjilab/events*"))


def test_a_finished_training_is_left_alone(trained, arguments):
    run, _ = trained

    def contents():
        files = [path for path in run.path.rglob("*") if path.is_file() and path.name != ".lock"]
        return {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in files}

    before = contents()
    said = done(*arguments)
    assert "was finished before; nothing was left to train" in said
    assert contents() == before


def test_other_settings_for_a_run_are_refused(trained, arguments):
    assert "arms[0].rank: stored 2, asked for 3" in refused(*arguments[:-1], "rank=3,4")


def test_an_arm_that_stopped_early_is_told(arguments, tmp_path):
    others = [str(each).replace("peak_lr=0.01", "peak_lr=1e30") for each in arguments[3:-2]]
    result = call(*arguments[:2], tmp_path / "run", *others, "--tracker", "none")
    assert result.exit_code == 0
    assert "arm 0 stopped early: step 2: loss" in result.output.replace("\n", " ")
    assert not (tmp_path / "run" / "trackers").exists()


def test_strip_draws_a_run(trained, tmp_path):
    run, _ = trained
    path = tmp_path / "strip.png"
    said = done("strip", run.path, path, "--prompt", "queen", "--prompt", "water tree", "--arm", 1, *QUICK)
    assert said.splitlines()[-1] == str(path)
    facts = json.loads(path.with_suffix(".json").read_text())
    assert facts["row_labels"] == ["queen", "water tree"]
    assert facts["column_labels"] == ["before", "3"]
    sampling = dict(sampler="ddim", steps=1, guidance=1.0, negative_prompt="", prefix="")
    assert (facts["facts"]["arm"], facts["facts"]["sampling"]) == (1, sampling)
    with Image.open(path) as picture:
        assert list(picture.size) == facts["picture"]["size_px"]


def test_strip_makes_its_folder_before_it_draws(trained, tmp_path, monkeypatch):
    def draw(*arguments, **options):
        assert (tmp_path / "new" / "folder").is_dir()
        return drawn(*arguments, **options)

    drawn = history.sample_history
    monkeypatch.setattr(history, "sample_history", draw)
    done("strip", trained[0].path, tmp_path / "new" / "folder" / "strip.png", "--prompt", "queen", *QUICK)
    assert {path.name for path in (tmp_path / "new" / "folder").iterdir()} == {"strip.png", "strip.json"}


def test_bases_are_loaded_where_a_training_runs(trained, images, tmp_path, monkeypatch):
    def refuse(name, precision, device="cpu"):
        raise ValueError(f"{precision} on {device}")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(bases, "load_base", refuse)
    for command, target in (("strip", tmp_path / "strip.png"), ("score", images), ("criteria", images)):
        assert "fp32 on cuda:0" in refused(command, trained[0].path, target)


def test_export_writes_the_arm_that_was_asked_for(trained, tmp_path):
    run, _ = trained
    for arm, rank in ((0, 2), (1, 4)):
        path = tmp_path / f"lora_{arm}" / "pytorch_lora_weights.safetensors"
        assert done("export", run.path, path.parent, "--arm", arm).strip() == str(path)
        with safe_open(path, "numpy") as file:
            assert (file.metadata()["rank"], file.metadata()["step"]) == (str(rank), "3")
            assert {file.get_slice(name).get_shape()[0] for name in file.keys() if "lora_A" in name} == {rank}
    done("export", run.path, tmp_path / "start", "--step", 0)
    with safe_open(tmp_path / "start" / path.name, "numpy") as file:
        assert all((file.get_tensor(name) == 0).all() for name in file.keys() if "lora_B" in name)


def test_export_says_who_draws_a_dora(trained, tmp_path):
    assert "This is a DoRA" not in done("export", trained[0].path, tmp_path / "own")
    for form in ("comfyui", "kohya"):
        said = done("export", trained[0].path, tmp_path / form, "--format", form)
        assert "This is a DoRA" in said and "ComfyUI/pull/15458" in said


def test_export_as_onnx_of_a_run_or_a_base(trained, tmp_path):
    run, _ = trained
    assert "weights must be one of" in refused("export", run.path, tmp_path / "x", "--format", "onnx", "--weights", "x")
    target = tmp_path / "onnx"
    said = done("export", run.settings["base"], target, "--format", "onnx", "--weights", "mixed")
    facts = json.loads((target / "kanjilab.json").read_text())
    assert said.strip() == str(target) and facts["facts"]["base_identity"] == run.settings["base_identity"]
    assert facts["weights"] == {"text_encoder": "int8", "denoiser": "fp16", "decoder": "fp16"}


class WaterJudge:
    """Sees water everywhere."""

    def read(self, images):
        return pd.DataFrame({"radical": ["水"] * len(images), "probability": 0.9, "abstain": False})


def test_score_counts_before_and_after(trained, images, monkeypatch):
    monkeypatch.setattr(demo.RadicalJudge, "load_or_fit", lambda cache: WaterJudge())
    lines = done("score", trained[0].path, images, "--captions-per-radical", 1).splitlines()
    rows = [line.split() for line in lines if line.lstrip().startswith("training captions")]
    assert [row[2:6] for row in rows] == [["before", "4", "4", "0.250"], ["after", "4", "4", "0.250"]]


def test_criteria_of_a_run_are_printed_and_stored(trained, images, monkeypatch):
    scores = pd.DataFrame({"value": 0.5, "low": np.nan, "high": 1.0}, index=[*CRITERIA, ALL_FIVE, controls.STYLE])
    table = pd.concat({"run": scores, "noise": scores / 5}, names=["control", "score"])
    monkeypatch.setattr(controls, "score_criteria", lambda *_, **__: table)
    lines = done("criteria", trained[0].path, images, "--judge", "A").splitlines()
    assert lines[1].split() == ["run", *["50.0"] * 7]
    assert lines[2].split("  ")[0] == "95% interval" and lines[2].endswith("[nan, 100.0]")
    assert lines[3].split() == ["noise", *["10.0"] * 7]
    stored = json.loads(Path(lines[4]).read_text())
    assert stored["scores"]["noise"]["novel"] == {"value": 0.1, "low": None, "high": 0.2}
    assert (stored["run"], stored["judge"], stored["arm"]) == (trained[0].settings["hash"], "A", 0)
    other = Path(done("criteria", trained[0].path, images, "--judge", "A", "--arm", 1).splitlines()[-1])
    assert json.loads(other.read_text())["arm"] == 1
    assert json.loads(Path(lines[4]).read_text()) == stored


def test_criteria_want_a_judge_of_parts_and_held_out_characters(trained, images):
    assert "expected A or B" in refused("criteria", trained[0].path, images, "--judge", "radicals", code=2)
    assert "expected held-out characters" in refused("criteria", trained[0].path, images)


def test_findings_come_from_stored_studies(tmp_path):
    stored = Path(__file__).parents[2] / "figures" / "studies"
    lines = done("findings", stored, "--judge", "B").splitlines()
    assert lines == findings.findings(stored, "judge-b") and len(lines) == 4
    assert done("findings", stored, "--training-captions", "--tuned").startswith("a higher rank draws better: ")
    assert "expected a folder with finished studies" in refused("findings", tmp_path)


@pytest.fixture
def tiny_study(base, images, monkeypatch):
    """Studies by any name are this one: two ranks in two blocks."""

    def make_study(name, scale, seeds):
        variants = (Variant("rank 1", dict(rank=1)), Variant("rank 2", dict(rank=2)))
        return Study(
            name=f"{name}-{scale}",
            claim="more is better",
            arm=Arm(targets="cross-attention", images_seen=2, batch=2),
            variants=variants if scale == "smoke" else studies.at_every_rate(studies.Design("", variants)).variants,
            seeds=tuple(seeds) or (0, 1),
            data={"folder": str(images)},
            base=str(base),
            precision="fp32",
            prompts_per_radical=1,
            sampling=Sampling("ddim", steps=1, guidance=1),
            loss_images=1,
        )

    monkeypatch.setattr(studies, "make_study", make_study)
    monkeypatch.setattr(ablate.RadicalJudge, "load_or_fit", lambda cache: WaterJudge())
    monkeypatch.setattr(packs, "measure_steps", lambda base, data, arms, steps=2: Cost(0.1, 1.0))


def test_sweep_answers_a_study_pack_by_pack(tiny_study, tmp_path):
    folder = tmp_path / "rank"
    arguments = ["sweep", "--study", "rank", "--folder", folder, "--most-arms", 2]
    said = done(*arguments, "--dry-run")
    assert "rank-smoke: 4 arms in 2 packs" in said
    assert not (folder / "packs").exists()
    said = done(*arguments, "--pack", 1)
    assert "2 of 4 arms are not there yet" in said
    lines = call(*arguments).stdout.splitlines()
    assert sum(": stored" in line for line in lines) == 1
    assert "  in base, rank 2 against rank 1: 0.0 points [0.0, 0.0], p = 1, 2 blocks: undecided" in lines
    for path in lines[-3:]:
        assert path.startswith(str(folder))
    table = pd.read_parquet(lines[-3])
    assert len(table) == 4 * 4  # arms, prompts
    assert sorted(set(table["seed"])) == [0, 1]
    assert json.loads((folder / "report-radicals.json").read_text())["study"]["name"] == "rank-smoke"
    with Image.open(folder / "figure-radicals.png") as picture:
        assert picture.size[0] > 500
    assert "2 arms in 1 packs" in done(*arguments[:3], "--folder", tmp_path / "x", "--seeds", 3, "--dry-run")


def test_sweep_goes_on_from_the_studies_that_are_kept(tiny_study, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    arguments = ["sweep", "--study", "rank", "--scale", "smoke"]
    done(*arguments, "--folder", "figures/studies/rank-smoke")
    with monkeypatch.context() as patch:
        patch.setattr(packs, "sample", lambda *_, **__: pytest.fail("drew again"))
        assert "rank-smoke: 0 arms beside 4 that are kept in 0 packs" in done(*arguments)
    assert Path("runs/studies/rank-smoke/table-radicals.parquet").exists()
    assert "rank-smoke: 4 arms in 1 packs" in done(*arguments, "--retrain", "--dry-run")


def test_sweep_lets_another_judge_read_what_is_stored(tiny_study, tmp_path, monkeypatch):
    class PartsJudge:
        def read(self, images):
            return pd.DataFrame({"parts": [("水", "木")] * len(images)})

    arguments = ["sweep", "--study", "rank", "--folder", tmp_path / "rank", "--seeds", 3]
    done(*arguments)
    monkeypatch.setattr(judges, "load_judge", lambda name: {"B": PartsJudge()}[name])
    monkeypatch.setattr(packs, "sample", lambda *_, **__: pytest.fail("drew again"))
    assert "table-judge-b.parquet" in done(*arguments, "--judge", "B")
    table = pd.read_parquet(tmp_path / "rank" / "table-judge-b.parquet")
    assert table.groupby("expected")["hit"].mean().to_dict() == {"人": 0, "木": 1, "水": 1, "火": 0}


def test_a_pilot_ends_with_each_variants_best_rate(tiny_study, tmp_path):
    folder = tmp_path / "pilot"
    lines = call("sweep", "--study", "rank", "--scale", "pilot", "--folder", folder, "--seeds", 7).stdout.splitlines()
    header = next(n for n, line in enumerate(lines) if line.split() == ["setting", "peak_lr", "hits", "inside"])
    assert [line.split()[:2] for line in lines[header + 1 : header + 3]] == [["rank", "1"], ["rank", "2"]]


# ---------------------------------------------------------------------------------- what is refused


def test_sweep_refuses_what_it_does_not_know(tiny_study, tmp_path, monkeypatch):
    folder = tmp_path / "study"
    assert "expected numbers of packs from 0 to 0, got [4]" in refused(
        "sweep", "--study", "rank", "--folder", folder, "--pack", 4
    )
    monkeypatch.undo()
    assert "study must be one of rank, batch" in refused("sweep", "--study", "colour")
    assert "scale must be one of smoke, pilot, full" in refused("sweep", "--study", "rank", "--scale", "huge")


@pytest.mark.parametrize(
    ("setting", "complaint"),
    [
        ("rnak=16", "unknown settings ['rnak']; expected some of ["),
        ("rank=0", "rank must be a whole number from 1 to 65,536, got 0"),
        ("rank=many", "rank must be of type int, got 'many'"),
        ("peak_lr=fast", "peak_lr must be of type float, got 'fast'"),
        ("rslora=maybe", "rslora must be of type bool, got 'maybe'"),
        ("peak_lr=true", "peak_lr must be of type float, got True"),
        ("alpha=high", "alpha must be of type float | None, got 'high'"),
        ("targets=heads", "targets must be one of"),
    ],
)
@pytest.mark.parametrize("command", ["train", "demo"])
def test_bad_settings_are_refused_before_anything_is_done(
    tmp_path, images, base, monkeypatch, command, setting, complaint
):
    for module, name in ((demo, "run_demo"), (driver, "run_training")):
        monkeypatch.setattr(module, name, lambda *_, **__: pytest.fail("began"))
    place = [images, tmp_path / "run"] if command == "train" else ["--folder", tmp_path / "run"]
    assert complaint in refused(command, *place, "--base", base, "--set", setting)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("setting", "option"),
    [("images_seen=5", "--scale"), ("epochs=2", "--scale"), ("shuffled_captions=true", "--shuffled")],
)
def test_the_demo_refuses_settings_that_an_option_decides(tmp_path, setting, option):
    name = setting.partition("=")[0]
    assert f"{name} is set by {option}, not by --set" in refused("demo", "--folder", tmp_path / "run", "--set", setting)
    assert not (tmp_path / "run").exists()


def test_data_is_drawn_in_one_way(tmp_path):
    drawing = ("--font", default_font(), "--strokes", 4)
    assert "from --font or from --strokes, not from both" in refused("data", tmp_path / "data", *drawing)
    assert not (tmp_path / "data").exists()


def test_train_refuses_what_it_cannot_use(tmp_path, images, base):
    run, options = tmp_path / "run", ["--base", base, "--tracker", "none"]
    assert "expected a folder of images, got none" in refused("train", tmp_path / "none", run, *options)
    assert "expected a folder with model_index.json" in refused("train", images, run, "--base", tmp_path / "none")
    assert "precision must be one of" in refused("train", images, run, *options, "--precision", "fp8")
    assert "expected name=value, got 'rank'" in refused("train", images, run, *options, "--set", "rank", code=2)
    assert "expected name=value, got 'rank'" in refused("train", images, run, *options, "--vary", "rank", code=2)
    tests_only = image_folder(tmp_path / "tests", extra=",test")
    assert "expected images of the split 'train', got ['test']" in refused("train", tests_only, run, *options)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").touch()
    assert "found ['thesis.txt']" in refused("train", images, tmp_path / "full", *options)
    assert not run.exists()


@pytest.mark.parametrize("command", ["reinvent", "pairs"])
def test_an_unknown_base_is_refused_before_anything_is_written(tmp_path, command):
    folder = tmp_path / "new"
    assert "nowhere" in refused(command, "--scale", "smoke", "--base", "nowhere", "--folder", folder)
    assert not folder.exists()


@pytest.mark.parametrize("command", ["strip", "export", "score"])
def test_what_is_no_run_is_refused(tmp_path, images, command):
    target = {"strip": tmp_path / "x.png", "export": tmp_path / "lora", "score": images}[command]
    assert "is not a run folder" in refused(command, tmp_path / "none", target)
    other = RunFolder.create(tmp_path / "other", {"recipe": 1})
    assert "expected the run of a training, got settings without" in refused(command, other.path, target)


def test_a_run_that_never_began_is_refused(tmp_path, base):
    settings = {"arms": [Arm().to_json()], "hash": "0", "base_identity": "0", "base": str(base), "precision": "fp32"}
    run = RunFolder.create(tmp_path / "run", settings)
    for command, target in (("strip", "x.png"), ("export", "lora")):
        assert "has no checkpoint yet" in refused(command, run.path, tmp_path / target)


def test_strip_and_export_refuse_what_the_run_has_not(trained, tmp_path, monkeypatch):
    run, path = trained[0].path, tmp_path / "strip.png"
    assert "prompts must be one of radicals," in refused("strip", run, path, "--prompts", "sutras")
    assert "has arms 0 to 1, got 2" in refused("strip", run, path, "--arm", 2, *QUICK)
    assert "sampler must be one of" in refused("strip", run, path, "--sampler", "euler")
    assert "Invalid value for '--seeds'" in refused("strip", run, path, "--seeds", 0, code=2)
    monkeypatch.setattr(history, "sample_history", lambda *_, **__: pytest.fail("drew first"))
    assert "expected a path ending in .png" in refused("strip", run, tmp_path / "x.jpg", "--prompt", "queen", *QUICK)
    assert "has arms 0 to 1, got 2" in refused("export", run, tmp_path / "lora", "--arm", 2)
    assert "no complete checkpoint of step 7, only [0, 3]" in refused("export", run, tmp_path / "lora", "--step", 7)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("option", ["--prompt", "--negative-prompt", "--prefix"])
@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("water \udce6\udcb0", "expected a prompt in UTF-8, got 'water"),
        ("\ud842", "expected a prompt in UTF-8, got '"),
        ("a" * 10_001, "expected a prompt of at most 10,000 characters, got 10,001"),
    ],
)
def test_a_prompt_that_no_encoder_reads_is_refused_before_anything_is_drawn(trained, tmp_path, option, text, said):
    run = trained[0].path
    before = sorted(run.rglob("*"))
    assert said in refused("strip", run, tmp_path / "strip.png", option, text)
    assert sorted(run.rglob("*")) == before and list(tmp_path.iterdir()) == []


def test_score_refuses_images_without_radicals(trained, tmp_path, monkeypatch):
    monkeypatch.setattr(demo.RadicalJudge, "load_or_fit", lambda cache: WaterJudge())
    folder = image_folder(tmp_path / "images")
    (folder / "metadata.csv").write_text("file_name,text\n0.png,water\n")
    assert "expected a column radical_character" in refused("score", trained[0].path, folder)


def test_data_refuses_what_it_cannot_draw(tmp_path):
    folder = tmp_path / "set"
    assert "ratio must be >= 1" in refused("data", folder, "--ratio", "0.5")
    (tmp_path / "font.ttf").write_text("no font")
    assert "expected a font file" in refused("data", folder, "--font", tmp_path / "font.ttf")
    assert "expected KANJIDIC2, found none" in refused("data", folder, "--kanjidic2", tmp_path / "none.xml")
    assert "Invalid value for '--rule'" in refused("data", folder, "--rule", "sixteen", code=2)
    assert not folder.exists()


def test_ctrl_c_says_how_to_go_on(monkeypatch, capsys):
    @plain_errors
    def command():
        raise KeyboardInterrupt

    monkeypatch.setattr(sys, "argv", ["bin/kanjilab", "demo", "--folder", "my runs"])
    with pytest.raises(typer.Exit) as ended:
        command()
    assert ended.value.exit_code == 130
    said = capsys.readouterr().err
    assert "what is stored is kept" in said and said.endswith("  kanjilab demo --folder 'my runs'\n")
