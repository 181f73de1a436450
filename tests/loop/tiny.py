"""The smallest task, data and Trainer that a loop can be tested with."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from taskloom import Callback, TaskModule, Trainer


class Line(TaskModule):
    """Linear regression by SGD, with every step."""

    def __init__(self, lr: float = 0.01, features: int = 3) -> None:
        super().__init__()
        self.lr = lr
        self.layer = nn.Linear(features, 1)
        self.seen: list[int] = []

    def loss(self, batch: Any) -> Tensor:
        return F.mse_loss(self.layer(batch[0]), batch[1])

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        self.seen.append(batch_idx)
        loss = self.loss(batch)
        self.log("train/loss", loss)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> Any:
        self.log("val/loss", self.loss(batch))

    def test_step(self, batch: Any, batch_idx: int) -> Any:
        self.log("test/loss", self.loss(batch))

    def predict_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Any:
        return self.layer(batch[0])

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=self.lr)


def samples(count: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> TensorDataset:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, 3, generator=generator, dtype=dtype)
    return TensorDataset(x, x.sum(1, keepdim=True) + torch.randn(count, 1, generator=generator, dtype=dtype))


def loader(count: int = 8, batch_size: int = 2, **options: Any) -> DataLoader[Any]:
    return DataLoader(samples(count), batch_size=batch_size, **options)


def quiet(*callbacks: Callback, **arguments: Any) -> Trainer:
    """A Trainer on the CPU that prints and writes nothing unless told to."""
    silent = {"accelerator": "cpu", "logger": False, "checkpoint": False, "progress": False, "num_sanity_val_steps": 0}
    return Trainer(callbacks=list(callbacks), **{**silent, **arguments})


class At(Callback):
    """Calls `action(trainer, task)` at a hook, whatever the hook's other arguments are."""

    def __init__(self, **actions: Callable[[Trainer, Any], Any]) -> None:
        self.actions = actions
        for name in actions:
            vars(self)[name] = self._caller(name)

    def _caller(self, name: str) -> Callable[..., Any]:
        return lambda trainer, task, *_: self.actions[name](trainer, task)


def weights(task: nn.Module) -> list[Tensor]:
    return [parameter.detach().clone() for parameter in task.parameters()]


def equal(one: list[Tensor], other: list[Tensor]) -> bool:
    """Whether two lists of tensors have the same bytes."""
    return len(one) == len(other) and all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
