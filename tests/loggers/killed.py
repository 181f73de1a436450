"""A training that kills its own process at a step."""

from __future__ import annotations

import os
import signal
from argparse import ArgumentParser
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from taskloom import CheckpointPolicy, RunFolder, TaskModule, Trainer
from taskloom.callbacks import LearningRateMonitor
from taskloom.core.policies import ValidationPolicy


class Noisy(TaskModule):
    """Draws random numbers in every step, so that a resume that is not exact shows in the metrics."""

    def __init__(self, kill_at: int, epoch_mean: bool, kill: Callable[[], None]) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.5), nn.Linear(4, 1))
        self.kill_at, self.epoch_mean, self.kill = kill_at, epoch_mean, kill

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = nn.functional.mse_loss(self.net(batch[0]), batch[1])
        self.log("train/loss", loss, on_step=True, on_epoch=self.epoch_mean)
        if self.global_step >= 3:
            self.log("train/late", loss)  # a column that appears in the middle of the run
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val/loss", nn.functional.mse_loss(self.net(batch[0]), batch[1]))

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        if self.global_step == self.kill_at:
            self.kill()

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.parameters(), lr=0.05)
        scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, gamma=0.9)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


def kill_this_process() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def train(
    root: Path,
    kill_at: int = -1,
    resume: Path | None = None,
    *,
    epoch_mean: bool = False,
    kill: Callable[[], None] = kill_this_process,
) -> Path:
    """Train three epochs of four steps, with a checkpoint every third step, and return the run's folder."""
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=3,
        seed=1,
        logger=["csv", "jsonl", "tensorboard"],
        log_every_n_steps=1,
        val_check_interval=ValidationPolicy(every="4 steps"),
        callbacks=[LearningRateMonitor()],
        checkpoint=CheckpointPolicy(every="3 steps"),
        run_dir=RunFolder(root, name="run"),
        progress=False,
    )
    x = torch.randn(16, 3)
    loader = DataLoader(TensorDataset(x, x.sum(1, keepdim=True)), batch_size=4, shuffle=True)
    result = trainer.fit(Noisy(kill_at, epoch_mean, kill), loader, loader, ckpt_path=resume)
    if result.run_folder is None:
        raise RuntimeError("the run has no folder")
    return result.run_folder


if __name__ == "__main__":
    torch.set_num_threads(1)
    parser = ArgumentParser()
    parser.add_argument("root", type=Path)
    parser.add_argument("kill_at", type=int)
    parser.add_argument("--resume", type=Path)
    train(**vars(parser.parse_args()))
