"""`restore.set`: changing single values of a saved training state, found by their dotted names.

A learning rate is special, because a schedule computes it anew from its base at every step: what is set is the base, of
the groups and of the schedules, and the rate of the moment keeps its relation to it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any

from torch import Tensor

from taskloom.checkpoint.restore import OTHER_NAMES, RestoreReport
from taskloom.core.errors import explain, nearest

_PLACES: Mapping[str, str] = {
    "schedulers": "schedulers",
    "scaler": "precision",
    "loops": "progress",
    "callbacks": "callbacks",
}
"""Where in the state the values of a part are."""

_SCHEDULE = frozenset({"class", "optimizer", "state"})
"""Entries by which the state of a schedule is recognised."""

_SCALED = ("base_lrs", "max_lrs", "_last_lr")
"""Rates by group in the state of torch's schedulers."""


def apply_settings(state: dict[str, Any], settings: Mapping[str, Any], report: RestoreReport) -> list[str]:
    """Change values of a state in place.

    Args:
        state: what a run saved; `optimizers` by name with their groups.
        settings: dotted name to value; texts are read as JSON where they are JSON.
        report: where every change is told.

    Returns:
        What is wrong: names that do not exist, values of another kind.
    """
    problems: list[str] = []
    for key, given in settings.items():
        part, *path = key.split(".")
        part = OTHER_NAMES.get(part, part)
        try:
            if part == "optimizer":
                changed = _set_option(state, path, given)
            else:
                changed = _set_value(state[_PLACES[part]], path, given)
        except (LookupError, ValueError) as error:
            problems.append(f"restore.set: {key}: {error.args[0]}")
            continue
        report.changes.append(("Set", f"{key} {changed}"))
    return problems


def _set_option(state: dict[str, Any], path: Sequence[str], given: Any) -> str:
    """Set an option of the groups: `lr`, `0.lr` of one group, `AdamW.lr` of one optimizer, or `AdamW.0.lr`."""
    optimizers, rest = state["optimizers"], list(path)
    chosen = {rest[0]: optimizers[rest[0]]} if rest and rest[0] in optimizers else optimizers
    rest = rest[1:] if rest and rest[0] in optimizers else rest
    number = int(rest.pop(0)) if rest and rest[0].isdigit() else None
    changes: list[str] = []
    for name, optimizer in chosen.items():
        groups = optimizer["groups"]
        if number is not None and number >= len(groups):
            raise LookupError(
                explain(f"{name} has no group {number}", fix=f"use 0 to {len(groups) - 1}, or leave the number out")
            )
        for position, group in enumerate(groups):
            if number in (None, position):
                changes.append(_set_group(state, name, position, group["options"], ".".join(rest), given))
    if not changes:
        raise LookupError(explain("There is no optimizer in this checkpoint", fix="leave it out"))
    return "; ".join(dict.fromkeys(changes))


def _set_group(
    state: dict[str, Any], optimizer: str, position: int, options: dict[str, Any], name: str, given: Any
) -> str:
    if name not in options:
        raise LookupError(
            explain(
                f"{optimizer} has no option {name!r}",
                got=sorted(options),
                fix=f"optimizer.lr=1e-5, with the name of an option.{nearest(name, [*options, *state['optimizers']])}",
            )
        )
    before = options[name]
    value = fitting(before, given)
    if name != "lr":
        options[name] = value
        return f"{before} to {value}"
    base = float(options.get("initial_lr", before))
    if not base:
        options.update({key: value for key in ("lr", "initial_lr") if key in options})
        return f"{before} to {value}"
    factor = value / base
    for key in ("lr", "initial_lr", "max_lr", "min_lr"):
        if key in options:
            options[key] = options[key] * factor if key != "initial_lr" else value
    if float(before) == base:
        options["lr"] = value  # without a schedule, or before it moved: exactly what was asked for
    for entry in state["schedulers"]:
        if entry.get("optimizer") in (None, optimizer):
            _scale(entry["state"], position, factor, base, value)
    now = options["lr"]
    return f"{_shown(before)} to {_shown(now)}" + (
        f" (the base of its schedule {_shown(base)} to {_shown(value)})" if float(before) != base else ""
    )


