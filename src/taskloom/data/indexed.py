"""A map-style `DataLoader` as a source: its position is one in the stream of indices, so skipping reads no sample."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import Any, Protocol, runtime_checkable

from torch.utils.data import BatchSampler, DataLoader

from taskloom.data.generators import Generators, own_generators, own_states, restore_own_states
from taskloom.data.source import Source


@runtime_checkable
class OrderedByEpoch(Protocol):
    """A sampler whose order follows from the number of the epoch, as that of torch's `DistributedSampler`."""

    def set_epoch(self, epoch: int) -> None:
        """Take the number of the epoch that is about to begin."""
        ...


class IndexedSource(Source):
    """Batches of a map-style `DataLoader`.

    Args:
        loader: the user's; a shallow copy with another (batch) sampler is what is iterated over.
        generators: of the process.
        rank: of the process.
    """

    def __init__(self, loader: DataLoader[Any], generators: Generators, *, rank: int = 0) -> None:
        self._loader, self._generators, self._rank = loader, generators, rank
        self._own = own_generators(**_drawing(loader))
        self._began_with: dict[str, Any] | None = None

    def begin_epoch(self, epoch: int, *, resumed: bool) -> None:
        """Tell samplers the number of the epoch."""
        for sampler in samplers_of(self._loader):
            if isinstance(sampler, OrderedByEpoch):
                sampler.set_epoch(epoch)

    def batches(self, done: int) -> Iterator[Any]:
        """Iterate from batch `done` on; the sampler runs over the indices before it, whose samples are not read."""
        if not done:
            self._began_with = self._states()
            return iter(self._loader)
        now = self._states()
        if self._began_with is not None:
            self._restore(self._began_with)
        rest, indices = _without_first(self._loader, done)
        batches = iter(rest)
        indices.begin()
        self._restore(now)
        return batches

    def state_dict(self, epoch: int, done: int) -> dict[str, Any]:
        """Return what the order of the epoch follows from."""
        return {"began_with": self._began_with, "own": own_states(self._own)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the generators of the loader and its samplers."""
        self._began_with = state["began_with"]
        restore_own_states(self._own, state["own"])

    def _states(self) -> dict[str, Any]:
        return {"process": self._generators.states(), "own": own_states(self._own)}

    def _restore(self, states: Mapping[str, Any]) -> None:
        self._generators.restore(states["process"])
        restore_own_states(self._own, states["own"])


class _Rest:
    """A sampler without its first items, so that their samples are never read."""

    def __init__(self, sampler: Iterable[Any], skipped: int) -> None:
        self._sampler, self._skipped = sampler, skipped
        self._iterator: Iterator[Any] = iter(())
        self._held: list[Any] = []

    def __iter__(self) -> Iterator[Any]:
        self._iterator = islice(iter(self._sampler), self._skipped, None)
        return self

    def __next__(self) -> Any:
        return self._held.pop() if self._held else next(self._iterator)

    def __len__(self) -> int:
        return max(0, len(self._sampler) - self._skipped)  # type: ignore[arg-type]  # samplers have a length

    def begin(self) -> None:
        """Let the sampler draw what its order follows from, if worker processes have not made it do so."""
        if not self._held:
            self._held = list(islice(self._iterator, 1))


def _without_first(loader: Any, skipped: int) -> tuple[Iterable[Any], _Rest]:
    name = "sampler" if loader.batch_sampler is None else "batch_sampler"
    clone, rest = copy.copy(loader), _Rest(vars(loader)[name], skipped)
    vars(clone)[name] = rest  # a DataLoader refuses to have it set
    vars(clone)["_iterator"] = None
    return clone, rest


def samplers_of(loader: DataLoader[Any]) -> list[Any]:
    """Return what decides the order of a loader, from the outside in, each once."""
    batch_sampler = loader.batch_sampler
    within = [batch_sampler.sampler] if isinstance(batch_sampler, BatchSampler) else []
    return list({id(each): each for each in (loader.sampler, batch_sampler, *within) if each is not None}.values())


def _drawing(loader: DataLoader[Any]) -> dict[str, Any]:
    return {
        "loader.generator": loader.generator,
        "loader.sampler": loader.sampler,
        "loader.batch_sampler": loader.batch_sampler,
    }
