"""Run folders: round trips, one writer, and death at any moment."""

import json
import math
import os
import subprocess
import sys
import textwrap

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from kanjilab.core import run_folder as runs
from kanjilab.core.run_errors import RunError, RunExists, RunLocked
from kanjilab.core.run_folder import RunFolder, find_runs
from kanjilab.core.storage import write_json_atomic

SETTINGS = {"rank": 64, "base": "pocket", "prompt": "女王 <img onerror=1>", "arms": [{"rank": 64}]}


@pytest.fixture
def run(tmp_path):
    return RunFolder.create(tmp_path / "runs" / "first", SETTINGS)


def leftovers(folder):
    return [path for path in folder.rglob("*") if path.name.startswith(".tmp_")]


def test_settings_come_back_and_cannot_be_changed_from_outside(run):
    opened = RunFolder.open(run.path)
    assert opened.settings == SETTINGS
    opened.settings["rank"] = 1
    assert opened.settings["rank"] == 64
    assert opened.name == "first"


def test_create_refuses_what_is_there(run, tmp_path):
    with pytest.raises(RunExists, match="is a run already"):
        RunFolder.create(run.path, SETTINGS)
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.txt").write_text("x")
    with pytest.raises(RunExists, match="thesis.txt"):
        RunFolder.create(tmp_path / "home", SETTINGS)
    assert os.listdir(tmp_path / "home") == ["thesis.txt"]
    with pytest.raises(ValueError, match="finite"):
        RunFolder.create(tmp_path / "bad", {"lr": math.nan})
    assert not (tmp_path / "bad").exists()


def test_open_says_what_is_wrong(tmp_path):
    with pytest.raises(RunError, match="not a run folder"):
        RunFolder.open(tmp_path)
    (tmp_path / "settings.json").write_text('{"rank": ')
    with pytest.raises(RunError, match="expected a JSON object"):
        RunFolder.open(tmp_path)
    (tmp_path / "settings.json").write_text("[1]")
    with pytest.raises(RunError, match="got list"):
        RunFolder.open(tmp_path)


def test_writing_needs_the_lock(run):
    for write in (
        lambda: run.log({"step": 1}),
        lambda: run.write_checkpoint(0, {"a.json": {}}),
        lambda: run.rotate(1),
        lambda: run.truncate_log(0),
        lambda: run.truncate_checkpoints(0),
    ):
        with pytest.raises(RunError, match="with run.lock"):
            write()
    assert not (run.path / "log.jsonl").exists() and run.checkpoints() == []


def test_second_writer_learns_the_first_ones_process(run):
    with run.lock():
        with pytest.raises(RunLocked, match=rf"process {os.getpid()}$"), RunFolder.open(run.path).lock():
            pass
        with pytest.raises(RunLocked), run.lock():
            pass
        run.log({"step": 1})  # the refused attempts took nothing away
    with RunFolder.open(run.path).lock() as again:
        again.log({"step": 2})
    assert list(run.read_log().step) == [1, 2]


def test_a_pipe_in_place_of_the_lock_is_no_wait(run):
    (run.path / ".lock").unlink(missing_ok=True)
    os.mkfifo(run.path / ".lock")
    assert RunFolder.open(run.path).writer() is None
    with pytest.raises(OSError), run.lock():
        pytest.fail("a lock of a pipe")


def test_lock_is_free_again_after_an_error_and_with_a_child_alive(run):
    with pytest.raises(ZeroDivisionError), run.lock():
        raise ZeroDivisionError
    with run.lock():
        sleeper = subprocess.Popen(["sleep", "30"], close_fds=False)  # as a data-loading worker outlives its parent
    try:
        with run.lock():
            pass
    finally:
        sleeper.kill()
        sleeper.wait()


def test_log_keeps_every_value_and_order(run):
    records = [
        {"step": 1, "loss": [0.5, None], "note": "line\nbreak  \u2028 and 女 \ud800"},
        {"step": 2, "loss": [np.float32(0.25), math.nan], "norm": torch.tensor(math.inf), "low": -math.inf},
    ]
    with run.lock():
        for record in records:
            run.log(record)
    for line in (run.path / "log.jsonl").read_text().splitlines():
        json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    table = run.read_log()
    assert list(table.step) == [1, 2]
    assert table.note[0] == "line\nbreak  \u2028 and 女 ?"
    assert table.loss[0] == [0.5, None] and table.loss[1][0] == 0.25 and math.isnan(table.loss[1][1])
    assert table.norm[1] == math.inf and table.low[1] == -math.inf


