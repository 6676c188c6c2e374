"""Captions that a text encoder cannot tell apart: counted, and said before training."""

import numpy as np
import pytest
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from kanjilab.data.image_folder import open_dataset
from kanjilab.models.caption_check import caption_losses, tell_caption_losses
from kanjilab.models.tiny_sd3 import WORDS
from kanjilab.training.encoded import encode_dataset

LONG = " ".join([WORDS[0]] * 6)  # as many words as the tiny base takes beside beginning and end: 8 tokens

# Captions -> how many are cut, hold an unknown word, and are equal to another
CASES = {
    "none of them": (WORDS[:4], (0, 0, 0)),
    "differences after the limit": ([f"{LONG} {word}" for word in WORDS[1:5]], (4, 0, 4)),
    "as long as the limit": ([LONG], (0, 0, 0)),
    "one word longer": ([f"{LONG} {WORDS[1]}"], (1, 0, 0)),
    "longer, and equal to one that is not cut": ([LONG, f"{LONG} {WORDS[1]}"], (1, 0, 2)),
    "a difference before the limit": ([f"{word} {LONG}" for word in WORDS[1:4]], (3, 0, 0)),
    "capitals": ([WORDS[0], WORDS[0].upper()], (0, 0, 2)),
    "spaces": ([WORDS[0], f"  {WORDS[0]} "], (0, 0, 2)),
    "two words that are not known": (["zzzzqqq", "qqqqzzz"], (0, 2, 2)),
    "Japanese": (["水", "火", WORDS[0]], (0, 2, 2)),
    "the same caption twice": ([WORDS[0], WORDS[0]], (0, 0, 0)),
    "the empty caption": (["", WORDS[0]], (0, 0, 0)),
    "no caption": ([], (0, 0, 0)),
}


@pytest.mark.parametrize("name", CASES)
def test_what_is_lost_of_captions(name, base):
    captions, expected = CASES[name]
    found = caption_losses(base.text, captions)
    assert (len(found.cut), len(found.unknown), sum(map(len, found.equal))) == expected
    assert found.limit == 8 and len(found.lines()) == sum(count > 0 for count in expected)


def test_every_caption_that_is_said_to_be_equal_has_the_same_states(base):
    captions = [f"{LONG} {word}" for word in WORDS[1:5]]
    (group,) = caption_losses(base.text, [*captions, WORDS[1]]).equal
    states = base.text.states([*group, WORDS[1]]).tokens
    assert (states[:4] == states[0]).all() and (states[4] != states[0]).any()


def test_three_encoders_lose_what_all_of_them_lose(sd3_base):
    lengths = [limit for _, limit in sd3_base.text.tokenizers()]
    long = " ".join([WORDS[0]] * max(lengths))
    found = caption_losses(sd3_base.text, [f"{long} {WORDS[1]}", f"{long} {WORDS[2]}", WORDS[3]])
    assert len(lengths) == 3 and found.limit == min(lengths)
    assert len(found.cut) == 2 and [len(group) for group in found.equal] == [2]


def test_it_is_said_before_anything_is_encoded(base, tmp_path, caplog):
    captions = [f"{LONG} {word}" for word in WORDS[1:4]]
    rng = np.random.default_rng(0)
    for number in range(3):
        Image.fromarray(rng.integers(0, 256, (32, 32), dtype=np.uint8)).save(tmp_path / f"{number}.png")
    rows = [f"{number}.png,{caption}" for number, caption in enumerate(captions)]
    (tmp_path / "metadata.csv").write_text("\n".join(["file_name,text", *rows]))
    dataset, said = open_dataset(tmp_path, size_px=32), []
    for _ in range(2):  # what is in the cache already, too
        caplog.clear()
        encode_dataset(base, dataset, tmp_path / "cache", on_progress=lambda *_: said.append(len(caplog.messages)))
        assert [line.split(":")[0] for line in caplog.messages] == [
            "3 captions cut after 8 tokens, the limit of the text encoder",
            "3 captions that the text encoder cannot tell from another one",
        ]
    assert set(said) == {2}


def test_long_captions_are_shortened_in_the_line_and_not_in_the_list(base, caplog):
    captions = [LONG * 50 + word for word in WORDS]
    tell_caption_losses(base.text, captions)
    assert all(len(line) < 400 for line in caplog.messages) and "more" in caplog.messages[0]
    assert caption_losses(base.text, captions).cut == tuple(captions)


def test_an_end_token_that_stands_for_unknown_words_as_clips_does():
    vocabulary = {"<s>": 0, "</s>": 1, "tree": 2}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="</s>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="</s>", eos_token="</s>", pad_token="</s>")

    class One:
        def tokenizers(self):
            return [(fast, 4)]

    assert caption_losses(One(), ["tree", "nothing", "tree tree"]).unknown == ("nothing",)  # type: ignore[arg-type]
