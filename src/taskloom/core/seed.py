"""Seeds of every generator a training run draws from."""

from __future__ import annotations

import random
import secrets

import torch

from taskloom.core.errors import explain

_LARGEST = 2**32 - 1


def seed_everything(
    seed: int | None = None, workers: bool = True, *, device_specific: bool = False, rank: int = 0
) -> int:
    """Seed Python, NumPy and torch (all devices) and return the seed that was used.

    Args:
        seed: between 0 and 2**32 - 1; drawn from the operating system when `None`.
        workers: accepted for Lightning's signature. Under a Trainer every batch that a worker makes has streams of its
            own in any case; in a loop of your own torch seeds each worker of each epoch from the main process, and
            `DataLoader(..., worker_init_fn=taskloom.data.seed_worker)` parts them by rank as well.
        device_specific: add the rank to the seed, so that processes draw different numbers.
        rank: of this process, used with `device_specific`.

    Raises:
        ValueError: the seed is out of range.
    """
    import numpy

    del workers
    chosen = secrets.randbelow(_LARGEST) if seed is None else seed
    if not 0 <= chosen <= _LARGEST:
        raise ValueError(
            explain(f"A seed lies between 0 and {_LARGEST}", got=seed, why="NumPy's generators take 32 bits")
        )
    own = (chosen + rank) % (_LARGEST + 1) if device_specific else chosen
    random.seed(own)
    numpy.random.seed(own)
    torch.manual_seed(own)
    return chosen
