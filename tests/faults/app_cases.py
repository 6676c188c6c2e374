"""What reaches the app: links, uploads, drawings of a page, files of its panels, and settings of whoever serves it."""

import io
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from kanjilab.core.config import Arm
from kanjilab.data.image_folder import open_dataset
from kanjilab.data.sent_files import write_sent
from kanjilab.models.loading import cache_folder
from kanjilab.widgets.brush_board import BrushBoard
from kanjilab.widgets.coin_page import CoinPage, Pace
from kanjilab.widgets.generation import PUBLIC, Request
from kanjilab.widgets.share_link import request_of_query
from kanjilab.widgets.stored_studies import numbers_from_text, value_from_text
from kanjilab.widgets.training_job import Workshop, panel_job
from tests.faults.case import Case

# links

CHOICES = [("the base alone", None), ("mine", (Path("runs/mine"), 0))]
USUAL = Request("queen")


def link(query: str):
    return lambda here, _: PUBLIC.check(request_of_query(query, CHOICES, USUAL))


def asks(**expected: Any):
    """A link is read, and asks for this."""

    def act(query):
        def do(here, _):
            found = PUBLIC.check(request_of_query(query, CHOICES, USUAL))
            assert {name: getattr(found, name) for name in expected} == expected

        return do

    return act


LINKS = {
    "an empty prompt": ("prompt=%20", "type a prompt first"),
    "a prompt of 101 letters": ("prompt=" + "a" * 101, "at most 100 characters"),
    "a prompt of a megabyte": ("prompt=" + "a" * 1_000_000, "at most 100 characters"),
    "a negative prompt without end": ("prompt=a&negative=" + "b" * 5_000, "at most 100 characters"),
    "a style without end": ("prompt=a&style=" + "b" * 5_000, "at most 100 characters"),
    "a model that is not here": ("prompt=a&model=yours", "a model that is not here"),
    "a model of 100,000 letters": ("prompt=a&model=" + "x" * 100_000, "a model that is not here"),
    "a path as the model": ("prompt=a&model=/etc/passwd", "a model that is not here"),
    "tags as the model": ("prompt=a&model=%3Cscript%3E", "a model that is not here"),
    "a seed in words": ("prompt=a&seed=first", "seed: expected a whole number"),
    "a seed below zero": ("prompt=a&seed=-1", "seeds from 0"),
    "a seed of 80 bits": (f"prompt=a&seed={2**80}", "seeds from 0"),
    "a seed of 10,000 digits": ("prompt=a&seed=" + "9" * 10_000, "seed"),
    "half a seed": ("prompt=a&seed=1.5", "seed"),
    "no glyph": ("prompt=a&glyphs=0", "distinct seeds"),
    "glyphs below zero": ("prompt=a&glyphs=-8", "distinct seeds"),
    "a million glyphs": ("prompt=a&glyphs=1000000", "at most 8 glyphs"),
    "glyphs in words": ("prompt=a&glyphs=many", "glyphs: expected a whole number"),
    "no steps": ("prompt=a&steps=0", "steps must be from 1"),
    "a million steps": ("prompt=a&steps=1000000", "steps"),
    "more steps than the page gives": ("prompt=a&steps=200", "at most 30 steps"),
    "steps in words": ("prompt=a&steps=few", "steps"),
    "guidance that is no number": ("prompt=a&guidance=nan", "guidance must be from 1"),
    "guidance without end": ("prompt=a&guidance=inf", "guidance must be from 1"),
    "more guidance than the page gives": ("prompt=a&guidance=50", "at most 15 guidance"),
    "guidance in words": ("prompt=a&guidance=strong", "guidance: expected a number"),
    "a sampler that nobody knows": ("prompt=a&sampler=euler", "sampler must be one of"),
    "a checkpoint in words": ("prompt=a&step=last", "step"),
    "a checkpoint of 10,000 digits": ("prompt=a&step=" + "9" * 10_000, "step"),
    "thirty fields": ("&".join(f"a{n}=1" for n in range(30)), "fields"),
}
RIGHT_LINKS = {
    "nothing": ("", dict(prompt="queen")),
    "an unknown field": ("prompt=a&colour=red", dict(prompt="a")),
    "a field twice, of which the last counts": ("prompt=a&prompt=b", dict(prompt="b")),
    "Japanese": ("prompt=%E7%81%AB%E3%81%AE%E7%8E%89", dict(prompt="火の玉")),
    "bytes that are no UTF-8": ("prompt=%ff%fe", dict(prompt="\ufffd\ufffd")),
    "half of a surrogate pair": ("prompt=a%ED%A1%82", dict(prompt="a\ufffd\ufffd\ufffd")),
    "a plus for a blank": ("prompt=fire+jewel", dict(prompt="fire jewel")),
    "full-width digits": ("prompt=a&seed=%EF%BC%93", dict(seeds=(3,))),
    "a percent sign alone": ("prompt=100%", dict(prompt="100%")),
    "parts twice": ("prompt=a&parts=%E7%81%AB%E7%81%AB", dict(parts=("火",))),
    "a run that is here": ("prompt=a&model=mine", dict(run=Path("runs/mine"))),
}


