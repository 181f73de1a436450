"""Stepping learning-rate schedulers at the interval they declare, whatever the processes or the accumulation."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any
from warnings import warn

from taskloom.core.errors import TaskloomWarning, explain, nearest
from taskloom.core.hooks import overridden
from taskloom.core.progress import Progress
from taskloom.core.task import TaskModule
from taskloom.metrics import MetricStore
from taskloom.optim import SchedulerConfig


class Schedulers:
    """The schedulers of a run.

    Those that watch a metric step when it has been measured anew: by epoch at the epoch's end, by step after a
    validation, or where there is none after every `frequency` optimizer steps. A value is passed on once only, so that
    `patience` counts measurements.

    Args:
        configs: from `configure_optimizers`.
        task: whose `lr_scheduler_step` is used if it overrides it.
        progress: the counters.
        metrics: the values that can be watched.
        validates: whether the run validates.

    Attributes:
        configs: as `configure_optimizers` declared them.
        paused: none of them steps.
    """

    def __init__(
        self,
        configs: Sequence[SchedulerConfig],
        task: TaskModule,
        progress: Progress,
        metrics: MetricStore,
        *,
        validates: bool,
    ) -> None:
        self.configs = list(configs)
        self.paused = False
        self._progress, self._metrics = progress, metrics
        self._step: Callable[[Any, Any], None] | None = overridden(task, "lr_scheduler_step", TaskModule)
        automatic = self.configs if task.automatic_optimization else []
        self._by_step = [config for config in automatic if config.interval == "step" and not config.reduce_on_plateau]
        self._by_epoch = [config for config in automatic if config.interval == "epoch" and not config.reduce_on_plateau]
        watching = [config for config in automatic if config.reduce_on_plateau]
        self._watching_by_epoch = [config for config in watching if config.interval == "epoch"]
        self._watching_by_step = [config for config in watching if config.interval == "step"]
        if not validates:
            self._by_step += self._watching_by_step
        self._used_at: dict[int, int] = {}
        self._checked_at = dict.fromkeys(map(id, self._watching_by_step), 0)

    def seen(self, number: int) -> dict[str, int | None]:
        """Return, as data, up to which step a scheduler has been given what it watches."""
        key = id(self.configs[number])
        return {"used_at": self._used_at.get(key), "checked_at": self._checked_at.get(key)}

    def restore_seen(self, number: int, seen: Mapping[str, int | None]) -> None:
        """Restore what `seen` returned, so that a value which was used before a restart is not used again."""
        key = id(self.configs[number])
        for known, name in ((self._used_at, "used_at"), (self._checked_at, "checked_at")):
            step = seen[name]
            if step is not None:
                known[key] = step

    def after_step(self) -> None:
        """An optimizer step was taken; a skipped one does not come here."""
        for config in self._by_step:
            if self._progress.steps % config.frequency == 0:
                self._advance(config)

    def after_epoch_batches(self) -> None:
        """The last batch of an epoch is done, its validation is to come."""
        for config in self._by_epoch:
            if (self._progress.epochs + 1) % config.frequency == 0:
                self._advance(config)

    def after_validation(self) -> None:
        """A validation during an epoch is done; schedulers that watch a metric by step take it."""
        steps = self._progress.steps
        for config in self._watching_by_step:
            if steps // config.frequency > self._checked_at[id(config)] // config.frequency:
                self._checked_at[id(config)] = steps
                self._advance(config)

    def after_epoch(self) -> None:
        """An epoch and its validation are done, and its metrics are known."""
        for config in self._watching_by_epoch:
            if (self._progress.epochs + 1) % config.frequency == 0:
                self._advance(config)

    def _advance(self, config: SchedulerConfig) -> None:
        if self.paused:
            return
        metric = self._watched(config) if config.reduce_on_plateau else None
        if config.reduce_on_plateau and metric is None:
            return
        if self._step is not None:
            self._step(config.scheduler, metric)
        elif metric is None:
            config.scheduler.step()
        else:
            config.scheduler.step(metric)

    def _watched(self, config: SchedulerConfig) -> float | None:
        name = str(config.monitor)
        known = self._metrics.callback_metrics
        if name in known:
            measured_at = self._metrics.measured_at[name]
            if self._used_at.get(id(config)) == measured_at:
                return None
            self._used_at[id(config)] = measured_at
            return known[name]
        problem = explain(
            f"The scheduler {config.name or type(config.scheduler).__name__} watches {name!r}, which was not logged",
            got=sorted(known),
            fix=f"self.log({name!r}, ...), or correct 'monitor'.{nearest(name, known)}",
        )
        if config.strict:
            raise ValueError(problem)
        warn(problem, TaskloomWarning, stacklevel=2)
        return None
