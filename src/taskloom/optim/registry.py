"""torch's optimizers and schedulers by the names people write in configurations."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import Any, Final, Union

import torch
from torch import Tensor
from torch.optim import Optimizer, lr_scheduler

from taskloom.core.errors import explain, nearest

OptimizerFactory = Union[type[Optimizer], Callable[..., Optimizer]]
SchedulerFactory = Callable[..., Any]


def adamw_fused(
    params: Iterable[Any],
    lr: float | Tensor = 1e-3,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 1e-2,
    amsgrad: bool = False,
    maximize: bool = False,
) -> torch.optim.AdamW:
    """`torch.optim.AdamW(fused=True)`: one kernel for all parameters.

    Args:
        params: parameters or groups of them.
        lr: learning rate.
        betas: decay of the two moments.
        eps: added to the denominator.
        weight_decay: decoupled decay.
        amsgrad: use the largest second moment so far.
        maximize: ascend.
    """
    return torch.optim.AdamW(params, lr, betas, eps, weight_decay, amsgrad=amsgrad, maximize=maximize, fused=True)


OPTIMIZERS: Final[Mapping[str, OptimizerFactory]] = MappingProxyType(
    {
        "adadelta": torch.optim.Adadelta,
        "adafactor": torch.optim.Adafactor,
        "adagrad": torch.optim.Adagrad,
        "adam": torch.optim.Adam,
        "adamax": torch.optim.Adamax,
        "adamw": torch.optim.AdamW,
        "adamw_fused": adamw_fused,
        "asgd": torch.optim.ASGD,
        "lbfgs": torch.optim.LBFGS,
        "nadam": torch.optim.NAdam,
        "radam": torch.optim.RAdam,
        "rmsprop": torch.optim.RMSprop,
        "rprop": torch.optim.Rprop,
        "sgd": torch.optim.SGD,
        "sparse_adam": torch.optim.SparseAdam,
    }
)

SCHEDULERS: Final[Mapping[str, SchedulerFactory]] = MappingProxyType(
    {
        "constant": lr_scheduler.ConstantLR,
        "cosine": lr_scheduler.CosineAnnealingLR,
        "cosine_warm_restarts": lr_scheduler.CosineAnnealingWarmRestarts,
        "cyclic": lr_scheduler.CyclicLR,
        "exponential": lr_scheduler.ExponentialLR,
        "lambda": lr_scheduler.LambdaLR,
        "linear": lr_scheduler.LinearLR,
        "multi_step": lr_scheduler.MultiStepLR,
        "multiplicative": lr_scheduler.MultiplicativeLR,
        "one_cycle": lr_scheduler.OneCycleLR,
        "polynomial": lr_scheduler.PolynomialLR,
        "reduce_on_plateau": lr_scheduler.ReduceLROnPlateau,
        "step": lr_scheduler.StepLR,
    }
)


def optimizer_class(name: str) -> OptimizerFactory:
    """Return the class, or the function, that makes the optimizer of that name.

    Raises:
        ValueError: there is none.
    """
    return OPTIMIZERS[_known(name, OPTIMIZERS, "optimizer")]


def scheduler_class(name: str) -> SchedulerFactory:
    """Return the class of the scheduler of that name; called with the optimizer and its own arguments.

    Raises:
        ValueError: there is none.
    """
    return SCHEDULERS[_known(name, SCHEDULERS, "scheduler")]


def _known(name: str, table: Mapping[str, Any], kind: str) -> str:
    if name not in table:
        raise ValueError(
            explain(
                f"There is no {kind} {name!r}",
                fix=f"use one of {', '.join(table)}, or the import path of a class.{nearest(name, table)}",
            )
        )
    return name
