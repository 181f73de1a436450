"""What iterating changes in a sampler: a counter that goes up with each epoch, a list that is shuffled in place.

A sampler that keeps such state begins its next epoch from it, so a new process needs it too. Which attributes they are
is found by comparing them with what they were at the start; settings do not change, and are never taken from a
checkpoint. Large ones are recognised when they changed, but not kept: a permutation does not belong in a checkpoint.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final
from zlib import crc32

import numpy
import torch
from torch.utils.data import Sampler

from taskloom.core.errors import CheckpointError, explain

_PLAIN: Final = frozenset({bool, int, float, str, bytes, type(None)})
_KEPT, _SAMPLED = 10_000, 4096


class ChangedAttributes:
    """The attributes of samplers, and which of them are no longer what they were when this was made.

    Args:
        owners: samplers by name; samplers among their attributes belong to them.
    """

    def __init__(self, owners: Mapping[str, Any]) -> None:
        self._owners = _with_inner(owners)
        self._began = self._checksums()

    def state_dict(self) -> dict[str, dict[str, Any]]:
        """Return what has changed: `value` where it is small, and its checksum."""
        now = self._checksums()
        changed = {}
        for way, checksum in now.items():
            if checksum != self._began.get(way):
                value = self._value(way)
                changed[way] = {"checksum": checksum, **({"value": value} if _size(value) <= _KEPT else {})}
        return changed

    def restore(self, state: Mapping[str, Mapping[str, Any]]) -> None:
        """Set what `state_dict` returned.

        Raises:
            CheckpointError: something large had changed, which no checkpoint holds.
        """
        now = self._checksums()
        for way, saved in state.items():
            if now.get(way) == saved["checksum"]:
                continue
            if "value" not in saved:
                raise CheckpointError(
                    explain(
                        f"The order of the training data cannot be continued: {way} is not what it was",
                        why="iterating changes it, so each epoch begins from what the one before left, and it is too "
                        "large to be kept in a checkpoint",
                        fix="let __iter__ work on a copy, so that the order follows from the random generators alone; "
                        "or begin the epoch's data anew with restore.data='restart'",
                    )
                )
            owner, _, name = way.rpartition(".")
            if owner in self._owners:
                vars(self._owners[owner])[name] = _copy(saved["value"])

    def _value(self, way: str) -> Any:
        owner, _, name = way.rpartition(".")
        return _copy(vars(self._owners[owner])[name])

    def _checksums(self) -> dict[str, int]:
        found = {}
        for owner, sampler in self._owners.items():
            for name, value in vars(sampler).items():
                checksum = _checksum(value)
                if checksum is not None:
                    found[f"{owner}.{name}"] = checksum
        return found


def _with_inner(owners: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    waiting, seen = list(owners.items()), set()
    while waiting:
        name, owner = waiting.pop()
        if id(owner) not in seen and "__dict__" in dir(owner):
            seen.add(id(owner))
            found[name] = owner
            waiting += [(f"{name}.{inner}", each) for inner, each in vars(owner).items() if isinstance(each, Sampler)]
    return found


def _size(value: Any) -> int:
    if isinstance(value, (numpy.ndarray, torch.Tensor)):
        return int(value.size if isinstance(value, numpy.ndarray) else value.numel())
    return len(value) if isinstance(value, (list, tuple, set, dict, str, bytes)) else 1


def _copy(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.clone()
    return value.copy() if isinstance(value, (list, set, dict, numpy.ndarray)) else value


def _checksum(value: Any) -> int | None:
    """Return a number that another value very likely has not, None for what is not data.

    Of a long list every n-th element is looked at: one that was shuffled is recognised, and an epoch of ten million
    samples is not held up.
    """
    kind = type(value)
    if kind in _PLAIN:
        return crc32(repr(value).encode())
    if isinstance(value, torch.Tensor):
        value = value.detach().cpu().numpy() if value.dtype != torch.bfloat16 else value.detach().float().cpu().numpy()
    if isinstance(value, numpy.ndarray):
        flat = value.reshape(-1)
        return crc32(numpy.ascontiguousarray(flat[:: max(1, flat.size // _SAMPLED)]).tobytes(), flat.size)
    if kind in (list, tuple):
        parts = value[:: max(1, len(value) // _SAMPLED)]
    elif kind is dict and len(value) <= _SAMPLED:
        parts = [*value.keys(), *value.values()]
    elif kind is set and len(value) <= _SAMPLED:
        parts = sorted(value, key=repr)
    else:
        return None
    if all(type(part) in _PLAIN for part in parts):
        return crc32(repr(parts).encode(), len(value))
    checksums = [_checksum(part) for part in parts]
    return None if None in checksums else crc32(repr(checksums).encode(), len(value))
