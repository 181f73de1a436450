"""How everything here is measured: programs started in turn, A B C A B C, and ratios taken round by round.

A machine that other work shares drifts by tens of per cent within minutes. Two programs that ran right after one
another saw the same drift, so their ratio holds where their times do not. The median of the ratios is the figure.
"""

from __future__ import annotations

import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ONE_THREAD = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


@dataclass(frozen=True)
class Row:
    """One measured thing.

    Attributes:
        name: what was measured.
        figure: the median, with its unit.
        ratio: median of the ratios to the first of its group, None for the first itself.
        budget: what it must not exceed, as text; empty where there is none.
        within: whether it does not.
    """

    name: str
    figure: str
    ratio: float | None
    budget: str = ""
    within: bool = True


def number_printed_by(command: Sequence[str]) -> float:
    """Run a program and return the last word it prints, a number.

    Raises:
        RuntimeError: it failed; with the end of what it wrote.
    """
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **ONE_THREAD}, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr[-3000:]}")
    return float(done.stdout.split()[-1])


def in_turns(commands: dict[str, Sequence[str]], rounds: int) -> dict[str, list[float]]:
    """Run each command once per round, in turn, after one round that does not count."""
    seen: dict[str, list[float]] = {name: [] for name in commands}
    for number in range(rounds + 1):
        for name, command in commands.items():
            value = number_printed_by(command)
            if number:
                seen[name].append(value)
    return seen


def median_ratio(values: Sequence[float], reference: Sequence[float]) -> float:
    """Return the median of the ratios within each round."""
    return statistics.median(value / base for value, base in zip(values, reference, strict=True))


def machine() -> str:
    """Describe the machine, as figures without one mean nothing."""
    import torch

    info = Path("/proc/cpuinfo")
    names = (
        [line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
        if info.exists()
        else []
    )
    processor = names[0] if names else platform.processor() or platform.machine()
    system = f"{platform.system()} {platform.machine()}, Python {platform.python_version()}, torch {torch.__version__}"
    return f"{processor}, {os.cpu_count()} cores, {system}, one thread"


def python(script: Path, *arguments: str) -> list[str]:
    """Return the command that runs a script in this interpreter."""
    return [sys.executable, str(script), *arguments]
