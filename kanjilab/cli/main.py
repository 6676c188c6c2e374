"""Curate kanji, train LoRAs over a frozen text-to-image base, draw checkpoint strips, and measure what came out."""

import json
from collections.abc import Callable
from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False, help=__doc__)

# Each command imports what it needs, so that --help answers at once.


class RuleName(StrEnum):
    """Selection rules by name."""

    left16 = "left16"
    seed16 = "seed16"
    all = "all"


class ScaleName(StrEnum):
    """How much of the demo is done."""

    smoke = "smoke"
    demo = "demo"
    full = "full"


class AskingScale(StrEnum):
    """How much of the re-invention or of the pairs is done."""

    smoke = "smoke"
    full = "full"


class StudyScale(StrEnum):
    """How much of a study is done."""

    smoke = "smoke"
    pilot = "pilot"
    full = "full"
    broad = "broad"
    wide = "wide"


class JudgeName(StrEnum):
    """Who reads the images of a study."""

    radicals = "radicals"
    A = "A"
    B = "B"


def _report_name(judge: JudgeName) -> str:
    return judge.value if judge == JudgeName.radicals else f"judge-{judge.value.lower()}"


def _reading(judge: JudgeName) -> dict[str, Any]:
    """How `ablate` is told who reads; judges A and B find a radical anywhere in the glyph."""
    if judge == JudgeName.radicals:
        return {}
    from kanjilab.evaluation.judges.part_judge import load_judge
    from kanjilab.evaluation.metrics import expected_part_hits

    return {"judge": load_judge(judge.value), "name": _report_name(judge), "hits": expected_part_hits}


def _rule(name: RuleName, ratio: float = 1.0) -> Any:
    from kanjilab.data.selection import EveryCharacter, Imbalanced, Left16, Seed16

    rule = {"left16": Left16, "seed16": Seed16, "all": EveryCharacter}[name.value]()
    return rule if ratio == 1 else Imbalanced(rule, ratio)


def _settings(pairs: list[str]) -> dict[str, Any]:
    """`name=value` pairs as settings of an arm; values are JSON, or else text."""
    settings = {}
    for pair in pairs:
        name, separator, value = pair.partition("=")
        if not separator:
            raise typer.BadParameter(f"expected name=value, got {pair!r}")
        try:
            settings[name] = json.loads(value)
        except ValueError:
            settings[name] = value
    return settings


def _open_run(folder: Path) -> Any:
    from kanjilab.core.run_folder import RunFolder

    run = RunFolder.open(folder)
    if missing := [name for name in ("base", "precision", "arms") if name not in run.settings]:
        raise ValueError(f"{folder}: expected the run of a training, got settings without {', '.join(missing)}")
    if not run.checkpoints():
        raise ValueError(f"{folder} has no checkpoint yet: its training never began")
    return run


def _load_base(run: Any) -> Any:
    """What a run was trained on, where a training would run: 4-bit weights are for an accelerator alone."""
    from kanjilab.models.loading import load_base, usual_device

    return load_base(run.settings["base"], run.settings["precision"], usual_device())


def _fail_plainly(error: Exception) -> typer.Exit:
    typer.echo(f"kanjilab: {error}", err=True)
    return typer.Exit(1)


