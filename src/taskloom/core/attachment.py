"""What a task knows of the run it is in, and how it is connected to one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from warnings import warn

import torch
from torch import nn

from taskloom.core.errors import TaskloomWarning, explain

if TYPE_CHECKING:
    from taskloom.fabric import Fabric
    from taskloom.loggers import Logger
    from taskloom.metrics import MetricStore
    from taskloom.trainer import Trainer

_RUN_ATTRIBUTES = ("_trainer", "_metrics")


class Attachment(nn.Module):
    """The part of a `TaskModule` that reaches its `Trainer`; everything here needs one unless it says otherwise."""

    _trainer: Trainer | None = None
    _metrics: MetricStore | None = None

    @property
    def trainer(self) -> Trainer:
        """The `Trainer` that runs this task.

        Raises:
            RuntimeError: none does.
        """
        if self._trainer is None:
            raise RuntimeError(
                explain(
                    f"{type(self).__name__} is not attached to a Trainer",
                    why="this is only known while fit, validate, test or predict runs",
                    fix="call it from a step or a hook",
                )
            )
        return self._trainer

    @property
    def fabric(self) -> Fabric:
        """The resolved accelerator, precision and strategy of the run."""
        return self.trainer.fabric

    @property
    def device(self) -> torch.device:
        """The device of the run while one goes on, else of the first parameter or buffer, else the CPU."""
        if self._trainer is not None and self._metrics is not None:
            return self._trainer.device
        tensor = next(self.parameters(), next(self.buffers(), None))
        return torch.device("cpu") if tensor is None else tensor.device

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the first floating-point parameter, else torch's default."""
        return next(
            (parameter.dtype for parameter in self.parameters() if parameter.is_floating_point()),
            torch.get_default_dtype(),
        )

    @property
    def on_gpu(self) -> bool:
        """Whether the device is a CUDA or ROCm GPU."""
        return self.device.type == "cuda"

    @property
    def current_epoch(self) -> int:
        """Completed epochs, so the number of the running one from 0; 0 without a Trainer."""
        return self._trainer.current_epoch if self._trainer is not None else 0

    @property
    def global_step(self) -> int:
        """Optimizer steps taken; 0 without a Trainer."""
        return self._trainer.global_step if self._trainer is not None else 0

    @property
    def global_rank(self) -> int:
        """Number of this process; 0 without a Trainer."""
        return self._trainer.global_rank if self._trainer is not None else 0

    @property
    def local_rank(self) -> int:
        """Number of this process on its machine; 0 without a Trainer."""
        return self._trainer.local_rank if self._trainer is not None else 0

    @property
    def device_mesh(self) -> Any:
        """The mesh of a strategy that splits the model, else None."""
        return self.trainer.strategy.device_mesh

    @property
    def logger(self) -> Logger | None:
        """The first logger, or None; None without a Trainer."""
        return self._trainer.logger if self._trainer is not None else None

    @property
    def loggers(self) -> list[Logger]:
        """All loggers; none without a Trainer."""
        return self._trainer.loggers if self._trainer is not None else []

    def all_gather(self, data: Any, group: Any = None, sync_grads: bool = False) -> Any:
        """Gather tensors of all processes along a new leading dimension, which one process does not add."""
        return self.trainer.strategy.all_gather(data, sync_grads=sync_grads)

    def print(self, *args: Any, **kwargs: Any) -> None:
        """Print on rank 0, above the progress bar."""
        self.trainer.print(*args, **kwargs)

    def attach(self, trainer: Trainer | None, metrics: MetricStore | None) -> None:
        """Connect the task to a run, or with two None disconnect it; called by the Trainer."""
        self._trainer, self._metrics = trainer, metrics

    def __getstate__(self) -> dict[str, Any]:
        # A copied or pickled task is a model: it must not drag the Trainer, its loaders and its loggers along.
        return {**self.__dict__, **dict.fromkeys(_RUN_ATTRIBUTES)}

    def warn_unattached(self, method: str) -> None:
        """Say that what a method was given is dropped, because no Trainer runs the task."""
        warn(
            explain(f"{type(self).__name__}.{method} was called outside a Trainer; nothing is recorded"),
            TaskloomWarning,
            stacklevel=3,
        )
