"""The caption filter: its score and loss against hand-worked numbers, and what it finds in pairs made for it."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from kanjilab.evaluation import caption_filter
from kanjilab.evaluation.caption_filter import (
    FilterRecipe,
    Pairs,
    contrastive_loss,
    folds_of,
    joined,
    known_pairs,
    mutual_information,
    pair_scores,
)

QUICK = FilterRecipe(dimensions=16, steps=60, batch=64, warmup_steps=10)


def pairs_of_topics(count, topics=12, seed=0, told=1.0):
    """Pairs whose image and caption are noisy signs of one topic; `told`: how much the image says of it."""
    rng = np.random.default_rng(seed)
    signs = np.random.default_rng(99)
    seen, said = signs.standard_normal((topics, 20)), signs.standard_normal((topics, 30))
    topic = rng.integers(topics, size=count)
    images = told * seen[topic] + 0.5 * rng.standard_normal((count, 20))
    texts = said[topic] + 0.5 * rng.standard_normal((count, 30))
    texts /= np.linalg.norm(texts, axis=1, keepdims=True)
    return Pairs(images.astype(np.float32), texts.astype(np.float32), ("",) * count)


def swapped(pairs, count):
    """The first captions moved on by one; which pairs are wrong then."""
    rows = np.arange(len(pairs.names))
    rows[:count] = np.roll(rows[:count], 1)
    return Pairs(pairs.images, pairs.texts[rows], pairs.names), np.arange(len(rows)) < count


def share_below(scores, wrong):
    return (scores[wrong][:, None] < scores[~wrong]).mean()


def test_the_score_of_two_pairs_that_are_at_right_angles():
    both = torch.eye(2)
    expected = 2 * (3.0 - math.log((math.exp(3.0) + 1) / 2))
    assert mutual_information(both, both, (both, both), 3.0) == pytest.approx([expected] * 2)
    wrong = 2 * (0.0 - math.log((math.exp(3.0) + 1) / 2))
    assert mutual_information(both, both.flip(0), (both, both), 3.0) == pytest.approx([wrong] * 2)
    assert mutual_information(both, both, (both, both), 0.0) == pytest.approx([0, 0]), "no opinion, no information"


def test_scores_do_not_depend_on_how_many_are_read_at_once(monkeypatch):
    images, texts = (F.normalize(torch.randn(7, 5, generator=torch.Generator().manual_seed(s)), dim=1) for s in (0, 1))
    whole = mutual_information(images, texts, (images, texts), 4.0)
    monkeypatch.setattr(caption_filter, "AT_ONCE", 3)
    assert mutual_information(images, texts, (images, texts), 4.0) == pytest.approx(whole, abs=1e-6)


def test_the_loss_is_clips_where_each_caption_fits_one_image():
    images, texts = (F.normalize(torch.randn(6, 4, generator=torch.Generator().manual_seed(s)), dim=1) for s in (0, 1))
    logits, own = 5.0 * images @ texts.T, torch.arange(6)
    expected = F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)
    torch.testing.assert_close(contrastive_loss(images, texts, torch.tensor(5.0), torch.eye(6)), expected)


def test_swapped_captions_score_low_where_images_tell_and_not_where_they_do_not():
    planted, wrong = swapped(pairs_of_topics(300), 60)
    assert share_below(pair_scores(planted, recipe=QUICK), wrong) > 0.85
    blind, wrong = swapped(pairs_of_topics(300, told=0.0), 60)
    assert share_below(pair_scores(blind, recipe=QUICK), wrong) == pytest.approx(0.5, abs=0.12)


def test_right_pairs_from_elsewhere_help_a_small_set():
    planted, wrong = swapped(pairs_of_topics(40, seed=1), 12)
    alone, helped = (
        share_below(pair_scores(planted, known, QUICK), wrong) for known in (None, pairs_of_topics(600, seed=2))
    )
    assert helped > alone and helped > 0.85


def test_equal_inputs_give_equal_scores_and_no_random_state_is_touched():
    pairs, brief = pairs_of_topics(50), replace(QUICK, steps=5)
    state = torch.random.get_rng_state()
    first = pair_scores(pairs, recipe=brief)
    assert torch.equal(state, torch.random.get_rng_state())
    assert (pair_scores(pairs, recipe=brief) == first).all()
    assert (pair_scores(pairs, recipe=replace(brief, seed=1)) != first).any()


def test_one_character_is_in_one_fold_whatever_its_font():
    names = tuple("水火木金土日月人口山") * 3 + ("",) * 20
    folds = folds_of(names, QUICK)
    by_name = {name: {int(fold) for fold, one in zip(folds, names, strict=True) if one == name} for name in set(names)}
    assert all(len(found) == 1 for name, found in by_name.items() if name) and len(by_name[""]) == QUICK.folds
    assert max(np.bincount(folds_of(("",) * 23, QUICK))) == 5, "as even as can be"


def test_progress_and_too_few_pairs():
    told = []
    pair_scores(
        pairs_of_topics(30), recipe=replace(QUICK, steps=1), on_progress=lambda done, total: told.append((done, total))
    )
    assert told == [(number, 5) for number in range(1, 6)]
    with pytest.raises(ValueError, match="at least 10 images with captions, got 9"):
        pair_scores(pairs_of_topics(9), recipe=QUICK)


def test_known_kanji_are_drawn_once_and_leave_some_out(monkeypatch):
    table = caption_filter.load_characters().loc[list("水火木金土日月")]
    monkeypatch.setattr(caption_filter, "load_characters", lambda: table)
    known = known_pairs({"火", "月", "鯨"})
    assert sorted(known.names) == sorted("水木金土日") and known.images.shape[0] == known.texts.shape[0] == 5
    monkeypatch.setattr(caption_filter, "draw_font", None)  # would fail: what was drawn is kept
    again = joined(known_pairs({"火", "月"}), known_pairs(set("水木金土日月")))
    assert again.names == (*known.names, "火")
    assert (again.images[:5] == known.images).all()
