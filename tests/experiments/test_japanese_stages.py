"""Stages of the Japanese text encoder against English captions: the same characters, and only the language differs."""

import dataclasses

import pytest

from kanjilab.core.config import DEFAULT_BASE
from kanjilab.data.dictionary import load_characters
from kanjilab.data.image_folder import open_dataset
from kanjilab.data.japanese import has_japanese
from kanjilab.experiments import japanese_stages
from kanjilab.experiments.designs import BUDGETS
from kanjilab.experiments.japanese_stages import stage_studies


@pytest.fixture(scope="module")
def studies(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stages")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(japanese_stages, "BUDGET", BUDGETS["smoke"])
        patch.setattr(japanese_stages, "SEEDS", (0,))
        patch.setattr(japanese_stages, "PROMPTS", 1)
        yield stage_studies(folder)


def test_both_languages_caption_the_same_characters(studies):
    found = {name: open_dataset(study.data["folder"]).table.set_index("character") for name, study in studies.items()}
    columns = ["split", "radical_character"]
    assert found["japanese"][columns].equals(found["english"][columns])
    assert all(has_japanese(text) for text in found["japanese"]["text"])
    assert not any(has_japanese(text) for text in found["english"]["text"])
    character = found["english"].index[0]
    assert found["english"]["text"].iloc[0] == ";".join(load_characters().loc[character, "meanings"])


def test_the_trainings_differ_in_the_language_and_the_stage_alone(studies):
    japanese, english = studies.values()
    assert (japanese.base, english.base) == ("pocket-ja", DEFAULT_BASE)
    assert (japanese.arm, japanese.seeds, japanese.sampling) == (english.arm, english.seeds, english.sampling)
    first, second = (japanese.arm_of(variant, 0) for variant in japanese.variants)
    changed = {
        field for field, value in dataclasses.asdict(first).items() if value != dataclasses.asdict(second)[field]
    }
    assert changed == {"text_encoder", "text_encoder_lr"} and first.text_encoder == "frozen"
