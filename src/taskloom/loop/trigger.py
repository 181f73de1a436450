"""Deciding when something that happens every so often is due.

A loop must not ask every trigger after every batch. Each trigger therefore also tells the fewest batches that must pass
before it can be due again, and the loop asks only then.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

from taskloom.core.errors import explain
from taskloom.core.interval import Interval
from taskloom.core.progress import Progress

Counter = Literal["epochs", "steps", "batches", "seconds", "run", "position"]
_ROUNDING = 1e-9


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
        self.interval = interval
        self._every = self._countable(interval)
        self._start = None if start_after is None else self._countable(start_after)
        self._fired_at = 0.0

    def _countable(self, interval: Interval) -> tuple[Counter, float]:
        """Return what to count and how much of it an interval is: a part of the run in steps, of an epoch in batches.

        Such an amount need not be whole: a quarter of 10 batches is 2.5, so it is due after 3, 5, 8 and 10.
        """
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
            return "steps", max(1.0, interval.amount * self._total_steps)
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
            return "position", max(1.0, interval.amount * self._batches_per_epoch)
        return interval.unit, interval.amount

    def begin(self, progress: Progress, state: Mapping[str, Any] | None = None) -> None:
        """Begin to count at the moment of the counters.

        Args:
            progress: the counters.
            state: from `state_dict`; what had not happened by then is due. Without it, or where the interval is another
                one now, nothing is due for a moment that has passed already.
        """
        self._fired_at = self._reached(self._every[0], progress)
        if state is not None and state["interval"] == self._kind():
            self.load_state_dict(state)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` of a trigger with this interval returned."""
        self._fired_at = state["fired_at"]

    def state_dict(self) -> dict[str, Any]:
        """Return when it was due last, in its own unit, and what that unit is."""
        return {"interval": self._kind(), "fired_at": self._fired_at}

    def _kind(self) -> list[Any]:
        """Return what a moment of this trigger can be compared with; data."""
        counter, amount = self._every
        return [counter, amount, self._batches_per_epoch if counter == "position" else None]

    def due(self, progress: Progress, *, epoch_ended: bool = False) -> bool:
        """Return whether it is due now, and if so remember that it happened.

        Args:
            progress: the counters, those of the batch just finished included.
            epoch_ended: the epoch's last batch is done though `progress.epochs` does not count the epoch yet.
        """
        counter, amount = self._every
        now = self._reached(counter, progress, epoch_ended=epoch_ended)
        if (
            self._start is not None
            and self._reached(self._start[0], progress, epoch_ended=epoch_ended) < self._start[1]
        ):
            self._fired_at = now
            return False
        if counter == "seconds":
            due = now - self._fired_at >= amount
        else:
            due = _times(now, amount) > _times(self._fired_at, amount)
        if due:
            self._fired_at = now
        return due

    def wait(self, progress: Progress) -> float:
        """Return how many batches must pass at least before it can be due, other than at an epoch's end."""
        counter, amount = self._every
        if counter in ("epochs", "seconds"):
            return math.inf
        now = self._reached(counter, progress)
        return max(1, math.ceil((_times(now, amount) + 1) * amount - now - _ROUNDING))

    def wait_seconds(self, progress: Progress) -> float:
        """Return how many seconds must pass before it can be due; `inf` for an interval that is not of time."""
        if self.interval.unit != "seconds":
            return math.inf
        return max(0.0, self._fired_at + self.interval.amount - progress.seconds)

    def _reached(self, counter: Counter, progress: Progress, *, epoch_ended: bool = False) -> float:
        if counter == "seconds":
            return progress.seconds
        if counter == "steps":
            return progress.steps
        if counter == "batches":
            return progress.micro_batches
        if counter == "epochs":
            return progress.epochs + epoch_ended
        done = 0 if epoch_ended else min(progress.batches_in_epoch, self._batches_per_epoch)
        return (progress.epochs + epoch_ended) * self._batches_per_epoch + done


def _times(counted: float, amount: float) -> int:
    """Return how many whole amounts have been counted, a rounding error aside."""
    return math.floor(counted / amount + _ROUNDING)
