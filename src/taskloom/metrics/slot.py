"""One logged name: its options, its latest value, and what is needed to reduce it over an epoch.

A value on the CPU is folded into the epoch's total at once, in float64. A value on an accelerator is only kept: no
transfer, no wait, because ten metrics that are each read at once stall a device ten times per step (Lightning issue
20995). Totals are a numerator and a denominator: a mean of means is wrong as soon as two batches differ in size.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import reduce
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from taskloom.core.errors import explain

Reduction = Literal["mean", "sum", "min", "max"]
Number = float | int
_CHUNK = 256
# A loader of any length must not fill the device with values, so this many chunks are read without waiting for a flush.
_MOST_CHUNKS = 64

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
    """A name with its latest value and what has gathered since its epoch began.

    Attributes:
        name: that was logged.
        full_name: with the suffix of its loader.
        options: of the first call.
        reduction: over the epoch.
        on_step: report the latest value at each flush.
        on_epoch: report the reduced value at the end of the epoch.
        latest: value, a number or a 0-dim tensor on the device.
        fresh: `latest` has not been reported.
        metric: a `torchmetrics.Metric` that reduces itself, or None.
        ratio: the values are numerators and the weights denominators, from `Loss(sum, weight)`.
        seen: the epoch has a value.
        total: numerator of a mean; else the sum, least or largest value.
        weight: denominator of a mean.
    """

    __slots__ = (
        "chunks",
        "fresh",
        "full_name",
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
        self, name: str, full_name: str, options: tuple[Any, ...], reduction: Reduction, on_step: bool, on_epoch: bool
    ) -> None:
        self.name, self.full_name, self.options, self.reduction = name, full_name, options, reduction
        self.on_step, self.on_epoch = on_step, on_epoch
        self.latest: Any = None
        self.fresh = False
        self.metric: Any = None
        self.ratio = False
        self.clear()

    def clear(self) -> None:
        """Forget the epoch."""
        self.pending: list[Tensor] = []
        self.weights: list[Tensor | Number] = []
        self.chunks: list[tuple[Tensor, Tensor]] = []
        self.total: float = {"min": math.inf, "max": -math.inf}.get(self.reduction, 0.0)
        self.weight: float = 0.0
        self.seen = False

    def add(self, value: Tensor | Number, weight: Tensor | Number) -> bool:
        """Take a value of this epoch into account; `weight` counts for means only.

        Returns:
            Whether so many values wait on the device that they should be read.
        """
        self.seen = True
        if not isinstance(value, Tensor):
            if not isinstance(weight, Tensor):
                self._fold_number(value, weight)
                return False
            value = torch.full_like(weight, value, dtype=torch.promote_types(weight.dtype, torch.float32))
        self.pending.append(value)
        self.weights.append(weight)
        if len(self.pending) == _CHUNK:
            self._close_chunk()
        return len(self.chunks) >= _MOST_CHUNKS

    def collect(self) -> list[tuple[Tensor, Tensor]]:
        """Take the values that are not reduced yet: pairs of 1-dim tensors, values and weights, where they are."""
        if self.pending:
            self._close_chunk()
        taken, self.chunks = self.chunks, []
        return taken

    def fold(self, values: Tensor, weights: Tensor) -> None:
        """Fold values into the epoch's total; both are 1-dim float64 on the CPU."""
        if self.reduction == "mean":
            self.total += float(values.sum() if self.ratio else torch.dot(values, weights))
            self.weight += float(weights.sum())
        elif self.reduction == "sum":
            self.total += float(values.sum())
        else:
            self._fold_number(float(values.min() if self.reduction == "min" else values.max()), 1.0)

    def state(self) -> dict[str, Any]:
        """Return everything but a metric object as data; what waits on a device must have been read before."""
        return {
            "name": self.name,
            "full_name": self.full_name,
            "options": list(Options(*self.options)._replace(reduce_fx=self.reduction)),
            "reduction": self.reduction,
            "on_step": self.on_step,
            "on_epoch": self.on_epoch,
            "latest": float(self.latest) if self.fresh else None,
            "ratio": self.ratio,
            "seen": self.seen,
            "total": self.total,
            "weight": self.weight,
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Slot:
        """Make the slot that `state` returned."""
        names = ("name", "full_name", "reduction", "on_step", "on_epoch")
        made = cls(**{name: state[name] for name in names}, options=tuple(state["options"]))
        made.latest, made.fresh = state["latest"], state["latest"] is not None
        made.ratio, made.seen, made.total, made.weight = (state[name] for name in ("ratio", "seen", "total", "weight"))
        return made

    def result(self) -> float:
        """Return the epoch's value; NaN for a mean whose weights are all zero."""
        if self.reduction == "mean":
            return self.total / self.weight if self.weight else math.nan
        return self.total

    def _fold_number(self, value: Number, weight: Number) -> None:
        if self.reduction == "mean":
            self.total += value if self.ratio else value * weight
            self.weight += weight
        elif self.reduction == "sum":
            self.total += value
        elif math.isnan(value) or math.isnan(self.total):
            self.total = math.nan
        else:
            self.total = (min if self.reduction == "min" else max)(self.total, value)

    def _close_chunk(self) -> None:
        self.chunks.append((_stacked(self.pending), _stacked(self.weights)))
        self.pending, self.weights = [], []


def _stacked(values: list[Tensor] | list[Tensor | Number]) -> Tensor:
    """Join 0-dim tensors and numbers in one 1-dim tensor, on the device, without a copy to or from it."""
    tensors = [value for value in values if isinstance(value, Tensor)]
    if not tensors:
        return torch.tensor(values, dtype=torch.float64)
    # Never float64 unless a value has it: not every device can hold one (R52).
    dtype = reduce(torch.promote_types, (tensor.dtype for tensor in tensors))
    if len(tensors) < len(values):
        dtype = torch.promote_types(dtype, torch.float32)
    device = tensors[0].device
    return torch.stack(
        [
            value.to(dtype) if isinstance(value, Tensor) else torch.full((), value, dtype=dtype, device=device)
            for value in values
        ]
    )


def read_together(tensors: list[Tensor]) -> list[Tensor]:
    """Bring tensors to the CPU, each bit as it is and flat, in one transfer per device whatever their number.

    They travel as bytes, so that dtypes need not be made alike and nothing is rounded.
    """
    flat = [tensor.reshape(-1) for tensor in tensors]
    for device in {tensor.device: None for tensor in flat if not tensor.is_cpu}:
        # Widest first, so that each begins at a multiple of its own width.
        numbers = sorted(
            (number for number, tensor in enumerate(flat) if tensor.device == device),
            key=lambda number: -flat[number].element_size(),
        )
        pieces = [flat[number].contiguous().view(torch.uint8) for number in numbers]
        read = torch.split(torch.cat(pieces).cpu(), [len(piece) for piece in pieces])
        for number, piece in zip(numbers, read, strict=True):
            flat[number] = piece.view(flat[number].dtype)
    return flat
