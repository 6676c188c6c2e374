"""Frozen convolutions whose weights are laid out for the processor once, not anew at every call.

At batch 1 and a few latents a side, a wide convolution in bf16 spends most of its time on bringing its weights into the
layout that oneDNN computes with, forwards and again backwards. A frozen weight can be kept in both layouts.
"""

from typing import Any

import torch
from torch import Tensor, nn

# Below, nothing is won: narrow layers spend their time otherwise.
FEWEST_NUMBERS = 2_000_000
GEOMETRY: Any = [1, 1], [1, 1], [1, 1], 1  # padding, stride, dilation, groups


class _Convolution(torch.autograd.Function):
    """A 3 x 3 convolution with packed weights; backwards it is another one, by the weights turned round."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, forwards: Tensor, backwards: Tensor, bias: Tensor | None) -> Tensor:
        ctx.backwards = backwards
        return _convolved(x, forwards, bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        return _convolved(gradients[0].contiguous(), ctx.backwards, None), None, None, None


def _convolved(x: Tensor, packed: Tensor, bias: Tensor | None) -> Tensor:
    return torch.ops.mkldnn._convolution_pointwise(x, packed, bias, *GEOMETRY, "none", [], "")


def _packed(weight: Tensor) -> Tensor:
    """One layout whatever the size of the images, so that the same numbers come out whichever size came first."""
    size = [1, weight.shape[1], 8, 8]
    reorder = torch._C._nn.mkldnn_reorder_conv2d_weight  # type: ignore[attr-defined]
    return reorder(weight.contiguous().to_mkldnn(), *GEOMETRY, size)


class PackedConv2d(nn.Conv2d):
    """A frozen bf16 convolution, 3 x 3 of stride 1, that computes with packed copies of its weight.

    With another weight in its place (one that is trained, say) it is an ordinary convolution.

    Args:
        layer: whose weight and bias it takes over.
    """

    def __init__(self, layer: nn.Conv2d):
        super().__init__(layer.in_channels, layer.out_channels, 3, padding=1, device="meta")
        self.weight, self.bias = layer.weight, layer.bias
        weight = layer.weight.detach()
        self._of = layer.weight, layer.weight._version
        self._forwards = _packed(weight)
        self._backwards = _packed(weight.flip(2, 3).transpose(0, 1))

    def forward(self, input: Tensor) -> Tensor:
        """(N, out, h, w) of (N, in, h, w)."""
        known, version = self._of
        if self.weight is not known or known._version != version or input.dtype != torch.bfloat16:
            return super().forward(input)
        return _Convolution.apply(input.contiguous(), self._forwards, self._backwards, self.bias)


def can_pack() -> bool:
    """Whether this build of torch and this processor compute bf16 through oneDNN."""
    return torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()


def is_packed_well(layer: nn.Module) -> bool:
    """Whether a layer is a convolution that gains by it."""
    return (
        isinstance(layer, nn.Conv2d)
        and layer.weight.numel() >= FEWEST_NUMBERS
        and (layer.kernel_size, layer.stride, layer.padding) == ((3, 3), (1, 1), (1, 1))
        and (layer.dilation, layer.groups, layer.padding_mode) == ((1, 1), 1, "zeros")
    )


def packed_bytes(denoiser: nn.Module) -> int:
    """What the packed copies of a denoiser's convolutions take, besides its weights."""
    if not can_pack():
        return 0
    return sum(2 * 2 * layer.weight.numel() for layer in denoiser.modules() if is_packed_well(layer))  # type: ignore[union-attr]


def pack_convolutions(denoiser: nn.Module) -> None:
    """Replaces the wide convolutions of a frozen bf16 denoiser on a processor, in place; names and weights stay.

    Args:
        denoiser: on the CPU, in bf16, frozen.
    """
    if not can_pack():
        return
    for parent in list(denoiser.modules()):
        for name, layer in list(parent.named_children()):
            if is_packed_well(layer):
                setattr(parent, name, PackedConv2d(layer))  # type: ignore[arg-type]
