"""Training goes on with the sample that comes next, and with its augmentations, wherever it was stopped."""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from data.resuming import seed
from data.samplers import DrawingAsItGoes, FromOutside
from loop.tiny import At, Line, equal, loader, quiet, weights
from torch import nn
from torch.utils.data import DataLoader, Dataset

from taskloom import CheckpointPolicy, RestorePolicy, Trainer
from taskloom.core.errors import CheckpointError

ALL = CheckpointPolicy(every="1 steps", keep_last=-1, fsync=False)


class Augmented(Dataset):
    """A sample is its index in sixteenths, and noise of every kind."""

    def __init__(self, length: int = 14) -> None:
        self.length, self.read = length, 0
        self.rng = np.random.default_rng(0)

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        self.read += 1
        noise = random.random() + np.random.rand() + self.rng.random()
        return torch.tensor([index / 16, noise, torch.randn(()).item()]), torch.rand(1)


class Dropped(Line):
    """Draws in the main process too, and remembers what it was given."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.layer = nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.5), nn.Linear(4, 1))
        self.given: list[torch.Tensor] = []

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        self.given.append(batch[0])
        return self.loss(batch) * (1 + 0.1 * random.random())


def data(**options: Any) -> Any:
    return DataLoader(Augmented(), 2, **options)


RUNS: dict[str, tuple[Callable[[], Any], dict[str, Any]]] = {
    "shuffle": (partial(data, shuffle=True), {}),
    "workers": (partial(data, shuffle=True, num_workers=2), {}),
    "workers that persist": (partial(data, shuffle=True, num_workers=2, persistent_workers=True), {}),
    "a sampler that draws as it goes": (lambda: data(sampler=DrawingAsItGoes()), {}),
    "accumulation": (partial(data, shuffle=True), {"accumulate_grad_batches": 3}),
    "limit": (partial(data, shuffle=True, num_workers=1), {"limit_batches": 3}),
    "a fraction of epochs": (partial(data, shuffle=True), {"max_epochs": 1.5}),
    "overfit": (partial(data, shuffle=True), {"limit_batches": {"overfit": 3}, "max_epochs": 3}),
    "validation": (partial(data, shuffle=True), {"val_check_interval": "2 steps"}),
}


def fit(make: Callable[[], Any], folder: Path, *callbacks: Any, **arguments: Any) -> tuple[Dropped, Trainer]:
    more = {name: arguments.pop(name) for name in ("ckpt_path", "restore") if name in arguments}
    seed(3)
    task = Dropped()
    seed(len(more))
    trainer = quiet(*callbacks, **{"max_epochs": 2, "checkpoint": ALL, "run_dir": folder, **arguments})
    trainer.fit(task, make(), loader(4), **more)
    return task, trainer


@pytest.mark.holds("R3", "R13", "CK-09", "DA-30")
@pytest.mark.parametrize("name", RUNS)
def test_every_checkpoint_of_a_run_leads_to_its_end(name: str, tmp_path: Path) -> None:
    make, arguments = RUNS[name]
    task, trainer = fit(make, tmp_path, **arguments)
    checkpoints = sorted((trainer.run_folder / "checkpoints").glob("step-*"))
    assert len(checkpoints) == trainer.global_step >= 6
    chosen = checkpoints[:-1] if "workers" not in name else checkpoints[1:-1:4]
    for number, checkpoint in enumerate(chosen):
        again, after = fit(make, tmp_path / str(number), **{**arguments, "checkpoint": False}, ckpt_path=checkpoint)
        assert after.global_step == trainer.global_step
        assert equal(task.given[-len(again.given) :], again.given), checkpoint
        assert equal(weights(task), weights(again)), checkpoint


@pytest.mark.holds("R3")
def test_batches_to_overfit_on_are_those_of_the_run_that_is_continued(tmp_path: Path) -> None:
    make, arguments = RUNS["overfit"]
    task, trainer = fit(make, tmp_path, **arguments)
    indices = [sorted(batch[:, 0].tolist()) for batch in task.given]
    assert indices[:3] == indices[3:6] == indices[6:]
    again, _ = fit(make, tmp_path, **{**arguments, "max_epochs": 4}, ckpt_path=trainer.checkpoints[0].last_path)
    assert equal(again.given, task.given[:3])


def _train_until_killed(step: int, folder: str) -> None:
    def kill(trainer: Trainer, _: Any) -> None:
        if trainer.global_step == step:
            os.kill(os.getpid(), signal.SIGKILL)

    more = {} if step == 3 else {"ckpt_path": "last"}
    make = partial(data, shuffle=True, num_workers=1)
    fit(make, Path(folder), At(on_train_batch_end=kill), checkpoint=ALL, **more)


@pytest.mark.holds("R3", "R13")
def test_three_kills_change_nothing(tmp_path: Path) -> None:
    make = partial(data, shuffle=True, num_workers=1)
    task, _ = fit(make, tmp_path / "whole", checkpoint=False)
    context = torch.multiprocessing.get_context("fork")
    for step in (3, 7, 9):
        process = context.Process(target=_train_until_killed, args=(step, str(tmp_path / "killed")))
        process.start()
        process.join()  # without a limit, which would wait for the loader's workers to notice too
        assert process.exitcode == -signal.SIGKILL
    again, _ = fit(make, tmp_path / "killed", checkpoint=False, ckpt_path="last")
    assert 5 <= len(again.given) <= 7
    assert equal(task.given[-len(again.given) :], again.given)
    assert equal(weights(task), weights(again))


@pytest.mark.holds("R25")
def test_a_resumed_run_reads_no_sample_that_was_trained_on(tmp_path: Path) -> None:
    made: list[Any] = []

    def make() -> Any:
        made.append(data(shuffle=True))
        return made[-1]

    _, trainer = fit(make, tmp_path, max_steps=5)
    task, _ = fit(make, tmp_path, max_epochs=1, ckpt_path=trainer.checkpoints[0].last_path)
    assert len(task.given) == 2
    assert made[-1].dataset.read == 4


@pytest.mark.holds("R3")
def test_data_that_cannot_be_continued_are_refused_or_begun_anew(tmp_path: Path) -> None:
    def make() -> Any:
        return data(sampler=FromOutside())

    _, trainer = fit(make, tmp_path, max_steps=3)
    last = trainer.checkpoints[0].last_path
    with pytest.raises(CheckpointError, match=r"does not yield the indices again that were trained on.*data='restart'"):
        fit(make, tmp_path, ckpt_path=last)
    task, after = fit(make, tmp_path, ckpt_path=last, restore=RestorePolicy(data="restart"))
    assert len(task.given) == 14
    assert sorted(torch.cat(task.given[:7])[:, 0].mul(16).tolist()) == list(range(14))
    assert after.progress.micro_batches == 17
