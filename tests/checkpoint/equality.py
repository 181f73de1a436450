"""Everything in a checkpoint that two equal trainings must agree in."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

from taskloom.checkpoint import open_checkpoint

# Where and when it was written, and what a policy keeps beside it.
NOT_COMPARED = ("keepers", "loggers")


def contents(checkpoint: Path) -> dict[str, Any]:
    """Tensors as bytes and the training state as text, all but the clock."""
    with open_checkpoint(checkpoint, verify=True) as reader:
        names = [(kind, name) for kind in reader.kinds for name in reader.names(kind)]
        found = {f"{kind}/{name}": bytes(reader.tensor(kind, name).numpy().tobytes()) for kind, name in names}
        state = {name: value for name, value in reader.state.items() if name not in NOT_COMPARED}
        state["progress"] = {name: value for name, value in state["progress"].items() if name != "seconds"}
    return {**found, **{name: repr(value) for name, value in state.items()}}


def series(run_folder: Path) -> list[dict[str, str]]:
    """The rows of the CSV logger."""
    with next(run_folder.rglob("metrics.csv")).open() as stream:
        return list(csv.DictReader(stream))
