"""The commands that look at a run: strip, score, criteria, diagnose, export."""

import json
from pathlib import Path
from typing import Annotated

import typer

from kanjilab.cli.options import ArmNumber, JudgeName, Run, base_of, count, open_training, require_effect


def strip(
    context: typer.Context,
    folder: Run,
    path: Annotated[Path, typer.Argument(help="PNG to write; a JSON goes beside it.")],
    prompts: Annotated[str, typer.Option(help="A set: {kanjilab.data.prompts.PROMPT_SETS}.")] = "demo",
    prompt: Annotated[list[str], typer.Option(help="One prompt, in place of a set; may be repeated.")] = [],  # noqa: B006
    arm: ArmNumber = 0,
    seeds: Annotated[int, count("The first in every column, the others at the end.")] = 4,
    steps: Annotated[int, count("Denoising steps.")] = 15,
    guidance: Annotated[float, typer.Option(help="Classifier-free guidance scale.")] = 5.0,
    sampler: Annotated[
        str | None, typer.Option(help="ddim, dpm-solver++ (a U-Net's default) or flow-euler (SD 3's).")
    ] = None,
    negative_prompt: Annotated[str, typer.Option(help="What a guidance above 1 leads away from.")] = "",
    prefix: Annotated[str, typer.Option(help="Put before every prompt.")] = "",
) -> None:
    """Draw every prompt at every checkpoint of a run, with the same noise."""
    from kanjilab.data.prompts import PROMPT_SETS
    from kanjilab.models.sampling import Sampling, fitting
    from kanjilab.training.history import history_strip, sample_history
    from kanjilab.training.presets import lookup
    from kanjilab.viz.strip import save_strip

    if path.suffix != ".png":  # before minutes of drawing
        raise ValueError(f"expected a path ending in .png, got {str(path)!r}")
    require_effect(context, not prompt, "without --prompt", "prompts")
    require_effect(context, guidance > 1, "with --guidance above 1", "negative_prompt")
    wanted = prompt or lookup(PROMPT_SETS, prompts, "prompts")
    run = open_training(folder)
    base = base_of(run)
    sampling = Sampling(sampler or "dpm-solver++", steps, guidance, negative_prompt, prefix)
    sampling = sampling if sampler else fitting(sampling, base)
    path.parent.mkdir(parents=True, exist_ok=True)
    images, facts = sample_history(base, run, wanted, list(range(seeds)), sampling, arm=arm)
    save_strip(history_strip(images, facts), path)
    typer.echo(str(path))


def score(
    folder: Run,
    data: Annotated[Path, typer.Argument(help="The image folder it was trained on.")],
    captions_per_radical: Annotated[int, count("In each of the two prompt sets.")] = 6,
    arm: ArmNumber = 0,
) -> None:
    """How often the expected radical is found, before and after training."""
    from kanjilab.data.image_folder import open_dataset
    from kanjilab.experiments.demo import score_run
    from kanjilab.models.sampling import fitting
    from kanjilab.training.presets import DEMO_SAMPLING

    run = open_training(folder)
    base = base_of(run)
    scores = score_run(base, run, open_dataset(data), captions_per_radical, fitting(DEMO_SAMPLING, base), arm)
    typer.echo(scores.to_string(index=False, float_format="{:.3f}".format))


def criteria(
    folder: Run,
    data: Annotated[Path, typer.Argument(help="The image folder it was trained on.")],
    judge: Annotated[JudgeName, typer.Option(help="A or B.")] = JudgeName.B,
    captions_per_radical: Annotated[int, count("Captions of held-out characters, for each radical.")] = 3,
    images: Annotated[int, count("Drawn of each caption.")] = 4,
    arm: ArmNumber = 0,
    shuffled: Annotated[Path | None, typer.Option(help="The run of shuffled captions, as a control.")] = None,
) -> None:
    """Two parts, distinct, novel, well-formed, and what was asked for? The five criteria beside their controls."""
    from kanjilab.core.storage import write_json_atomic
    from kanjilab.data.image_folder import open_dataset
    from kanjilab.evaluation.controls import criteria_text, score_criteria
    from kanjilab.evaluation.judges.part_judge import load_judge
    from kanjilab.models.sampling import fitting
    from kanjilab.training.presets import DEMO_SAMPLING

    if judge not in (JudgeName.A, JudgeName.B):
        raise typer.BadParameter("expected A or B: no other judge says how a glyph is made", param_hint="--judge")
    run, other = open_training(folder), open_training(shuffled) if shuffled else None
    base = base_of(run)
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
    contents = {"run": run.settings["hash"], "arm": arm, "shuffled": other.settings["hash"] if other else None}
    contents |= {"captions_per_radical": captions_per_radical, "images": images, "judge": judge.value}
    scores = {name: json.loads(table.loc[name].to_json(orient="index")) for name in table.index.unique("control")}
    name = f"criteria-{judge.value.lower()}" + (f"-arm-{arm}" if arm else "")
    path = write_json_atomic(folder / f"{name}.json", contents | {"scores": scores})
    typer.echo(criteria_text(table))
    typer.echo(str(path))