def test_torn_last_line_is_ignored_then_cut_and_an_inner_one_reported(run):
    assert len(run.read_log()) == 0
    log = run.path / "log.jsonl"
    log.write_bytes(b'{"step": 1}\n{"step": 2')
    assert list(run.read_log().step) == [1]
    with run.lock():
        run.log({"step": 3})
    assert log.read_bytes() == b'{"step": 1}\n{"step": 3}\n'
    log.write_bytes(b'{"step": 1}\n{"st\n{"step": 3}\n')
    with pytest.raises(RunError, match="log.jsonl line 2: expected JSON"):
        run.read_log()


def test_truncated_log_goes_on_bit_for_bit(run):
    records = [{"step": 1}, {"step": 2}, {"event": "checkpoint of 2"}, {"step": 3}, {"event": "of 3"}]
    with run.lock():
        for record in records:
            run.log(record)
        whole = (run.path / "log.jsonl").read_bytes()
        assert run.truncate_log(3) == 0
        assert run.truncate_log(2) == 2
        assert list(run.read_log().event.dropna()) == ["checkpoint of 2"]
        for record in records[3:]:
            run.log(record)
    assert (run.path / "log.jsonl").read_bytes() == whole


def test_full_disk_leaves_no_half_record(run, monkeypatch):
    real_write = os.write

    def full(descriptor, data):
        real_write(descriptor, bytes(data)[:5])
        raise OSError(28, "No space left on device")

    with run.lock():
        run.log({"step": 1})
        monkeypatch.setattr(runs.os, "write", full)
        with pytest.raises(OSError, match="No space"):
            run.log({"step": 2})
        with pytest.raises(OSError, match="No space"):
            run.write_checkpoint(2, {"a.bin": b"12345678"})
        monkeypatch.undo()
        run.log({"step": 2})
    assert list(run.read_log().step) == [1, 2]
    assert run.checkpoints() == [] and leftovers(run.path) == []


def test_checkpoint_round_trip(run):
    stacked = torch.randn(3, 4, 5, generator=torch.Generator().manual_seed(1))
    files = {
        "arm_0/adapter_config.json": {"r": 4, "target": ("to_q", "to_k")},
        "arm_0/adapter_model.safetensors": {"a": stacked[1], "b": stacked[1].T, "half": stacked.bfloat16()},
        "state.safetensors": {"steps": np.arange(3)},
        "raw.bin": b"\x00\xff",
    }
    with run.lock():
        folder = run.write_checkpoint(400, files)
        assert folder == run.path / "checkpoints" / "step_000400" == run.checkpoint_path(400)
    assert json.loads((folder / "arm_0/adapter_config.json").read_text()) == {"r": 4, "target": ["to_q", "to_k"]}
    tensors = load_file(folder / "arm_0/adapter_model.safetensors")
    assert torch.equal(tensors["a"], stacked[1]) and torch.equal(tensors["b"], stacked[1].T)
    assert torch.equal(tensors["half"], stacked.bfloat16())
    assert load_file(folder / "state.safetensors")["steps"].tolist() == [0, 1, 2]
    assert (folder / "raw.bin").read_bytes() == b"\x00\xff"
    run.verify_checkpoint(400)


def test_equal_tensors_give_equal_files(run):
    weights = {"b": torch.ones(2), "a": torch.zeros(3, dtype=torch.bfloat16)}
    with run.lock():
        first = run.write_checkpoint(1, {"x.safetensors": weights})
        second = run.write_checkpoint(2, {"x.safetensors": dict(reversed(weights.items()))})
    assert (first / "manifest.json").read_bytes() == (second / "manifest.json").read_bytes()