@app.command()
def demo(
    folder: Annotated[Path | None, typer.Option(help="Where everything goes; runs/demo-<rule> by default.")] = None,
    rule: Annotated[RuleName, typer.Option(help="Which characters are learned.")] = RuleName.left16,
    base: Annotated[str, typer.Option(help="pocket, sd14, sd15, a Hub id or a folder.")] = "pocket",
    scale: Annotated[
        ScaleName, typer.Option(help="smoke: seconds; demo: minutes; full: half as long again.")
    ] = ScaleName.demo,
    shuffled: Annotated[bool, typer.Option(help="Train with shuffled captions: the control.")] = False,
    settings: Annotated[list[str], typer.Option("--set", help="A setting of the arm, as rank=16.")] = [],  # noqa: B006
) -> None:
    """Curate, train a LoRA, draw the checkpoint strip and score it. Called again, it goes on."""
    from kanjilab.core.config import Arm
    from kanjilab.experiments.demo import report_table, run_demo
    from kanjilab.training.presets import DEMO_ARM, SCALES

    name = (
        f"demo-{rule.value}" + ("-shuffled" if shuffled else "") + ("" if scale.value == "demo" else f"-{scale.value}")
    )
    folder = folder or Path("runs") / name
    try:
        changes = _settings(settings)
        for name, option in {"images_seen": "--scale", "epochs": "--scale", "shuffled_captions": "--shuffled"}.items():
            if name in changes:
                raise ValueError(f"{name} is set by {option}, not by --set")
        arm = Arm.from_json(DEMO_ARM.to_json() | changes | {"shuffled_captions": shuffled})
        report = run_demo(folder, rule=_rule(rule), base_name=base, arm=arm, scale=SCALES[scale.value])
    except (ValueError, OSError, RuntimeError) as error:
        raise _fail_plainly(error) from error
    typer.echo(report_table(report))
    for name in ("strip.png", "queen.gif", "loss.png", "report.json", "run/", "data/"):
        typer.echo(f"{folder / name}")
    typer.echo("Next: open strip.png; `make lab` walks through the same steps, cell by cell.")


@app.command()
def data(
    folder: Annotated[Path, typer.Argument(help="Image folder to write; must not exist.")],
    rule: Annotated[RuleName, typer.Option(help="Which characters.")] = RuleName.left16,
    ratio: Annotated[float, typer.Option(help="Imbalance between most and least frequent radical.")] = 1.0,
    font: Annotated[Path | None, typer.Option(help="Font file; IPAexGothic by default.")] = None,
    strokes: Annotated[float | None, typer.Option(help="Draw from KanjiVG strokes of this width instead.")] = None,
    kanjidic2: Annotated[Path | None, typer.Option(help="kanjidic2.xml[.gz] in place of the packaged one.")] = None,
) -> None:
    """Select, caption, draw and split kanji into an image folder with metadata.csv."""
    from kanjilab.data.build import build_dataset
    from kanjilab.data.dictionary import load_characters
    from kanjilab.data.kanjivg import KanjiVG

    try:
        if font is not None and strokes is not None:
            raise ValueError("a set is drawn from --font or from --strokes, not from both")
        drawing: dict[str, Any] = (
            dict(font=font) if strokes is None else dict(kanjivg=KanjiVG.open(), stroke_width=strokes)
        )
        characters = load_characters(kanjidic2) if kanjidic2 else None
        dataset = build_dataset(_rule(rule, ratio), folder, characters=characters, **drawing)
    except (ValueError, OSError) as error:
        raise _fail_plainly(error) from error
    counts = dataset.table["split"].value_counts()
    typer.echo(f"{folder}: {', '.join(f'{count:,} {split}' for split, count in counts.items())} images")


