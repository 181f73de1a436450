"""Exact gradient accumulation in a hand-written loop; the arithmetic is that of `taskloom.strategies.window`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from taskloom.core.errors import explain
from taskloom.core.loss import Loss
from taskloom.strategies import Strategy
from taskloom.strategies.window import WindowWeights


class Window:
    """The weights of the micro-batches that one step learns from.

    Args:
        optimizers: whose gradients accumulate.
        strategy: whose ranks share the window.
    """

    def __init__(self, optimizers: Sequence[Optimizer], strategy: Strategy) -> None:
        self.optimizers = tuple(optimizers)
        self._strategy = strategy
        self._weights = WindowWeights(strategy)

    def add(self, loss: Tensor | Loss) -> Tensor:
        """Count a micro-batch, a plain mean as 1, and return what its backward pass starts from.

        Raises:
            TypeError: some losses of the window are `Loss` and some are plain tensors, whose weights do not compare.
        """
        return self._weights.add(loss)

    def complete(self) -> None:
        """Divide the accumulated gradients by the weight of the window. A weight of zero leaves them zero."""
        factor = self._weights.factor()
        if factor is not None:
            for optimizer in self.optimizers:
                self._strategy.scale_gradients(optimizer, factor)


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
