"""Build the Japanese tokenizer: pieces found by SentencePiece, kept as a file that runs without it."""

from __future__ import annotations

import io
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from kanjilab.data.japanese import normal_text
from kanjilab.models.minilm import TOKENS

VOCABULARY = 8_000
COVERAGE = 0.9995  # of the signs in the texts; the others are read byte by byte
SPACE = "▁"
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")


def train_pieces(texts: Iterable[str], vocabulary: int = VOCABULARY) -> Any:
    """A unigram model of pieces, as a `SentencePieceProcessor`.

    Args:
        texts: words or sentences; they are normalised here.
        vocabulary: pieces in all, those for bytes among them.
    Raises:
        ModuleNotFoundError: the package sentencepiece is missing, which only building needs.
    Source: Kudo 2018, arXiv:1804.10959.
    """
    import sentencepiece

    model = io.BytesIO()
    options: dict[str, Any] = dict(zip(("pad_piece", "unk_piece", "bos_piece", "eos_piece"), SPECIAL, strict=True))
    options |= {"pad_id": 0, "unk_id": 1, "bos_id": 2, "eos_id": 3}
    options |= {"vocab_size": vocabulary, "model_type": "unigram", "character_coverage": COVERAGE}
    options |= {"byte_fallback": True, "normalization_rule_name": "identity", "add_dummy_prefix": False}
    options |= {"required_chars": SPACE, "num_threads": 1, "minloglevel": 2}
    listed = sorted(normal_text(text) for text in texts)
    sentencepiece.SentencePieceTrainer.train(sentence_iterator=iter(listed), model_writer=model, **options)
    return sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())


def save_tokenizer(pieces: Any, folder: Path, length: int = TOKENS) -> None:
    """Writes a tokenizer as `transformers` loads it, without SentencePiece.

    Args:
        pieces: of `train_pieces`.
        folder: for tokenizer.json and tokenizer_config.json.
        length: L, tokens of a text; what is longer is cut.
    """
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    listed = [(pieces.id_to_piece(i), pieces.get_score(i)) for i in range(pieces.get_piece_size())]
    tokenizer = Tokenizer(models.Unigram(listed, unk_id=1, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(SPACE, prepend_scheme="never", split=False)
    tokenizer.decoder = decoders.Sequence(
        [decoders.ByteFallback(), decoders.Fuse(), decoders.Metaspace(SPACE, prepend_scheme="never", split=False)]
    )
    pad, unknown, first, last = SPECIAL
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{first} $A {last}", special_tokens=[(first, 2), (last, 3)]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=length,
        pad_token=pad,
        unk_token=unknown,
        cls_token=first,
        sep_token=last,
    ).save_pretrained(str(folder))
