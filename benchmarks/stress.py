"""Kill training at random, over and over, and compare what it ends with to a training that was never killed.

python -m benchmarks.stress [--minutes 10] [--seed 0] [--write docs/benchmarks-stress.md]

One trial trains a small network (dropout, shuffling, augmentation in two worker processes, accumulation, averaged
weights, loss scaling of float16) with a checkpoint every few steps, written in the background, and logs to CSV. Its
process is killed with SIGKILL after a random time, and a new one continues from whatever is there, until a training
gets to its end. After every kill the newest checkpoint must verify and be no older than what had been confirmed before.
At the end weights, moments, averages, counters, generators and the logged series must be those of the reference, byte
for byte.
"""

from __future__ import annotations

import argparse
import csv
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

STEPS, EVERY = 60, 2


def train(root: Path) -> None:
    """Start the training below `root`, or continue it."""
    import numpy
    import torch
    from torch import nn
    from torch.utils.data import DataLoader, Dataset

    from taskloom import CheckpointPolicy, RunFolder, TaskModule, Trainer
    from taskloom.callbacks import EMAWeightAveraging

    class Augmented(Dataset):  # type: ignore[type-arg]
        """Samples with noise of their own from each of the generators that augmentations use."""

        def __len__(self) -> int:
            return 96

        def __getitem__(self, index: int) -> Any:
            noise = random.random() + numpy.random.rand() + torch.rand(8)
            return torch.full((8,), index / 96.0) + 0.1 * noise, torch.tensor([index % 7 / 7.0])

    class Task(TaskModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Dropout(0.2), nn.Linear(64, 1))

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            loss = nn.functional.mse_loss(self.net(batch[0]), batch[1])
            self.log("loss", loss)
            return loss

        def configure_optimizers(self) -> Any:
            optimizer = torch.optim.AdamW(self.parameters(), lr=1e-2)
            return [optimizer], [torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)]

    torch.set_num_threads(1)
    Trainer(
        max_steps=STEPS,
        accelerator="cpu",
        precision="16-mixed",
        accumulate_grad_batches=2,
        log_every_n_steps=1,
        callbacks=[EMAWeightAveraging(decay=0.9)],
        checkpoint=CheckpointPolicy(every=f"{EVERY} steps", keep_last=2),
        run_dir=RunFolder(root=str(root), name="run"),
        progress=False,
        seed=0,
    ).fit(Task(), DataLoader(Augmented(), batch_size=4, shuffle=True, num_workers=2), ckpt_path="auto")


