"""Folders of calligraphy, Japanese captions and their prompts, and what programs and people do to them."""

import io
import os
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

from kanjilab.data.calligraphy import build_hand_folder, known_characters, load_skeletons
from kanjilab.data.handwriting import Hand
from kanjilab.data.image_folder import open_dataset
from kanjilab.data.japanese import has_japanese, script_note
from kanjilab.experiments.writing import writing_prompt
from kanjilab.models.loading import load_base
from kanjilab.models.sampling import Sampling, sample
from kanjilab.training.calligraphy import encode_calligraphy
from tests.faults.case import Case
from tests.faults.contents import PAGE, POINTER
from tests.faults.sound import KNOWN

TWO_STEPS = Sampling("ddim", steps=2, guidance=1.0)
SHAPE = (12, 128, 16)  # of the sound folder's skeletons


def read(here, folder):
    """All that a training reads of a calligraphy folder."""
    dataset = open_dataset(folder)
    for column in ("skeleton", "typed"):
        load_skeletons(dataset, column)
    return known_characters(dataset)


def encoded(here, folder):
    encode_calligraphy(load_base(here.sound("writer")), open_dataset(folder), here.folder / "cache")


def _skeletons(make: Callable[[Path], object]):
    def lay(here):
        folder = here.take("calligraphy")
        (folder / "skeletons.npy").unlink()
        make(folder / "skeletons.npy")
        return folder

    return lay


def _array(change: Callable[[np.ndarray], np.ndarray]):
    def lay(here):
        folder = here.take("calligraphy")
        path = folder / "skeletons.npy"
        changed = change(np.load(path))
        path.unlink()
        np.save(path, changed)
        return folder

    return lay


def _table(change: Callable[[pd.DataFrame], Any]):
    """A calligraphy folder whose table somebody edited."""

    def lay(here):
        folder = here.take("calligraphy")
        path = folder / "metadata.csv"
        table = pd.read_csv(path, dtype=str, keep_default_na=False)
        changed = change(table)
        (table if changed is None else changed).to_csv(path, index=False, lineterminator="\n")
        return folder

    return lay


def _bytes(data):
    return lambda path: path.write_bytes(data)


def _half(path):
    buffer = io.BytesIO()
    np.save(buffer, np.zeros(SHAPE, np.uint8))
    path.write_bytes(buffer.getvalue()[:5_000])


def _objects(path):
    with path.open("wb") as file:
        np.save(file, np.array([{"a": 1}] * 12, object), allow_pickle=True)


def _archive(path):
    with path.open("wb") as file:
        np.savez(file, a=np.zeros(SHAPE, np.uint8))


def _set(column: str, value: str, row: int = 3):
    def change(table):
        table.loc[row, column] = value

    return _table(change)


def _lies(path):
    """A header that claims a trillion skeletons."""
    header = b"{'descr': '|u1', 'fortran_order': False, 'shape': (1000000000000, 128, 16), }"
    text = header.ljust(117) + b"\n"
    path.write_bytes(b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text)


