"""A training that needs everything a resume restores, and can be asked to leave at any moment; also as a script.

As a script it resumes by itself (`ckpt_path="auto"`), tells of its steps on stdout, and writes `final.pt` once it has
finished.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from argparse import ArgumentParser
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from loop.tiny import samples
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from taskloom import Callback, CheckpointPolicy, RunFolder, TaskModule, Trainer
from taskloom.callbacks import EarlyStopping


class Noisy(TaskModule):
    """Dropout, batch normalisation and noise in the loss: a resume that is not exact shows at once."""

    def __init__(self, pause: float = 0.0) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 1))
        self.pause = pause
        self.moment: Callable[[str], None] = lambda _: None

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        self.moment("training_step")
        time.sleep(self.pause)
        loss = F.mse_loss(self.net(batch[0]) + 0.1 * torch.randn(1), batch[1])
        self.log("train/loss", loss, on_step=True, on_epoch=True)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.moment(f"validation_step {batch_idx}")
        time.sleep(self.pause)
        self.log("val/loss", F.mse_loss(self.net(batch[0]), batch[1]))

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.parameters(), lr=0.05)
        scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, gamma=0.9)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


class Looking(Callback):
    """Counts validation batches, as state that is saved; a part of a validation must not be in it twice."""

    def __init__(self) -> None:
        self.count = 0

    def on_validation_batch_end(self, *arguments: Any) -> None:
        self.count += 1

    def state_dict(self) -> dict[str, Any]:
        return {"count": self.count}

    def load_state_dict(self, state: Any) -> None:
        self.count = state["count"]


MOMENTS = (
    "on_train_epoch_start",
    "on_train_batch_start",
    "training_step",
    "on_before_optimizer_step",
    "on_train_batch_end",
    "on_validation_start",
    "validation_step 0",
    "validation_step 1",
    "on_validation_end",
    "on_save_checkpoint",
    "on_train_epoch_end",
)


class Signals(Callback):
    """Raises a signal in this process at the n-th time that a moment comes."""

    def __init__(self, moment: str, time: int, name: str = "SIGTERM") -> None:
        self.wanted, self.left, self.signal = moment, time, signal.Signals[name]
        for hook in MOMENTS:
            if hook.startswith("on_"):
                vars(self)[hook] = lambda *_, hook=hook: self.reached(hook)

    def reached(self, moment: str) -> None:
        if moment == self.wanted:
            self.left -= 1
            if self.left == 0:
                signal.raise_signal(self.signal)

    def setup(self, trainer: Trainer, task: TaskModule, stage: str) -> None:
        task.moment = self.reached


def trainer_of(root: Path, *callbacks: Callback, epochs: float = 2, **arguments: Any) -> Trainer:
    """Five batches an epoch in windows of 2, 2 and 1; validations and checkpoints at steps of their own."""
    defaults = {
        "accumulate_grad_batches": 2,
        "val_check_interval": "2 steps",
        "log_every_n_steps": 2,
        "logger": "csv",
        "checkpoint": CheckpointPolicy(every="3 steps", keep_last=2, fsync=False),
        "run_dir": RunFolder(root, name="run"),
        "num_sanity_val_steps": 0,
        "progress": False,
    }
    own = [Looking(), EarlyStopping("val/loss", patience=99)]
    return Trainer(
        accelerator="cpu", seed=3, max_epochs=epochs, callbacks=[*own, *callbacks], **{**defaults, **arguments}
    )


def loaders(workers: int = 0) -> tuple[Any, Any]:
    options: dict[str, Any] = {"num_workers": workers, "multiprocessing_context": "fork" if workers else None}
    return DataLoader(samples(10), batch_size=2, shuffle=True, **options), DataLoader(samples(6), batch_size=2)


def main() -> None:
    parser = ArgumentParser()
    parser.add_argument("root", type=Path)
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--pause", type=float, default=0.0)
    parser.add_argument("--killed_at", type=int, default=-1)
    options = parser.parse_args()
    torch.set_num_threads(1)
    print("imported", flush=True)
    tell = Telling(options.killed_at)
    trainer = trainer_of(options.root, tell, epochs=options.epochs, progress="plain")
    task = Noisy(options.pause)
    trainer.fit(task, *loaders(options.workers), ckpt_path="auto")
    torch.save(task.state_dict(), options.root / "final.pt")
    print(f"finished after {trainer.progress.micro_batches}", flush=True)


class Telling(Callback):
    """Tells how far the training is; under torchrun the first worker can be killed in the middle of it."""

    def __init__(self, killed_at: int = -1) -> None:
        self.killed_at = killed_at

    def on_fit_start(self, trainer: Trainer, task: TaskModule) -> None:
        print("fitting", flush=True)

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        batches = trainer.progress.micro_batches
        print(f"batch {batches}", flush=True)
        if batches == self.killed_at and os.environ.get("TORCHELASTIC_RESTART_COUNT") == "0":
            for thread in threading.enumerate():
                if thread.name.startswith("saving"):
                    thread.join()  # so that it is known which checkpoint is there
            os.kill(os.getpid(), signal.SIGKILL)

    def on_validation_batch_end(self, *_: Any) -> None:
        print("validating", flush=True)


if __name__ == "__main__":
    main()
