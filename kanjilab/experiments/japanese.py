"""What the Japanese text encoder understands, and what a denoiser draws of it.

`python -m kanjilab.experiments.japanese` measures the packaged encoder, or that of a folder that is named, on words
that no stage has read, and what pocket2 makes of them and of frequent words.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from kanjilab.core.config import DEFAULT_BASE
from kanjilab.data.build import build_dataset
from kanjilab.data.image_folder import HELD_OUT, TRAIN, Dataset
from kanjilab.data.japanese import japanese_captions, load_names, load_words, words_with
from kanjilab.data.selection import Left16
from kanjilab.evaluation.japanese import prediction_gap, retrieval_table, word_classes
from kanjilab.evaluation.judges.part_judge import load_judge
from kanjilab.evaluation.metrics import Estimate, expected_part_hits, two_way_bootstrap
from kanjilab.evaluation.scoring import glyphs_of
from kanjilab.models.diffusion import LatentDiffusion
from kanjilab.models.japanese import JAPANESE_FOLDER, japanese_vectors, load_japanese
from kanjilab.models.loading import load_base
from kanjilab.models.minilm import caption_vectors, load_minilm
from kanjilab.models.text_encoders import OneEncoder
from kanjilab.training.encoded import encode_dataset

GAP_WORDS = 64
SHOWN_WORDS = ("サラリーマン", "ザーザー", "人魚姫", "鮭")
JUDGES = ("A", "B")


def held_out_words() -> pd.DataFrame:
    """The words and the names that no stage has read, as rows of `load_words`; names have `name` set."""
    words, names = load_words(), load_names()
    both = pd.concat([words.assign(name=False), names.assign(name=True)])
    return both.loc[both["held_out"]]


def reading_scores(words: pd.DataFrame, text: OneEncoder) -> pd.DataFrame:
    """How well an encoder finds words among their English; see `retrieval_table`.

    Args:
        words: of `held_out_words`; each is asked for in its first form.
        text: the encoder.
    """
    vectors = japanese_vectors([forms[0] for forms in words["forms"]], text)
    classes = word_classes(words) | {"proper nouns": words["name"].to_numpy(dtype=bool)}
    return retrieval_table(vectors, caption_vectors(words["english"].tolist()), classes)


def nearest_english(words: Sequence[str], english: Sequence[str], text: OneEncoder, most: int = 3) -> pd.DataFrame:
    """The nearest of some English texts to each word, with cosines.

    Args:
        words: in Japanese.
        english: to choose from.
        text: the encoder of the words.
        most: texts for each word.
    """
    cosine = japanese_vectors(words, text) @ caption_vectors(english).T
    rows = []
    for word, near in zip(words, cosine, strict=True):
        best = np.argsort(-near)[:most]
        rows.append([word, *(f"{english[index]} ({near[index]:.2f})" for index in best)])
    return pd.DataFrame(rows, columns=["word", "nearest", *(f"{number}." for number in range(2, most + 1))])


def cuts(words: Sequence[str], text: OneEncoder) -> pd.DataFrame:
    """How MiniLM's tokenizer and the Japanese one cut words.

    Args:
        words: in Japanese.
        text: the Japanese encoder.
    """
    english, _ = load_minilm()
    rows = [[word, *(" ".join(one.tokenize(word)) for one in (english, text.tokenizer))] for word in words]
    return pd.DataFrame(rows, columns=["word", "MiniLM reads", "the Japanese encoder reads"])


def gap_to_english(base: LatentDiffusion, latents: Tensor, words: pd.DataFrame, text: OneEncoder) -> pd.DataFrame:
    """How far the denoiser's predictions for words are from those for their English; see `prediction_gap`.

    Args:
        base: with MiniLM, in fp32.
        latents: (N, C, h, w) of any images.
        words: N rows of `held_out_words`.
        text: the Japanese encoder.
    Returns:
        One row a way of reading: reading, gap (mean over words), and standard_error.
    """
    assert isinstance(base.text, OneEncoder)
    japanese, english = [forms[0] for forms in words["forms"]], words["english"].tolist()
    wanted, empty = base.text.states(english).tokens, base.text.states([""]).tokens
    ways = {
        "the Japanese encoder": text.states(japanese).tokens,
        "MiniLM reads the Japanese": base.text.states(japanese).tokens,
        "MiniLM reads another word's English": wanted.roll(1, dims=0),
        "MiniLM's mean state, at all positions": wanted.mean(dim=1, keepdim=True).expand_as(wanted),
    }
    rows = []
    for name, states in ways.items():
        gaps = prediction_gap(base, latents, states, wanted, empty)
        rows.append({"reading": name, "gap": gaps.mean(), "standard_error": gaps.std() / len(gaps) ** 0.5})
    return pd.DataFrame(rows)


def paired_captions(dataset: Dataset, per_radical: int = 6) -> pd.DataFrame:
    """Held-out characters with an English and a Japanese caption, the latter without the character itself.

    Args:
        dataset: such as left16.
        per_radical: at most so many of each radical.
    Returns:
        One row a character: character, radical, english, japanese (the usual word).
    """
    table = dataset.split(HELD_OUT).table.set_index("character", drop=False)
    words = load_words()
    meanings = pd.DataFrame({"meanings": [tuple(text.split(";")) for text in table["text"]]}, index=table.index)
    found = japanese_captions(meanings, words.loc[~words_with(words, table.index)])
    usual = found.loc[found["kind"].isin(["kana", "other kanji"])].groupby("character", sort=False)["text"].first()
    rows = table.loc[table.index.isin(usual.index)].groupby("radical_character", sort=True).head(per_radical)
    columns = {"radical": rows["radical_character"], "english": rows["text"]}
    return pd.DataFrame(columns | {"japanese": usual.loc[rows.index]}).reset_index()


def radical_rates(images: Mapping[str, NDArray[np.uint8]], radicals: Sequence[str]) -> pd.DataFrame:
    """How often the radical that is asked for is among the parts of what was drawn, by both judges.

    Args:
        images: way of asking -> (P, S, H, W).
        radicals: P, of the prompts' characters.
    Returns:
        One row a way and judge: way, judge, rate, low, high (95% over prompts and seeds), and of_first, the rate as a
        share of the first way's.
    """
    rows: list[dict[str, Any]] = []
    for judge in JUDGES:
        first = None
        for way, drawn_images in images.items():
            prompts, seeds = drawn_images.shape[:2]
            readings = load_judge(judge).read(glyphs_of(drawn_images))
            expected = [{radical} for radical in radicals for _ in range(seeds)]
            hits = expected_part_hits(readings, expected).reshape(prompts, seeds).T.astype(float)
            rate: Estimate = two_way_bootstrap(hits, rng=np.random.default_rng(0))
            first = rate.value if first is None else first
            share = rate.value / first if first else float("nan")
            rows.append({"way": way, "judge": judge, **rate._asdict(), "of_first": share})
    return pd.DataFrame(rows).rename(columns={"value": "rate"})


def spread_rows(table: pd.DataFrame, count: int) -> pd.DataFrame:
    """So many rows of a table, spread evenly from its first to its last."""
    return table.iloc[np.linspace(0, len(table) - 1, count).astype(int)]


def report(folder: Path = JAPANESE_FOLDER, words_each: int = GAP_WORDS) -> None:
    """Prints the tables of an encoder.

    Args:
        folder: as for `load_japanese`.
        words_each: of those that pocket2 is asked for.
    """
    text, held_out, words = load_japanese(folder), held_out_words(), load_words()
    print(reading_scores(held_out, text).round(3).to_string(index=False))
    base = load_base(DEFAULT_BASE)
    with TemporaryDirectory() as temporary:
        images = build_dataset(Left16(), Path(temporary) / "left16").split(TRAIN)
        rows = np.linspace(0, len(images) - 1, words_each).astype(int)
        latents = torch.from_numpy(np.array(encode_dataset(base, images.take(rows)).mean))
    read = words["common"] & ~words["held_out"]
    kinds = {"held-out": held_out.loc[~held_out["name"]], "frequent": words.loc[read]}
    for name, table in kinds.items():
        gaps = gap_to_english(base, latents, spread_rows(table, words_each), text)
        print(f"\n{words_each} {name} words\n{gaps.round(2).to_string(index=False)}")


if __name__ == "__main__":
    report(Path(sys.argv[1]) if sys.argv[1:] else JAPANESE_FOLDER)
