"""A training whose files were damaged: it goes on to the same end, or it is refused by name."""

import errno
import json
import os

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from kanjilab.core import run_folder
from kanjilab.core.checkpoint_folder import checkpoint_contents, write_checkpoint_folder
from kanjilab.core.config import Arm
from kanjilab.core.run_folder import RunError, RunFolder
from kanjilab.data.image_folder import open_dataset
from kanjilab.models.loading import load_base
from kanjilab.models.sampling import Sampling
from kanjilab.training.encoded import encode_dataset
from kanjilab.training.history import sample_history, stored_history
from kanjilab.training.loop import train
from tests.tiny import tiny_encoded

ARM = Arm(rank=2, images_seen=4)
QUICK = Sampling("ddim", steps=1, guidance=1.0)


def flip(path):
    data = bytearray(path.read_bytes())
    data[-7] ^= 1
    path.write_bytes(bytes(data))


def trained(base, path, arm=ARM, until=None):
    steps = train(base, tiny_encoded(base), [arm], path, checkpoints=2)
    for report in steps:
        if report.step == until:
            steps.close()
            break
    return RunFolder.open(path)


def rewritten(run, step, change):
    """The checkpoint of a step with some files changed, and a manifest that fits."""
    folder = run.path / "checkpoints" / f"step_{step:06d}"
    state = json.loads((folder / "state.json").read_bytes())
    tensors = load_file(folder / "state.safetensors")
    change(state, tensors)
    names = [p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file() and p.name != "manifest.json"]
    files = {name: (folder / name).read_bytes() for name in names}
    contents = checkpoint_contents(step, files | {"state.json": state, "state.safetensors": tensors})
    folder.rename(folder.with_name(".tmp_old"))
    write_checkpoint_folder(folder, contents)


@pytest.mark.parametrize("file", ["state.safetensors", "state.json", "arm_0/adapter_model.safetensors"])
def test_a_flipped_bit_stops_the_next_call_until_the_checkpoint_is_gone(file, base, tmp_path):
    whole, run = trained(base, tmp_path / "whole"), trained(base, tmp_path / "run", until=3)
    folder = run.path / "checkpoints" / "step_000003"
    flip(folder / file)
    with pytest.raises(RunError, match=rf"step_000003/{file}: expected SHA-256 .* go on from step 1"):
        trained(base, run.path)
    folder.rename(tmp_path / "away")
    trained(base, run.path)
    ends = [r.checkpoint_path(4) / "arm_0" / "adapter_model.safetensors" for r in (whole, run)]
    assert ends[0].read_bytes() == ends[1].read_bytes()


IMPOSSIBLE = {
    "a step below zero": lambda state, tensors: state.update(step=-5),
    "another step": lambda state, tensors: state.update(step=2),
    "more steps than there are": lambda state, tensors: state["arms"][0].update(steps=10**9),
    "fewer than none": lambda state, tensors: state["arms"][0].update(steps=-1),
    "another training": lambda state, tensors: state.update(run="0123456789abcdef"),
    "an arm too many": lambda state, tensors: state["arms"].append(state["arms"][0]),
}


@pytest.mark.parametrize("name", IMPOSSIBLE)
def test_a_state_that_this_training_cannot_have_is_refused(name, base, tmp_path):
    run = trained(base, tmp_path / "run", until=3)
    rewritten(run, 3, IMPOSSIBLE[name])
    with pytest.raises(RunError, match=r"step_000003/state\.json: expected "):
        trained(base, run.path)


def test_weights_that_are_no_numbers_are_refused(base, tmp_path):
    run = trained(base, tmp_path / "run", until=3)
    rewritten(run, 3, lambda state, tensors: tensors["values"].view(-1)[:1].fill_(torch.nan))
    with pytest.raises(ValueError, match="step 3: the stored values is not finite"):
        trained(base, run.path)


def test_checkpoints_that_do_not_say_whose_they_are_go_on(base, tmp_path):
    run = trained(base, tmp_path / "run", until=3)
    rewritten(run, 3, lambda state, tensors: state.pop("run"))
    assert trained(base, run.path).checkpoints()[-1] == 4


def test_damaged_samples_are_drawn_again(base, tmp_path, caplog):
    run = trained(base, tmp_path / "run")
    first, facts = sample_history(base, run, ["water"], [0], QUICK)
    flip(run.path / "samples" / f"{run.samples()[0]}.safetensors")
    assert stored_history(run, ["water"], [0], QUICK) is None and "drawn again" in caplog.text
    again, _ = sample_history(base, run, ["water"], [0], QUICK)
    assert (again == first).all() and (stored_history(run, ["water"], [0], QUICK)[0] == first).all()


@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS, errno.ENOSPC])
def test_a_run_that_is_for_reading_alone_is_drawn_and_a_full_disk_is_said(number, base, tmp_path, monkeypatch, caplog):
    run = trained(base, tmp_path / "run")
    expected, _ = sample_history(base, trained(base, tmp_path / "other"), ["water"], [0], QUICK)

    def refuse(path, data):
        raise OSError(number, os.strerror(number), str(path))

    monkeypatch.setattr(run_folder, "write_bytes_atomic", refuse)
    if number == errno.ENOSPC:
        with pytest.raises(OSError, match="No space left"):
            sample_history(base, run, ["water"], [0], QUICK)
        return
    drawn, _ = sample_history(base, run, ["water"], [0], QUICK)
    assert (drawn == expected).all() and run.samples() == []
    assert [line.split(":")[0] for line in caplog.messages] == [f"what {run.path} draws is not kept"]


@pytest.mark.parametrize("name", ["mean", "log_variance", "tokens", "caption"])
def test_a_damaged_cache_is_encoded_again(name, base, tmp_path, caplog):
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (32, 32), dtype=np.uint8)).save(tmp_path / "a.png")
    (tmp_path / "metadata.csv").write_text("file_name,text\na.png,water\n")
    dataset = open_dataset(tmp_path, size_px=32)
    first = encode_dataset(base, dataset, tmp_path / "cache")
    kept = {key: np.array(getattr(first, key)) for key in ("mean", "log_variance", "tokens", "caption")}
    (folder,) = (tmp_path / "cache").iterdir()
    flip(folder / f"{name}.npy")
    again = encode_dataset(base, dataset, tmp_path / "cache")
    assert f"{name}.npy: expected SHA-256" in caplog.text and "made again" in caplog.text
    assert all((np.array(getattr(again, key)) == value).all() for key, value in kept.items())


def test_bases_that_read_captions_otherwise_do_not_share_a_cache(folder, base, tmp_path):
    Image.fromarray(np.arange(1024, dtype=np.uint8).reshape(32, 32)).save(tmp_path / "a.png")
    (tmp_path / "metadata.csv").write_text("file_name,text\na.png,water tree\n")
    dataset = open_dataset(tmp_path, size_px=32)
    first = encode_dataset(base, dataset, tmp_path / "cache")
    other = load_base(folder)
    other.text.encoder.config.hidden_act = "relu"
    second = encode_dataset(other, dataset, tmp_path / "cache")
    assert len(list((tmp_path / "cache").iterdir())) == 2 and first.identity == second.identity