@pytest.mark.parametrize(
    ("files", "error"),
    [
        ({}, ValueError),
        ({"../a.json": {}}, ValueError),
        ({"/a.json": {}}, ValueError),
        ({"a/../../b": b""}, ValueError),
        ({"manifest.json": {}}, ValueError),
        ({"./manifest.json": {}}, ValueError),
        ({"a\\b": b""}, ValueError),
        ({"": b""}, ValueError),
        ({"a.pt": {"w": 1}}, TypeError),
        ({"a.json": [1]}, TypeError),
        ({"a.json": {"x": math.inf}}, ValueError),
        ({"a.json": {"x": object()}}, TypeError),
        ({"a.json": {1: "x"}}, TypeError),
    ],
)
def test_unfit_checkpoint_files_are_refused_and_nothing_is_written(run, files, error):
    with run.lock():
        with pytest.raises(error):
            run.write_checkpoint(1, files)
        with pytest.raises(ValueError, match="step"):
            run.write_checkpoint(-1, {"a.json": {}})
    assert os.listdir(run.path / "checkpoints") == []


def test_damaged_checkpoints_are_not_listed(run):
    with run.lock():
        for step in (0, 400, 800, 1_200_000):
            run.write_checkpoint(step, {"state.json": {"step": step}, "arm_0/w.bin": b"12345678"})
        with pytest.raises(RunExists):
            run.write_checkpoint(400, {"state.json": {}})
    assert run.checkpoints() == [0, 400, 800, 1_200_000]
    (run.path / "checkpoints/step_000400/arm_0/w.bin").write_bytes(b"1234")  # as a broken copy leaves it
    (run.path / "checkpoints/step_000800/manifest.json").unlink()
    (run.path / "checkpoints/notes").mkdir()
    assert run.checkpoints() == [0, 1_200_000]
    with pytest.raises(RunError, match=r"step 400, only \[0, 1200000\]"):
        run.checkpoint_path(400)
    (run.path / "checkpoints/step_000000/arm_0/w.bin").write_bytes(b"12345679")
    with pytest.raises(RunError, match="w.bin: expected SHA-256"):
        run.verify_checkpoint(0)


def test_a_broken_checkpoint_is_replaced_when_training_comes_there_again(run):
    with run.lock():
        for step in (0, 400):
            run.write_checkpoint(step, {"state.json": {"step": step}, "arm_0/w.bin": b"12345678"})
        (run.path / "checkpoints/step_000400/arm_0/w.bin").write_bytes(b"1234")
        folder = run.write_checkpoint(400, {"state.json": {"step": 400}, "arm_1/w.bin": b"87654321"})
        assert run.checkpoints() == [0, 400]
        assert not (folder / "arm_0").exists() and (folder / "arm_1/w.bin").read_bytes() == b"87654321"
        assert os.listdir(run.path / "checkpoints") == ["step_000000", "step_000400"]
        with pytest.raises(RunExists):
            run.write_checkpoint(400, {"state.json": {}})


def test_rotation_keeps_the_first_the_last_and_the_listed(run):
    with run.lock():
        for step in range(0, 600, 100):
            run.write_checkpoint(step, {"state.json": {}})
        assert run.rotate(2, also=[200]) == [100, 300]
        assert run.checkpoints() == [0, 200, 400, 500]
        with pytest.raises(ValueError, match="keep"):
            run.rotate(0)
        assert run.truncate_checkpoints(200) == [400, 500]
        assert run.rotate(9) == []
    assert run.checkpoints() == [0, 200] and leftovers(run.path) == []


def test_samples_round_trip(run):
    images = np.random.default_rng(3).integers(0, 256, (2, 3, 4, 8, 8), dtype=np.uint8)
    run.write_samples("final_cfg3.0", images[:, ::2], {"prompts": ("queen", "女王"), "seeds": np.arange(2)})
    again, facts = run.read_samples("final_cfg3.0")
    assert np.array_equal(again, images[:, ::2])
    assert facts == {"prompts": ["queen", "女王"], "seeds": [0, 1]}
    assert run.samples() == ["final_cfg3.0"]
    with pytest.raises(ValueError, match="uint8"):
        run.write_samples("x", images.astype(float), {})
    for name in ("../x", ".tmp_1_x", ""):
        with pytest.raises(ValueError, match="letters"):
            run.write_samples(name, images, {})
    with pytest.raises(RunError, match="only .'final_cfg3.0'"):
        run.read_samples("other")


