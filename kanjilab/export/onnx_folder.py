"""A base, or what a run made of one, as ONNX: to draw in a browser, on a phone or in any program, without torch.

The folder holds `text_encoder.onnx`, `denoiser.onnx`, `decoder.onnx`, the tokenizer's files, and `kanjilab.json` with
what a sampler must know: the noise schedule, the shape and scale of latents, the length of captions. Of a base that
reads skeletons there is `condition_encoder.onnx` too.
"""

import tempfile
import warnings
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from kanjilab.core.images import SIZE_PX
from kanjilab.core.run_folder import RunFolder
from kanjilab.core.storage import appearing_folder, require_new, require_place, write_json_atomic
from kanjilab.export.conversion import LICENCE, export_facts, to_pipeline
from kanjilab.export.onnx_weights import WEIGHTS, store_weights
from kanjilab.models.conditioning import Conditioning
from kanjilab.models.diffusion import LatentDiffusion, UNetDiffusion, hint_added
from kanjilab.models.loading import load_base
from kanjilab.models.skeleton_encoder import SKELETONS, SkeletonEncoder
from kanjilab.models.text_encoders import OneEncoder, padded_tokens
from kanjilab.training.presets import DEMO_SAMPLING, WRITING

FORMAT = 1  # of kanjilab.json
LARGEST_FILE = 2**31 - 1  # bytes of a protobuf; a larger model keeps its weights in a file beside it
PARTS = ("text_encoder", "denoiser", "decoder")
CONDITION_PART = "condition_encoder"  # of a base that reads skeletons
ALL_PARTS = (*PARTS, CONDITION_PART)
# How the weights of each part are stored.
ONNX_WEIGHTS: dict[str, dict[str, str]] = {name: dict.fromkeys(ALL_PARTS, name) for name in WEIGHTS}
ONNX_WEIGHTS["mixed"] = dict.fromkeys(ALL_PARTS, "fp16") | {"text_encoder": "int8"}
ONNX_WEIGHTS["small"] = dict.fromkeys(ALL_PARTS, "int8") | {"decoder": "fp16"}
CARD = """# From text to glyph, as ONNX

Draws from text without torch; `kanjilab.json` has the numbers. kanjilab's page draws from this folder in a browser.

1. `tokenizer/` gives {caption_tokens} token ids of a caption, and of the empty one.
2. `text_encoder.onnx` gives their states.
3. `denoiser.onnx` predicts {prediction} from noisy latents {latent_shape}, a timestep, and states.
4. `decoder.onnx` makes images in [-1, 1] of latents / scaling_factor + shift_factor.
{skeletons}
How weights are stored: {weights}. All is computed in fp32.

## Licence

{licence}.
"""
SKELETON_CARD = """
Between 2 and 3, `condition_encoder.onnx` gives `tokens`, which take the place of the states, {hint}of states and of

- `skeleton`, (N, {size_px}, {size_px}): 1 on the lines of the very glyph, which are followed, 0 beside them;
- `typed`, likewise: the lines of the character in print, to be written in the style of the caption;
- `index`, (N,): the place of the character in `characters`, from 1; 0 for none.

The denoiser is called thrice a step: by the empty caption without lines and index (zeros), by the empty caption with
them, and by the caption with them. Prediction: empty + array_guidance (lines - empty) + guidance (all - lines).
"""


class _Part(NamedTuple):
    """A network to export: its inputs, and its outputs by name; the first axis of all is the batch."""

    network: nn.Module
    inputs: dict[str, Tensor]
    outputs: tuple[str, ...]


class _TextEncoder(nn.Module):
    def __init__(self, text: OneEncoder):
        super().__init__()
        self.encoder, self.masked = text.encoder, getattr(text.encoder.config, "use_attention_mask", False)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        return self.encoder(input_ids, attention_mask=attention_mask)[0]


class _ConditionEncoder(nn.Module):
    def __init__(self, encoder: SkeletonEncoder):
        super().__init__()
        self.encoder = encoder

    def forward(self, states: Tensor, skeleton: Tensor, typed: Tensor, index: Tensor) -> tuple[Tensor, ...]:
        made = self.encoder.told(Conditioning(states), torch.stack([skeleton, typed], dim=1), index)
        return (made.tokens,) if made.hint is None else (made.tokens, made.hint)


class _Denoiser(nn.Module):
    def __init__(self, base: UNetDiffusion):
        super().__init__()
        self.denoiser, self.first_layer = base.denoiser, base.first_layer

    def forward(self, latents: Tensor, timestep: Tensor, states: Tensor, hint: Tensor | None = None) -> Tensor:
        with hint_added(self.first_layer, hint):
            return self.denoiser(latents, timestep, states).sample