def in_a_child(root: Path, seconds: float | None) -> int:
    """Train in a process of its own, killed after that many seconds; return its wait status."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            with (root / "log.txt").open("a") as log, redirect_stdout(log), redirect_stderr(log):
                train(root)
            status = 0
        except BaseException:
            import traceback

            (root / "error.txt").write_text(traceback.format_exc())
        finally:
            os._exit(status)
    if seconds is not None:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            ended, status = os.waitpid(child, os.WNOHANG)
            if ended:
                return status
            time.sleep(0.002)
        os.kill(child, signal.SIGKILL)
    return os.waitpid(child, 0)[1]


def outcome(root: Path) -> dict[str, Any]:
    """Return everything that two equal trainings must agree in."""
    from taskloom.checkpoint import latest_checkpoint, open_checkpoint

    path, _ = latest_checkpoint(root / "run" / "checkpoints")
    if path is None:
        return {}
    with open_checkpoint(path, verify=True) as reader:
        state = dict(reader.state)
        state["progress"] = {name: value for name, value in state["progress"].items() if name != "seconds"}
        found = {
            f"{kind}.{name}": reader.tensor(kind, name).numpy().tobytes()
            for kind in reader.kinds
            for name in reader.names(kind)
        }
        for name in ("progress", "schedulers", "precision", "callbacks", "generators", "position"):
            found[name] = repr(state[name])
    with next((root / "run").glob("**/metrics.csv")).open() as stream:
        found["series"] = [(row["step"], row["loss"]) for row in csv.DictReader(stream)]
    return found


@dataclass
class Report:
    """What happened."""

    seed: int
    kills: int = 0
    during_save: int = 0
    trials: int = 0
    lost: list[str] = field(default_factory=list)
    per_trial: Counter[int] = field(default_factory=Counter)

    def render(self, minutes: float) -> str:
        """Write the page."""
        from benchmarks.measure import machine

        kills = ", ".join(f"{number} × {count}" for number, count in sorted(self.per_trial.items()))
        lines = [
            "# Killed at random",
            "",
            *(__doc__ or "").splitlines()[4:],
            "",
            f"`python -m benchmarks.stress --minutes {minutes:g} --seed {self.seed}` on {date.today()}: {machine()}.",
            "",
            "| what | count |",
            "|---|---|",
            f"| trainings brought to their end | {self.trials} |",
            f"| processes killed | {self.kills} |",
            f"| of these, while a checkpoint was being written | {self.during_save} |",
            f"| checkpoints, values or log lines lost | {len(self.lost)} |",
            "",
            f"Kills per training (kills × trainings): {kills}.",
            *(["", "What was lost:", "", *(f"- {each}" for each in self.lost)] if self.lost else []),
        ]
        return "\n".join(lines).replace("\n\n\n", "\n\n") + "\n"


def trial(root: Path, expected: dict[str, Any], seconds: float, chance: random.Random, report: Report) -> None:
    """Kill and continue one training until it ends, and compare."""
    from taskloom.checkpoint import latest_checkpoint
    from taskloom.checkpoint.manifest import Manifest

    folder, kills, confirmed = root / "run" / "checkpoints", 0, -1
    while True:
        status = in_a_child(root, chance.uniform(0.0, seconds))
        if os.WIFEXITED(status):
            break
        kills += 1
        report.during_save += any(folder.glob(".*.writing-*"))
        newest, _ = latest_checkpoint(folder) if folder.is_dir() else (None, [])
        step = Manifest.read(newest).step if newest is not None else -1
        if step < confirmed:
            report.lost.append(f"trial {report.trials}, kill {kills}: step {confirmed} was confirmed, {step} is left")
        confirmed = max(confirmed, step)
    report.trials, report.kills = report.trials + 1, report.kills + kills
    report.per_trial[kills] += 1
    if os.WEXITSTATUS(status):
        report.lost.append(f"trial {report.trials} failed:\n\n```text\n{(root / 'error.txt').read_text()}\n```")
        return
    found = outcome(root)
    differing = [name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name)]
    if differing:
        report.lost.append(f"trial {report.trials}, after {kills} kills, differs in {', '.join(sorted(differing))}")


def main() -> int:
    """Run for the time given; exit 1 when anything was lost."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.stress", description="Kill training at random.")
    parser.add_argument("--minutes", type=float, default=10.0, help="how long")
    parser.add_argument("--seed", type=int, default=0, help="of the times at which processes are killed")
    parser.add_argument("--write", type=Path, help="write the report to this file")
    options = parser.parse_args()
    import torch  # once, so that children start within milliseconds

    torch.set_num_threads(1)
    chance, report = random.Random(options.seed), Report(options.seed)
    with tempfile.TemporaryDirectory() as folder:
        reference = Path(folder) / "reference"
        reference.mkdir()
        began = time.monotonic()
        if in_a_child(reference, None):
            sys.exit((reference / "error.txt").read_text())
        seconds, expected = time.monotonic() - began, outcome(reference)
        end = time.monotonic() + 60 * options.minutes
        while time.monotonic() < end:
            root = Path(folder) / f"trial-{report.trials}"
            root.mkdir()
            trial(root, expected, seconds, chance, report)
            print(f"{report.trials} trainings, {report.kills} kills, {len(report.lost)} lost", flush=True)
            if not report.lost:
                shutil.rmtree(root)
    page = report.render(options.minutes)
    print(page)
    if options.write is not None:
        options.write.write_text(page)
    return int(bool(report.lost))


if __name__ == "__main__":
    sys.exit(main())
