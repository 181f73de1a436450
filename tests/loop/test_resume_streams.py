"""A training on streams and on several loaders ends with the same weights, wherever it was stopped."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from data.resuming import seed
from data.streams import Batches, Buffered, Placed, noise
from loop.tiny import At, Line, equal, quiet, weights
from torch import nn
from torch.utils.data import DataLoader, IterableDataset

from taskloom import CheckpointPolicy, CombinedLoader, DataModule, RestorePolicy, Trainer
from taskloom.core.errors import CheckpointError

ALL = CheckpointPolicy(every="1 steps", keep_last=-1, fsync=False)


def pair(samples: list[list[float]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Make a batch of what the streams of `data.streams` give, with noise of its own."""
    numbers = torch.tensor([[sample[0] / 100, *sample[1:3]] for sample in samples])
    return numbers + noise()[2], numbers[:, :1]


class Pairs(Batches):
    """Batches that no DataLoader makes."""

    def __iter__(self) -> Any:
        return (pair(batch) for batch in super().__iter__())


def stream(dataset: IterableDataset[Any], workers: int = 0, **options: Any) -> DataLoader[Any]:
    return DataLoader(dataset, 2, num_workers=workers, collate_fn=pair, **options)


class Dropped(Line):
    """Draws in the main process too, and remembers what it was given; takes one batch or several."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.layer = nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.5), nn.Linear(4, 1))
        self.given: list[torch.Tensor] = []

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        batches = list(batch.values()) if isinstance(batch, dict) else batch if isinstance(batch, list) else [batch]
        x, y = (torch.cat([each[part] for each in batches if each is not None]) for part in (0, 1))
        self.given.append(x)
        return self.loss((x, y))


RUNS: dict[str, tuple[Callable[[], Any], dict[str, Any]]] = {
    "no state": (lambda: stream(Buffered(9)), {}),
    "no state, workers that persist": (lambda: stream(Buffered(9), 2, persistent_workers=True), {}),
    "state": (lambda: stream(Placed(9)), {"accumulate_grad_batches": 2}),
    "state, workers": (lambda: stream(Placed(9), 2), {}),
    "an iterable": (lambda: Pairs(5), {}),
    "limit": (lambda: stream(Placed(15), 1, persistent_workers=True), {"limit_batches": 3}),
    "loaders by name": (lambda: {"a": stream(Placed(5)), "b": Pairs(4)}, {}),
    "a list of loaders": (lambda: [stream(Buffered(5)), Pairs(4)], {"limit_batches": 3}),
    "one after the other": (lambda: CombinedLoader([stream(Placed(5)), Pairs(2)], "sequential"), {}),
    "the longest": (lambda: CombinedLoader([stream(Placed(7)), Pairs(2)], "max_size"), {}),
}


def fit(make: Callable[[], Any], folder: Path, *callbacks: Any, **arguments: Any) -> tuple[Dropped, Trainer]:
    more = {name: arguments.pop(name) for name in ("ckpt_path", "restore") if name in arguments}
    seed(3)
    task = Dropped()
    seed(len(more))
    trainer = quiet(*callbacks, **{"max_epochs": 2, "checkpoint": ALL, "run_dir": folder, **arguments})
    trainer.fit(task, make(), **more)
    return task, trainer


@pytest.mark.holds("R3", "R13", "R25", "DA-07", "DA-30")
@pytest.mark.parametrize("name", RUNS)
def test_every_checkpoint_of_a_run_leads_to_its_end(name: str, tmp_path: Path) -> None:
    make, arguments = RUNS[name]
    task, trainer = fit(make, tmp_path, **arguments)
    checkpoints = sorted((trainer.run_folder / "checkpoints").glob("step-*"))
    assert len(checkpoints) == trainer.global_step >= 4
    for number, checkpoint in enumerate(checkpoints[:-1:3] if "workers" in name else checkpoints[:-1]):
        again, after = fit(make, tmp_path / str(number), **{**arguments, "checkpoint": False}, ckpt_path=checkpoint)
        assert after.global_step == trainer.global_step
        assert equal(task.given[len(task.given) - len(again.given) :], again.given), checkpoint
        assert equal(weights(task), weights(again)), checkpoint


def _train_until_killed(step: int, folder: str) -> None:
    def kill(trainer: Trainer, _: Any) -> None:
        if trainer.global_step == step:
            os.kill(os.getpid(), signal.SIGKILL)

    more = {} if step == 3 else {"ckpt_path": "last"}
    make = partial(stream, Placed(9), 1)
    fit(make, Path(folder), At(on_train_batch_end=kill), checkpoint=ALL, **more)


@pytest.mark.holds("R3", "R13")
def test_killed_and_continued(tmp_path: Path) -> None:
    task, _ = fit(partial(stream, Placed(9), 1), tmp_path / "whole", checkpoint=False)
    context = torch.multiprocessing.get_context("spawn")
    for step in (3, 7):
        process = context.Process(target=_train_until_killed, args=(step, str(tmp_path / "killed")))
        process.start()
        process.join()
        assert process.exitcode == -signal.SIGKILL
    again, _ = fit(partial(stream, Placed(9), 1), tmp_path / "killed", ckpt_path="last")
    assert equal(weights(task), weights(again))


@pytest.mark.holds("R3", "DA-31")
@pytest.mark.parametrize("make", [lambda: stream(Placed(9)), lambda: stream(Buffered(9), 1), lambda: Pairs(4)])
def test_the_data_begin_anew_where_that_is_asked_for(make: Callable[[], Any], tmp_path: Path) -> None:
    whole, trainer = fit(make, tmp_path, max_epochs=1)
    third = sorted((trainer.run_folder / "checkpoints").glob("step-*"))[2]
    restore = RestorePolicy(data="restart")
    again, _ = fit(make, tmp_path / "again", max_epochs=1, checkpoint=False, ckpt_path=third, restore=restore)
    assert len(again.given) == len(whole.given)


@pytest.mark.holds("R3")
def test_an_iterator_is_refused_unless_its_data_begin_anew(tmp_path: Path) -> None:
    make = lambda: iter(Pairs(4))  # noqa: E731 - a loader of its own each time
    _, trainer = fit(make, tmp_path, max_epochs=1)
    second = sorted((trainer.run_folder / "checkpoints").glob("step-*"))[1]
    with pytest.raises(CheckpointError, match=r"gives each batch once.*restore.data='restart'"):
        fit(make, tmp_path / "refused", max_epochs=1, ckpt_path=second)
    restore = RestorePolicy(data="restart")
    again, _ = fit(make, tmp_path / "anew", max_epochs=1, ckpt_path=second, restore=restore)
    assert len(again.given) == 4


@pytest.mark.holds("DA-07")
def test_a_data_module_may_have_several_loaders_too(tmp_path: Path) -> None:
    class Data(DataModule):
        def train_dataloader(self) -> Any:
            return {"a": Pairs(2), "b": Pairs(3)}

    seen: list[Any] = []

    class Naming(Dropped):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            seen.append(sorted(batch))
            return super().training_step(batch, batch_idx)

    trainer = quiet(max_epochs=1)
    trainer.fit(Naming(), datamodule=Data())
    assert seen == [["a", "b"]] * 3
