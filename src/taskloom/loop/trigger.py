"""Deciding when something that happens every so often is due.

A loop must not ask every trigger after every batch. Each trigger therefore also tells the fewest batches that must pass
before it can be due again, and the loop asks only then.
"""

from __future__ import annotations

import math

from taskloom.core.errors import explain
from taskloom.core.interval import Interval
from taskloom.core.progress import Progress


class Trigger:
    """An interval, applied to the counters of a run.

    Args:
        interval: how often.
        start_after: not before this much of the run.
        batches_per_epoch: length of an epoch, `inf` when unknown.
        total_steps: planned optimizer steps of the run, `inf` when unknown.

    Raises:
        ValueError: a part of an epoch or of the run is asked for and its length is unknown.
    """

    def __init__(
        self,
        interval: Interval,
        *,
        start_after: Interval | None = None,
        batches_per_epoch: float = math.inf,
        total_steps: float = math.inf,
    ) -> None:
        self._batches_per_epoch = batches_per_epoch
        self._total_steps = total_steps
        self.interval = self._countable(interval)
        self._start = None if start_after is None else self._countable(start_after)
        self._fired_at = 0.0

    def _countable(self, interval: Interval) -> Interval:
        """Express parts of an epoch in batches, and parts of the run in steps."""
        if interval.unit == "run":
            if math.isinf(self._total_steps):
                raise ValueError(
                    explain(
                        "A part of the run is not known",
                        got=str(interval),
                        why="the run has no planned number of steps",
                        fix="set max_steps, or use steps, epochs or minutes",
                    )
                )
            return Interval(max(1, round(interval.amount * self._total_steps)), "steps")
        if interval.unit == "epochs" and interval.amount != int(interval.amount):
            if math.isinf(self._batches_per_epoch):
                raise ValueError(
                    explain(
                        "A part of an epoch is not known",
                        got=str(interval),
                        why="the training loader has no length",
                        fix="use steps, batches or minutes",
                    )
                )
            return Interval(max(1, math.floor(interval.amount * self._batches_per_epoch)), "batches")
        return interval

    def begin(self, progress: Progress) -> None:
        """Count time from now, and do not fire again for a moment that has passed already (after a resume)."""
        self._fired_at = _reached(self.interval, progress, epoch_ended=False)

    def due(self, progress: Progress, *, epoch_ended: bool = False) -> bool:
        """Return whether it is due now, and if so remember that it happened.

        Args:
            progress: the counters, those of the batch just finished included.
            epoch_ended: the epoch's last batch is done though `progress.epochs` does not count the epoch yet.
        """
        if self._start is not None and _reached(self._start, progress, epoch_ended) < self._start.amount:
            return False
        now, fired_at = _reached(self.interval, progress, epoch_ended), self._fired_at
        if self.interval.unit == "seconds":
            due = now - fired_at >= self.interval.amount
        else:
            due = now // self.interval.amount > fired_at // self.interval.amount
        if due:
            self._fired_at = now
        return due

    def wait(self, progress: Progress) -> float:
        """Return how many batches must pass at least before it can be due, other than at an epoch's end."""
        if self.interval.unit in ("epochs", "seconds"):
            return math.inf
        now = progress.steps if self.interval.unit == "steps" else progress.micro_batches
        return (now // self.interval.amount + 1) * self.interval.amount - now

    def wait_seconds(self, progress: Progress) -> float:
        """Return how many seconds must pass before it can be due; `inf` for an interval that is not of time."""
        if self.interval.unit != "seconds":
            return math.inf
        return max(0.0, self._fired_at + self.interval.amount - progress.seconds)


def _reached(interval: Interval, progress: Progress, epoch_ended: bool) -> float:
    if interval.unit == "seconds":
        return progress.seconds
    if interval.unit == "steps":
        return progress.steps
    if interval.unit == "batches":
        return progress.micro_batches
    return progress.epochs + epoch_ended