def test_next_writer_removes_what_a_dead_one_left_but_not_a_living_ones(run):
    dead = subprocess.Popen(["true"])
    dead.wait()
    (run.path / f".tmp_{dead.pid}_0_settings.json").write_text("{")
    (run.path / f"samples/.tmp_{dead.pid}_0_a.safetensors").write_text("half")
    (run.path / f"samples/.tmp_{os.getppid()}_0_b.safetensors").write_text("half")
    (run.path / f"checkpoints/.tmp_{dead.pid}_0_step_000400").mkdir()
    assert run.checkpoints() == [] and run.samples() == []
    with run.lock():
        pass
    assert [path.name for path in leftovers(run.path)] == [f".tmp_{os.getppid()}_0_b.safetensors"]


def test_stop_is_seen_by_the_writer_and_forgotten_by_the_next(run):
    with run.lock() as writer:
        assert not writer.stop_requested()
        RunFolder.open(run.path).request_stop()
        assert writer.stop_requested()
    with run.lock() as writer:
        assert not writer.stop_requested()


def test_find_runs(run, tmp_path):
    RunFolder.create(tmp_path / "runs" / "sweep" / "rank_4", {"arms": [{"rank": 4}]})
    (tmp_path / "runs" / "notes").mkdir()
    (tmp_path / "runs" / "notes" / "settings.json").write_text("someone else's")
    assert [found.name for found in find_runs(tmp_path / "runs")] == ["first", "rank_4"]
    assert find_runs(tmp_path / "nowhere") == []


def test_one_run_that_cannot_be_read_hides_no_other(run, tmp_path, monkeypatch, caplog):
    RunFolder.create(tmp_path / "runs" / "theirs", {"arms": [{}]})
    newer = RunFolder.create(tmp_path / "runs" / "newer", {"arms": [{"future_setting": 1}]})
    read = runs.read_json_object

    def refuse(path, *rest):
        if path.parent.name == "theirs":
            raise PermissionError(f"{path}: not yours")
        return read(path, *rest)

    monkeypatch.setattr(runs, "read_json_object", refuse)
    assert [found.name for found in find_runs(tmp_path / "runs")] == ["first"]
    said = "\n".join(caplog.messages)
    assert "theirs is left out" in said and "not yours" in said and "newer is left out" in said
    with pytest.raises(ValueError, match=r"newer/settings.json: arm 0: unknown settings \['future_setting'\]"):
        newer.arm(0)


def test_a_run_of_which_only_the_drawings_are_kept_is_found(run):
    run.write_samples("history_0", np.zeros((1, 1, 1, 2, 2), np.uint8), {})
    (run.path / "checkpoints").rmdir()
    assert [found.path for found in find_runs(run.path.parent)] == [run.path]


def test_atomic_json_keeps_the_old_file_when_the_new_one_fails(tmp_path, monkeypatch):
    path = tmp_path / "a.json"
    write_json_atomic(path, {"text": "木 \ud800", "size": np.int64(3), "path": tmp_path})
    assert json.loads(path.read_text()) == {"text": "木 ?", "size": 3, "path": str(tmp_path)}
    before = path.read_bytes()
    monkeypatch.setattr(runs.os, "replace", lambda *_: (_ for _ in ()).throw(OSError("no")))
    with pytest.raises(OSError, match="no"):
        write_json_atomic(path, {"text": "new"})
    assert path.read_bytes() == before and os.listdir(tmp_path) == ["a.json"]


# One interpreter imports the module once and forks a writer per death: both tests stay within seconds.

