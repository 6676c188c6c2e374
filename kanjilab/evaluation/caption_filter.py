"""Do an image and its caption belong together? A small contrastive model says so of pairs that it was not trained on.

Two linear maps lead into one space: one from what judge A's network sees in a glyph, one from the caption's text
vector. They are trained on pairs to tell a pair's own caption from the other captions of a batch, and its own image
from the other images. Each pair is scored by a model that was trained without it, so wrong captions may be among those
that train it.

Source: the contrast, Radford et al. 2021, arXiv:2103.00020 (CLIP); such a score as a filter of captions, Schuhmann et
al. 2021, arXiv:2111.02114; scores out of fold, Northcutt et al. 2021, arXiv:1911.00068.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from kanjilab.core.rng import counted_rng
from kanjilab.core.storage import cache_folder, sha256_file
from kanjilab.data.dictionary import has_clean_meaning, load_characters, rows_of
from kanjilab.data.image_folder import Dataset
from kanjilab.data.rendering import default_font, draw_font, drawable_characters
from kanjilab.data.selection import caption_of_meanings
from kanjilab.evaluation.judges.fit_cache import cached_fit
from kanjilab.evaluation.judges.part_judge import judge_file, load_judge
from kanjilab.models.clip import Clip
from kanjilab.models.japanese import text_vectors

STREAM = "caption filter"
SHARPEST = 4.0  # of the logarithm of the scale that cosines are multiplied by
COMPARED = 4_096  # pairs at most that a pair's image and caption are compared with
AT_ONCE = 1_024


@dataclass(frozen=True)
class Pairs:
    """Images and captions as vectors.

    Attributes:
        images: (N, F) float32.
        texts: (N, D) float32, unit vectors.
        names: of the N characters, or "" where an image has none.
    """

    images: NDArray[np.float32]
    texts: NDArray[np.float32]
    names: tuple[str, ...]

    def take(self, rows: NDArray) -> Pairs:
        """Some of them, by row or by a (N,) mask."""
        return Pairs(self.images[rows], self.texts[rows], tuple(np.array(self.names, dtype=object)[rows]))


@dataclass(frozen=True)
class FilterRecipe:
    """How a scoring model is trained.

    Args:
        dimensions: of the common space.
        steps, batch, peak_lr, warmup_steps, weight_decay: of AdamW; the rate falls linearly to 0.
        dropout: share of an image's numbers that are left out at each step.
        likeness: temperature at which captions of like meaning share a target.
        folds: parts of the pairs, each scored by a model that was trained on the others.
        seed: of folds, first weights and batches.
    """

    dimensions: int = 128
    steps: int = 300
    batch: int = 256
    peak_lr: float = 2e-3
    warmup_steps: int = 50
    weight_decay: float = 3.0
    dropout: float = 0.3
    likeness: float = 0.05
    folds: int = 5
    seed: int = 0


class TwoMaps(nn.Module):
    """The model: unit vectors (B, dimensions) of images and of captions, and the scale of their cosines.

    Args of the constructor:
        pairs: what it is trained on; their images' mean and spread are kept.
        recipe: its sizes.
    """

    mean: Tensor
    spread: Tensor

    def __init__(self, pairs: Pairs, recipe: FilterRecipe):
        """Random weights, from torch's generator."""
        super().__init__()
        self.register_buffer("mean", torch.from_numpy(pairs.images.mean(axis=0)))
        self.register_buffer("spread", torch.from_numpy(pairs.images.std(axis=0) + 1e-3))
        self.image_map = nn.Linear(pairs.images.shape[1], recipe.dimensions)
        self.text_map = nn.Linear(pairs.texts.shape[1], recipe.dimensions)
        self.log_scale = nn.Parameter(torch.tensor(10.0).log())
        self.dropout = recipe.dropout

    @property
    def scale(self) -> Tensor:
        """What cosines are multiplied by."""
        return self.log_scale.clamp(max=SHARPEST).exp()

    def forward(self, pairs: Pairs) -> tuple[Tensor, Tensor]:
        """(N, dimensions) of the images, and of the captions."""
        standard = (torch.from_numpy(pairs.images) - self.mean) / self.spread
        images = self.image_map(F.dropout(standard, self.dropout, self.training))
        return F.normalize(images, dim=1), F.normalize(self.text_map(torch.from_numpy(pairs.texts)), dim=1)


