"""What a processor computes in, and frozen layers whose weights are laid out for it once, not at every call.

At batch 1 and a few latents a side, a wide layer in bf16 spends most of its time on bringing its weights into the
layout that oneDNN computes with, forwards and again backwards. A frozen weight can be kept in both layouts.
"""

from typing import Any

import torch
from torch import Tensor, nn

FEWEST_NUMBERS = 500_000  # of a weight; below, little is won
REORDER_CONVOLUTION: Any = torch._C._nn.mkldnn_reorder_conv2d_weight  # type: ignore[attr-defined]


class _Frozen(torch.autograd.Function):
    """A packed layer's output; backwards, the gradient by its input alone."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: "PackedLayer") -> Tensor:
        ctx.layer, ctx.shape = layer, x.shape
        return layer.output(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        return ctx.layer.input_gradient(gradients[0].contiguous(), ctx.shape), None


class PackedLayer(nn.Module):
    """A frozen bf16 layer that computes with packed copies of its weight, one forwards and one backwards.

    With another weight in its place (one that is trained, say) it is an ordinary layer.

    Args:
        layer: whose weight and bias it takes over.
    """

    weight: Tensor
    bias: Tensor | None
    _there: Tensor
    _back: Tensor

    def _take(self, layer: nn.Linear | nn.Conv2d) -> Tensor:
        self.weight, self.bias = layer.weight, layer.bias
        self._of = layer.weight, layer.weight._version
        return layer.weight.detach()

    def forward(self, input: Tensor) -> Tensor:
        """What the ordinary layer gives, but for rounding: (N, out, h, w) or (N, ..., out)."""
        known, version = self._of
        if self.weight is not known or known._version != version or input.dtype != torch.bfloat16:
            return super().forward(input)
        return _Frozen.apply(input.contiguous(), self)

    def output(self, x: Tensor) -> Tensor:
        """(N, out, h, w) or (N, ..., out), outside of autograd; x is contiguous."""
        return self._product(x, self._there, self.bias)

    def input_gradient(self, gradient: Tensor, shape: torch.Size) -> Tensor:
        """(N, in, h, w) or (N, ..., in), the gradient by an input of this shape; that by the output is contiguous."""
        return self._product(gradient, self._back, None)

    def _product(self, x: Tensor, packed: Tensor, bias: Tensor | None) -> Tensor:
        """(..., out) of (..., in)."""
        return torch.ops.mkldnn._linear_pointwise(x, packed, bias, "none", [], "")


class PackedLinear(PackedLayer, nn.Linear):
    """See `PackedLayer`."""

    def __init__(self, layer: nn.Linear):
        nn.Linear.__init__(self, layer.in_features, layer.out_features, device="meta")
        weight = self._take(layer)
        self._there, self._back = _packed_matrix(weight), _packed_matrix(weight.T)


class PackedPointwise(PackedLayer, nn.Conv2d):
    """A 1 x 1 convolution: the same linear layer at each position. See `PackedLayer`."""

    def __init__(self, layer: nn.Conv2d):
        nn.Conv2d.__init__(self, layer.in_channels, layer.out_channels, 1, device="meta")
        weight = self._take(layer).flatten(1)
        self._there, self._back = _packed_matrix(weight), _packed_matrix(weight.T)

    def _product(self, x: Tensor, packed: Tensor, bias: Tensor | None) -> Tensor:
        rows = x.flatten(2).mT.contiguous()  # (N, h·w, C)
        return super()._product(rows, packed, bias).mT.unflatten(2, x.shape[2:]).contiguous()


class PackedConv2d(PackedLayer, nn.Conv2d):
    """A 3 x 3 convolution of stride 1 or 2; backwards it is another one, by the weights turned round."""

    def __init__(self, layer: nn.Conv2d):
        stride = layer.stride[0]
        nn.Conv2d.__init__(self, layer.in_channels, layer.out_channels, 3, stride, 1, device="meta")
        weight = self._take(layer)
        self._there = _packed_kernel(weight, stride)
        self._back = _packed_kernel(weight.flip(2, 3).transpose(0, 1), 1)

    def output(self, x: Tensor) -> Tensor:
        """(N, out, h / stride, w / stride) of (N, in, h, w)."""
        return _convolved(x, self._there, self.bias, self.stride[0])

    def input_gradient(self, gradient: Tensor, shape: torch.Size) -> Tensor:
        """(N, in, h, w) of (N, out, h / stride, w / stride)."""
        if (stride := self.stride[0]) > 1:  # between the positions that the convolution went to there is no gradient
            spread = gradient.new_zeros(*gradient.shape[:2], *shape[2:])
            spread[:, :, ::stride, ::stride] = gradient
            gradient = spread
        return _convolved(gradient, self._back, None, 1)


def _packed_matrix(weight: Tensor) -> Tensor:
    return torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), None)


def _geometry(stride: int) -> Any:
    return [1, 1], [stride, stride], [1, 1], 1  # padding, stride, dilation, groups


def _packed_kernel(weight: Tensor, stride: int) -> Tensor:
    """One layout whatever the size of the images, so that the same numbers come out whichever size came first."""
    size = [1, weight.shape[1], 8, 8]
    return REORDER_CONVOLUTION(weight.contiguous().to_mkldnn(), *_geometry(stride), size)


def _convolved(x: Tensor, packed: Tensor, bias: Tensor | None, stride: int) -> Tensor:
    return torch.ops.mkldnn._convolution_pointwise(x, packed, bias, *_geometry(stride), "none", [], "")


def computes_bf16() -> bool:
    """Whether this build of torch and this processor compute bf16 through oneDNN."""
    return torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()


def computing_precision(precision: str, device: torch.device) -> str:
    """What a denoiser of this precision is computed in: `fp32` in place of `bf16` on a processor that lacks bf16.

    There a drawing in bf16 takes twenty times as long as in fp32 (measured with the instructions of AVX2 alone).
    """
    return "fp32" if precision == "bf16" and device.type == "cpu" and not computes_bf16() else precision


def autocast_bf16() -> torch.autocast:
    """Context manager: this process's processor computes in bf16, where it does so at all."""
    return torch.autocast("cpu", torch.bfloat16, enabled=computes_bf16())