FILES = {
    "the skeletons gone": (lambda path: None, "skeletons.npy"),
    "the skeletons empty": (_bytes(b""), "skeletons.npy"),
    "the skeletons cut off": (_half, "skeletons.npy"),
    "the skeletons not fetched with Git LFS": (_bytes(POINTER), "skeletons.npy"),
    "a web page as the skeletons": (_bytes(PAGE), "skeletons.npy"),
    "a pickle as the skeletons": (_objects, "skeletons.npy"),
    "a zip archive as the skeletons": (_archive, "skeletons.npy"),
    "a trillion skeletons": (_lies, "skeletons.npy"),
    "a folder as the skeletons": (Path.mkdir, "skeletons.npy"),
    "a pipe as the skeletons": (os.mkfifo, "skeletons.npy"),
    "a device as the skeletons": (lambda path: path.symlink_to("/dev/zero"), "skeletons.npy"),
    "a link to itself as the skeletons": (lambda path: path.symlink_to(path.name), "skeletons.npy"),
}
ARRAYS = {
    "skeletons unpacked": (lambda stored: np.unpackbits(stored, axis=-1), "expected \\(M, 128, 16\\) uint8"),
    "skeletons as true and false": (lambda stored: stored.astype(bool), "expected \\(M, 128, 16\\) uint8"),
    "skeletons as floats": (lambda stored: stored.astype(np.float32), "expected \\(M, 128, 16\\) uint8"),
    "skeletons of another size": (lambda stored: stored[:, ::2, ::2], "expected \\(M, 128, 16\\) uint8"),
    "one skeleton alone": (lambda stored: stored[0], "expected \\(M, 128, 16\\) uint8"),
    "a number in place of skeletons": (lambda stored: np.uint8(7), "expected \\(M, 128, 16\\) uint8"),
    "fewer skeletons than images": (lambda stored: stored[:6], "expected a row of skeletons.npy"),
    "no skeletons": (lambda stored: stored[:0], "expected a row of skeletons.npy"),
}
TABLES = {
    "no column of skeletons": (_table(lambda t: t.drop(columns="skeleton")), "expected the column skeleton"),
    "no column of typed ones": (_table(lambda t: t.drop(columns="typed")), "expected the column typed"),
    "no column of characters": (_table(lambda t: t.drop(columns="character")), "expected the column character"),
    "columns in capitals": (_table(lambda t: t.rename(columns={"skeleton": "Skeleton"})), "expected the column skel"),
    "a skeleton below zero": (_set("skeleton", "-1"), "expected a row of skeletons.npy"),
    "a skeleton beyond the last": (_set("skeleton", "12"), "expected a row of skeletons.npy"),
    "a skeleton of 30 digits": (_set("skeleton", "9" * 30), "expected a row of skeletons.npy"),
    "half a skeleton": (_set("skeleton", "1.5"), "expected a row of skeletons.npy"),
    "a skeleton in words": (_set("typed", "three"), "expected a row of skeletons.npy"),
    "a skeleton left empty": (_set("typed", ""), "expected a row of skeletons.npy"),
    "a skeleton that is no number": (_set("skeleton", "nan"), "expected a row of skeletons.npy"),
    "a skeleton without end": (_set("skeleton", "inf"), "expected a row of skeletons.npy"),
    "two characters in one": (_set("character", "永国"), "expected one sign for each image"),
    "a character left empty": (_set("character", ""), "expected one sign for each image"),
    "a character by its codepoint": (_set("character", "U+6C38"), "expected one sign for each image"),
}
ENCODED = {
    "no column of styles": (_table(lambda t: t.drop(columns="style")), "expected the column style"),
    "no column of characters": (_table(lambda t: t.drop(columns="character")), "expected the column character"),
    "skeletons cut off": (_skeletons(_half), "skeletons.npy"),
}
FINE_TABLES = {
    "rows in another order": _table(lambda t: t.iloc[::-1]),
    "whole numbers written as floats": _table(lambda t: t.assign(skeleton=[f"{int(s)}.0" for s in t["skeleton"]])),
    "a column more": _table(lambda t: t.assign(note="mine")),
    "an image left out": _table(lambda t: t.iloc[:-1]),
    "a character that the base does not know": _set("character", "心"),
}


def _fine(here, folder):
    assert set(read(here, folder)) <= set(KNOWN)


# a hand's folder


HANDS = {
    "a hand of a sign without a typed form": ("\ue000",),
    "a hand of one glyph in three copies": ("永", "永", "永"),
    "a hand of kana and letters": ("あ", "A", "7"),
}


def _hand(signs):
    def act(here, _):
        glyph = np.full((128, 128), 255, np.uint8)
        glyph[30:90, 60:68] = 0
        hand = Hand(signs, np.stack([glyph] * len(signs)), ("a.jpg",) * len(signs), ())
        dataset = build_hand_folder(here.folder / "hand", hand, "by own hand", variants=2)
        assert load_skeletons(dataset).shape == (2 * len(signs), 128, 16)

    return act


def _hand_there(here, _):
    glyph = np.zeros((1, 128, 128), np.uint8)
    build_hand_folder(here.folder / "hand", Hand(("永",), glyph, ("a.jpg",), ()), "by own hand", variants=2)


def _hand_before(here):
    shutil.copytree(here.sound("calligraphy"), here.folder / "hand")


# prompts that carry arrays


def _draw(**arrays: Any):
    def act(here, _):
        base = load_base(here.sound("writer"))
        prompt = writing_prompt(base, "brush")
        sample(base, [type(prompt)("brush", {**prompt.arrays, **arrays})], [0], TWO_STEPS)

    return act


def _two(here, _):
    base = load_base(here.sound("writer"))
    prompt = writing_prompt(base, "brush")
    other = type(prompt)("brush", {"skeleton": prompt.arrays["skeleton"]})
    sample(base, [prompt, other], [0], TWO_STEPS)


BITS = np.zeros((128, 16), np.uint8)
ARRAYS_DRAWN = {
    "a skeleton that is not packed": (dict(skeleton=np.zeros((128, 128))), "skeleton: expected packed bits"),
    "a skeleton of another size": (dict(typed=np.zeros((64, 8), np.uint8)), "typed: expected packed bits"),
    "an index beyond the last": (dict(index=np.array(3, np.float32)), "index: expected 0"),
    "an index below zero": (dict(index=np.array(-1, np.float32)), "index: expected 0"),
}


