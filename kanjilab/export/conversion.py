"""What a run learned, in files that other programs load: LoRAs, whole pipelines, model cards."""

import json
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save, save_file
from torch import Tensor

from kanjilab.core.config import Arm
from kanjilab.core.notices import counted, notice
from kanjilab.core.run_folder import RunFolder
from kanjilab.core.storage import appearing_folder, require_new, write_bytes_atomic, write_json_atomic
from kanjilab.core.tensor_files import read_tensors
from kanjilab.export.layer_names import PEFT_PREFIX, TEXT_ENCODERS
from kanjilab.export.lora_formats import (
    PEFT_FILE,
    Lora,
    LowRank,
    comfyui_tensors,
    denoiser_part,
    diffusers_tensors,
    kohya_tensors,
    peft_tensors,
)
from kanjilab.models.adapters import MAGNITUDE, TEXT
from kanjilab.models.hub import HUB_BASES
from kanjilab.models.loading import base_folder

DIFFUSERS_FILE = "pytorch_lora_weights.safetensors"
NOT_LOADED_BY_KOHYA = ("conv_in", "conv_out", "time_embedding.linear_1", "time_embedding.linear_2")
WEIGHTS = re.compile(r"(diffusion_pytorch_)?model(-\d+-of-\d+)?\.safetensors")  # no variant such as .fp16
NOT_OF_A_PIPELINE = ("*.bin", "*.ckpt", "*.msgpack", "*.onnx*", "*.pb", ".*", "*.fp16.safetensors", "*.fp16-*")
ABOUT_DORA = (
    "This is a DoRA. diffusers draws what was trained from the form `diffusers`, for it leaves `dora_scale` out; "
    "ComfyUI from its pull request 15458 on (https://github.com/Comfy-Org/ComfyUI/pull/15458)."
)
LICENCE = (
    "CC BY-SA 4.0, for what was trained on kanjilab's own datasets (made from KANJIDIC2, EDRDG); "
    "otherwise as the data and the base model permit"
)


def to_diffusers(run: RunFolder, step: int, arm: int, path: Path | str) -> Path:
    """Writes one arm's adapter as a file that diffusers' `load_lora_weights` reads.

    The scale (alpha / r) is folded into B, since a file without alpha is read with scale 1. The
    header says what the adapter was trained on and how far.

    Args:
        run: a run folder.
        step: one of `run.checkpoints()`.
        arm: which arm of the run, from 0.
        path: the folder to write `pytorch_lora_weights.safetensors` into; made if it is not there.
    Returns:
        The file.
    Raises:
        ValueError: the run has no such arm, the arm trained the whole denoiser, the whole text encoder or a condition
            encoder, its weights are not finite, or it has layers of a text encoder that is no CLIP.
        RunError: there is no complete checkpoint of that step.
    """
    return _write_lora(run, step, arm, Path(path) / DIFFUSERS_FILE, diffusers_tensors)


def to_kohya(run: RunFolder, step: int, arm: int, path: Path | str) -> Path:
    """Writes one arm's adapter of SD 1.x by the names of kohya's scripts, with `.alpha` = r for scale 1.

    Args:
        run, step, arm: as for `to_diffusers`.
        path: the folder to write `<run>-arm-<arm>-step-<step>.safetensors` into.
    Returns:
        The file; of a DoRA for kohya's scripts with LyCORIS, since diffusers leaves its `dora_scale` out.
    Raises:
        ValueError, RunError: as `to_diffusers`; or an MMDiT, for which these names do not fit.
    """
    file = _write_lora(run, step, arm, Path(path) / lora_name(run, step, arm), kohya_tensors)
    if dropped := [name for name in NOT_LOADED_BY_KOHYA if f"unet.{name}" in read_arm(run, step, arm).layers]:
        notice(
            f"{file}: kohya's own scripts pass over {counted(len(dropped), 'layer')} of it ({', '.join(dropped)}) and "
            "draw otherwise; diffusers and ComfyUI read them all"
        )
    return file