def packed_kind(layer: nn.Module) -> type[PackedLinear | PackedPointwise | PackedConv2d] | None:
    """As what a layer is packed, or None where little is won or it is of another kind."""
    if not isinstance(layer, nn.Linear | nn.Conv2d) or layer.weight.numel() < FEWEST_NUMBERS:
        return None
    if isinstance(layer, nn.Linear):
        return PackedLinear
    if (layer.dilation, layer.groups, layer.padding_mode) != ((1, 1), 1, "zeros"):
        return None
    kinds: dict[Any, Any] = {
        ((1, 1), (1, 1), (0, 0)): PackedPointwise,
        ((3, 3), (1, 1), (1, 1)): PackedConv2d,
        ((3, 3), (2, 2), (1, 1)): PackedConv2d,
    }
    return kinds.get((layer.kernel_size, layer.stride, layer.padding))


def packed_bytes(denoiser: nn.Module) -> int:
    """What the packed copies of a denoiser's layers take, besides its weights."""
    return sum(2 * 2 * layer.weight.numel() for layer in denoiser.modules() if packed_kind(layer))  # type: ignore[union-attr]


def pack_layers(denoiser: nn.Module) -> None:
    """Replaces the wide layers of a frozen bf16 denoiser on a processor, in place; names and weights stay.

    Args:
        denoiser: on a CPU that computes bf16, in bf16, frozen.
    """
    for parent in list(denoiser.modules()):
        for name, layer in list(parent.named_children()):
            if (kind := packed_kind(layer)) is not None:
                setattr(parent, name, kind(layer))  # type: ignore[arg-type]
