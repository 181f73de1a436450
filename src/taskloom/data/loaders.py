"""What a user passes as loaders, checked and made uniform; loaders are wrapped from outside and never rebuilt."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from torch.utils.data import DataLoader, IterableDataset

from taskloom.core.errors import explain
from taskloom.core.policies import LimitBatches
from taskloom.data.combined import CombinedLoader
from taskloom.data.lengths import is_reliable, loader_length
from taskloom.data.reloading import ReloadedLoader


@dataclass(frozen=True)
class NamedLoader:
    """A loader of one stage.

    Attributes:
        name: given by a dict of loaders, else empty.
        loader: the user's object.
        length: batches to use after the limit; `inf` when unknown.
        exact: whether `length` can be relied on to tell which batch is the last.
    """

    name: str
    loader: Iterable[Any]
    length: float
    exact: bool


def named_loaders(loaders: Any, limit: int | float | None, stage: str) -> list[NamedLoader]:
    """Make a uniform list of one loader, a sequence of them, or a dict that names them.

    Several training loaders are combined in one, as Lightning does it: by `CombinedLoader(loaders, "max_size_cycle")`.
    Other stages run one after the other, also those of a sequential `CombinedLoader`.

    Raises:
        TypeError: something in it cannot be iterated over.
        ValueError: one is empty, or a part of one without a length is asked for.
    """
    if isinstance(loaders, CombinedLoader) and loaders.is_sequential and stage != "train":
        loaders = loaders.iterables
    if isinstance(loaders, Mapping):
        items = [(str(name), loader) for name, loader in loaders.items()]
    elif isinstance(loaders, Sequence) and not isinstance(loaders, (str, bytes)):
        items = [("", loader) for loader in loaders]
    else:
        return [_named("", loaders, limit, stage)]
    if stage != "train":
        return [_named(name, loader, limit, stage) for name, loader in items]
    for name, loader in items:
        _check(name, loader, stage)
    return [_named("", CombinedLoader(loaders, "max_size_cycle"), limit, stage)]


def _named(name: str, loader: Any, limit: int | float | None, stage: str) -> NamedLoader:
    _check(name, loader, stage)
    combined = isinstance(loader, CombinedLoader)
    used = LimitBatches.apply(limit, loader_length(loader), stage)
    reliable = loader.is_reliable if combined else is_reliable(loader) and not isinstance(loader, ReloadedLoader)
    return NamedLoader(name, loader, used, exact=not math.isinf(used) and reliable)


def _check(name: str, loader: Any, stage: str) -> None:
    what = f"The {stage} loader{f' {name!r}' if name else ''}"
    if not isinstance(loader, Iterable):
        raise TypeError(
            explain(
                f"{what} cannot be iterated over",
                got=loader,
                fix="pass a torch.utils.data.DataLoader or any iterable of batches",
            )
        )
    if isinstance(loader, CombinedLoader):
        for part, each in loader.named.items():
            _check(str(part), each, stage)
    if loader_length(loader) == 0:
        raise ValueError(
            explain(
                f"{what} is empty",
                got=loader,
                why="it has no batch to take a step on",
                fix="check the data set's length, and drop_last with a batch size larger than it",
            )
        )


def feed(loader: Iterable[Any], length: float, transfer: Callable[[Any], Any] | None) -> Iterator[Any]:
    """Iterate over at most `length` batches of a loader, each moved by `transfer`.

    Built of `islice` and `map`, so that a step pays for no frame of ours.
    """
    batches = loader.batches() if isinstance(loader, CombinedLoader) else iter(loader)
    if not math.isinf(length) and length != loader_length(loader):
        batches = islice(batches, int(length))
    return batches if transfer is None else map(transfer, batches)


def with_last(batches: Iterator[Any]) -> Iterator[tuple[Any, bool]]:
    """Pair every batch with whether it is the last, by reading one ahead; for loaders whose length is unknown."""
    try:
        held = next(batches)
    except StopIteration:
        return
    for batch in batches:
        yield held, False
        held = batch
    yield held, True


def declared_batch_size(loader: Iterable[Any]) -> int | None:
    """Return how many samples every batch but the last holds, None for a loader that does not promise it.

    Batches of an iterable data set may be short anywhere: each worker ends with what it has left.
    """
    if isinstance(loader, DataLoader) and not isinstance(loader.dataset, IterableDataset):
        return loader.batch_size
    return None


def suggested_num_workers(processes: int = 1) -> int:
    """Return how many loader processes this machine can carry for each of its training processes, at least 1."""
    cores = len(os.sched_getaffinity(0)) if "sched_getaffinity" in dir(os) else os.cpu_count() or 1
    return max(1, cores // max(1, processes))
