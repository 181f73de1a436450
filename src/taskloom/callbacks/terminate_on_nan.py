"""`TerminateOnNaN`: end training quietly when a number is none."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from taskloom.callbacks.base import Callback
from taskloom.callbacks.losses import LossReader

if TYPE_CHECKING:
    from taskloom.core.task import TaskModule
    from taskloom.trainer import Trainer


class TerminateOnNaN(Callback):
    """Stops training when the loss or a logged metric is NaN or infinite.

    It stops as `EarlyStopping` does: without an error, with the checkpoints in order. By default the `Trainer` already
    raises `NonFiniteError` for a training loss; where it is told to leave such batches out
    (`Accumulation(on_nonfinite="drop_and_reweight")`) this callback ends the run instead. On an accelerator the losses
    are looked at with every flush of the metrics, so that no step waits for the device.

    Args:
        metrics: look at every logged metric, not only at the loss.
    """

    def __init__(self, metrics: bool = True) -> None:
        self.metrics = metrics
        self._losses = LossReader()

    def on_train_batch_end(self, trainer: Trainer, task: TaskModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Look at the loss."""
        self._check(trainer, self._losses.add(trainer.global_step, outputs))

    def on_log(self, trainer: Trainer, task: TaskModule, metrics: Mapping[str, float], step: int) -> None:
        """Look at the losses that were held back, and at the metrics."""
        self._check(trainer, self._losses.read())
        if self.metrics:
            for name, value in metrics.items():
                if not math.isfinite(value):
                    self._stop(trainer, f"{name} became {value} at step {step}")

    def on_train_epoch_end(self, trainer: Trainer, task: TaskModule) -> None:
        """Look at the losses that were held back."""
        self._check(trainer, self._losses.read())

    def _check(self, trainer: Trainer, losses: list[tuple[int, float]]) -> None:
        for step, loss in losses:
            if not math.isfinite(loss):
                self._stop(trainer, f"the training loss became {loss} at step {step}")

    @staticmethod
    def _stop(trainer: Trainer, reason: str) -> None:
        if not trainer.should_stop:
            trainer.should_stop = True
            trainer.stop_reason = reason