def contrastive_loss(images: Tensor, texts: Tensor, scale: Tensor, likeness: Tensor) -> Tensor:
    """Cross-entropy of each image's choice among the captions and of each caption's among the images.

    Args:
        images, texts: (B, D) unit vectors of pairs.
        scale: of their cosines.
        likeness: (B, B), rows sum to 1: how far each caption of the batch would do for each image.
    """
    logits = scale * images @ texts.T
    return -(likeness * (logits.log_softmax(dim=1) + logits.log_softmax(dim=0))).sum(dim=1).mean()


def train_two_maps(pairs: Pairs, recipe: FilterRecipe, fold: int = 0) -> TwoMaps:
    """A model trained on pairs; the same pairs, recipe and fold give the same model.

    Args:
        fold: number of its random stream.
    """
    rng = counted_rng(recipe.seed, STREAM, 2 * fold + 1)
    batch = min(recipe.batch, len(pairs.names))
    with torch.random.fork_rng(), torch.enable_grad():
        torch.manual_seed(int(rng.integers(2**63)))
        model = TwoMaps(pairs, recipe).train()
        optimizer = torch.optim.AdamW(model.parameters(), recipe.peak_lr, weight_decay=recipe.weight_decay)
        for step in range(recipe.steps):
            rise, fall = (step + 1) / recipe.warmup_steps, (recipe.steps - step) / recipe.steps
            optimizer.param_groups[0]["lr"] = recipe.peak_lr * min(rise, fall)
            chosen = pairs.take(rng.choice(len(pairs.names), batch, replace=False))
            own = torch.from_numpy(chosen.texts)
            images, texts = model(chosen)
            loss = contrastive_loss(images, texts, model.scale, (own @ own.T / recipe.likeness).softmax(dim=1))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return model.eval()


@torch.no_grad()
def mutual_information(images: Tensor, texts: Tensor, others: tuple[Tensor, Tensor], scale: float) -> NDArray:
    """(N,) how much likelier, in nats, each caption is for its image than for any, and the image for its caption.

    The sum of both directions, each log(exp(own) / mean(exp(all))) of the scaled cosines.

    Args:
        images, texts: (N, D) unit vectors of N pairs.
        others: (M, D) of other pairs' images, and (M, D) of their captions.
        scale: of the cosines.
    """
    found = []
    for rows in _parts(len(images)):
        image, text = images[rows.start : rows.stop], texts[rows.start : rows.stop]
        own = scale * (image * text).sum(dim=1)
        for_image = (scale * image @ others[1].T).logsumexp(dim=1)
        for_text = (scale * text @ others[0].T).logsumexp(dim=1)
        found.append(2 * (own + np.log(len(others[0]))) - for_image - for_text)
    return torch.cat(found).double().numpy()


