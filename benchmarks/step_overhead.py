"""Microseconds per optimizer step of a tiny MLP (32-64-10, batch 16, SGD, a plain DataLoader), one process per run.

    python benchmarks/step_overhead.py bare|trainer|trainer_full|fabric|lightning|lightning_full|accelerate [steps]

The model is so small that what remains is the loop itself. `*_full` has everything on that is on by default: progress,
logger, checkpoints, and one logged metric. Peers are measured where they are installed.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import logging
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

BATCH = 16
PROGRAMS = ("trainer", "trainer_full", "fabric")
PEERS = {"lightning": "lightning", "lightning_full": "lightning", "accelerate": "accelerate"}


def run(which: str, steps: int) -> float:
    """Return the seconds that `steps` steps took."""
    import torch
    from torch import nn
    from torch.nn import functional as F

    torch.set_num_threads(1)
    torch.manual_seed(0)
    data = torch.utils.data.TensorDataset(torch.randn(steps * BATCH, 32), torch.randint(0, 10, (steps * BATCH,)))

    def network() -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 10))

    def loader() -> torch.utils.data.DataLoader:
        return torch.utils.data.DataLoader(data, batch_size=BATCH)

    def task(base: type, full: bool) -> nn.Module:
        class Tiny(base):
            def __init__(self) -> None:
                super().__init__()
                self.net = network()

            def training_step(self, batch, batch_idx):
                loss = F.cross_entropy(self.net(batch[0]), batch[1])
                if full:
                    self.log("train/loss", loss, prog_bar=True)
                return loss

            def configure_optimizers(self):
                return torch.optim.SGD(self.parameters(), lr=1e-2)

            def on_train_start(self):
                self.started = time.perf_counter()

            def on_train_end(self):
                self.seconds = time.perf_counter() - self.started

        return Tiny()

    def bare() -> float:
        net = network().train()
        optimizer = torch.optim.SGD(net.parameters(), lr=1e-2)
        started = time.perf_counter()
        for inputs, labels in loader():
            optimizer.zero_grad(set_to_none=True)
            loss = F.cross_entropy(net(inputs), labels)
            loss.backward()
            optimizer.step()
        return time.perf_counter() - started

    def trainer(full: bool) -> float:
        from taskloom import TaskModule, Trainer

        tiny = task(TaskModule, full)
        options = {} if full else {"logger": False, "progress": False, "checkpoint": False}
        Trainer(max_epochs=1, accelerator="cpu", devices=1, run_dir=tempfile.mkdtemp(), **options).fit(tiny, loader())
        return tiny.seconds

    def fabric() -> float:
        from taskloom import Fabric

        fabric = Fabric(accelerator="cpu", devices=1)
        fabric.launch()
        net = network()
        net, optimizer = fabric.setup(net, torch.optim.SGD(net.parameters(), lr=1e-2))
        batches = fabric.setup_dataloaders(loader())
        started = time.perf_counter()
        for inputs, labels in batches:
            optimizer.zero_grad()
            loss = F.cross_entropy(net(inputs), labels)
            fabric.backward(loss)
            optimizer.step()
        return time.perf_counter() - started

    def lightning(full: bool) -> float:
        import lightning as L

        tiny, folder = task(L.LightningModule, full), tempfile.mkdtemp()
        options = (
            {"logger": L.pytorch.loggers.CSVLogger(folder)}
            if full
            else {"logger": False, "enable_progress_bar": False, "enable_checkpointing": False}
        )
        L.Trainer(
            max_epochs=1, accelerator="cpu", devices=1, enable_model_summary=False, default_root_dir=folder, **options
        ).fit(tiny, loader())
        return tiny.seconds

    def accelerate() -> float:
        from accelerate import Accelerator

        accelerator, net = Accelerator(cpu=True), network()
        net, optimizer, batches = accelerator.prepare(net, torch.optim.SGD(net.parameters(), lr=1e-2), loader())
        started = time.perf_counter()
        for inputs, labels in batches:
            optimizer.zero_grad()
            loss = F.cross_entropy(net(inputs), labels)
            accelerator.backward(loss)
            optimizer.step()
        return time.perf_counter() - started

    variants: dict[str, Callable[[], float]] = {
        "bare": bare,
        "trainer": lambda: trainer(False),
        "trainer_full": lambda: trainer(True),
        "fabric": fabric,
        "lightning": lambda: lightning(False),
        "lightning_full": lambda: lightning(True),
        "accelerate": accelerate,
    }
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        return variants[which]()


def measure(rounds: int, peers: bool) -> list:
    """Return the rows of the table."""
    from benchmarks.budgets import STEP_FABRIC, STEP_TRAINER, STEP_TRAINER_FULL
    from benchmarks.measure import Row, in_turns, median_ratio, python

    budgets = dict(zip(PROGRAMS, (STEP_TRAINER, STEP_TRAINER_FULL, STEP_FABRIC), strict=True))
    names = [
        "bare",
        *PROGRAMS,
        *([name for name, package in PEERS.items() if importlib.util.find_spec(package)] if peers else []),
    ]
    seen = in_turns({name: python(Path(__file__), name) for name in names}, rounds)
    rows = []
    for name in names:
        ratio = None if name == "bare" else median_ratio(seen[name], seen["bare"])
        budget = budgets.get(name)
        rows.append(
            Row(
                f"step, {name.replace('_', ' ')}",
                f"{statistics.median(seen[name]):.0f} µs",
                ratio,
                f"{budget:.2f}×" if budget else "",
                budget is None or ratio is None or ratio <= budget,
            )
        )
    return rows


if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    count = int(sys.argv[2]) if len(sys.argv) > 2 else 4000
    print(f"{run(sys.argv[1], count) / count * 1e6:.1f}")
