"""`SpikeDetection`: notice a loss that jumps away from where it was. The idea is Fabric's callback of that name."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal
from warnings import warn

from taskloom.callbacks.base import Callback
from taskloom.callbacks.losses import LossReader
from taskloom.core.errors import TaskloomWarning, explain

if TYPE_CHECKING:
    from taskloom.core.task import TaskModule
    from taskloom.trainer import Trainer

_KEPT = 100


class SpikeDetection(Callback):
    """Compares every training loss with the mean of those before it.

    A loss is a spike when it is worse than that mean by more than `atol + rtol · |mean|`, or is not finite. Spikes do
    not enter the mean. The first is a warning; all are counted, and `spikes` holds the latest. On an accelerator the
    losses are looked at with every flush of the metrics, so that no step waits for the device.

    Args:
        mode: whether a loss that goes up ("min": lower is better) or down ("max") is worse.
        window: losses that the mean is taken over.
        warmup: losses at the beginning that are not judged; at least 1.
        atol: absolute part of the tolerance.
        rtol: relative part; 2.0 lets the loss triple.
        finite_only: a loss that is NaN or infinite is a spike.
        stop_after: stop training at this many spikes; None only counts.

    Attributes:
        count: spikes so far.
        spikes: (step, loss, mean before it) of the latest 100.

    Raises:
        ValueError: an argument cannot be meant.
    """

    def __init__(
        self,
        mode: Literal["min", "max"] = "min",
        window: int = 10,
        warmup: int = 1,
        atol: float = 0.0,
        rtol: float = 2.0,
        finite_only: bool = True,
        stop_after: int | None = None,
    ) -> None:
        if mode not in ("min", "max"):
            raise ValueError(explain("The mode of SpikeDetection is 'min' or 'max'", got=mode))
        if window < 1 or warmup < 1 or atol < 0 or rtol < 0 or (stop_after is not None and stop_after < 1):
            given = {"window": window, "warmup": warmup, "atol": atol, "rtol": rtol, "stop_after": stop_after}
            raise ValueError(
                explain(
                    "SpikeDetection takes a window, a warmup and a stop_after from 1, and tolerances from 0",
                    got=given,
                )
            )
        self.mode, self.warmup = mode, warmup
        self.atol, self.rtol = atol, rtol
        self.finite_only = finite_only
        self.stop_after = stop_after
        self.count = 0
        self.spikes: deque[tuple[int, float, float]] = deque(maxlen=_KEPT)
        self._seen = 0
        self._recent: deque[float] = deque(maxlen=window)
        self._losses = LossReader()

    def state_dict(self) -> dict[str, Any]:
        """Return the window and the spikes."""
        return {"count": self.count, "spikes": list(self.spikes), "seen": self._seen, "recent": list(self._recent)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore them."""
        self.count, self._seen = state["count"], state["seen"]
        self.spikes.extend(tuple(spike) for spike in state["spikes"])
        self._recent.extend(state["recent"])

    def on_train_batch_end(self, trainer: Trainer, task: TaskModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Judge the loss, or keep it until it can be read."""
        self._judge_all(trainer, self._losses.add(trainer.global_step, outputs))

    def on_log(self, trainer: Trainer, task: TaskModule, metrics: Mapping[str, float], step: int) -> None:
        """Judge the losses that were held back."""
        self._judge_all(trainer, self._losses.read())

    def on_train_epoch_end(self, trainer: Trainer, task: TaskModule) -> None:
        """Judge the losses that were held back."""
        self._judge_all(trainer, self._losses.read())

    def _judge_all(self, trainer: Trainer, losses: list[tuple[int, float]]) -> None:
        for step, loss in losses:
            mean = sum(self._recent) / len(self._recent) if self._recent else math.nan
            self._seen += 1
            if not self._is_spike(loss, mean):
                if math.isfinite(loss):
                    self._recent.append(loss)
                continue
            self.count += 1
            self.spikes.append((step, loss, mean))
            if self.count == 1:
                warn(
                    f"The training loss jumped from {mean:.6g} to {loss:.6g} at step {step}; "
                    "further spikes are counted in SpikeDetection.count.",
                    TaskloomWarning,
                    stacklevel=2,
                )
            if self.stop_after is not None and self.count >= self.stop_after and not trainer.should_stop:
                times = "once" if self.count == 1 else f"{self.count} times"
                last = f"from {mean:.6g} to {loss:.6g} at step {step}"
                trainer.should_stop = True
                trainer.stop_reason = f"the training loss jumped {times}, last {last}"

    def _is_spike(self, loss: float, mean: float) -> bool:
        if not math.isfinite(loss):
            return self.finite_only
        if self._seen <= self.warmup or not self._recent:
            return False
        worse_by = loss - mean if self.mode == "min" else mean - loss
        return worse_by > self.atol + self.rtol * abs(mean)
