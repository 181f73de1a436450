"""Run every benchmark and print one table.

python -m benchmarks [step_overhead] [start_up] [progress] [memory] [checkpoint] [weight_averaging]
                         [--rounds 7] [--peers] [--write docs/benchmarks.md] [--check]
"""

from __future__ import annotations

import argparse
import sys
from datetime import date
from importlib import import_module
from pathlib import Path

from benchmarks.measure import Row, machine

ALL = ("step_overhead", "start_up", "progress", "memory", "weight_averaging", "checkpoint")
_HEAD = """# Benchmarks

What taskloom costs beside the bare PyTorch loop it replaces. This page is written by `make bench`; run it on your
machine. Programs run in turn, round by round, and a ratio is the median of the ratios within each round.

"""


def table(rows: list[Row]) -> str:
    """Render rows as Markdown."""
    lines = ["| what | measured | to the bare loop | budget | held |", "|---|---|---|---|---|"]
    for row in rows:
        ratio = "" if row.ratio is None else f"{row.ratio:.3f}×"
        held = "" if not row.budget else "yes" if row.within else "**no**"
        lines.append(f"| {row.name} | {row.figure} | {ratio} | {row.budget} | {held} |")
    return "\n".join(lines)


def main() -> int:
    """Measure, print, and write or check where asked."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Measure taskloom beside the bare loop.")
    parser.add_argument("names", nargs="*", choices=[*ALL, []], help="which; all by default")
    parser.add_argument("--rounds", type=int, default=7, help="counted rounds of each program")
    parser.add_argument("--peers", action="store_true", help="measure the peers that are installed as well")
    parser.add_argument("--write", type=Path, help="write the page of results to this file")
    parser.add_argument("--check", action="store_true", help="exit 1 when a budget is exceeded")
    options = parser.parse_args()
    rows: list[Row] = []
    for name in options.names or ALL:
        rows += import_module(f"benchmarks.{name}").measure(options.rounds, options.peers)
    page = f"{_HEAD}Measured on {date.today()}: {machine()}.\n\n{table(rows)}\n"
    print(page)
    if options.write is not None:
        options.write.write_text(page)
    return int(options.check and not all(row.within for row in rows))


if __name__ == "__main__":
    sys.exit(main())
