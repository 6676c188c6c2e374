"""The Japanese stages: what is learned from, what the losses are, and that a training goes on as if never stopped."""

import dataclasses
from functools import partial

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch.testing import assert_close

from kanjilab.data.build import build_dataset
from kanjilab.data.dictionary import load_characters
from kanjilab.data.japanese import word_table
from kanjilab.data.selection import Left16
from kanjilab.models.japanese import load_japanese, new_encoder
from kanjilab.models.loading import load_base
from kanjilab.training import japanese
from kanjilab.training.attention_match import attention_gap, attention_probes
from kanjilab.training.distillation import (
    Distillation,
    DistilRecipe,
    WordPairs,
    distil,
    distil_loss,
    form_shares,
    padded,
    pooled,
    word_pairs,
)
from kanjilab.training.japanese_tokenizer import save_tokenizer
from tests.tiny import save_tiny_pipeline
from tests.tiny_japanese import TinyPieces

RECIPE = DistilRecipe(words_seen=24, batch=4, warmup_steps=2)
PAIRS = WordPairs(("魚", "火", "山", "人"), np.ones(4), np.arange(4), ("fish", "fire", "mountain", "person"))
TARGETS = np.random.default_rng(0).standard_normal((4, 384)).astype(np.float16)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return load_base(save_tiny_pipeline(tmp_path_factory.mktemp("tiny")))


def test_held_out_words_and_characters_are_not_learned():
    forms = {1: (["魚"], ["さかな"]), 2: (["火山"], ["かざん"]), 3: ([], ["ロボット"])}
    senses = {1: [["fish"]], 2: [["volcano"]], 3: [["robot"]]}
    words = word_table(forms, senses, (), {3}).assign(held_out=[False, False, True])
    characters = load_characters().loc[["魚", "火", "人"]]
    pairs = word_pairs(words, characters, held_out=["火"])
    assert pairs.texts == ("魚", "さかな", "魚", "人")  # neither the word 火山 nor the character 火, nor ロボット
    assert [pairs.english[row] for row in pairs.target] == ["fish", "fish", "fish", "person"]


def test_a_word_is_read_in_kanji_more_often_than_in_kana():
    assert form_shares(("人魚", "にんぎょ")) == [("人魚", 0.7), ("にんぎょ", pytest.approx(0.3))]
    assert form_shares(("ザーザー", "ざあざあ")) == [("ザーザー", 0.5), ("ざあざあ", 0.5)]


def test_the_loss_is_least_at_the_teacher_and_counts_the_angle():
    teacher = torch.eye(3)
    soft = (torch.eye(3) / 0.5).softmax(dim=1)
    at_the_teacher = distil_loss(teacher, teacher, 0.5, 4.0)
    assert_close(at_the_teacher, torch.tensor(0.0), atol=1e-6, rtol=0)
    turned = teacher[[1, 2, 0]]
    divergence = (soft * (soft.log() - soft[[1, 2, 0]].log())).sum(dim=1).mean()
    assert_close(distil_loss(turned, teacher, 0.5, 4.0), 4.0 + 0.01 * 2 + divergence)


def test_padding_is_not_pooled():
    ids, mask = padded([[7], [7, 8, 9]])
    assert ids.tolist() == [[2, 7, 3, 0, 0], [2, 7, 8, 9, 3]]
    states = torch.arange(10.0).view(2, 5, 1)
    assert pooled(states, mask).flatten().tolist() == [1.0, 7.0]
    assert padded([list(range(4, 100))])[0].shape == (1, 32)


def test_a_training_goes_on_as_if_never_stopped(tmp_path):
    def training():
        return Distillation(RECIPE, TinyPieces())

    whole = training()
    losses = [loss for _, loss in distil(PAIRS, TARGETS, whole, tmp_path / "whole.safetensors")]
    for step, _ in distil(PAIRS, TARGETS, training(), tmp_path / "state.safetensors", save_every_steps=3):
        if step == 3:
            break
    again = training()
    rest = [loss for _, loss in distil(PAIRS, TARGETS, again, tmp_path / "state.safetensors")]
    assert rest == losses[3:]
    for name, value in whole.average.items():
        assert_close(again.average[name], value, rtol=0, atol=0)


