"""Load a base model by name, whatever its architecture."""

import hashlib
import importlib.util
import json
import os
import shutil
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from kanjilab.core.config import DEFAULT_BASE, PRECISIONS, QUANTISED
from kanjilab.core.manifest import keep_sound
from kanjilab.core.storage import PACKAGE_WEIGHTS, appearing_folder, cache_folder, sha256_file
from kanjilab.models.cpu_layers import computing_precision, pack_layers
from kanjilab.models.diffusion import FlowDiffusion, LatentDiffusion, UNetDiffusion, with_condition_encoder
from kanjilab.models.hub import (
    UNUSED_PARTS,
    family_of,
    folder_digest,
    is_of_t5,
    load_whole,
    model_folder,
    part_class,
    quiet_diffusers,
)
from kanjilab.models.minilm import TOKENS, minilm_folder
from kanjilab.models.sentence_pieces import load_sentence_pieces, text_length
from kanjilab.models.skeleton_encoder import check_fits, load_encoder
from kanjilab.models.text_encoders import OneEncoder, ThreeEncoders

PACKAGED = (DEFAULT_BASE, "pocket", "writer", "calligraphy", "pocket-ja")
BUILT_ON = {"pocket-ja": DEFAULT_BASE}  # another one's denoiser
# What a base has of its own beside its denoiser.
OWN_FILES = {
    "pocket-ja": ("text_encoder/model.safetensors", "tokenizer/tokenizer.json"),
    "calligraphy": ("condition_encoder/model.safetensors", "condition_encoder/config.json"),
}
BUILDERS = {"writer": "writer", "calligraphy": "calligraphy", "pocket-ja": "japanese"}  # modules of kanjilab.training
# What diffusers and transformers raise of a word that they do not know, or of another type than they expect.
CONFIGURATION_FAULTS = (AttributeError, IndexError, KeyError, NotImplementedError, TypeError, ZeroDivisionError)
WEIGHTS_FILE = "diffusion_pytorch_model.safetensors"
# Of 8-bit and 4-bit weights, what is computed with them.
DTYPES = {"fp32": torch.float32} | dict.fromkeys(("bf16", *QUANTISED), torch.bfloat16)


def usual_device() -> torch.device:
    """This process's CUDA device, else the processor: Apple's GPUs were not tried."""
    if torch.cuda.is_available():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    return torch.device("cpu")


def load_base(
    name: str | Path = DEFAULT_BASE,
    precision: str = "fp32",
    device: str | torch.device = "cpu",
    *,
    gradient_checkpointing: bool = False,
) -> LatentDiffusion:
    """Loads a base by name, with its encoder of skeletons if it has one.

    Args:
        name: `pocket2`; `pocket`, its predecessor, which the stored studies trained on; `pocket-ja`, which reads
            Japanese; `writer`, `calligraphy`, `sd14`, `sd15`, `sd35-medium`, `sd35-large`, a Hub id, a folder in
            diffusers' format, or a single `.safetensors` file.
        precision: of the frozen denoiser, `fp32` or `bf16`, or `8bit` or `4bit` weights that bf16
            computes with. The autoencoder stays in fp32, and so does a U-Net's text encoder; the three
            text encoders of SD 3 follow the denoiser. On a processor without instructions for bf16 the denoiser's
            weights are rounded to bf16 and computed with in fp32, which is far faster there.
        device: where the parts go.
        gradient_checkpointing: compute activations again in the backward pass instead of keeping them:
            less memory, about a third more time, the same gradients.
    Raises:
        ValueError: an unknown precision, one that does not fit the device, pickled weights, weights that are damaged,
            another base's or not all there, configurations that cannot be used, or a model that is neither a U-Net
            latent-diffusion pipeline nor Stable Diffusion 3.
        FileNotFoundError: a model that is not there.
        PermissionError: a gated model whose terms are not accepted.
    """
    if precision not in PRECISIONS:
        raise ValueError(f"precision must be one of {PRECISIONS}, got {precision!r}")
    device = torch.device(device)
    _require_quantisation(precision, device)
    folder = base_folder(str(name))
    load = {"unet": _load_unet, "mmdit": _load_flow}[family_of(str(name), folder)]
    try:
        base = load(str(name), folder, precision, device)
    except CONFIGURATION_FAULTS as error:
        said = f"{type(error).__name__}: {error!s:.200}"
        raise ValueError(
            f"{folder}: expected configurations of a base, got some that cannot be used ({said})"
        ) from error
    if (encoder := load_encoder(folder)) is not None:
        check_fits(base, encoder, folder)
        base = with_condition_encoder(base, encoder)
    if gradient_checkpointing:
        base.denoiser.enable_gradient_checkpointing()  # type: ignore[operator]
    return base


