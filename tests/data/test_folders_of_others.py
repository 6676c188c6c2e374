"""Image folders of other hands: what is passed over is told, and odd columns do no harm."""

import json
import os

import numpy as np
import pytest
from PIL import Image

from kanjilab.core.notices import LISTED
from kanjilab.data import image_folder
from kanjilab.data.image_folder import DatasetError, open_dataset
from kanjilab.widgets.dataset_browser import DatasetBrowser, Filter, balance_table, filter_table, same_caption


def picture(path, shade=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    values = np.full((8, 8), 255, np.uint8)
    values[2:6, 2:6] = shade
    Image.fromarray(values).save(path)


def listing(folder, *names):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "metadata.csv").write_text("\n".join(["file_name,text", *(f"{name},tree" for name in names)]) + "\n")


# What lies in the folder beside the one image of metadata.csv -> what is told of it
BESIDE = {
    "metadata in a subfolder": (["train/b.png", "train/metadata.csv"], ["not read: train/metadata.csv", "train/b.png"]),
    "metadata.jsonl in a subfolder": (["x/metadata.jsonl"], ["not read: x/metadata.jsonl"]),
    "metadata two levels below": (["x/y/metadata.csv", "x/y/c.png"], ["not read: x/y/metadata.csv", "x/y/c.png"]),
    "images beside it": (["b.png", "c.png"], ["2 images left out, not in the metadata: b.png, c.png"]),
    "an image in capitals": (["B.JPG"], ["1 image left out, not in the metadata: B.JPG"]),
    "images of an older form": (["old/b.tif"], ["1 image left out, not in the metadata: old/b.tif"]),
    "more than are named": ([f"{i}.png" for i in range(9)], ["9 images", "4.png and 4 more"]),
    "notes and hidden files": (["README.md", ".cache/b.png", ".b.png", "notes.txt"], []),
}


@pytest.mark.parametrize("name", BESIDE)
def test_what_is_not_read_is_told(name, tmp_path, caplog):
    others, told = BESIDE[name]
    picture(tmp_path / "a.png")
    listing(tmp_path, "./a.png")
    for other in others:
        (tmp_path / other).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / other).touch()
    assert len(open_dataset(tmp_path)) == 1
    assert len(caplog.messages) == (
        0
        if not told
        else 1 + any("metadata" in o and "png" not in o for o in others) * any(o.endswith(".png") for o in others)
    )
    assert all(part in "\n".join(caplog.messages) for part in told)


def test_metadata_of_subfolders_is_read_where_the_root_has_none(tmp_path, caplog):
    for split in ("train", "held_out"):
        picture(tmp_path / split / "a.png")
        listing(tmp_path / split, "a.png")
    assert len(open_dataset(tmp_path)) == 2 and not caplog.messages


# Columns named like ours -> whether they are kept
ODD = {
    "group of lists": ("group", [[1], [2, 3], []], False),
    "group of tables": ("group", [{"a": 1}] * 3, False),
    "radicals of lists": ("radical_character", [["水", "火"], ["木"], ["木"]], False),
    "a list in one row": ("radical_character", ["水", "木", ["火"]], False),
    "position of lists": ("position", [["left"], ["left"], ["top"]], False),
    "characters of lists": ("character", [["水"], ["木"], ["火"]], False),
    "strokes in words": ("strokes", ["five", "4", "3"], False),
    "strokes of lists": ("strokes", [[1, 2], [3], [4]], False),
    "strokes as text": ("strokes", ["5", "4", ""], True),
    "no strokes known": ("strokes", [None, None, None], True),
    "groups by name": ("group", ["a", "a", "b"], True),
    "radicals with gaps": ("radical_character", ["水", "", None], True),
}


