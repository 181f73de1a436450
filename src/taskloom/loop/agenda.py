"""What is due between two windows, and how much of it a checkpoint finds undone.

A checkpoint is not always written when everything that was due at its step has happened: a signal or a failure may come
first. The resumed run must then do the rest, and must do nothing twice.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Mapping
from contextlib import contextmanager
from typing import Any

from taskloom.core.progress import Progress
from taskloom.loop.trigger import Trigger


class Agenda:
    """The state of what happens every so often.

    Attributes:
        begun: the loop runs, or has run.
        epoch_open: an epoch has begun whose end has not happened.
        stop: whether the loop was asked to end, and why; in the checkpoint of a run that leaves before it could.
    """

    def __init__(self) -> None:
        self._triggers: dict[str, Trigger] = {}
        self._settled_at = 0
        self._restored: Mapping[str, Any] | None = None
        self.epoch_open = self.begun = False
        self.stop: str | None = None

    def plan(self, triggers: Mapping[str, Trigger]) -> None:
        """Take in what happens every so often, by name."""
        self._triggers = dict(triggers)

    def begin(self, progress: Progress) -> None:
        """Let every trigger count from now, or from where it stood in the checkpoint."""
        saved, self._restored, self.begun = self._restored, None, True
        moments = saved["triggers"] if saved is not None else {}
        for name, trigger in self._triggers.items():
            trigger.begin(progress, moments.get(name))
        self._settled_at = progress.micro_batches if saved is None or saved["settled"] else -1
        self.epoch_open = saved is not None and saved["epoch_open"]
        self.stop = saved["stop"] if saved is not None else None

    def settle(self, progress: Progress) -> None:
        """Note that everything that was due by now has happened."""
        self._settled_at = progress.micro_batches

    def is_settled(self, progress: Progress) -> bool:
        """Return whether everything that was due after the last batch has happened."""
        return self._settled_at == progress.micro_batches

    @contextmanager
    def undone_if_left(self, name: str, taken: set[Any], requests: set[Any]) -> Generator[None, None, None]:
        """Let what an error ends within the `with` block still be due.

        Args:
            name: of what happens in it.
            taken: requests that were taken and are served in it or after it.
            requests: where they go back to.
        """
        trigger = self._triggers.get(name)
        before = trigger.state_dict() if trigger is not None else None
        try:
            yield
        except BaseException:
            if trigger is not None and before is not None:
                trigger.load_state_dict(before)
            requests.update(taken - {"log"})
            raise

    @property
    def requests(self) -> list[Any]:
        """What had been asked for beside all intervals, and not been done, when the checkpoint was written."""
        return list(self._restored["requests"]) if self._restored is not None else []

    def state_dict(self, progress: Progress, requests: Iterable[str]) -> dict[str, Any]:
        """Return what a resumed run must know, as data."""
        return {
            "triggers": {name: trigger.state_dict() for name, trigger in self._triggers.items()},
            "settled": self.is_settled(progress),
            "epoch_open": self.epoch_open,
            "requests": sorted(requests),
            "stop": self.stop,
        }

    def load_state_dict(self, state: Mapping[str, Any] | None) -> None:
        """Restore what `state_dict` returned, at the next `begin`; None for a checkpoint that has nothing of it."""
        self._restored = state
