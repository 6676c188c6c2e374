"""The Japanese text side: its tokenizer, which captions go to it, and that two vocabularies never share a cache."""

import unicodedata
from dataclasses import replace

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch.testing import assert_close

from kanjilab.models.caption_check import caption_losses
from kanjilab.models.japanese import (
    JAPANESE_FOLDER,
    Bilingual,
    japanese_vectors,
    load_japanese,
    new_encoder,
    reading_japanese,
    save_encoder,
)
from kanjilab.models.loading import load_base
from kanjilab.models.text_encoders import OneEncoder
from kanjilab.models.tiny_sd3 import WORDS
from tests.image_folders import write_dataset
from tests.tiny import save_tiny_pipeline
from tests.tiny_japanese import save_tiny_japanese


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return load_base(save_tiny_pipeline(tmp_path_factory.mktemp("tiny")))


@pytest.fixture(scope="module")
def japanese(tmp_path_factory):
    return load_japanese(save_tiny_japanese(tmp_path_factory.mktemp("ja")))


@pytest.fixture(scope="module")
def packaged():
    return load_japanese()


@pytest.mark.parametrize("typed", ["ﾛﾎﾞｯﾄ", unicodedata.normalize("NFD", "ロボット"), "ロボット"])
def test_half_width_and_decomposed_kana_are_the_same_tokens(packaged, typed):
    assert packaged.tokenizer(typed).input_ids == packaged.tokenizer("ロボット").input_ids
    assert packaged.tokenizer.decode(packaged.tokenizer(typed).input_ids, skip_special_tokens=True) == "ロボット"


def test_what_is_no_piece_is_read_byte_by_byte(packaged):
    words = packaged.tokenizer.tokenize("魚 fish 🐟")
    assert "[UNK]" not in words and "<0xF0>" in words


@pytest.mark.parametrize("caption", ["", "魚" * 2_000, "赤い robot 42!"])
def test_any_length_and_mixture_gives_finite_states(packaged, caption):
    states = packaged.encode([caption])
    assert states.shape == (1, 32, 384) and torch.isfinite(states).all()


def test_what_is_longer_than_the_encoder_reads_is_cut(packaged):
    assert_close(packaged.encode(["魚" * 2_000]), packaged.encode(["魚" * 50]))


def test_words_are_near_what_they_mean(packaged):
    from kanjilab.models.minilm import caption_vectors

    words = ["サラリーマン", "ロボット", "人魚", "火山", "女王", "川"]
    english = ["office worker", "robot", "mermaid", "volcano", "queen", "river"]
    nearest = (japanese_vectors(words, packaged) @ caption_vectors(english).T).argmax(axis=1)
    assert nearest.tolist() == list(range(len(words)))


def test_each_caption_goes_to_the_encoder_of_its_script(base, japanese):
    both = Bilingual(base.text, japanese, "x")
    captions = [WORDS[0], "魚", "", "赤い fish"]
    states = both.states(captions).tokens
    assert_close(states[[0, 2]], base.text.states([WORDS[0], ""]).tokens, rtol=0, atol=0)
    assert_close(states[[1, 3]], japanese.states(["魚", "赤い fish"]).tokens, rtol=0, atol=0)
    assert caption_losses(both, captions).unknown == ()


def test_gradients_flow_to_what_is_trained_in_the_english_encoder(base, japanese):
    both = Bilingual(base.text, japanese, "x")
    scale = torch.ones((), requires_grad=True)

    def scaled(*arguments, **named):
        return (base.text.encoder(*arguments, **named)[0] * scale,)

    both.encode([WORDS[0], "魚"], scaled).sum().backward()
    assert_close(scale.grad, base.text.encode([WORDS[0]]).sum())


def test_two_vocabularies_never_share_a_cache(base, tmp_path):
    from kanjilab.data.image_folder import open_dataset
    from kanjilab.training.encoded import encode_dataset

    folders = [save_tiny_japanese(tmp_path / name, signs) for name, signs in (("a", "魚火山人"), ("b", "人山火魚"))]
    rows = [("0.png", "魚", "train"), ("1.png", "火山", "train")]
    images = open_dataset(write_dataset(tmp_path / "images", rows, [Image.new("L", (32, 32), 255)] * 2))
    first, second = (replace(base, text=load_japanese(folder)) for folder in folders)
    assert first.identity == second.identity  # only the tokenizers differ
    tokens = [encode_dataset(one, images, tmp_path / "cache").tokens for one in (first, second)]
    assert len(list((tmp_path / "cache").iterdir())) == 2
    assert abs(tokens[0] - tokens[1]).max() > 0.01


def test_a_base_that_reads_otherwise_is_left_alone(base):
    assert reading_japanese(base) is base  # its tiny encoder is not MiniLM


def test_encoders_of_different_shapes_are_refused(base, packaged):
    with pytest.raises(ValueError, match=r"states of \(32, 384\).*got \(8, 24\)"):
        Bilingual(base.text, packaged, "x")


def test_a_missing_encoder_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="kanjilab.training.japanese builds them"):
        load_japanese(tmp_path)


def test_pocket_ja_is_pocket2_that_reads_japanese_in_plain_diffusers_too(packaged):
    from diffusers import StableDiffusionPipeline

    from kanjilab.models.loading import base_folder

    loaded, pocket = load_base("pocket-ja"), load_base("pocket2")
    assert_close(loaded.text.states(["火山", ""]).tokens, packaged.states(["火山", ""]).tokens)
    assert_close(loaded.denoiser.state_dict(), pocket.denoiser.state_dict(), rtol=0, atol=0)
    assert loaded.identity == load_base("pocket-ja").identity != pocket.identity
    pipeline = StableDiffusionPipeline.from_pretrained(base_folder("pocket-ja"), safety_checker=None)
    pipeline.set_progress_bar_config(disable=True)
    embedded, _ = pipeline.encode_prompt(["火山"], "cpu", 1, do_classifier_free_guidance=False)
    assert_close(embedded, packaged.states(["火山"]).tokens)


def test_pieces_in_eight_bits_leave_states_as_they_were(packaged, tmp_path):
    trained = new_encoder(len(packaged.tokenizer), seed=1).eval()
    save_encoder(trained.state_dict(), JAPANESE_FOLDER / "tokenizer", tmp_path)
    stored = load_file(tmp_path / "text_encoder" / "model.safetensors")
    pieces = "embeddings.word_embeddings.weight"
    eight = {name for name, value in stored.items() if value.dtype == torch.float8_e4m3fn}
    assert eight == {pieces} and {v.dtype for n, v in stored.items() if n != pieces} == {torch.float16}
    loaded = load_japanese(tmp_path)
    assert {value.dtype for value in loaded.encoder.state_dict().values()} == {torch.float32}
    exact = OneEncoder(packaged.tokenizer, trained).encode(["火山", "ロボット"])
    off = (loaded.encode(["火山", "ロボット"]) - exact).norm() / exact.norm()
    assert 0 < off < 0.03  # rounding a weight to E4M3 moves it by 2.7%


def test_the_writer_reads_both_languages():
    writer = load_base("writer")
    both = reading_japanese(writer)
    assert both.identity == writer.identity and both.encoding_identity != writer.encoding_identity
    assert_close(both.encode_text(["river"]).tokens, writer.encode_text(["river"]).tokens, rtol=0, atol=0)
    assert (both.encode_text(["川"]).tokens - writer.encode_text(["川"]).tokens).abs().max() > 0.1
