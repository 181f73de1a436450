"""Creating layers without the time their random weights take, where a checkpoint is about to replace them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch.overrides import TorchFunctionMode


class SkipInitialisation(TorchFunctionMode):
    """Context in which `torch.nn.init` leaves tensors as they were allocated: their values are arbitrary."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Pass everything on but the functions of `torch.nn.init`, which return their tensor."""
        named = dict(kwargs or {})
        # Operators reach this method too, and some are of a kind that has no module.
        if getattr(func, "__module__", None) == "torch.nn.init":
            return named["tensor"] if "tensor" in named else args[0]
        return func(*args, **named)
