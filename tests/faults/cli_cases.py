"""What people type and bring to `kanjilab coin`, `write`, `data` and `export`, and what their disks do."""

import errno
import json
import os
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from kanjilab.cli import coin_folder
from kanjilab.core import storage
from kanjilab.export import onnx_folder
from tests.faults.case import Case, Here
from tests.faults.pictures import RIGHT, WRONG, brought, lines, noise, saved
from tests.faults.sound import COINED
from tests.photos import page, sheet

WRITTEN = r"runs(/.*)?|out\.(png|svg)"


def full_disk(module, name: str, after: int = 0) -> pytest.MonkeyPatch:
    """The disk is full from the so-manieth file on that a module writes."""
    patch, calls = pytest.MonkeyPatch(), []
    write = getattr(module, name)

    def refuse(path, *rest):
        calls.append(path)
        if len(calls) > after:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        return write(path, *rest)

    patch.setattr(module, name, refuse)
    return patch


# kanjilab write


def write(*arguments) -> Callable[[Here, object], object]:
    """Writes with the tiny base that reads skeletons."""
    return lambda here, _: here.call("write", *arguments, "--base", here.sound("writer"))


def written(*arguments):
    """The same, and what it wrote is a picture and well-formed XML."""

    def act(here, _):
        png, svg = here.call("write", *arguments, "--base", here.sound("writer")).split("\n")[:2]
        assert Path(png).read_bytes().startswith(b"\x89PNG")
        ElementTree.parse(svg)

    return act


