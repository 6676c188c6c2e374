"""Low-rank adapters: stacked LoRA or DoRA layers for K arms over one frozen module."""

import math
import re
import zlib
from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kanjilab.core.config import Arm
from kanjilab.core.rng import counted_rng
from kanjilab.models.parameters import ArmSlices, FlatParameters, Slot

Layer = nn.Linear | nn.Conv2d
# The second half are the text's in an MMDiT, whose attention is over image and text together.
ATTENTION = r"(to_(q|k|v|out\.0)|add_[qkv]_proj|to_add_out)$"
TARGET_PATTERNS = {
    "cross-attention": re.compile(r"\.attn2\." + ATTENTION),
    "attention": re.compile(r"\.attn\d?\." + ATTENTION),
    "attention+feed-forward": re.compile(r"(\.attn\d?\." + ATTENTION + r"|\.ff(_context)?\.net\.(0\.proj|2)$)"),
    "all": re.compile(""),
}
# Of CLIP, and of BERT.
TEXT_ATTENTION = r"(\.self_attn\.(q|k|v|out)_proj|\.attention\.(self\.(query|key|value)|output\.dense))$"
TEXT_FEED_FORWARD = r"(\.mlp\.fc[12]|\.intermediate\.dense|\.\d+\.output\.dense)$"
TEXT = "text_encoder."  # before the names of the text encoder's layers
PEFT = "base_model.model."  # before the names of PEFT's tensors
MAGNITUDE = "lora_magnitude_vector"  # PEFT's name of what DoRA trains beside A and B


def row_norms(weight: Tensor) -> Tensor:
    """Length of each output's weights, over all of its inputs.

    In float32 whatever the weights are in: rounded to bf16, it would lengthen or shorten whole rows by up to 0.2%.

    Args:
        weight: (out, in) or (out, C, kh, kw).
    Returns:
        (out,) float32, above 0 even where all weights are 0, so that it can divide.
    """
    norms = torch.linalg.vector_norm(weight.flatten(1), dim=1, dtype=torch.float32)
    return norms.clamp(min=torch.finfo(torch.float32).tiny)


def with_row_norms(weight: Tensor, magnitude: Tensor) -> Tensor:
    """DoRA's m · V / ‖V‖: each output's weights turned as they are, but of another length.

    The gradient takes ‖V‖ for a constant, which saves memory and costs no quality.

    Args:
        weight: V, (out, in) or (out, C, kh, kw).
        magnitude: m, (out,) float32.
    Returns:
        As the weight.
    Source: Liu et al. 2024, arXiv:2402.09353, equation 5 and section 4.3.
    """
    factor = magnitude / row_norms(weight.detach())
    return (weight * factor.view(-1, *[1] * (weight.ndim - 1))).to(weight.dtype)


