"""What a browser sends: a sound zip file becomes an image folder; from any other nothing gets out of its folder."""

import io
import random
import zipfile
from pathlib import Path

import pytest
from PIL import Image

from kanjilab.data import sent_files
from kanjilab.data.image_folder import open_dataset
from kanjilab.data.sent_files import write_sent


def png() -> bytes:
    file = io.BytesIO()
    Image.effect_noise((8, 8), 50).save(file, "PNG")
    return file.getvalue()


METADATA = b"file_name,text\na.png,a cat\nmore/b.png,a dog\n"


def zipped(members, **options) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", **options) as archive:
        for name, content in members:
            with_name = zipfile.ZipInfo(name)
            with_name.filename = name  # as it is, also where zipfile would mend it
            archive.writestr(with_name, content, options.get("compression", zipfile.ZIP_STORED))
    return file.getvalue()


def files_in(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def folder(tmp_path):
    """An empty folder with one beside it, which must stay as it is."""
    (tmp_path / "own").mkdir()
    (tmp_path / "beside").mkdir()
    return tmp_path / "own"


@pytest.mark.parametrize("top", ["", "my-glyphs/"])
@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_zip_file_of_a_folder_or_of_what_is_in_it_is_opened(folder, top, compression):
    members = [("metadata.csv", METADATA), ("a.png", png()), ("more/", b""), ("more/b.png", png())]
    members = [(top + name, content) for name, content in members] + [("__MACOSX/._a.png", b"x"), (".DS_Store", b"x")]
    root = write_sent([("Mine.ZIP", zipped(members, compression=compression))], folder)
    assert root == folder / top
    assert open_dataset(root).table["text"].tolist() == ["a cat", "a dog"]


def test_images_and_metadata_are_opened(folder):
    files = [("a.png", png()), ("b.PNG", png()), ("a.txt", b"a cat"), ("b.txt", b"a dog")]
    assert open_dataset(write_sent(files, folder)).table["text"].tolist() == ["a cat", "a dog"]


LEADS_OUT = "leads out of the folder"
BAD = {
    "parent": ([("../beside/x.png", b"x")], LEADS_OUT),
    "parent inside": ([("a/../../beside/x.png", b"x")], LEADS_OUT),
    "absolute": ([("/beside/x.png", b"x")], LEADS_OUT),
    "backslash": ([("..\\beside\\x.png", b"x")], LEADS_OUT),
    "twice": ([("a.png", b"x"), ("a.png", b"y")], "file 'a.png' cannot be written (File exists)"),
    "file and folder": ([("a", b"x"), ("a/b.png", b"y")], "file 'a/b.png' cannot be written"),
    "long": ([("a" * 300 + ".png", b"x")], "cannot be"),
    "many": ([(f"{number}.png", b"x") for number in range(6)], "expected at most 5 files"),
    "large": ([("a.png", b"\0" * 5_001)], "got 1 files of 5,001 bytes; open a larger folder by its path"),
}


@pytest.mark.parametrize("name", BAD)
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_nothing_leaves_the_folder_and_there_is_a_bound(folder, name, monkeypatch):
    members, said = BAD[name]
    monkeypatch.setattr(sent_files, "FILES_MOST", 5)
    monkeypatch.setattr(sent_files, "BYTES_MOST", 5_000)
    for sent in ([("x.zip", zipped(members, compression=zipfile.ZIP_DEFLATED))], members):
        if len(sent) > 1 and not all(name.endswith(".png") for name, _ in sent):
            continue  # only a zip file has a file without a suffix
        for path in folder.iterdir():
            path.unlink()
        with pytest.raises(ValueError) as caught:
            write_sent(sent, folder)
        assert said in str(caught.value) and "\n" not in str(caught.value)
    assert files_in(folder.parent) <= {"own/a", "own/a.png"} and not Path("/beside").exists()


def test_a_link_in_a_zip_file_is_no_link_here(folder):
    link = zipfile.ZipInfo("a.png")
    link.create_system, link.external_attr = 3, 0o120777 << 16
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr(link, "../beside")
        archive.writestr("a.png/x.png", b"x")
    with pytest.raises(ValueError, match="cannot be written"):
        write_sent([("x.zip", file.getvalue())], folder)
    assert not (folder / "a.png").is_symlink() and files_in(folder.parent / "beside") == set()


def other_compression():
    return zipped([("a.png", b"x" * 100)], compression=zipfile.ZIP_BZIP2)


def encrypted():
    data = bytearray(zipped([("a.png", b"x")]))
    for at in (6, data.index(b"PK\x01\x02") + 8):  # the flag, at the file and in the directory
        data[at] |= 1
    return bytes(data)


def smaller_than_it_is():
    """A zip file that says of 100,000 bytes that they are 10."""
    data = zipped([("a.png", b"\0" * 100_000)], compression=zipfile.ZIP_DEFLATED)
    return data.replace((100_000).to_bytes(4, "little"), (10).to_bytes(4, "little"))


@pytest.mark.parametrize(
    "files",
    [
        [],
        [("x.rar", b"Rar!")],
        [("x.zip", b"")],
        [("x.zip", b"PK\x03\x04 and no more")],
        [("x.zip", zipped([("a.png", b"x" * 100)])[:-30])],
        [("x.zip", encrypted())],
        [("x.zip", other_compression())],
        [("x.zip", smaller_than_it_is())],
        [("x.zip", zipped([])), ("a.png", b"x")],
        [("a.png", b"x"), ("x.exe", b"x")],
        [("a.png", b"x"), ("..", b"x")],
    ],
    ids=lambda files: "+".join(name for name, _ in files),
)
def test_what_is_no_zip_file_and_no_part_of_a_folder_is_refused_in_one_sentence(folder, files):
    with pytest.raises(ValueError, match=r"^[^\n]*expected (a|one) zip file[^\n]*$"):
        write_sent(files, folder)
    assert files_in(folder.parent) == set()


def test_a_damaged_zip_file_is_opened_or_refused(folder):
    sound = zipped([("d/metadata.csv", METADATA), ("d/a.png", png())], compression=zipfile.ZIP_DEFLATED)
    rng = random.Random(0)
    for turn in range(300):
        data = bytearray(sound)
        for _ in range(rng.randint(1, 4)):
            data[rng.randrange(len(data))] = rng.randrange(256)
        own = folder / str(turn)
        own.mkdir()
        try:
            write_sent([("x.zip", bytes(data))], own)
        except ValueError as error:
            assert str(error).startswith(("x.zip: expected", "x.zip: file"))
    assert files_in(folder.parent / "beside") == set()