def base_folder(name: str) -> Path:
    """The folder of a base in diffusers' format, wherever it comes from.

    Raises:
        FileNotFoundError, PermissionError, ValueError: as `load_base`.
    """
    return packaged_folder(name) if name in PACKAGED else model_folder(name)


def _require_quantisation(precision: str, device: torch.device) -> None:
    if precision not in QUANTISED:
        return
    installed = importlib.util.find_spec("bitsandbytes") is not None
    if device.type != "cuda" or not installed:
        raise ValueError(
            f"precision {precision!r} needs a CUDA device and the package bitsandbytes; got device {device.type!r}, "
            f"bitsandbytes {'installed' if installed else 'not installed'}; fp32 and bf16 work everywhere"
        )


def _load_unet(name: str, folder: Path, precision: str, device: torch.device) -> UNetDiffusion:
    import diffusers
    import transformers
    from diffusers.models.attention_processor import AttnProcessor

    with quiet_diffusers():
        sources = {"text_encoder": transformers, "unet": diffusers, "vae": diffusers}
        parts = {part: load_whole(part_class(folder, part, source), folder / part) for part, source in sources.items()}
        if is_of_t5(folder, "tokenizer"):
            parts["tokenizer"] = load_sentence_pieces(folder / "tokenizer", text_length(folder))
        pipeline: Any = diffusers.StableDiffusionPipeline.from_pretrained(folder, **UNUSED_PARTS, **parts)
    stored = {part: getattr(pipeline, part).state_dict() for part in ("unet", "vae", "text_encoder")}
    with ThreadPoolExecutor(max_workers=1) as beside:  # hashing takes as long as all the rest
        identity = beside.submit(_identity, stored, dict(pipeline.scheduler.config))
        denoiser = pipeline.unet
        if precision in QUANTISED:
            with quiet_diffusers():
                denoiser = type(denoiser).from_pretrained(folder / "unet", **_denoiser_options(precision, device))
        denoiser = _frozen(denoiser, precision, device)
        if device.type == "cpu" and denoiser.dtype == torch.bfloat16:
            # torch's fused attention takes two to four times as long there, backwards above all.
            denoiser.set_attn_processor(AttnProcessor())
            pack_layers(denoiser)
    return UNetDiffusion(
        name=name,
        identity=identity.result(),
        denoiser=denoiser,
        vae=pipeline.vae.to(device).requires_grad_(False).eval(),
        text=OneEncoder(pipeline.tokenizer, pipeline.text_encoder.to(device).requires_grad_(False).eval()),
        scheduler_config=dict(pipeline.scheduler.config),
        precision=precision,
        device=device,
    )


def _load_flow(name: str, folder: Path, precision: str, device: torch.device) -> FlowDiffusion:
    """Part by part, the denoiser straight in its precision; the text encoders wait until they are needed."""
    from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel

    parts = ["transformer", "vae", "text_encoder", "text_encoder_2", "text_encoder_3", "scheduler"]
    with quiet_diffusers():
        options = _denoiser_options(precision, device)
        if precision in QUANTISED:  # of which the names of the weights are others
            denoiser: Any = SD3Transformer2DModel.from_pretrained(
                folder / "transformer", use_safetensors=True, **options
            )
        else:
            denoiser = load_whole(SD3Transformer2DModel, folder / "transformer", **options)
        vae = load_whole(AutoencoderKL, folder / "vae")
        scheduler: Any = FlowMatchEulerDiscreteScheduler.from_pretrained(folder / "scheduler")
        denoiser = _frozen(denoiser, precision, device)
    return FlowDiffusion(
        name=name,
        identity=folder_digest(folder, parts),
        denoiser=denoiser,
        vae=vae.to(device).requires_grad_(False).eval(),
        text=ThreeEncoders(folder, denoiser.config.joint_attention_dim, device, DTYPES[precision]),
        scheduler_config=dict(scheduler.config),
        precision=precision,
        device=device,
    )


def _denoiser_options(precision: str, device: torch.device) -> dict[str, Any]:
    options: dict[str, Any] = {"dtype": DTYPES[precision]}
    if precision in QUANTISED:
        from diffusers import BitsAndBytesConfig

        config = BitsAndBytesConfig(
            load_in_8bit=precision == "8bit",
            load_in_4bit=precision == "4bit",
            bnb_4bit_quant_type="nf4",
            bnb_4bit_compute_dtype=torch.bfloat16,
        )
        options |= {"quantization_config": config, "device_map": {"": device}}
    return options