TYPED = {  # that is written
    "an ideographic space between lines": ["永　国"],
    "a tab and an end of line": ["永\t国\n心"],
    "kana in NFD, as macOS names files": ["か\u3099き\u3099"],
    "a letter with a combining accent": ["e\u0301"],
    "half-width katakana": ["ｱｲ"],
    "full-width letters": ["Ａ１"],
    "ASCII": ["A1!"],
    "a compatibility ideograph": ["\uf900"],
    "a character of a later plane": ["\U00020089"],
    "a pair that no character has": ["⿰木鳥"],
    "a pair below one another": ["⿱竹馬"],
    "signs of XML": ["<&>"],
    "one character six times": ["永" * 6],
    "a style of nobody": ["永", "--style", "in the style of nobody"],
    "a style in Japanese": ["永", "--style", "楷書、筆"],
    "an empty style": ["永", "--style", ""],
    "a style with tags": ["永", "--style", "<b>&amp;\"'</b>"],
    "a style with an end of line": ["永", "--style", "regular script,\nbrush"],
    "a style with a control sign": ["永", "--style", "regular\x1b[31m script\x00"[:-1]],
    "a style with a noncharacter": ["永", "--style", "brush\uffff"],
    "the largest seed of 63 bits": ["永", "--seed", str(2**63 - 1)],
    "no guidance by the skeleton": ["永", "--skeleton-guidance", "0"],
    "right to left signs around it": ["永", "--style", "\u202ebrush\u202c"],
}
UNTYPED = {  # that is refused
    "nothing": ([""], "expected 1 to 200 characters"),
    "blanks alone": ([" \t　\n"], "expected 1 to 200 characters"),
    "more than a page": (["永" * 201], "expected 1 to 200 characters"),
    "a book": (["永" * 50_000], "expected 1 to 200 characters"),
    "an emoji": (["永😀"], "no glyph for"),
    "a family of emoji, joined": (["👨\u200d👩\u200d👧"], "no glyph for"),
    "an ideographic variation sequence": (["葛\U000e0100"], "U\\+E0100"),
    "a byte-order mark from a text file": (["\ufeff永"], "U\\+FEFF"),
    "a zero-width space": (["永\u200b国"], "U\\+200B"),
    "a private sign": (["\ue000"], "no glyph for"),
    "a noncharacter": (["\uffff"], "no glyph for"),
    "a control sign": (["永\x07"], "U\\+0007"),
    "half of a surrogate pair": (["\ud842"], "U\\+D842"),
    "bytes that are no UTF-8": (["\udce6\udcb0"], "U\\+DCE6"),
    "Arabic": (["\u0633\u0644"], "no glyph for"),
    "Thai": (["\u0e01\u0e34"], "no glyph for"),
    "a layout alone": (["⿰"], "expected a layout and two parts"),
    "a layout with one part": (["⿰木"], "expected a layout and two parts"),
    "a layout within a layout": (["⿰⿱木心鳥"], "expected a layout and two parts"),
    "a layout of three": (["⿲木心鳥"], "expected a layout of ⿰"),
    "parts in no place of theirs": (["⿰一一"], "no characters have these parts"),
    "a part that is a letter": (["⿰木A"], "no characters have these parts"),
    "an unknown character by its index": (["心", "--by-index"], "'心' has no index"),
    "a pair by its index": (["⿰木鳥", "--by-index"], "has no index"),
    "two characters for one skeleton": (["永国", "--skeleton", "none.png"], "leads one character"),
    "guidance that is no number": (["永", "--guidance", "nan"], "guidance must be from 1"),
    "guidance without end": (["永", "--guidance", "inf"], "guidance must be from 1"),
    "guidance in words": (["永", "--guidance", "strong"], "should be a valid number"),
    "guidance of the skeleton below zero": (["永", "--skeleton-guidance", "-1"], "array_guidance must be"),
    "guidance of the skeleton that is no number": (["永", "--skeleton-guidance", "nan"], "array_guidance must be"),
    "a seed below zero": (["永", "--seed", "-1"], "greater than or equal to 0"),
    "a seed of 80 bits": (["永", "--seed", str(2**80)], "less than or equal to 9223372036854775807"),
    "a style of 100,000 letters": (["永", "--style", "a" * 100_000], "expected a prompt"),
    "a style of half a surrogate pair": (["永", "--style", "\ud842"], "expected a prompt"),
    "an option that is not there": (["永", "--colour", "red"], "No such option"),
    "two texts": (["永", "国"], "unexpected extra argument"),
}
BASES = {
    "a base that reads no skeletons": (lambda here: here.sound("plain"), "reads no skeletons"),
    "a base that is not there": (lambda here: here.folder / "none", "expected a folder with model_index.json"),
    "a base without a name": (lambda here: "", "expected the name of a base"),
    "a base of the Hub without a network": (lambda here: "someone/calligraphy", "the Hub cannot be reached"),
    "a pickled base": (lambda here: "calligraphy.ckpt", "expected safetensors, got a .ckpt file"),
    "a picture as the base": (lambda here: brought(here.folder, RIGHT["a BMP"]), "expected a folder"),
    "a run as the base": (lambda here: here.sound("run"), "expected a folder with model_index.json"),
}


def _write_with(here, base):
    here.call("write", "永", "--base", base)


def _aside(name: str, make: Callable[[Path], object]):
    """Something is in the way of a file."""

    def lay(here):
        (here.folder / name).parent.mkdir(parents=True, exist_ok=True)
        make(here.folder / name)

    return lay


def _full(module, name, arguments, after=0):
    def act(here, _):
        patch = full_disk(module, name, after)
        try:
            here.call(*arguments(here))
        finally:
            patch.undo()

    return act


OUT = {
    "a folder in place of the picture": ("out.png", Path.mkdir, ["--out", "out.png"], "out.png"),
    "a folder in place of the outlines": ("out.svg", Path.mkdir, ["--out", "out.png"], "out.svg"),
    "a file in place of the folder": ("there", Path.touch, ["--out", "there/out.png"], "there is no folder"),
    "a file in place of runs": ("runs", Path.touch, [], "runs is no folder"),
    "a name of 300 letters": ("kept", Path.touch, ["--out", "a" * 300 + ".png"], "name"),
    "a folder as the name": ("kept", Path.touch, ["--out", "."], "name"),
    "a link to itself": ("out.png", lambda path: path.symlink_to("out.png"), ["--out", "out.png/out.png"], "out.png"),
}


