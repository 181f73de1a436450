"""What a run holds does not grow with its length. benchmarks/memory.py measures the same on the whole process."""

from __future__ import annotations

import gc
import tracemalloc
import weakref

import pytest
import torch
from task.samples import Line, make_trainer
from torch.utils.data import DataLoader, Dataset

from taskloom import Callback


class Generated(Dataset):
    def __init__(self, length: int):
        self.length = length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> torch.Tensor:
        return torch.ones(2)


def generated(batches: int) -> DataLoader:
    return DataLoader(Generated(batches), batch_size=1)


def log_many(task: Line, value: torch.Tensor) -> None:
    for key in range(20):
        task.log(f"metric{key}", value * key, on_step=key % 2 == 0, on_epoch=True)


class Logs(Line):
    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        log_many(self, loss)
        return loss

    def validation_step(self, batch, batch_idx):
        log_many(self, self(batch).mean())


class Holds(Callback):
    """Measures what Python objects take, and counts tensors, at some batches."""

    def __init__(self, at: tuple[int, ...]):
        self.at, self.bytes, self.tensors = at, [], []

    def measure(self, batch_idx):
        if batch_idx in self.at:
            gc.collect()
            self.bytes.append(tracemalloc.get_traced_memory()[0])
            self.tensors.append(sum(issubclass(type(each), torch.Tensor) for each in gc.get_objects()))

    def on_train_batch_end(self, trainer, task, outputs, batch, batch_idx):
        self.measure(batch_idx)

    def on_validation_batch_end(self, trainer, task, outputs, batch, batch_idx, dataloader_idx=0):
        self.measure(batch_idx)


@pytest.mark.holds("R35")
@pytest.mark.parametrize("stage", ["fit", "validate"])
def test_logging_twenty_keys_holds_no_more_after_many_steps_than_after_few(stage):
    holds = Holds(at=(99, 599))
    trainer = make_trainer(callbacks=[holds])
    make_trainer().fit(Logs(), generated(1))  # what torch imports on the way is not to be traced
    tracemalloc.start()
    try:
        getattr(trainer, stage)(Logs(), generated(600), **({} if stage == "fit" else {"verbose": False}))
    finally:
        tracemalloc.stop()
    assert holds.tensors[1] == holds.tensors[0]
    assert holds.bytes[1] - holds.bytes[0] < 20_000  # a float kept per key and step would be 240,000


@pytest.mark.holds("R35")
@pytest.mark.parametrize("keep", [False, True])
def test_predictions_that_are_not_asked_for_are_let_go_at_once(keep):
    alive = []

    class Predicts(Line):
        def predict_step(self, batch, batch_idx):
            made = self(batch)
            made_before = [each for each in self.made if each() is not None]
            alive.append(len(made_before))
            self.made = [*made_before, weakref.ref(made)]
            return made

    task = Predicts()
    task.made = []
    make_trainer().predict(task, generated(50), return_predictions=keep)
    assert max(alive) == (49 if keep else 1)


def test_fits_in_a_row_leave_nothing_behind():
    task, refs = Line(), []
    for _ in range(5):
        trainer = make_trainer()
        trainer.fit(task, generated(3))
        refs.append(weakref.ref(trainer))
    del trainer
    gc.collect()
    assert sum(ref() is not None for ref in refs) <= 1  # the one that the task still knows
