"""How many batches a loader has, as far as it says."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from torch.utils.data import DataLoader, IterableDataset


def loader_length(loader: Iterable[Any]) -> float:
    """Return the batches in a loader, `inf` when it has no length."""
    try:
        return len(loader)  # type: ignore[arg-type]  # a loader without a length says so by raising
    except (TypeError, NotImplementedError):
        return math.inf


def is_reliable(loader: Iterable[Any]) -> bool:
    """Return whether the length of a loader tells which batch is the last; that of an iterable data set is a guess."""
    streams = isinstance(loader, DataLoader) and isinstance(loader.dataset, IterableDataset)
    return not streams and not math.isinf(loader_length(loader))
