"""Image folders: what is built, what is read, and that everything wrong is found together."""

import csv
import gc
import io
import json
import os
import shutil
import struct
import zlib
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from kanjilab.data import build
from kanjilab.data.build import build_dataset, hold_out, image_name
from kanjilab.data.dictionary import load_characters
from kanjilab.data.image_folder import Dataset, DatasetError, open_dataset
from kanjilab.data.kanjivg import KanjiVG
from kanjilab.data.rendering import default_font, draw_font
from kanjilab.data.selection import EveryCharacter, Left16, Seed16, caption_groups


def png(color: int = 128, size: tuple[int, int] = (20, 20)) -> bytes:
    buffer = io.BytesIO()
    Image.new("L", size, color).save(buffer, "PNG")
    return buffer.getvalue()


def jpeg() -> bytes:
    buffer = io.BytesIO()
    Image.effect_noise((64, 64), 80).save(buffer, "JPEG")
    return buffer.getvalue()


def bomb(side: int) -> bytes:
    """A PNG of a few bytes whose header claims side x side pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    rows = zlib.compress(b"\0" * 1_000)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def folder_of(path: Path, metadata: str | bytes, name: str = "metadata.csv", **images: bytes) -> Path:
    """An image folder; keyword `a` becomes the file a.png."""
    path.mkdir(parents=True, exist_ok=True)
    (path / name).write_bytes(metadata if isinstance(metadata, bytes) else metadata.encode("utf-8"))
    for stem, data in images.items():
        (path / f"{stem}.png").write_bytes(data)
    return path


def problems_of(folder: Path) -> list[str]:
    with pytest.raises(DatasetError) as caught:
        open_dataset(folder)
    assert all(problem in str(caught.value) for problem in caught.value.problems)
    return list(caught.value.problems)


# --- Reading anybody's folder ----------------------------------------------------------------------


def test_csv_of_another_hand(tmp_path):
    metadata = '\ufefftext,file_name,score\r\n"person;human",a.png,1.5\r\n"two\nlines, ""quoted""",sub/b.png,\r\n'
    folder = folder_of(tmp_path, metadata, a=png(0))
    (folder / "sub").mkdir()
    (folder / "sub" / "b.png").write_bytes(png(255))
    found = open_dataset(folder, size_px=16)
    assert list(found.table["file_name"]) == ["a.png", "sub/b.png"]
    assert list(found.table["text"]) == ["person;human", 'two\nlines, "quoted"']
    assert list(found.table["split"]) == ["train", "train"]
    assert found.table["score"].iloc[0] == 1.5 and pd.isna(found.table["score"].iloc[1])
    assert len(found) == 2 and (found.images()[0] == 0).all() and (found.images()[1] == 255).all()


def test_jsonl_says_the_same_as_csv(tmp_path):
    rows = [{"file_name": "a.png", "text": "火;fire", "split": "x"}, {"file_name": "b.png", "text": "t", "split": "y"}]
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n\n" for row in rows)
    first = open_dataset(folder_of(tmp_path / "j", lines, "metadata.jsonl", a=png(1), b=png(2)))
    table = "file_name,text,split\na.png,火;fire,x\nb.png,t,y\n"
    second = open_dataset(folder_of(tmp_path / "c", table, a=png(1), b=png(2)))
    pd.testing.assert_frame_equal(first.table, second.table)
    assert first.content_hash == second.content_hash


def test_subfolders_with_their_own_metadata_are_splits(tmp_path):
    folder_of(tmp_path / "test", "file_name,text\na.png,one\n", a=png(1))
    folder_of(tmp_path / "train", "file_name,text\na.png,two\n", a=png(2))
    found = open_dataset(tmp_path)
    assert list(found.table["file_name"]) == ["train/a.png", "test/a.png"]  # what is trained on comes first
    assert list(found.split("test").table["text"]) == ["one"]
    assert (found.split("test").images() == 1).all()
    with pytest.raises(KeyError, match="'validation': expected one of .*'test', 'train'"):
        found.split("validation")


