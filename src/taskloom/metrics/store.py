"""`MetricStore`: the slots of a run, filled by `log` and read by flushes and commits."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import numpy
import torch
from torch import Tensor

from taskloom.core.errors import explain
from taskloom.core.loss import Loss
from taskloom.core.transfer import count_samples
from taskloom.metrics.slot import Options, Slot, read_together, reduction_of

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
        suffix: appended to what is logged by batch when there are several loaders, such as `"/dataloader_idx_1"`.
        slots: by the name that was logged, apart for hooks of a batch and of an epoch.
    """

    training: bool
    suffix: str = ""
    slots: dict[Level, dict[str, Slot]] = field(default_factory=lambda: {"batch": {}, "epoch": {}})

    def all_slots(self) -> list[Slot]:
        """Return the slots of both levels."""
        return [*self.slots["batch"].values(), *self.slots["epoch"].values()]


class MetricStore:
    """All metrics of a run.

    It takes values between `enter` and `commit` only: what is logged at another moment would be reported by nothing.

    Attributes:
        batch: the batch in hand, from which the weight of a mean is read when it is needed.
        callback_metrics: the latest value of every name, for callbacks and checkpoints.
        logged_metrics: the same for what goes to loggers, under the loggers' names.
        progress_bar_metrics: the same for the progress bar.
        measured_at: the optimizer step at which each of `callback_metrics` was measured.
    """

    def __init__(self, processes: Processes) -> None:
        self._processes = processes
        self._scopes: dict[str, Scope] = {}
        self._level: Level = "batch"
        self.batch: Any = None
        self.callback_metrics: dict[str, float] = {}
        self.logged_metrics: dict[str, float] = {}
        self.progress_bar_metrics: dict[str, float] = {}
        self.measured_at: dict[str, int] = {}
        self.leave()

    def enter(self, key: str, *, training: bool, suffix: str = "") -> None:
        """Let `log` fill the slots of the scope `key`, made at its first use."""
        scope = self._scopes.setdefault(key, Scope(training))
        scope.suffix = suffix
        self._scope: Scope | None = scope
        self.level = "batch"

    def leave(self) -> None:
        """Take no values until the next `enter`."""
        self._scope = None
        self._slots: dict[str, Slot] = {}

    @property
    def level(self) -> Level:
        """Whether a batch or an epoch is reported on, which decides what `on_step` and `on_epoch` default to."""
        return self._level

    @level.setter
    def level(self, level: Level) -> None:
        self._level = level
        if self._scope is not None:
            self._slots = self._scope.slots[level]

    # Filling ----------------------------------------------------------------------------------------------------------

    def log(self, name: str, value: Any, options: tuple[Any, ...], batch_size: Any) -> None:
        """Remember a value; see `TaskModule.log`."""
        slot = self._slots.get(name)
        if slot is None:
            slot = self._open(name, options)
        elif slot.options != options:
            _adopt_options(slot, options)
        if isinstance(value, Tensor):
            value = _scalar(name, value)
        elif not isinstance(value, (int, float)):
            if isinstance(value, Loss):
                self._log_ratio(slot, value, batch_size)
                return
            if _is_metric(value):
                self._log_metric(slot, value)
                return
            value = _number(name, value)
        if slot.on_step:
            slot.latest, slot.fresh = value, True
        if slot.on_epoch:
            if slot.ratio or slot.metric is not None:
                raise _mixed(slot)
            weight = 1.0 if slot.reduction != "mean" else self._weight(name, batch_size)
            if slot.add(value, weight):
                self._fold(self._slots.values())

    def log_all(self, values: Mapping[str, Any], options: tuple[Any, ...], batch_size: Any) -> None:
        """Remember every value of a mapping; see `TaskModule.log_dict`."""
        torchmetrics = sys.modules.get("torchmetrics")
        items: Iterable[tuple[str, Any]]
        if torchmetrics is not None and isinstance(values, torchmetrics.MetricCollection):
            # Its plain items() copies the states of metrics that share them, every time.
            items = values.items(keep_base=False, copy_state=False)
        else:
            items = values.items()
        for name, value in items:
            self.log(name, value, options, batch_size)

    def _open(self, name: str, options: tuple[Any, ...]) -> Slot:
        scope, wanted = self._scope, Options(*options)
        if scope is None:
            raise RuntimeError(
                explain(
                    f"The metric {name!r} is logged at a moment from which nothing is reported",
                    why="metrics are gathered from on_train_start to on_train_epoch_end, and from on_validation_start "
                    "to on_validation_epoch_end (the same for test), and are final after that",
                    fix="log in one of these hooks, or write to self.logger yourself",
                )
            )
        other: Level = "epoch" if self._level == "batch" else "batch"
        if name in scope.slots[other]:
            raise ValueError(
                explain(
                    f"The metric {name!r} is logged both per batch and in a hook of the whole epoch",
                    why="one name can have one value per epoch only",
                    fix="use two names",
                )
            )
        by_step = scope.training and self._level == "batch"
        on_step = by_step if wanted.on_step is None else wanted.on_step
        on_epoch = not by_step if wanted.on_epoch is None else wanted.on_epoch
        if not on_step and not on_epoch:
            raise ValueError(
                explain(
                    f"The metric {name!r} would be reported neither by step nor by epoch",
                    fix="leave on_step and on_epoch out, or set one of them",
                )
            )
        if on_step and self._level == "epoch":
            raise ValueError(
                explain(
                    f"The metric {name!r} is logged with on_step=True in a hook of the whole epoch",
                    why="there is no step that it belongs to",
                    fix="leave on_step out",
                )
            )
        full_name = name + scope.suffix if self._level == "batch" and wanted.add_dataloader_idx else name
        slot = Slot(name, full_name, options, reduction_of(name, wanted.reduce_fx), on_step, on_epoch)
        self._slots[name] = slot
        return slot

    def _log_ratio(self, slot: Slot, loss: Loss, batch_size: Any) -> None:
        if slot.metric is not None or (slot.seen and not slot.ratio):
            raise _mixed(slot)
        if slot.reduction != "mean" or batch_size is not None:
            raise ValueError(
                explain(
                    f"The metric {slot.name!r} is logged as Loss(sum, weight) with another weight or reduction",
                    got={"reduce_fx": slot.reduction, "batch_size": batch_size},
                    why="its value over an epoch is the sum of the sums over the sum of the weights",
                    fix="leave reduce_fx and batch_size out, or log the plain value",
                )
            )
        slot.ratio = True
        total = _scalar(slot.name, loss.sum)
        weight = _scalar(slot.name, loss.weight) if isinstance(loss.weight, Tensor) else float(loss.weight)
        if slot.on_step:
            empty = not isinstance(weight, Tensor) and not weight
            slot.latest, slot.fresh = float("nan") if empty else total / weight, True
        if slot.on_epoch and slot.add(total, weight):
            self._fold(self._slots.values())

    def _log_metric(self, slot: Slot, metric: Any) -> None:
        if slot.seen or (slot.metric is not None and slot.metric is not metric):
            raise _mixed(slot)
        if slot.metric is None:
            for scope in self._scopes.values():
                shared = next((each for each in scope.all_slots() if each.metric is metric), None)
                if shared is not None and scope is not self._scope:
                    raise ValueError(
                        explain(
                            f"{type(metric).__name__}, logged as {slot.full_name!r}, is the same object that another "
                            f"loop or loader logs as {shared.full_name!r}",
                            why="their values would mix in its state",
                            fix="give each a metric of its own, made with metric.clone()",
                        )
                    )
            slot.metric = metric
        if slot.on_step:
            if metric._forward_cache is None:
                raise ValueError(
                    explain(
                        f"The metric {slot.name!r} has no value for this step",
                        why="on_step reports what calling the metric returned, and it was only updated",
                        fix="call self.metric(preds, target) instead of self.metric.update(...), or pass on_step=False",
                    )
                )
            slot.latest, slot.fresh = _scalar(slot.name, metric._forward_cache), True

    def _weight(self, name: str, batch_size: Any) -> Any:
        if batch_size is not None:
            return batch_size.item() if isinstance(batch_size, Tensor) and batch_size.is_cpu else batch_size
        if self._level == "epoch":
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

    # Continuing -------------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Return what has gathered since the last commit, as plain data; one transfer from the device.

        Without it the epoch values of a run that continues in the middle of an epoch would cover its rest only. Metric
        objects are not in it: see `metric_states`.
        """
        slots = [slot for scope in self._scopes.values() for slot in scope.all_slots() if slot.metric is None]
        fresh = [slot for slot in slots if slot.fresh]
        for slot, value in zip(fresh, self._fold(slots, [slot.latest for slot in fresh]), strict=True):
            slot.latest = value
        return {
            "scopes": [
                {
                    "key": key,
                    "training": scope.training,
                    **{
                        level: [slot.state() for slot in slots.values() if slot.seen or slot.fresh]
                        for level, slots in scope.slots.items()
                    },
                }
                for key, scope in self._scopes.items()
            ]
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from what `state_dict` returned."""
        self._scopes = {saved["key"]: Scope(saved["training"]) for saved in state["scopes"]}
        for saved, scope in zip(state["scopes"], self._scopes.values(), strict=True):
            for level, slots in scope.slots.items():
                slots.update({each["name"]: Slot.from_state(each) for each in saved[level]})
        self.leave()

    # Reading ----------------------------------------------------------------------------------------------------------

    def flush(self, step: int) -> dict[str, float]:
        """Read what was reported by step since the last flush, in one transfer; return what is for the loggers."""
        slots = list(self._scope.slots["batch"].values()) if self._scope is not None else []
        fresh = [slot for slot in slots if slot.fresh]
        reported: dict[str, float] = {}
        for slot, value in zip(fresh, self._fold(slots, [slot.latest for slot in fresh]), strict=True):
            slot.fresh = False
            self._publish(slot, "_step" if slot.on_epoch else "", value, step, reported)
        return reported

    def peek(self) -> dict[str, float]:
        """Return what the progress bar shows now; takes in fresh values only where that waits for nothing."""
        if self._scope is not None:
            for slot in self._scope.slots["batch"].values():
                if slot.fresh and slot.options[0] and not isinstance(slot.latest, Tensor):
                    self.progress_bar_metrics[slot.full_name + ("_step" if slot.on_epoch else "")] = float(slot.latest)
        return self.progress_bar_metrics

    def commit(self, keys: Sequence[str], step: int) -> dict[str, float]:
        """Reduce the epoch's values of some scopes over batches and processes, publish them, and begin the next epoch.

        Where nothing flushes, as in evaluation, the latest value of what is reported by step only is published too.

        Returns:
            Those for the loggers, by name.
        """
        slots = [slot for key in keys if key in self._scopes for slot in self._scopes[key].all_slots()]
        reduced = [slot for slot in slots if slot.on_epoch and slot.metric is None]
        by_metric = [slot for slot in slots if slot.on_epoch and slot.metric is not None and slot.metric.update_called]
        by_step = [slot for slot in slots if slot.fresh and not slot.on_epoch]
        values = [_computed(slot) for slot in by_metric] + [slot.latest for slot in by_step]
        read = dict(zip([*by_metric, *by_step], self._fold(reduced, values), strict=True))
        self._reduce_over_processes(reduced)
        read.update({slot: slot.result() for slot in reduced if slot.seen})
        reported: dict[str, float] = {}
        published: set[str] = set()
        for slot in slots:
            if slot in read:
                if slot.full_name in published:
                    raise _same_name(slot)
                published.add(slot.full_name)
                self._publish(slot, "_epoch" if slot.on_step and slot.on_epoch else "", read[slot], step, reported)
            if slot.metric is not None:
                slot.metric.reset()
            slot.fresh = False
            slot.clear()
        self.leave()
        return reported

    def names_of(self, loop: str) -> set[str]:
        """Return the names of `callback_metrics` that a loop filled, such as `validate` over all of its loaders."""
        slots = [slot for key, scope in self._scopes.items() if key.split("/")[0] == loop for slot in scope.all_slots()]
        forks = {slot.full_name + fork for slot in slots for fork in ("", "_step", "_epoch")}
        return forks & set(self.callback_metrics)

    def forget(self, keys: Sequence[str]) -> None:
        """Drop the values of some scopes, as after a sanity check."""
        for key in keys:
            for slot in self._scopes.pop(key, Scope(training=False)).all_slots():
                if slot.metric is not None:
                    slot.metric.reset()
        self.leave()

    def _publish(self, slot: Slot, fork: str, value: float, step: int, reported: dict[str, float]) -> None:
        name, forked = slot.full_name, slot.full_name + fork
        for each in (name, forked):
            self.callback_metrics[each] = value
            self.measured_at[each] = step
        if slot.options[1]:
            self.logged_metrics[forked] = reported[forked] = value
        if slot.options[0]:
            self.progress_bar_metrics[forked] = value

    def _fold(self, slots: Iterable[Slot], values: Sequence[Any] = ()) -> list[float]:
        """Read what slots hold on a device and fold it into their totals; return `values` read in the same transfer."""
        parts = [(slot, *chunk) for slot in slots for chunk in slot.collect()]
        tensors = [tensor for _, *chunk in parts for tensor in chunk]
        read = iter(read_together(tensors + [value for value in values if isinstance(value, Tensor)]))
        for slot, _, _ in parts:
            slot.fold(next(read).double(), next(read).double())
        return [float(next(read)) if isinstance(value, Tensor) else float(value) for value in values]

    def _reduce_over_processes(self, slots: list[Slot]) -> None:
        if self._processes.data_parallel_size == 1:
            return
        shared = sorted((slot for slot in slots if not slot.options[6]), key=lambda slot: slot.full_name)
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


