"""When training ends (epochs, optimizer steps, time), and how many steps are planned until then."""

from __future__ import annotations

import math

from taskloom.core.errors import explain
from taskloom.core.policies import Accumulation, Between
from taskloom.core.progress import Progress


class Limits:
    """The bounds of a training.

    Args:
        epochs: fewest and most epochs; a fraction ends in the middle of one.
        steps: fewest and most optimizer steps.
        seconds: longest time in the loop, over all resumes; `inf` for none.
        batches_per_epoch: length of an epoch, `inf` when unknown.
        accumulation: micro-batches per step.

    Raises:
        ValueError: nothing bounds the training, or a fraction of an epoch of unknown length is asked for.
    """

    def __init__(
        self, epochs: Between, steps: Between, seconds: float, batches_per_epoch: float, accumulation: Accumulation
    ) -> None:
        if epochs.max is None and steps.max is None and math.isinf(seconds):
            raise ValueError(no_bound())
        self._epochs, self._steps, self._seconds = epochs, steps, seconds
        self._max_epochs = math.inf if epochs.max is None else epochs.max
        self._max_steps = math.inf if steps.max is None else steps.max
        self._length, self._part = batches_per_epoch, math.inf
        if math.isfinite(self._max_epochs) and self._max_epochs != int(self._max_epochs):
            if math.isinf(batches_per_epoch):
                raise ValueError(
                    explain(
                        "max_epochs has a fraction, and the training loader has no length",
                        got=epochs.max,
                        fix="use a whole number of epochs, or max_steps",
                    )
                )
            self._part = part_of_epoch(self._max_epochs - int(self._max_epochs), batches_per_epoch)
        self.total_steps = min(self._max_steps, _steps_of(self._max_epochs, batches_per_epoch, accumulation))

    @property
    def epochs_shown(self) -> int | None:
        """The number of epochs to show as the total, None when another bound ends the training."""
        return math.ceil(self._max_epochs) if math.isfinite(self._max_epochs) else None

    def batches_of(self, epoch: int) -> float:
        """Return how many batches of an epoch are trained on: all, or in the last one the part that is asked for."""
        return self._part if epoch > self._max_epochs - 1 else self._length

    def reached(self, progress: Progress) -> bool:
        """Return whether training is over."""
        return progress.steps >= self._max_steps or progress.seconds >= self._seconds or self._epochs_reached(progress)

    def _epochs_reached(self, progress: Progress) -> bool:
        return progress.epochs >= self._max_epochs or (
            progress.epochs >= self._max_epochs - 1 and progress.batches_in_epoch >= self._part
        )

    def reason(self, progress: Progress) -> str:
        """Return which bound ended the training."""
        if progress.steps >= self._max_steps:
            return f"max_steps={self._max_steps:g} reached"
        if progress.seconds >= self._seconds:
            return f"max_time={self._seconds:g} s reached"
        return f"max_epochs={self._max_epochs:g} reached" if self._epochs_reached(progress) else ""

    def may_stop(self, progress: Progress) -> bool:
        """Return whether `should_stop` may end the training yet."""
        return progress.steps >= self._steps.min and progress.epochs >= self._epochs.min

    def wait(self, progress: Progress) -> float:
        """Return how many batches must pass at least before the bound in steps can be reached."""
        return max(1.0, self._max_steps - progress.steps)

    def wait_seconds(self, progress: Progress) -> float:
        """Return how many seconds are left."""
        return max(0.0, self._seconds - progress.seconds)


def no_bound() -> str:
    """Return the error text for a training that would never end."""
    return explain(
        "Nothing bounds the training",
        why="max_epochs, max_steps and max_time are all None",
        fix="pass max_epochs=10, max_steps=10_000 or max_time='2 hours'; max_epochs=-1 trains until it is stopped",
    )


def part_of_epoch(part: float, batches_per_epoch: float) -> int:
    """Return the batches in a part of an epoch; a part of a batch is a batch."""
    return math.ceil(part * batches_per_epoch - 1e-9)


def _steps_of(epochs: float, batches_per_epoch: float, accumulation: Accumulation) -> float:
    if math.isinf(epochs) or math.isinf(batches_per_epoch):
        return math.inf
    whole = int(epochs)
    rounded = math.ceil if accumulation.flush_last else math.floor
    schedule = isinstance(accumulation.batches, dict)
    if not schedule:
        steps = whole * rounded(batches_per_epoch / accumulation.at_epoch(0))
    else:
        steps = sum(rounded(batches_per_epoch / accumulation.at_epoch(epoch)) for epoch in range(whole))
    rest = part_of_epoch(epochs - whole, batches_per_epoch)
    return steps + rounded(rest / accumulation.at_epoch(whole))
