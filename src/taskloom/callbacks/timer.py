"""`Timer`: how long each stage has run, and a limit on training."""

from __future__ import annotations

import time
from collections.abc import Mapping
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Literal

from taskloom.callbacks.base import Callback
from taskloom.core.errors import explain, nearest
from taskloom.core.interval import parse_seconds
from taskloom.report.text import format_duration

if TYPE_CHECKING:
    from taskloom.core.task import TaskModule
    from taskloom.trainer import Trainer

_STAGES = ("train", "validate", "sanity_check", "test", "predict")
_INTERVALS = ("step", "epoch")


class Timer(Callback):
    """Measures the time in training, validation, test and prediction; the time in training counts over resumes.

    For a limit alone `Trainer(max_time=...)` is enough.

    Args:
        duration: training stops after this long: `"10 minutes"`, `"00:12:00:00"` (days to seconds), a `timedelta` or a
            dict of its arguments; None for no limit.
        interval: look at the limit after every `"step"` or every `"epoch"`.
        verbose: print when it stops training.

    Raises:
        ValueError: the duration or the interval cannot be read.
    """

    _clock = staticmethod(time.monotonic)

    def __init__(
        self,
        duration: str | timedelta | dict[str, float] | None = None,
        interval: Literal["step", "epoch"] = "step",
        verbose: bool = True,
    ) -> None:
        if interval not in _INTERVALS:
            raise ValueError(
                explain(
                    "The interval of Timer is 'step' or 'epoch'",
                    got=interval,
                    fix=f"interval='step'.{nearest(str(interval), _INTERVALS)}",
                )
            )
        self.duration = None if duration is None else parse_seconds(duration)
        self.interval = interval
        self.verbose = verbose
        self._before = dict.fromkeys(_STAGES, 0.0)
        self._started: dict[str, float] = {}

    def time_elapsed(self, stage: str = "train") -> float:
        """Return the seconds spent in `train`, `validate`, `sanity_check`, `test` or `predict`."""
        if stage not in _STAGES:
            known = ", ".join(_STAGES)
            raise ValueError(
                explain(f"There is no stage {stage!r}", fix=f"use one of {known}.{nearest(stage, _STAGES)}")
            )
        running = self._clock() - self._started[stage] if stage in self._started else 0.0
        return self._before[stage] + running

    def time_remaining(self, stage: str = "train") -> float | None:
        """Return the seconds until training is stopped, None without a limit."""
        return None if self.duration is None else max(self.duration - self.time_elapsed(stage), 0.0)

    def state_dict(self) -> dict[str, Any]:
        """Return the seconds spent in each stage."""
        return {"time_elapsed": {stage: self.time_elapsed(stage) for stage in _STAGES}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on counting from there."""
        self._before.update(state["time_elapsed"])

    def _begin(self, stage: str) -> None:
        self._started[stage] = self._clock()

    def _end(self, stage: str) -> None:
        if stage in self._started:
            self._before[stage] += self._clock() - self._started.pop(stage)

    def _check(self, trainer: Trainer) -> None:
        if self.duration is None or trainer.should_stop or self.time_elapsed() < self.duration:
            return
        trainer.should_stop = True
        trainer.stop_reason = f"the time limit of {format_duration(self.duration)} was reached"
        if self.verbose and trainer.is_global_zero:
            trainer.print(f"Timer: {trainer.stop_reason}")

    def on_train_start(self, trainer: Trainer, task: TaskModule) -> None:
        """Start counting; a limit that an earlier process has used up stops at once."""
        self._begin("train")
        self._check(trainer)

    def on_train_batch_end(self, trainer: Trainer, task: TaskModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Look at the limit."""
        if self.interval == "step" and self.duration is not None:
            self._check(trainer)

    def on_train_epoch_end(self, trainer: Trainer, task: TaskModule) -> None:
        """Look at the limit."""
        if self.interval == "epoch":
            self._check(trainer)

    def on_train_end(self, trainer: Trainer, task: TaskModule) -> None:
        """Stop counting."""
        self._end("train")

    def on_sanity_check_start(self, trainer: Trainer, task: TaskModule) -> None:
        """Start counting."""
        self._begin("sanity_check")

    def on_sanity_check_end(self, trainer: Trainer, task: TaskModule) -> None:
        """Stop counting."""
        self._end("sanity_check")

    def on_validation_start(self, trainer: Trainer, task: TaskModule) -> None:
        """Start counting, unless it is the sanity check's."""
        if not trainer.sanity_checking:
            self._begin("validate")

    def on_validation_end(self, trainer: Trainer, task: TaskModule) -> None:
        """Stop counting."""
        self._end("validate")

    def on_test_start(self, trainer: Trainer, task: TaskModule) -> None:
        """Start counting."""
        self._begin("test")

    def on_test_end(self, trainer: Trainer, task: TaskModule) -> None:
        """Stop counting."""
        self._end("test")

    def on_predict_start(self, trainer: Trainer, task: TaskModule) -> None:
        """Start counting."""
        self._begin("predict")

    def on_predict_end(self, trainer: Trainer, task: TaskModule) -> None:
        """Stop counting."""
        self._end("predict")

    def on_exception(self, trainer: Trainer, task: TaskModule, exception: BaseException) -> None:
        """Stop counting everything."""
        for stage in _STAGES:
            self._end(stage)