@pytest.mark.parametrize("name", ODD)
def test_a_column_of_another_type_is_left_out_and_the_browser_works(name, tmp_path, caplog):
    column, values, kept = ODD[name]
    for number in range(3):
        picture(tmp_path / f"{number}.png", shade=50 * number)
    rows = [{"file_name": f"{n}.png", "text": f"t{n}", column: value} for n, value in enumerate(values)]
    (tmp_path / "metadata.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    dataset = open_dataset(tmp_path)
    assert (column in dataset.table) == kept
    assert [f"the column {column!r} is left out" in line for line in caplog.messages] == ([] if kept else [True])
    assert DatasetBrowser(dataset).rows.tolist() == [0, 1, 2]
    assert same_caption(dataset.table, 0).tolist() == ([1] if values == ["a", "a", "b"] else [])
    assert balance_table(dataset.table, np.arange(3)).to_numpy().sum() == 3
    if column == "strokes" and not kept:
        with pytest.raises(ValueError, match="expected a dataset with the column 'strokes'"):
            filter_table(dataset.table, Filter(strokes=(1, 5)))
    if name == "strokes as text":
        assert filter_table(dataset.table, Filter(strokes=(5, 9))).tolist() == [0]


@pytest.mark.parametrize("value", [["train"], {"name": "train"}, []])
def test_a_split_is_one_name(value, tmp_path):
    picture(tmp_path / "a.png")
    row = {"file_name": "a.png", "text": "t", "split": value}
    (tmp_path / "metadata.jsonl").write_text(json.dumps(row))
    with pytest.raises(DatasetError, match=r"line 1: file 'a.png' is of the split .*: expected one name"):
        open_dataset(tmp_path)


def test_one_picture_for_many_characters_is_told(tmp_path, caplog):
    for number, character in enumerate("水火木"):
        picture(tmp_path / f"{number}.png", shade=0 if character in "水火" else 99)
    rows = [f"{number}.png,{character},{character}" for number, character in enumerate("水火木")]
    (tmp_path / "metadata.csv").write_text("\n".join(["file_name,text,character", *rows]))
    open_dataset(tmp_path)
    assert ["2 characters with the same image" in line and "水, 火" in line for line in caplog.messages] == [True]


def test_a_long_list_of_problems_is_cut_in_the_message_alone(tmp_path):
    listing(tmp_path, *(f"{number}.png" for number in range(5_000)))
    with pytest.raises(DatasetError) as caught:
        open_dataset(tmp_path)
    lines = str(caught.value).split("\n")
    assert lines[0].endswith("5,000 problems") and lines[-1].strip() == f"and {5_000 - LISTED:,} more"
    assert len(lines) == LISTED + 2 and len(caught.value.problems) == 5_000


def test_metadata_without_end_and_of_another_place_is_refused(tmp_path, monkeypatch):
    inside = tmp_path / "set"
    inside.mkdir()
    secret = tmp_path / "secret"
    secret.write_text("file_name,text\nname,password\n")
    (inside / "metadata.csv").symlink_to(secret)
    with pytest.raises(
        DatasetError, match=r"metadata\.csv leads out of the folder through a link.*hf download"
    ) as caught:
        open_dataset(inside)
    assert "password" not in str(caught.value)
    (inside / "metadata.csv").unlink()
    with (inside / "metadata.csv").open("wb") as file:
        os.truncate(file.fileno(), image_folder.METADATA_BYTES_MAX + 1)  # takes no room on the disk
    with pytest.raises(DatasetError, match=r"expected metadata of at most 1,073,741,824 bytes, got 1,073,741,825"):
        open_dataset(inside)


# Folders in the forms of other tools


def captions_in_files(folder, **captions):
    for name, text in captions.items():
        picture(folder / f"{name}.png", shade=len(name) * 20)
        if text is not None:
            (folder / f"{name}.txt").write_bytes(text.encode())


def test_captions_beside_the_images_are_read_as_kohya_has_them(tmp_path, caplog):
    captions_in_files(tmp_path / "10_kanji", a="\ufeffwater\nmore of it\n", bb="\n tree \n")
    captions_in_files(tmp_path, ccc="fire, 火")
    (tmp_path / "ccc.txt").rename(tmp_path / "ccc.caption")
    (tmp_path / "notes.txt").write_text("nothing of an image")
    table = open_dataset(tmp_path).table
    assert dict(zip(table["file_name"], table["text"], strict=True)) == {
        **{"10_kanji/a.png": "water", "10_kanji/bb.png": "tree", "ccc.png": "fire, 火"}
    }
    assert set(table["split"]) == {"train"}
    assert ["each image counts once" in line and "10_kanji" in line for line in caplog.messages] == [True]


def test_images_without_a_caption_beside_them_are_named(tmp_path):
    captions_in_files(tmp_path, a="water", bb=None, ccc=" \n", dddd="fire")
    (tmp_path / "dddd.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DatasetError) as caught:
        open_dataset(tmp_path)
    assert [line.partition(" (")[0] for line in caught.value.problems] == [
        "bb.png: has no caption: expected bb.txt beside it",
        "ccc.png: has an empty caption in ccc.txt",
        "dddd.png: has a caption that cannot be read",
    ]


# What metadata is written -> what is said of it
ROWS_OF_OTHERS = {
    "prompt": ({"file_name": "a.png", "prompt": "x"}, "rename 'prompt' to 'text'"),
    "caption": ({"file_name": "a.png", "caption": "x"}, "rename 'caption' to 'text'"),
    "image": ({"image": "a.png", "text": "x"}, "rename 'image' to 'file_name'"),
    "several captions": ({"file_name": "a.png", "text": ["x", "y"]}, "of a list of captions keep one, or join them"),
}


@pytest.mark.parametrize("name", ROWS_OF_OTHERS)
@pytest.mark.parametrize("as_json", [True, False])
def test_columns_of_other_tools_are_named_with_what_to_do(name, as_json, tmp_path):
    row, said = ROWS_OF_OTHERS[name]
    picture(tmp_path / "a.png")
    if as_json:
        (tmp_path / "metadata.jsonl").write_text(json.dumps(row))
    elif "text" not in row or isinstance(row["text"], str):
        (tmp_path / "metadata.csv").write_text("\n".join([",".join(row), ",".join(row.values())]))
    else:
        pytest.skip("a table has no lists")
    with pytest.raises(DatasetError, match=said):
        open_dataset(tmp_path)


FORMS = {
    "state.json": "save_to_disk",
    "dataset_dict.json": "save_to_disk",
    "data/train-00000-of-00001.parquet": "Parquet",
    "00000.tar": "WebDataset",
    "snapshots/0123/metadata.csv": "hf download --local-dir",
}


@pytest.mark.parametrize("file", FORMS)
def test_datasets_in_other_forms_are_known_for_what_they_are(file, tmp_path):
    (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / file).write_text("{}")
    with pytest.raises(DatasetError, match=rf"got neither; it is .*{FORMS[file]}"):
        open_dataset(tmp_path)


def test_images_that_are_scaled_down_are_told_with_how_to_train_at_another_size(tmp_path, caplog):
    for number, side in enumerate((100, 128, 512)):
        Image.fromarray(np.arange(side * 64, dtype=np.uint8).reshape(64, side)).save(tmp_path / f"{number}.png")
    listing(tmp_path, "0.png", "1.png", "2.png")
    open_dataset(tmp_path)
    (said,) = [line for line in caplog.messages if "brought to" in line]
    assert "1 image of up to 512 px brought to 128 x 128 px" in said and "--size-px" in said
    caplog.clear()
    open_dataset(tmp_path, size_px=512)
    assert not caplog.messages