class StackedLora(nn.Module):
    """A frozen linear or convolution layer plus one low-rank update per arm.

    y = W x + scale_k · B_k A_k x for the images of arm k. Where an arm has many positions, its merged
    weight W + scale · B A is the cheaper way to the same function; elsewhere all arms go through one
    batched product beside the base. Which way is taken does not depend on the number of arms. Of an arm
    with DoRA the merged weight is needed in any case, since its rows get the lengths m.

    Args:
        base: the frozen layer.
        down: (K, r, in) or, for a convolution, (K, r, in·kh·kw).
        up: (K, out, r).
        scales: K numbers, on the CPU.
        slices: shared by all layers, set before each forward pass.
        magnitude: (K, out) float32, DoRA's m; None where no arm of this layer has it.
        decomposed: K flags, which arms have it.
    """

    def __init__(
        self,
        base: Layer,
        down: nn.Parameter,
        up: nn.Parameter,
        scales: Tensor,
        slices: ArmSlices,
        magnitude: nn.Parameter | None,
        decomposed: Sequence[bool],
    ):
        super().__init__()
        self.base = base
        # In a tuple, torch does not see them: the model's parameters, and so its dtype, stay the base's.
        self.trained = (down, up, magnitude)
        self.decomposed = tuple(decomposed)
        self.scales = scales.to(down)
        self.factors = scales.tolist()
        self.slices = slices

    def forward(self, x: Tensor) -> Tensor:
        """x: (N, ..., in) or (N, C, h, w), the images of each arm side by side."""
        pairs = self.slices.pairs
        if not pairs:
            return self.base(x)
        arms, counts = zip(*pairs, strict=True)
        chunks = x.split(counts)
        merging = [self.decomposed[arm] or self._merging_pays(chunk) for chunk, arm in zip(chunks, arms, strict=True)]
        if len(set(counts)) == 1 and not any(merging):
            return self._beside(x, arms)
        ways = [self._merged if merges else self._beside for merges in merging]
        outputs = [way(chunk, [arm]) for way, chunk, arm in zip(ways, chunks, arms, strict=True)]
        return torch.cat(outputs) if len(outputs) > 1 else outputs[0]

    def _merging_pays(self, x: Tensor) -> bool:
        """Whether W + scale · B A costs fewer multiplications than applying A and B, forward and backward."""
        if not self.base.weight.is_floating_point():
            return False  # 8-bit or 4-bit: there is no W to add to
        down, up, _ = self.trained
        (rank, width), height = down.shape[1:], up.shape[1]
        positions = x.numel() // x.shape[1 if isinstance(self.base, nn.Conv2d) else -1]
        return width * height * (positions + 3 * rank) <= 3 * positions * rank * (width + height)

    def _merged(self, x: Tensor, arms: Sequence[int]) -> Tensor:
        """The layer with the merged weight of one arm."""
        base, arm = self.base, arms[0]
        down, up, magnitude = self.trained
        weight = torch.addmm(base.weight.flatten(1).to(x.dtype), up[arm], down[arm], alpha=self.factors[arm])
        if magnitude is not None and self.decomposed[arm]:
            weight = with_row_norms(weight, magnitude[arm])
        if not isinstance(base, nn.Conv2d):
            return F.linear(x, weight, base.bias)
        return F.conv2d(x, weight.view(base.weight.shape), base.bias, base.stride, base.padding, base.dilation)

    def _beside(self, x: Tensor, arms: Sequence[int]) -> Tensor:
        """The base's output plus the low-rank part, for equal stretches of the given arms."""
        whole = list(arms) == list(range(len(self.factors)))
        down, up, _ = self.trained  # (K, r, in), (K, out, r)
        scales = self.scales.view(-1, 1, 1)
        if not whole:
            down, up, scales = down[list(arms)], up[list(arms)], scales[list(arms)]
        y = self.base(x)
        if not isinstance(self.base, nn.Conv2d):
            stacked = x.reshape(len(arms), -1, x.shape[-1])  # (K, n, in)
            return y + torch.bmm(torch.bmm(stacked, down.mT) * scales, up.mT).view_as(y)
        base, padding = self.base, cast(tuple[int, int], self.base.padding)
        if base.kernel_size == (1, 1) and base.stride == (1, 1):
            columns = x.flatten(2)  # (N, C, h·w)
        else:
            columns = F.unfold(x, base.kernel_size, base.dilation, padding, base.stride)  # (N, C·kh·kw, h'·w')
        per_arm = len(x) // len(arms)
        reduced = torch.bmm((down * scales).repeat_interleave(per_arm, 0), columns)  # (N, r, h'·w')
        return y + torch.bmm(up.repeat_interleave(per_arm, 0), reduced).view_as(y)


def compute_dtype(denoiser: nn.Module) -> torch.dtype:
    """In which a denoiser computes: that of its first floating-point weights, since packed ones are whole numbers."""
    return next(value.dtype for value in denoiser.parameters() if value.is_floating_point())


def target_layers(denoiser: nn.Module, targets: str) -> dict[str, Layer]:
    """The layers that a choice of targets names, by their full names, in the model's order; `all` fits any module.

    Raises:
        ValueError: the denoiser has no such layer, or no such attention.
    """
    if targets == "cross-attention" and any(name.endswith(".add_k_proj") for name, _ in denoiser.named_modules()):
        raise ValueError(
            f"{type(denoiser).__name__} attends to image and text jointly and has no cross-attention; "
            "expected targets 'attention', 'attention+feed-forward' or 'all'"
        )
    return _layers_named(denoiser, TARGET_PATTERNS[targets], targets)


def text_layers(text_encoder: nn.Module, targets: str) -> dict[str, Layer]:
    """As `target_layers`, of a text encoder: its attention, and its feed-forward where targets have the denoiser's.

    Raises:
        ValueError: it has no layer that is known by its name; those of CLIP and BERT are.
    """
    wide = targets in ("attention+feed-forward", "all")
    pattern = re.compile(f"{TEXT_ATTENTION}|{TEXT_FEED_FORWARD}" if wide else TEXT_ATTENTION)
    return _layers_named(text_encoder, pattern, targets)


