"""`Source`: one loader as a stream of batches that can be left at any batch and taken up there again.

A user's loader is never rebuilt; a source wraps it from outside. Positions count what was *trained on*, not what a
worker or a read-ahead has fetched, so a source is always asked about the first `done` batches of the epoch.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final, Protocol, runtime_checkable

from taskloom.core.errors import CheckpointError, explain

READ_AHEAD: Final = 3
"""Batches that may have been taken beyond the last one trained on: the one in hand, one to learn whether that is the
last of its epoch, and one of a loader whose partner in a `CombinedLoader` ended first."""


Told = Callable[[int, int, float], None]
"""Takes how many batches of how many have been read again after a resume, and about how many seconds are left."""


def told_nobody(read: int, total: int, seconds: float) -> None:
    """Tell nobody how far reading again has come."""


def check_kind(state: Mapping[str, Any], kind: str) -> None:
    """Check that a state was saved by the kind of source that is to go on from it.

    Args:
        state: what `Source.state_dict` returned, with the kind under `"kind"`.
        kind: of the source, in words that a user understands.

    Raises:
        CheckpointError: it was another.
    """
    found = state.get("kind")
    if found != kind:
        raise CheckpointError(
            explain(
                f"The checkpoint has a position in {found or 'other training data'}, and the training data are {kind}",
                why="a position in one means nothing in the other",
                fix="pass the loader that the run was trained on, or begin the epoch's data anew with "
                "restore.data='restart'",
            )
        )


@runtime_checkable
class Stateful(Protocol):
    """A loader or a data set that can say where it is, and go back there."""

    def state_dict(self) -> dict[str, Any]:
        """Return, as data, what it needs to go on after what was read so far."""
        ...

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go back to where `state_dict` was called: iterating over it next goes on from there."""
        ...


class Source(ABC):
    """Batches of one loader, from any position on.

    Args of every method that has them:
        epoch: number of the epoch, from 0.
        done: batches of the epoch that have been trained on.
    """

    @abstractmethod
    def begin_epoch(self, epoch: int, *, resumed: bool) -> None:
        """Prepare an epoch: tell samplers and data sets its number, remember what its order follows from.

        Args:
            epoch: its number.
            resumed: it is taken up in its middle, so what its order follows from was restored and stays.
        """

    @abstractmethod
    def batches(self, done: int) -> Iterator[Any]:
        """Iterate over the epoch from batch `done` on; samples before it are not read where that can be avoided.

        With `done`, the generators of the process are left as they were found: they have been restored already.
        """

    @abstractmethod
    def state_dict(self, epoch: int, done: int) -> dict[str, Any]:
        """Return, as data, what a new process needs to go on after `done` batches of an epoch.

        Args:
            epoch: the one that was begun last; or the one after it, with `done` 0, between the two.
            done: up to `READ_AHEAD` batches fewer than were taken from the source.
        """

    @abstractmethod
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned, before `begin_epoch` for the epoch that it was asked about.

        Raises:
            CheckpointError: the state is that of another kind of loader, or this loader cannot go on from it.
        """

    def close(self) -> None:  # most sources hold nothing
        """Let go of worker processes and the like; called once, when training is over."""