def test_the_loss_falls(tmp_path):
    recipe = dataclasses.replace(RECIPE, words_seen=80, peak_lr=2e-3)
    losses = [loss for _, loss in distil(PAIRS, TARGETS, Distillation(recipe, TinyPieces()), tmp_path / "state")]
    assert np.mean(losses[-5:]) < 0.7 * np.mean(losses[:5])


def test_a_probe_answers_as_the_layer_itself_does(base):
    latents = torch.randn(3, *base.latent_shape(32), generator=torch.Generator().manual_seed(0))
    probes = attention_probes(base, latents, ["", "", ""], queries=5)
    states = torch.randn(2, 8, 24, generator=torch.Generator().manual_seed(1))
    assert len(probes) == sum(name.endswith("attn2") for name, _ in base.denoiser.named_modules())
    for probe in probes:
        expected = probe.layer(probe.queries.expand(2, -1, -1), encoder_hidden_states=states)
        assert_close(probe.outputs(states), expected)


def test_the_gap_is_one_for_the_empty_caption_and_none_for_the_wanted(base):
    latents = torch.randn(3, *base.latent_shape(32), generator=torch.Generator().manual_seed(0))
    probes = attention_probes(base, latents, ["", "", ""])
    generator = torch.Generator().manual_seed(1)
    wanted, empty = torch.randn(2, 8, 24, generator=generator), torch.randn(1, 8, 24, generator=generator)
    assert_close(attention_gap(probes, empty.expand(2, -1, -1), wanted, empty), torch.tensor(1.0))
    assert attention_gap(probes, wanted, wanted, empty) == 0


def test_sentencepiece_and_the_tokenizer_cut_alike(tmp_path):
    from transformers import PreTrainedTokenizerFast

    from kanjilab.training.japanese_tokenizer import train_pieces

    parts = ("サラリー", "マン", "ロボット", "人魚", "火山", "さかな", "ザーザー")
    words = [f"{first}{second}{third}" for first in parts for second in parts for third in parts]
    pieces = train_pieces(words, vocabulary=284)
    save_tokenizer(pieces, tmp_path)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(tmp_path)
    for text in [*words[::17], "人魚 🐟 かき", ""]:
        assert tokenizer(text).input_ids == [2, *pieces.encode(text), 3]


@pytest.fixture
def few_words(monkeypatch):
    """Of the dictionary only two words, no name, and no kanji; pieces of single signs."""
    words = word_table({1: (["魚"], ["さかな"]), 2: (["火山"], [])}, {1: [["fish"]], 2: [["volcano"]]}, (), ())
    words = words.assign(held_out=False)

    def pieces(words, folder):
        save_tokenizer(TinyPieces(), folder / "tokenizer")
        return TinyPieces()

    monkeypatch.setattr(japanese, "load_words", lambda: words)
    monkeypatch.setattr(japanese, "load_names", lambda one_in: words.head(0))
    monkeypatch.setattr(japanese, "load_characters", lambda: load_characters().head(0))
    monkeypatch.setattr(japanese, "stored_pieces", pieces)
    monkeypatch.setattr(japanese, "READERS", ("pocket2",))
    monkeypatch.setattr(japanese, "reader_probes", partial(japanese.reader_probes, images=2))


def test_each_stage_begins_where_the_one_before_ended(few_words, tmp_path):
    kanji = build_dataset(Left16(per_radical=1), tmp_path / "kanji", held_out_per_radical=1)
    still = dataclasses.replace(RECIPE, peak_lr=0.0)
    weights = japanese.build_japanese(tmp_path, kanji, (("1a", RECIPE), ("1b", still), ("1a", still)))
    ends = [load_file(tmp_path / f"{number}_1{kind}.safetensors") for number, kind in enumerate("aba")]
    trained = [name for name in ends[0] if name.startswith("average.")]
    for name in trained:
        assert_close(ends[2][name], ends[0][name], rtol=1e-6, atol=1e-7)
    first = new_encoder(TinyPieces().get_piece_size(), RECIPE.seed).state_dict()
    assert any(not torch.equal(ends[0][name], first[name.removeprefix("average.")]) for name in trained)
    assert load_japanese(weights).encode(["魚"]).shape == (1, 32, 384)
