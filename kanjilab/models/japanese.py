"""The Japanese text encoder: a small BERT that says of Japanese what MiniLM says of its English.

`pocket-ja` is pocket2 with this encoder in MiniLM's place. `reading_japanese` gives any base that reads MiniLM both:
prompts with Japanese signs go to the one, all others to the other.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from kanjilab.core.outside_files import read_json_object
from kanjilab.core.storage import PACKAGE_WEIGHTS, appearing_folder, require_new, sha256_file, write_json_atomic
from kanjilab.data.japanese import has_japanese
from kanjilab.models.diffusion import LatentDiffusion
from kanjilab.models.hub import (
    UNUSED_PARTS,
    check_base_files,
    family_of,
    load_tokenizer,
    load_whole,
    part_class,
    quiet_diffusers,
)
from kanjilab.models.minilm import TOKENS, caption_vectors
from kanjilab.models.sentence_pieces import text_length
from kanjilab.models.text_encoders import OneEncoder, padded_tokens

if TYPE_CHECKING:
    from transformers import BatchEncoding, BertModel

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
JAPANESE_FOLDER = PACKAGE_WEIGHTS / "pocket-ja"


def new_encoder(vocabulary: int, seed: int = 0, **changes: Any) -> BertModel:
    """An encoder with random weights, ready to be trained.

    Args:
        vocabulary: of its tokenizer.
        seed: of the weights.
        changes: of `ENCODER`.
    """
    from transformers import BertConfig, BertModel

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        # torch's fused attention takes several times as long backwards on a processor.
        settings: dict[str, Any] = ENCODER | {"vocab_size": vocabulary, "attn_implementation": "eager"} | changes
        return BertModel(BertConfig(**settings), add_pooling_layer=False)


def save_encoder(weights: dict[str, Tensor], tokenizer: Path, folder: Path) -> None:
    """Writes an encoder with its tokenizer, as diffusers reads them in a pipeline: in fp16, and the embeddings of the
    pieces, more than half of all weights, in 8 bits (E4M3: each by 2.7% off, which turns a text's state by 1%).

    Args:
        weights: of `new_encoder`.
        tokenizer: folder of the tokenizer.
        folder: for `text_encoder/` and `tokenizer/`.
    """
    from transformers import BertConfig, BertModel

    settings: dict[str, Any] = ENCODER | {"vocab_size": len(weights["embeddings.word_embeddings.weight"])}
    encoder = BertModel(BertConfig(**settings))  # with a pooling layer that diffusers expects and nothing reads: zeros
    nothing = {name: torch.zeros_like(value) for name, value in encoder.state_dict().items() if "pooler" in name}
    encoder.load_state_dict(weights | nothing)
    pieces = encoder.half().embeddings.word_embeddings
    pieces.weight = nn.Parameter(weights["embeddings.word_embeddings.weight"].to(torch.float8_e4m3fn), False)
    encoder.save_pretrained(folder / "text_encoder")
    path = folder / "text_encoder" / "config.json"  # computed with in float32, as MiniLM's are
    write_json_atomic(path, read_json_object(path) | {"dtype": "float32"})
    shutil.copytree(tokenizer, folder / "tokenizer", dirs_exist_ok=True)


def save_unread_base(source: Path | str, target: Path | str, seed: int = 0) -> Path:
    """Writes a base that is to learn Japanese as rinna's did: another's denoiser, and a text encoder of the same shape
    with random weights, which reads our tokenizer's pieces.

    Args:
        source: folder of a pipeline with a U-Net, SD 1.x's or another, in diffusers' format.
        target: appears whole or not at all.
        seed: of the weights.
    Raises:
        ValueError: the source is no such pipeline, or has an encoder of skeletons, which would be lost.
        FileExistsError: the target is there already.
    """
    import transformers

    source, target = Path(source), Path(target)
    require_new(target)
    if family_of(str(source), source) != "unet" or (source / "condition_encoder").exists():
        raise ValueError(f"{source}: expected a pipeline with a U-Net and one text encoder alone, got another")
    check_base_files(source)
    kind = part_class(source, "text_encoder", transformers)
    config = kind.config_class.from_pretrained(source / "text_encoder")
    tokenizer = transformers.PreTrainedTokenizerFast.from_pretrained(JAPANESE_FOLDER / "tokenizer")
    tokenizer.model_max_length = text_length(source)
    config.vocab_size, config.pad_token_id = len(tokenizer), tokenizer.pad_token_id
    config.bos_token_id, config.eos_token_id = tokenizer.cls_token_id, tokenizer.sep_token_id
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        encoder = kind(config)
    index = read_json_object(source / "model_index.json") | dict.fromkeys(UNUSED_PARTS, [None, None])
    with appearing_folder(target) as temporary, quiet_diffusers():
        for part in ("unet", "vae", "scheduler"):
            shutil.copytree(source / part, temporary / part)
        encoder.save_pretrained(temporary / "text_encoder")
        tokenizer.save_pretrained(str(temporary / "tokenizer"))
        index |= {"_class_name": "StableDiffusionPipeline", "tokenizer": ["transformers", "PreTrainedTokenizerFast"]}
        index["requires_safety_checker"] = False
        write_json_atomic(temporary / "model_index.json", index)
    return target


def load_japanese(folder: Path = JAPANESE_FOLDER, device: torch.device | str = "cpu") -> OneEncoder:
    """The Japanese encoder with its tokenizer, for use without gradients.

    Args:
        folder: with `text_encoder/` and `tokenizer/`.
        device: where it computes.
    Raises:
        FileNotFoundError: its weights or its tokenizer are missing.
        ValueError: they are damaged, or another's.
    """
    from transformers import BertModel, PreTrainedTokenizerFast

    if not (folder / "text_encoder" / "model.safetensors").is_file():
        raise FileNotFoundError(
            f"{folder}: the weights of the Japanese text encoder are missing from this installation; "
            "kanjilab.training.japanese builds them"
        )
    check_base_files(folder)
    read_json_object(folder / "tokenizer" / "tokenizer.json", "a tokenizer")
    tokenizer = load_tokenizer(PreTrainedTokenizerFast, folder / "tokenizer")
    with quiet_diffusers():
        encoder = load_whole(BertModel, folder / "text_encoder")
    return OneEncoder(tokenizer, encoder.to(device).requires_grad_(False).eval())


class ScriptTokenizer:
    """Two tokenizers as one: texts with Japanese signs are cut by the second, whose ids follow those of the first.

    Args:
        english, japanese: of transformers.
    """

    def __init__(self, english: Any, japanese: Any):
        self.english, self.japanese = english, japanese
        self.unk_token_id = english.unk_token_id  # the Japanese one reads what it does not know byte by byte
        self.model_max_length = english.model_max_length

    def __call__(self, texts: str | list[str], **options: Any) -> BatchEncoding:
        """Ids of a text, or of each of several, with transformers' options for lists."""
        from transformers import BatchEncoding

        if isinstance(texts, str):
            return BatchEncoding({"input_ids": self._ids(texts, options)})
        return BatchEncoding({"input_ids": [self._ids(text, options) for text in texts]})

    def num_special_tokens_to_add(self) -> int:
        """How many ids mark the ends of a text; both mark both ends."""
        return self.english.num_special_tokens_to_add()

    def _ids(self, text: str, options: dict[str, Any]) -> list[int]:
        if not has_japanese(text):
            return self.english(text, **options)["input_ids"]
        return [len(self.english) + one for one in self.japanese(text, **options)["input_ids"]]


class Bilingual(OneEncoder):
    """MiniLM, and beside it the Japanese encoder for captions with Japanese signs.

    Args:
        english: the base's own; it is what can be trained.
        japanese: of `load_japanese`, of the same shape.
        identity: of the second's weights and tokenizer.
    Raises:
        ValueError: the two give states of different shapes.
    """

    def __init__(self, english: OneEncoder, japanese: OneEncoder, identity: str):
        if english.shape != japanese.shape:
            raise ValueError(
                f"the Japanese encoder gives states of {japanese.shape} (tokens, width): expected a base whose text "
                f"encoder does so, got {english.shape}"
            )
        super().__init__(english.tokenizer, english.encoder)
        self.english, self.japanese, self.identity = english, japanese, identity
        self.routed = ScriptTokenizer(english.tokenizer, japanese.tokenizer)

    def tokenizers(self) -> list[tuple[Any, int]]:
        """One, which cuts each caption by its script; see `TextEncoders.tokenizers`."""
        return [(self.routed, self.shape[0])]

    def encode(self, captions: Sequence[str], encoder: Callable[..., Any] | None = None) -> Tensor:
        """(B, L, D) float32 states; see `OneEncoder.encode`.

        Args:
            captions: B strings.
            encoder: called in place of MiniLM.
        """
        japanese = [has_japanese(caption) for caption in captions]
        found = torch.empty(len(captions), *self.shape, device=self.encoder.device)
        for text, wanted, other in ((self.english, False, encoder), (self.japanese, True, None)):
            if rows := [row for row, is_japanese in enumerate(japanese) if is_japanese == wanted]:
                found[rows] = text.encode([captions[row] for row in rows], other)
        return found


def reading_japanese(base: LatentDiffusion, folder: Path = JAPANESE_FOLDER) -> LatentDiffusion:
    """The base with the Japanese encoder beside MiniLM; English is read as before.

    Args:
        base: stays as it is.
        folder: of the encoder.
    Returns:
        A base with the same weights; the base itself where it does not read MiniLM.
    """
    if not (isinstance(base.text, OneEncoder) and not isinstance(base.text, Bilingual) and _is_minilm(base.text)):
        return base
    return replace(base, text=Bilingual(base.text, load_japanese(folder, base.device), _identity_of(folder)))


def _is_minilm(text: OneEncoder) -> bool:
    return (text.encoder.config.hidden_size, len(text.tokenizer)) == (ENCODER["hidden_size"], 30_522)


def _identity_of(folder: Path) -> str:
    files = (folder / "text_encoder" / "model.safetensors", folder / "tokenizer" / "tokenizer.json")
    return "-".join(sha256_file(path)[:16] for path in files)


@cache
def _packaged() -> OneEncoder:
    return load_japanese()


@torch.inference_mode()
def japanese_vectors(captions: Sequence[str], text: OneEncoder | None = None) -> NDArray[np.float32]:
    """What the Japanese encoder says of captions as a whole, (N, D) unit vectors beside those of `caption_vectors`.

    Args:
        captions: N, in Japanese.
        text: the encoder; the package's own by default.
    """
    text = text or _packaged()
    tokens = padded_tokens(text.tokenizer, list(captions), text.shape[0])
    states = text.encoder(tokens.input_ids, attention_mask=tokens.attention_mask)[0].float()
    mask = tokens.attention_mask[..., None]
    return torch.nn.functional.normalize((states * mask).sum(1) / mask.sum(1), dim=1).numpy()


def text_vectors(captions: Sequence[str]) -> NDArray[np.float32]:
    """Unit vectors (N, D) of captions in either language: see `japanese_vectors` and `minilm.caption_vectors`."""
    japanese = np.array([has_japanese(caption) for caption in captions], dtype=bool)
    found = np.zeros((len(captions), ENCODER["hidden_size"]), np.float32)
    for rows, read in ((np.flatnonzero(~japanese), caption_vectors), (np.flatnonzero(japanese), japanese_vectors)):
        if len(rows):
            found[rows] = read([captions[int(row)] for row in rows])
    return found
