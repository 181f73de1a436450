"""Seeds for what data sets, transforms and collate functions draw at random.

Torch seeds a worker process once, when it starts; what it has drawn by some batch depends on every batch before. Here
each batch has streams of its own, that follow from the epoch and the batch's number: the same whichever worker makes
the batch, however many there are, and after a resume at any batch.

A batch's indices travel to a worker in a queue. They are sent as a `SeededIndices`, which pickle takes apart and puts
together again in the worker, right before the samples are read; putting together seeds the generators and gives the
plain indices. So nothing of the user's is wrapped, and the data set sees what it always saw.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from hashlib import blake2b
from typing import Any, Final, Protocol, runtime_checkable

import numpy
import torch
from torch.utils.data import get_worker_info

from taskloom.data.generators import OwnGenerator, own_generators, search
from taskloom.data.worker_signals import keep_inherited_handler

_QUICKLY_SEARCHED: Final = 50


@runtime_checkable
class OrderedByEpoch(Protocol):
    """A sampler or a data set that asks for the number of the epoch, as torch's `DistributedSampler` does."""

    def set_epoch(self, epoch: int) -> None:
        """Take the number of the epoch that is about to begin."""
        ...


def stream_seed(*parts: Any) -> int:
    """Return a seed of 128 bits that follows from all parts, and is another for any other parts.

    Args:
        parts: numbers, texts, bytes, arrays, tensors, and tuples, lists and dicts of those.
    """
    hashed = blake2b(digest_size=16)
    _feed(hashed.update, parts)
    return int.from_bytes(hashed.digest(), "little")


def _feed(update: Callable[[bytes], None], value: Any) -> None:
    if isinstance(value, torch.Tensor):
        value = value.numpy()
    if isinstance(value, numpy.ndarray):
        update(f"{value.dtype}{value.shape}".encode())
        update(value.tobytes())
    elif isinstance(value, Mapping):
        _feed(update, tuple(value.items()))
    elif isinstance(value, (tuple, list)) and len(value) < 64:
        update(f"({len(value)}".encode())
        for each in value:
            _feed(update, each)
    else:  # also the 625 numbers of Python's generator
        update(f"{value!r};".encode())


def seed_process(seed: int) -> None:
    """Seed Python's, NumPy's and torch's generator on the CPU from 128 bits.

    Unlike `torch.manual_seed`, leaves those of devices alone: samples are made on the CPU.
    """
    random.seed(seed)
    numpy.random.seed(_words(seed))
    torch.default_generator.manual_seed(seed & 0xFFFFFFFFFFFFFFFF)


def _words(seed: int) -> list[int]:
    """Return 128 bits as NumPy takes them, and a number more: Python seeds the same algorithm in the same way."""
    return [*((seed >> shift) & 0xFFFFFFFF for shift in (0, 32, 64, 96)), 1]


def seed_own(generator: OwnGenerator, seed: int) -> None:
    """Seed a generator of the user's from 128 bits."""
    if isinstance(generator, torch.Generator):
        generator.manual_seed(seed & 0xFFFFFFFFFFFFFFFF)
    elif isinstance(generator, random.Random):
        generator.seed(seed)
    elif isinstance(generator, numpy.random.RandomState):
        generator.seed(_words(seed))
    else:
        fresh: Any = type(generator.bit_generator)
        generator.bit_generator.state = fresh(seed).state


class SeededIndices:
    """What a worker is sent: indices, and from what the streams of their batch follow.

    Args:
        indices: as the sampler gave them.
        epoch_seed: of the epoch.
        number: of the batch in its epoch.
        epoch: its number.
    """

    __slots__ = ("_parts",)

    def __init__(self, indices: Any, epoch_seed: int, number: int, epoch: int) -> None:
        self._parts = indices, epoch_seed, number, epoch

    def __reduce__(self) -> Any:
        return arrive, self._parts


class _Here:
    """What this worker process knows of itself: who may own generators, and which batch of which epoch it makes."""

    def __init__(self) -> None:
        self.collate: Any = None
        self.number = self.epoch = -1
        self._own: dict[str, OwnGenerator] = {}
        self._searched_in = -1

    def own(self, dataset: Any) -> dict[str, OwnGenerator]:
        """Return the generators that the data set and the collate function own.

        They are looked for anew in each batch, or in each epoch where there is much to look through.
        """
        if self._searched_in != self.epoch:
            self._own, size = search({"dataset": dataset, "collate_fn": self.collate})
            self._searched_in = self.epoch if size > _QUICKLY_SEARCHED else -1
        return self._own


_here = _Here()


def arrive(indices: Any, epoch_seed: int, number: int, epoch: int) -> Any:
    """Seed this worker for a batch and return the batch's indices.

    Generators that the data set and the collate function own are seeded too: a worker has them as copies, so left alone
    every worker, and every epoch, would draw the same from them. And a data set that wants to know the number of the
    epoch is told here: its copy in a worker that persists does not hear what the main process tells its own.
    """
    seed = batch_seed(epoch_seed, number)
    seed_process(seed)
    worker = get_worker_info()
    if worker is not None:
        if _here.epoch != epoch and isinstance(worker.dataset, OrderedByEpoch):
            worker.dataset.set_epoch(epoch)
        _here.number, _here.epoch = number, epoch
        for name, generator in _here.own(worker.dataset).items():
            seed_own(generator, stream_seed(seed, name))
    return indices


def batch_seed(epoch_seed: int, number: int) -> int:
    """Return the 128 bits that a batch's streams follow from.

    The low 32 are those of the epoch combined with the number, so that they differ for all batches of an epoch: torch's
    generator on the CPU uses no more of its seed.
    """
    mixed = stream_seed(epoch_seed, number)
    return (mixed >> 32 << 32) | ((epoch_seed ^ number) & 0xFFFFFFFF)


def seed_worker(worker_id: int, rank: int = 0) -> None:
    """Seed a loader's worker when it starts: a `worker_init_fn` for loops of your own.

    Streams follow from the seed that torch draws for the epoch, the worker and the rank, each generator another,
    those that the data set owns among them. A Trainer does more: each batch has its own (see the module's text).

    Args:
        worker_id: of this worker.
        rank: of the process that it works for; `functools.partial(seed_worker, rank=fabric.global_rank)`.
    """
    worker = get_worker_info()
    seed = stream_seed(0 if worker is None else worker.seed - worker_id, worker_id, rank)
    seed_process(seed)
    if worker is not None:
        for name, generator in own_generators({"dataset": worker.dataset}).items():
            seed_own(generator, stream_seed(seed, name))


class WorkerStart:
    """A `worker_init_fn` that lets this module know the collate function, and then calls the user's own.

    Args:
        own: the user's, or None.
        collate: the user's collate function.
    """

    def __init__(self, own: Callable[[int], Any] | None, collate: Any) -> None:
        self._own, self._collate = own, collate

    def __call__(self, worker_id: int) -> None:
        """Note the collate function and call the user's own."""
        keep_inherited_handler()
        _here.collate = self._collate
        if self._own is not None:
            self._own(worker_id)


class NumberedCollate:
    """A collate function that returns each batch with its number, for loaders that yield batches as they come.

    Args:
        collate: the user's.
    """

    def __init__(self, collate: Callable[[Any], Any]) -> None:
        self._collate = collate

    def __call__(self, samples: Any) -> tuple[int, Any]:
        """Collate, and say the number of the batch in hand."""
        return _here.number, self._collate(samples)