EVERY_OPERATION = """
import os, sys
from pathlib import Path
from kanjilab.core import run_folder as runs
from kanjilab.core.run_folder import RunError, RunFolder

def records(step): return [{"step": step, "loss": step / 7}, {"event": f"after {step}", "step": step}]
def files(step): return {"state.json": {"step": step}, "arm_0/w.bin": bytes([step]) * 5000}

def scenario(run):
    with run.lock():
        done = run.checkpoints()
        start = done[-1] if done else -1
        run.truncate_log(start)
        for step in range(start + 1, 3):
            for record in records(step):
                run.log(record)
            run.write_checkpoint(step, files(step))
            run.rotate(1)
        run.rotate(1)

def die_at(number):
    left = [number]
    def wrap(name, real):
        def call(*arguments, **keywords):
            left[0] -= 1
            if left[0] == 0:
                if name == "write":  # half of it reaches the file
                    real(arguments[0], bytes(arguments[1])[: len(arguments[1]) // 2])
                os._exit(9)
            return None if name == "fsync" else real(*arguments, **keywords)
        return call
    for name in ("write", "fsync", "rename", "replace", "mkdir", "unlink", "rmdir", "truncate", "ftruncate"):
        setattr(os, name, wrap(name, getattr(os, name)))

def check(path, complete):
    try:
        run = RunFolder.open(path)
    except RunError:
        assert not complete
        return RunFolder.create(path, {"a": 1})
    assert run.settings == {"a": 1}
    steps = run.checkpoints()
    for step in steps:
        run.verify_checkpoint(step)
        assert (run.checkpoint_path(step) / "arm_0/w.bin").read_bytes() == bytes([step]) * 5000
    assert steps in ([], [0], [0, 1], [0, 1, 2], [0, 2]), steps
    log = run.read_log().to_dict("records")
    expected = [record for step in range(3) for record in records(step)]
    assert [entry["step"] for entry in log] == [record["step"] for record in expected[: len(log)]], log
    assert not steps or len(log) >= 2 * (steps[-1] + 1), (steps, log)  # the log reaches as far as the checkpoint
    return run

root = Path(sys.argv[1])
deaths = 0
for number in range(1, 1000):
    path = root / f"run_{number}"
    child = os.fork()
    if child == 0:
        die_at(number)
        scenario(RunFolder.create(path, {"a": 1}))
        os._exit(0)
    os.fsync = lambda descriptor: None  # it guards against power cuts, which nobody can play here, and takes long
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    run = check(path, complete=status == 0)
    if status == 0:
        break
    assert status == 9, status
    deaths += 1
    scenario(run)
    check(path, complete=True)
    assert run.checkpoints() == [0, 2], run.checkpoints()
    assert len(run.read_log()) == 6
    assert not list(path.rglob(".tmp_*"))
print(deaths)
"""

RANDOM_KILLS = """
import itertools, os, random, signal, sys, time
from pathlib import Path
from kanjilab.core.run_folder import RunFolder

def files(step): return {"state.json": {"step": step}, "arm_0/w.bin": step.to_bytes(4, "big") * 50_000}

def write_for_ever(path, ready):
    run = RunFolder.open(path)
    with run.lock():
        done = run.checkpoints()
        run.truncate_log(done[-1] if done else -1)
        os.write(ready, b"!")
        for step in itertools.count(done[-1] + 1 if done else 0):
            run.log({"step": step, "loss": [0.5] * 200})
            run.write_checkpoint(step, files(step))
            run.rotate(2)

path, rng = Path(sys.argv[1]), random.Random(5)
RunFolder.create(path, {"a": 1})
kills, torn, logged = 0, 0, []
while (kills < 10 or len(logged) < 10) and kills < 200:
    kills += 1
    hear, ready = os.pipe()
    child = os.fork()
    if child == 0:
        write_for_ever(path, ready)
    os.read(hear, 1)
    time.sleep(rng.uniform(0, 0.1))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    os.close(hear), os.close(ready)
    torn += bool(list(path.rglob(".tmp_*")))
    run = RunFolder.open(path)
    steps = run.checkpoints()
    for step in steps:
        run.verify_checkpoint(step)
        assert (run.checkpoint_path(step) / "arm_0/w.bin").read_bytes() == step.to_bytes(4, "big") * 50_000
    log = run.read_log()
    logged = [] if log.empty else list(log.step)
    assert logged == list(range(len(logged))), logged
    assert not steps or steps[-1] <= logged[-1] <= steps[-1] + 1, (steps, logged)
with run.lock():
    pass
assert not list(path.rglob(".tmp_*"))
print(kills, len(logged), torn)
"""


def run_script(script, path):
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(script), str(path)],
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout.split()


def test_death_at_every_file_operation_in_turn(tmp_path):
    (deaths,) = run_script(EVERY_OPERATION, tmp_path)
    print(f"{deaths} deaths")
    assert int(deaths) > 60


def test_kill_nine_at_random_moments(tmp_path):
    kills, steps, torn = run_script(RANDOM_KILLS, tmp_path / "run")
    print(f"{kills} kills, {steps} steps, {torn} torn writes")
    assert int(kills) >= 10 and int(steps) >= 10
