"""Rates, momenta and weight decays among the metrics."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest
import torch
from callbacks.line import Line
from torch import nn

from taskloom.callbacks import LearningRateMonitor


class Scheduled(Line):
    """Halves its rate with every step."""

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.parameters(), lr=0.8, betas=(0.7, 0.9), weight_decay=0.125)
        scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, gamma=0.5)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


class Two(Line):
    """Steps two optimizers by hand; the second has two groups, one of them named."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.other = nn.Linear(3, 1)

    def training_step(self, batch: Any, batch_idx: int) -> None:
        for optimizer, net in zip(self.optimizers(), (self.net, self.other), strict=True):
            optimizer.zero_grad()
            self.manual_backward(nn.functional.mse_loss(net(batch[0]), batch[1]))
            optimizer.step()

    def configure_optimizers(self) -> Any:
        groups = [{"params": [self.other.weight], "name": "weights"}, {"params": [self.other.bias], "lr": 0.3}]
        return [torch.optim.SGD(self.net.parameters(), lr=0.1), torch.optim.SGD(groups, lr=0.2, momentum=0.5)]


class Named(Line):
    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=0.1)
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "name": "my-rate"}}


def logged(folder: Path, name: str) -> list[tuple[int, float]]:
    with (folder / "metrics.csv").open(newline="") as file:
        return [(int(row["step"]), float(row[name])) for row in csv.DictReader(file) if row.get(name)]


@pytest.mark.holds("CB-06", "OS-30")
def test_the_rate_that_a_step_was_taken_with(make_trainer: Any, loader: Any) -> None:
    monitor = LearningRateMonitor(log_momentum=True, log_weight_decay=True)
    trainer = make_trainer(monitor, max_epochs=1, logger=True, log_every_n_steps=2)
    folder = trainer.fit(Scheduled(), loader).run_folder
    assert logged(folder, "lr-AdamW") == [(2, 0.4), (4, 0.1)]
    assert logged(folder, "lr-AdamW-momentum") == [(2, 0.7), (4, 0.7)]
    assert logged(folder, "lr-AdamW-weight_decay") == [(2, 0.125), (4, 0.125)]
    assert trainer.lrs == list(monitor.rates.values()) == [0.05]


@pytest.mark.holds("CB-06")
def test_once_per_epoch(make_trainer: Any, loader: Any) -> None:
    trainer = make_trainer(LearningRateMonitor("epoch"), max_epochs=2, logger=True, log_every_n_steps=1)
    folder = trainer.fit(Scheduled(), loader).run_folder
    assert logged(folder, "lr-AdamW") == [(4, 0.8), (8, 0.05)]


@pytest.mark.holds("CB-06")
def test_names_of_several_optimizers_and_groups(make_trainer: Any, loader: Any) -> None:
    trainer = make_trainer(LearningRateMonitor(log_momentum=True), max_epochs=1, log_every_n_steps=1)
    trainer.fit(Two(), loader)
    metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
    assert metrics == {
        "lr-SGD": 0.1,
        "lr-SGD-momentum": 0.0,
        "lr-SGD-1/weights": 0.2,
        "lr-SGD-1/weights-momentum": 0.5,
        "lr-SGD-1/pg2": 0.3,
        "lr-SGD-1/pg2-momentum": 0.5,
    }


def test_the_name_of_a_scheduler_replaces_the_front(make_trainer: Any, loader: Any) -> None:
    trainer = make_trainer(LearningRateMonitor(), max_epochs=1)
    trainer.fit(Named(), loader)
    assert float(trainer.callback_metrics["my-rate"]) == 0.1


def test_a_rate_that_is_a_tensor_is_logged_as_it_was(make_trainer: Any, loader: Any) -> None:
    class TensorRate(Line):
        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=torch.tensor(0.5))

        def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
            self.optimizers(use_pl_optimizer=False).param_groups[0]["lr"].mul_(0.5)

    trainer = make_trainer(LearningRateMonitor(), max_epochs=1, log_every_n_steps=4)
    trainer.fit(TensorRate(), loader)
    assert float(trainer.callback_metrics["lr-SGD"]) == 0.0625


def test_an_interval_that_is_none() -> None:
    with pytest.raises(ValueError, match=r"'step', 'epoch' or None.*Did you mean 'epoch'"):
        LearningRateMonitor("epochs")  # type: ignore[arg-type]
