"""Fitting saved optimizer state to optimizers that changed since: other groups, names, shapes or settings.

Everything goes by the names of parameters. What fits is restored, the rest begins anew, and whoever restores is told
which is which.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn
from torch.optim import Optimizer

from taskloom.core.errors import explain
from taskloom.optim.groups import group_names

_SCHEDULED = ("lr", "initial_lr", "max_lr", "min_lr", "base_momentum", "max_momentum")
"""Options of a group that belong to the schedule rather than to the optimizer."""


@dataclass
class Fit:
    """Saved state of one optimizer, fitted to the one that is there.

    Attributes:
        state: as `named_optimizer_state` returns it, with the groups of the optimizer that is there.
        keys: name of a tensor now, `<parameter name>.<slot>`, to its name in the checkpoint.
        problems: what does not fit.
        only_saved: parameters whose moments nobody takes.
        only_now: parameters whose moments begin anew.
        another_kind: it was an optimizer of another class, whose state means nothing to this one.
    """

    state: dict[str, Any]
    keys: dict[str, str] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    only_saved: list[str] = field(default_factory=list)
    only_now: list[str] = field(default_factory=list)
    another_kind: bool = False


def fit_optimizer(
    name: str,
    optimizer: Optimizer,
    names: Mapping[nn.Parameter, str],
    saved: Mapping[str, Any],
    *,
    now: Callable[[str], str],
    ignores: Callable[[str], bool],
    keeps_schedule: bool,
) -> Fit:
    """Fit saved state to an optimizer.

    A group takes the options of the saved one that it shares most parameters with; a group that shares none keeps its
    own.

    Args:
        name: of the optimizer, for errors.
        optimizer: that is there.
        names: of its parameters.
        saved: what `named_optimizer_state` returned.
        now: what a stored name of a parameter is called now.
        ignores: whether a parameter's moments are left out.
        keeps_schedule: the learning rates of the optimizer that is there stay, because its schedule is new.
    """
    groups = [[now(each) for each in group["parameters"]] for group in saved["groups"]]
    current = group_names(optimizer, names)
    then, here = ([each for listed in some for each in listed if not ignores(each)] for some in (groups, current))
    fit = Fit({"class": saved.get("class", ""), "groups": [], "parameters": {}})
    fit.only_saved = sorted({*then} - {*here})
    fit.only_now = sorted({*here} - {*then})
    fit.another_kind = saved.get("class", type(optimizer).__name__) != type(optimizer).__name__
    fit.problems = _problems(name, optimizer, saved, fit, groups, current, ignores)
    matched = _matches(current, groups)
    for group, listed, position in zip(optimizer.param_groups, current, matched, strict=True):
        own = {key: value for key, value in group.items() if key != "params"}
        options = own if position is None else dict(saved["groups"][position]["options"])
        if keeps_schedule:
            options.update({key: own[key] for key in _SCHEDULED if key in own})
            options = {key: value for key, value in options.items() if key in own or key not in _SCHEDULED}
        fit.state["groups"].append({"parameters": listed, "options": options})
    wanted = {each for listed in current for each in listed if not ignores(each)}
    for stored, slots in saved["parameters"].items():
        parameter = now(stored)
        if parameter in wanted:
            fit.state["parameters"][parameter] = slots
            fit.keys.update({f"{parameter}.{slot}": f"{stored}.{slot}" for slot in slots["tensors"]})
    return fit


def _matches(current: Sequence[Sequence[str]], saved: Sequence[Sequence[str]]) -> list[int | None]:
    """Return for each current group the saved one with most parameters in common; each saved one is given once."""
    shared = sorted(
        (
            (-len({*listed} & {*other}), number, position)
            for number, listed in enumerate(current)
            for position, other in enumerate(saved)
            if {*listed} & {*other} or (not listed and not other)
        ),
    )
    found: dict[int, int] = {}
    for _, number, position in shared:
        if number not in found and position not in found.values():
            found[number] = position
    return [found.get(number) for number in range(len(current))]


def _problems(
    name: str,
    optimizer: Optimizer,
    saved: Mapping[str, Any],
    fit: Fit,
    groups: Sequence[Sequence[str]],
    current: Sequence[Sequence[str]],
    ignores: Callable[[str], bool],
) -> list[str]:
    kind, fix = type(optimizer).__name__, "return the optimizers that wrote it from configure_optimizers, or "
    if fit.another_kind:
        return [
            explain(
                f"Optimizer {name!r} was a {saved['class']} and is a {kind} now",
                why="the moments of one mean nothing to the other",
                fix=f"{fix}restore.ignore='optimizer' to begin with new moments",
            )
        ]
    listed = [
        f"{label}: {', '.join(found[:5])}" + (f" and {len(found) - 5} more" if len(found) > 5 else "")
        for label, found in (("only in the checkpoint", fit.only_saved), ("only in the optimizer", fit.only_now))
        if found
    ]
    what = f"The groups of optimizer {name!r} do not hold the parameters they were saved with"
    if listed:
        one = (fit.only_saved or fit.only_now)[0]
        return [
            explain(
                what,
                got="; ".join(listed),
                fix=f"{fix}restore.missing='warn' to restore what fits, or restore.ignore='optimizer.{one}'",
            )
        ]
    then, here = (
        {frozenset(each for each in some if not ignores(each)) for some in several} - {frozenset()}
        for several in (groups, current)
    )
    if then != here:
        spread = f"the same parameters are spread over {len(current)} groups in another way than over the saved"
        fix = f"{fix}restore.missing='warn' to restore the moments, and options where most parameters agree"
        return [explain(what, got=f"{spread} {len(groups)}", fix=fix)]
    return []