def _two_versions(here, _):
    """Two names that differ behind a dot are two pictures."""
    for name in ("page.v1", "page.v2"):
        here.call("write", "永", "--base", here.sound("writer"), "--out", name)
    assert {path.name for path in here.folder.iterdir()} == {
        f"page.v{n}.{kind}" for n in "12" for kind in ("png", "svg")
    }


def _skeleton(here, path):
    here.call("write", "--base", here.sound("writer"), "--skeleton", path, "--out", here.folder / "out.png")


def _file(name: str, make: Callable[[Path], object]):
    def lay(here):
        make(here.folder / name)
        return here.folder / name

    return lay


NO_PICTURES: dict[str, tuple[Callable[[Path], object], str]] = {
    "a picture that is not there": (lambda path: None, "is missing"),
    "a folder as the picture": (Path.mkdir, "got a folder"),
    "a pipe as the picture": (os.mkfifo, "got a pipe"),
    "a device as the picture": (lambda path: path.symlink_to("/dev/zero"), "got a device"),
    "a link to itself as the picture": (lambda path: path.symlink_to(path.name), "cannot be followed"),
}


# a hand


def _hand(here, folder):
    return here.call("write", "国", "--base", here.sound("writer"), "--hand", folder, "--out", here.folder / "out.png")


def _photos(**files: Callable[[Path], object]):
    """A folder with one sound photo and others beside it; dots are written as __."""

    def lay(here):
        folder = here.take("photos")
        for name, make in files.items():
            make(folder / name.replace("__", "."))
        return folder

    return lay


def _said(*words):
    """The hand is learned, and what could not be read is named."""

    def act(here, folder):
        said = _hand(here, folder)
        assert all(word in said for word in words), said

    return act


def _as(picture):
    return lambda path: path.write_bytes(saved(picture, "JPEG"))


def _bytes(data):
    return lambda path: path.write_bytes(data)


UNREAD = {  # beside a sound photo: named, and the hand is learned from the rest
    "a photo that is empty": (dict(心__jpg=_bytes(b"")), ["心.jpg", "is 0 bytes"]),
    "a photo of an iPhone": (dict(心__heic=_bytes(WRONG["a photo of an iPhone, HEIC"][1]())), ["心.heic"]),
    "a text among the photos": (dict(心__txt=_bytes(b"hello")), ["心.txt", "not an image"]),
    "a photo whose name says nothing": (dict(img_1__jpg=_as(page("心"))), ["img_1.jpg"]),
    "a second copy of a photo": ({"永 (2)__jpg": _as(page("永"))}, []),
    "a sheet with too few boxes": (dict(春夏秋冬__jpg=_as(sheet("春夏秋"))), ["4 characters, but 3 boxes"]),
    "a sheet without boxes": (dict(春夏__jpg=_as(page("春"))), ["2 characters, but"]),
    "a blank page": (dict(心__jpg=_as(lines(ink=235))), ["心: no ink"]),
    "a photo of the table": (dict(心__jpg=_bytes(saved(noise(), "JPEG"))), ["心"]),
    "a pipe among the photos": (dict(心__jpg=os.mkfifo), ["心.jpg", "a pipe"]),
    "a link to a photo that is gone": (dict(心__jpg=lambda path: path.symlink_to("gone.jpg")), ["心.jpg"]),
    "a link to itself": (dict(心__jpg=lambda path: path.symlink_to(path.name)), ["心.jpg"]),
    "a folder of more photos": (dict(心=Path.mkdir), ["心", "a folder"]),
    "a folder of macOS's own": (dict(__DS_Store=_bytes(b"\0")), []),
    "a name in NFD": ({"か\u3099__jpg": _as(page("が"))}, []),
}


def _only(**files):
    def lay(here):
        folder = here.folder / "photos"
        folder.mkdir()
        for name, make in files.items():
            make(folder / name.replace("__", "."))
        return folder

    return lay