def test_any_mode_becomes_gray_or_colour(tmp_path):
    clear = Image.new("RGBA", (8, 8), (0, 0, 0, 0))
    modes = {
        "gray": Image.new("L", (8, 8), 100),
        "colour": Image.new("RGB", (8, 8), (255, 0, 0)),
        "clear": clear,
        "palette": Image.new("RGB", (8, 8), (0, 0, 255)).quantize(4),
        "deep": Image.fromarray(np.full((8, 8), 100 * 256, np.uint16)),
        "bits": Image.new("1", (8, 8), 1),
    }
    for name, image in modes.items():
        image.save(tmp_path / f"{name}.png")
    lines = "".join(f"{name}.png,x\n" for name in modes)
    found = open_dataset(folder_of(tmp_path, "file_name,text\n" + lines), size_px=8)
    gray = dict(zip(modes, found.images()[:, 0, 0].tolist(), strict=True))
    assert gray == {"gray": 100, "colour": 76, "clear": 255, "palette": 29, "deep": 100, "bits": 255}
    colour = found.images([1, 2, 3], channels=3)
    assert colour.shape == (3, 8, 8, 3) and colour.dtype == np.uint8
    assert colour[:, 0, 0].tolist() == [[255, 0, 0], [255, 255, 255], [0, 0, 255]]


def test_sizes_are_brought_to_a_square_by_the_named_filter(tmp_path):
    checks = np.zeros((4, 4), np.uint8)
    checks[:, 1::2] = 255
    Image.fromarray(checks).save(tmp_path / "checks.png")
    Image.new("L", (8, 4), 0).save(tmp_path / "wide.png")
    folder_of(tmp_path, "file_name,text\nchecks.png,x\nwide.png,y\n")
    assert (open_dataset(tmp_path, size_px=2, resample="box").images([0]) == 128).all()
    assert set(np.unique(open_dataset(tmp_path, size_px=2, resample="nearest").images([0]))) <= {0, 255}
    wide = open_dataset(tmp_path, size_px=8).images([1])[0]
    assert (wide[:2] == 255).all() and (wide[2:6] == 0).all() and (wide[6:] == 255).all()
    with pytest.raises(ValueError, match="resample must be one of nearest.*got 'best'"):
        open_dataset(tmp_path, resample="best")
    with pytest.raises(ValueError, match="size_px must be from 1 to 2,048, got 0"):
        open_dataset(tmp_path, size_px=0)


def test_content_hash_sees_captions_images_order_and_size_but_not_names(tmp_path):
    def of(number: int, metadata: str, size_px: int = 8, **images: bytes) -> str:
        return open_dataset(folder_of(tmp_path / str(number), metadata, **images), size_px=size_px).content_hash

    table = "file_name,text\na.png,one\nb.png,two\n"
    first = of(0, table, a=png(1), b=png(2))
    assert of(1, "file_name,text\nc.png,one\nd.png,two\n", c=png(1), d=png(2)) == first
    assert of(2, table, a=png(1), b=png(3)) != first
    assert of(3, "file_name,text\na.png,one\nb.png,three\n", a=png(1), b=png(2)) != first
    assert of(4, "file_name,text\nb.png,two\na.png,one\n", a=png(1), b=png(2)) != first
    assert of(5, table, size_px=9, a=png(1), b=png(2)) != first


# --- Bad input -------------------------------------------------------------------------------------


