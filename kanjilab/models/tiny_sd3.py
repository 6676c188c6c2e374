"""A Stable Diffusion 3 of a hundred thousand random weights: what a large base goes through, shown in seconds.

It draws nothing that means anything; its parts, names, files and steps are those of the large one.
"""

from pathlib import Path
from typing import Any

import torch
from torch import nn

from kanjilab.models.hub import quiet_diffusers

WORDS = ("water", "tree", "person", "fire", "castle", "queen", "mountain", ";", "a", "b")


def save_miniature_sd3(folder: Path, t5: bool = True, seed: int = 0) -> Path:
    """Writes a StableDiffusion3Pipeline folder of random weights: 4 pixels a latent, 16 latent channels.

    Its transformer has what SD 3.5 medium's has: two streams, a block with dual attention, normed queries.

    Args:
        folder: to write.
        t5: whether there is a third text encoder.
        seed: of the weights.
    Returns:
        The folder.
    """
    with quiet_diffusers():
        _miniature(t5, seed).save_pretrained(folder)
    return folder


def _miniature(t5: bool, seed: int) -> Any:
    from diffusers import FlowMatchEulerDiscreteScheduler, StableDiffusion3Pipeline
    from transformers import T5Config, T5EncoderModel, T5Tokenizer

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        transformer, vae = _transformer(), _autoencoder()
        tokenizers = [letters_tokenizer("<|endoftext|>"), letters_tokenizer("!")]
        clips = [_clip(tokenizer, *widths) for tokenizer, widths in zip(tokenizers, [(12, 10), (16, 14)], strict=True)]
        vocabulary = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), *((f"\u2581{word}", -1.0) for word in WORDS)]
        words = T5Tokenizer(vocab=vocabulary, extra_ids=0)
        config = T5Config(vocab_size=len(words), d_model=32, d_kv=8, d_ff=32, num_layers=1, num_heads=2)
        encoder = T5EncoderModel(config) if t5 else None
        _grow(transformer, vae, *clips, *([encoder] if encoder else []))
    kind: Any = StableDiffusion3Pipeline  # whose annotations leave no part out
    return kind(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=vae,
        text_encoder=clips[0],
        tokenizer=tokenizers[0],
        text_encoder_2=clips[1],
        tokenizer_2=tokenizers[1],
        text_encoder_3=encoder,
        tokenizer_3=words if t5 else None,
    )


def _transformer() -> Any:
    from diffusers import SD3Transformer2DModel

    return SD3Transformer2DModel(
        sample_size=8,
        num_layers=3,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=32,
        caption_projection_dim=16,
        pooled_projection_dim=24,
        pos_embed_max_size=16,
        dual_attention_layers=(0,),
        qk_norm="rms_norm",
    )


def _autoencoder() -> Any:
    from diffusers import AutoencoderKL

    kind: Any = AutoencoderKL  # whose annotations allow one block alone
    return kind(
        block_out_channels=(8, 8, 16),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        layers_per_block=1,
        norm_num_groups=4,
        latent_channels=16,
        scaling_factor=1.5305,
        shift_factor=0.0609,
        use_quant_conv=False,
        use_post_quant_conv=False,
        mid_block_add_attention=False,
        sample_size=32,
    )


def _grow(*models: nn.Module) -> None:
    """Random weights large enough that text, time and noise all change what comes out; zeros would hide errors."""
    for model in models:
        for name, value in model.named_parameters():
            if value.ndim > 1:
                nn.init.normal_(value, std=0.7 / value[0].numel() ** 0.5)
            elif name.endswith("bias"):
                nn.init.normal_(value, std=0.05)


def letters_tokenizer(padding: str) -> Any:
    """CLIP's tokenizer with letters for words."""
    from transformers import CLIPTokenizer

    letters = ["!", ";", *"abcdefghijklmnopqrstuvwxyz"]
    tokens = ["<|startoftext|>", *letters, *(f"{letter}</w>" for letter in letters), "<|endoftext|>"]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    return CLIPTokenizer(vocab=vocabulary, merges=[], pad_token=padding, model_max_length=16)


def _clip(tokenizer: Any, width: int, pooled: int) -> Any:
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection

    return CLIPTextModelWithProjection(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=width,
            intermediate_size=32,
            projection_dim=pooled,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=16,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
    )
