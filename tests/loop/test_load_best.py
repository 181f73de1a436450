"""The weights that a task has when training ends."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from taskloom import CheckpointPolicy, TaskModule, Trainer
from taskloom.callbacks import EMAWeightAveraging
from taskloom.checkpoint import open_checkpoint
from taskloom.core.errors import ConfigError, TaskloomWarning


class Task(TaskModule):
    """Its measure is best after two epochs."""

    def __init__(self, measures: tuple[float, ...] = (3.0, 1.0, 2.0, 4.0)) -> None:
        super().__init__()
        self.layer, self.measures = nn.Linear(2, 1), measures

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return self.layer(batch).sum()

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val", self.measures[self.current_epoch])

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fit(folder: Any, task: Task, *callbacks: Any, **policy: Any) -> Any:
    trainer = Trainer(
        max_epochs=4,
        accelerator="cpu",
        num_sanity_val_steps=0,
        progress=False,
        run_dir=folder,
        checkpoint=CheckpointPolicy(**{"monitor": "val", "load_best_at_end": True, **policy}),
        callbacks=callbacks,
    )
    data = DataLoader(torch.ones(4, 2), batch_size=2)
    return trainer.fit(task, data, data)


@pytest.mark.holds("CK-05")
@pytest.mark.parametrize("asynchronous", [False, True])
def test_the_task_has_the_weights_of_the_best_checkpoint(tmp_path, asynchronous):
    task = Task()
    result = fit(tmp_path, task, asynchronous=asynchronous)
    assert result.best_checkpoint.name == "step-00000004"
    assert result.last_checkpoint.name == "step-00000008"
    with open_checkpoint(result.best_checkpoint) as best, open_checkpoint(result.last_checkpoint) as last:
        assert torch.equal(task.layer.weight, best.tensor("model", "layer.weight"))
        assert not torch.equal(task.layer.weight, last.tensor("model", "layer.weight"))


@pytest.mark.holds("CK-05")
def test_without_the_option_it_has_those_of_the_last_step(tmp_path):
    task = Task()
    result = fit(tmp_path, task, load_best_at_end=False)
    with open_checkpoint(result.last_checkpoint) as last:
        assert torch.equal(task.layer.weight, last.tensor("model", "layer.weight"))


def test_averages_are_those_of_the_best(tmp_path):
    task = Task()
    result = fit(tmp_path, task, EMAWeightAveraging(decay=0.5))
    with open_checkpoint(result.best_checkpoint) as best:
        assert torch.equal(task.layer.weight, best.tensor("average", "layer.weight"))


def test_when_nothing_is_best_it_says_so_and_keeps_the_last(tmp_path):
    nan = float("nan")
    with pytest.warns(TaskloomWarning) as told:
        fit(tmp_path, Task((nan, nan, nan, nan)))
    assert "load_best_at_end finds no best checkpoint by 'val'" in str(told[-1].message)


def test_it_needs_a_monitor():
    with pytest.raises(ConfigError, match=r"load_best_at_end=True.*monitor='val/loss'"):
        CheckpointPolicy(load_best_at_end=True)
