"""SentencePiece tokenizers of rinna's models, read as SentencePiece itself reads them."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from kanjilab.core.outside_files import read_json_object
from kanjilab.models.hub import load_tokenizer


def is_sentence_pieces(folder: Path) -> bool:
    """Whether a pipeline's folder names such a tokenizer: transformers calls it T5's."""
    named = read_json_object(folder / "model_index.json").get("tokenizer")
    return isinstance(named, list) and str(named[-1]).startswith("T5Tokenizer")


def text_length(folder: Path) -> int:
    """L, how many tokens the (first) text encoder of a pipeline's folder takes."""
    if is_sentence_pieces(folder):
        return read_json_object(folder / "text_encoder" / "config.json")["max_position_embeddings"]
    return read_json_object(folder / "tokenizer" / "tokenizer_config.json")["model_max_length"]


def load_sentence_pieces(folder: Path, length: int) -> Any:
    """A tokenizer of transformers that cuts text in lower case into the folder's pieces, with the mark of the end.

    transformers reads such a folder with T5's ids: a sign without a piece would be whatever has T5's id of the unknown,
    which here is the mark of the end. It also neither composes half-width kana nor knows of the lower case.

    Args:
        folder: holds spiece.model or tokenizer.json, and its configuration.
        length: L, tokens of a text; what is longer is cut.
    Raises:
        ValueError: the folder holds no such tokenizer, or the package sentencepiece is missing, which spiece.model
            needs.
    """
    from tokenizers import Regex, Tokenizer, normalizers
    from transformers import PreTrainedTokenizerFast, T5Tokenizer

    if not (folder / "tokenizer.json").is_file() and find_spec("sentencepiece") is None:
        raise ValueError(f"{folder}: its pieces, in spiece.model, need: pip install sentencepiece")
    words = load_tokenizer(T5Tokenizer, folder)
    settings = json.loads(words.backend_tokenizer.to_str())
    if words.unk_token_id >= len(settings["model"]["vocab"]):
        raise ValueError(f"{folder}: expected a piece for what is unknown, got none that is {words.unk_token!r}")
    settings["model"]["unk_id"] = words.unk_token_id
    pieces = Tokenizer.from_str(json.dumps(settings))
    its_own = [pieces.normalizer] if pieces.normalizer else []
    spaces = [normalizers.Replace(Regex(" {2,}"), " "), normalizers.Strip()]
    pieces.normalizer = normalizers.Sequence([normalizers.Lowercase(), *its_own, normalizers.NFC(), *spaces])
    marks = {name: token for name, token in words.special_tokens_map.items() if isinstance(token, str)}
    return PreTrainedTokenizerFast(tokenizer_object=pieces, model_max_length=length, **marks)
