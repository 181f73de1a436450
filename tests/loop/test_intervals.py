"""When validation runs, and when learning rates change."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from loop.tiny import At, Line, loader, quiet
from torch.optim import lr_scheduler

from taskloom import ValidationPolicy
from taskloom.callbacks import LearningRateMonitor
from taskloom.core.errors import TaskloomWarning


def validated_at(every: Any, *, window: int = 1, epochs: float = 2, count: int = 10, **more: Any) -> list[int]:
    """Batches trained on at each validation; an epoch has `count` of them."""
    at: list[int] = []
    watch = At(on_validation_start=lambda trainer, _: at.append(trainer.progress.micro_batches))
    trainer = quiet(watch, max_epochs=epochs, val_check_interval=every, accumulate_grad_batches=window, **more)
    trainer.fit(Line(), loader(count, 1), loader(2))
    return at


@pytest.mark.holds("LC-08", "LC-09")
@pytest.mark.parametrize(
    ("every", "at"),
    [
        ("1 epoch", [10, 20]),
        (1.0, [10, 20]),
        ("2 epochs", [20]),
        (None, []),
        (4, [4, 8, 12, 16, 20]),
        ("4 steps", [4, 8, 12, 16, 20]),
        ("7 batches", [7, 14]),
        (0.5, [5, 10, 15, 20]),
        (0.25, [3, 5, 8, 10, 13, 15, 18, 20]),
        (1 / 3, [4, 7, 10, 14, 17, 20]),
        (0.1, [*range(1, 21)]),
        ("10%", [*range(2, 21, 2)]),
        ("30%", [6, 12, 18]),
        ("100%", [20]),
        (ValidationPolicy("5 steps", start_after="7 steps"), [10, 15, 20]),
        (ValidationPolicy("5 steps", start_after="10 steps"), [10, 15, 20]),
        (ValidationPolicy("1 epoch", start_after="2 epochs"), [20]),
        (ValidationPolicy(4, start_after=0.5), [8, 12, 16, 20]),
        (ValidationPolicy("1 epoch", on_start=True), [0, 10, 20]),
        (ValidationPolicy(None, on_start=True), [0]),
    ],
)
def test_validation_runs_when_it_is_due(every: Any, at: list[int]) -> None:
    assert validated_at(every) == at


@pytest.mark.holds("LC-10")
def test_a_delayed_validation_keeps_to_its_grid_whatever_else_is_due() -> None:
    assert validated_at(ValidationPolicy("5 steps", start_after="6 steps"), log_every_n_steps=1) == [10, 15, 20]


@pytest.mark.holds("LC-08")
@pytest.mark.parametrize(("every", "at"), [(3, [4, 6, 10, 12, 16, 18]), ("2 steps", [4, 8, 12, 16, 20])])
def test_validation_waits_for_the_window(every: Any, at: list[int]) -> None:
    assert validated_at(every, window=2) == at


@pytest.mark.holds("LC-09")
@pytest.mark.parametrize(("every", "at"), [("50%", [5, 10]), ("25%", [3, 5, 8, 10])])
def test_a_part_of_the_run_is_counted_in_planned_steps(every: str, at: list[int]) -> None:
    assert validated_at(every, epochs=-1, max_steps=10) == at


@pytest.mark.holds("LC-22")
def test_validation_on_request() -> None:
    at: list[int] = []

    def ask(trainer: Any, _: Any) -> None:
        if trainer.progress.micro_batches == 3:
            trainer.request("validate")

    watch = At(on_validation_start=lambda trainer, _: at.append(trainer.global_step))
    quiet(At(on_train_batch_end=ask), watch, max_epochs=1, val_check_interval=None, accumulate_grad_batches=2).fit(
        Line(), loader(12), loader()
    )
    assert at == [2]


@pytest.mark.holds("LC-22")
@pytest.mark.parametrize("hook", ["on_train_epoch_start", "on_train_epoch_end"])
def test_requests_between_epochs_are_not_lost(hook: str, tmp_path: Any) -> None:
    asked: list[int] = []
    validated: list[int] = []

    def ask(trainer: Any, _: Any) -> None:
        if not asked:
            asked.append(trainer.global_step)
            trainer.request("validate")

    watch = At(on_validation_start=lambda trainer, _: validated.append(trainer.global_step))
    quiet(At(**{hook: ask}), watch, max_epochs=2, val_check_interval=None).fit(Line(), loader(), loader())
    assert validated == [asked[0] + 1]


@pytest.mark.holds("LC-22")
def test_saving_and_logging_on_request(tmp_path: Any) -> None:
    def ask(trainer: Any, _: Any) -> None:
        if trainer.progress.micro_batches == 2:
            trainer.request("save")
            trainer.request("log")

    saved: list[int] = []
    logged: list[int] = []
    watch = At(
        on_save_checkpoint=lambda trainer, _: saved.append(trainer.global_step),
        on_log=lambda trainer, _: logged.append(trainer.global_step),
    )
    quiet(At(on_train_batch_end=ask), watch, max_epochs=1, checkpoint=True, run_dir=tmp_path).fit(Line(), loader(12))
    assert saved == [2, 6]
    assert logged == [2, 6]


def test_an_unknown_request() -> None:
    with pytest.raises(ValueError, match=r"A Trainer takes no such request\. Got: 'stop'\. Fix: use 'save'"):
        quiet(max_epochs=1).request("stop")


@pytest.mark.holds("LC-10")
@pytest.mark.parametrize(("batches", "seen"), [(2, 2), (0, 0), (-1, 4), (99, 4)])
def test_the_sanity_check(batches: int, seen: int) -> None:
    told: list[bool] = []

    class Task(Line):
        def validation_step(self, batch, batch_idx):
            told.append((self.trainer.sanity_checking, self.trainer.validating, self.trainer.evaluating))
            super().validation_step(batch, batch_idx)

    result = quiet(max_steps=1, val_check_interval=None, num_sanity_val_steps=batches).fit(Task(), loader(), loader())
    assert told == [(True, False, True)] * seen
    assert "val/loss" not in result.metrics


@pytest.mark.holds("LC-10", "R56")
def test_the_sanity_check_changes_nothing() -> None:
    class Task(Line):
        def training_step(self, batch, batch_idx):
            return self.loss([batch[0] + torch.randn(1), batch[1]])

        def validation_step(self, batch, batch_idx):
            torch.randn(3)
            self.log("val/loss", self.loss(batch))

    results = []
    for batches in (0, 3):
        torch.manual_seed(1)
        task = Task()
        trainer = quiet(max_epochs=1, num_sanity_val_steps=batches)
        results.append(trainer.fit(task, loader(shuffle=True), loader(shuffle=True)).metrics)
        results.append(task.layer.weight.tolist())
    assert results[:2] == results[2:]


@pytest.mark.parametrize("batches", [-2, 1.5, True])
def test_a_sanity_check_of_no_number(batches: Any) -> None:
    with pytest.raises(ValueError, match=r"num_sanity_val_steps: num_sanity_val_steps is a whole number of batches\."):
        quiet(max_epochs=1, num_sanity_val_steps=batches)


class Scheduled(Line):
    """With schedulers that halve the rate; notes it at each batch."""

    def __init__(self, *configs: dict[str, Any], values: Any = None) -> None:
        super().__init__(lr=1.0)
        self.configs, self.values, self.rates = configs, iter(values or []), []

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        self.rates.append(self.trainer.lrs[0])
        return self.loss(batch) * 0

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        if batch_idx == 0:
            self.log("watched", next(self.values))

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=1.0)
        made = [{**config, "scheduler": config["scheduler"](optimizer)} for config in self.configs]
        return [optimizer], made


def halving(optimizer: Any) -> Any:
    return lr_scheduler.LambdaLR(optimizer, lambda times: 0.5**times)


def plateau(optimizer: Any) -> Any:
    return lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.5, patience=0)


def exponents(task: Scheduled) -> list[int]:
    """How often the rate had been halved at each batch."""
    return [round(-torch.log2(torch.tensor(rate)).item()) for rate in task.rates]


@pytest.mark.holds("OS-18")
@pytest.mark.parametrize(
    ("config", "window", "halved"),
    [
        ({}, 1, [0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2]),
        ({"interval": "epoch", "frequency": 2}, 1, [0] * 8 + [1] * 4),
        ({"interval": "step"}, 1, [*range(12)]),
        ({"interval": "step"}, 2, [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5]),
        ({"interval": "step"}, 3, [0, 0, 0, 1, 2, 2, 2, 3, 4, 4, 4, 5]),
        ({"interval": "step", "frequency": 3}, 1, [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3]),
    ],
)
def test_schedulers_step_at_their_interval(config: dict[str, Any], window: int, halved: list[int]) -> None:
    task = Scheduled({"scheduler": halving, **config})
    quiet(max_epochs=3, accumulate_grad_batches=window).fit(task, loader())
    assert exponents(task) == halved


@pytest.mark.holds("OS-18")
def test_an_epoch_that_is_not_finished_does_not_count() -> None:
    task = Scheduled({"scheduler": halving})
    trainer = quiet(max_steps=6)
    trainer.fit(task, loader())
    assert trainer.lrs == [0.5]


@pytest.mark.holds("OS-18")
def test_a_plateau_is_judged_after_the_validation_of_its_epoch() -> None:
    task = Scheduled({"scheduler": plateau, "monitor": "watched"}, values=[1.0, 2.0, 0.5, 3.0])
    trainer = quiet(max_epochs=4)
    trainer.fit(task, loader(2), loader(2))
    assert exponents(task) == [0, 0, 1, 1]
    assert trainer.lrs == [0.25]


@pytest.mark.holds("OS-18")
@pytest.mark.parametrize(("frequency", "halved"), [(1, [0, 0, 0, 0, 1, 1, 2, 2]), (4, [0, 0, 0, 0, 0, 0, 0, 0])])
def test_a_plateau_by_step_is_judged_after_each_validation(frequency: int, halved: list[int]) -> None:
    config = {"scheduler": plateau, "monitor": "watched", "interval": "step", "frequency": frequency}
    task = Scheduled(config, values=[1.0, 2.0, 3.0, 4.0])
    trainer = quiet(max_steps=8, val_check_interval="2 steps")
    trainer.fit(task, loader(16), loader(2))
    assert exponents(task) == halved
    assert trainer.lrs == [0.125 if frequency == 1 else 0.5]


@pytest.mark.holds("OS-18")
def test_a_measurement_is_used_once() -> None:
    """With a validation every other epoch, patience counts validations."""
    task = Scheduled({"scheduler": plateau, "monitor": "watched"}, values=[1.0, 0.9, 0.8])
    trainer = quiet(max_epochs=6, val_check_interval="2 epochs")
    with pytest.raises(ValueError, match=r"The scheduler ReduceLROnPlateau watches 'watched', which was not logged"):
        trainer.fit(task, loader(2), loader(2))
    task = Scheduled({"scheduler": plateau, "monitor": "watched", "frequency": 1}, values=[1.0, 0.9, 0.8, 0.7])
    trainer = quiet(max_epochs=6, val_check_interval=ValidationPolicy("2 epochs"))
    task.configs[0]["strict"] = False
    with pytest.warns(TaskloomWarning, match="watches 'watched', which was not logged"):
        trainer.fit(task, loader(2), loader(2))
    assert trainer.lrs == [1.0]


@pytest.mark.holds("OS-18")
def test_a_plateau_without_validation_watches_training() -> None:
    class Task(Scheduled):
        def training_step(self, batch, batch_idx):
            self.log("watched", 1.0)
            return super().training_step(batch, batch_idx)

    task = Task({"scheduler": plateau, "monitor": "watched", "interval": "step", "frequency": 2})
    quiet(max_steps=8, log_every_n_steps=1).fit(task, loader(16))
    assert exponents(task) == [0, 0, 0, 0, 1, 1, 2, 2]


@pytest.mark.holds("OS-18")
def test_a_watched_metric_that_was_never_logged() -> None:
    task = Scheduled({"scheduler": plateau, "monitor": "wached", "name": "mine"}, values=[1.0])
    with pytest.raises(
        ValueError,
        match=r"The scheduler mine watches 'wached', which was not logged\. Got: \['watched'\]\..*'watched'\?",
    ):
        quiet(max_epochs=1).fit(task, loader(), loader())


@pytest.mark.holds("OS-30")
def test_the_rates_now() -> None:
    class Task(Line):
        def configure_optimizers(self):
            return torch.optim.SGD([{"params": [self.layer.weight], "lr": 0.5}, {"params": [self.layer.bias]}], lr=0.1)

    seen: list[list[float]] = []
    monitor = LearningRateMonitor()
    trainer = quiet(At(on_train_start=lambda trainer, _: seen.append(trainer.lrs)), monitor, max_steps=1)
    assert trainer.lrs == []
    trainer.fit(Task(), loader())
    assert seen == [[0.5, 0.1]]
    assert trainer.lrs == [0.5, 0.1]