def _scale(schedule: Any, position: int, factor: float, base: float, value: float) -> None:
    """Scale the rates of one group in the state of a schedule and of those it consists of."""
    if not isinstance(schedule, dict):
        return
    for key in _SCALED:
        rates = schedule.get(key)
        if isinstance(rates, list) and position < len(rates):
            rates[position] = value if rates[position] == base else rates[position] * factor
    for inner in schedule.get("_schedulers", ()):
        _scale(inner, position, factor, base, value)


def _set_value(container: Any, path: Sequence[str], given: Any) -> str:
    """Set a value below a part of the state; a step of the path is a key, a number, or the beginning of one key."""
    *above, last = _steps(container, path)
    for step in above:
        container = container[step]
    before = container[last]
    container[last] = fitting(before, given)
    return f"{before!r} to {container[last]!r}"


def _steps(container: Any, path: Sequence[str]) -> list[Any]:
    """Return the keys that lead to a value.

    Raises:
        LookupError: there is none; names what there is.
    """
    steps: list[Any] = []
    rest = list(path)
    while rest:
        found = _step(container, rest)
        if found is None:
            known = [str(key) for key in _keys(container)]
            raise LookupError(
                explain(
                    f"There is no {rest[0]!r}" + (f" in {'.'.join(map(str, steps))}" if steps else ""),
                    got=known[:12],
                    fix=f"use one of those.{nearest(rest[0], known)}",
                )
            )
        key, used = found
        steps.append(key)
        container, rest = container[key], rest[used:]
    if not steps or isinstance(container, (dict, list)):
        known = [str(key) for key in _keys(container)]
        raise LookupError(explain("This is not a single value", got=known[:12], fix="name one of those behind a dot"))
    return steps


def _step(container: Any, rest: Sequence[str]) -> tuple[Any, int] | None:
    if isinstance(container, list):
        if rest[0].isdigit() and int(rest[0]) < len(container):
            return int(rest[0]), 1
        of_class = [
            number for number, each in enumerate(container) if isinstance(each, dict) and each.get("class") == rest[0]
        ]
        return (of_class[0], 1) if len(of_class) == 1 else None
    if not isinstance(container, dict):
        return None
    for used in range(len(rest), 0, -1):  # a key may have dots in it
        if ".".join(rest[:used]) in container:
            return ".".join(rest[:used]), used
    if set(container) >= _SCHEDULE:
        found = _step(container["state"], rest)
        if found is not None:
            return "state", 0
    named = [key for key in container if isinstance(key, str) and key.partition("(")[0] == rest[0]]
    return (named[0], 1) if len(named) == 1 else None


def _keys(container: Any) -> Iterable[Any]:
    if isinstance(container, dict):
        return container["state"] if set(container) >= _SCHEDULE else container
    return range(len(container)) if isinstance(container, list) else ()


def fitting(before: Any, given: Any) -> Any:
    """Return a given value as the kind of what it replaces.

    Raises:
        ValueError: it is of another kind.
    """
    value = _read(given) if isinstance(given, str) and not isinstance(before, str) else given
    if isinstance(before, Tensor) and before.numel() == 1:
        before = before.item()
    if isinstance(before, bool) or isinstance(value, bool):
        if isinstance(before, bool) and isinstance(value, bool):
            return value
    elif isinstance(before, float) and isinstance(value, (int, float)):
        return float(value)
    elif isinstance(before, int) and isinstance(value, float) and value.is_integer():
        return int(value)
    elif isinstance(before, tuple) and isinstance(value, (list, tuple)) and len(before) == len(value):
        return tuple(fitting(old, new) for old, new in zip(before, value, strict=True))
    elif before is None or isinstance(value, type(before)):
        return value
    raise ValueError(
        explain("The value is of another kind than the saved one", got=given, fix=f"write one like {before!r}")
    )


def _read(text: str) -> Any:
    for read in (json.loads, float):
        with suppress(ValueError):
            return read(text)
    return text


def _shown(value: Any) -> str:
    return f"{float(value):.6g}"
