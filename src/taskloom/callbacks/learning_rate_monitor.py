"""`LearningRateMonitor`: learning rates, momenta and weight decays as metrics. Arguments and names are Lightning's."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Literal

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from taskloom.callbacks.base import Callback
from taskloom.core.errors import explain, nearest

if TYPE_CHECKING:
    from taskloom.core.task import TaskModule
    from taskloom.trainer import Trainer

_INTERVALS = ("step", "epoch")


class LearningRateMonitor(Callback):
    """Logs the rate with which each optimizer is about to step.

    The names are `lr-AdamW`; with several optimizers of a class `lr-AdamW-1`, with several parameter groups
    `lr-AdamW/pg1`, or the group's own `"name"`. The `name` of a scheduler's config replaces the front part.

    Args:
        logging_interval: `"step"` logs with the other values of a step, at the `Trainer`'s logging interval; `"epoch"`
            once per epoch; `None` is the same as `"step"`.
        log_momentum: log `...-momentum` as well (the first beta of Adam-like optimizers).
        log_weight_decay: log `...-weight_decay` as well.

    Raises:
        ValueError: the interval is none of these.
    """

    def __init__(
        self,
        logging_interval: Literal["step", "epoch"] | None = None,
        log_momentum: bool = False,
        log_weight_decay: bool = False,
    ) -> None:
        if logging_interval not in (None, *_INTERVALS):
            raise ValueError(
                explain(
                    "The logging_interval of LearningRateMonitor is 'step', 'epoch' or None",
                    got=logging_interval,
                    fix=f"logging_interval='step'.{nearest(str(logging_interval), _INTERVALS)}",
                )
            )
        self.logging_interval = logging_interval
        self.log_momentum = log_momentum
        self.log_weight_decay = log_weight_decay
        self._groups: list[tuple[str, dict[str, Any]]] = []

    @property
    def rates(self) -> dict[str, float]:
        """The learning rates now, by the names under which they are logged."""
        return {name: float(group["lr"]) for name, group in self._groups}

    def on_train_start(self, trainer: Trainer, task: TaskModule) -> None:
        """Name the parameter groups."""
        self._groups = list(self._named_groups(trainer))

    def on_train_epoch_start(self, trainer: Trainer, task: TaskModule) -> None:
        """Log, if the interval is the epoch."""
        # A fine-tuning callback may have added groups at the start of the epoch.
        self._groups = list(self._named_groups(trainer))
        if self.logging_interval == "epoch":
            self._log(task, on_step=False)

    def on_train_batch_start(self, trainer: Trainer, task: TaskModule, batch: Any, batch_idx: int) -> None:
        """Log, if the interval is the step."""
        if self.logging_interval != "epoch":
            self._log(task, on_step=True)

    def _log(self, task: TaskModule, *, on_step: bool) -> None:
        for name, group in self._groups:
            for label, value in self._values(name, group):
                task.log(label, value, on_step=on_step, on_epoch=not on_step)

    def _values(self, name: str, group: dict[str, Any]) -> Iterator[tuple[str, Any]]:
        yield name, group["lr"]
        if self.log_momentum:
            momentum = group["betas"][0] if "betas" in group else group.get("momentum", 0.0)
            yield f"{name}-momentum", momentum
        if self.log_weight_decay and "weight_decay" in group:
            yield f"{name}-weight_decay", group["weight_decay"]

    @staticmethod
    def _named_groups(trainer: Trainer) -> Iterator[tuple[str, dict[str, Any]]]:
        schedulers = {
            id(config.scheduler.optimizer): config.name
            for config in trainer.lr_scheduler_configs
            if config.name and isinstance(config.scheduler, LRScheduler)
        }
        seen: Counter[str] = Counter()
        for optimizer in trainer.optimizers:
            kind = type(optimizer).__name__
            number, seen[kind] = seen[kind], seen[kind] + 1
            name = schedulers.get(id(optimizer)) or f"lr-{kind}{f'-{number}' if number else ''}"
            yield from (
                (f"{name}{_suffix(optimizer, index)}", group) for index, group in enumerate(optimizer.param_groups)
            )


def _suffix(optimizer: Optimizer, index: int) -> str:
    group = optimizer.param_groups[index]
    if "name" in group:
        return f"/{group['name']}"
    return f"/pg{index + 1}" if len(optimizer.param_groups) > 1 else ""
