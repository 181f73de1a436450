"""Loaders over iterable data sets that worker processes read.

Torch gives out a stream's batches to its workers in turns, and each worker reads what the data set gives it, often
chosen by its number. So a position is one position per worker, and after a resume every worker stands where it stood,
under its own number. The turns begin at worker 0, though: those whose turn in the round was over make their last batch
again, and it is dropped.
"""

from __future__ import annotations

from abc import abstractmethod
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any, final

from torch.utils.data import DataLoader

from taskloom.core.errors import CheckpointError, explain
from taskloom.data.generators import Generators, own_generators, own_states, restore_own_states
from taskloom.data.rereading import announced, skip
from taskloom.data.seeding import stream_seed
from taskloom.data.source import READ_AHEAD, Source, Told, check_kind, told_nobody
from taskloom.data.stream_workers import Carried, Place, StreamWorkers, pickled, unpickled


class _WorkerStream(Source):
    """What streams have in common: how their workers are started, and from which generators.

    Args:
        loader: the user's, with workers.
        generators: of the process.
        rank: of the process.
        carried: workers tell where they stand.
        owners: whose generators decide what a worker begins with.
    """

    kind: str

    def __init__(
        self, loader: DataLoader[Any], generators: Generators, rank: int, *, carried: bool, owners: dict[str, Any]
    ) -> None:
        self._loader, self._generators, self._rank = loader, generators, rank
        self._in_turns = loader.in_order or loader.num_workers == 1
        self._announced = announced(loader)
        self._workers = StreamWorkers(loader, carried=carried)
        self._own = own_generators(owners)
        self._epoch, self._began_in = 0, -1
        self._began_with: dict[str, Any] | None = None  # the generators when the workers were started
        self._taken_up = False  # workers of the run that wrote the checkpoint were there, and are to be started again

    @final
    def begin_epoch(self, epoch: int, *, resumed: bool) -> None:
        """Tell the data set the number of the epoch, where it takes one; its workers are told when they begin."""
        self._epoch = epoch
        for each in self._announced:
            each.set_epoch(epoch)
        if self._taken_up and 0 <= self._began_in != epoch:
            self._pass_to_next_epoch()
            self._taken_up = self._loader.persistent_workers

    @final
    def batches(self, done: int) -> Iterator[Any]:
        """Iterate from batch `done` on."""
        within, self._began_in = self._began_in == self._epoch, self._epoch
        if self._workers.alive:
            states = self._prepare_next_epoch()
            return self._delivered(self._workers.go_on(self._epoch, self._epoch_seed, states), 0)
        if not self._taken_up or self._began_with is None:
            self._began_with = self._states()
            self._prepare_first_epoch()
            return self._delivered(self._workers.start(self._epoch_seed, self._places(0)), 0)
        if within and self._is_over():
            return iter(())
        self._taken_up = False
        now = self._states()
        self._restore(self._began_with)
        batches = self._workers.start(self._epoch_seed, self._places(done))
        self._restore(now)
        return self._delivered(batches, done)

    @final
    def state_dict(self, epoch: int, done: int) -> dict[str, Any]:
        """Return where the workers stand after `done` batches, and with which generators they were started."""
        within = epoch == self._began_in
        running = within or self._workers.alive or self._taken_up
        return {
            "kind": self.kind,
            "num_workers": self._loader.num_workers,
            "epoch": epoch if within else -1,
            "done": done,
            "began_with": self._began_with if running else None,
            "own": own_states(self._own),
            **(self._position(done, within=within) if running else {}),
        }

    @final
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned.

        Raises:
            CheckpointError: the state is that of another kind of loader, of another number of workers, or of a loader
                whose batches come in any order.
        """
        check_kind(state, self.kind)
        workers = self._loader.num_workers
        if state["num_workers"] != workers:
            raise CheckpointError(
                explain(
                    f"The checkpoint has a position in a stream that {state['num_workers']} workers read, and the "
                    f"loader has num_workers={workers}",
                    why="each worker has a position of its own",
                    fix=f"set num_workers={state['num_workers']}, or begin the epoch's data anew with "
                    f"restore.data='restart'",
                )
            )
        restore_own_states(self._own, state["own"])
        self._began_with, self._began_in = state["began_with"], state["epoch"]
        self._taken_up = self._began_with is not None
        if self._taken_up:
            self._restore_position(state)

    @final
    def close(self) -> None:
        """End the workers."""
        self._workers.close()

    @property
    def _epoch_seed(self) -> int:
        began_with = self._began_with["process"] if self._began_with is not None else None
        return stream_seed(began_with, self._epoch, self._rank)

    def _states(self) -> dict[str, Any]:
        return {"process": self._generators.states(), "own": own_states(self._own)}

    def _restore(self, states: Mapping[str, Any]) -> None:
        self._generators.restore(states["process"])
        restore_own_states(self._own, states["own"])

    @abstractmethod
    def _prepare_first_epoch(self) -> None:
        """New workers are about to begin an epoch."""

    @abstractmethod
    def _prepare_next_epoch(self) -> Sequence[bytes | None] | None:
        """Workers that wait are about to begin an epoch; return what `StreamWorkers.go_on` takes."""

    @abstractmethod
    def _pass_to_next_epoch(self) -> None:
        """The epoch of the restored position is over."""

    @abstractmethod
    def _places(self, done: int) -> list[Place]:
        """Return where each worker begins."""

    @abstractmethod
    def _is_over(self) -> bool:
        """Return whether a restored position is at the end of its epoch."""

    @abstractmethod
    def _delivered(self, batches: Iterator[Any], done: int) -> Iterator[Any]:
        """Iterate over what was not trained on."""

    @abstractmethod
    def _position(self, done: int, *, within: bool) -> dict[str, Any]:
        """Return where the workers stand, as data; where they begin the next epoch if not `within` one."""

    @abstractmethod
    def _restore_position(self, state: Mapping[str, Any]) -> None:
        """Restore what `_position` returned."""


class StreamSource(_WorkerStream):
    """Batches of workers whose data set has no state: all of it is read again, and nothing is collated.

    Args:
        loader: the user's, with workers.
        generators: of the process.
        rank: of the process.
        told: how far reading again has come.
    """

    kind = "a stream that worker processes read again"

    def __init__(
        self, loader: DataLoader[Any], generators: Generators, *, rank: int = 0, told: Told = told_nobody
    ) -> None:
        owners = {"loader.generator": loader.generator, "dataset": loader.dataset}
        super().__init__(loader, generators, rank, carried=False, owners=owners)
        self._told = told

    def _prepare_first_epoch(self) -> None:
        pass

    def _prepare_next_epoch(self) -> None:
        return None

    def _pass_to_next_epoch(self) -> None:
        pass

    def _places(self, done: int) -> list[Place]:
        workers = self._loader.num_workers
        # Of the first `done` batches this many are surely of worker w: more, if another has come to its end.
        return [Place(trained=max(0, -(-(done - worker) // workers))) for worker in range(workers)]

    def _is_over(self) -> bool:
        return False

    def _delivered(self, batches: Iterator[Any], done: int) -> Iterator[Any]:
        skip(batches.__next__, done, self._told)
        return batches

    def _position(self, done: int, *, within: bool) -> dict[str, Any]:
        return {}

    def _restore_position(self, state: Mapping[str, Any]) -> None:
        if state["epoch"] >= 0 and state["done"] and not self._in_turns:
            raise CheckpointError(
                explain(
                    f"Training cannot go on after batch {state['done']} of a stream with in_order=False",
                    why="its batches come in whatever order workers finish them, and the data set has no state, so "
                    "which ones were trained on is not known",
                    fix="give the data set state_dict and load_state_dict, or begin the epoch's data anew with "
                    "restore.data='restart'",
                )
            )


class StatefulStreamSource(_WorkerStream):
    """Batches of workers whose data set has a state: each worker goes on from its own.

    Args:
        loader: the user's, with workers.
        generators: of the process.
        rank: of the process.
    """

    kind = "a stream whose workers have states of their own"

    def __init__(self, loader: DataLoader[Any], generators: Generators, *, rank: int = 0) -> None:
        owners = {"loader.generator": loader.generator}
        super().__init__(loader, generators, rank, carried=True, owners=owners)
        self._begin([Place()] * loader.num_workers)

    def _begin(self, places: Sequence[Place], last: int = -1, done: int = 0) -> None:
        self._at = list(places)
        self._counts = [place.trained for place in places]  # batches of each worker that have been taken
        self._known = [deque([place], maxlen=READ_AHEAD + 2) for place in places]  # by the number of the next batch
        self._turns = deque([last], maxlen=READ_AHEAD + 1)  # whose the last batches were
        self._read, self._ended = done, False

    def _prepare_first_epoch(self) -> None:
        self._begin([Place()] * self._loader.num_workers)

    def _prepare_next_epoch(self) -> Sequence[bytes | None] | None:
        ended, states = self._ended, [known[-1].state if known[-1].number else None for known in self._known]
        self._pass_to_next_epoch()
        return None if ended else states

    def _pass_to_next_epoch(self) -> None:
        self._begin(self._next_places())

    def _next_places(self) -> list[Place]:
        return [
            Place(state=known[-1].state, drained=self._ended and not known[-1].over) if known[-1].number else first
            for known, first in zip(self._known, self._at, strict=True)
        ]

    def _places(self, done: int) -> list[Place]:
        return self._at

    def _is_over(self) -> bool:
        return self._ended

    def _delivered(self, batches: Iterator[Carried], done: int) -> Iterator[Any]:
        for batch, worker, number, state, over in batches:
            self._known[worker].append(Place(number + 1, state=state, over=over))
            if number < self._counts[worker]:
                continue
            self._counts[worker] = number + 1
            self._turns.append(worker)
            self._read += 1
            yield batch
        self._ended = True

    def _position(self, done: int, *, within: bool) -> dict[str, Any]:
        if not within:
            places = self._at if self._taken_up else self._next_places()
            return {"last": -1, "ended": False, "workers": [{"at": _as_data(place)} for place in places]}
        since = [self._turns[-1 - back] for back in range(self._read - done)]
        last = self._turns[-1 - len(since)] if self._in_turns else -1
        counts = [count - since.count(worker) for worker, count in enumerate(self._counts)]
        return {
            "last": last,
            "ended": self._ended and not since,
            "workers": [self._worker(worker, counts, last) for worker in range(len(counts))],
        }

    def _worker(self, worker: int, counts: Sequence[int], last: int) -> dict[str, Any]:
        """Return where a worker stands, as data.

        Args:
            worker: its number.
            counts: batches of each worker that were trained on.
            last: whose turn was the last one; -1 for nobody's.
        """
        trained, known = counts[worker], {place.number: place for place in self._known[worker]}
        had_its_turn = worker <= last and trained == counts[last]  # one that had none has come to its end
        after = known.get(trained)  # none while a worker that was taken up has yet to make its last batch again
        again = after is None or after.over or had_its_turn
        place = known[trained - 1 if again and trained - 1 in known else trained]
        data = {"at": _as_data(replace(place, trained=trained))}
        if place.number < trained and self._loader.persistent_workers:
            data["after"] = _as_data(known[trained])
        return data

    def _restore_position(self, state: Mapping[str, Any]) -> None:
        self._begin([_as_place(each["at"]) for each in state["workers"]], state["last"], state["done"])
        self._ended = state["ended"]
        for known, each in zip(self._known, state["workers"], strict=True):
            if "after" in each:
                known.append(_as_place(each["after"]))


def _as_data(place: Place) -> dict[str, Any]:
    state = None if place.state is None else unpickled(place.state)
    return {**asdict(place), "state": state}


def _as_place(data: Mapping[str, Any]) -> Place:
    state = None if data["state"] is None else pickled(data["state"])
    return Place(**{**data, "state": state})
