"""Stages of the Japanese text encoder against English captions: the same characters, and only the language differs."""

import dataclasses

import pandas as pd
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


def test_stage_1_is_compared_with_minilm_prompt_by_prompt(studies, tmp_path, monkeypatch):
    hits = {"japanese": [[1, 1], [1, 0]], "minilm": [[0, 1], [0, 0]]}  # seeds by prompts

    def table(path, study):
        assert path.parent == tmp_path / study.name
        rows = [(seed, prompt, hit) for seed, row in enumerate(hits[study.name]) for prompt, hit in enumerate(row)]
        labels = {"variant": study.variants[0].label, "split": "held_out", "final": True}
        return pd.DataFrame(rows, columns=["seed", "prompt", "hit"]).assign(**labels)

    monkeypatch.setattr(japanese_stages, "read_table", table)
    found = japanese_stages.against_minilm(studies, tmp_path)
    assert [(one["first"], one["second"], one["difference"][0], one["blocks"]) for one in found.values()] == [
        ("stage 1", "MiniLM", 0.5, (0.5, 0.5))
    ] * 2


def test_the_trainings_differ_in_the_language_and_the_stage_alone(studies):
    japanese, english, minilm = studies.values()
    assert (japanese.base, english.base, minilm.base) == ("pocket-ja", DEFAULT_BASE, DEFAULT_BASE)
    assert minilm.data == japanese.data != english.data
    for other in (english, minilm):
        assert (japanese.arm, japanese.seeds, japanese.sampling) == (other.arm, other.seeds, other.sampling)
    first, second = (japanese.arm_of(variant, 0) for variant in japanese.variants)
    changed = {
        field for field, value in dataclasses.asdict(first).items() if value != dataclasses.asdict(second)[field]
    }
    assert changed == {"text_encoder", "text_encoder_lr"} and first.text_encoder == "frozen"