NO_HANDS = {
    "a hand that is not there": (lambda here: here.folder / "none", "expected a folder of photos"),
    "a photo in place of its folder": (lambda here: brought(here.folder, RIGHT["a BMP"], "永"), "expected a folder"),
    "an empty folder of photos": (_only(), "got none that can be read"),
    "hidden files alone": (_only(__永__jpg=_as(page("永"))), "got none that can be read"),
    "photos named by a camera": (_only(IMG_0001__jpg=_as(page("永"))), "IMG_0001.jpg"),
    "photos named by numbers": (_only(**{"1__jpg": _as(page("永"))}), "its name lists no characters"),
    "blank pages alone": (_only(永__jpg=_as(lines(ink=235))), "永: no ink"),
    "a zip of photos": (_only(永__zip=_bytes(b"PK\x03\x04" + bytes(60))), "not an image"),
    "pipes alone": (_only(永__jpg=os.mkfifo), "a pipe"),
}


def _hand_kept(damage: Callable[[Path], object]):
    """A hand that was learned before, of which something is damaged."""

    def lay(here):
        folder = here.take("photos")
        _hand(here, folder)
        damage(next(path for path in (here.folder / "runs/hands").iterdir() if path.is_dir()))
        return folder

    return lay


def _cut(name: str):
    def damage(folder):
        path = next(folder.glob(name))
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])

    return damage


def _gone(name: str):
    return lambda folder: next(folder.glob(name)).unlink()


LEARNED = {
    "the skeletons cut off": (_cut("data/skeletons.npy"), "skeletons.npy"),
    "the skeletons gone": (_gone("data/skeletons.npy"), "skeletons.npy"),
    "the table of images gone": (_gone("data/metadata.csv"), "metadata"),
    "one image gone": (_gone("data/images/000_03.png"), "000_03.png"),
    "the settings of the run cut off": (_cut("run/settings.json"), "settings.json"),
}
REMADE = {"what was encoded cut off": _cut("encoded/*/*.npy")}


# kanjilab coin


def coin(*arguments):
    return lambda here, _: here.call("coin", "--noises", "1", "--keep", "1", "--out", here.folder / "out", *arguments)


PHRASES = {  # that are read
    "tags in the phrase": ["<script>alert(1)</script> fire"],
    "a path as the phrase": ["../../etc/passwd"],
    "digits alone": ["1984"],
    "an emoji": ["🔥 jewel"],
    "punctuation alone": ["?!"],
    "an end of line in the phrase": ["fire\njewel"],
    "a control sign in the phrase": ["fire\x1b[31m jewel"],
    "an accent in NFD": ["cafe\u0301"],
    "half-width katakana": ["ﾛﾎﾞｯﾄ"],
    "a mark of repetition": ["人々"],
    "parts in another order and case": ["x", "--parts", " FIRE + Jewel "],
    "parts by their signs": ["x", "--parts", "火+玉"],
    "a full-width plus": ["x", "--parts", "fire＋jewel"],
    "a part in its form beside others": ["x", "--parts", "氵+鳥"],
    "a layout by its sign": ["x", "--parts", "fire+jewel", "--layout", "⿰"],
}
NO_PHRASES = {
    "an empty phrase": ([""], "expected a phrase, got none"),
    "a phrase of blanks": (["  　\t"], "expected a phrase, got none"),
    "Cyrillic": (["огонь"], "Cyrillic letters are not understood"),
    "Hangul": (["물고기"], "Hangul letters are not understood"),
    "Arabic": (["\u0646\u0627\u0631"], "Arabic letters are not understood"),
    "a phrase of half a surrogate pair": (["fire \ud842"], "expected a prompt"),
    "a phrase of 100,000 letters": (["fire " * 20_000], "expected a prompt"),
    "one part": (["x", "--parts", "fire"], "expected two parts"),
    "three parts": (["x", "--parts", "fire+water+tree"], "expected two parts"),
    "a plus alone": (["x", "--parts", "+"], "expected two parts"),
    "ten thousand parts": (["x", "--parts", "fire+" * 10_000], "expected two parts"),
    "a part misspelt": (["x", "--parts", "fyre+jewel"], "no part of characters is called 'fyre'"),
    "a part of 50,000 letters": (["x", "--parts", "a" * 50_000 + "+fire"], "no part of characters"),
    "a part that is an emoji": (["x", "--parts", "🔥+jewel"], "no part of characters"),
    "a part that is kana": (["x", "--parts", "か+火"], "no part of characters"),
    "a word of two kanji as a part": (["x", "--parts", "火玉+水"], "no part of characters"),
    "parts that never stand beside each other": (["x", "--parts", "lid+walk"], "are never in two slots that fit"),
    "parts of a character that exists": (["x", "--parts", "tree+tree", "--layout", "⿰"], "make a character already"),
    "a slot as a part": (["x", "--parts", "left: fire+right: jewel"], "no part of characters"),
    "a layout of three": (["x", "--layout", "⿲"], "expected a layout of"),
    "a layout in capitals": (["x", "--layout", "LEFT-RIGHT"], "expected a layout of"),
    "two layouts": (["x", "--layout", "⿰⿱"], "expected a layout of"),
    "a seed below zero": (["x", "--seed", "-1"], "greater than or equal to 0"),
    "a seed of 80 bits": (["fire", "--seed", str(2**80)], "less than or equal to 9223372036854775807"),
    "more noises than seeds are left": (
        ["fire", "--seed", str(2**63 - 1), "--noises", "2"],
        "expected seeds of at most",
    ),
    "noises in words": (["x", "--noises", "many"], "should be a valid integer"),
}
CALL = ["coin", COINED["phrase"], "--noises", "2", "--keep", "2"]