class _Decoder(nn.Module):
    def __init__(self, vae: Any):
        super().__init__()
        self.vae = vae

    def forward(self, latents: Tensor) -> Tensor:
        return self.vae.decode(latents).sample


def run_to_onnx(run: RunFolder, step: int, arm: int, path: Path | str, weights: str = "fp16") -> Path:
    """Writes the base with what one arm learned in its weights.

    Args:
        run, step, arm: as for `kanjilab.export.conversion.to_pipeline`.
        path, weights: as for `base_to_onnx`.
    Returns:
        The folder.
    Raises:
        ValueError, RunError, FileExistsError: as `to_pipeline` and `base_to_onnx`; or the run's base is not what its
            name loads: it had a condition encoder of its own, say.
    """
    _require_writable(Path(path), weights)
    loaded = load_base(run.settings["base"])
    _require_known_encoder(loaded, run.size_px)
    if loaded.identity != run.settings["base_identity"]:
        raise ValueError(
            f"{run.path} was trained on a changed {run.settings['base']!r} (with an encoder of its own, say), "
            "of which ONNX has no part; expected a base that is loaded by its name alone"
        )
    with tempfile.TemporaryDirectory(prefix="kanjilab-") as temporary:
        base = load_base(to_pipeline(run, step, arm, Path(temporary) / "pipeline"))
        base = replace(base, condition_encoder=loaded.condition_encoder)
    facts = export_facts(run, step, arm)
    return _write(base, Path(path), weights, run.name, run.size_px, facts)


def base_to_onnx(base: LatentDiffusion, path: Path | str, weights: str = "fp16", size_px: int = SIZE_PX) -> Path:
    """Writes a base as it is.

    Args:
        base: a U-Net with one text encoder, in fp32 on the processor.
        path: the folder to write; must not exist.
        weights: a key of `ONNX_WEIGHTS`.
        size_px: height and width of what is drawn.
    Returns:
        The folder.
    Raises:
        ValueError: Stable Diffusion 3, whose three text encoders and transformer no browser holds; a base with
            a condition encoder that reads something else than skeletons, or skeletons of
            another size; or unknown weights.
        FileExistsError: the folder exists.
        RuntimeError: the package onnx is not installed.
    """
    _require_writable(Path(path), weights)
    _require_known_encoder(base, size_px)
    return _write(base, Path(path), weights, base.name, size_px, {"base": base.name, "base_identity": base.identity})


def _require_writable(path: Path, weights: str) -> None:
    if weights not in ONNX_WEIGHTS:
        raise ValueError(f"weights must be one of {', '.join(ONNX_WEIGHTS)}, got {weights!r}")
    if find_spec("onnx") is None:
        raise RuntimeError("ONNX needs the package onnx, which is not installed: pip install 'kanjilab[onnx]'")
    require_place(path)
    require_new(path)


def _require_known_encoder(base: LatentDiffusion, size_px: int) -> None:
    encoder = base.condition_encoder
    if encoder is None:
        return
    if not isinstance(encoder, SkeletonEncoder):
        raise ValueError(f"{base.name} has a condition encoder that reads no skeletons, of which ONNX has no part")
    if encoder.size_px != size_px:
        raise ValueError(f"{base.name} reads skeletons of {encoder.size_px} px: it draws no images of {size_px} px")


def _write(base: LatentDiffusion, path: Path, weights: str, name: str, size_px: int, facts: dict[str, Any]) -> Path:
    if not isinstance(base, UNetDiffusion) or not isinstance(base.text, OneEncoder):
        raise ValueError(f"{base.name}: ONNX is written of a U-Net with one text encoder, not of Stable Diffusion 3")
    parts = _parts(base, base.text, size_px)
    stored = {part: ONNX_WEIGHTS[weights][part] for part in parts}
    description = _description(base, size_px) | {"name": name, "weights": stored, "facts": facts}
    with appearing_folder(path) as folder:
        for part, network in parts.items():
            _export(network, folder / f"{part}.onnx", stored[part])
        base.text.tokenizer.save_pretrained(folder / "tokenizer")
        write_json_atomic(folder / "kanjilab.json", description)
        card = CARD.format(**description, **description["schedule"], skeletons=_card_of_skeletons(description))
        (folder / "README.md").write_text(card)
    return path


