"""Which parameters an optimizer's groups mean, by their names in the module, whatever a strategy did to them (R37)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from warnings import warn

from torch import nn
from torch.optim import Optimizer

from taskloom.core.errors import TaskloomWarning, explain

_SHOWN = 5


def parameter_names(module: nn.Module) -> dict[nn.Parameter, str]:
    """Return the name of every parameter of a module; a tied parameter has its first one."""
    return {parameter: name for name, parameter in module.named_parameters()}


def parameters_of(optimizer: Optimizer) -> Iterator[nn.Parameter]:
    """Yield the parameters of all groups in order."""
    for group in optimizer.param_groups:
        yield from group["params"]


def check_groups(module: nn.Module, optimizers: Sequence[Optimizer]) -> None:
    """Hold that every optimized parameter belongs to the module and to one group only.

    Raises:
        ValueError: a parameter is in two groups, or is not the module's.
    """
    names = parameter_names(module)
    owners: dict[nn.Parameter, Optimizer] = {}
    for optimizer in optimizers:
        kind = type(optimizer).__name__
        for parameter in parameters_of(optimizer):
            if parameter not in names:
                raise ValueError(
                    explain(
                        f"{kind} updates a parameter of shape {tuple(parameter.shape)} that is not in the module",
                        why="it is another module's, or the parameter was replaced after the optimizer was made",
                        fix="make the optimizer of the parameters of the module that is set up with it",
                    )
                )
            if parameter in owners:
                other = type(owners[parameter]).__name__
                raise ValueError(
                    explain(
                        f"The parameter {names[parameter]!r} is in two groups, of {other} and of {kind}",
                        why="both would update it and keep moments of it",
                        fix="put every parameter into exactly one group of one optimizer",
                    )
                )
            owners[parameter] = optimizer


def warn_unoptimized(module: nn.Module, optimizers: Iterable[Optimizer]) -> None:
    """Warn of trainable parameters that no optimizer updates."""
    updated = {parameter for optimizer in optimizers for parameter in parameters_of(optimizer)}
    left_out = [
        name for name, parameter in module.named_parameters() if parameter.requires_grad and parameter not in updated
    ]
    if left_out:
        more = f" and {len(left_out) - _SHOWN} more" if len(left_out) > _SHOWN else ""
        warn(
            explain(
                f"{len(left_out)} trainable parameters are in no optimizer: {', '.join(left_out[:_SHOWN])}{more}",
                why="they would keep their first values while gradients are computed for them",
                fix="add them to a group, or freeze them with parameter.requires_grad_(False)",
            ),
            TaskloomWarning,
            stacklevel=2,
        )


def group_names(optimizer: Optimizer, names: Mapping[nn.Parameter, str]) -> list[list[str]]:
    """Return the parameter names of each group."""
    return [[names[parameter] for parameter in group["params"]] for group in optimizer.param_groups]