def _coined_before(damage: Callable[[Path], object]):
    """A folder that this very call coined before, of which something is damaged."""

    def lay(here):
        folder = here.take("coined")
        found = json.loads((folder / "coin.json").read_text())
        from kanjilab import __version__
        from kanjilab.data.typeset import SLOTS_OF_LAYOUT

        options = {"parts": "", "layouts": tuple(SLOTS_OF_LAYOUT), "noises": 2, "keep": 2, "seed": 0}
        found["call"] = {"phrase": COINED["phrase"], "base": "writer", "version": __version__, **options}
        (folder / "coin.json").write_text(json.dumps(found))
        damage(folder)
        return folder

    return lay


def _coin_again(here, folder):
    here.call(*CALL, "--out", folder)


def _json(name: str, change: Callable[[dict], object]):
    """Changes what a JSON file says; what the change returns is put in its place, if anything."""

    def damage(folder):
        path = folder / name
        found = json.loads(path.read_text())
        path.write_text(json.dumps(change(found) or found))

    return damage


def _text(name: str, text: str):
    return lambda folder: (folder / name).write_text(text)


COIN_FOLDERS = {
    "coined before: a certificate is gone": (_gone("02.json"), "02.json"),
    "coined before: a certificate is cut off": (_cut("01.json"), "01.json"),
    "coined before: a certificate is a list": (_text("01.json", "[1]"), "01.json"),
    "coined before: a certificate without verdicts": (_json("01.json", lambda one: one.pop("verdicts")), "01.json"),
    "coined before: a verdict of other fields": (
        _json("01.json", lambda one: one["verdicts"][0].update(beauty=1) or one),
        "01.json",
    ),
    "coined before: verdicts are a number": (_json("01.json", lambda one: one.update(verdicts=3) or one), "01.json"),
    "coined before: a picture is gone": (_gone("01.png"), "01.png"),
    "coined before: a picture is cut off": (_cut("01.png"), "01.png"),
    "coined before: another's picture": (
        lambda folder: (folder / "01.png").write_bytes((folder / "02.png").read_bytes()),
        "01.png",
    ),
    "coined before: the font is gone": (_gone("coined.ttf"), "coined.ttf"),
    "coined before: the font is empty": (_bytes(b""), "coined.woff2"),
    "coined before: the page is gone": (_gone("index.html"), "index.html"),
    "coined before: the outlines are gone": (_gone("02.svg"), "02.svg"),
    "coined before: the call is a list": (_text("coin.json", "[]"), "holds something else"),
    "coined before: the call is a number": (_text("coin.json", "7"), "holds something else"),
    "coined before: the call is cut off": (_cut("coin.json"), "holds something else"),
    "coined before: the call without a count": (_json("coin.json", lambda one: one.pop("glyphs") and one), "coin.json"),
    "coined before: a billion glyphs": (_json("coin.json", lambda one: one.update(glyphs=10**9)), "coin.json"),
    "coined before: no glyph": (_json("coin.json", lambda one: one.update(glyphs=0)), "coin.json"),
    "coined before: glyphs in words": (_json("coin.json", lambda one: one.update(glyphs="two")), "coin.json"),
    "coined before: with other options": (
        _json("coin.json", lambda one: one["call"].update(seed=4)),
        "holds something else",
    ),
}
COIN_FOLDERS["coined before: the font is empty"] = (
    lambda folder: (folder / "coined.woff2").write_bytes(b""),
    "coined.woff2",
)
COIN_OUT = {
    "a file in place of the folder": (Path.touch, "out", "holds something else"),
    "photos in the folder": (lambda path: path.mkdir() or (path / "a.jpg").touch(), "out", "holds something else"),
    "a link to nowhere in place of the folder": (
        lambda path: path.symlink_to("nowhere"),
        "out",
        "a link that leads nowhere",
    ),
    "a link to itself in place of the folder": (
        lambda path: path.symlink_to(path.name),
        "out",
        "a link that leads nowhere",
    ),
    "a file in place of the folder above": (Path.touch, "above", "above is no folder"),
}