@app.command()
def train(
    data: Annotated[Path, typer.Argument(help="An image folder, anybody's.")],
    folder: Annotated[Path, typer.Argument(help="The run: new, or one to go on with.")],
    preset: Annotated[str, typer.Option(help="The demo's training, or a published one; other options change it.")] = "",
    base: Annotated[
        str | None, typer.Option(help="pocket, sd14, sd15, sd35-medium, sd35-large, a Hub id, a folder or a file.")
    ] = None,
    precision: Annotated[str | None, typer.Option(help="fp32, bf16, 8bit or 4bit; bf16 by default.")] = None,
    checkpoints: Annotated[int | None, typer.Option(help="After the one before training; 8 by default.")] = None,
    settings: Annotated[list[str], typer.Option("--set", help="A setting of every arm, as rank=16.")] = [],  # noqa: B006
    vary: Annotated[str, typer.Option(help="One arm per value, as rank=4,16,64.")] = "",
    gradient_checkpointing: Annotated[bool, typer.Option(help="Less memory, a third more time.")] = False,
    tracker: Annotated[str, typer.Option(help="tensorboard, wandb or none.")] = "tensorboard",
    dry_run: Annotated[bool, typer.Option(help="Print what it takes, and stop.")] = False,
) -> None:
    """Train one arm, or one per value of --vary, over one frozen base. Called again, it goes on.

    With --preset: the demo's training (pocket-demo), or a published one (generative-kanji-article,
    generative-kanji-repo, instantkanji-sd15-full, instantkanji-sd35-lora, instantkanji-sd35-lora-periodic), and at its
    end the strip, the LoRA and a ComfyUI workflow.

    Under `torchrun --nproc_per_node 2 -m kanjilab train ...` (or `accelerate launch` on GPUs) every process takes
    its part of each batch.
    """
    from kanjilab.cli.train_command import Recipe, run_recipe

    name, separator, values = vary.partition("=")
    if vary and not separator:
        raise typer.BadParameter(f"expected name=value, got {vary!r}")
    changes, varied = _settings(settings), [_settings([f"{name}={value}"])[name] for value in values.split(",")]
    try:
        recipe = Recipe.of(preset, changes, name, varied, base=base, precision=precision, checkpoints=checkpoints)
        recipe = replace(recipe, gradient_checkpointing=gradient_checkpointing)
        run = run_recipe(recipe, data, folder, tracker=tracker, dry_run=dry_run, say=typer.echo)
    except (ValueError, OSError, RuntimeError) as error:
        raise _fail_plainly(error) from error
    if run is not None:
        typer.echo(f"{folder}\nNext: kanjilab strip {folder} strip.png")


@app.command()
def sweep(
    study: Annotated[
        str, typer.Option(help="rank, batch, epochs, schedule, balance, position, targets, full, article.")
    ],
    scale: Annotated[
        StudyScale,
        typer.Option(help="smoke: seconds; pilot: rates; full: the claim; broad: all variants; wide: all data too."),
    ] = StudyScale.smoke,
    folder: Annotated[Path | None, typer.Option(help="runs/studies/<study>-<scale> by default.")] = None,
    judge: Annotated[
        JudgeName, typer.Option(help="Who reads; what is stored is read anew without drawing it again.")
    ] = JudgeName.radicals,
    pack: Annotated[list[int], typer.Option(help="Only this pack, as an array job does; may be repeated.")] = [],  # noqa: B006
    seeds: Annotated[list[int], typer.Option(help="Training seeds in place of the scale's; may be repeated.")] = [],  # noqa: B006
    most_arms: Annotated[int, typer.Option(help="Arms in one training.")] = 8,
    memory_gb: Annotated[float | None, typer.Option(help="Memory for a training; most of what is free.")] = None,
    keep_adapters: Annotated[bool, typer.Option(help="Keep each pack's last checkpoint.")] = False,
    anew: Annotated[bool, typer.Option(help="Train the arms too that figures/studies keeps.")] = False,
    dry_run: Annotated[bool, typer.Option(help="Print the packs and what they cost, and stop.")] = False,
) -> None:
    """Run a study: train its arms in packs, draw, read, and compare them. Called again, it goes on.

    So it does from arms of finished studies whose tables lie in figures/studies.

    Under `torchrun --nproc_per_node 2 -m kanjilab sweep ...` (or `accelerate launch`) every process takes whole packs.
    """
    from pandas import read_parquet

    from kanjilab.experiments.designs import best_rates, make_study
    from kanjilab.experiments.run_study import ablate

    folder = folder or Path("runs/studies", f"{study}-{scale.value}")
    try:
        asked = make_study(study, scale.value, seeds)
        report = ablate(
            asked,
            folder,
            **_reading(judge),
            only=pack or None,
            most_arms=most_arms,
            memory_gb=memory_gb,
            keep_adapters=keep_adapters,
            kept=None if anew else Path("figures/studies"),
            dry_run=dry_run,
            say=typer.echo,
        )
    except (ValueError, OSError, RuntimeError) as error:
        raise _fail_plainly(error) from error
    if report is None:
        return
    name = report["judge"]
    if scale == StudyScale.pilot:
        typer.echo(best_rates(read_parquet(folder / f"table-{name}.parquet")).to_string(index=False))
    for split, sentences in report["sentences"].items():
        typer.echo("\n".join([f"{split.replace('_', '-')} prompts:", *(f"  {line}" for line in sentences)]))
    for file in (f"table-{name}.parquet", f"report-{name}.json", f"figure-{name}.png"):
        typer.echo(f"{folder / file}")