def _card_of_skeletons(description: dict[str, Any]) -> str:
    if not (facts := description.get(CONDITION_PART)):
        return ""
    hint = "and `hint`, one more input of the denoiser, " if facts["hint_shape"] else ""
    return SKELETON_CARD.format(hint=hint, size_px=facts["size_px"])


def _parts(base: UNetDiffusion, text: OneEncoder, size_px: int) -> dict[str, _Part]:
    """Two examples each: of one, the batch would be taken for a constant."""
    tokens = padded_tokens(text.tokenizer, ["", "a"], text.shape[0])
    encoder = _TextEncoder(text)
    ids = {"input_ids": tokens.input_ids} | ({"attention_mask": tokens.attention_mask} if encoder.masked else {})
    latents, states = torch.zeros(2, *base.latent_shape(size_px)), torch.zeros(2, *text.shape)
    parts = {"text_encoder": _Part(encoder, ids, ("states",))}
    noisy = {"latents": latents, "timestep": torch.zeros(2), "states": states}
    if isinstance(base.condition_encoder, SkeletonEncoder):
        parts[CONDITION_PART] = reader = _reader(base.condition_encoder, states)
        made = dict(zip(reader.outputs, reader.network(*reader.inputs.values()), strict=True))
        noisy |= {"states": made.pop("tokens")} | made
    parts["denoiser"] = _Part(_Denoiser(base), noisy, ("prediction",))
    parts["decoder"] = _Part(_Decoder(base.vae), {"latents": latents}, ("images",))
    return parts


@torch.no_grad()
def _reader(encoder: SkeletonEncoder, states: Tensor) -> _Part:
    """The condition encoder, for the states of two captions."""
    lines = torch.zeros(len(states), encoder.size_px, encoder.size_px)
    inputs = {"states": states, **dict.fromkeys(SKELETONS, lines), "index": torch.zeros(len(states), dtype=torch.long)}
    return _Part(_ConditionEncoder(encoder), inputs, ("tokens", "hint") if encoder.enters == "hint" else ("tokens",))


@torch.no_grad()
def _export(part: _Part, path: Path, weights: str) -> None:
    """Writes one network, in fp32 first, since that is what it computes in."""
    import onnx

    with tempfile.TemporaryDirectory(prefix="kanjilab-") as temporary, warnings.catch_warnings():
        # torch's other exporter takes twelve times as long and needs two packages more; torch is pinned, and tests
        # compare what comes out. What the tracer warns of are checks of shapes, which stay the same.
        warnings.simplefilter("ignore")
        file = str(Path(temporary) / "model.onnx")
        torch.onnx.export(
            part.network.eval(),
            tuple(part.inputs.values()),
            file,
            input_names=list(part.inputs),
            output_names=list(part.outputs),
            dynamic_axes={name: {0: "batch"} for name in (*part.inputs, *part.outputs)},
            dynamo=False,
        )
        model = onnx.load(file)
    store_weights(model, weights)
    beside = model.ByteSize() > LARGEST_FILE
    onnx.save(model, str(path), save_as_external_data=beside, location=f"{path.name}.data" if beside else None)


def _description(base: UNetDiffusion, size_px: int) -> dict[str, Any]:
    """What a sampler must know."""
    config, (scaling_factor, shift_factor) = base.scheduler_config, base.latent_scale
    encoder = base.condition_encoder
    return {
        "format": FORMAT,
        "size_px": size_px,
        "channels": base.channels,
        "latent_shape": base.latent_shape(size_px),
        "scaling_factor": scaling_factor,
        "shift_factor": shift_factor,
        "caption_tokens": base.text.shape[0],
        "schedule": {
            "prediction": base.prediction,
            "alpha_bar": base.alpha_bar,
            "timestep_spacing": config.get("timestep_spacing", "linspace"),
            "steps_offset": config.get("steps_offset", 0),
        },
        "sampling": (DEMO_SAMPLING if encoder is None else WRITING).to_json(),
        "licence": LICENCE,
        **({CONDITION_PART: _of_skeletons(encoder)} if isinstance(encoder, SkeletonEncoder) else {}),
    }


def _of_skeletons(encoder: SkeletonEncoder) -> dict[str, Any]:
    """What must be known to call the condition encoder, and the denoiser with what it gives."""
    config, edge = encoder.config, encoder.size_px // encoder.config["hint_px"]
    return {
        "size_px": encoder.size_px,
        "characters": encoder.characters,
        "hint_shape": (config["hint_channels"], edge, edge) if encoder.enters == "hint" else None,
    }
