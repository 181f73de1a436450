"""Streams for tests: a sample says which it is and what was drawn when it was made."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from data.resuming import saved, seed
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from taskloom import CombinedLoader
from taskloom.data.generators import Generators
from taskloom.data.lengths import is_reliable
from taskloom.data.loaders import with_last
from taskloom.data.sources import source_of

Sample = list[float]


def noise() -> Sample:
    """Return what each generator of this process gives next."""
    return [random.random(), float(np.random.rand()), torch.rand(()).item()]


def mine(length: int) -> range:
    """Return the samples that this worker reads; worker 0 of several comes to its end early."""
    worker = get_worker_info()
    if worker is None:
        return range(length)
    ends_early = worker.id == 0 and worker.num_workers > 1
    return range(worker.id, length // 2 if ends_early else length, worker.num_workers)


class Buffered(IterableDataset):
    """No state, and an order that follows from draws in between: each sample comes from a small shuffled buffer."""

    def __init__(self, length: int = 21) -> None:
        self.length, self.reads = length, 0

    def __iter__(self) -> Iterator[Sample]:
        buffer: list[int] = []
        for index in mine(self.length):
            self.reads += 1
            buffer.append(index)
            if len(buffer) > 3:
                yield [float(buffer.pop(random.randrange(len(buffer)))), *noise()]
        while buffer:
            yield [float(buffer.pop(random.randrange(len(buffer)))), *noise()]


class Placed(IterableDataset):
    """Knows where it is, begins anew at its end, and counts how often that was."""

    def __init__(self, length: int = 21) -> None:
        self.length, self.at, self.rounds, self.reads = length, 0, 0, 0

    def __iter__(self) -> Iterator[Sample]:
        own = mine(self.length)
        while self.at < len(own):
            self.at += 1
            self.reads += 1
            yield [own[self.at - 1] + 100.0 * self.rounds, *noise()]
        self.at, self.rounds = 0, self.rounds + 1

    def state_dict(self) -> dict[str, Any]:
        return {"at": self.at, "rounds": self.rounds}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.at, self.rounds = state["at"], state["rounds"]


class Batches:
    """An iterable of batches that is no DataLoader; its order is drawn when it begins."""

    def __init__(self, length: int = 7) -> None:
        self.length = length

    def __iter__(self) -> Iterator[list[Sample]]:
        for index in torch.randperm(self.length).tolist():
            yield [[float(index), *noise()]]


class Remembering(Batches):
    """A loader that has a state of its own."""

    def __init__(self, length: int = 7) -> None:
        super().__init__(length)
        self.order: list[int] = []

    def __iter__(self) -> Iterator[list[Sample]]:
        self.order = self.order or torch.randperm(self.length).tolist()
        while self.order:
            yield [[float(self.order.pop()), *noise()]]

    def state_dict(self) -> dict[str, Any]:
        return {"order": self.order}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.order = list(state["order"])


def as_is(samples: list[Sample]) -> list[Sample]:
    """A collate function that draws too."""
    return [*samples, noise()]


def stream(dataset: IterableDataset[Any], workers: int = 0, **options: Any) -> DataLoader[Any]:
    return DataLoader(dataset, 2, num_workers=workers, collate_fn=as_is, **options)


Seen = list[Any]


def train(make: Callable[[], Any], stops: Sequence[int] = (), *, epochs: int = 2, limit: int | None = None) -> Seen:
    """Train as the loop does, which reads one batch ahead, in a run that is killed after some numbers of steps."""
    seed(1)
    seen: Seen = []
    state: Any = None
    for stop in [*stops, None]:
        state = _run(make(), seen, state, stop, epochs, limit)
        seed(stop or 0)
    return seen


def _run(loader: Any, seen: Seen, state: Any, stop: int | None, epochs: int, limit: int | None) -> Any:
    generators = Generators()
    source = source_of(loader, generators)
    reliable = loader.is_reliable if isinstance(loader, CombinedLoader) else is_reliable(loader)
    epoch, done = (state["epoch"], state["done"]) if state else (0, 0)
    if state:
        source.load_state_dict(state["source"])
        generators.restore(state["generators"])

    def checkpoint(epoch: int, done: int) -> Any:
        kept = {"epoch": epoch, "done": done, "source": source.state_dict(epoch, done)}
        return saved({**kept, "generators": generators.states()})

    try:
        for number in range(epoch, epochs):
            source.begin_epoch(number, resumed=bool(done))
            batches = source.batches(done)
            if limit is not None:
                batches = (batch for batch, _ in zip(batches, range(limit - done), strict=False))
            for batch, last in ((each, None) for each in batches) if reliable else with_last(batches):
                seen.append((number, done, batch, noise()))
                done += 1
                if len(seen) == stop and not last:
                    return checkpoint(number, done)
            done = 0
            if len(seen) == stop:
                return checkpoint(number + 1, 0)
    finally:
        source.close()
    return state
