"""Files of others: encoders of skeletons, the Japanese encoder and dictionary, folders of fonts, models as ONNX."""

import importlib.util
import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from kanjilab.data import dictionary, japanese
from kanjilab.data.calligraphy import Style, build_calligraphy_folder
from kanjilab.data.rendering import default_font
from kanjilab.models.japanese import load_japanese
from kanjilab.models.loading import load_base
from kanjilab.models.skeleton_encoder import save_encoder, with_skeletons
from tests.faults.case import Case, Here
from tests.faults.contents import PAGE, POINTER
from tests.faults.sound import KNOWN
from tests.photos import page

CONFIG, WEIGHTS = "condition_encoder/config.json", "condition_encoder/model.safetensors"


def changed(thing: str, name: str, change: Callable[[Any], Any]):
    """A copy of a sound thing with a JSON file changed."""

    def lay(here: Here):
        folder = here.take(thing)
        path = folder / name
        path.write_text(json.dumps(change(json.loads(path.read_text()))))
        return folder

    return lay


def tensors_changed(change: Callable[[dict], Any]):
    """A copy of the base that reads skeletons with the encoder's weights changed."""

    def lay(here: Here):
        folder = here.take("writer")
        tensors = load_file(folder / WEIGHTS)
        save_file(change(tensors) or tensors, folder / WEIGHTS)
        return folder

    return lay


def replaced(thing: str, name: str, make: Callable[[Path], object]):
    """A copy of a sound thing with something else in place of a file or folder."""

    def lay(here: Here):
        folder = here.take(thing)
        path = folder / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
        make(path)
        return folder

    return lay


def bytes_of(data: bytes):
    return lambda path: path.write_bytes(data)


def cut(thing: str, name: str):
    def lay(here: Here):
        folder = here.take(thing)
        path = folder / name
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        return folder

    return lay


def nothing(path):
    """What is gone."""


def loaded(here, folder):
    assert load_base(folder).condition_encoder is not None


