"""A task with something to show; as a program it is trained for some epochs: `python task.py FOLDER EPOCHS`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from taskloom import TaskModule, Trainer


class Task(TaskModule):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Linear(3, 1)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = self.net(batch[0]).square().mean()
        self.log("train/loss", loss, prog_bar=True)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val/half", 0.5, prog_bar=True)

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self.log("test/third", 0.3)

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.01)


def loader() -> DataLoader[Any]:
    return DataLoader(TensorDataset(torch.randn(8, 3)), batch_size=2)


def trainer(tmp_path: Path, **arguments: Any) -> Trainer:
    return Trainer(**{"accelerator": "cpu", "max_epochs": 2, "run_dir": tmp_path, **arguments})


if __name__ == "__main__":
    torch.set_num_threads(1)
    trainer(Path(sys.argv[1]), max_epochs=int(sys.argv[2]), num_sanity_val_steps=0).fit(Task(), loader(), loader())
