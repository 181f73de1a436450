"""`SpikeDetection` and `TerminateOnNaN`: what is wrong with a loss, noticed without waiting for a device."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from callbacks.line import Line
from torch import Tensor

from taskloom import Accumulation, Loss
from taskloom.callbacks import SpikeDetection, TerminateOnNaN
from taskloom.callbacks.losses import LossReader, loss_of
from taskloom.core.errors import TaskloomWarning


class Losses(Line):
    """Has the losses that the test prescribes."""

    def __init__(self, losses: Sequence[float]) -> None:
        super().__init__()
        self.losses = losses

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self.net(batch[0]).mean() * 0.0 + self.losses[self.current_epoch * 4 + batch_idx]


@pytest.mark.holds("CB-13")
def test_spikes_are_counted_and_do_not_move_the_mean(make_trainer: Any, loader: Any) -> None:
    detection = SpikeDetection(window=3, rtol=1.0)
    task = Losses([1.0, 1.0, 5.0, 1.0, 2.0, 6.0, 1.0, 1.0])
    with pytest.warns(TaskloomWarning, match=r"jumped from 1 to 5 at step 3; further spikes are counted"):
        result = make_trainer(detection, max_epochs=2).fit(task, loader)
    assert [(step, loss) for step, loss, _ in detection.spikes] == [(3, 5.0), (6, 6.0)]
    assert detection.spikes[1][2] == pytest.approx(4 / 3)
    assert (detection.count, result.steps) == (2, 8)


@pytest.mark.holds("CB-13")
def test_spikes_can_stop_training(make_trainer: Any, loader: Any) -> None:
    detection = SpikeDetection(rtol=0.0, atol=3.0, stop_after=2)
    task = Losses([1.0, 5.0, 1.0, 5.0, 1.0, 1.0, 1.0, 1.0])
    with pytest.warns(TaskloomWarning, match="jumped"):
        result = make_trainer(detection, max_epochs=2).fit(task, loader)
    assert result.steps == 4
    assert result.stop_reason == "the training loss jumped 2 times, last from 1 to 5 at step 4"


@pytest.mark.parametrize(("mode", "count"), [("min", 0), ("max", 1)])
def test_only_worse_is_a_spike(mode: Any, count: int, make_trainer: Any, loader: Any) -> None:
    detection = SpikeDetection(mode=mode, rtol=0.5)
    task = Losses([10.0, 10.0, 1.0, 10.0])
    if count:
        with pytest.warns(TaskloomWarning, match="jumped from 10 to 1"):
            make_trainer(detection, max_epochs=1).fit(task, loader)
    else:
        make_trainer(detection, max_epochs=1).fit(task, loader)
    assert detection.count == count


def test_the_beginning_is_not_judged(make_trainer: Any, loader: Any) -> None:
    detection = SpikeDetection(warmup=3)
    make_trainer(detection, max_epochs=1).fit(Losses([1.0, 50.0, 100.0, 100.0]), loader)
    assert detection.count == 0


@pytest.mark.holds("CB-13")
def test_a_loss_that_is_not_finite_is_a_spike(make_trainer: Any, loader: Any) -> None:
    detection = SpikeDetection()
    trainer = make_trainer(
        detection, max_epochs=1, accumulate_grad_batches=Accumulation(on_nonfinite="drop_and_reweight")
    )
    with pytest.warns(TaskloomWarning) as caught:
        trainer.fit(Losses([1.0, math.nan, 1.0, 1.0]), loader)
    assert any("jumped from 1 to nan" in str(warning.message) for warning in caught)
    assert detection.count == 1


def test_the_window_goes_through_a_checkpoint() -> None:
    first = SpikeDetection()
    first.on_train_batch_end(FakeTrainer(), None, torch.tensor(1.0), None, 0)  # type: ignore[arg-type]
    second = SpikeDetection()
    second.load_state_dict(first.state_dict())
    with pytest.warns(TaskloomWarning, match="jumped from 1 to 9"):
        second.on_train_batch_end(FakeTrainer(), None, torch.tensor(9.0), None, 0)  # type: ignore[arg-type]


class FakeTrainer:
    """The three facts that are read where no Trainer is needed."""

    global_step, should_stop, stop_reason = 7, False, ""


def test_mistakes_of_spike_detection() -> None:
    with pytest.raises(ValueError, match="'min' or 'max'"):
        SpikeDetection(mode="up")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="takes a window, a warmup"):
        SpikeDetection(window=0)


@pytest.mark.holds("CB-13")
def test_a_run_ends_quietly_at_a_loss_that_is_none(make_trainer: Any, loader: Any) -> None:
    trainer = make_trainer(
        TerminateOnNaN(), max_epochs=2, accumulate_grad_batches=Accumulation(on_nonfinite="drop_and_reweight")
    )
    with pytest.warns(TaskloomWarning, match="left out because the loss is inf"):
        result = trainer.fit(Losses([1.0, math.inf, *[1.0] * 6]), loader)
    assert result.status == "stopped"
    assert result.stop_reason == "the training loss became inf at step 1"
    assert result.epochs == 0


@pytest.mark.holds("CB-13")
@pytest.mark.parametrize(("metrics", "epochs"), [(True, 2), (False, 4)])
def test_a_metric_that_is_none(metrics: bool, epochs: int, make_trainer: Any, loader: Any) -> None:
    task = Line(val=[1.0, math.nan, 1.0, 1.0])
    result = make_trainer(TerminateOnNaN(metrics=metrics), max_epochs=4).fit(task, loader, loader)
    assert result.epochs == epochs
    assert ("val became nan at step 8" in result.stop_reason) == metrics


def test_losses_of_a_device_are_read_together() -> None:
    reader = LossReader()
    on_device = [torch.tensor(value, device="meta") for value in (1.0, 2.0)]
    assert [reader.add(step, {"loss": loss}) for step, loss in enumerate(on_device)] == [[], []]
    reader._waiting = [(step, torch.tensor(float(step))) for step, _ in reader._waiting]  # meta tensors hold nothing
    assert reader.read() == [(0, 0.0), (1, 1.0)]
    assert reader.read() == []


@pytest.mark.parametrize(
    ("outputs", "value"),
    [
        (torch.tensor(2.0), 2.0),
        ({"loss": torch.tensor([2.0]), "logits": torch.zeros(3)}, 2.0),
        (Loss(torch.tensor(6.0), 3), 2.0),
        ({"loss": Loss(torch.tensor(6.0), 3)}, 2.0),
        (None, None),
        ({"logits": torch.zeros(3)}, None),
        (torch.zeros(3), None),
    ],
    ids=repr,
)
def test_where_the_loss_is(outputs: Any, value: float | None) -> None:
    loss = loss_of(outputs)
    assert (None if loss is None else float(loss)) == value
