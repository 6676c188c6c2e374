"""LoRA files of every common form: read into one, written from one.

A layer is known by its part of the pipeline and its own name there: `unet.mid_block.attentions.0.proj_in`,
`transformer.transformer_blocks.0.attn.to_q`, `text_encoder.encoder.layers.0.self_attn.q_proj`.

    diffusers, SimpleTuner   unet.X.lora_A.weight, transformer.X.lora_A.weight; alpha, if any, in the header
    PEFT, our checkpoints    base_model.model.X.lora_A.weight; alpha in adapter_config.json. A text encoder's is a
                             folder of its own with PEFT, and base_model.model.text_encoder.X in our checkpoints
    kohya, OneTrainer        lora_unet_X_with_underscores.lora_down.weight and .alpha, lora_te_..., lora_transformer_...
    SimpleTuner's LyCORIS    lycoris_X_with_underscores.lora_down.weight and .alpha
    kohya's SD 3             lora_unet_joint_blocks_...: the original's names, with q, k and v in one matrix

DoRA's lengths of rows are beside these: X.lora_magnitude_vector of PEFT and diffusers, (out,) or (1, out, 1, 1);
X.dora_scale of LyCORIS, OneTrainer and ComfyUI, (out, 1) or (out, 1, 1, 1).

ComfyUI reads all of these but `unet.X`, and passes over what it does not know: so a wrong name loads as nothing.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from kanjilab.core.notices import some_of
from kanjilab.core.tensor_files import open_tensors
from kanjilab.export.layer_names import (
    ORIGINAL_UNET,
    TEXT_ENCODERS,
    TEXT_PREFIXES,
    ChangeOfRows,
    layer_aliases,
    usual_name,
)
from kanjilab.export.peft_config import PEFT_FILE, Alpha, FileAlphas
from kanjilab.models.adapters import (
    MAGNITUDE,
    peft_magnitude,
    with_row_norms,
)
from kanjilab.models.hub import CONVERSION, PICKLES

EIGHT_BITS = (torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e4m3fnuz, torch.float8_e5m2fnuz)
OTHER_ADAPTERS = re.compile(r"\.(hada_|lokr_|oft_|ia3_|boft_|glora_)")
NUMBERS = (torch.float64, torch.float32, torch.float16, torch.bfloat16, *EIGHT_BITS)
SUFFIXES = {
    ".lora_A.weight": "down",
    ".lora_B.weight": "up",
    ".lora_down.weight": "down",
    ".lora_up.weight": "up",
    ".lora.down.weight": "down",
    ".lora.up.weight": "up",
    ".lora_linear_layer.down.weight": "down",
    ".lora_linear_layer.up.weight": "up",
    "_lora.down.weight": "down",
    "_lora.up.weight": "up",
    ".alpha": "alpha",
    ".dora_scale": "dora_scale",
    f".{MAGNITUDE}": "magnitude",
    f".{MAGNITUDE}.weight": "magnitude",
}


@dataclass(frozen=True)
class LowRank:
    """What a LoRA adds to one layer's weight: scale · B · A; a DoRA then gives each row a length.

    Attributes:
        down: A, (r, in), or (r, C, kh, kw) of a convolution.
        up: B, (out, r).
        scale: of the product.
        magnitude: DoRA's m, (out,); None of a LoRA.
    """

    down: Tensor
    up: Tensor
    scale: float = 1.0
    magnitude: Tensor | None = None

    @property
    def rank(self) -> int:
        """r."""
        return self.down.shape[0]

    def folded(self) -> "LowRank":
        """The same update at scale 1, with the scale multiplied into B."""
        return replace(self, up=self.up * self.scale, scale=1.0)

    def added_to(self, weight: Tensor) -> Tensor:
        """A layer's weight with this update, computed in float32.

        Args:
            weight: (out, in) or (out, in, kh, kw).
        Returns:
            (out, in) or (out, in, kh, kw) of the weight's dtype.
        """
        delta = self.scale * self.up.float() @ self.down.float().flatten(1)  # (out, in·kh·kw)
        changed = weight.float() + delta.view(weight.shape)
        if self.magnitude is not None:
            changed = with_row_norms(changed, self.magnitude.float())
        return changed.to(weight.dtype)


@dataclass(frozen=True)
class Lora:
    """A LoRA of any origin.

    Attributes:
        layers: by `part.layer`, as `unet.mid_block.attentions.0.proj_in`.
        metadata: of the file's header.
    """

    layers: dict[str, LowRank]
    metadata: dict[str, str]

    @property
    def parts(self) -> list[str]:
        """Which parts of the pipeline it has layers of."""
        return list(dict.fromkeys(name.partition(".")[0] for name in self.layers))

    def of_part(self, part: str) -> dict[str, LowRank]:
        """The layers of one part, by their names in it."""
        return {name.removeprefix(part + "."): low for name, low in self.layers.items() if name.startswith(part + ".")}


def denoiser_part(layers: Mapping[str, Any]) -> str:
    """`transformer` where layers of a denoiser have an MMDiT's names, else `unet`."""
    return "transformer" if any(name.startswith("transformer_blocks.") for name in layers) else "unet"


