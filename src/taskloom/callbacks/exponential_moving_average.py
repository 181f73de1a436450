"""`EMAWeightAveraging`: an exponential moving average of the weights (Polyak averaging with a memory that fades)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from taskloom.callbacks.weight_averaging import KIND, WeightAveraging
from taskloom.core.errors import ConfigError, explain


class EMAWeightAveraging(WeightAveraging):
    """After an optimizer step: `average = decay * average + (1 - decay) * weights`; the first update copies.

    Args:
        device: where averages are held; by default that of the weights. See `WeightAveraging`.
        use_buffers: average floating-point buffers too.
        decay: part of the average that an update keeps.
        update_every_n_steps: optimizer steps between updates; 0 updates at the end of epochs only.
        update_starting_at_step: no update before this optimizer step, counted from 0.
        update_starting_at_epoch: no update before this epoch, counted from 0.
        decay_warmup: let the memory grow with the number of updates `n`: `min(decay, (1 + n) / (10 + n))`, as
            TensorFlow's `ExponentialMovingAverage(num_updates=n)`, so that the first weights are soon forgotten.
        dtype: of the averages; by default that of the weights, but at least float32.
        evaluate: use the averages in evaluations.
        keep_at_end: leave the averages in the task when `fit` ends.
        kind: name of the averages in checkpoints.

    Raises:
        ConfigError: a number is out of its range; lists every one.
    """

    def __init__(
        self,
        device: str | torch.device | int | None = None,
        use_buffers: bool = True,
        decay: float = 0.999,
        update_every_n_steps: int = 1,
        update_starting_at_step: int | None = None,
        update_starting_at_epoch: int | None = None,
        *,
        decay_warmup: bool = False,
        dtype: str | torch.dtype | None = None,
        evaluate: bool = True,
        keep_at_end: bool = True,
        kind: str = KIND,
    ) -> None:
        super().__init__(
            device,
            use_buffers,
            multi_avg_fn=self._fade,
            dtype=dtype,
            evaluate=evaluate,
            keep_at_end=keep_at_end,
            kind=kind,
        )
        starts = {
            "update_every_n_steps": update_every_n_steps,
            "update_starting_at_step": update_starting_at_step,
            "update_starting_at_epoch": update_starting_at_epoch,
        }
        problems = [
            explain(f"{name} is a whole number of at least 0", got=value)
            for name, value in starts.items()
            if value is not None and (type(value) is not int or value < 0)
        ]
        if not 0 <= decay <= 1:
            problems.append(explain("The decay is the part of the average that is kept", got=decay, fix="decay=0.999"))
        if problems:
            raise ConfigError(problems)
        self.decay, self.decay_warmup = decay, decay_warmup
        self.update_every_n_steps = update_every_n_steps
        self.update_starting_at_step, self.update_starting_at_epoch = update_starting_at_step, update_starting_at_epoch

    def should_update(self, step_idx: int | None = None, epoch_idx: int | None = None) -> bool:
        """Return whether an update is due: every so many steps, or at the end of epochs, from the start on."""
        if self.epoch < (self.update_starting_at_epoch or 0):
            return False
        if step_idx is None:
            return not self.update_every_n_steps
        every, first = self.update_every_n_steps, self.update_starting_at_step or 0
        return bool(every) and step_idx >= first and step_idx % every == 0

    def decay_at(self, updates: int) -> float:
        """Return the decay of the update after so many."""
        return min(self.decay, (1 + updates) / (10 + updates)) if self.decay_warmup else self.decay

    def _fade(self, averages: Sequence[Tensor], values: Sequence[Tensor], updates: int) -> Any:
        torch._foreach_lerp_(list(averages), list(values), 1.0 - self.decay_at(updates))
