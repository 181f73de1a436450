"""Milliseconds that a refresh of the progress bar takes beside a running loop, and its share of the time at 5 Hz."""

from __future__ import annotations

import io
import statistics
import sys
import time
from pathlib import Path

REFRESHES_PER_SECOND = 5
BUDGET = 0.005  # of the time


def milliseconds_per_refresh(refreshes: int = 300) -> float:
    """Return the median time of a refresh on a terminal, with other work in between as in training."""
    import torch
    from rich.console import Console

    from taskloom.report import RichReporter

    console = Console(file=io.StringIO(), force_terminal=True, width=120)
    reporter = RichReporter(console=console)
    matrix, seen = torch.randn(256, 256), []
    reporter.start("epoch 1/5", 10_000)
    for number in range(refreshes):
        matrix = torch.tanh(matrix @ matrix.T)  # pushes the bar's code out of the caches, as a step does
        started = time.perf_counter()
        reporter.refresh(started, number, {"train/loss": 0.1 * number, "val/accuracy": 0.5})
        seen.append(time.perf_counter() - started)
    reporter.close()
    return statistics.median(seen) * 1000


def measure(rounds: int, peers: bool) -> list:
    """Return the rows of the table."""
    from benchmarks.measure import Row, in_turns, python

    del peers
    milliseconds = statistics.median(in_turns({"bar": python(Path(__file__))}, rounds)["bar"])
    share = milliseconds / 1000 * REFRESHES_PER_SECOND
    figure = f"{milliseconds:.2f} ms, {share:.2%} of the time"
    return [Row("progress bar, one refresh", figure, None, f"{BUDGET:.1%} of the time", share <= BUDGET)]


if __name__ == "__main__":
    sys.stdout.write(f"{milliseconds_per_refresh()}\n")
