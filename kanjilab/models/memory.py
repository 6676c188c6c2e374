"""How much memory a training needs, worked out from configurations alone, before anything is loaded."""

import dataclasses
import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from kanjilab.core.config import QUANTISED, Arm
from kanjilab.core.outside_files import read_json_object
from kanjilab.models.cpu_layers import computing_precision, packed_bytes
from kanjilab.models.hub import family_of, quiet_diffusers
from kanjilab.models.loading import DTYPES, base_folder
from kanjilab.models.sentence_pieces import text_length
from kanjilab.models.text_encoders import T5_TOKENS
from kanjilab.models.trainable import Trainable

GIGABYTE, MEGABYTE = 1e9, 1e6
GROUPS, OWN_GROUP = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")
# A weight's bytes; of 4-bit ones with a float32 scale for each block of 64.
BYTES = {"fp32": 4.0, "bf16": 2.0, "8bit": 1.0, "4bit": 0.5 + 4 / 64}


@dataclass(frozen=True)
class Architecture:
    """What of a base decides its size.

    Attributes:
        family: `unet` or `mmdit`.
        denoiser: configuration of diffusers' `UNet2DConditionModel` or `SD3Transformer2DModel`.
        autoencoder: parameters.
        text_encoders: parameters of each.
        latent_channels, factor: of the autoencoder; factor pixels are one latent along an edge.
        text: (L, D) of a caption's token states.
        text_encoder: configuration of transformers' model that a U-Net reads by; None for three that come and go.
    """

    family: str
    denoiser: dict[str, Any]
    autoencoder: int
    text_encoders: tuple[int, ...]
    latent_channels: int
    factor: int
    text: tuple[int, int]
    text_encoder: dict[str, Any] | None = None


CLIP_L, CLIP_L_PROJECTED, CLIP_G, T5_XXL = 123_060_480, 123_650_304, 694_659_840, 4_762_310_656
SD1 = Architecture(
    family="unet",
    denoiser=dict(sample_size=64, cross_attention_dim=768, attention_head_dim=8),
    autoencoder=83_653_863,
    text_encoders=(CLIP_L,),
    latent_channels=4,
    factor=8,
    text=(77, 768),
    text_encoder=dict(
        architectures=["CLIPTextModel"],
        hidden_size=768,
        intermediate_size=3072,
        num_hidden_layers=12,
        num_attention_heads=12,
        hidden_act="quick_gelu",
    ),
)


def _sd35(layers: int, positions: int, dual: tuple[int, ...]) -> Architecture:
    config = dict(
        sample_size=128,
        num_layers=layers,
        attention_head_dim=64,
        num_attention_heads=layers,
        joint_attention_dim=4096,
        caption_projection_dim=64 * layers,
        pooled_projection_dim=2048,
        pos_embed_max_size=positions,
        dual_attention_layers=dual,
        qk_norm="rms_norm",
    )
    encoders = (CLIP_L_PROJECTED, CLIP_G, T5_XXL)
    return Architecture("mmdit", config, 83_819_683, encoders, 16, 8, (77 + T5_TOKENS, 4096))


KNOWN = {
    "sd14": SD1,
    "sd15": SD1,
    "sd35-medium": _sd35(24, 384, tuple(range(13))),
    "sd35-large": _sd35(38, 192, ()),
}


@dataclass(frozen=True)
class Memory:
    """Bytes on the device, part by part.

    Attributes:
        denoiser: its frozen weights and buffers.
        trained: what is trained, with gradients, Adam's two moments, averages and copies.
        activations: what the forward pass keeps for the backward pass of a micro-batch of all arms.
        autoencoder: in fp32.
        text_encoders: a U-Net's stays loaded; of SD 3's three the largest, while captions are encoded.
        text_stays: whether the text encoders are there while training.
    """

    denoiser: int
    trained: int
    activations: int
    autoencoder: int
    text_encoders: int
    text_stays: bool

    @property
    def training(self) -> int:
        """While training."""
        text = self.text_encoders if self.text_stays else 0
        return self.denoiser + self.trained + self.activations + self.autoencoder + text

    @property
    def encoding(self) -> int:
        """While the data are encoded, before training."""
        return self.denoiser + self.autoencoder + self.text_encoders

    @property
    def peak(self) -> int:
        """The most at once."""
        return max(self.training, self.encoding)

    def __str__(self) -> str:
        names = ("denoiser", "trained", "activations", "autoencoder", "text_encoders")
        unit, digits, size_of_unit = ("GB", 1, GIGABYTE) if self.peak >= GIGABYTE / 10 else ("MB", 0, MEGABYTE)
        sizes = [f"{name.replace('_', ' ')} {getattr(self, name) / size_of_unit:.{digits}f}" for name in names]
        return f"{self.peak / size_of_unit:.{digits}f} {unit} ({', '.join(sizes)})"