def to_comfyui(run: RunFolder, step: int, arm: int, path: Path | str) -> Path:
    """Writes one arm's adapter by the names that ComfyUI loads: kohya's for SD 1.x, diffusers' for SD 3.

    A DoRA is drawn as it was trained by a ComfyUI with its pull request 15458, which was open in August 2026. Without
    it ComfyUI divides each row of W + B · A by the length of W's, so that a row is as much too long as it has grown.

    Args:
        run, step, arm: as for `to_diffusers`.
        path: the folder to write `<run>-arm-<arm>-step-<step>.safetensors` into, as `ComfyUI/models/loras`.
    Returns:
        The file.
    Raises:
        ValueError, RunError: as `to_diffusers`; or a DoRA on all layers of an MMDiT, which ComfyUI applies wrongly.
    """
    return _write_lora(run, step, arm, Path(path) / lora_name(run, step, arm), comfyui_tensors)


def to_peft(run: RunFolder, step: int, arm: int, path: Path | str) -> Path:
    """Writes one arm's adapter as the folder that `PeftModel.from_pretrained` reads, alpha in its config.

    Args:
        run, step, arm: as for `to_diffusers`.
        path: the folder to write `adapter_model.safetensors` and `adapter_config.json` into; what was trained of the
            text encoder comes into such a folder of its own, `text_encoder`, in it.
    Returns:
        The denoiser's file.
    Raises:
        ValueError, RunError: as `to_diffusers`, but any text encoder will do.
    """
    lora, path = read_arm(run, step, arm), Path(path)
    for name in (PEFT_FILE, "adapter_config.json"):  # of an arm that was written here before
        (path / "text_encoder" / name).unlink(missing_ok=True)
    config = json.loads(run.sound_file(step, f"arm_{arm}/adapter_config.json").read_bytes())
    for part in lora.parts:
        folder, layers = path / part if part in TEXT_ENCODERS else path, lora.of_part(part)
        folder.mkdir(parents=True, exist_ok=True)
        tensors = peft_tensors({f"{PEFT_PREFIX}{layer}": low for layer, low in layers.items()})
        write_bytes_atomic(folder / PEFT_FILE, save(tensors, export_facts(run, step, arm, folded=False)))
        write_json_atomic(folder / "adapter_config.json", config | {"target_modules": sorted(layers)})
    return path / PEFT_FILE


LORA_FORMS: dict[str, Callable[[RunFolder, int, int, Path | str], Path]] = {
    "diffusers": to_diffusers,
    "kohya": to_kohya,
    "comfyui": to_comfyui,
    "peft": to_peft,
}


def lora_name(run: RunFolder, step: int, arm: int) -> str:
    """A file name of run, arm and step: `ranks-arm-2-step-004000.safetensors`."""
    plain = re.sub(r"[^\w.-]+", "-", run.name).strip("-.") or "run"
    return f"{plain}-arm-{arm}-step-{step:06d}.safetensors"


def read_arm(run: RunFolder, step: int, arm: int) -> Lora:
    """One arm's adapter as it was trained.

    Args:
        run, step, arm: as for `to_diffusers`.
    Raises:
        ValueError, RunError: as `to_diffusers`.
    """
    settings = run.arm(arm)
    if settings.targets == "full":
        raise ValueError(f"arm {arm} of {run.path} trained the whole denoiser: it has no LoRA to write")
    if settings.text_encoder == "full":
        raise ValueError(
            f"arm {arm} of {run.path} trained the whole text encoder, of which a LoRA has no part; "
            "write a pipeline (kanjilab export --format pipeline)"
        )
    return _lora_of(_stored_tensors(run, step, arm), settings.scale)