def _one_channel(tensors):
    """Of an encoder that reads one skeleton, as the first ones did."""
    name = "skeleton.first.weight"
    return {**tensors, name: tensors[name][:, : tensors[name].shape[1] // 2].contiguous()}


def _controlnet(path):
    path.mkdir()
    (path / "config.json").write_text(json.dumps({"_class_name": "ControlNetModel", "in_channels": 4}))
    save_file({"controlnet_cond_embedding.conv_in.weight": torch.zeros(2, 2)}, path / "model.safetensors")


def _of_another_base(here):
    """The encoder of a base with wider states."""
    folder = here.take("writer")
    base = with_skeletons(load_base(here.sound("plain")), "hint", "永国")
    encoder = type(base.condition_encoder)("hint", "永国", 48, 8, 16)
    save_encoder(encoder, folder)
    return folder


def _entering_by_tokens(here):
    folder = here.take("writer")
    base = load_base(here.sound("plain"))
    save_encoder(with_skeletons(base, "tokens", "永国").condition_encoder, folder)
    return folder


def _with(name: str, value: Any):
    return changed("writer", CONFIG, lambda config: {**config, name: value})


def _without(name: str):
    return changed("writer", CONFIG, lambda config: {key: value for key, value in config.items() if key != name})


def _as_type(kind):
    return tensors_changed(lambda tensors: {name: value.to(kind) for name, value in tensors.items()})


ENCODERS = {
    "of one skeleton, as earlier versions had": (tensors_changed(_one_channel), "it reads one skeleton"),
    "of another base": (_of_another_base, "the encoder of another base"),
    "a ControlNet's": (replaced("writer", "condition_encoder", _controlnet), "expected an encoder of skeletons"),
    "an empty folder": (replaced("writer", "condition_encoder", Path.mkdir), "config.json"),
    "a file in place of its folder": (replaced("writer", "condition_encoder", Path.touch), "condition_encoder"),
    "a link to nowhere": (
        replaced("writer", "condition_encoder", lambda path: path.symlink_to("gone")),
        "condition_encoder",
    ),
    "without settings": (replaced("writer", CONFIG, nothing), "config.json"),
    "without weights": (replaced("writer", WEIGHTS, nothing), "model.safetensors"),
    "weights not fetched with Git LFS": (replaced("writer", WEIGHTS, bytes_of(POINTER)), "git lfs pull"),
    "a web page as the weights": (replaced("writer", WEIGHTS, bytes_of(PAGE)), "an HTML page"),
    "weights cut off": (cut("writer", WEIGHTS), "model.safetensors"),
    "weights of nothing": (tensors_changed(lambda tensors: {"a": torch.zeros(1)}), "without"),
    "weights without the index": (
        tensors_changed(lambda tensors: {key: value for key, value in tensors.items() if key != "index.weight"}),
        "without index.weight",
    ),
    "weights with a layer more": (
        tensors_changed(lambda tensors: {**tensors, "skeleton.third.weight": torch.zeros(2)}),
        "skeleton.third.weight",
    ),
    "weights of fewer characters": (
        tensors_changed(lambda tensors: {**tensors, "index.weight": tensors["index.weight"][:2].contiguous()}),
        "index.weight: expected the shape",
    ),
    "weights that are no numbers": (
        tensors_changed(lambda tensors: {name: value * float("nan") for name, value in tensors.items()}),
        "expected finite numbers",
    ),
    "weights that overflowed": (
        tensors_changed(lambda t: {**t, "skeleton.last.bias": torch.full_like(t["skeleton.last.bias"], torch.inf)}),
        "expected finite numbers",
    ),
    "weights as whole numbers": (_as_type(torch.int8), "expected finite numbers"),
    "settings as a list": (changed("writer", CONFIG, lambda config: [config]), "got list"),
    "settings with a comment": (replaced("writer", CONFIG, bytes_of(b'{"enters": "hint"} // mine')), "config.json"),
    "settings in UTF-16": (replaced("writer", CONFIG, bytes_of('{"a": "永"}'.encode("utf-16-le"))), "config.json"),
    "settings of a later version": (_with("tilt", 3), "tilt"),
    "settings without the characters": (_without("characters"), "expected an encoder of skeletons"),
    "settings without the width": (_without("width"), "expected an encoder of skeletons"),
    "another way to enter": (_with("enters", "cross"), "enters must be one of"),
    "no way to enter": (_with("enters", None), "enters must be one of"),
    "a list as the way to enter": (_with("enters", ["hint"]), "enters must be one of"),
    "the way of other weights": (_with("enters", "tokens"), "model.safetensors"),
    "a character twice": (_with("characters", "永永"), "expected each character once"),
    "characters as a list": (_with("characters", ["永", "国"]), "characters: expected a text"),
    "characters without end": (_with("characters", "永" * 3_000_000), "characters: expected a text"),
    "no width": (_with("width", 0), "width: expected a whole number"),
    "a width beyond all memory": (_with("width", 10**12), "width: expected a whole number"),
    "half a width": (_with("width", 24.5), "width: expected a whole number"),
    "a width in words": (_with("width", "24"), "width: expected a whole number"),
    "a width that is true": (_with("width", True), "width: expected a whole number"),
    "a hint below nothing": (_with("hint_px", -8), "hint_px: expected a whole number"),
    "a hint of no divisor": (_with("hint_px", 7), "size_px: expected a multiple of 7"),
    "channels of another denoiser": (_with("hint_channels", 17), "expected the shape"),
    "skeletons of no size": (_with("size_px", 0), "size_px: expected a whole number"),
    "skeletons of half a patch": (_with("size_px", 120), "size_px: expected a multiple of 16"),
    "skeletons of a gigapixel": (_with("size_px", 32_768), "size_px: expected a whole number"),
}


def _linked(here):
    folder = here.take("writer")
    (folder / "condition_encoder").rename(here.folder / "elsewhere")
    (folder / "condition_encoder").symlink_to(here.folder / "elsewhere")
    return folder


SOUND_ENCODERS = {
    "in float32": _as_type(torch.float32),
    "in bf16": _as_type(torch.bfloat16),
    "entering by tokens": _entering_by_tokens,
    "that is a link to another folder": _linked,
}


# a base's own text encoder

TEXT_WEIGHTS = "text_encoder/model.safetensors"


def _text(change: Callable[[dict], dict]):
    def lay(here):
        folder = here.take("plain")
        tensors = load_file(folder / TEXT_WEIGHTS)
        save_file(change(tensors), folder / TEXT_WEIGHTS, {"format": "pt"})
        return folder

    return lay


def _first_layer_gone(tensors):
    return {name: value for name, value in tensors.items() if ".layer.0.attention" not in name}


def _wider(tensors):
    return {name: value.repeat_interleave(2, dim=0).contiguous() for name, value in tensors.items()}


TEXT_ENCODERS = {
    "without a layer": (_text(_first_layer_gone), "expected the weights of BertModel, got none for"),
    "of something else": (
        _text(lambda tensors: {"a": torch.zeros(2)}),
        "expected the weights of BertModel, got none for",
    ),
    "of other shapes": (_text(_wider), "expected the weights of its config.json"),
    "of no class": (
        changed("plain", "model_index.json", lambda found: {**found, "text_encoder": ["transformers", "Nobody"]}),
        "expected a class of transformers",
    ),
}


# Japanese: the encoder and the dictionaries

TOKENIZER, JAPANESE = "tokenizer/tokenizer.json", "text_encoder/model.safetensors"


def _japanese(here, folder):
    text = load_japanese(folder)
    assert text.encode(["火の玉"]).shape[0] == 1


ENCODERS_OF_JAPANESE = {
    "weights not fetched with Git LFS": (replaced("japanese", JAPANESE, bytes_of(POINTER)), "git lfs pull"),
    "weights gone": (replaced("japanese", JAPANESE, nothing), "are missing from this installation"),
    "weights cut off": (cut("japanese", JAPANESE), "model.safetensors"),
    "weights of something else": (
        replaced("japanese", JAPANESE, lambda path: save_file({"a": torch.zeros(2)}, path)),
        "text_encoder",
    ),
    "a web page as the weights": (replaced("japanese", JAPANESE, bytes_of(PAGE)), "an HTML page"),
    "the tokenizer gone": (replaced("japanese", "tokenizer", nothing), "tokenizer"),
    "the tokenizer cut off": (cut("japanese", TOKENIZER), "tokenizer"),
    "the tokenizer a list": (replaced("japanese", TOKENIZER, bytes_of(b"[1]")), "tokenizer"),
    "the tokenizer not fetched with Git LFS": (replaced("japanese", TOKENIZER, bytes_of(POINTER)), "tokenizer"),
    "the settings cut off": (cut("japanese", "text_encoder/config.json"), "config.json"),
    "layers without end": (
        changed("japanese", "text_encoder/config.json", lambda config: {**config, "num_hidden_layers": 10**9}),
        "num_hidden_layers",
    ),
    "no folder": (lambda here: here.folder / "none", "are missing from this installation"),
}


def _dictionary_of(make: Callable[[Path], object], read: Callable[[], object]):
    """Reads a dictionary of a package that is not whole."""

    def act(here, _):
        with pytest.MonkeyPatch.context() as patch:
            for module in (dictionary, japanese):
                patch.setattr(module, "package_file", lambda package, name: here.folder / "jamdict.db")
            read()

    def lay(here):
        make(here.folder / "jamdict.db")

    return act, lay


DICTIONARIES: dict[str, Callable[[Path], object]] = {
    "not fetched with Git LFS": bytes_of(POINTER),
    "a web page": bytes_of(PAGE),
    "empty": bytes_of(b""),
    "an empty database": lambda path: __import__("sqlite3").connect(path).executescript("CREATE TABLE a (b);"),
    "its first page alone": bytes_of(b"SQLite format 3\0" + bytes(4_000)),
    "a folder": Path.mkdir,
}
READERS = {
    "the dictionary of words": lambda: japanese.load_words.__wrapped__(),
    "the dictionary of names": lambda: japanese.load_names.__wrapped__(),
    "the dictionary of characters": lambda: dictionary.load_characters.__wrapped__(),
}


# folders of fonts

STYLE = Style("mine", "regular", "pen", "me", "mine.*")


def _fonts(**files: Callable[[Path], object]):
    def lay(here):
        folder = here.folder / "fonts"
        folder.mkdir()
        for name, make in files.items():
            make(folder / name.replace("__", "."))
        return folder

    return lay


def _face(here, folder):
    build_calligraphy_folder(here.folder / "built", [folder], [STYLE], KNOWN)


def _font(path):
    shutil.copy(default_font(), path)


def _half_font(path):
    path.write_bytes(default_font().read_bytes()[:200_000])


FONTS = {
    "a folder that is not there": (lambda here: here.folder / "none", "no font for style mine"),
    "an empty folder": (_fonts(), "no font for style mine"),
    "a font of another name": (_fonts(yours__ttf=_font), "no font for style mine"),
    "a font in place of the folder": (lambda here: _font(here.folder / "fonts") or here.folder / "fonts", "no font"),
    "an empty font": (_fonts(mine__ttf=bytes_of(b"")), "mine.ttf"),
    "a font that is a web page": (_fonts(mine__ttf=bytes_of(PAGE)), "mine.ttf"),
    "a font not fetched with Git LFS": (_fonts(mine__woff2=bytes_of(POINTER)), "mine.woff2"),
    "half a font": (_fonts(mine__ttf=_half_font), "mine.ttf"),
    "a photo named as a font": (_fonts(mine__otf=lambda path: page("永").save(path, "PNG")), "mine.otf"),
    "zeros with a font's head": (_fonts(mine__ttf=bytes_of(b"\0\1\0\0" + bytes(400))), "mine.ttf"),
    "a pipe as a font": (_fonts(mine__ttf=os.mkfifo), "mine.ttf"),
    "a device as a font": (_fonts(mine__ttf=lambda path: path.symlink_to("/dev/zero")), "mine.ttf"),
    "a link to a font that is gone": (_fonts(mine__ttf=lambda path: path.symlink_to("gone")), "mine.ttf"),
    "a folder named as a font": (_fonts(mine__ttf=Path.mkdir), "mine.ttf"),
    "a sound font and half of another": (_fonts(mine__ttf=_font, mine__otf=_half_font), "mine.otf"),
}


def _folder_there(here):
    (here.folder / "built").mkdir()
    (here.folder / "built" / "mine.txt").write_text("mine")
    return _fonts(mine__ttf=_font)(here)


def _no_character(here, folder):
    build_calligraphy_folder(here.folder / "built", [folder], [STYLE], "😀\ue000")


def _no_characters(here, folder):
    build_calligraphy_folder(here.folder / "built", [folder], [STYLE], "")


# `make page` with a model of one's own


def page_builder():
    """app/page/build.py, which is no module of the package."""
    name = "kanjilab_page_build"
    if name not in sys.modules:
        path = Path(__file__).parents[2] / "app" / "page" / "build.py"
        spec = importlib.util.spec_from_file_location(name, path)
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


def _page(here, model):
    page_builder().require_drawable(model)


def _facts(**changes: Any):
    return changed("onnx", "kanjilab.json", lambda facts: {**facts, **changes})


def _lacking(*names: str):
    return changed("onnx", "kanjilab.json", lambda facts: {k: v for k, v in facts.items() if k not in names})


MODELS = {
    "that is not there": (lambda here: here.folder / "none", "kanjilab.json"),
    "that is a file": (lambda here: page("永").save(here.folder / "a.png") or here.folder / "a.png", "kanjilab.json"),
    "of a pipeline": (lambda here: here.sound("plain"), "kanjilab.json"),
    "without its numbers": (replaced("onnx", "kanjilab.json", nothing), "kanjilab.json"),
    "with numbers cut off": (cut("onnx", "kanjilab.json"), "kanjilab.json"),
    "with numbers as a list": (changed("onnx", "kanjilab.json", lambda facts: [facts]), "kanjilab.json"),
    "with a web page as its numbers": (replaced("onnx", "kanjilab.json", bytes_of(PAGE)), "kanjilab.json"),
    "with a pipe as its numbers": (replaced("onnx", "kanjilab.json", os.mkfifo), "kanjilab.json"),
    "of a later version": (_facts(format=2), "format"),
    "without its channels": (_lacking("channels"), "None channels"),
    "of colours": (_facts(channels=3), "3 channels"),
    "without its schedule": (_lacking("schedule"), "schedule"),
    "with a schedule cut off": (_facts(schedule={"prediction": "epsilon"}), "schedule"),
    "with a schedule in words": (_facts(schedule="linear"), "schedule"),
    "without its sampling": (_lacking("sampling"), "sampling"),
    "with a sampler that nobody knows": (_facts(sampling={"sampler": "euler"}), "sampl"),
    "with a sampling of other fields": (_facts(sampling={"eta": 1}), "sampling"),
    "with latents of two sides": (_facts(latent_shape=[4, 8]), "latent_shape"),
    "with latents in words": (_facts(latent_shape="4x8x8"), "latent_shape"),
    "without its scale": (_lacking("scaling_factor"), "scaling_factor"),
    "without a tokenizer": (replaced("onnx", "tokenizer", nothing), "tokenizer.json"),
    "with a tokenizer cut off": (cut("onnx", TOKENIZER), "tokenizer.json"),
    "with a tokenizer as a list": (replaced("onnx", TOKENIZER, bytes_of(b"[1]")), "tokenizer.json"),
    "with a tokenizer without a model": (replaced("onnx", TOKENIZER, bytes_of(b"{}")), "1 channels and None"),
    "with a tokenizer of pairs": (
        changed("onnx", TOKENIZER, lambda found: {**found, "model": {"type": "BPE"}}),
        "1 channels and BPE",
    ),
    "without a decoder": (replaced("onnx", "decoder.onnx", nothing), "decoder.onnx"),
    "with an empty denoiser": (replaced("onnx", "denoiser.onnx", bytes_of(b"")), "denoiser.onnx"),
    "with a denoiser not fetched with Git LFS": (replaced("onnx", "denoiser.onnx", bytes_of(POINTER)), "denoiser.onnx"),
    "with a denoiser cut off": (cut("onnx", "denoiser.onnx"), "denoiser.onnx"),
    "with a folder as its decoder": (replaced("onnx", "decoder.onnx", Path.mkdir), "decoder.onnx"),
    "without a card": (replaced("onnx", "README.md", nothing), "README.md"),
}


def _site(name: str, make: Callable[[Path], object]):
    def act(here, _):
        page_builder().build(here.folder / name, here.sound("onnx"))

    def lay(here):
        make(here.folder / name)

    return act, lay


def _mine(path):
    path.mkdir()
    (path / "thesis.tex").write_text("mine")


SITES = {
    "over a folder of something else": (*_site("site", _mine), "is no site that this command built"),
    "over a file": (*_site("site", Path.touch), "site"),
    "over a link to itself": (*_site("site", lambda path: path.symlink_to(path.name)), "site"),
}


def _adapter(form):
    return lambda here, _: here.call("export", here.sound("calligraphy run"), here.folder / "out", "--format", form)


CASES = [
    *(Case(f"encoder of skeletons: {name}", loaded, lay, says) for name, (lay, says) in ENCODERS.items()),
    *(Case(f"encoder of skeletons: {name}", loaded, lay) for name, lay in SOUND_ENCODERS.items()),
    *(
        Case(f"text encoder {name}", lambda here, folder: load_base(folder), lay, says)
        for name, (lay, says) in TEXT_ENCODERS.items()
    ),
    *(Case(f"encoder of Japanese: {name}", _japanese, lay, says) for name, (lay, says) in ENCODERS_OF_JAPANESE.items()),
    *(
        Case(f"{what}: {name}", *_dictionary_of(make, read), "jamdict.db")
        for what, read in READERS.items()
        for name, make in DICTIONARIES.items()
    ),
    *(Case(f"fonts: {name}", _face, lay, says) for name, (lay, says) in FONTS.items()),
    Case("fonts: a sound font", _face, _fonts(mine__ttf=_font), writes="built(/.*)?"),
    Case("fonts: into a folder that is there", _face, _folder_there, "built"),
    Case("fonts: characters that none has", _no_character, _fonts(mine__ttf=_font), "no character is drawn"),
    Case("fonts: no characters", _no_characters, _fonts(mine__ttf=_font), "no character is drawn"),
    *(Case(f"page with a model {name}", _page, lay, says) for name, (lay, says) in MODELS.items()),
    Case("page with a sound model", _page, lambda here: here.sound("onnx")),
    *(Case(f"page {name}", *rest) for name, rest in SITES.items()),
    *(
        Case(f"a calligraphy run as {form}", _adapter(form), says="condition encoder")
        for form in ("diffusers", "comfyui", "kohya", "peft", "pipeline")
    ),
]
