"""A base, or what a run made of one, as ONNX: to draw in a browser, on a phone or in any program, without torch.

The folder holds `text_encoder.onnx`, `denoiser.onnx`, `decoder.onnx`, the tokenizer's files, and `kanjilab.json` with
what a sampler must know: the noise schedule, the shape and scale of latents, the length of captions.
"""

import tempfile
import warnings
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from kanjilab.core.images import SIZE_PX
from kanjilab.core.run_folder import RunFolder
from kanjilab.core.storage import appearing_folder, require_place, write_json_atomic
from kanjilab.export.conversion import LICENCE, export_facts, to_pipeline
from kanjilab.export.onnx_weights import WEIGHTS, store_weights
from kanjilab.models.diffusion import LatentDiffusion, UNetDiffusion
from kanjilab.models.loading import load_base
from kanjilab.models.text_encoders import OneEncoder, padded_tokens
from kanjilab.training.presets import DEMO_SAMPLING

FORMAT = 1  # of kanjilab.json
LARGEST_FILE = 2**31 - 1  # bytes of a protobuf; a larger model keeps its weights in a file beside it
PARTS = ("text_encoder", "denoiser", "decoder")
# How the weights of each part are stored.
ONNX_WEIGHTS: dict[str, dict[str, str]] = {name: dict.fromkeys(PARTS, name) for name in WEIGHTS}
ONNX_WEIGHTS["mixed"] = {"text_encoder": "int8", "denoiser": "fp16", "decoder": "fp16"}
CARD = """# From text to glyph, as ONNX

Draws from text without torch; `kanjilab.json` has the numbers. kanjilab's page draws from this folder in a browser.

1. `tokenizer/` gives {caption_tokens} token ids of a caption, and of the empty one.
2. `text_encoder.onnx` gives their states.
3. `denoiser.onnx` predicts {prediction} from noisy latents {latent_shape}, a timestep, and states.
4. `decoder.onnx` makes images in [-1, 1] of latents / scaling_factor + shift_factor.

How weights are stored: {weights}. All is computed in fp32.

## Licence

{licence}.
"""


class _Part(NamedTuple):
    """A network to export: its inputs and its output by name; the first axis of all is the batch."""

    network: nn.Module
    inputs: dict[str, Tensor]
    output: str


class _TextEncoder(nn.Module):
    def __init__(self, text: OneEncoder):
        super().__init__()
        self.encoder, self.masked = text.encoder, getattr(text.encoder.config, "use_attention_mask", False)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        return self.encoder(input_ids, attention_mask=attention_mask)[0]


class _Denoiser(nn.Module):
    def __init__(self, denoiser: nn.Module):
        super().__init__()
        self.denoiser = denoiser

    def forward(self, latents: Tensor, timestep: Tensor, states: Tensor) -> Tensor:
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
            name loads: of a base with an encoder of skeletons, say, only the text side could be written.
    """
    _require_writable(Path(path), weights)
    loaded = load_base(run.settings["base"])
    _require_no_condition_encoder(loaded)
    if loaded.identity != run.settings["base_identity"]:
        raise ValueError(
            f"{run.path} was trained on a changed {run.settings['base']!r} (with an encoder of its own, say), "
            "of which ONNX has no part; expected a base that is loaded by its name alone"
        )
    with tempfile.TemporaryDirectory(prefix="kanjilab-") as temporary:
        base = load_base(to_pipeline(run, step, arm, Path(temporary) / "pipeline"))
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
        ValueError: Stable Diffusion 3, whose three text encoders and transformer no browser holds; a base with a
            condition encoder, of which only the text side could be written; or unknown weights.
        FileExistsError: the folder exists.
        RuntimeError: the package onnx is not installed.
    """
    _require_writable(Path(path), weights)
    _require_no_condition_encoder(base)
    return _write(base, Path(path), weights, base.name, size_px, {"base": base.name, "base_identity": base.identity})


def _require_writable(path: Path, weights: str) -> None:
    if weights not in ONNX_WEIGHTS:
        raise ValueError(f"weights must be one of {', '.join(ONNX_WEIGHTS)}, got {weights!r}")
    if find_spec("onnx") is None:
        raise RuntimeError("ONNX needs the package onnx, which is not installed: pip install 'kanjilab[onnx]'")
    require_place(path)
    if path.exists():
        raise FileExistsError(f"{path} exists already; ONNX is written into a new folder")


def _require_no_condition_encoder(base: LatentDiffusion) -> None:
    if base.condition_encoder is not None:
        raise ValueError(f"{base.name} has a condition encoder, as of skeletons, of which ONNX has no part")


def _write(base: LatentDiffusion, path: Path, weights: str, name: str, size_px: int, facts: dict[str, Any]) -> Path:
    if not isinstance(base, UNetDiffusion) or not isinstance(base.text, OneEncoder):
        raise ValueError(f"{base.name}: ONNX is written of a U-Net with one text encoder, not of Stable Diffusion 3")
    description = _description(base, size_px) | {"name": name, "weights": ONNX_WEIGHTS[weights], "facts": facts}
    with appearing_folder(path) as folder:
        for part, network in _parts(base, base.text, size_px).items():
            _export(network, folder / f"{part}.onnx", ONNX_WEIGHTS[weights][part])
        base.text.tokenizer.save_pretrained(folder / "tokenizer")
        write_json_atomic(folder / "kanjilab.json", description)
        (folder / "README.md").write_text(CARD.format(**description, **description["schedule"]))
    return path


def _parts(base: UNetDiffusion, text: OneEncoder, size_px: int) -> dict[str, _Part]:
    """Two examples each: of one, the batch would be taken for a constant."""
    tokens = padded_tokens(text.tokenizer, ["", "a"], text.shape[0])
    encoder = _TextEncoder(text)
    ids = {"input_ids": tokens.input_ids} | ({"attention_mask": tokens.attention_mask} if encoder.masked else {})
    latents, states = torch.zeros(2, *base.latent_shape(size_px)), torch.zeros(2, *text.shape)
    noisy = {"latents": latents, "timestep": torch.zeros(2), "states": states}
    return {
        "text_encoder": _Part(encoder, ids, "states"),
        "denoiser": _Part(_Denoiser(base.denoiser), noisy, "prediction"),
        "decoder": _Part(_Decoder(base.vae), {"latents": latents}, "images"),
    }


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
            output_names=[part.output],
            dynamic_axes={name: {0: "batch"} for name in (*part.inputs, part.output)},
            dynamo=False,
        )
        model = onnx.load(file)
    store_weights(model, weights)
    beside = model.ByteSize() > LARGEST_FILE
    onnx.save(model, str(path), save_as_external_data=beside, location=f"{path.name}.data" if beside else None)


def _description(base: UNetDiffusion, size_px: int) -> dict[str, Any]:
    """What a sampler must know."""
    config, (scaling_factor, shift_factor) = base.scheduler_config, base.latent_scale
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
        "sampling": DEMO_SAMPLING.to_json(),
        "licence": LICENCE,
    }
