"""What `configure_optimizers` may return, read into one form. The shapes are Lightning's documented ones."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, get_args, runtime_checkable

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from taskloom.core.errors import explain, nearest

Interval = Literal["epoch", "step"]
_CONFIG_KEYS = ("scheduler", "interval", "frequency", "monitor", "strict", "name", "reduce_on_plateau")
_OPTIMIZER_KEYS = ("optimizer", "lr_scheduler", "monitor")
_SHAPES = (
    "return an optimizer; a list of optimizers; ([optimizers], [schedulers]); "
    "{'optimizer': ..., 'lr_scheduler': ...}; a list of such dicts; or None"
)


@runtime_checkable
class Scheduler(Protocol):
    """Anything that steps and can be saved, as a class of your own may be."""

    def step(self, *args: Any, **kwargs: Any) -> Any:
        """Advance the rate."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Return its state."""
        ...

    def load_state_dict(self, state_dict: Any) -> None:
        """Restore its state."""
        ...


@dataclass
class SchedulerConfig:
    """A scheduler and when it steps.

    Args:
        scheduler: a torch scheduler, or an object of your own with `step`, `state_dict` and `load_state_dict`.
        interval: "epoch", or "step" for optimizer steps.
        frequency: every so many of them.
        monitor: metric that is passed to `scheduler.step`, as `ReduceLROnPlateau` needs it.
        strict: an absent monitored metric is an error; otherwise the step is left out with a warning.
        name: under which the rate is logged.
        reduce_on_plateau: `scheduler.step` takes the monitored metric.
    """

    scheduler: Any
    interval: Interval = "epoch"
    frequency: int = 1
    monitor: str | None = None
    strict: bool = True
    name: str | None = None
    reduce_on_plateau: bool = False

    def __post_init__(self) -> None:
        kind = type(self.scheduler).__name__
        self.reduce_on_plateau = self.reduce_on_plateau or isinstance(self.scheduler, ReduceLROnPlateau)
        if isinstance(self.scheduler, type) or not isinstance(self.scheduler, Scheduler):
            raise TypeError(
                explain(
                    "configure_optimizers returned a scheduler that is none",
                    got=self.scheduler,
                    why="a scheduler has the methods step, state_dict and load_state_dict",
                    fix="return an instance such as torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=100)",
                )
            )
        if self.interval not in get_args(Interval):
            raise ValueError(
                explain(
                    f"The interval of {kind} is none",
                    got=self.interval,
                    fix=f"'epoch' or 'step'.{nearest(str(self.interval), get_args(Interval))}",
                )
            )
        if isinstance(self.frequency, bool) or not isinstance(self.frequency, int) or self.frequency < 1:
            raise ValueError(
                explain(
                    f"The frequency of {kind} is a whole number of at least 1", got=self.frequency, fix="'frequency': 1"
                )
            )
        if self.monitor is not None and not isinstance(self.monitor, str):
            raise TypeError(
                explain(f"The monitor of {kind} is the name of a metric", got=self.monitor, fix="'monitor': 'val/loss'")
            )
        if self.reduce_on_plateau and self.monitor is None:
            raise ValueError(
                explain(
                    f"{kind} has no metric to watch",
                    why="it lowers the rate when a metric stops improving",
                    fix="return {'optimizer': optimizer, 'lr_scheduler': "
                    "{'scheduler': scheduler, 'monitor': 'val/loss'}}",
                )
            )


@dataclass
class OptimizerSetup:
    """What a task trains with.

    Attributes:
        optimizers: in the order they were returned.
        names: of them, each different: the class name, with -1, -2 where it repeats.
        schedulers: with their intervals.
    """

    optimizers: list[Optimizer] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    schedulers: list[SchedulerConfig] = field(default_factory=list)


