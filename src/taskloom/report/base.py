"""`ProgressReporter`: what is shown while a loop runs, refreshed by time rather than by batch (Lightning issue 13937).

The loop pays one comparison per batch:

    reporter.start(epoch_title(epoch, max_epochs), total_batches)
    for ...:
        now = time.perf_counter()
        if now >= reporter.next_refresh:
            reporter.refresh(now, batches_done, metrics)
    reporter.finish(batches_done, metrics)

Stages nest: a validation that is started before the epoch has finished is shown as part of it.
"""

from __future__ import annotations

import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, SupportsFloat, final

Metrics = Mapping[str, SupportsFloat]


def epoch_title(epoch: int, epochs: int | None = None) -> str:
    """Return what an epoch is called on screen; `epoch` counts from 0, `epochs` is how many there will be, or None."""
    return f"epoch {epoch + 1}/{epochs}" if epochs and epochs > 0 else f"epoch {epoch + 1}"


@dataclass
class Stage:
    """One bar: an epoch, a validation, a prediction.

    Attributes:
        title: what is shown in front.
        total: batches it will take; `inf` when unknown.
        done: batches taken, those before a resume included.
        started: when, on the reporter's clock.
        rate: batches per second, smoothed; 0 until it is known.
        lasting: a line about it stays when it has finished.
    """

    title: str
    total: float
    done: int
    started: float
    lasting: bool = True
    rate: float = 0.0
    _seen: tuple[float, int] = field(init=False)

    def __post_init__(self) -> None:
        self._seen = (self.started, self.done)

    def update(self, now: float, done: int) -> None:
        """Take in that `done` batches are done at `now`."""
        seconds, batches = now - self._seen[0], done - self._seen[1]
        self.done = done
        if seconds > 0 and batches > 0:
            latest = batches / seconds
            self.rate = latest if not self.rate else 0.7 * self.rate + 0.3 * latest
            self._seen = (now, done)

    def pause(self, seconds: float) -> None:
        """Leave out `seconds`, in which something within it ran, from the rate."""
        self._seen = (self._seen[0] + seconds, self._seen[1])

    @property
    def remaining(self) -> float | None:
        """Seconds to go, None when that cannot be said."""
        if not self.rate or math.isinf(self.total):
            return None
        return max(self.total - self.done, 0) / self.rate


class ProgressReporter(ABC):
    """Shows how far a run has come. Only rank 0 has one that draws; the others have `SilentReporter`.

    Public methods keep the books, underscore methods draw. `metrics` are plain numbers that were read at the last
    flush: no reporter ever reads from a device.

    Args:
        interval: seconds between two refreshes; `inf` for never.
        clock: seconds, from the clock that the loop passes to `refresh`.

    Attributes:
        name: what a user types.
        next_refresh: on the clock; `refresh` is to be called once it has passed.
    """

    name: ClassVar[str]
    next_refresh: float = math.inf
    _draws_at_once: ClassVar[bool] = True

    def __init__(self, interval: float, clock: Callable[[], float] = time.perf_counter) -> None:
        self.interval = interval
        self._clock = clock
        self._stages: list[Stage] = []

    @final
    def start(self, title: str, total: float = math.inf, *, done: int = 0, lasting: bool = True) -> None:
        """Begin a stage; within another one when that has not finished.

        Args:
            title: what is shown in front, such as `epoch_title(0, 5)` or `"validate"`.
            total: batches it will take; `inf` when unknown.
            done: batches that were taken before a resume.
            lasting: leave a line about it when it has finished; not for a sanity check, or where a table follows.
        """
        now = self._clock()
        self._stages.append(Stage(title, total, done, now, lasting))
        if math.isinf(self.interval):
            return
        if math.isinf(self.next_refresh):
            self.next_refresh = now if self._draws_at_once else now + self.interval
        if self._draws_at_once and now >= self.next_refresh:
            self.refresh(now, done, {})

    @final
    def refresh(self, now: float, done: int, metrics: Metrics) -> None:
        """Show that `done` batches of the innermost stage are done at `now`; call it when `now >= next_refresh`."""
        self.next_refresh = now + self.interval
        if self._stages:
            self._stages[-1].update(now, done)
            self._draw(self._stages, now, metrics)

    @final
    def finish(self, done: int, metrics: Metrics) -> None:
        """End the innermost stage with what it found."""
        if self._stages:
            now = self._clock()
            self._stages[-1].update(now, done)
            self._finish(self._stages, now, metrics)
            finished = self._stages.pop()
            for outer in self._stages:
                outer.pause(now - finished.started)

    @final
    def message(self, text: str) -> None:
        """Print a text above what is being drawn."""
        self._message(text)

    @final
    def close(self) -> None:
        """Leave the terminal as it was found, after an exception too; harmless when called twice. May start again."""
        self._close()
        self._stages.clear()
        self.next_refresh = math.inf

    @abstractmethod
    def _draw(self, stages: Sequence[Stage], now: float, metrics: Metrics) -> None:
        """Show the stages, outermost first."""

    @abstractmethod
    def _finish(self, stages: Sequence[Stage], now: float, metrics: Metrics) -> None:
        """Show that the last of the stages has finished."""

    @abstractmethod
    def _message(self, text: str) -> None:
        """Print a text and a line end."""

    @abstractmethod
    def _close(self) -> None:
        """Stop drawing."""
