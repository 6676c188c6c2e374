"""Stacked adapters: the function W + scale · B · A per arm, whatever the path, the padding and the neighbours."""

import copy
import re

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from torch.nn import functional as F
from torch.testing import assert_close

from kanjilab.core.config import Arm
from kanjilab.models.adapters import StackedLora, initial_down, row_norms, target_layers, with_row_norms
from kanjilab.models.trainable import Trainable

LAYERS = {
    "linear": lambda: nn.Linear(24, 40),
    "linear without bias": lambda: nn.Linear(24, 40, bias=False),
    "convolution": lambda: nn.Conv2d(6, 10, 3, padding=1),
    "convolution with stride": lambda: nn.Conv2d(6, 10, 3, stride=2, padding=1),
    "1x1 convolution": lambda: nn.Conv2d(6, 10, 1),
}


def make_layer(kind):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return LAYERS[kind]()


class OneLayer(nn.Module):
    """A denoiser of a single layer, deep enough to have a name with a dot."""

    def __init__(self, layer):
        super().__init__()
        self.inner = nn.ModuleDict({"layer": layer})

    def forward(self, x):
        return self.inner["layer"](x)


def filled_stack(layer, arms, seed=0):
    """Adapters with random A and B where they are not padding."""
    stack = Trainable(OneLayer(layer), arms)
    generator = torch.Generator().manual_seed(seed)
    for k in range(len(arms)):
        state = {name: 0.3 * torch.randn(value.shape, generator=generator) for name, value in stack.state(k).items()}
        stack.load_state(k, state)
    return stack


