"""Megabytes that a process grows by over 10,000 steps with 20 logged keys, and peaks over ten times the data.

`python benchmarks/memory.py PROGRAM` prints one number: `growth_bare` and `growth_ours` the growth of the resident set
after warm-up; `predict N`, `keep N` and `validate N` the peak of a process that goes over N batches. `keep` returns the
predictions: it shows that the measurement sees what is kept.
"""

from __future__ import annotations

import gc
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

WARM_UP, STEPS, KEYS = 2_000, 10_000, 20
BATCHES = 400
GROWTH_BUDGET = 1.0  # MB
PEAK_BUDGET = 1.01  # of the peak over a tenth of the data


def resident(field: str = "VmRSS") -> float:
    """Return megabytes of this process: in use now (`VmRSS`) or at its peak (`VmHWM`). Linux."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) / 1024


def _parts() -> tuple[type, Any]:
    import torch
    from torch import nn
    from torch.utils.data import DataLoader, Dataset

    from taskloom import TaskModule

    class Task(TaskModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 512))

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            loss = self.net(batch).square().mean()
            for key in range(KEYS):
                self.log(f"metric{key}", loss * key, on_step=True, on_epoch=True, prog_bar=key == 0)
            return loss

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            loss = self.net(batch).square().mean()
            for key in range(KEYS):
                self.log(f"metric{key}", loss * key)

        def predict_step(self, batch: Any, batch_idx: int) -> Any:
            return self.net(batch)

        def configure_optimizers(self) -> Any:
            return torch.optim.Adam(self.parameters(), lr=1e-3)

    class Generated(Dataset):  # type: ignore[type-arg]
        """Samples that exist only while they are used."""

        def __init__(self, batches: int, size: int) -> None:
            self.samples = batches * size

        def __len__(self) -> int:
            return self.samples

        def __getitem__(self, index: int) -> Any:
            return torch.full((16,), index % 7 / 7)

    return Task, lambda batches, size=4: DataLoader(Generated(batches, size), batch_size=size)


def growth_bare() -> float:
    """Train by hand."""
    import torch

    task_class, loader = _parts()
    task = task_class()
    optimizer = task.configure_optimizers()
    before = 0.0
    for step, batch in enumerate(loader(WARM_UP + STEPS), 1):
        optimizer.zero_grad()
        torch.mean(task.net(batch).square()).backward()
        optimizer.step()
        if step in (WARM_UP, WARM_UP + STEPS):
            gc.collect()
            before = resident() - before
    return before


def growth_ours() -> float:
    """Train with the defaults: progress, CSV logger, checkpoints."""
    from taskloom import Callback, Trainer

    measured: list[float] = []

    class Measure(Callback):
        def on_train_batch_end(self, trainer: Any, task: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
            if trainer.global_step in (WARM_UP, WARM_UP + STEPS):
                gc.collect()
                measured.append(resident())

    task_class, loader = _parts()
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(max_epochs=1, accelerator="cpu", callbacks=[Measure()], run_dir=folder)
        trainer.fit(task_class(), loader(WARM_UP + STEPS))
    return measured[1] - measured[0]


def peak(stage: str, batches: int) -> float:
    """Go over that many batches of 1 MB of outputs each."""
    from taskloom import Trainer

    task_class, loader = _parts()
    trainer = Trainer.barebones(accelerator="cpu")
    data = loader(batches, 512)
    if stage == "validate":
        trainer.validate(task_class(), data, verbose=False)
    else:
        trainer.predict(task_class(), data, return_predictions=stage == "keep")
    return resident("VmHWM")


def measure(rounds: int, peers: bool) -> list[Any]:
    """Return the rows of the table."""
    from benchmarks.measure import Row, in_turns, median_ratio, python

    del peers
    rounds = min(rounds, 3)  # memory does not depend on what else the machine does
    script = Path(__file__)
    grown = in_turns({name: python(script, name) for name in ("growth_bare", "growth_ours")}, rounds)
    bare, ours = (statistics.median(values) for values in grown.values())
    what = f"growth over {STEPS:,} steps"
    rows = [
        Row(f"{what}, bare loop", f"{bare:.2f} MB", None),
        Row(f"{what}, {KEYS} logged keys", f"{ours:.2f} MB", None, f"{GROWTH_BUDGET:g} MB", ours < GROWTH_BUDGET),
    ]
    for stage in ("predict", "validate"):
        peaks = in_turns({str(n): python(script, stage, str(n)) for n in (BATCHES // 10, BATCHES)}, rounds)
        small, large = peaks.values()
        ratio = median_ratio(large, small)
        figure = f"{statistics.median(large):.0f} MB, {ratio:.4f}× that of a tenth"
        rows.append(
            Row(f"peak of {stage} over ten times the data", figure, None, f"{PEAK_BUDGET:g}×", ratio <= PEAK_BUDGET)
        )
    return rows


if __name__ == "__main__":
    program, *arguments = sys.argv[1:]
    programs = {"growth_bare": growth_bare, "growth_ours": growth_ours}
    value = programs[program]() if program in programs else peak(program, int(arguments[0]))
    sys.stdout.write(f"\n{value}\n")
