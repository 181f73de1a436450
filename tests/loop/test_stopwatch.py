"""What a training spent its time on beside batches."""

from __future__ import annotations

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from taskloom import TaskModule, Trainer
from taskloom.loop.stopwatch import Stopwatch


def test_what_runs_within_another_thing_counts_for_itself_only() -> None:
    times = iter([0.0, 1.0, 3.0, 7.0, 100.0, 101.0])
    watch = Stopwatch(lambda: next(times))
    watch.start("boundary")
    watch.start("validation")
    watch.stop()
    watch.stop()
    watch.start("boundary")
    watch.stop()
    assert watch.seconds == {"boundary": 1.0 + 4.0 + 1.0, "validation": 2.0}


def test_stopping_what_does_not_run_is_harmless() -> None:
    watch = Stopwatch()
    watch.stop()
    assert watch.seconds == {}


class Line(TaskModule):
    def __init__(self) -> None:
        super().__init__()
        self.net = torch.nn.Linear(2, 1)

    def training_step(self, batch, batch_idx):
        return self.net(batch[0]).mean()

    def validation_step(self, batch, batch_idx):
        self.log("val/mean", self.net(batch[0]).mean())

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.mark.holds("R49")
def test_boundaries_are_a_line_of_the_report(capsys: pytest.CaptureFixture[str]) -> None:
    loader = DataLoader(TensorDataset(torch.randn(8, 2)), batch_size=4)
    trainer = Trainer(max_epochs=2, accelerator="cpu", progress="plain")
    trainer.fit(Line(), loader, loader)
    (line,) = (line for line in capsys.readouterr().out.splitlines() if line.startswith("Aside"))
    assert [part.rsplit(" ", 2)[0].strip() for part in line.removeprefix("Aside").split(", ")] == [
        "epoch boundaries",
        "validation",
        "checkpoints",
    ]
    assert set(trainer.parts.fit.aside.seconds) == {"epoch boundaries", "validation", "checkpoints"}
    assert all(seconds > 0 for seconds in trainer.parts.fit.aside.seconds.values())