def test_everything_wrong_is_listed_together_by_line_and_file(tmp_path):
    lines = [
        b"file_name,text",
        b"good.png,fine",
        b"missing.png,x",
        b"zero.png,x",
        b"cut.png,x",
        b"cut_jpeg.png,x",
        b"bomb.png,x",
        b"large.png,x",
        b"good.png,again",
        b"./good.png,again",
        b"../outside.png,x",
        b"/etc/passwd,x",
        b"..\\outside.png,x",
        b"link.png,x",
        b"words.png,x",
        b"blank.png,   ",
        b"garbled.png,\xff\xfe caption",
        b"too,many,fields",
        b",no name",
        b"sub,a folder",
        b"loop.png,x",
        b"pipe.png,x",
    ]
    good = png()
    folder = folder_of(
        tmp_path / "set",
        b"\n".join(lines) + b"\n",
        good=good,
        zero=b"",
        cut=png(size=(300, 300))[:80],
        cut_jpeg=jpeg()[:400],
        bomb=bomb(60_000),
        large=bomb(9_000),
        words=b"not an image",
        blank=good,
        garbled=good,
    )
    (tmp_path / "outside.png").write_bytes(good)
    (folder / "link.png").symlink_to(tmp_path / "outside.png")
    (folder / "loop.png").symlink_to("loop.png")
    os.mkfifo(folder / "pipe.png")  # to open one would wait for ever
    (folder / "sub").mkdir()
    expected = [
        ("line 3: file 'missing.png'", "is missing"),
        ("line 4: file 'zero.png'", "is 0 bytes"),
        ("line 5: file 'cut.png'", "is damaged"),
        ("line 6: file 'cut_jpeg.png'", "is damaged"),
        ("line 7: file 'bomb.png'", "is too large"),
        ("line 8: file 'large.png'", "is too large: 9000 x 9000 px"),
        ("line 9: file 'good.png'", "is listed already in metadata.csv line 2"),
        ("line 10: file './good.png'", "is listed already in metadata.csv line 2"),
        ("line 11: file '../outside.png'", "leads out of the folder"),
        ("line 12: file '/etc/passwd'", "leads out of the folder"),
        ("line 13: file '..\\\\outside.png'", "leads out of the folder"),
        ("line 14: file 'link.png'", "leads out of the folder through a link"),
        ("line 15: file 'words.png'", "is not an image of a known format"),
        ("line 16: file 'blank.png'", "has an empty caption"),
        ("line 17", "expected UTF-8"),
        ("line 18", "expected 2 fields, got 3"),
        ("line 19: file ''", "has no name"),
        ("line 20: file 'sub'", "expected an image, got a folder"),
        ("line 21: file 'loop.png'", "cannot be followed"),
        ("line 22: file 'pipe.png'", "expected an image, got a pipe"),
    ]
    found = problems_of(folder)
    assert len(found) == len(expected), "\n".join(found)
    for problem, (place, reason) in zip(found, expected, strict=True):
        assert problem.startswith(f"metadata.csv {place}") and reason in problem, problem


@pytest.mark.parametrize(
    ("metadata", "problem"),
    [
        ("file,caption\na.png,x\n", "line 1: expected the columns file_name and text, got file, caption"),
        ("file_name,text,text\na.png,x,y\n", "line 1: expected each column once, got text repeatedly"),
        ("", "line 1: expected the columns file_name and text, got nothing"),
        ("file_name,text\n", "expected at least one image"),
        ('file_name,text\na.png,"x\n', "expected comma-separated values"),
        (b"file_name,text\na.png,caf\xe9\n", "line 2: expected UTF-8"),
        (b"\xff\xfef\0i\0", "expected the columns file_name and text"),
    ],
    ids=["wrong columns", "repeated", "empty", "header only", "open quote", "latin-1", "utf-16"],
)
def test_metadata_that_cannot_be_used(tmp_path, metadata, problem):
    found = problems_of(folder_of(tmp_path, metadata, a=png()))
    assert any(problem in line for line in found), found


