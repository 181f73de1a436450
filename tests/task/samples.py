"""A task, loaders and a trainer, small enough that a test is about what it changes of them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from taskloom import TaskModule, Trainer


class Line(TaskModule):
    """One linear layer whose output is pulled to zero."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)

    def training_step(self, batch: Tensor, batch_idx: int) -> Any:
        return self(batch).square().mean()

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def loader(batches: int = 3, size: int = 2) -> DataLoader:
    """Batches of shape (size, 2); the last sample of each tells its number."""
    return DataLoader(torch.arange(batches * size).repeat_interleave(2).reshape(-1, 2) / size, batch_size=size)


def make_trainer(**arguments: Any) -> Trainer:
    """A trainer that runs the loop and nothing else, for one epoch unless told otherwise."""
    return Trainer.barebones(**{"accelerator": "cpu", "max_epochs": 1, **arguments})