def _layers_named(model: nn.Module, pattern: re.Pattern[str], targets: str) -> dict[str, Layer]:
    layers = {name: layer for name, layer in model.named_modules() if isinstance(layer, Layer) and pattern.search(name)}
    if not layers:
        raise ValueError(f"targets {targets!r} name no layer of {type(model).__name__}")
    return layers


def initial_down(name: str, shape: tuple[int, int], seed: int) -> np.ndarray:
    """PEFT's initial A: uniform in ±1/sqrt(in), drawn by (seed, layer) alone.

    Rows are drawn in order, so a smaller rank begins with the first rows of a larger one.

    Returns:
        (r, in) float32.
    """
    rng = counted_rng(seed, "initial weights", zlib.crc32(name.encode()))
    return (rng.random(shape, dtype=np.float32) * 2 - 1) / np.float32(math.sqrt(shape[1]))


def peft_magnitude(magnitude: Tensor, dimensions: int) -> Tensor:
    """DoRA's m in the shape that PEFT gives it: (out,), of a convolution (1, out, 1, 1).

    Args:
        magnitude: (out,).
        dimensions: of the layer's weight, 2 or 4.
    """
    return magnitude if dimensions == 2 else magnitude.view(1, -1, 1, 1)


class LoraPart:
    """Low-rank adapters on one module for K arms, of any ranks, scales and layers; see `trainable.TrainedPart`.

    Smaller ranks are padded with zeros in A *and* B, and an arm that leaves a layer out has zeros there: where both are
    zero, so are both gradients, exactly. DoRA's lengths m exist where some arm has them, and are zeros of no use to the
    others.

    Args:
        module: frozen here; its layers are wrapped only within `Trainable.attached`.
        prefix: before the names of its layers.
        layers: per arm, the layers that it adapts, by name.
        arms: their rank, alpha, dora and seed are used.
        slices: which stretch of a batch is whose, while attached.
    Raises:
        ValueError: an arm with DoRA over 8-bit or 4-bit weights.
    """

    def __init__(
        self,
        module: nn.Module,
        prefix: str,
        layers: Sequence[Mapping[str, Layer]],
        arms: Sequence[Arm],
        slices: ArmSlices,
    ):
        self.module, self.prefix = module.requires_grad_(False), prefix
        self.arms, self.slices = tuple(arms), slices
        self.layers = {prefix + name: layer for adapted in layers for name, layer in adapted.items()}
        self.covered = {name: [name.removeprefix(prefix) in adapted for adapted in layers] for name in self.layers}
        self.decomposed = {
            name: [arm.dora and here for arm, here in zip(arms, covered, strict=True)]
            for name, covered in self.covered.items()
        }
        self.scales = torch.tensor([arm.scale for arm in arms])
        self.shapes = self._shapes()
        # Encoders compute in float32, and DoRA's lengths would, rounded, scale whole rows.
        self.exact = {name for name in self.shapes if prefix or name.endswith(MAGNITUDE)}

    def _shapes(self) -> dict[str, tuple[int, ...]]:
        """Of one arm's tensors, by name."""
        rank, shapes = max(arm.rank for arm in self.arms), {}
        for name, layer in self.layers.items():
            if isinstance(layer, nn.Linear):
                height, width = layer.out_features, layer.in_features  # quantised weights have another shape
            else:
                height, width = layer.weight.flatten(1).shape
            shapes[f"{name}.lora_A"] = (rank, width)
            shapes[f"{name}.lora_B"] = (height, rank)
            if any(self.decomposed[name]):
                if not layer.weight.is_floating_point():
                    raise ValueError(f"{name} is quantised, and dora needs its weights: expected them in fp32 or bf16")
                shapes[f"{name}.{MAGNITUDE}"] = (height,)
        return shapes

    def initialise(self, rows: FlatParameters) -> None:
        """A at random, by seed and layer; B zero; DoRA's lengths those of the layer."""
        views = rows.views(rows.values)
        for name, layer in self.layers.items():
            down = views[f"{name}.lora_A"]
            for k, arm in enumerate(self.arms):
                if self.covered[name][k]:
                    down[k, : arm.rank] = torch.from_numpy(initial_down(name, (arm.rank, down.shape[2]), arm.seed))
                if self.decomposed[name][k]:
                    views[f"{name}.{MAGNITUDE}"][k] = row_norms(layer.weight)

    def attach(self, rows: FlatParameters) -> list[Slot]:
        """Where the module holds each layer, and the wrapped layer that takes its place."""
        slots: list[Slot] = []
        for name, layer in self.layers.items():
            names = (f"{name}.lora_A", f"{name}.lora_B", f"{name}.{MAGNITUDE}")
            down, up, magnitude = (rows.leaves.get(leaf) for leaf in names)
            assert down is not None and up is not None
            owner, _, leaf = name.removeprefix(self.prefix).rpartition(".")
            wrapper = StackedLora(layer, down, up, self.scales, self.slices, magnitude, self.decomposed[name])
            slots.append((self.module.get_submodule(owner)._modules, leaf, wrapper))
        return slots

    def state(self, k: int, views: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """A copy of one arm's adapter in PEFT's names and shapes, padding removed."""
        rank, tensors = self.arms[k].rank, {}
        for name, layer in self.layers.items():
            if not self.covered[name][k]:
                continue
            down = views[f"{name}.lora_A"][k, :rank]
            up = views[f"{name}.lora_B"][k, :, :rank]
            if isinstance(layer, nn.Conv2d):
                down, up = down.view(rank, *layer.weight.shape[1:]), up[:, :, None, None]
            tensors[f"{PEFT}{name}.lora_A.weight"] = down.to("cpu", copy=True).contiguous()
            tensors[f"{PEFT}{name}.lora_B.weight"] = up.to("cpu", copy=True).contiguous()
            if self.decomposed[name][k]:
                magnitude = views[f"{name}.{MAGNITUDE}"][k].to("cpu", copy=True)
                tensors[f"{PEFT}{name}.{MAGNITUDE}"] = peft_magnitude(magnitude, layer.weight.ndim)
        return tensors

    def load_state(self, k: int, tensors: Mapping[str, Tensor], views: Mapping[str, Tensor]) -> None:
        """Sets one arm's adapter from those that `state` gave."""
        rank = self.arms[k].rank
        for name in self.state(k, views):
            layer, kind = name.removeprefix(PEFT).removesuffix(".weight").rsplit(".", 1)
            view = views[f"{layer}.{kind}"][k]
            if kind == "lora_A":
                view[:rank] = tensors[name].flatten(1)
            elif kind == "lora_B":
                view[:, :rank] = tensors[name].flatten(1)
            else:
                view[:] = tensors[name].flatten()

    def config(self, k: int) -> dict[str, Any]:
        """PEFT's `adapter_config.json` for one arm."""
        arm = self.arms[k]
        return {
            "peft_type": "LORA",
            "base_model_name_or_path": None,
            "r": arm.rank,
            "lora_alpha": arm.rank if arm.alpha is None else arm.alpha,
            "use_rslora": arm.rslora,
            "use_dora": arm.dora,
            "lora_dropout": 0.0,
            "bias": "none",
            "init_lora_weights": True,
            "target_modules": sorted(name for name in self.layers if self.covered[name][k]),
        }

    def squared_update(self, views: Mapping[str, Tensor]) -> Tensor:
        """(K,) squared Frobenius norm of what is added to the weights: scale·B·A through r × r products."""
        total = torch.zeros(len(self.arms), device=views[next(iter(self.shapes))].device)
        for name in self.layers:
            down, up = views[f"{name}.lora_A"], views[f"{name}.lora_B"]
            total += ((up.mT @ up) * (down @ down.mT)).sum(dim=(1, 2))  # (K,)
        squared = self.scales.to(total.device).square() * total.clamp(min=0)
        for k, arm in enumerate(self.arms):
            if arm.dora:
                squared[k] = self._decomposed_update(k, views)
        return squared

    def _decomposed_update(self, k: int, views: Mapping[str, Tensor]) -> Tensor:
        """Scalar: as `squared_update`, of an arm with DoRA, whose rows change as a whole."""
        total = torch.zeros((), device=views[next(iter(self.shapes))].device)
        for name, layer in self.layers.items():
            if self.decomposed[name][k]:
                weight = layer.weight.flatten(1).float()
                down, up = views[f"{name}.lora_A"][k], views[f"{name}.lora_B"][k]
                turned = weight + self.scales[k].to(total.device) * up @ down
                total += (with_row_norms(turned, views[f"{name}.{MAGNITUDE}"][k]) - weight).square().sum()
        return total