def diagnose(
    folder: Annotated[Path, typer.Argument(help="A run, finished or not.")],
    path: Annotated[Path, typer.Argument(help="PNG to write; a JSON goes beside it.")],
    arm: ArmNumber = 0,
) -> None:
    """Did a training explode? Rate, gradient norm, update and samples step by step; what happened, what to try."""
    from kanjilab.training import diagnosis
    from kanjilab.viz.charts import save_figure

    run = open_training(folder)
    found = diagnosis.diagnose(run, arm)
    happened, advice = diagnosis.explain(found)
    facts = {"run": run.settings["hash"], "arm": arm, "happened": happened, "advice": advice}
    save_figure(diagnosis.draw_diagnosis(found, diagnosis.stored_samples(run, arm)), path, facts)
    typer.echo("\n".join([*happened, *(f"Try: {line}" for line in advice), str(path)]))


def export(
    context: typer.Context,
    folder: Annotated[Path, typer.Argument(help="A run; of onnx also a base: writer, pocket2, a pipeline's folder.")],
    path: Annotated[Path, typer.Argument(help="Folder to write into.")],
    step: Annotated[int | None, typer.Option(help="A checkpoint; the last by default.")] = None,
    arm: ArmNumber = 0,
    form: Annotated[
        str,
        typer.Option("--format", help="diffusers, comfyui (with a workflow), kohya, peft; all merged: pipeline, onnx."),
    ] = "diffusers",
    weights: Annotated[str, typer.Option(help="Of onnx: {kanjilab.export.onnx_folder.ONNX_WEIGHTS}.")] = "fp16",
    prompt: Annotated[str, typer.Option(help="Of the ComfyUI workflow.")] = "mountains",
    card: Annotated[bool, typer.Option(help="Write a model card, README.md.")] = False,
    strip: Annotated[Path | None, typer.Option(help="A PNG for the card.")] = None,
    push: Annotated[str, typer.Option(help="Put the folder onto the Hugging Face Hub, as owner/name.")] = "",
    public: Annotated[bool, typer.Option(help="With --push: a new repository is for all to see.")] = False,
) -> None:
    """Write a checkpoint as a file that diffusers, ComfyUI, kohya's scripts or PEFT load, or as a whole pipeline."""
    from kanjilab.export.conversion import ABOUT_DORA
    from kanjilab.export.hub_upload import push_to_hub, require_repository
    from kanjilab.export.onnx_folder import base_to_onnx
    from kanjilab.export.release import Handover, hand_over
    from kanjilab.models.hub import HUB_BASES
    from kanjilab.models.loading import PACKAGED, load_base

    if push:  # before anything is written
        require_repository(push)
    handover = Handover(form, card=card or bool(push or strip), strip=strip, prompt=prompt, weights=weights)
    is_base = str(folder) in (*PACKAGED, *HUB_BASES) or (folder / "model_index.json").is_file()
    require_effect(context, form == "onnx", "with --format onnx", "weights")
    require_effect(context, form == "comfyui", "with --format comfyui", "prompt")
    require_effect(context, bool(push), "with --push", "public")
    require_effect(context, not is_base, "for a run", "step", "arm")
    if form == "onnx" and is_base:
        typer.echo(base_to_onnx(load_base(str(folder)), path, weights))
        return
    run = open_training(folder)
    at = run.checkpoints()[-1] if step is None else step
    earlier = _times(path) if push else {}
    written = hand_over(run, at, arm, path, handover)
    typer.echo("\n".join(map(str, written)))
    if push:
        ours = [file for file, time in _times(path).items() if earlier.get(file) != time]
        typer.echo(push_to_hub(path, push, ours, private=not public))
    if form in ("comfyui", "kohya") and run.arm(arm).dora:
        typer.echo(ABOUT_DORA)


def _times(folder: Path) -> dict[Path, int]:
    """The files below a folder, each with the time when it was written, in ns."""
    return {path: path.stat().st_mtime_ns for path in sorted(folder.rglob("*")) if path.is_file()}
