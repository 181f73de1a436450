"""A task that learns in milliseconds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from taskloom import TaskModule


class Line(TaskModule):
    """Fits a line; logs its loss, and values that the test prescribes, one per epoch."""

    def __init__(self, **prescribed: Sequence[float]) -> None:
        super().__init__()
        self.net = nn.Linear(3, 1)
        self.prescribed = prescribed

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.net(x)
        return out

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        loss = nn.functional.mse_loss(self.net(x), y)
        self.log("train/loss", loss)
        if "train" in self.prescribed:
            self.log("train", self.prescribed["train"][self.current_epoch], on_epoch=True, on_step=False)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        if "val" in self.prescribed:
            self.log("val", self.prescribed["val"][self.current_epoch])

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.01)
