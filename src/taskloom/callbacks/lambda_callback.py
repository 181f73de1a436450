"""`LambdaCallback`: functions as hooks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from taskloom.callbacks.base import HOOKS, Callback
from taskloom.core.errors import explain, nearest


class LambdaCallback(Callback):
    """Calls functions at the moments they are given for.

    Args:
        **hooks: a function per hook, taking what the hook takes: `LambdaCallback(on_train_end=lambda trainer, task:
            ...)`.

    Raises:
        ValueError: there is no such hook.
        TypeError: something else than a function was given.
    """

    def __init__(self, **hooks: Callable[..., Any]) -> None:
        for name, function in hooks.items():
            if name not in HOOKS:
                known = ", ".join(HOOKS)
                raise ValueError(
                    explain(f"There is no hook {name!r}", fix=f"use one of {known}.{nearest(name, HOOKS)}")
                )
            if not callable(function):
                raise TypeError(explain(f"The hook {name!r} takes a function", got=function))
            setattr(self, name, function)
