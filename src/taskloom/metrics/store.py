"""`MetricStore`: the slots of a run, filled by `log` and read by flushes and commits."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from taskloom.core.errors import explain
from taskloom.core.loss import Loss
from taskloom.core.transfer import count_samples
from taskloom.metrics.slot import Options, Slot, reduction_of

Level = Literal["batch", "epoch"]


class Processes(Protocol):
    """What a store needs of the group of processes; a `Strategy` is one."""

    @property
    def data_parallel_size(self) -> int:
        """Ranks whose values are reduced together."""
        ...

    def all_gather(self, value: Any) -> Any:
        """Gather a tensor of every rank along a new leading dimension."""
        ...


@dataclass
class Scope:
    """The slots of one loop over one loader.

    Attributes:
        training: whether values are reported by step unless they say otherwise.
        suffix: appended to names when there are several loaders, such as `"/dataloader_idx_1"`.
        slots: by the name that was logged.
    """

    training: bool
    suffix: str = ""
    slots: dict[str, Slot] = field(default_factory=dict)


class MetricStore:
    """All metrics of a run.

    Attributes:
        batch: the batch in hand, from which the weight of a mean is read when it is needed.
        level: whether a batch or an epoch is being reported on, which decides what `on_step` and `on_epoch` default to.
        callback_metrics: the latest value of every name, for callbacks and checkpoints.
        logged_metrics: the same for what goes to loggers, under the loggers' names.
        progress_bar_metrics: the same for the progress bar.
        measured_at: the optimizer step at which each of `callback_metrics` was measured.
    """

    def __init__(self, processes: Processes, synchronous: bool) -> None:
        self._processes, self._synchronous = processes, synchronous
        self._scopes: dict[str, Scope] = {}
        self._scope = Scope(training=True)
        self._slots = self._scope.slots
        self.batch: Any = None
        self.level: Level = "batch"
        self.callback_metrics: dict[str, float] = {}
        self.logged_metrics: dict[str, float] = {}
        self.progress_bar_metrics: dict[str, float] = {}
        self.measured_at: dict[str, int] = {}

    def enter(self, key: str, *, training: bool, suffix: str = "") -> None:
        """Let `log` fill the slots of the scope `key`, made at its first use."""
        scope = self._scopes.get(key)
        if scope is None:
            scope = self._scopes[key] = Scope(training, suffix)
        self._scope, self._slots = scope, scope.slots
        self.level = "batch"

    # Filling ----------------------------------------------------------------------------------------------------------

    def log(self, name: str, value: Any, options: tuple[Any, ...], batch_size: Any) -> None:
        """Remember a value; see `TaskModule.log`."""
        slot = self._slots.get(name)
        if slot is None:
            slot = self._open(name, value, options)
        elif slot.options != options:
            self._refuse_change(slot, options)
        if isinstance(value, Tensor):
            if value.ndim and value.numel() != 1:
                raise TypeError(
                    explain(
                        f"The metric {name!r} is not a single value",
                        got=f"a tensor of shape {tuple(value.shape)}",
                        fix="reduce it first, with .mean() for example",
                    )
                )
            if not slot.options[7]:
                # A tensor without a graph may be the user's own running total, changed in place later.
                value = value.detach() if value.requires_grad else value.clone()
            if value.ndim:
                value = value.reshape(())
        elif isinstance(value, Loss):
            self._log_ratio(slot, value)
            return
        elif not isinstance(value, (int, float)):
            value = self._unusual(slot, value)
            if value is None:
                return
        if slot.on_step:
            slot.latest, slot.fresh = value, True
        if slot.on_epoch and slot.metric is None:
            slot.add(value, 1.0 if slot.reduction != "mean" else self._weight(name, batch_size))

    def _open(self, name: str, value: Any, options: tuple[Any, ...]) -> Slot:
        wanted = Options(*options)
        by_step = self._scope.training and self.level == "batch"
        on_step = by_step if wanted.on_step is None else wanted.on_step
        on_epoch = not by_step if wanted.on_epoch is None else wanted.on_epoch
        if not on_step and not on_epoch:
            raise ValueError(
                explain(
                    f"The metric {name!r} would be reported neither by step nor by epoch",
                    fix="leave on_step and on_epoch out, or set one of them",
                )
            )
        slot = self._slots[name] = Slot(name, options, reduction_of(name, wanted.reduce_fx), on_step, on_epoch)
        return slot

    def _refuse_change(self, slot: Slot, options: tuple[Any, ...]) -> None:
        before, now = Options(*slot.options), Options(*options)
        changed = {
            field: (was, is_now)
            for field, was, is_now in zip(Options._fields, before, now, strict=True)
            if was != is_now
        }
        raise ValueError(
            explain(
                f"The metric {slot.name!r} is logged with different options",
                got=changed,
                why="one name can have one reduction only, so one of the two would be reported wrongly",
                fix="use two names, or the same options everywhere",
            )
        )

    def _log_ratio(self, slot: Slot, loss: Loss) -> None:
        if slot.seen and not slot.ratio:
            raise ValueError(
                explain(
                    f"The metric {slot.name!r} is logged as a mean and as Loss(sum, weight)", fix="use one of the two"
                )
            )
        slot.ratio = True
        total = loss.sum.detach()
        weight = loss.weight.detach() if isinstance(loss.weight, Tensor) else float(loss.weight)
        if slot.on_step:
            slot.latest, slot.fresh = total / weight, True
        if slot.on_epoch:
            slot.add(total, weight)

    def _unusual(self, slot: Slot, value: Any) -> Any:
        """Handle what is neither a tensor nor a number: a metric object, or a scalar of another library."""
        torchmetrics = sys.modules.get("torchmetrics")
        if torchmetrics is not None and isinstance(value, torchmetrics.Metric):
            slot.metric = value
            if not slot.on_step:
                return None
            forward = value._forward_cache
            if forward is None:
                raise ValueError(
                    explain(
                        f"The metric {slot.name!r} has no value for this step",
                        why="on_step reports what calling the metric returned, and it was only updated",
                        fix="call self.metric(preds, target) instead of self.metric.update(...), or pass on_step=False",
                    )
                )
            return forward.detach()
        try:
            return float(value)
        except (TypeError, ValueError):
            raise TypeError(
                explain(
                    f"The metric {slot.name!r} is neither a number, a single-valued tensor nor a torchmetrics.Metric",
                    got=value,
                )
            ) from None

    def _weight(self, name: str, batch_size: Any) -> Any:
        if batch_size is not None:
            return batch_size
        if self.level == "epoch":
            return 1.0
        count = count_samples(self.batch)
        if count is None:
            raise ValueError(
                explain(
                    f"The weight of the metric {name!r} cannot be read from the batch",
                    got=type(self.batch).__name__,
                    why="its tensors have no leading dimension in common, so a mean over the epoch would be a guess",
                    fix=f"self.log({name!r}, value, batch_size=...) with the number of samples it averages",
                )
            )
        return count

    # Reading ----------------------------------------------------------------------------------------------------------

    def flush(self, step: int) -> dict[str, float]:
        """Read what was reported by step since the last flush, in one transfer; return what is for the loggers."""
        fresh = [slot for slot in self._slots.values() if slot.fresh]
        read = self._read([slot.latest for slot in fresh])
        self._fold(self._slots.values())
        reported: dict[str, float] = {}
        for slot, value in zip(fresh, read, strict=True):
            slot.fresh = False
            self._publish(slot, "_step" if slot.on_epoch else "", value, step, reported)
        return reported

    def peek(self) -> dict[str, float]:
        """Return what the progress bar shows now; reads fresh values only where that waits for nothing."""
        if self._synchronous:
            for slot in self._slots.values():
                if slot.fresh and slot.options[0]:
                    name = slot.name + self._scope.suffix + ("_step" if slot.on_epoch else "")
                    self.progress_bar_metrics[name] = float(slot.latest)
        return self.progress_bar_metrics

    def commit(self, keys: list[str], step: int) -> dict[str, float]:
        """Reduce the epoch's values of some scopes over batches and processes, publish them, and begin the next epoch.

        Returns:
            Those for the loggers, by name.
        """
        scopes = [self._scopes[key] for key in keys if key in self._scopes]
        slots = [(scope, slot) for scope in scopes for slot in scope.slots.values() if slot.on_epoch]
        self._fold([slot for _, slot in slots])
        self._reduce_over_processes([slot for _, slot in slots if slot.metric is None])
        reported: dict[str, float] = {}
        for scope, slot in slots:
            if slot.metric is not None:
                if not slot.metric.update_called:
                    continue
                value = float(slot.metric.compute())
                slot.metric.reset()
            elif slot.seen:
                value = slot.result()
            else:
                continue
            self._publish(slot, "_epoch" if slot.on_step else "", value, step, reported, scope)
            slot.clear()
        return reported

    def forget(self, keys: list[str]) -> None:
        """Drop the values of some scopes, as after a sanity check."""
        for key in keys:
            for slot in self._scopes.pop(key, Scope(training=False)).slots.values():
                if slot.metric is not None:
                    slot.metric.reset()

    def _publish(
        self, slot: Slot, fork: str, value: float, step: int, reported: dict[str, float], scope: Scope | None = None
    ) -> None:
        suffix = (scope or self._scope).suffix if slot.options[5] else ""
        name = slot.name + suffix
        for each in {name, name + fork}:
            self.callback_metrics[each] = value
            self.measured_at[each] = step
        if slot.options[1]:
            self.logged_metrics[name + fork] = reported[name + fork] = value
        if slot.options[0]:
            self.progress_bar_metrics[name + fork] = value

    def _read(self, values: list[Any]) -> list[float]:
        tensors = [value for value in values if isinstance(value, Tensor)]
        if not tensors or self._synchronous:
            return [float(value) for value in values]
        same = all(tensor.dtype == tensors[0].dtype for tensor in tensors)
        read = iter(torch.stack(tensors if same else [tensor.float() for tensor in tensors]).tolist())
        return [next(read) if isinstance(value, Tensor) else float(value) for value in values]

    def _fold(self, slots: Any) -> None:
        """Bring what the slots hold to the CPU, in one transfer, and fold it into their totals."""
        parts = [(slot, values, weights) for slot in slots for values, weights in slot.collect()]
        if not parts:
            return
        remote = [tensor for _, values, weights in parts for tensor in (values, weights) if tensor.device.type != "cpu"]
        if remote:
            moved = iter(torch.split(torch.cat(remote).cpu(), [len(tensor) for tensor in remote]))
        for slot, values, weights in parts:
            local = [next(moved) if tensor.device.type != "cpu" else tensor for tensor in (values, weights)]
            slot.reduce(local[0].double(), local[1].double())

    def _reduce_over_processes(self, slots: list[Slot]) -> None:
        if self._processes.data_parallel_size == 1:
            return
        shared = sorted((slot for slot in slots if not slot.options[6]), key=lambda slot: slot.name)
        if not shared:
            return
        packed = torch.tensor([[slot.total, slot.weight, float(slot.seen)] for slot in shared], dtype=torch.float64)
        gathered = self._processes.all_gather(packed).cpu()
        combine: dict[str, Callable[[Tensor], Tensor]] = {
            "mean": Tensor.sum,
            "sum": Tensor.sum,
            "min": Tensor.min,
            "max": Tensor.max,
        }
        for number, slot in enumerate(shared):
            slot.total = float(combine[slot.reduction](gathered[:, number, 0]))
            slot.weight = float(gathered[:, number, 1].sum())
            slot.seen = bool(gathered[:, number, 2].any())