def diffusers_tensors(lora: Lora) -> dict[str, Tensor]:
    """Names and tensors as diffusers writes them, the scale folded into B; ComfyUI takes them for SD 3 alone.

    Raises:
        ValueError: the LoRA is also of a text encoder that is no CLIP.
    """
    tensors = peft_tensors({_diffusers_name(name): low.folded() for name, low in lora.layers.items()})
    # transformers, which reads a text encoder's, wants the name of the parameter whole.
    whole = {name for name in tensors if name.endswith(MAGNITUDE) and name.startswith(TEXT_ENCODERS)}
    return {f"{name}.weight" if name in whole else name: value for name, value in tensors.items()}


def peft_tensors(layers: Mapping[str, LowRank]) -> dict[str, Tensor]:
    """A, B without its scale, and DoRA's magnitude of each layer, by PEFT's names after the layer's."""
    tensors = {}
    for name, low in layers.items():
        tensors[f"{name}.lora_A.weight"], tensors[f"{name}.lora_B.weight"] = low.down.contiguous(), _up_like(low)
        if low.magnitude is not None:
            tensors[f"{name}.{MAGNITUDE}"] = peft_magnitude(low.magnitude, low.down.ndim)
    return tensors


def kohya_tensors(lora: Lora) -> dict[str, Tensor]:
    """Names and tensors as kohya's scripts write them for SD 1.x, with an alpha that makes the scale 1.

    Of a DoRA as they do through LyCORIS, which decomposes by output as we do (`wd_on_output`).

    Raises:
        ValueError: the LoRA is one of an MMDiT, or also of a text encoder that is no CLIP.
    """
    tensors = {}
    for name, low in lora.layers.items():
        part, _, layer = name.partition(".")
        if part == "transformer":
            raise ValueError(
                "kohya's names for SD 3 put q, k and v into one matrix, which these are not: "
                "write the form 'comfyui' or 'diffusers', which ComfyUI loads"
            )
        prefix = "lora_unet_" if part == "unet" else f"lora_te{part.removeprefix('text_encoder').lstrip('_')}_"
        key = prefix + _published_name(part, layer).replace(".", "_")
        tensors[f"{key}.lora_down.weight"] = low.down.contiguous()
        tensors[f"{key}.lora_up.weight"] = _up_like(low.folded())
        tensors[f"{key}.alpha"] = torch.tensor(float(low.rank))
        if low.magnitude is not None:
            tensors[f"{key}.dora_scale"] = _dora_scale(low.magnitude, low)
    return tensors


def comfyui_tensors(lora: Lora) -> dict[str, Tensor]:
    """The names that ComfyUI loads: kohya's for SD 1.x, diffusers' for SD 3, but of a DoRA `dora_scale`.

    Raises:
        ValueError: a DoRA of SD 3's last modulations, of which ComfyUI exchanges the halves of B · A alone.
    """
    if not any(name.startswith("transformer.") for name in lora.layers):
        return kohya_tensors(lora)
    tensors = diffusers_tensors(Lora({name: replace(low, magnitude=None) for name, low in lora.layers.items()}, {}))
    for name, low in lora.layers.items():
        if low.magnitude is not None:
            if _is_exchanged(name, low):
                raise ValueError(
                    f"ComfyUI would give the rows of {name} each other's lengths: write the form 'diffusers', "
                    "or a whole pipeline; or train on targets 'attention+feed-forward'"
                )
            tensors[f"{_diffusers_name(name)}.dora_scale"] = _dora_scale(low.magnitude, low)
    return tensors