def test_lines_are_counted_through_quoted_line_breaks(tmp_path):
    metadata = b'file_name,text\na.png,"one\ntwo"\nb.png,\xff\nc.png,x\n'
    found = problems_of(folder_of(tmp_path, metadata, a=png(), b=png()))
    assert found == [
        "metadata.csv line 4: expected UTF-8, got other bytes",
        "metadata.csv line 5: file 'c.png' cannot be read: it is missing",
    ]


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("{", "expected one JSON object per line"),
        ("[1]", "expected a JSON object, got list"),
        ('{"file_name": "a.png"}', "got none for text"),
        ('{"file_name": "a.png", "text": 7}', "got none for text"),
        ('{"file_name": "a.png", "text": ""}', "empty caption"),
        ('{"file_name": "a.png", "text": "\\ud800"}', "half of a surrogate pair"),
        ('{"file_name": "a.png", "text": "x", "split": "\\udfff"}', "half of a surrogate pair"),
        ('{"file_name": "a.png", "text": "x", "group": ["\\ud842"]}', "half of a surrogate pair"),
        ('{"file_name": "a.png", "text": "x", "\\ud842": 1}', "half of a surrogate pair"),
        (json.dumps({"file_name": "a" * 5_000, "text": "x"}), "File name too long"),
        ("[" * 100_000, "expected one JSON object per line"),
    ],
    ids=[
        "open",
        "list",
        "absent",
        "number",
        "empty",
        "surrogate",
        "in a split",
        "in a list",
        "as a name",
        "long name",
        "deep",
    ],
)
def test_bad_jsonl_lines(tmp_path, line, problem):
    found = problems_of(folder_of(tmp_path, f"\n{line}\n", "metadata.jsonl", a=png()))
    assert len(found) == 1 and found[0].startswith("metadata.jsonl line 2:") and problem in found[0]


def test_folders_that_are_no_datasets(tmp_path):
    assert problems_of(tmp_path / "none") == ["expected a folder of images, got none"]
    assert problems_of(tmp_path) == ["expected metadata.csv or metadata.jsonl, got neither"]
    folder_of(tmp_path, "file_name,text\n")
    folder_of(tmp_path, "", "metadata.jsonl")
    assert "both" in problems_of(tmp_path)[0]


def test_problems_in_subfolders_name_the_subfolder(tmp_path):
    folder_of(tmp_path / "train", "file_name,text\na.png,x\n../../b.png,y\n")
    found = problems_of(tmp_path)
    assert found[0] == "train/metadata.csv line 2: file 'train/a.png' cannot be read: it is missing"
    assert "leads out of the folder" in found[1]


# --- Splitting -------------------------------------------------------------------------------------


def test_hold_out_divides_no_group_and_meets_its_share():
    rng = np.random.default_rng(0)
    groups = pd.Series(rng.integers(0, 120, 500))
    for seed in range(5):
        split = hold_out(groups, 0.2, seed)
        assert (split.groupby(groups).nunique() == 1).all()
        assert 90 <= (split == "held_out").sum() <= 100
    assert (hold_out(groups, 0.2, 0) == hold_out(groups, 0.2, 0)).all()
    assert (hold_out(groups, 0.2, 0) != hold_out(groups, 0.2, 1)).any()
    assert (hold_out(groups, 0.0, 0) == "train").all() and (hold_out(groups, 1.0, 0) == "held_out").all()
    with pytest.raises(ValueError, match="share must lie in"):
        hold_out(groups, 1.5, 0)


# --- Building --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def left16(tmp_path_factory) -> Dataset:
    return build_dataset(Left16(), tmp_path_factory.mktemp("data") / "left16")


def test_left16_folder(left16):
    training, kept = left16.split("train"), left16.split("held_out")
    assert (len(training), len(kept)) == (1_408, 294)
    row = left16.table.iloc[0]
    assert (row.file_name, row.character, row.text) == ("train/渥_kanji_06e25.png", "渥", "kindness;moisten")
    assert (row.codepoint, row.radical, row.radical_character, row.position) == (0x6E25, 85, "水", "left")
    assert training.table["radical_character"].value_counts().eq(88).all()
    assert not set(training.table["group"]) & set(kept.table["group"])
    assert not set(training.table["text"]) & set(kept.table["text"])


def test_images_are_the_font_s_glyphs(left16):
    indices = [0, 500, 1_600]
    drawn = [np.asarray(draw_font(left16.table["character"].iloc[i], default_font())) for i in indices]
    assert (left16.images(indices) == np.stack(drawn)).all()


