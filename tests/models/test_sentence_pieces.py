"""rinna's form of a base: SentencePiece's pieces read as SentencePiece reads them, in lower case, 77 tokens."""

import io
import json
import shutil
import sys

import pytest
import sentencepiece
import torch
from diffusers import DiffusionPipeline
from safetensors.torch import load_file
from torch.testing import assert_close
from transformers import CLIPTextConfig, CLIPTextModel

from kanjilab.core.config import Arm
from kanjilab.core.run_folder import RunFolder
from kanjilab.data.image_folder import open_dataset
from kanjilab.data.japanese import load_words
from kanjilab.export.conversion import to_pipeline
from kanjilab.models.caption_check import caption_losses
from kanjilab.models.japanese import save_unread_base
from kanjilab.models.loading import load_base
from kanjilab.models.memory import architecture
from kanjilab.models.sentence_pieces import load_sentence_pieces
from kanjilab.training.encoded import encode_dataset
from kanjilab.training.loop import train
from tests.image_folders import eight_kanji
from tests.tiny import save_tiny_calligraphy, save_tiny_pipeline

MARKS = {"unk": "<unk>", "bos": "<s>", "eos": "</s>", "pad": "[PAD]"}  # in this order, with the ids 0 to 3
LENGTH, END, PAD = 77, 2, 3


@pytest.fixture(scope="module")
def words():
    return load_words()


@pytest.fixture(scope="module")
def pieces(words):
    """SentencePiece's own processor, of rinna's marks: the unknown is 0, and what T5 has there is 2, here the end."""
    model = io.BytesIO()
    texts = [form for forms in words["forms"].iloc[::40] for form in forms]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts), model_writer=model, vocab_size=1_800, character_coverage=0.98,
        pad_id=PAD, pad_piece=MARKS["pad"], control_symbols=["[CLS]", "[SEP]"], num_threads=1, minloglevel=2,
    )  # fmt: skip
    return sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())