# uploads


def png(side: int = 16) -> bytes:
    values = np.full((side, side), 255, np.uint8)
    values[4:9, 4:12] = 0
    buffer = io.BytesIO()
    Image.fromarray(values).save(buffer, "PNG")
    return buffer.getvalue()


TABLE = b"file_name,text\na.png,water\n"


def packed(*members: tuple[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name, content in members:
            archive.writestr(name, content)
    return buffer.getvalue()


def _locked() -> bytes:
    """A zip file whose members need a password: the flag that says so is set."""
    data = bytearray(packed(("a.png", png()), ("metadata.csv", TABLE)))
    for head, at in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        place = data.find(head)
        while place >= 0:
            data[place + at] |= 1
            place = data.find(head, place + 1)
    return bytes(data)


def _bomb() -> bytes:
    """A zip file of some kilobytes that unpacks to 600 MB."""
    return packed(*((f"{number}.png", bytes(20_000_000)) for number in range(30)))


def _twice() -> bytes:
    with pytest.warns(UserWarning, match="Duplicate"):
        return packed(("a.png", png()), ("a.png", png(8)), ("metadata.csv", TABLE))


def _link() -> bytes:
    """A member that is a link out of the folder, as Info-ZIP stores it: its content is where it leads."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        member = zipfile.ZipInfo("a.png")
        member.external_attr = 0o120777 << 16
        archive.writestr(member, "/etc/passwd")
        archive.writestr("metadata.csv", TABLE)
    return buffer.getvalue()


def upload(files: Callable[[], list[tuple[str, bytes]]]):
    """The files are sent, and opened as an image folder."""

    def act(here, _):
        target = here.folder / "sent"
        target.mkdir()
        open_dataset(write_sent(files(), target))

    return act


def _zip(make: Callable[[], bytes], name: str = "images.zip"):
    return lambda: [(name, make())]


PAIR = [("a.png", png()), ("metadata.csv", TABLE)]
UPLOADS: dict[str, tuple[Callable[[], list[tuple[str, bytes]]], str]] = {
    "nothing": (lambda: [], "got no file"),
    "a text file": (lambda: [("notes.md", b"hello")], "got notes.md"),
    "a program": (lambda: [("setup.exe", b"MZ"), *PAIR], "got setup.exe"),
    "a picture of an iPhone": (lambda: [("a.heic", png())], "got a.heic"),
    "two zip files": (lambda: [("a.zip", packed()), ("b.zip", packed())], "got a.zip"),
    "an empty zip file": (_zip(lambda: packed()), "."),
    "a file that is no zip file": (_zip(lambda: b"hello"), "images.zip"),
    "a zip file of no bytes": (_zip(lambda: b""), "images.zip"),
    "half a zip file": (_zip(lambda: packed(*PAIR)[:60]), "images.zip"),
    "a zip file with a password": (_zip(_locked), "images.zip"),
    "a zip file of another compression": (_zip(lambda: packed(*PAIR, method=zipfile.ZIP_LZMA)), "compressed in a way"),
    "a zip file that unpacks to 600 MB": (_zip(_bomb), "expected at most"),
    "a zip file with a member twice": (_zip(_twice), "a.png"),
    "a zip file that leads out of the folder": (_zip(lambda: packed(("../a.png", png()))), "a.png"),
    "a zip file with an absolute path": (_zip(lambda: packed(("/etc/a.png", png()))), "a.png"),
    "a zip file with a path of Windows": (_zip(lambda: packed(("..\\..\\a.png", png()), PAIR[1])), "a.png"),
    "a zip file with a link": (_zip(_link), "a.png"),
    "a name of 300 letters": (lambda: [("a" * 300 + ".png", png())], "aaa"),
    "a name with a NUL": (lambda: [("a\0.png", png())], "a"),
    "a name that leads out": (lambda: [("../a.png", png())], "a.png"),
    "images without captions": (lambda: [("a.png", png())], "."),
    "captions without images": (lambda: [("metadata.csv", TABLE)], "a.png"),
    "a damaged image": (lambda: [("a.png", png()[:40]), PAIR[1]], "a.png"),
    "captions of another image": (lambda: [("b.png", png()), PAIR[1]], "a.png"),
    "one name twice": (lambda: [("a.png", png()), *PAIR], "a.png"),
    "a RAR archive": (_zip(lambda: b"Rar!\x1a\x07\x00" + bytes(50)), "images.zip"),
}
RIGHT_UPLOADS = {
    "images with their table": lambda: PAIR,
    "a zip file of a folder, as macOS packs it": _zip(
        lambda: packed(*((f"mine/{n}", c) for n, c in PAIR), ("__MACOSX/mine/._a.png", b"\0\5\x16\7"))
    ),
    "a zip file in capitals": _zip(lambda: packed(*PAIR), "IMAGES.ZIP"),
    "a zip file that is stored": _zip(lambda: packed(*PAIR, method=zipfile.ZIP_STORED)),
}


# drawings that a page sends


def drawing(**sent: Any):
    def act(here, _):
        board = BrushBoard(lambda: None, lambda name, data: None)
        board.drawing = {"strokes": [], "under": b"", "of": ""} | sent
        assert board.lines.shape == (128, 128)

    return act


DRAWINGS = {
    "strokes as a number": (dict(strokes=3), "expected strokes of points"),
    "a stroke in words": (dict(strokes=["line"]), "expected strokes of points"),
    "points of three numbers": (dict(strokes=[[[1, 2, 3]]]), "expected strokes of points"),
    "points that are no numbers": (dict(strokes=[[[float("nan"), 1]]]), "expected points from 0"),
    "points outside": (dict(strokes=[[[1e9, 1]]]), "expected points from 0"),
    "points of nothing": (dict(strokes=[[[None, 1]]]), "expected strokes of points"),
    "ten thousand strokes": (dict(strokes=[[[1, 1]]] * 10_000), "at most 300 strokes"),
    "a stroke of a million points": (dict(strokes=[[[1, 1]] * 1_000_000]), "at most 300 strokes"),
    "a picture below in words": (dict(under="png"), "expected a small PNG"),
    "a picture below of a megabyte": (dict(under=bytes(1_000_000)), "expected a small PNG"),
    "a picture below that is none": (dict(under=b"hello"), "is not an image"),
    "a picture below cut off": (dict(under=png(64)[:60]), "is damaged|not an image"),
    "an unknown key": (dict(strokes=None), "expected strokes of points"),
}
RIGHT_DRAWINGS = {
    "one dot": dict(strokes=[[[64, 64]]]),
    "a stroke without points": dict(strokes=[[]]),
    "a stroke along the border": dict(strokes=[[[0, 0], [128, 128]]]),
}


# panels

TAGS = "<img src=x onerror=alert(1)>"


def coin_page(phrase: str, **inputs: Any):
    """Coins by the panel, whose page may send anything."""

    def act(here, _):
        panel = CoinPage(phrase, inputs.pop("parts", ""))
        for name, value in inputs.items():
            getattr(panel, name).value = value
        panel.coin()

    return act


PHRASES = {
    "an empty phrase": (coin_page(" "), "type a phrase first"),
    "a phrase of 101 letters": (coin_page("a" * 101), "at most 100 characters"),
    "parts of 101 letters": (coin_page("a", parts="b" * 101), "at most 100 characters"),
    "Cyrillic": (coin_page("огонь"), "Cyrillic letters are not understood"),
    "one part": (coin_page("a", parts="fire"), "expected two parts"),
    "tags as parts": (coin_page("a", parts=f"{TAGS}+fire"), "no part of characters"),
}


def _pace(data: bytes):
    def act(here, _):
        path = cache_folder() / "coin_pace.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        kept = path.read_bytes() if path.exists() else None
        path.write_bytes(data)
        try:
            assert Pace.load() == Pace()
        finally:
            path.write_bytes(kept) if kept is not None else path.unlink()

    return act


PACES = {
    "cut off": b'{"start": 8.',
    "a list": b"[1]",
    "without a number": b'{"start": 8}',
    "in words": b'{"start": "long", "candidate": 1}',
    "brackets without end": b"[" * 100_000,
    "numbers that are none": b'{"start": NaN, "candidate": 1}',
    "below zero": b'{"start": -5, "candidate": -1}',
}


def training(name: str, data: bytes, read: Callable[[Any, Any], object]):
    """A training panel's folder with one of its files damaged."""

    def lay(here):
        path = here.folder / "panel" / name
        path.parent.mkdir(parents=True)
        path.write_bytes(data)

    def act(here, _):
        place = Workshop(here.folder / "panel")
        return read(place, panel_job(Arm(images_seen=100)))

    return act, lay


def _jobs(place, job):
    assert place.jobs() == []


def _last(place, job):
    assert place.last(job) == job


def _cost(place, job):
    assert place.cost(job) is None


TRAININGS = {
    "a training's settings cut off": training("runs/a.json", b'{"base": ', _jobs),
    "a training's settings as a list": training("runs/a.json", b"[]", _jobs),
    "a training's settings of a later version": training("runs/a.json", b'{"tilt": 1}', _jobs),
    "the last training cut off": training("last.json", b'{"asked"', _last),
    "the last training as a number": training("last.json", b"7", _last),
    "the costs cut off": training("costs.json", b'{"a": {', _cost),
    "the costs as a list": training("costs.json", b"[1]", _cost),
}
TYPED = {
    "a rank in words": (lambda here, _: value_from_text("rank", "high"), "rank: expected int"),
    "half a rank": (lambda here, _: value_from_text("rank", "1.5"), "rank: expected int"),
    "seeds in words": (lambda here, _: numbers_from_text("all"), "seeds: expected whole numbers"),
    "seeds below zero": (lambda here, _: numbers_from_text("-1"), "seeds: expected whole numbers"),
    "a billion seeds": (lambda here, _: numbers_from_text("0-1000000000"), "seeds"),
    "seeds backwards": (lambda here, _: numbers_from_text("9-3"), "seeds"),
}


# whoever serves it


def visitors():
    """app/visitors.py, which is no module of the package."""
    sys.path.insert(0, str(Path(__file__).parents[2] / "app"))
    try:
        import visitors
    finally:
        sys.path.pop(0)
    return visitors


def frames(value: str, expected: str = ""):
    def act(here, _):
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("KANJILAB_FRAMES", value)
            found = visitors().frame_ancestors()
        assert found == expected

    return act


def asked_for(host: str, served: bool, names: str = "kanji.example.org"):
    def act(here, _):
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("KANJILAB_HOSTS", names)
            handler = SimpleNamespace(request=SimpleNamespace(host=host))
            assert visitors().check_host(handler) == served

    return act


FRAMES = {
    "a site without https": "http://example.org",
    "every site": "*",
    "a site with a path": "https://example.org/a",
    "a script": "javascript:alert(1)",
    "a rule more": "https://example.org; script-src *",
    "two sites with a blank": "https://example.org https://example.com",
    "an end of line": "https://example.org\nX-A: b",
}
HOSTS = {
    "its own name": ("localhost:8866", True),
    "its own address of IPv6": ("[::1]:8866", True),
    "a name that is listed": ("kanji.example.org", True),
    "a name in capitals": ("Kanji.Example.org:80", True),
    "another's name": ("evil.example.com", False),
    "a name that begins alike": ("localhost.example.com", False),
    "no name": ("", False),
    "a name with a user": ("localhost@evil.example.com", False),
}


CASES = [
    *(Case(f"link with {name}", link(query), says=says) for name, (query, says) in LINKS.items()),
    *(Case(f"link with {name}", asks(**expected)(query)) for name, (query, expected) in RIGHT_LINKS.items()),
    *(
        Case(f"upload of {name}", upload(files), says=says, writes="sent(/.*)?")
        for name, (files, says) in UPLOADS.items()
    ),
    *(Case(f"upload of {name}", upload(files), writes="sent(/.*)?") for name, files in RIGHT_UPLOADS.items()),
    *(Case(f"drawing of {name}", drawing(**sent), says=says) for name, (sent, says) in DRAWINGS.items()),
    *(Case(f"drawing of {name}", drawing(**sent)) for name, sent in RIGHT_DRAWINGS.items()),
    *(Case(f"coining panel: {name}", act, says=says) for name, (act, says) in PHRASES.items()),
    *(Case(f"pace of coining {name}", _pace(data)) for name, data in PACES.items()),
    *(Case(f"training panel: {name}", *rest) for name, rest in TRAININGS.items()),
    *(Case(f"ablation panel: {name}", act, says=says) for name, (act, says) in TYPED.items()),
    *(Case(f"frames of {name}", frames(value), says="KANJILAB_FRAMES") for name, value in FRAMES.items()),
    Case("frames of a site", frames("https://huggingface.co", "'self' https://huggingface.co")),
    *(Case(f"asked for by {name}", asked_for(*rest)) for name, rest in HOSTS.items()),
]
