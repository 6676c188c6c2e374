"""The Japanese text encoder: a small BERT that says of Japanese what MiniLM says of its English."""

from __future__ import annotations

from typing import Any

import torch
from transformers import BertConfig, BertModel

from kanjilab.models.minilm import TOKENS

ENCODER: dict[str, Any] = dict(
    hidden_size=384,
    num_hidden_layers=2,
    num_attention_heads=6,
    intermediate_size=768,
    max_position_embeddings=TOKENS,
    type_vocab_size=1,
    hidden_dropout_prob=0.0,
    attention_probs_dropout_prob=0.0,
    use_attention_mask=True,
)


def new_encoder(vocabulary: int, seed: int = 0, **changes: Any) -> BertModel:
    """An encoder with random weights.

    Args:
        vocabulary: of its tokenizer.
        seed: of the weights.
        changes: of `ENCODER`.
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        # torch's fused attention takes several times as long backwards on a processor.
        config = BertConfig(vocab_size=vocabulary, attn_implementation="eager", **ENCODER | changes)
        return BertModel(config, add_pooling_layer=False)
