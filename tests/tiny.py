"""Small random models of the real architectures, for tests: seconds become milliseconds."""

from pathlib import Path

import numpy as np
import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    FlowMatchEulerDiscreteScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from transformers import (
    BertConfig,
    BertModel,
    BertTokenizer,
    CLIPTextConfig,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)

from kanjilab.encode import Encoded
from kanjilab.families import Base
from kanjilab.pocket import SCHEDULER_CONFIG

WORDS = ["water", "tree", "person", "fire", "castle", "queen", "mountain", ";", "a", "b"]


def save_tiny_pipeline(folder: Path, prediction: str = "epsilon") -> Path:
    """A StableDiffusionPipeline folder with about 100,000 random weights, 1 channel, f = 4."""
    (folder / "words").mkdir(parents=True, exist_ok=True)
    vocabulary = folder / "words" / "vocab.txt"
    vocabulary.write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        unet = UNet2DConditionModel(
            sample_size=8,
            block_out_channels=(16, 32),
            layers_per_block=1,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            cross_attention_dim=24,
            attention_head_dim=2,
            norm_num_groups=8,
        )
        vae = AutoencoderKL(
            in_channels=1,
            out_channels=1,
            block_out_channels=(8, 8, 16),
            down_block_types=("DownEncoderBlock2D",) * 3,
            up_block_types=("UpDecoderBlock2D",) * 3,
            layers_per_block=1,
            norm_num_groups=4,
            mid_block_add_attention=False,
            sample_size=32,
        )
        text_encoder = BertModel(
            BertConfig(
                vocab_size=5 + len(WORDS),
                hidden_size=24,
                num_hidden_layers=1,
                num_attention_heads=2,
                intermediate_size=32,
                max_position_embeddings=16,
                use_attention_mask=True,
            )
        )
    pipeline = StableDiffusionPipeline(
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=BertTokenizer(vocab=str(vocabulary), model_max_length=8),
        unet=unet,
        scheduler=DDIMScheduler(**{**SCHEDULER_CONFIG, "prediction_type": prediction}),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.save_pretrained(folder)
    return folder


def save_tiny_sd3_pipeline(folder: Path, t5: bool = True, seed: int = 0) -> Path:
    """A StableDiffusion3Pipeline folder with about 100,000 random weights, f = 4, 16 latent channels.

    Its transformer has what SD 3.5 medium's has: two streams, a block with dual attention, normed queries.
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        transformer = SD3Transformer2DModel(
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
        vae = AutoencoderKL(
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
        tokenizers = [_letters_tokenizer("<|endoftext|>"), _letters_tokenizer("!")]
        clips = [
            _tiny_clip(tokenizer, *widths) for tokenizer, widths in zip(tokenizers, [(12, 10), (16, 14)], strict=True)
        ]
        words = T5Tokenizer(vocab=_t5_vocabulary(), extra_ids=0)
        config = T5Config(vocab_size=len(words), d_model=32, d_kv=8, d_ff=32, num_layers=1, num_heads=2)
        encoder = T5EncoderModel(config) if t5 else None
        _grow(transformer, vae, *clips, *([encoder] if t5 else []))
    pipeline = StableDiffusion3Pipeline(
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
    pipeline.save_pretrained(folder)
    return folder


def _grow(*models: torch.nn.Module) -> None:
    """Random weights large enough that text, time and noise all change what comes out; zeros would hide errors."""
    for model in models:
        for name, value in model.named_parameters():
            if value.ndim > 1:
                torch.nn.init.normal_(value, std=0.7 / value[0].numel() ** 0.5)
            elif name.endswith("bias"):
                torch.nn.init.normal_(value, std=0.05)


def _letters_tokenizer(padding: str) -> CLIPTokenizer:
    """CLIP's tokenizer with letters for words."""
    letters = ["!", ";", *"abcdefghijklmnopqrstuvwxyz"]
    tokens = ["<|startoftext|>", *letters, *(f"{letter}</w>" for letter in letters), "<|endoftext|>"]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    return CLIPTokenizer(vocab=vocabulary, merges=[], pad_token=padding, model_max_length=16)


def _tiny_clip(tokenizer: CLIPTokenizer, width: int, pooled: int) -> CLIPTextModelWithProjection:
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


def _t5_vocabulary() -> list[tuple[str, float]]:
    return [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), *((f"\u2581{word}", -1.0) for word in WORDS)]


def tiny_encoded(base: Base, size: int = 12, seed: int = 0) -> Encoded:
    """A random encoded dataset of a tiny pipeline's shapes."""
    rng = np.random.default_rng(seed)
    shape = base.latent_shape(32)
    return Encoded(
        mean=rng.standard_normal((size, *shape), dtype=np.float32),
        log_variance=np.full((size, *shape), -3, dtype=np.float32),
        tokens=rng.standard_normal((5, *base.text.shape)).astype(np.float16),
        caption=rng.integers(1, 5, size),
        pooled=None if base.text.pooled_width is None else _half_normal(rng, 5, base.text.pooled_width),
        identity=f"tiny-{size}-{seed}",
    )


def _half_normal(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.standard_normal(shape).astype(np.float16)