@pytest.fixture(scope="module")
def tokenizer_folder(pieces, tmp_path_factory):
    """As rinna's repository has it: no tokenizer.json, no length."""
    folder = tmp_path_factory.mktemp("rinna") / "tokenizer"
    folder.mkdir()
    (folder / "spiece.model").write_bytes(pieces.serialized_model_proto())
    marks = {f"{name}_token": mark for name, mark in MARKS.items()} | {"cls_token": "[CLS]", "sep_token": "[SEP]"}
    (folder / "special_tokens_map.json").write_text(json.dumps(marks))
    settings = marks | {"extra_ids": 0, "do_lower_case": True, "tokenizer_class": "T5Tokenizer"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


@pytest.fixture(scope="module")
def rinna(tokenizer_folder, pieces, tmp_path_factory):
    """A tiny pipeline in the form of rinna/japanese-stable-diffusion."""
    folder = save_tiny_pipeline(tmp_path_factory.mktemp("tiny"))
    shutil.rmtree(folder / "tokenizer")
    shutil.copytree(tokenizer_folder, folder / "tokenizer")
    shutil.rmtree(folder / "text_encoder")
    config = CLIPTextConfig(
        vocab_size=pieces.get_piece_size(), hidden_size=24, intermediate_size=32, num_hidden_layers=1,
        num_attention_heads=2, max_position_embeddings=LENGTH, pad_token_id=PAD, bos_token_id=1, eos_token_id=END,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        CLIPTextModel(config).save_pretrained(folder / "text_encoder")
    index = json.loads((folder / "model_index.json").read_text())
    index |= {"_class_name": "JapaneseStableDiffusionPipeline", "tokenizer": ["transformers", "T5Tokenizer"]}
    index |= {"text_encoder": ["transformers", "CLIPTextModel"]}
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


def test_words_are_cut_as_sentencepiece_cuts_them(tokenizer_folder, pieces, words):
    tokenizer = load_sentence_pieces(tokenizer_folder, LENGTH)
    texts = [form for forms in words["forms"].iloc[1::60] for form in forms] + words["english"].iloc[::200].tolist()
    texts += ["ABC  Robot", " 赤い 魚 ", "ﾛﾎﾞｯﾄ", "か\u3099", "鬱鬱", "☃ 😀", "", "１２３"]
    assert len(texts) > 3_000
    cut = tokenizer(texts, add_special_tokens=False).input_ids
    assert cut == [pieces.encode(text.lower()) for text in texts]
    assert tokenizer("サラリーマン").input_ids == [*pieces.encode("サラリーマン"), END]


def test_a_sign_without_a_piece_is_unknown_and_not_the_end(tokenizer_folder, rinna):
    assert load_sentence_pieces(tokenizer_folder, LENGTH)("鱻").input_ids[1:] == [0, END]
    assert caption_losses(load_base(rinna).text, ["鱻", "人"]).unknown == ("鱻",)


def test_rinnas_form_is_read_as_its_pipeline_reads_it(rinna, pieces):
    base = load_base(rinna)
    captions = ["サラリーマン 油絵", "ROBOT", "人" * 200, ""]
    ids = [[*pieces.encode(caption.lower())[: LENGTH - 1], END] for caption in captions]
    padded = torch.tensor([row + [PAD] * (LENGTH - len(row)) for row in ids])
    with torch.no_grad():
        expected = CLIPTextModel.from_pretrained(rinna / "text_encoder")(padded)[0]
    assert base.text.shape == architecture(rinna).text == (LENGTH, 24)
    assert_close(base.text.states(captions).tokens, expected)


def test_saved_anew_by_transformers_it_is_read_alike(rinna, tmp_path):
    """What T5Tokenizer writes has a tokenizer.json with T5's id of the unknown, and a length without end."""
    from transformers import T5Tokenizer

    anew = shutil.copytree(rinna, tmp_path / "anew")
    T5Tokenizer.from_pretrained(rinna / "tokenizer").save_pretrained(anew / "tokenizer")
    (anew / "tokenizer" / "spiece.model").unlink(missing_ok=True)
    captions = ["ABC 鱻の人", "ﾛﾎﾞｯﾄ"]
    assert_close(load_base(anew).text.states(captions).tokens, load_base(rinna).text.states(captions).tokens)


def test_a_folder_without_pieces_or_without_their_reader_is_refused(tokenizer_folder, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="expected a tokenizer, in spiece.model or tokenizer.json, got none"):
        load_sentence_pieces(tmp_path, LENGTH)
    (tmp_path / "spiece.model").write_text("no pieces")
    with pytest.raises(ValueError, match="expected the files of a tokenizer"):
        load_sentence_pieces(tmp_path, LENGTH)
    monkeypatch.setitem(sys.modules, "sentencepiece", None)
    with pytest.raises(ValueError, match="spiece.model: reading it needs a package"):
        load_sentence_pieces(tokenizer_folder, LENGTH)


@pytest.mark.parametrize("unread", [False, True], ids=["rinna's", "of random weights"])
def test_both_of_rinnas_stages_train(rinna, unread, tmp_path):
    base = load_base(save_unread_base(rinna, tmp_path / "unread") if unread else rinna)
    images = open_dataset(eight_kanji(tmp_path / "kanji"), size_px=32)
    settings = dict(text_encoder="full", text_encoder_lr=1e-2, rank=2, images_seen=8)
    arms = [Arm(targets="none", **settings), Arm(targets="all", **settings)]
    for _ in train(base, encode_dataset(base, images), arms, tmp_path / "run", checkpoints=1):
        pass
    run = RunFolder.open(tmp_path / "run")
    stored = run.checkpoint_path(run.checkpoints()[-1])
    first, second = (load_file(stored / f"arm_{arm}" / "adapter_model.safetensors") for arm in range(2))
    text = {f"text_encoder.{name}": value for name, value in base.text_encoder.named_parameters()}
    assert first.keys() == text.keys() < second.keys()
    moved = [name for name in text if not torch.equal(first[name], text[name])]
    assert any("token_embedding" in name for name in moved) and any("mlp" in name for name in moved)

    following = load_base(to_pipeline(run, run.checkpoints()[-1], 0, tmp_path / "following"))  # the base of stage 2
    after, before = (one.text.states(["魚と人"]).tokens for one in (following, base))
    ids = base.text.tokenizer(["魚と人"], padding="max_length", max_length=LENGTH, return_tensors="pt").input_ids
    weights = {name.removeprefix("text_encoder."): value for name, value in first.items()}
    expected = torch.func.functional_call(base.text_encoder, weights, (ids,))[0]
    assert_close(after, expected, atol=1e-5, rtol=0)
    assert (after - before).abs().max() > 0.01


def test_marks_that_are_no_pieces_are_refused(tokenizer_folder, tmp_path):
    """transformers adds them after the pieces, where the encoder has no state for them."""
    for name, mark in (("unk_token", None), ("pad_token", "<no piece>")):
        folder = shutil.copytree(tokenizer_folder, tmp_path / name)
        for file in ("tokenizer_config.json", "special_tokens_map.json"):
            (folder / file).write_text(json.dumps(json.loads((folder / file).read_text()) | {name: mark}))
        with pytest.raises(ValueError, match="expected a mark for (unknown|padding) among its 1,800 pieces"):
            load_sentence_pieces(folder, LENGTH)


def test_a_length_that_is_missing_is_named(rinna, tmp_path):
    folder = shutil.copytree(rinna, tmp_path / "short")
    file = folder / "text_encoder" / "config.json"
    config = json.loads(file.read_text())
    file.write_text(json.dumps({name: value for name, value in config.items() if name != "max_position_embeddings"}))
    with pytest.raises(ValueError, match="max_position_embeddings: expected a whole number, got None"):
        architecture(folder)


def test_an_unread_base_differs_in_its_text_side_alone(rinna, tmp_path):
    target = save_unread_base(rinna, tmp_path / "unread")
    ours, theirs = load_base(target), load_base(rinna)
    assert_close(ours.denoiser.state_dict(), theirs.denoiser.state_dict(), rtol=0, atol=0)
    assert ours.text.shape == theirs.text.shape
    assert ours.text.tokenizer("ザーザー").input_ids == load_base("pocket-ja").text.tokenizer("ザーザー").input_ids
    assert save_unread_base(rinna, tmp_path / "again") and load_base(tmp_path / "again").identity == ours.identity
    assert load_base(save_unread_base(rinna, tmp_path / "other", seed=1)).identity != ours.identity
    with pytest.raises(FileExistsError, match="exists already"):
        save_unread_base(rinna, target)


def test_an_unread_base_opens_in_diffusers_without_the_parts_that_it_lacks(rinna, tmp_path):
    index = json.loads((rinna / "model_index.json").read_text())
    index["safety_checker"] = ["stable_diffusion", "StableDiffusionSafetyChecker"]
    index["feature_extractor"] = ["transformers", "CLIPImageProcessor"]
    source = shutil.copytree(rinna, tmp_path / "source")
    (source / "model_index.json").write_text(json.dumps(index))
    pipeline = DiffusionPipeline.from_pretrained(save_unread_base(source, tmp_path / "unread"))
    assert pipeline.safety_checker is None and pipeline.tokenizer.model_max_length == LENGTH


def test_a_base_that_reads_more_than_text_is_refused(tmp_path):
    save_tiny_calligraphy(tmp_path / "calligraphy")
    with pytest.raises(ValueError, match="expected a pipeline with a U-Net and one text encoder alone"):
        save_unread_base(tmp_path / "calligraphy", tmp_path / "unread")


def test_an_encoder_like_the_sources_takes_its_place(tmp_path):
    """A BERT here, where the others are CLIPs."""
    source = save_tiny_pipeline(tmp_path / "source")
    ours = load_base(save_unread_base(source, tmp_path / "unread"))
    assert type(ours.text_encoder).__name__ == "BertModel" and ours.text.shape == load_base(source).text.shape
    assert len(ours.text.tokenizer) == ours.text_encoder.config.vocab_size