def test_description_and_card(left16):
    description = json.loads((left16.folder / "dataset.json").read_text("utf-8"))
    assert description["rule"] == {"name": "left16", "per_radical": None}
    assert description["content_hash"] == left16.content_hash == open_dataset(left16.folder).content_hash
    assert description["balance"]["train"]["radical_bits"] == pytest.approx(4.0)
    assert description["balance"]["train"]["by_position"] == {"left": 1_408}
    assert description["drawn_from"]["font"] == "ipaexg.ttf"
    card = (left16.folder / "README.md").read_text("utf-8")
    assert card.startswith("---\nlicense: cc-by-sa-4.0\n")
    for wanted in ("| train | 1408 | 16 | 4.000 | 1408 |", "KANJIDIC2", "ipaexg.ttf", "kindness;moisten"):
        assert wanted in card


@pytest.mark.filterwarnings("ignore")  # of the reading library's own making
def test_the_datasets_library_reads_it(left16, tmp_path):
    from datasets import load_dataset

    one = load_dataset("imagefolder", data_dir=str(left16.folder / "train"), cache_dir=str(tmp_path / "one"))
    assert one["train"].num_rows == 1_408
    assert one["train"]["text"][0] == "kindness;moisten" and one["train"][0]["image"].size == (128, 128)
    top = load_dataset("imagefolder", data_dir=str(left16.folder), cache_dir=str(tmp_path / "top"))
    assert top["train"].num_rows == 1_408  # what is held out stays out of a foreign trainer's way
    both = load_dataset(str(left16.folder), cache_dir=str(tmp_path / "both"))
    assert {name: part.num_rows for name, part in both.items()} == {"train": 1_408, "held_out": 294}
    gc.collect()  # it leaves files open; closing them here keeps the warning out of the next test
    assert sorted(both["held_out"]["text"]) == sorted(left16.split("held_out").table["text"])


def test_a_build_tells_of_characters_and_of_images(tmp_path):
    counts: list[tuple[int, int]] = []
    table = small_table()
    images = build_dataset(
        EveryCharacter(), tmp_path / "set", characters=table, on_progress=lambda *count: counts.append(count)
    )
    tried = sum(map(bool, table["meanings_raw"]))
    assert counts[:tried] == [(done, tried) for done in range(1, tried + 1)]
    assert counts[tried:] == [(done, len(images)) for done in range(1, len(images) + 1)]


def test_a_second_build_reads_what_is_there(left16, monkeypatch):
    monkeypatch.setattr(build, "draw_font", None)  # would fail if anything were drawn
    again = build_dataset(Left16(), left16.folder)
    assert again.content_hash == left16.content_hash
    with pytest.raises(DatasetError, match="holds something else: other rule$"):
        build_dataset(Seed16(), left16.folder)


def test_a_folder_made_by_other_versions_is_read_by_its_content(tmp_path, monkeypatch):
    built = build_dataset(EveryCharacter(), tmp_path / "set", characters=small_table())
    monkeypatch.setattr(build, "_versions", lambda: {"kanjilab": "9.9", "jamdict-data": "9", "pillow": "99"})
    again = build_dataset(EveryCharacter(), tmp_path / "set", characters=small_table())
    assert again.content_hash == built.content_hash


def small_table() -> pd.DataFrame:
    return load_characters().loc[list("亜水氷観觀明昞木林森日月人")]


def test_every_character_split_by_share(tmp_path):
    found = build_dataset(EveryCharacter(), tmp_path / "all", characters=small_table(), held_out_share=0.4, seed=3)
    group = caption_groups(small_table())
    assert (found.table.groupby(found.table["character"].map(group))["split"].nunique() == 1).all()
    assert set(found.table["split"]) == {"train", "held_out"}
    row = found.table.set_index("character").loc["亜"]
    assert Path(row.file_name).name == image_name("亜") == "亜_kanji_04e9c.png"
    assert row.text.endswith("plain font. The character means: Asia, rank next, come after.")
    with (tmp_path / "all" / row.split / "metadata.csv").open(encoding="utf-8", newline="") as file:
        first = next(csv.DictReader(file))
    assert first["file_name"] == image_name(first["character"])
    assert int(first["codepoint"]) == ord(first["character"])


