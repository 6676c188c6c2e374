"""Negatives: pictures of no well-formed character, from scribbles to half denoised glyphs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from kanjilab.data.kanjivg import KanjiVG
from kanjilab.data.rendering import GlyphError, draw_font
from kanjilab.evaluation.judges.radical_judge import LETTERS
from kanjilab.models.cpu_layers import autocast_bf16
from kanjilab.models.diffusion import UNetDiffusion
from kanjilab.models.loading import load_base

SAME_AS_A_KANJI = frozenset("カエオタチトニネハヒフホミムメモラリレロンノヘへソスセケヨヲヤワ一二三oO0〇日XY")
HANGUL = (0xAC00, 0xD7A3)


def scribbles(count: int, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Random lines, bends and arcs as thick as strokes, some upright or level as in kanji; (N, 128, 128) uint8."""
    pictures = []
    for _ in range(count):
        picture = Image.new("L", (256, 256), 255)
        pen, width = ImageDraw.Draw(picture), int(rng.integers(6, 20))
        upright = rng.random() < 0.5
        for _ in range(rng.integers(4, 24)):
            x, y = rng.uniform(15, 240, 2)
            across, down = rng.normal(size=2) * rng.uniform(20, 90)
            if rng.random() < 0.3:
                start, (w, h) = rng.uniform(0, 360), rng.uniform(15, 110, 2)
                pen.arc((x - w, y - h, x + w, y + h), start, start + rng.uniform(40, 250), fill=0, width=width)
                continue
            if upright and rng.random() < 0.7:
                across, down = (across, down * 0.04) if rng.random() < 0.5 else (across * 0.04, down)
            bend = rng.normal(size=2) * (0 if rng.random() < 0.5 else 15)
            points = [(x, y), (x + across / 2 + bend[0], y + down / 2 + bend[1]), (x + across, y + down)]
            pen.line(points, fill=0, width=width, joint="curve")
        pictures.append(np.asarray(picture.reduce(2)))
    return np.stack(pictures)


def jumbled_strokes(
    count: int, kanjivg: KanjiVG, characters: Sequence[str], rng: np.random.Generator
) -> NDArray[np.uint8]:
    """Real strokes of several characters thrown together at random places; (N, 128, 128) uint8."""
    pictures = []
    for _ in range(count):
        picture = Image.new("L", (256, 256), 255)
        pen, width = ImageDraw.Draw(picture), int(rng.integers(6, 18))
        names = [characters[int(rng.integers(len(characters)))] for _ in range(4)]
        strokes = [np.array(stroke) for name in names for stroke in kanjivg.strokes(name)]
        for index in rng.permutation(len(strokes))[: rng.integers(4, 16)]:
            stroke = strokes[index] - strokes[index].mean(axis=0)
            turn = rng.normal() * 0.5
            stroke = stroke @ np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
            points = stroke * rng.uniform(1.5, 3.5) + rng.uniform(40, 216, 2)
            pen.line([(float(x), float(y)) for x, y in points], fill=0, width=width, joint="curve")
        pictures.append(np.asarray(picture.reduce(2)))
    return np.stack(pictures)


def _smooth_field(count: int, rng: np.random.Generator, size: int = 128) -> NDArray[np.float64]:
    """(count, size, size) smooth noise of unit variance, each of its own coarseness."""
    fields = []
    for _ in range(count):
        knots = int(rng.choice([4, 5, 7, 10, 16, 28]))
        coarse = Image.fromarray(rng.normal(size=(knots, knots)).astype(np.float32), mode="F")
        field = np.asarray(coarse.resize((size, size), Image.Resampling.BICUBIC))
        fields.append(field / field.std())
    return np.stack(fields)


