"""A training without a model: reads batches from a source, draws random numbers between them, stops and goes on.

What it returns is all that a run could notice: the samples, what was drawn while they were made, and what the training
drew in between. Only data that can be stored as JSON passes from one part of a run to the next.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from taskloom.checkpoint.state import decode_state, encode_state
from taskloom.data.generators import Generators
from taskloom.data.lengths import loader_length
from taskloom.data.sources import source_of

Seen = list[Any]


class Noisy(Dataset):
    """Samples that say their index and what each generator gave them; `reads` counts what this process reads."""

    def __init__(self, length: int = 14, own: bool = False) -> None:
        self.length, self.reads = length, 0
        self.rng = np.random.default_rng(3) if own else None

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: Any) -> list[float]:
        self.reads += 1
        drawn = [float(index), random.random(), np.random.rand(), torch.rand(()).item()]
        return [*drawn, self.rng.random()] if self.rng is not None else drawn


def listed(samples: Any) -> Any:
    """A collate function that leaves samples as they are."""
    return samples


def saved(state: Any) -> Any:
    """Return a state as a checkpoint would give it back."""
    encoded = encode_state(state)
    return decode_state(json.loads(json.dumps(encoded.data)), encoded.tensors)


def train(
    make: Callable[..., Any],
    stops: Sequence[int] = (),
    *,
    epochs: int = 2,
    limit: int | None = None,
    ended: str = "between",
    later: Callable[..., Any] | None = None,
) -> Seen:
    """Train for some epochs in a run that is killed after each of some numbers of steps.

    Args:
        make: builds the loader, in each process anew.
        stops: counted over all epochs.
        epochs: how many.
        limit: batches of an epoch.
        ended: what a checkpoint says of an epoch whose batches are done: `between` that it has ended, `read` that its
            batches are read, `batch` nothing.
        later: builds the loader in processes after the first, if not `make`.
    """
    seed(1)
    seen: Seen = []
    state: Any = None
    for number, stop in enumerate([*stops, None]):
        run = _Process((later if later and number else make)(), epochs, limit, ended)
        state = run.train(seen, state, stop)
        seed(stop or 0)
    return seen


def seed(number: int) -> None:
    random.seed(number)
    np.random.seed(number)
    torch.manual_seed(number)


class _Process:
    """What one process does of a training."""

    def __init__(self, loader: Any, epochs: int, limit: int | None, ended: str) -> None:
        self.generators = Generators()
        self.source = source_of(loader, self.generators)
        self.epochs, self.limit, self.ended = epochs, limit, ended
        self.batches_per_epoch = min(length for length in (limit, loader_length(loader)) if length is not None)

    def train(self, seen: Seen, state: Any, stop: int | None) -> Any:
        """Train until there are `stop` steps, and return a checkpoint."""
        epoch, done = (state["epoch"], state["done"]) if state else (0, 0)
        if state:
            self.source.load_state_dict(state["source"])
            self.generators.restore(state["generators"])
        try:
            for number in range(epoch, self.epochs):
                self.source.begin_epoch(number, resumed=bool(done))
                if not (state and state["read"] and number == epoch):
                    limit = None if self.limit is None else self.limit - done
                    for batch in islice(self.source.batches(done), limit):
                        done += 1
                        seen.append((number, done, batch, random.random(), np.random.rand(), torch.rand(()).item()))
                        if len(seen) == stop:
                            return self._saved(number, done)
                done = 0
        finally:
            self.source.close()
        return None

    def _saved(self, epoch: int, done: int) -> Any:
        ends = done == self.batches_per_epoch
        if ends and self.ended == "between":
            epoch, done = epoch + 1, 0
        return saved(
            {
                "epoch": epoch,
                "done": done,
                "read": ends and self.ended == "read",
                "source": self.source.state_dict(epoch, done),
                "generators": self.generators.states(),
            }
        )