def _coin_into(name: str):
    target = name if name != "above" else "above/out"
    return lambda here, _: here.call(
        "coin", "fire jewel", "--noises", "1", "--keep", "1", "--out", here.folder / target
    )


# kanjilab data, kanjilab export


LANGUAGES = {
    "captions in French": (["--language", "fr"], "language"),
    "captions in capitals": (["--language", "JA"], "language"),
    "captions in no language": (["--language", ""], "language"),
    "a font and strokes": (["--font", "a.ttf", "--strokes", "3"], "not from both"),
    "a font that is not there": (["--font", "none.ttf"], "none.ttf"),
    "strokes of no width": (["--strokes", "0"], "width"),
    "strokes that are no number": (["--strokes", "nan"], "width"),
    "no balance that is a number": (["--ratio", "nan"], "ratio"),
}


def export(source: Callable[[Here], object], *options, target: str = "out"):
    return lambda here, _: here.call("export", source(here), here.folder / target, "--format", "onnx", *options)


def _is(name):
    return lambda here: here.sound(name)


def _without_onnx(here, _):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(onnx_folder, "find_spec", lambda name: None)
        here.call("export", here.sound("plain"), here.folder / "out", "--format", "onnx")


ONNX = {
    "of a run of calligraphy": (export(_is("calligraphy run")), "condition encoder"),
    "of a folder of images": (export(_is("images")), "settings.json|no run"),
    "of what is not there": (export(lambda here: here.folder / "none"), "no run|settings.json"),
    "weights of 2 bits": (export(_is("plain"), "--weights", "int2"), "weights must be one of"),
    "weights without a name": (export(_is("plain"), "--weights", ""), "weights must be one of"),
    "a step that no checkpoint has": (export(_is("run"), "--step", "3"), "3"),
    "an arm that the run has not": (export(_is("run"), "--arm", "5"), "arm"),
    "with a card": (export(_is("run"), "--card"), "a card of its own"),
    "without the package onnx": (_without_onnx, "not installed: pip install"),
    "a form of another tool": (
        lambda here, _: here.call("export", here.sound("run"), here.folder / "out", "--format", "gguf"),
        "format must be one of",
    ),
}


def _filled(here):
    (here.folder / "out").mkdir()
    (here.folder / "out" / "mine.txt").write_text("mine")


def _damaged(source: str, name: str):
    def lay(here):
        _cut(name)(here.take(source))
        return here.folder / source

    return lay


def _export_it(here, source):
    here.call("export", source, here.folder / "out", "--format", "onnx")


def _draw(name, says="", **rest):
    return partial(Case, name, says=says, **rest)


