"""The worker processes of a stream: each is told where it stands before it reads, and tells it with every batch.

All of it goes through a shallow copy of the user's loader, by the ways that a loader has anyhow: the worker's start
function, the collate function, and what is sent in the queue of indices, which acts while it is unpickled in the
worker. The data set itself is the user's, also in `torch.utils.data.get_worker_info()`.

A worker draws from streams of its own for each of its batches (see `seeding`). Generators that the data set owns are
left alone: a stream's workers may have to draw the same from them, to agree on who reads what.
"""

from __future__ import annotations

import copy
import pickle  # between this process and its own workers, as torch does it; never to or from a file
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple, cast

from torch.utils.data import DataLoader, IterDataPipe, get_worker_info
from torch.utils.data._utils.worker import WorkerInfo

from taskloom.data.generators import OwnGenerator, own_generators
from taskloom.data.seeding import OrderedByEpoch, batch_seed, seed_own, seed_process, stream_seed
from taskloom.data.source import Stateful
from taskloom.data.worker_signals import keep_inherited_handler

_PROTOCOL: Final = pickle.HIGHEST_PROTOCOL


@dataclass(frozen=True)
class Place:
    """Where a worker begins an epoch.

    Attributes:
        number: of the first batch it makes, counted by this worker in this epoch.
        trained: how many of its batches have been trained on; those before are not collated.
        state: of the data set there, pickled; None for as it is.
        drained: the state is from an epoch whose end the data set has still to be read to.
        over: the state is from after the end of the epoch, so this worker cannot go on from it in the same one.
    """

    number: int = 0
    trained: int = 0
    state: bytes | None = None
    drained: bool = False
    over: bool = False


class Carried(NamedTuple):
    """A batch with where its worker stands after it; a tuple, so that torch can pin what is in it.

    Attributes:
        batch: collated; None for one that has been trained on.
        worker: number of the worker.
        number: of the batch, counted by this worker in this epoch.
        state: of the data set, pickled.
        over: the data set has come to its end with this batch, which is short, and may have begun anew.
    """

    batch: Any
    worker: int
    number: int
    state: bytes
    over: bool


class StreamWorkers:
    """A shallow copy of a loader over an iterable data set, whose workers can be told where to begin.

    Args:
        loader: the user's.
        carried: batches come as `Carried`.
    """

    def __init__(self, loader: DataLoader[Any], *, carried: bool) -> None:
        self._user = loader
        self._copy = copy.copy(loader)
        own, name = vars(self._copy), "sampler" if loader.batch_sampler is None else "batch_sampler"
        own[name] = _Tasks(own[name])  # a DataLoader refuses to have it set
        own["collate_fn"] = _StreamCollate(loader.collate_fn, carried)
        own["_iterator"] = None

    @property
    def alive(self) -> bool:
        """Whether workers wait for another epoch."""
        return vars(self._copy)["_iterator"] is not None

    def start(self, epoch_seed: int, places: Sequence[Place]) -> Iterator[Any]:
        """Start workers, each at its place."""
        self._copy.worker_init_fn = _StreamStart(
            self._user.worker_init_fn, self._user.collate_fn, epoch_seed, tuple(places)
        )
        return iter(self._copy)

    def go_on(self, epoch: int, epoch_seed: int, states: Sequence[bytes | None] | None) -> Iterator[Any]:
        """Let the workers that wait begin another epoch.

        Args:
            epoch: its number.
            epoch_seed: what its random streams follow from.
            states: of the data set of each worker, which had read ahead in an epoch that was cut short; None within
                for the state it began that epoch with, None alone for leaving them as they are.
        """
        if not isinstance(self._user.dataset, IterDataPipe):  # those are sent a seed of their own there
            begin = _EpochStart(epoch, epoch_seed, None if states is None else tuple(states))
            vars(vars(self._copy)["_iterator"])["_shared_seed"] = begin
        return iter(self._copy)

    def close(self) -> None:
        """End the workers."""
        vars(self._copy)["_iterator"] = None


def pickled(state: Any) -> bytes:
    """Return a state as the bytes that workers take."""
    return pickle.dumps(state, _PROTOCOL)


def unpickled(state: bytes) -> Any:
    """Return the state that a worker of this process sent."""
    return pickle.loads(state)  # noqa: S301  # see the import


