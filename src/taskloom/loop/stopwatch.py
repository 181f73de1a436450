"""Where the time of a training went that was not spent on batches."""

from __future__ import annotations

import time
from collections.abc import Callable


class Stopwatch:
    """Adds up seconds by name. What starts within another thing counts for itself only, not for what it interrupts.

    Args:
        clock: seconds.

    Attributes:
        seconds: by name, in the order they were first started.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._running: list[str] = []
        self._since = 0.0
        self.seconds: dict[str, float] = {}

    def start(self, name: str) -> None:
        """Begin `name`, within whatever runs."""
        self._settle()
        self._running.append(name)
        self.seconds.setdefault(name, 0.0)

    def stop(self) -> None:
        """End what was started last; harmless where nothing runs."""
        self._settle()
        if self._running:
            self._running.pop()

    def _settle(self) -> None:
        now = self._clock()
        if self._running:
            self.seconds[self._running[-1]] += now - self._since
        self._since = now
