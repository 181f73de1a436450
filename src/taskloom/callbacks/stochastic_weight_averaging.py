"""`StochasticWeightAveraging`: the equal average of the weights at the end of late epochs, at a constant learning rate.

Izmailov et al. 2018, "Averaging Weights Leads to Wider Optima and Better Generalization" (arXiv:1803.05407). Arguments
are those of Lightning's callback; the learning rate is that of `torch.optim.swa_utils.SWALR`, worked out anew for every
epoch from what it was when averaging began, so that it needs no state but that and no scheduler is exchanged.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from taskloom.callbacks.weight_averaging import KIND, WeightAveraging
from taskloom.core.errors import ConfigError, explain, nearest

if TYPE_CHECKING:
    from taskloom.core.task import TaskModule
    from taskloom.trainer import Trainer

_ANNEALING: dict[str, Callable[[float], float]] = {
    "cos": lambda part: (1 - math.cos(math.pi * part)) / 2,
    "linear": lambda part: part,
}


class StochasticWeightAveraging(WeightAveraging):
    """Averages the weights at the end of every epoch from `swa_epoch_start` on.

    In that phase the schedulers of `configure_optimizers` rest, and the learning rate of every group moves to its
    `swa_lrs` within `annealing_epochs`. Validations are of the training weights, whose statistics of batch
    normalisation fit them. When training ends, the statistics of the average are computed in one more pass over the
    training data, the average is validated, and a checkpoint with it is saved; the task holds it when `fit` returns.

    Args:
        swa_lrs: learning rate to move to; a list has one per parameter group.
        swa_epoch_start: first epoch that is averaged, counted from 1; a float is a part of `max_epochs`.
        annealing_epochs: epochs in which the learning rate moves; 0 sets it at once.
        annealing_strategy: `"cos"` or `"linear"`.
        avg_fn: (average, value, updates so far) to the new average, for one tensor; by default all count the same.
        device: where the average is held; None for that of the weights.
        dtype: of the average; by default that of the weights, but at least float32.
        keep_at_end: leave the average in the task when `fit` ends.
        kind: name of the average in checkpoints.

    Raises:
        ConfigError: an argument cannot be meant; lists every one.
    """

    def __init__(
        self,
        swa_lrs: float | list[float],
        swa_epoch_start: int | float = 0.8,
        annealing_epochs: int = 10,
        annealing_strategy: Literal["cos", "linear"] = "cos",
        avg_fn: Callable[[Tensor, Tensor, int], Tensor] | None = None,
        device: str | torch.device | int | None = "cpu",
        *,
        dtype: str | torch.dtype | None = None,
        keep_at_end: bool = True,
        kind: str = KIND,
    ) -> None:
        problems = _problems(swa_lrs, swa_epoch_start, annealing_epochs, annealing_strategy)
        if problems:
            raise ConfigError(problems)
        super().__init__(device, avg_fn=avg_fn, dtype=dtype, evaluate=False, keep_at_end=keep_at_end, kind=kind)
        self.swa_lrs, self.swa_epoch_start = swa_lrs, swa_epoch_start
        self.annealing_epochs, self.annealing_strategy = annealing_epochs, annealing_strategy
        self._first = 0
        self._began_with: list[float] = []
        self._complete = False

    def should_update(self, step_idx: int | None = None, epoch_idx: int | None = None) -> bool:
        """Return whether the epoch whose last batch is done belongs to the averaged ones."""
        return epoch_idx is not None and epoch_idx >= self._first

    def state_dict(self) -> dict[str, Any]:
        """Return the counters, and the learning rates that the phase began with."""
        return {**super().state_dict(), "began_with": list(self._began_with), "complete": self._complete}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore them."""
        super().load_state_dict(state)
        self._began_with = list(state["began_with"])

    # The phase --------------------------------------------------------------------------------------------------------

    def setup(self, trainer: Trainer, task: TaskModule, stage: str) -> None:
        """Begin anew in a fit."""
        super().setup(trainer, task, stage)
        if stage == "fit":
            self._began_with, self._complete, self.evaluate = [], False, False

    def on_fit_start(self, trainer: Trainer, task: TaskModule) -> None:
        """Hold the run against what averaging needs.

        Raises:
            ValueError: the run has several optimizers, another number of groups, or no number of epochs.
        """
        super().on_fit_start(trainer, task)
        groups = [len(optimizer.param_groups) for optimizer in trainer.optimizers]
        if len(groups) != 1 or not task.automatic_optimization:
            raise ValueError(
                explain(
                    "StochasticWeightAveraging needs one optimizer that the loop steps",
                    got=f"{len(groups)} optimizers{'' if task.automatic_optimization else ', stepped by the task'}",
                    why="it sets the learning rate, and runs training_step without a step for batch normalisation",
                    fix="use WeightAveraging, which only averages",
                )
            )
        if isinstance(self.swa_lrs, list) and len(self.swa_lrs) != groups[0]:
            raise ValueError(
                explain(
                    f"swa_lrs has {len(self.swa_lrs)} learning rates for {groups[0]} parameter groups",
                    fix="pass one per group, or one number for all",
                )
            )
        start, epochs = self.swa_epoch_start, trainer.settings.epochs.max
        if isinstance(start, float):
            if epochs is None or math.isinf(epochs):
                raise ValueError(
                    explain(
                        "swa_epoch_start is a part of a training without a number of epochs",
                        got=start,
                        fix="pass max_epochs to the Trainer, or a whole number of epochs as swa_epoch_start",
                    )
                )
            start = int(epochs * start)
        self._first = max(start - 1, 0)

    def on_train_epoch_start(self, trainer: Trainer, task: TaskModule) -> None:
        """Set the learning rates of the phase."""
        super().on_train_epoch_start(trainer, task)
        done = self.epoch - self._first
        if done < 0:
            return
        groups = trainer.optimizers[0].param_groups
        if not self._began_with:
            self._began_with = [float(group["lr"]) for group in groups]
        trainer.pause_schedulers()
        part = min(1.0, done / self.annealing_epochs) if self.annealing_epochs else 1.0
        weight = _ANNEALING[self.annealing_strategy](part)
        targets = self.swa_lrs if isinstance(self.swa_lrs, list) else [self.swa_lrs] * len(groups)
        for group, target, began in zip(groups, targets, self._began_with, strict=True):
            rate = target * weight + began * (1 - weight)
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(rate)
            else:
                group["lr"] = rate

    def on_train_end(self, trainer: Trainer, task: TaskModule) -> None:
        """Give the average its statistics of batch normalisation, and ask for its validation and a checkpoint."""
        if not self.updates:
            return
        layers = [name for name, module in task.named_modules() if isinstance(module, _BatchNorm) and module.training]
        if layers:
            with self._averages.in_place():
                trainer.recompute_batch_norm()
                self._averages.adopt([f"{layer}.{name}" for layer in layers for name in _statistics(task, layer)])
        self._complete = self.evaluate = True
        trainer.request("validate")
        trainer.request("save")

    def on_fit_end(self, trainer: Trainer, task: TaskModule) -> None:
        """Leave the average in the task."""
        super().on_fit_end(trainer, task)
        self.evaluate = False

    def evaluate_loaded(self, saved: Mapping[str, Any]) -> bool:
        """Return True for a checkpoint of the end: those before it have metrics of their training weights."""
        return bool(saved.get("complete", True))