def _lora_of(stored: Mapping[str, Tensor], scale: float) -> Lora:
    """The layers of low rank among an arm's tensors."""
    downs = {
        name.removeprefix(PEFT_PREFIX).removesuffix(".lora_A.weight"): value
        for name, value in stored.items()
        if name.endswith(".lora_A.weight")
    }
    part = denoiser_part(downs)
    layers = {}
    for layer, down in downs.items():
        up, magnitude = stored[f"{PEFT_PREFIX}{layer}.lora_B.weight"], stored.get(f"{PEFT_PREFIX}{layer}.{MAGNITUDE}")
        lengths = None if magnitude is None else magnitude.flatten()
        name = layer if layer.startswith(TEXT) else f"{part}.{layer}"
        layers[name] = LowRank(down, up.flatten(1), scale, lengths)
    return Lora(layers, {})


def _write_lora(run: RunFolder, step: int, arm: int, file: Path, form: Callable[[Lora], dict[str, Tensor]]) -> Path:
    tensors = form(read_arm(run, step, arm))
    file.parent.mkdir(parents=True, exist_ok=True)
    return write_bytes_atomic(file, save(tensors, export_facts(run, step, arm)))


def _stored_tensors(run: RunFolder, step: int, arm: int) -> dict[str, Tensor]:
    """An arm's tensors; refused if one is not finite."""
    if run.arm(arm).condition_encoder != "frozen":
        raise ValueError(
            f"arm {arm} of {run.path} trained the condition encoder too, of which no other tool has a part"
        )
    stored = read_tensors(run.sound_file(step, f"arm_{arm}/{PEFT_FILE}"))
    for name, value in stored.items():
        if not torch.isfinite(value).all():
            raise ValueError(f"arm {arm} of {run.path} at step {step}: {name} is not finite; take an earlier step")
    return stored


def export_facts(run: RunFolder, step: int, arm: int, folded: bool = True) -> dict[str, str]:
    """Where an export comes from, text by text, as a file of safetensors has it.

    Args:
        run, step, arm: as for `to_diffusers`.
        folded: whether a LoRA's scale is in its weights.
    """
    facts, settings = run.settings, run.arm(arm)
    return {
        "format": "pt",
        "base": facts["base"],
        "base_identity": facts["base_identity"],
        "data": facts["data"],
        "targets": settings.targets,
        "rank": str(settings.rank),
        "scale": f"{settings.scale:g}, " + ("folded into lora_B" if folded else "to be applied to lora_B lora_A"),
        "step": str(step),
        "images_seen": str(run.read_state(step)["arms"][arm]["images_seen"]),
        "settings": json.dumps(settings.to_json()),
        "kanjilab": facts["versions"]["kanjilab"],
        "licence": LICENCE,
    }


def to_pipeline(run: RunFolder, step: int, arm: int, path: Path | str, base: Path | str | None = None) -> Path:
    """Writes the base's whole pipeline folder with what one arm learned in its weights.

    Of a LoRA the updates are added to the weights; the weights of a part that was trained whole are replaced. Every
    tensor keeps the precision it has in the base, and one file of weights at a time is in memory.

    Args:
        run, step, arm: as for `to_diffusers`.
        path: the folder to write; must not exist.
        base: a pipeline folder in place of the run's own base (its `base` setting).
    Returns:
        The folder.
    Raises:
        RunError: as `to_diffusers`.
        ValueError: what was trained is not finite, or a condition encoder, or the base has no weight for a layer of it.
        FileExistsError: the folder exists.
        FileNotFoundError: the base is no pipeline folder with safetensors.
    """
    path, source = Path(path), base_folder(str(base or run.settings["base"]))
    require_new(path)
    changes = _changes(run, step, arm)
    with appearing_folder(path) as temporary:
        weights = {part: _weights(source / part) for part in changes}
        shutil.copytree(source, temporary, dirs_exist_ok=True, ignore=_left_out([source / part for part in changes]))
        for part, files in weights.items():
            done = {name for file in files for name in _rewrite(file, temporary / part / file.name, changes[part])}
            if missing := sorted(changes[part].keys() - done):
                raise ValueError(f"{source} has no weight {missing[0]} ({len(missing)} in all): it is another base")
        (temporary / "kanjilab.json").write_text(json.dumps(export_facts(run, step, arm), indent=2))
    return path


