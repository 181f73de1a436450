"""Which `Source` serves which loader: decided by what the loader can do, in a fixed order."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import Any

from torch.utils.data import DataLoader, IterableDataset

from taskloom.data.generators import Generators
from taskloom.data.kept import KeptBatches, KeptSource
from taskloom.data.source import Source


def source_of(loader: Iterable[Any], generators: Generators, *, rank: int = 0) -> Source:
    """Return what makes a loader one that can be left and taken up at any batch.

    Args:
        loader: the user's object; it is not changed.
        generators: of this process. A source leaves them as if it had not drawn for its own ends.
        rank: of this process among those that train on the same data; parts the random streams of their workers.
    """
    # A source is imported where it is needed: most runs need one kind. The order: a loader with state_dict and
    # load_state_dict, a CombinedLoader, a DataLoader over an IterableDataset, any other DataLoader, the rest.
    # A DataLoader with an __iter__ of its own may make of its batches what it likes, so it belongs to the rest.
    if isinstance(loader, KeptBatches):
        return KeptSource(loader)
    plain = isinstance(loader, DataLoader) and type(loader).__iter__ is DataLoader.__iter__
    if isinstance(loader, DataLoader) and plain and not isinstance(loader.dataset, IterableDataset):
        from taskloom.data.indexed import IndexedSource

        return IndexedSource(loader, generators, rank=rank)
    return _ReadAgain(loader)


class _ReadAgain(Source):
    """Batches that are found by reading those before them."""

    def __init__(self, loader: Iterable[Any]) -> None:
        self._loader = loader

    def begin_epoch(self, epoch: int, *, resumed: bool) -> None:
        """Nothing follows from the number of the epoch."""

    def batches(self, done: int) -> Iterator[Any]:
        """Read the batches that are done, and go on from there."""
        return islice(iter(self._loader), done, None) if done else iter(self._loader)

    def state_dict(self, epoch: int, done: int) -> dict[str, Any]:
        """Return nothing: the number of batches is all that is known."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """There is nothing to restore."""
