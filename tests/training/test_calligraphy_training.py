"""Calligraphy trained on a tiny base: what is dropped, the whole recipe, and a hand from a few samples."""

import dataclasses

import numpy as np
import pytest
import torch

from kanjilab.core.config import Arm, settings_hash
from kanjilab.core.run_folder import RunFolder
from kanjilab.data.calligraphy import Style, typed_glyph
from kanjilab.data.handwriting import Hand
from kanjilab.data.rendering import default_font
from kanjilab.data.skeleton import pack_skeletons, skeletons_of
from kanjilab.experiments.writing import usual_sampling, writing_prompt
from kanjilab.models.loading import load_base
from kanjilab.models.sampling import Sampling, sample
from kanjilab.training.calligraphy import RECIPE, base_to_train, build_calligraphy
from kanjilab.training.checkpoints import load_checkpoints
from kanjilab.training.data_order import draw_example
from kanjilab.training.few_shot import HAND_RECIPE, learn_hand
from kanjilab.training.presets import TRACING, WRITING
from kanjilab.training.trainer import Trainer
from tests.tiny import tiny_encoded

STYLES = tuple(Style(name, "regular", "pen", name, "ipaexg.ttf") for name in ("queen", "water"))
QUICK = dataclasses.replace(RECIPE, images_seen=4, batch=2, warmup_steps=0, peak_lr=0.01)
TWO_STEPS = Sampling("ddim", steps=2, guidance=1.0)


@pytest.fixture(scope="module")
def built(folder, tmp_path_factory):
    """The whole recipe on six characters and a tiny base; its folder, and the base that came out."""
    target = tmp_path_factory.mktemp("calligraphy")
    fonts = [default_font().parent]
    made = build_calligraphy(target, fonts, QUICK, base_name=str(folder), styles=STYLES, characters="永国心道九足")
    return target, load_base(made)


def test_old_runs_keep_their_bits_and_their_hashes():
    old, new = draw_example(1, 5, 9, (1, 2, 2), 1000), draw_example(1, 5, 9, (1, 2, 2), 1000, arrays=2)
    assert (old.row, old.timestep, old.dropout) == (new.row, new.timestep, new.dropout)
    assert np.array_equal(old.noise, new.noise) and np.array_equal(old.posterior_noise, new.posterior_noise)
    assert "array_dropout" not in Arm().to_json()
    assert len({settings_hash(Arm(array_dropout=rate)) for rate in (None, 0.0, 0.5)}) == 3
    assert Arm.from_json(Arm(array_dropout=0.0).to_json()).array_dropout == 0
    with pytest.raises(ValueError, match="array_dropout must be None or lie in"):
        Arm(array_dropout=1.0)


def test_text_and_each_array_are_dropped_independently(base, monkeypatch):
    data = tiny_encoded(base).with_arrays(one=np.ones((12, 1), np.float32), two=np.ones((12, 1), np.float32))
    arm = Arm(array_dropout=0.3, caption_dropout=0.5, batch=8, images_seen=1600)
    seen = []

    def record(prompts, *_):
        seen.extend(zip(prompts.captions, prompts.arrays["one"], prompts.arrays["two"], strict=True))
        raise StopIteration

    from accelerate import Accelerator

    trainer = Trainer(base, data, [arm], Accelerator(cpu=True))
    monkeypatch.setattr(trainer.trainable, "condition", lambda text, prompts, *rest: record(prompts))
    for step in range(200):
        trainer.progress[0].steps = step
        with pytest.raises(StopIteration):
            trainer.advance()
    gone = np.array([[caption == "", one.item() == 0, two.item() == 0] for caption, one, two in seen])
    assert np.allclose(gone.mean(axis=0), [0.5, 0.3, 0.3], atol=0.04)
    assert np.abs(np.corrcoef(gone.T) - np.eye(3)).max() < 0.08