@app.command()
def findings(
    folder: Annotated[Path, typer.Argument(help="Holds the studies' folders.")] = Path("figures/studies"),
    judge: Annotated[JudgeName, typer.Option(help="Whose readings count.")] = JudgeName.radicals,
    training_captions: Annotated[bool, typer.Option(help="Of training captions in place of held-out ones.")] = False,
    tuned: Annotated[bool, typer.Option(help="At the rates that pilots chose, in place of one for all.")] = False,
) -> None:
    """The article's claims as far as they were studied, a sentence each, their p values corrected together."""
    from kanjilab.experiments.designs import TUNED_SUFFIX
    from kanjilab.experiments.findings import findings as sentences

    split, suffix = "train" if training_captions else "held_out", TUNED_SUFFIX if tuned else ""
    lines = sentences(folder, _report_name(judge), split, suffix)
    if not lines:
        raise _fail_plainly(ValueError(f"{folder}: expected a folder with finished studies, as rank-full, got none"))
    typer.echo("\n".join(lines))


@app.command()
def strip(
    folder: Annotated[Path, typer.Argument(help="A run.")],
    path: Annotated[Path, typer.Argument(help="PNG to write; a JSON goes beside it.")],
    prompts: Annotated[str, typer.Option(help="A set: demo, radicals, published, part-pairs.")] = "demo",
    prompt: Annotated[list[str], typer.Option(help="One prompt, in place of a set; may be repeated.")] = [],  # noqa: B006
    arm: Annotated[int, typer.Option(help="Which arm of the run.")] = 0,
    seeds: Annotated[int, typer.Option(help="The first in every column, the others at the end.")] = 4,
    steps: Annotated[int, typer.Option(help="Denoising steps.")] = 15,
    guidance: Annotated[float, typer.Option(help="Classifier-free guidance scale.")] = 5.0,
    sampler: Annotated[
        str | None, typer.Option(help="ddim, dpm-solver++ (a U-Net's default) or flow-euler (SD 3's).")
    ] = None,
    negative_prompt: Annotated[str, typer.Option()] = "",
    prefix: Annotated[str, typer.Option(help="Put before every prompt.")] = "",
) -> None:
    """Draw every prompt at every checkpoint of a run, with the same noise."""
    from kanjilab.data.prompts import PROMPT_SETS
    from kanjilab.models.sampling import Sampling, fitting
    from kanjilab.training.history import history_strip, sample_history
    from kanjilab.viz.strip import save_strip

    try:
        if path.suffix != ".png":  # before minutes of drawing
            raise ValueError(f"expected a path ending in .png, got {str(path)!r}")
        if not prompt and prompts not in PROMPT_SETS:
            raise ValueError(f"prompts must be one of {sorted(PROMPT_SETS)}, got {prompts!r}")
        run = _open_run(folder)
        base = _load_base(run)
        sampling = Sampling(sampler or "dpm-solver++", steps, guidance, negative_prompt, prefix)
        sampling = sampling if sampler else fitting(sampling, base)
        wanted = prompt or PROMPT_SETS[prompts]
        path.parent.mkdir(parents=True, exist_ok=True)
        images, facts = sample_history(base, run, wanted, list(range(seeds)), sampling, arm=arm)
        save_strip(history_strip(images, facts), path)
    except (ValueError, OSError, RuntimeError) as error:
        raise _fail_plainly(error) from error
    typer.echo(str(path))


