"""How widely attention's logits are spread, against layers worked by hand, and in the packaged bases."""

import math

import pytest
import torch
from diffusers.models.attention_processor import Attention
from torch import nn

from kanjilab.models.attention import attention_spreads, logit_spreads
from kanjilab.models.loading import load_base


def attention(queries: float, heads: int = 1) -> nn.Module:
    """A layer of two numbers a head, whose queries are its input times a number and whose keys are its input."""
    layer = Attention(query_dim=2 * heads, heads=heads, dim_head=2, bias=False)
    with torch.no_grad():
        layer.to_q.weight.copy_(queries * torch.eye(2 * heads))
        layer.to_k.weight.copy_(torch.eye(2 * heads))
    return nn.ModuleDict({"layer": layer})


@pytest.mark.parametrize("queries", [1.0, -3.0])
def test_a_spread_worked_by_hand(queries):
    """Keys (1, 0) and (-1, 0): each query's logits are ±queries/√2, and so is their deviation from 0."""
    model = attention(queries)
    tokens = torch.tensor([[[1.0, 0.0], [-1.0, 0.0]]])
    assert logit_spreads(model, lambda: model["layer"](tokens)) == {"layer": pytest.approx(abs(queries) / math.sqrt(2))}


def test_a_spread_is_the_mean_of_heads_and_runs():
    model = attention(2.0, heads=2)
    first = torch.tensor([[[1.0, 0.0, 0.0, 0.0], [-1.0, 0.0, 0.0, 0.0]]])  # the second head's logits are all 0

    def draw():
        model["layer"](first)
        model["layer"](3 * first)

    head = 2 / math.sqrt(2)
    assert logit_spreads(model, draw) == {"layer": pytest.approx((head / 2 + 9 * head / 2) / 2)}
    assert not model["layer"].to_q._forward_hooks and not model["layer"].to_k._forward_hooks


def test_training_made_pockets_attention_hard():
    words = ["sea", "king", "left: bird, right: music", "latin capital letter a"]
    pocket, later = (attention_spreads(load_base(name), words) for name in ("pocket", "pocket2"))
    assert pocket.keys() == later.keys() and len(pocket) == 14
    assert max(pocket.values()) < 80 and max(later.values()) > 150
    shown = [name for name in pocket if name.startswith("up_blocks.1")]
    assert max(later[name] for name in shown) < 6  # where the image is large, queries still read many keys
