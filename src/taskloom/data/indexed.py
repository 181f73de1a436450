"""A map-style `DataLoader` as a source: its position is one in the stream of indices, so skipping reads no sample.

What is iterated over is a shallow copy of the user's loader with another (batch) sampler, and the user's loader stays
as it is. With worker processes, every batch has random streams of its own (`data/seeding.py`), so that what data sets
and transforms draw is the same after a resume, and for any number of workers. Without, they draw from the generators of
this process, which a checkpoint has; but those of a loader without a length, which is read one batch ahead of the
training, are kept apart.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain, count, islice
from typing import Any

from torch.utils.data import DataLoader

from taskloom.core.errors import CheckpointError, explain
from taskloom.data.generators import Generators, own_generators, own_states, restore_own_states
from taskloom.data.indices import RESTART, IndexStream, samplers_of
from taskloom.data.isolation import Isolated
from taskloom.data.lengths import loader_length
from taskloom.data.seeding import NumberedCollate, OrderedByEpoch, SeededIndices, WorkerStart, stream_seed
from taskloom.data.source import Source, check_kind


class IndexedSource(Source):
    """Batches of a map-style `DataLoader`.

    Args:
        loader: the user's.
        generators: of the process.
        rank: of the process.
        read_ahead: batches are taken before the one before is trained on; always so without a length.
    """

    kind = "a map-style DataLoader"

    def __init__(
        self, loader: DataLoader[Any], generators: Generators, *, rank: int = 0, read_ahead: bool = False
    ) -> None:
        self._loader, self._generators, self._rank, self._epoch = loader, generators, rank, 0
        self._indices = IndexStream(loader, generators, SeededIndices if loader.num_workers else None)
        self._indices.part = rank
        self._view = _view(loader, self._indices)
        self._persists = bool(loader.num_workers and loader.persistent_workers)
        self._has_started = self._resumed = False
        self._begun_in = -1
        self._apart = not loader.num_workers and (read_ahead or math.isinf(loader_length(loader)))
        self._indices.is_apart = self._apart
        self._epoch_seed = 0
        self._numbered = bool(loader.num_workers and not loader.in_order)
        self._arrivals: _Arrivals | None = _Arrivals() if self._numbered else None

    def begin_epoch(self, epoch: int, *, resumed: bool) -> None:
        """Tell samplers and the data set the number of the epoch."""
        self._epoch = self._indices.epoch = epoch
        self._resumed = resumed or self._begun_in == epoch  # a first batch may be in hand and not be trained on
        if not self._resumed:
            self._indices.begin()
        for told in (*samplers_of(self._loader).values(), self._loader.dataset):
            if isinstance(told, OrderedByEpoch):
                told.set_epoch(epoch)

    def batches(self, done: int) -> Iterator[Any]:
        """Iterate from batch `done` on; the sampler runs over the indices before it, whose samples are not read."""
        self._begun_in = self._epoch
        if not self._resumed:
            self._arrivals = _Arrivals() if self._numbered else None
            if self._apart:
                self._epoch_seed = stream_seed(Generators().states(), self._epoch, self._rank)
            batches: Iterator[Any] = iter(self._view)
        else:
            missing, reached = ([], done) if self._arrivals is None else self._arrivals.left(done)
            with self._generators.kept():
                self._indices.take_up(missing, reached)
                batches = iter(self._view)
                self._indices.settle()
        self._has_started = True
        if self._apart:
            return Isolated(batches, self._epoch_seed, done)
        return map(self._arrivals.arrived, batches) if self._numbered and self._arrivals is not None else batches

    def state_dict(self, epoch: int, done: int) -> dict[str, Any]:
        """Return what the order of the epoch follows from; never the order itself."""
        missing, reached = ([], done) if self._arrivals is None else self._arrivals.left(done)
        return {
            "kind": self.kind,
            "settings": self._settings(),
            "missing": missing,
            "reached": reached,
            "epoch_seed": self._epoch_seed,
            "begun_in": epoch if epoch == self._begun_in else -1,
            "indices": self._indices.state_dict(reached, within=epoch == self._begun_in),
            "workers_started": self._persists and (self._has_started or self._indices.was_started),
            "own": {} if self._loader.num_workers else own_states(self._own()),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned.

        Raises:
            CheckpointError: the loader cannot go on from there.
        """
        check_kind(state, self.kind)
        self._check_settings(state)
        self._epoch_seed = state["epoch_seed"]
        self._begun_in = state["begun_in"] if "at_iter" in state["indices"] else -1
        if state["missing"] or self._numbered:
            self._arrivals = _Arrivals(state["missing"], state["reached"], in_order=not self._numbered)
        self._indices.load_state_dict(state["indices"])
        self._indices.was_started = self._persists and state["workers_started"]
        if not self._loader.num_workers:
            restore_own_states(self._own(), state["own"])

    def close(self) -> None:
        """End worker processes that persist."""
        vars(self._view)["_iterator"] = None

    def _own(self) -> dict[str, Any]:
        return own_generators({"dataset": self._loader.dataset, "collate_fn": self._loader.collate_fn})

    def _settings(self) -> dict[str, Any]:
        loader = self._loader
        return {
            "batches": loader_length(loader),
            "batch_size": loader.batch_size,
            "drop_last": loader.drop_last,
            "sampler": [type(each).__name__ for each in samplers_of(loader).values()],
        }

    def _check_settings(self, state: Mapping[str, Any]) -> None:
        saved, now = state["settings"], self._settings()
        changed = [name for name in now if saved[name] != now[name]]
        if state["reached"] and changed:
            raise CheckpointError(
                explain(
                    "The training data cannot be continued in the middle of an epoch, because the loader is another: "
                    + ", ".join(f"{name} was {saved[name]!r}" for name in changed),
                    got={name: now[name] for name in changed},
                    why="the batches that are done would not be those that were trained on",
                    fix=f"pass the loader of the run that wrote the checkpoint, or {RESTART}",
                )
            )


