"""Batches: moving them to a device without changing what they are, and counting the samples in them."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, MutableMapping, MutableSequence, Sequence
from dataclasses import fields, is_dataclass
from typing import Any, Protocol, runtime_checkable

import torch

# From a device to these a copy that does not block could be read before it has arrived.
_BLOCKING = ("cpu", "mps")


@runtime_checkable
class Movable(Protocol):
    """Anything with `.to(device)`, such as the batch objects of other libraries."""

    def to(self, device: torch.device, non_blocking: bool) -> Any:
        """Return it on `device`."""
        ...


@runtime_checkable
class _NamedTuple(Protocol):
    """What `collections.namedtuple` and `typing.NamedTuple` make, subclasses included."""

    def _make(self, values: list[Any]) -> Any: ...


def move_to_device(batch: Any, device: torch.device) -> Any:
    """Return `batch` with every tensor in it on `device`; other values and unknown types stay as they are.

    Collections, named tuples and dataclasses keep their type and every field (Transformers issue 22119: columns that
    disappear). Copies to an accelerator do not block, which is of use where the memory is pinned.
    """
    non_blocking = device.type not in _BLOCKING

    def move(item: Any) -> Any:
        if isinstance(item, torch.Tensor):
            return item.to(device, non_blocking=non_blocking)
        try:
            moved = item.to(device, non_blocking=non_blocking)
        except TypeError:  # many `.to` methods take the device only
            moved = item.to(device)
        return item if moved is None else moved  # a `.to` that changes its object in place may return nothing

    return apply_to_batch(batch, (torch.Tensor, Movable), move)


def apply_to_batch(batch: Any, kinds: tuple[Any, ...], function: Callable[[Any], Any]) -> Any:
    """Return `batch` with `function` applied to every instance of `kinds` in it, at any depth.

    A collection in which something changed is copied with its type, its attributes and its other items; one in which
    nothing did is returned as it is. So nothing has to be known about how a user's type is constructed, which is where
    `lightning_utilities.apply_to_collection` stops at frozen dataclasses, ranges and mappings of other constructors.

    Args:
        batch: any nesting of mappings, sequences, named tuples and dataclasses; other types are left alone.
        kinds: of the leaves to change.
        function: returns what takes a leaf's place, or the leaf itself.
    """
    if isinstance(batch, kinds):
        return function(batch)
    changed = {}
    for key, value in _items(batch):
        new = apply_to_batch(value, kinds, function)
        if new is not value:
            changed[key] = new
    return _with(batch, changed) if changed else batch


def _items(batch: Any) -> Iterator[tuple[Any, Any]]:
    if isinstance(batch, Mapping):
        yield from batch.items()
    elif isinstance(batch, (tuple, MutableSequence)) and not isinstance(batch, bytearray):
        yield from enumerate(batch)
    elif is_dataclass(batch) and not isinstance(batch, type):
        for each in fields(batch):
            yield each.name, getattr(batch, each.name)


def _with(batch: Any, changed: dict[Any, Any]) -> Any:
    """Return a copy of a collection with some of its items replaced."""
    if isinstance(batch, tuple):
        values = [changed.get(number, value) for number, value in enumerate(batch)]
        return batch._make(values) if isinstance(batch, _NamedTuple) else type(batch)(values)
    if isinstance(batch, Mapping) and not isinstance(batch, MutableMapping):
        return type(batch)({**batch, **changed})  # type: ignore[call-arg]  # what every read-only mapping in use accepts
    copied: Any = copy.copy(batch)
    by_item = isinstance(batch, (Mapping, MutableSequence))  # also where it is a dataclass beside, as ModelOutput
    for key, value in changed.items():
        if by_item:
            copied[key] = value
        else:
            object.__setattr__(copied, key, value)  # also where the class is frozen
    return copied


def count_samples(batch: Any) -> int | None:
    """Return how many samples a batch holds: the leading dimension that all of its tensors and lists of texts share.

    Returns:
        The count; `None` when there is no tensor with a dimension, or two of them disagree, because a guess there would
        weigh a mean wrongly without a word. A collection of whole samples whose tensors happen to have the same leading
        dimension (images of three channels) is beyond what can be told; log those with `batch_size=`.
    """
    if isinstance(batch, torch.Tensor):
        return len(batch) if batch.ndim else None
    # This runs once per training batch: a flat collection of tensors, the usual batch, must not pay for a recursion.
    flat = isinstance(batch, (list, tuple))
    if flat and batch and isinstance(batch[0], (str, bytes)) and _is_texts(batch):
        return len(batch)
    count = None
    for value in batch.values() if isinstance(batch, dict) else batch if flat else (batch,):
        for size in value.shape[:1] if isinstance(value, torch.Tensor) else _leading_dimensions(value):
            if count is not None and size != count:
                return None
            count = size
    return count


def _leading_dimensions(batch: Any) -> Iterator[int]:
    if isinstance(batch, torch.Tensor):
        yield from batch.shape[:1]
    elif isinstance(batch, Mapping):
        for value in batch.values():
            yield from _leading_dimensions(value)
    elif isinstance(batch, Sequence) and not isinstance(batch, (str, bytes, range)):
        if batch and _is_texts(batch):
            yield len(batch)
            return
        for value in batch:
            yield from _leading_dimensions(value)
    elif is_dataclass(batch) and not isinstance(batch, type):
        for each in fields(batch):
            yield from _leading_dimensions(getattr(batch, each.name))


def _is_texts(batch: Sequence[Any]) -> bool:
    return all(isinstance(value, (str, bytes)) for value in batch)
