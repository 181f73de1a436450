"""Samplers that users put into their loaders."""

from __future__ import annotations

from collections.abc import Iterator, Sized
from typing import Final

import torch
from torch.utils.data import Sampler

from taskloom.core.errors import explain
from taskloom.data.seeding import stream_seed

_LARGEST: Final = 2**64 - 1


class SeedableRandomSampler(Sampler[int]):
    """A random order that follows from a seed of its own and the number of the epoch, and from nothing else.

    The seed of the model, dropout, and whatever else draws numbers leave the order as it is, and the other way round:
    `DataLoader(dataset, sampler=SeedableRandomSampler(dataset, data_seed=7))`. A Trainer tells it the epoch; in a loop
    of your own call `set_epoch`. The idea is Accelerate's.

    Args:
        data_source: the data set, or anything that has its length.
        data_seed: between 0 and 2**64 - 1.

    Raises:
        ValueError: the seed is out of range.
    """

    def __init__(self, data_source: Sized, data_seed: int = 0) -> None:
        if not 0 <= data_seed <= _LARGEST:
            raise ValueError(explain(f"data_seed lies between 0 and {_LARGEST}", got=data_seed))
        self.data_source, self.data_seed, self.epoch = data_source, data_seed, 0

    def set_epoch(self, epoch: int) -> None:
        """Take the number of the epoch that is about to begin."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(stream_seed("order", self.data_seed, self.epoch) & _LARGEST)
        yield from torch.randperm(len(self.data_source), generator=generator).tolist()

    def __len__(self) -> int:
        return len(self.data_source)
