"""The stream of indices that a map-style loader reads, made so that it can be taken up at any batch.

The user's sampler is iterated over as it is. What its order follows from is noted when it is: the generators of the
process, those of its own, and what iterating has changed in its attributes. To take the stream up, all that is put
back, and the sampler runs over the indices that are done; their samples are not read.

Torch's samplers draw all they need with their first index. A sampler of the user's may draw as it goes, and then what
it draws would depend on who else draws from the same generators in between. Such a one has streams of its own from its
second index batch on, so that the order follows from the beginning of the epoch alone. One that drew nothing in its
first batches is left alone after them, because switching generators costs a tenth of a millisecond.

Indices are taken one batch ahead of the samples. So a sampler has come to its end when its last batch is handed out,
and what it draws at its end (a `RandomSampler` does) comes before the next epoch, whether there are workers or not.
"""

from __future__ import annotations

from array import array
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from itertools import chain, count, islice
from typing import Any, Final
from zlib import crc32

import numpy
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    DistributedSampler,
    RandomSampler,
    SequentialSampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
)

from taskloom.core.errors import CheckpointError, explain
from taskloom.data.attributes import ChangedAttributes
from taskloom.data.generators import Generators, States, own_generators, own_states, restore_own_states
from taskloom.data.samplers import SeedableRandomSampler
from taskloom.data.seeding import seed_process, stream_seed
from taskloom.data.source import READ_AHEAD

_STANDARD: Final = frozenset(
    {
        SequentialSampler,
        RandomSampler,
        SubsetRandomSampler,
        WeightedRandomSampler,
        DistributedSampler,
        SeedableRandomSampler,
    }
)
_WATCHED: Final = 16
RESTART: Final = "begin the epoch's data anew with restore.data='restart'"


def samplers_of(loader: DataLoader[Any]) -> dict[str, Any]:
    """Return what decides the order of a loader, by name, each once."""
    batch_sampler = loader.batch_sampler
    named = {"batch_sampler": batch_sampler, "sampler": loader.sampler}
    if isinstance(batch_sampler, BatchSampler):
        named["batch_sampler.sampler"] = batch_sampler.sampler
    first = {id(sampler): name for name, sampler in reversed(named.items()) if sampler is not None}
    return {name: sampler for name, sampler in named.items() if first.get(id(sampler)) == name}


