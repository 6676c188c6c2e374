"""The commands that answer a question: sweep, findings, reinvent, pairs."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from kanjilab.cli.options import JudgeName, count


def sweep(
    study: Annotated[str, typer.Option(help="{kanjilab.experiments.designs.DESIGNS}.")],
    scale: Annotated[
        str,
        typer.Option(
            help="{kanjilab.experiments.designs.BUDGETS}: seconds on a processor; learning rates; the claim alone; "
            "all variants; on pocket2, more images; rates there; the claim there; all data too."
        ),
    ] = "smoke",
    folder: Annotated[Path | None, typer.Option(help="runs/studies/<study>-<scale> by default.")] = None,
    judge: Annotated[
        JudgeName, typer.Option(help="Which judge reads the images; those that are stored are not drawn again.")
    ] = JudgeName.radicals,
    pack: Annotated[list[int], typer.Option(help="Only this pack, as an array job does; may be repeated.", min=0)] = [],  # noqa: B006
    seeds: Annotated[list[int], typer.Option(help="Training seeds in place of the scale's; may be repeated.")] = [],  # noqa: B006
    most_arms: Annotated[int, count("Arms in one training.")] = 8,
    memory_gb: Annotated[
        float | None, typer.Option(help="Memory for a training; most of what is free.", min=0.1)
    ] = None,
    keep_adapters: Annotated[bool, typer.Option(help="Keep each pack's last checkpoint.")] = False,
    retrain: Annotated[bool, typer.Option(help="Train the arms too that figures/studies keeps.")] = False,
    dry_run: Annotated[bool, typer.Option(help="Print the packs and what they cost, and stop.")] = False,
) -> None:
    """Run a study: train its arms in packs, draw, read, and compare them. Called again, it goes on.

    It also takes the arms of finished studies from their tables in figures/studies.

    Under `torchrun --nproc_per_node 2 -m kanjilab sweep ...` (or `accelerate launch`) every process takes whole packs.
    """
    from pandas import read_parquet

    from kanjilab.experiments.designs import BUDGETS, best_rates, make_study
    from kanjilab.experiments.run_study import ablate
    from kanjilab.experiments.study import spelled

    folder = folder or Path("runs/studies", f"{study}-{scale}")
    report = ablate(
        make_study(study, scale, seeds),
        folder,
        **_reading(judge),
        only=pack or None,
        most_arms=most_arms,
        memory_gb=memory_gb,
        keep_adapters=keep_adapters,
        kept=None if retrain else Path("figures/studies"),
        dry_run=dry_run,
        say=typer.echo,
    )
    if report is None:
        return
    table = folder / f"table-{report['judge']}.parquet"
    if BUDGETS[scale].phase == "pilot":
        typer.echo(best_rates(read_parquet(table)).to_string(index=False))
    for split, sentences in report["sentences"].items():
        typer.echo("\n".join([f"{spelled(split)} prompts:", *(f"  {line}" for line in sentences)]))
    for file in (table.name, f"report-{report['judge']}.json", f"figure-{report['judge']}.png"):
        typer.echo(f"{folder / file}")


def _reading(judge: JudgeName) -> dict[str, Any]:
    """The judge as `ablate` takes it; judges A, B, and the outside reader find a radical anywhere in the glyph."""
    if judge == JudgeName.radicals:
        return {}
    from kanjilab.evaluation.judges.part_judge import load_judge
    from kanjilab.evaluation.metrics import expected_part_hits
    from kanjilab.evaluation.outside_reader import OutsideJudge

    reader = OutsideJudge() if judge == JudgeName.outside else load_judge(judge.value)
    return {"judge": reader, "name": judge.files, "hits": expected_part_hits}


def findings(
    folder: Annotated[Path, typer.Argument(help="Holds the studies' folders.")] = Path("figures/studies"),
    judge: Annotated[JudgeName, typer.Option(help="Which judge's readings count.")] = JudgeName.radicals,
    training_captions: Annotated[bool, typer.Option(help="Of training captions in place of held-out ones.")] = False,
    tuned: Annotated[bool, typer.Option(help="At the rates that pilots chose, in place of one for all.")] = False,
    scale: Annotated[str, typer.Option(help="Of the studies: full, or legible (on pocket2).")] = "full",
) -> None:
    """The article's claims as far as they were studied, a sentence each, their p values corrected together."""
    from kanjilab.experiments.designs import TUNED_SUFFIX
    from kanjilab.experiments.findings import findings as sentences

    split, suffix = "train" if training_captions else "held_out", TUNED_SUFFIX if tuned else ""
    if not (lines := sentences(folder, judge.files, split, suffix, scale)):
        raise ValueError(f"{folder}: expected a folder with finished studies that test, as rank-{scale}, got none")
    typer.echo("\n".join(lines))


def reinvent(
    folder: Annotated[Path | None, typer.Option(help="Where everything goes; runs/reinvention by default.")] = None,
    base: Annotated[str, typer.Option(help="One that has never seen a kanji.")] = "pocket",
    scale: Annotated[
        str, typer.Option(help="{kanjilab.experiments.run_reinvention.SCALES}: a minute, or a quarter of an hour.")
    ] = "full",
) -> None:
    """Train without some characters, ask for them by their parts and meanings, and see whether they come back."""
    from kanjilab.experiments.run_reinvention import SCALES, report_table, run_reinvention
    from kanjilab.training.presets import lookup

    size = lookup(SCALES, scale, "scale")
    _run("reinvention", folder, scale, lambda target: report_table(run_reinvention(target, base_name=base, scale=size)))


def pairs(
    folder: Annotated[Path | None, typer.Option(help="Where everything goes; runs/slot-pairs by default.")] = None,
    base: Annotated[str, typer.Option(help="A base.")] = "pocket",
    scale: Annotated[
        str, typer.Option(help="{kanjilab.experiments.radical_pairs.SCALES}: a minute, or forty minutes of a core.")
    ] = "full",
) -> None:
    """Ask for two radicals together: of one slot, and of two different ones."""
    from kanjilab.experiments.radical_pairs import SCALES, report_text, run_pairs
    from kanjilab.training.presets import lookup

    size = lookup(SCALES, scale, "scale")
    _run("slot-pairs", folder, scale, lambda target: report_text(run_pairs(target, base_name=base, scale=size)))


def _run(name: str, folder: Path | None, scale: str, experiment: Callable[[Path], str]) -> None:
    folder = folder or Path("runs") / (name + ("" if scale == "full" else f"-{scale}"))
    typer.echo(experiment(folder))
    typer.echo(str(folder / "strip.png"))
