"""`EarlyStopping`: end training when a metric no longer gets better. Arguments are those of Lightning's callback."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from taskloom.callbacks.base import Callback
from taskloom.core.errors import explain, nearest

if TYPE_CHECKING:
    from taskloom.core.task import TaskModule
    from taskloom.trainer import Trainer

Moment = Literal["validation", "epoch"]


class EarlyStopping(Callback):
    """Stops when the monitored metric has not improved for `patience` checks, or has crossed a threshold.

    Args:
        monitor: name of a logged metric.
        min_delta: an improvement must be larger than this, in the metric's unit; its sign does not matter.
        patience: stop at this many checks in a row without improvement. Checks are counted, not epochs.
        verbose: print each improvement.
        mode: whether a lower ("min") or a higher ("max") metric is better.
        strict: an absent metric is an error; otherwise the check is left out.
        check_finite: stop when the metric becomes NaN or infinite.
        stopping_threshold: stop once the metric is better than this.
        divergence_threshold: stop once it is worse than this.
        check_on_train_epoch_end: check at the end of epochs (True) or of validations (False). By default after
            validations if they measure the metric, else at the end of epochs.
        log_rank_zero_only: print on rank 0 only.

    Raises:
        ValueError: an argument cannot be meant.
    """

    def __init__(
        self,
        monitor: str,
        min_delta: float = 0.0,
        patience: int = 3,
        verbose: bool = False,
        mode: Literal["min", "max"] = "min",
        strict: bool = True,
        check_finite: bool = True,
        stopping_threshold: float | None = None,
        divergence_threshold: float | None = None,
        check_on_train_epoch_end: bool | None = None,
        log_rank_zero_only: bool = False,
    ) -> None:
        if mode not in ("min", "max"):
            raise ValueError(
                explain("The mode of EarlyStopping is 'min' or 'max'", got=mode, fix="mode='min' where lower is better")
            )
        if patience < 0:
            raise ValueError(explain("The patience of EarlyStopping is at least 0", got=patience))
        self.monitor: str = monitor
        self.min_delta = abs(min_delta)
        self.patience = patience
        self.verbose = verbose
        self.mode = mode
        self.strict = strict
        self.check_finite = check_finite
        self.stopping_threshold = stopping_threshold
        self.divergence_threshold = divergence_threshold
        self.log_rank_zero_only = log_rank_zero_only
        self.wait_count = 0
        self.stopped_epoch = 0
        self._best = -math.inf if mode == "max" else math.inf
        self._moment: Moment | None = None
        if check_on_train_epoch_end is not None:
            self._moment = "epoch" if check_on_train_epoch_end else "validation"
        self._validated = self._fitting = False

    @property
    def state_key(self) -> str:
        """Two of them may watch two metrics."""
        return f"EarlyStopping(monitor={self.monitor!r}, mode={self.mode!r})"

    @property
    def best_score(self) -> Tensor:
        """The best value so far, 0-dim float64; infinite before the first check."""
        return torch.tensor(self._best, dtype=torch.float64)

    def state_dict(self) -> dict[str, Any]:
        """Return the counts, the best value, and when checks are made."""
        return {
            "wait_count": self.wait_count,
            "stopped_epoch": self.stopped_epoch,
            "best_score": self._best,
            "moment": self._moment,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore them. A larger `patience` than before lets a stopped training go on."""
        self.wait_count = state["wait_count"]
        self.stopped_epoch = state["stopped_epoch"]
        self._best = state["best_score"]
        self._moment = self._moment or state["moment"]

    def setup(self, trainer: Trainer, task: TaskModule, stage: str) -> None:
        """Notice whether it is a training, because `validate` has nothing to stop."""
        self._fitting, self._validated = stage == "fit", False

    def on_validation_end(self, trainer: Trainer, task: TaskModule) -> None:
        """Check, if validations measure the metric."""
        if trainer.sanity_checking or not self._fitting:
            return
        self._validated = True
        if self._moment is None and self.monitor in trainer.callback_metrics:
            self._moment = "validation"
        if self._moment == "validation":
            self._check(trainer)

    def on_train_epoch_end(self, trainer: Trainer, task: TaskModule) -> None:
        """Check, if training measures the metric."""
        if self._moment is None:
            still_to_come = bool(trainer.num_val_batches) and not self._validated
            if still_to_come and self.monitor not in trainer.callback_metrics:
                return
            self._moment = "epoch"
        if self._moment == "epoch":
            self._check(trainer)

    def _check(self, trainer: Trainer) -> None:
        metrics = trainer.callback_metrics
        if self.monitor not in metrics:
            self._absent(metrics)
            return
        value = float(metrics[self.monitor])
        reason = self._verdict(value)
        if reason is None:
            if self.wait_count == 0 and self.verbose:
                self._say(trainer, f"EarlyStopping: {self.monitor} improved to {value:.6g}")
            return
        self.stopped_epoch = trainer.current_epoch
        trainer.should_stop = True
        trainer.stop_reason = reason
        if self.verbose:
            self._say(trainer, f"EarlyStopping: {reason}")

    def _verdict(self, value: float) -> str | None:
        """Take in a value; return why to stop, or None to go on."""
        if self.check_finite and not math.isfinite(value):
            return f"{self.monitor} became {value}; the best was {self._best:.6g}"
        improved = self._better(value, self._best, self.min_delta)
        if improved:
            self._best, self.wait_count = value, 0
        if self.stopping_threshold is not None and self._better(value, self.stopping_threshold):
            return f"{self.monitor} {value:.6g} reached the threshold {self.stopping_threshold:.6g}"
        if self.divergence_threshold is not None and self._better(self.divergence_threshold, value):
            return f"{self.monitor} {value:.6g} is worse than the limit {self.divergence_threshold:.6g}"
        if improved:
            return None
        self.wait_count += 1
        if self.wait_count >= self.patience:
            checks = f"{self.wait_count} check{'s' if self.wait_count != 1 else ''}"
            return f"{self.monitor} did not improve on {self._best:.6g} in the last {checks}"
        return None

    def _better(self, value: float, than: float, margin: float = 0.0) -> bool:
        return value > than + margin if self.mode == "max" else value < than - margin

    def _absent(self, metrics: Mapping[str, Any]) -> None:
        if self.strict:
            known = ", ".join(sorted(metrics)) or "none"
            remedy = f"log it with self.log({self.monitor!r}, value), monitor one of those, or pass strict=False"
            raise ValueError(
                explain(
                    f"EarlyStopping monitors {self.monitor!r}, which was not logged. Logged so far: {known}",
                    fix=f"{remedy}.{nearest(self.monitor, metrics)}",
                )
            )

    def _say(self, trainer: Trainer, text: str) -> None:
        if trainer.is_global_zero or not self.log_rank_zero_only:
            trainer.print(text)