def _frozen(denoiser: nn.Module, precision: str, device: torch.device) -> Any:
    if precision not in QUANTISED:  # those are where they belong, and cannot be moved
        with quiet_diffusers():
            denoiser = denoiser.to(device, DTYPES[precision]).to(DTYPES[computing_precision(precision, device)])
    return denoiser.requires_grad_(False).eval()


def _identity(stored: dict[str, dict[str, Tensor]], schedule: dict[str, Any]) -> str:
    """Hash of every weight's bits, as stored and not as used, and of the noise schedule.

    Args:
        stored: weights by part and name; used up, so that those which are hashed can go.
        schedule: the scheduler's configuration.
    """
    digest = hashlib.sha256()
    for part, weights in stored.items():
        for name in sorted(weights):
            value = weights.pop(name)
            bits: Any = value.contiguous().view(torch.uint8).numpy()
            digest.update(f"{part}.{name}{tuple(value.shape)}".encode())
            digest.update(bits)
    digest.update(json.dumps(schedule, sort_keys=True, default=str).encode())
    return digest.hexdigest()[:16]


def packaged_folder(name: str = DEFAULT_BASE) -> Path:
    """A base that the package carries, as a complete `StableDiffusionPipeline` folder.

    The package carries pocket's denoiser, autoencoder and scheduler, and the denoisers and schedulers of the others,
    which have pocket's autoencoder. MiniLM's text encoder and tokenizer are put beside them once, in the
    user's cache, except for `pocket-ja`, which has pocket2's denoiser and a text encoder of its own.

    Args:
        name: one of `PACKAGED`.
    Raises:
        FileNotFoundError: the package's weights, or MiniLM, are missing.
    """
    sources = [PACKAGE_WEIGHTS / part for part in dict.fromkeys(("pocket", BUILT_ON.get(name, "pocket"), name))]
    drawn = [source / "unet" / WEIGHTS_FILE for source in sources if source.name not in BUILT_ON]
    own = [PACKAGE_WEIGHTS / name / file for file in OWN_FILES.get(name, ())]
    weights = [*drawn, sources[0] / "vae" / WEIGHTS_FILE, *own]
    if missing := next((path for path in weights if not path.is_file()), None):
        builds = f"; kanjilab.training.{BUILDERS[name]} builds them" if name in BUILDERS else ""
        raise FileNotFoundError(f"{missing}: the weights of {name} are missing from this installation{builds}")
    digests = "".join(sha256_file(path) for path in weights[len(drawn) - 1 :])
    target = cache_folder() / f"{name}-{hashlib.sha256((digests + str(TOKENS)).encode()).hexdigest()[:16]}"
    keep_sound(target, lambda: assemble_pipeline(sources, minilm_folder(), target))
    return target


def assemble_pipeline(sources: Sequence[Path], text_model: Path, target: Path) -> None:
    """Writes a whole pipeline folder from a denoiser with autoencoder and a folder of MiniLM.

    Args:
        sources: they hold model_index.json, unet/, vae/, scheduler/; of what several have, the last one's counts.
        text_model: holds config.json, model.safetensors and the tokenizer's files; for sources without an encoder.
        target: appears whole or not at all.
    """
    with appearing_folder(target) as temporary:
        for source in sources:
            shutil.copytree(source, temporary, dirs_exist_ok=True)
        if not (temporary / "text_encoder").exists():
            _add_minilm(text_model, temporary)


def _add_minilm(text_model: Path, pipeline: Path) -> None:
    encoder, tokenizer = pipeline / "text_encoder", pipeline / "tokenizer"
    encoder.mkdir()
    tokenizer.mkdir()
    shutil.copyfile(text_model / "model.safetensors", encoder / "model.safetensors")
    config = json.loads((text_model / "config.json").read_text())
    # Padding is hidden from the text encoder, in kanjilab and in diffusers' own pipeline alike.
    (encoder / "config.json").write_text(json.dumps(config | {"use_attention_mask": True}, indent=2))
    for name in ("tokenizer.json", "vocab.txt", "special_tokens_map.json"):
        shutil.copyfile(text_model / name, tokenizer / name)
    settings = json.loads((text_model / "tokenizer_config.json").read_text())
    (tokenizer / "tokenizer_config.json").write_text(json.dumps(settings | {"model_max_length": TOKENS}, indent=2))
