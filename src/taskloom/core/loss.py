"""What a training step may return, and what it means for the gradient.

One optimizer step uses the gradient of `Σ sum / Σ weight` over its actual window: all of its micro-batches, a short
last window included. A mean per micro-batch that is averaged again is a different number when the micro-batches differ
in size (Transformers issue 34191), which is why numerator and denominator are kept apart.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Union

from torch import Tensor


@dataclass(frozen=True)
class Loss:
    """A loss as a sum and what it sums over.

    Args:
        sum: 0-dim floating-point tensor, the sum of the per-sample (or per-token) losses; must require grad in
            training.
        weight: how many samples (tokens, pixels, class weights) the sum covers; a number or a 0-dim tensor, at least 0.

    Example:
        `return Loss(F.cross_entropy(logits, labels, ignore_index=-100, reduction="sum"), (labels != -100).sum())`
    """

    sum: Tensor
    weight: Tensor | float

    @property
    def mean(self) -> Tensor:
        """The loss per unit of weight, 0-dim, with its graph."""
        return self.sum / self.weight


@dataclass(frozen=True)
class Skip:
    """Returned by a step that has nothing to learn from its batch; the class itself, or `None`, means the same.

    Args:
        reason: shown in the warning that counts skipped batches.
    """

    reason: str = ""


StepOutput = Union[Tensor, Loss, Skip, type[Skip], dict[str, Any], None]
