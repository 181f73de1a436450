"""`GradientAccumulationScheduler`: more micro-batches per step as training goes on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from taskloom.callbacks.base import Callback
from taskloom.core.errors import explain
from taskloom.core.policies import Accumulation

if TYPE_CHECKING:
    from taskloom.core.task import TaskModule
    from taskloom.trainer import Trainer


class GradientAccumulationScheduler(Callback):
    """Sets `trainer.accumulate_grad_batches` by epoch.

    `Trainer(accumulate_grad_batches={0: 1, 5: 4})` says the same without a callback.

    Args:
        scheduling: from which epoch (counted from 0) on how many micro-batches make a step: `{0: 8, 4: 4, 8: 1}`.
            Epochs before the first have 1.

    Raises:
        ValueError: the schedule is empty, an epoch is negative, or a number of micro-batches is below 1.
    """

    def __init__(self, scheduling: Mapping[int, int]) -> None:
        if not scheduling:
            raise ValueError(
                explain(
                    "GradientAccumulationScheduler has an empty schedule",
                    fix="pass {0: 1, 5: 4} to change it from epoch 5 on",
                )
            )
        self._accumulation = Accumulation(batches=dict(scheduling))
        self.scheduling = dict(scheduling)

    def setup(self, trainer: Trainer, task: TaskModule, stage: str) -> None:
        """Refuse to work against the Trainer's own setting."""
        set_by_trainer = trainer.settings.accumulation.batches
        if stage == "fit" and set_by_trainer != 1:
            raise ValueError(
                explain(
                    "accumulate_grad_batches is set twice",
                    got={"Trainer": set_by_trainer, "GradientAccumulationScheduler": self.scheduling},
                    fix="leave it out of the Trainer",
                )
            )
        if stage == "fit" and not task.automatic_optimization:
            raise ValueError(
                explain(
                    "GradientAccumulationScheduler has nothing to schedule in manual optimisation",
                    why="the task itself decides when it steps",
                    fix="remove the callback",
                )
            )

    def on_train_epoch_start(self, trainer: Trainer, task: TaskModule) -> None:
        """Set the epoch's number of micro-batches."""
        trainer.accumulate_grad_batches = self._accumulation.at_epoch(trainer.current_epoch)