def inputs(layer, count, seed=1):
    shape = (count, 6, 8, 8) if isinstance(layer, nn.Conv2d) else (count, 5, 24)
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def with_dense_weight(layer, state, scale, x):
    """The layer with weight W + scale · B · A, written out."""
    down, up = (state[f"base_model.model.inner.layer.lora_{part}.weight"].flatten(1) for part in "AB")
    weight = layer.weight + scale * (up @ down).view_as(layer.weight)
    if isinstance(layer, nn.Conv2d):
        return F.conv2d(x, weight, layer.bias, layer.stride, layer.padding)
    return F.linear(x, weight, layer.bias)


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize(
    "pairs",
    [
        ((0, 2), (1, 2), (2, 2)),  # equal stretches, all arms
        ((0, 2), (2, 2)),  # equal stretches of some
        ((2, 1), (0, 3), (1, 2)),  # unequal, out of order
        ((1, 4),),  # one arm
    ],
)
def test_each_arm_gets_its_own_dense_weight(kind, pairs):
    layer = make_layer(kind)
    arms = [Arm(targets="all", rank=2), Arm(targets="all", rank=5, alpha=3), Arm(targets="all", rank=4, rslora=True)]
    stack = filled_stack(layer, arms)
    x = inputs(layer, sum(count for _, count in pairs))
    with stack.attached(pairs), torch.no_grad():
        found = stack.denoiser(x)
    chunks = zip(x.split([count for _, count in pairs]), pairs, strict=True)
    with torch.no_grad():
        expected = [with_dense_weight(layer, stack.state(k), arms[k].scale, chunk) for chunk, (k, _) in chunks]
    assert_close(found, torch.cat(expected), atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize(("rank", "count", "merged"), [(1, 1, False), (16, 30, True)])
def test_one_arm_takes_the_cheaper_path_and_both_agree(kind, rank, count, merged, monkeypatch):
    layer = make_layer(kind)
    stack = filled_stack(layer, [Arm(targets="all", rank=rank)])
    choices = []
    original = StackedLora._merging_pays
    monkeypatch.setattr(StackedLora, "_merging_pays", lambda self, x: choices.append(original(self, x)) or choices[-1])
    x = inputs(layer, count).requires_grad_()
    with stack.attached(((0, count),)):
        found = stack.denoiser(x)
    assert choices == [merged]
    expected = with_dense_weight(layer, stack.state(0), 1.0, x)
    assert_close(found, expected, atol=2e-5, rtol=1e-5)
    assert_close(*(torch.autograd.grad(y.square().mean(), x)[0] for y in (found, expected)), atol=1e-5, rtol=1e-4)


def test_gradients_are_those_of_autograd_and_zero_in_the_padding():
    layer = make_layer("convolution")
    arms = [Arm(targets="all", rank=2, alpha=3), Arm(targets="all", rank=5)]
    stack = filled_stack(layer, arms)
    x = inputs(layer, 4)
    with stack.attached(((0, 2), (1, 2))):
        loss = stack.denoiser(x).square().mean()
        stack.rows.take_gradients(stack.leaves, loss, add=False)
    gradients = stack.rows.views(stack.rows.gradients)
    assert gradients["inner.layer.lora_A"][0, 2:].count_nonzero() == 0
    assert gradients["inner.layer.lora_B"][0, :, 2:].count_nonzero() == 0
    for k, chunk in enumerate(x.chunk(2)):
        state = {name: value.requires_grad_() for name, value in stack.state(k).items()}
        loss = with_dense_weight(layer, state, arms[k].scale, chunk).square().mean() / 2
        for (name, _), expected in zip(state.items(), torch.autograd.grad(loss, list(state.values())), strict=True):
            kind = name.split(".")[-2]
            found = gradients[f"inner.layer.{kind}"][k]
            found = found[: arms[k].rank] if kind == "lora_A" else found[:, : arms[k].rank]
            assert_close(found, expected.flatten(1), atol=1e-5, rtol=1e-4)


def test_targets_name_the_layers_they_say(base):
    linear = {n for n, m in base.denoiser.named_modules() if isinstance(m, nn.Linear)}
    convolutions = {n for n, m in base.denoiser.named_modules() if isinstance(m, nn.Conv2d)}
    blocks = [n for n in dict(base.denoiser.named_modules()) if n.endswith("transformer_blocks.0")]
    cross = {f"{b}.attn2.{p}" for b in blocks for p in ("to_q", "to_k", "to_v", "to_out.0")}
    attention = cross | {name.replace("attn2", "attn1") for name in cross}
    feed_forward = {f"{b}.ff.net.{p}" for b in blocks for p in ("0.proj", "2")}
    assert len(blocks) == 4
    assert set(target_layers(base.denoiser, "cross-attention")) == cross
    assert set(target_layers(base.denoiser, "attention")) == attention
    assert set(target_layers(base.denoiser, "attention+feed-forward")) == attention | feed_forward
    assert set(target_layers(base.denoiser, "all")) == linear | convolutions
    with pytest.raises(ValueError, match="'cross-attention' name no layer of OneLayer"):
        target_layers(OneLayer(nn.Linear(2, 2)), "cross-attention")


def test_initial_weights_are_pefts_and_grow_with_the_rank():
    bound = 1 / np.sqrt(400)
    down = initial_down("some.layer", (64, 400), seed=3)
    assert abs(down).max() <= bound
    assert down.std() == pytest.approx(bound / np.sqrt(3), rel=0.02)  # uniform
    reference = get_peft_model(OneLayer(nn.Linear(400, 8)), LoraConfig(r=64, target_modules=["layer"]))
    peft_down = reference.base_model.model.inner["layer"].lora_A["default"].weight.detach()
    assert float(peft_down.abs().max()) == pytest.approx(bound, rel=0.02)
    assert float(peft_down.std()) == pytest.approx(down.std(), rel=0.03)
    np.testing.assert_array_equal(initial_down("some.layer", (8, 400), seed=3), down[:8])
    assert not np.array_equal(initial_down("other.layer", (64, 400), seed=3), down)
    assert not np.array_equal(initial_down("some.layer", (64, 400), seed=4), down)


def test_before_training_the_denoiser_is_the_base(base):
    noisy, text = torch.randn(2, 4, 8, 8), torch.randn(2, 8, 24)
    stack = Trainable(base.denoiser, [Arm(targets="all", rank=3), Arm(targets="attention", rank=2)])
    with torch.no_grad():
        expected = base.denoiser(noisy, torch.tensor([5, 900]), text).sample
        with stack.attached(((0, 1), (1, 1))):
            found = base.denoiser(noisy, torch.tensor([5, 900]), text).sample
    assert_close(found, expected, atol=1e-6, rtol=0)  # a convolution rounds by its batch


@pytest.mark.parametrize("targets", ["all", "full"])
def test_the_denoiser_is_its_own_again_after_use(base, targets):
    def parts():
        return [id(part) for part in (*base.denoiser.modules(), *base.denoiser.parameters())]

    before = parts()
    trainable = Trainable(base.denoiser, [Arm(targets=targets, rank=2)])
    with pytest.raises(KeyboardInterrupt), trainable.attached():
        attached = parts()
        with trainable.attached():
            pass
        assert parts() == attached != before  # the outer use outlives the inner one
        raise KeyboardInterrupt
    assert parts() == before


def test_adapters_are_not_parameters_of_the_model(base):
    denoiser = copy.deepcopy(base.denoiser).bfloat16()
    stack = Trainable(denoiser, [Arm(targets="all", rank=2)])
    with stack.attached():
        assert {value.dtype for value in denoiser.parameters()} == {torch.bfloat16}
        assert denoiser.dtype == torch.bfloat16  # in which diffusers embeds the timesteps
    assert stack.rows.values.dtype == torch.float32


def test_an_arm_leaves_out_the_layers_that_only_others_train(base):
    arms = [Arm(targets="cross-attention", rank=2), Arm(targets="all", rank=3)]
    stack = Trainable(base.denoiser, arms)
    cross = target_layers(base.denoiser, "cross-attention")
    assert {name.removeprefix("base_model.model.").split(".lora_")[0] for name in stack.state(0)} == set(cross)
    for k in range(2):
        stack.load_state(k, {name: torch.full_like(value, 0.1) for name, value in stack.state(k).items()})
    with stack.attached(((0, 1), (1, 1))):
        generator = torch.Generator().manual_seed(0)
        noise, text = (torch.randn(shape, generator=generator) for shape in ((2, 4, 8, 8), (2, 8, 24)))
        predicted = base.denoiser(noise, torch.tensor([5, 900]), text).sample
        stack.rows.take_gradients(stack.leaves, predicted.square().mean(), add=False)
    for name, gradient in stack.rows.views(stack.rows.gradients).items():
        assert bool(gradient[0].any()) is (name.rsplit(".", 1)[0] in cross), name
        assert gradient[1].any()


def test_an_adapter_comes_back_from_its_state(base):
    arms = [Arm(targets="all", rank=3, seed=1), Arm(targets="attention", rank=5, seed=2)]
    first, second = Trainable(base.denoiser, arms), Trainable(base.denoiser, [arms[1], arms[0]])
    for k in range(2):
        second.load_state(k, first.state(1 - k))
        for name, value in first.state(1 - k).items():
            assert torch.equal(second.state(k)[name], value), name
    state = first.state(0)
    assert state["base_model.model.conv_in.lora_A.weight"].shape == (3, 4, 3, 3)
    assert state["base_model.model.conv_in.lora_B.weight"].shape == (16, 3, 1, 1)
    wrong = dict(state)
    wrong["base_model.model.conv_in.lora_A.weight"] = torch.zeros(2, 4, 3, 3)
    with pytest.raises(ValueError, match=r"1 tensors do not fit.*conv_in.*\[3, 4, 3, 3\].*\[2, 4, 3, 3\]"):
        first.load_state(0, wrong)
    with pytest.raises(ValueError, match="expected .*, got None"):
        first.load_state(0, {name: value for name, value in state.items() if "conv_out" not in name})


def test_update_norm_is_that_of_the_dense_update():
    layer = make_layer("convolution")
    arms = [Arm(targets="all", rank=2, alpha=6), Arm(targets="all", rank=5)]
    stack = filled_stack(layer, arms)
    expected = []
    for k, arm in enumerate(arms):
        down, up = (value.flatten(1) for value in stack.state(k).values())
        expected.append((arm.scale * up @ down).norm())
    assert_close(stack.update_norm(), torch.stack(expected), rtol=1e-5, atol=0)


def test_config_is_one_that_peft_reads(base):
    arm = Arm(targets="all", rank=6, alpha=3, rslora=True)
    config = LoraConfig(**Trainable(base.denoiser, [arm]).config(0))
    assert (config.r, config.lora_alpha, config.use_rslora, config.lora_dropout) == (6, 3, True, 0)
    assert config.target_modules == set(target_layers(base.denoiser, "all"))
    assert Trainable(base.denoiser, [Arm(rank=6)]).config(0)["lora_alpha"] == 6
    for dora in (False, True):
        assert LoraConfig(**Trainable(base.denoiser, [Arm(dora=dora)]).config(0)).use_dora is dora


# ---------------------------------------------------------------------------------- DoRA


def peft_layer(layer, arm, state):
    """PEFT's own layer in place of ours, with the same numbers."""
    config = LoraConfig(r=arm.rank, lora_alpha=arm.alpha or arm.rank, use_dora=arm.dora, target_modules=["layer"])
    model = get_peft_model(OneLayer(copy.deepcopy(layer)), config)
    named = dict(model.named_parameters())
    with torch.no_grad():
        for name, value in state.items():
            named[name.removesuffix(".weight") + ".default.weight"].copy_(value)
    return model


def test_each_row_gets_its_length_by_hand():
    layer = nn.Linear(2, 2, bias=False)
    layer.weight.data = torch.tensor([[3.0, 4.0], [0.0, 5.0]])
    stack = Trainable(OneLayer(layer), [Arm(targets="all", rank=1, alpha=2, dora=True)])
    prefix = "base_model.model.inner.layer."
    assert torch.equal(stack.state(0)[prefix + "lora_magnitude_vector"], torch.tensor([5.0, 5.0]))
    # V = W + 2 · [0, 6]' [1, 0] = [[3, 4], [12, 5]], whose rows are 5 and 13 long.
    down, up = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0], [6.0]])
    lengths = torch.tensor([10.0, 26.0])
    stack.load_state(
        0, {prefix + "lora_A.weight": down, prefix + "lora_B.weight": up, prefix + "lora_magnitude_vector": lengths}
    )
    with stack.attached(((0, 2),)), torch.no_grad():
        found = stack.denoiser(torch.eye(2)).T
    assert_close(found, torch.tensor([[6.0, 8.0], [24.0, 10.0]]))
    # W' - W = [[3, 4], [24, 5]]
    assert_close(stack.update_norm(), torch.tensor([(9 + 16 + 576 + 25) ** 0.5]))


