"""Where in its data a run is, and how a resumed run gets back there without reading what it has trained on.

A map-style `DataLoader` is resumed exactly where its order follows from torch's generators and its own: the generators
are put back to where the epoch began, the sampler runs over the indices that are done (their samples are not read), and
the generators continue as the checkpoint has them. Not exact yet: what worker processes draw at random within an epoch
begins anew, a sampler with generators of its own kind starts where that stands, and other iterables are read up to the
position.
"""

from __future__ import annotations

import copy
import math
import random
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import islice
from typing import Any, Protocol, runtime_checkable

import numpy
import torch
from torch.utils.data import BatchSampler, DataLoader, IterableDataset

from taskloom.data import NamedLoader, feed
from taskloom.loop.run import Run


@runtime_checkable
class OrderedByEpoch(Protocol):
    """A sampler whose order follows from the number of the epoch, as that of torch's `DistributedSampler`."""

    def set_epoch(self, epoch: int) -> None:
        """Take the number of the epoch that is about to begin."""
        ...


@runtime_checkable
class Drawing(Protocol):
    """A sampler with a generator of its own."""

    generator: Any


class Position:
    """The position of a run in its training data.

    Args:
        run: the parts of the stage.
        loader: training batches.

    Attributes:
        epoch_read: the batches of the epoch are done, though its validation and its end may not be.
    """

    def __init__(self, run: Run, loader: NamedLoader) -> None:
        self._run, self._loader = run, loader
        self._own = _generators_of(loader.loader)
        self._began_with: dict[str, Any] | None = None
        self.epoch_read = False

    def begin_epoch(self) -> None:
        """Remember the generators from which the order of this epoch follows, and tell samplers its number."""
        progress = self._run.trainer.progress
        _announce(self._loader.loader, progress.epochs)
        if not progress.batches_in_epoch:
            self._began_with = {**generator_states(self._run), "own": [each.get_state() for each in self._own]}

    def state_dict(self) -> dict[str, Any]:
        """Return what the order of the epoch follows from, as data."""
        own = [each.get_state() for each in self._own]
        return {"epoch_began_with": self._began_with, "own_generators": own, "epoch_read": self.epoch_read}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self._began_with, self.epoch_read = state["epoch_began_with"], state["epoch_read"]
        self._restore_own(state["own_generators"])

    def batches(self, transfer: Callable[[Any], Any] | None, most: float) -> Iterator[Any]:
        """Iterate over the epoch, or over the rest of it, up to its batch number `most`."""
        loader, done = self._loader.loader, self._run.trainer.progress.batches_in_epoch
        if not done:
            return feed(loader, most, transfer)
        if not _skips_unread(loader):
            return feed(islice(iter(loader), done, None), most - done, transfer)
        now, own = generator_states(self._run), [each.get_state() for each in self._own]
        if self._began_with is not None:
            restore_generators(self._run, self._began_with)
            self._restore_own(self._began_with["own"])
        rest, indices = _without_first(loader, done)
        batches = iter(rest)
        indices.begin()
        restore_generators(self._run, now)
        if self._began_with is not None:
            self._restore_own(own)
        left = most - done
        if not math.isinf(left):
            batches = islice(batches, int(left))
        return batches if transfer is None else map(transfer, batches)

    def _restore_own(self, states: Iterable[torch.Tensor]) -> None:
        for generator, state in zip(self._own, states, strict=False):
            generator.set_state(state)


def generator_states(run: Run) -> dict[str, Any]:
    """Return the state of every random generator of this process, as data."""
    return {
        "python": random.getstate(),
        "numpy": numpy.random.get_state(),
        "torch": torch.get_rng_state(),
        "device": run.strategy.accelerator.rng_state(run.strategy.device),
    }


def restore_generators(run: Run, states: Mapping[str, Any]) -> None:
    """Restore what `generator_states` returned."""
    version, internal, gauss = states["python"]
    random.setstate((version, tuple(internal), gauss))
    numpy.random.set_state(tuple(states["numpy"]))
    torch.set_rng_state(states["torch"])
    if states["device"] is not None:
        run.strategy.accelerator.set_rng_state(states["device"], run.strategy.device)


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


def _skips_unread(loader: Iterable[Any]) -> bool:
    return isinstance(loader, DataLoader) and not isinstance(loader.dataset, IterableDataset)


def _without_first(loader: Any, skipped: int) -> tuple[Iterable[Any], _Rest]:
    """Return a view of a loader without its first batches, and its sampler.

    The user's loader is not rebuilt: a shallow copy keeps its class, attributes, workers and collate function.
    """
    name = "sampler" if loader.batch_sampler is None else "batch_sampler"
    clone, rest = copy.copy(loader), _Rest(vars(loader)[name], skipped)
    vars(clone)[name] = rest  # a DataLoader refuses to have it set
    vars(clone)["_iterator"] = None
    return clone, rest


def _generators_of(loader: Any) -> list[torch.Generator]:
    if not isinstance(loader, DataLoader):
        return []
    found = [each.generator for each in (loader, *_samplers_of(loader)) if isinstance(each, Drawing)]
    return list({id(each): each for each in found if isinstance(each, torch.Generator)}.values())


def _samplers_of(loader: DataLoader[Any]) -> list[Any]:
    batch_sampler = loader.batch_sampler
    within = [batch_sampler.sampler] if isinstance(batch_sampler, BatchSampler) else []
    return list({id(each): each for each in (loader.sampler, batch_sampler, *within)}.values())


def _announce(loader: Any, epoch: int) -> None:
    for sampler in _samplers_of(loader) if isinstance(loader, DataLoader) else []:
        if isinstance(sampler, OrderedByEpoch):
            sampler.set_epoch(epoch)
