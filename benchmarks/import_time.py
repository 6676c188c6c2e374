"""What `import kanjilab` costs beside a bare Python: both started in turn, medians and their difference."""

import argparse
import statistics
import subprocess
import sys
import time


def seconds(code: str) -> float:
    """Wall time of one fresh Python that runs the code."""
    started = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], check=True)
    return time.perf_counter() - started


def main() -> None:
    """Prints one line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=21, help="how often each is started")
    pairs = [(seconds("pass"), seconds("import kanjilab")) for _ in range(parser.parse_args().pairs)]
    bare, package = (statistics.median(column) for column in zip(*pairs, strict=True))
    more = statistics.median(second - first for first, second in pairs)
    print(f"bare Python {bare:.3f} s, import kanjilab {package:.3f} s: {more:.3f} s more ({package / bare:.2f} times)")


if __name__ == "__main__":
    main()
