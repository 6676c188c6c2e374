"""The commands that make images and train on them: demo, data, train."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from kanjilab.cli.options import (
    Settings,
    name_and_value,
    parse_settings,
    require_counting,
    require_effect,
    setting_value,
)
from kanjilab.core.config import DEFAULT_BASE
from kanjilab.core.images import SIZE_MAX_PX, SIZE_PX


class RuleName(StrEnum):
    """Selection rules by name."""

    left16 = "left16"
    seed16 = "seed16"
    all = "all"


def _rule(name: RuleName, ratio: float = 1.0) -> Any:
    from kanjilab.data.selection import rule_from_json

    rule = {"name": name.value}
    return rule_from_json(rule if ratio == 1 else {"name": "imbalanced", "rule": rule, "ratio": ratio})


def demo(
    folder: Annotated[Path | None, typer.Option(help="Where everything goes; runs/demo-<rule> by default.")] = None,
    rule: Annotated[RuleName, typer.Option(help="Which characters are learned.")] = RuleName.left16,
    base: Annotated[str, typer.Option(help="pocket2, sd14, sd15, a Hub id or a folder.")] = DEFAULT_BASE,
    scale: Annotated[
        str, typer.Option(help="{kanjilab.training.presets.SCALES}: seconds, minutes, or half as long again.")
    ] = "demo",
    shuffled: Annotated[bool, typer.Option(help="Train with shuffled captions: the control.")] = False,
    settings: Settings = [],  # noqa: B006
) -> None:
    """Curate, train a LoRA, draw the checkpoint strip and score it. Called again, it goes on."""
    from kanjilab.core.config import Arm
    from kanjilab.experiments.demo import report_table, run_demo
    from kanjilab.training.presets import DEMO_ARM, SCALES, lookup

    name = f"demo-{rule.value}" + "-shuffled" * shuffled + (f"-{scale}" if scale != "demo" else "")
    folder = folder or Path("runs") / name
    changes = parse_settings(settings)
    for name, option in {"images_seen": "--scale", "epochs": "--scale", "shuffled_captions": "--shuffled"}.items():
        if name in changes:
            raise ValueError(f"{name} is set by {option}, not by --set")
    arm = Arm.from_json(DEMO_ARM.to_json() | changes | {"shuffled_captions": shuffled})
    require_counting(changes, [arm])
    report = run_demo(folder, rule=_rule(rule), base_name=base, arm=arm, scale=lookup(SCALES, scale, "scale"))
    typer.echo(report_table(report))
    for name in ("strip.png", "queen.gif", "loss.png", "report.json", "run/", "data/"):
        typer.echo(f"{folder / name}")
    typer.echo("Next: open strip.png; `make lab` walks through the same steps, cell by cell.")


def data(
    context: typer.Context,
    folder: Annotated[Path, typer.Argument(help="Image folder to write; must not exist.")],
    rule: Annotated[RuleName, typer.Option(help="Which characters.")] = RuleName.left16,
    ratio: Annotated[float, typer.Option(help="Of left16 and seed16: most over least frequent radical.")] = 1.0,
    font: Annotated[Path | None, typer.Option(help="Font file, IPAexGothic by default; a face as FILE#Bold.")] = None,
    strokes: Annotated[float | None, typer.Option(help="Draw from KanjiVG strokes of this width instead.")] = None,
    kanjidic2: Annotated[Path | None, typer.Option(help="kanjidic2.xml[.gz] in place of the packaged one.")] = None,
    language: Annotated[str, typer.Option(help="Of the captions: en, ja (words without the kanji), or both.")] = "en",
) -> None:
    """Select, caption, draw and split kanji into an image folder with metadata.csv."""
    from kanjilab.data.build import build_dataset
    from kanjilab.data.dictionary import load_characters
    from kanjilab.data.kanjivg import KanjiVG, check_stroke_width
    from kanjilab.data.selection import InJapanese

    require_effect(context, rule != RuleName.all, "with --rule left16 or seed16", "ratio")
    if font is not None and strokes is not None:
        raise ValueError("a set is drawn from --font or from --strokes, not from both")
    if strokes is not None:
        check_stroke_width(strokes)  # before anything is fetched
    characters = load_characters(kanjidic2) if kanjidic2 else None
    chosen = _rule(rule, ratio) if language == "en" else InJapanese(_rule(rule, ratio), language=language)
    drawing: dict[str, Any] = dict(font=font) if strokes is None else dict(kanjivg=KanjiVG.open(), stroke_width=strokes)
    dataset = build_dataset(chosen, folder, characters=characters, **drawing)
    counts = dataset.table["split"].value_counts()
    typer.echo(f"{folder}: {', '.join(f'{count:,} {split}' for split, count in counts.items())} images")


def filter_(
    data: Annotated[Path, typer.Argument(help="An image folder: kanjilab's or your own.")],
    folder: Annotated[Path, typer.Argument(help="Image folder to write; must not exist.")],
    keep: Annotated[float, typer.Option(help="Share of the training images that stays.")] = 0.9,
    clip: Annotated[
        str, typer.Option(help="A CLIP model that scores, such as rinna/japanese-cloob-vit-b-16, or a folder.")
    ] = "",
    size_px: Annotated[
        int, typer.Option(help="Side of the square that images are brought to.", min=32, max=SIZE_MAX_PX)
    ] = SIZE_PX,
) -> None:
    """Leave out the images whose captions fit them worst; a picture shows the scores and the worst pairs.

    Without --clip a small model is trained on the pairs and, out of fold, scores them: it reads glyphs, and captions in
    English and Japanese.
    """
    from kanjilab.data.image_folder import open_dataset
    from kanjilab.experiments.filtering import filter_dataset, scorer
    from kanjilab.models.loading import usual_device

    dataset = open_dataset(data, size_px=size_px)
    scores, by = scorer(clip, usual_device())
    filtered = filter_dataset(dataset, folder, keep, scores, by)
    left_out = len(dataset) - len(filtered)
    typer.echo(f"{folder}: {len(filtered):,} images stay, {left_out:,} are left out (scores.csv)")
    typer.echo(str(folder.with_name(f"{folder.name}.png")))


def train(
    data: Annotated[Path, typer.Argument(help="An image folder: kanjilab's or your own.")],
    folder: Annotated[Path, typer.Argument(help="The run: new, or one to go on with.")],
    preset: Annotated[str, typer.Option(help="The demo's training, or a published one; other options change it.")] = "",
    base: Annotated[
        str | None, typer.Option(help="pocket2, sd14, sd15, sd35-medium, sd35-large, a Hub id, a folder or a file.")
    ] = None,
    precision: Annotated[str | None, typer.Option(help="fp32, bf16, 8bit or 4bit; bf16 by default.")] = None,
    checkpoints: Annotated[int | None, typer.Option(help="After the one before training; 8 by default.")] = None,
    settings: Settings = [],  # noqa: B006
    vary: Annotated[list[str], typer.Option(help="One arm per value, as rank=4,16,64; of one setting.")] = [],  # noqa: B006
    gradient_checkpointing: Annotated[bool, typer.Option(help="Less memory, a third more time.")] = False,
    size_px: Annotated[
        int, typer.Option(help="Side of the square that images are brought to.", min=32, max=SIZE_MAX_PX)
    ] = SIZE_PX,
    tracker: Annotated[str, typer.Option(help="tensorboard, wandb or none.")] = "tensorboard",
    dry_run: Annotated[bool, typer.Option(help="Print what it takes, and stop.")] = False,
) -> None:
    """Train one arm, or one per value of --vary, over one frozen base. Called again, it goes on.

    --preset is one of {kanjilab.training.presets.PRESETS}. Such a training ends with the strip, the LoRA and a ComfyUI
    workflow.

    Under `torchrun --nproc_per_node 2 -m kanjilab train ...` (or `accelerate launch` on GPUs) every process takes
    its part of each batch.
    """
    from kanjilab.cli.train_command import run_job
    from kanjilab.training.job import TrainingJob
    from kanjilab.training.presets import PRESETS, arms_of, lookup

    if len(vary) > 1:
        raise typer.BadParameter(
            f"expected one setting to vary, got {', '.join(vary)}: a run for each", param_hint="--vary"
        )
    name, values = name_and_value(vary[0]) if vary else ("", "")
    varied = [setting_value(name, value) for value in values.split(",")]
    found = lookup(PRESETS, preset, "preset") if preset else None
    start = found or TrainingJob()
    given = {"base": base, "precision": precision, "checkpoints": checkpoints}
    changes = parse_settings(settings)
    arms = arms_of(start.arms, changes, name, varied)
    require_counting([*changes, name], arms)
    job = TrainingJob(
        arms=arms,
        data={"folder": str(data)},
        gradient_checkpointing=gradient_checkpointing,
        **{key: getattr(start, key) if value is None else value for key, value in given.items()},
    )
    run = run_job(job, folder, preset=found, size_px=size_px, tracker=tracker, dry_run=dry_run, say=typer.echo)
    if run is not None:
        typer.echo(f"{folder}\nNext: kanjilab strip {folder} strip.png")