def pair_scores(
    pairs: Pairs,
    known: Pairs | None = None,
    recipe: FilterRecipe = FilterRecipe(),
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> NDArray[np.float64]:
    """How well each image and its caption belong together, in nats; see `mutual_information`.

    All images of one character are in one fold: another font's drawing must not give the caption away.

    Args:
        pairs: N of them, some with a wrong caption.
        known: further pairs that are right, of other characters; they train every model.
        recipe: of the models.
        on_progress: called with (done, total) folds.
    Returns:
        (N,) float64, low where the caption is likely to be another image's.
    Raises:
        ValueError: fewer than two pairs a fold.
    """
    if len(pairs.names) < 2 * recipe.folds:
        raise ValueError(f"expected at least {2 * recipe.folds} images with captions, got {len(pairs.names)}")
    fold, scores = folds_of(pairs.names, recipe), np.zeros(len(pairs.names))
    for number in range(recipe.folds):
        rest, mine = pairs.take(fold != number), fold == number
        model = train_two_maps(rest if known is None else joined(rest, known), recipe, number)
        few = counted_rng(recipe.seed, STREAM, 2 * number + 2).permutation(len(rest.names))[:COMPARED]
        with torch.no_grad():
            images, texts = model(pairs.take(mine))
            scores[mine] = mutual_information(images, texts, model(rest.take(few)), model.scale.item())
        on_progress(number + 1, recipe.folds)
    return scores


@torch.no_grad()
def clip_scores(dataset: Dataset, clip: Clip) -> NDArray[np.float64]:
    """(N,) how well each image and its caption belong together by a CLIP model, in nats; see `mutual_information`.

    Args:
        dataset: N images with captions.
        clip: as `load_clip` gives it; nothing is trained.
    """
    images = torch.cat([clip.image_vectors(dataset.images(rows, channels=3)) for rows in _parts(len(dataset))])
    texts = clip.text_vectors(dataset.table["text"].tolist())
    few = counted_rng(0, STREAM).permutation(len(dataset))[:COMPARED]
    return mutual_information(images, texts, (images[few], texts[few]), clip.scale)


def _parts(count: int) -> list[range]:
    return [range(start, min(start + AT_ONCE, count)) for start in range(0, count, AT_ONCE)]


def folds_of(names: tuple[str, ...], recipe: FilterRecipe) -> NDArray[np.int64]:
    """(N,) the fold of each pair: by its character, and by itself where it has none."""
    keys = [name or f"row {row}" for row, name in enumerate(names)]
    distinct = list(dict.fromkeys(keys))
    order = counted_rng(recipe.seed, STREAM).permutation(len(distinct)) % recipe.folds
    place = dict(zip(distinct, order.tolist(), strict=True))
    return np.array([place[key] for key in keys])


def joined(first: Pairs, second: Pairs) -> Pairs:
    """All of both."""
    images, texts = np.concatenate([first.images, second.images]), np.concatenate([first.texts, second.texts])
    return Pairs(images, texts, first.names + second.names)


def pairs_of(dataset: Dataset) -> Pairs:
    """A dataset's images and captions, in English or Japanese, as vectors."""
    table = dataset.table
    names = tuple(table["character"].astype(str)) if "character" in table else ("",) * len(table)
    return Pairs(load_judge("A").features(dataset.images()), text_vectors(table["text"].tolist()), names)


def known_pairs(
    without: Collection[str] = (), on_progress: Callable[[int, int], None] = lambda done, total: None
) -> Pairs:
    """The dictionary's kanji with their own meanings, drawn in the usual font; kept in the user's cache.

    Args:
        without: characters to leave out.
        on_progress: called with (done, total) characters while they are drawn, the first time.
    """
    inputs = {"judge": sha256_file(judge_file("A")), "font": sha256_file(default_font())}
    drawn = cached_fit(cache_folder() / "caption-filter", "kanji", inputs, Pairs, lambda: _draw_known(on_progress))
    kept = [row for row, name in enumerate(drawn.names) if name not in set(without)]
    return drawn.take(np.array(kept, dtype=np.int64))


def _draw_known(on_progress: Callable[[int, int], None]) -> Pairs:
    characters, font = load_characters(), default_font()
    rows = characters.loc[has_clean_meaning(characters)]
    rows = rows.loc[rows.index.isin(list(drawable_characters(rows.index, font, on_progress)))]
    images = np.stack([np.asarray(draw_font(str(character), font)) for character in rows.index])
    texts = text_vectors([caption_of_meanings(row) for row in rows_of(rows)])
    return Pairs(load_judge("A").features(images), texts, tuple(map(str, rows.index)))