def _weights(folder: Path) -> list[Path]:
    files = [file for file in sorted(folder.glob("*.safetensors")) if WEIGHTS.fullmatch(file.name)]
    if not files:
        raise FileNotFoundError(f"{folder}: expected weights as safetensors, got none")
    return files


def _left_out(parts: Sequence[Path]) -> Callable[[str, list[str]], set[str]]:
    """Which files of a pipeline are not copied: pickles and variants, and the weights that are written again."""
    patterns = shutil.ignore_patterns(*NOT_OF_A_PIPELINE)

    def chosen(folder: str, names: list[str]) -> set[str]:
        weights = {name for name in names if Path(folder) in parts and name.endswith(".safetensors")}
        return patterns(folder, names) | weights

    return chosen


def _changes(run: RunFolder, step: int, arm: int) -> dict[str, dict[str, Callable[[Tensor], Tensor]]]:
    """By the part that was trained, what becomes of its tensors, by name."""
    stored = _stored_tensors(run, step, arm)
    lora, whole = _lora_of(stored, run.arm(arm).scale), [name for name in stored if not name.startswith(PEFT_PREFIX)]
    changes: dict[str, dict[str, Callable[[Tensor], Tensor]]] = {
        part: {f"{name}.weight": low.added_to for name, low in lora.of_part(part).items()} for part in lora.parts
    }
    for name in whole:
        part = TEXT.removesuffix(".") if name.startswith(TEXT) else denoiser_part(stored)
        changes.setdefault(part, {})[name.removeprefix(TEXT)] = _replacement(stored[name])
    return changes