@dataclass(frozen=True)
class Setting:
    """What may be changed so that a training fits: arms, and how the base is loaded."""

    arms: tuple[Arm, ...]
    precision: str = "bf16"
    gradient_checkpointing: bool = False


def architecture(name: str | Path) -> Architecture:
    """The architecture of a base by name; of a folder from its configurations and the files' headers."""
    if str(name) in KNOWN:
        return KNOWN[str(name)]
    folder = base_folder(str(name))
    index = read_json_object(folder / "model_index.json")
    family = family_of(str(name), folder)
    config = _config(folder / ("unet" if family == "unet" else "transformer"))
    vae = _config(folder / "vae")
    encoders = [part for part in ("text_encoder", "text_encoder_2", "text_encoder_3") if (index.get(part) or [None])[0]]
    length = text_length(folder)
    mmdit_text = (length + T5_TOKENS, config.get("joint_attention_dim", 0))
    return Architecture(
        family=family,
        denoiser=config,
        autoencoder=_stored_parameters(folder / "vae"),
        text_encoders=tuple(_stored_parameters(folder / part) for part in encoders),
        latent_channels=vae["latent_channels"],
        factor=2 ** (len(vae["block_out_channels"]) - 1),
        text=(length, config["cross_attention_dim"]) if family == "unet" else mmdit_text,
        text_encoder=_config(folder / "text_encoder") if family == "unet" else None,
    )


def _config(folder: Path) -> dict[str, Any]:
    contents = read_json_object(folder / "config.json")
    return {key: value for key, value in contents.items() if not key.startswith("_")}


def _stored_parameters(folder: Path) -> int:
    total = 0
    for file in folder.glob("*.safetensors"):
        with safe_open(file, "pt") as opened:
            total += sum(math.prod(opened.get_slice(name).get_shape()) for name in opened.keys())
    return total


def meta_denoiser(of: Architecture, dtype: torch.dtype = torch.float32) -> Any:
    """The denoiser without any weights: shapes and names alone."""
    from diffusers import SD3Transformer2DModel, UNet2DConditionModel

    kind = UNet2DConditionModel if of.family == "unet" else SD3Transformer2DModel
    with torch.device("meta"), quiet_diffusers():
        denoiser: Any = kind(**of.denoiser)
        return denoiser.to(dtype).requires_grad_(False).eval()


def meta_text_encoder(of: Architecture, arms: Sequence[Arm]) -> Any:
    """The one text encoder of a U-Net, as `meta_denoiser`, if any arm trains it; else None."""
    if of.text_encoder is None or all(arm.parts["text_encoder"] == "frozen" for arm in arms):
        return None
    import transformers

    kind = getattr(transformers, of.text_encoder["architectures"][0])
    with torch.device("meta"):
        return kind(kind.config_class.from_dict(of.text_encoder)).requires_grad_(False).eval()


def memory_needed(of: Architecture, setting: Setting, size_px: int = 128, device: torch.device | None = None) -> Memory:
    """What a training needs, from a forward pass of the whole model on shapes alone.

    Activations are those of fused attention, which keeps no matrix of positions by positions.

    Args:
        of: the base.
        setting: arms, precision, gradient checkpointing.
        size_px: height and width of the images.
        device: where it is to run; on a processor some weights are held in further layouts, or in fp32.
    """
    if device is not None:
        setting = dataclasses.replace(setting, precision=computing_precision(setting.precision, device))
    trainable = _meta_trainable(of, setting)
    activations = _activation_bytes(trainable, of, setting, size_px)
    return dataclasses.replace(_weights_needed(of, setting, trainable, device), activations=activations)


def _meta_trainable(of: Architecture, setting: Setting) -> Trainable:
    return Trainable(meta_denoiser(of, DTYPES[setting.precision]), setting.arms, meta_text_encoder(of, setting.arms))


