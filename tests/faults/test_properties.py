"""What holds for any captions, settings, prompts and names of layers; and any damage of an image."""

import csv
import io
import json
import os
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from kanjilab.cli.options import parse_settings
from kanjilab.core.config import RANGES, SCHEDULES, TARGETS, Arm, settings_hash
from kanjilab.data.image_files import ImageError, read_image
from kanjilab.data.image_folder import open_dataset
from kanjilab.export.lora_formats import read_lora
from kanjilab.models.conditioning import TEXT_MAX, Prompt

LONG = bool(os.environ.get("KANJILAB_FAULTS"))  # `make faults`
MUTATED = 5_000 if LONG else 240
usual = settings(max_examples=500 if LONG else 25, deadline=None, database=None, derandomize=not LONG)
TEXTS = st.text(st.characters(exclude_categories=("Cs",)), max_size=60)
CAPTIONS = TEXTS.filter(lambda text: bool(text.strip()) and "\0" not in text)
NUMBERS = st.one_of(st.integers(-(2**70), 2**70), st.floats(allow_nan=True, allow_infinity=True), st.none(), st.text())


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    place = tmp_path_factory.mktemp("properties")
    values = np.full((8, 8), 255, np.uint8)
    for number in range(4):
        values[number, 2:6] = 0
        Image.fromarray(values).save(place / f"{number}.png")
    return place


@usual
@given(captions=st.lists(CAPTIONS, min_size=1, max_size=4), as_json=st.booleans())
def test_any_caption_comes_back_as_it_was_written(place, captions, as_json):
    rows = [{"file_name": f"{number}.png", "text": text} for number, text in enumerate(captions)]
    for name in ("metadata.csv", "metadata.jsonl"):
        (place / name).unlink(missing_ok=True)
    if as_json:
        (place / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    else:
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, ["file_name", "text"])
        writer.writeheader()
        writer.writerows(rows)
        (place / "metadata.csv").write_bytes(text.getvalue().encode())
    assert open_dataset(place).table["text"].tolist() == captions


@usual
@given(data=st.binary(max_size=200))
def test_any_bytes_as_metadata_are_read_or_refused_by_name(place, data):
    (place / "metadata.jsonl").unlink(missing_ok=True)
    (place / "metadata.csv").write_bytes(b"file_name,text\n" + data)
    try:
        assert len(open_dataset(place)) >= 1
    except ValueError as error:
        assert str(place) in str(error)


@usual
@given(
    targets=st.sampled_from([name for name in TARGETS if name != "full"]),
    rank=st.integers(1, 2**16),
    schedule=st.sampled_from([name for name in SCHEDULES if name != "periodic"]),
    peak_lr=st.floats(1e-12, 1e12),
    seed=st.integers(0, 2**63 - 1),
    alpha=st.none() | st.floats(1e-6, 1e6),
)
def test_an_arm_survives_json_and_the_command_line_with_its_hash(**values):
    arm = Arm(**values)
    stored = json.loads(json.dumps(arm.to_json()))
    assert Arm.from_json(stored) == arm and settings_hash(Arm.from_json(stored)) == settings_hash(arm)
    given_as = [f"{name}={value if isinstance(value, str) else json.dumps(value)}" for name, value in values.items()]
    assert Arm.from_json(Arm().to_json() | parse_settings(given_as)) == arm


@usual
@given(name=st.sampled_from(sorted({name for names, _, _ in RANGES for name in names.split()})), value=NUMBERS)
def test_any_value_of_a_setting_is_taken_or_refused_by_name(name, value):
    try:
        assert getattr(Arm(**{name: value}), name) in (value, value and float(value))  # 8 and 8.0 are one setting
    except ValueError as error:
        assert name in str(error) or "periodic" in str(error) or "an arm must train something" in str(error)


@usual
@given(text=st.text(max_size=40) | st.integers(TEXT_MAX - 2, TEXT_MAX + 2).map("a".__mul__))
def test_any_prompt_is_taken_as_it_is_or_refused(text):
    fits = len(text) <= TEXT_MAX and not any("\ud800" <= sign <= "\udfff" for sign in text)
    if fits:
        assert Prompt(text).text == text
    else:
        with pytest.raises(ValueError, match="expected a prompt"):
            Prompt(text)


@usual
@given(
    names=st.lists(
        st.text("ab_.0lordown/upweight-", min_size=1, max_size=40)
        | st.sampled_from(["unet.mid.lora_A.weight", "lora_unet_x.lora_up.weight", "lora_unet_x.alpha", "x.hada_w1_a"]),
        min_size=1,
        max_size=3,
        unique=True,
    )
)
def test_names_of_no_layer_are_refused_and_none_is_passed_over(base, place, names):
    from kanjilab.core.storage import tensor_bytes

    path = place / "lora.safetensors"
    path.write_bytes(tensor_bytes({name: np.ones((2, 2), np.float32) for name in names}))
    with pytest.raises(ValueError, match=r"lora\.safetensors"):
        read_lora(path, {"unet": base.denoiser})


def test_a_mutated_image_is_read_or_refused():
    """Bytes changed, cut out and doubled, of every format: neither another exception nor a hang."""
    rng = random.Random(0)
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (24, 20, 3), dtype=np.uint8))
    files = []
    for form, options in [("PNG", {}), ("JPEG", {}), ("WEBP", {}), ("BMP", {}), ("GIF", {}), ("TIFF", {})]:
        kept = io.BytesIO()
        picture.save(kept, form, **options)
        files.append(kept.getvalue())
    read = 0
    for number in range(MUTATED):
        data = bytearray(files[number % len(files)])
        for _ in range(rng.randint(1, 8)):
            at = rng.randrange(len(data))
            change = rng.randrange(3)
            if change == 0:
                data[at] = rng.randrange(256)
            elif change == 1:
                del data[at : at + rng.randint(1, 40)]
            else:
                data[at:at] = data[at : at + rng.randint(1, 40)]
        try:
            assert read_image(bytes(data), 32, "lanczos").shape == (32, 32)
            read += 1
        except ImageError as error:
            assert str(error)
    assert 0 < read < MUTATED
