"""The part of `Fabric` that turns losses into gradients."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from taskloom.core.errors import explain
from taskloom.core.loss import Loss
from taskloom.core.policies import GradientClipping
from taskloom.fabric.module import FabricModule
from taskloom.fabric.window import Window, windows
from taskloom.optim import TaskOptimizer, parameters_of
from taskloom.precision import Precision
from taskloom.strategies import Strategy


class Training:
    """Backward passes, windows of micro-batches, and what happens to gradients before a step.

    `Fabric` fills the attributes.

    Attributes:
        strategy: that runs backward passes.
        precision: of the computation.
    """

    strategy: Strategy
    precision: Precision
    _optimizers: list[TaskOptimizer]
    _wrapped: nn.Module | None  # the wrapped module, where there is only one
    _window: Window | None
    _open_windows: dict[tuple[int, ...], Window]

    def backward(self, loss: Tensor | Loss, *args: Any, model: FabricModule | None = None, **kwargs: Any) -> None:
        """Run the backward pass, in place of `loss.backward()`.

        Args:
            loss: a 0-dim tensor, the mean over its micro-batch; or `Loss(sum, weight)`, exact under accumulation.
            *args: passed on to `loss.backward`.
            model: that the loss was computed with; strategies with an engine of their own need it if there are several.
            **kwargs: passed on to `loss.backward`, such as `retain_graph`.
        """
        if self._window is not None:
            start = self._window.add(loss)
        elif isinstance(loss, Loss):
            # The mean over all ranks: gradients are averaged over them, so the weight has to be.
            start = loss.sum / self.strategy.all_reduce(loss.weight, "mean")
        else:
            start = loss
        run = None
        if args or kwargs:
            run = lambda scaled: scaled.backward(*args, **kwargs)  # noqa: E731 - closes over both
        self.strategy.backward(start, self._wrapped if model is None else model._wrapped, run)

    def windows(self, loader: Iterable[Any], batches: int) -> Iterator[tuple[Any, bool]]:
        """Yield `(batch, complete)`, where `complete` tells that a step is due after this micro-batch.

        Args:
            loader: any iterable; the last window may be short.
            batches: micro-batches per window.
        """
        return windows(loader, batches)

    @contextmanager
    def accumulate(
        self, model: FabricModule, *optimizers: Optimizer, complete: bool = True
    ) -> Generator[None, None, None]:
        """Context of one micro-batch of a window, around its forward and backward pass.

            for batch, complete in fabric.windows(loader, 4):
                with fabric.accumulate(model, optimizer, complete=complete):
                    fabric.backward(loss_of(model, batch))
                if complete:
                    optimizer.step()
                    optimizer.zero_grad()

        On leaving a complete window its gradients are divided by what the window holds: the sum of the weights of its
        `Loss` objects, or the number of its plain losses, over all ranks. Until then ranks exchange no gradients.

        Args:
            model: that is trained.
            *optimizers: whose gradients accumulate; by default all that train the model.
            complete: this is the last micro-batch of the window.
        """
        trained = set(model.parameters())
        own = [bare(each) for each in optimizers] or [
            each.optimizer for each in self._optimizers if not trained.isdisjoint(parameters_of(each.optimizer))
        ]
        key = tuple(map(id, own))
        outer, window = self._window, self._open_windows.setdefault(key, Window(own, self.strategy))
        self._window = window
        try:
            with self.no_backward_sync(model, enabled=not complete):
                yield
        except BaseException:
            del self._open_windows[key]
            raise
        finally:
            self._window = outer
        if complete:
            del self._open_windows[key]
            for optimizer in own:
                self.strategy.unscale_gradients(optimizer)
            window.complete()

    def no_backward_sync(self, module: FabricModule, enabled: bool = True) -> AbstractContextManager[Any]:
        """Context in which backward passes exchange no gradients between ranks, unless `enabled` is False."""
        return self.strategy.backward_sync(module._wrapped, not enabled)

    def unscale_gradients(self, optimizer: Optimizer) -> None:
        """Bring gradients to their true size under a loss scale, before they are looked at. Harmless when repeated."""
        self.strategy.unscale_gradients(bare(optimizer))

    def clip_gradients(
        self,
        module: FabricModule,
        optimizer: Optimizer,
        clip_val: float | None = None,
        max_norm: float | None = None,
        norm_type: float = 2.0,
        error_if_nonfinite: bool = False,
    ) -> Tensor | None:
        """Clip the gradients of an optimizer's parameters, after undoing the loss scale.

        Args:
            module: that the optimizer trains.
            optimizer: whose gradients.
            clip_val: largest absolute value of an element; or
            max_norm: largest joint norm of all of the optimizer's gradients.
            norm_type: p of the norm.
            error_if_nonfinite: raise before anything is changed if the norm is NaN or infinite; waits for the device.

        Returns:
            The norm before clipping, 0-dim on the device; None where `clip_val` is given.

        Raises:
            ValueError: both bounds are given, or none.
            NonFiniteError: the norm is not finite and `error_if_nonfinite` is set.
        """
        if (clip_val is None) == (max_norm is None):
            raise ValueError(
                explain(
                    "Gradients are clipped by norm or by value",
                    got=(clip_val, max_norm),
                    fix="pass max_norm or clip_val",
                )
            )
        clipping = GradientClipping(
            max_norm=max_norm, max_value=clip_val, norm_type=norm_type, error_if_nonfinite=error_if_nonfinite
        )
        own = bare(optimizer)
        self.strategy.unscale_gradients(own)
        return self.strategy.clip_gradients(module._wrapped, own, clipping)

    def autocast(self, enabled: bool = True, cache_enabled: bool = True) -> AbstractContextManager[Any]:
        """Context in which operations compute as the precision says; for code outside of a module that is set up.

        Args:
            enabled: False computes in the dtypes of the operands, such as a loss that must stay in float32.
            cache_enabled: keep the cast copies of weights until the context ends.
        """
        return self.precision.autocast(enabled, cache_enabled)


def bare(optimizer: Optimizer) -> Optimizer:
    """Return torch's optimizer of one that was set up; another is returned as it is."""
    return optimizer.optimizer if isinstance(optimizer, TaskOptimizer) else optimizer