@app.command()
def score(
    folder: Annotated[Path, typer.Argument(help="A run.")],
    data: Annotated[Path, typer.Argument(help="The image folder it was trained on.")],
    captions_per_radical: Annotated[int, typer.Option(help="In each of the two prompt sets.")] = 6,
    arm: Annotated[int, typer.Option(help="Which arm of the run, from 0.")] = 0,
) -> None:
    """How often the expected radical is found, before and after training."""
    from kanjilab.data.image_folder import open_dataset
    from kanjilab.experiments.demo import score_run
    from kanjilab.models.sampling import fitting
    from kanjilab.training.presets import DEMO_SAMPLING

    try:
        run = _open_run(folder)
        base = _load_base(run)
        scores = score_run(base, run, open_dataset(data), captions_per_radical, fitting(DEMO_SAMPLING, base), arm)
    except (ValueError, OSError, RuntimeError) as error:
        raise _fail_plainly(error) from error
    typer.echo(scores.to_string(index=False, float_format="{:.3f}".format))


@app.command()
def criteria(
    folder: Annotated[Path, typer.Argument(help="A run.")],
    data: Annotated[Path, typer.Argument(help="The image folder it was trained on.")],
    judge: Annotated[JudgeName, typer.Option(help="A or B.")] = JudgeName.B,
    captions_per_radical: Annotated[int, typer.Option(help="Captions of held-out characters, for each radical.")] = 3,
    images: Annotated[int, typer.Option(help="Drawn of each caption.")] = 4,
    arm: Annotated[int, typer.Option(help="Which arm of the run, from 0.")] = 0,
    shuffled: Annotated[Path | None, typer.Option(help="The run of shuffled captions, as a control.")] = None,
) -> None:
    """Two parts, distinct, novel, well-formed, and what was asked for? The five criteria beside their controls."""
    from kanjilab.core.storage import write_json_atomic
    from kanjilab.data.image_folder import open_dataset
    from kanjilab.evaluation.controls import criteria_text, score_criteria
    from kanjilab.evaluation.judges.part_judge import load_judge
    from kanjilab.models.sampling import fitting
    from kanjilab.training.presets import DEMO_SAMPLING

    if judge == JudgeName.radicals:
        raise typer.BadParameter("expected A or B: the first judge reads one radical only", param_hint="--judge")
    try:
        run, other = _open_run(folder), _open_run(shuffled) if shuffled else None
        base = _load_base(run)
        asked = {"captions_per_radical": captions_per_radical, "images": images, "judge": judge.value}
        table = score_criteria(
            base,
            run,
            open_dataset(data),
            load_judge(judge.value),
            captions_per_radical=captions_per_radical,
            images=images,
            sampling=fitting(DEMO_SAMPLING, base),
            arm=arm,
            shuffled=other,
        )
        scores = {name: json.loads(table.loc[name].to_json(orient="index")) for name in table.index.unique("control")}
        runs = {"run": run.settings["hash"], "arm": arm, "shuffled": other.settings["hash"] if other else None}
        name = f"criteria-{judge.value.lower()}" + (f"-arm-{arm}" if arm else "")
        path = write_json_atomic(folder / f"{name}.json", runs | asked | {"scores": scores})
    except (ValueError, OSError, RuntimeError) as error:
        raise _fail_plainly(error) from error
    typer.echo(criteria_text(table))
    typer.echo(str(path))


@app.command()
def reinvent(
    folder: Annotated[Path | None, typer.Option(help="Where everything goes; runs/reinvention by default.")] = None,
    base: Annotated[str, typer.Option(help="One that has never seen a kanji.")] = "pocket",
    scale: Annotated[AskingScale, typer.Option(help="smoke: a minute; full: a quarter of an hour.")] = AskingScale.full,
) -> None:
    """Train without some characters, ask for them by their parts and meanings, and see whether they come back."""
    from kanjilab.experiments.run_reinvention import SCALES, report_table, run_reinvention

    _ask(
        "reinvention",
        folder,
        scale,
        lambda target: report_table(run_reinvention(target, base_name=base, scale=SCALES[scale.value])),
    )


