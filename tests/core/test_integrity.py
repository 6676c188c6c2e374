"""A flipped bit, a cut file, a missing one: named, or made again; never used without a word."""

import errno
import json
import os

import numpy as np
import pytest

from kanjilab.core import storage
from kanjilab.core.manifest import MANIFEST, keep_sound, kept_where_it_can_be
from kanjilab.core.run_folder import RunError, RunExists, RunFolder, find_runs
from kanjilab.core.storage import appearing_folder, reserve, temporary_name

ARM = {"arms": [{"rank": 4}]}
CONTENT = bytes(range(256)) * 40


def flipped(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))


def zeroed(path):
    path.write_bytes(bytes(path.stat().st_size))


def cut(path):
    os.truncate(path, path.stat().st_size // 2)


def emptied(path):
    os.truncate(path, 0)


def longer(path):
    path.write_bytes(path.read_bytes() + b"\0")


def folder_instead(path):
    path.unlink()
    path.mkdir()


DAMAGE = {"a flipped bit": flipped, "all zeros": zeroed, "cut in half": cut, "emptied": emptied, "longer": longer}
DAMAGE |= {"deleted": lambda path: path.unlink(), "a folder in its place": folder_instead}


@pytest.fixture
def run(tmp_path):
    run = RunFolder.create(tmp_path / "runs" / "one", ARM)
    with run.lock():
        for step in (0, 4, 8):
            run.write_checkpoint(step, {"state.json": {"step": step}, "arm_0/weights.bin": CONTENT})
    return run


@pytest.mark.parametrize("name", DAMAGE)
@pytest.mark.parametrize("file", ["state.json", "arm_0/weights.bin"])
def test_a_damaged_checkpoint_is_named_with_the_one_before_it(name, file, run):
    DAMAGE[name](run.path / "checkpoints" / "step_000008" / file)
    same_size = name in ("a flipped bit", "all zeros")
    assert run.damaged_checkpoints() == ([] if same_size else [8])
    with pytest.raises(RunError) as caught:
        run.sound_file(8, file)
    assert "step_000008" in str(caught.value) or "step 8" in str(caught.value)
    assert ("go on from step 4" if same_size else "only [0, 4]") in str(caught.value)
    run.verify_checkpoint(4)


@pytest.mark.parametrize("name", ["a flipped bit", "all zeros"])
def test_a_state_is_read_as_it_was_written_or_not_at_all(name, run):
    assert run.read_state(8) == {"step": 8}
    DAMAGE[name](run.path / "checkpoints" / "step_000008" / "state.json")
    with pytest.raises(RunError, match=r"state\.json: expected SHA-256"):
        run.read_state(8)


IMAGES = np.arange(4 * 16 * 16, dtype=np.uint8).reshape(4, 16, 16)


@pytest.mark.parametrize("name", [name for name in DAMAGE if name != "deleted"])
def test_damaged_samples_are_named_and_left_out(name, run, caplog):
    for key in ("a", "b"):
        run.write_samples(key, IMAGES, {"prompts": [key]})
    DAMAGE[name](run.path / "samples" / "a.safetensors")
    with pytest.raises(RunError, match=r"a\.safetensors|has no samples 'a'"):
        run.read_samples("a")
    found = list(run.sound_samples(["a", "b"]))
    assert [(key, facts) for key, _, facts in found] == [("b", {"prompts": ["b"]})]
    assert (found[0][1] == IMAGES).all() and len(caplog.messages) == 1


@pytest.mark.parametrize("part", [b'"prompts', IMAGES.tobytes()[5:25]], ids=["facts", "pixels"])
def test_every_byte_of_samples_counts(part, run):
    path = run.write_samples("a", IMAGES, {"prompts": ["water"]})
    data = path.read_bytes()
    at = data.index(part) + 3
    path.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
    with pytest.raises(RunError, match=r"a\.safetensors"):
        run.read_samples("a")


def test_samples_of_older_versions_have_no_hash_and_are_read(run):
    from safetensors.numpy import save_file

    save_file({"images": IMAGES}, run.path / "samples" / "old.safetensors", {"facts": "{}"})
    assert (run.read_samples("old")[0] == IMAGES).all()


# --- Caches ----------------------------------------------------------------------------------------


def filled(folder, made):
    def make():
        with appearing_folder(folder) as temporary:
            made.append(1)
            (temporary / "sub").mkdir()
            (temporary / "sub" / "weights.bin").write_bytes(CONTENT)
            (temporary / "config.json").write_text("{}")

    return make


def test_a_manifest_names_no_file_that_another_process_is_writing(tmp_path):
    folder = tmp_path / "cache"
    filled(folder, [])()
    (folder / temporary_name(MANIFEST)).write_text("{")
    keep_sound(folder, filled(folder, []))
    assert sorted(json.loads((folder / MANIFEST).read_text())) == ["config.json", "sub/weights.bin"]


@pytest.mark.parametrize("name", DAMAGE)
@pytest.mark.parametrize("file", ["sub/weights.bin", "config.json", MANIFEST])
def test_a_damaged_cache_is_made_again(name, file, tmp_path, caplog):
    folder, made = tmp_path / "cache", []
    keep_sound(folder, filled(folder, made))
    keep_sound(folder, filled(folder, made))
    assert made == [1] and not caplog.messages
    DAMAGE[name](folder / file)
    keep_sound(folder, filled(folder, made))
    assert (folder / "sub" / "weights.bin").read_bytes() == CONTENT and (folder / "config.json").read_text() == "{}"
    if (file, name) == (MANIFEST, "deleted"):  # as in a cache of an older version
        assert made == [1] and not caplog.messages
    else:
        assert made == [1, 1] and "It is made again" in caplog.messages[0] and str(folder) in caplog.messages[0]
    assert [path.name for path in tmp_path.iterdir()] == ["cache"]


def test_an_older_cache_is_taken_as_it_is_and_watched_from_then_on(tmp_path, caplog):
    folder, made = tmp_path / "cache", []
    filled(folder, made)()
    keep_sound(folder, filled(folder, made))
    assert made == [1] and json.loads((folder / MANIFEST).read_bytes()).keys() == {"sub/weights.bin", "config.json"}
    flipped(folder / "sub" / "weights.bin")
    keep_sound(folder, filled(folder, made))
    assert made == [1, 1] and len(caplog.messages) == 1


def test_room_is_taken_before_it_is_needed(tmp_path, monkeypatch):
    path = tmp_path / "array.npy"
    array = np.lib.format.open_memmap(path, "w+", np.float32, (1000, 1000))
    before = path.stat().st_blocks
    reserve(path, path.stat().st_size)
    assert path.stat().st_blocks * 512 >= 4_000_000 > before * 512 and not array.any()

    def full(descriptor, start, size):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(storage.os, "posix_fallocate", full)
    with pytest.raises(OSError, match=r"no room for 4 MB on the disk, .* MB are free: .*array\.npy"):
        reserve(path, path.stat().st_size)


@pytest.mark.parametrize("number", [errno.EACCES, errno.EPERM, errno.EROFS])
def test_what_cannot_be_kept_is_told(number, caplog):
    for _ in range(2):
        with kept_where_it_can_be("a fit"):
            raise OSError(number, os.strerror(number))
    assert caplog.messages == [f"a fit is not kept: nothing can be written there ({os.strerror(number)})"]
    with pytest.raises(OSError, match="No space left"), kept_where_it_can_be("a fit"):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


# --- One broken run among good ones ----------------------------------------------------------------

BROKEN = {
    "no JSON": lambda run: (run / "settings.json").write_text("{"),
    "emptied": lambda run: (run / "settings.json").write_text(""),
    "a list": lambda run: (run / "settings.json").write_text("[]"),
    "not UTF-8": lambda run: (run / "settings.json").write_bytes(b"\xff\xfe{}"),
    "no arms": lambda run: (run / "settings.json").write_text("{}"),
    "arms that are a number": lambda run: (run / "settings.json").write_text('{"arms": 3}'),
    "no arm": lambda run: (run / "settings.json").write_text('{"arms": []}'),
    "a state that is no JSON": lambda run: zeroed(run / "checkpoints" / "step_000008" / "state.json"),
    "a state with a flipped bit": lambda run: flipped(run / "checkpoints" / "step_000008" / "state.json"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_one_broken_run_is_left_out_with_a_word(name, run, caplog):
    other = RunFolder.create(run.path.parent / "two", ARM)
    BROKEN[name](run.path)
    for _ in range(2):  # panels look again and again
        assert [found.path for found in find_runs(run.path.parent)] == [other.path]
    assert len(caplog.messages) == 1 and f"{run.path} is left out" in caplog.messages[0]


# --- Whose checkpoints are these -------------------------------------------------------------------


def test_checkpoints_of_an_unknown_training_are_not_taken_up(run):
    (run.path / "settings.json").unlink()
    with pytest.raises(
        RunExists, match=r"holds checkpoints \(step_000008\) of a training whose settings\.json is missing"
    ):
        RunFolder.create(run.path, {"arms": [{"rank": 8}]})


@pytest.mark.parametrize("step", [None, "4", 1.5, [4], {"a": 1}])
def test_a_log_whose_steps_are_none_is_refused_by_line(step, run):
    with run.lock():
        run.log({"step": 2})
        run.log({"step": step})
        with pytest.raises(RunError, match=r"log\.jsonl line 2: expected a whole number as step"):
            run.truncate_log(4)