def parse_optimizers(returned: Any) -> OptimizerSetup:
    """Read what `configure_optimizers` returned.

    Args:
        returned: an optimizer; a list or tuple of them; `([optimizers], [schedulers])`, a scheduler or its dict;
            a dict with `"optimizer"` and optionally `"lr_scheduler"`; a list of such dicts; or None.

    Raises:
        TypeError: it is something else, or holds something else.
        ValueError: a key is unknown, a scheduler lacks what it needs, or a scheduler belongs to another optimizer.
    """
    optimizers: list[Any]
    schedulers: list[SchedulerConfig] = []
    if returned is None:
        optimizers = []
    elif isinstance(returned, Optimizer):
        optimizers = [returned]
    elif isinstance(returned, Mapping):
        optimizers, schedulers = _from_dicts([returned])
    elif isinstance(returned, Sequence) and not isinstance(returned, str):
        optimizers, schedulers = _from_sequence(returned)
    else:
        raise _not_a_shape(returned)
    for optimizer in optimizers:
        if not isinstance(optimizer, Optimizer):
            raise _not_a_shape(optimizer)
    setup = OptimizerSetup(list(optimizers), unique_names(optimizers), schedulers)
    _check_schedulers(setup)
    return setup


def _from_sequence(returned: Sequence[Any]) -> tuple[list[Any], list[SchedulerConfig]]:
    if all(isinstance(item, Mapping) for item in returned) and returned:
        return _from_dicts(returned)
    if len(returned) == 2 and all(isinstance(item, (list, tuple)) for item in returned):
        optimizers, schedulers = returned
        return list(optimizers), [_config(scheduler) for scheduler in schedulers if scheduler is not None]
    if any(isinstance(item, Mapping) for item in returned):
        raise TypeError(
            explain("configure_optimizers returned optimizers and dicts in one list", got=returned, fix=_SHAPES)
        )
    return list(returned), []


def _from_dicts(dicts: Sequence[Mapping[str, Any]]) -> tuple[list[Any], list[SchedulerConfig]]:
    optimizers, schedulers = [], []
    for entry in dicts:
        _check_keys(entry, _OPTIMIZER_KEYS, "An optimizer's dict")
        if "optimizer" not in entry:
            raise ValueError(
                explain("configure_optimizers returned a dict without 'optimizer'", got=sorted(entry), fix=_SHAPES)
            )
        optimizers.append(entry["optimizer"])
        scheduler = entry.get("lr_scheduler")
        if scheduler is not None:
            schedulers.append(_config(scheduler, monitor=entry.get("monitor")))
    return optimizers, schedulers


def _config(scheduler: Any, monitor: str | None = None) -> SchedulerConfig:
    if not isinstance(scheduler, Mapping):
        return SchedulerConfig(scheduler, monitor=monitor)
    _check_keys(scheduler, _CONFIG_KEYS, "A scheduler's dict")
    if "scheduler" not in scheduler:
        raise ValueError(
            explain(
                "A scheduler's dict has no 'scheduler'",
                got=sorted(scheduler),
                fix="{'scheduler': scheduler, 'interval': 'step'}",
            )
        )
    return SchedulerConfig(**{"monitor": monitor, **scheduler})


def _check_keys(given: Mapping[str, Any], known: tuple[str, ...], what: str) -> None:
    for key in given:
        if key not in known:
            raise ValueError(
                explain(f"{what} has no key {key!r}", fix=f"use {', '.join(known)}.{nearest(str(key), known)}")
            )


def _check_schedulers(setup: OptimizerSetup) -> None:
    own = {id(optimizer) for optimizer in setup.optimizers}
    for config in setup.schedulers:
        scheduler = config.scheduler
        if isinstance(scheduler, LRScheduler) and id(scheduler.optimizer) not in own:
            raise ValueError(
                explain(
                    f"{type(scheduler).__name__} steps an optimizer that configure_optimizers did not return",
                    got=type(scheduler.optimizer).__name__,
                    why="it would change the rate of an optimizer that trains nothing",
                    fix="return that optimizer as well, or make the scheduler of the one that is returned",
                )
            )


def unique_names(optimizers: Sequence[Any]) -> list[str]:
    """Return a name for each optimizer: its class name, with -1, -2 where that repeats."""
    kinds = [type(optimizer).__name__ for optimizer in optimizers]
    seen: Counter[str] = Counter()
    names = []
    for kind in kinds:
        names.append(f"{kind}-{seen[kind]}" if seen[kind] else kind)
        seen[kind] += 1
    return names


def _not_a_shape(returned: Any) -> TypeError:
    kind = f"the class {returned.__name__}" if isinstance(returned, type) else type(returned).__name__
    return TypeError(explain("configure_optimizers returned something that is not an optimizer", got=kind, fix=_SHAPES))