def _replacement(value: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda weight: value.view(weight.shape).to(weight.dtype)


def _rewrite(source: Path, target: Path, changes: Mapping[str, Callable[[Tensor], Tensor]]) -> set[str]:
    """Copies a file of weights with some of them changed; their names."""
    with safe_open(source, "pt") as file:
        # CLIP's files still have a level of names that newer transformers leave out.
        names, metadata = {key: key.removeprefix("text_model.") for key in file.keys()}, file.metadata()
        tensors = {
            key: changes.get(name, lambda weight: weight)(file.get_tensor(key)).contiguous()
            for key, name in names.items()
        }
    save_file(tensors, target, metadata)
    return changes.keys() & set(names.values())


def model_card(run: RunFolder, step: int, arm: int, *, file: str, strip: str | None = None) -> str:
    """The README.md of a published adapter or pipeline, with the front matter that the Hub reads.

    Args:
        run, step, arm: as for `to_diffusers`.
        file: name of the weights beside the card, or '' for a whole pipeline.
        strip: name of a picture beside the card.
    Returns:
        Markdown; what comes from the run is shown as text, never as markup.
    """
    header, settings = export_facts(run, step, arm), run.arm(arm)
    adapter = f"a {'DoRA' if settings.dora else 'LoRA'} of rank {settings.rank}"
    whole = [part.replace("_", " ") for part, how in settings.parts.items() if how == "full"]
    low_rank = [adapter] if "lora" in settings.parts.values() else []
    trained = " and ".join(low_rank + [f"every weight of the {part}" for part in whole])
    rows = {
        "base": header["base"],
        "data (hash)": header["data"],
        "training images": f"{run.settings['training_images']:,}",
        "images seen": f"{int(header['images_seen']):,}",
        "optimizer steps": f"{step:,}",
        "precision of the base": run.settings["precision"],
        **{name: _value(v) for name in _told(settings) if (v := getattr(settings, name)) is not None},
        "kanjilab": header["kanjilab"],
    }
    lines = [
        *_front_matter(run, settings),
        f"# {_plain_text(run.name)}",
        "",
        f"Draws kanji from English prompts: {trained}, trained with kanjilab on `{_code(header['base'])}`.",
        "",
        *([f"![Prompts in rows, checkpoints in columns]({strip})", ""] if strip else []),
        *_usage(run, arm, file),
        *([ABOUT_DORA, ""] if settings.dora and file else []),
        "## Settings",
        "",
        "| setting | value |",
        "|---|---|",
        *(f"| {name} | `{_code(value)}` |" for name, value in rows.items()),
        "",
        "## Licence",
        "",
        LICENCE + ".",
        "",
    ]
    return "\n".join(lines)


def _told(settings: Arm) -> list[str]:
    """Names of the settings that a card lists: those of old runs, and of newer ones those that are not as before."""
    stored = settings.to_json().keys() | ({"text_encoder"} if settings.text_encoder != "frozen" else set())
    return [field.name for field in fields(settings) if field.name in stored]


def _front_matter(run: RunFolder, settings: Arm) -> list[str]:
    """YAML; texts in it are JSON strings, which YAML reads as they are."""
    base = run.settings["base"]
    hub = HUB_BASES[base][0] if base in HUB_BASES else base
    known = base in HUB_BASES or (re.fullmatch(r"[\w.-]+/[\w.-]+", base) and not Path(base).exists())
    tags = ["text-to-image", "diffusers", "kanji", "lora" if "lora" in settings.parts.values() else "full-finetune"]
    return [
        "---",
        "license: cc-by-sa-4.0",
        "pipeline_tag: text-to-image",
        "library_name: diffusers",
        *([f"base_model: {json.dumps(hub)}"] if known else []),
        "tags:",
        *(f"- {tag}" for tag in tags),
        "---",
        "",
    ]


def _usage(run: RunFolder, arm: int, file: str) -> list[str]:
    base = run.settings["base"]
    hub = HUB_BASES[base][0] if base in HUB_BASES else base
    calls = ["from diffusers import DiffusionPipeline", ""]
    if file == PEFT_FILE:
        folders = {"transformer" if run.settings.get("family") == "mmdit" else "unet": "<this folder>"}
        if run.arm(arm).text_encoder == "lora":
            folders["text_encoder"] = "<this folder>/text_encoder"
        calls[0:1] = ["from diffusers import DiffusionPipeline", "from peft import PeftModel"]
        calls += [f"pipeline = DiffusionPipeline.from_pretrained({hub!r})"]
        calls += [
            f'pipeline.{part} = PeftModel.from_pretrained(pipeline.{part}, "{folder}")'
            for part, folder in folders.items()
        ]
    elif file:
        calls += [
            f"pipeline = DiffusionPipeline.from_pretrained({hub!r})",
            f'pipeline.load_lora_weights("<this folder>", weight_name={file!r})',
        ]
    else:
        calls += ['pipeline = DiffusionPipeline.from_pretrained("<this folder>")']
    calls += ['pipeline("queen", height=128, width=128).images[0].save("queen.png")']
    return ["```python", *(call.replace("`", "'") for call in calls), "```", ""]


def _value(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _plain_text(text: str) -> str:
    """Without what Markdown or HTML would take for markup."""
    return re.sub(r"([\\`*_{}\[\]<>()#!|&~])", r"\\\1", _code(text))


def _code(text: str) -> str:
    """Fit for a code span in a table: one line, no backtick, no bar."""
    return " ".join(text.replace("`", "'").replace("|", "¦").split())


def write_card(folder: Path, run: RunFolder, step: int, arm: int, *, file: str = "", strip: Path | None = None) -> Path:
    """Writes README.md into a folder, and a strip beside it.

    Args:
        folder: of the exported files.
        run, step, arm: as for `to_diffusers`.
        file: as for `model_card`.
        strip: a PNG to copy.
    Returns:
        The card.
    """
    if strip is not None:
        write_bytes_atomic(folder / "strip.png", strip.read_bytes())
    text = model_card(run, step, arm, file=file, strip="strip.png" if strip else None)
    return write_bytes_atomic(folder / "README.md", text.encode())


def require_own_card(folder: Path) -> None:
    """Refuses a README.md that is no card of kanjilab, which a card would replace.

    Raises:
        FileExistsError: there is one.
    """
    card = folder / "README.md"
    if card.is_file() and b"trained with kanjilab" not in card.read_bytes():
        raise FileExistsError(f"{card} is not a card of kanjilab and would be replaced: expected another folder")
