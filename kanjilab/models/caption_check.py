"""Which captions a text encoder cannot tell apart: what is cut, unknown or equal by its tokens."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

from kanjilab.core.config import settings_hash
from kanjilab.core.notices import counted, notice, some_of
from kanjilab.models.text_encoders import TextEncoders

SHOWN = 60  # characters of a caption in a line


@dataclass(frozen=True)
class CaptionLosses:
    """What a text encoder loses of some captions.

    Attributes:
        limit: tokens that it takes, those of beginning and end included.
        cut: the captions that are longer.
        unknown: those of which it does not know a token.
        equal: groups of different captions that it reads as one.
    """

    limit: int
    cut: tuple[str, ...]
    unknown: tuple[str, ...]
    equal: tuple[tuple[str, ...], ...]

    def lines(self) -> list[str]:
        """What there is to say of them, a line each."""
        alike = tuple(chain.from_iterable(self.equal))
        said = {
            f"cut after {self.limit} tokens, the limit of the text encoder": self.cut,
            "with a word that the text encoder does not know": self.unknown,
            "that the text encoder cannot tell from another one": alike,
        }
        return [f"{counted(len(found), 'caption')} {what}: {_quoted(found)}" for what, found in said.items() if found]


def _quoted(captions: Sequence[str]) -> str:
    return some_of([repr(text if len(text) <= SHOWN else text[:SHOWN] + "…") for text in captions], 3)


def caption_losses(text: TextEncoders, captions: Sequence[str]) -> CaptionLosses:
    """Compares captions by the tokens that reach the text encoder; of several, by those that reach any.

    Args:
        text: of a base.
        captions: any; each counts once.
    """
    captions = list(dict.fromkeys(captions))
    cut: set[str] = set()
    unknown: set[str] = set()
    kept: dict[str, list[tuple[int, ...]]] = {caption: [] for caption in captions}
    for tokenizer, limit in text.tokenizers():
        room = limit - tokenizer.num_special_tokens_to_add()
        # Without beginning and end, for CLIP's end stands for unknown words as well.
        words = tokenizer(captions, add_special_tokens=False, verbose=False)["input_ids"] if captions else []
        for caption, tokens in zip(captions, words, strict=True):
            kept[caption].append(tuple(tokens[:room]))
            cut |= {caption} if len(tokens) > room else set()
            unknown |= {caption} if tokenizer.unk_token_id in tokens else set()
    groups: dict[tuple[tuple[int, ...], ...], list[str]] = {}
    for caption, tokens in kept.items():
        groups.setdefault(tuple(tokens), []).append(caption)
    return CaptionLosses(
        limit=min(limit for _, limit in text.tokenizers()),
        cut=tuple(caption for caption in captions if caption in cut),
        unknown=tuple(caption for caption in captions if caption in unknown),
        equal=tuple(tuple(group) for group in groups.values() if len(group) > 1),
    )


def token_hash(text: TextEncoders, captions: Sequence[str]) -> str:
    """A hash of what reaches the text encoders of some captions: two tokenizers that read them alike have the same.

    Args:
        text, captions: as for `caption_losses`, in this order.
    """
    read = [tokenizer(list(captions), verbose=False)["input_ids"] for tokenizer, _ in text.tokenizers()]
    return settings_hash(read)


def tell_caption_losses(text: TextEncoders, captions: Sequence[str]) -> None:
    """Says how many captions are cut, unknown or equal, if any.

    Args:
        text, captions: as for `caption_losses`, which lists them all.
    """
    for line in caption_losses(text, captions).lines():
        notice(line)
