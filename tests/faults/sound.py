"""Sound things for the cases: small bases, folders, runs and studies, each made when the first case needs it."""

import dataclasses
import json
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from kanjilab.cli.coin_folder import write_coinage
from kanjilab.core.config import Arm
from kanjilab.data.calligraphy import Style, build_calligraphy_folder
from kanjilab.data.image_folder import open_dataset
from kanjilab.data.rendering import default_font
from kanjilab.experiments import coining, writing
from kanjilab.export.onnx_folder import base_to_onnx
from kanjilab.models.loading import load_base
from kanjilab.models.sampling import Sampling
from kanjilab.models.skeleton_encoder import save_encoder, with_skeletons
from kanjilab.training import few_shot
from kanjilab.training.calligraphy import encode_calligraphy
from kanjilab.training.loop import train
from kanjilab.widgets.generation import Request
from kanjilab.widgets.saved_glyphs import Kept, save_history
from tests.photos import page
from tests.stored_study import rank_study, store_study
from tests.tiny import save_tiny_pipeline, tiny_encoded
from tests.typeset_writer import draw, few_neighbours, word_vectors

KNOWN = "永国心道"
STYLES = tuple(Style(name, "regular", "pen", name, "ipaexg.ttf") for name in ("queen", "water"))
QUICK_HAND = dataclasses.replace(few_shot.HAND_RECIPE, rank=2, batch=2, images_seen=4)
COINED = {"phrase": "fire jewel", "noises": 2, "keep": 2}
ONE = Arm(rank=2, images_seen=4)


def sound_things(folder: Path) -> Callable[[str], Path]:
    """Gives the folder of a sound thing by its name, making it when it is asked for first."""

    def find(name: str) -> Path:
        path = folder / name
        if not path.exists():
            MADE[name](path, find)
        return path

    return find


def small(patch: pytest.MonkeyPatch) -> None:
    """Two steps a drawing, a hand in two steps, and kanji that are typeset in place of drawn ones."""
    for usual in ("WRITING", "TRACING"):
        patch.setattr(writing, usual, Sampling("ddim", steps=2, array_guidance=1.5))
    patch.setattr(few_shot, "HAND_RECIPE", QUICK_HAND)
    patch.setattr(few_shot.learn_hand, "__defaults__", (QUICK_HAND,))
    patch.setattr(coining, "coin", partial(coining.coin, draw=draw, embed=word_vectors))


def _writer(path, find):
    shutil.copytree(find("plain"), path)
    save_encoder(with_skeletons(load_base(path), "hint", "永国").condition_encoder, path)


def _calligraphy(path, find):
    build_calligraphy_folder(path, [default_font().parent], STYLES, KNOWN)


def _photos(path, find):
    path.mkdir()
    page("永").save(path / "永.jpg")


def _coined(path, find):
    with few_neighbours():
        write_coinage(coining.coin(**COINED, draw=draw, embed=word_vectors), path)


def _trained(path, find, base_name, arm):
    base = load_base(find(base_name))
    for _ in train(base, tiny_encoded(base), [arm], path, checkpoints=1):
        pass


def skeleton_data(find):
    """The base that reads skeletons, and a calligraphy folder as it reads it."""
    base = load_base(find("writer"))
    return base, encode_calligraphy(base, open_dataset(find("calligraphy")))


def _calligraphy_run(path, find):
    base, data = skeleton_data(find)
    arm = Arm(rank=2, images_seen=4, condition_encoder="full", array_dropout=0.25)
    for _ in train(base, data, [arm], path, checkpoints=1):
        pass


def _images(path, find):
    path.mkdir()
    values = np.full((16, 16), 255, np.uint8)
    values[4:9, 4:12] = 0
    Image.fromarray(values).save(path / "a.png")
    (path / "metadata.csv").write_text("file_name,text\na.png,water\n")


def _gallery(path, find):
    glyph = np.full((16, 16), 255, np.uint8)
    glyph[4:9, 4:12] = 0
    save_history([Kept(Request("queen"), glyph, "water")], path)


def _japanese(path, find):
    """An encoder with a tokenizer, of Japanese's form."""
    path.mkdir()
    for part in ("text_encoder", "tokenizer"):
        shutil.copytree(find("plain") / part, path / part)


def _onnx(path, find):
    base_to_onnx(load_base(find("plain")), path, size_px=32)
    facts = json.loads((path / "kanjilab.json").read_text())
    assert facts["channels"] == 1


MADE: dict[str, Callable] = {
    "plain": lambda path, find: save_tiny_pipeline(path),
    "writer": _writer,
    "calligraphy": _calligraphy,
    "photos": _photos,
    "coined": _coined,
    "run": partial(_trained, base_name="plain", arm=ONE),
    "text run": partial(_trained, base_name="plain", arm=dataclasses.replace(ONE, text_encoder="lora")),
    "whole text run": partial(_trained, base_name="plain", arm=dataclasses.replace(ONE, text_encoder="full")),
    "calligraphy run": _calligraphy_run,
    "images": _images,
    "gallery": _gallery,
    "japanese": _japanese,
    "onnx": _onnx,
    "study": lambda path, find: store_study(path, rank_study((16, 64))),
}
