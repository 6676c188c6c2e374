import pytest

from kanjilab.data.image_folder import DatasetError, open_dataset
from kanjilab.data.subset import write_subset
from tests.image_folders import eight_kanji


def test_a_part_has_the_same_files_and_the_captions_of_the_table(tmp_path):
    dataset = open_dataset(eight_kanji(tmp_path / "all"))
    dataset.table.loc[2, "text"] = "another caption, with a comma"
    part = write_subset(dataset, [5, 2, 4], tmp_path / "part", {"note.json": b"{}"})
    assert part.digests == tuple(dataset.digests[row] for row in (5, 2, 4))
    assert part.table["text"].tolist() == [dataset.table["text"][row] for row in (5, 2, 4)]
    assert part.table["split"].tolist() == ["train", "train", "held_out"]
    assert part.table.columns.tolist() == dataset.table.columns.tolist()
    assert (tmp_path / "part" / "note.json").read_bytes() == b"{}"


def test_splits_that_are_folders_stay_folders(tmp_path):
    whole = open_dataset(eight_kanji(tmp_path / "all"))
    table = whole.table.assign(file_name=whole.table["split"] + "/" + whole.table["file_name"])
    for split in ("train", "held_out"):
        (tmp_path / "all" / split).mkdir()
        rows = table.loc[table["split"] == split]
        for name in rows["file_name"]:
            (tmp_path / "all" / name.partition("/")[2]).rename(tmp_path / "all" / name)
        plain = rows.assign(file_name=rows["file_name"].str.partition("/")[2])
        plain.to_csv(tmp_path / "all" / split / "metadata.csv", index=False)
    (tmp_path / "all" / "metadata.csv").unlink()
    dataset = open_dataset(tmp_path / "all")
    part = write_subset(dataset, range(1, len(dataset)), tmp_path / "part")
    assert not (tmp_path / "part" / "metadata.csv").exists()
    assert part.table["file_name"].tolist() == dataset.table["file_name"].tolist()[1:]
    assert part.table["split"].value_counts().to_dict() == {"train": 5, "held_out": 2}


def test_nothing_is_written_over_and_nothing_is_left_half(tmp_path):
    dataset = open_dataset(eight_kanji(tmp_path / "all"))
    with pytest.raises(FileExistsError, match="exists already: expected a new folder"):
        write_subset(dataset, [0], tmp_path / "all")
    (tmp_path / "all" / dataset.table["file_name"][3]).write_bytes(b"changed")
    with pytest.raises(DatasetError, match="was changed after the dataset was opened"):
        write_subset(dataset, [0, 3], tmp_path / "part")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["all"]
