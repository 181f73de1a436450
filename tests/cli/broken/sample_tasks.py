"""The classes that the configurations of this folder name."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Literal

from torch import nn

from taskloom.callbacks.base import Callback
from taskloom.core.data import DataModule
from taskloom.core.task import TaskModule

BATCHES = 3


class Decoder(nn.Module):
    def __init__(self, size: int = 8, activation: Literal["relu", "gelu"] = "relu") -> None:
        super().__init__()


class Classifier(TaskModule):
    def __init__(
        self,
        hidden: int = 64,
        lr: float = 1e-3,
        mode: Literal["linear", "deep"] = "linear",
        bias: bool = True,
        widths: Sequence[int] = (),
        weights: Mapping[str, float] | None = None,
        schedule: int | Sequence[int] | None = None,
        decoder: Decoder | None = None,
        num_classes: int = 10,
    ) -> None:
        super().__init__()
        self.hidden_units = hidden * 2

    def configure_optimizers(self):
        return None


class WithoutOptimizer(TaskModule):
    def __init__(self, hidden: int = 64) -> None:
        super().__init__()


class NeedsClasses(WithoutOptimizer):
    def __init__(self, num_classes: int, hidden: int = 64) -> None:
        super().__init__(hidden)


class Untyped(Classifier):
    def __init__(self, width, hidden: int = 64) -> None:
        super().__init__(hidden)


class AbstractTask(Classifier):
    @abstractmethod
    def build(self) -> None: ...


class Images(DataModule):
    def __init__(self, batch_size: int = 32, folder: str = "images") -> None:
        self.num_classes = batch_size // 2


class Stopper(Callback):
    def __init__(self, monitor: str, patience: int = 3) -> None:
        self.monitor = monitor


def some_function() -> int:
    return 1
