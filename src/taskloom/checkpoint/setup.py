"""What a run was set up with, kept in its checkpoints, so that a continued run can be told what is different now."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

BOUNDS = ("max_epochs", "max_steps", "max_time")
"""Settings that say when a training ends, and nothing about what is computed until then."""


@dataclass(frozen=True)
class Changes:
    """How two set-ups differ, each difference as `name: before to after`.

    Attributes:
        matter: what changes the numbers that are computed.
        bounds: only when the training ends.
    """

    matter: list[str] = field(default_factory=list)
    bounds: list[str] = field(default_factory=list)


def compare_setups(saved: Mapping[str, Any], now: Mapping[str, Any]) -> Changes:
    """Compare settings by their names; one that either side does not know is no difference.

    Args:
        saved: nested settings of the checkpoint.
        now: those of the run.
    """
    changes = Changes()
    for name, before, after in _pairs(saved, now):
        if not _equal(before, after):
            text = f"{name}: {before!r} to {after!r}"
            (changes.bounds if name in BOUNDS else changes.matter).append(text)
    return changes


def _pairs(saved: Mapping[str, Any], now: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any, Any]]:
    for key, before in saved.items():
        if key not in now:
            continue
        name, after = f"{above}{key}", now[key]
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            yield from _pairs(before, after, f"{name}.")
        else:
            yield name, before, after


def _equal(before: Any, after: Any) -> bool:
    """Whether two values are the same; values that cannot be compared, such as tensors, count by how they read."""
    if repr(before) == repr(after):
        return True
    try:
        return bool(before == after)
    except (TypeError, ValueError, RuntimeError):
        return False
