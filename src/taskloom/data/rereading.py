"""Streams that cannot say where they are: after a resume they are read again, up to the batch that is next.

What can be left out is left out: samples that are skipped are not collated and no batch is moved to the device. What
cannot be read again, an iterator, is refused.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

from torch.utils.data import DataLoader

from taskloom.core.errors import CheckpointError, explain
from taskloom.data.generators import Generators, own_generators, own_states, restore_own_states
from taskloom.data.isolation import Isolated
from taskloom.data.lengths import loader_length
from taskloom.data.seeding import OrderedByEpoch, stream_seed
from taskloom.data.source import Source, Told, check_kind, told_nobody

_FIRST_SECONDS, _EVERY_SECONDS = 2.0, 10.0


class Rereading:
    """Tells somebody from time to time how far reading again has come.

    Args:
        total: batches to read.
        told: whom.
        clock: seconds.
    """

    def __init__(self, total: int, told: Told, clock: Callable[[], float] = time.monotonic) -> None:
        self._total, self._told, self._clock = total, told, clock
        self._began = clock()
        self._next = self._began + _FIRST_SECONDS

    def read(self, count: int) -> None:
        """Note that `count` batches have been read."""
        now = self._clock()
        if now >= self._next:
            self._next = now + _EVERY_SECONDS
            self._told(count, self._total, (now - self._began) / count * (self._total - count))


class RereadSource(Source):
    """Batches of any iterable that can be iterated over again, read by this process.

    Args:
        loader: the user's.
        generators: of the process.
        rank: of the process.
        told: how far reading again has come.
    """

    kind = "an iterable that is read again"

    def __init__(
        self, loader: Iterable[Any], generators: Generators, *, rank: int = 0, told: Told = told_nobody
    ) -> None:
        self._loader, self._generators, self._rank, self._told = loader, generators, rank, told
        self._announced = announced(loader)
        self._own = own_generators({"loader": loader})
        self._epoch, self._began_in = 0, -1
        self._began_with: dict[str, Any] | None = None

    def begin_epoch(self, epoch: int, *, resumed: bool) -> None:
        """Tell the loader and its data set the number of the epoch, where they take one."""
        self._epoch = epoch
        for each in self._announced:
            each.set_epoch(epoch)

    def batches(self, done: int) -> Iterator[Any]:
        """Iterate from batch `done` on, after reading those before it.

        Raises:
            CheckpointError: there are fewer.
        """
        now, resumed = self._generators.states(), self._began_in == self._epoch
        if self._began_with is None or not resumed:
            self._began_with, self._began_in = {"process": now, "own": own_states(self._own)}, self._epoch
        else:
            self._generators.restore(self._began_with["process"])
            restore_own_states(self._own, self._began_with["own"])
        epoch_seed = stream_seed(self._began_with["process"], self._epoch, self._rank)
        batches = Isolated(iter(self._without_collating(done)), epoch_seed)
        if resumed:
            skip(batches.skip, done, self._told)
            self._generators.restore(now)
        return batches

    def state_dict(self, epoch: int, done: int) -> dict[str, Any]:
        """Return the generators that the epoch began with, and how many batches of it are done."""
        began_with = self._began_with if epoch == self._began_in else None
        return {
            "kind": self.kind,
            "epoch": epoch,
            "done": done,
            "began_with": began_with,
            "own": own_states(self._own) if began_with is None else {},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned.

        Raises:
            CheckpointError: the state is that of another kind of loader, or the loader can be iterated over only once.
        """
        check_kind(state, self.kind)
        if state["done"] and isinstance(self._loader, Iterator) and math.isinf(loader_length(self._loader)):
            raise CheckpointError(
                explain(
                    f"Training cannot go on after batch {state['done']} of its data, {type(self._loader).__name__}",
                    why="an iterator gives each batch once, so what was read before the checkpoint cannot be found "
                    "again",
                    fix="pass what makes the iterator, such as an object with __iter__, or begin the epoch's data anew "
                    "with restore.data='restart'",
                )
            )
        self._began_with = state["began_with"]
        self._began_in = -1 if self._began_with is None else state["epoch"]
        restore_own_states(self._own, state["own"])

    def _without_collating(self, done: int) -> Iterable[Any]:
        loader = self._loader
        if not (done and isinstance(loader, DataLoader) and reads_here(loader)):
            return loader
        clone = copy.copy(loader)
        vars(clone)["collate_fn"] = _Uncollated(loader.collate_fn, done)
        return clone


class ListSource(Source):
    """Batches in a list or a tuple: taken up where it was left, without reading anything.

    Args:
        batches: the user's.
    """

    kind = "a list of batches"

    def __init__(self, batches: Sequence[Any]) -> None:
        self._batches = batches

    def begin_epoch(self, epoch: int, *, resumed: bool) -> None:
        """Nothing follows from the number of the epoch."""

    def batches(self, done: int) -> Iterator[Any]:
        """Iterate from batch `done` on."""
        return islice(self._batches, done, None) if done else iter(self._batches)

    def state_dict(self, epoch: int, done: int) -> dict[str, Any]:
        """Return nothing but the kind: the number of batches says all."""
        return {"kind": self.kind}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Check that the state is that of a list.

        Raises:
            CheckpointError: it is not.
        """
        check_kind(state, self.kind)


class _Uncollated:
    """A collate function that leaves its first batches as nothing, since they are skipped.

    Args:
        collate: the user's.
        skipped: how many.
    """

    def __init__(self, collate: Callable[[Any], Any], skipped: int) -> None:
        self._collate, self._left = collate, skipped

    def __call__(self, samples: Any) -> Any:
        if not self._left:
            return self._collate(samples)
        self._left -= 1
        return None


def reads_here(loader: DataLoader[Any]) -> bool:
    """Return whether a loader's samples are read by this process, one batch after the other, as torch does it."""
    return not loader.num_workers and type(loader).__iter__ is DataLoader.__iter__


def announced(loader: Any) -> list[OrderedByEpoch]:
    """Return whom to tell the number of the epoch: the loader and its data set, where they ask for it."""
    parts = [loader, loader.dataset] if isinstance(loader, DataLoader) else [loader]
    return [each for each in parts if isinstance(each, OrderedByEpoch)]


def skip(read: Callable[[], Any], batches: int, told: Told) -> None:
    """Read batches to get past them.

    Args:
        read: reads one.
        batches: how many.
        told: how far it has come.

    Raises:
        CheckpointError: there are fewer.
    """
    rereading = Rereading(batches, told)
    for count in range(batches):
        try:
            read()
        except StopIteration:
            raise CheckpointError(
                explain(
                    f"The training data end after {count} batches, and the checkpoint was written after {batches}",
                    why="they are not those of the run that wrote it",
                    fix="pass the same data, or begin the epoch's data anew with restore.data='restart'",
                )
            ) from None
        rereading.read(count + 1)
