"""A small Japanese text side for tests: a few signs as pieces, random weights."""

from pathlib import Path

import torch
from transformers import BertConfig, BertModel

from kanjilab.training.japanese_tokenizer import SPECIAL, save_tokenizer

SIGNS = "魚火山人さかなロボット"


class TinyPieces:
    """One piece a sign, with the methods of a SentencePieceProcessor that are used."""

    def __init__(self, signs: str = SIGNS):
        self.pieces = [*SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256)), *dict.fromkeys(signs)]

    def get_piece_size(self) -> int:
        return len(self.pieces)

    def id_to_piece(self, number: int) -> str:
        return self.pieces[number]

    def get_score(self, number: int) -> float:
        return -float(number > 3)

    def encode(self, text: str, **_: object) -> list[int]:
        return [self.pieces.index(sign) for sign in text if sign in self.pieces]


def save_tiny_japanese(folder: Path, signs: str = SIGNS, width: int = 24, length: int = 8) -> Path:
    """`text_encoder/` and `tokenizer/`, whose states have the shape of the tiny pipeline's."""
    pieces = TinyPieces(signs)
    save_tokenizer(pieces, folder / "tokenizer", length)
    config = BertConfig(
        vocab_size=pieces.get_piece_size(),
        hidden_size=width,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=16,
        use_attention_mask=True,
    )
    with torch.random.fork_rng():
        torch.manual_seed(1)
        BertModel(config).save_pretrained(folder / "text_encoder")
    return folder
