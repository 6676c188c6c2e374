"""Packed convolutions: the numbers of plain ones, forwards and backwards, for frozen weights alone."""

import copy

import pytest
import torch
from torch import nn

from kanjilab import packed
from kanjilab.bases import load_base
from kanjilab.packed import PackedConv2d, is_packed_well, pack_convolutions

pytestmark = pytest.mark.skipif(not packed.can_pack(), reason="this torch has no oneDNN with bf16")


@pytest.fixture(scope="module")
def plain():
    torch.manual_seed(0)
    layers = [nn.Conv2d(4, 480, 3, padding=1), nn.SiLU(), nn.Conv2d(480, 490, 3, padding=1), nn.Conv2d(490, 4, 1)]
    return nn.Sequential(*layers).to(torch.bfloat16).requires_grad_(False)


@pytest.fixture(scope="module")
def faster(plain):
    model = copy.deepcopy(plain)
    pack_convolutions(model)
    assert [isinstance(layer, PackedConv2d) for layer in model] == [False, False, True, False]
    return model


def output_and_gradient(model, x):
    x = x.to(next(model.parameters()).dtype).requires_grad_()
    y = model(x)
    y.float().square().sum().backward()
    return y.detach().float(), x.grad.float()


@pytest.mark.parametrize(("images", "edge"), [(1, 2), (1, 16), (3, 5), (8, 8)])
def test_it_computes_what_fp32_does_as_exactly_as_the_plain_one(plain, faster, images, edge):
    x = torch.randn(images, 4, edge, edge, generator=torch.Generator().manual_seed(edge))
    exact = output_and_gradient(copy.deepcopy(plain).float(), x.to(torch.bfloat16).float())
    for mine, theirs, value in zip(output_and_gradient(faster, x), output_and_gradient(plain, x), exact, strict=True):
        assert (mine - value).abs().max() <= 1.5 * (theirs - value).abs().max() + 1e-3 * value.abs().max()
        assert (mine - value).abs().max() < 0.03 * value.abs().max()


def test_the_same_input_gives_the_same_bits_whatever_came_before(plain):
    x = torch.randn(1, 4, 4, 4).to(torch.bfloat16)
    first, second = copy.deepcopy(plain), copy.deepcopy(plain)
    for model in (first, second):
        pack_convolutions(model)
    second(torch.randn(8, 4, 16, 16).to(torch.bfloat16))
    assert torch.equal(first(x), second(x))


def test_names_and_weights_stay(plain, faster):
    assert plain.state_dict().keys() == faster.state_dict().keys()
    assert all(torch.equal(value, plain.state_dict()[name]) for name, value in faster.state_dict().items())


def test_another_weight_is_used_as_it_is(plain):
    model = copy.deepcopy(plain)
    pack_convolutions(model)
    layer, x = model[2], torch.randn(1, 480, 4, 4).to(torch.bfloat16)
    trained = nn.Parameter(torch.zeros_like(layer.weight))
    before, layer._parameters["weight"] = layer.weight, trained
    layer(x).float().sum().backward()
    assert trained.grad.abs().max() > 0
    layer._parameters["weight"] = before
    with torch.no_grad():
        before.zero_()  # in place
    torch.testing.assert_close(layer(x), layer.bias.view(1, -1, 1, 1).expand(1, -1, 4, 4))


def test_pocket_is_left_as_it_is_and_so_is_fp32():
    pocket = load_base("pocket", "bf16").denoiser
    assert not any(is_packed_well(layer) for layer in pocket.modules())
    assert not is_packed_well(nn.Conv2d(640, 640, 3, stride=2, padding=1))
    assert is_packed_well(nn.Conv2d(640, 640, 3, padding=1))