def _is_exchanged(name: str, low: LowRank) -> bool:
    """Whether it is a layer of an MMDiT that gives scale and shift alone, which in the original are the other way."""
    return name.endswith((".norm_out.linear", ".norm1_context.linear")) and len(low.up) == 2 * low.down.shape[1]


def _dora_scale(magnitude: Tensor, low: LowRank) -> Tensor:
    """(out, 1), of a convolution (out, 1, 1, 1)."""
    return magnitude.view(-1, *[1] * (low.down.ndim - 1))


def _diffusers_name(name: str) -> str:
    part, _, layer = name.partition(".")
    return f"{part}.{_published_name(part, layer)}"


def _up_like(low: LowRank) -> Tensor:
    """B, as a 1 × 1 convolution where A is a convolution."""
    up = low.up.contiguous()
    return up[:, :, None, None] if low.down.ndim == 4 else up


def _published_name(part: str, layer: str) -> str:
    """CLIP's layers are under `text_model` in every file, though newer transformers leave it out."""
    if part in TEXT_ENCODERS and layer.startswith("encoder.layer."):
        raise ValueError(
            f"{part}.{layer} is BERT's, as pocket has it, and diffusers and ComfyUI put a LoRA on no text encoder but "
            "CLIP: write the form 'peft', or a whole pipeline"
        )
    clip = part in TEXT_ENCODERS and layer.startswith("encoder.layers.")
    return f"text_model.{layer}" if clip else layer


def read_lora(path: Path | str, parts: Mapping[str, nn.Module]) -> Lora:
    """Reads a LoRA file of any of the forms above.

    Args:
        path: a `.safetensors` file, or a folder with one: PEFT's, diffusers', an arm of our checkpoints. Of a folder
            of PEFT's that has another in it, `text_encoder`, both are read.
        parts: the models it may be about, by part: `{"unet": base.denoiser}` or `{"transformer": base.denoiser}`,
            and a text encoder as `text_encoder`.
    Raises:
        ValueError: no safetensors; keys that name no layer of these parts, by name; half a pair; a shape that does not
            fit; a DoRA by input; numbers that are not finite; another adapter than a LoRA; a configuration of PEFT's
            that asks for more than is read.
        FileNotFoundError: no such file.
    """
    path = Path(path)
    if path.is_dir() and (path / "text_encoder" / PEFT_FILE).is_file():
        denoiser, reader = (_read_file(folder / PEFT_FILE, parts) for folder in (path, path / "text_encoder"))
        return Lora(denoiser.layers | reader.layers, denoiser.metadata)
    return _read_file(_find_file(path), parts)


def _read_file(file: Path, parts: Mapping[str, nn.Module]) -> Lora:
    with open_tensors(file) as opened:
        metadata = opened.metadata() or {}
        alphas = FileAlphas(file, metadata)
        tensors = {usual_name(name): opened.get_tensor(name) for name in opened.keys()}
    pairs = _pairs(tensors, file)
    known = layer_aliases(parts)
    if unknown := sorted(pairs.keys() - known.keys()):
        raise ValueError(f"{file}: {_refusal(unknown, parts)}")
    layers = {}
    for key, pair in pairs.items():
        for part, name, change in known[key]:
            module = parts[part].get_submodule(name)
            if alphas.dora(part) and not pair.keys() & {"magnitude", "dora_scale"}:
                raise ValueError(f"{file}: {key} is of a DoRA and has no {MAGNITUDE}")
            layers[f"{part}.{name}"] = _low_rank(file, key, pair, module, change, alphas.of(part, name))
    return Lora(layers, metadata)


def _find_file(path: Path) -> Path:
    if path.suffix in PICKLES:
        raise ValueError(f"{path}: expected safetensors; {CONVERSION}")
    if not path.is_dir():
        return path
    files = sorted(path.glob("*.safetensors"))
    if len(files) != 1:
        raise FileNotFoundError(f"{path}: expected one .safetensors file, got {[file.name for file in files]}")
    return files[0]


