"""How a training batch becomes gradients and a step: automatic, through a closure, or by the user's own calls."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from taskloom.core.errors import NonFiniteError, explain
from taskloom.core.hooks import overridden
from taskloom.core.policies import DebugOptions, GradientClipping
from taskloom.core.progress import Progress
from taskloom.core.task import TaskModule
from taskloom.loop.run import Run, fit_arguments
from taskloom.loop.schedule import Schedulers
from taskloom.loop.window import Window
from taskloom.optim import OptimizerSetup, TaskOptimizer

_NO_CONTEXT = nullcontext()
_NORM_OPTIONS = (False, True, None, None, "mean", True, False, False)


class Optimization(ABC):
    """One batch of training.

    Attributes:
        window: the micro-batches of the step in the making.
        optimizers: as the user made them, or as the strategy replaced them.
        task_optimizers: what users are handed: stepping them scales, counts and calls the hooks.
    """

    def __init__(
        self,
        run: Run,
        progress: Progress,
        window: Window,
        setup: OptimizerSetup,
        schedulers: Schedulers,
        clipping: GradientClipping,
        debug: DebugOptions,
    ) -> None:
        self.run, self.progress, self.window = run, progress, window
        self.optimizers: list[Optimizer] = list(setup.optimizers)
        self.names: list[str] = list(setup.names)
        self.schedulers, self.clipping, self.debug = schedulers, clipping, debug
        self.task_optimizers = [
            TaskOptimizer(optimizer, name, self._stepper(name))
            for optimizer, name in zip(self.optimizers, self.names, strict=True)
        ]
        for name in self.names:
            progress.optimizer_steps.setdefault(name, 0)
        hooks, task = run.hooks, run.task
        self._step = run.bind(fit_arguments(task.training_step, 2))
        self._run_backward = overridden(task, "backward", TaskModule)
        self._before_zero_grad = hooks.of("on_before_zero_grad")
        self._before_backward = hooks.of("on_before_backward")
        self._after_backward = hooks.of("on_after_backward")
        self._before_step = hooks.of("on_before_optimizer_step")
        self._own_zero_grad = overridden(task, "optimizer_zero_grad", TaskModule)
        self._own_clipping = overridden(task, "configure_gradient_clipping", TaskModule)
        # What must happen between backward pass and step, decided once so that the usual step pays for nothing.
        self._prepares = bool(
            self._before_step
            or self._own_clipping
            or clipping.active
            or debug.check_gradients
            or run.strategy.precision.scales_loss
        )

    @abstractmethod
    def train_batch(self, batch: Any, batch_idx: int, last: bool) -> Any:
        """Train on one batch, `last` of its epoch or not, and return what the training step returned."""

    def finish_epoch(self, batch_idx: int) -> None:
        """Step on a window that the end of an epoch left open, where the loader ended before its length said."""

    def backward(self, loss: Tensor, *arguments: Any, **keywords: Any) -> None:
        """Run the hooks and the backward pass."""
        for hook in self._before_backward:
            hook(loss)
        own: Callable[[Tensor], None] | None = self._run_backward
        if arguments or keywords:
            method = own or Tensor.backward
            own = lambda scaled: method(scaled, *arguments, **keywords)  # noqa: E731 - one expression that closes over two names
        self.run.strategy.backward(loss, self.run.module, own)
        for after in self._after_backward:
            after()

    def clip(self, optimizer: Optimizer, clipping: GradientClipping) -> None:
        """Clip the gradients of an optimizer, and log their norm where that is asked for."""
        norm = self.run.strategy.clip_gradients(self.run.module, optimizer, clipping)
        if norm is not None and clipping.log_norm:
            name = (
                "grad_norm"
                if len(self.optimizers) == 1
                else f"grad_norm/{self.names[self.optimizers.index(optimizer)]}"
            )
            self.run.metrics.log(name, norm, _NORM_OPTIONS, None)

    def _stepper(self, name: str) -> Callable[[Optimizer, Callable[[], Any] | None], bool]:
        return lambda optimizer, closure: self._task_step(name, optimizer, closure)

    @abstractmethod
    def _task_step(self, name: str, optimizer: Optimizer, closure: Callable[[], Any] | None) -> bool:
        """Step on behalf of a `TaskOptimizer`."""

    def _zero_grad(self, batch_idx: int) -> None:
        for optimizer in self.optimizers:
            for hook in self._before_zero_grad:
                hook(optimizer)
            if self._own_zero_grad is not None:
                self._own_zero_grad(self.progress.epochs, batch_idx, optimizer)
            elif type(optimizer).zero_grad is Optimizer.zero_grad:
                # The same as the optimizer's own method, without its profiler range.
                for group in optimizer.param_groups:
                    for parameter in group["params"]:
                        parameter.grad = None
            else:
                optimizer.zero_grad()

    def _prepare(self, optimizer: Optimizer) -> None:
        """Bring the complete gradients to what the optimizer steps on."""
        strategy = self.run.strategy
        strategy.unscale_gradients(optimizer)
        factor = self.window.factor()
        if factor is not None:
            strategy.scale_gradients(optimizer, factor)
        for hook in self._before_step:
            hook(optimizer)
        if self.debug.check_gradients and not strategy.precision.scales_loss:
            _check_gradients(self.run.task)
        if self._own_clipping is not None:
            self._own_clipping(
                optimizer,
                self.clipping.max_norm or self.clipping.max_value,
                "value" if self.clipping.max_value else "norm",
            )
        elif self.clipping.active:
            self.clip(optimizer, self.clipping)

    def _count(self, name: str, stepped: bool) -> None:
        if stepped:
            self.progress.optimizer_steps[name] += 1


class AutomaticOptimization(Optimization):
    """One optimizer, stepped when a window is complete."""

    def train_batch(self, batch: Any, batch_idx: int, last: bool) -> Any:
        """See the base."""
        window = self.window
        if not window.filled:
            self._zero_grad(batch_idx)
        complete = window.filled + 1 >= window.batches or last
        with _NO_CONTEXT if complete else self.run.strategy.backward_sync(self.run.module, False):
            output = self._step(batch, batch_idx)
            loss = window.add(output, batch)
            if loss is not None:
                self.backward(loss)
        if complete:
            self._complete(flush=window.filled >= window.batches)
        return output

    def finish_epoch(self, batch_idx: int) -> None:
        """See the base."""
        if self.window.filled:
            self._complete(flush=False)

    def _complete(self, flush: bool) -> None:
        window = self.window
        if window.steps and (flush or window.flush_last):
            stepped = True
            for name, optimizer in zip(self.names, self.optimizers, strict=True):
                if self._prepares or window.batches > 1 or window.ranks > 1:
                    self._prepare(optimizer)
                stepped = self.run.strategy.step(optimizer)
                self._count(name, stepped)
            if stepped:
                self.progress.steps += 1
                self.schedulers.after_step()
            else:
                self.progress.skipped_steps += 1
        else:
            self.progress.skipped_steps += 1
        window.reset()

    def _task_step(self, name: str, optimizer: Optimizer, closure: Callable[[], Any] | None) -> bool:
        raise RuntimeError(
            explain(
                "optimizer.step() was called in automatic optimisation",
                why="the loop steps the optimizer when its window is complete",
                fix="remove the call, or set self.automatic_optimization = False in __init__",
            )
        )


class ClosureOptimization(Optimization):
    """For a task that overrides `optimizer_step`, and for optimizers that evaluate the loss themselves (LBFGS).

    The last micro-batch of a window runs inside the closure. Called again, the closure evaluates the whole window anew.
    """

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._batches: list[tuple[Any, int]] = []
        self._needs_closure = needs_closure(self.optimizers[0])
        self._output: Any = None
        self._evaluations = 0

    def train_batch(self, batch: Any, batch_idx: int, last: bool) -> Any:
        """See the base."""
        if not self._batches:
            self._zero_grad(batch_idx)
        self._batches.append((batch, batch_idx))
        if len(self._batches) < self.window.batches and not last:
            with self.run.strategy.backward_sync(self.run.module, False):
                self._evaluate(batch, batch_idx)
            return self._output
        self._evaluations = 0
        before = dict(self.progress.optimizer_steps)
        self.run.task.optimizer_step(self.progress.epochs, batch_idx, self.task_optimizers[0], self._closure)
        if not self._evaluations:
            raise RuntimeError(
                explain(
                    "optimizer_step did not call its closure",
                    why="the closure runs training_step and the backward pass",
                    fix="call optimizer.step(closure=optimizer_closure), or optimizer_closure() where the optimizer "
                    "shall not step",
                )
            )
        if self.progress.optimizer_steps != before:
            self.progress.steps += 1
            self.schedulers.after_step()
        else:
            self.progress.skipped_steps += 1
        self._batches.clear()
        self.window.reset()
        return self._output

    def _closure(self) -> Tensor | None:
        self._evaluations += 1
        if self._evaluations == 1:
            return self._evaluate(*self._batches[-1])
        self.window.reset()
        self._zero_grad(self._batches[0][1])
        losses = [self._evaluate(batch, batch_idx) for batch, batch_idx in self._batches]
        return losses[-1]

    def _evaluate(self, batch: Any, batch_idx: int) -> Tensor | None:
        with torch.enable_grad():
            self._output = self._step(batch, batch_idx)
            loss = self.window.add(self._output, batch)
            if loss is not None:
                self.backward(loss)
        return None if loss is None else loss.detach()

    def _task_step(self, name: str, optimizer: Optimizer, closure: Callable[[], Any] | None) -> bool:
        def evaluate_and_prepare() -> Any:
            loss = closure() if closure is not None else None
            if self.window.steps:
                self._prepare(optimizer)
            return loss

        if self._needs_closure:
            stepped = self.run.strategy.step(optimizer, evaluate_and_prepare)
        else:
            evaluate_and_prepare()
            stepped = self.window.steps and self.run.strategy.step(optimizer)
        self._count(name, stepped)
        return stepped


class ManualOptimization(Optimization):
    """The user calls `manual_backward` and `optimizer.step()`; a batch in which any optimizer stepped is one step."""

    def train_batch(self, batch: Any, batch_idx: int, last: bool) -> Any:
        """See the base."""
        before = sum(self.progress.optimizer_steps.values())
        output = self._step(batch, batch_idx)
        if sum(self.progress.optimizer_steps.values()) != before:
            self.progress.steps += 1
        return output

    def _task_step(self, name: str, optimizer: Optimizer, closure: Callable[[], Any] | None) -> bool:
        strategy = self.run.strategy
        if closure is not None and not needs_closure(optimizer):
            with torch.enable_grad():
                closure()
            closure = None
        if closure is None:
            strategy.unscale_gradients(optimizer)
            for hook in self._before_step:
                hook(optimizer)
        stepped = strategy.step(optimizer, closure)
        self._count(name, stepped)
        if not stepped:
            self.progress.skipped_steps += 1
        return stepped


def needs_closure(optimizer: Optimizer) -> bool:
    """Return whether an optimizer's `step` cannot do without a closure, as that of LBFGS."""
    closure = inspect.signature(type(optimizer).step).parameters.get("closure")
    return closure is not None and closure.default is inspect.Parameter.empty


def choose_optimization(run: Run, optimizers: Sequence[Optimizer]) -> type[Optimization]:
    """Return how a task is optimised.

    Raises:
        ValueError: several optimizers without manual optimisation.
    """
    if not run.task.automatic_optimization:
        return ManualOptimization
    if len(optimizers) > 1:
        raise ValueError(
            explain(
                f"{type(run.task).__name__} has {len(optimizers)} optimizers and leaves stepping to the loop",
                why="the loop cannot know which loss each of them minimises",
                fix="set self.automatic_optimization = False in __init__ and step them in training_step",
            )
        )
    if optimizers and (overridden(run.task, "optimizer_step", TaskModule) or needs_closure(optimizers[0])):
        return ClosureOptimization
    return AutomaticOptimization


def _check_gradients(task: TaskModule) -> None:
    for name, parameter in task.named_parameters():
        if parameter.grad is not None and not torch.isfinite(parameter.grad).all():
            raise NonFiniteError(
                explain(
                    f"The gradient of {name!r} is not finite",
                    why="debug=True checks every gradient before it is clipped or used",
                    fix="look at what the layer gets; DebugOptions(detect_anomaly=True) names the operation",
                )
            )
