"""The arithmetic of exact gradient accumulation, once for `Trainer` and `Fabric`.

The gradient of a step is that of `Σ sum / Σ weight` over the micro-batches of its actual window and over all
data-parallel ranks. The denominator is known only when the window is complete. So each backward pass starts from
`sum / (reference · batches)`, and the complete gradient is multiplied once by `reference · batches · ranks / Σ weight`.

The reference is the weight of the window's first micro-batch. Any number would do, but this one keeps gradients at
their usual size, so that fp16 does not overflow; it depends on nothing outside the window, so a resumed run repeats the
same roundings; and where all weights are equal the factor is exactly 1, nothing is multiplied, and the gradient has the
very bits of the loop that people write by hand (`(loss / batches).backward()`).
"""

from __future__ import annotations

import torch
from torch import Tensor

from taskloom.core.errors import explain
from taskloom.core.loss import Loss
from taskloom.strategies.base import Strategy


class WindowWeights:
    """The weights of the micro-batches that one step learns from.

    Args:
        strategy: whose ranks share the window.

    Attributes:
        counted: micro-batches in the window in hand.
    """

    def __init__(self, strategy: Strategy) -> None:
        self._strategy = strategy
        self._ranks = strategy.data_parallel_size
        self._agreed: float | None = None
        self.begin()

    def begin(self, batches: int = 1) -> None:
        """Open a window.

        Args:
            batches: micro-batches that are planned; only the size of the gradients under way depends on it.
        """
        self.counted = 0
        self._batches = batches
        self._kind: type | None = None
        self._dtype = torch.float32
        self._weight: Tensor | float = 0.0
        self._reference: Tensor | float = 1.0

    def add(self, loss: Tensor | Loss, weight: float = 1.0) -> Tensor:
        """Count a micro-batch.

        Args:
            loss: a sum with its weight, or a mean (0-dim).
            weight: what a mean counts for; not used with a `Loss`.

        Returns:
            0-dim tensor that its backward pass starts from.

        Raises:
            TypeError: the window holds losses of both kinds, whose weights do not compare.
            ValueError: the weight is a negative number.
        """
        kind = Loss if isinstance(loss, Loss) else Tensor
        if self._kind is not kind:
            if self._kind is not None:
                raise TypeError(
                    explain(
                        "A window holds plain tensors and Loss(sum, weight)",
                        why="the weight of a plain mean is its micro-batch, that of a Loss what its sum covers",
                        fix="return Loss(sum, weight) for every micro-batch, or a mean for every one",
                    )
                )
            self._kind = kind
        if not isinstance(loss, Loss):
            self._count(weight, loss.dtype)
            # What a mean is divided by where its weight equals the reference is exactly the number of batches.
            divisor = self._reference * self._batches / weight if weight else self._reference * self._batches
            return (loss if divisor == 1.0 else loss / divisor) if weight else loss * 0.0
        own = loss.weight.detach() if isinstance(loss.weight, Tensor) else float(loss.weight)
        self._count(own, loss.sum.dtype)
        return loss.sum / (self._reference * self._batches)

    def _count(self, weight: Tensor | float, dtype: torch.dtype) -> None:
        if not isinstance(weight, Tensor) and weight < 0:
            raise ValueError(negative_weight(weight))
        self._weight = self._weight + weight
        # At least float32, and float64 for losses that are: a division of whole numbers would be rounded to float32.
        self._dtype = torch.promote_types(dtype, torch.float32)
        self.counted += 1
        if self.counted == 1:
            self._reference = self._reference_of(weight)

    def _reference_of(self, weight: Tensor | float) -> Tensor | float:
        if self._ranks > 1:
            # All ranks must divide by the same number, which is agreed on once.
            if self._agreed is None:
                self._agreed = self._strategy.broadcast(max(float(weight), 1.0))
            return self._agreed
        if isinstance(weight, Tensor):
            return torch.where(weight > 0, weight, torch.ones_like(weight))
        return weight or 1.0

    def factor(self) -> Tensor | float | None:
        """Return what the complete gradients are to be multiplied by, None for 1; 0 where the weights sum to 0."""
        if not self.counted:
            return None
        weight = self._weight
        if self._ranks > 1:
            weight = torch.as_tensor(weight, dtype=self._dtype, device=self._strategy.device)
            weight = self._strategy.all_reduce(weight, "sum")
        scale = self._reference * self._batches * self._ranks
        if isinstance(weight, Tensor):
            scale = torch.as_tensor(scale, dtype=self._dtype, device=weight.device)
            return torch.where(weight > 0, scale / weight.to(self._dtype), torch.zeros_like(scale))
        if not weight:
            return 0.0
        return None if scale == weight else float(scale) / weight


def negative_weight(weight: float) -> str:
    """Return the error text for a loss whose weight is below zero."""
    return explain("The weight of a Loss is negative", got=weight, fix="pass how many samples or tokens the sum covers")
