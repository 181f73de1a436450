"""One logged name: its options, its latest value, and what is needed to reduce it over an epoch.

Between flushes a slot only keeps references: no transfer, no wait, no arithmetic on the device, because ten metrics
that are
each read at once stall an accelerator twenty times per step (Lightning issue 20995). Sums are formed at the flush, on
the CPU in
float64, as numerator and denominator: a mean of means is wrong as soon as two batches differ in size.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from taskloom.core.errors import explain

Reduction = Literal["mean", "sum", "min", "max"]
_CHUNK = 256

_REDUCTIONS: dict[Any, Reduction] = {
    "mean": "mean",
    "avg": "mean",
    "sum": "sum",
    "min": "min",
    "max": "max",
    torch.mean: "mean",
    torch.sum: "sum",
    torch.min: "min",
    torch.max: "max",
    min: "min",
    max: "max",
    sum: "sum",
}


class Options(NamedTuple):
    """The arguments of `log` that must not change from call to call."""

    prog_bar: bool
    logger: bool
    on_step: bool | None
    on_epoch: bool | None
    reduce_fx: str | Callable[..., Any]
    add_dataloader_idx: bool
    rank_zero_only: bool
    enable_graph: bool


def reduction_of(name: str, reduce_fx: str | Callable[..., Any]) -> Reduction:
    """Return the reduction that `reduce_fx` names.

    Raises:
        ValueError: it is none of mean, sum, min and max.
    """
    try:
        return _REDUCTIONS[reduce_fx]
    except (KeyError, TypeError):
        raise ValueError(
            explain(
                f"The metric {name!r} asks for a reduction that there is not",
                got=reduce_fx,
                why="values of many processes and batches must be reducible pair by pair",
                fix="use 'mean', 'sum', 'min' or 'max', or log a torchmetrics.Metric",
            )
        ) from None


class Slot:
    """A name with its values since the last flush and since the epoch began."""

    __slots__ = (
        "chunks",
        "fresh",
        "latest",
        "metric",
        "name",
        "on_epoch",
        "on_step",
        "options",
        "pending",
        "ratio",
        "reduction",
        "seen",
        "total",
        "weight",
        "weights",
    )

    def __init__(
        self, name: str, options: tuple[Any, ...], reduction: Reduction, on_step: bool, on_epoch: bool
    ) -> None:
        self.name, self.options, self.reduction = name, options, reduction
        self.on_step, self.on_epoch = on_step, on_epoch
        self.latest: Any = None
        self.fresh = False
        self.metric: Any = None
        self.ratio = False
        self.clear()

    def clear(self) -> None:
        """Forget the epoch."""
        self.pending: list[Any] = []
        self.weights: list[Any] = []
        self.chunks: list[tuple[Tensor, Tensor]] = []
        self.total = {"min": math.inf, "max": -math.inf}.get(self.reduction, 0.0)
        self.weight = 0.0
        self.seen = False

    def add(self, value: Any, weight: Any) -> None:
        """Remember a value of this epoch; `weight` counts for means only."""
        self.seen = True
        self.pending.append(value)
        self.weights.append(weight)
        if len(self.pending) >= _CHUNK:
            self.chunks.append((_stacked(self.pending), _stacked(self.weights)))
            self.pending, self.weights = [], []

    def collect(self) -> Sequence[tuple[Tensor, Tensor]]:
        """Take the values that are not reduced yet: pairs of 1-dim tensors, values and weights, where they are."""
        taken = self.chunks
        if self.pending:
            taken.append((_stacked(self.pending), _stacked(self.weights)))
        self.pending, self.weights, self.chunks = [], [], []
        return taken

    def reduce(self, values: Tensor, weights: Tensor) -> None:
        """Fold values into the epoch's total; both are 1-dim float64 on the CPU."""
        if self.reduction == "mean":
            self.total += float(values.sum() if self.ratio else torch.dot(values, weights))
            self.weight += float(weights.sum())
        elif self.reduction == "sum":
            self.total += float(values.sum())
        else:
            extreme = float(values.min() if self.reduction == "min" else values.max())
            better = min if self.reduction == "min" else max
            self.total = math.nan if math.isnan(extreme) or math.isnan(self.total) else better(self.total, extreme)

    def result(self) -> float:
        """Return the epoch's value."""
        if self.reduction == "mean":
            return self.total / self.weight if self.weight else math.nan
        return self.total


def _stacked(values: list[Any]) -> Tensor:
    if all(not isinstance(value, Tensor) for value in values):
        return torch.tensor(values, dtype=torch.float64)
    device = next(value.device for value in values if isinstance(value, Tensor))
    # float64 only where a value has it: not every device can hold one (R52).
    dtype = (
        torch.float64
        if any(isinstance(value, Tensor) and value.dtype == torch.float64 for value in values) or device.type == "cpu"
        else torch.float32
    )
    return torch.stack(
        [
            value.to(dtype) if isinstance(value, Tensor) else torch.tensor(value, dtype=dtype, device=device)
            for value in values
        ]
    )
