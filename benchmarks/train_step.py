"""How fast is the training step on this machine? Ratios from one run, interleaved.

    python benchmarks/train_step.py [--targets attention] [--precision bf16] [--rounds 5]

Prints images/s on pocket for K = 1, 4, 8 arms at batch 1 and for one arm at batch 8, the cost of
eight arms in units of one, and the share of a bare matrix product's rate that the step reaches.
"""

import argparse
import statistics
import time

import numpy as np
import torch
from accelerate import Accelerator
from torch.utils.flop_counter import FlopCounterMode

from kanjilab.core.config import Arm
from kanjilab.models.loading import load_base
from kanjilab.training.encoded import Encoded
from kanjilab.training.trainer import Trainer

CASES = {"1 arm x batch 1": (1, 1), "4 arms x batch 1": (4, 1), "8 arms x batch 1": (8, 1), "1 arm x batch 8": (1, 8)}


def random_data(base, size: int = 256) -> Encoded:
    """Latents and text states of the right shapes; the step's cost does not depend on their values."""
    rng = np.random.default_rng(0)
    text = base.encode_text(["", "a"]).tokens.half().numpy()
    mean = rng.standard_normal((size, 4, 16, 16), dtype=np.float32)
    return Encoded(mean, np.full_like(mean, -6), ("", "a"), text, None, np.ones(size, dtype=np.int64), "random")


def matrix_rate(dtype: torch.dtype, seconds: float = 1.0) -> float:
    """FLOP/s of a large square matrix product."""
    left = torch.randn(1024, 1024, dtype=dtype)
    left @ left
    started, products = time.perf_counter(), 0
    while time.perf_counter() - started < seconds:
        left @ left
        products += 1
    return products * 2 * 1024**3 / (time.perf_counter() - started)


def step_flops(trainer: Trainer) -> int:
    """Floating-point operations of one step, forward and backward, as torch counts them."""
    with FlopCounterMode(display=False) as counter:
        trainer.advance()
    return counter.get_total_flops()


def time_step(trainer: Trainer, steps: int) -> float:
    """Median seconds of a step."""
    seconds = []
    for _ in range(steps):
        started = time.perf_counter()
        trainer.advance()
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds)


def main() -> None:
    """Measures all cases in turn, several rounds, and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--targets", default="attention")
    parser.add_argument("--precision", default="bf16")
    parser.add_argument("--rank", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--base", default="pocket")
    options = parser.parse_args()
    base = load_base(options.base, options.precision)
    data, accelerator = random_data(base), Accelerator(cpu=True)
    trainers = {
        name: Trainer(
            base,
            data,
            [Arm(targets=options.targets, rank=options.rank, batch=batch, seed=k, epochs=1e6) for k in range(arms)],
            accelerator,
        )
        for name, (arms, batch) in CASES.items()
    }
    flops = {name: step_flops(trainer) for name, trainer in trainers.items()}
    for trainer in trainers.values():
        time_step(trainer, 2)
    rounds: dict[str, list[float]] = {name: [] for name in CASES}
    rates = []
    for _ in range(options.rounds):
        rates.append(matrix_rate(torch.bfloat16 if options.precision == "bf16" else torch.float32))
        for name, trainer in trainers.items():
            rounds[name].append(time_step(trainer, 5))
    report(rounds, flops, statistics.median(rates), options)


def report(rounds: dict[str, list[float]], flops: dict[str, int], rate: float, options: argparse.Namespace) -> None:
    """Prints the table; ratios are taken round by round."""
    threads = torch.get_num_threads()
    print(f"{options.base}, {options.targets}, rank {options.rank}, {options.precision}, {threads} threads")
    print(f"bare matrix product: {rate / 1e9:.0f} GFLOP/s")
    reference = rounds["1 arm x batch 1"]
    for name, seconds in rounds.items():
        arms, batch = CASES[name]
        median = statistics.median(seconds)
        ratios = sorted(a / b for a, b in zip(seconds, reference, strict=True))
        print(
            f"{name:17s} {median * 1e3:7.1f} ms/step  {arms * batch / median:6.1f} images/s  "
            f"{statistics.median(ratios):5.2f} x one arm [{ratios[0]:.2f}, {ratios[-1]:.2f}]  "
            f"{flops[name] / median / rate:5.1%} of the bare product's rate"
        )


if __name__ == "__main__":
    main()