def _scalar(name: str, value: Tensor) -> Any:
    """Return a single-valued tensor as a number where reading it waits for nothing, else 0-dim, detached, where it is.

    One without a graph is copied on its device: it may be a running total that changes in place until it is read.
    """
    if value.ndim and value.numel() != 1:
        raise TypeError(
            explain(
                f"The metric {name!r} is not a single value",
                got=f"a tensor of shape {tuple(value.shape)}",
                fix="reduce it first, with .mean() for example",
            )
        )
    if value.is_cpu:
        return value.item()
    value = value.detach() if value.requires_grad else value.clone()
    return value.reshape(()) if value.ndim else value


def _is_metric(value: Any) -> bool:
    torchmetrics = sys.modules.get("torchmetrics")
    return torchmetrics is not None and isinstance(value, torchmetrics.Metric)


def _number(name: str, value: Any) -> float:
    """Return a scalar of another library as a number."""
    if not isinstance(value, (str, bytes)):
        with suppress(TypeError, ValueError):
            return float(value.item() if isinstance(value, (numpy.generic, numpy.ndarray)) else value)
    raise TypeError(
        explain(
            f"The metric {name!r} is neither a number, a single-valued tensor nor a torchmetrics.Metric",
            got=value,
            fix="log one number, or several of them by name with self.log_dict",
        )
    )


