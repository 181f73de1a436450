"""`ModelSummary`: prints the table of the task's modules before training."""

from __future__ import annotations

from typing import TYPE_CHECKING

from taskloom.callbacks.base import Callback
from taskloom.core.errors import explain

if TYPE_CHECKING:
    from taskloom.core.task import TaskModule
    from taskloom.trainer import Trainer


class ModelSummary(Callback):
    """Prints the task's modules when `fit` begins: types, parameters, modes and, with an `example_input_array`, sizes.

    Args:
        max_depth: how deep to go: 1 lists the attributes of the task, -1 everything, 0 only the totals.

    Raises:
        ValueError: the depth is below -1.
    """

    def __init__(self, max_depth: int = 1) -> None:
        if max_depth < -1:
            raise ValueError(explain("max_depth is a depth, -1 for all", got=max_depth))
        self.max_depth = max_depth

    def on_fit_start(self, trainer: Trainer, task: TaskModule) -> None:
        """Print the table, on rank 0."""
        from taskloom.report.summary import summarize

        table = summarize(task, max_depth=self.max_depth)  # on every rank: a forward pass may communicate
        if trainer.is_global_zero:
            trainer.print(table.render())


RichModelSummary = ModelSummary
