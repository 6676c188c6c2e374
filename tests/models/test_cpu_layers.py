"""Packed layers: the numbers of plain ones, forwards and backwards, for frozen weights alone."""

import copy

import pytest
import torch
from torch import nn

from kanjilab.core.config import Arm
from kanjilab.models import cpu_layers as packed
from kanjilab.models.cpu_layers import (
    PackedConv2d,
    PackedLinear,
    PackedPointwise,
    pack_layers,
    packed_bytes,
    packed_kind,
)
from kanjilab.models.loading import load_base
from kanjilab.models.trainable import Trainable

pytestmark = pytest.mark.skipif(not packed.computes_bf16(), reason="this torch has no oneDNN with bf16")


LAYERS = {
    "stride 1": (nn.Conv2d(240, 250, 3, padding=1), PackedConv2d),
    "stride 2": (nn.Conv2d(240, 250, 3, stride=2, padding=1), PackedConv2d),
    "pointwise": (nn.Conv2d(240, 2_100, 1), PackedPointwise),
    "linear": (nn.Linear(240, 2_100), PackedLinear),
    "no bias": (nn.Linear(240, 2_100, bias=False), PackedLinear),
}


@pytest.fixture(scope="module", params=LAYERS.values(), ids=LAYERS)
def wide(request):
    return request.param


@pytest.fixture(scope="module")
def plain(wide):
    return nn.Sequential(copy.deepcopy(wide[0])).to(torch.bfloat16).requires_grad_(False)


@pytest.fixture(scope="module")
def faster(plain, wide):
    model = copy.deepcopy(plain)
    pack_layers(model)
    assert type(model[0]) is wide[1]
    return model


def inputs(model, images, edge):
    """Of a convolution (N, C, h, w), of a linear layer (N, h·w, C)."""
    shape = (images, edge * edge, 240) if isinstance(model[0], nn.Linear) else (images, 240, edge, edge)
    return torch.randn(shape, generator=torch.Generator().manual_seed(edge)).to(torch.bfloat16)


def output_and_gradient(model, x):
    x = x.to(next(model.parameters()).dtype, copy=True).requires_grad_()
    y = model(x)
    y.float().square().sum().backward()
    return y.detach().float(), x.grad.float()


@pytest.mark.parametrize(("images", "edge"), [(1, 2), (1, 16), (3, 5), (8, 8)])
def test_it_computes_what_fp32_does_as_exactly_as_the_plain_one(plain, faster, images, edge):
    x = inputs(plain, images, edge)
    exact = output_and_gradient(copy.deepcopy(plain).float(), x.float())
    for mine, theirs, value in zip(output_and_gradient(faster, x), output_and_gradient(plain, x), exact, strict=True):
        assert (mine - value).abs().max() <= 1.5 * (theirs - value).abs().max() + 1e-3 * value.abs().max()
        assert (mine - value).abs().max() < 0.03 * value.abs().max()


def test_the_same_input_gives_the_same_bits_whatever_came_before(plain):
    first, second = copy.deepcopy(plain), copy.deepcopy(plain)
    for model in (first, second):
        pack_layers(model)
    second(inputs(second, 8, 16))
    x = inputs(plain, 1, 4)
    assert torch.equal(first(x), second(x))


def test_names_and_weights_stay(plain, faster):
    assert plain.state_dict().keys() == faster.state_dict().keys()
    assert all(torch.equal(value, plain.state_dict()[name]) for name, value in faster.state_dict().items())


def test_another_weight_is_used_as_it_is(plain):
    model = copy.deepcopy(plain)
    pack_layers(model)
    layer, x = model[0], inputs(model, 1, 4)
    trained = nn.Parameter(torch.zeros_like(layer.weight))
    before, layer._parameters["weight"] = layer.weight, trained
    layer(x).float().sum().backward()
    assert trained.grad is not None and trained.grad.abs().max() > 0
    layer._parameters["weight"] = before
    with torch.no_grad():
        before.zero_()  # in place
    bias = torch.zeros(layer.weight.shape[0]).bfloat16() if layer.bias is None else layer.bias
    out = layer(x) if isinstance(layer, nn.Linear) else layer(x).movedim(1, -1)
    torch.testing.assert_close(out, bias.expand_as(out))


def test_an_arm_with_dora_computes_with_its_own_weight(plain, faster):
    arm, x = Arm(targets="all", rank=2, dora=True), inputs(plain, 2, 4)
    outputs = []
    for model in (plain, faster):
        stack = Trainable(model, [arm])
        generator = torch.Generator().manual_seed(1)
        stack.load_state(0, {n: torch.rand(v.shape, generator=generator) / 9 for n, v in stack.state(0).items()})
        with stack.attached(((0, 2),)):
            outputs.append(output_and_gradient(model, x))
    for mine, theirs in zip(*outputs, strict=True):
        assert torch.equal(mine, theirs)


def test_pocket_is_left_as_it_is():
    pocket = load_base("pocket", "bf16").denoiser
    assert not any(packed_kind(layer) for layer in pocket.modules())
    assert packed_bytes(pocket) == 0


@pytest.mark.parametrize(
    "layer",
    [
        nn.Linear(700, 700),  # narrow
        nn.Conv2d(640, 640, 3),  # no padding
        nn.Conv2d(640, 640, 3, padding=1, dilation=2),
        nn.Conv2d(1_280, 1_280, 3, padding=1, groups=2),
        nn.Conv2d(640, 640, 3, padding=1, padding_mode="circular"),
        nn.Conv2d(1_280, 1_280, 1, stride=2),
        nn.Conv2d(640, 640, (3, 1), padding=(1, 0)),
        nn.Conv2d(640, 640, 3, stride=(1, 2), padding=1),
        nn.Conv2d(640, 640, 3, padding="same"),
        nn.Conv1d(640, 640, 3, padding=1),
    ],
    ids=str,
)
def test_layers_of_other_kinds_are_left(layer):
    assert packed_kind(layer) is None
    assert packed_bytes(nn.Sequential(layer)) == 0


def test_two_copies_of_each_wide_weight_are_counted(plain):
    assert packed_bytes(plain) == 2 * plain[0].weight.nbytes
