"""Batches: moving them to a device without changing what they are, and counting the samples in them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from lightning_utilities.core.apply_func import apply_to_collection


@runtime_checkable
class Movable(Protocol):
    """Anything with `.to(device)`, such as the batch objects of other libraries."""

    def to(self, device: torch.device, non_blocking: bool) -> Any:
        """Return it on `device`."""
        ...


def move_to_device(batch: Any, device: torch.device) -> Any:
    """Return `batch` with every tensor in it on `device`; other values and unknown types stay as they are.

    Collections, named tuples and dataclasses keep their type and every field (Transformers issue 22119: columns that
    disappear). Pinned memory is copied without blocking.
    """

    def move(item: Any) -> Any:
        if isinstance(item, torch.Tensor):
            return item.to(device, non_blocking=device.type == "cuda")
        try:
            return item.to(device, non_blocking=True)
        except TypeError:  # many `.to` methods take the device only
            return item.to(device)

    return apply_to_collection(batch, Movable, move)


def count_samples(batch: Any) -> int | None:
    """Return how many samples a batch holds: the leading dimension that all of its tensors share.

    Returns:
        The count; `None` when there is no tensor with a dimension, or two of them disagree, because a guess there would
        weigh a mean wrongly without a word.
    """
    if isinstance(batch, torch.Tensor):
        return len(batch) if batch.ndim else None
    # This runs once per training batch: a flat collection of tensors, the usual batch, must not pay for a recursion.
    values = batch.values() if isinstance(batch, dict) else batch if isinstance(batch, (list, tuple)) else (batch,)
    count = None
    for value in values:
        if isinstance(value, (str, bytes)):
            return len(batch) if values is batch and count in (None, len(batch)) else None
        sizes = ((len(value),) if value.ndim else ()) if isinstance(value, torch.Tensor) else _leading_dimensions(value)
        for size in sizes:
            if count is not None and size != count:
                return None
            count = size
    return count


def _leading_dimensions(batch: Any) -> Iterator[int]:
    if isinstance(batch, torch.Tensor):
        if batch.ndim:
            yield batch.shape[0]
    elif isinstance(batch, Mapping):
        for value in batch.values():
            yield from _leading_dimensions(value)
    elif isinstance(batch, Sequence) and not isinstance(batch, (str, bytes)):
        if batch and isinstance(batch[0], (str, bytes)):
            yield len(batch)
            return
        for value in batch:
            yield from _leading_dimensions(value)
    elif is_dataclass(batch) and not isinstance(batch, type):
        for each in fields(batch):
            yield from _leading_dimensions(vars(batch).get(each.name))