def _weights_needed(of: Architecture, setting: Setting, trainable: Trainable, device: torch.device | None) -> Memory:
    """All but the activations."""
    denoiser = trainable.denoiser
    packed = of.family == "unet" and setting.precision == "bf16" and device is not None and device.type == "cpu"
    text_bytes = 4 if of.family == "unet" else DTYPES[setting.precision].itemsize
    return Memory(
        denoiser=_frozen_bytes(denoiser, setting.precision) + (packed_bytes(denoiser) if packed else 0),
        trained=_trained_bytes(trainable, setting),
        activations=0,
        autoencoder=4 * of.autoencoder,
        text_encoders=text_bytes * max(of.text_encoders),
        text_stays=of.family == "unet",
    )


def _frozen_bytes(denoiser: nn.Module, precision: str) -> int:
    total = sum(value.nbytes for value in (*denoiser.parameters(), *denoiser.buffers()))
    if precision in QUANTISED:
        packed = sum(layer.weight.numel() for layer in denoiser.modules() if isinstance(layer, nn.Linear))
        total += int(packed * (BYTES[precision] - BYTES["bf16"]))
    return total


def _trained_bytes(trainable: Trainable, setting: Setting) -> int:
    """Values, gradients and Adam's moments in fp32, the copy that is computed with, and gradients on their way."""
    numbers = trainable.rows.values.numel()
    used = DTYPES[setting.precision].itemsize
    if trainable.whole["denoiser"]:
        used = 2 if setting.precision == "bf16" else 0
        copies = 4 + 4 + used  # where it started, gradients on their way, autocast's copy
    else:
        copies = used + (used if used < 4 else 0)  # gradients on their way, and leaves where they are not the values
    averages = 4 if any(arm.ema_decay for arm in setting.arms) else 0
    return numbers * (4 + 4 + 8 + copies + averages)


def _activation_bytes(trainable: Trainable, of: Architecture, setting: Setting, size_px: int) -> int:
    denoiser: Any = trainable.denoiser
    images = sum(arm.batch for arm in setting.arms)
    dtype = DTYPES[setting.precision]
    edge = size_px // of.factor
    noisy = torch.empty(images, of.latent_channels, edge, edge, device="meta", dtype=dtype)
    model_timestep = torch.empty(images, device="meta")
    text = torch.empty(images, *of.text, device="meta", dtype=dtype)
    models = [model for model in trainable.modules.values() if model is not None]
    frozen = [value for model in models for value in (*model.parameters(), *model.buffers())]
    kept = _Kept([*frozen, *trainable.leaves])
    if setting.gradient_checkpointing:
        denoiser.enable_gradient_checkpointing(kept.checkpointed)
    whole = trainable.whole["denoiser"] is not None
    denoiser.requires_grad_(whole)  # in place of its copy, which autocast would have to turn into bf16
    pairs = [(k, arm.batch) for k, arm in enumerate(setting.arms)]
    with nullcontext() if whole else trainable.attached(pairs), kept.counting(), _FusedAttention():
        for rows, encoder in trainable.encoder_calls("text_encoder", pairs, ("lora", "full")):
            encoder(torch.empty(len(rows), of.text[0], device="meta", dtype=torch.long))
        if of.family == "unet":
            denoiser(noisy, model_timestep, text)
        else:
            pooled = torch.empty(images, of.denoiser["pooled_projection_dim"], device="meta", dtype=dtype)
            denoiser(noisy, encoder_hidden_states=text, pooled_projections=pooled, timestep=model_timestep)
    return kept.total + kept.largest