def test_building_twice_gives_the_same_bytes(tmp_path):
    folders = [tmp_path / "a" / "all", tmp_path / "b" / "all"]
    for folder in folders:
        build_dataset(EveryCharacter(), folder, characters=small_table())
    files = [sorted(p.relative_to(f) for p in f.rglob("*") if p.is_file()) for f in folders]
    assert files[0] == files[1] and len(files[0]) == 16  # 13 images, metadata, card, description
    assert all((folders[0] / name).read_bytes() == (folders[1] / name).read_bytes() for name in files[0])


def test_what_cannot_be_drawn_is_named_and_nothing_is_left(tmp_path):
    square = '<svg xmlns="http://www.w3.org/2000/svg"><path d="M20,20L80,20"/></svg>'
    clipped = square.replace("80,20", "200,20")
    files = {f"{ord(c):05x}.svg": (clipped if c in "木林" else square).encode() for c in "水木林森"}
    with pytest.raises(DatasetError) as caught:
        build_dataset(EveryCharacter(), tmp_path / "set", characters=small_table(), kanjivg=KanjiVG(files))
    assert len(caught.value.problems) == 2 and "木 (U+6728) are clipped" in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_failure_while_writing_leaves_nothing(tmp_path, monkeypatch):
    def fail(*_):
        raise OSError("no space left on device")

    monkeypatch.setattr(build, "_card", fail)
    with pytest.raises(OSError, match="no space left"):
        build_dataset(EveryCharacter(), tmp_path / "set", characters=small_table())
    assert list(tmp_path.iterdir()) == []


def test_another_process_may_build_it_first(tmp_path, monkeypatch):
    write_card, first = build._card, []

    def beaten(*arguments):
        monkeypatch.setattr(build, "_card", write_card)
        first.append(build_dataset(EveryCharacter(), tmp_path / "set", characters=small_table()))
        return write_card(*arguments)

    monkeypatch.setattr(build, "_card", beaten)
    second = build_dataset(EveryCharacter(), tmp_path / "set", characters=small_table())
    assert second.content_hash == first[0].content_hash and second.folder == first[0].folder
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


def test_a_folder_in_use_or_changed_since_is_left_alone(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("keep me")
    with pytest.raises(DatasetError, match="holds something else"):
        build_dataset(EveryCharacter(), tmp_path / "mine", characters=small_table())
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["letter.txt"]
    found = build_dataset(EveryCharacter(), tmp_path / "set", characters=small_table())
    (found.folder / found.table["file_name"].iloc[0]).write_bytes(png())
    with pytest.raises(DatasetError, match="changed since"):
        build_dataset(EveryCharacter(), tmp_path / "set", characters=small_table())


def test_a_font_and_kanjivg_together_are_refused(tmp_path):
    with pytest.raises(ValueError, match="a font or KanjiVG, got both"):
        build_dataset(Left16(), tmp_path / "set", font=default_font(), kanjivg=KanjiVG({}))


def test_left16_from_strokes(tmp_path):
    mirror = os.environ.get("KANJILAB_MIRROR")
    if not mirror or not list(Path(mirror).glob("kanjivg-*.zip")):
        pytest.skip("needs KanjiVG in the folder named by KANJILAB_MIRROR")
    found = build_dataset(Left16(8), tmp_path / "set", kanjivg=KanjiVG.open(), held_out_per_radical=1)
    assert found.table["split"].value_counts().to_dict() == {"train": 128, "held_out": 16}
    assert "KanjiVG" in (found.folder / "README.md").read_text("utf-8")
    shutil.rmtree(found.folder)
