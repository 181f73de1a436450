"""The window of micro-batches behind one optimizer step: what counts, what is left out, and what the losses were.

The arithmetic, `Σ sum / Σ weight` over the actual window, is that of `taskloom.strategies.window`.
"""

from __future__ import annotations

import math
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any
from warnings import warn

import torch
from torch import Tensor

from taskloom.core.errors import NonFiniteError, TaskloomWarning, explain
from taskloom.core.loss import Loss, Skip
from taskloom.core.policies import Accumulation
from taskloom.core.transfer import count_samples
from taskloom.strategies import Strategy
from taskloom.strategies.window import WindowWeights, negative_weight

_STEP_RETURNS = (
    "a 0-dim tensor (the mean over the micro-batch), Loss(sum, weight), a dict with either under 'loss', or Skip"
)


class Window:
    """Weights and skips of the optimizer step in the making.

    Attributes:
        batches: micro-batches of a full window.
        ranks: data-parallel processes that share it.
        flush_last: whether a short last window of an epoch is stepped on.
        filled: micro-batches seen in the current one, dropped ones included.
        skipped: micro-batches dropped since the run began.
        loss_sum: running sum of the means of the counted micro-batches: a number where reading one waits for nothing,
            else a 0-dim tensor on the device.
        loss_count: how many it sums.
    """

    def __init__(self, accumulation: Accumulation, strategy: Strategy) -> None:
        self._policy = accumulation
        self._weights = WindowWeights(strategy)
        self.flush_last = accumulation.flush_last
        self.ranks = strategy.data_parallel_size
        self._synchronous = strategy.accelerator.synchronous
        # An overflow of fp16 is the loss scale's to answer; it skips the step and lowers the scale.
        self._scaled = strategy.precision.scales_loss
        self._checks_now = (self._synchronous or accumulation.on_nonfinite != "raise") and not self._scaled
        self._usual = self._synchronous and not self._scaled and self.ranks == 1
        self._warned = False
        self._in_a_row = 0
        self._overflows = 0
        self._repeating = False
        self.batches = 1
        self.skipped = 0
        self.loss_sum: Tensor | float = 0.0
        self.loss_count = 0
        self.reset()

    def reset(self) -> None:
        """Open the next window."""
        self.filled = 0
        self._counted = 0
        self._poisoned = False

    @property
    def steps(self) -> bool:
        """Whether there is anything to step on."""
        return self._counted > 0 and not self._poisoned

    @property
    def stepping(self) -> bool:
        """Whether the window, now that it is complete or its epoch has ended, is to be stepped on."""
        return self._counted > 0 and not self._poisoned and (self.flush_last or self.filled >= self.batches)

    def add(self, output: Any, batch: Any) -> Tensor | None:
        """Take what a training step returned.

        Returns:
            The 0-dim tensor to run backward on, or None where the micro-batch is left out.

        Raises:
            TypeError, ValueError: the output is not a loss; says what it must be.
            NonFiniteError: the loss is NaN or infinite and the policy is to stop, or too many batches in a row were
                dropped.
        """
        self.filled += 1
        if self._usual and self.batches == 1 and type(output) is Tensor and output.requires_grad and not output.ndim:
            # What nearly every step of a run on one CPU comes to, without the questions below.
            value = output.item()
            if math.isfinite(value):
                self._counted, self._in_a_row = 1, 0
                self.loss_sum += value
                self.loss_count += 1
                return output
        if isinstance(output, dict):
            output = self._from_dict(output)
        if output is None or output is Skip or isinstance(output, Skip):
            reason = f" ({output.reason})" if isinstance(output, Skip) and output.reason else ""
            what = f"training_step returned {'None' if output is None else 'Skip'}{reason}"
            if self._policy.on_skip == "raise":
                raise NonFiniteError(
                    explain(
                        f"Training stopped because {what}",
                        why="the policy is on_skip='raise'",
                        fix="accumulate_grad_batches=Accumulation(on_skip='drop_and_reweight') leaves such batches out",
                    )
                )
            self._drop(self._policy.on_skip, what)
            return None
        loss = output.sum if isinstance(output, Loss) else output
        _check_loss(loss)
        if self._checks_now:
            value = loss.item()
            if not math.isfinite(value):
                self._drop(self._policy.on_nonfinite, f"the loss is {value}")
                return None
        self._in_a_row = 0
        self._counted += 1
        if self.batches == 1 and self.ranks == 1:
            if loss is not output:
                loss = _mean(output)
            self._record(loss)
            return loss
        if self._counted == 1:
            self._weights.begin(self.batches)
        self._record(_mean(output) if isinstance(output, Loss) else output)
        return self._weights.add(output, 1.0 if isinstance(output, Loss) else self._samples(batch))

    def factor(self) -> Tensor | float | None:
        """Return what the window's gradients must be multiplied by, or None where that is 1."""
        return None if self.batches == 1 and self.ranks == 1 else self._weights.factor()

    @contextmanager
    def repeating(self) -> Generator[None, None, None]:
        """Add micro-batches that were counted before, for an optimizer that evaluates a window more than once."""
        self.reset()
        self._repeating, usual, self._usual = True, self._usual, False
        try:
            yield
        finally:
            self._repeating, self._usual = False, usual

    def judge(self, stepped: bool) -> None:
        """Take note of whether the loss scale let the optimizer step.

        Raises:
            NonFiniteError: it did not, too many times in a row.
        """
        self._overflows = 0 if stepped else self._overflows + 1
        if self._overflows >= self._policy.max_consecutive_skips:
            raise NonFiniteError(
                explain(
                    f"{self._overflows} optimizer steps in a row were skipped because a gradient overflowed",
                    why="the loss scale falls at each of them, so the gradients themselves are not finite",
                    fix="look for NaN in the loss with precision='32-true' and debug=True, or use 'bf16-mixed'",
                )
            )

    def take_loss(self) -> tuple[float, int]:
        """Read and reset the running sum of losses; one number from the device.

        Raises:
            NonFiniteError: it is not finite and the policy is to stop.
        """
        total, count = float(self.loss_sum), self.loss_count
        self.loss_sum, self.loss_count = 0.0, 0
        if not math.isfinite(total) and not self._scaled and self._policy.on_nonfinite == "raise":
            raise self._nonfinite(f"the loss of one of the last {count} batches is not finite")
        return total, count

    def _record(self, mean: Tensor) -> None:
        if not self._repeating:
            self.loss_sum = self.loss_sum + (mean.item() if self._synchronous else mean.detach())
            self.loss_count += 1

    def _samples(self, batch: Any) -> int:
        count = count_samples(batch)
        if count is None:
            if not self._warned:
                self._warned = True
                warn(
                    explain(
                        "The number of samples cannot be read from the batch, so every micro-batch of a window "
                        "counts the same",
                        why="its tensors have no leading dimension in common",
                        fix="return Loss(sum, weight) from training_step to be exact",
                    ),
                    TaskloomWarning,
                    stacklevel=2,
                )
            return 1
        return count

    def _drop(self, policy: str, reason: str) -> None:
        if policy == "raise":
            raise self._nonfinite(reason)
        self._poisoned = self._poisoned or policy == "skip_all"
        if self._repeating:
            return
        self.skipped += 1
        self._in_a_row += 1
        if self._in_a_row >= self._policy.max_consecutive_skips:
            raise NonFiniteError(
                explain(
                    f"{self._in_a_row} training batches in a row were left out: {reason}",
                    why="a model that learns from nothing is not trained",
                    fix="look at these batches; accumulate_grad_batches=Accumulation(max_consecutive_skips=...) sets "
                    "the limit",
                )
            )
        if self.skipped == 1:
            warn(
                f"A training batch is left out because {reason}; further ones are counted in progress.skipped_batches.",
                TaskloomWarning,
                stacklevel=2,
            )

    @staticmethod
    def _nonfinite(reason: str) -> NonFiniteError:
        return NonFiniteError(
            explain(
                f"Training stopped because {reason}",
                why="a step on it would destroy the weights",
                fix="lower the learning rate, clip gradients, or pass debug=True to find the operation; "
                "accumulate_grad_batches=Accumulation(on_nonfinite='drop_and_reweight') leaves such batches out",
            )
        )

    @staticmethod
    def _from_dict(output: dict[str, Any]) -> Any:
        if "loss" not in output:
            raise ValueError(
                explain(
                    "training_step returned a dict without 'loss'", got=sorted(output), fix=f"return {_STEP_RETURNS}"
                )
            )
        return output["loss"]


def _mean(loss: Loss) -> Tensor:
    """Return sum / weight; 0, with a zero gradient, where the weight is 0."""
    if isinstance(loss.weight, Tensor):
        return loss.sum / torch.where(loss.weight > 0, loss.weight, torch.ones_like(loss.weight))
    if loss.weight < 0:
        raise ValueError(negative_weight(loss.weight))
    return loss.sum / loss.weight if loss.weight else loss.sum


def _check_loss(loss: Any) -> None:
    if not isinstance(loss, Tensor):
        raise TypeError(
            explain("training_step returned something that is not a loss", got=loss, fix=f"return {_STEP_RETURNS}")
        )
    if loss.ndim:
        raise ValueError(
            explain(
                "training_step returned a loss that is not a single value",
                got=f"a tensor of shape {tuple(loss.shape)}",
                fix="reduce it: loss.mean(), or Loss(loss.sum(), loss.numel())",
            )
        )
    if not loss.requires_grad:
        raise ValueError(
            explain(
                "training_step returned a loss that does not require grad",
                why="no parameter would learn from it",
                fix="compute it from the model's outputs without .detach(), .item() or torch.no_grad(), and check "
                "that parameters are not frozen; to leave a batch out return Skip",
            )
        )