CASES = [
    *(Case(f"write: {name}", written(*arguments), writes=WRITTEN) for name, arguments in TYPED.items()),
    *(Case(f"write: {name}", write(*arguments), says=says) for name, (arguments, says) in UNTYPED.items()),
    *(Case(f"write: {name}", _write_with, lay, says) for name, (lay, says) in BASES.items()),
    *(
        Case(f"write: {name}", write("永", *options), _aside(place, make), says)
        for name, (place, make, options, says) in OUT.items()
    ),
    Case("write: names that differ behind a dot", _two_versions, writes=r"page\.v.*"),
    *(
        Case(
            f"write: the disk is full at file {at}",
            _full(
                storage,
                "write_synced",
                lambda here: ["write", "永", "--base", here.sound("writer"), "--out", "out.png"],
                at,
            ),
            says="No space left",
        )
        for at in (0, 1)
    ),
    *(
        Case(f"skeleton: {name}", _skeleton, lambda here, kind=kind: brought(here.folder, kind), writes=WRITTEN)
        for name, kind in RIGHT.items()
    ),
    *(
        Case(f"skeleton: {name}", _skeleton, lambda here, kind=kind: brought(here.folder, kind), kind[2])
        for name, kind in WRONG.items()
    ),
    *(
        Case(f"skeleton: {name}", _skeleton, _file("drawn.png", make), says)
        for name, (make, says) in NO_PICTURES.items()
    ),
    *(
        Case(f"hand: {name}", _said(*words), _photos(**files), writes=WRITTEN)
        for name, (files, words) in UNREAD.items()
    ),
    *(Case(f"hand: {name}", _hand, lay, says) for name, (lay, says) in NO_HANDS.items()),
    *(
        Case(f"hand learned before: {name}", _hand, _hand_kept(damage), says, writes=r"runs/hands/photos\.png")
        for name, (damage, says) in LEARNED.items()
    ),
    *(
        Case(f"hand learned before: {name}", _hand, _hand_kept(damage), writes=WRITTEN)
        for name, damage in REMADE.items()
    ),
    *(Case(f"coin: {name}", coin(*arguments), writes=r"out(/.*)?") for name, arguments in PHRASES.items()),
    *(Case(f"coin: {name}", coin(*arguments), says=says) for name, (arguments, says) in NO_PHRASES.items()),
    *(Case(name, _coin_again, _coined_before(damage), says) for name, (damage, says) in COIN_FOLDERS.items()),
    Case("coined before: nothing is wrong", _coin_again, _coined_before(lambda folder: None)),
    *(
        Case(f"coin: {name}", _coin_into(place), _aside(place, make), says)
        for name, (make, place, says) in COIN_OUT.items()
    ),
    *(
        Case(
            f"coin: the disk is full at file {at}",
            _full(coin_folder, "write_bytes_atomic", lambda here: [*CALL[:2], "--noises", "1", "--out", "out"], at),
            says="No space left",
        )
        for at in (0, 2)
    ),
    *(
        Case(
            f"data: {name}", lambda here, _, more=tuple(more): here.call("data", here.folder / "out", *more), says=says
        )
        for name, (more, says) in LANGUAGES.items()
    ),
    *(Case(f"ONNX: {name}", act, says=says) for name, (act, says) in ONNX.items()),
    Case("ONNX: into a folder that is there", export(_is("plain")), _filled, "exists already"),
    Case(
        "ONNX: below a file",
        export(_is("plain"), target="above/out"),
        _aside("above", Path.touch),
        "above",
    ),
    Case(
        "ONNX: of a base with a damaged encoder of skeletons",
        _export_it,
        _damaged("writer", "condition_encoder/model.safetensors"),
        "model.safetensors",
    ),
    *(
        Case(f"ONNX: of a run with {name}", _export_it, _damaged("run", path), says)
        for name, path, says in (
            ("weights cut off", "checkpoints/step_000004/arm_0/adapter_model.safetensors", "step_000004|step 4"),
            ("settings cut off", "settings.json", "settings.json"),
            ("a state cut off", "checkpoints/step_000004/state.json", "step_000004|step 4"),
        )
    ),
]