def _statistics(task: nn.Module, layer: str) -> Sequence[str]:
    return [name for name, buffer in task.get_submodule(layer).named_buffers() if buffer.is_floating_point()]


def _problems(rates: Any, start: Any, epochs: Any, strategy: Any) -> list[str]:
    problems = []
    listed = rates if isinstance(rates, list) else [rates]
    if not listed or any(isinstance(rate, bool) or not isinstance(rate, (int, float)) or rate <= 0 for rate in listed):
        problems.append(explain("swa_lrs is a learning rate above 0, or a list of them", got=rates, fix="swa_lrs=0.01"))
    whole = type(start) is int and start >= 1
    if not whole and not (isinstance(start, float) and 0 <= start <= 1):
        problems.append(
            explain(
                "swa_epoch_start is an epoch, counted from 1, or a part of max_epochs from 0.0 to 1.0",
                got=start,
                fix="swa_epoch_start=0.8",
            )
        )
    if type(epochs) is not int or epochs < 0:
        problems.append(explain("annealing_epochs is a whole number of at least 0", got=epochs))
    if strategy not in _ANNEALING:
        fix = f"use 'cos' or 'linear'.{nearest(str(strategy), _ANNEALING)}"
        problems.append(explain("annealing_strategy is unknown", got=strategy, fix=fix))
    return problems
