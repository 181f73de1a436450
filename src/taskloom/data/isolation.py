"""Reading a stream in the main process without touching the random numbers of the training.

A stream is read ahead of the training by a batch, and read again after a resume. If it drew from the generators that
dropout draws from, both would see other numbers after a resume. So every batch of a stream is read under generators of
its own, seeded from the epoch and the batch's number, as those that worker processes make are. Generators of devices
are left alone: reading them would make the device wait.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from taskloom.data.generators import Generators
from taskloom.data.seeding import batch_seed, seed_process

_ON_CPU = Generators()


class Isolated(Iterator[Any]):
    """Batches that are read under generators of their own; those of the process are as before each time.

    Args:
        batches: to read.
        epoch_seed: what the streams of the epoch follow from.
        first: number of the first batch in its epoch.
    """

    def __init__(self, batches: Iterator[Any], epoch_seed: int, first: int = 0) -> None:
        self._batches, self._epoch_seed, self._number = batches, epoch_seed, first

    def __next__(self) -> Any:
        kept = _ON_CPU.states()
        seed_process(batch_seed(self._epoch_seed, self._number))
        self._number += 1
        try:
            return next(self._batches)
        finally:
            _ON_CPU.restore(kept)

    def skip(self) -> None:
        """Read a batch and leave the generators as that left them; for many in a row.

        Raises:
            StopIteration: there is none.
        """
        seed_process(batch_seed(self._epoch_seed, self._number))
        self._number += 1
        next(self._batches)
