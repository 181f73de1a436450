"""How a training batch becomes gradients and a step: automatic, through a closure, or by the user's own calls."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from typing import Any
from warnings import warn

import torch
from torch import Tensor
from torch.optim import Optimizer

from taskloom.core.errors import NonFiniteError, TaskloomWarning, explain
from taskloom.core.hooks import overridden
from taskloom.core.policies import DebugOptions, GradientClipping
from taskloom.core.progress import Progress
from taskloom.core.task import TaskModule
from taskloom.loop.run import Run, fit_arguments
from taskloom.loop.schedule import Schedulers
from taskloom.loop.window import Window
from taskloom.optim import OptimizerSetup, TaskOptimizer

_NORM_OPTIONS = (False, True, None, None, "mean", True, False)


class Optimization(ABC):
    """One batch of training.

    Attributes:
        window: the micro-batches of the step in the making.
        completes: the batch in hand, or else the last one, is the last of its window.
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
        self.completes = True
        self.task_optimizers = [
            TaskOptimizer(optimizer, name, self._stepper(name), self._toggled)
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
        self._schedules = bool(schedulers.configs)
        self._watches_backward = bool(self._before_backward or self._after_backward or self._run_backward)
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
        self._can_overflow = run.strategy.precision.scales_loss
        self._needs_closure = {
            name: needs_closure(each) for name, each in zip(self.names, self.optimizers, strict=True)
        }

    @abstractmethod
    def train_batch(self, batch: Any, batch_idx: int, last: bool) -> Any:
        """Train on one batch, `last` of its epoch or not, and return what the training step returned."""

    def finish_epoch(self, batch_idx: int) -> None:
        """Step on a window that the end of an epoch left open: -1 from a hook, or a loader shorter than its length."""

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
        """Clip the gradients of an optimizer, unscaled first, and log their norm where that is asked for."""
        self.run.strategy.unscale_gradients(optimizer)
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

    @contextmanager
    def _toggled(self, optimizer: Optimizer, sync_grad: bool) -> Generator[None, None, None]:
        run = self.run
        with run.task.toggled_optimizer(optimizer), run.strategy.backward_sync(run.module, sync_grad):
            yield

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
        self._show_gradients(optimizer)
        if self._own_clipping is not None:
            self._own_clipping(
                optimizer,
                self.clipping.max_norm or self.clipping.max_value,
                "value" if self.clipping.max_value else "norm",
            )
        elif self.clipping.active:
            self.clip(optimizer, self.clipping)

    def _show_gradients(self, optimizer: Optimizer) -> None:
        """Let hooks and the debug mode see gradients that are complete and have their true size."""
        for hook in self._before_step:
            hook(optimizer)
        if self.debug.check_gradients and not self.run.strategy.precision.scales_loss:
            _check_gradients(self.run.task)

    def _count(self, name: str, stepped: bool) -> None:
        if stepped:
            self.progress.optimizer_steps[name] += 1

    def _end_window(self, stepped: bool) -> None:
        """Count the step of a window, or that none was taken, and open the next."""
        if stepped:
            self.progress.steps += 1
            if self._schedules:
                self.schedulers.after_step()
        else:
            self.progress.skipped_steps += 1
        self.window.reset()


class AutomaticOptimization(Optimization):
    """One optimizer, stepped when a window is complete."""

    def train_batch(self, batch: Any, batch_idx: int, last: bool) -> Any:
        """See the base."""
        window = self.window
        self.completes = complete = window.filled + 1 >= window.batches or last
        if not window.filled:
            self._zero_grad(batch_idx)
        if not complete:
            with self.run.strategy.backward_sync(self.run.module, False):
                return self._accumulate(self._step(batch, batch_idx), batch)
        output = self._accumulate(self._step(batch, batch_idx), batch)
        self._complete()
        return output

    def _accumulate(self, output: Any, batch: Any) -> Any:
        loss = self.window.add(output, batch)
        if loss is not None:
            if self._watches_backward:
                self.backward(loss)
            else:
                self.run.strategy.backward(loss, self.run.module)
        return output

    def finish_epoch(self, batch_idx: int) -> None:
        """See the base."""
        if self.window.filled:
            self._complete()

    def _complete(self) -> None:
        window, optimizer = self.window, self.optimizers[0]
        if not window.stepping:
            self._end_window(stepped=False)
            return
        if self._prepares or window.batches > 1 or window.ranks > 1:
            self._prepare(optimizer)
        stepped = self.run.strategy.step(optimizer)
        self._count(self.names[0], stepped)
        if self._can_overflow:
            self.task_optimizers[0].step_was_skipped = not stepped
            window.judge(stepped)
        self._end_window(stepped)

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
        self._evaluated = 0
        self._output: Any = None
        self._loss: Tensor | None = None
        self._calls = 0

    def train_batch(self, batch: Any, batch_idx: int, last: bool) -> Any:
        """See the base."""
        full = len(self._batches) + 1 >= self.window.batches
        self.completes = full or last
        if not self._batches:
            self._zero_grad(batch_idx)
        self._batches.append((batch, batch_idx))
        if not self.completes:
            with self.run.strategy.backward_sync(self.run.module, False):
                self._evaluate()
        else:
            self._complete(batch_idx, steps=full or self.window.flush_last)
        output, self._output = self._output, None
        return output

    def finish_epoch(self, batch_idx: int) -> None:
        """See the base."""
        if self._batches:
            self._complete(batch_idx, steps=self.window.flush_last)
            self._output = None

    def _complete(self, batch_idx: int, *, steps: bool) -> None:
        before = dict(self.progress.optimizer_steps)
        self._calls = 0
        if not steps:
            self._closure()
        else:
            self.run.task.optimizer_step(self.progress.epochs, batch_idx, self.task_optimizers[0], self._closure)
        if not self._calls:
            raise RuntimeError(
                explain(
                    "optimizer_step did not call its closure",
                    why="the closure runs training_step and the backward pass",
                    fix="call optimizer.step(closure=optimizer_closure), or optimizer_closure() where the optimizer "
                    "shall not step",
                )
            )
        self._batches.clear()
        self._evaluated, self._loss = 0, None
        self._end_window(stepped=self.progress.optimizer_steps != before)

    def _closure(self) -> Tensor | None:
        self._calls += 1
        if self._calls == 1:
            if self._evaluated < len(self._batches):
                self._evaluate()
            return self._window_loss()
        self._zero_grad(self._batches[0][1])
        self._evaluated, self._loss = 0, None
        with self.window.repeating():
            for _ in self._batches:
                self._evaluate()
        return self._window_loss()

    def _window_loss(self) -> Tensor | None:
        """Return the mean loss over the window, which optimizers that search along a line compare."""
        factor = self.window.factor()
        return self._loss if factor is None or self._loss is None else self._loss * factor

    def _evaluate(self) -> None:
        """Run the next micro-batch of the window forward and backward."""
        batch, batch_idx = self._batches[self._evaluated]
        self._evaluated += 1
        with torch.enable_grad():
            self._output = self._step(batch, batch_idx)
            loss = self.window.add(self._output, batch)
            if loss is not None:
                self.backward(loss)
                self._loss = loss.detach() if self._loss is None else self._loss + loss.detach()

    def _task_step(self, name: str, optimizer: Optimizer, closure: Callable[[], Any] | None) -> bool:
        def evaluate_and_prepare() -> Any:
            loss = closure() if closure is not None else None
            if self.window.steps:
                self._prepare(optimizer)
            # An optimizer that evaluates its loss itself compares it; a window without any has none.
            return torch.zeros(()) if loss is None else loss

        if self._needs_closure[name]:
            stepped = self.run.strategy.step(optimizer, evaluate_and_prepare) and self.window.steps
        else:
            evaluate_and_prepare()
            stepped = self.window.steps and self.run.strategy.step(optimizer)
            if self._can_overflow and self.window.steps:
                self.window.judge(stepped)
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
        def evaluate_and_prepare() -> Any:
            loss = None
            if closure is not None:
                with torch.enable_grad():
                    loss = closure()
            self.run.strategy.unscale_gradients(optimizer)
            self._show_gradients(optimizer)
            return loss

        if closure is not None and self._needs_closure[name]:
            stepped = self.run.strategy.step(optimizer, evaluate_and_prepare)
        else:
            evaluate_and_prepare()
            stepped = self.run.strategy.step(optimizer)
        self._count(name, stepped)
        if not stepped:
            self.progress.skipped_steps += 1
        return stepped


class WithoutOptimizer(Optimization):
    """Nothing learns: every batch is a step, so that bounds are reached and logged values have an x."""

    def train_batch(self, batch: Any, batch_idx: int, last: bool) -> Any:
        """See the base."""
        output = self._step(batch, batch_idx)
        self.progress.steps += 1
        return output

    def _task_step(self, name: str, optimizer: Optimizer, closure: Callable[[], Any] | None) -> bool:
        raise NotImplementedError


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
    if not optimizers:
        warn(
            explain(
                f"{type(run.task).__name__} trains without an optimizer, so nothing learns",
                fix="return one from configure_optimizers if that is not meant",
            ),
            TaskloomWarning,
            stacklevel=2,
        )
        return WithoutOptimizer
    if len(optimizers) > 1:
        raise ValueError(
            explain(
                f"{type(run.task).__name__} has {len(optimizers)} optimizers and leaves stepping to the loop",
                why="the loop cannot know which loss each of them minimises",
                fix="set self.automatic_optimization = False in __init__ and step them in training_step",
            )
        )
    if overridden(run.task, "optimizer_step", TaskModule) or needs_closure(optimizers[0]):
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