def _pairs(tensors: Mapping[str, Tensor], file: Path) -> dict[str, dict[str, Tensor]]:
    """By the file's own name of a layer: down, up and perhaps alpha and DoRA's magnitude."""
    if not tensors:
        raise ValueError(f"{file}: expected the tensors of a LoRA, got none")
    pairs: dict[str, dict[str, Tensor]] = {}
    unknown = []
    for name, value in tensors.items():
        if value.dtype not in NUMBERS:
            raise ValueError(
                f"{file}: expected floating-point numbers, got {value.dtype} as {name}; convert them first"
            )
        suffix = next((suffix for suffix in SUFFIXES if name.endswith(suffix)), None)
        if suffix is None:
            unknown.append(name)
        else:
            pairs.setdefault(name.removesuffix(suffix), {})[SUFFIXES[suffix]] = value.float()  # of 8 bits, say
    if other := [name for name in unknown if OTHER_ADAPTERS.search(name)]:
        raise ValueError(
            f"{file}: {len(other)} keys of a LoHa, LoKr or another adapter than a LoRA ({some_of(other)}): merge it "
            "into its base with the tool that made it, or train a LoRA"
        )
    if unknown:
        raise ValueError(f"{file}: {len(unknown)} keys that are none of a LoRA: {some_of(unknown)}")
    for key, pair in pairs.items():
        if missing := {"down", "up"} - pair.keys():
            raise ValueError(f"{file}: {key} has no {' and no '.join(sorted(missing))} matrix")
        if pair["down"].ndim < 2 or pair["up"].ndim < 2 or ("alpha" in pair and pair["alpha"].numel() != 1):
            shapes = {name: tuple(value.shape) for name, value in pair.items()}
            raise ValueError(f"{file}: expected two matrices of {key} and one alpha, got the shapes {shapes}")
        if not all(torch.isfinite(value).all() for value in pair.values()):
            raise ValueError(f"{file}: {key} is not finite")
    return pairs


def _refusal(unknown: list[str], parts: Mapping[str, nn.Module]) -> str:
    for part, prefixes in TEXT_PREFIXES.items():
        found = [name for name in unknown if name.startswith(prefixes)]
        if found and part not in parts:
            return (
                f"{len(found)} layers of the text encoder ({some_of(found)}): give it as parts[{part!r}] to read them; "
                "without them the LoRA would not draw what it was trained to"
            )
    if original := [name for name in unknown if ORIGINAL_UNET.search(name)]:
        return (
            f"{len(original)} layers by the names of the original Stable Diffusion ({some_of(original)}), which "
            "diffusers calls down_blocks, mid_block and up_blocks: save it in the form of diffusers or kohya, with the "
            "tool that wrote it"
        )
    return f"{len(unknown)} layers that {' and '.join(parts)} does not have: {some_of(unknown)}"


def _low_rank(
    file: Path, key: str, pair: dict[str, Tensor], module: nn.Module, change: ChangeOfRows | None, alpha: Alpha
) -> LowRank:
    down, up = pair["down"], pair["up"].flatten(1)
    magnitude = _magnitude(file, key, pair, len(up))
    if change is not None:
        up, magnitude = change(up), None if magnitude is None else change(magnitude)
    weight = module.weight
    assert isinstance(weight, Tensor)
    rank = down.shape[0]
    if down.flatten(1).shape[1] != weight[0].numel() or up.shape != (weight.shape[0], rank):
        raise ValueError(
            f"{file}: {key} has A {tuple(down.shape)} and B {tuple(up.shape)}, which do not fit the weight "
            f"{tuple(weight.shape)}; was it trained on another base?"
        )
    down = down.view(rank, *weight.shape[1:])
    scale = float(pair["alpha"]) / rank if "alpha" in pair else alpha.scale(rank)
    return LowRank(down, up, scale, magnitude)


def _magnitude(file: Path, key: str, pair: dict[str, Tensor], height: int) -> Tensor | None:
    """(height,) DoRA's lengths of rows, in whatever shape a file has them; None of a LoRA."""
    stored = pair.get("dora_scale", pair.get("magnitude"))
    if stored is None:
        return None
    # One by input begins with 1, as does PEFT's of a convolution, which is by output all the same.
    by_input = "dora_scale" in pair and stored.shape[:1] != (height,)
    if stored.numel() != height or by_input:
        raise ValueError(
            f"{file}: {key} has a DoRA's lengths of shape {tuple(stored.shape)}, expected one for each of {height} "
            "outputs; what decomposes by input is not read: merge it first"
        )
    return stored.flatten()
