"""What a denoiser reads of captions: token states and pooled states, from one text encoder or from three."""

from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from kanjilab.core.outside_files import read_json_object
from kanjilab.models.conditioning import Conditioning
from kanjilab.models.hub import load_whole, part_class, quiet_diffusers

T5_TOKENS = 77  # of SD 3's third encoder; diffusers' training script and ComfyUI take as many
SUFFIXES = ("", "_2", "_3")  # of SD 3's encoders and tokenizers
REMEMBERED = 64  # captions whose states are kept, so that drawing at each checkpoint loads no encoder again


class EncodedPart(NamedTuple):
    """The states that one encoder gives some captions, and their place among all states.

    Attributes:
        captions, positions, widths: of the N captions, the L positions and the D numbers.
        tokens: (B, l, d) float32, the states there.
        pooled: (B, p) float32, or None.
        pooled_widths: of the P numbers.
    """

    captions: slice
    positions: slice
    widths: slice
    tokens: Tensor
    pooled: Tensor | None = None
    pooled_widths: slice = slice(0, 0)


class TextEncoders(ABC):
    """The text encoders of a base, whatever their number.

    Attributes:
        shape: (L, D) of a caption's token states.
        pooled_width: P, or None where there are no pooled states.
        passes: how often the captions are gone through, once an encoder.
        encoder: the one that stays loaded and can be trained; None where each is loaded when it is needed.
        identity: of what is not part of the base's own identity; "" for nothing.
    """

    shape: tuple[int, int]
    identity: str = ""
    pooled_width: int | None = None
    passes = 1
    encoder: nn.Module | None = None

    @abstractmethod
    def parts(self, captions: Sequence[str], batch: int) -> Iterator[EncodedPart]:
        """The states of captions, encoder by encoder; what no part covers is zero.

        Args:
            captions: what is longer than the model's length is cut.
            batch: captions encoded at a time.
        """

    @abstractmethod
    def tokenizers(self) -> list[tuple[Any, int]]:
        """The tokenizer of each encoder, and how many tokens it takes."""

    @torch.no_grad()
    def states(self, captions: Sequence[str]) -> Conditioning:
        """The states of a few captions, all in memory."""
        tokens = torch.zeros(len(captions), *self.shape)
        pooled = None if self.pooled_width is None else torch.zeros(len(captions), self.pooled_width)
        for part in self.parts(captions, max(1, len(captions))):
            tokens[part.captions, part.positions, part.widths] = part.tokens.cpu()
            if pooled is not None and part.pooled is not None:
                pooled[part.captions, part.pooled_widths] = part.pooled.cpu()
        return Conditioning(tokens, pooled)


class OneEncoder(TextEncoders):
    """A tokenizer and an encoder that stay loaded, as SD 1.x and pocket have them.

    Args:
        tokenizer, encoder: of transformers; the encoder's first output is (B, L, D).
    """

    def __init__(self, tokenizer: Any, encoder: Any):
        self.tokenizer = tokenizer
        self.encoder: Any = encoder
        self.shape = (tokenizer.model_max_length, encoder.config.hidden_size)

    @torch.no_grad()
    def parts(self, captions: Sequence[str], batch: int) -> Iterator[EncodedPart]:
        """See `TextEncoders.parts`; captions are padded to the model's length."""
        for start in range(0, len(captions), batch):
            states = self.encode(captions[start : start + batch])
            rows = slice(start, start + len(states))
            yield EncodedPart(rows, slice(0, self.shape[0]), slice(0, self.shape[1]), states)

    def tokenizers(self) -> list[tuple[Any, int]]:
        """See `TextEncoders.tokenizers`."""
        return [(self.tokenizer, self.shape[0])]

    def encode(self, captions: Sequence[str], encoder: Callable[..., Any] | None = None) -> Tensor:
        """(B, L, D) float32 states, through which gradients flow to what is trained in the encoder.

        Args:
            captions: B strings.
            encoder: called in place of the encoder itself, with other weights, say.
        """
        tokens = padded_tokens(self.tokenizer, list(captions), self.shape[0]).to(self.encoder.device)
        mask = tokens.attention_mask if getattr(self.encoder.config, "use_attention_mask", False) else None
        return (encoder or self.encoder)(tokens.input_ids, attention_mask=mask)[0].float()


def padded_tokens(tokenizer: Any, captions: list[str], length: int) -> Any:
    """Token ids (B, L) and their mask.

    Args:
        tokenizer: of transformers.
        captions: B strings; what is longer than L is cut.
        length: L.
    """
    return tokenizer(captions, padding="max_length", max_length=length, truncation=True, return_tensors="pt")