def blobs(count: int, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Smooth noise cut at a random level; (N, 128, 128) uint8."""
    cut, sharp = rng.uniform(-0.2, 1.2, (count, 1, 1)), rng.uniform(2, 8, (count, 1, 1))
    return (255 * np.clip(0.5 - (_smooth_field(count, rng) - cut) * sharp, 0, 1)).astype(np.uint8)


def noise(count: int, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Grey noise, from single pixels to patches of some, (N, 128, 128) uint8."""
    pictures = []
    for _ in range(count):
        knots = int(rng.choice([16, 32, 48, 64, 128, 128]))
        coarse = Image.fromarray(
            rng.normal(rng.uniform(0.2, 0.8), rng.uniform(0.1, 0.6), (knots, knots)).astype(np.float32), mode="F"
        )
        resample = Image.Resampling.NEAREST if rng.random() < 0.3 else Image.Resampling.BICUBIC
        pictures.append(255 * np.clip(np.asarray(coarse.resize((128, 128), resample)), 0, 1))
    return np.stack(pictures).astype(np.uint8)


def mirrored(images: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
    """Left-right or upside-down images of those glyphs that this changes much; (N, H, W) uint8."""
    flipped = [image[:, ::-1] if rng.random() < 0.5 else image[::-1] for image in images]
    kept = []
    for image, turned in zip(images, flipped, strict=True):
        a, b = (
            np.asarray(Image.fromarray(255 - p).resize((32, 32), Image.Resampling.BOX), np.float32)
            for p in (image, turned)
        )
        if (a * b).sum() < 0.72 * np.sqrt((a**2).sum() * (b**2).sum()):
            kept.append(turned)
    return np.stack(kept)


def half_swapped(images: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
    """Halves of two glyphs joined where both have strokes across the cut; (N, H, W) uint8."""
    pictures = []
    for first, second in zip(images, images[rng.permutation(len(images))], strict=True):
        if turn := rng.random() < 0.5:
            first, second = first.T, second.T
        cut = int(rng.integers(44, 85))
        edges = [image[:, at] < 128 for image, at in ((first, cut - 1), (second, cut))]
        if min(edge.sum() for edge in edges) < 8 or (edges[0] ^ edges[1]).sum() < 0.7 * (edges[0] | edges[1]).sum():
            continue
        joined_halves = np.concatenate([first[:, :cut], second[:, cut:]], axis=1)
        pictures.append(joined_halves.T if turn else joined_halves)
    return np.stack(pictures)


def shuffled_patches(images: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
    """Glyphs cut into 4, 9 or 16 squares and put together in another order; (N, H, W) uint8."""
    pictures = []
    for image in images:
        pieces = int(rng.choice([2, 3, 4]))
        side = 120 // pieces
        cells = [image[4 + r * side :, 4 + c * side :][:side, :side] for r in range(pieces) for c in range(pieces)]
        order = np.roll(np.arange(len(cells)), 1) if pieces == 2 else rng.permutation(len(cells))
        grid = [np.concatenate([cells[i] for i in order[r * pieces : (r + 1) * pieces]], axis=1) for r in range(pieces)]
        pictures.append(np.concatenate(grid))
    return np.stack(pictures)


def half_faded(images: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
    """Glyphs of which smooth patches, about half, have faded away, (N, H, W) uint8."""
    field = _smooth_field(len(images), rng, images.shape[1])
    kept = np.clip(
        0.5 + (field - rng.uniform(-0.2, 0.4, (len(images), 1, 1))) * 3, rng.uniform(0, 0.25, (len(images), 1, 1)), 1
    )
    return (255 - (255 - images) * kept).astype(np.uint8)


def letters(fonts: Sequence[Path], hangul_font: Path, count: int, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Kana, Latin, Greek, Cyrillic and Hangul, less those that look like a kanji.

    Args:
        fonts: for all but Hangul.
        hangul_font: for Hangul, half of the glyphs.
        count: how many.
        rng: which.
    Returns:
        (count, 128, 128) uint8, 0 ink to 255 paper.
    """
    codes = [letter for letter in LETTERS if letter not in SAME_AS_A_KANJI]
    pictures = []
    while len(pictures) < count:
        hangul = rng.random() < 0.5
        character = chr(rng.integers(*HANGUL)) if hangul else codes[int(rng.integers(len(codes)))]
        font = hangul_font if hangul else fonts[int(rng.integers(len(fonts)))]
        try:
            pictures.append(np.asarray(draw_font(character, font)))
        except GlyphError:
            continue
    return np.stack(pictures)


@dataclass(frozen=True)
class Denoised:
    """Glyphs through the autoencoder of the pocket base: nearly clean ones, and others half denoised."""

    nearly_clean: NDArray[np.uint8]
    half: NDArray[np.uint8]


@torch.inference_mode()
@autocast_bf16()
def through_pocket(images: NDArray[np.uint8], rng: np.random.Generator, batch: int = 64) -> Denoised:
    """What glyphs look like early and late in denoising.

    Args:
        images: (N, 128, 128) uint8.
        rng: noise and noise levels.
        batch: glyphs at a time.
    Returns:
        Nearly clean: decoded with little noise. Half: with much noise left, or as the base's guess at
        the clean glyph from much noise (it has never seen a kanji). (N, 128, 128) uint8 each.
    """
    base = cast(UNetDiffusion, load_base("pocket"))
    base.vae.to(memory_format=torch.channels_last)
    text = base.encode_text([""])
    clean, half = [], []
    for start in range(0, len(images), batch):
        latents = base.encode_images(images[start : start + batch])[0]
        draw = torch.from_numpy(rng.normal(size=latents.shape).astype(np.float32))
        mild = torch.from_numpy(rng.uniform(0, 0.3, len(latents)).astype(np.float32))[:, None, None, None]
        clean.append(base.decode(latents + mild * draw))
        way = torch.from_numpy(rng.integers(0, 3, len(latents)))
        most = torch.where(way == 0, 0.15, 0.45)  # the guess is good early on
        alpha_bar = 0.02 + torch.from_numpy(rng.random(len(latents)).astype(np.float32)) * most
        steps = (base.alpha_bar[None] - alpha_bar[:, None]).abs().argmin(1)
        noisy, _ = base.add_noise(latents, draw, steps)
        signal = base.alpha_bar[steps][:, None, None, None]
        states = text.select(torch.zeros(len(latents), dtype=torch.long))
        guess = (noisy - (1 - signal).sqrt() * base.denoise(noisy, steps, states)) / signal.sqrt()
        way = way[:, None, None, None]
        mixed = torch.where(way == 0, guess, torch.where(way == 1, noisy, noisy / signal.sqrt()))
        half.append(base.decode(mixed))
    return Denoised(np.concatenate(clean), np.concatenate(half))