class _FusedAttention(TorchFunctionMode):
    """Within it shapes alone go through fused attention, for which torch would take the plain one."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.scaled_dot_product_attention:
            return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(*args[:3])[0]
        return func(*args, **(kwargs or {}))


class _Kept:
    """Adds up the bytes that a forward pass keeps; checkpointed parts keep their inputs, and one is computed again."""

    def __init__(self, known: Sequence[Tensor]):
        self.seen = {self._storage(value) for value in known}
        self.alive: list[Tensor] = []  # so that no storage's address is given out twice
        self.total = self.largest = 0

    @staticmethod
    def _storage(value: Tensor) -> int:
        return value.untyped_storage()._cdata

    def _add(self, value: Tensor) -> Tensor:
        if self._storage(value) not in self.seen:
            self.seen.add(self._storage(value))
            self.alive.append(value)
            self.total += value.untyped_storage().nbytes()
        return value

    @contextmanager
    def counting(self) -> Iterator[None]:
        with torch.autograd.graph.saved_tensors_hooks(self._add, lambda value: value):
            yield

    def checkpointed(self, module: Any, *inputs: Any) -> Any:
        for value in inputs:
            if isinstance(value, Tensor):
                self._add(value)
        before = self.total
        with self.counting():
            output = module(*inputs)
        self.largest, self.total = max(self.largest, self.total - before), before
        return output


def free_bytes(device: torch.device) -> int:
    """Memory that a new training may take on a device; of a host's no more than control groups leave."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():
        fields = dict(line.split(":") for line in meminfo.read_text().splitlines())
        return min([int(fields["MemAvailable"].split()[0]) * 1024, *_left_in_groups()])
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _left_in_groups() -> Iterator[int]:
    """What the limits of this process's control group (version 2) and of those above it leave."""
    groups = OWN_GROUP.read_text() if OWN_GROUP.exists() else ""
    own = next((line.removeprefix("0::/") for line in groups.splitlines() if line.startswith("0::/")), "")
    for group in (GROUPS / own, *(GROUPS / own).parents):
        limit = (group / "memory.max").read_text().strip() if (group / "memory.max").exists() else "max"
        if limit != "max":
            used = int((group / "memory.current").read_text())
            stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
            yield max(0, int(limit) - used + int(stat["inactive_file"]))  # page cache that the system takes back


def smaller_settings(setting: Setting, device: torch.device) -> Iterator[tuple[str, Setting]]:
    """Settings that need less and less, nearest first, each with what was changed."""
    changes: dict[str, str] = {}

    def changed(name: str, what: str, **values: Any) -> tuple[str, Setting]:
        nonlocal setting
        changes[name] = what
        setting = dataclasses.replace(setting, **values)
        return ", ".join(changes.values()), setting

    if not setting.gradient_checkpointing:
        yield changed("checkpointing", "gradient checkpointing", gradient_checkpointing=True)
    if setting.precision == "fp32":
        yield changed("precision", "precision bf16", precision="bf16")
    while any(arm.batch > 1 for arm in setting.arms):
        arms = tuple(_halved_batch(arm) for arm in setting.arms)
        yield changed("batch", f"batch {arms[0].batch} with accumulation {arms[0].accumulation}", arms=arms)
    if device.type == "cuda" and not any(arm.targets == "full" or arm.dora for arm in setting.arms):
        for precision in QUANTISED:
            yield changed("precision", f"precision {precision}", precision=precision)
    arm, *others = setting.arms
    if others:
        yield changed("arms", "one arm at a time", arms=(arm,))
    if arm.targets == "full":
        arm = dataclasses.replace(arm, targets="attention", rank=128)
        yield changed("rank", "a LoRA of rank 128 on attention in place of the whole denoiser", arms=(arm,))
    while arm.rank > 1:
        arm = dataclasses.replace(arm, rank=arm.rank // 2, alpha=arm.alpha and arm.alpha / 2)
        yield changed("rank", f"a LoRA of rank {arm.rank}", arms=(arm,))


def _halved_batch(arm: Arm) -> Arm:
    if arm.batch % 2:
        return dataclasses.replace(arm, batch=1, accumulation=arm.accumulation * arm.batch)
    return dataclasses.replace(arm, batch=arm.batch // 2, accumulation=arm.accumulation * 2)


def require_memory(
    name: str | Path, setting: Setting, device: torch.device, *, size_px: int = 128, available: int | None = None
) -> Memory:
    """What a training needs, if the device has it.

    Args:
        name: a base, as for `load_base`.
        setting: arms, precision, gradient checkpointing.
        device: where it is to run.
        size_px: height and width of the images.
        available: bytes; what is free on the device by default.
    Raises:
        ValueError: it has not, with what is needed, what there is, and the nearest setting that fits.
    """
    of = architecture(name)
    available = free_bytes(device) if available is None else available
    needed = memory_needed(of, setting, size_px, device)
    if needed.peak <= available:
        return needed
    message = f"{name}: this training needs {needed}, and {available / GIGABYTE:.1f} GB are free on {device.type}. "
    for what, smaller in smaller_settings(setting, device):
        if _weights_needed(of, smaller, _meta_trainable(of, smaller), device).peak > available:
            continue
        found = memory_needed(of, smaller, size_px, device)
        if found.peak <= available:
            raise ValueError(f"{message}With {what} it needs {found.peak / GIGABYTE:.1f} GB")
    raise ValueError(f"{message}No setting of this base fits")
