"""What captions teach of parts, on captions of five words and on MiniLM's."""

import numpy as np
import pytest

from kanjilab.evaluation.prompt_parts import AskedMeaning, PartMeaning
from kanjilab.models import minilm
from kanjilab.models.minilm import caption_vectors
from tests.toy_script import toy_vectors


def test_nearest_captions_vote_for_their_parts():
    meaning = PartMeaning.fit(["water", "tree", "tree"], [("水",), ("木", "人"), ("木",)], toy_vectors)
    shares = dict(zip(meaning.parts, meaning.probabilities(["tree"])[0], strict=True))
    # Two captions at cosine 1, one nearly orthogonal: e^(-1 / 0.08) of a vote is nothing. 2% go by frequency.
    assert shares["木"] == pytest.approx(0.98 * 0.75 + 0.02 * 0.5, abs=1e-4)
    assert shares["人"] == pytest.approx(0.98 * 0.25 + 0.02 / 6, abs=1e-4)
    assert shares["水"] == pytest.approx(0.02 / 3, abs=1e-4)
    assert meaning.expected(["water", "tree"], top=1) == [("水",), ("木",)]
    assert sum(shares.values()) == pytest.approx(1)


def test_prompts_that_name_their_parts_have_these():
    learned = PartMeaning.fit(["water", "tree"], [("水",), ("木",)], toy_vectors)
    named = AskedMeaning(learned.parts, learned.vectors, learned.votes, toy_vectors, {"tree": ("火", "人"), "fire": ()})
    expected = named.expected(["tree", "water", "fire", "tree"], top=1)
    assert expected[:2] == [("火", "人"), ("水",)] and expected[3] == expected[0]
    assert expected[2] == learned.expected(["fire"], top=1)[0]  # it names none
    assert [named.needed(prompt) for prompt in ("tree", "water", "fire")] == [2, 1, 1]  # guessed ones: one of them
    assert named.expected(["tree"]) == [("火", "人")] and named.expected([]) == []


def test_captions_without_parts_have_no_vote_and_nothing_to_learn_is_refused():
    meaning = PartMeaning.fit(["tree", "tree"], [("木",), ()], toy_vectors)
    assert meaning.probabilities(["tree"])[0].tolist() == [pytest.approx(1)]
    with pytest.raises(ValueError, match="known parts, got none among 1"):
        PartMeaning.fit(["tree"], [()], toy_vectors)
    with pytest.raises(ValueError, match="got 1 captions, 2 parts"):
        PartMeaning.fit(["tree"], [(), ()], toy_vectors)


def test_sentence_embeddings_know_what_words_mean_and_are_kept(monkeypatch, tmp_path):
    monkeypatch.setenv("KANJILAB_CACHE", str(tmp_path))
    captions = ["ocean", "to swim in the sea", "parliament"]
    vectors = caption_vectors(captions)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    assert vectors[0] @ vectors[1] > vectors[0] @ vectors[2] + 0.2
    np.testing.assert_allclose(caption_vectors(captions[::-1])[::-1], vectors, atol=1e-5)  # alone or padded
    monkeypatch.setattr(minilm, "_embedded", lambda captions: pytest.fail("embedded twice"))
    np.testing.assert_array_equal(caption_vectors(captions), vectors)


@pytest.mark.parametrize("damage", [lambda data: data[:-7] + bytes([data[-7] ^ 1]) + data[-6:], lambda data: data[:99]])
def test_kept_embeddings_that_are_damaged_are_made_again(damage, monkeypatch, tmp_path):
    monkeypatch.setenv("KANJILAB_CACHE", str(tmp_path))
    monkeypatch.setattr(minilm, "_embedded", toy_vectors)
    expected = caption_vectors(["water", "tree"])
    (file,) = tmp_path.rglob("*.npy")
    good = file.read_bytes()
    file.write_bytes(damage(good))
    np.testing.assert_array_equal(caption_vectors(["water", "tree"]), expected)
    assert file.read_bytes() == good


def test_embeddings_are_made_where_nothing_can_be_kept(monkeypatch, tmp_path):
    monkeypatch.setenv("KANJILAB_CACHE", str(tmp_path))
    monkeypatch.setattr(minilm, "_embedded", toy_vectors)

    def refuse(folder, make):
        raise PermissionError(13, "Permission denied", str(folder))

    expected = caption_vectors(["water", "tree"])
    monkeypatch.setattr(minilm, "keep_sound", refuse)  # as of a damaged folder that cannot be taken away
    np.testing.assert_array_equal(caption_vectors(["water", "tree"]), expected)
