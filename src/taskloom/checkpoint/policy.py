"""Which checkpoints are saved, and which are kept."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import Literal

from taskloom.core.errors import ConfigError, explain, nearest
from taskloom.core.interval import Interval

_MODES = ("min", "max")


@dataclass(frozen=True)
class CheckpointPolicy:
    """When checkpoints are saved and which of them are kept. A `Trainer` takes one or several.

    The newest ones (`keep_last`) and the best ones (`save_top_k`) are kept independently of each other; one checkpoint
    may be both.

    Args:
        monitor: name of the logged metric that says which checkpoints are best. Without one there is no best.
        mode: whether a lower ("min") or a higher ("max") metric is better. Ties keep the earlier checkpoint; NaN and
            infinite values are never best.
        save_top_k: how many of the best to keep; 0 for none, -1 for every checkpoint.
        keep_last: how many of the newest to keep; 0 for none, -1 for every checkpoint.
        every: interval between saves: "1 epoch", "500 steps", "10 minutes", "10%" of the run, or a `timedelta`. With a
            monitor it must fall together with the validation that measures it, because a metric measured at an earlier
            step is refused.
        asynchronous: write in the background while training goes on, from a copy in host memory. Training waits for the
            copy only, and for the save before if that is still being written; the copy takes as much memory as the
            checkpoint. A save that fails is an error at the next batch.
        fsync: have the disk confirm a checkpoint, and read it back, before it counts as saved, so that it also
            survives a power cut. Costs the time that the disk needs; without it a checkpoint survives a crash of the
            process.
        weights_only: save neither optimizer nor training state. Smaller, but training cannot be resumed from it.
        trainable_only: leave parameters out that do not require gradients, as under adapters. Training resumes exactly
            where the task brings the same base weights along; their hashes are in the checkpoint, and other ones are
            refused.
        load_best_at_end: have `fit` end with the weights of the best checkpoint in the task, rather than with those of
            the last step. Needs a monitor.

    Raises:
        ConfigError: a setting is wrong, or nothing would be kept; lists every problem.
    """

    monitor: str | None = None
    mode: Literal["min", "max"] = "min"
    save_top_k: int = 1
    keep_last: int = 1
    every: str | int | float | timedelta = "1 epoch"
    asynchronous: bool = True
    fsync: bool = True
    weights_only: bool = False
    trainable_only: bool = False
    load_best_at_end: bool = False

    def __post_init__(self) -> None:
        problems = [*self._type_problems(), *self._meaning_problems()]
        if problems:
            raise ConfigError(problems)

    @property
    def interval(self) -> Interval:
        """`every`, parsed."""
        return Interval.parse(self.every)

    @property
    def keeps_everything(self) -> bool:
        """Whether no checkpoint is ever deleted."""
        return self.save_top_k == -1 or self.keep_last == -1

    def _type_problems(self) -> list[str]:
        problems = []
        if self.monitor is not None and (not isinstance(self.monitor, str) or not self.monitor):
            problems.append(
                explain(
                    "CheckpointPolicy.monitor is the name of a logged metric",
                    got=self.monitor,
                    fix="monitor='val/loss'",
                )
            )
        if self.mode not in _MODES:
            problems.append(
                explain(
                    "CheckpointPolicy.mode is 'min' or 'max'",
                    got=self.mode,
                    fix=f"mode='min' where lower is better.{nearest(str(self.mode), _MODES)}",
                )
            )
        for name, value in (("save_top_k", self.save_top_k), ("keep_last", self.keep_last)):
            if type(value) is not int or value < -1:
                problems.append(
                    explain(
                        f"CheckpointPolicy.{name} is a whole number of at least -1",
                        got=value,
                        fix=f"{name}=3, 0 for none, -1 for all",
                    )
                )
        try:
            Interval.parse(self.every)
        except (TypeError, ValueError) as error:
            problems.append(f"CheckpointPolicy.every: {error}")
        return problems

    def _meaning_problems(self) -> list[str]:
        if self.load_best_at_end and (self.monitor is None or self.save_top_k == 0):
            return [
                explain(
                    "CheckpointPolicy(load_best_at_end=True) needs a monitor and save_top_k of at least 1",
                    why="without them there is no best checkpoint to load",
                    fix="monitor='val/loss', save_top_k=1",
                )
            ]
        if self.monitor is None and self.save_top_k not in (-1, 0, 1):
            return [
                explain(
                    f"CheckpointPolicy(save_top_k={self.save_top_k}) needs a monitor",
                    why="without a metric no checkpoint is better than another",
                    fix=f"pass monitor='val/loss', or keep_last={self.save_top_k} for the newest ones",
                )
            ]
        if self.keep_last == 0 and (self.save_top_k == 0 or (self.monitor is None and self.save_top_k != -1)):
            return [
                explain(
                    "CheckpointPolicy would keep no checkpoint at all",
                    fix="keep_last=1, or a monitor with save_top_k=1, or checkpoint=False in the Trainer",
                )
            ]
        return []