@pytest.mark.parametrize("kind", LAYERS)
def test_dora_begins_as_the_base(kind):
    layer, arm = make_layer(kind), Arm(targets="all", rank=3, dora=True)
    stack = Trainable(OneLayer(layer), [arm])
    reference = peft_layer(layer, arm, {})
    expected = {name: value for name, value in reference.named_parameters() if "magnitude" in name}
    (name, found), *_ = [pair for pair in stack.state(0).items() if "magnitude" in pair[0]]
    assert_close({f"{name}.default.weight": found}, expected)
    x = inputs(layer, 2)
    with stack.attached(((0, 2),)), torch.no_grad():
        assert_close(stack.denoiser(x), layer(x), atol=1e-6, rtol=0)
    assert stack.update_norm().item() < 1e-5


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_no_row_changes_its_length_by_rounding(dtype):
    weight = torch.randn(50, 70, generator=torch.Generator().manual_seed(0)).to(dtype)
    assert torch.equal(with_row_norms(weight, row_norms(weight)), weight)
    assert_close(row_norms(weight), weight.float().square().sum(dim=1).sqrt(), atol=0, rtol=1e-6)
    denoiser = OneLayer(nn.Linear(70, 50)).to(dtype)
    stack = Trainable(denoiser, [Arm(targets="all", rank=2, dora=True)])
    assert {name: leaf.dtype for name, leaf in stack.rows.leaves.items()} == {
        "inner.layer.lora_A": dtype,
        "inner.layer.lora_B": dtype,
        "inner.layer.lora_magnitude_vector": torch.float32,
    }