@app.command()
def pairs(
    folder: Annotated[Path | None, typer.Option(help="Where everything goes; runs/slot-pairs by default.")] = None,
    base: Annotated[str, typer.Option(help="A base.")] = "pocket",
    scale: Annotated[AskingScale, typer.Option(help="smoke: a minute; full: forty minutes of a core.")] = (
        AskingScale.full
    ),
) -> None:
    """Ask for two radicals together: of one slot, and of two different ones."""
    from kanjilab.experiments.radical_pairs import SCALES, report_text, run_pairs

    _ask(
        "slot-pairs",
        folder,
        scale,
        lambda target: report_text(run_pairs(target, base_name=base, scale=SCALES[scale.value])),
    )


def _ask(name: str, folder: Path | None, scale: AskingScale, run: Callable[[Path], str]) -> None:
    folder = folder or Path("runs") / (name + ("" if scale == AskingScale.full else f"-{scale.value}"))
    try:
        told = run(folder)
    except (ValueError, OSError, RuntimeError) as error:
        raise _fail_plainly(error) from error
    typer.echo(told)
    typer.echo(str(folder / "strip.png"))


@app.command()
def diagnose(
    folder: Annotated[Path, typer.Argument(help="A run, finished or not.")],
    path: Annotated[Path, typer.Argument(help="PNG to write; a JSON goes beside it.")],
    arm: Annotated[int, typer.Option(help="Which arm of the run.")] = 0,
) -> None:
    """Did a training explode? Rate, gradient norm, update and samples step by step; what happened, what to try."""
    from kanjilab.training import diagnosis
    from kanjilab.viz.charts import save_figure

    try:
        run = _open_run(folder)
        found = diagnosis.diagnose(run, arm)
        happened, advice = diagnosis.explain(found)
        facts = {"run": run.settings["hash"], "arm": arm, "happened": happened, "advice": advice}
        save_figure(diagnosis.draw_diagnosis(found, diagnosis.stored_samples(run, arm)), path, facts)
    except (ValueError, OSError, RuntimeError) as error:
        raise _fail_plainly(error) from error
    typer.echo("\n".join([*happened, *(f"Try: {line}" for line in advice), str(path)]))


@app.command()
def export(
    folder: Annotated[Path, typer.Argument(help="A run.")],
    path: Annotated[Path, typer.Argument(help="Folder to write into.")],
    step: Annotated[int | None, typer.Option(help="A checkpoint; the last by default.")] = None,
    arm: Annotated[int, typer.Option(help="Which arm of the run.")] = 0,
    form: Annotated[
        str,
        typer.Option("--format", help="diffusers, comfyui (with a workflow), kohya, peft, or pipeline: all merged."),
    ] = "diffusers",
    prompt: Annotated[str, typer.Option(help="Of the ComfyUI workflow.")] = "mountains",
    card: Annotated[bool, typer.Option(help="Write a model card, README.md.")] = False,
    strip: Annotated[Path | None, typer.Option(help="A PNG for the card.")] = None,
    push: Annotated[str, typer.Option(help="Put the folder onto the Hugging Face Hub, as owner/name.")] = "",
    public: Annotated[bool, typer.Option(help="A new repository is for all to see.")] = False,
) -> None:
    """Write a checkpoint as a file that diffusers, ComfyUI, kohya's scripts or PEFT load, or as a whole pipeline."""
    from kanjilab.export.checkpoint import ABOUT_DORA, push_to_hub
    from kanjilab.export.release import Handover, hand_over

    try:
        run, address = _open_run(folder), ""
        at = run.checkpoints()[-1] if step is None else step
        handover = Handover(form, card=card or bool(push or strip), strip=strip, prompt=prompt)
        written = hand_over(run, at, arm, path, handover)
        if push:
            address = push_to_hub(path, push, private=not public)
    except (ValueError, OSError, RuntimeError) as error:
        raise _fail_plainly(error) from error
    typer.echo("\n".join([*map(str, written), *([address] if push else [])]))
    if form in ("comfyui", "kohya") and run.arm(arm).dora:
        typer.echo(ABOUT_DORA)