class IndexStream:
    """Stands in the place of a loader's (batch) sampler, and yields what that yields.

    Args:
        loader: the user's.
        generators: of the process.
        item: makes what a worker is sent of an index batch, the epoch's seed, the batch's number and the epoch's; None
            without worker processes.

    Attributes:
        epoch: its number.
        is_apart: it draws from the streams of the batch that is read.
        part: of the data that this process trains on; parts the streams of its workers from those of others.
        was_started: the worker processes of the run that is continued were there before this epoch. Torch asks a new
            iterator's sampler twice, with a draw in between, and one that goes on once.
    """

    def __init__(
        self, loader: DataLoader[Any], generators: Generators, item: Callable[[Any, int, int, int], Any] | None
    ) -> None:
        named = samplers_of(loader)
        self._sampler: Any = loader.sampler if loader.batch_sampler is None else loader.batch_sampler
        self._standard = all(type(each) in {BatchSampler, *_STANDARD} for each in named.values())
        self._generators, self._item = generators, item
        self._own = own_generators({"generator": loader.generator, **named}, without=loader.dataset)
        self._attributes = ChangedAttributes({} if self._standard else named)
        self.epoch, self.part, self.was_started, self.is_apart = 0, 0, False, False
        self._at_iter: States | None = None
        self._at_first: States | None = None
        self._pretended: States | None = None
        self._taken_up: Iterator[Any] | None = None
        self._own_then: States | None = None
        self._left: dict[str, Any] = {}
        self._seed = 0
        # A checksum of the indices up to each batch that was handed out last; workers are some ahead of the training.
        ahead = (loader.prefetch_factor or 0) * loader.num_workers
        self._checksums: deque[int] = deque([0], maxlen=ahead + READ_AHEAD + 3)
        self._drawn = 0
        self._expected: int | None = None

    # What the DataLoader calls ----------------------------------------------------------------------------------------

    def __iter__(self) -> Iterator[Any]:
        if self._taken_up is not None:
            return self._taken_up
        if self.was_started:
            if self._pretended is None:
                self._pretended = self._moment()
                return iter(())
            self._restore(self._pretended)
            self._pretended, self.was_started = None, False
        self._at_iter = {**self._moment(), "attributes": self._attributes.state_dict()}
        return self._from_the_first(iter(self._sampler))

    def __len__(self) -> int:
        return len(self._sampler)

    # What the source calls --------------------------------------------------------------------------------------------

    def begin(self) -> None:
        """Forget the epoch before, whose end the attributes of the sampler are now at."""
        self._attributes.restore(self._left)
        self._left = {}
        self._taken_up, self._at_iter, self._at_first, self._expected = None, None, None, None

    def take_up(self, missing: Iterable[int], reached: int) -> None:
        """Prepare the rest of an epoch: some single batches first, then all from one on.

        Args:
            missing: numbers of the single batches.
            reached: number of the batch from which on all are wanted.

        Raises:
            CheckpointError: the sampler does not yield the indices that it had.
        """
        if self._at_iter is None or self._at_first is None:
            raise CheckpointError(
                explain(
                    "The checkpoint does not say what the order of the training data followed from",
                    fix=f"pass the loader of the run that wrote it, or {RESTART}",
                )
            )
        self.was_started, self._left = False, {}
        self._restore(self._at_iter)
        self._attributes.restore(self._at_iter["attributes"])
        wanted, kept = set(missing), []
        if self._standard and not wanted:
            batches = self._skip(self._at_first, reached)
        else:
            iterator = iter(self._sampler)
            self._restore(self._at_first)
            batches = self._noted(self._batches(iterator))
            kept = [(number, batch) for number, batch in enumerate(islice(batches, reached)) if number in wanted]
            self._check(reached)
        if reached or not self.is_apart:  # the indices are one batch ahead, and have been drawn whether read or not
            batches = chain(list(islice(batches, 1)), batches)
        self._own_then = own_states(self._own)
        self._taken_up = self._rest(chain(kept, enumerate(batches, reached)))

    def settle(self) -> None:
        """Put back what a new iterator of torch's draws from the loader's generator, and one that goes on does not."""
        if self._own_then is not None:
            restore_own_states(self._own, self._own_then)

    def state_dict(self, reached: int, *, within: bool) -> dict[str, Any]:
        """Return what the order follows from.

        Args:
            reached: batches that are done.
            within: an epoch that has been begun, rather than between two.
        """
        state: dict[str, Any] = {"own": own_states(self._own), "attributes": self._attributes.state_dict()}
        if not within or self._at_iter is None:
            return state
        same = self._at_first is not None and _equal(self._at_first, self._at_iter)
        back = self._drawn - reached + 1
        return {
            **state,
            "at_iter": self._at_iter,
            "at_first": None if same else self._at_first,
            "seed": self._seed,
            "checksum": self._checksums[-back] if 0 < back <= len(self._checksums) and not self._standard else None,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        restore_own_states(self._own, state["own"])
        if "at_iter" not in state:
            self._attributes.restore(state["attributes"])
        else:  # the sampler is at this epoch's end only after it has been iterated over
            self._left = state["attributes"]
            self._at_iter, self._seed, self._expected = state["at_iter"], state["seed"], state["checksum"]
            self._at_first = state["at_iter"] if state["at_first"] is None else state["at_first"]

    # The order --------------------------------------------------------------------------------------------------------

    def _from_the_first(self, iterator: Iterator[Any]) -> Iterator[Any]:
        self._at_first = self._moment()
        process = {name: state for name, state in self._at_first["process"].items() if name != "device"}
        self._seed = stream_seed(process, self._at_first["own"], self.epoch, self.part)
        if self._item is None and self._standard:
            yield from _one_ahead(iterator)
        else:
            yield from self._sent(enumerate(self._noted(self._batches(iterator))))

    def _rest(self, numbered: Iterator[tuple[int, Any]]) -> Iterator[Any]:
        self.settle()
        self._own_then = None
        yield from self._sent(numbered)

    def _sent(self, numbered: Iterator[tuple[int, Any]]) -> Iterator[Any]:
        for number, batch in _one_ahead(numbered):
            yield batch if self._item is None else self._item(batch, self._seed, number, self.epoch)

    def _batches(self, iterator: Iterator[Any]) -> Iterator[Any]:
        if self._standard:
            yield from iterator
            return
        yield from islice(iterator, 1)
        streams = _Streams(stream_seed(self._seed, "sampler"))
        for number in count(1):
            batch = streams.take(iterator)
            yield from batch
            if number == _WATCHED:
                streams.leave_unused()
            if not batch or not streams.used:
                break
        yield from iterator

    def _noted(self, batches: Iterator[Any]) -> Iterator[Any]:
        self._checksums.clear()
        self._checksums.append(0)
        self._drawn, checksum = 0, 0
        for batch in batches:
            if not self._standard:
                checksum = _checksum(batch, checksum)
            self._checksums.append(checksum)
            self._drawn += 1
            yield batch

    def _skip(self, at_first: States, reached: int) -> Iterator[Any]:
        """Return the batches of a standard sampler from one on, passing over indices rather than batches of them."""
        sampler = self._sampler
        batched = isinstance(sampler, BatchSampler)
        indices = iter(sampler.sampler if batched else sampler)
        self._restore(at_first)
        passed = reached * sampler.batch_size if batched else reached
        next(islice(indices, passed, passed), None)
        return iter(BatchSampler(indices, sampler.batch_size, sampler.drop_last)) if batched else indices

    def _check(self, reached: int) -> None:
        if self._drawn < reached or (self._expected is not None and self._checksums[-1] != self._expected):
            raise CheckpointError(
                explain(
                    f"{type(self._sampler).__name__} does not yield the indices again that were trained on",
                    got=f"{min(self._drawn, reached)} batches of which {reached} are done",
                    why="its order does not follow from the random generators and attributes that a checkpoint holds, "
                    "or its settings are other ones",
                    fix="let it draw from a generator in one of its attributes, or from the process's in __iter__; "
                    f"or {RESTART}",
                )
            )

    def _moment(self) -> States:
        return {"process": self._generators.states(), "own": own_states(self._own)}

    def _restore(self, moment: Mapping[str, Any]) -> None:
        self._generators.restore(moment["process"])
        restore_own_states(self._own, moment["own"])


class _Streams:
    """Streams for the process's generators while a sampler draws, in place of what they have."""

    def __init__(self, seed: int) -> None:
        outside = Generators().states()
        seed_process(seed)
        self._inside = self._began = Generators().states()
        Generators().restore(outside)
        self.used: Collection[str] = ("python", "numpy", "torch")

    def take(self, iterator: Iterator[Any]) -> list[Any]:
        """Return the iterator's next item in a list, an empty one at its end."""
        generators = Generators()
        outside = generators.states(self.used)
        generators.restore(self._inside)
        try:
            return list(islice(iterator, 1))
        finally:
            self._inside = generators.states(self.used)
            generators.restore(outside)

    def leave_unused(self) -> None:
        """Switch from now on only the generators that something was drawn from."""
        self.used = [name for name in self.used if not _equal(self._began[name], self._inside[name])]
        self._inside = {name: self._inside[name] for name in self.used}


def _checksum(batch: Any, before: int) -> int:
    """Return a number that follows from the indices up to a batch; those that say only their address are left out."""
    try:
        return crc32(array("q", batch), before)
    except (TypeError, ValueError, OverflowError):  # no list of integers
        text = repr(batch)
        return before if " at 0x" in text else crc32(text.encode(), before)


def _one_ahead(items: Iterator[Any]) -> Iterator[Any]:
    for held in items:
        for item in items:
            yield held
            held = item
        yield held


def _equal(one: Any, other: Any) -> bool:
    if isinstance(one, Mapping):
        return all(_equal(value, other[name]) for name, value in one.items())
    if isinstance(one, (tuple, list)) and one and isinstance(one[0], (str, numpy.ndarray)):
        return all(_equal(a, b) for a, b in zip(one, other, strict=True))
    same = one == other if not isinstance(one, numpy.ndarray) else numpy.array_equal(one, other)
    return bool(same) if isinstance(same, bool) else bool(same.all())
