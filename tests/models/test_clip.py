"""CLIP models of both published forms, small and with random weights: read as their own code reads them."""

import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import CLIPModel, RobertaConfig, RobertaModel, T5Tokenizer, ViTConfig, ViTModel

from kanjilab.models.clip import PIXEL_MEAN, PIXEL_STD, load_clip
from kanjilab.models.tiny_sd3 import letters_tokenizer
from tests.tiny_clip import SIZES, save_tiny_clip

PIECES = {"[PAD]": 0, "<unk>": 1, "[CLS]": 2, "</s>": 3, "▁": 4, "犬": 5, "猫": 6, "象": 7, "a": 8}
# rinna's files were written by an older transformers: how it named what is now named otherwise.
OLDER_NAMES = {
    "layers.0.attention.q_proj": "encoder.layer.0.attention.attention.query",
    "layers.0.attention.k_proj": "encoder.layer.0.attention.attention.key",
    "layers.0.attention.v_proj": "encoder.layer.0.attention.attention.value",
    "layers.0.attention.o_proj": "encoder.layer.0.attention.output.dense",
    "layers.0.mlp.fc1": "encoder.layer.0.intermediate.dense",
    "layers.0.mlp.fc2": "encoder.layer.0.output.dense",
    "layers.0.layernorm": "encoder.layer.0.layernorm",
}
IMAGES = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def usual(tmp_path_factory):
    """OpenAI's form."""
    return save_tiny_clip(tmp_path_factory.mktemp("usual"))


@pytest.fixture(scope="module")
def rinna(tmp_path_factory):
    """rinna's form, with the two sides that it was made of."""
    folder = tmp_path_factory.mktemp("rinna")
    vision = ViTConfig(**SIZES, image_size=32, patch_size=8)
    text = RobertaConfig(**SIZES, vocab_size=len(PIECES), max_position_embeddings=80, pad_token_id=0)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        sides = ViTModel(vision, add_pooling_layer=False).eval(), RobertaModel(text, add_pooling_layer=False).eval()
        projections = torch.randn(8, 16), torch.randn(8, 16)
    tensors = {"logit_scale": torch.tensor(2.0)}
    for side, model, projection in zip(("vision", "text"), sides, projections, strict=True):
        for name, value in model.state_dict().items():
            for newer, older in OLDER_NAMES.items() if side == "vision" else ():
                name = name.replace(newer, older)
            tensors[f"{side}_model.{name}"] = value
        tensors[f"{'visual' if side == 'vision' else side}_projection.weight"] = projection
    save_file(tensors, folder / "model.safetensors")
    contents = {"model_type": "clip", "vision_config": vision.to_dict(), "text_config": text.to_dict()}
    (folder / "config.json").write_text(json.dumps(contents))
    words = T5Tokenizer(
        vocab=[(piece, -float(number)) for piece, number in PIECES.items()],
        extra_ids=0, cls_token="[CLS]", pad_token="[PAD]", unk_token="<unk>",
    )  # fmt: skip
    words.save_pretrained(folder)
    return folder, sides, projections


def pixels(images):
    scaled = torch.from_numpy(images).permute(0, 3, 1, 2) / 255
    return (scaled - torch.tensor(PIXEL_MEAN).view(3, 1, 1)) / torch.tensor(PIXEL_STD).view(3, 1, 1)


def unit(vectors):
    return vectors / vectors.norm(dim=1, keepdim=True)


def test_the_usual_form_gives_what_the_model_itself_gives(usual):
    clip, model = load_clip(str(usual)), CLIPModel.from_pretrained(usual).eval()
    words = letters_tokenizer("<|endoftext|>")
    captions = ["water", "fire tree water"]
    with torch.no_grad():
        tokens = words(captions, padding=True, return_tensors="pt")
        expected = model(**tokens, pixel_values=pixels(IMAGES))
    torch.testing.assert_close(clip.image_vectors(IMAGES), expected.image_embeds, atol=1e-5, rtol=0)
    torch.testing.assert_close(clip.text_vectors(captions), expected.text_embeds, atol=1e-5, rtol=0)
    cosines = clip.image_vectors(IMAGES) @ clip.text_vectors(captions).T
    torch.testing.assert_close(clip.scale * cosines, expected.logits_per_image, atol=1e-4, rtol=0)


