"""Exact gradient accumulation in a hand-written loop.

The gradient of a step is that of `Σ sum / Σ weight` over the micro-batches of its actual window and over all
data-parallel ranks. The denominator is known when the window is complete. So each backward pass starts from the sum
divided by a reference, and the complete gradient is multiplied once by the reference over `Σ weight`. The reference is
the weight of the window's first micro-batch: any number would do, but this one keeps gradients at their usual size, so
that fp16 does not overflow.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from taskloom.core.errors import explain
from taskloom.core.loss import Loss
from taskloom.strategies import Strategy


class Window:
    """The weights of the micro-batches that one step learns from.

    Args:
        optimizers: whose gradients accumulate.
    """

    def __init__(self, optimizers: Sequence[Optimizer]) -> None:
        self.optimizers = tuple(optimizers)
        self._dtype = torch.float32
        self._weight: Tensor | float = 0.0
        self._reference: Tensor | float = 1.0
        self._kind: type | None = None

    def add(self, loss: Tensor | Loss) -> Tensor:
        """Count a micro-batch and return what its backward pass starts from.

        Raises:
            TypeError: some losses of the window are `Loss` and some are plain tensors, whose weights do not compare.
        """
        kind = Loss if isinstance(loss, Loss) else Tensor
        if self._kind not in (None, kind):
            raise TypeError(
                explain(
                    "A window holds plain tensors and Loss(sum, weight)",
                    why="the weight of a plain mean is one micro-batch, that of a Loss what its sum covers",
                    fix="return Loss(sum, weight) for every micro-batch, or a mean for every one",
                )
            )
        first, self._kind = self._kind is None, kind
        if not isinstance(loss, Loss):
            self._weight += 1.0
            return loss
        weight = loss.weight.detach() if isinstance(loss.weight, Tensor) else float(loss.weight)
        self._weight = self._weight + weight
        # At least float32, and float64 for losses that are: a division of whole numbers would be rounded to float32.
        self._dtype = torch.promote_types(loss.sum.dtype, torch.float32)
        if first:
            self._reference = weight.clamp(min=1) if isinstance(weight, Tensor) else max(weight, 1.0)
        return loss.sum / self._reference

    def complete(self, strategy: Strategy) -> None:
        """Divide the accumulated gradients by the weight of the window. A weight of zero leaves them zero."""
        if self._kind is None:
            return
        weight = self._weight
        if strategy.data_parallel_size > 1:
            # Gradients are averaged over ranks, so the weight has to be.
            weight = strategy.all_reduce(torch.as_tensor(weight, dtype=self._dtype, device=strategy.device), "mean")
        factor: Tensor | float
        if isinstance(weight, Tensor):
            reference = torch.as_tensor(self._reference, dtype=self._dtype, device=weight.device)
            factor = torch.where(weight > 0, reference / weight.to(self._dtype), torch.zeros_like(reference))
        else:
            factor = float(self._reference) / weight if weight else 0.0
        if isinstance(factor, Tensor) or factor != 1.0:
            for optimizer in self.optimizers:
                strategy.scale_gradients(optimizer, factor)


def windows(loader: Iterable[Any], batches: int) -> Iterator[tuple[Any, bool]]:
    """Yield `(batch, complete)`: `complete` tells that a step is due after this micro-batch.

    One batch is read ahead, because only that tells the last one, whatever length the loader claims.

    Args:
        loader: any iterable.
        batches: micro-batches per window; the last window of the loader may be shorter.

    Raises:
        ValueError: `batches` is below 1.
    """
    if batches < 1:
        raise ValueError(explain("A window holds at least one micro-batch", got=batches))
    return _windows(iter(loader), batches)


def _windows(rest: Iterator[Any], batches: int) -> Iterator[tuple[Any, bool]]:
    try:
        batch = next(rest)
    except StopIteration:
        return
    for number, following in enumerate(rest, 1):
        yield batch, number % batches == 0
        batch = following
    yield batch, True
