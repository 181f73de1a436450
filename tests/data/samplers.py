"""Samplers of every kind that users write: how each comes to its order is what makes it hard, or easy, to resume."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch.utils.data import Sampler


class Own(Sampler[int]):
    """In order; the others differ in `__iter__`."""

    def __init__(self, length: int = 14) -> None:
        self.length = length

    def __iter__(self) -> Iterator[int]:
        return iter(range(self.length))

    def __len__(self) -> int:
        return self.length


class ShufflingAtOnce(Own):
    """Draws when it is asked for an iterator, not with the first index; torch asks twice where there are workers."""

    def __iter__(self) -> Iterator[int]:
        order = list(range(self.length))
        random.shuffle(order)
        np.random.shuffle(order)
        return iter(order)


class DrawingAsItGoes(Own):
    """Without replacement, so that each index depends on what was drawn before."""

    def __iter__(self) -> Iterator[int]:
        left = list(range(self.length))
        while left:
            yield left.pop(random.randrange(len(left)))


class DrawingWithNumPy(Own):
    def __iter__(self) -> Iterator[int]:
        for _ in range(self.length):
            yield int(np.random.randint(self.length))


class WithGenerators(Own):
    """Generators of its own, one of them in a list in an object."""

    def __init__(self, length: int = 14) -> None:
        super().__init__(length)
        self.rng, self.parts = np.random.default_rng(5), {"torch": [torch.Generator().manual_seed(3)]}

    def __iter__(self) -> Iterator[int]:
        for _ in range(self.length):
            drawn = int(self.rng.integers(100)) + int(torch.randint(100, (), generator=self.parts["torch"][0]))
            yield drawn % self.length


class ShufflingInPlace(Own):
    """Each epoch's order is a shuffle of the one before."""

    def __init__(self, length: int = 14) -> None:
        super().__init__(length)
        self.order, self.epochs = list(range(length)), 0

    def __iter__(self) -> Iterator[int]:
        random.shuffle(self.order)
        self.epochs += 1
        return iter(self.order)


class ByEpoch(Own):
    """Its order follows from the number of the epoch alone."""

    epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        return iter(torch.randperm(self.length, generator=torch.Generator().manual_seed(self.epoch)).tolist())


class Counting(Own):
    """Counts its epochs itself."""

    def __init__(self, length: int = 14) -> None:
        super().__init__(length)
        self.seed = 0

    def __iter__(self) -> Iterator[int]:
        self.seed += 1
        return iter(torch.randperm(self.length, generator=torch.Generator().manual_seed(self.seed)).tolist())


class Batches(Sampler[list[int]]):
    """A batch sampler of its own: batches of changing size, drawn as it goes."""

    def __init__(self, length: int = 14) -> None:
        self.length = length

    def __iter__(self) -> Iterator[list[int]]:
        for size in (1, 3, 2, 4, 1, 3):
            yield [random.randrange(self.length) for _ in range(size)]

    def __len__(self) -> int:
        return 6


class WithoutLength:
    """Any iterable is a sampler for torch."""

    def __init__(self, length: int = 14) -> None:
        self.length = length

    def __iter__(self) -> Iterator[Any]:
        return iter(torch.randperm(self.length).tolist())


class FromOutside(Own):
    """Its order follows from what no checkpoint holds."""

    system = random.SystemRandom()

    def __iter__(self) -> Iterator[int]:
        order = list(range(self.length))
        self.system.shuffle(order)
        return iter(order)