def test_rinnas_form_is_the_projected_first_state_of_each_side(rinna):
    folder, (vision, text), (visual, textual) = rinna
    clip = load_clip(str(folder))
    assert clip.scale == pytest.approx(np.exp(2.0)) and clip.size_px == 32
    with torch.no_grad():
        seen = vision(pixel_values=pixels(IMAGES)).last_hidden_state[:, 0] @ visual.T
        # [CLS], then the pieces of "犬a": places count from 0, unlike RoBERTa's own; the capital is read small.
        ids, places = torch.tensor([[2, 4, 5, 8]]), torch.arange(4)[None]
        said = text(input_ids=ids, position_ids=places).last_hidden_state[:, 0] @ textual.T
    torch.testing.assert_close(clip.image_vectors(IMAGES), unit(seen), atol=1e-5, rtol=0)
    torch.testing.assert_close(clip.text_vectors(["犬A"]), unit(said), atol=1e-5, rtol=0)
    together = clip.text_vectors(["犬A", "猫" * 300, "象"])  # padding beside longer captions changes nothing
    torch.testing.assert_close(together[0], unit(said)[0], atol=1e-5, rtol=0)


def test_images_of_another_size_are_brought_to_the_models(usual):
    clip = load_clip(str(usual))
    doubled = IMAGES.repeat(2, axis=1).repeat(2, axis=2)  # an average over 2 x 2 equal pixels gives them back, nearly
    near = (clip.image_vectors(doubled) * clip.image_vectors(IMAGES)).sum(dim=1)
    other = (clip.image_vectors(IMAGES[::-1].copy()) * clip.image_vectors(IMAGES)).sum(dim=1)
    assert near.min() > 0.99 and near.min() > other[0]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"auto_map": {"AutoModel": "code.Model"}}, "with its own code, which is not run"),
        ({"model_type": "bert"}, "expected a CLIP or CLOOB model, got 'bert'"),
    ],
)
def test_other_models_are_refused(usual, tmp_path, change, said):
    config = json.loads((usual / "config.json").read_text()) | change
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=said):
        load_clip(str(tmp_path))


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda tensors: tensors.pop("visual_projection.weight"), "weights of CLIPModel, got none for visual_proj"),
        (lambda tensors: tensors.update({"visual_projection.weight": torch.zeros(2, 2)}), "weights of its config.json"),
    ],
)
def test_weights_that_lack_or_do_not_fit_are_refused(usual, tmp_path, damage, said):
    shutil.copytree(usual, tmp_path, dirs_exist_ok=True)
    tensors = load_file(tmp_path / "model.safetensors")
    damage(tensors)
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=said):
        load_clip(str(tmp_path))


def test_files_that_are_none_are_refused(usual, tmp_path):
    shutil.copytree(usual, tmp_path, dirs_exist_ok=True)
    (tmp_path / "tokenizer.json").write_text("no tokenizer")
    with pytest.raises(ValueError, match="expected the files of a tokenizer"):
        load_clip(str(tmp_path))
    (tmp_path / "model.safetensors").write_bytes(b"<html>")
    with pytest.raises(ValueError, match="expected a safetensors file, got an HTML page"):
        load_clip(str(tmp_path))


def test_missing_files_and_weights_are_named(rinna, tmp_path):
    folder, _, _ = rinna
    with pytest.raises(FileNotFoundError, match="expected a folder with config.json"):
        load_clip(str(tmp_path))
    for file in folder.iterdir():
        if file.name != "model.safetensors":
            (tmp_path / file.name).write_bytes(file.read_bytes())
    with pytest.raises(ValueError, match="expected model.safetensors, found none; a pickle"):
        load_clip(str(tmp_path))
    save_file({"text_projection.weight": torch.zeros(8, 16)}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="weights of ViTModel, got none for embeddings.cls_token"):
        load_clip(str(tmp_path))