def test_the_recipe_leaves_a_base_that_draws_as_the_run_does(built, folder):
    target, base = built
    assert base.condition_encoder.characters == "九国心永足"  # 道 is held out
    run = RunFolder.open(target / "run")
    untrained = base_to_train(str(folder), "九国心永足", seed=RECIPE.seed)
    trained = load_checkpoints(untrained, run, run.checkpoints()[-1:])
    lines = skeletons_of(typed_glyph("永")[None])[0]
    prompts = [writing_prompt(base, "queen", lines, index=3), writing_prompt(base, "queen", None, index=1)]
    found = sample(base, prompts, [0], TWO_STEPS).astype(int)
    expected = sample(untrained, prompts, [0], TWO_STEPS, trainable=trained, size_px=128)
    assert np.abs(found - expected).mean() < 4  # fp16 here, bf16 there
    moved = {name: value for name, value in base.condition_encoder.state_dict().items()}
    assert moved["skeleton.last.weight"].abs().max() > 0
    assert sorted(path.name for path in (target / "weights").iterdir()) == [
        "condition_encoder", "facts.json", "scheduler", "unet",
    ]  # fmt: skip


def test_guidance_is_low_only_where_every_glyph_has_its_own_lines(built):
    _, base = built
    lines = skeletons_of(typed_glyph("永")[None])[0]
    drawn, typed = writing_prompt(base, "queen", lines), writing_prompt(base, "queen", typed=lines)
    assert usual_sampling([drawn, drawn]) == TRACING
    for others in ([typed], [writing_prompt(base, "queen", index=1)], [drawn, typed]):
        assert usual_sampling(others) == WRITING


def test_called_again_it_trains_nothing(built, folder):
    target, base = built
    before = (target / "run" / "log.jsonl").read_bytes()
    fonts = [default_font().parent]
    again = build_calligraphy(target, fonts, QUICK, base_name=str(folder), styles=STYLES, characters="永")
    assert (target / "run" / "log.jsonl").read_bytes() == before and load_base(again).identity == base.identity


def test_each_skeleton_is_its_images_or_that_of_the_typed_character(built):
    target, base = built
    from kanjilab.data.image_folder import TRAIN, open_dataset
    from kanjilab.training.calligraphy import encode_calligraphy

    dataset = open_dataset(target / "data").split(TRAIN)
    encoded = encode_calligraphy(base, dataset, target / "encoded")
    assert len(dataset) == 10 and len(encoded) == 25
    own, typed = encoded.arrays["skeleton"], encoded.arrays["typed"]
    assert np.array_equal(own[:10], pack_skeletons(skeletons_of(dataset.images()))) and not own[10:].any()
    names = [base.condition_encoder.characters[index - 1] for index in encoded.arrays["index"]]
    assert names[:10] == names[15:] == list(dataset.table["character"]) and len(set(names[10:15])) == 5
    printed = pack_skeletons(skeletons_of(np.stack([typed_glyph(name) for name in names[10:15]])))
    assert np.array_equal(typed[10:15], printed) and not typed[:10].any() and not typed[15:].any()


def test_a_hand_is_learned_by_a_lora_alone_and_kept(built, tmp_path, monkeypatch):
    _, base = built
    images = np.stack([typed_glyph(character) for character in "永心"])
    hand = Hand(("永", "心"), images, ("永.jpg", "心.jpg"), ())
    weights = {name: value.clone() for name, value in base.denoiser.state_dict().items()}
    quick = dataclasses.replace(HAND_RECIPE, images_seen=4, batch=2, rank=2, warmup_steps=0, peak_lr=0.05)
    trainable = learn_hand(base, hand, "queen, by own hand", tmp_path / "hand", quick)
    assert all(torch.equal(value, weights[name]) for name, value in base.denoiser.state_dict().items())
    assert {arm.parts["denoiser"] for arm in trainable.arms} == {"lora"}
    assert not [name for name in trainable.state(0) if "encoder" in name]
    prompt = writing_prompt(base, "queen, by own hand", skeletons_of(images[:1])[0])
    drawn = sample(base, [prompt], [0], TWO_STEPS, trainable=trainable)
    assert not np.array_equal(drawn, sample(base, [prompt], [0], TWO_STEPS))
    again = learn_hand(base, hand, "queen, by own hand", tmp_path / "hand", quick)
    assert np.array_equal(drawn, sample(base, [prompt], [0], TWO_STEPS, trainable=again))
