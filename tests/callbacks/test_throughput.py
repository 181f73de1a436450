"""Samples, tokens and floating-point operations per second, on a clock that the test moves."""

from __future__ import annotations

import csv
from typing import Any

import pytest
import torch
from callbacks.line import Line
from torch import nn

from taskloom.callbacks import LambdaCallback, ThroughputMonitor, measure_flops
from taskloom.callbacks.throughput import peak_flops_of


class Clock:
    """Half a second passes with every training batch, a hundred with a validation batch."""

    now = 0.0

    def __call__(self) -> float:
        return self.now

    def _pass(self, seconds: float) -> None:
        self.now += seconds

    def callback(self) -> LambdaCallback:
        return LambdaCallback(
            on_train_batch_start=lambda *rest: self._pass(0.5),
            on_validation_batch_start=lambda *rest: self._pass(100.0),
        )


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(ThroughputMonitor, "_clock", staticmethod(clock))
    return clock


class Tokens(Line):
    def num_tokens(self, batch: Any) -> int:
        return int(batch[0].numel())


# A matrix product of 2×3 by 3×1 and the one for the gradient of its weight; the input needs no gradient.
FLOPS_PER_BATCH = 2 * (2 * 2 * 3 * 1)


@pytest.mark.holds("LG-16", "PF-04")
def test_rates(clock: Clock, make_trainer: Any, loader: Any) -> None:
    monitor = ThroughputMonitor(peak_flops=480.0)
    trainer = make_trainer(clock.callback(), monitor, max_epochs=1, logger=True, log_every_n_steps=2)
    folder = trainer.fit(Tokens(), loader).run_folder
    with (folder / "metrics.csv").open(newline="") as file:
        rows = {int(row["step"]): row for row in csv.DictReader(file)}
    assert {name: float(rows[4][name]) for name in rows[4] if name.startswith("throughput/")} == {
        "throughput/batches_per_second": 2.0,
        "throughput/samples_per_second": 4.0,
        "throughput/tokens_per_second": 12.0,
        "throughput/flops_per_second": 2.0 * FLOPS_PER_BATCH,
        "throughput/mfu": 0.1,
    }
    assert monitor.flops_per_batch == FLOPS_PER_BATCH


@pytest.mark.holds("LG-16")
def test_own_counts(clock: Clock, make_trainer: Any, loader: Any) -> None:
    monitor = ThroughputMonitor(batch_size_fn=lambda batch: 10, length_fn=lambda batch: 1000, flops_per_batch=5.0)
    make_trainer(clock.callback(), monitor, max_epochs=1).fit(Line(), loader)
    rates = monitor.rates
    assert rates["throughput/samples_per_second"] == 20.0
    assert rates["throughput/tokens_per_second"] == 2000.0
    assert rates["throughput/flops_per_second"] == 10.0
    assert "throughput/mfu" not in rates


def test_an_epoch_shorter_than_the_logging_interval(clock: Clock, make_trainer: Any, loader: Any) -> None:
    trainer = make_trainer(clock.callback(), ThroughputMonitor(), max_epochs=1, log_every_n_steps=50)
    trainer.fit(Line(), loader)
    assert trainer.logged_metrics["throughput/batches_per_second"] == 2.0


def test_only_the_window_counts(clock: Clock, make_trainer: Any, loader: Any) -> None:
    monitor = ThroughputMonitor(window_size=2, flops_per_batch=0)
    trainer = make_trainer(clock.callback(), monitor, max_epochs=1)
    trainer.add_callback(
        LambdaCallback(
            on_train_batch_end=lambda trainer, task, outputs, batch, batch_idx: clock._pass(9.5 * (batch_idx == 1))
        )
    )
    trainer.fit(Line(), loader)
    assert monitor.rates == {"throughput/batches_per_second": 2.0, "throughput/samples_per_second": 4.0}


def test_validation_is_no_time(clock: Clock, make_trainer: Any, loader: Any) -> None:
    monitor = ThroughputMonitor()
    make_trainer(clock.callback(), monitor, max_epochs=2, val_check_interval=0.5).fit(Line(), loader, loader)
    assert monitor.rates["throughput/batches_per_second"] == 2.0


def test_the_counter_is_off_after_the_first_batch_and_after_a_failure(make_trainer: Any, loader: Any) -> None:
    class Fails(Line):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            raise RuntimeError("on purpose")

    monitor = ThroughputMonitor()
    with pytest.raises(RuntimeError, match="on purpose"):
        make_trainer(monitor, max_epochs=1).fit(Fails(), loader)
    before = monitor.flops_per_batch
    torch.ones(4, 4) @ torch.ones(4, 4)
    assert monitor._counter is None
    assert monitor.flops_per_batch == before == 0
    assert torch._C._len_torch_dispatch_stack() == 0


def test_counting_changes_no_number(make_trainer: Any, loader: Any) -> None:
    def weights(*callbacks: Any) -> torch.Tensor:
        torch.manual_seed(0)
        task = Line()
        make_trainer(*callbacks, max_epochs=1).fit(task, loader)
        return task.net.weight.detach().clone()

    assert torch.equal(weights(), weights(ThroughputMonitor()))


@pytest.mark.holds("PF-04")
def test_measure_flops() -> None:
    net, x = nn.Linear(8, 16), torch.randn(4, 8)
    assert measure_flops(lambda: net(x)) == 2 * 4 * 8 * 16
    assert measure_flops(lambda: net(x).sum().backward()) == 2 * (2 * 4 * 8 * 16)


def test_peaks(monkeypatch: pytest.MonkeyPatch) -> None:
    assert peak_flops_of(torch.device("cpu"), torch.bfloat16) is None
    names = {"NVIDIA H100 PCIe": 756e12, "NVIDIA H100 80GB HBM3": 989e12, "NVIDIA L40S": 362e12, "Unknown": None}
    for name, peak in names.items():
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device, name=name: name)
        assert peak_flops_of(torch.device("cuda"), torch.bfloat16) == peak
        assert peak_flops_of(torch.device("cuda"), torch.float32) is None


def test_a_window_that_is_too_small() -> None:
    with pytest.raises(ValueError, match="window_size of ThroughputMonitor is at least 2"):
        ThroughputMonitor(window_size=1)