# Japanese captions and prompts

NOTES = {
    "half-width katakana": ("ﾛﾎﾞｯﾄ", True, "Read as Japanese."),
    "kana in NFD": ("か\u3099く", True, "Read as Japanese."),
    "full-width letters": ("Ｆｉｒｅ", False, ""),
    "Japanese and English": ("火の ball", True, "its Latin letters too"),
    "a mark of repetition alone": ("々", True, "Read as Japanese."),
    "a compatibility ideograph": ("\uf900", True, "Read as Japanese."),
    "a character of a later plane": ("\U00020089", True, "Read as Japanese."),
    "Hangul beside kanji": ("火 물", True, "Hangul letters are not understood"),
    "punctuation of Japanese alone": ("「」。", False, ""),
    "an emoji": ("🔥", False, ""),
    "half of a surrogate pair": ("\ud842", False, ""),
    "signs without names": ("\U000f0000", False, ""),
}


def _note(text, japanese, said):
    def act(here, _):
        assert has_japanese(text) == japanese and said in script_note(text)
        assert bool(script_note(text)) == bool(said)

    return act


def _captioned(*captions: str, encoding: str = "utf-8"):
    """An image folder with these captions."""

    def lay(here):
        folder = here.take("images")
        rows = []
        for number, text in enumerate(captions):
            values = np.full((16, 16), 255, np.uint8)
            values[4 + number, 4:12] = 0
            Image.fromarray(values).save(folder / f"{number}.png")
            rows.append((f"{number}.png", text))
        table = pd.DataFrame([("a.png", "water"), *rows], columns=["file_name", "text"])
        (folder / "metadata.csv").write_bytes(table.to_csv(index=False).encode(encoding))
        return folder

    return lay


def _same(*captions: str):
    def act(here, folder):
        assert open_dataset(folder).table["text"].tolist() == ["water", *captions]

    return act


CAPTIONS = {
    "katakana of half width": ("ﾛﾎﾞｯﾄ",),
    "kana in NFD and NFC": ("か\u3099", "が"),
    "vertical text with ideographic spaces": ("火　の　玉",),
    "a caption of two lines": ("火\nの玉",),
    "quotes of three kinds": ("「火」", '"fire"', "“fire”"),
    "an emoji with a skin": ("👍🏽",),
    "right to left": ("\u202eabc\u202c",),
}


def _zipped(here):
    """A folder as Windows' Explorer packs it, with names in Shift JIS."""
    folder = here.take("images")
    path = here.folder / "images.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for file in folder.iterdir():
            archive.write(file, file.name)
    shutil.rmtree(folder)
    return path


CASES = [
    *(Case(f"calligraphy: {name}", read, _skeletons(make), says) for name, (make, says) in FILES.items()),
    *(Case(f"calligraphy: {name}", read, _array(change), says) for name, (change, says) in ARRAYS.items()),
    *(Case(f"calligraphy: {name}", read, lay, says) for name, (lay, says) in TABLES.items()),
    *(
        Case(f"calligraphy, encoded: {name}", encoded, lay, says, writes="cache(/.*)?")
        for name, (lay, says) in ENCODED.items()
    ),
    *(Case(f"calligraphy: {name}", _fine, lay) for name, lay in FINE_TABLES.items()),
    Case("calligraphy: plain images", read, lambda here: here.take("images"), "expected the column|skeletons.npy"),
    *(Case(name, _hand(signs), writes="hand(/.*)?") for name, signs in HANDS.items()),
    Case("a hand over a folder that is there", _hand_there, _hand_before, "exists already"),
    *(Case(f"prompt with {name}", _draw(**arrays), says=says) for name, (arrays, says) in ARRAYS_DRAWN.items()),
    Case("prompts with different arrays", _two, says="expected arrays"),
    *(Case(f"a note on {name}", _note(*rest)) for name, rest in NOTES.items()),
    *(Case(f"captions: {name}", _same(*texts), _captioned(*texts)) for name, texts in CAPTIONS.items()),
    *(
        Case(f"captions in {encoding}", _same("火"), _captioned("火", encoding=encoding), "metadata.csv")
        for encoding in ("shift_jis", "euc_jp", "utf-16")
    ),
    Case("captions in UTF-8 with a byte-order mark", _same("火"), _captioned("火", encoding="utf-8-sig")),
    Case("a zip file in place of the folder", lambda here, path: open_dataset(path), _zipped, "images.zip"),
]
