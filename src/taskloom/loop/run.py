"""What one stage of a run (fit, validate, test, predict) works with, gathered once before it starts."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Generator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

from torch import nn

from taskloom.callbacks import Callback
from taskloom.core.hooks import TransferHooks, overridden
from taskloom.core.task import TaskModule
from taskloom.data.generators import Generators
from taskloom.metrics import MetricStore
from taskloom.precision import Precision
from taskloom.report.base import ProgressReporter
from taskloom.strategies import Strategy

if TYPE_CHECKING:
    from taskloom.core.data import DataModule
    from taskloom.trainer import Trainer

Calls = tuple[Callable[..., Any], ...]


class Hooks:
    """The overridden hooks of a run; one that nobody overrides has no calls, so a loop over them costs nothing."""

    def __init__(self, trainer: Trainer, task: TaskModule, callbacks: Sequence[Callback]) -> None:
        self._trainer, self._task, self._callbacks = trainer, task, callbacks

    def of(self, name: str) -> Calls:
        """Return who takes part in a moment: the callbacks in their order, then the task."""
        return self.of_callbacks(name) + self.of_task(name)

    def of_task(self, name: str) -> Calls:
        """Return the task's own hook, if it overrides it."""
        own = overridden(self._task, name, TaskModule)
        return (own,) if own else ()

    def of_callbacks(self, name: str, *, monitoring: bool | None = None) -> Calls:
        """Return the callbacks' hooks; only those of callbacks that monitor a metric, or of the others, where asked."""
        chosen = [
            callback
            for callback in self._callbacks
            if monitoring is None or (callback.monitor is not None) == monitoring
        ]
        methods = [overridden(callback, name, Callback) for callback in chosen]
        return tuple(partial(method, self._trainer, self._task) for method in methods if method)

    def owners(self, *names: str) -> list[Callback]:
        """Return the callbacks that override any of some hooks."""
        return [each for each in self._callbacks if any(overridden(each, name, Callback) for name in names)]


class Run:
    """The parts of a stage.

    Attributes:
        trainer: that started it.
        task: the user's module, unwrapped.
        module: the wrapped module that steps are called through.
        datamodule: the user's, or None.
        strategy: of the graph.
        hooks: who takes part in which moment.
        metrics: what `log` fills.
        reporter: shows progress.
        evaluation_precision: that evaluation runs in; None for the strategy's.
    """

    def __init__(
        self,
        trainer: Trainer,
        task: TaskModule,
        datamodule: DataModule | None,
        hooks: Hooks,
        metrics: MetricStore,
        reporter: ProgressReporter,
        evaluation_precision: Precision | None = None,
    ) -> None:
        self.evaluation_precision = evaluation_precision
        self.trainer, self.task, self.datamodule = trainer, task, datamodule
        self.hooks, self.metrics, self.reporter = hooks, metrics, reporter
        self.strategy: Strategy = trainer.strategy
        self.module: nn.Module = task

    def call(self, name: str, *arguments: Any) -> None:
        """Call a hook that happens once per stage."""
        for hook in self.hooks.of(name):
            hook(*arguments)

    def transfer(self, dataloader_idx: int = 0, *, evaluates: bool = False) -> Callable[[Any], Any] | None:
        """Return what moves a batch to the device, or None where there is nothing to do.

        Args:
            dataloader_idx: number of the loader, passed to the hooks.
            evaluates: the batch is evaluated, not trained on.
        """
        owners = [owner for owner in (self.datamodule, self.task) if owner is not None]

        def own(name: str) -> Callable[..., Any] | None:
            return next((method for owner in owners if (method := overridden(owner, name, TransferHooks))), None)

        before, move, after = (
            own("on_before_batch_transfer"),
            own("transfer_batch_to_device"),
            own("on_after_batch_transfer"),
        )
        precision, device = self._precision(evaluates), self.strategy.device
        stays = device.type == "cpu" and move is None
        if stays and before is None and after is None and not precision.converts_input:
            return None
        mover = move or self.task.transfer_batch_to_device

        def transfer(batch: Any) -> Any:
            if before is not None:
                batch = before(batch, dataloader_idx)
            if not stays:
                batch = mover(batch, device, dataloader_idx)
            if precision.converts_input:
                batch = precision.convert_input(batch)
            return batch if after is None else after(batch, dataloader_idx)

        return transfer

    def bind(self, step: Callable[..., Any], *, evaluates: bool = False) -> Callable[..., Any]:
        """Return how a step of the task is called: through the wrapped module, under the precision's context."""
        bound = self.strategy.bind_step(self.module, step)
        precision = self._precision(evaluates)
        if not precision.wraps_forward:
            return bound

        def under_precision(*arguments: Any) -> Any:
            with precision.forward_context():
                return bound(*arguments)

        return under_precision

    def _precision(self, evaluates: bool) -> Precision:
        return (self.evaluation_precision if evaluates else None) or self.strategy.precision


def fit_arguments(step: Callable[..., Any], most: int) -> Callable[..., Any]:
    """Return `step` taking exactly `most` positional arguments; those it does not declare are dropped.

    Lightning lets `batch_idx` and `dataloader_idx` be left out of a step's signature.
    """
    parameters = inspect.signature(step).parameters.values()
    if any(each.kind is each.VAR_POSITIONAL for each in parameters):
        return step
    takes = sum(each.kind in (each.POSITIONAL_ONLY, each.POSITIONAL_OR_KEYWORD) for each in parameters)
    return step if takes >= most else lambda *arguments: step(*arguments[:takes])


@contextmanager
def modes_kept(module: nn.Module) -> Generator[None, None, None]:
    """Restore train or eval mode of every submodule on leaving, so that layers kept in eval mode stay there."""
    modes = [(each, each.training) for each in module.modules()]
    try:
        yield
    finally:
        for each, training in modes:
            each.training = training


def generators_kept(strategy: Strategy) -> AbstractContextManager[None]:
    """Restore the random generators on leaving, so that evaluating during training does not change what is trained."""
    return Generators(strategy.accelerator, strategy.device).kept()