def _this_worker() -> WorkerInfo:
    return cast(WorkerInfo, get_worker_info())  # what follows runs in workers only


class _Here:
    """What a worker process knows: where it stands in which epoch."""

    def __init__(self) -> None:
        self.epoch_seed = self.number = self.trained = self.wanted = 0
        self.origin: bytes | None = None
        self.collating: dict[str, OwnGenerator] = {}

    def begin(self, epoch_seed: int, place: Place) -> None:
        """Stand at a place of an epoch, before the data set is iterated over."""
        worker = _this_worker()
        dataset = worker.dataset
        if isinstance(dataset, Stateful):
            if place.state is not None:
                dataset.load_state_dict(unpickled(place.state))
            if place.drained:
                for _ in cast(Iterable[Any], dataset):
                    pass
            self.origin = pickled(dataset.state_dict())
        self.epoch_seed, self.number, self.trained = epoch_seed, place.number, place.trained
        seed_process(batch_seed(epoch_seed, -1 - worker.id))

    def next_batch(self, wanted: int) -> None:
        """Seed this process for the next batch that this worker makes, of so many samples."""
        worker = _this_worker()
        seed = batch_seed(self.epoch_seed, self.number * worker.num_workers + worker.id)
        seed_process(seed)
        for name, generator in self.collating.items():
            seed_own(generator, stream_seed(seed, name))
        self.number, self.wanted = self.number + 1, wanted


_here = _Here()


class _StreamStart:
    """A `worker_init_fn` that calls the user's own and then brings the worker to its place.

    Args:
        own: the user's, or None.
        collate: the user's collate function.
        epoch_seed: of the epoch.
        places: by worker.
    """

    def __init__(
        self, own: Callable[[int], Any] | None, collate: Any, epoch_seed: int, places: tuple[Place, ...]
    ) -> None:
        self._own, self._collate, self._epoch_seed, self._places = own, collate, epoch_seed, places

    def __call__(self, worker_id: int) -> None:
        keep_inherited_handler()
        if self._own is not None:
            self._own(worker_id)
        _here.collating = own_generators({"collate_fn": self._collate}, without=_this_worker().dataset)
        _here.begin(self._epoch_seed, self._places[worker_id])


class _EpochStart:
    """What is sent to workers that begin another epoch: unpickling it brings them to its beginning."""

    def __init__(self, epoch: int, epoch_seed: int, states: tuple[bytes | None, ...] | None) -> None:
        self._arguments = (epoch, epoch_seed, states)

    def __reduce__(self) -> Any:
        return _begin_epoch, self._arguments


def _begin_epoch(epoch: int, epoch_seed: int, states: tuple[bytes | None, ...] | None) -> None:
    worker = _this_worker()
    state = None
    if states is not None:
        state = states[worker.id] or _here.origin
    if isinstance(worker.dataset, OrderedByEpoch):
        worker.dataset.set_epoch(epoch)
    _here.begin(epoch_seed, Place(state=state))


class _Tasks:
    """The (batch) sampler of an iterable data set, whose items seed the worker that unpickles them.

    Args:
        sampler: torch's, which says how many samples make a batch.
    """

    def __init__(self, sampler: Iterable[Any]) -> None:
        self._sampler = sampler

    def __iter__(self) -> Iterator[Any]:
        return map(_Task, self._sampler)


class _Task:
    """What a worker is sent: how many samples to read."""

    __slots__ = ("_indices",)

    def __init__(self, indices: Any) -> None:
        self._indices = indices

    def __reduce__(self) -> Any:
        return _begin_batch, (self._indices,)


def _begin_batch(indices: Any) -> Any:
    _here.next_batch(0 if indices is None else len(indices))
    return indices


class _StreamCollate:
    """A collate function that leaves batches which have been trained on as nothing, and tells where the worker stands.

    Args:
        collate: the user's.
        carried: return a `Carried`.
    """

    def __init__(self, collate: Callable[[Any], Any], carried: bool) -> None:
        self._collate, self._carried = collate, carried

    def __call__(self, samples: Any) -> Any:
        number = _here.number - 1
        batch = None if number < _here.trained else self._collate(samples)
        if not self._carried:
            return batch
        worker = _this_worker()
        state = pickled(cast(Stateful, worker.dataset).state_dict())
        return Carried(batch, worker.id, number, state, bool(_here.wanted) and len(samples) < _here.wanted)
