"""The condition encoder of calligraphy: what a denoiser is told of a skeleton, and of a character by its index.

Skeletons enter as a spatial hint, or as the tokens of a vision transformer beside the text, as in CalliffusionV2
(arXiv:2410.03787). There are two kinds, each a channel of its own: `skeleton` is that of the very glyph, to be followed
exactly, `typed` that of the character in print, to be written in the style. The index is `INDEX_TOKENS` tokens more.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor, nn
from torch.nn import functional as F

from kanjilab.core.images import SIZE_MAX_PX, SIZE_PX
from kanjilab.core.outside_files import read_json_object
from kanjilab.core.storage import write_bytes_atomic, write_json_atomic
from kanjilab.core.tensor_files import read_tensors
from kanjilab.models.conditioning import Conditioning
from kanjilab.models.diffusion import LatentDiffusion, with_condition_encoder
from kanjilab.models.text_encoders import TextEncoders, padded_tokens

FOLDER = "condition_encoder"  # beside unet/, where diffusers does not look
WAYS = ("hint", "tokens")
SKELETONS = ("skeleton", "typed")  # the arrays of packed bits
HIDDEN = 128  # channels of the hint's convolutions
PATCH_PX, VIT_WIDTH, VIT_LAYERS, VIT_HEADS = 16, 192, 2, 4
INDEX_TOKENS = 3
INDEX_STD = 0.4  # of an index's first tokens: about that of MiniLM's states
BITS = 8
ENCODER = "an encoder of skeletons"
CONFIG = ("enters", "characters", "width", "hint_px", "hint_channels", "size_px")
SIZES_MAX = {"width": 16_384, "hint_px": 256, "hint_channels": 16_384, "size_px": SIZE_MAX_PX}
CHARACTERS_MAX = 100_000  # of all of Unicode's
FIRST_LAYERS = ("skeleton.first.weight", "skeleton.patches.weight")  # which read the skeletons, a channel each


class SkeletonEncoder(nn.Module):
    """Reads `SKELETONS`, each (N, H, W / 8) packed bits, and `index` (N,): 0 for none, 1 for the first character.

    Args:
        enters: `hint` or `tokens`.
        characters: those that have an index, in order.
        width: D of the text states.
        hint_px: pixels along the edge of one position of the denoiser's first layer.
        hint_channels: of that layer.
        size_px: of the skeletons.
        seed: of the initial weights.
    Raises:
        ValueError: an unknown way to enter, or a character twice.
    """

    def __init__(
        self,
        enters: str,
        characters: str,
        width: int,
        hint_px: int,
        hint_channels: int,
        size_px: int = SIZE_PX,
        seed: int = 0,
    ):
        super().__init__()
        if enters not in WAYS:
            raise ValueError(f"enters must be one of {WAYS}, got {enters!r}")
        if len(set(characters)) != len(characters):
            raise ValueError("expected each character once")
        self.config = {
            "enters": enters, "characters": characters, "width": width, "hint_px": hint_px,
            "hint_channels": hint_channels, "size_px": size_px,
        }  # fmt: skip
        self.enters, self.characters, self.size_px = enters, characters, size_px
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.index = nn.Embedding(len(characters) + 1, INDEX_TOKENS * width)
            nn.init.normal_(self.index.weight, std=INDEX_STD)
            self.skeleton = HintBranch(hint_px, hint_channels) if enters == "hint" else VisionBranch(size_px, width)
        with torch.no_grad():
            self.index.weight[0] = 0

    def forward(self, states: Conditioning, arrays: Mapping[str, Tensor]) -> Conditioning:
        """The text's conditioning with what the arrays say; an array that is missing counts as zeros.

        Raises:
            ValueError: a skeleton of another size, or an index that no character has.
        """
        count, device = len(states.tokens), states.tokens.device
        expected = (self.size_px, self.size_px // BITS)
        packed = {name: arrays.get(name, torch.zeros(count, *expected, device=device)) for name in SKELETONS}
        for name, bits in packed.items():
            if bits.shape[1:] != expected:
                raise ValueError(f"{name}: expected packed bits {expected}, got {tuple(bits.shape[1:])}")
        index = arrays.get("index", torch.zeros(count, device=device)).long()
        if not ((index >= 0) & (index <= len(self.characters))).all():
            found = sorted(set(index.tolist()) - set(range(len(self.characters) + 1)))
            raise ValueError(f"index: expected 0 (none) to {len(self.characters)} (the known characters), got {found}")
        skeletons = torch.cat([unpack_bits(bits) for bits in packed.values()], dim=1)
        return self.told(states, skeletons, index)

    def told(self, states: Conditioning, skeletons: Tensor, index: Tensor) -> Conditioning:
        """What `forward` gives, of unpacked skeletons.

        Args:
            states: of the text, of N captions.
            skeletons: (N, 2, H, W) float, 1 where there is a line, in the order of `SKELETONS`.
            index: (N,) int64.
        """
        of_index = self.index(index).unflatten(1, (INDEX_TOKENS, -1))
        tokens = [states.tokens, of_index.to(states.tokens.dtype)]
        read, hint = self.skeleton(skeletons), None  # (N, C, h, w) or (N, patches, D)
        if self.enters == "hint":
            hint = read
        else:
            tokens.append(read.to(states.tokens.dtype))
        added = sum(part.shape[1] for part in tokens[1:])
        mask = None if states.mask is None else F.pad(states.mask, (0, added), value=True)
        return Conditioning(torch.cat(tokens, dim=1), states.pooled, mask, hint)


class HintBranch(nn.Module):
    """(N, 2, H, W) skeletons -> (N, C, h, w), zero before training, as of a ControlNet (arXiv:2302.05543)."""

    def __init__(self, edge_px: int, channels: int):
        super().__init__()
        self.edge_px = edge_px
        self.first = nn.Conv2d(len(SKELETONS) * edge_px**2, HIDDEN, 3, padding=1)
        self.second = nn.Conv2d(HIDDEN, HIDDEN, 3, padding=1)
        self.last = nn.Conv2d(HIDDEN, channels, 1)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)  # type: ignore[arg-type]

    def forward(self, skeletons: Tensor) -> Tensor:
        """(N, 2, H, W) -> (N, C, h, w)."""
        patches = F.pixel_unshuffle(skeletons, self.edge_px)
        return self.last(F.silu(self.second(F.silu(self.first(patches)))))


class VisionBranch(nn.Module):
    """(N, 2, H, W) skeletons -> (N, patches, D), as the paper's vision transformer gives them."""

    def __init__(self, size_px: int, width: int):
        super().__init__()
        from diffusers.models.attention import BasicTransformerBlock

        self.patches = nn.Conv2d(len(SKELETONS), VIT_WIDTH, PATCH_PX, PATCH_PX)
        self.places = nn.Parameter(torch.randn((size_px // PATCH_PX) ** 2, VIT_WIDTH) * 0.02)
        heads: Any = (VIT_WIDTH, VIT_HEADS, VIT_WIDTH // VIT_HEADS)
        self.blocks = nn.Sequential(*(BasicTransformerBlock(*heads) for _ in range(VIT_LAYERS)))
        self.last = nn.Linear(VIT_WIDTH, width)

    def forward(self, skeletons: Tensor) -> Tensor:
        """(N, 2, H, W) -> (N, patches, D)."""
        states = self.patches(skeletons).flatten(2).transpose(1, 2) + self.places  # (N, patches, VIT_WIDTH)
        return self.last(self.blocks(states))


def unpack_bits(packed: Tensor) -> Tensor:
    """(N, H, W / 8) bytes as numbers -> (N, 1, H, W) float32, 1 where the bit is set; the highest bit comes first."""
    shifts = torch.arange(BITS - 1, -1, -1, device=packed.device)
    return (packed.long()[..., None] >> shifts & 1).flatten(2)[:, None].float()


def with_skeletons(
    base: LatentDiffusion, enters: str, characters: str, seed: int = 0, captions: Sequence[str] = ()
) -> LatentDiffusion:
    """A base that can be led by skeletons; untrained.

    Args:
        base: any; its denoiser and text encoders are shared.
        enters, characters, seed: as for `SkeletonEncoder`.
        captions: one of each character, from which the tokens of its index start; random without.
    """
    layer = base.first_layer
    hint_px = base.latent_px * layer.stride[0]
    encoder = SkeletonEncoder(enters, characters, base.text.shape[1], hint_px, layer.out_channels, seed=seed)
    if captions:
        with torch.no_grad():
            encoder.index.weight[1:] = averaged_states(base.text, captions).flatten(1)
    return with_condition_encoder(base, encoder)


def knowing(encoder: SkeletonEncoder, characters: str) -> SkeletonEncoder:
    """The same encoder with the indices of some of its characters only, in the order given.

    Args:
        encoder: stays as it is.
        characters: each once, all of the encoder's.
    Raises:
        ValueError: one that it does not know, or one twice.
    """
    if unknown := sorted(set(characters) - set(encoder.characters)):
        raise ValueError(f"expected characters that have an index, got {unknown[0]!r} ({len(unknown)} have none)")
    config: dict[str, Any] = encoder.config | {"characters": characters}
    fewer = SkeletonEncoder(**config)
    rows = [0, *(encoder.characters.index(character) + 1 for character in characters)]
    fewer.load_state_dict(encoder.state_dict() | {"index.weight": encoder.index.weight[rows]})
    return fewer.eval().requires_grad_(False)


def averaged_states(text: TextEncoders, captions: Sequence[str]) -> Tensor:
    """(N, INDEX_TOKENS, D): the states of each caption's tokens, averaged over as many runs of about equal length."""
    tokenizer, longest = text.tokenizers()[0]
    states = text.states(captions).tokens  # (N, L, D)
    lengths = padded_tokens(tokenizer, list(captions), longest).attention_mask.sum(dim=1).tolist()
    runs = [torch.tensor_split(row[:length], INDEX_TOKENS) for row, length in zip(states, lengths, strict=True)]
    return torch.stack([torch.stack([run.mean(dim=0) for run in row]) for row in runs])


def save_encoder(encoder: SkeletonEncoder, folder: Path) -> None:
    """Writes `folder/condition_encoder`, in fp16.

    Args:
        encoder: trained.
        folder: of a base.
    """
    target = folder / FOLDER
    target.mkdir(parents=True, exist_ok=True)
    tensors = {name: value.detach().half().contiguous() for name, value in encoder.state_dict().items()}
    write_bytes_atomic(target / "model.safetensors", save(tensors))
    write_json_atomic(target / "config.json", encoder.config)


def load_encoder(folder: Path) -> SkeletonEncoder | None:
    """What `save_encoder` wrote into a base's folder, in float32; None where there is none.

    Raises:
        FileNotFoundError: the folder of the encoder lacks a file.
        ValueError: another or a damaged encoder: of settings that none has, of weights of other names or shapes, or of
            weights that are no numbers.
    """
    source = folder / FOLDER
    if not (source.exists() or source.is_symlink()):
        return None
    config, weights = source / "config.json", source / "model.safetensors"
    with torch.device("meta"):  # shapes alone, which the file is compared with before anything is reserved
        encoder = _encoder_of(read_json_object(config, ENCODER), config)
    tensors = read_tensors(weights)
    _check_tensors(tensors, encoder.state_dict(), weights)
    encoder.load_state_dict({name: value.float() for name, value in tensors.items()}, assign=True)
    return encoder.eval()


def check_fits(base: LatentDiffusion, encoder: SkeletonEncoder, folder: Path) -> None:
    """Refuses an encoder of another base.

    Args:
        base: of the folder.
        encoder: of `load_encoder`.
        folder: of both, for messages.
    Raises:
        ValueError: its states or its hint have other shapes than the base takes.
    """
    expected = {"width": base.text.shape[1]}
    if encoder.enters == "hint":
        layer = base.first_layer
        expected |= {"hint_px": base.latent_px * layer.stride[0], "hint_channels": layer.out_channels}
    for name, value in expected.items():
        if encoder.config[name] != value:
            raise ValueError(
                f"{folder / FOLDER}: {name}: expected {value}, as the base beside it has, got {encoder.config[name]}: "
                "it is the encoder of another base"
            )


def _encoder_of(config: Mapping[str, Any], source: Path) -> SkeletonEncoder:
    """An encoder of stored settings, whose weights are to come."""
    if config.keys() != set(CONFIG):
        raise ValueError(f"{source}: expected {ENCODER} of {', '.join(CONFIG)}, got {', '.join(config)!s:.200}")
    if not isinstance(config["characters"], str) or len(config["characters"]) > CHARACTERS_MAX:
        raise ValueError(f"{source}: characters: expected a text of at most {CHARACTERS_MAX:,} signs")
    for name, most in SIZES_MAX.items():
        if type(config[name]) is not int or not 1 <= config[name] <= most:
            raise ValueError(f"{source}: {name}: expected a whole number from 1 to {most}, got {config[name]!r:.80}")
    for step in (PATCH_PX, config["hint_px"]):
        if config["size_px"] % step:
            raise ValueError(f"{source}: size_px: expected a multiple of {step}, got {config['size_px']}")
    try:
        return SkeletonEncoder(**config)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{source}: {error}") from error


def _check_tensors(tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor], source: Path) -> None:
    if lacking := sorted(expected.keys() - tensors.keys()):
        raise ValueError(f"{source}: expected {ENCODER}, got a file without {lacking[0]} ({len(lacking)} are missing)")
    if others := sorted(tensors.keys() - expected.keys()):
        raise ValueError(f"{source}: expected {ENCODER}, got a file with {others[0]!s:.80} ({len(others)} are unknown)")
    for name, value in expected.items():
        found = tensors[name]
        if (of_one := tuple(found.shape)) != tuple(value.shape):
            channels = of_one[1:2] + tuple(value.shape[1:2])
            old = name in FIRST_LAYERS and channels[0] * len(SKELETONS) == channels[-1]
            why = ": it reads one skeleton, as earlier versions did; train it again" if old else ""
            raise ValueError(f"{source}: {name}: expected the shape {tuple(value.shape)}, got {of_one}{why}")
        if not found.is_floating_point() or not found.isfinite().all():
            raise ValueError(f"{source}: {name}: expected finite numbers, got {found.dtype} with others among them")
