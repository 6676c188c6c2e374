"""The recipe of the pocket base: its numbers, its resumption, and that plain diffusers reads what comes out."""

import dataclasses
import json

import numpy as np
import pandas as pd
import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline
from scipy.cluster.vq import kmeans2

from kanjilab.core.rng import counted_rng
from kanjilab.data.captioned import save_captioned
from kanjilab.data.invented_script import KINDS
from kanjilab.models.loading import assemble_pipeline, load_base, packaged_folder
from kanjilab.models.minilm import minilm_folder
from kanjilab.models.sampling import Sampling, initial_noise, sample
from kanjilab.training import denoiser, stages
from kanjilab.training import pocket_base as pocket
from kanjilab.training.denoiser import UnetRecipe, UnetTraining
from kanjilab.training.pocket_base import PocketRecipe, VaeRecipe
from kanjilab.training.stages import Stage, encode_table
from tests.tiny import TINY_UNET

TINY_VAE = dict(block_out_channels=(8, 8, 8, 16), norm_num_groups=4)
RECIPE = UnetRecipe(steps=6, batch=4, warmup_steps=2, cooldown_steps=3)


@pytest.fixture
def tiny(monkeypatch):
    """The real shapes at the seams, few channels within."""
    monkeypatch.setattr(denoiser, "UNET_CONFIG", denoiser.UNET_CONFIG | TINY_UNET)
    monkeypatch.setattr(pocket, "VAE_CONFIG", pocket.VAE_CONFIG | TINY_VAE)


# ------------------------------------------------------------------------------------------ numbers


def test_crops_are_of_the_images_and_nearly_all_hold_ink():
    images = np.full((3, 128, 128), 255, np.uint8)
    images[:, :20, :20] = np.array([10, 60, 110], np.uint8)[:, None, None]
    crops = pocket.random_crops(images, np.random.default_rng(0), 200, 64)
    assert crops.shape == (200, 64, 64)
    assert set(np.unique(crops)) == {10, 60, 110, 255}
    assert (crops.min(axis=(1, 2)) < 128).mean() > 0.6  # one place in eleven has ink: without the rule, a tenth


# ------------------------------------------------------------------------------------------ training


def test_autoencoder_learns_and_repeats_itself(tiny):
    images = np.full((4, 128, 128), 255, np.uint8)
    images[:, 40:90, 30:100] = 0
    recipe = VaeRecipe(steps=25, batch=4, warmup_steps=2, peak_lr=5e-3)
    losses = [[loss for _, loss in pocket.train_vae(images, pocket.new_vae(recipe), recipe)] for _ in range(2)]
    assert losses[0] == losses[1]
    assert np.mean(losses[0][-5:]) < 0.8 * np.mean(losses[0][:5])


# ------------------------------------------------------------------------------------------ the pipeline


@pytest.fixture
def built(tiny, tmp_path):
    """A pipeline folder of tiny random parts with the real MiniLM."""
    vae = pocket.new_vae(VaeRecipe()).eval()
    vae.register_to_config(scaling_factor=2.5)
    pocket.save_pocket(vae, UnetTraining(RECIPE).unet, tmp_path / "weights")
    assemble_pipeline([tmp_path / "weights"], minilm_folder(), tmp_path / "pipeline")
    return tmp_path / "pipeline"


def plain_diffusers(folder, prompt, noise, sampling):
    """One image by diffusers' own pipeline, (H, W) uint8."""
    pipeline = StableDiffusionPipeline.from_pretrained(folder, dtype=torch.float32)
    assert isinstance(pipeline.scheduler, DDIMScheduler)
    pipeline.set_progress_bar_config(disable=True)
    # Not as PIL images: its own conversion expects colour.
    options = dict(num_inference_steps=sampling.steps, guidance_scale=sampling.guidance, output_type="np")
    image = pipeline(prompt, height=128, width=128, latents=noise, **options).images[0, ..., 0]
    return (image * 255).round().astype(np.uint8)


def check_both_ways(folder, base):
    sampling = Sampling(steps=4)
    ours = sample(base, ["castle"], [3], sampling)[0, 0, 0]
    theirs = plain_diffusers(folder, "castle", initial_noise([3], (4, 16, 16)), sampling)
    assert np.abs(ours.astype(int) - theirs).max() <= 1
    assert ours.std() > 0.5  # not a blank page, which any two ways would agree on
    other = sample(base, ["queen"], [3], sampling)[0, 0, 0]
    assert (other != ours).any()


def test_a_built_pipeline_draws_the_same_in_plain_diffusers(built):
    index = json.loads((built / "model_index.json").read_text())
    assert index["_class_name"] == "StableDiffusionPipeline"
    base = load_base(built)
    assert base.vae.config.scaling_factor == 2.5
    assert {value.dtype for value in base.denoiser.state_dict().values()} == {torch.float32}
    check_both_ways(built, base)


def test_the_packaged_base_draws_the_same_in_plain_diffusers():
    check_both_ways(packaged_folder(), load_base())


