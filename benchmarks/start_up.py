"""Seconds until something can be read on the screen: `import taskloom`, `task --help`, `task fit --help`."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from pathlib import Path

PROGRAMS = {
    "import torch": "import torch",
    "import taskloom": "import taskloom",
    "task --help": "from taskloom.cli import main; main(['--help'])",
    "task fit --help": "from taskloom.cli import main; main(['fit', '--help'])",
    "task fit --print_config": "from taskloom.cli import main; main(['fit', '--print_config'])",
}


def seconds_of(program: str) -> float:
    """Return the seconds an interpreter takes to run a program, its own start taken off."""
    started = time.perf_counter()
    subprocess.run([sys.executable, "-c", program], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False)
    return time.perf_counter() - started


def measure(rounds: int, peers: bool) -> list:
    """Return the rows of the table."""
    from benchmarks.budgets import FIT_HELP_SECONDS_BESIDE_TORCH, HELP_SECONDS, IMPORT_SECONDS
    from benchmarks.measure import Row, in_turns, python

    del peers
    # in seconds, and whether `import torch` is allowed on top of it
    budgets = {
        "import taskloom": (IMPORT_SECONDS, False),
        "task --help": (HELP_SECONDS, False),
        "task fit --help": (FIT_HELP_SECONDS_BESIDE_TORCH, True),
        "task fit --print_config": (FIT_HELP_SECONDS_BESIDE_TORCH, True),
    }
    names = ["nothing", *PROGRAMS]
    seen = in_turns({name: python(Path(__file__), name) for name in names}, rounds)
    own = {
        name: statistics.median(value - base for value, base in zip(seen[name], seen["nothing"], strict=True))
        for name in names
    }
    rows = []
    for name in PROGRAMS:
        budget, beside_torch = budgets.get(name, (None, False))
        allowed = None if budget is None else budget + (own["import torch"] if beside_torch else 0.0)
        text = "" if budget is None else f"{'import torch + ' if beside_torch else ''}{budget} s"
        rows.append(Row(name, f"{own[name]:.2f} s", None, text, allowed is None or own[name] <= allowed))
    return rows


if __name__ == "__main__":
    print(seconds_of("" if sys.argv[1] == "nothing" else PROGRAMS[sys.argv[1]]))