def _computed(slot: Slot) -> Any:
    value = slot.metric.compute()
    if isinstance(value, Tensor):
        return _scalar(slot.name, value)
    return _number(slot.name, value)


def _adopt_options(slot: Slot, options: tuple[Any, ...]) -> None:
    """Take options that mean the same in other words, such as `torch.max` for `"max"`; refuse all others."""
    before, now = Options(*slot.options), Options(*options)
    if before._replace(reduce_fx=slot.reduction) == now._replace(reduce_fx=reduction_of(slot.name, now.reduce_fx)):
        slot.options = options
        return
    changed = {
        name: (was, is_now) for name, was, is_now in zip(Options._fields, before, now, strict=True) if was != is_now
    }
    raise ValueError(
        explain(
            f"The metric {slot.name!r} is logged with different options",
            got=changed,
            why="one name can have one reduction only, so one of the two would be reported wrongly",
            fix="use two names, or the same options everywhere",
        )
    )


def _mixed(slot: Slot) -> ValueError:
    return ValueError(
        explain(
            f"The metric {slot.name!r} is logged as different kinds of value",
            why="a number, a Loss(sum, weight) and a metric object each reduce over the epoch in their own way",
            fix="use one kind, and one metric object, for one name",
        )
    )


def _same_name(slot: Slot) -> ValueError:
    return ValueError(
        explain(
            f"The metric {slot.full_name!r} is logged for several loaders",
            why="each of them would overwrite the other's value",
            fix="leave add_dataloader_idx=False out, or put the loader's number into the name",
        )
    )
