"""In which dtypes a model is kept, computed, reduced and stepped; one file beside this one per family.

The policy is explicit and asserted on the real tensors after wrapping, because a switch of strategy that silently
changes the master or reduction dtype changes the result (Accelerate issue 2624, torchtitan issue 1750).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer


@dataclass(frozen=True)
class DtypePolicy:
    """The dtype of everything that floats.

    Attributes:
        parameter: of the weights the forward pass reads.
        compute: of matrix products.
        reduce: of gradients while they are summed over processes.
        master: of the weights the optimizer updates.
        buffer: of floating-point buffers.
        output: of what the model returns.
    """

    parameter: torch.dtype
    compute: torch.dtype
    reduce: torch.dtype
    master: torch.dtype
    buffer: torch.dtype
    output: torch.dtype

    def __str__(self) -> str:
        usual = Counter(vars(self).values()).most_common(1)[0][0]
        others = [f"{name} {_short(dtype)}" for name, dtype in vars(self).items() if dtype is not usual]
        return f"all {_short(usual)}" + (f" but {', '.join(others)}" if others else "")


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


class Precision(ABC):
    """A dtype policy and how it is carried out. Third parties register one through `taskloom.precisions`.

    The defaults of the methods do nothing, which is right for full precision. The four flags let a hot loop leave out
    what would do nothing; they are constant over the life of the object.

    Attributes:
        name: what a user types.
        policy: the dtypes.
        device_type: torch's name of the device, known once `connect` was called.
        wraps_forward: `forward_context` is not empty.
        converts_input: `convert_input` changes something.
        converts_output: `convert_output` changes something.
        scales_loss: `scale`, `unscale` and `step` do more than pass through, so a step can be skipped.
    """

    name: str
    policy: DtypePolicy
    device_type: str = "cpu"
    wraps_forward: bool = False
    converts_input: bool = False
    converts_output: bool = False
    scales_loss: bool = False

    @classmethod
    @abstractmethod
    def names(cls) -> tuple[str, ...]:
        """Return every text this class answers to, such as `("bf16-mixed", "16-mixed")`."""

    @classmethod
    @abstractmethod
    def from_name(cls, name: str) -> Precision:
        """Make the precision that one of `names` stands for, with its default options."""

    def connect(self, device: torch.device) -> None:
        """Learn on which device this process computes; the strategy calls it once, before anything else is asked."""
        self.device_type = device.type

    def required_dtypes(self) -> tuple[torch.dtype, ...]:
        """Return the dtypes that the accelerator must support."""
        return (self.policy.compute,)

    def init_context(self) -> AbstractContextManager[Any]:
        """Context in which layers are created, so that they are born in the parameter dtype."""
        return nullcontext()

    def convert_module(self, module: nn.Module) -> nn.Module:
        """Bring parameters and buffers to the policy's dtypes, in place, and return the module."""
        return module

    def convert_input(self, batch: Any) -> Any:
        """Bring the floating-point tensors of a batch to the compute dtype where the policy asks for it."""
        return batch

    def convert_output(self, outputs: Any) -> Any:
        """Bring floating-point outputs to the policy's output dtype."""
        return outputs

    def forward_context(self) -> AbstractContextManager[Any]:
        """Context of a forward pass and its loss."""
        return nullcontext()

    def autocast(self, enabled: bool = True, cache_enabled: bool = True) -> AbstractContextManager[Any]:
        """Context in which operations choose the compute dtype, or with `enabled=False` do not.

        Args:
            enabled: False computes in the dtypes of the operands.
            cache_enabled: keep the cast copies of weights until the outermost context ends.
        """
        del cache_enabled
        return self.forward_context() if enabled else nullcontext()

    def scale(self, loss: Tensor) -> Tensor:
        """Return what the backward pass starts from."""
        return loss

    def unscale(self, optimizer: Optimizer) -> None:
        """Bring the gradients of `optimizer` to their true size; harmless when called again before the step."""

    def step(self, optimizer: Optimizer, closure: Callable[[], Any] | None = None) -> bool:
        """Step the optimizer; return False where an overflow made it skip."""
        if closure is None:  # some optimizers take no closure
            optimizer.step()
        else:
            optimizer.step(closure)
        return True

    def check(self, module: nn.Module) -> None:
        """Hold the policy against the module's real tensors.

        Raises:
            RuntimeError: a floating-point parameter or buffer has another dtype; names the first.
        """

    def state_dict(self) -> dict[str, Any]:
        """Return what must survive a restart, such as the loss scale."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned."""

    def __str__(self) -> str:
        return f"{self.name} ({self.policy})"
