"""SentencePiece tokenizers of rinna's models, read as SentencePiece itself reads them."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from kanjilab.core.outside_files import read_json_object
from kanjilab.models.hub import is_of_t5, load_tokenizer


def text_length(folder: Path) -> int:
    """L, how many tokens the (first) text encoder of a pipeline's folder takes.

    Raises:
        ValueError: its configuration names no length.
    """
    file, name = folder / "tokenizer" / "tokenizer_config.json", "model_max_length"
    if is_of_t5(folder, "tokenizer"):
        file, name = folder / "text_encoder" / "config.json", "max_position_embeddings"
    length = read_json_object(file).get(name)
    if type(length) is not int:
        raise ValueError(f"{file}: {name}: expected a whole number, got {length!r:.80}")
    return length


def load_sentence_pieces(folder: Path, length: int) -> Any:
    """A tokenizer of transformers that cuts text in lower case into the folder's pieces, with the mark of the end.

    transformers assumes T5's ids, where 2 is the unknown. In rinna's vocabularies 2 is `</s>`, so that a character
    without a piece would end the text. It also leaves half-width kana and capital letters as they are.

    Args:
        folder: holds spiece.model or tokenizer.json, and its configuration.
        length: L, tokens of a text; what is longer is cut.
    Raises:
        ValueError: the folder holds no such tokenizer, or the package sentencepiece is missing, which spiece.model
            needs.
    """
    from tokenizers import Regex, Tokenizer, normalizers
    from transformers import PreTrainedTokenizerFast, T5Tokenizer

    whole, pieces_alone = folder / "tokenizer.json", folder / "spiece.model"
    if not (whole.is_file() or pieces_alone.is_file()):
        raise ValueError(f"{folder}: expected a tokenizer, in spiece.model or tokenizer.json, got none")
    if not whole.is_file() and find_spec("sentencepiece") is None:
        raise ValueError(f"{pieces_alone}: reading it needs a package: pip install 'kanjilab[japanese]'")
    words = load_tokenizer(T5Tokenizer, folder)
    settings = json.loads(words.backend_tokenizer.to_str())
    size = len(settings["model"]["vocab"])
    for name, number in (("unknown", words.unk_token_id), ("padding", words.pad_token_id)):
        if number is None or number >= size:
            raise ValueError(f"{folder}: expected a mark for {name} among its {size:,} pieces, got none")
    settings["model"]["unk_id"] = words.unk_token_id
    pieces = Tokenizer.from_str(json.dumps(settings))
    its_own = [pieces.normalizer] if pieces.normalizer else []
    spaces = [normalizers.Replace(Regex(" {2,}"), " "), normalizers.Strip()]
    pieces.normalizer = normalizers.Sequence([normalizers.Lowercase(), *its_own, normalizers.NFC(), *spaces])
    marks = {name: token for name, token in words.special_tokens_map.items() if isinstance(token, str)}
    return PreTrainedTokenizerFast(tokenizer_object=pieces, model_max_length=length, **marks)
