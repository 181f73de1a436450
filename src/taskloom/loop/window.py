"""The window of micro-batches behind one optimizer step: where each backward pass starts, and the final division.

The gradient of a step is that of `Σ sum / Σ weight` over its actual window. The denominator is only known at its end,
so each
micro-batch runs backward on `sum / (reference · batches)` and the finished gradient is multiplied once by
`reference · batches · ranks / Σ weight`. The reference is the weight of the run's first micro-batch: it keeps
gradients at their
usual size (fp16 would overflow on bare sums), and where every weight equals it the factor is exactly 1 and nothing is
multiplied.
"""

from __future__ import annotations

import math
from typing import Any, Literal
from warnings import warn

import torch
from torch import Tensor

from taskloom.core.errors import NonFiniteError, TaskloomWarning, explain
from taskloom.core.loss import Loss, Skip
from taskloom.core.policies import Accumulation
from taskloom.core.transfer import count_samples
from taskloom.strategies import Strategy

Verdict = Literal["counted", "dropped"]
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
            else a
            0-dim tensor on the device.
        loss_count: how many it sums.
    """

    def __init__(self, accumulation: Accumulation, strategy: Strategy) -> None:
        self._policy, self._strategy = accumulation, strategy
        self.flush_last = accumulation.flush_last
        self.ranks = strategy.data_parallel_size
        self._synchronous = strategy.accelerator.synchronous
        # An overflow of fp16 is the loss scale's to answer; it skips the step and lowers the scale.
        self._scaled = strategy.precision.scales_loss
        self._checks_now = (self._synchronous or accumulation.on_nonfinite != "raise") and not self._scaled
        self._reference: Tensor | float | None = None
        self._dtype = torch.float32
        self._warned = False
        self._in_a_row = 0
        self.batches = 1
        self.skipped = 0
        self.loss_sum: Tensor | float = 0.0
        self.loss_count = 0
        self.reset()

    def reset(self) -> None:
        """Open the next window."""
        self.filled = 0
        self._weight: Tensor | float = 0.0
        self._counted = 0
        self._poisoned = False

    @property
    def steps(self) -> bool:
        """Whether there is anything to step on."""
        return self._counted > 0 and not self._poisoned

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
        if isinstance(output, dict):
            output = self._from_dict(output)
        if output is None or output is Skip or isinstance(output, Skip):
            reason = f" ({output.reason})" if isinstance(output, Skip) and output.reason else ""
            self._drop(self._policy.on_skip, f"training_step returned Skip{reason}")
            return None
        loss = output.sum if isinstance(output, Loss) else output
        _check_loss(loss)
        if self._checks_now:
            value = loss.item()
            if not math.isfinite(value):
                self._drop(self._policy.on_nonfinite, f"the loss is {value}")
                return None
        self._in_a_row = 0
        if self.batches == 1 and self.ranks == 1:
            if loss is not output:
                loss = _mean(output)
            self._counted = 1
            self._record(loss.item() if self._synchronous else loss.detach())
            return loss
        return self._weigh(output, batch)

    def _weigh(self, output: Tensor | Loss, batch: Any) -> Tensor | None:
        if isinstance(output, Loss):
            total, mean = output.sum, _mean(output).detach()
            weight = output.weight.detach() if isinstance(output.weight, Tensor) else float(output.weight)
        else:
            weight = float(self._samples(batch))
            total, mean = output * weight, output.detach()
        if self._reference is None:
            self._reference = self._agreed_reference(weight)
            self._dtype = torch.promote_types(total.dtype, torch.float32)
        self._weight = self._weight + weight
        self._counted += 1
        self._record(mean.item() if self._synchronous else mean)
        return total / (self._reference * self.batches)

    def factor(self) -> Tensor | float | None:
        """Return what the window's gradients must be multiplied by, or None where that is 1."""
        if (self.batches == 1 and self.ranks == 1) or self._reference is None:
            return None
        weight = self._weight
        if self.ranks > 1:
            weight = torch.as_tensor(weight, dtype=self._dtype, device=self._strategy.device)
            weight = self._strategy.all_reduce(weight, "sum")
        scale = self._reference * self.batches * self.ranks
        if isinstance(weight, Tensor):
            # Whole numbers would be divided in float32, too coarse for gradients in float64.
            scale = torch.as_tensor(scale, dtype=self._dtype, device=weight.device)
            return torch.where(weight > 0, scale / weight.to(self._dtype), torch.zeros_like(scale))
        if not weight:
            return 0.0
        return None if scale == weight else float(scale) / weight

    def take_loss(self) -> tuple[float, int]:
        """Read and reset the running sum of losses; one number from the device.

        Raises:
            NonFiniteError: it is not finite and the policy is to stop.
        """
        total, count = float(self.loss_sum), self.loss_count
        self.loss_sum, self.loss_count = 0.0, 0
        if not math.isfinite(total) and not self._scaled and self._policy.on_nonfinite == "raise":
            raise self._nonfinite(f"the loss of one of the last {count} batches")
        return total, count

    def _record(self, mean: Tensor | float) -> None:
        self.loss_sum = self.loss_sum + mean
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

    def _agreed_reference(self, weight: Tensor | float) -> Tensor | float:
        if self.ranks > 1:
            return self._strategy.broadcast(max(float(weight), 1.0))
        if isinstance(weight, Tensor):
            return torch.where(weight > 0, weight, torch.ones_like(weight))
        return weight or 1.0

    def _drop(self, policy: str, reason: str) -> None:
        if policy == "raise":
            raise self._nonfinite(reason)
        self.skipped += 1
        self._in_a_row += 1
        self._poisoned = self._poisoned or policy == "skip_all"
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
                "accumulate_grad_batches=Accumulation(on_nonfinite='drop_and_reweight', on_skip=...) leaves such "
                "batches out",
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
        raise ValueError(
            explain(
                "The weight of a Loss is negative",
                got=loss.weight,
                fix="pass how many samples or tokens the sum covers",
            )
        )
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
