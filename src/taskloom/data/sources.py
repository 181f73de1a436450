"""Which `Source` serves which loader: decided by what the loader can do, in a fixed order."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any, cast

from torch.utils.data import DataLoader, IterableDataset

from taskloom.data.combined import CombinedLoader
from taskloom.data.generators import Generators
from taskloom.data.kept import KeptBatches, KeptSource
from taskloom.data.reloading import ReloadedLoader, ReloadedSource
from taskloom.data.source import Source, Stateful, Told, told_nobody


def source_of(
    loader: Iterable[Any], generators: Generators, *, rank: int = 0, told: Told = told_nobody, read_ahead: bool = False
) -> Source:
    """Return what makes a loader one that can be left and taken up at any batch.

    Args:
        loader: the user's object; it is not changed.
        generators: of this process. A source leaves them as if it had not drawn for its own ends.
        rank: of this process among those that train on the same data; parts the random streams of their workers.
        told: how far reading again has come, for what cannot be taken up without.
        read_ahead: the loader is part of a combination whose batches are taken before the one before is trained on.
    """
    # A source is imported where it is needed: most runs need one kind. The order: a loader with state_dict and
    # load_state_dict, a CombinedLoader, a DataLoader over an IterableDataset, any other DataLoader, the rest.
    # A DataLoader with an __iter__ of its own may make of its batches what it likes, so it belongs to the rest.
    if isinstance(loader, KeptBatches):
        return KeptSource(loader)
    if isinstance(loader, ReloadedLoader):
        renewed = partial(source_of, generators=generators, rank=rank, told=told, read_ahead=True)
        return ReloadedSource(loader, generators, renewed)
    if isinstance(loader, CombinedLoader):
        read_ahead = read_ahead or not loader.is_reliable
        return loader.source(lambda part: source_of(part, generators, rank=rank, told=told, read_ahead=read_ahead))
    if isinstance(loader, Stateful):
        from taskloom.data.stateful import StatefulSource

        return StatefulSource(loader, loader, generators, rank=rank, read_ahead=read_ahead)
    if isinstance(loader, DataLoader):
        plain = type(loader).__iter__ is DataLoader.__iter__
        if isinstance(loader.dataset, IterableDataset):
            return _stream(loader, plain, generators, rank, told)
        if plain:
            from taskloom.data.indexed import IndexedSource

            return IndexedSource(loader, generators, rank=rank, read_ahead=read_ahead)
    from taskloom.data.rereading import ListSource, RereadSource

    if type(loader) in (list, tuple):
        return ListSource(cast(Sequence[Any], loader))
    return RereadSource(loader, generators, rank=rank, told=told)


def _stream(loader: DataLoader[Any], plain: bool, generators: Generators, rank: int, told: Told) -> Source:
    from taskloom.data.rereading import RereadSource
    from taskloom.data.stateful import StatefulSource
    from taskloom.data.streaming import StatefulStreamSource, StreamSource

    dataset = loader.dataset
    if not loader.num_workers and isinstance(dataset, Stateful):
        return StatefulSource(loader, dataset, generators, rank=rank)
    if not loader.num_workers or not plain:
        return RereadSource(loader, generators, rank=rank, told=told)
    if isinstance(dataset, Stateful):
        return StatefulStreamSource(loader, generators, rank=rank)
    return StreamSource(loader, generators, rank=rank, told=told)
