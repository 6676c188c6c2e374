"""Folders that appear whole: with the user's own permissions, once, and not at all after an error."""

import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from kanjilab.core import storage
from kanjilab.core.storage import appearing_folder, require_new, require_place, write_together


@pytest.fixture
def mask():
    """Files that nobody but the group may read, whatever the machine's own setting."""
    before = os.umask(0o027)
    yield
    os.umask(before)


def test_a_folder_appears_whole_and_is_as_private_as_the_user_wants(tmp_path, mask):
    with appearing_folder(tmp_path / "new" / "folder") as partial:
        (partial / "file").write_text("whole")
        (partial / "part").mkdir()
        save_file({"a": torch.zeros(1)}, partial / "part" / "weights.safetensors")  # for the user alone
        assert not (tmp_path / "new" / "folder").exists()
    assert (tmp_path / "new" / "folder" / "file").read_text() == "whole"
    assert (tmp_path / "new" / "folder").stat().st_mode & 0o777 == 0o750
    assert (tmp_path / "new" / "folder" / "part" / "weights.safetensors").stat().st_mode & 0o777 == 0o640
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["folder"]


def test_nothing_stays_behind_after_an_error(tmp_path):
    with pytest.raises(KeyError), appearing_folder(tmp_path / "folder") as partial:
        (partial / "file").write_text("half")
        raise KeyError
    assert list(tmp_path.iterdir()) == []


def test_the_folder_of_who_was_first_stays(tmp_path):
    with appearing_folder(tmp_path / "folder") as late:
        (late / "file").write_text("late")
        with appearing_folder(tmp_path / "folder") as early:
            (early / "file").write_text("early")
    assert (tmp_path / "folder" / "file").read_text() == "early"
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


def test_files_that_belong_together_are_written_both_or_neither(tmp_path, monkeypatch):
    first, second = tmp_path / "a.png", tmp_path / "a.svg"
    first.write_bytes(b"old")
    write = storage.write_synced
    monkeypatch.setattr(storage, "write_synced", lambda path, data: write(path, data) if data == b"1" else 1 / 0)
    with pytest.raises(ZeroDivisionError):
        write_together({first: b"1", second: b"2"})
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"] and first.read_bytes() == b"old"
    monkeypatch.undo()
    assert write_together({first: b"1", second: b"2"}) == [first, second]
    assert (first.read_bytes(), second.read_bytes()) == (b"1", b"2")
    assert len(list(tmp_path.iterdir())) == 2


def test_a_place_is_refused_where_nothing_can_be_written(tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to("nowhere")
    for name, why in {"file/a/b": "is no folder", "link": "a link that leads nowhere"}.items():
        with pytest.raises(ValueError, match=why):
            require_place(tmp_path / name)
    require_place(tmp_path / "new" / "folder" / "file")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "link"]


def test_a_folder_that_cannot_take_its_name_is_not_dropped_without_a_word(tmp_path):
    """A finished folder cannot replace a link, even one to an empty folder."""
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "empty")
    with pytest.raises(OSError, match="link"), appearing_folder(tmp_path / "link") as partial:
        (partial / "done").touch()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "link"]


@pytest.mark.parametrize("there", ["empty", "link", "nowhere", "."])
def test_what_is_there_in_any_form_is_no_new_folder(tmp_path, there, monkeypatch):
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "empty")
    (tmp_path / "nowhere").symlink_to(tmp_path / "missing")
    monkeypatch.chdir(tmp_path)
    require_new(Path("new"))
    with pytest.raises(FileExistsError, match="exists already: expected a new folder"):
        require_new(Path(there))
