"""`Timer`, on a clock that the test moves."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from callbacks.line import Line

from taskloom.callbacks import LambdaCallback, Timer


class Clock:
    """Ten seconds pass with every training batch, three with every other."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now

    def callback(self) -> LambdaCallback:
        return LambdaCallback(
            on_train_batch_start=lambda *rest: self._pass(10.0),
            on_validation_batch_start=lambda *rest: self._pass(3.0),
            on_test_batch_start=lambda *rest: self._pass(3.0),
            on_predict_batch_start=lambda *rest: self._pass(3.0),
        )

    def _pass(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(Timer, "_clock", staticmethod(clock))
    return clock


class AllStages(Line):
    def test_step(self, batch: Any, batch_idx: int) -> None: ...

    def predict_step(self, batch: Any, batch_idx: int) -> Any:
        return self.net(batch[0])


@pytest.mark.holds("CB-11")
def test_the_time_of_each_stage(clock: Clock, make_trainer: Any, loader: Any) -> None:
    timer, task = Timer(), AllStages()
    trainer = make_trainer(clock.callback(), timer, max_epochs=2, num_sanity_val_steps=1)
    trainer.fit(task, loader, loader)
    trainer.test(task, loader, verbose=False)
    trainer.predict(task, loader)
    assert timer.time_elapsed("sanity_check") == 3
    assert timer.time_elapsed("train") == 2 * (4 * 10 + 4 * 3)
    assert timer.time_elapsed("validate") == 2 * 4 * 3
    assert timer.time_elapsed("test") == 12
    assert timer.time_elapsed("predict") == 12
    assert timer.time_remaining() is None


@pytest.mark.holds("CB-11")
@pytest.mark.parametrize("duration", ["55 seconds", "00:00:00:55", timedelta(seconds=55), {"seconds": 55}], ids=str)
def test_it_stops_after_its_duration(duration: Any, clock: Clock, make_trainer: Any, loader: Any) -> None:
    timer = Timer(duration)
    result = make_trainer(clock.callback(), timer, max_epochs=5).fit(Line(), loader)
    assert result.steps == 6
    assert result.stop_reason == "the time limit of 55.0 s was reached"
    assert timer.time_remaining() == 0


def test_by_epoch_it_finishes_the_epoch(clock: Clock, make_trainer: Any, loader: Any) -> None:
    result = make_trainer(clock.callback(), Timer("55 seconds", interval="epoch"), max_epochs=5).fit(Line(), loader)
    assert (result.steps, result.epochs) == (8, 2)


@pytest.mark.holds("CB-11")
def test_the_time_counts_over_a_resume(clock: Clock, make_trainer: Any, loader: Any) -> None:
    first = make_trainer(clock.callback(), Timer("65 seconds"), max_epochs=1, checkpoint=True).fit(Line(), loader)
    clock.now += 10_000
    timer = Timer("65 seconds")
    trainer = make_trainer(clock.callback(), timer, max_epochs=5, checkpoint=True)
    result = trainer.fit(Line(), loader, ckpt_path=first.last_checkpoint)
    assert result.steps == 7
    assert timer.time_elapsed() == 70


def test_it_says_so(clock: Clock, make_trainer: Any, loader: Any, capsys: pytest.CaptureFixture[str]) -> None:
    make_trainer(clock.callback(), Timer("25 seconds"), max_epochs=1).fit(Line(), loader)
    make_trainer(clock.callback(), Timer("25 seconds", verbose=False), max_epochs=1).fit(Line(), loader)
    assert capsys.readouterr().out == "Timer: the time limit of 25.0 s was reached\n"


def test_mistakes() -> None:
    with pytest.raises(ValueError, match=r"'step' or 'epoch'.*Did you mean 'step'"):
        Timer(interval="steps")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="duration in time was expected"):
        Timer("3 epochs")
    with pytest.raises(ValueError, match=r"no stage 'training'.*Did you mean 'train'"):
        Timer().time_elapsed("training")