def test_a_stage_that_was_cut_short_is_done_again(tiny, tmp_path, monkeypatch):
    def cut_short(self, folder):
        (folder / "config.json").write_text("{}")
        raise KeyboardInterrupt

    images = np.full((2, 128, 128), 255, np.uint8)
    recipe = VaeRecipe(steps=1, batch=2)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(AutoencoderKL, "save_pretrained", cut_short)
        pocket._trained_vae(images, tmp_path / "vae", recipe)
    vae = pocket._trained_vae(images, tmp_path / "vae", recipe)
    table = pd.DataFrame(dict(image=[0, 1], captions=["a", "b"], weight=1.0, held_out=False))
    monkeypatch.setattr(stages, "encode_captions", lambda captions, path: np.zeros((len(captions), 5, 384)))
    with monkeypatch.context() as patch, pytest.raises(OSError, match="no space"):
        patch.setattr("kanjilab.core.storage.os.fsync", full_disk)
        encode_table(vae, table, images, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["vae"]
    encoded = encode_table(vae, table, images, tmp_path)
    assert torch.equal(encoded.latents, encode_table(vae, table, images, tmp_path).latents)


def full_disk(descriptor):
    raise OSError("no space left")


def test_words_are_grouped_by_meaning(monkeypatch):
    """Nine words at three places on a circle, five, three and one of them."""
    angles = {"fish": 0, "trout": 10, "salmon": -9, "eel": 12, "cod": 3, "queen": 120, "king": 126, "crown": 117}
    angles = {word: np.radians(angle) for word, angle in (angles | {"table": 240}).items()}
    vocabulary = {word: number for number, word in enumerate(["##fish", "Fish", "of", *angles, "rare"])}
    tokenizer = type("Tokenizer", (), {"get_vocab": lambda self: vocabulary})()
    monkeypatch.setattr(pocket, "WORDS", len(angles))  # the rare word comes too late
    monkeypatch.setattr(pocket, "load_minilm", lambda: (tokenizer, None))
    vectors = lambda words: np.array([(np.cos(angles[w]), np.sin(angles[w])) for w in words], np.float32)  # noqa: E731
    monkeypatch.setattr(pocket, "caption_vectors", vectors)
    # The mean of 0, 10, -9, 12 and 3 degrees is 3.2; that of 120, 126 and 117 is 121.
    assert pocket.word_groups(3) == [
        ["cod", "fish", "trout", "eel", "salmon"],
        ["queen", "crown", "king"],
        ["table"],
    ]


def test_k_means_begins_where_scipys_does():
    vectors = counted_rng(3, "recipe").standard_normal((200, 5)).astype(np.float32)
    begun = pocket._far_apart(vectors, 12, counted_rng(0, "recipe"))
    ours, theirs = kmeans2(vectors, begun), kmeans2(vectors, 12, minit="++", rng=counted_rng(0, "recipe"))
    assert all(np.array_equal(*each) for each in zip(ours, theirs, strict=True))


def test_the_whole_recipe_goes_on_from_what_is_there(tiny, tmp_path, monkeypatch):
    images = [np.full((128, 128), 255, np.uint8) for _ in range(9)]
    for number, image in enumerate(images):
        image[30:90, 40:80] = number * 12
    kinds = ["world"] * 4 + list(KINDS[1:])
    captions = [f"letter {letter}|{letter}" for letter in "abcdefghi"]
    told = dict(codepoint=range(97, 106), font="a.ttf", weight=1.0, held_out=[False, False, False, True] + [False] * 5)
    table = pd.DataFrame(dict(image=range(9), kind=kinds, captions=captions) | told)
    save_captioned(tmp_path / "corpus", table, images)
    short = dataclasses.replace(RECIPE, steps=2)
    few = {name: Stage(short, stage.weights) for name, stage in PocketRecipe().stages.items()}
    recipe = PocketRecipe(VaeRecipe(steps=2, batch=2), few)
    seen, train_vae = [], pocket.train_vae
    monkeypatch.setattr(pocket, "train_vae", lambda images, *rest: seen.append(images) or train_vae(images, *rest))
    pipeline = pocket.build_pocket([], tmp_path, recipe)
    assert np.array_equal(seen[0], images[:3])  # of the single glyphs, those that are not held out
    facts = json.loads((tmp_path / "weights" / "facts.json").read_text())
    assert facts["pictures"] == 9 and facts["images_seen"] == 5 * 2 * 4 and 0 < facts["held_out_loss"] < 10
    assert json.loads((tmp_path / "weights" / "corpus.json").read_text()) == {"a.ttf": [[97, 100]]}
    before = load_base(pipeline).identity

    def refuse(*_):
        raise AssertionError("a finished stage was run again")

    for stage in ("train_vae", "build_pocket_corpus"):
        monkeypatch.setattr(pocket, stage, refuse)
    monkeypatch.setattr(stages, "encode_images", refuse)
    monkeypatch.setattr(UnetTraining, "advance", refuse)
    assert load_base(pocket.build_pocket([], tmp_path, recipe)).identity == before