@pytest.mark.parametrize("kind", LAYERS)
def test_outputs_and_gradients_are_those_of_pefts_dora(kind):
    layer, arm = make_layer(kind), Arm(targets="all", rank=4, alpha=3, dora=True)
    stack = filled_stack(layer, [arm])
    reference = peft_layer(layer, arm, stack.state(0))
    x = inputs(layer, 3)
    with stack.attached(((0, 3),)):
        found = stack.denoiser(x)
        stack.rows.take_gradients(stack.leaves, found.square().mean(), add=False)
    expected = reference(x)
    assert_close(found, expected, atol=1e-5, rtol=1e-5)
    expected.square().mean().backward()
    gradients = stack.rows.views(stack.rows.gradients)
    for name, parameter in reference.named_parameters():
        if ".lora_" in name:
            view = gradients[name.removeprefix("base_model.model.").removesuffix(".weight").removesuffix(".default")]
            assert_close(view.flatten(), parameter.grad.flatten(), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("pairs", [((0, 2), (1, 2), (2, 2)), ((2, 1), (0, 3), (1, 2))])
@pytest.mark.parametrize("kind", ["linear", "convolution"])
def test_arms_with_dora_and_without_stand_in_one_stack(kind, pairs):
    layer = make_layer(kind)
    arms = [Arm(targets="all", rank=2, alpha=3), Arm(targets="all", rank=5, dora=True), Arm(targets="all", rank=3)]
    stack, x = filled_stack(layer, arms), inputs(layer, 6)

    def output_and_gradients(stack, pairs, x):
        with stack.attached(pairs):
            y = stack.denoiser(x)
            stack.rows.take_gradients(stack.leaves, y.square().sum(), add=False)
        return y.detach(), stack.rows.views(stack.rows.gradients)

    outputs, gradients = output_and_gradients(stack, pairs, x)
    starts = np.cumsum([0, *(count for _, count in pairs)])
    for start, (k, count) in zip(starts, pairs, strict=False):
        alone = Trainable(OneLayer(layer), [arms[k]])
        alone.load_state(0, stack.state(k))
        expected, own = output_and_gradients(alone, ((0, count),), x[start : start + count])
        assert_close(outputs[start : start + count], expected, atol=1e-6, rtol=1e-6)
        assert ("inner.layer.lora_magnitude_vector" in own) is arms[k].dora
        for name, value in own.items():
            rank = arms[k].rank
            found = gradients[name][k]
            found = found[:rank] if name.endswith("A") else found[:, :rank] if name.endswith("B") else found
            assert_close(found, value[0], atol=1e-4, rtol=1e-5)
    for views in (gradients, stack.rows.views(stack.rows.values)):
        assert [bool(row.any()) for row in views["inner.layer.lora_magnitude_vector"]] == [False, True, False]


def test_an_arm_with_dora_leaves_out_the_layers_that_only_others_train(base):
    stack = Trainable(base.denoiser, [Arm(targets="cross-attention", rank=2, dora=True), Arm(targets="all", rank=3)])
    lengths = {name.rpartition(".")[0] for name in stack.rows.shapes if name.endswith("lora_magnitude_vector")}
    assert lengths == set(target_layers(base.denoiser, "cross-attention"))
    noise, text = torch.randn(2, 4, 8, 8), torch.randn(2, 8, 24)
    with stack.attached(((0, 1), (1, 1))):
        predicted = base.denoiser(noise, torch.tensor([5, 900]), text).sample
        stack.rows.take_gradients(stack.leaves, predicted.square().mean(), add=False)
    for name, gradient in stack.rows.views(stack.rows.gradients).items():
        layer, _, kind = name.rpartition(".")
        assert bool(gradient[0].any()) is (layer in lengths and kind != "lora_A"), name  # B is 0 still
        assert bool(gradient[1].any()) is (kind == "lora_B"), name


def test_a_row_of_zeros_stays_one():
    layer = make_layer("linear")
    layer.weight.data[3] = 0
    stack = Trainable(OneLayer(layer), [Arm(targets="all", rank=2, dora=True)])
    x = inputs(layer, 2)
    with stack.attached(((0, 2),)):
        y = stack.denoiser(x)
        stack.rows.take_gradients(stack.leaves, y.square().mean(), add=False)
    assert_close(y[..., 3], layer.bias[3].expand(y.shape[:-1]))
    assert stack.rows.gradients.isfinite().all()


def test_dora_over_quantised_weights_is_refused():
    denoiser = OneLayer(make_layer("linear"))
    denoiser.inner["layer"].weight = nn.Parameter(torch.zeros(40, 24, dtype=torch.int8), requires_grad=False)
    Trainable(denoiser, [Arm(targets="all", rank=2)])
    with pytest.raises(ValueError, match="inner.layer is quantised, and dora needs its weights: expected .* fp32 or"):
        Trainable(denoiser, [Arm(targets="all", rank=2), Arm(targets="all", rank=2, dora=True)])


def test_update_norm_with_dora_is_that_of_the_dense_change():
    layer = make_layer("convolution")
    arms = [Arm(targets="all", rank=2, alpha=6), Arm(targets="all", rank=5, alpha=2, dora=True)]
    stack = filled_stack(layer, arms)
    plain, dora = stack.update_norm()
    assert_close(plain, filled_stack(layer, arms[:1]).update_norm()[0])
    with torch.no_grad():
        merged = peft_layer(layer, arms[1], stack.state(1)).merge_and_unload().inner["layer"].weight
        assert_close(dora, (merged - layer.weight).norm(), rtol=1e-5, atol=0)


def test_the_whole_denoiser_is_trained_on_a_copy(base):
    before = {name: value.clone() for name, value in base.denoiser.named_parameters()}
    whole = Trainable(base.denoiser, [Arm(targets="full")])
    state = whole.state(0)
    assert state.keys() == before.keys()
    assert all(torch.equal(state[name], value) for name, value in before.items())
    assert whole.update_norm().item() == 0
    with torch.no_grad():
        whole.rows.values += 0.5
    assert whole.update_norm().item() == pytest.approx(0.5 * whole.rows.values.shape[1] ** 0.5, rel=1e-5)
    assert all(torch.equal(base.denoiser.get_parameter(name), value) for name, value in before.items())
    with whole.attached():
        assert torch.equal(base.denoiser.conv_in.bias, before["conv_in.bias"] + 0.5)
    whole.load_state(0, state)
    assert whole.update_norm().item() == 0
    with pytest.raises(ValueError, match="tensors do not fit what this arm trains"):
        whole.load_state(0, {"conv_in.bias": state["conv_in.bias"]})


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        ([], "expected at least one arm, got none"),
        (["full", "attention"], "cannot be trained beside LoRA arms"),
        (["full", "full"], "one arm at a time, got 2"),
    ],
)
def test_arms_that_do_not_go_together_are_refused(base, targets, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        Trainable(base.denoiser, [Arm(targets=target) for target in targets])