class _Arrivals:
    """Which batches have come, of a loader that yields them as they come (`in_order=False`).

    Args:
        missing: numbers below `reached` that had not come yet, in ascending order.
        reached: all others below it had.
        in_order: from now on they come in order, those that were missing first.
    """

    def __init__(self, missing: Sequence[int] = (), reached: int = 0, *, in_order: bool = False) -> None:
        self._missing, self._reached, self._in_order = missing, reached, in_order
        self._came: list[int] = []

    def arrived(self, numbered: tuple[int, Any]) -> Any:
        """Note the number of a batch, and return the batch."""
        self._came.append(numbered[0])
        return numbered[1]

    def left(self, done: int) -> tuple[list[int], int]:
        """Return the numbers that are missing below the highest that came, after `done` batches, and one above it."""
        missing, reached = set(self._missing), self._reached
        came = chain(self._missing, count(reached)) if self._in_order else self._came
        for number in islice(came, done - (reached - len(missing))):
            missing.discard(number)
            missing.update(range(reached, number))
            reached = max(reached, number + 1)
        return sorted(missing), reached


def _view(loader: DataLoader[Any], indices: IndexStream) -> DataLoader[Any]:
    """Return a shallow copy of a loader that reads other indices; its class, workers and functions are the same."""
    view: DataLoader[Any] = copy.copy(loader)
    attributes = vars(view)  # a DataLoader refuses to have some of these set
    attributes["sampler" if loader.batch_sampler is None else "batch_sampler"] = indices
    attributes["_iterator"] = None
    if loader.num_workers:
        attributes["worker_init_fn"] = WorkerStart(loader.worker_init_fn, loader.collate_fn)
        if not loader.in_order:
            attributes["collate_fn"] = NumberedCollate(loader.collate_fn)
    return view
