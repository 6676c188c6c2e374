"""Settings: refused outside their ranges, the same hash for the same contents, JSON both ways."""

import dataclasses
import hashlib
import json
import math
import re

import pytest

from kanjilab.core.config import ADDED_LATER, SCHEDULES, TARGETS, UNTRAINED, Arm, settings_hash


def test_defaults_are_the_articles():
    arm = Arm()
    assert (arm.rank, arm.batch, arm.epochs, arm.peak_lr, arm.schedule) == (64, 1, 8, 1e-4, "cosine")
    assert arm.scale == 1


@pytest.mark.parametrize(
    ("settings", "scale"),
    [
        (dict(rank=8), 1.0),
        (dict(rank=8, alpha=4), 0.5),
        (dict(rank=16, alpha=8, rslora=True), 2.0),
        (dict(rank=16, rslora=True), 4.0),
    ],
)
def test_scale_at_hand_worked_points(settings, scale):
    assert Arm(**settings).scale == scale


@pytest.mark.parametrize(
    ("settings", "steps"),
    [
        (dict(epochs=8, batch=1), 80),
        (dict(epochs=1, batch=4), 3),  # 10 images in steps of 4: the last goes past the end
        (dict(epochs=1, batch=2, accumulation=2), 3),
        (dict(epochs=0.5, batch=1), 5),
        (dict(images_seen=7, batch=2), 4),
        (dict(epochs=0.01), 1),
    ],
)
def test_total_steps_for_ten_images(settings, steps):
    assert Arm(**settings).total_steps(10) == steps


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("targets", "attn2"),
        ("schedule", "exponential"),
        ("rank", 0),
        ("rank", 4.0),
        ("rank", True),
        ("batch", 0),
        ("accumulation", -1),
        ("cycles", 0),
        ("warmup_steps", -1),
        ("warmup_steps", 1.5),
        ("seed", -1),
        ("seed", 2**63),
        ("seed", 0.5),
        ("peak_lr", 0.0),
        ("peak_lr", math.nan),
        ("epochs", math.inf),
        ("clip_norm", 0.0),
        ("epsilon", -1e-8),
        ("beta1", 1.0),
        ("caption_dropout", 1.0),
        ("cooldown_share", 0.0),
        ("weight_decay", -0.1),
        ("weight_decay", math.inf),
        ("explosion_factor", 1.0),
        ("explosion_factor", math.inf),
        ("alpha", 0.0),
        ("alpha", math.nan),
        ("min_snr_gamma", -5.0),
        ("images_seen", 0),
        ("ema_decay", 1.0),
    ],
)
def test_a_value_out_of_range_is_refused_by_name(name, value):
    with pytest.raises(ValueError, match=f"^{name} must .*, got {re.escape(repr(value))}$"):
        Arm(**{name: value})


def test_every_named_choice_is_accepted():
    for targets in (*TARGETS, UNTRAINED):
        for schedule in SCHEDULES:
            reads = "full" if targets == UNTRAINED else "frozen"
            assert Arm(targets=targets, schedule=schedule, warmup_steps=1, text_encoder=reads).schedule == schedule


def test_a_periodic_schedule_needs_its_half_period():
    with pytest.raises(ValueError, match="warmup_steps as half period"):
        Arm(schedule="periodic")


def test_dora_is_of_adapters():
    assert Arm(targets="all", dora=True).dora
    with pytest.raises(ValueError, match="dora is of LoRA arms, got targets 'full'"):
        Arm(targets="full", dora=True)


def test_settings_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Arm().rank = 3


def test_json_both_ways():
    arm = Arm(targets="all", rank=3, alpha=7, peak_lr=3e-4, ema_decay=0.99, images_seen=100, min_snr_gamma=5)
    assert Arm.from_json(json.loads(json.dumps(arm.to_json()))) == arm
    assert Arm.from_json({}) == Arm()
    with pytest.raises(ValueError, match=r"unknown settings \['learning_rate'\]"):
        Arm.from_json({"learning_rate": 1e-4})
    with pytest.raises(ValueError, match="rank must"):
        Arm.from_json({"rank": 0})


def test_hash_is_that_of_the_contents():
    canonical = '{"a":[1,2.5],"b":"水"}'
    assert settings_hash({"b": "水", "a": (1, 2.5)}) == hashlib.sha256(canonical.encode()).hexdigest()[:16]
    assert settings_hash(Arm(rank=4)) == settings_hash(Arm(rank=4).to_json()) != settings_hash(Arm(rank=5))
    with pytest.raises(ValueError, match="not JSON compliant"):
        settings_hash({"lr": math.nan})


@pytest.mark.parametrize(
    ("name", "off", "on"),
    [("dora", False, True), ("text_encoder", "frozen", "full"), ("condition_encoder", "frozen", "lora")],
)
def test_runs_from_before_a_setting_keep_their_hash(name, off, on):
    assert settings_hash(Arm()) == "62b24f2acd28dfe4"  # of the commit before the first of them
    assert name in ADDED_LATER and name not in Arm().to_json()
    assert Arm.from_json(Arm().to_json() | {name: off}) == Arm() == Arm.from_json(Arm().to_json())
    with_it = Arm(**{name: on})
    assert Arm.from_json(json.loads(json.dumps(with_it.to_json()))) == with_it
    assert settings_hash(with_it) != settings_hash(Arm())


def test_a_lora_on_the_text_encoder_is_stored_under_its_first_name():
    arm = Arm(rank=2, text_encoder="lora")
    assert arm.to_json().get("train_text_encoder") is True and "text_encoder" not in arm.to_json()
    assert Arm.from_json(arm.to_json()) == arm
    assert Arm.from_json(Arm().to_json() | {"train_text_encoder": False}) == Arm()
    for other in ("frozen", "full"):  # as a study's variant says it
        assert Arm.from_json(arm.to_json() | {"text_encoder": other}).text_encoder == other


def test_full_is_stored_under_its_first_name():
    arm = Arm(targets="full", rank=1, peak_lr=1e-5)
    assert settings_hash(arm) == "0bf9515c91d6d1be"  # of the commit before the name
    assert arm.to_json()["targets"] == "unet" == arm.step_shape[0]
    assert Arm.from_json({"targets": "unet", "rank": 1, "peak_lr": 1e-5}) == Arm.from_json(arm.to_json()) == arm
    assert Arm.from_json({"targets": "full"}).targets == "full"
    with pytest.raises(ValueError, match="targets must be one of .*, got 'unet'"):
        Arm(targets="unet")


def test_whole_numbers_and_floats_are_one_setting():
    whole, floats = Arm(epochs=8, alpha=64, peak_lr=1), Arm(epochs=8.0, alpha=64.0, peak_lr=1.0)
    assert whole == floats
    assert settings_hash(whole) == settings_hash(floats)
    assert isinstance(Arm(images_seen=100).images_seen, int)
