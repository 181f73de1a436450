"""Changing the dtype of what floats, in batches and in modules, and nothing else."""

from __future__ import annotations

from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn

from taskloom.core.transfer import apply_to_batch


class DefaultDtype:
    """Context in which new floating-point tensors have `dtype`."""

    def __init__(self, dtype: torch.dtype) -> None:
        self._dtype = dtype

    def __enter__(self) -> None:
        self._before = torch.get_default_dtype()
        torch.set_default_dtype(self._dtype)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        torch.set_default_dtype(self._before)


def cast_floats(value: Any, dtype: torch.dtype) -> Any:
    """Return `value` with every real floating-point tensor in it in `dtype`; integer, bool and complex tensors stay."""

    def cast(tensor: Tensor) -> Tensor:
        return tensor.to(dtype) if tensor.is_floating_point() else tensor

    return cast(value) if isinstance(value, Tensor) else apply_to_batch(value, (Tensor,), cast)


def cast_parameters(module: nn.Module, dtype: torch.dtype) -> None:
    """Bring the floating-point parameters to `dtype` in place; they stay the same objects, so optimizers keep them."""
    for parameter in module.parameters():
        if parameter.is_floating_point() and parameter.dtype is not dtype:
            parameter.data = parameter.data.to(dtype)
            if parameter.grad is not None:
                parameter.grad = parameter.grad.to(dtype)


def cast_buffers(module: nn.Module, dtype: torch.dtype) -> None:
    """Bring the floating-point buffers to `dtype`; a buffer that several modules share stays shared.

    The states of `torchmetrics` are no buffers, and keep the dtype that their sums need.
    """
    cast: dict[Tensor, Tensor] = {}
    for owner in module.modules():
        for name, buffer in owner.named_buffers(recurse=False):
            if buffer.is_floating_point() and buffer.dtype is not dtype:
                if buffer not in cast:
                    cast[buffer] = buffer.to(dtype)
                setattr(owner, name, cast[buffer])