class ThreeEncoders(TextEncoders):
    """SD 3's text side: two CLIPs beside each other in width, and T5 after them in length.

    An encoder is loaded when it is needed, encodes all that is asked for, and is freed: T5-XXL alone
    is as large as the denoiser. The states of the last captions are kept. T5 may be absent; its
    positions are zeros then, as in diffusers.

    Args:
        folder: a pipeline in diffusers' format.
        width: D, the denoiser's joint_attention_dim.
        device, dtype: in which the encoders compute.
    """

    def __init__(self, folder: Path, width: int, device: torch.device, dtype: torch.dtype):
        self.folder, self.device, self.dtype = folder, device, dtype
        self.index = read_json_object(folder / "model_index.json")
        present = [name for name in ("text_encoder", "text_encoder_2") if self._has(name)]
        if len(present) < 2:
            raise ValueError(f"{folder}: expected two CLIP text encoders, found {present}; only T5 may be absent")
        self.passes = 3 if self._has("text_encoder_3") else 2
        configs = [read_json_object(folder / name / "config.json") for name in present]
        self.clip_widths = [config["hidden_size"] for config in configs]
        self.pooled_widths = [config["projection_dim"] for config in configs]
        self.pooled_width = sum(self.pooled_widths)
        self.clip_tokens = int(self._tokenizer("tokenizer").model_max_length)
        self.shape = (self.clip_tokens + T5_TOKENS, width)
        self._remembered: OrderedDict[str, Conditioning] = OrderedDict()

    @torch.no_grad()
    def parts(self, captions: Sequence[str], batch: int) -> Iterator[EncodedPart]:
        """See `TextEncoders.parts`. Each encoder is in memory only while its parts are taken."""
        for number in range(self.passes):
            yield from self._parts_of(number, captions, batch)

    @torch.no_grad()
    def states(self, captions: Sequence[str]) -> Conditioning:
        """The states of a few captions; those asked for lately come from memory."""
        missing = sorted(set(captions) - self._remembered.keys())
        if missing:
            found = super().states(missing)
            for row, caption in enumerate(missing):
                self._remembered[caption] = found.select(torch.tensor([row]))
        for caption in captions:
            self._remembered.move_to_end(caption)
        chosen = [self._remembered[caption] for caption in captions]
        while len(self._remembered) > REMEMBERED:
            self._remembered.popitem(last=False)
        pooled = [states.pooled for states in chosen if states.pooled is not None]
        return Conditioning(torch.cat([states.tokens for states in chosen]), torch.cat(pooled))

    def tokenizers(self) -> list[tuple[Any, int]]:
        """See `TextEncoders.tokenizers`."""
        return [(self._tokenizer(f"tokenizer{end}"), self._length(end)) for end in SUFFIXES[: self.passes]]

    def _length(self, suffix: str) -> int:
        return T5_TOKENS if suffix == SUFFIXES[2] else self.clip_tokens

    def _parts_of(self, number: int, captions: Sequence[str], batch: int) -> Iterator[EncodedPart]:
        """Of one encoder: the two CLIPs are numbers 0 and 1, T5 is number 2."""
        suffix = SUFFIXES[number]
        length = self._length(suffix)
        tokenizer, encoder = self._tokenizer(f"tokenizer{suffix}"), self._encoder(f"text_encoder{suffix}")
        for start in range(0, len(captions), batch):
            chunk = list(captions[start : start + batch])
            ids = padded_tokens(tokenizer, chunk, length).input_ids.to(self.device)
            rows = slice(start, start + len(chunk))
            if number == 2:
                positions = slice(self.clip_tokens, self.shape[0])
                yield EncodedPart(rows, positions, slice(0, self.shape[1]), encoder(ids)[0].float())
            else:
                found = encoder(ids, output_hidden_states=True)
                tokens, pooled = found.hidden_states[-2].float(), found.text_embeds.float()
                widths, pooled_widths = _following(self.clip_widths, number), _following(self.pooled_widths, number)
                yield EncodedPart(rows, slice(0, self.clip_tokens), widths, tokens, pooled, pooled_widths)

    def _has(self, name: str) -> bool:
        return bool((self.index.get(name) or [None])[0])

    def _class(self, name: str) -> Any:
        import transformers

        return part_class(self.folder, name, transformers)

    def _tokenizer(self, name: str) -> Any:
        return self._class(name).from_pretrained(self.folder / name, local_files_only=True)

    def _encoder(self, name: str) -> Any:
        """A freshly loaded encoder; it is gone when the caller lets go of it."""
        with quiet_diffusers():
            encoder = load_whole(self._class(name), self.folder / name, dtype=self.dtype, local_files_only=True)
        return encoder.to(self.device).requires_grad_(False).eval()


def _following(widths: Sequence[int], number: int) -> slice:
    """The place of the number-th of some widths when they are laid side by side."""
    start = sum(widths[:number])
    return slice(start, start + widths[number])
