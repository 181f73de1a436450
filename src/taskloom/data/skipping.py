"""A loader without its first batches, for loops of one's own that go on in the middle of an epoch."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

from torch.utils.data import DataLoader, IterableDataset

from taskloom.core.errors import explain
from taskloom.data.lengths import loader_length


class WithoutFirst:
    """A loader without its first batches. A map-style `DataLoader` does not read their samples, others are read.

    Args:
        loader: the user's, which stays as it is.
        count: batches to leave out.

    Raises:
        ValueError: `count` is negative.
    """

    def __init__(self, loader: Iterable[Any], count: int) -> None:
        if count < 0:
            raise ValueError(explain("Batches to skip are 0 or more", got=count, fix="pass how many are done"))
        self.loader, self._count = loader, count
        self._view: Iterable[Any] | None = None
        if (
            isinstance(loader, DataLoader)
            and type(loader).__iter__ is DataLoader.__iter__
            and not isinstance(loader.dataset, IterableDataset)
        ):
            view: DataLoader[Any] = copy.copy(loader)
            own, name = vars(view), "sampler" if loader.batch_sampler is None else "batch_sampler"
            own[name], own["_iterator"] = _Rest(own[name], count), None  # a DataLoader refuses to have them set
            self._view = view

    def __iter__(self) -> Iterator[Any]:
        return iter(self._view) if self._view is not None else islice(iter(self.loader), self._count, None)

    def __len__(self) -> int:
        length = loader_length(self.loader)
        if length == float("inf"):
            raise TypeError(explain("The length of the loader whose batches are skipped is unknown"))
        return max(0, int(length) - self._count)


class _Rest:
    """A sampler without its first items."""

    def __init__(self, sampler: Iterable[Any], count: int) -> None:
        self._sampler, self._count = sampler, count

    def __iter__(self) -> Iterator[Any]:
        return islice(iter(self._sampler), self._count, None)
