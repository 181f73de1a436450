"""`ThroughputMonitor`: samples, tokens and floating-point operations per second, and how much of the device that is."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import torch
from torch.utils.flop_counter import FlopCounterMode

from taskloom.callbacks.base import Callback
from taskloom.core.errors import explain

if TYPE_CHECKING:
    from taskloom.core.task import TaskModule
    from taskloom.trainer import Trainer

# Dense matrix products in bfloat16 or float16 with float32 accumulation, in FLOP/s; from NVIDIA's data sheets.
_PEAK_HALF: Final = (
    ("H200", 989e12),
    ("H100 PCIe", 756e12),
    ("H100", 989e12),
    ("A100", 312e12),
    ("L40S", 362e12),
    ("L4", 121e12),
    ("A10", 125e12),
    ("T4", 65e12),
    ("V100", 125e12),
)


def measure_flops(function: Callable[[], Any]) -> int:
    """Run `function` once and return the floating-point operations of its matrix products, convolutions and attention.

    A multiplication and an addition are two operations. The backward pass counts if `function` runs it. The counter is
    `torch.utils.flop_counter`'s; operators that it does not know (element-wise ones, kernels of your own) count
    nothing.
    """
    counter = FlopCounterMode(display=False)
    with counter:
        function()
    return int(counter.get_total_flops())


def peak_flops_of(device: torch.device, dtype: torch.dtype) -> float | None:
    """Return the FLOP/s a device is said to reach in dense products of `dtype`; None where that is not known here."""
    if device.type != "cuda" or dtype not in (torch.bfloat16, torch.float16):
        return None
    name = torch.cuda.get_device_name(device)
    return next((peak for part, peak in _PEAK_HALF if part in name), None)


class _Mark(NamedTuple):
    """The state of the counters after a batch."""

    seconds: float
    batches: int
    samples: int
    tokens: int


class ThroughputMonitor(Callback):
    """Logs how fast training goes, over the last `window_size` batches, whenever metrics are flushed.

    Logged, for this process: `throughput/batches_per_second`, `throughput/samples_per_second`,
    `throughput/tokens_per_second` (where the task counts tokens, or `length_fn` does), `throughput/flops_per_second`
    and `throughput/mfu` (model FLOPs
    utilisation: the part of the device's peak). Validation does not count as time.

    Args:
        batch_size_fn: samples of a batch; read from its tensors by default.
        length_fn: tokens of a batch; `TaskModule.num_tokens` by default.
        window_size: batches the rates are taken over; at least 2.
        flops_per_batch: floating-point operations of forward and backward pass of one batch. By default they are
            counted while the first batch is trained on, which is not repeated for it; 0 switches this off.
        peak_flops: FLOP/s of the device; by default from a table of NVIDIA's data sheets, for half precision.

    Attributes:
        flops_per_batch: as given or counted; None before the first batch.

    Raises:
        ValueError: the window is too small.
    """

    _clock = staticmethod(time.perf_counter)

    def __init__(
        self,
        batch_size_fn: Callable[[Any], int] | None = None,
        length_fn: Callable[[Any], int] | None = None,
        window_size: int = 100,
        flops_per_batch: float | None = None,
        peak_flops: float | None = None,
    ) -> None:
        if window_size < 2:
            raise ValueError(explain("The window_size of ThroughputMonitor is at least 2", got=window_size))
        self.batch_size_fn, self.length_fn = batch_size_fn, length_fn
        self.flops_per_batch = flops_per_batch
        self.peak_flops = peak_flops
        self._marks: deque[_Mark] = deque(maxlen=window_size)
        self._batches = self._samples = self._tokens = 0
        self._paused = self._paused_at = 0.0
        self._every = 1
        self._counter: Any = None  # a FlopCounterMode, which has no types
        self._peak: float | None = None

    @property
    def rates(self) -> dict[str, float]:
        """What would be logged now; empty until two batches are done."""
        if len(self._marks) < 2:
            return {}
        first, last = self._marks[0], self._marks[-1]
        seconds = last.seconds - first.seconds
        if seconds <= 0:
            return {}
        batches = (last.batches - first.batches) / seconds
        rates = {"throughput/batches_per_second": batches}
        if last.samples > first.samples:
            rates["throughput/samples_per_second"] = (last.samples - first.samples) / seconds
        if last.tokens > first.tokens:
            rates["throughput/tokens_per_second"] = (last.tokens - first.tokens) / seconds
        if self.flops_per_batch:
            rates["throughput/flops_per_second"] = batches * self.flops_per_batch
            if self._peak:
                rates["throughput/mfu"] = batches * self.flops_per_batch / self._peak
        return rates

    def on_train_start(self, trainer: Trainer, task: TaskModule) -> None:
        """Begin a window."""
        self._marks.clear()
        self._paused = 0.0
        precision = trainer.precision.policy.compute
        self._peak = peak_flops_of(trainer.device, precision) if self.peak_flops is None else self.peak_flops
        interval = trainer.settings.logs.interval()
        steps = interval.amount if interval.unit == "steps" else interval.amount * trainer.estimated_stepping_batches
        self._every = max(1, int(steps)) if steps < float("inf") else 1

    def on_train_batch_start(self, trainer: Trainer, task: TaskModule, batch: Any, batch_idx: int) -> None:
        """Count the operations of the first batch."""
        if self.flops_per_batch is None and self._counter is None:
            self._counter = FlopCounterMode(display=False)
            self._counter.__enter__()

    def on_train_batch_end(self, trainer: Trainer, task: TaskModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Note the time, and log before a flush."""
        counted = self._counter is not None
        self._stop_counting()
        progress = trainer.progress
        self._batches += 1
        self._samples = progress.samples if self.batch_size_fn is None else self._samples + self.batch_size_fn(batch)
        self._tokens = progress.tokens if self.length_fn is None else self._tokens + self.length_fn(batch)
        # A batch whose operations were counted is slow, so the window begins after it.
        self._marks.append(_Mark(self._clock() - self._paused, self._batches, self._samples, self._tokens))
        flush = trainer.is_last_batch or (progress.steps % self._every == 0 and not trainer.is_accumulating)
        if flush and not counted:
            for name, rate in self.rates.items():
                task.log(name, rate, on_step=True, on_epoch=False)

    def on_validation_start(self, trainer: Trainer, task: TaskModule) -> None:
        """Stop the clock."""
        self._paused_at = self._clock()

    def on_validation_end(self, trainer: Trainer, task: TaskModule) -> None:
        """Let it go on."""
        self._paused += self._clock() - self._paused_at

    def on_exception(self, trainer: Trainer, task: TaskModule, exception: BaseException) -> None:
        """Leave nothing switched on."""
        self._stop_counting()

    def _stop_counting(self) -> None:
        if self._counter is not None:
            self._counter.__exit__(None, None, None)
            self.flops_per_batch = int(self._counter.get_total_flops())
            self._counter = None
