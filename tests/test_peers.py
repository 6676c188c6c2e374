"""The benchmark against other trainers: what it reports of given times, and that it clocks a script it never edits."""

import argparse
import importlib.util
import sys
from pathlib import Path

import pytest

FILE = Path(__file__).parents[1] / "benchmarks" / "peers.py"
SCRIPT = """
import sys, torch
assert "--rank" in sys.argv and sys.argv[sys.argv.index("--mixed_precision") + 1] == "no"
weight = torch.nn.Parameter(torch.ones(3))
optimizer = torch.optim.AdamW([weight])
for step in range(1_000_000):
    weight.square().sum().backward()
    optimizer.step()
"""


@pytest.fixture(scope="module")
def peers():
    spec = importlib.util.spec_from_file_location("peers", FILE)
    module = sys.modules["peers"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    del sys.modules["peers"]


@pytest.fixture
def options():
    return argparse.Namespace(steps=5, rank=2, kohya_python=sys.executable, rounds=3, warm_up=1)


def result(first, *steps, peak=1.0):
    clocked = [first]
    for seconds in steps:
        clocked.append(clocked[-1] + seconds)
    return {"clocked": clocked, "peak_gb": peak}


def test_the_first_steps_are_left_out_of_the_time(peers):
    assert peers.seconds_per_step(result(30, 9, 1, 2, 3), warm_up=1) == pytest.approx(2)
    assert peers.seconds_per_step(result(30, 9, 1, 2, 3), warm_up=0) == pytest.approx(2.5)


def test_ratios_are_taken_round_by_round_and_within_a_precision(peers):
    one, four = peers.Job("one arm", "kanjilab"), peers.Job("four arms", "kanjilab", arms=4)
    other, rough = peers.Job("script", "diffusers"), peers.Job("script", "diffusers", precision="bf16")
    results = {
        one: [result(10, 1, 1, 1), result(12, 2, 2, 2)],
        four: [result(10, 2, 2, 2), result(12, 4, 4, 4)],
        other: [result(20, 3, 3, 3, peak=2.5), result(40, 4, 4, 4)],
        rough: [result(20, 1, 1, 1)],
    }
    lines = peers.table(results, warm_up=1)[2:]
    assert lines[0] == "| one arm | fp32 | 1.500 [1.000, 2.000] | 0.67 | 11 | 1.0 | 1.00 [1.00, 1.00] |"
    assert lines[1] == "| four arms | fp32 | 3.000 [2.000, 4.000] | 1.33 | 11 | 1.0 | 2.00 [2.00, 2.00] |"
    assert lines[2] == "| script | fp32 | 3.500 [3.000, 4.000] | 0.29 | 30 | 2.5 | 2.50 [2.00, 3.00] |"
    assert lines[3].endswith("|  |")


def test_a_script_is_clocked_by_its_optimizers_steps_and_ended(peers, options, tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT)
    found = peers.run_job(peers.Job("x", "diffusers", str(tmp_path / "script.py")), tmp_path, options)
    assert len(found["clocked"]) == 5
    assert found["clocked"] == sorted(found["clocked"]) and found["clocked"][0] > 0.1  # torch was imported before
    assert 0.05 < found["peak_gb"] < 5


def test_a_peer_that_does_not_run_is_left_out_with_its_last_words(peers, options, tmp_path, monkeypatch, capsys):
    (tmp_path / "train_network.py").write_text("import nothing_of_that_name")
    kohya, ours = peers.Job("kohya", "kohya", str(tmp_path)), peers.Job("ours", "kanjilab")
    run_job, runs = peers.run_job, []
    monkeypatch.setattr(peers, "jobs_of", lambda options: [ours, kohya])

    def run(job, *rest):
        runs.append(job.name)
        return result(1, 1, 1, 1) if job == ours else run_job(job, *rest)

    monkeypatch.setattr(peers, "run_job", run)
    results = peers.measure(options, tmp_path)
    assert runs == ["ours", "kohya", "ours", "ours"]  # turns change every round; who failed is not tried again
    last = peers.table(results, warm_up=1)[-1]
    assert "left out: exit 1: ModuleNotFoundError: No module named 'nothing_of_that_name'" in last
    assert "round 3: ours, fp32: 1.000 s/step" in capsys.readouterr().out
