"""Small random models of the real architectures, for tests: seconds become milliseconds."""

from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from transformers import BertConfig, BertModel, BertTokenizer

from kanjilab.models.diffusion import LatentDiffusion
from kanjilab.models.loading import load_base
from kanjilab.models.skeleton_encoder import SkeletonEncoder, save_encoder
from kanjilab.models.tiny_sd3 import WORDS
from kanjilab.training.denoiser import SCHEDULER_CONFIG
from kanjilab.training.encoded import Encoded

# Of pocket's denoiser, for `UNET_CONFIG |`: its shapes at the seams, few channels within.
TINY_UNET = dict(block_out_channels=(16, 32, 32), norm_num_groups=8, attention_head_dim=(1, 1, 1))


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


def save_tiny_calligraphy(folder: Path, size_px: int = 32) -> Path:
    """The same with an encoder of skeletons that has learned something, of pictures of `size_px`."""
    base = load_base(save_tiny_pipeline(folder))
    layer = base.first_layer
    encoder = SkeletonEncoder("hint", "永国", base.text.shape[1], 4 * layer.stride[0], layer.out_channels, size_px)
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(1)
        for value in encoder.skeleton.last.parameters():
            value.normal_(std=0.1)
    save_encoder(encoder, folder)
    return folder


def tiny_encoded(base: LatentDiffusion, size: int = 12, seed: int = 0) -> Encoded:
    """A random encoded dataset of a tiny pipeline's shapes, with skeletons where the base reads them."""
    rng = np.random.default_rng(seed)
    shape = base.latent_shape(32)
    encoded = Encoded(
        mean=rng.standard_normal((size, *shape), dtype=np.float32),
        log_variance=np.full((size, *shape), -3, dtype=np.float32),
        captions=("", *WORDS[:4]),
        tokens=rng.standard_normal((5, *base.text.shape)).astype(np.float16),
        caption=rng.integers(1, 5, size),
        pooled=None if base.text.pooled_width is None else _half_normal(rng, 5, base.text.pooled_width),
        identity=f"tiny-{size}-{seed}",
    )
    if not isinstance(encoder := base.condition_encoder, SkeletonEncoder):
        return encoded
    packed = rng.integers(0, 256, (2, size, encoder.size_px, encoder.size_px // 8), dtype=np.uint8)
    index = rng.integers(0, len(encoder.characters) + 1, size)
    return encoded.with_arrays(skeleton=packed[0], typed=packed[1], index=index)


def _half_normal(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.standard_normal(shape).astype(np.float16)
