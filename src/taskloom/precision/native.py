"""One dtype for everything: `32-true`, `64-true`, `bf16-true`, `16-true`.

Outputs of the 16-bit ones are returned in float32, so that a loss computed outside of the model is not rounded again.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal

import torch
from torch import nn

from taskloom.core.errors import explain
from taskloom.precision.base import DtypePolicy, Precision
from taskloom.precision.dtypes import DefaultDtype, cast_buffers, cast_floats, cast_parameters

TrueDtype = Literal["32", "64", "bf16", "16"]
_DTYPES: dict[str, torch.dtype] = {
    "32": torch.float32,
    "64": torch.float64,
    "bf16": torch.bfloat16,
    "16": torch.float16,
}


class NativePrecision(Precision):
    """Weights, gradients, moments and arithmetic in one dtype, without loss scaling.

    Args:
        dtype: which. With "bf16" and "16" small updates are lost to rounding, because no float32 master weights are
            kept.
    """

    def __init__(self, dtype: TrueDtype = "32") -> None:
        if dtype not in _DTYPES:
            raise ValueError(explain(f"NativePrecision has no dtype {dtype!r}", fix=f"use one of {', '.join(_DTYPES)}"))
        self.name = f"{dtype}-true"
        kept = _DTYPES[dtype]
        output = torch.float64 if kept is torch.float64 else torch.float32
        self.policy = DtypePolicy(parameter=kept, compute=kept, reduce=kept, master=kept, buffer=kept, output=output)
        self.wraps_forward = self.converts_input = kept is not torch.float32
        self.converts_output = output is not kept

    @classmethod
    def names(cls) -> tuple[str, ...]:
        """Return the four names."""
        return tuple(f"{dtype}-true" for dtype in _DTYPES)

    @classmethod
    def from_name(cls, name: str) -> NativePrecision:
        """Make `32-true` and the like."""
        dtype: Any = name.removesuffix("-true")
        return cls(dtype)

    def init_context(self) -> AbstractContextManager[Any]:
        """Context in which layers are born in the dtype."""
        return DefaultDtype(self.policy.parameter)

    def convert_module(self, module: nn.Module) -> nn.Module:
        """Bring every floating-point parameter and buffer to the dtype, in place."""
        cast_parameters(module, self.policy.parameter)
        cast_buffers(module, self.policy.buffer)
        return module

    def convert_input(self, batch: Any) -> Any:
        """Bring floating-point tensors to the dtype; under `32-true` a batch is left as it is."""
        return cast_floats(batch, self.policy.compute) if self.converts_input else batch

    def convert_output(self, outputs: Any) -> Any:
        """Bring floating-point outputs of the 16-bit precisions to float32."""
        return cast_floats(outputs, self.policy.output) if self.converts_output else outputs

    def forward_context(self) -> AbstractContextManager[Any]:
        """Context in which tensors that a forward pass creates have the dtype."""
        return DefaultDtype(self.policy.compute) if self.wraps_forward else nullcontext()

    def check(self, module: nn.Module) -> None:
        """Hold the policy against the module's parameters and buffers.

        Raises:
            RuntimeError: one has another dtype; names it.
        """
        tensors = (
            ("parameter", self.policy.parameter, module.named_parameters()),
            ("buffer", self.policy.buffer, module.named_buffers()),
        )
        for kind, dtype, named in tensors:
            for name, tensor in named:
                if tensor.is_floating_point() and tensor.dtype is not dtype:
                    raise RuntimeError(
                        explain(
                            f"The {kind} {name!r} is not what precision {self.name!r} says",
                            got=f"{tensor.dtype} instead of {dtype}",
                            why="something changed it after the module was set up",
                            fix="leave dtypes to the precision, or choose the precision that the model is in",
                        )
                    )
