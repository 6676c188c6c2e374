"""A small CLIP model of random weights, in the form that OpenAI's have."""

import torch
from transformers import CLIPConfig, CLIPModel

from kanjilab.models.tiny_sd3 import letters_tokenizer

SIZES = dict(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32)


def save_tiny_clip(folder):
    """Its folder, with the tokenizer."""
    tokenizer = letters_tokenizer("<|endoftext|>")
    text = SIZES | dict(vocab_size=len(tokenizer), max_position_embeddings=16, eos_token_id=tokenizer.eos_token_id)
    vision = SIZES | dict(image_size=32, patch_size=8)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=8)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
